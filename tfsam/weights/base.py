"""What a perturbation of the weights is, and what the family shares.

Every method is an object whose verbs are pure functions of lists of tensors.
`perturb` is the only one that each method must have; the other four are None
where a method does not need them, and the train step in `model.py` then leaves
them out:

    init(weights, seed)                            -> state
    due(state, step)                               -> is a second pass due?
    perturb(weights, gradients, state, step)       -> weights, state
    select(losses, perturbed_losses, state, step)  -> positions in the batch
    combine(gradients, perturbed_gradients, state, step) -> gradients, state

- `weights`, `gradients`: lists of tensors, one an entry of `step.kinds`, in the
  order of the model's perturbed trainable variables. Gradients carry no loss
  scale and no 1/replicas. A weight that the loss does not depend on has zeros.
- `state`: a list of tensors, () where there is none. The model keeps it in
  Keras variables, so it is saved, restored and resumed. On several replicas
  what is kept is their mean.
- `due` gives a Python bool or a scalar boolean tensor; where it is False,
  `combine` gets None for the perturbed gradients (LookSAM's cheap steps).
- `select` chooses the examples of the second pass (ESAM) by their losses before
  and after.
"""

from collections.abc import Callable
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import tensorflow as tf

from tfsam.geometry import TINY
from tfsam.geometry import global_norm
from tfsam.support.configurable import Configurable


class Step(NamedTuple):
    """What a weight perturbation may know of the training step.

    Attributes:
        kinds: for each weight its `kind`.
        seed: int32 tensor (2,), new at each step, the same on all replicas.
        count: training steps before this one, a scalar int64 tensor.
        learning_rate: the optimizer's learning rate, a scalar tensor.
        gradient: function from other weights to the gradients there, of the
            same batch; a forward and a backward pass.
        squared_gradients: function of nothing to (list of tensors, count): the
            squared gradients of each example's cross-entropy in inference mode,
            summed over the batch (the empirical Fisher information), and of how
            many examples of all replicas; a pass an example.
    """

    kinds: Sequence[str]
    seed: tf.Tensor
    count: tf.Tensor
    learning_rate: tf.Tensor
    gradient: Callable[..., Any] | None = None
    squared_gradients: Callable[[], Any] | None = None


def kind(variable):
    """The role of a Keras variable: "kernel", "bias", "scale" or "offset".

    Args:
        variable: a `keras.Variable`. Normalisation layers call their scale
            gamma and their offset beta; of all others, those of two or more
            dimensions are kernels (embeddings included).
    """
    known = {
        "gamma": "scale",
        "scale": "scale",
        "beta": "offset",
        "bias": "bias",
    }
    return known.get(
        variable.name, "kernel" if len(variable.shape) > 1 else "bias"
    )


class WeightPerturbation(Configurable):
    """Base of the family: see the module's docstring for the verbs."""

    init: Any = None
    due: Any = None
    select: Any = None
    combine: Any = None
    # Whether it takes logits of classes, and labels that name them.
    needs_classes: Any = False

    def perturb(self, weights, gradients, state, step):
        """Returns the perturbed weights and the new state."""
        raise TypeError(f"{type(self).__name__} has no perturb().")


def along(weights, directions, scale):
    """The weights, moved.

    Args:
        weights: a list of tensors.
        directions: a list of tensors of their shapes.
        scale: a scalar, how far in units of `directions`.
    """
    return [
        # In the precision of the scale: rho / 1e-12 overflows in float16.
        w + tf.cast(scale * tf.cast(d, scale.dtype), w.dtype)
        for w, d in zip(weights, directions, strict=True)
    ]


def inner(one, other):
    """The inner product of two lists of tensors, taken as vectors."""
    return tf.add_n(
        [tf.reduce_sum(a * b) for a, b in zip(one, other, strict=True)]
    )


def without(vectors, direction):
    """The part of a list of tensors that is orthogonal to another.

    Args:
        vectors: a list of tensors.
        direction: a list of tensors of their shapes; where it is zero,
            `vectors` is all that is left.

    Returns:
        A list of tensors; zeros where the two are parallel to within rounding,
        which would be a direction to those who normalise it.
    """
    # Divided twice: the square of a small norm would vanish in float32.
    size = global_norm(direction) + TINY
    unit = [d / tf.cast(size, d.dtype) for d in direction]
    share = inner(vectors, unit)
    rest = [v - share * u for v, u in zip(vectors, unit, strict=True)]
    real = global_norm(rest) > 1e-6 * global_norm(vectors)
    return [tf.where(real, r, tf.zeros_like(r)) for r in rest]
