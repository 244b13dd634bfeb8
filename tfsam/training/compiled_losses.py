"""The losses of a compiled model, one for each output.

`compile` takes a loss as a name, a class, a function, a partial or a lambda,
alone or in a list or dict. Keras resolves all of these to `keras.losses.Loss`
objects. The functions here find out whether such a loss takes logits or
probabilities, and turn it into a loss that attacks can maximize.
"""

import functools
from collections.abc import Callable
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tfsam.support import final_activations

_CROSS_ENTROPIES = (
    keras.losses.binary_crossentropy,
    keras.losses.binary_focal_crossentropy,
    keras.losses.categorical_crossentropy,
    keras.losses.categorical_focal_crossentropy,
    keras.losses.sparse_categorical_crossentropy,
)
# The names by which `compile` takes the cross-entropy of class numbers.
_SPARSE = ("sparse_categorical_crossentropy", "SparseCategoricalCrossentropy")
# Keras's class for a loss that is a function; it has no public name.
_WRAPPER = keras.losses.MeanSquaredError.__base__


class Output(NamedTuple):
    """One output of a network, and the loss that it was compiled with.

    Attributes:
        shape: its static shape, a tuple with None for unknown sizes.
        probabilities: whether its layers say that it holds probabilities; None
            if they do not show it.
        loss: the `keras.losses.Loss`, or None.
        takes: "logits" or "probabilities" for a cross-entropy; None for other
            losses.
        function: the function of Keras that the loss calls, or None.
        options: keyword arguments of this function.
    """

    shape: tuple[int | None, ...]
    probabilities: bool | None
    loss: Any
    takes: str | None
    function: Any
    options: dict[str, Any]

    @property
    def spec(self) -> keras.KerasTensor:
        """The output as a symbolic tensor."""
        return keras.KerasTensor(self.shape)

    @property
    def sparse(self) -> bool:
        """Whether the loss takes class numbers as labels."""
        return bool(
            self.function is keras.losses.sparse_categorical_crossentropy
        )

    @property
    def single_logit(self) -> bool:
        """Whether it is the logit of class 1 of two classes, (batch, 1)."""
        return (
            len(self.shape) == 2
            and self.shape[-1] == 1
            and (self.loss is None or self.takes == "logits")
        )

    @property
    def ignored(self) -> int | None:
        """The class number that the loss ignores, or None."""
        found = self.options.get("ignore_class") if self.sparse else None
        return (
            found
            if found is not None
            else getattr(self.loss, "ignore_class", None)
        )


class Outputs:
    """The outputs of a network, in a sequence that Keras does not track.

    Args:
        each: the outputs in the order in which the network returns them.
    """

    def __init__(self, each: Sequence[Output]) -> None:
        self._each = each

    def __len__(self) -> int:
        return len(self._each)

    def __getitem__(self, position: int) -> Output:
        return self._each[position]


def outputs(model: Any, x: Any, y: Any) -> Outputs:
    """Returns the `Outputs` of a model.

    Args:
        model: a compiled model whose losses are built, with a `network`.
        x: a batch of inputs, or their specs.
        y: a batch of labels, or their specs.
    """
    shapes = _shapes(model, x)
    known = final_activations.in_probabilities(model.network)
    known += [None] * (len(shapes) - len(known))
    losses: dict[int, Any] = {}
    for position, loss in _resolved(model._compile_loss):
        # Of several losses of one output the first one counts.
        losses.setdefault(position, loss)
    labels = [
        tuple(part.shape) for part in keras.tree.flatten(y) if part is not None
    ]
    found = []
    for position, shape in enumerate(shapes):
        ending, loss = known[position], losses.get(position)
        function, options = called(loss)
        of = labels[position] if len(labels) == len(shapes) else None
        takes = None if loss is None else _takes(loss, shape, of)
        found.append(Output(shape, ending, loss, takes, function, options))
    return Outputs(found)


