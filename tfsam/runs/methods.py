"""The methods of training: one row each of one table.

A row names what perturbs the inputs and the weights, and what else there is:
an objective, an optimizer, an average of the weights. `--perturb_inputs`,
`--perturb_weights` and `--average` take other names into any row. A weight
perturbation of another package is a row of its own.
"""

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any

from tfsam import attacks
from tfsam import weights
from tfsam.training.averages import EMA
from tfsam.training.averages import SWA
from tfsam.training.entropy_sgd import EntropySGD
from tfsam.training.objectives import MART
from tfsam.training.objectives import TRADES
from tfsam.training.optimizers import SGD


@dataclasses.dataclass(frozen=True)
class Method:
    """A method of training.

    Attributes:
        help: what it is.
        source: its paper.
        cost: passes forward and backward a step, in those of standard training.
        perturb_inputs: name of an attack, or None.
        perturb_weights: name of a weight perturbation, or None.
        objective: a key of `OBJECTIVES`, or None.
        optimizer: a key of `OPTIMIZERS`.
        average: a key of `AVERAGES`, or None.
        settings: the paper's hyperparameters where the parts' own defaults are
            others, by flag.
    """

    help: str
    source: str = ""
    cost: str = "1"
    perturb_inputs: str | None = None
    perturb_weights: str | None = None
    objective: str | None = None
    optimizer: str = "sgd"
    average: str | None = None
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)


OBJECTIVES = {"mart": MART, "trades": TRADES}
OPTIMIZERS = {"entropy_sgd": EntropySGD, "sgd": SGD}
AVERAGES = {"ema": EMA, "swa": SWA}

_AT = {"epsilon": 8 / 255, "steps": 5}
_TRADES = {"epsilon": 0.031, "steps": 10, "step_size": 0.007}

_NATIVE = {
    "st": Method("standard training"),
    "sam": Method(
        "sharpness-aware minimization",
        "Foret et al., 2021",
        "2",
        perturb_weights="sam",
    ),
    "asam": Method(
        "SAM in units of each weight's size",
        "Kwon et al., 2021",
        "2",
        perturb_weights="asam",
    ),
    "esam": Method(
        "SAM by some of the weights, on some of the examples",
        "Du et al., 2022",
        "(4 + 3 sample_fraction) / 3",
        perturb_weights="esam",
    ),
    "looksam": Method(
        "SAM each few steps, its direction kept between",
        "Liu et al., 2022",
        "1 + 1 / every",
        perturb_weights="looksam",
    ),
    "ssam": Method(
        "SAM on a mask: of the largest Fisher information, or exchanged",
        "Mi et al., 2022",
        "2",
        perturb_weights="ssam",
    ),
    "fsam": Method(
        "Fisher SAM: a ball in the Fisher metric",
        "Kim et al., 2022",
        "2",
        perturb_weights="fsam",
    ),
    "gsam": Method(
        "SAM that also closes the surrogate gap",
        "Zhuang et al., 2022",
        "2",
        perturb_weights="gsam",
    ),
    "at": Method(
        "adversarial training by PGD",
        "Madry et al., 2018",
        "(2 steps + 3) / 3",
        perturb_inputs="pgd",
        settings=_AT,
    ),
    "fgsm_at": Method(
        "adversarial training by one step from a random start",
        "Wong et al., 2020",
        "5/3",
        perturb_inputs="fgsm_rs",
        settings={"epsilon": 8 / 255},
    ),
    "trades": Method(
        "clean loss plus the distance that an attack makes",
        "Zhang et al., 2019",
        "(2 steps + 7) / 3",
        perturb_inputs="pgd_kl",
        objective="trades",
        settings=_TRADES,
    ),
    "mart": Method(
        "adversarial training that minds the misclassified",
        "Wang et al., 2020",
        "(2 steps + 6) / 3",
        perturb_inputs="pgd",
        objective="mart",
        settings=_TRADES | {"beta": 5.0},
    ),
    "awp": Method(
        "adversarial training, kernels perturbed in proportion",
        "Wu et al., 2020",
        "(2 steps + 6) / 3",
        perturb_inputs="pgd",
        perturb_weights="awp",
        settings=_AT | {"steps": 10},
    ),
    "at_sam": Method(
        "PGD on the inputs, then SAM",
        "Wei et al., 2023",
        "(2 steps + 6) / 3",
        perturb_inputs="pgd",
        perturb_weights="sam",
        settings=_AT,
    ),
    "ema": Method(
        "a moving average of the weights, step by step",
        "Polyak and Juditsky, 1992",
        average="ema",
    ),
    "swa": Method(
        "the mean of the weights of the last epochs",
        "Izmailov et al., 2018",
        average="swa",
    ),
    "entropy_sgd": Method(
        "descent by the mean of a walk around the weights",
        "Chaudhari et al., 2017",
        optimizer="entropy_sgd",
    ),
}

# What a part is made of from the command line: flag -> argument.
FLAGS: dict[str, dict[str, str]] = {
    "perturb_inputs": {
        "epsilon": "epsilon",
        "norm": "norm",
        "steps": "steps",
        "step_size": "step_size",
        "attack_loss": "loss",
    },
    "perturb_weights": {
        "rho": "rho",
        "eta": "eta",
        "adaptive": "adaptive",
        "ascent_steps": "steps",
        "alpha": "alpha",
        "rho_min": "rho_min",
        "every": "every",
        "weight_fraction": "weight_fraction",
        "sample_fraction": "sample_fraction",
        "sparsity": "sparsity",
        "mask": "mask",
        "refresh_every": "refresh_every",
        "gamma": "gamma",
    },
    "objective": {"beta": "beta"},
    "optimizer": {"inner_steps": "inner_steps"},
    "average": {
        "average_momentum": "momentum",
        "average_start": "start_epoch",
    },
}

