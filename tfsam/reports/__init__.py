"""Reports of runs: results, tables, plots, and one HTML page of many runs."""

from tfsam.reports.plots import examples_plot
from tfsam.reports.plots import robustness_plot
from tfsam.reports.results import attack_name
from tfsam.reports.results import read
from tfsam.reports.results import table

__all__ = [
    "attack_name",
    "examples_plot",
    "read",
    "robustness_plot",
    "table",
]
