"""Comparison of our runs with the paper's tables, row by row; the headline pair; the paper's points for a figure."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from penstock.charts.arm_looks import arch_and_width
from penstock.files import write_whole
from penstock.paper.preset import ArmPreset, SitePreset
from penstock.paper.tables import PublishedRun
from penstock.reports.data.run_data import PUBLISHED_FILE
from penstock.reports.wording import sentences as wording

HEADLINE: Mapping[str, tuple[float, float]] = {"resid_post.20": (8e-4, 5e-5), "mlp_out.20": (1.9e-4, 3e-5)}
"""Lambdas of two runs in the tables, Gated and compute-matched, that recover nearly the same loss, by site of Gemma-7B.
At attn_z.20 there is no such pair. No run of Pythia-2.8B at these sites has such a lambda."""

CAPTION = (
    "The paper's numbers next to ours. Ours are of the SAE of the same arm that was trained with the run's lambda, or "
    "otherwise of the one nearest in log L0."
)
HEADLINE_CAPTION = "The paper's pair of runs that recover nearly the same loss, next to ours."

PUBLISHED_COLUMNS = (
    *("arm", "paper's lambda", "paper's L0", "paper's loss recovered (%)", "paper's gamma", "paper's alive (%)"),
    *("our L0", "our loss recovered (%)", "our gamma", "our alive (%)", "our SAE"),
)
HEADLINE_COLUMNS = (
    *("pair", "paper's L0", "paper's loss recovered (%)", "paper's gamma", "paper's L0 ratio"),
    *("our L0 ratio at equal loss recovered", "95% interval"),
)


class PublishedTable(NamedTuple):
    """Cells as text, row by row."""

    caption: str
    columns: Sequence[str]
    rows: list[list[str]]


def published_table(site: SitePreset, records: Sequence[Mapping[str, Any]]) -> PublishedTable | None:
    """Return each run of the paper's tables at a site, next to one of our SAEs of the same arm.

    Our SAE is the first whose `paper_lambda` is the run's lambda, or otherwise the one nearest in log L0.

    Args:
        site: Site of a preset; its arms hold the paper's runs, and the architecture and width of ours.
        records: Records of our run; those of other sites and of controls are skipped. `paper_lambda` is the paper's
            lambda that an SAE was trained with, None or missing if there is none.

    Returns:
        Rows of PUBLISHED_COLUMNS in the order of the arms, each arm with the smallest L0 first. The paper's numbers are
        as printed (the middle of a range), ours have four digits; an en dash stands for a missing number. None if the
        paper has no table for the site.
    """
    rows = []
    for arm in site.arms.values():
        ours = _saes_of(site, arm, records)
        for run in sorted(arm.published.value, key=lambda run: run.l0):
            paper = (run.l0, run.loss_recovered, run.gamma, run.alive)
            rows.append([_label(arm), _lambda(run), *map(_as_there, paper), *_our_cells(_beside(run, ours))])
    return PublishedTable(CAPTION, PUBLISHED_COLUMNS, rows) if rows else None


def headline_table(site: SitePreset, comparisons: Sequence[Mapping[str, Any]]) -> PublishedTable | None:
    """Return the paper's pair of runs with nearly equal loss recovered, its ratio of L0, and ours (paper, figure 1).

    Args:
        site: Site of a preset.
        comparisons: Comparisons in our run's comparison.json. Our ratio, Gated to the compute-matched baseline, is
            averaged over all quality that both reach; the paper's is of two single runs.

    Returns:
        One row of HEADLINE_COLUMNS; ratios are Gated's L0 over the baseline's. None if the paper has no such pair.
    """
    if site.name not in HEADLINE:
        return None
    arms = site.arms["gated"], site.arms["compute_matched"]
    gated, baseline = (_with_lambda(arm, coef) for arm, coef in zip(arms, HEADLINE[site.name], strict=True))
    if gated is None or baseline is None:
        return None
    ours = _comparison(site, *arms, comparisons)
    ratio, interval = ours.get("ratio"), ours.get("interval")
    row = [
        " / ".join(map(_label, arms)),
        *(
            f"{_as_there(getattr(gated, name))} / {_as_there(getattr(baseline, name))}"
            for name in ("l0", "loss_recovered", "gamma")
        ),
        wording.ratio_text(gated.l0 / baseline.l0),
        "–" if ratio is None else wording.ratio_text(ratio),
        "–" if interval is None else " to ".join(map(wording.ratio_text, interval)),
    ]
    return PublishedTable(HEADLINE_CAPTION, HEADLINE_COLUMNS, [row])


def write_published(run_dir: Path, site: SitePreset) -> None:
    """Write the paper's runs at a site into our run's folder as `published.json`, to draw them next to ours.

    The file is a list of objects with the names and units of our records: `name` (of the arm in the preset), `arch`,
    `d_sae`, `site`, `l0`, `loss_recovered` and `frac_alive` (as shares, not percent) and `reconstruction_bias`. They
    are ordered by arm and L0; a missing number is null. If the paper has no table for the site, no file is written.
    """
    found = [
        {
            "name": name,
            "arch": arm.arch,
            "d_sae": arm.d_sae.value,
            "site": site.name,
            "l0": run.l0,
            "loss_recovered": _share(run.loss_recovered),
            "reconstruction_bias": run.gamma,
            "frac_alive": _share(run.alive),
        }
        for name, arm in site.arms.items()
        for run in sorted(arm.published.value, key=lambda run: run.l0)
    ]
    if found:
        write_whole(run_dir / PUBLISHED_FILE, json.dumps(found, indent=1) + "\n")


def _with_lambda(arm: ArmPreset, coef: float) -> PublishedRun | None:
    return next((run for run in arm.published.value if run.coef == coef), None)


def _saes_of(site: SitePreset, arm: ArmPreset, records: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return our SAEs of an arm at a site."""
    key = (site.name, arm.arch, arm.d_sae.value)
    return [record for record in records if (record.get("site"), record.get("arch"), record.get("d_sae")) == key]


