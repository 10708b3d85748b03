"""The figure of a study, as its declaration says."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from penstock.charts.drawing import drawn
from penstock.evaluation.arms import is_control
from penstock.reports.data.run_data import read_records
from penstock.reports.figures.frontier_figure import draw_frontier
from penstock.studies.shared.declaration import Study
from penstock.studies.shared.study_records import study_folder


def write_study_figure(run_dir: Path, study: Study, records: Sequence[Mapping[str, Any]]) -> Path | None:
    """Write `figure.png` and `figure.svg` into a study's folder.

    Args:
        run_dir: The run's directory.
        study: The study, which draws its records.
        records: The study's records; those of the kind `difference` are not drawn.

    Returns:
        The path of `figure.png`; None if the study has no figure or nothing to show.

    Raises:
        PlotsNotInstalled: matplotlib is missing.
    """
    path = study_folder(run_dir, study.name) / "figure"
    shown = [record for record in records if record.get("kind") != "difference"]
    draw = study.figure
    if not shown:
        return None
    if draw is not None:
        return drawn(lambda: draw(shown), path)
    if not study.measures_saes:
        return None
    run_records = [record for record in read_records(run_dir) if not is_control(record)]
    return drawn(lambda: draw_frontier(run_records, shown), path)
