"""One HTML file about several runs and their studies, in the paper's order of sections, with embedded figures."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from penstock.charts.arm_looks import find_arms
from penstock.files import write_whole
from penstock.json_files import read_rows
from penstock.paper.preset import SitePreset
from penstock.reports.data.run_data import read_run
from penstock.reports.pages.published import headline_table, published_table
from penstock.reports.pages.report import rendered
from penstock.reports.pages.study_tables import comparison_table, difference_table, study_table
from penstock.reports.wording import sentences as wording
from penstock.studies import STUDIES
from penstock.studies.shared.declaration import Study
from penstock.studies.shared.ratios_to_run import comparisons_of
from penstock.studies.shared.study_records import study_folder


def write_reproduction_page(
    out: Path, studies: Mapping[str, Sequence[str]], title: str, sites: Mapping[str, SitePreset]
) -> Path:
    """Write `index.html` into the folder of a reproduction, and return its path.

    Args:
        out: Folder with a finished run for each of `studies`, with its figures.
        studies: Studies of each run, by the run's folder.
        title: Title of the page.
        sites: The paper's site for each run's folder.

    Raises:
        FileNotFoundError: a run has no records.
    """
    frontier = [_frontier(out / name, sites[name]) for name in studies]
    sections = [
        {
            "title": study.title,
            "text": study.reading,
            "parts": [_part(out / name, study) for name, made in studies.items() if study.name in made],
        }
        for study in STUDIES.values()
    ]
    sections = [section for section in sections if section["parts"]]
    page = rendered("reproduction.html.j2", title=title, frontier=frontier, sections=sections)
    path = out / "index.html"
    write_whole(path, page)
    return path


def _frontier(folder: Path, site: SitePreset) -> dict[str, Any]:
    """Return one run's frontier, and the paper's numbers if there are any."""
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


def _part(run_dir: Path, study: Study) -> dict[str, Any]:
    """Return one run's part of a section."""
    folder = study_folder(run_dir, study.name)
    records = read_rows(folder / "records.jsonl").rows
    compared = comparison_table(comparisons_of(run_dir, study.name))
    return {
        "name": run_dir.name,
        "folder": f"{run_dir.name}/studies/{study.name}",
        "figure": _data_uri(folder / "figure.svg"),
        "answers": [table for table in (compared, difference_table(records)) if table.rows],
        "table": study_table(study, records),
    }


def _data_uri(svg: Path) -> str | None:
    """Return the figure as a data URI; None if it was not drawn."""
    if not svg.is_file():
        return None
    return "data:image/svg+xml;base64," + base64.b64encode(svg.read_bytes()).decode()
