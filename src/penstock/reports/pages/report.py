"""One HTML file per run that opens offline: headline, Pareto panels, densities, curves, table, definitions.

The page is rendered from the files of the run directory and computes no metric. Python writes the text, and the page's
own script (templates/*.js) draws the numbers that are embedded in it as JSON. The page loads no other resource, which
its content security policy makes the browser enforce.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any

from penstock.charts.arm_looks import COLORS, DARK_COLORS, SHAPES, ArmLook, arm_index, find_arms
from penstock.evaluation.arms import CONTROLS
from penstock.evaluation.sae_record import SAERecord
from penstock.files import write_whole
from penstock.reports.data.records_csv import records_csv
from penstock.reports.data.run_data import RunData, read_run
from penstock.reports.wording import sentences as wording
from penstock.reports.wording.definitions import LABELS, METRICS, NOTATION, OTHERS

SCRIPTS = ("draw.js", "pareto.js", "charts.js", "table.js", "page.js")
"""Parts of the page's script, in the order in which they are joined."""

MAX_CURVE_POINTS = 200
"""Most points per training curve; longer logs are thinned evenly."""

CURVES = ("reconstruction", "l0", "dead_share", "sparsity_coef")
"""Columns of the training log that are drawn."""

MAIN_COLUMNS = (
    *("name", "recipe", "site", "d_sae", "seed", "l0", "loss_recovered", "delta_ce", "kl", "fvu"),
    *("reconstruction_bias", "frac_alive", "frac_dense"),
)
"""Columns of the table that are shown at first."""


def write_report(run_dir: Path) -> Path:
    """Write `report.html` into a run directory, and return its path.

    Args:
        run_dir: A run directory with at least records.jsonl; the report notes any other missing file.

    Raises:
        FileNotFoundError: records.jsonl is missing; names the command that makes it.
        ValueError: a file of the run is not valid JSON, or holds no record.
    """
    path = run_dir / "report.html"
    write_whole(path, _render(read_run(run_dir)))
    return path


def rendered(template: str, **values: Any) -> str:
    """Render a page from a template of this package, with the style of all pages as `css`."""
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["number"] = wording.number
    return environment.from_string(_template(template)).render(css=Markup(_template("report.css")), **values)


def _render(run: RunData) -> str:
    from markupsafe import Markup

    arms = find_arms(run.records)
    sites = _sites(run.records)
    return rendered(
        "report.html.j2",
        run=run,
        arms=arms,
        sites=sites,
        model=wording.model_words(wording.run_card(run)[0][1]),
        comparisons=wording.comparisons(run, arms),
        bias={site: wording.bias_ranges(_at(run.records, site), arms) for site in sites},
        own_numbers=wording.own_numbers(run.records),
        warning_groups=wording.warning_groups(run),
        run_card=wording.run_card(run),
        settings=wording.flatten(run.config) if run.config else [],
        metrics=METRICS,
        others=OTHERS,
        notation=NOTATION,
        colors=COLORS,
        dark_colors=DARK_COLORS,
        script=Markup("\n".join(_template(name) for name in SCRIPTS)),
        data=Markup(embedded_json(_page_data(run, arms, sites))),
    )


def embedded_json(value: dict[str, Any]) -> str:
    """Return JSON that is safe inside a script element: no `<`, and no line separators that end a JavaScript line."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _page_data(run: RunData, arms: Sequence[ArmLook], sites: Sequence[str]) -> dict[str, Any]:
    return {
        "run": run.name,
        "sites": sites,
        "records": run.records,
        "arms": [asdict(arm) | {"shape": SHAPES[arm.slot % len(SHAPES)]} for arm in arms],
        "armOf": [arm_index(record, arms) for record in run.records],
        "controls": CONTROLS,
        "curves": _curves(run),
        "labels": LABELS,
        "help": {definition.key: f"{definition.formula} ({definition.unit})" for definition in METRICS},
        "mainColumns": MAIN_COLUMNS,
        "csv": records_csv(run.records),
    }


def _curves(run: RunData) -> list[dict[str, Any]]:
    """Return the training curves by SAE, thinned evenly, with the first and last row."""
    by_sae: dict[str, list[dict[str, Any]]] = {}
    for row in run.metrics:
        by_sae.setdefault(str(row.get("sae")), []).append(row)
    position = {str(record.get("name")): index for index, record in enumerate(run.records)}
    curves = []
    for name, rows in by_sae.items():
        kept = [rows[index] for index in _even_indices(len(rows), MAX_CURVE_POINTS)]
        columns = {key: [_rounded(row.get(key)) for row in kept] for key in ("tokens", *CURVES)}
        curves.append({"name": name, "record": position.get(name), **columns})
    return curves


def _even_indices(count: int, at_most: int) -> list[int]:
    if count <= at_most:
        return list(range(count))
    return [round(step * (count - 1) / (at_most - 1)) for step in range(at_most)]


def _rounded(value: float | int | None) -> float | int | None:
    """Round to five significant digits, which are finer than any pixel and keep the file small."""
    return float(f"{value:.5g}") if isinstance(value, float) else value


def _sites(records: Sequence[SAERecord]) -> list[str]:
    return list(dict.fromkeys(str(record.get("site")) for record in records))


def _at(records: Sequence[SAERecord], site: str) -> list[SAERecord]:
    return [record for record in records if str(record.get("site")) == site]


def _template(name: str) -> str:
    return (resources.files("penstock.reports.pages") / "templates" / name).read_text(encoding="utf-8")
