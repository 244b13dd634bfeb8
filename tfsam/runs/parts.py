"""The parts of a run: their flags, default settings, making and cost.

The parts are the attack on the inputs, the perturbation of the weights, the
objective, the optimizer and the average of the weights. The flags that set
options of a part, and their default values, are those of its constructor.
"""

import inspect
from collections.abc import Iterator
from collections.abc import Mapping
from typing import Any

from tfsam import registries
from tfsam.support.factories import call
from tfsam.support.registry import Registry

# The kinds of parts that a run is made of, by the setting that names the part.
PARTS: dict[str, Registry] = {
    "perturb_inputs": registries.ATTACKS,
    "perturb_weights": registries.WEIGHTS,
    "objective": registries.OBJECTIVES,
    "optimizer": registries.OPTIMIZERS,
    "average": registries.AVERAGES,
}

# The flags of 0.1.0 that set options of each kind of part. The argument that a
# flag sets has the flag's name, unless the part has another in `flag_names`.
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

# Flags whose default depends on the length of the run or on the optimizer.
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
    for part, name, _ in _parsed(parts):
        registry = PARTS[part]
        parameters = registry.options(name)
        for flag, argument in flags_of(part, name).items():
            default = parameters[argument].default
            if default is inspect.Parameter.empty:
                default = None
            found[flag] = default
        found |= _OF_THE_MODEL.get(part, {})
        if part == "perturb_inputs":
            attack = registry.load(name)
            if registry.fact(attack, "collapses"):
                found["collapse_drop"] = _COLLAPSE_DROP
            # Replays attack in the mode of training.
            if registry.fact(attack, "replays"):
                found.pop("attack_mode")
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
    for part, name, options in _parsed(parts):
        for flag, argument in flags_of(part, name).items():
            if argument not in options:
                continue
            found[flag] = options[argument]
            if given.get(flag, found[flag]) != found[flag]:
                raise ValueError(
                    f"--{part}={parts[part]} and --{flag}={given[flag]} "
                    f"differ: give one of them. Received: {flag}={given[flag]}"
                )
    return found


def _parsed(
    parts: Mapping[str, str | None],
) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yields the key in `PARTS`, the name and the options of each part."""
    for part, registry in PARTS.items():
        spec = parts[part]
        if spec is not None:
            yield part, *registry.parse(spec)


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
            f"{part} must not have the option {positional.pop()}, which the "
            f"run sets by a flag. Received: {part}={spec}"
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
        1, except for free training, whose default `epochs` are divided by this
        number.
    """
    if spec is None:
        return 1
    registry = registries.ATTACKS
    name, options = registry.parse(spec)
    usual = registry.fact(registry.load(name), "replays")
    return int(options.get("replays", usual) if usual else 1)