def _beside(run: PublishedRun, ours: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Return the first record with the run's lambda, or else the first nearest in log L0, or else an empty one."""
    for record in ours:
        coef = record.get("paper_lambda")
        if coef is not None and run.coef is not None and math.isclose(coef, run.coef, rel_tol=1e-6):
            return record
    firing = [record for record in ours if (record.get("l0") or 0) > 0]
    return min(firing, key=lambda record: abs(math.log(record["l0"] / run.l0)), default={})


def _comparison(
    site: SitePreset, arm: ArmPreset, baseline: ArmPreset, comparisons: Sequence[Mapping[str, Any]]
) -> Mapping[str, Any]:
    """Return the first comparison of two arms at equal loss recovered; empty if there is none."""
    wanted = {
        **{"site": site.name, "metric": "loss_recovered"},
        **{"arm": arm.arch, "arm_d_sae": arm.d_sae.value},
        **{"baseline": baseline.arch, "baseline_d_sae": baseline.d_sae.value},
    }
    return next((one for one in comparisons if all(one.get(key) == value for key, value in wanted.items())), {})


def _our_cells(record: Mapping[str, Any]) -> list[str]:
    numbers = (
        record.get("l0"),
        _percent(record.get("loss_recovered")),
        record.get("reconstruction_bias"),
        _percent(record.get("frac_alive")),
    )
    return [*map(wording.number, numbers), str(record.get("name", "–"))]


def _label(arm: ArmPreset) -> str:
    return arch_and_width(arm.arch, arm.d_sae.value)


def _lambda(run: PublishedRun) -> str:
    """Format lambda as in the paper's tables, e.g. 1.9e-4, with the learning rate if the paper's runs differ in it."""
    rate = "" if run.lr is None else f" (lr {_power(run.lr)})"
    return "–" if run.coef is None else _power(run.coef) + rate


def _power(value: float) -> str:
    mantissa, exponent = f"{value:.3e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def _as_there(value: float | None) -> str:
    return "–" if value is None else f"{value:g}"


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _share(percent: float | None) -> float | None:
    return None if percent is None else percent / 100
