"""Rows and masks by hand: BOS is 1, padding 0, a 3, b 4, c 5, and so on."""

from collections.abc import Callable, Iterable
from itertools import islice
from typing import TYPE_CHECKING

import pytest
import torch

from penstock.language_models import tokens as tokens_module
from penstock.language_models.stdlib_corpus import Document, Place
from penstock.language_models.tokens import Layout, Packing, TokenRow, batched_rows, tokenise

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer


def docs(*texts: str) -> list[Document]:
    return [Document(f"text {index}", text) for index, text in enumerate(texts)]


def as_lists(rows: Iterable[TokenRow]) -> list[tuple[list[int], list[int]]]:
    return [(row.tokens.tolist(), row.mask.int().tolist()) for row in rows]


@pytest.fixture
def tokenizer(tiny_tokenizer: Callable[..., "Tokenizer"]) -> "Tokenizer":
    return tiny_tokenizer()


def test_packed_documents_have_a_bos_between_them_and_one_at_the_head_of_each_row(
    tokenizer: "Tokenizer",
) -> None:
    rows = tokenise(docs("abcdef", "gh", "i"), tokenizer, context=5, packing="packed")

    assert as_lists(rows) == [
        ([1, 3, 4, 5, 6], [0, 1, 1, 1, 1]),
        ([1, 7, 8, 1, 9], [0, 1, 1, 0, 1]),
        ([1, 10, 1, 11, 0], [0, 1, 0, 1, 0]),
    ]


def test_a_document_that_ends_with_its_row_leaves_no_second_bos(tokenizer: "Tokenizer") -> None:
    rows = tokenise(docs("abcd", "efgh"), tokenizer, context=5, packing="packed")

    assert as_lists(rows) == [([1, 3, 4, 5, 6], [0, 1, 1, 1, 1]), ([1, 7, 8, 9, 10], [0, 1, 1, 1, 1])]


def test_a_bos_may_come_last_in_a_row(tokenizer: "Tokenizer") -> None:
    rows = tokenise(docs("abc", "d"), tokenizer, context=5, packing="packed")

    assert as_lists(rows) == [([1, 3, 4, 5, 1], [0, 1, 1, 1, 0]), ([1, 6, 0, 0, 0], [0, 1, 0, 0, 0])]


def test_truncated_documents_have_one_row_each(tokenizer: "Tokenizer") -> None:
    rows = tokenise(docs("abcdef", "gh", "ijkl"), tokenizer, context=5, packing="truncated")

    assert as_lists(rows) == [
        ([1, 3, 4, 5, 6], [0, 1, 1, 1, 1]),
        ([1, 9, 10, 0, 0], [0, 1, 1, 0, 0]),
        ([1, 11, 12, 13, 14], [0, 1, 1, 1, 1]),
    ]


@pytest.mark.parametrize("packing", ["packed", "truncated"])
def test_one_token_documents_work_and_empty_ones_yield_nothing(tokenizer: "Tokenizer", packing: Packing) -> None:
    assert as_lists(tokenise(docs("a"), tokenizer, context=3, packing=packing)) == [([1, 3, 0], [0, 1, 0])]
    assert as_lists(tokenise(docs("", ""), tokenizer, context=3, packing=packing)) == []
    assert as_lists(tokenise(docs("", "a", ""), tokenizer, context=3, packing=packing)) == [([1, 3, 0], [0, 1, 0])]


def test_the_smallest_context_holds_one_token_a_row(tokenizer: "Tokenizer") -> None:
    for_packed = tokenise(docs("ab", "c"), tokenizer, context=2, packing="packed")
    for_truncated = tokenise(docs("ab", "c"), tokenizer, context=2, packing="truncated")

    assert as_lists(for_packed) == [([1, 3], [0, 1]), ([1, 4], [0, 1]), ([1, 5], [0, 1])]
    assert as_lists(for_truncated) == [([1, 3], [0, 1]), ([1, 5], [0, 1])]


def test_without_a_bos_an_eos_stands_before_each_document(tiny_tokenizer: Callable[..., "Tokenizer"]) -> None:
    tokenizer = tiny_tokenizer(bos=False, eos=True)

    assert as_lists(tokenise(docs("abcde", "fg", "hij", "k"), tokenizer, context=4, packing="packed")) == [
        ([2, 3, 4, 5], [0, 1, 1, 1]),
        ([6, 7, 2, 8], [0, 1, 0, 1]),
        ([9, 2, 10, 11], [0, 0, 1, 1]),
        ([12, 2, 13, 0], [0, 0, 1, 0]),
    ]
    assert as_lists(tokenise(docs("abcdef", "g"), tokenizer, context=4, packing="truncated")) == [
        ([2, 3, 4, 5], [0, 1, 1, 1]),
        ([2, 9, 0, 0], [0, 1, 0, 0]),
    ]


