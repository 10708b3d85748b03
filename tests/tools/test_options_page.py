"""docs/options.md is what tools/options_page.py writes now."""

from options_page import PAGE, options_page
from penstock.cli import option_classes
from penstock.cli.option_list import options_of


def test_the_page_of_options_is_current() -> None:
    current = options_page(option_classes()) == PAGE.read_text(encoding="utf-8")
    assert current, "docs/options.md is stale: run tools/options_page.py"


def test_every_option_of_every_command_is_on_the_page() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for name, options_class in option_classes().items():
        _, found, section = page.partition(f"\n## penstock {name}\n")
        assert found
        section = section.partition("\n## ")[0]
        assert all(f"| `{option.flag}" in section for option in options_of(options_class))
