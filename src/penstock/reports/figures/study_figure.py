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
    """Writes `figure.png` and `figure.svg` into a study's folder and returns the first.

    Args:
        run_dir: The run's directory.
        study: Says how its records are drawn.
        records: Of the study; those of the kind `difference` belong in a table.

    Returns:
        None, and nothing is written, for a study without a figure and where there is nothing to show.

    Raises:
        PlotsNotInstalled: matplotlib is missing; names the extra to install.
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
