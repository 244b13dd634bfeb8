"""Reports of runs: results, tables, plots, and one HTML page of many runs."""

from tfsam.reports.plots import examples_plot
from tfsam.reports.plots import magnified
from tfsam.reports.plots import robustness_plot
from tfsam.reports.results import attack_name
from tfsam.reports.results import check_texts
from tfsam.reports.results import checked
from tfsam.reports.results import read
from tfsam.reports.results import table

__all__ = [
    "attack_name",
    "check_texts",
    "checked",
    "examples_plot",
    "magnified",
    "read",
    "robustness_plot",
    "table",
]
