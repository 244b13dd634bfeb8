"""The methods of training: a table of their parts and settings.

A row names the attack on the inputs, the perturbation of the weights, the
objective, the optimizer and the average of the weights. The flags
`--perturb_inputs`, `--perturb_weights` and `--average` replace a part of any
row. Each part that another package registers is a row of its own.
"""

import dataclasses
from collections.abc import Iterable
from collections.abc import Mapping
from typing import Any

from tfsam.runs.parts import PARTS
from tfsam.support.suggestions import ambiguous
from tfsam.support.suggestions import did_you_mean


@dataclasses.dataclass(frozen=True)
class Method:
    """A method of training.

    Attributes:
        help: a line about the method.
        source: the paper.
        cost: the formula of a training step's forward and backward passes,
            relative to standard training; empty to compute it from the parts.
        perturb_inputs: name of an attack in `registries.ATTACKS`, or None.
        perturb_weights: name in `registries.WEIGHTS`, with options that make
            it this method, or None.
        objective: name in `registries.OBJECTIVES`, or None.
        optimizer: name in `registries.OPTIMIZERS`.
        average: name in `registries.AVERAGES`, or None.
        settings: the paper's hyperparameters where they differ from the parts'
            defaults, by flag.
        package: the package that registers the part; empty for tfsam's own.
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
    package: str = ""


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
        "SAM scaled by the size of each weight",
        "Kwon et al., 2021",
        "2",
        perturb_weights="asam",
    ),
    "esam": Method(
        "SAM on part of the weights and part of the examples",
        "Du et al., 2022",
        "(4 + 3 sample_fraction) / 3",
        perturb_weights="esam",
    ),
    "looksam": Method(
        "SAM every few steps, reusing its direction in between",
        "Liu et al., 2022",
        "1 + 1 / every",
        perturb_weights="looksam",
    ),
    "ssam": Method(
        "SAM on a sparse mask of the weights",
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
        "SAM that also minimizes the surrogate gap",
        "Zhuang et al., 2022",
        "2",
        perturb_weights="gsam",
    ),
    "friendly_sam": Method(
        "SAM along the gradient without its moving average",
        "Li et al., 2024",
        "2",
        perturb_weights="friendly_sam",
    ),
    "vasso": Method(
        "SAM along a moving average of the gradient",
        "Li and Giannakis, 2023",
        "2",
        perturb_weights="vasso",
    ),
    "msam": Method(
        "SAM along the momentum, in a single pass; metrics and BatchNorm "
        "statistics of training are at the perturbed weights",
        "Becker et al., 2025",
        "1",
        perturb_weights="msam",
    ),
    "wsam": Method(
        "SAM with the sharpness as a term of its own weight, outside of the "
        "momentum",
        "Yue et al., 2023",
        "2",
        perturb_weights="wsam",
    ),
    "sam_on": Method(
        "SAM on the scales and offsets of normalization layers alone",
        "Mueller et al., 2023",
        "2",
        perturb_weights="sam:layers=normalization",
        # The default of the authors' script.
        settings={"rho": 0.5},
    ),
    "at": Method(
        "adversarial training with PGD",
        "Madry et al., 2018",
        "(2 steps + 3) / 3",
        perturb_inputs="pgd",
        settings=_AT,
    ),
    "fgsm_at": Method(
        "adversarial training with one step from a random start",
        "Wong et al., 2020",
        "5/3",
        perturb_inputs="fgsm_rs",
        settings={"epsilon": 8 / 255},
    ),
    "free_at": Method(
        "free adversarial training: each batch is used `replays` times in a "
        "row, and the preset's epochs are divided by it",
        "Shafahi et al., 2019",
        "replays",
        perturb_inputs="free",
        settings={"epsilon": 8 / 255},
    ),
    "nfgsm_at": Method(
        "adversarial training with one step from noise beyond the ball",
        "de Jorge et al., 2022",
        "5/3",
        perturb_inputs="nfgsm",
        settings={"epsilon": 8 / 255},
    ),
    "trades": Method(
        "clean loss plus the divergence under attack",
        "Zhang et al., 2019",
        "(2 steps + 7) / 3",
        perturb_inputs="pgd_kl",
        objective="trades",
        settings=_TRADES,
    ),
    "mart": Method(
        "adversarial training that weights misclassified examples more",
        "Wang et al., 2020",
        "(2 steps + 6) / 3",
        perturb_inputs="pgd",
        objective="mart",
        settings=_TRADES | {"beta": 5.0},
    ),
    "ikl": Method(
        "clean loss plus a divergence that moves both predictions",
        "Cui et al., 2024",
        "(2 steps + 7) / 3",
        perturb_inputs="pgd_kl",
        objective="ikl",
        settings={"epsilon": 8 / 255, "steps": 10, "step_size": 2 / 255},
    ),
    "score": Method(
        "squared errors of the clean predictions and of those under attack",
        "Pang et al., 2022",
        "(2 steps + 7) / 3",
        perturb_inputs="pgd_squared",
        objective="score",
        settings={"epsilon": 8 / 255, "steps": 10, "step_size": 2 / 255},
    ),
    "awp": Method(
        "adversarial training that also perturbs the kernels",
        "Wu et al., 2020",
        "(2 steps + 6) / 3",
        perturb_inputs="pgd",
        perturb_weights="awp",
        settings=_AT | {"steps": 10},
    ),
    "at_sam": Method(
        "adversarial training with PGD, then SAM",
        "Wei et al., 2023",
        "(2 steps + 6) / 3",
        perturb_inputs="pgd",
        perturb_weights="sam",
        settings=_AT,
    ),
    "ema": Method(
        "exponential moving average of the weights, step by step",
        "Polyak and Juditsky, 1992",
        average="ema",
    ),
    "swa": Method(
        "mean of the weights of the last epochs",
        "Izmailov et al., 2018",
        average="swa",
    ),
    "entropy_sgd": Method(
        "descent along the mean of a random walk around the weights",
        "Chaudhari et al., 2017",
        optimizer="entropy_sgd",
    ),
}

# The order in which parts of other packages become rows of the table.
_ROWS_OF_OTHERS = (
    *("perturb_weights", "objective", "optimizer", "average"),
    "perturb_inputs",
)


def methods() -> dict[str, Method]:
    """Returns the table, by name, other packages' rows included.

    No part is imported: `method` adds the facts that other packages' parts
    state.
    """
    others: dict[str, Method] = {}
    for part in _ROWS_OF_OTHERS:
        for name, package in PARTS[part].packages().items():
            if package == "tfsam" or name in _NATIVE or name in others:
                continue
            row: dict[str, Any] = {part: name}
            if part == "perturb_inputs":
                row["settings"] = {"epsilon": 8 / 255}
            others[name] = Method(
                f"{PARTS[part].kind} of the package {package}",
                cost="",
                package=package,
                **row,
            )
    return _NATIVE | others


def method(name: str) -> Method:
    """Returns a row of the table.

    Args:
        name: a name from `methods()`, in any case.

    Raises:
        ValueError: if there is no such method.
        ImportError: if its part is another package's and cannot be imported.
    """
    table = methods()
    found = closest("method", name, table)
    row = table[found]
    if not row.package:
        return row
    (part,) = (p for p in PARTS if getattr(row, p) == found)
    registry = PARTS[part]
    factory = registry.load(found)
    facts: dict[str, Any] = {"help": registry.summary(found)}
    facts["source"] = registry.fact(factory, "source")
    if part == "objective" and registry.fact(factory, "needs_attack"):
        facts["perturb_inputs"] = registry.fact(factory, "attack")
        facts["settings"] = _AT
    return dataclasses.replace(row, **facts)


def with_options(name: str, options: Iterable[str]) -> dict[str, str]:
    """Returns the parts of a method with options of theirs.

    Args:
        name: a name from `methods()`.
        options: texts such as "strength=2".

    Returns:
        A dict from keys of `PARTS` to names with options, of the parts that
        have any of the options.

    Raises:
        ValueError: if no part of the method has an option.
    """
    row = method(name)
    specs: dict[str, str] = {}
    for text in options:
        option = text.partition("=")[0]
        for part in _ROWS_OF_OTHERS:
            spec = getattr(row, part)
            if spec is not None and option in PARTS[part].options(spec):
                specs[part] = f"{specs.get(part, spec)}:{text}"
                break
        else:
            raise ValueError(
                f"no part of the method {name} has the option {option}. "
                f"Received: {text}"
            )
    return specs


def closest(flag: str, given: str, names: Iterable[str]) -> str:
    """Returns the name that is equal to `given` but for case.

    Args:
        flag: the flag that gives the name, for the message.
        given: the name as given.
        names: the names that are known.

    Raises:
        ValueError: if there is none, or several differ in case alone.
    """
    known, name = list(names), given.strip()
    if name in known:
        return name
    same = [n for n in known if n.casefold() == name.casefold()]
    if len(same) > 1:
        raise ValueError(ambiguous(flag, name, same))
    if not same:
        raise ValueError(
            f"{flag} must be one of {', '.join(known)}"
            f"{did_you_mean(given, known)}. Received: {flag}={given}"
        )
    return same[0]
