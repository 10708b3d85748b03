"""What the dictionaries of a run hold: what two of them share, and which kinds of concept each has (study 9).

Arms are compared at nearly equal L0 on the same held-out tokens; two seeds of one arm are the yardstick, since
SAEs that differ in nothing but their seed do not agree fully either.
"""

import logging
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from typing import Any, NamedTuple

import torch

from penstock.activations.harvest import masked_acts
from penstock.evaluation.comparison import Arm, given_lr, names_of
from penstock.inspection.agreement import agreement
from penstock.inspection.concept_rules import Kinds, kind_shares, kinds
from penstock.inspection.differences import SeedPair, agreement_differences, share_differences
from penstock.inspection.matching import MAX_HUNGARIAN, hungarian
from penstock.inspection.token_facts import token_facts
from penstock.language_models.tokens import TokenRows
from penstock.runs.finished_run import FinishedRun
from penstock.shapes import Acts
from penstock.sparse import SparseCode
from penstock.studies.study_records import Record

logger = logging.getLogger(__name__)

MODEL_ROWS = 8
"""Rows in one forward pass of the language model."""


@dataclass(frozen=True, kw_only=True)
class DictionariesConfig:
    most_apart: float = 1.3
    """Factor between the L0s of two SAEs up to which they are compared."""

    def __post_init__(self) -> None:
        _check_factor(self.most_apart)


class _Pair(NamedTuple):
    a: str
    b: str
    kind: str
    """`arms` or `seeds`."""


def dictionaries(run: FinishedRun, config: DictionariesConfig) -> list[Record]:
    """What pairs of SAEs of a run share: two arms at equal L0 and other seeds, and two seeds of one arm; and how these
    two differ.

    `hungarian_null_cosine` is the mean cosine of the Hungarian matching of random directions, as many as the pair has.
    Records of the kind `difference` say for each site and pair of arms how much more, or less, they agree than the
    seeds of one of the two at the same L0; `yardstick` is the arm of these seeds.
    """
    x = held_out_activations(run)
    l0 = {name: _code(run, name, x).l0.double().mean().item() for name in run.saes}
    # As costly as a matching, so one for all pairs of the same sizes.
    null_of = cache(_hungarian_null)
    found = []
    for pair in independent_pairs(run, l0, config.most_apart):
        site = run.about[pair.a]["site"]
        shared = agreement(run.saes[pair.a], run.saes[pair.b], x[site])
        smaller, larger = sorted(int(shared[key] or 0) for key in ("latents_a", "latents_b"))
        sides = {
            f"{key}_{side}": run.about[name][key]
            for side, name in (("a", pair.a), ("b", pair.b))
            for key in ("arch", "recipe", "d_sae")
        }
        found.append(
            {
                **pair._asdict(),
                "site": site,
                **sides,
                "l0_a": l0[pair.a],
                "l0_b": l0[pair.b],
                **shared,
                "hungarian_null_cosine": null_of(run.about[pair.a]["d_in"], smaller, larger),
            }
        )
    return [*found, *_differences_of_agreement(run, found)]


@dataclass(frozen=True, kw_only=True)
class ConceptsConfig:
    threshold: float = 0.5
    """F1 that the best rule of a kind must reach for a latent to be of that kind."""
    min_firings: int = 20
    """Held-out tokens on which a latent must fire to be looked at."""
    most_apart: float = 1.3
    """Factor between the L0s of two SAEs up to which their shares are compared."""

    def __post_init__(self) -> None:
        _check_factor(self.most_apart)
        if not 0 < self.threshold <= 1:
            raise ValueError(f"threshold={self.threshold} is out of range: allowed is above 0, up to 1.")
        if self.min_firings < 2:
            raise ValueError(f"min_firings={self.min_firings} is out of range: it must be at least 2.")


def concepts(run: FinishedRun, config: ConceptsConfig) -> list[Record]:
    """For every SAE of a run which kinds of concept its latents are, by rules over single tokens.

    Records of the kind `difference` say for each kind of concept how much larger its share is in a Gated arm than in a
    baseline, over SAEs of one seed at nearly equal L0.
    """
    x = held_out_activations(run)
    facts = token_facts(run.held_out(), run.model.tokenizer)
    found, judged = [], {}
    for name in run.saes:
        code = _code(run, name, x)
        about = {key: run.about[name][key] for key in ("arch", "recipe", "site", "d_sae", "seed")}
        judged[name] = kinds(code, facts, threshold=config.threshold, min_firings=config.min_firings)
        found.append(
            {
                "name": name,
                **about,
                "l0": code.l0.double().mean().item(),
                "judged": len(judged[name].latents),
                "kinds": kind_shares(judged[name], **_draws(run)),
            }
        )
    l0 = {record["name"]: record["l0"] for record in found}
    return [*found, *_differences_of_shares(run, judged, pairs(run, l0, config.most_apart))]


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


