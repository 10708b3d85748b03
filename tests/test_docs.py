"""What the README says is run, so that it stays true."""

import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import penstock
from penstock.saes import ARCHITECTURES

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_readme_stays_short_enough_to_be_read() -> None:
    assert len(README.splitlines()) <= 150


def smaller(setting: re.Match[str]) -> str:
    """A fifth of the tokens that a page trains or evaluates on: it is to run, not to find anything."""
    return f"{setting[1]}={int(setting[2]) // 5}"


TUTORIALS = sorted((ROOT / "docs/tutorials").glob("*.md"))


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("page", [ROOT / "README.md", *TUTORIALS], ids=lambda page: page.stem)
def test_the_python_of_a_page_runs_from_top_to_bottom(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    known = dict(ARCHITECTURES)
    try:
        names: dict[str, object] = {"__name__": page.stem}
        text = re.sub(r"\b(\w*tokens)=([\d_]+)", smaller, page.read_text())
        for block in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL):
            exec(compile(block, page.name, "exec"), names)
    finally:
        ARCHITECTURES.clear()
        ARCHITECTURES.update(known)
    assert capsys.readouterr().out


@pytest.mark.parametrize(
    "page",
    ["README.md", "CONTRIBUTING.md", *(str(page.relative_to(ROOT)) for page in (ROOT / "docs").glob("**/*.md"))],
)
def test_every_local_link_leads_somewhere(page: str) -> None:
    folder = (ROOT / page).parent
    targets = re.findall(r"\]\((?!https?://|#)([^)#]+)", (ROOT / page).read_text())
    missing = [target for target in targets if not (folder / target).exists()]
    assert not missing


def undocumented(module_name: str) -> Iterator[str]:
    """The public names of a module, and the public methods of its classes, that have no docstring."""
    module = importlib.import_module(module_name)
    for name in module.__all__:
        value = getattr(module, name)
        if not (inspect.isclass(value) or inspect.isfunction(value)):
            continue
        # A dataclass without a docstring gets its signature as one.
        if not value.__doc__ or value.__doc__.startswith(f"{name}("):
            yield f"{module_name}.{name}"
        for method, member in inspect.getmembers(value) if inspect.isclass(value) else ():
            ours = str(getattr(member, "__module__", "")).startswith("penstock")
            if ours and not method.startswith("_") and callable(member) and not inspect.getdoc(member):
                yield f"{module_name}.{name}.{method}"


API_PAGE = re.findall(r"^::: (\S+)$", (ROOT / "docs/api.md").read_text(), flags=re.MULTILINE)


@pytest.mark.parametrize("module", API_PAGE)
def test_every_public_name_of_the_api_page_is_documented(module: str) -> None:
    assert not list(undocumented(module))


def test_the_api_page_begins_with_the_package_and_shows_no_module_twice() -> None:
    assert API_PAGE[0] == penstock.__name__
    assert len(set(API_PAGE)) == len(API_PAGE)
