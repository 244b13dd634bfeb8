"""Checks that a network, its losses, its labels and its perturbations match.

Mistakes such as a softmax before a loss of logits train silently and badly.
Some are found from the layers and losses when the model is built, the others
from the values of a batch: `checked_labels` and `checked_pass` put assertions
into the graph.
"""

import numbers
import re
import warnings
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfsam import geometry
from tfsam import registries
from tfsam.attacks.base import Attack
from tfsam.attacks.check import contract
from tfsam.support import assertions
from tfsam.support.labels import assert_class_numbers
from tfsam.support.labels import assert_distributions
from tfsam.support.labels import assert_one_hot
from tfsam.support.logit_checks import assert_logits
from tfsam.support.logit_checks import assert_probabilities
from tfsam.support.logit_checks import check_class_outputs
from tfsam.support.rescaling import flattened
from tfsam.training.compiled_losses import Output
from tfsam.training.compiled_losses import are_soft


def check_network(network: keras.Model, exclude: list[str]) -> None:
    """Checks that a network's weights and layers can be perturbed.

    Args:
        network: a built `keras.Model`.
        exclude: regular expressions for paths of weights that stay
            unperturbed.

    Raises:
        ValueError: if an expression matches no weight, if a weight is stored
            in 16 bits, or if a layer is recurrent and stateful.
    """
    paths = [v.path for v in network.variables]
    for pattern in exclude:
        if not any(re.search(pattern, path) for path in paths):
            raise ValueError(
                "exclude must hold regular expressions that match paths of "
                f"weights, such as {paths[0]}. Received: exclude={pattern}"
            )
    for variable in network.trainable_variables:
        if variable.dtype in ("float16", "bfloat16"):
            raise ValueError(
                "the network's weights must be float32 or float64, because "
                "16-bit floats are too coarse for an optimizer's steps. To "
                "compute in 16 bits, use a policy such as mixed_bfloat16. "
                f"Received: {variable.path} of {variable.dtype}"
            )
    for layer in flattened(network):
        # Keras does not list this state as a variable, so it cannot be
        # replaced by a tensor.
        if getattr(layer, "stateful", False):
            raise ValueError(
                "network must have no stateful recurrent layers. "
                f"Received: layer={layer.name}"
            )


def part_of_classes(model: Any) -> Any:
    """Returns the perturbation or objective that needs classes, or None.

    Args:
        model: a `RobustModel` with `_outputs`.
    """
    weights = model.perturb_weights
    if registries.OBJECTIVES.fact(model.objective, "needs_classes"):
        return model.objective
    if registries.WEIGHTS.fact(weights, "needs_classes") or (
        model.objective is None and getattr(weights, "select", None)
    ):
        return weights
    attack = model.perturb_inputs
    needed = getattr(attack, "needs_classes", False)
    # Without a compiled loss an attack climbs the cross-entropy.
    if needed or (
        isinstance(attack, Attack) and model._outputs[0].loss is None
    ):
        return attack
    return None


def check_outputs(model: Any, y: Any) -> None:
    """Checks a network's outputs against their losses and the labels.

    Args:
        model: a `RobustModel` with `_outputs`.
        y: a batch of labels, or their specs.

    Raises:
        ValueError: if a loss takes logits for probabilities or the reverse, or
            a perturbation or objective needs classes and there are none.
    """
    part = part_of_classes(model)
    if part is not None:
        check_class_outputs(
            _name(part), [output.spec for output in model._outputs], y
        )
        _check_single(model._outputs[0], part)
        ignored = model._outputs[0].ignored
        if ignored is not None and part is not model.perturb_inputs:
            raise ValueError(
                f"{_name(part)} weighs each example by its class, so the loss "
                "cannot ignore one: remove these examples from the data. "
                f"Received: ignore_class={ignored}"
            )
    for output in model._outputs:
        if output.probabilities:
            _check_probabilities(model, output, part)
        elif output.takes == "probabilities":
            _check_logits(model, output, part)


def _check_single(output: Output, part: Any) -> None:
    """Refuses a single number that is no logit, such as a regression's."""
    if output.shape[-1] == 1 and not output.single_logit:
        raise ValueError(
            f"{_name(part)} works on classes, so a network with a single "
            "output needs a loss of its logit, such as "
            "keras.losses.BinaryCrossentropy(from_logits=True). "
            f"Received: loss={output.loss.name}"
        )


