"""The check of the first batch of `fit`, before anything is traced.

It repeats eagerly the checks that are traced into the step, so that a mistake
is reported at once and in one line. The network runs only if its layers do not
show whether it returns logits, or if the attack belongs to another package, so
that its images must be checked. These passes change nothing.
"""

import random
from typing import Any

import keras
import tensorflow as tf

from tfsam.attacks.seeds import example_seeds
from tfsam.training import matching
from tfsam.training import perturbed_inputs
from tfsam.training import replays
from tfsam.training.trainer import tensor


def check(model: Any, data: Any) -> None:
    """Checks that a batch can be trained on.

    Args:
        model: a compiled `RobustModel`.
        data: x, (x, y) or (x, y, sample_weight), each a tensor or a structure
            of tensors.

    Raises:
        ValueError: if the network, the losses, the attack and the data do not
            match.
        tf.errors.InvalidArgumentError: if values of the batch are out of their
            range.
    """
    data = tf.nest.map_structure(tensor, data)
    # Layers may draw from `random` whenever Keras calls them; without this the
    # check would change their draws in training.
    drawn = random.getstate() if model.built else None
    try:
        _check_values(model, data)
    finally:
        if drawn is not None:
            random.setstate(drawn)


def _check_values(model: Any, data: Any) -> None:
    x, y, _ = keras.utils.unpack_x_y_sample_weight(data)
    model.build_for(data)
    matching.checked_labels(model, x, y)
    attack = model.perturb_inputs
    if attack is not None:
        if replays.of(attack):
            replays.checked(model, x)
        inputs = perturbed_inputs.structure(model, x)
        pixels = perturbed_inputs.checked_pixels(
            model, x if inputs is None else inputs.split(x)[0]
        )
        if tf.is_tensor(y) and matching.needs_attacked(attack):
            _check_attack(model, x, pixels, y)
    if matching.needs_predictions(model):
        object.__setattr__(model, "_draws", None)
        with model._scope(*model._values()):
            y_pred = model(x, training=True)
        matching.check_predictions(model, y_pred)


def _check_attack(model: Any, x: Any, pixels: tf.Tensor, y: tf.Tensor) -> None:
    """Runs the attack on a batch, eagerly, and checks its images."""
    object.__setattr__(model, "_draws", None)
    inputs = perturbed_inputs.structure(model, x)
    others = () if inputs is None else inputs.split(x)[1]
    weights, state = model._values()
    logits = perturbed_inputs.attacked_logits(
        model, weights, state, inputs, others
    )
    logits.nonfinite = None  # Only gradients in training are counted.
    seeds = example_seeds(tf.constant([model.seed, 0]), tf.shape(pixels)[0])
    x_adv = model.attacked(model.perturb_inputs, logits, pixels, y, seeds)
    matching.check_attacked(model.perturb_inputs, pixels, x_adv)