# Arguments of the model that make sense with a part only, and defaults.
_OF_THE_MODEL: dict[str, dict[str, Any]] = {
    "perturb_inputs": {"attack_mode": "inference", "epsilon_warmup": 0},
    "perturb_weights": {"sub_batches": 1},
}

# Where the run knows better than the part: it counts in epochs.
_BY_THE_RUN = ("refresh_every", "average_start")

SETTINGS = (
    *(flag for flags in FLAGS.values() for flag in flags),
    *(flag for flags in _OF_THE_MODEL.values() for flag in flags),
    "collapse_drop",
)


def methods():
    """The table: a dict of `Method` by name, other packages' included."""
    others = {
        name: Method(
            f"{name}, of another package", cost="2", perturb_weights=name
        )
        for name in weights.names()
        if name not in _NATIVE
    }
    return _NATIVE | others


def factory(part, name):
    """The constructor of a part.

    Args:
        part: a key of `FLAGS`.
        name: its name; None gives None.

    Raises:
        ValueError: if there is none of that name.
    """
    if name is None:
        return None
    if part == "perturb_inputs":
        return attacks.factory(name)
    if part == "perturb_weights":
        return weights.factory(name)
    own: dict[str, dict] = {
        "objective": OBJECTIVES,
        "optimizer": OPTIMIZERS,
        "average": AVERAGES,
    }
    return own[part][name]


def defaults(parts, settings):
    """The settings that a choice of parts has, with their default values.

    Args:
        parts: names of the parts by key of `FLAGS`; None where there is none.
        settings: those of the method's row, which go before the parts' own.

    Returns:
        A dict from names in `SETTINGS` to values; None where there is none.
    """
    found: dict = {}
    for part, flags in FLAGS.items():
        constructor = factory(part, parts[part])
        if constructor is None:
            continue
        parameters = inspect.signature(constructor).parameters
        for flag, argument in flags.items():
            if argument in parameters:
                default = parameters[argument].default
                found[flag] = (
                    None if default is inspect.Parameter.empty else default
                )
        found |= _OF_THE_MODEL.get(part, {})
    if "attack_loss" in found and found["attack_loss"] is None:
        # The loss that a run compiles, by the name that runs of 0.1.0 have in
        # their config.json.
        found["attack_loss"] = "cross_entropy"
    if parts["perturb_inputs"] in ("fgsm", "fgsm_rs"):
        found["collapse_drop"] = 0.2
    found |= {k: v for k, v in settings.items() if k in found}
    return found | {flag: None for flag in _BY_THE_RUN if flag in found}


def build(part, config, *arguments, **others):
    """Makes a part, None if there is none.

    Args:
        part: a key of `FLAGS`.
        config: a dict with the name of each part, and settings; those that are
            None, and those that the part does not know, are left out.
        *arguments: more of the constructor's, by position.
        **others: more of the constructor's; those that it does not know are
            left out, too.

    Raises:
        ValueError: if a setting is out of its range, or is needed and missing.
    """
    constructor = factory(part, config[part])
    if constructor is None:
        return None
    known = inspect.signature(constructor).parameters
    values = {
        argument: config[flag]
        for flag, argument in FLAGS[part].items()
        if config.get(flag) is not None
    }
    values = {k: v for k, v in (others | values).items() if k in known}
    for flag, argument in FLAGS[part].items():
        needed = (
            argument in known
            and known[argument].default is inspect.Parameter.empty
        )
        if needed and argument not in values:
            raise ValueError(
                f"--{part}={config[part]} needs --{flag}, which has no "
                f"default here. Received: {flag}=None"
            )
    return constructor(*arguments, **values)


def passes(config):
    """What a training step costs, in passes forward and backward.

    A pass forward is a third of it, and so is each of its two backward ones, to
    the weights and to the inputs: an attack's step takes two thirds. Masks
    that are seldom made anew, and other packages' methods, count as SAM.

    Args:
        config: a dict with the name of each part, and settings.
    """
    gradients = 1.0
    if config["perturb_weights"] == "looksam":
        gradients += 1 / config["every"]
    elif config["perturb_weights"] == "esam":
        gradients += 1 / 3 + config["sample_fraction"]
    elif config["perturb_weights"] is not None:
        gradients += config["ascent_steps"] or 1
    if config["objective"] is not None:  # Of clean and perturbed images.
        gradients *= 2
    if config["perturb_inputs"] == "pgd_kl":  # Its target is clean logits.
        gradients += 1 / 3
    if config["perturb_inputs"] is not None:
        gradients += 2 / 3 * (config["steps"] or 1)
    return gradients


def table():
    """The methods as a Markdown table, for the README."""
    lines = [
        "| method | what it is | perturbs inputs | perturbs weights | flags, "
        "with defaults | cost, standard = 1 | source |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in _NATIVE.items():
        parts = {part: getattr(row, part) for part in FLAGS}
        settings = defaults(parts, row.settings)
        shown = " ".join(
            f"`--{flag}={_text(flag, value)}`"
            if value is not None
            else f"`--{flag}`"
            for flag, value in settings.items()
            if flag not in ("sub_batches", "attack_mode", "epsilon_warmup")
        )
        inputs, moved = (
            f"`{text}`" if text else "-"
            for text in (row.perturb_inputs, row.perturb_weights)
        )
        lines.append(
            f"| `{name}` | {row.help} | {inputs} | {moved} | {shown} "
            f"| {row.cost} | {row.source} |"
        )
    return "\n".join(lines)


def _text(flag, value):
    if flag in ("epsilon", "step_size") and abs(value * 255 % 1) < 1e-9:
        return f"{value * 255:.0f}/255"
    return f"{value:g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    print(table())
