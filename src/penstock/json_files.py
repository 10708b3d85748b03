"""Reading JSON files that may be damaged, edited by hand or cut off by a kill.

Contents are checked while they are read. Errors are one line with the file, the key, the expected and the found value.
"""

import json
import math
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

MAX_DEPTH = 100
"""The deepest nesting of objects and lists that is accepted; Python's own reader may fail on deeper ones."""

_INFINITE = re.compile(r"NaN|Infinity|[eE]\+?\d{3}|\d{300}")
"""Matches every text in which a number is not finite, and few others."""


class FileError(ValueError):
    """A file does not have the expected contents."""


class Rows(NamedTuple):
    """The contents of a JSON-lines file."""

    rows: list[dict[str, Any]]
    not_finite: int
    """The number of values that were NaN or infinite and were replaced by None."""
    cut_off: bool
    """Whether the last line was left out because it is incomplete, as after a kill."""


class Kind(NamedTuple):
    """A condition on a value."""

    words: str
    """The condition in words, for error messages."""
    fits: Callable[[Any], bool]


TEXT = Kind("a text", lambda value: isinstance(value, str))
FLAG = Kind("true or false", lambda value: isinstance(value, bool))
NUMBER = Kind(
    "a finite number",
    lambda value: isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(_float(value)),
)
POSITIVE = Kind("a number above 0", lambda value: NUMBER.fits(value) and value > 0)
COUNT = Kind("a whole number of at least 0", lambda value: _whole(value) and value >= 0)
SIZE = Kind("a whole number of at least 1", lambda value: _whole(value) and 1 <= value < 2**53)
OBJECT = Kind("an object", lambda value: isinstance(value, dict))


def or_null(kind: Kind) -> Kind:
    """A kind that also allows null."""
    return Kind(f"{kind.words} or null", lambda value: value is None or kind.fits(value))


def list_of(kind: Kind, length: int | None = None) -> Kind:
    """The kind of lists whose values are all of one kind, and whose length is `length` unless that is None."""
    count = "" if length is None else f" {length}"
    return Kind(
        f"a list of{count} values that are each {kind.words}",
        lambda value: isinstance(value, list) and length in (None, len(value)) and all(map(kind.fits, value)),
    )


def object_of(kind: Kind) -> Kind:
    """The kind of objects whose values are all of one kind."""
    return Kind(
        f"an object of values that are each {kind.words}",
        lambda value: isinstance(value, dict) and all(map(kind.fits, value.values())),
    )


