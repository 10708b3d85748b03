"""The texts of `--help` and `--help-all`: plain text, with options in groups."""

import shutil
import textwrap
from collections.abc import Mapping, Sequence

from penstock.cli.option_list import Option, options_of, summary_of

GROUPS = {
    "Run": ("_Run", "Run"),
    "SAE": ("Train", "Sweep", "SAEConfig"),
    "Language model": ("LanguageModelConfig",),
    "Texts and activations": ("DataConfig",),
    "Optimiser": ("OptimConfig",),
    "Resampling of dead latents": ("ResamplingConfig",),
    "Evaluation": ("EvalConfig",),
}
"""The groups of options in commands with many options: the title, and the settings classes in the group."""

_TITLES = {section: title for title, sections in GROUPS.items() for section in sections}

DAILY = {
    "Run": "out resume from threads",
    "SAE": "arch site d-sae target-l0 sparsity-coef seed lr",
    "Language model": "model device",
    "Texts and activations": "text context tokens cache-tokens",
    "Optimiser": "batch-size",
    "Evaluation": "eval-tokens",
}
"""The options of each group that `--help` shows in commands with many options; `--help-all` shows all."""

SHORT = 25
"""The largest number of options of which `--help` shows all."""

_INDENT = 26


def help_of(name: str, command: type, *, everything: bool, about: str = "") -> str:
    """The help text of a command.

    Args:
        name: The command without `penstock`, e.g. `train`.
        command: The dataclass of its options.
        everything: Whether to show all options, also the rare ones.
        about: Description of the command; default: the docstring of `command`.
    """
    options = options_of(command)
    shown = options if everything or len(options) <= SHORT else [option for option in options if is_daily(option)]
    positional = "".join(f" {_in_usage(option)}" for option in options if option.is_positional)
    flags = "" if all(option.is_positional for option in options) else " [options]"
    lines = [f"usage: penstock {name}{positional}{flags}", "", *_wrapped(about or summary_of(command))]
    for title, group in grouped(shown).items():
        lines += ["", f"{title}:", *(line for option in group for line in _lines(option))]
    if len(shown) < len(options):
        lines += ["", f"{len(options) - len(shown)} more options: penstock {name} --help-all"]
    return "\n".join(lines) + "\n"


def help_of_commands(name: str, summaries: Mapping[str, str], about: str, more: str = "") -> str:
    """The help text of a program with several commands.

    Args:
        name: The program, e.g. `penstock` or `penstock study`.
        summaries: The description of each command.
        about: The description of the program.
        more: An additional last line.
    """
    lines = [f"usage: {name} COMMAND [options]", "", *_wrapped(about), "", "Commands:"]
    for command, summary in summaries.items():
        lines += _columns(command, summary)
    lines += ["", f"{name} COMMAND --help lists the options of a command.", *([more] if more else [])]
    return "\n".join(lines) + "\n"


def is_daily(option: Option) -> bool:
    """Whether `--help` shows the option. True if it is not in a group, such as an architecture's own settings."""
    title = _TITLES.get(option.section)
    return title is None or option.flag.removeprefix("--") in DAILY.get(title, "").split()


def grouped(options: Sequence[Option]) -> dict[str, list[Option]]:
    """The options by the title of their group, in the order of GROUPS; options without a group come first."""
    found: dict[str, list[Option]] = {"Arguments": [], "Options": [], **{title: [] for title in GROUPS}}
    for option in options:
        title = "Arguments" if option.is_positional else _TITLES.get(option.section, "Options")
        found[title].append(option)
    return {title: group for title, group in found.items() if group}


def _in_usage(option: Option) -> str:
    name = f"{option.flag} ..." if option.value == "..." else option.flag
    return name if option.is_required else f"[{name}]"


def _lines(option: Option) -> list[str]:
    default = f" (default: {option.default})" if option.default else ""
    return _columns(f"{option.flag} {option.value}".rstrip(), option.explanation + default)


def _columns(left: str, right: str) -> list[str]:
    """The lines of two columns; a long left column gets a line of its own."""
    text = textwrap.wrap(right, _width() - _INDENT, break_on_hyphens=False) or [""]
    if len(left) + 3 > _INDENT:
        return [f"  {left}", *(" " * _INDENT + line for line in text)]
    return [f"  {left}".ljust(_INDENT) + text[0], *(" " * _INDENT + line for line in text[1:])]


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, _width(), break_on_hyphens=False)


def _width() -> int:
    return max(60, min(100, shutil.get_terminal_size().columns))
