"""From documents to rows of tokens, with a mask of the positions that count.

Every row begins with the tokenizer's beginning-of-text token (BOS) where it has one. The mask is False at
the BOS tokens put in here and at padding, by position: comparing ids would also drop tokens of the text,
for in many tokenizers BOS, end of text and padding are one id.
"""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from penstock.language_models.stdlib_corpus import Document
from penstock.shapes import Mask, Tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Packing = Literal["packed", "truncated"]

_DOCUMENTS_PER_CALL = 64
"""How many documents the tokenizer gets at a time; it works on them in parallel."""


class TokenRow(NamedTuple):
    """One row of tokens."""

    tokens: Int[Tensor, " positions"]
    mask: Bool[Tensor, " positions"]
    """True where a position counts (no BOS, no padding)."""


class TokenRows(NamedTuple):
    """Rows of tokens, stacked."""

    tokens: Tokens
    mask: Mask
    """True where a position counts (no BOS, no padding)."""


def tokenise(
    documents: Iterable[Document], tokenizer: "PreTrainedTokenizerBase", *, context: int, packing: Packing
) -> Iterator[TokenRow]:
    """Rows of `context` tokens from documents; documents without tokens are left out.

    packed: documents one after the other, with a BOS between them, cut into rows that begin with a BOS. Only
    the last row is padded, so that no token is lost.
    truncated: one row for each document, with a BOS and the document's first tokens, padded on the right.

    Padding has the tokenizer's padding id, or BOS, or 0.

    Args:
        documents: Where the text comes from; read as the rows are asked for.
        tokenizer: A Hugging Face tokenizer.
        context: Tokens in a row, BOS included; at least 2.
        packing: "packed" or "truncated".

    Raises:
        ValueError: `context` or `packing` is none of the above.
    """
    if context < 2:
        raise ValueError(f"context must be at least 2 tokens (a BOS and one to predict), got {context}.")
    if packing not in get_args(Packing):
        raise ValueError(f"packing must be one of {', '.join(get_args(Packing))}; got {packing!r}.")
    lay_out = _packed if packing == "packed" else _truncated
    return lay_out(_token_ids(documents, tokenizer), tokenizer, context)


def batched_rows(rows: Iterable[TokenRow], batch_size: int) -> Iterator[TokenRows]:
    """Stack rows, `batch_size` at a time; the last batch may be smaller."""
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1 row, got {batch_size}.")
    rows = iter(rows)
    while batch := list(islice(rows, batch_size)):
        tokens, masks = zip(*batch, strict=True)
        yield TokenRows(torch.stack(tokens), torch.stack(masks))


def _token_ids(documents: Iterable[Document], tokenizer: "PreTrainedTokenizerBase") -> Iterator[list[int]]:
    """The tokens of each document that has any, without special tokens."""
    documents = iter(documents)
    while batch := [document.text for document in islice(documents, _DOCUMENTS_PER_CALL)]:
        # Not verbose: a document may well be longer than the model's context.
        encoded = tokenizer(batch, add_special_tokens=False, return_attention_mask=False, verbose=False)
        yield from filter(None, encoded["input_ids"])


def _packed(documents: Iterable[list[int]], tokenizer: "PreTrainedTokenizerBase", context: int) -> Iterator[TokenRow]:
    bos = _bos(tokenizer)
    tokens, mask = list(bos), [False] * len(bos)
    for document in documents:
        if any(mask):
            tokens += bos
            mask += [False] * len(bos)
        start = 0
        while start < len(document):
            piece = document[start : start + context - len(tokens)]
            start += len(piece)
            tokens += piece
            mask += [True] * len(piece)
            if len(tokens) == context:
                yield _row(tokens, mask, context, tokenizer)
                tokens, mask = list(bos), [False] * len(bos)
    if any(mask):
        yield _row(tokens, mask, context, tokenizer)


def _truncated(
    documents: Iterable[list[int]], tokenizer: "PreTrainedTokenizerBase", context: int
) -> Iterator[TokenRow]:
    bos = _bos(tokenizer)
    for document in documents:
        kept = document[: context - len(bos)]
        yield _row(bos + kept, [False] * len(bos) + [True] * len(kept), context, tokenizer)


def _bos(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    bos = tokenizer.bos_token_id
    return [bos] if isinstance(bos, int) else []


def _row(tokens: list[int], mask: list[bool], context: int, tokenizer: "PreTrainedTokenizerBase") -> TokenRow:
    """A row of `context` tokens, padded on the right."""
    candidates = (tokenizer.pad_token_id, tokenizer.bos_token_id, 0)
    padding = next(token for token in candidates if token is not None)
    missing = context - len(tokens)
    return TokenRow(torch.tensor(tokens + [padding] * missing), torch.tensor(mask + [False] * missing))
