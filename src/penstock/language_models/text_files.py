"""Text files: which files of a folder are read, how they are opened, and how they become documents.

A reader yields the documents of one file in order. For anything that is not text it yields a `LeftOut` and continues,
because one bad row must not end a run of days.
"""

import bz2
import gzip
import importlib
import io
import json
import logging
import lzma
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain, islice
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from penstock.language_models.stdlib_corpus import Document, Split, split_of

logger = logging.getLogger(__name__)

TXT_DOCUMENT_CHARACTERS = 4_000
"""A .txt file is cut into documents at the first blank line after this many characters, ..."""

TXT_LONGEST_DOCUMENT_CHARACTERS = 16_000
"""... or at the first line end after this many; a longer line is cut between two words."""

SPANS = 10
"""A .txt file is divided into blocks of this many spans of neighbouring documents. Each last span is held out, and
half of the span before it is for validation."""

LONGEST_SPAN = 16
"""Most documents in a span. The spans of a file begin with one document and double up to this, so that a short file
also has held-out documents."""


class LeftOut(NamedTuple):
    """A document that a reader could not read."""

    kind: str
    """Kind of problem, for counting: "without text", "not JSON", "not Unicode", "damaged"."""
    message: str
    """A sentence with the problem, its place and the remedy."""


Reader = Iterator[Document | LeftOut]


def find_text_files(path: Path, allowed: str) -> list[Path]:
    """Return the text files at a path, in the order of their paths: the file itself, or all in a folder and below.

    Hidden files and folders (their names begin with a dot) are not read: they hold backups and other programs' data.
    A folder that links reach in two ways is read once.

    Args:
        path: A file or a folder.
        allowed: Description of the allowed text sources, for the error.

    Raises:
        FileNotFoundError: the path does not exist, or the folder holds no text files.
        ValueError: the file cannot be read as text.
    """
    if path.is_dir():
        found = list(_walk(path))
        files = sorted(file for file in found if _is_text(file))
        if not files:
            raise FileNotFoundError(f"The folder {str(path)!r} holds no {', '.join(READERS)} files.")
        others = sorted({file.suffix.lower() or "no suffix" for file in found if not _is_text(file)})
        if others:
            say_once(f"{path}: {len(found) - len(files)} files are not texts and are not read ({', '.join(others)}).")
        return files
    if not path.exists():
        raise FileNotFoundError(f"No text source {str(path)!r}. A source is {allowed}.")
    if not _is_text(path):
        raise ValueError(f"Cannot read {str(path)!r} as text: its suffix is {path.suffix!r}. A source is {allowed}.")
    return [path]


def read_file(path: Path, text_field: str, skip: int) -> Reader:
    """Return the documents of a file; if part of it is damaged, a `LeftOut` stands for the rest.

    Args:
        path: A file that `find_text_files` has found.
        text_field: The field or column that holds the text, in everything but .txt.
        skip: Number of documents to skip at the start, as cheaply as the kind of file allows.

    Raises:
        ImportError: an optional package is needed.
        OSError: the file cannot be read at all.
    """
    try:
        yield from READERS[_kind(path)[0]](path, text_field, skip)
    except _damages() as error:
        yield LeftOut(
            "damaged", f"{str(path)!r} is damaged, and the rest of it cannot be read: {str(error).rstrip('.')}."
        )


def document_in(place: str, row: object, text_field: str) -> Document | LeftOut:
    """Return the document in a row with fields."""
    fields = row if isinstance(row, Mapping) else {}
    text = fields.get(text_field)
    if isinstance(text, str):
        return Document(place, text)
    if text_field in fields:
        held = "null" if text is None else f"a value of type {type(text).__name__}"
        return LeftOut("without text", f"{place} has {held} in its field {text_field!r} instead of text.")
    others = ", ".join(repr(name) for name, value in fields.items() if isinstance(value, str))
    return LeftOut(
        "without text",
        f"{place} has no text in a field {text_field!r}. Its fields with text: {others or 'none'}. Choose one with "
        "text_field.",
    )


