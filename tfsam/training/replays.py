"""Training steps that use each batch several times, as free training does.

An attack whose `replays` is above 0, such as `tfsam.FreeAT`, perturbs no batch
by itself. Each use of a batch is a pass at x plus an offset; its backward pass
gives the gradients of the weights, for an optimizer's step, and that of the
pixels, for the offset of the next use. The offsets, one for each position in a
batch, are a variable of the model, which is saved with it.
"""

from typing import Any

import tensorflow as tf

from tfsam import registries
from tfsam.attacks.pixel_gradients import finite_part
from tfsam.support import assertions
from tfsam.support.pixels import assert_inside
from tfsam.training.batch import Batch
from tfsam.training.perturbed_inputs import current_attack
from tfsam.training.trainer import replicas


def of(attack: Any) -> int:
    """Returns the number of times that an attack uses each batch.

    Args:
        attack: an attack, or None.

    Returns:
        0 for attacks that perturb each batch by themselves.
    """
    return int(registries.ATTACKS.fact(attack, "replays"))


def check(model: Any) -> None:
    """Checks that a model can use its batches several times.

    Args:
        model: a `RobustModel`.

    Raises:
        ValueError: if its arguments, or its strategy, do not allow it.
    """
    attack = model.perturb_inputs
    if not of(attack):
        return
    if replicas() > 1:
        raise ValueError(
            f"{attack} keeps an offset for each position in a batch, which "
            "replicas do not share: train on one device. "
            f"Received: {replicas()} replicas"
        )
    if model.sub_batches > 1:
        raise ValueError(
            f"{attack} takes the gradients of the weights and of the pixels "
            "from one pass over the whole batch, so sub_batches must be 1. "
            f"Received: sub_batches={model.sub_batches}"
        )


def check_optimizer(model: Any) -> None:
    """Checks that the optimizer makes a step each time that a batch is used.

    Args:
        model: a compiled `RobustModel`.

    Raises:
        ValueError: if it accumulates the gradients of several steps.
    """
    steps = getattr(model.optimizer, "gradient_accumulation_steps", None)
    if of(model.perturb_inputs) and steps:
        raise ValueError(
            f"{model.perturb_inputs} needs an optimizer that changes the "
            "weights in each step. "
            f"Received: gradient_accumulation_steps={steps}"
        )


def offsets(model: Any, input_shape: Any) -> Any:
    """Makes the variable of the offsets, or returns None without replays.

    Args:
        model: a `RobustModel`.
        input_shape: of the network, (None, ...).

    Raises:
        ValueError: if there are offsets, and the network's images have no
            fixed shape.
    """
    attack = model.perturb_inputs
    if not of(attack):
        return None
    fixed = isinstance(input_shape, (list, tuple)) and all(
        isinstance(size, int) for size in input_shape[1:]
    )
    if not fixed or not input_shape:
        raise ValueError(
            f"{attack} keeps an offset for each pixel, so the network must "
            "take one tensor of images of a fixed shape. "
            f"Received: input_shape={input_shape}"
        )
    return model.add_weight(
        shape=(attack.batch_size, *input_shape[1:]),
        initializer="zeros",
        trainable=False,
        name="offsets",
    )


def step(model: Any, x: tf.Tensor, y: Any, sample_weight: Any) -> Any:
    """Trains on a batch, as often as the attack has it.

    Args:
        model: a `RobustModel`.
        x: tensor of pixels (batch, ...), in the attack's bounds.
        y: labels, already checked.
        sample_weight: weights of the examples, or None.

    Returns:
        A dict from names of metrics to values, over all uses of the batch.
    """
    x = checked(model, x)
    size = tf.shape(x)[0]
    kept = tf.convert_to_tensor(model.offsets.value)

    def replay(index: tf.Tensor, offset: tf.Tensor) -> tuple[tf.Tensor, ...]:
        def perturbed(*facts: Any) -> tf.Tensor:
            return tf.stop_gradient(
                model.perturb_inputs.clip(x + tf.cast(offset, x.dtype))
            )

        count = tf.convert_to_tensor(model.step_count.value)
        attack = current_attack(model, count, offset.dtype)
        first, _ = model.step_on(Batch(x, x, y, sample_weight), perturbed)
        # The loss scale is in it, and may have overflowed.
        slope, _ = finite_part(first.slope)
        return index + 1, attack.moved(offset, tf.cast(slope, offset.dtype))

    _, offset = tf.while_loop(
        lambda index, _: index < model.perturb_inputs.replays,
        replay,
        (0, kept[:size]),
        shape_invariants=(
            tf.TensorShape([]),
            tf.TensorShape([None, *kept.shape[1:]]),
        ),
        parallel_iterations=1,
    )
    moved = tf.concat([offset, kept[size:]], 0)
    model.offsets.assign(tf.ensure_shape(moved, kept.shape))
    return model.get_metrics_result()


def checked(model: Any, x: Any) -> tf.Tensor:
    """Returns x behind assertions that it suits the attack.

    Args:
        model: a `RobustModel` whose attack has `replays`.
        x: tensor of pixels (batch, ...).

    Raises:
        ValueError: if x is no tensor of floats.
    """
    attack = model.perturb_inputs
    if not tf.is_tensor(x):
        raise ValueError(
            "perturb_inputs needs x to be one tensor of pixels. "
            f"Received: x of {type(x)}"
        )
    x = assert_inside(x, attack.bounds, model._pixels)
    size = tf.shape(x)[0]
    fits = assertions.required(
        size <= attack.batch_size,
        f"batches must have at most {attack.batch_size} examples, the "
        "batch_size of the attack. Received: examples",
        size,
    )
    found: tf.Tensor = assertions.behind([fits], x)
    return found
