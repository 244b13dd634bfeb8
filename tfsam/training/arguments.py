"""Checks of the arguments of `RobustModel`, and warnings about them."""

import re
import warnings
from collections.abc import Sequence
from typing import Any

import keras

from tfsam import registries
from tfsam.attacks.threat_model import check_one_epsilon
from tfsam.attacks.threat_model import check_scale
from tfsam.training.stateless import augmentation_layers
from tfsam.weights.normalization import normalization_weights

SHARPNESS = ("per_replica", "global")
MODES = ("inference", "training")
# The attributes that every weight perturbation has; others have defaults.
VERBS = ("perturb", "init", "due", "select", "combine")


def check_parts(
    perturb_inputs: Any, perturb_weights: Any, objective: Any
) -> None:
    """Refuses arguments that are not the parts that training needs.

    Args:
        perturb_inputs: as in `RobustModel`.
        perturb_weights: as in `RobustModel`.
        objective: as in `RobustModel`.

    Raises:
        ValueError: if an argument has not the interface of its part, or if the
            attack cannot run in a graph.
    """
    _check_part(
        *("perturb_inputs", perturb_inputs, callable(perturb_inputs)),
        "an attack, such as tfsam.PGD(8 / 255)",
        "tfsam.attacks.get({!r}, epsilon=8 / 255)",
    )
    check_scale(perturb_inputs)
    check_one_epsilon(perturb_inputs)
    if registries.ATTACKS.fact(perturb_inputs, "in_graph") is False:
        raise ValueError(
            "perturb_inputs must be an attack that can run in a graph; this "
            "one is for evaluation only. "
            f"Received: perturb_inputs={perturb_inputs}"
        )
    _check_part(
        *("perturb_weights", perturb_weights),
        all(hasattr(perturb_weights, verb) for verb in VERBS),
        "a weight perturbation, such as tfsam.SAM(0.2), and must inherit from "
        "tfsam.WeightPerturbation",
        "tfsam.weights.get({!r})",
    )
    _check_part(
        *("objective", objective, callable(objective)),
        "a function (model, Batch) -> (loss, predictions), such as "
        "tfsam.TRADES(6)",
        "tfsam.registries.OBJECTIVES.make({!r})",
    )


def _check_part(
    argument: str, part: Any, fits: bool, expected: str, by_name: str
) -> None:
    """Refuses an argument that is no part, such as a part's name or class.

    Args:
        argument: the argument's name.
        part: its value; None passes.
        fits: whether it has the interface of the part.
        expected: a description of the part, for the message.
        by_name: the call that makes a part of a name, with "{!r}" in its place.
    """
    if part is None or (fits and not isinstance(part, type)):
        return
    hint = ""
    if isinstance(part, str):
        hint = f"; {by_name.format(part)} makes a part by its name"
    elif isinstance(part, type):
        hint = f"; pass an object: {part.__name__}()"
    raise ValueError(
        f"{argument} must be {expected}{hint}. Received: {argument}={part}"
    )


def patterns(exclude: str | Sequence[str]) -> list[str]:
    """Returns regular expressions as a list.

    Args:
        exclude: a regular expression, or a sequence of them.

    Raises:
        ValueError: if a pattern cannot be compiled.
    """
    found = [exclude] if isinstance(exclude, str) else exclude
    try:
        for pattern in found:
            re.compile(pattern)
    except (TypeError, re.error):
        raise ValueError(
            "exclude must hold regular expressions. "
            f"Received: exclude={exclude}"
        ) from None
    return list(found)


