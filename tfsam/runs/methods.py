"""The table of training methods, and the parts that they are made of.

A row names the attack on the inputs, the perturbation of the weights, the
objective, the optimizer and the average of the weights. The flags
`--perturb_inputs`, `--perturb_weights` and `--average` replace a part of any
row. Each part that another package registers is a row of its own.
"""

import dataclasses
import inspect
from collections.abc import Iterable
from collections.abc import Mapping
from typing import Any

from tfsam import registries
from tfsam.support.factories import call
from tfsam.support.registry import Registry
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


# The kinds of parts that a run is made of, by the setting that names the part.
PARTS: dict[str, Registry] = {
    "perturb_inputs": registries.ATTACKS,
    "perturb_weights": registries.WEIGHTS,
    "objective": registries.OBJECTIVES,
    "optimizer": registries.OPTIMIZERS,
    "average": registries.AVERAGES,
}

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

# The flags of 0.1.0 that set options of each kind of part. The argument that a
# flag sets has the flag's name, unless the part's `flag_names` say otherwise.
FLAGS: dict[str, tuple[str, ...]] = {
    "perturb_inputs": ("epsilon", "norm", "steps", "step_size", "attack_loss"),
    "perturb_weights": (
        *("rho", "eta", "adaptive", "ascent_steps", "alpha", "rho_min"),
        *("every", "weight_fraction", "sample_fraction", "sparsity", "mask"),
        *("refresh_every", "gamma"),
    ),
    "objective": ("beta",),
    "optimizer": (
        *("inner_steps", "momentum", "weight_decay"),
        *("nesterov", "decay_exclude", "clip_norm"),
    ),
    "average": ("average_momentum", "average_start"),
}

# Arguments of the model that only apply with a part, and their defaults.
_OF_THE_MODEL: dict[str, dict[str, Any]] = {
    "perturb_inputs": {"attack_mode": "inference", "epsilon_warmup": 0},
    "perturb_weights": {"sub_batches": 1},
}

# Settings of every method, which its line of the table does not show.
_OF_ALL = (
    *("sub_batches", "attack_mode", "epsilon_warmup"),
    *("momentum", "weight_decay", "nesterov", "decay_exclude", "clip_norm"),
)

# Flags whose default depends on the length of the run, or is the optimizer's.
_WITHOUT_DEFAULT = (
    *("refresh_every", "average_start"),
    *("nesterov", "decay_exclude", "clip_norm"),
)

# The default of --collapse_drop, for attacks that can collapse.
_COLLAPSE_DROP = 0.2

SETTINGS = (
    *(flag for flags in FLAGS.values() for flag in flags),
    *(flag for flags in _OF_THE_MODEL.values() for flag in flags),
    "collapse_drop",
)

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


def flags_of(part: str, spec: str) -> dict[str, str]:
    """Returns the flags that set options of a part: flag -> argument.

    Args:
        part: a key of `PARTS`.
        spec: the part's name.
    """
    registry = PARTS[part]
    name, _ = registry.parse(spec)
    renamed = registry.fact(registry.load(name), "flag_names")
    found = {renamed.get(a, a): a for a in registry.options(name)}
    return {flag: found[flag] for flag in FLAGS[part] if flag in found}


