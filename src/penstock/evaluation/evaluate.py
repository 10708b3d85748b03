"""Splice reconstructions into the language model and sum the effects exactly, for each sequence.

There are two passes over the held-out rows. The first finds the mean activation of every site (needed for mean
ablation and for FVU's denominator); the second runs every candidate. Positions that do not count (BOS, padding)
keep their own activation in every spliced run, ablations included. A prediction counts if both its position and
its target count.
"""

import copy
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from penstock.activations.screening import check_finite
from penstock.language_models.loading import LanguageModel
from penstock.language_models.tokens import TokenRows
from penstock.metrics import code_terms, token_terms
from penstock.saes import SAE
from penstock.shapes import Acts, Logits, Mask, SequenceActs, Tokens
from penstock.sparse import SparseCode

LogProbabilities = Float[Tensor, "sequences predictions vocab"]

LOGITS = {"cpu": 2**22, "cuda": 2**29}
"""Most logits in one forward pass (but at least one row's), by device type. On a CPU 16 MiB: glibc keeps blocks below
32 MiB, and requests larger ones from the operating system each time."""


class Candidate(NamedTuple):
    """Something that reconstructs a site's activations through a code: an SAE or a control."""

    name: str
    site: str
    d_in: int
    encode: Callable[[Acts], SparseCode]
    decode: Callable[[SparseCode], Acts]
    decoder_norm: Tensor
    """Norm of each latent's decoder row [d_sae], for L1."""

    @classmethod
    def of(cls, name: str, site: str, sae: SAE) -> "Candidate":
        """Make a candidate of an SAE on raw activations; it is evaluated in float32, whatever its dtype."""
        if sae.W_dec.dtype != torch.float32:
            sae = copy.deepcopy(sae).float()
        return cls(name, site, sae.d_in, sae.encode_sparse, sae.decode_sparse, sae.W_dec.norm(dim=1))


@dataclass
class Evaluation:
    """The sums of one candidate."""

    sums: dict[str, Float[Tensor, " sequences"]]
    """Terms of `penstock.metrics` summed within each sequence, float64."""
    firing: Int[Tensor, " d_sae"]
    """Number of tokens on which each latent fired."""
    l0_histogram: Int[Tensor, " values"]
    """Number of tokens on which 0, 1, 2, ... latents fired."""


