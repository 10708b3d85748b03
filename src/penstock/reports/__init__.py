"""HTML report and figures of a run, made from its records; no metric is computed here."""

from penstock.charts.drawing import PlotsNotInstalled
from penstock.reports.data.records_csv import write_records_csv
from penstock.reports.figures.pareto_figure import write_pareto_figure
from penstock.reports.pages.report import write_report

__all__ = ["PlotsNotInstalled", "write_pareto_figure", "write_records_csv", "write_report"]
