"""Functions traced as graphs, without warnings and garbage collections."""

import functools
import gc
from collections.abc import Callable
from typing import Any

import tensorflow as tf


def traced(
    function: Callable[..., Any], jit_compile: bool | None = None
) -> Any:
    """Makes a `tf.function` without TensorFlow's warning of retracing.

    TensorFlow counts the traces of functions defined by the same line of code,
    and warns if there are many. Here each trace is for another model, attack or
    size. A `functools.partial` has no line, so it is not counted.

    Args:
        function: Function from tensors to tensors.
        jit_compile: See `tf.function`.

    Returns:
        A `tf.function`.

    Example:
        >>> import tensorflow as tf
        >>> float(traced(lambda x: 2 * x)(tf.constant(1.5)))
        3.0
    """
    return tf.function(
        functools.partial(_without_collections, function),
        jit_compile=jit_compile,
        autograph=False,
    )


def of_any_batch(function: Callable[..., Any]) -> Callable[..., Any]:
    """Makes a `tf.function` that is traced once for batches of any size.

    Args:
        function: Function from tensors (batch, ...), structures of them or
            None, to tensors (batch, ...).

    Returns:
        The function. The batch size of its results is unknown in a graph.

    Example:
        >>> import tensorflow as tf
        >>> sizes = []
        >>> double = of_any_batch(lambda x: sizes.append(len(sizes)) or 2 * x)
        >>> [float(tf.reduce_sum(double(tf.ones([n])))) for n in (1, 2, 3)]
        [2.0, 4.0, 6.0]
        >>> len(sizes)
        1
    """
    whole = traced(function)

    def call(*tensors: Any) -> Any:
        specs = tf.nest.map_structure(
            lambda t: t if t is None else _any_batch(t), tensors
        )
        return whole.get_concrete_function(*specs)(*tensors)

    return call


def _any_batch(tensor: tf.Tensor) -> tf.TensorSpec:
    """Returns the spec of a tensor, for batches of any size."""
    return tf.TensorSpec([None, *tensor.shape[1:]], tensor.dtype)


def _without_collections(function: Callable[..., Any], *tensors: Any) -> Any:
    """Calls a function while Python collects no garbage.

    A trace makes many objects, none of which is garbage. Collections took a
    fifth of its time.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        return function(*tensors)
    finally:
        if enabled:
            gc.enable()