def test_an_eos_that_comes_last_in_a_row_stands_at_the_head_of_the_next_one_too(
    tiny_tokenizer: Callable[..., "Tokenizer"],
) -> None:
    rows = tokenise(docs("ab", "cd"), tiny_tokenizer(bos=False, eos=True), context=4, packing="packed")

    assert as_lists(rows) == [([2, 3, 4, 2], [0, 1, 1, 0]), ([2, 5, 6, 0], [0, 1, 1, 0])]


def test_without_bos_and_eos_the_first_position_does_not_count(tiny_tokenizer: Callable[..., "Tokenizer"]) -> None:
    tokenizer = tiny_tokenizer(bos=False)

    assert as_lists(tokenise(docs("abc", "de"), tokenizer, context=4, packing="packed")) == [
        ([3, 4, 5, 6], [0, 1, 1, 1])
    ]
    assert as_lists(tokenise(docs("abcdef", "g", "hi"), tokenizer, context=4, packing="truncated")) == [
        ([3, 4, 5, 6], [0, 1, 1, 1]),
        ([10, 11, 0, 0], [0, 1, 0, 0]),
    ]


@pytest.mark.parametrize("packing", ["packed", "truncated"])
@pytest.mark.parametrize("options", [{}, {"bos": False, "eos": True}, {"bos": False}], ids=["bos", "eos", "neither"])
def test_the_first_position_never_counts(
    tiny_tokenizer: Callable[..., "Tokenizer"], packing: Packing, options: dict[str, bool]
) -> None:
    texts = ["".join(chr(ord("a") + (start + step) % 26) for step in range(start % 40)) for start in range(200)]

    rows = list(tokenise(docs(*texts), tiny_tokenizer(**options), context=7, packing=packing))

    assert rows and not any(row.mask[0] for row in rows)


def test_padding_and_bos_are_ids_that_the_model_takes(tiny_tokenizer: Callable[..., "Tokenizer"]) -> None:
    tokenizer = tiny_tokenizer()
    added = tokenizer.add_special_tokens({"pad_token": "<more>"})
    assert added == 1 and tokenizer.pad_token_id == 55

    rows = tokenise(docs("a"), tokenizer, context=4, packing="packed", vocab_size=55)
    assert as_lists(rows) == [([1, 3, 1, 1], [0, 1, 0, 0])]

    tokenizer.add_special_tokens({"bos_token": "<begin>"})
    rows = tokenise(docs("ab"), tokenizer, context=4, packing="packed", vocab_size=55)
    assert as_lists(rows) == [([3, 4, 0, 0], [0, 1, 0, 0])]


