"""Write docs/options.md, the options of all commands, from the dataclasses that the command line parses.

python tools/options_page.py
"""

from collections.abc import Mapping
from pathlib import Path

from penstock.cli import option_classes
from penstock.cli.help import grouped
from penstock.cli.option_list import Option, options_of, summary_of

PAGE = Path(__file__).parent.parent / "docs" / "options.md"

INTRODUCTION = """# Options of all commands

`python tools/options_page.py` writes this page from the docstrings of the settings classes. To change it, edit those.
`penstock COMMAND --help` prints the common options, and `penstock COMMAND --help-all` prints all of them.

Options can be written in singular or plural (`--arch`, `--archs`). An option with `...` takes several values, separated
by spaces. An option without a value is a switch.
"""


def options_page(commands: Mapping[str, type]) -> str:
    """The page for some commands, given as a dataclass of options for each command."""
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
