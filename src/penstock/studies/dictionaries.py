"""What the dictionaries of a run hold: what two of them share, and which kinds of concept each has (study 9).

Arms are compared at nearly equal L0 on the same held-out tokens; two seeds of one arm are the yardstick, since
SAEs that differ in nothing but their seed do not agree fully either.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Any, NamedTuple

import torch

from penstock.activations.harvest import masked_acts
from penstock.language_models.tokens import TokenRows
from penstock.shapes import Acts
from penstock.sparse import SparseCode
from penstock.studies.agreement import agreement
from penstock.studies.concepts import kind_shares, kinds
from penstock.studies.finished_run import FinishedRun
from penstock.studies.stored import Record
from penstock.studies.token_facts import token_facts

MODEL_ROWS = 8
"""Rows in one forward pass of the language model."""


@dataclass(frozen=True, kw_only=True)
class DictionariesConfig:
    most_apart: float = 1.3
    """Factor between the L0s of two SAEs up to which they are compared."""

    def __post_init__(self) -> None:
        if self.most_apart < 1:
            raise ValueError(f"most_apart={self.most_apart} is out of range: it is a factor, at least 1.")


class _Pair(NamedTuple):
    a: str
    b: str
    kind: str
    """`arms` or `seeds`."""


def dictionaries(run: FinishedRun, config: DictionariesConfig) -> list[Record]:
    """What pairs of SAEs of a run share: two arms at equal L0, and two seeds of one arm."""
    x = held_out_activations(run)
    l0 = {name: _code(run, name, x).l0.double().mean().item() for name in run.saes}
    found = []
    for pair in _pairs(run, l0, config.most_apart):
        site = run.about[pair.a]["site"]
        shared = agreement(run.saes[pair.a], run.saes[pair.b], x[site])
        found.append({**pair._asdict(), "site": site, "l0_a": l0[pair.a], "l0_b": l0[pair.b], **shared})
    return found


@dataclass(frozen=True, kw_only=True)
class ConceptsConfig:
    threshold: float = 0.5
    """F1 that the best rule of a kind must reach for a latent to be of that kind."""
    min_firings: int = 20
    """Held-out tokens on which a latent must fire to be looked at."""

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1:
            raise ValueError(f"threshold={self.threshold} is out of range: allowed is above 0, up to 1.")
        if self.min_firings < 2:
            raise ValueError(f"min_firings={self.min_firings} is out of range: it must be at least 2.")


def concepts(run: FinishedRun, config: ConceptsConfig) -> list[Record]:
    """For every SAE of a run which kinds of concept its latents are, by rules over single tokens."""
    rows = run.held_out()
    x = held_out_activations(run)
    facts = token_facts(rows, run.model.tokenizer)
    found = []
    for name in run.saes:
        code = _code(run, name, x)
        about = {key: run.about[name][key] for key in ("arch", "recipe", "site", "d_sae", "seed")}
        judged = kinds(code, facts, threshold=config.threshold, min_firings=config.min_firings)
        shares = kind_shares(judged, resamples=run.config.eval.bootstrap, seed=run.config.eval.eval_seed)
        found.append(
            {
                "name": name,
                **about,
                "l0": code.l0.double().mean().item(),
                "judged": len(judged.latents),
                "kinds": shares,
            }
        )
    return found


def held_out_activations(run: FinishedRun) -> dict[str, Acts]:
    """For each site the activations [tokens, d_in] of the held-out positions that count, in the order of the rows."""
    rows, device = run.held_out(), run.config.language_model.device
    parts = [
        masked_acts(run.model, TokenRows(tokens, mask), run.config.sites, device)
        for tokens, mask in zip(rows.tokens.split(MODEL_ROWS), rows.mask.split(MODEL_ROWS), strict=True)
    ]
    return {site: torch.cat([part[site] for part in parts]) for site in run.config.sites}


def _code(run: FinishedRun, name: str, x: dict[str, Acts]) -> SparseCode:
    return run.saes[name].encode_sparse(x[run.about[name]["site"]])


def _pairs(run: FinishedRun, l0: dict[str, float], most_apart: float) -> Iterator[_Pair]:
    """Every SAE with the nearest in L0 of each other arm, and of each other seed of its own arm, at the same site."""

    def arm(name: str) -> tuple[Any, ...]:
        return tuple(run.about[name][key] for key in ("arch", "recipe", "d_sae"))

    def apart(a: str, b: str) -> float:
        return abs(math.log(max(l0[a], 1e-9) / max(l0[b], 1e-9)))

    groups: dict[tuple[Any, ...], list[str]] = {}
    for name in run.saes:
        groups.setdefault((run.about[name]["site"], arm(name), run.about[name]["seed"]), []).append(name)
    for one, other in combinations(groups, 2):
        same_site, same_arm, same_seed = (one[index] == other[index] for index in range(3))
        # Of two arms only equal seeds are paired, so that differences come in pairs.
        if not same_site or same_arm == same_seed:
            continue
        for a in groups[one]:
            b = min(groups[other], key=lambda name: apart(a, name))
            if apart(a, b) <= math.log(most_apart):
                yield _Pair(a, b, "seeds" if same_arm else "arms")