@torch.no_grad()
def evaluate(
    model: LanguageModel, rows: TokenRows, candidates: Sequence[Candidate], *, batch_rows: int | None = None
) -> dict[str, Evaluation]:
    """Measure every candidate on the same tokens.

    Args:
        model: The language model whose activations are replaced.
        rows: Held-out rows with the positions that count.
        candidates: Candidates at any of the model's sites, on raw activations.
        batch_rows: Rows in a forward pass; default: as many as LOGITS allows.

    Returns:
        The sums of each candidate, by its name.

    Raises:
        ValueError: a candidate's width differs from its site's, two have the same name, or no prediction counts.
    """
    sites = tuple(dict.fromkeys(candidate.site for candidate in candidates))
    twice = [name for name, count in Counter(candidate.name for candidate in candidates).items() if count > 1]
    if twice:
        raise ValueError(
            f"Results are stored by name, but more than one candidate is called {', '.join(twice)}. Rename one."
        )
    for candidate in candidates:
        if candidate.d_in != model.d_in(candidate.site):
            raise ValueError(
                f"{candidate.name} takes activations of width {candidate.d_in}, but {candidate.site} of "
                f"{model.name} has width {model.d_in(candidate.site)}. Check that it belongs to this model "
                "and site."
            )
    if not (rows.mask[:, :-1] & rows.mask[:, 1:]).any():
        raise ValueError(
            "There is nothing to evaluate on: no two neighbouring positions count, so there is no prediction. "
            "Evaluate on documents of two tokens or more."
        )
    if batch_rows is None:
        logits = LOGITS.get(model.device.type, LOGITS["cpu"])
        batch_rows = max(1, logits // (rows.tokens.shape[1] * model.vocab_size))
    means = _site_means(model, rows, sites, batch_rows)
    parts: dict[str, list[Evaluation]] = {candidate.name: [] for candidate in candidates}
    batches = list(zip(rows.tokens.split(batch_rows), rows.mask.split(batch_rows), strict=True))
    for tokens, mask in tqdm(batches, desc="evaluating", unit="batch", disable=None):
        batch = _Batch(model, tokens, mask, means)
        for candidate in candidates:
            parts[candidate.name].append(batch.measure(candidate))
    return {name: _merged(evaluations) for name, evaluations in parts.items()}


class _Batch:
    """One batch's clean and ablated runs, shared by all candidates."""

    def __init__(self, model: LanguageModel, tokens: Tokens, mask: Mask, means: Mapping[str, Tensor]) -> None:
        self.model = model
        self.tokens = tokens
        self.mask = mask.to(model.device)
        self.means = means
        self.predicted = self.mask[:, :-1] & self.mask[:, 1:]
        self.targets = tokens[:, 1:].to(model.device)
        self.prefixes = {site: model.prefix(tokens, site) for site in means}
        captured: dict[str, Tensor] = {}

        def keeper(site: str) -> Callable[[SequenceActs], SequenceActs]:
            def keep(acts: SequenceActs) -> SequenceActs:
                captured[site] = acts.clone()
                return acts

            return keep

        log_p = self._log_probabilities(model.logits(tokens, {site: keeper(site) for site in means}))
        self.acts = captured
        self.ce_clean = self._cross_entropy(log_p)
        self.clean_p = log_p.exp()
        self.clean_entropy = -torch.linalg.vecdot(self.clean_p, log_p)
        self.ablated = {
            site: {
                "ce_zero": self._ablated(site, torch.zeros_like(mean)),
                "ce_mean": self._ablated(site, mean),
            }
            for site, mean in means.items()
        }

    def measure(self, candidate: Candidate) -> Evaluation:
        """Return one candidate's sums over this batch."""
        site = candidate.site
        # The SAE may live elsewhere than the language model, which may itself be spread over several devices.
        device = candidate.decoder_norm.device
        x = self.acts[site][self.mask.to(self.acts[site].device)].to(device, torch.float32)
        acts = candidate.encode(x)
        x_hat = candidate.decode(acts)
        terms = token_terms(x, x_hat, self.means[site].to(device)) | code_terms(acts, candidate.decoder_norm)
        sums = {name: self._by_sequence(values) for name, values in terms.items()}

        spliced = self._log_p_with(site, x_hat)
        # Two sums over the vocabulary; kl_div would allocate several tensors of that size.
        kl = -torch.linalg.vecdot(self.clean_p, spliced).double() - self.clean_entropy.double()
        sums |= self.ablated[site]
        sums["ce_tokens"] = self.predicted.sum(dim=1).double()
        sums["ce_clean"] = self.ce_clean
        sums["ce_spliced"] = self._cross_entropy(spliced)
        sums["kl"] = (kl * self.predicted).sum(dim=1)

        histogram = torch.bincount(acts.l0, minlength=acts.support.d_sae + 1)
        return Evaluation({name: value.cpu() for name, value in sums.items()}, acts.firing.cpu(), histogram.cpu())

    def _ablated(self, site: str, value: Tensor) -> Tensor:
        x_hat = value.expand(int(self.mask.sum()), -1)
        return self._cross_entropy(self._log_p_with(site, x_hat))

    def _log_p_with(self, site: str, x_hat: Acts) -> LogProbabilities:
        """Return log probabilities when positions that count get `x_hat` and the others keep their own activation."""

        def edit(acts: SequenceActs) -> SequenceActs:
            replaced = acts.clone()
            replaced[self.mask.to(acts.device)] = x_hat.to(acts.device, acts.dtype)
            return replaced

        return self._log_probabilities(self.model.logits(self.tokens, {site: edit}, after=self.prefixes[site]))

    def _cross_entropy(self, log_p: LogProbabilities) -> Float[Tensor, " sequences"]:
        losses = -log_p.gather(-1, self.targets[..., None])[..., 0]
        return (losses.double() * self.predicted).sum(dim=1).cpu()

    def _by_sequence(self, values: Float[Tensor, " batch"]) -> Float[Tensor, " sequences"]:
        sequence = self.mask.nonzero()[:, 0].to(values.device)
        return torch.zeros(len(self.mask), dtype=torch.float64, device=values.device).index_add_(0, sequence, values)

    def _log_probabilities(self, logits: Logits) -> LogProbabilities:
        """Return log probabilities of the next token at each position but the last, which has no target."""
        return logits[:, :-1].to(self.model.device).float().log_softmax(dim=-1)


def _site_means(
    model: LanguageModel, rows: TokenRows, sites: Sequence[str], batch_rows: int
) -> dict[str, Float[Tensor, " d_in"]]:
    """Return the mean activation of each site over the positions that count, float64."""
    totals: dict[str, Tensor] = {}
    for tokens, mask in zip(rows.tokens.split(batch_rows), rows.mask.split(batch_rows), strict=True):
        found = model.activations(tokens, sites)
        # Checked in this first pass; later, an SAE would be blamed.
        check_finite(model, TokenRows(tokens, mask), found)
        for site, acts in found.items():
            total = acts[mask.to(acts.device)].double().sum(dim=0).to(model.device)
            totals[site] = totals.get(site, torch.zeros_like(total)) + total
    return {site: total / rows.mask.sum().item() for site, total in totals.items()}


def _merged(parts: Sequence[Evaluation]) -> Evaluation:
    return Evaluation(
        sums={name: torch.cat([part.sums[name] for part in parts]) for name in parts[0].sums},
        firing=torch.stack([part.firing for part in parts]).sum(dim=0),
        l0_histogram=torch.stack([part.l0_histogram for part in parts]).sum(dim=0),
    )
