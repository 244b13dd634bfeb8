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
    "schedule": "piecewise",
    "warmup_epochs": 0,
    "label_smoothing": 0,
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

# Wang et al., 2023, "Better diffusion models further improve adversarial
# training", which mixes 70 % of synthetic images into each batch: --mix.
_ROBUST: dict[str, Any] = {
    "dataset": "cifar10",
    "method": "trades",
    "network": "wide_resnet:activation=silu",
    "average": "ema",
    "average_momentum": 0.995,
    "epochs": 400,
    "batch_size": 512,
    "learning_rate": 0.2,
    "schedule": "one_cycle",
    "nesterov": True,
    "decay_exclude": "one_dimensional",
    "label_smoothing": 0.1,
    "epsilon": 8 / 255,
    "steps": 10,
    "step_size": 2 / 255,
    "beta": 5.0,
    "select": "robust",
    "validation_images": 1024,
    "validation_steps": 40,
    "linf_epsilons": [8 / 255],
    "l2_epsilons": [],
}

# Singh et al., 2023, "Revisiting adversarial training for ImageNet": from a
# network that was trained on clean images, with APGD of two steps from the
# image, which returns the point of the highest loss. The paper trains its
# networks for 50 or 300 epochs, with a warm-up of 20; this preset takes 50.
_FINE_TUNING: dict[str, Any] = {
    "dataset": "cifar10",
    "method": "at",
    "network": "keras:ConvNeXtTiny",
    "weights": "imagenet",
    "perturb_inputs": "apgd_ce:random_start=false:early_stop=false",
    "optimizer": "adamw",
    "average": "ema",
    "average_momentum": 0.9999,
    "epochs": 50,
    "learning_rate": 1e-3,
    "momentum": None,
    "weight_decay": 0.05,
    "decay_exclude": "one_dimensional",
    "schedule": "cosine:final=5e-6",
    "warmup_epochs": 20,
    "label_smoothing": 0.1,
    "augment": ["shift_flip", "mixup_or_cutmix"],
    "epsilon": 4 / 255,
    "steps": 2,
    "linf_epsilons": [4 / 255],
    "l2_epsilons": [],
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
    "cifar10-robust": _PAPER | _ROBUST,
    "cifar10-finetune": _PAPER | _FINE_TUNING,
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