def test_a_document_with_ids_that_the_model_does_not_take_is_left_out_and_said_once(
    tiny_tokenizer: Callable[..., "Tokenizer"], caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<more>"]})

    for _ in range(2):
        rows = tokenise(
            docs("a", "b<more>", "c", "<more>"), tokenizer, context=4, packing="truncated", vocab_size=54 + 1
        )
        assert as_lists(rows) == [([1, 3, 0, 0], [0, 1, 0, 0]), ([1, 5, 0, 0], [0, 1, 0, 0])]

    first, count = (record.getMessage() for record in caplog.records)
    assert "text 1 has the token id 55, but the model takes ids below 55" in first
    assert "Left out 2 documents" in count


@pytest.mark.parametrize("packing", ["packed", "truncated"])
def test_special_tokens_of_the_text_do_not_count_on_request(tokenizer: "Tokenizer", packing: Packing) -> None:
    tokenizer.add_special_tokens({"additional_special_tokens": ["<user>"]})
    rows = tokenise(docs("a<s>b<user>c"), tokenizer, context=7, packing=packing, mask_special_tokens=True)

    assert as_lists(rows) == [([1, 3, 1, 4, 55, 5, 0], [0, 1, 0, 1, 0, 1, 0])]


@pytest.mark.parametrize("packing", ["packed", "truncated"])
@pytest.mark.parametrize("context", [2, 3, 5, 8])
@pytest.mark.parametrize("options", [{}, {"bos": False, "eos": True}, {"bos": False}], ids=["bos", "eos", "neither"])
def test_rows_go_on_at_any_position(
    tiny_tokenizer: Callable[..., "Tokenizer"], packing: Packing, context: int, options: dict[str, bool]
) -> None:
    texts = ["abcdef", "g", "", "hijk", "lmnop", "qr", "s", "tuvwxyz"]
    documents = [one._replace(place=Place(0, number)) for number, one in enumerate(docs(*texts))]
    layout = Layout.of(
        tiny_tokenizer(**options), context=context, packing=packing, vocab_size=None, mask_special_tokens=False
    )

    whole = list(layout.rows(documents))

    for number, (_, position) in enumerate(whole, start=1):
        again = layout.rows(documents[position.place.document :], skip_tokens=position.token)
        assert [(as_lists([row]), at) for row, at in again] == [(as_lists([row]), at) for row, at in whole[number:]]


def test_a_very_long_document_is_tokenised_in_parts(tokenizer: "Tokenizer", monkeypatch: pytest.MonkeyPatch) -> None:
    text = "abcdefghij klmnopqrst " * 20
    whole = as_lists(tokenise(docs("a", text, "b"), tokenizer, context=9, packing="packed"))
    monkeypatch.setattr(tokens_module, "_CHARACTERS_PER_CALL", 30)
    calls: list[list[str]] = []
    encode = Layout._encode

    def watched(self: Layout, texts: list[str]) -> list[list[int]]:
        calls.append(texts)
        return encode(self, texts)

    monkeypatch.setattr(Layout, "_encode", watched)

    assert as_lists(tokenise(docs("a", text, "b"), tokenizer, context=9, packing="packed")) == whole
    assert max(sum(map(len, texts)) for texts in calls) <= 30


def test_without_a_padding_token_rows_are_padded_with_bos_and_else_with_0(
    tiny_tokenizer: Callable[..., "Tokenizer"],
) -> None:
    with_bos = tokenise(docs("a"), tiny_tokenizer(pad=False), context=4, packing="truncated")
    with_neither = tokenise(docs("ab"), tiny_tokenizer(bos=False, pad=False), context=4, packing="truncated")

    assert as_lists(with_bos) == [([1, 3, 1, 1], [0, 1, 0, 0])]
    assert as_lists(with_neither) == [([3, 4, 0, 0], [0, 1, 0, 0])]


@pytest.mark.parametrize("packing", ["packed", "truncated"])
def test_the_mask_goes_by_position_though_the_text_holds_the_same_ids(tokenizer: "Tokenizer", packing: Packing) -> None:
    rows = tokenise(docs("a<s>b<pad>"), tokenizer, context=6, packing=packing)

    assert as_lists(rows) == [([1, 3, 1, 4, 0, 0], [0, 1, 1, 1, 1, 0])]


def test_packing_loses_no_token_and_counts_each_once(tokenizer: "Tokenizer") -> None:
    texts = ["".join(chr(ord("a") + (start + step) % 26) for step in range(start % 40)) for start in range(200)]

    rows = list(tokenise(docs(*texts), tokenizer, context=7, packing="packed"))

    counted = torch.cat([row.tokens[row.mask] for row in rows]).tolist()
    assert counted == [3 + ord(letter) - ord("a") for text in texts for letter in text]
    assert all(row.tokens[0] == 1 and not row.mask[0] for row in rows)
    assert all(len(row.tokens) == len(row.mask) == 7 for row in rows)


def test_documents_longer_than_the_models_context_give_no_warning(
    tokenizer: "Tokenizer", caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture
) -> None:
    rows = list(tokenise(docs("a" * 1000), tokenizer, context=32, packing="packed"))

    assert tokenizer.model_max_length == 32
    assert len(rows) == 33
    assert caplog.text == ""
    assert capfd.readouterr().err == ""


def test_documents_are_read_as_rows_are_asked_for(tokenizer: "Tokenizer") -> None:
    read = []

    def endless() -> Iterable[Document]:
        while True:
            read.append(1)
            yield Document("endless", "abc")

    rows = list(islice(tokenise(endless(), tokenizer, context=4, packing="packed"), 3))

    assert len(rows) == 3
    assert len(read) <= 64


@pytest.mark.parametrize("context", [1, 0, -3])
def test_a_context_without_room_for_text_is_an_error(tokenizer: "Tokenizer", context: int) -> None:
    with pytest.raises(ValueError, match=f"context must be at least 2 tokens .*, got {context}"):
        tokenise(docs("a"), tokenizer, context=context, packing="packed")


def test_rows_are_stacked_into_batches(tokenizer: "Tokenizer") -> None:
    rows = tokenise(docs("a", "bc", "def"), tokenizer, context=3, packing="truncated")

    first, last = batched_rows(rows, 2)

    assert first.tokens.tolist() == [[1, 3, 0], [1, 4, 5]]
    assert first.mask.tolist() == [[False, True, False], [False, True, True]]
    assert last.tokens.tolist() == [[1, 6, 7]]
    with pytest.raises(ValueError, match="batch_size must be at least 1 row, got 0"):
        next(batched_rows([], 0))