def _check_probabilities(model: Any, output: Output, part: Any) -> None:
    """Refuses probabilities where logits are needed."""
    attacked = model.perturb_inputs is not None
    if part is not None or (attacked and output.takes):
        raise ValueError(
            f"{_user(part)} needs a network that returns logits: take the "
            "softmax or sigmoid off its end, and give the loss "
            "from_logits=True, both. "
            f"Received: network={model.network.name}"
        )
    if output.takes == "logits":
        warn_of_softmax(model.network)


def _check_logits(model: Any, output: Output, part: Any) -> None:
    """Refuses logits, or outputs of unknown kind, where they cannot be used."""
    if output.probabilities is False:
        raise ValueError(
            "The network returns logits and the loss takes probabilities: "
            "give it from_logits=True, or take another loss if it has no such "
            f"option. Received: loss={output.loss.name}"
        )
    if model.perturb_inputs is not None or part is not None:
        raise ValueError(
            f"{_user(part)} needs a network that returns logits, and a loss "
            "that takes logits: take a softmax or sigmoid off the end of the "
            "network, if it has one, and give the loss from_logits=True; take "
            "another loss if it has no such option. "
            f"Received: loss={output.loss.name}"
        )


def warn_of_softmax(network: keras.Model) -> None:
    """Warns of a softmax before a loss that applies another one.

    Args:
        network: the network that ends in a softmax or sigmoid.
    """
    warnings.warn(
        f"{network.name} ends in a softmax or sigmoid, and its loss has "
        "from_logits=True: remove one of the two.",
        stacklevel=2,
    )


def labels_by_output(model: Any, y: Any) -> list[Any] | None:
    """Returns the labels of each output, None if they cannot be matched.

    Args:
        model: a `RobustModel` with `_outputs`.
        y: labels, a tensor or a structure of tensors.
    """
    labels: list[Any] = keras.tree.flatten(y)
    if isinstance(y, dict) and set(y) == set(model.output_names or ()):
        labels = [y[name] for name in model.output_names]
    return labels if len(labels) == len(model._outputs) else None


def checked_labels(model: Any, x: Any, y: Any) -> tuple[Any, Any]:
    """Returns (x, y) behind assertions on the labels.

    The assertions are outside of the functions that XLA compiles, because XLA
    drops assertions, and turns a label of no class into NaN.

    Args:
        model: a `RobustModel` with `_outputs`.
        x: inputs, a tensor or a structure of tensors.
        y: labels, a tensor or a structure of tensors.
    """
    labels = labels_by_output(model, y)
    if labels is None:
        return x, y
    of_classes = part_of_classes(model) is not None
    found = []
    for output, label in zip(model._outputs, labels, strict=True):
        if label is None:
            continue
        classes = output.shape[-1] if output.shape else None
        if output.single_logit:
            classes = 2
        rows = len(label.shape) == 2 and label.shape[-1] != 1
        soft = are_soft(output.loss, label, output)
        if rows and (of_classes or soft):
            found += _assertions_on_rows(model.objective, label)
        elif classes and (of_classes or output.sparse):
            found.append(assert_class_numbers(label, classes, output.ignored))
    behind: tuple[Any, Any] = assertions.behind(found, (x, y))
    return behind


def _assertions_on_rows(objective: Any, y: tf.Tensor) -> list[tf.Tensor]:
    """Returns assertions that labels are distributions, as a part needs them.

    Args:
        objective: the objective, or None.
        y: labels (batch, classes).
    """
    found = [assert_distributions(y)]
    if registries.OBJECTIVES.fact(objective, "needs_true_class"):
        found.append(assert_one_hot(y, _name(objective)))
    return found


def assertions_on(model: Any, y_pred: Any) -> list[tf.Tensor]:
    """Returns assertions that predictions are of the kind their losses take.

    They are made for outputs whose layers do not show whether they are logits
    or probabilities.

    Args:
        model: a `RobustModel` with `_outputs`.
        y_pred: predictions, a tensor or a structure of tensors.
    """
    attacked = model.perturb_inputs is not None
    of_classes = part_of_classes(model) is not None
    found = []
    for output, part in _of_unknown_kind(model, y_pred):
        if of_classes or (attacked and output.takes == "logits"):
            found.append(assert_logits(part))
        elif output.takes == "probabilities":
            found.append(assert_probabilities(part))
    return found


