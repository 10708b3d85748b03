"""The embedded corpus: the source code of the Python standard library.

Every Python installation has it on disk, so it needs no download, and its features (docstrings,
indentation, `self`, imports, error names) are ones every user can recognise.
"""

import hashlib
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

Split = Literal["train", "held_out"]

HELD_OUT_SHARE = 0.1
"""Share of the files that is held out, chosen by a hash of the file's relative path."""

_NOT_STDLIB = {"site-packages", "dist-packages", "__pycache__"}


class Place(NamedTuple):
    """Where a document stands in its source."""

    file: int = 0
    """Number of its file; 0 where the source is one."""
    document: int = 0
    """Its number among all that the file holds, those of the other split included."""


START = Place()
"""The place of a source's first document."""


class Document(NamedTuple):
    """One text and where it came from."""

    name: str
    """Path relative to its root, or another name a person can follow."""
    text: str
    split: Split | None = None
    """The split it belongs to, where its surroundings decide that and not its own text."""
    place: Place = START
    """Where to find it again (see `penstock.language_models.texts.documents`)."""


def split_of(name: str) -> Split:
    """Which split a file belongs to; depends on nothing but its relative path."""
    return "held_out" if _path_hash(name) < HELD_OUT_SHARE else "train"


def stdlib_documents(split: Split, root: Path | None = None) -> Iterator[Document]:
    """The `.py` files of the standard library that belong to `split`.

    They come in the order of their path's hash, so that any prefix is a fair sample of the library.
    Files that are not valid UTF-8 (the library's tests ship a few on purpose) are left out.

    Args:
        split: "train" (about 90% of the files) or "held_out".
        root: Folder of the library; the running interpreter's by default.

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
    """The folder of the standard library and its `.py` files, in the order of their relative path's hash.

    Args:
        root: Folder of the library; the running interpreter's by default.

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
    """A number in [0, 1) that depends on the name alone."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64
