"""One HTML file about several runs and their studies, section by section as in the paper; figures are inside it."""

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from penstock.reports import wording
from penstock.reports.arms import find_arms
from penstock.reports.report import rendered
from penstock.reports.run_data import read_run, write_text

SECTIONS: dict[str, tuple[str, str]] = {
    "pursuit": (
        "Inference-time optimisation",
        "The encoder is left out: each decoder is given to non-negative gradient pursuit, with a number of latents for "
        "every token. The gap to the solid line of the same arm is what its encoder costs (paper, appendix A).",
    ),
    "pruning": (
        "Pruning low activations",
        "Activations below a threshold are dropped at inference, by three rules, fitted on training activations. The "
        "paper leaves open (section 7) whether this closes the baseline's gap.",
    ),
    "refit": (
        "Is it enough to fix shrinkage?",
        "The baseline's gate is frozen and its magnitudes are fitted to the reconstruction alone: rescaled and shifted "
        "(section 5.2), or fine-tuned together with the decoder (after Wright & Sharkey 2024).",
    ),
    "cost": (
        "Cost",
        "Median seconds of a training step and of encoding one batch on this machine; ratios are to the baseline of "
        "the same width that is nearest in L0. The last column counts operations as if every product were dense.",
    ),
    "dictionaries": (
        "What two dictionaries share",
        "Arms are compared at nearly equal L0; two seeds of one arm are the yardstick. Latents match if they are "
        "mutual nearest neighbours with a cosine above 0.7.",
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
    ),
    "dictionaries": (
        *("kind", "a", "b", "l0_a", "l0_b", "mean_max_cosine_a_to_b", "mean_max_cosine_b_to_a", "null_mean_a_to_b"),
        *("mutual_share_a", "matched_share_a", "hungarian_cosine", "mutual_jaccard", "slope_a_on_b_median"),
    ),
}
_MEASURED_COLUMNS = ("series", "of", "l0", "loss_recovered", "delta_ce", "fvu", "reconstruction_bias")


class StudyTable(NamedTuple):
    """What is shown of a study's records; all of it is in its table.csv."""

    columns: Sequence[str]
    rows: list[list[str]]


def study_table(study: str, records: Sequence[Mapping[str, Any]]) -> StudyTable:
    """The main columns of a study, each value as text."""
    return _concepts(records) if study == "concepts" else _table(records, _COLUMNS.get(study, _MEASURED_COLUMNS))


def write_reproduction_page(out: Path, names: Sequence[str], title: str) -> Path:
    """Writes `index.html` into the folder of a reproduction and returns its path.

    Args:
        out: Holds a finished run for each of `names`, with its figures.
        names: Folders of the runs.
        title: Of the page.

    Raises:
        FileNotFoundError: a run has no records.
    """
    runs = [read_run(out / name) for name in names]
    sentences = [
        (name, [comparison.sentence for comparison in wording.comparisons(run, find_arms(run.records))])
        for name, run in zip(names, runs, strict=True)
    ]
    sections = [
        {"title": heading, "text": text, "parts": [_part(out / name, study) for name in names]}
        for study, (heading, text) in SECTIONS.items()
    ]
    frontier = [{"name": name, "figure": _data_uri(out / name / "pareto.svg")} for name in names]
    page = rendered("reproduction.html.j2", title=title, sentences=sentences, frontier=frontier, sections=sections)
    path = out / "index.html"
    write_text(path, page)
    return path


def _part(run: Path, study: str) -> dict[str, Any]:
    """One run's share of a section."""
    folder = run / "studies" / study
    # Not splitlines, which also splits at separators that JSON leaves inside texts.
    lines = (folder / "records.jsonl").read_text(encoding="utf-8").split("\n")
    records = [json.loads(line) for line in lines if line]
    return {
        "name": run.name,
        "folder": f"{run.name}/studies/{study}",
        "figure": _data_uri(folder / "figure.svg"),
        "table": study_table(study, records),
    }


def _table(records: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> StudyTable:
    return StudyTable(columns, [[_cell(record.get(column)) for column in columns] for record in records])


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


def _data_uri(svg: Path) -> str | None:
    """The figure inside the page; None where it was not drawn."""
    if not svg.is_file():
        return None
    return "data:image/svg+xml;base64," + base64.b64encode(svg.read_bytes()).decode()
