"""From documents to rows of tokens, with a mask of the positions that count.

Every row begins with the tokenizer's beginning-of-text token (BOS). If it has none, as in Qwen 2 and 3, its
end-of-text token (EOS) precedes each document instead, and a row that continues a document begins with text.
The first position of a row never counts, whatever token it holds. Many models use it as an attention sink, with an
activation tens of times as long as all others.

The mask is also False at each inserted BOS or EOS and at padding. It is made by position: comparing ids would also drop
tokens of the text, because in many tokenizers BOS, EOS and padding share one id.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from penstock.language_models.stdlib_corpus import START, Document, Place
from penstock.language_models.text_files import say_once
from penstock.shapes import Mask, Tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Packing = Literal["packed", "truncated"]

_DOCUMENTS_PER_CALL = 64
"""Documents passed to the tokenizer at a time; it works on them in parallel."""

_CHARACTERS_PER_CALL = 2**20
"""Characters passed to the tokenizer at a time; it needs about 200 bytes for each."""


class TokenRow(NamedTuple):
    """One row of tokens."""

    tokens: Int[Tensor, " positions"]
    mask: Bool[Tensor, " positions"]
    """True where a position counts: not the first, no BOS or EOS put in, no padding."""


class TokenRows(NamedTuple):
    """Rows of tokens, stacked."""

    tokens: Tokens
    mask: Mask
    """True where a position counts: not the first, no BOS or EOS put in, no padding."""


class Position(NamedTuple):
    """Position in a text at which the next row continues."""

    place: Place = START
    """Place of the last document in the rows so far."""
    token: int = 0
    """Number of that document's tokens in the rows so far."""


def tokenise(
    documents: Iterable[Document],
    tokenizer: "PreTrainedTokenizerBase",
    *,
    context: int,
    packing: Packing,
    vocab_size: int | None = None,
    mask_special_tokens: bool = False,
) -> Iterator[TokenRow]:
    """Yield rows of `context` tokens from documents; documents without tokens are left out.

    packed: documents one after the other, with a BOS (or else EOS) between them, cut into rows. Only the last row is
    padded. With a BOS no token is lost; without one, a row that continues a document does not count its first token.
    truncated: one row for each document: a BOS (or else EOS) and the document's first tokens, padded on the right.

    The padding id is the tokenizer's padding id, or BOS, or 0, whichever the model accepts first.

    Args:
        documents: Documents, read lazily.
        tokenizer: A Hugging Face tokenizer.
        context: Tokens per row, BOS included; at least 2.
        packing: "packed" or "truncated".
        vocab_size: Number of token ids that the model accepts; a document with others is left out, and logged once.
        mask_special_tokens: Whether special tokens inside the texts, such as those of chat templates, do not count.

    Raises:
        ValueError: `context` or `packing` has another value.
    """
    layout = Layout.of(
        tokenizer, context=context, packing=packing, vocab_size=vocab_size, mask_special_tokens=mask_special_tokens
    )
    return (row for row, _ in layout.rows(documents))


