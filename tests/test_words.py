"""Phrases that a reader stumbles over stay out of the pages, docstrings and messages."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

PHRASES = {
    r"\b[Aa]s of `": 'write "see" or "same as"',
    r"\bleft open\b": 'write "default: ..."',
    r"\bonly else\b": 'write "otherwise"',
    r"\b[Ll]ikewise\b": 'write "the same for ..."',
    r"\bsaid to\b": 'write "reported" or "must"',
    r"\bnothing else is said\b": 'write "unless stated"',
    r"\b(is|are) no (readable|part|Hugging|such (thing|name)|module of its own)\b": 'write "is not a ..."',
    r"\blent again\b": 'write "reused"',
    r"\b[Ll]ess its\b": 'write "without its"',
    r"\banew\b": 'write "again"',
    r"\bbeside (it|them|one|the|its|those|this|ours|our)\b": 'write "next to", "compared with" or "besides"',
    r"\b[Aa]ll of anything else\b": "name what is returned",
    r"\bshall\b": 'write "must", or the plain present',
    r"\b[Ss]ays? of\b": "name what is returned",
    r"\b[Ww]hat is known of\b": 'write "the facts of"',
    r"\bready for JSON\b": 'write "in types that JSON has"',
    r"\b[Gg]o(es)? on with\b": 'write "continue with"',
    r"\bonce more\b": 'write "again", or a verb with re-',
    r"\bto conclude from\b": 'write "for conclusions"',
    r"\bElse\b": 'write "Otherwise"',
    r"\beach once\b": 'write "without repetition"',
    r"\b(: |; |or |and )as `": 'write "see"',
    r"\bpassed over\b": 'write "left out"',
    r"\bbegun\b": 'write "started"',
    r"\b(allowed|known) (is|are) ": 'write "must be" or "must be one of"',
    r"\bthe same, decided\b": 'write "with every default filled in"',
    r"\bleft as (it|they) (was|were|is|are)\b": 'write "does not change"',
}
"""Regular expressions of the phrases, and what to write in their place."""


def strings(code: str) -> Iterator[tuple[int, str]]:
    """The string literals of Python code, docstrings included, by line."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value


def offences(first_line: int, text: str, place: str) -> list[str]:
    """The phrases in a text, each with its file, line and remedy; a phrase may run over the end of a line."""
    found = []
    for pattern, remedy in PHRASES.items():
        for match in re.finditer(pattern.replace(" ", r"\s+"), text):
            line = first_line + text.count("\n", 0, match.start())
            found.append(f"{place}:{line}: {match.group()!r}: {remedy}")
    return found


def test_phrases_that_readers_stumble_over_stay_out_of_pages_docstrings_and_messages() -> None:
    places = ("*.md", "docs/*.md", "docs/tutorials/*.md", "benchmarks/*.md", "benchmarks/*/README.md")
    pages = [page for place in places for page in ROOT.glob(place)]
    found = [
        one for page in pages for one in offences(1, page.read_text(encoding="utf-8"), str(page.relative_to(ROOT)))
    ]
    for file in sorted((ROOT / "src").rglob("*.py")):
        for line, text in strings(file.read_text(encoding="utf-8")):
            found += offences(line, text, str(file.relative_to(ROOT)))
    assert not found, "reword:\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("code", "line"),
    [
        ('"""Fine.\n\nmodel: As of `run_configs`."""', 3),
        ('raise ValueError("how many latents shall fire")', 1),
        ('x = 1\n\nmessage = f"drawn anew for {x}"', 3),
        ('"""The defaults if left\nopen."""', 1),
    ],
)
def test_a_phrase_is_found_with_its_file_and_line(code: str, line: int) -> None:
    [found] = [one for first, text in strings(code) for one in offences(first, text, "some/file.py")]
    assert found.startswith(f"some/file.py:{line}: ")
