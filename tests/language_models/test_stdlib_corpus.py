"""The embedded corpus: which files belong to it, in which split, in which order."""

import re
from pathlib import Path
from typing import get_args

import pytest

from penstock.language_models.stdlib_corpus import (
    HELD_OUT_SHARE,
    VALIDATION_SHARE,
    Document,
    Split,
    split_of,
    stdlib_documents,
)

NAMES = [f"package_{i % 7}/module_{i}.py" for i in range(300)]


def write_library(root: Path, names: list[str], text: str = "import os\n") -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    return root


def names_of(root: Path) -> dict[Split, list[str]]:
    splits: tuple[Split, ...] = get_args(Split)
    return {split: [document.name for document in stdlib_documents(split, root)] for split in splits}


def test_every_file_is_in_exactly_one_split_and_about_a_tenth_is_held_out(tmp_path: Path) -> None:
    found = names_of(write_library(tmp_path, NAMES))
    assert sorted(sum(found.values(), [])) == sorted(NAMES)
    assert len(found["held_out"]) / len(NAMES) == pytest.approx(HELD_OUT_SHARE, abs=0.04)
    assert len(found["validation"]) / len(NAMES) == pytest.approx(VALIDATION_SHARE, abs=0.03)


def test_the_split_depends_on_the_relative_path_alone(tmp_path: Path) -> None:
    first = write_library(tmp_path / "python3.10", NAMES)
    second = write_library(tmp_path / "elsewhere" / "python3.12", NAMES[:100] + ["new.py"], "another text")
    before, later = names_of(first), names_of(second)
    for split in before:
        assert set(later[split]) - {"new.py"} == set(before[split]) & set(NAMES[:100])


def test_the_split_of_known_files_never_changes() -> None:
    # A change here would let the shipped model's training files into the held-out split.
    held_out = [
        "calendar.py",
        "chunk.py",
        "copyreg.py",
        "concurrent/futures/process.py",
        "zoneinfo/__init__.py",
    ]
    train = ["abc.py", "argparse.py", "asyncio/events.py", "json/decoder.py", "os.py"]
    assert {name: split_of(name) for name in held_out} == dict.fromkeys(held_out, "held_out")
    assert {name: split_of(name) for name in train} == dict.fromkeys(train, "train")


def test_the_order_is_the_same_whatever_the_order_on_disk(tmp_path: Path) -> None:
    first = write_library(tmp_path / "a", NAMES)
    second = write_library(tmp_path / "b", NAMES[::-1])
    assert names_of(first) == names_of(second)
    assert names_of(first)["train"] != sorted(names_of(first)["train"])


def test_installed_packages_caches_and_other_files_are_left_out(tmp_path: Path) -> None:
    strangers = ["site-packages/numpy/core.py", "dist-packages/apt.py", "__pycache__/os.py", "README.txt"]
    found = names_of(write_library(tmp_path, [*NAMES[:20], *strangers]))
    assert sorted(sum(found.values(), [])) == sorted(NAMES[:20])


def test_a_library_that_itself_lies_in_site_packages_is_read(tmp_path: Path) -> None:
    found = names_of(write_library(tmp_path / "site-packages" / "lib", NAMES[:20]))
    assert len(sum(found.values(), [])) == 20


def test_files_that_are_not_utf_8_and_empty_files_are_left_out(tmp_path: Path) -> None:
    write_library(tmp_path, NAMES[:20], "name = 'Grüße'\n")
    (tmp_path / NAMES[0]).write_bytes("name = 'Grüße'\n".encode("latin-1"))
    (tmp_path / NAMES[1]).write_text("")
    documents = [document for split in names_of(tmp_path) for document in stdlib_documents(split, tmp_path)]
    assert sorted(document.name for document in documents) == sorted(NAMES[2:20])
    assert {document.text for document in documents} == {"name = 'Grüße'\n"}


@pytest.mark.parametrize("folder", ["missing", "empty"])
def test_without_a_library_the_error_names_folder_and_text_option(tmp_path: Path, folder: str) -> None:
    (tmp_path / "empty").mkdir()
    message = f"no .py files under {tmp_path / folder}. Give your own texts with --text FILE"
    with pytest.raises(FileNotFoundError, match=re.escape(message)):
        next(stdlib_documents("train", tmp_path / folder))


def test_the_running_interpreter_brings_a_library_of_its_own() -> None:
    document = next(stdlib_documents("train"))
    assert isinstance(document, Document)
    assert document.name.endswith(".py") and document.text
