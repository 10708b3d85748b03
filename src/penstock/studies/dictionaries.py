"""Agreement between the dictionaries of two SAEs of a run: of two arms, compared with two seeds of one arm.

Arms are compared at nearly equal L0 on the same held-out tokens. Two seeds of one arm are the reference, because even
SAEs that differ only in their seed do not agree fully.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import torch

from penstock.charts.lines_by_l0 import (
    GREY,
    Series,
    at_site,
    draw_lines,
    grid,
    legend,
    line_of,
    mean_of,
    pair_series,
    sites_of,
)
from penstock.evaluation.sae_record import Records
from penstock.inspection.agreement import agreement
from penstock.inspection.differences import agreement_differences
from penstock.inspection.matching import MAX_HUNGARIAN, hungarian
from penstock.runs.finished_run import FinishedRun
from penstock.studies.shared.declaration import Study, columns
from penstock.studies.shared.pairs import Sides, arm_in, bootstrap_settings, check_factor, independent_pairs, sides_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True)
class DictionariesConfig:
    most_apart: float = 1.3
    """Largest factor between the L0s of two SAEs that are compared."""

    def __post_init__(self) -> None:
        check_factor(self.most_apart)


def dictionaries(run: FinishedRun, config: DictionariesConfig) -> Records:
    """The agreement of pairs of SAEs of a run at nearly equal L0: SAEs of two arms, and two seeds of one arm.

    `hungarian_null_cosine` is the mean cosine of the Hungarian matching of as many random directions as the pair has.
    Records of the kind `difference` belong to a site and a pair of arms. They tell how much more the arms agree than
    two seeds of one of them (`yardstick`) at the same L0.
    """
    x = run.held_out_activations()
    l0 = {name: run.saes[name].encode_sparse(x[run.about[name]["site"]]).l0.double().mean().item() for name in run.saes}
    # Cached by size, because it costs as much as a matching.
    null_of = cache(_hungarian_null)
    found = []
    for pair in independent_pairs(run, l0, config.most_apart):
        site = run.about[pair.a]["site"]
        shared = agreement(run.saes[pair.a], run.saes[pair.b], x[site])
        smaller, larger = sorted(int(shared[key] or 0) for key in ("latents_a", "latents_b"))
        sides = arm_in(run, pair.a).side_keys("a") | arm_in(run, pair.b).side_keys("b")
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


def _hungarian_null(d_in: int, latents_a: int, latents_b: int) -> float | None:
    """The mean cosine of the Hungarian matching of two random dictionaries, or None if they are too large to match.

    The directions are uniform on the sphere.
    """
    if max(latents_a, latents_b) > MAX_HUNGARIAN:
        return None
    generator = torch.Generator().manual_seed(0)
    W_a, W_b = (torch.randn(latents, d_in, generator=generator, device="cpu") for latents in (latents_a, latents_b))
    return hungarian(W_a, W_b).cosine.double().mean().item()


def _differences_of_agreement(run: FinishedRun, found: Records) -> Records:
    """The `agreement_differences` of each site and pair of arms, compared with the seeds of each of the two arms."""
    arms: dict[Sides, list[Mapping[str, Any]]] = defaultdict(list)
    for record in found:
        if record["kind"] == "arms":
            arms[sides_of(run, record["a"], record["b"])].append(record)
    differences = []
    for sides, of_arms in arms.items():
        for yardstick in (sides.arm, sides.baseline):
            of_seeds = [one for one in found if one["kind"] == "seeds" and arm_in(run, one["a"]) == yardstick]
            named = sides.names() | yardstick.role_keys("yardstick")
            differences += [named | row for row in agreement_differences(of_arms, of_seeds, **bootstrap_settings(run))]
    return differences


def draw_dictionaries(records: Records) -> "Figure":
    figure, axes = grid(len(sites_of(records)), 2, width=8.4)
    for (cosine, matched), site in zip(axes, sites_of(records), strict=True):
        mine = at_site(records, site)
        series = pair_series(mine, "kind")
        chance = Series("cosine of random directions", GREY, "", "-", True, mine)
        cosine.set_title(f"Mean max cosine, {site}")
        both = [line_of(one, mean_of("mean_max_cosine_a_to_b", "mean_max_cosine_b_to_a")) for one in series]
        draw_lines(cosine, [*both, line_of(chance, mean_of("null_mean_a_to_b", "null_mean_b_to_a"))])
        matched.set_title(f"Share of latents matched, {site}")
        draw_lines(matched, [line_of(one, mean_of("matched_share_a", "matched_share_b")) for one in series])
        for ax in (cosine, matched):
            ax.set_ylim(0, 1)
    legend(figure, axes.flat)
    return figure


STUDY = Study(
    name="dictionaries",
    title="What two dictionaries share",
    question="Do two arms learn the same latents, compared with two seeds of one arm?",
    source="",
    reading="Two arms are compared at nearly equal L0, with two seeds of one arm as the reference. A difference tells "
    "how much more two arms agree than two seeds of one of them at the same L0. If they agree less, the arms differ by "
    "more than the seed. Latents match if they are mutual nearest neighbours with a cosine above 0.7.",
    settings=DictionariesConfig,
    records=dictionaries,
    table=columns(
        *("kind", "a", "b", "l0_a", "l0_b", "mean_max_cosine_a_to_b", "mean_max_cosine_b_to_a", "null_mean_a_to_b"),
        *("mutual_share_a", "matched_share_a", "hungarian_cosine", "mutual_jaccard", "slope_a_on_b_median"),
    ),
    figure=draw_dictionaries,
)
