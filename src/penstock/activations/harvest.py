"""From texts to activations: tokenise, run the language model up to the deepest site, drop what is masked."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from penstock.activations.sources import ActivationCache, Harvest
from penstock.language_models.loading import LanguageModel
from penstock.language_models.stdlib_corpus import Split
from penstock.language_models.texts import documents
from penstock.language_models.tokens import Packing, TokenRows, batched_rows, tokenise


@dataclass(frozen=True, kw_only=True)
class Text:
    """A text as one model reads it: a finite sequence of token rows for each split."""

    model: LanguageModel
    source: str
    text_field: str
    context: int
    packing: Packing

    def rows(self, split: Split, *, start_row: int, batch_rows: int) -> Iterator[TokenRows]:
        """The rows of a split from `start_row` on, up to `batch_rows` at a time."""
        rows = tokenise(
            documents(self.source, split=split, text_field=self.text_field),
            self.model.tokenizer,
            context=self.context,
            packing=self.packing,
        )
        return batched_rows(islice(rows, start_row, None), batch_rows)

    def check(self) -> None:
        """Look at the first rows of both splits, so that a text that will not do fails before the training.

        Raises:
            ValueError: a split has no documents, no tokens, or (held out) no two tokens in a row.
        """
        for split in ("train", "held_out"):
            rows = next(self.rows(split, start_row=0, batch_rows=64), None)
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
        """Held-out rows with at least `num_tokens` positions that count, or all there are.

        The rows are drawn at random from the first 20 times as many, so that a few long documents at the
        start of the text do not decide the evaluation.

        Raises:
            ValueError: there is no position that counts.
        """
        rows: list[TokenRows] = []
        pool = 0
        for row in self.rows("held_out", start_row=0, batch_rows=1):
            rows.append(row)
            pool += int(row.mask.sum())
            if pool >= 20 * num_tokens:
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
            raise ValueError(
                f"The held-out split of {self.source!r} has no tokens to evaluate on (BOS and padding do not "
                "count). Give a text with more documents, or longer ones."
            )
        picked = [rows[index] for index in sorted(chosen)]
        return TokenRows(torch.cat([row.tokens for row in picked]), torch.cat([row.mask for row in picked]))


def masked_acts(model: LanguageModel, rows: TokenRows, sites: Sequence[str], device: str) -> dict[str, Tensor]:
    """For each site the float32 activations [tokens, d_in] of the positions that count."""
    acts = model.activations(rows.tokens, sites)
    return {site: acts[site][rows.mask.to(acts[site].device)].float().to(device) for site in sites}


@dataclass(frozen=True, kw_only=True)
class TrainingStream:
    """The activations of the train split; calling it with a row starts there."""

    text: Text
    sites: tuple[str, ...]
    batch_rows: int
    device: str

    def __call__(self, start_row: int) -> Iterator[Harvest]:
        next_row = start_row
        for rows in self.text.rows("train", start_row=start_row, batch_rows=self.batch_rows):
            next_row += len(rows.tokens)
            yield Harvest(masked_acts(self.text.model, rows, self.sites, self.device), next_row)


def fill_cache(stream: TrainingStream, num_tokens: int, *, seed: int) -> ActivationCache:
    """The first `num_tokens` activations of the stream, or all of them if the text is shorter.

    Raises:
        ValueError: the text has no activations at all.
    """
    parts: dict[str, list[Tensor]] = {site: [] for site in stream.sites}
    held = 0
    for harvest in stream(0):
        for site, acts in harvest.acts.items():
            parts[site].append(acts)
        held += len(harvest.acts[stream.sites[0]])
        if held >= num_tokens:
            break
    if not held:
        raise ValueError(
            f"The train split of {stream.text.source!r} gave no activations: it has no tokens that count (BOS "
            "and padding do not). Check that its documents are longer than one token."
        )
    return ActivationCache({site: torch.cat(parts[site])[:num_tokens] for site in stream.sites}, seed=seed)
