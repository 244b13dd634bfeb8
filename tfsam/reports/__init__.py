"""Reports of runs: results, tables, plots, and one HTML page of many runs."""

from tfsam.reports.leaderboards import robustbench
from tfsam.reports.leaderboards import write_robustbench
from tfsam.reports.markdown import table
from tfsam.reports.plots import corruptions_plot
from tfsam.reports.plots import examples_plot
from tfsam.reports.plots import robustness_plot
from tfsam.reports.results import attack_name
from tfsam.reports.results import read

__all__ = [
    "attack_name",
    "corruptions_plot",
    "examples_plot",
    "read",
    "robustbench",
    "robustness_plot",
    "table",
    "write_robustbench",
]
