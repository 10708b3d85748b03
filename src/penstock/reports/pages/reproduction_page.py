"""One HTML file about several runs and their studies, section by section as in the paper; figures are inside it."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from penstock.charts.arm_looks import arch_and_width, find_arms
from penstock.files import write_whole
from penstock.json_files import read_rows
from penstock.paper.preset import SitePreset
from penstock.reports.data.run_data import read_run
from penstock.reports.pages.published import headline_table, published_table
from penstock.reports.pages.report import rendered
from penstock.reports.wording import sentences as wording
from penstock.studies.shared.ratios_to_run import comparisons_of

SECTIONS: dict[str, tuple[str, str]] = {
    "shrinkage": (
        "Shrinkage",
        "A penalty on magnitudes shrinks them: with one latent and one feature by half of the coefficient (paper, "
        "figure 2). In trained SAEs, latents that two of them share are compared on the same tokens: a ratio below 1 "
        "says that the second SAE's latent is the weaker one. Two seeds of one arm are the yardstick. γ against L0 is "
        "in the figures of the frontier above.",
    ),
    "ablations": (
        "Ablations",
        "The Gated SAEs trained once more with one part of the method changed (paper, figure 8). The inconsistent "
        "mixture (penalty weighted by norms that pass a gradient, decoder frozen in the auxiliary task) is what the "
        "paper's authors warn against. Without the auxiliary task the coefficient is the one that the Gated SAE ended "
        "with; all others are steered to its L0.",
    ),
    "refit": (
        "Is it enough to fix shrinkage?",
        "The gate of the width-matched baseline is frozen and its magnitudes are fitted to the reconstruction alone: "
        "rescaled and shifted (section 5.2), or fine-tuned together with the decoder (after Wright & Sharkey 2024). "
        "Gated SAEs are the control: what the same fit gains them is no mended shrinkage.",
    ),
    "pursuit": (
        "Inference-time optimisation",
        "The encoder is left out: each decoder is given to non-negative gradient pursuit, with a number of latents for "
        "every token. The gap to the solid line of the same arm is what its encoder costs (paper, appendix A).",
    ),
    "pruning": (
        "Pruning low activations",
        "Activations below a threshold are dropped at inference, by three rules, fitted on training activations. The "
        "paper leaves open (section 7) whether this closes the baseline's gap. Gated SAEs are pruned alike.",
    ),
    "cost": (
        "Cost",
        "Median seconds of a training step and of encoding one batch on this machine; ratios are to the baseline of "
        "the same width that is nearest in L0. `step_flops_dense` counts operations as if every product were dense, "
        "`training_bytes` the SAE, its optimiser and a step at its largest.",
    ),
    "sensitivity": (
        "Sensitivity to settings",
        "One SAE of each architecture trained once more with a setting off by a factor. `lost_ratio` is 1 - loss "
        "recovered over that of the centre, at equal L0; `of_best` is the same over the arm's best. Where the "
        "coefficient is off, L0 is what moves; everywhere else it is steered to the centre's.",
    ),
    "dictionaries": (
        "What two dictionaries share",
        "Arms are compared at nearly equal L0; two seeds of one arm are the yardstick. A difference is how much more "
        "two arms agree than two seeds of one of them at the same L0: less says that they differ in more than a seed. "
        "Latents match if they are mutual nearest neighbours with a cosine above 0.7.",
    ),
    "concepts": (
        "Kinds of concept",
        "Share of each dictionary's latents whose firing one rule over single tokens predicts, by the kind of the best "
        "rule; the rule is chosen on half of the rows and scored on the other half. Packed rows begin in the middle of "
        "documents, where strings and brackets are often misread: the code state is then found too rarely.",
    ),
}
"""Title and introduction of each study, in the order of the page."""

_COLUMNS: dict[str, tuple[str, ...]] = {
    "cost": (
        *("name", "l0", "step_seconds", "encode_seconds", "encode_seconds_as_jumprelu", "step_seconds_ratio"),
        *("encode_seconds_ratio", "encode_seconds_as_jumprelu_ratio", "step_flops_dense_ratio"),
        *("parameter_bytes_ratio", "training_bytes_ratio"),
    ),
    "dictionaries": (
        *("kind", "a", "b", "l0_a", "l0_b", "mean_max_cosine_a_to_b", "mean_max_cosine_b_to_a", "null_mean_a_to_b"),
        *("mutual_share_a", "matched_share_a", "hungarian_cosine", "mutual_jaccard", "slope_a_on_b_median"),
    ),
    "shrinkage": (
        *("compared", "a", "b", "l0_a", "l0_b", "gamma_a", "gamma_b", "latents", "median", "low", "high", "q25", "q75"),
        "share_below_1",
    ),
    "sensitivity": (
        *("arch", "site", "off", "l0", "l0_ratio", "loss_recovered", "lost_ratio", "low", "high"),
        "of_best",
    ),
}
_MEASURED_COLUMNS = ("series", "of", "l0", "loss_recovered", "delta_ce", "fvu", "reconstruction_bias")
_NOT_SHOWN = ("toy", "difference")
"""Kinds of rows that have a place of their own: the figure, and the table of differences."""


class StudyTable(NamedTuple):
    """What is shown of a study's records; all of it is in its table.csv."""

    columns: Sequence[str]
    rows: list[list[str]]


def study_table(study: str, records: Sequence[Mapping[str, Any]]) -> StudyTable:
    """The main columns of a study, each value as text."""
    shown = [record for record in records if record.get("kind") not in _NOT_SHOWN]
    special = {"concepts": _concepts, "sensitivity": _sensitivity}
    if study in special:
        return special[study](shown)
    return _table(shown, _COLUMNS.get(study, _MEASURED_COLUMNS))