def pairs(run: FinishedRun, l0: dict[str, float], most_apart: float) -> Iterator[_Pair]:
    """Every SAE with the nearest in L0 of each other arm at its seed, and of each other seed of its own arm, at a site.

    So differences between arms come in pairs, one for each seed.
    """
    return _pairs(run, l0, most_apart, equal_seeds=True)


def independent_pairs(run: FinishedRun, l0: dict[str, float], most_apart: float) -> Iterator[_Pair]:
    """As `pairs`, but arms are paired at other seeds, like the seeds of one arm that are their yardstick.

    At one seed SAEs of one width begin with the same weights, and would agree more for it. Where there is only one seed
    there is no yardstick either, and arms are paired at that.
    """
    several = len({about["seed"] for about in run.about.values()}) > 1
    return _pairs(run, l0, most_apart, equal_seeds=not several)


def _pairs(run: FinishedRun, l0: dict[str, float], most_apart: float, *, equal_seeds: bool) -> Iterator[_Pair]:
    def apart(a: str, b: str) -> float:
        return abs(math.log(max(l0[a], 1e-9) / max(l0[b], 1e-9)))

    groups: dict[tuple[Any, ...], list[str]] = {}
    for name in run.saes:
        if l0[name] == 0:
            logger.warning("%s fires on no held-out token and is left out", name)
            continue
        groups.setdefault((run.about[name]["site"], _arm(run, name), run.about[name]["seed"]), []).append(name)
    for one, other in combinations(groups, 2):
        same_site, same_arm, same_seed = (one[index] == other[index] for index in range(3))
        if not same_site or not (same_arm or same_seed == equal_seeds):
            continue
        for a in groups[one]:
            b = min(groups[other], key=lambda name: apart(a, name))
            if apart(a, b) <= math.log(most_apart):
                yield _Pair(a, b, "seeds" if same_arm else "arms")


def _hungarian_null(d_in: int, latents_a: int, latents_b: int) -> float | None:
    """The mean cosine of the Hungarian matching of two random dictionaries, of directions uniform on the sphere."""
    if max(latents_a, latents_b) > MAX_HUNGARIAN:
        return None
    generator = torch.Generator().manual_seed(0)
    W_a, W_b = (torch.randn(latents, d_in, generator=generator) for latents in (latents_a, latents_b))
    return hungarian(W_a, W_b).cosine.double().mean().item()


def _differences_of_agreement(run: FinishedRun, found: Sequence[Record]) -> list[Record]:
    """For each site and pair of arms what `agreement_differences` says of them, by the seeds of either arm in turn."""
    arms: dict[_Sides, list[Record]] = defaultdict(list)
    for record in found:
        if record["kind"] == "arms":
            arms[_sides(run, record["a"], record["b"])].append(record)
    differences = []
    for sides, of_arms in arms.items():
        for yardstick in (sides.arm, sides.baseline):
            of_seeds = [one for one in found if one["kind"] == "seeds" and _arm(run, one["a"]) == yardstick]
            named = sides.names() | names_of("yardstick", yardstick)
            differences += [named | row for row in agreement_differences(of_arms, of_seeds, **_draws(run))]
    return differences


def _differences_of_shares(run: FinishedRun, judged: Mapping[str, Kinds], paired: Iterable[_Pair]) -> list[Record]:
    """For each site, Gated arm and baseline, what `share_differences` says of their pairs."""
    by_sides: dict[_Sides, list[SeedPair]] = defaultdict(list)
    for a, b, _ in paired:
        sides = _sides(run, a, b)
        if sides.arm.arch == "gated" and sides.baseline.arch != "gated":
            arm, baseline = (a, b) if _arm(run, a) == sides.arm else (b, a)
            by_sides[sides].append(SeedPair(arm, baseline, run.about[a]["seed"]))
    return [
        sides.names() | row
        for sides, pairs_of_arms in by_sides.items()
        for row in share_differences(judged, pairs_of_arms, **_draws(run))
    ]


class _Sides(NamedTuple):
    """Two arms at one site."""

    site: str
    arm: Arm
    baseline: Arm

    def names(self) -> dict[str, Any]:
        return {"site": self.site, **names_of("arm", self.arm), **names_of("baseline", self.baseline)}


def _sides(run: FinishedRun, a: str, b: str) -> _Sides:
    """The arms of two SAEs, a Gated one first."""
    arms = sorted([_arm(run, a), _arm(run, b)], key=lambda arm: (arm.arch != "gated", arm))
    return _Sides(run.about[a]["site"], *arms)


def _arm(run: FinishedRun, name: str) -> Arm:
    return Arm(*(run.about[name][key] for key in ("arch", "recipe", "d_sae")), lr=given_lr(run.about[name]))


def _draws(run: FinishedRun) -> dict[str, int]:
    """The settings of every bootstrap."""
    return {"resamples": run.config.eval.bootstrap, "seed": run.config.eval.eval_seed}


def _check_factor(most_apart: float) -> None:
    if not most_apart >= 1:
        raise ValueError(f"most_apart={most_apart} is out of range: it is a factor, at least 1.")
