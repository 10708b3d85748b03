"""Texts to train and evaluate on: the embedded corpus, local files, or a dataset of the Hugging Face Hub."""

import importlib
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import get_args

from penstock.language_models.stdlib_corpus import Document, Split, split_of, stdlib_documents

TXT_DOCUMENT_CHARACTERS = 4_000
"""A .txt file is cut into documents at the first blank line after this many characters, ..."""

TXT_LONGEST_DOCUMENT_CHARACTERS = 16_000
"""... or at the first line end after this many, if no blank line comes before it."""

_ALLOWED = (
    '"embedded", a .txt, .jsonl or .parquet file, a folder of such files, "datasets:NAME" or "datasets:NAME:CONFIG"'
)


def documents(source: str | Path, *, split: Split, text_field: str = "text") -> Iterator[Document]:
    """The documents of one split of a text source.

    The embedded corpus is split by file. Everywhere else a tenth of the documents is held out by a hash of
    the document's own text, so that a document is in the same split wherever it stands.

    Args:
        source: One of
            "embedded": the source code of the Python standard library;
            a .txt file: cut into documents of some thousand characters, at blank lines where possible;
            a .jsonl file: one JSON object a line, or a .parquet file: one document a row;
            a folder: all of these files in it and below, in the order of their paths;
            "datasets:NAME" or "datasets:NAME:CONFIG": the split "train" of a dataset on the Hub, streamed,
            for example "datasets:allenai/c4:en".
        split: "train" or "held_out".
        text_field: The field or column that holds the text, in everything but .txt.

    Returns:
        The documents that are not empty, read as they are asked for.

    Raises:
        FileNotFoundError: no such file or folder, or a folder without texts.
        ImportError: an optional package is needed.
        ValueError: unknown split or kind of source; and, while reading, a damaged file, a document without
            text, or no document at all in this split.
    """
    if split not in get_args(Split):
        raise ValueError(f"split must be one of {', '.join(get_args(Split))}; got {split!r}.")
    if source == "embedded":
        return stdlib_documents(split)
    if isinstance(source, str) and source.startswith("datasets:"):
        return _in_split(_dataset_documents(source, text_field), split, source)
    files = _text_files(Path(source).expanduser())
    read = (document for file in files for document in _READERS[file.suffix.lower()](file, text_field))
    return _in_split(read, split, source)


def _in_split(read: Iterable[Document], split: Split, source: str | Path) -> Iterator[Document]:
    is_empty = True
    for document in read:
        try:
            is_wanted = document.text != "" and split_of(document.text) == split
        except UnicodeEncodeError as error:
            raise ValueError(f"{document.name} is no text: {error}.") from error
        if is_wanted:
            is_empty = False
            yield document
    if is_empty:
        raise ValueError(
            f"No documents in split {split!r} of {str(source)!r}. A tenth of the documents is held out, so "
            f"both splits need some tens of documents; in a .txt file blank lines separate them."
        )


def _text_files(path: Path) -> list[Path]:
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in _READERS and file.is_file())
        if not files:
            raise FileNotFoundError(f"The folder {str(path)!r} holds no {', '.join(_READERS)} files.")
        return files
    if not path.exists():
        raise FileNotFoundError(f"No text source {str(path)!r}. A source is {_ALLOWED}.")
    if path.suffix.lower() not in _READERS:
        raise ValueError(f"Cannot read {str(path)!r} as text: its suffix is {path.suffix!r}. A source is {_ALLOWED}.")
    return [path]


def _txt_documents(path: Path) -> Iterator[Document]:
    lines: list[str] = []
    characters = count = 0
    with path.open(encoding="utf-8") as file:
        try:
            for line in file:
                lines.append(line)
                characters += len(line)
                is_break = not line.strip() and characters >= TXT_DOCUMENT_CHARACTERS
                if is_break or characters >= TXT_LONGEST_DOCUMENT_CHARACTERS:
                    yield Document(f"{path}#{count}", "".join(lines))
                    lines, characters, count = [], 0, count + 1
        except UnicodeDecodeError as error:
            raise ValueError(f"{str(path)!r} is not UTF-8 text: {error}.") from error
    if "".join(lines).strip():
        yield Document(f"{path}#{count}", "".join(lines))


def _jsonl_documents(path: Path, text_field: str) -> Iterator[Document]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            place = f"{path}:{number}"
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{place}: this line is no JSON: {error}.") from error
            yield _document(place, row, text_field)


def _parquet_documents(path: Path, text_field: str) -> Iterator[Document]:
    parquet = _imported("pyarrow.parquet", extra="parquet")
    try:
        file = parquet.ParquetFile(path)
        has_field = text_field in file.schema_arrow.names
        batches = file.iter_batches(columns=[text_field] if has_field else None)
        for number, row in enumerate(row for batch in batches for row in batch.to_pylist()):
            yield _document(f"{path}:{number}", row, text_field)
    except _imported("pyarrow", extra="parquet").ArrowException as error:
        raise ValueError(f"{str(path)!r} is no readable parquet file: {error}") from error


def _dataset_documents(source: str, text_field: str) -> Iterator[Document]:
    datasets = _imported("datasets", extra="datasets")
    name, _, config = source.removeprefix("datasets:").partition(":")
    rows = datasets.load_dataset(name, config or None, split="train", streaming=True)
    for number, row in enumerate(rows):
        yield _document(f"{source}:{number}", row, text_field)


def _document(place: str, row: object, text_field: str) -> Document:
    text = row.get(text_field) if isinstance(row, dict) else None
    if not isinstance(text, str):
        fields = [name for name, value in row.items() if isinstance(value, str)] if isinstance(row, dict) else []
        raise ValueError(
            f"{place} has no text in a field {text_field!r}. Its fields with text: "
            f"{', '.join(map(repr, fields)) or 'none'}. Choose one with text_field."
        )
    return Document(place, text)


def _imported(module: str, extra: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ImportError(
            f"Reading this source needs the package {module.partition('.')[0]!r}: pip install 'penstock[{extra}]'"
        ) from error


_READERS: dict[str, Callable[[Path, str], Iterator[Document]]] = {
    ".txt": lambda path, text_field: _txt_documents(path),
    ".jsonl": _jsonl_documents,
    ".parquet": _parquet_documents,
}
"""How to read a file, by its suffix."""
