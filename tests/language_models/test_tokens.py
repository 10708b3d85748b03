"""Rows and masks by hand: BOS is 1, padding 0, a 3, b 4, c 5, and so on."""

from collections.abc import Callable, Iterable
from itertools import islice
from typing import TYPE_CHECKING

import pytest
import torch

from penstock.language_models.stdlib_corpus import Document
from penstock.language_models.tokens import Packing, TokenRow, batched_rows, tokenise

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


def test_without_a_bos_in_the_tokenizer_rows_have_none(tiny_tokenizer: Callable[..., "Tokenizer"]) -> None:
    tokenizer = tiny_tokenizer(bos=False)

    assert as_lists(tokenise(docs("abc", "de"), tokenizer, context=4, packing="packed")) == [
        ([3, 4, 5, 6], [1, 1, 1, 1]),
        ([7, 0, 0, 0], [1, 0, 0, 0]),
    ]
    assert as_lists(tokenise(docs("abcdef", "g"), tokenizer, context=4, packing="truncated")) == [
        ([3, 4, 5, 6], [1, 1, 1, 1]),
        ([9, 0, 0, 0], [1, 0, 0, 0]),
    ]


def test_without_a_padding_token_rows_are_padded_with_bos_and_else_with_0(
    tiny_tokenizer: Callable[..., "Tokenizer"],
) -> None:
    with_bos = tokenise(docs("a"), tiny_tokenizer(pad=False), context=4, packing="truncated")
    with_neither = tokenise(docs("a"), tiny_tokenizer(bos=False, pad=False), context=4, packing="truncated")

    assert as_lists(with_bos) == [([1, 3, 1, 1], [0, 1, 0, 0])]
    assert as_lists(with_neither) == [([3, 0, 0, 0], [1, 0, 0, 0])]


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
