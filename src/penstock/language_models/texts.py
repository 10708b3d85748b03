"""Texts to train and evaluate on: the embedded corpus, local files, or a dataset of the Hugging Face Hub."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import get_args

from penstock.language_models.stdlib_corpus import (
    START,
    Document,
    Place,
    Split,
    split_of,
    stdlib_documents,
    stdlib_files,
)
from penstock.language_models.text_datasets import PREFIX, dataset_name, read_dataset
from penstock.language_models.text_files import LeftOut, Reader, find_text_files, read_file, say_once

_ALLOWED = (
    '"embedded", a .txt, .jsonl or .parquet file (.txt and .jsonl also as .gz, .bz2, .xz or .zst), a folder of such '
    'files, "datasets:NAME", "datasets:NAME:CONFIG" or "datasets:NAME:CONFIG:SPLIT"'
)

SAMPLE_BYTES = 2**16
"""Bytes of a file's beginning, middle and end that go into its fingerprint."""

SAMPLE_DOCUMENTS = 16
"""Number of documents that go into the fingerprint of a dataset."""

ALL_LEFT_OUT = 100
"""Number of documents at the start of a text after which it is an error if none of them can be read."""


def documents(
    source: str | Path, *, split: Split, text_field: str = "text", start: Place = START
) -> Iterator[Document]:
    """Return the documents of one split of a text source.

    A tenth of a text is held out for evaluation, a twentieth is for validation, and the rest is trained on. The
    embedded corpus is split by file. A .txt file is split into spans of neighbouring documents, and as a whole if it
    has fewer than ten. Everywhere else a hash of the document's own text decides, so that a document is in the same
    split wherever it occurs.

    A row without text, or with text that is not valid Unicode, is left out and counted. So is the rest of a damaged
    file. The log reports the first one, and their number at the end.

    Args:
        source: One of
            "embedded": the source code of the Python standard library;
            a .txt file: cut into documents of some thousand characters, at blank lines where possible;
            a .jsonl file: one JSON object a line, or a .parquet file: one document a row;
            a .txt or .jsonl file that is compressed: .gz, .bz2, .xz or .zst after its suffix;
            a folder: all of these files in it and below, in the order of their paths, hidden ones left out;
            "datasets:NAME", "datasets:NAME:CONFIG" or "datasets:NAME:CONFIG:SPLIT": a part of a dataset on the Hub,
            "train" unless named, streamed; for example "datasets:allenai/c4:en".
        split: "train", "validation" or "held_out".
        text_field: The field or column that holds the text, in everything but .txt.
        start: Place of the document to begin with (see `Document.place`).

    Returns:
        The documents that are not empty, read lazily.

    Raises:
        FileNotFoundError: no such file or folder, or a folder without texts.
        ImportError: an optional package is needed.
        ValueError: unknown split or kind of source. While reading from the beginning: the split has no document (a
            short text may have none for validation), or the first hundred cannot be read.
        ConnectionError: while reading, the connection to a dataset broke and could not be restored.
    """
    if split not in get_args(Split):
        raise ValueError(f"split must be one of {', '.join(get_args(Split))}; got {split!r}.")
    return _in_split(_parts(source, split, text_field), str(source), split, start)


def text_fingerprint(source: str | Path, *, text_field: str = "text") -> str:
    """Return a fingerprint of a text source, to notice later if the text was replaced.

    It is a hash of paths, sizes and samples of the bytes of files, or of the first documents of a dataset. So a change
    of a few words in the middle of a large file goes unnoticed.

    Raises:
        FileNotFoundError, ImportError, ValueError, ConnectionError: see `documents`.
    """
    digest = hashlib.sha256()
    if isinstance(source, str) and source.startswith(PREFIX):
        for item in islice(read_dataset(source, text_field, 0), SAMPLE_DOCUMENTS):
            digest.update(repr(item).encode(errors="backslashreplace"))
        return digest.hexdigest()[:16]
    if source == "embedded":
        root, files = stdlib_files()
    else:
        root = Path(source).expanduser()
        files = find_text_files(root, _ALLOWED)
    for path in files:
        digest.update(path.relative_to(root).as_posix().encode(errors="surrogateescape"))
        digest.update(_samples_of(path))
    return digest.hexdigest()[:16]


