"""From texts to activations: tokenise, run the language model up to the deepest site, drop masked positions."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

import torch
from torch import Tensor

from penstock.activations.screening import NONE_LEFT_OUT, LeftOutTokens, check_finite, nonfinite, norms
from penstock.activations.sources import ActivationCache, Harvest
from penstock.language_models.loading import LanguageModel
from penstock.language_models.stdlib_corpus import Split
from penstock.language_models.text_files import say_once
from penstock.language_models.texts import documents, text_fingerprint
from penstock.language_models.tokens import Layout, Packing, Position, TokenRows
from penstock.shapes import Mask, SequenceActs

BEGINNING = Position()

MODEL_ROWS = 8
"""Rows in a forward pass of the language model over a sample of rows."""

NORM_ROWS = 64
"""Rows at the start of a text over which the median norm of its activations is measured."""


@dataclass(frozen=True, kw_only=True)
class Text:
    """A text as one model reads it: a finite sequence of token rows for each split."""

    model: LanguageModel
    source: str
    text_field: str
    context: int
    packing: Packing
    mask_special_tokens: bool = False
    """Whether to leave special tokens inside the texts out of the count."""
    sites: tuple[str, ...] = ()
    """Sites whose activations decide which tokens the next two settings leave out."""
    skip_nonfinite: bool = False
    """Whether to leave out tokens with a NaN or infinite activation; otherwise such a token is an error."""
    max_norm_multiple: float | None = None
    """Leave out tokens whose activation is more than this many times as long as the median of its site."""

    def rows(
        self, split: Split, *, start: Position = BEGINNING, batch_rows: int
    ) -> Iterator[tuple[TokenRows, Position]]:
        """Yield the rows of a split from a position on, up to `batch_rows` at a time, each with the next position.

        Documents before the position are skipped without tokenising them.
        """
        layout = Layout.of(
            self.model.tokenizer,
            context=self.context,
            packing=self.packing,
            vocab_size=self.model.vocab_size,
            mask_special_tokens=self.mask_special_tokens,
        )
        read = documents(self.source, split=split, text_field=self.text_field, start=start.place)
        rows = layout.rows(read, skip_tokens=start.token)
        while batch := list(islice(rows, batch_rows)):
            tokens, masks = zip(*(row for row, _ in batch), strict=True)
            yield TokenRows(torch.stack(tokens), torch.stack(masks)), batch[-1][1]

    @cached_property
    def fingerprint(self) -> str:
        """See `penstock.language_models.texts.text_fingerprint`."""
        return text_fingerprint(self.source, text_field=self.text_field)

    def screened(self, rows: TokenRows, acts: Mapping[str, SequenceActs]) -> tuple[Mask, LeftOutTokens]:
        """Return the mask without the tokens that the settings leave out by their activations, and their number.

        Args:
            rows: Rows of this text.
            acts: Their activations at `sites`.

        Raises:
            ValueError: an activation that counts is NaN or infinite, and `skip_nonfinite` is not set.
        """
        if not self.skip_nonfinite:
            check_finite(self.model, rows, acts)
        bad = nonfinite(acts, rows.mask)
        long = torch.zeros_like(bad)
        for site, limit in self._norm_limits.items():
            long |= rows.mask & ~bad & (norms(acts[site]) > limit).to(bad.device)
        left_out = LeftOutTokens(int(bad.sum()), int(long.sum()))
        for number, kind in ((left_out.nonfinite, "NaN or infinite"), (left_out.high_norm, "far too long")):
            if number:
                say_once(
                    f"Left out and counted, like all that follow: {number} tokens of {self.source} whose activations "
                    f"are {kind}.",
                    self.source,
                    kind,
                )
        return rows.mask & ~bad & ~long, left_out

    @cached_property
    def _norm_limits(self) -> dict[str, float]:
        """Return the largest norm of an activation at each site; empty if norms are not limited."""
        if self.max_norm_multiple is None:
            return {}
        rows, _ = next(self.rows("train", batch_rows=NORM_ROWS))
        acts = self.model.activations(rows.tokens, self.sites)
        medians = {site: norms(acts[site])[rows.mask.to(acts[site].device)].nanmedian().item() for site in self.sites}
        return {site: self.max_norm_multiple * median for site, median in medians.items()}

    def check(self) -> None:
        """Check the first rows of both splits, so that an unsuitable text fails before training.

        Raises:
            ValueError: a split has no documents, no tokens, or (held out) no two tokens in a row.
        """
        for split in ("train", "held_out"):
            rows, _ = next(self.rows(split, batch_rows=64), (None, None))
            if rows is None or not rows.mask.any():
                raise ValueError(
                    f"The {split} split of {self.source!r} has no tokens that count (BOS and padding do not). "
                    "Check text, and that its documents are not empty."
                )
        if not (rows.mask[:, :-1] & rows.mask[:, 1:]).any():
            raise ValueError(
                f"The documents of {self.source!r} have one token each, so that there is nothing to predict and "
                "no reconstruction could be evaluated. Give a text with longer documents."
            )

    def held_out(self, num_tokens: int, *, seed: int) -> TokenRows:
        """Return held-out rows with at least `num_tokens` positions that count, or all rows if there are fewer.

        The rows are drawn at random from the first 20 times as many, so that a few long documents at the
        start of the text do not dominate the evaluation.

        Raises:
            ValueError: no position counts.
        """
        rows = self._sample("held_out", num_tokens, 20 * num_tokens, seed)
        if rows is None:
            raise ValueError(
                f"The held-out split of {self.source!r} has no tokens to evaluate on (BOS and padding do not "
                "count). Give a text with more documents, or longer ones."
            )
        return rows

    def validation(self, num_tokens: int, *, seed: int) -> TokenRows | None:
        """Return validation rows with at least `num_tokens` positions that count, or all rows if there are fewer.

        The rows are drawn at random from the first 30 times as many. Returns None if the split is empty, as in a
        text of a few documents.
        """
        return self._sample("validation", num_tokens, 30 * num_tokens, seed)

    def _sample(self, split: Split, num_tokens: int, pool_tokens: int, seed: int) -> TokenRows | None:
        """Return random rows of the first `pool_tokens` of a split; None if no position counts."""
        rows: list[TokenRows] = []
        pool = 0
        for row, _ in self.rows(split, batch_rows=1):
            rows.append(row)
            pool += int(row.mask.sum())
            if pool >= pool_tokens:
                break
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed), device="cpu").tolist()
        chosen: list[int] = []
        counted = 0
        for index in order:
            if counted >= num_tokens:
                break
            chosen.append(index)
            counted += int(rows[index].mask.sum())
        if not counted:
            return None
        picked = [rows[index] for index in sorted(chosen)]
        return self._screened_rows(
            TokenRows(torch.cat([row.tokens for row in picked]), torch.cat([row.mask for row in picked]))
        )

    def _screened_rows(self, rows: TokenRows) -> TokenRows:
        """Return the rows with the mask of `screened`."""
        if not (self.skip_nonfinite or self.max_norm_multiple):
            return rows
        masks = []
        for tokens, mask in zip(rows.tokens.split(NORM_ROWS), rows.mask.split(NORM_ROWS), strict=True):
            masks.append(self.screened(TokenRows(tokens, mask), self.model.activations(tokens, self.sites))[0])
        return TokenRows(rows.tokens, torch.cat(masks))


def masked_acts(model: LanguageModel, rows: TokenRows, sites: Sequence[str], device: str) -> dict[str, Tensor]:
    """Return for each site the float32 activations [tokens, d_in] of the positions that count.

    Raises:
        ValueError: an activation is NaN or infinite.
    """
    acts = model.activations(rows.tokens, sites)
    check_finite(model, rows, acts)
    return _counted(acts, rows.mask, device)


def rows_acts(model: LanguageModel, rows: TokenRows, sites: Sequence[str], device: str) -> dict[str, Tensor]:
    """Return the same as `masked_acts`, running the language model on a few rows at a time."""
    parts = [
        masked_acts(model, TokenRows(tokens, mask), sites, device)
        for tokens, mask in zip(rows.tokens.split(MODEL_ROWS), rows.mask.split(MODEL_ROWS), strict=True)
    ]
    return {site: torch.cat([part[site] for part in parts]) for site in sites}


def _counted(acts: Mapping[str, SequenceActs], mask: Mask, device: str) -> dict[str, Tensor]:
    return {site: values[mask.to(values.device)].float().to(device) for site, values in acts.items()}


@dataclass(frozen=True, kw_only=True)
class TrainingStream:
    """The activations of the train split; a call with a position starts there."""

    text: Text
    sites: tuple[str, ...]
    batch_rows: int
    device: str

    def __call__(self, start: Position) -> Iterator[Harvest]:
        for rows, position in self.text.rows("train", start=start, batch_rows=self.batch_rows):
            acts = self.text.model.activations(rows.tokens, self.sites)
            mask, left_out = self.text.screened(rows, acts)
            yield Harvest(_counted(acts, mask, self.device), position, left_out)


def fill_cache(stream: TrainingStream, num_tokens: int, *, seed: int) -> ActivationCache:
    """Return the first `num_tokens` activations of the stream, or all of them if the text is shorter.

    Raises:
        ValueError: the text has no activations at all.
    """
    parts: dict[str, list[Tensor]] = {site: [] for site in stream.sites}
    held, left_out = 0, NONE_LEFT_OUT
    for harvest in stream(BEGINNING):
        for site, acts in harvest.acts.items():
            parts[site].append(acts)
        held += len(harvest.acts[stream.sites[0]])
        left_out += harvest.left_out
        if held >= num_tokens:
            break
    if not held:
        raise ValueError(
            f"The train split of {stream.text.source!r} gave no activations: it has no tokens that count (BOS "
            "and padding do not). Check that its documents are longer than one token."
        )
    acts = {site: torch.cat(parts[site])[:num_tokens] for site in stream.sites}
    return ActivationCache(acts, seed=seed, left_out=left_out)
