"""Where texts come from, how they are split, and what a user is told about damaged ones."""

import bz2
import gzip
import json
import lzma
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import pytest

from penstock.language_models import text_datasets
from penstock.language_models.stdlib_corpus import Place, Split, split_of, stdlib_documents
from penstock.language_models.texts import documents, text_fingerprint

SPLITS: tuple[Split, ...] = get_args(Split)

MANY = [f"Document number {number}." for number in range(300)]


def texts(source: str | Path, **options: str) -> list[str]:
    """The texts of all splits together."""
    return [document.text for split in SPLITS for document in documents(source, split=split, **options)]


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

    train, validation, held_out = (list(documents(path, split=split)) for split in SPLITS)

    assert sorted(document.text for document in train + validation + held_out) == sorted(MANY)
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


BAD_LINES = {
    "unfinished": ('{"text": "unfinished', r"corpus\.jsonl:3: this line is not JSON"),
    "other fields": (
        '{"body": "b", "title": "t", "n": 1}',
        r"corpus\.jsonl:3 has no text in a field 'text'.*'body', 'title'\. ",
    ),
    "a number": ('{"text": 5}', r"corpus\.jsonl:3 has a value of type int in its field 'text'"),
    "null": ('{"text": null}', r"corpus\.jsonl:3 has null in its field 'text'"),
    "a list": ('["text"]', r"corpus\.jsonl:3 has no text in a field 'text'"),
    "half a surrogate pair": ('{"text": "\\ud800"}', r"corpus\.jsonl:3 is not valid Unicode text"),
    "latin-1": ('{"text": "caf\udce9"}', r"corpus\.jsonl:3: this line is not JSON"),
    "nested": (
        '{"text": ' + "[" * 100_000 + "]" * 100_000 + "}",
        r"corpus\.jsonl:3: the JSON in this line is nested too deep",
    ),
}


@pytest.mark.parametrize("bad", BAD_LINES)
def test_a_bad_line_is_left_out_counted_and_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, bad: str
) -> None:
    line, message = BAD_LINES[bad]
    good = [json.dumps({"text": text}) for text in MANY]
    path = tmp_path / "corpus.jsonl"
    path.write_text("\n".join([*good[:2], line, *good[2:], line]), errors="surrogateescape")

    assert sorted(texts(path)) == sorted(MANY)
    assert sorted(texts(path)) == sorted(MANY)

    first, count = (record.getMessage() for record in caplog.records)
    assert re.search(message, first)
    assert "left out 2 of 302 documents (2 " in count


@pytest.mark.parametrize("bad", BAD_LINES)
def test_a_text_that_cannot_be_read_at_all_is_an_error(tmp_path: Path, bad: str) -> None:
    line, message = BAD_LINES[bad]
    path = tmp_path / "corpus.jsonl"
    path.write_text("\n\n" + line + "\n", errors="surrogateescape")
    with pytest.raises(ValueError, match=rf"No documents in split 'train'.*left out 1 of 1 documents.*{message}"):
        texts(path)

    path.write_text("\n\n" + (line + "\n") * 100 + json.dumps({"text": "Too late."}), errors="surrogateescape")
    with pytest.raises(ValueError, match=rf"None of the first 100 documents of .* can be read\. .*{message}"):
        texts(path)


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
    with pytest.raises(ValueError, match=r"corpus\.parquet' is damaged, and the rest"):
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
    texts("datasets:name::validation", text_field="content")
    assert asked[-1] == (("name", None), {"split": "validation", "streaming": True})
    texts("datasets:name:en:test", text_field="content")
    assert asked[-1] == (("name", "en"), {"split": "test", "streaming": True})


@pytest.mark.parametrize("source", ["datasets:", "datasets::en", "datasets:a:b:c:d"])
def test_a_dataset_without_a_name_is_an_error_at_once(source: str) -> None:
    with pytest.raises(ValueError, match=f"'{source}' does not name a dataset.*e.g. datasets:allenai/c4:en:validation"):
        documents(source, split="train")


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


@pytest.mark.parametrize("kind", ["jsonl", "txt"])
@pytest.mark.parametrize("suffix", ["gz", "bz2", "xz", "zst"])
def test_a_compressed_file_reads_like_the_plain_one(tmp_path: Path, kind: str, suffix: str) -> None:
    compress = {
        "gz": gzip.compress,
        "bz2": bz2.compress,
        "xz": lzma.compress,
        "zst": lambda data: pytest.importorskip("zstandard", reason="un-skip: pip install penstock[zst]").compress(
            data
        ),
    }[suffix]
    plain, packed = tmp_path / "plain", tmp_path / "packed"
    plain.mkdir()
    packed.mkdir()
    lines = [json.dumps({"text": text}) if kind == "jsonl" else text * 20 + "\n" for text in MANY]
    data = "\n".join(lines).encode()
    (plain / f"a.{kind}").write_bytes(data)
    # Two members one after the other, as appending makes them.
    (packed / f"a.{kind}.{suffix}").write_bytes(compress(data[:1000]) + compress(data[1000:]))

    assert texts(packed) == texts(plain) == texts(packed / f"a.{kind}.{suffix}")


