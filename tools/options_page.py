"""Write docs/options.md: every option of every command, from the dataclasses that the command line parses.

python tools/options_page.py
"""

from collections.abc import Mapping
from pathlib import Path

from penstock.cli import option_classes
from penstock.cli.help import grouped
from penstock.cli.option_list import Option, options_of, summary_of

PAGE = Path(__file__).parent.parent / "docs" / "options.md"

INTRODUCTION = """# Options of every command

This page is written by `python tools/options_page.py` from the settings classes: change the docstrings there.
`penstock COMMAND --help` prints the options of every day, and `penstock COMMAND --help-all` all of them.

Singular and plural of an option are both understood (`--arch`, `--archs`). An option with `...` takes several values,
separated by spaces. An option without a value is a switch.
"""


def options_page(commands: Mapping[str, type]) -> str:
    """The page for these commands: name as typed after `penstock`, and the dataclass of the options."""
    parts = [INTRODUCTION]
    for name, options_class in commands.items():
        parts.append(f"\n## penstock {name}\n\n{summary_of(options_class)}\n")
        for title, options in grouped(options_of(options_class)).items():
            rows = "\n".join(map(_row, options))
            parts.append(f"\n### {title}\n\n| option | what it does | default |\n|---|---|---|\n{rows}\n")
    return "".join(parts)


def _row(option: Option) -> str:
    flag = f"{option.flag} {option.value}".rstrip()
    default = f"`{option.default}`" if option.default else ""
    return f"| `{_cell(flag)}` | {_cell(option.explanation)} | {_cell(default)} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(options_page(option_classes()), encoding="utf-8")
    print(PAGE)