def example_loss(
    output: Output,
) -> Callable[[tf.Tensor, Any], tf.Tensor] | None:
    """Returns the loss of an output in the form that attacks maximize.

    Args:
        output: the output.

    Returns:
        A function of (outputs, labels) to one number per example, (batch,): the
        loss's own `call`, averaged over an example's positions if there are
        several, as in a segmentation. None for the cross-entropy of logits
        (batch, classes), which is the default of attacks. For a single logit z,
        the function takes the logits of two classes, [0, z].
    """
    if output.loss is None or _is_plain(output):
        return None
    loss = output.loss

    def each(y_pred: tf.Tensor, y: Any) -> tf.Tensor:
        if output.single_logit:  # Attacks see the logits of two classes.
            y_pred = y_pred[:, 1:]
        found = loss.call(
            tf.cast(tf.convert_to_tensor(y), loss.dtype),
            tf.cast(y_pred, loss.dtype),
        )
        if found.shape.rank == 0:
            raise ValueError(
                "an attack maximizes the loss of each example, so the compiled "
                "loss must return one number an example, not one for the "
                "batch; or give the attack a loss of its own, such as "
                f"tfsam.PGD(loss='cross_entropy'). Received: loss={loss.name}"
            )
        rest = list(range(1, found.shape.rank))
        return tf.cast(tf.reduce_mean(found, rest), y_pred.dtype)

    return each


def mask_of(output: Output, y: tf.Tensor, y_pred: tf.Tensor) -> Any:
    """Returns the mask of the values that a loss counts, None for all.

    A loss with an `ignore_class` attaches such a mask to its result.

    Args:
        output: the output.
        y: tensor of labels.
        y_pred: tensor of predictions.
    """
    loss = output.loss
    if loss is None or are_soft(loss, y, y_pred):
        return None
    found = loss.call(tf.cast(y, loss.dtype), tf.cast(y_pred, loss.dtype))
    return getattr(found, "_keras_mask", None)


def _is_plain(output: Output) -> bool:
    """Returns whether a loss is the cross-entropy of logits without options."""
    options = output.options
    return bool(
        output.function
        in (
            keras.losses.categorical_crossentropy,
            keras.losses.sparse_categorical_crossentropy,
        )
        and output.takes == "logits"
        and len(output.shape) == 2
        and not options.get("label_smoothing")
        and options.get("axis", -1) in (-1, 1)
    )


def _shapes(model: Any, x: Any) -> list[tuple[int | None, ...]]:
    """Returns the shapes of a model's outputs."""
    found = keras.tree.flatten(getattr(model.network, "outputs", None) or [])
    if not found:
        specs = keras.tree.map_structure(
            lambda t: keras.KerasTensor(t.shape, tf.as_dtype(t.dtype).name), x
        )
        found = keras.tree.flatten(
            model.compute_output_spec(specs, training=False)
        )
    return [tuple(output.shape) for output in found]


def _resolved(compiled: Any) -> list[tuple[int, Any]]:
    """Returns pairs (position of the output, loss) of Keras's `CompileLoss`."""
    if compiled is None or not compiled.built:
        return []
    structure = compiled._y_pred_build_structure
    count = len(keras.tree.flatten(structure))
    positions = keras.tree.pack_sequence_as(structure, list(range(count)))
    found = []
    for path, loss, *_ in compiled._flat_losses:
        place = positions
        for key in path:
            place = place[key]
        found += [(place, loss)] if isinstance(place, int) else []
    return found


def is_sparse(compiled: Any) -> bool:
    """Returns whether a loss is the cross-entropy of class numbers.

    Args:
        compiled: the argument `loss` of `compile`, or a `keras.losses.Loss`.
    """
    found = tf.nest.flatten(compiled)
    if len(found) != 1:
        return False
    (loss,) = found
    if isinstance(loss, str):
        return loss in _SPARSE
    if isinstance(loss, type):
        known = issubclass(loss, keras.losses.SparseCategoricalCrossentropy)
        loss = loss() if known else None
    if isinstance(loss, keras.losses.Loss):
        loss, _ = called(loss)
    while isinstance(loss, functools.partial):
        loss = loss.func
    return loss is keras.losses.sparse_categorical_crossentropy


