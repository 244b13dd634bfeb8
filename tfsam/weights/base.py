"""Base class of weight perturbations, and helpers shared by the family.

A weight perturbation is an object whose methods are pure functions of lists of
tensors. Only `perturb` is required. The other six methods are None where a
perturbation does not need them, and the train step then skips them:

    init(weights, seed)                            -> state
    before(weights, momentum, state, step)         -> weights of the first pass
    due(state, step)                               -> bool: make a second pass?
    perturb(weights, gradients, state, step)       -> weights, state
    select(losses, perturbed_losses, state, step)  -> positions in the batch
    combine(gradients, perturbed_gradients, state, step) -> gradients, state
    after(weights, gradients, perturbed_gradients, state, step) -> weights

- `weights` and `gradients` are lists of tensors in the order of `step.kinds`,
  one for each perturbed trainable variable of the model. Gradients carry
  neither a loss scale nor the factor 1/replicas. The gradient of a weight that
  the loss does not depend on is zero.
- `state` is a list of tensors, empty if the perturbation has none. The model
  keeps it in Keras variables, so that it is saved, restored and resumed. On
  several replicas it is replaced by the mean over the replicas.
- `due` returns a Python bool or a scalar bool tensor. On steps where it is
  False, there is no second pass and `combine` receives None for
  `perturbed_gradients` (LookSAM's cheap steps).
- `select` chooses the examples of the second pass from the losses before and
  after the perturbation (ESAM).
- `before` moves the weights of the first pass, its attack included (MSAM). The
  BatchNorm statistics and the metrics are those of this pass; the optimizer
  descends from the weights themselves. `momentum` is the optimizer's momentum
  as a sum of gradients, which points uphill whatever sign the optimizer keeps
  it in; None where the optimizer has none.
- `after` moves the weights once more, after the optimizer's step (decoupled
  WSAM). The gradients are means over the replicas, equal to each other on
  steps without a second pass. The step is left out where a gradient is not
  finite, as the optimizer's is under loss scaling.

With `combines_all`, the lists of `combine` and `after` are of all trainable
weights. The `step` of `before` and `after` has no functions.
"""

import types
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import tensorflow as tf

from tfsam.geometry import TINY
from tfsam.geometry import global_norm
from tfsam.support.configurable import Configurable
from tfsam.support.validators import check_choice

Tensors = Sequence[tf.Tensor]


class Step(NamedTuple):
    """The training step, as a weight perturbation sees it.

    Attributes:
        kinds: The `kind` of each weight.
        seed: int32 tensor (2,), new at each step, the same on all replicas.
        count: Scalar int64 tensor, the number of training steps before this
            one.
        learning_rate: Scalar tensor, the optimizer's learning rate.
        gradient: Function from a list of weights to the list of gradients of
            the loss of the same batch at these weights. Costs a forward and a
            backward pass.
        squared_gradients: Function without arguments. Returns a tuple of a list
            of tensors, the squared gradients of each example's cross-entropy in
            inference mode, summed over the batch (the empirical Fisher
            information), and the number of examples on all replicas. Costs a
            pass for each example.

    Example:
        >>> import tensorflow as tf
        >>> seed, count = tf.constant([0, 1]), tf.constant(0, tf.int64)
        >>> step = Step(["kernel"], seed, count, tf.constant(0.1))
        >>> step.kinds
        ['kernel']
    """

    kinds: Sequence[str]
    seed: tf.Tensor
    count: tf.Tensor
    learning_rate: tf.Tensor
    gradient: Any = None
    squared_gradients: Any = None