def check_keys(content: Mapping[str, Any], kinds: Mapping[str, Kind], where: str, *, needed: Collection[str]) -> None:
    """Check the values of an object from a file. Keys that are not in `kinds` are ignored.

    Args:
        content: The object.
        kinds: The kind of value by key, for keys that are present.
        where: The file, with the line in JSON lines, for the error message.
        needed: The keys that must be present.

    Raises:
        FileError: a key is missing, or a value is not of its kind.
    """
    for key in needed:
        if key not in content:
            raise FileError(f"{where}: {key} is missing; it must be {kinds[key].words}. Restore the file.")
    for key, kind in kinds.items():
        if key in content and not kind.fits(content[key]):
            raise FileError(f"{where}: {key} must be {kind.words}, found {shown(content[key])}. Restore the file.")


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        FileError: the file does not hold an object, or has a number that is not finite, text that is not Unicode, or
            more than MAX_DEPTH levels of nesting.
        OSError: the file cannot be read.
    """
    content, not_finite = parse_object(_text_of(path), str(path))
    if not_finite:
        raise FileError(f"{path} holds a number that is NaN or infinite, which JSON does not know. Restore the file.")
    return content


def read_list(path: Path) -> list[dict[str, Any]]:
    """The list of JSON objects in a file.

    Raises:
        FileError: the file does not hold a list of objects, or see `read_object`.
        OSError: the file cannot be read.
    """
    content, not_finite = _parse(_text_of(path), str(path))
    if not_finite:
        raise FileError(f"{path} holds a number that is NaN or infinite, which JSON does not know. Restore the file.")
    if not list_of(OBJECT).fits(content):
        raise FileError(f"{path} must be a list of objects, found {shown(content)}. Restore it or delete it.")
    return content


def read_rows(path: Path) -> Rows:
    """The objects in a JSON-lines file, without an incomplete last line, as a kill leaves it.

    Raises:
        FileError: a line is not an object or is refused by `parse_object`.
        OSError: the file cannot be read.
    """
    lines = _text_of(path).split("\n")
    rows: list[dict[str, Any]] = []
    not_finite = 0
    for number, line in enumerate(lines, start=1):
        # A process that was killed while writing leaves an incomplete last line without a newline.
        if number == len(lines) and line and not _is_json(line):
            return Rows(rows, not_finite, cut_off=True)
        if line.strip():
            row, found = parse_object(line, f"{path}, line {number}")
            rows.append(row)
            not_finite += found
    return Rows(rows, not_finite, cut_off=False)


def parse_object(text: str, where: str) -> tuple[dict[str, Any], int]:
    """A JSON object in which numbers that are not finite are replaced by None, and the number of these.

    Args:
        text: The JSON.
        where: The file, with the line in JSON lines, for the error message.

    Raises:
        FileError: the text is not an object, not Unicode, or has more than MAX_DEPTH levels of nesting.
    """
    content, not_finite = _parse(text, where)
    if not isinstance(content, dict):
        raise FileError(f"{where} must be an object, found {shown(content)}. Restore it or delete it.")
    return content, not_finite


def _parse(text: str, where: str) -> tuple[Any, int]:
    """A JSON value in which numbers that are not finite are replaced by None, and the number of these."""
    try:
        content = json.loads(text)
        depth = _depth(content)
    except RecursionError:
        depth = MAX_DEPTH + 1
    except ValueError as error:
        raise FileError(f"{where} is not valid JSON ({error}). Restore it or delete it.") from error
    if depth > MAX_DEPTH:
        raise FileError(f"{where} has more than {MAX_DEPTH} levels of nesting. Restore it or delete it.")
    if "\\ud" in text.lower():
        _check_unicode(content, where)
    return _finite(content) if _INFINITE.search(text) else (content, 0)


def shown(value: Any) -> str:
    """A value as one line of JSON for an error message, cut after 60 characters."""
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def _text_of(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise FileError(
            f"{path} is not UTF-8 text ({error.reason} at byte {error.start}). Restore the file."
        ) from error


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except RecursionError:
        return True
    except ValueError:
        return False
    return True


def _depth(content: Any) -> int:
    """The number of levels of nesting, computed without recursion."""
    deepest, waiting = 0, [(content, 1)]
    while waiting:
        value, depth = waiting.pop()
        if isinstance(value, (dict, list)):
            deepest = max(deepest, depth)
            waiting += [(item, depth + 1) for item in (value.values() if isinstance(value, dict) else value)]
    return deepest


def _check_unicode(content: Any, where: str) -> None:
    try:
        json.dumps(content, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise FileError(
            f"{where} holds a lone surrogate ({error.object[error.start]!a}), which cannot be encoded as UTF-8. Remove "
            "it from the text."
        ) from error


def _finite(value: Any) -> tuple[Any, int]:
    """A copy in which numbers that are not finite are replaced by None, and the number of these."""
    if isinstance(value, (int, float)) and not math.isfinite(_float(value)):
        return None, 1
    if isinstance(value, dict):
        found = {key: _finite(item) for key, item in value.items()}
        return {key: item for key, (item, _) in found.items()}, sum(count for _, count in found.values())
    if isinstance(value, list):
        items = [_finite(item) for item in value]
        return [item for item, _ in items], sum(count for _, count in items)
    return value, 0


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _float(value: int | float) -> float:
    """The value as a float; integers too large for a float become infinite."""
    try:
        return float(value)
    except OverflowError:
        return math.inf
