"""Where texts come from, how they are split, and what a user is told about damaged ones."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from penstock.language_models.stdlib_corpus import stdlib_documents
from penstock.language_models.texts import documents

MANY = [f"Document number {number}." for number in range(300)]


def texts(source: str | Path, **options: str) -> list[str]:
    """The texts of both splits together."""
    return [document.text for split in ("train", "held_out") for document in documents(source, split=split, **options)]


@pytest.fixture
def write_jsonl(tmp_path: Path) -> Callable[..., Path]:
    def write(rows: list[dict[str, str]], name: str = "corpus.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write


def test_the_embedded_corpus_is_the_standard_library() -> None:
    first = next(documents("embedded", split="held_out"))

    assert first == next(stdlib_documents("held_out"))


def test_a_jsonl_file_is_one_document_a_line(write_jsonl: Callable[..., Path]) -> None:
    path = write_jsonl([{"text": text, "source": "a test"} for text in MANY])

    train = list(documents(path, split="train"))
    held_out = list(documents(path, split="held_out"))

    assert sorted(document.text for document in train + held_out) == sorted(MANY)
    assert 10 < len(held_out) < 60
    assert train[0].name in (f"{path}:1", f"{path}:2")


def test_a_document_is_in_the_same_split_wherever_it_stands(write_jsonl: Callable[..., Path], tmp_path: Path) -> None:
    one = write_jsonl([{"text": text} for text in MANY], "one.jsonl")
    other = write_jsonl([{"body": text} for text in reversed(MANY[50:])], "other.jsonl")

    in_one = {document.text for document in documents(one, split="held_out")}
    in_other = {document.text for document in documents(other, split="held_out", text_field="body")}

    assert in_other == in_one & set(MANY[50:])


def test_empty_documents_and_blank_lines_yield_nothing(write_jsonl: Callable[..., Path]) -> None:
    path = write_jsonl([{"text": text} for text in ["", *MANY, ""]])
    path.write_text("\n" + path.read_text() + "\n  \n")

    assert sorted(texts(path)) == sorted(MANY)


def test_a_long_text_is_cut_into_documents_at_blank_lines(tmp_path: Path) -> None:
    paragraphs = [f"Paragraph {number}: " + "word " * 200 + "\n\n" for number in range(200)]
    path = tmp_path / "book.txt"
    path.write_text("".join(paragraphs))

    cut = texts(path)

    assert len(cut) == 50
    assert all(text.startswith("Paragraph") and text.endswith("\n\n") for text in cut)
    assert all(4_000 <= len(text) < 4_000 + 1_100 for text in cut)
    assert sorted("".join(cut)) == sorted("".join(paragraphs))


def test_a_text_without_blank_lines_is_cut_at_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    path.write_text("".join(f"line {number:06d} of a log\n" for number in range(40_000)))

    cut = texts(path)

    assert sum(len(text) for text in cut) == 40_000 * 21
    assert all(text.endswith("\n") for text in cut)
    assert max(len(text) for text in cut) < 16_100


def test_a_short_text_is_one_document_in_one_split(tmp_path: Path) -> None:
    path = tmp_path / "note.txt"
    path.write_text("One line.\n\nAnother.")

    assert [document.text for document in documents(path, split="held_out")] == ["One line.\n\nAnother."]
    with pytest.raises(ValueError, match=r"No documents in split 'train' of '.*note\.txt'.*blank lines"):
        list(documents(path, split="train"))


def test_a_folder_is_all_the_texts_in_it_in_the_order_of_their_paths(
    tmp_path: Path, write_jsonl: Callable[..., Path]
) -> None:
    (tmp_path / "deeper").mkdir()
    for number, text in enumerate(MANY):
        (tmp_path / "deeper" / f"{number:03d}.txt").write_text(text)
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    write_jsonl([{"text": "The last one."}], "z.JSONL")

    train = [document.text for document in documents(tmp_path, split="train")]

    assert sorted(texts(tmp_path)) == sorted([*MANY, "The last one."])
    assert train == [text for text in [*MANY, "The last one."] if text in train]


def test_sources_that_are_not_there_are_errors_at_once(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "book.pdf").write_bytes(b"%PDF")

    with pytest.raises(FileNotFoundError, match=r"No text source '.*gone\.txt'.*\"embedded\", a \.txt, \.jsonl"):
        documents(tmp_path / "gone.txt", split="train")
    with pytest.raises(FileNotFoundError, match=r"The folder '.*empty' holds no \.txt, \.jsonl, \.parquet files"):
        documents(tmp_path / "empty", split="train")
    with pytest.raises(ValueError, match=r"its suffix is '\.pdf'"):
        documents(tmp_path / "book.pdf", split="train")


def test_an_empty_corpus_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n  \n")

    with pytest.raises(ValueError, match="No documents in split 'train'"):
        list(documents(tmp_path / "empty.txt", split="train"))
    with pytest.raises(ValueError, match="No documents in split 'held_out'"):
        list(documents(tmp_path / "empty.txt", split="held_out"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "unfinished', r"corpus\.jsonl:2: this line is no JSON"),
        (
            '{"body": "b", "title": "t", "n": 1}',
            r"corpus\.jsonl:2 has no text in a field 'text'.*'body', 'title'\. ",
        ),
        ('{"text": 5}', r"corpus\.jsonl:2 has no text in a field 'text'.*with text: none"),
        ('["text"]', r"corpus\.jsonl:2 has no text in a field 'text'"),
        ('{"text": "\\ud800"}', r"corpus\.jsonl:2 is no text"),
    ],
)
def test_a_bad_line_is_an_error_with_its_number(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_text('{"text": "fine"}\n' + line + "\n")

    with pytest.raises(ValueError, match=message):
        list(documents(path, split="train"))


@pytest.mark.parametrize("name", ["latin.txt", "latin.jsonl"])
def test_bytes_that_are_no_utf8_are_an_error(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes('{"text": "caf\xe9"}'.encode("latin-1"))

    with pytest.raises(ValueError, match=name):
        list(documents(tmp_path / name, split="train"))


def test_a_parquet_file_is_one_document_a_row(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="un-skip with: pip install penstock[parquet]")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"text": MANY, "n": range(300)}), tmp_path / "corpus.parquet")

    assert sorted(texts(tmp_path / "corpus.parquet")) == sorted(MANY)
    with pytest.raises(ValueError, match=r"corpus\.parquet:0 has no text in a field 'body'.*'text'"):
        texts(tmp_path / "corpus.parquet", text_field="body")
    (tmp_path / "corpus.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(ValueError, match="no readable parquet file"):
        texts(tmp_path / "corpus.parquet")


def test_a_dataset_is_streamed_by_name_and_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(*args: object, **kwargs: object) -> list[dict[str, str]]:
        asked.append((args, kwargs))
        return [{"content": text} for text in MANY]

    fake: Any = ModuleType("datasets")
    fake.load_dataset = load_dataset
    monkeypatch.setitem(sys.modules, "datasets", fake)

    assert sorted(texts("datasets:owner/name:en", text_field="content")) == sorted(MANY)
    texts("datasets:name", text_field="content")
    assert asked[0] == (("owner/name", "en"), {"split": "train", "streaming": True})
    assert asked[-1] == (("name", None), {"split": "train", "streaming": True})


@pytest.mark.parametrize(
    ("source", "module", "extra"),
    [("datasets:c4", "datasets", "datasets"), ("a.parquet", "pyarrow", "parquet")],
)
def test_a_missing_optional_package_is_named_with_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, module: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(sys.modules, f"{module}.{extra}", None)
    (tmp_path / "a.parquet").touch()

    with pytest.raises(ImportError, match=rf"needs the package '{module}': pip install 'penstock\[{extra}\]'"):
        texts(source if source.startswith("datasets:") else tmp_path / source)


def test_an_unknown_split_is_an_error(tmp_path: Path) -> None:
    untyped: Any = documents

    with pytest.raises(Exception, match="test"):
        untyped(tmp_path, split="test")
