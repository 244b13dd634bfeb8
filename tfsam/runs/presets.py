"""Presets: the defaults of all flags, by the name of a recipe."""

from collections.abc import Mapping
from typing import Any

_PAPER: dict[str, Any] = {
    "method": "sam",
    "network": "preact_resnet18",
    "epochs": 100,
    "batch_size": 128,
    "learning_rate": 0.1,
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "augment": True,
    "select": "last",
    "seed": 0,
    "attacks": ["cleverhans_pgd"],
    "pixels": "auto",
    "attack_batch_size": 128,
    "save_adversarial": False,
    "warm_start": False,
    "transfer_attacks": [],
    "sweep": "full",
    "diagnose": True,
    "linf_epsilons": [1 / 255, 2 / 255],
    "l2_epsilons": [16 / 255, 32 / 255],
    "l1_epsilons": [],
    "devices": "auto",
    "strategy": "auto",
    "jit_compile": "auto",
    "precision": "float32",
    "sharpness": "per_replica",
    "resize": "crop",
    "bad_images": "skip",
    "class_order": "name",
}

# On 8x8 images of 17 gray levels, small values of epsilon change nothing.
_EPSILONS_OF_DIGITS: dict[str, Any] = {
    "epsilon": 0.1,
    "linf_epsilons": [0.05, 0.1],
    "l2_epsilons": [0.25, 0.5],
}

PRESETS: dict[str, Mapping[str, Any]] = {
    "digits": _PAPER
    | {
        "dataset": "digits",
        "network": "preact_resnet8",
        "epochs": 20,
        "augment": False,
    },
    "cifar10": _PAPER | {"dataset": "cifar10"},
    "cifar100": _PAPER | {"dataset": "cifar100"},
}

DEFAULT = "digits"


def defaults(preset: str, dataset: str | None = None) -> dict[str, Any]:
    """Returns the values that a preset gives to flags.

    The values of epsilon that suit the digits are used for the digits alone;
    on any other data set those of the paper are used.

    Args:
        preset: a key of `PRESETS`.
        dataset: the data set of the run; None takes the preset's.
    """
    values = dict(PRESETS[preset])
    if preset == "digits" and dataset in (None, "digits"):
        values |= _EPSILONS_OF_DIGITS
    return values
