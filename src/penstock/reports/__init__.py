"""HTML report and figures of a run, made from its records; no metric is computed here."""

from penstock.reports.pareto_figure import PlotsNotInstalled, write_pareto_figure
from penstock.reports.records_csv import write_records_csv
from penstock.reports.report import write_report

__all__ = ["PlotsNotInstalled", "write_pareto_figure", "write_records_csv", "write_report"]
