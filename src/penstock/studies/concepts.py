"""Kinds of concept that a run's latents represent, found with rules over single tokens."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from penstock.charts.lines_by_l0 import arm_series, at_site, draw_lines, grid, legend, line_of, sites_of
from penstock.evaluation.sae_record import Records
from penstock.inspection.concept_rules import Kinds, kind_shares, kinds
from penstock.inspection.differences import SeedPair, share_differences
from penstock.inspection.token_facts import token_facts
from penstock.runs.finished_run import FinishedRun
from penstock.saes import BASELINE
from penstock.studies.shared.declaration import Study, Table
from penstock.studies.shared.pairs import SAEPair, Sides, arm_in, bootstrap_settings, check_factor, pairs, sides_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KIND_COLUMNS = 4
"""The number of columns in the figure, one for each kind of concept."""


@dataclass(frozen=True, kw_only=True)
class ConceptsConfig:
    threshold: float = 0.5
    """Smallest F1 of the best rule of a kind for a latent to count as that kind."""
    min_firings: int = 20
    """Smallest number of held-out tokens on which a latent must fire to be judged."""
    most_apart: float = 1.3
    """Largest factor between the L0s of two SAEs that are compared."""

    def __post_init__(self) -> None:
        check_factor(self.most_apart)
        if not 0 < self.threshold <= 1:
            raise ValueError(f"threshold={self.threshold} is out of range: it must be above 0 and at most 1.")
        if self.min_firings < 2:
            raise ValueError(f"min_firings={self.min_firings} is out of range: it must be at least 2.")


def concepts(run: FinishedRun, config: ConceptsConfig) -> Records:
    """The shares of each SAE's latents that represent each kind of concept, found with rules over single tokens.

    Records of the kind `difference` have the difference of these shares between an arm and a baseline, over SAEs of the
    same seed at nearly equal L0.
    """
    x = run.held_out_activations()
    facts = token_facts(run.held_out(), run.model.tokenizer)
    found, judged = [], {}
    for name in run.saes:
        code = run.saes[name].encode_sparse(x[run.about[name]["site"]])
        about = {key: run.about[name][key] for key in ("arch", "recipe", "site", "d_sae", "seed")}
        judged[name] = kinds(code, facts, threshold=config.threshold, min_firings=config.min_firings)
        found.append(
            {
                "name": name,
                **about,
                "l0": code.l0.double().mean().item(),
                "judged": len(judged[name].latents),
                "kinds": kind_shares(judged[name], **bootstrap_settings(run)),
            }
        )
    l0 = {record["name"]: record["l0"] for record in found}
    return [*found, *_differences_of_shares(run, judged, pairs(run, l0, config.most_apart))]


def _differences_of_shares(run: FinishedRun, judged: Mapping[str, Kinds], paired: Iterable[SAEPair]) -> Records:
    """The `share_differences` of each site, arm and baseline."""
    by_sides: dict[Sides, list[SeedPair]] = defaultdict(list)
    for a, b, _ in paired:
        sides = sides_of(run, a, b)
        if sides.arm.arch != BASELINE and sides.baseline.arch == BASELINE:
            arm, baseline = (a, b) if arm_in(run, a) == sides.arm else (b, a)
            by_sides[sides].append(SeedPair(arm, baseline, run.about[a]["seed"] or 0))
    return [
        sides.names() | row
        for sides, pairs_of_arms in by_sides.items()
        for row in share_differences(judged, pairs_of_arms, **bootstrap_settings(run))
    ]


def draw_concepts(records: Records) -> "Figure":
    kinds = list(dict.fromkeys(kind for record in records for kind in record["kinds"]))
    rows = math.ceil(len(kinds) / KIND_COLUMNS)
    figure, axes = grid(len(sites_of(records)) * rows, KIND_COLUMNS, width=11.5, height=2.6)
    for number, site in enumerate(sites_of(records)):
        series = arm_series(at_site(records, site))
        panels = list(axes[number * rows : (number + 1) * rows].flat)
        for ax, kind in zip(panels, kinds, strict=False):
            share, low, high = (
                lambda record, key=key, kind=kind: (record["kinds"].get(kind) or {}).get(key)
                for key in ("share", "low", "high")
            )
            ax.set_title(f"{kind}, {site}")
            draw_lines(ax, [line_of(one, share, low, high) for one in series])
            ax.set_ylim(bottom=0)
            ax.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g}%")
        for ax in panels[len(kinds) :]:
            ax.set_axis_off()
    legend(figure, axes.flat)
    return figure


def _table(records: Records) -> Table:
    """A table of the share of each SAE's latents in every kind, with its interval."""
    kinds = list(dict.fromkeys(kind for record in records for kind in record["kinds"]))
    rows = [
        [record["name"], record["l0"], *(_share(record["kinds"].get(kind)) for kind in kinds)] for record in records
    ]
    return Table(("name", "l0", *kinds), rows)


def _share(found: Mapping[str, float | None] | None) -> str | None:
    if found is None or found["share"] is None:
        return None
    return f"{found['share']:.0%} ({found['low']:.0%} to {found['high']:.0%})"


STUDY = Study(
    name="concepts",
    title="Kinds of concept",
    question="Which latents represent a token, a class of tokens, a position or a state of the code?",
    source="",
    reading="The share of each SAE's latents whose firing is predicted by one rule over single tokens, by the kind of "
    "the best rule. The rule is chosen on half of the rows and scored on the other half. Packed rows begin in the "
    "middle of documents, where strings and brackets are often misread, so the share of the code state is too low.",
    settings=ConceptsConfig,
    records=concepts,
    table=_table,
    figure=draw_concepts,
)