def _samples_of(path: Path) -> bytes:
    size = path.stat().st_size
    with path.open("rb") as file:
        parts = [str(size).encode()]
        for start in sorted({0, max(0, size // 2 - SAMPLE_BYTES // 2), max(0, size - SAMPLE_BYTES)}):
            file.seek(start)
            parts.append(file.read(SAMPLE_BYTES))
    return b"|".join(parts)


_Part = Callable[[int], Reader]
"""A file or dataset of a source: a function that yields its documents after skipping this many."""


def _parts(source: str | Path, split: Split, text_field: str) -> list[_Part]:
    if source == "embedded":
        return [lambda skip: islice(stdlib_documents(split), skip, None)]
    if isinstance(source, str) and source.startswith(PREFIX):
        dataset_name(source)
        return [partial(read_dataset, source, text_field)]
    return [partial(read_file, file, text_field) for file in find_text_files(Path(source).expanduser(), _ALLOWED)]


def _in_split(parts: list[_Part], source: str, split: Split, start: Place) -> Iterator[Document]:
    tally = _Tally(source, from_the_beginning=start == START)
    is_empty = True
    for file in range(start.file, len(parts)):
        skip = start.document if file == start.file else 0
        for number, item in enumerate(parts[file](skip), start=skip):
            item = _checked(item)
            tally.count(item)
            if isinstance(item, Document) and item.text and (item.split or split_of(item.text)) == split:
                is_empty = False
                yield item._replace(place=Place(file, number))
    tally.finish()
    if is_empty and tally.from_the_beginning and split != "validation":
        raise ValueError(
            f"No documents in split {split!r} of {source!r}. A tenth of the documents is held out, so a text needs "
            "some tens of documents; in a .txt file blank lines separate them." + tally.summary()
        )


def _checked(item: Document | LeftOut) -> Document | LeftOut:
    """Return the document, or why its text is unusable: half of a surrogate pair, or bytes that are not UTF-8."""
    if isinstance(item, Document):
        try:
            item.text.encode()
        except UnicodeEncodeError as error:
            return LeftOut("not Unicode", f"{item.name} is not valid Unicode text: {error}. Save it as UTF-8.")
    return item


class _Tally:
    """Counts and reports the documents that are left out of a text."""

    def __init__(self, source: str, *, from_the_beginning: bool) -> None:
        self.source = source
        self.from_the_beginning = from_the_beginning
        self.good = 0
        self.bad: Counter[str] = Counter()
        self.first = ""

    def count(self, item: Document | LeftOut) -> None:
        if isinstance(item, Document):
            self.good += 1
            return
        self.first = self.first or item.message
        self.bad[item.kind] += 1
        if self.from_the_beginning and not self.good and self.bad.total() == ALL_LEFT_OUT:
            raise ValueError(f"None of the first {ALL_LEFT_OUT} documents of {self.source!r} can be read. {self.first}")
        if self.bad[item.kind] == 1:
            say_once(f"Left out, like every document of its kind: {item.message}", self.source, item.kind)

    def finish(self) -> None:
        if self.bad.total() > 1 and self.from_the_beginning:
            say_once(f"Reading {self.source} {self.counts()}.")

    def counts(self) -> str:
        kinds = ", ".join(f"{number} {kind}" for kind, number in self.bad.items())
        return f"left out {self.bad.total()} of {self.good + self.bad.total()} documents ({kinds})"

    def summary(self) -> str:
        return f" Reading it {self.counts()}. {self.first}" if self.first else ""