def test_a_torn_compressed_file_costs_its_rest_and_not_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, write_jsonl: Callable[..., Path]
) -> None:
    write_jsonl([{"text": text} for text in MANY], "b.jsonl")
    rows = "".join(json.dumps({"text": f"{number} {os.urandom(50).hex()}"}) + "\n" for number in range(5000))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(rows.encode())[:100_000])

    read = texts(tmp_path)

    assert set(MANY) <= set(read)
    assert 300 < len(read) < 4_000
    assert re.search(r"a\.jsonl\.gz' is damaged, and the rest of it cannot be read", caplog.text)


def test_hidden_files_are_not_read_and_others_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, write_jsonl: Callable[..., Path]
) -> None:
    write_jsonl([{"text": text} for text in MANY])
    for hidden in ("._corpus.jsonl", ".ipynb_checkpoints/corpus.jsonl", "__MACOSX/corpus.jsonl", ".git/x.txt"):
        (tmp_path / hidden).parent.mkdir(exist_ok=True)
        (tmp_path / hidden).write_bytes(b"\0\5\26\7 not a text")
    for other in ("table.csv", "README", "rows.parquet.gz"):
        (tmp_path / other).touch()

    assert sorted(texts(tmp_path)) == sorted(MANY)
    assert "3 files are not texts and are not read (.csv, .gz, no suffix)" in caplog.text


def test_a_ring_of_folders_is_read_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, write_jsonl: Callable[..., Path]
) -> None:
    write_jsonl([{"text": text} for text in MANY])
    (tmp_path / "ring").symlink_to(tmp_path)
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "back").symlink_to(tmp_path / "inner")
    (tmp_path / "inner" / "itself").symlink_to(tmp_path / "inner" / "itself")
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere.txt")

    assert sorted(texts(tmp_path)) == sorted(MANY)
    assert "ring' leads to a folder that was read already" in caplog.text


def texts_of(source: Path, split: Any) -> list[str]:
    try:
        return [document.text for document in documents(source, split=split)]
    except ValueError:
        return []


def test_one_long_line_is_cut_between_words_and_has_all_splits(tmp_path: Path) -> None:
    path = tmp_path / "line.txt"
    path.write_text(" ".join(f"word{number}" for number in range(100_000)))

    cut = texts(path)

    assert max(map(len, cut)) <= 32_000
    assert sorted("".join(cut).split()) == sorted(path.read_text().split())
    for split in SPLITS:
        assert texts_of(path, split)


def test_a_line_without_spaces_is_cut_all_the_same(tmp_path: Path) -> None:
    path = tmp_path / "line.txt"
    path.write_text("ab" * 200_000)

    cut = texts(path)

    assert "".join(cut) == "ab" * 200_000
    assert max(map(len, cut)) == 16_000