def optional_package(module: str, extra: str) -> ModuleType:
    """Import a module of an optional package.

    Raises:
        ImportError: the package is not installed; the message says how to install it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ImportError(
            f"Reading this source needs the package {module.partition('.')[0]!r}: pip install 'penstock[{extra}]'"
        ) from error


def say_once(message: str, *key: str) -> None:
    """Log a warning once per process and key, because a text is read several times.

    Args:
        message: The warning.
        key: Subject of the warning; default: the message.
    """
    key = key or (message,)
    if key not in _said:
        _said.add(key)
        logger.warning(message)


_said: set[tuple[str, ...]] = set()


def _walk(folder: Path) -> Iterator[Path]:
    """Yield the files in a folder and its subfolders that are not hidden, each folder once, so that link cycles end."""
    seen: set[tuple[int, int]] = set()
    waiting = [folder]
    while waiting:
        current = waiting.pop()
        try:
            info = current.stat()
            inside = sorted(current.iterdir(), reverse=True)
        except OSError as error:
            say_once(f"The folder {str(current)!r} cannot be read and is left out: {error.strerror or error}.")
            continue
        if (info.st_dev, info.st_ino) in seen:
            say_once(f"{str(current)!r} leads to a folder that was read already, and is left out.")
            continue
        seen.add((info.st_dev, info.st_ino))
        for path in inside:
            if path.name.startswith(".") or path.name == "__MACOSX":
                continue
            if os.path.isdir(path):
                waiting.append(path)
            elif os.path.isfile(path):
                yield path


def _is_text(path: Path) -> bool:
    kind, compression = _kind(path)
    return kind in READERS and not (kind == ".parquet" and compression)


def _kind(path: Path) -> tuple[str, str]:
    """Return the suffix of the kind of file, and the suffix of its compression, if any."""
    last = path.suffix.lower()
    return (path.with_suffix("").suffix.lower(), last) if last in _OPENERS else (last, "")


def _open(path: Path) -> Any:
    """Open a file for reading decompressed bytes."""
    opener = _OPENERS.get(_kind(path)[1])
    return opener(path) if opener else path.open("rb")


def _open_zst(path: Path) -> Any:
    zstandard = optional_package("zstandard", extra="zst")
    # The package's own `open` stops after the first frame; files written by several threads or by appending have many.
    decompressor = zstandard.ZstdDecompressor(max_window_size=2**31)
    return io.BufferedReader(decompressor.stream_reader(path.open("rb"), read_across_frames=True, closefd=True))


def _damages() -> tuple[type[Exception], ...]:
    """Return the exceptions that readers raise for damaged files."""
    known: list[type[Exception]] = [EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError]
    for module, name in (("zstandard", "ZstdError"), ("pyarrow", "ArrowException")):
        try:
            known.append(getattr(importlib.import_module(module), name))
        except ModuleNotFoundError:
            continue
    return tuple(known)


def _txt_documents(path: Path, text_field: str, skip: int) -> Reader:
    # Bytes that are not UTF-8 become lone surrogates, so that one of them costs only a document and not the file.
    with io.TextIOWrapper(_open(path), encoding="utf-8-sig", errors="surrogateescape") as file:
        for number, (text, split) in enumerate(islice(_in_spans(_pieces(file)), skip, None), start=skip):
            yield Document(f"{path}#{number}", text, split)


def _pieces(file: io.TextIOWrapper) -> Iterator[str]:
    """Cut a text at blank lines, or else at line ends, or else between words."""
    parts: list[str] = []
    characters = 0
    while line := file.readline(TXT_LONGEST_DOCUMENT_CHARACTERS):
        parts.append(line)
        characters += len(line)
        is_break = not line.strip() and characters >= TXT_DOCUMENT_CHARACTERS
        if is_break or characters >= TXT_LONGEST_DOCUMENT_CHARACTERS:
            piece, rest = _cut_between_words("".join(parts))
            yield piece
            parts, characters = [rest], len(rest)
    last = "".join(parts)
    if last.strip():
        yield last


def _cut_between_words(text: str) -> tuple[str, str]:
    """Return the part of a text that ends with a line or a word, and the rest."""
    if text.endswith("\n"):
        return text, ""
    space = text.rfind(" ", len(text) // 2)
    # Cut before the space, because most tokenizers join it with the next word.
    return (text, "") if space < 0 else (text[:space], text[space:])


def _in_spans(pieces: Iterable[str]) -> Iterator[tuple[str, Split]]:
    """Assign each piece of one text to a split; neighbours stay together, because they are similar."""
    pieces = iter(pieces)
    first = list(islice(pieces, SPANS))
    if len(first) < SPANS:
        # A hash of the text needs valid Unicode; pieces that are not valid are left out later.
        whole: Split = split_of("".join(first).encode(errors="replace").decode())
        for piece in first:
            yield piece, whole
        return
    start, span = 0, 1
    for number, piece in enumerate(chain(first, pieces)):
        if number == start + SPANS * span:
            start, span = number, min(2 * span, LONGEST_SPAN)
        in_last_span = number - start - (SPANS - 1) * span
        if in_last_span >= 0:
            yield piece, "held_out"
        else:
            # The half span before it, from the second block on, where a span has two documents or more.
            yield piece, "validation" if in_last_span >= -(span // 2) else "train"


def _jsonl_documents(path: Path, text_field: str, skip: int) -> Reader:
    with _open(path) as file:
        lines = ((number, line) for number, line in enumerate(file, start=1) if line.strip())
        for number, line in islice(lines, skip, None):
            place = f"{path}:{number}"
            try:
                row = json.loads(line)
            except RecursionError:
                yield LeftOut("not JSON", f"{place}: the JSON in this line is nested too deeply to be read.")
            except ValueError as error:
                yield LeftOut("not JSON", f"{place}: this line is not JSON: {error}.")
            else:
                yield document_in(place, row, text_field)


def _parquet_documents(path: Path, text_field: str, skip: int) -> Reader:
    parquet = optional_package("pyarrow.parquet", extra="parquet")
    with parquet.ParquetFile(path) as file:
        columns = [text_field] if text_field in file.schema_arrow.names else None
        before = 0
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            if before + rows > skip:
                read = _rows_of(file.iter_batches(row_groups=[group], columns=columns))
                for number, row in islice(enumerate(read, start=before), max(0, skip - before), None):
                    yield document_in(f"{path}:{number}", row, text_field)
            before += rows


def _rows_of(batches: Iterable[Any]) -> Iterator[dict[str, Any]]:
    for batch in batches:
        for index in range(len(batch)):
            yield {name: _value(column[index]) for name, column in zip(batch.schema.names, batch.columns, strict=True)}


def _value(scalar: Any) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        return None


READERS: dict[str, Callable[[Path, str, int], Reader]] = {
    ".txt": _txt_documents,
    ".jsonl": _jsonl_documents,
    ".parquet": _parquet_documents,
}
"""Readers by the suffix of a file."""

_OPENERS: dict[str, Callable[[Path], Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": _open_zst,
}
"""Functions that open a compressed file, by its suffix; .txt and .jsonl files may be compressed."""
