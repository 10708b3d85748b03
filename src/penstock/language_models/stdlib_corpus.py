"""The embedded corpus: the source code of the Python standard library.

Every Python installation has it on disk, so it needs no download. Every user can recognise its features: docstrings,
indentation, `self`, imports, error names.
"""

import hashlib
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

Split = Literal["train", "validation", "held_out"]

HELD_OUT_SHARE = 0.1
"""Share of the files that is held out for evaluation, chosen by a hash of the file's relative path."""

VALIDATION_SHARE = 0.05
"""Share of the files that is set aside to steer L0 on, chosen in the same way."""

_NOT_STDLIB = {"site-packages", "dist-packages", "__pycache__"}


class Place(NamedTuple):
    """Position of a document in its source."""

    file: int = 0
    """Index of the document's file; 0 if the source is a single file or dataset."""
    document: int = 0
    """Index of the document in its file, counting both splits."""


START = Place()
"""Place of a source's first document."""


class Document(NamedTuple):
    """One text and its origin."""

    name: str
    """Path relative to the corpus root, or another name that a person can look up."""
    text: str
    split: Split | None = None
    """Split of the document if its surroundings decide it, otherwise None."""
    place: Place = START
    """Place to start from to read this document again (see `penstock.language_models.texts.documents`)."""


def split_of(name: str) -> Split:
    """Return the split of a file, which depends only on its relative path."""
    place = _path_hash(name)
    if place < HELD_OUT_SHARE:
        return "held_out"
    return "validation" if place < HELD_OUT_SHARE + VALIDATION_SHARE else "train"


def stdlib_documents(split: Split, root: Path | None = None) -> Iterator[Document]:
    """Yield the `.py` files of the standard library that belong to `split`.

    They come in the order of their path's hash, so that any prefix is a fair sample of the library.
    Files that are not valid UTF-8 (the library's tests include a few on purpose) are left out.

    Args:
        split: "train" (about 85% of the files), "validation" (5%) or "held_out" (10%).
        root: Folder of the library; default: the running interpreter's.

    Raises:
        FileNotFoundError: no source files under `root`.
    """
    root, files = stdlib_files(root)
    for path in files:
        name = path.relative_to(root).as_posix()
        if split_of(name) != split:
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        if text:
            yield Document(name, text, split)


def stdlib_files(root: Path | None = None) -> tuple[Path, list[Path]]:
    """Return the folder of the standard library and its `.py` files, in the order of their relative path's hash.

    Args:
        root: Folder of the library; default: the running interpreter's.

    Raises:
        FileNotFoundError: no source files under `root`.
    """
    root = root or Path(sysconfig.get_paths()["stdlib"])
    names = sorted(
        path.relative_to(root).as_posix()
        for path in root.rglob("*.py")
        if not _NOT_STDLIB & set(path.relative_to(root).parts)
    )
    if not names:
        raise FileNotFoundError(
            f"The embedded corpus is the source of the Python standard library, but there are no .py "
            f"files under {root}. Give your own texts with --text FILE (.txt, .jsonl or .parquet)."
        )
    return root, [root / name for name in sorted(names, key=_path_hash)]


def _path_hash(name: str) -> float:
    """Return a number in [0, 1) that depends only on the name."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64
