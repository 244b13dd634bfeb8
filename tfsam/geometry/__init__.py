"""Norms and balls, shared by perturbations of inputs and of weights.

Both kinds of perturbation maximise a linearised loss over a ball. For the
inputs there is one ball per example: `steepest` returns the point of the unit
ball that maximises the linearised loss, `project` maps a perturbation to the
nearest point of the ball, and `random_point` draws a starting point. For the
weights there is a single ball around all of them, measured by `global_norm`.

The norms are in `norms.py`, the projections in `projections.py` and the random
points in `random_points.py`. All functions are pure functions of tensors. They
run eagerly, in a graph and in XLA, in float32 and in float64.
"""

from tfsam.geometry.norms import FACTS
from tfsam.geometry.norms import NORMS
from tfsam.geometry.norms import TINY
from tfsam.geometry.norms import Norm
from tfsam.geometry.norms import check_norm
from tfsam.geometry.norms import default_step
from tfsam.geometry.norms import dual_norms
from tfsam.geometry.norms import example_norms
from tfsam.geometry.norms import example_sums
from tfsam.geometry.norms import for_norm
from tfsam.geometry.norms import global_norm
from tfsam.geometry.norms import over_largest
from tfsam.geometry.norms import steepest
from tfsam.geometry.norms import steepest_sparse
from tfsam.geometry.projections import project
from tfsam.geometry.projections import project_within
from tfsam.geometry.projections import shrink
from tfsam.geometry.random_points import random_normal
from tfsam.geometry.random_points import random_point

__all__ = [
    "FACTS",
    "NORMS",
    "TINY",
    "Norm",
    "check_norm",
    "default_step",
    "dual_norms",
    "example_norms",
    "example_sums",
    "for_norm",
    "global_norm",
    "over_largest",
    "project",
    "project_within",
    "random_normal",
    "random_point",
    "shrink",
    "steepest",
    "steepest_sparse",
]
