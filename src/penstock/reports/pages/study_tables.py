"""Tables of a study: its main columns, its differences between arms, its ratios to the arms of the run."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from penstock.charts.arm_looks import arch_and_width
from penstock.reports.wording import sentences as wording
from penstock.studies.shared.declaration import Study


class TextTable(NamedTuple):
    """A table as it is printed and shown."""

    columns: Sequence[str]
    rows: list[list[str]]


def study_table(study: Study, records: Sequence[Mapping[str, Any]]) -> TextTable:
    """The main columns of a study, each value as text; differences have a table of their own."""
    names, rows = study.table([record for record in records if record.get("kind") != "difference"])
    return TextTable(names, [[_cell(value) for value in row] for row in rows])


def difference_table(records: Sequence[Mapping[str, Any]]) -> TextTable:
    """Return the differences among a study's rows with their intervals; no rows if it has none."""
    differences = [record for record in records if record.get("kind") == "difference"]
    roles = {"arm": "arm", "baseline": "compared with"}
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
    return TextTable(("site", "what", *roles.values(), "difference", "95% interval", "reading"), rows)


def comparison_table(comparisons: Sequence[Mapping[str, Any]]) -> TextTable:
    """Return ratios of L0 at equal loss recovered between a study's SAEs and the arms of its run."""
    columns = ("site", "SAE", "compared with", "L0 ratio at equal loss recovered", "95% interval", "reading")
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
    return TextTable(columns, rows)


def _cell(value: Any) -> str:
    return value if isinstance(value, str) else wording.number(value)


def _interval(low: float | None, high: float | None) -> str:
    return "–" if low is None or high is None else f"{wording.short(low)} to {wording.short(high)}"


def _arm_name(difference: Mapping[str, Any], role: str) -> str:
    """Return architecture and width of one arm of a difference, and its recipe if both arms' recipes differ."""
    recipe = f", {difference[f'{role}_recipe']}" if difference["arm_recipe"] != difference["baseline_recipe"] else ""
    return arch_and_width(difference[role], difference[f"{role}_d_sae"]) + recipe


def _reading(difference: Mapping[str, Any]) -> str:
    if not difference["shown"]:
        return "no difference shown"
    return "more" if difference["difference"] > 0 else "less"
