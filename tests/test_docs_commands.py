"""Every shell command of the pages is run, on a model and a run of toy size, so that it stays true."""

import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from penstock.cli import main

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("**/*.md"))]
# Options are the parser's own words, and results were made by the commands that they name.
PAGES = [page for page in PAGES if page != ROOT / "docs/options.md" and ROOT / "docs/results" not in page.parents]

TRAINING = ("sweep", "train")
TOY_RUN = {
    "--model": "LM",
    "--text": "CORPUS",
    "--context": "32",
    "--tokens": "1280",
    "--batch-size": "64",
    "--model-batch-rows": "8",
    "--eval-tokens": "200",
    "--bootstrap": "10",
    "--threads": "1",
}
"""What a command that trains a new run gets, in place of what it says or in addition."""

TOY_SIZES = {"--cache-tokens": "640", "--buffer-tokens": "512", "--d-sae": "64"}
"""What such a command gets in place of what it says, if it says anything."""

TOY_STUDY = {
    "shrinkage": "--most-apart 100 --toy-coefs 1 --resamples 20",
    "ablations": "--ablations untied",
    "refit": "--refit.steps 5 --refit.batch-size 64 --fit-tokens 1000",
    "pursuit": "--num-latents 2",
    "pruning": "--quantiles 0.5 --l0-shares --prices",
    "cost": "--repeats 1",
    "sensitivity": "--lr 2 --sparsity-coef --d-sae --warmup-share",
    "dictionaries": "--most-apart 100",
    "concepts": "--min-firings 2",
}
"""What each study gets in addition."""

AS_IT_IS = ("eval", "report", "info", "convert-gelu-1l", "--version")


def shell_lines(text: str) -> Iterator[str]:
    """The lines of indented and fenced blocks, but of those in Python; a line that goes on in the next is one."""
    fence, kept = None, ""
    for line in text.splitlines():
        if line.strip().startswith("```"):
            fence = None if fence is not None else line.strip()[3:]
            continue
        if fence == "python" or (fence is None and not line.startswith("    ")):
            continue
        kept += line.strip().removeprefix("$ ")
        if kept.endswith("\\"):
            kept = kept[:-1]
            continue
        yield kept
        kept = ""


def commands_in(text: str, program: str) -> Iterator[str]:
    """The commands of a page that begin with `program`, in blocks and in inline code, without their comments."""
    inline = re.findall(r"(?<!`)`([^`]+)`(?!`)", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    for line in (*shell_lines(text), *inline):
        if line.startswith(f"{program} "):
            yield from alternatives(shlex.split(line, comments=True))


def alternatives(words: list[str]) -> Iterator[str]:
    """`penstock study cost | refit RUN` is two commands."""
    if "|" not in words:
        yield shlex.join(words)
        return
    bars = [place for place, word in enumerate(words) if word == "|"]
    first, last = bars[0] - 1, bars[-1] + 1
    for word in words[first : last + 1 : 2]:
        yield shlex.join([*words[:first], word, *words[last + 1 :]])


def on_pages(program: str) -> dict[str, str]:
    """Each command, with the page that has it first."""
    found: dict[str, str] = {}
    for page in PAGES:
        for command in commands_in(page.read_text(), program):
            found.setdefault(command, str(page.relative_to(ROOT)))
    return found


COMMANDS = on_pages("penstock")


def at_toy_size(command: str) -> list[str]:
    """The arguments with which a command is run here; capitals are still to be filled."""
    _, name, *given = shlex.split(command)
    if "--help" in given or not (given or name.startswith("-")):
        return [name, "--help"]
    if name == "reproduce":
        return [name, *given, *(() if "--dry-run" in given else ("--dry-run",))]
    if name == "study" and given[0] in TOY_STUDY:
        return [name, *given, *TOY_STUDY[given[0]].split()]
    if name in AS_IT_IS or (name in TRAINING and "--resume" in given):
        return [name, *given]
    if name not in TRAINING:
        pytest.fail(
            f"How to run `{command}` ({COMMANDS.get(command)}) at toy size is not known. Add {name} to AS_IT_IS, or "
            "what it gets to TOY_STUDY or at_toy_size in tests/test_docs_commands.py."
        )
    said: dict[str, list[str]] = {}
    for word in given:
        if word.startswith("--"):
            said[word] = []
        else:
            said[list(said)[-1]].append(word)
    for flag, value in TOY_RUN.items():
        said[flag] = [value]
    # The toy model has two layers.
    said = {flag: [re.sub(r"^(\w+)\.\d+$", r"\1.1", value) for value in values] for flag, values in said.items()}
    said |= {flag: [value] for flag, value in TOY_SIZES.items() if flag in said}
    return [name, *(word for flag, values in said.items() for word in (flag, *values))]


@pytest.fixture(scope="module")
def filled(
    run_folder: Path,
    tiny_lm_folder: Path,
    corpus: Path,
    write_gelu_1l: Callable[[Path], object],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, str]:
    """What stands in for the capitals of a command."""
    folder = tmp_path_factory.mktemp("docs")
    run = shutil.copytree(run_folder, folder / "run")
    write_gelu_1l(folder / "published")
    # docs/studies.md makes OUT with the command before the one that takes it.
    assert main(["convert-gelu-1l", str(folder / "published"), str(folder / "gelu-1l")]) == 0
    return {
        "LM": str(tiny_lm_folder),
        "NAME": str(tiny_lm_folder),
        "CORPUS": str(corpus),
        "RUN": str(run),
        "DIR": str(run),
        "PRESET": "embedded",
        "GIB": "4",
        "FOLDER": str(folder / "published"),
        "OUT": str(folder / "gelu-1l"),
    }


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_a_page_runs(
    command: str,
    filled: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = at_toy_size(command)
    places = filled | ({"OUT": str(tmp_path / "out")} if "FOLDER" in arguments else {})
    for word in arguments:
        if re.fullmatch(r"[A-Z][A-Z0-9_]*", word) and word not in places:
            pytest.fail(
                f"{word} in `{command}` ({COMMANDS[command]}) stands for something that this test does not know. Add "
                "it to the fixture `filled` in tests/test_docs_commands.py."
            )
    try:
        code = main([places.get(word, word) for word in arguments])
    except SystemExit as end:
        code = end.code
    said = capsys.readouterr()
    ran = shlex.join(["penstock", *arguments])
    assert code == 0, f"`{command}` ({COMMANDS[command]}), run as `{ran}`, ended with {code}:\n{said.err}"
    assert said.out


def test_every_target_of_make_exists() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = on_pages("make")
    missing = {command: page for command, page in named.items() if command.split()[1] not in targets}
    assert named and not missing, f"not targets of the Makefile: {missing}"


PAGE = """
In `penstock info`, and over lines `penstock study cost | refit
RUN`, not ``penstock``, but `make demo`.

    penstock train --d-sae 8 \\
      --out runs/one   # a comment
    make test      # another

```sh
$ penstock report runs/one
```
```python
penstock = 1
```
"""


def test_commands_are_found_in_blocks_and_in_inline_code() -> None:
    assert list(commands_in(PAGE, "penstock")) == [
        "penstock train --d-sae 8 --out runs/one",
        "penstock report runs/one",
        "penstock info",
        "penstock study cost RUN",
        "penstock study refit RUN",
    ]
    assert list(commands_in(PAGE, "make")) == ["make test", "make demo"]


def test_the_pages_have_the_commands_that_this_test_was_written_for() -> None:
    names = {command.split()[1] for command in COMMANDS}
    assert {"sweep", "train", "eval", "report", "info", "study", "reproduce", "convert-gelu-1l", "--version"} <= names