def defaults(
    parts: Mapping[str, str | None], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns the settings that a choice of parts has, with default values.

    Args:
        parts: names of the parts by key of `PARTS`, with or without options;
            None where there is none.
        settings: those of the method's row, which override the parts'
            defaults. Options given with a part's name override both.

    Returns:
        A dict from names in `SETTINGS` to values; None where there is no
        default.
    """
    found: dict[str, Any] = {}
    for part, registry in PARTS.items():
        spec = parts[part]
        if spec is None:
            continue
        name, _ = registry.parse(spec)
        parameters = registry.options(name)
        for flag, argument in flags_of(part, name).items():
            default = parameters[argument].default
            if default is inspect.Parameter.empty:
                default = None
            found[flag] = default
        found |= _OF_THE_MODEL.get(part, {})
        if part == "perturb_inputs" and registry.fact(
            registry.load(name), "collapses"
        ):
            found["collapse_drop"] = _COLLAPSE_DROP
    if "attack_loss" in found and found["attack_loss"] is None:
        # The name of the compiled loss in the config.json of 0.1.0.
        found["attack_loss"] = "cross_entropy"
    found |= {k: v for k, v in settings.items() if k in found}
    found |= {flag: None for flag in _WITHOUT_DEFAULT if flag in found}
    return found | named(parts, {})


def named(
    parts: Mapping[str, str | None], given: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns the settings that are given as options of the parts' names.

    Args:
        parts: names of the parts by key of `PARTS`, with or without options;
            None where there is none.
        given: the flags that are given.

    Returns:
        A dict from names in `SETTINGS` to values; an option that no flag of
        0.1.0 sets is left out.

    Raises:
        ValueError: if a flag and an option of a name give different values.
    """
    found: dict[str, Any] = {}
    for part, registry in PARTS.items():
        spec = parts[part]
        if spec is None:
            continue
        name, options = registry.parse(spec)
        for flag, argument in flags_of(part, name).items():
            if argument not in options:
                continue
            found[flag] = options[argument]
            if given.get(flag, found[flag]) != found[flag]:
                raise ValueError(
                    f"--{part}={spec} and --{flag}={given[flag]} differ: give "
                    f"one of them. Received: {flag}={given[flag]}"
                )
    return found


def build(
    part: str, config: Mapping[str, Any], *arguments: Any, **others: Any
) -> Any:
    """Makes a part; returns None if there is none.

    Args:
        part: a key of `PARTS`.
        config: a mapping with the name of each part, with or without options,
            and settings. Settings that are None, and those that the part does
            not have, are ignored.
        *arguments: positional arguments for the constructor.
        **others: more arguments for the constructor, which settings and named
            options override; those that it does not have are ignored.

    Raises:
        ValueError: if a setting is out of its range or missing.
    """
    spec = config[part]
    if spec is None:
        return None
    registry = PARTS[part]
    name, options = registry.parse(spec)
    known = registry.options(name)
    settings = {}
    for flag, argument in flags_of(part, name).items():
        value = config.get(flag)
        if value is not None:
            settings[argument] = value
        required = known[argument].default is inspect.Parameter.empty
        if required and not {argument} & {*settings, *options, *others}:
            raise ValueError(
                f"--{part}={spec} needs --{flag}, which has no default here. "
                f"Received: {flag}=None"
            )
    positional = {*list(known)[: len(arguments)]} & {*options}
    if positional:
        raise ValueError(
            f"the run sets {positional.pop()} by a flag. "
            f"Received: {part}={spec}"
        )
    others = {k: v for k, v in others.items() if k in known}
    values = others | settings | options
    return call(name, registry.factory(name), *arguments, **values)


def passes(config: Mapping[str, Any]) -> float:
    """Returns the cost of a training step, in forward and backward passes.

    A forward pass is a third of a pass, and so is each of the two backward
    passes, to the weights and to the inputs. A gradient of the inputs hence
    costs two thirds.

    Args:
        config: a mapping with the name of each part, and settings.
    """
    cost = 1.0
    moved = build("perturb_weights", config)
    if moved is not None:
        cost += registries.WEIGHTS.fact(moved, "extra_passes")
    objective = build("objective", config)
    if objective is not None:
        cost *= registries.OBJECTIVES.fact(objective, "passes")
    attack = build("perturb_inputs", config)
    if attack is not None:
        cost += registries.ATTACKS.fact(attack, "predictions") / 3
        cost += 2 / 3 * registries.ATTACKS.fact(attack, "gradients")
    return cost * replays(config["perturb_inputs"])


def replays(spec: str | None) -> int:
    """Returns the number of times that a training step uses its batch.

    Args:
        spec: the name of the attack, with or without options, or None.

    Returns:
        1 but for free training, whose `epochs` are that many fewer by default.
    """
    if spec is None:
        return 1
    registry = registries.ATTACKS
    name, options = registry.parse(spec)
    usual = registry.fact(registry.load(name), "replays")
    return int(options.get("replays", usual) if usual else 1)


def table() -> str:
    """Returns the methods as a Markdown table, for the README."""
    lines = [
        "| method | what it is | perturbs inputs | perturbs weights | flags, "
        "with defaults | cost, standard = 1 | source |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in methods():
        try:
            lines.append(_line(name))
        except Exception as error:
            if not _has_part_of_others(name):
                raise
            # A package that is broken hides no method of the others.
            reason = " ".join(str(error).split()) or type(error).__name__
            reason = reason.replace("|", "\\|")
            lines.append(f"| `{name}` | {reason} | - | - |  |  |  |")
    return "\n".join(lines)


def _line(name: str) -> str:
    """Returns a method's line of the table."""
    row = method(name)
    settings = defaults(_parts_of(row), row.settings)
    shown = " ".join(
        f"`--{flag}={_text(flag, value)}`"
        if value is not None
        else f"`--{flag}`"
        for flag, value in settings.items()
        if flag not in _OF_ALL
    )
    inputs, moved = (
        f"`{text}`" if text else "-"
        for text in (row.perturb_inputs, _with_defaults(row.perturb_weights))
    )
    return (
        f"| `{name}` | {row.help} | {inputs} | {moved} | {shown} "
        f"| {row.cost or _cost(row)} | {row.source} |"
    )


def _with_defaults(spec: str | None) -> str | None:
    """Returns a weight perturbation with its numbers that no flag sets."""
    if spec is None:
        return None
    registry = PARTS["perturb_weights"]
    known = {*flags_of("perturb_weights", spec).values()}
    known |= {*registry.parse(spec)[1]}
    for option, parameter in registry.options(spec).items():
        value = parameter.default
        number = isinstance(value, (int, float)) and type(value) is not bool
        if number and option not in known:
            spec += f":{option}={value:g}"
    return spec


def _has_part_of_others(name: str) -> bool:
    """Returns whether another package registers a part of a method."""
    row = methods()[name]
    names = {part: (getattr(row, part) or "").split(":")[0] for part in PARTS}
    return any(
        registry.packages().get(names[part], "tfsam") != "tfsam"
        for part, registry in PARTS.items()
    )


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


def _parts_of(row: Method) -> dict[str, str | None]:
    return {part: getattr(row, part) for part in PARTS}


def _cost(row: Method) -> str:
    chosen = _parts_of(row)
    return f"{passes(chosen | defaults(chosen, row.settings)):.3g}"


def _text(flag: str, value: Any) -> str:
    if flag in ("epsilon", "step_size") and abs(value * 255 % 1) < 1e-9:
        return f"{value * 255:.0f}/255"
    return f"{value:g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    print(table())