def check_combination(model: Any) -> None:
    """Refuses arguments that need a perturbation which is not given.

    Args:
        model: a `RobustModel`, with its arguments as attributes.

    Raises:
        ValueError: if a perturbation is missing, or does not go with the
            others.
    """
    attack = model.perturb_inputs
    attacked = attack is not None
    defaults = {"sub_batches": 1, "sharpness": SHARPNESS[0], "exclude": []}
    for name, default in defaults.items():
        given = getattr(model, name)
        if model.perturb_weights is None and given != default:
            raise ValueError(
                f"{name} needs perturb_weights. Received: {name}={given}"
            )
    after = registries.WEIGHTS.fact(model.perturb_weights, "after")
    if model.sub_batches > 1 and after is not None:
        raise ValueError(
            f"{model.perturb_weights} moves the weights after the optimizer's "
            "step, by gradients of a whole batch: sub_batches must be 1. "
            f"Received: sub_batches={model.sub_batches}"
        )
    needs_attack = registries.OBJECTIVES.fact(model.objective, "needs_attack")
    if needs_attack and not attacked:
        raise ValueError(
            f"{model.objective} needs perturb_inputs. Received: "
            "perturb_inputs=None"
        )
    if model.attack_mode != "inference" and not attacked:
        raise ValueError(
            "attack_mode needs perturb_inputs. "
            f"Received: attack_mode={model.attack_mode}"
        )
    if model.epsilon_warmup_steps and not getattr(
        attack, "tensor_epsilon", False
    ):
        raise ValueError(
            "epsilon_warmup_steps needs an attack that computes with an "
            "epsilon that is a tensor, such as tfsam.PGD. "
            f"Received: perturb_inputs={attack}"
        )


def check_perturbed(model: Any) -> None:
    """Refuses restrictions that leave no weight to perturb.

    Args:
        model: a `RobustModel` whose network is built.

    Raises:
        ValueError: if there is no such weight.
    """
    if model._perturbed_positions():
        return
    excluded = list(model.exclude)
    if _of_normalization(model.perturb_weights):
        raise _without_normalization(
            model.perturb_weights, model.network, excluded
        )
    if excluded:
        raise ValueError(
            "exclude must leave weights to perturb. Received: "
            f"exclude={excluded}"
        )


def check_normalization_weights(
    perturb_weights: Any, network: keras.Model
) -> None:
    """Rejects a network without the weights that a perturbation is limited to.

    Args:
        perturb_weights: as in `RobustModel`.
        network: a built network.

    Raises:
        ValueError: if only weights of normalization layers are perturbed, and
            the network trains none of them.
    """
    restricted = _of_normalization(perturb_weights)
    if restricted and not normalization_weights(network):
        raise _without_normalization(perturb_weights, network, [])


def _of_normalization(perturb_weights: Any) -> bool:
    layers = registries.WEIGHTS.fact(perturb_weights, "layers")
    return bool(layers == "normalization")


def _without_normalization(
    perturb_weights: Any, network: keras.Model, excluded: list[str]
) -> ValueError:
    return ValueError(
        f"{perturb_weights} needs a network with scales or offsets of "
        "normalization layers that are trained. Received: "
        f"network={network.name}, exclude={excluded}"
    )


def warn_of_ignored_methods(network: keras.Model) -> None:
    """Warns of methods of the network's class that training does not call.

    Args:
        network: the network to train.
    """
    ignored = [
        name
        for name in ("train_step", "compute_loss", "compute_metrics")
        if getattr(type(network), name) is not getattr(keras.Model, name)
    ]
    if ignored:
        warnings.warn(
            f"{type(network).__name__} overrides {', '.join(ignored)}, which "
            "RobustModel does not call: its own training step uses the "
            "compiled loss. Give RobustModel an objective of your own instead.",
            stacklevel=3,
        )


def warn_of_augmentation(network: keras.Model) -> None:
    """Warns of random augmentation that an attack in inference mode misses.

    Args:
        network: the network to train.
    """
    layers = augmentation_layers(network)
    if layers:
        names = ", ".join(layer.name for layer in layers)
        warnings.warn(
            f"network augments its inputs at random ({names}), but in "
            "inference mode an attack perturbs them for the network without "
            "augmentation: such an attack is weak. Give "
            "attack_mode='training', in which the attack sees the same random "
            "augmentation as the pass, or augment the data instead.",
            stacklevel=3,
        )