def kind(variable: Any) -> str:
    """Returns the role of a variable in its layer.

    Args:
        variable: A `keras.Variable`. Normalization layers name their scale
            gamma and their offset beta. Any other variable of two or more
            dimensions counts as a kernel, embeddings included.

    Returns:
        "kernel", "bias", "scale" or "offset".

    Example:
        >>> import keras
        >>> layer = keras.layers.Dense(2)
        >>> layer.build((None, 3))
        >>> [kind(variable) for variable in layer.trainable_variables]
        ['kernel', 'bias']
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
    """Base class of weight perturbations.

    A subclass implements `perturb` and, where needed, the optional methods
    `init`, `before`, `due`, `select`, `combine` and `after`; see the module's
    docstring for their arguments. Every constructor argument must be kept as an
    attribute of the same name, and the class registered with
    `keras.saving.register_keras_serializable`, so that models can be saved.

    Attributes:
        init: None, or a method (weights, seed) -> state that returns the
            initial state. `seed` is an int32 array (2,).
        before: None, or a method (weights, momentum, state, step) -> weights
            that returns the weights of the first pass. None means the current
            ones.
        due: None, or a method (state, step) -> bool that decides whether the
            step makes a second pass. None means on every step.
        select: None, or a method (losses, perturbed_losses, state, step) ->
            positions. The losses are float tensors (batch,), the result an
            int32 tensor of positions in the batch. None means all examples.
        combine: None, or a method (gradients, perturbed_gradients, state, step)
            -> (gradients, state) that returns the gradients of the descent
            step. None descends along `perturbed_gradients`.
        after: None, or a method (weights, gradients, perturbed_gradients,
            state, step) -> weights that changes the weights after the
            optimizer's step.
        layers: "all", or "normalization" to perturb the scales and offsets of
            normalization layers alone, which are found by their type.
        combines_all: Whether `combine` and `after` work on all trainable
            weights, instead of the perturbed ones alone. Weights that they do
            not work on descend along the gradient of the second pass.
        needs_momentum: Whether the perturbation requires an optimizer with
            momentum.
        needs_classes: Whether the perturbation requires a network that returns
            class logits, and labels that name classes.
        extra_passes: Forward and backward passes of a training step in addition
            to the pass of standard training, on average over the steps.
        flag_names: The flag that sets an argument of the constructor, where
            their names differ.

    Example:
        >>> import keras
        >>> import tensorflow as tf
        >>> @keras.saving.register_keras_serializable(package="example")
        ... class Shift(WeightPerturbation):
        ...     def __init__(self, rho=0.1):
        ...         self.rho = rho
        ...
        ...     def perturb(self, weights, gradients, state, step):
        ...         return [w + self.rho for w in weights], state
        >>> moved, _ = Shift().perturb([tf.ones([2])], [tf.ones([2])], [], None)
        >>> print(moved[0].numpy())
        [1.1 1.1]
    """

    init: Any = None
    before: Any = None
    due: Any = None
    select: Any = None
    combine: Any = None
    after: Any = None
    layers: Any = "all"
    combines_all: Any = False
    needs_momentum: Any = False
    needs_classes: Any = False
    extra_passes: Any = 1.0
    flag_names: Mapping[str, str] = types.MappingProxyType(
        {"steps": "ascent_steps"}
    )

    def perturb(
        self, weights: Tensors, gradients: Tensors, state: Tensors, step: Step
    ) -> tuple[list[tf.Tensor], Tensors]:
        """Perturbs the weights for the second pass.

        Args:
            weights: List of tensors, the current weights.
            gradients: List of tensors of the same shapes, the gradients of the
                loss at `weights`.
            state: List of tensors.
            step: The training step.

        Returns:
            Tuple of the perturbed weights, a list of tensors of the shapes and
            dtypes of `weights`, and the new state.

        Raises:
            TypeError: If the subclass does not implement it.
        """
        raise TypeError(
            "A WeightPerturbation must implement perturb(). "
            f"Received: {type(self).__name__}"
        )


def check_layers(layers: str) -> str:
    """Checks the layers that a perturbation is restricted to.

    Args:
        layers: "all" or "normalization".

    Returns:
        `layers`.

    Raises:
        ValueError: If `layers` is another word.

    Example:
        >>> check_layers("normalization")
        'normalization'
    """
    return check_choice("layers", layers, ("all", "normalization"))


def along(
    weights: Tensors, directions: Tensors, scale: tf.Tensor
) -> list[tf.Tensor]:
    """Moves weights along directions.

    Args:
        weights: List of tensors.
        directions: List of tensors of the same shapes.
        scale: Scalar tensor, the step in units of `directions`.

    Returns:
        List of tensors `weights + scale * directions`, of the dtypes of
        `weights`.

    Example:
        >>> import tensorflow as tf
        >>> (moved,) = along([tf.ones(2)], [tf.ones(2)], tf.constant(0.5))
        >>> moved.numpy().tolist()
        [1.5, 1.5]
    """
    return [
        # In the precision of the scale: rho / 1e-12 overflows in float16.
        w + tf.cast(scale * tf.cast(d, scale.dtype), w.dtype)
        for w, d in zip(weights, directions, strict=True)
    ]


def all_finite(tensors: Tensors) -> tf.Tensor:
    """Computes whether all values of a list of tensors are finite.

    Args:
        tensors: List of tensors. Those of integers count as finite.

    Returns:
        Scalar bool tensor.

    Example:
        >>> import tensorflow as tf
        >>> bool(all_finite([tf.ones(2), tf.constant([1.0, float("nan")])]))
        False
    """
    found = [
        tf.reduce_all(tf.math.is_finite(t))
        for t in tensors
        if t.dtype.is_floating
    ]
    return tf.reduce_all([True, *found])


def empty_averages(weights: Tensors) -> list[tf.Tensor]:
    """Returns the state of moving averages before their first value.

    Args:
        weights: List of tensors, or of their specs.

    Returns:
        List of tensors: zeros of the shapes and dtypes of `weights`, and a
        scalar 0, because the averages have not begun.

    Example:
        >>> import tensorflow as tf
        >>> [t.numpy().tolist() for t in empty_averages([tf.ones(2)])]
        [[0.0, 0.0], 0.0]
    """
    return [*[tf.zeros(w.shape, w.dtype) for w in weights], tf.zeros(())]


def averaged(state: Tensors, values: Tensors, decay: float) -> list[tf.Tensor]:
    """Updates exponential moving averages, which begin with the first value.

    Args:
        state: List of tensors: the averages so far, and a scalar that is 1 if
            they have begun, else 0. `empty_averages` makes the first state.
        values: List of tensors of the shapes of the averages.
        decay: Share of the old average that is kept, in [0, 1].

    Returns:
        The new state. An average is decay * average + (1 - decay) * value in
        its own dtype, or the value if the averages had not begun.

    Example:
        >>> import tensorflow as tf
        >>> state = empty_averages([tf.ones(1)])
        >>> for value in 2.0, 4.0:
        ...     state = averaged(state, [tf.constant([value])], 0.75)
        ...     print(state[0].numpy())
        [2.]
        [2.5]
    """
    *means, begun = state
    found = []
    for mean, value in zip(means, values, strict=True):
        # In the precision of the average: a float32 0.6 is none in float64.
        kept = tf.where(begun > 0, tf.constant(decay, mean.dtype), 0)
        found.append(kept * mean + (1 - kept) * tf.cast(value, mean.dtype))
    return [*found, tf.ones(())]


def inner(one: Tensors, other: Tensors) -> tf.Tensor:
    """Computes the inner product of two lists of tensors, taken as vectors.

    Args:
        one: List of float tensors.
        other: List of float tensors of the same shapes.

    Returns:
        Scalar tensor.

    Example:
        >>> import tensorflow as tf
        >>> float(inner([tf.constant([1.0, 2.0])], [tf.constant([3.0, 4.0])]))
        11.0
    """
    return tf.add_n(
        [tf.reduce_sum(a * b) for a, b in zip(one, other, strict=True)]
    )


def without(vectors: Tensors, direction: Tensors) -> list[tf.Tensor]:
    """Removes from a vector its component along a direction.

    Args:
        vectors: List of float tensors, taken as a single vector.
        direction: List of float tensors of the same shapes, taken as a single
            vector. Where it is zero, nothing is removed.

    Returns:
        List of tensors, the component of `vectors` that is orthogonal to
        `direction`. Zeros if the two are parallel to within rounding: callers
        that normalise the result would turn rounding errors into a direction.

    Example:
        >>> import tensorflow as tf
        >>> vectors = [tf.constant([3.0, 4.0])]
        >>> direction = [tf.constant([2.0, 0.0])]
        >>> without(vectors, direction)[0].numpy().tolist()
        [0.0, 4.0]
    """
    # Divides twice by the norm: the square of a small norm would vanish in
    # float32.
    size = global_norm(direction) + TINY
    unit = [d / tf.cast(size, d.dtype) for d in direction]
    share = inner(vectors, unit)
    rest = [v - share * u for v, u in zip(vectors, unit, strict=True)]
    real = global_norm(rest) > 1e-6 * global_norm(vectors)
    return [tf.where(real, r, tf.zeros_like(r)) for r in rest]