def checked_pass(model: Any, found: Any) -> Any:
    """Puts a pass behind assertions that its predictions are valid.

    Args:
        model: a `RobustModel` with `_outputs`.
        found: a `Pass`.

    Returns:
        The pass, whose gradients and state depend on the assertions.
    """
    asserted = assertions_on(model, found.y_pred)
    if not asserted:
        return found
    gradients, updates, versions = assertions.behind(
        asserted, (found.gradients, found.updates, found.versions)
    )
    return found._replace(
        gradients=gradients, updates=updates, versions=versions
    )


def check_predictions(model: Any, y_pred: Any) -> None:
    """Checks the kind of a batch's predictions eagerly.

    Args:
        model: a `RobustModel` with `_outputs`.
        y_pred: predictions, a tensor or a structure of eager tensors.

    Raises:
        tf.errors.InvalidArgumentError: if they are not of the kind that their
            losses, the attack or the objective need.
    """
    if assertions_on(model, y_pred):
        return
    for output, part in _of_unknown_kind(model, y_pred):
        if output.takes == "logits" and _are_distributions(part):
            warn_of_softmax(model.network)


def needs_predictions(model: Any) -> bool:
    """Returns whether only values can show the kind of an output.

    Args:
        model: a `RobustModel` with `_outputs`.
    """
    of_classes = part_of_classes(model) is not None
    return any(
        output.probabilities is None and (of_classes or output.takes)
        for output in model._outputs
    )


def needs_attacked(attack: Any) -> bool:
    """Returns whether an attack's images can break a promise of the attack.

    tfsam's own attacks are tested to be valid, and a function without a budget
    and bounds promises nothing.

    Args:
        attack: an attack.
    """
    module = getattr(attack, "__module__", None) or ""
    return module.partition(".")[0] != "tfsam" and (
        getattr(attack, "bounds", None) is not None
        or getattr(attack, "epsilon", None) is not None
    )


def check_attacked(attack: Any, x: tf.Tensor, x_adv: Any) -> None:
    """Checks the images that an attack made of a batch.

    Args:
        attack: the attack. It is held to its attributes `epsilon`, `norm` and
            `bounds`, as far as it has them.
        x: eager float tensor (batch, ...), the attacked images.
        x_adv: the result of the attack.

    Raises:
        ValueError: if the images are outside of the bounds or of the ball, are
            not finite, or are of another shape than x.
    """
    norm = getattr(attack, "norm", None)
    epsilon = getattr(attack, "epsilon", None)
    if norm not in geometry.NORMS or not isinstance(epsilon, numbers.Real):
        norm, epsilon = "linf", np.inf
    if registries.ATTACKS.fact(attack, "leaves_ball"):
        epsilon = np.inf
    try:
        contract(
            x.numpy(),
            tf.cast(x_adv, x.dtype),
            float(epsilon),
            norm,
            getattr(attack, "bounds", None),
        )
    except ValueError as error:
        raise ValueError(f"perturb_inputs, {_name(attack)}: {error}") from error


def _of_unknown_kind(model: Any, y_pred: Any) -> list[tuple[Output, tf.Tensor]]:
    """Returns pairs of an output and its predictions, see `assertions_on`."""
    parts = keras.tree.flatten(y_pred)
    if len(parts) != len(model._outputs):
        return []
    pairs = zip(model._outputs, parts, strict=True)
    return [pair for pair in pairs if pair[0].probabilities is None]


def _are_distributions(y_pred: tf.Tensor) -> bool:
    """Returns whether each row of some predictions is a distribution."""
    try:
        assert_logits(y_pred)
    except tf.errors.InvalidArgumentError:
        return True
    return False


def _user(part: Any) -> str:
    return "perturb_inputs" if part is None else _name(part)


def _name(part: Any) -> str:
    """Returns the name of a perturbation or an objective, for messages."""
    return str(getattr(part, "__name__", type(part).__name__))
