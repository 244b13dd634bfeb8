"""Blocks: calls of a function on parts of a batch, which have a fixed size."""

from typing import Any

import numpy as np
import tensorflow as tf

# Number of blocks that go through the network in parallel. On two cores, two
# blocks were as fast as four and used half the memory.
_PARALLEL_BLOCKS = 2


def batch_size(x: tf.Tensor) -> Any:
    """Returns the size of a batch, an int if it is known in a graph.

    Args:
        x: Tensor (batch, ...).

    Example:
        >>> batch_size(tf.zeros([2, 3]))
        2
    """
    return tf.shape(x)[0] if x.shape[0] is None else x.shape[0]


def in_blocks(
    function: Any, rows: int, active: tf.Tensor | None, *tensors: Any
) -> tuple[tf.Tensor, ...]:
    """Calls a traced function on blocks of `rows` active examples.

    The last block is padded with copies of its last example.

    Args:
        function: A `tf.function` from tensors (rows, ...) to a tuple of tensors
            (rows, ...).
        rows: Number of examples in a block, >= 1.
        active: Bool tensor (batch,). None means all.
        *tensors: Tensors (batch, ...), or structures of them.

    Returns:
        A tuple of tensors (batch, ...), with zeros for examples that are not
        active.

    Example:
        >>> doubled = tf.function(lambda x: (2 * x,))
        >>> (found,) = in_blocks(doubled, 2, None, tf.constant([[1], [2], [3]]))
        >>> found.numpy().tolist()
        [[2], [4], [6]]
    """
    batch = batch_size(tensors[0])
    chosen = tf.range(batch)
    if active is not None:
        chosen = tf.cast(tf.reshape(tf.where(active), [-1]), tf.int32)
    count = tf.size(chosen)
    blocks = (count + rows - 1) // rows
    filled = tf.gather(chosen, tf.minimum(tf.range(blocks * rows), count - 1))
    filled = tf.reshape(filled, [-1, rows])

    def take(indices: tf.Tensor) -> list[Any]:
        return [
            tf.nest.map_structure(lambda t: tf.gather(t, indices), tensor)
            for tensor in tensors
        ]

    specs = tf.nest.map_structure(
        lambda t: tf.TensorSpec([rows, *t.shape[1:]], t.dtype), list(tensors)
    )
    outputs = tuple(
        tf.TensorSpec(output.shape, output.dtype)
        for output in function.get_concrete_function(*specs).structured_outputs
    )
    found = tf.map_fn(
        lambda indices: function(*take(tf.ensure_shape(indices, [rows]))),
        filled,
        parallel_iterations=_PARALLEL_BLOCKS if tf.inside_function() else 1,
        fn_output_signature=outputs,
    )

    def place(values: tf.Tensor) -> tf.Tensor:
        shape = values.shape[2:]
        if not shape.is_fully_defined():
            shape = tf.unstack(tf.shape(values)[2:])
        values = tf.reshape(values, [-1, *shape])[:count]
        places = tf.reshape(chosen, [-1, 1])
        return tf.scatter_nd(places, values, [batch, *shape])

    return tuple(
        tf.ensure_shape(place(f), [tensors[0].shape[0], *spec.shape[1:]])
        for f, spec in zip(found, outputs, strict=True)
    )


def one_by_one(
    function: Any, active: tf.Tensor | None, *tensors: Any
) -> tuple[tf.Tensor, ...]:
    """Calls a function on one active example after the other, eagerly.

    Args:
        function: Function from tensors (1, ...) to a tuple of tensors (1, ...).
        active: Bool tensor (batch,). None means all.
        *tensors: Tensors (batch, ...), or structures of them.

    Returns:
        A tuple of tensors (batch, ...), with zeros for examples that are not
        active.

    Example:
        >>> x = tf.constant([[1.0], [2.0]])
        >>> active = tf.constant([True, False])
        >>> (found,) = one_by_one(lambda x: (3 * x,), active, x)
        >>> found.numpy().tolist()
        [[3.0], [0.0]]
    """
    batch = tensors[0].shape[0]
    wanted = np.ones(batch, bool) if active is None else np.array(active)
    found: list[Any] = [None] * batch
    for index in np.flatnonzero(wanted):
        found[index] = function(
            *tf.nest.map_structure(
                lambda t, i=index: t[i : i + 1], list(tensors)
            )
        )
    some = next((f for f in found if f is not None), None)
    if some is None:  # Only the shapes are needed.
        first = tf.nest.map_structure(lambda t: t[:1], list(tensors))
        some = function(*first)
    nothing = tuple(map(tf.zeros_like, some))
    rows = zip(*(nothing if f is None else f for f in found), strict=True)
    return tuple(tf.concat(row, 0) for row in rows)


def in_parts(function: Any, parts: int, *tensors: Any) -> tuple[tf.Tensor, ...]:
    """Calls a function on equal parts of a batch, one after the other.

    Args:
        function: Function from tensors (batch / parts, ...) to a tuple of such
            tensors; in a graph, a `tf.function`.
        parts: Number of parts, a divisor of the batch size.
        *tensors: Tensors (batch, ...), or structures of them.

    Returns:
        A tuple of tensors (batch, ...).

    Example:
        >>> (found,) = in_parts(lambda x: (2 * x,), 2, tf.constant([1, 2]))
        >>> found.numpy().tolist()
        [2, 4]
    """

    def apart(tensor: tf.Tensor) -> tf.Tensor:
        size = tensor.shape[0] // parts
        return tf.reshape(tensor, [parts, size, *tensor.shape[1:]])

    pieces = tf.nest.map_structure(apart, tensors)

    def call(part: Any) -> Any:
        return function(*tf.nest.map_structure(lambda t: t[part], pieces))

    if not tf.inside_function():
        found = zip(*map(call, range(parts)), strict=True)
        return tuple(tf.concat(results, 0) for results in found)
    specs = tf.nest.map_structure(
        lambda t: tf.TensorSpec(t.shape[1:], t.dtype), pieces
    )
    outputs = function.get_concrete_function(*specs).structured_outputs
    found = tf.map_fn(
        call,
        tf.range(parts),
        parallel_iterations=1,
        fn_output_signature=tf.nest.map_structure(
            lambda t: tf.TensorSpec(t.shape, t.dtype), tuple(outputs)
        ),
    )
    return tuple(tf.reshape(f, [-1, *f.shape[2:]]) for f in found)
