"""The methods of training: one row each of one table.

A row names the two perturbations, by constructor. Their arguments are the
flags that the method has.
"""

import functools
import inspect
from collections.abc import Callable
from typing import NamedTuple

from tfsam.attacks import FGSM
from tfsam.attacks import PGD
from tfsam.weights import ASAM
from tfsam.weights import SAM


class Method(NamedTuple):
    """A method of training: the two perturbations, and a line of help."""

    perturb_inputs: Callable | None
    perturb_weights: Callable | None
    help: str


METHODS = {
    "st": Method(None, None, "standard training"),
    "sam": Method(None, SAM, "sharpness-aware minimization"),
    "asam": Method(None, ASAM, "adaptive SAM"),
    "at": Method(PGD, None, "adversarial training by PGD"),
    "fgsm_at": Method(
        functools.partial(FGSM, random_start=True),
        None,
        "adversarial training by FGSM from a random start",
    ),
    "at_sam": Method(PGD, SAM, "PGD on the inputs, then SAM"),
}


# The arguments of perturbations that a command line can set.
SETTINGS = ("rho", "epsilon", "norm", "steps", "step_size")


def defaults(method):
    """The settings that a method has, with their default values.

    Args:
        method: a key of `METHODS`.

    Returns:
        A dict from names in `SETTINGS` to values; None where there is none.
    """
    found: dict = {}
    for constructor in METHODS[method][:2]:
        if constructor is not None:
            parameters = inspect.signature(constructor).parameters
            found |= {
                name: None if p.default is p.empty else p.default
                for name, p in parameters.items()
                if name in SETTINGS
            }
    return found


def perturbations(method, settings):
    """What a method perturbs inputs and weights by: two objects, or None.

    Args:
        method: a key of `METHODS`.
        settings: a dict of values by name; None and the names that the method
            does not have are left out.

    Raises:
        ValueError: if a setting is out of its range.
    """

    def make(constructor):
        if constructor is None:
            return None
        names = inspect.signature(constructor).parameters
        known = {n: settings[n] for n in names if settings.get(n) is not None}
        return constructor(**known)

    return tuple(make(constructor) for constructor in METHODS[method][:2])
