"""Evaluation: accuracy under attack, its record, and its warnings."""

from tfsam.evaluation.measure import evaluate
from tfsam.evaluation.merging import merge

__all__ = ["evaluate", "merge"]