def difference_table(records: Sequence[Mapping[str, Any]]) -> StudyTable:
    """The differences among a study's rows with their intervals; no rows if it has none."""
    differences = [record for record in records if record.get("kind") == "difference"]
    roles = {"arm": "arm", "baseline": "beside"}
    if any("yardstick" in record for record in differences):
        roles["yardstick"] = "yardstick: seeds of"
    rows = [
        [
            str(record["site"]),
            str(record["name"]),
            *(_arm_name(record, role) for role in roles),
            _cell(record["difference"]),
            _interval(record["low"], record["high"]),
            _reading(record),
        ]
        for record in differences
    ]
    return StudyTable(("site", "what", *roles.values(), "difference", "95% interval", "reading"), rows)


def comparison_table(comparisons: Sequence[Mapping[str, Any]]) -> StudyTable:
    """Ratios of L0 at equal loss recovered between what a study made and the arms of its run."""
    columns = ("site", "SAE", "beside", "L0 ratio at equal loss recovered", "95% interval", "reading")
    rows = [
        [
            str(one["site"]),
            str(one["arm_label"]),
            str(one["baseline_label"]),
            "–" if one["ratio"] is None else wording.ratio_text(one["ratio"]),
            _interval(*(one["interval"] or (None, None))),
            wording.ratio_reading(one),
        ]
        for one in comparisons
    ]
    return StudyTable(columns, rows)


def write_reproduction_page(
    out: Path, studies: Mapping[str, Sequence[str]], title: str, sites: Mapping[str, SitePreset]
) -> Path:
    """Writes `index.html` into the folder of a reproduction and returns its path.

    Args:
        out: Holds a finished run for each of `studies`, with its figures.
        studies: For each run's folder the studies that were made of it.
        title: Of the page.
        sites: For each run's folder what the paper has there.

    Raises:
        FileNotFoundError: a run has no records.
    """
    frontier = [_frontier(out / name, sites[name]) for name in studies]
    sections = [
        {
            "title": heading,
            "text": text,
            "parts": [_part(out / name, study) for name, made in studies.items() if study in made],
        }
        for study, (heading, text) in SECTIONS.items()
    ]
    sections = [section for section in sections if section["parts"]]
    page = rendered("reproduction.html.j2", title=title, frontier=frontier, sections=sections)
    path = out / "index.html"
    write_whole(path, page)
    return path


def _frontier(folder: Path, site: SitePreset) -> dict[str, Any]:
    """One run's frontier, and the paper's numbers where it has some."""
    run = read_run(folder)
    comparisons = (run.comparison or {}).get("comparisons", [])
    return {
        "name": folder.name,
        "sentences": [comparison.sentence for comparison in wording.comparisons(run, find_arms(run.records))],
        "figure": _data_uri(folder / "pareto.svg"),
        "published": [
            table
            for table in (headline_table(site, comparisons), published_table(site, run.records))
            if table is not None
        ],
    }


def _part(run: Path, study: str) -> dict[str, Any]:
    """One run's share of a section."""
    folder = run / "studies" / study
    records = read_rows(folder / "records.jsonl").rows
    return {
        "name": run.name,
        "folder": f"{run.name}/studies/{study}",
        "figure": _data_uri(folder / "figure.svg"),
        "answers": [
            table for table in (comparison_table(comparisons_of(run, study)), difference_table(records)) if table.rows
        ],
        "table": study_table(study, records),
    }


def _table(records: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> StudyTable:
    return StudyTable(columns, [[_cell(record.get(column)) for column in columns] for record in records])


def _sensitivity(records: Sequence[Mapping[str, Any]]) -> StudyTable:
    """What is off in words, such as "lr x2", before the numbers, and whether it diverged."""
    found = []
    for record in records:
        off = ", ".join(f"{name} ×{factor:g}" for name, factor in record["factors"].items() if factor != 1)
        # Studies of before SAEs that diverge were passed over do not have the key.
        found.append({**record, "off": f"{off or 'nothing'}{' (diverged)' if record.get('diverged') else ''}"})
    return _table(found, _COLUMNS["sensitivity"])


def _concepts(records: Sequence[Mapping[str, Any]]) -> StudyTable:
    kinds = list(dict.fromkeys(kind for record in records for kind in record["kinds"]))
    rows = [
        [
            record["name"],
            _cell(record["l0"]),
            *(_share(record["kinds"].get(kind)) for kind in kinds),
        ]
        for record in records
    ]
    return StudyTable(("name", "l0", *kinds), rows)


def _share(found: Mapping[str, float | None] | None) -> str:
    return (
        "–"
        if found is None or found["share"] is None
        else f"{found['share']:.0%} ({found['low']:.0%} to {found['high']:.0%})"
    )


def _cell(value: Any) -> str:
    return value if isinstance(value, str) else wording.number(value)


def _interval(low: float | None, high: float | None) -> str:
    return "–" if low is None or high is None else f"{wording.short(low)} to {wording.short(high)}"


def _arm_name(difference: Mapping[str, Any], role: str) -> str:
    """Architecture and width of one of the arms of a difference, and its recipe where that sets the two apart."""
    recipe = f", {difference[f'{role}_recipe']}" if difference["arm_recipe"] != difference["baseline_recipe"] else ""
    return arch_and_width(difference[role], difference[f"{role}_d_sae"]) + recipe


def _reading(difference: Mapping[str, Any]) -> str:
    if not difference["shown"]:
        return "no difference shown"
    return "more" if difference["difference"] > 0 else "less"


def _data_uri(svg: Path) -> str | None:
    """The figure inside the page; None where it was not drawn."""
    if not svg.is_file():
        return None
    return "data:image/svg+xml;base64," + base64.b64encode(svg.read_bytes()).decode()
