"""An n-gram language model with interpolated modified Kneser-Ney smoothing, the baseline of the embedded
language model.

    P_k(w | u) = max(c(uw) - D(c(uw)), 0) / c(u) + gamma(u) P_{k-1}(w | u without its oldest token)

c is the count in the text at the highest order and, below it, the number of different tokens that
stand before uw. The three discounts D of each order come from its counts of counts, gamma(u) is the
mass they take away, and P_0 is uniform over the vocabulary, so that every context, seen or not,
has probabilities that sum to 1.

Source: Chen & Goodman 1999, "An empirical study of smoothing techniques for language modeling",
Computer Speech and Language 13(4), section 3 (equations 20 to 26).

A document starts with a BOS token. BOS is context only: it is never predicted, and a context that
would reach past it into the previous document is filled with BOS instead.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt64

Stream = Int[np.ndarray, " num_tokens"]
Windows = Int[np.ndarray, "num_windows order"]
Packed = UInt64[np.ndarray, " num_windows"]

FALLBACK_DISCOUNTS = np.array([0.0, 0.5, 1.0, 1.5])
"""Discounts for counts 0, 1, 2 and 3+ where a text is too small to estimate them (those of KenLM)."""


class _Level(NamedTuple):
    """One order of the model: its n-grams and contexts as sorted packed integers."""

    ngrams: np.ndarray
    discounted: np.ndarray
    """max(c - D, 0) / c(context) of each n-gram."""
    contexts: np.ndarray
    backoff: np.ndarray
    """gamma, the probability mass each context leaves to the order below."""


class KneserNey:
    """An n-gram model fitted to one stream of tokens.

    Args:
        tokens: Token ids, each document with a BOS before it.
        bos: Token id of BOS.
        vocab_size: Number of token ids, BOS included.
        order: Tokens in an n-gram, the predicted one included; n-grams are packed into 64 bits.

    Raises:
        ValueError: n-grams of this order and vocabulary do not fit 64 bits, or the stream does not
            start with BOS or holds nothing else.
    """

    def __init__(self, tokens: Stream, *, bos: int, vocab_size: int, order: int = 5) -> None:
        self.bos, self.vocab_size, self.order = bos, vocab_size, order
        bits = max(vocab_size - 1, 1).bit_length()
        if order * bits > 64:
            raise ValueError(
                f"order {order} with vocab_size {vocab_size} needs {order * bits} bits per n-gram, "
                f"at most 64 fit; use an order of at most {64 // bits}."
            )
        self._bits = np.uint64(bits)
        ngrams, counts = np.unique(self._pack(windows_of(tokens, bos, order)), return_counts=True)
        self._levels = [self._level(ngrams, counts)]
        for length in range(order - 1, 0, -1):
            ngrams, counts = np.unique(self._suffix(ngrams, length), return_counts=True)
            self._levels.append(self._level(ngrams, counts))

    def nats(self, tokens: Stream) -> Float[np.ndarray, " num_predicted"]:
        """-ln P of every token of the stream but BOS, in nats.

        Args:
            tokens: Token ids, each document with a BOS before it.
        """
        return -np.log(self.probability(windows_of(tokens, self.bos, self.order)))

    def probability(self, windows: Windows) -> Float[np.ndarray, " num_windows"]:
        """P of each window's last token after the others, in (0, 1].

        Args:
            windows: Token ids, oldest first.
        """
        packed = self._pack(windows)
        probability = np.full(len(packed), 1 / self.vocab_size)
        for length, level in enumerate(reversed(self._levels), start=1):
            ngrams = self._suffix(packed, length)
            backoff = _look_up(level.contexts, level.backoff, ngrams >> self._bits, missing=1.0)
            discounted = _look_up(level.ngrams, level.discounted, ngrams, missing=0.0)
            probability = discounted + backoff * probability
        return probability

    def _pack(self, windows: Windows) -> Packed:
        packed = np.zeros(len(windows), np.uint64)
        for column in windows.T:
            packed = packed << self._bits | column.astype(np.uint64)
        return packed

    def _suffix(self, packed: Packed, length: int) -> Packed:
        """The last `length` tokens of each packed n-gram."""
        return packed & np.uint64(2 ** (int(self._bits) * length) - 1)

    def _level(self, ngrams: np.ndarray, counts: np.ndarray) -> _Level:
        discounts = _discounts(counts)[np.minimum(counts, 3)]
        contexts, starts = np.unique(ngrams >> self._bits, return_index=True)
        totals = np.add.reduceat(counts, starts)
        per_ngram = np.repeat(totals, np.diff(starts, append=len(ngrams)))
        backoff = np.add.reduceat(discounts, starts) / totals
        return _Level(ngrams, (counts - discounts) / per_ngram, contexts, backoff)


def windows_of(tokens: Stream, bos: int, order: int) -> Windows:
    """The `order` tokens that end at each token that is not BOS, within its document.

    Raises:
        ValueError: the stream does not start with BOS or holds nothing else.
    """
    if not len(tokens) or tokens[0] != bos:
        raise ValueError(f"tokens must start with the BOS token {bos}, got {tokens[:5].tolist()}.")
    positions = np.arange(len(tokens))
    document_start = np.maximum.accumulate(np.where(tokens == bos, positions, 0))
    predicted = tokens != bos
    if not predicted.any():
        raise ValueError(f"tokens holds nothing but BOS ({bos}); give at least one token to predict.")
    positions, document_start = positions[predicted], document_start[predicted]
    columns = [tokens[np.maximum(positions - back, document_start)] for back in range(order - 1, -1, -1)]
    return np.stack(columns, axis=1)


def _discounts(counts: np.ndarray) -> np.ndarray:
    """D for counts 0, 1, 2 and 3+, from the number of n-grams seen once, twice, ... (equation 26)."""
    seen = np.bincount(np.minimum(counts, 5), minlength=6)[1:5].astype(float)
    if not seen.all():
        return FALLBACK_DISCOUNTS
    once_share = seen[0] / (seen[0] + 2 * seen[1])
    levels = np.arange(1, 4)
    discounts = levels - (levels + 1) * once_share * seen[1:] / seen[:-1]
    # Odd counts of counts can give a discount that takes nothing away or more than there is.
    if not ((discounts > 0) & (discounts <= levels)).all():
        return FALLBACK_DISCOUNTS
    return np.array([0.0, *discounts])


def _look_up(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray, missing: float) -> np.ndarray:
    places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[places] == wanted, values[places], missing)
