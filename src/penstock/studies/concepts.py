"""Which kinds of concept the latents of a run's dictionaries hold, by rules over single tokens."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from penstock.inspection.concept_rules import Kinds, kind_shares, kinds
from penstock.inspection.differences import SeedPair, share_differences
from penstock.inspection.token_facts import token_facts
from penstock.runs.finished_run import FinishedRun
from penstock.studies.shared.pairs import SAEPair, Sides, arm_in, bootstrap_settings, check_factor, pairs, sides_of
from penstock.studies.shared.study_records import Record


@dataclass(frozen=True, kw_only=True)
class ConceptsConfig:
    threshold: float = 0.5
    """F1 that the best rule of a kind must reach for a latent to be of that kind."""
    min_firings: int = 20
    """Held-out tokens on which a latent must fire to be looked at."""
    most_apart: float = 1.3
    """Factor between the L0s of two SAEs up to which their shares are compared."""

    def __post_init__(self) -> None:
        check_factor(self.most_apart)
        if not 0 < self.threshold <= 1:
            raise ValueError(f"threshold={self.threshold} is out of range: allowed is above 0, up to 1.")
        if self.min_firings < 2:
            raise ValueError(f"min_firings={self.min_firings} is out of range: it must be at least 2.")


def concepts(run: FinishedRun, config: ConceptsConfig) -> list[Record]:
    """For every SAE of a run which kinds of concept its latents are, by rules over single tokens.

    Records of the kind `difference` say for each kind of concept how much larger its share is in a Gated arm than in a
    baseline, over SAEs of one seed at nearly equal L0.
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


def _differences_of_shares(run: FinishedRun, judged: Mapping[str, Kinds], paired: Iterable[SAEPair]) -> list[Record]:
    """For each site, Gated arm and baseline, what `share_differences` says of their pairs."""
    by_sides: dict[Sides, list[SeedPair]] = defaultdict(list)
    for a, b, _ in paired:
        sides = sides_of(run, a, b)
        if sides.arm.arch == "gated" and sides.baseline.arch != "gated":
            arm, baseline = (a, b) if arm_in(run, a) == sides.arm else (b, a)
            by_sides[sides].append(SeedPair(arm, baseline, run.about[a]["seed"]))
    return [
        sides.names() | row
        for sides, pairs_of_arms in by_sides.items()
        for row in share_differences(judged, pairs_of_arms, **bootstrap_settings(run))
    ]
