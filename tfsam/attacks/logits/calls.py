"""Calls of a network on a batch: traced once, in blocks, parts or singly."""

import functools
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tfsam.attacks.blocks import in_blocks
from tfsam.attacks.blocks import in_parts
from tfsam.attacks.blocks import one_by_one
from tfsam.attacks.context import NOTHING
from tfsam.support.graphs import of_any_batch
from tfsam.support.graphs import traced


class Calls:
    """Calls of functions on a batch; a base class of `Logits`.

    Copies of an object share its traces.

    Args:
        jit_compile: Whether to compile the traces with XLA.
        rows: Number of examples in a block, >= 1. None means the whole batch at
            once.

    Attributes:
        context: The `Context` of the batch, or of the batch that the rows of a
            call are copies of.
        parts: Number of parts that a batch is split into if `rows` is None.

    Example:
        >>> import tensorflow as tf
        >>> def total(x, context):
        ...     return (tf.reduce_sum(x, axis=1),)
        >>> x, active = tf.eye(3), tf.constant([True, False, True])
        >>> (found,) = Calls(rows=2).run("total", total, active, x)
        >>> found.numpy().tolist()
        [1.0, 0.0, 1.0]
    """

    def __init__(
        self, jit_compile: bool | None = False, rows: int | None = None
    ) -> None:
        self.jit_compile = jit_compile
        self.rows = rows
        self.context = NOTHING
        self.parts = 1
        self._traced: dict[Any, Callable[..., Any]] = {}

    def once(
        self, key: Any, make: Callable[[], Callable[..., Any]]
    ) -> Callable[..., Any]:
        """Returns the traced function of a key, which is made once.

        Args:
            key: A hashable key.
            make: Function without arguments that makes the traced function.
        """
        if key not in self._traced:
            self._traced[key] = make()
        return self._traced[key]

    def run(
        self,
        key: Any,
        function: Callable[..., Any],
        active: tf.Tensor | None,
        *tensors: Any,
    ) -> Any:
        """Calls a function, traced once for each key, in blocks or parts.

        Args:
            key: Key of the function's trace.
            function: Function from tensors (batch, ...), the last of which are
                the context, to a tuple of tensors (batch, ...).
            active: Bool tensor (batch,). None means all.
            *tensors: Tensors (batch, ...), or structures of them.

        Returns:
            A tuple of tensors (batch, ...). In blocks, examples that are not
            active have zeros.
        """
        tensors = (*tensors, self.context.of_rows(tensors[0]))
        if self._must_trace():
            function = self._trace(key, function)
        batch = tensors[0].shape[0]
        if self.rows and (batch is None or batch > self.rows):
            plain = functools.partial(in_blocks, function, self.rows)
            if not tf.inside_function():
                return plain(active, *tensors)
            # An attack makes the same calls in and before its loops, on the
            # batch and on copies of it.
            blocks = self.once(("blocks", key), lambda: of_any_batch(plain))
            return tuple(
                tf.ensure_shape(found, [batch, *found.shape[1:]])
                for found in blocks(active, *tensors)
            )
        if self.parts > 1:
            return in_parts(function, self.parts, *tensors)
        return function(*tensors)

    def each(
        self,
        key: Any,
        function: Callable[..., Any],
        active: tf.Tensor | None,
        *tensors: Any,
    ) -> tuple[tf.Tensor, ...]:
        """Calls a function on every active example by itself.

        The function's computation for an example therefore has the same shape
        whatever the batch, and its random numbers may be keyed by the example.

        Args:
            key: Key of the function's trace.
            function: Function from tensors (1, ...), the last of which are the
                context, to a tuple of tensors (1, ...).
            active: Bool tensor (batch,). None means all.
            *tensors: Tensors (batch, ...), or structures of them.

        Returns:
            A tuple of tensors (batch, ...), with zeros for examples that are
            not active.
        """
        tensors = (*tensors, self.context.of_rows(tensors[0]))
        if self._must_trace():
            return in_blocks(self._trace(key, function), 1, active, *tensors)
        return one_by_one(function, active, *tensors)

    def _must_trace(self) -> bool:
        """Returns whether functions are traced, not called as they are."""
        return bool(self.rows or self.jit_compile or tf.inside_function())

    def _trace(
        self, key: Any, function: Callable[..., Any]
    ) -> Callable[..., Any]:
        """Returns the trace of a key, of this function if there is none yet."""
        return self.once(key, lambda: traced(function, self.jit_compile))