def are_soft(compiled: Any, y: Any, y_pred: Any) -> bool:
    """Returns whether labels are distributions, for a loss of class numbers.

    Args:
        compiled: see `is_sparse`.
        y: labels, a tensor or its spec.
        y_pred: predictions, a tensor or its spec.

    Returns:
        True for a sparse categorical cross-entropy with y and y_pred of shape
        (batch, classes), classes > 1.
    """
    shapes = [tuple(getattr(part, "shape", ())) for part in (y, y_pred)]
    if [len(shape) for shape in shapes] != [2, 2]:
        return False
    classes = {shape[-1] for shape in shapes}
    return len(classes) == 1 and not classes & {1, None} and is_sparse(compiled)


def called(loss: Any) -> tuple[Any, dict[str, Any]]:
    """Returns Keras's function that a loss calls, and its keyword arguments.

    Args:
        loss: a `keras.losses.Loss`, or None.

    Returns:
        (function, arguments); (None, {}) if the loss has code of its own.
    """
    own = getattr(type(loss), "call", None) is not _WRAPPER.call
    if own or not isinstance(loss, _WRAPPER):
        return None, {}
    function, options = loss.fn, dict(loss._fn_kwargs)
    while isinstance(function, functools.partial) and not function.args:
        options = dict(function.keywords) | options
        function = function.func
    if getattr(function, "__module__", "").startswith("keras."):
        return function, options
    return None, {}


def _takes(loss: Any, shape: Sequence[int | None], labels: Any) -> str | None:
    """Returns "logits", "probabilities", or None for other losses."""
    function, options = called(loss)
    if function in _CROSS_ENTROPIES:
        logits = options.get("from_logits", False)
    elif isinstance(getattr(loss, "from_logits", None), bool):
        logits = loss.from_logits  # A subclass, or a class of its own.
    elif labels is not None and _clips(loss, shape, labels):
        logits = False
    else:
        return None
    return "logits" if logits else "probabilities"


def _clips(
    loss: Any, shape: Sequence[int | None], labels: Sequence[Any]
) -> bool:
    """Returns whether a loss clips predictions to [0, 1], as probabilities.

    A lambda cannot be inspected, so it is evaluated on predictions far outside
    of [0, 1] that are certain of the wrong class. A cross-entropy of
    probabilities clips them and takes the logarithm of nearly 0: the result is
    large, and the same for predictions that were clipped before.
    """
    size = [2 if n is None else n for n in shape]
    if not 1 < len(size) or len(labels) not in (len(size), len(size) - 1):
        return False
    outside = np.zeros(size, "float32")
    outside[..., 0] = 3
    if size[-1] > 1:
        outside[..., 1] = -2  # Rows of sum 1 stay as they are.
    inside = np.clip(outside, 0, 1)
    if len(labels) == len(size) and labels[-1] == size[-1]:
        y = 1 - inside
    else:
        columns = [*size[:-1], *labels[len(size) - 1 :]]
        y = np.ones(columns, "float32") * (size[-1] > 1)
    try:
        with tf.init_scope():
            one, other = (
                np.asarray(loss.call(tf.constant(y), tf.constant(p)))
                for p in (outside, inside)
            )
    except Exception:
        # A loss may reject made-up numbers in any way. If it rejects the real
        # data too, its own error is raised in training.
        return False
    return bool(np.allclose(one, other) and np.mean(one) > 2)


def is_sum(losses: Any) -> bool:
    """Returns whether one of the compiled losses is a sum over the batch.

    Args:
        losses: the argument of `compile`: a loss, its name, or a structure.
    """
    found = tf.nest.flatten(losses)
    return any(getattr(loss, "reduction", None) == "sum" for loss in found)
