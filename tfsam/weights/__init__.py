"""Weight perturbations: the sharpness-aware family.

    perturbation = tfsam.weights.get("sam", rho=0.2)
    model = tfsam.RobustModel(network, perturb_weights=perturbation)

`tfsam.weights.base` documents the methods of a perturbation. To add one of your
own, subclass `WeightPerturbation`, register the class with
`keras.saving.register_keras_serializable`, and name it in the metadata of your
package, in the entry-point group `tfsam.weights`. It is then also available as
a `--method` of the command line.
"""

from typing import Any

from tfsam import registries
from tfsam.weights.base import Step
from tfsam.weights.base import WeightPerturbation
from tfsam.weights.base import kind
from tfsam.weights.esam import ESAM
from tfsam.weights.friendly_sam import FriendlySAM
from tfsam.weights.gsam import GSAM
from tfsam.weights.looksam import LookSAM
from tfsam.weights.msam import MSAM
from tfsam.weights.sam import ASAM
from tfsam.weights.sam import AWP
from tfsam.weights.sam import FSAM
from tfsam.weights.sam import SAM
from tfsam.weights.ssam import SSAM
from tfsam.weights.vasso import VaSSO
from tfsam.weights.wsam import WSAM

GROUP = registries.WEIGHTS.group

names = registries.WEIGHTS.names
factory = registries.WEIGHTS.factory


def get(name: str, **options: Any) -> Any:
    """Makes a weight perturbation by name.

    Args:
        name: One of `names()`, in any case. Options may follow it, as in
            "looksam:alpha=0.3:every=5".
        **options: Arguments of the constructor. They override the options in
            `name`.

    Returns:
        The weight perturbation.

    Raises:
        ValueError: If the name or an option is unknown, an option is out of
            its range, or two packages register the name.
        ImportError: If the package of a plug-in cannot be imported.

    Example:
        >>> get("sam", rho=0.2).rho
        0.2
        >>> get("LookSAM:every=3").every
        3
    """
    return registries.WEIGHTS.make(name, **options)


__all__ = [
    "ASAM",
    "AWP",
    "ESAM",
    "FSAM",
    "GROUP",
    "GSAM",
    "MSAM",
    "SAM",
    "SSAM",
    "WSAM",
    "FriendlySAM",
    "LookSAM",
    "Step",
    "VaSSO",
    "WeightPerturbation",
    "factory",
    "get",
    "kind",
    "names",
]
