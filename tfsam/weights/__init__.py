"""Perturb the weights: the sharpness-aware family.

    perturbation = tfsam.weights.get("sam", rho=0.2)
    model = tfsam.RobustModel(network, perturb_weights=perturbation)

A file holds what its name says; `base.py` says what a perturbation must do. To
add one, subclass `WeightPerturbation` in a package of your own, register it
with `keras.saving.register_keras_serializable`, and name it in that package's
metadata, in the entry-point group `tfsam.weights`: it is a `--method` then.
"""

from collections.abc import Callable

from tfsam.support.registry import Registry
from tfsam.support.registry import make
from tfsam.weights.base import Step
from tfsam.weights.base import WeightPerturbation
from tfsam.weights.base import kind
from tfsam.weights.esam import ESAM
from tfsam.weights.gsam import GSAM
from tfsam.weights.looksam import LookSAM
from tfsam.weights.sam import ASAM
from tfsam.weights.sam import AWP
from tfsam.weights.sam import FSAM
from tfsam.weights.sam import SAM
from tfsam.weights.ssam import SSAM

GROUP = "tfsam.weights"

_NATIVE: dict[str, Callable] = {
    "asam": ASAM,
    "awp": AWP,
    "esam": ESAM,
    "fsam": FSAM,
    "gsam": GSAM,
    "looksam": LookSAM,
    "sam": SAM,
    "ssam": SSAM,
}

_REGISTRY = Registry("weight perturbation", GROUP, _NATIVE)
names = _REGISTRY.names
factory = _REGISTRY.factory


def get(name, **options):
    """Makes a weight perturbation.

    Args:
        name: one of `names()`.
        **options: the arguments of its constructor.

    Raises:
        ValueError: if the name or an option is unknown, an option is out of
            its range, or two packages claim the name.
        ImportError: if a plug-in's package cannot be imported.
    """
    return make(factory(name), **options)


__all__ = [
    "ASAM",
    "AWP",
    "ESAM",
    "FSAM",
    "GROUP",
    "GSAM",
    "SAM",
    "SSAM",
    "LookSAM",
    "Step",
    "WeightPerturbation",
    "factory",
    "get",
    "kind",
    "names",
]
