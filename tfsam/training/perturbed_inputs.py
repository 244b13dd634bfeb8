"""The first perturbation of a training step: an attack on the inputs at w.

The attack sees the network as a pure function of the pixels, with the weights
and the state that the step began with. It changes no variable, and no gradient
flows through its result.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tfsam.attacks.context import Context
from tfsam.attacks.logits import Logits
from tfsam.attacks.seeds import example_seeds
from tfsam.evaluation import red_flags
from tfsam.support.pixels import assert_inside
from tfsam.support.several_inputs import Inputs
from tfsam.support.several_inputs import inputs_of
from tfsam.training.trainer import replicas


def perturbed(
    model: Any,
    weights: Sequence[tf.Tensor],
    state: Sequence[tf.Tensor],
    x: Any,
    y: Any,
    count: tf.Tensor,
    seed: tf.Tensor,
) -> Any:
    """Attacks the inputs at w.

    Args:
        model: a `RobustModel`.
        weights: values of the trainable variables.
        state: values of the other variables; the attack does not change them.
        x: tensor of pixels (batch, ...) in the attack's bounds, or a structure
            of inputs with one.
        y: tensor of labels.
        count: training steps before this one, a scalar.
        seed: int32 tensor (2,), of the step.

    Returns:
        The perturbed inputs, of the structure and shapes of x, without a
        gradient; x itself if there is no attack.

    Raises:
        ValueError: if there is an attack, and y is not one tensor.
    """
    if model.perturb_inputs is None:
        return x
    if not tf.is_tensor(y):
        raise ValueError(
            "perturb_inputs needs y to be one tensor of labels. "
            f"Received: y of {type(y)}"
        )
    inputs = structure(model, x)
    pixels, others = (x, ()) if inputs is None else inputs.split(x)
    pixels = checked_pixels(model, pixels)
    attack = current_attack(model, count, pixels.dtype)
    batch = tf.shape(pixels)[0]
    # Seeds are keyed by the position in the global batch: replicas draw
    # different noise, and together the noise of a single replica. (If a last
    # batch is shared unevenly, two of its examples have the same seed.)
    replica = tf.distribute.get_replica_context()
    ahead = 0 if replica is None else replica.replica_id_in_sync_group
    seeds = example_seeds(seed, (ahead + 1) * batch)[ahead * batch :]
    logits = attacked_logits(model, weights, state, inputs, others)

    def attacked_all() -> tf.Tensor:
        return model.attacked(attack, logits, pixels, y, seeds)

    if replicas() > 1:  # A replica may have no share of a last batch.
        x_adv = tf.cond(batch > 0, attacked_all, lambda: pixels)
    else:
        x_adv = attacked_all()
    x_adv = tf.stop_gradient(x_adv)
    return x_adv if inputs is None else inputs.join(x_adv, others)


def structure(model: Any, x: Any) -> Inputs | None:
    """Returns the structure of several inputs, or None for a single input.

    Args:
        model: a `RobustModel`.
        x: the inputs, a tensor or a structure of tensors.

    Raises:
        ValueError: if it is not clear which input is attacked.
    """
    if not tf.is_tensor(x):
        known = getattr(model.network, "inputs", None) or ()
        names = [each.name for each in known]
        return inputs_of(x, model.attacked_input, names)
    if model.attacked_input is not None:
        raise ValueError(
            "attacked names one of several inputs, and x is one tensor. "
            f"Received: attacked={model.attacked_input}"
        )
    return None


def checked_pixels(model: Any, pixels: tf.Tensor) -> tf.Tensor:
    """Returns pixels behind an assertion that they are in the attack's bounds.

    Args:
        model: a `RobustModel`.
        pixels: a tensor (batch, ...).
    """
    bounds = getattr(model.perturb_inputs, "bounds", None)
    return assert_inside(pixels, bounds, model._pixels)


def current_attack(model: Any, count: tf.Tensor, dtype: tf.DType) -> Any:
    """Returns the attack with the epsilon of this step.

    Args:
        model: a `RobustModel`.
        count: training steps before this one, a scalar.
        dtype: the dtype to compute epsilon in, at least float32.
    """
    attack = model.perturb_inputs
    if not model.epsilon_warmup_steps:
        return attack
    dtype = dtype if dtype.size > 4 else tf.float32
    done = tf.cast(count + 1, dtype) / model.epsilon_warmup_steps
    return attack.with_epsilon(attack.epsilon * tf.minimum(done, 1.0))


def attacked_logits(
    model: Any,
    weights: Sequence[tf.Tensor],
    state: Sequence[tf.Tensor],
    inputs: Inputs | None,
    others: tuple[tf.Tensor, ...],
) -> Logits:
    """Returns the network at w as a `Logits` for attacks.

    Args:
        model: a `RobustModel`.
        weights: values of the trainable variables.
        state: values of the other variables.
        inputs: the structure of several inputs, or None.
        others: the inputs that are not attacked.
    """

    def logits_fn(pixels: tf.Tensor, *others: tf.Tensor) -> tf.Tensor:
        whole = pixels if inputs is None else inputs.join(pixels, others)
        # Each call opens a scope of its own: the body of a loop must not leave
        # tensors in a scope that outlives it.
        with model._scope(weights, state):
            logits = model(whole, training=model.attack_mode == "training")
        if not tf.is_tensor(logits):
            raise ValueError(
                "perturb_inputs needs a network with one output. "
                f"Received: outputs={logits}"
            )
        return model.attacked_logits(logits)

    logits = Logits(
        logits_fn,
        jit_compile=model._use_xla(),
        independent=model.attack_mode == "inference",
        loss=model.example_loss(),
    )
    logits.momentary = True
    logits.nonfinite = _nonfinite_counter(model)
    return logits.given(Context(inputs=others)) if others else logits


def _nonfinite_counter(model: Any) -> Any:
    """Returns a variable that counts gradients with NaN or infinity.

    Under a strategy it returns None: each replica would have its own variable.
    """
    if tf.distribute.has_strategy():
        return None
    if model._nonfinite is None:
        with tf.init_scope():
            counter = tf.Variable(0, dtype=tf.int64, trainable=False)
        # Keras would track and save an attribute of the model.
        object.__setattr__(model, "_nonfinite", counter)
    return model._nonfinite


def warn_of_nonfinite_gradients(model: Any) -> None:
    """Warns, once, of an attack whose gradients were NaN or infinite.

    Args:
        model: a `RobustModel`.
    """
    if model._nonfinite is None or model._warned:
        return
    count = int(model._nonfinite.numpy())
    if count:
        model._warned = True
        warnings.warn(
            f"{count} of the input gradients of perturb_inputs were NaN or "
            "infinite and were replaced by zeros, so the attack in training "
            f"is weaker than it seems. {red_flags.NAN_CAUSE}",
            stacklevel=5,
        )