def test_neighbouring_pieces_of_a_text_are_in_one_split(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_text("".join(f"{number:05d} " + "word " * 800 + "\n\n" for number in range(1000)))

    held_out = [int(text[:5]) for text in texts_of(path, "held_out")]

    validation = [int(text[:5]) for text in texts_of(path, "validation")]

    assert len(texts_of(path, "train")) + len(held_out) + len(validation) == 1000
    assert 0.05 < len(held_out) / 1000 < 0.15
    assert 0.03 < len(validation) / 1000 < 0.07
    # A span is over where the next number is not the successor.
    borders = sum(b != a + 1 for a, b in zip(held_out, held_out[1:], strict=False)) + 1
    assert borders <= 12


@pytest.mark.parametrize("pieces", range(2, 10))
def test_a_short_file_is_in_one_split_as_a_whole(tmp_path: Path, pieces: int) -> None:
    path = tmp_path / "short.txt"
    path.write_text("".join(f"{number} " + "word " * 800 + "\n\n" for number in range(pieces)))

    assert sorted(len(texts_of(path, split)) for split in SPLITS) == [0, 0, pieces]


def test_ten_pieces_are_enough_to_train_and_evaluate(tmp_path: Path) -> None:
    path = tmp_path / "short.txt"
    path.write_text("".join(f"{number} " + "word " * 800 + "\n\n" for number in range(10)))

    assert (len(texts_of(path, "train")), len(texts_of(path, "held_out"))) == (9, 1)


def test_the_mark_that_windows_puts_before_a_text_is_no_part_of_it(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfOne line.")
    (tmp_path / "b.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "A row."}\n')

    assert {text for split in SPLITS for text in texts_of(tmp_path, split)} == {"One line.", "A row."}


@pytest.mark.parametrize("split", SPLITS)
def test_a_reader_goes_on_at_any_document(tmp_path: Path, write_jsonl: Callable[..., Path], split: Any) -> None:
    rows: list[Any] = [{"text": text} for text in MANY]
    rows[5] = rows[170] = {"text": None}
    (tmp_path / "b.txt").write_text("".join(f"{number} " + "word " * 800 + "\n\n" for number in range(30)))
    write_jsonl(rows, "a.jsonl")
    write_jsonl(rows[::-1], "c.jsonl")
    try:
        import pyarrow
        import pyarrow.parquet as parquet

        table = pyarrow.table({"text": [row["text"] for row in rows]})
        parquet.write_table(table, tmp_path / "d.parquet", row_group_size=50)
    except ModuleNotFoundError:
        pass

    whole = list(documents(tmp_path, split=split))

    for number in {0, 1, len(whole) // 2, len(whole) - 1}:
        assert list(documents(tmp_path, split=split, start=whole[number].place)) == whole[number:]
    assert list(documents(tmp_path, split=split, start=Place(len(list(tmp_path.iterdir()))))) == []


def test_the_embedded_corpus_goes_on_at_any_document() -> None:
    third = next(islice(documents("embedded", split="held_out"), 2, None))

    assert third.place.document == 2
    assert next(documents("embedded", split="held_out", start=third.place)) == third


class FlakyDataset:
    """Breaks off after every `good` rows."""

    def __init__(self, rows: list[dict[str, str]], good: int, error: Exception) -> None:
        self.rows, self.good, self.error = rows, good, error

    def skip(self, number: int) -> "FlakyDataset":
        return FlakyDataset(self.rows[number:], self.good, self.error)

    def __iter__(self) -> Iterator[dict[str, str]]:
        yield from self.rows[: self.good]
        if self.rows[self.good :]:
            raise self.error


def flaky(monkeypatch: pytest.MonkeyPatch, good: int, error: Exception) -> list[float]:
    """Replaces `datasets` by one that breaks; returns the waits as they are made."""
    waits: list[float] = []
    fake: Any = ModuleType("datasets")
    fake.load_dataset = lambda *args, **options: FlakyDataset([{"text": text} for text in MANY], good, error)
    monkeypatch.setitem(sys.modules, "datasets", fake)
    monkeypatch.setattr(text_datasets.time, "sleep", waits.append)
    return waits


class ReadTimeout(Exception):
    """As of a network package, none of whose errors is an OSError."""

    __module__ = "httpx._exceptions"


@pytest.mark.parametrize("error", [ConnectionResetError("reset"), TimeoutError(), ReadTimeout("read")])
def test_a_dataset_whose_connection_breaks_is_opened_again(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    waits = flaky(monkeypatch, 70, error)

    assert [document.text for document in documents("datasets:c4", split="train")] == [
        text for text in MANY if split_of(text) == "train"
    ]
    assert waits == [1.0] * 4


def test_a_connection_that_stays_broken_is_an_error_after_ever_longer_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    waits = flaky(monkeypatch, 0, ConnectionResetError("reset"))

    with pytest.raises(ConnectionError, match=r"datasets:c4 broke after 0 documents .* 7 tries.*reset.*--resume"):
        list(documents("datasets:c4", split="train"))
    assert waits == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0]


@pytest.mark.parametrize("error", [FileNotFoundError("no such dataset"), PermissionError("gated"), KeyError("text")])
def test_an_error_that_a_new_try_cannot_help_is_raised_at_once(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    waits = flaky(monkeypatch, 3, error)

    with pytest.raises(type(error)):
        list(documents("datasets:c4", split="train"))
    assert waits == []


def test_a_fingerprint_follows_what_the_text_holds(
    tmp_path: Path, write_jsonl: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    one = write_jsonl([{"text": text} for text in MANY], "texts/one.jsonl")
    before = text_fingerprint(folder), text_fingerprint(one), text_fingerprint("embedded")
    os.utime(one, (0, 0))
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)

    assert (text_fingerprint(folder), text_fingerprint(one), text_fingerprint("embedded")) == before
    assert text_fingerprint(copy) == before[0]
    one.write_text(one.read_text().replace("number 7.", "number 8."))
    assert text_fingerprint(one) != before[1]
    write_jsonl([{"text": "More."}], "copy/more.jsonl")
    assert text_fingerprint(copy) != before[0]

    flaky(monkeypatch, 1000, OSError())
    dataset = text_fingerprint("datasets:c4")
    assert text_fingerprint("datasets:c4") == dataset
    monkeypatch.setattr(sys.modules[__name__], "MANY", MANY[1:])
    assert text_fingerprint("datasets:c4") != dataset