def batched_rows(rows: Iterable[TokenRow], batch_size: int) -> Iterator[TokenRows]:
    """Stack rows, `batch_size` at a time; the last batch may be smaller."""
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1 row, got {batch_size}.")
    rows = iter(rows)
    while batch := list(islice(rows, batch_size)):
        tokens, masks = zip(*batch, strict=True)
        yield TokenRows(torch.stack(tokens), torch.stack(masks))


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Makes rows from documents with one tokenizer."""

    tokenizer: "PreTrainedTokenizerBase"
    context: int
    packing: Packing
    vocab_size: int | None
    before: list[int]
    """Token before each document: BOS, or else EOS, or else none."""
    head: list[int]
    """Token at the start of a row that continues a document: BOS, or else none."""
    padding: int
    uncounted: frozenset[int]
    """Ids that do not count inside the text."""

    @classmethod
    def of(
        cls,
        tokenizer: "PreTrainedTokenizerBase",
        *,
        context: int,
        packing: Packing,
        vocab_size: int | None,
        mask_special_tokens: bool,
    ) -> "Layout":
        """Make the layout for a tokenizer; arguments and errors are the same as for `tokenise`."""
        if context < 2:
            raise ValueError(f"context must be at least 2 tokens (a BOS and one to predict), got {context}.")
        if packing not in get_args(Packing):
            raise ValueError(f"packing must be one of {', '.join(get_args(Packing))}; got {packing!r}.")

        def taken(*candidates: object) -> list[int]:
            return [
                token
                for token in candidates
                if isinstance(token, int) and token >= 0 and (vocab_size is None or token < vocab_size)
            ]

        bos = taken(tokenizer.bos_token_id)
        return cls(
            tokenizer=tokenizer,
            context=context,
            packing=packing,
            vocab_size=vocab_size,
            before=bos or taken(tokenizer.eos_token_id),
            head=bos,
            padding=taken(tokenizer.pad_token_id, tokenizer.bos_token_id, 0)[0],
            uncounted=frozenset(_special_ids(tokenizer) if mask_special_tokens else ()),
        )

    def rows(self, documents: Iterable[Document], *, skip_tokens: int = 0) -> Iterator[tuple[TokenRow, Position]]:
        """Yield the rows, each with the position at which the next row continues.

        Args:
            documents: Same as for `tokenise`. To continue at a position, begin with the document at its place.
            skip_tokens: Number of tokens of that document to skip.
        """
        read = self._token_ids(documents)
        return self._packed(read, skip_tokens) if self.packing == "packed" else self._truncated(read, skip_tokens)

    def _packed(
        self, documents: Iterable[tuple[Place, list[int]]], skip_tokens: int
    ) -> Iterator[tuple[TokenRow, Position]]:
        tokens: list[int] = []
        mask: list[bool] = []
        place, start = START, skip_tokens
        document: list[int] = []
        for place, document in documents:
            if start == 0 or start < len(document):
                put_in = self.before if start == 0 else self.head
                tokens += put_in
                mask += [False] * len(put_in)
            while start < len(document):
                piece = document[start : start + self.context - len(tokens)]
                start += len(piece)
                tokens += piece
                mask += [token not in self.uncounted for token in piece]
                if len(tokens) == self.context:
                    yield self._row(tokens, mask), Position(place, start)
                    # At the start of a document with its prefix; at the end without one, for the next document.
                    tokens = [] if start == len(document) else list(self.head if start else self.before)
                    mask = [False] * len(tokens)
            start = 0
        if any(mask[1:]):
            yield self._row(tokens, mask), Position(place, len(document))

    def _truncated(
        self, documents: Iterable[tuple[Place, list[int]]], skip_tokens: int
    ) -> Iterator[tuple[TokenRow, Position]]:
        skip_one = skip_tokens > 0
        for place, document in documents:
            kept = document[: self.context - len(self.before)]
            mask = [False] * len(self.before) + [token not in self.uncounted for token in kept]
            if any(mask[1:]) and not skip_one:
                yield self._row(self.before + kept, mask), Position(place, len(document))
            skip_one = False

    def _row(self, tokens: list[int], mask: list[bool]) -> TokenRow:
        """Return a row of `context` tokens, padded on the right."""
        missing = self.context - len(tokens)
        return TokenRow(
            torch.tensor(tokens + [self.padding] * missing, device="cpu"),
            torch.tensor([False, *mask[1:]] + [False] * missing, device="cpu"),
        )

    def _token_ids(self, documents: Iterable[Document]) -> Iterator[tuple[Place, list[int]]]:
        """Yield the place and the tokens of each document that has tokens, without added special tokens."""
        left_out = 0
        for batch in _batches(documents):
            if len(batch) > 1:
                encoded = self._encode([document.text for document in batch])
            else:
                encoded = [[token for part in _parts(batch[0].text) for token in self._encode([part])[0]]]
            for document, tokens in zip(batch, encoded, strict=True):
                if tokens and self.vocab_size is not None and max(tokens) >= self.vocab_size:
                    left_out += 1
                    say_once(
                        f"Left out, like every document of its kind: {document.name} has the token id {max(tokens)}, "
                        f"but the model takes ids below {self.vocab_size} only. Its tokenizer has tokens that the "
                        "model does not know.",
                        "vocab_size",
                        str(self.vocab_size),
                    )
                elif tokens:
                    yield document.place, tokens
        if left_out > 1:
            say_once(f"Left out {left_out} documents with token ids that the model does not take.")

    def _encode(self, texts: list[str]) -> list[list[int]]:
        # Not verbose, because a document may be longer than the model's context.
        return self.tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Yield batches of documents for the tokenizer, bounded in characters; a longer document gets its own batch."""
    batch: list[Document] = []
    characters = 0
    for document in documents:
        if batch and characters + len(document.text) > _CHARACTERS_PER_CALL:
            yield batch
            batch, characters = [], 0
        batch.append(document)
        characters += len(document.text)
        if len(batch) == _DOCUMENTS_PER_CALL:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _parts(text: str) -> Iterator[str]:
    """Cut a text that is too long for one call between words."""
    while len(text) > _CHARACTERS_PER_CALL:
        space = text.rfind(" ", _CHARACTERS_PER_CALL // 2, _CHARACTERS_PER_CALL)
        end = _CHARACTERS_PER_CALL if space < 0 else space
        yield text[:end]
        text = text[end:]
    yield text


def _special_ids(tokenizer: "PreTrainedTokenizerBase") -> set[int]:
    """Return the ids of BOS, EOS and other special tokens, including those of a chat template."""
    added = {id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
    return added | {id for id in tokenizer.all_special_ids if isinstance(id, int)}
