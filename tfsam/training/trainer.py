"""A Keras model whose training step compiles its own pure pieces.

Keras compiles a training step as a whole. With XLA this does not suit a step
that contains an attack's loop and the collectives of several replicas, so
`Trainer` leaves the step to TensorFlow's graph and lets it compile functions
by `_compiled`. It also checks the first batch before anything is traced, and
works around two limits of Keras's multi-worker training.
"""

import contextlib
import functools
import types
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfsam.support import assertions
from tfsam.support import devices
from tfsam.support.onednn import warn_of_unsafe_gradients


class Trainer(keras.Model):
    """A Keras model with its own rules for compiling and checking.

    Attributes:
        network: the inner network, a `keras.Model`.
    """

    jit_compile: bool
    network: keras.Model
    # Whether the next batch is the first one of `fit`, or after `compile`.
    _at_first_batch = True
    # The dtype of the array of pixels passed to `fit` if it is a 16-bit float
    # type, else None. Keras converts such arrays to float32.
    _pixels: Any = None

    @functools.wraps(keras.Model.fit)
    def fit(self, x: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Trains as Keras does; bad data raises an error of one line."""
        self._note_pixels(x)
        self._at_first_batch = True
        try:
            with assertions.one_line():
                return super().fit(x, *args, **kwargs)
        finally:
            self._warn_of_nonfinite_gradients()

    @functools.wraps(keras.Model.train_on_batch)
    def train_on_batch(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """Makes a step as Keras does; bad data raises an error of one line."""
        self._note_pixels(x)
        with assertions.one_line():
            return super().train_on_batch(x, *args, **kwargs)

    def _note_pixels(self, x: Any) -> None:
        """Records the dtype of an array of 16-bit floats."""
        kind = getattr(getattr(x, "dtype", None), "name", None)
        kind = kind if kind in ("float16", "bfloat16") else None
        if kind != self._pixels:
            self._pixels = kind
            # The tolerance for rounding was traced into the old function.
            self.train_function = None

    def make_train_function(self, force: bool = False) -> None:
        """Makes Keras's train function, without XLA around the whole step.

        XLA runs loops on one thread of a CPU, and has no collectives between
        replicas; `train_step` compiles its pure pieces instead.

        Args:
            force: whether to replace an existing function.
        """
        if not self._use_xla():
            warn_of_unsafe_gradients(self.network)
        before = self.train_function
        with self._without_xla():
            super().make_train_function(force=force)
        if self.train_function is not before:
            self._at_first_batch = True
            self.train_function = self._checking(self.train_function)

    def make_test_function(self, force: bool = False) -> Any:
        """Makes Keras's test function, without XLA on several replicas."""
        with self._without_xla_on_several():
            return super().make_test_function(force=force)

    def make_predict_function(self, force: bool = False) -> Any:
        """Makes Keras's predict function, without XLA on several replicas."""
        with self._without_xla_on_several():
            return super().make_predict_function(force=force)

    @contextlib.contextmanager
    def _without_xla(self) -> Iterator[None]:
        jit_compile, self.jit_compile = self.jit_compile, False
        try:
            yield
        finally:
            self.jit_compile = jit_compile

    def _without_xla_on_several(self) -> AbstractContextManager[None]:
        """Turns XLA off where it would see only one device's variables."""
        several = self.distribute_strategy.num_replicas_in_sync > 1
        return self._without_xla() if several else contextlib.nullcontext()

    def _use_xla(self) -> bool:
        return bool(self.jit_compile) and not self.run_eagerly

    def _compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Returns the function, compiled if `compile(jit_compile=)` is on."""
        if not self._use_xla():
            return function
        compiled: Callable[..., Any] = tf.function(
            function, jit_compile=True, autograph=False
        )
        return compiled

    def _checking(self, function: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """Returns a train function that checks its first batch eagerly.

        The step checks every batch in its graph, but reports a mistake only
        after tracing and compiling, in the middle of TensorFlow's own output.

        Args:
            function: Keras's train function, of an iterator over batches.
        """

        def checked(iterator: Any) -> Any:
            if not self._at_first_batch:
                return function(iterator)
            self._at_first_batch = False
            results = function(self._with_first_checked(iterator))
            self._warn_of_nonfinite_gradients()
            return results

        return checked

    def _with_first_checked(self, iterator: Any) -> Any:
        """Checks the next batch of an iterator, and returns one that yields it.

        No data is read twice, so shuffling and generators are as without the
        check. On several replicas, and with several steps an execution, the
        iterator is returned untouched.
        """
        replicas = self.distribute_strategy.num_replicas_in_sync
        if replicas > 1 or self.steps_per_execution > 1:
            return iterator
        if isinstance(iterator, types.GeneratorType):  # Of train_on_batch.
            data = next(iterator)
            self._check_first_batch(data)
            return iter([data])
        if not isinstance(iterator, tf.data.Iterator):
            return iterator
        spec = iterator.element_spec
        if not all(isinstance(s, tf.TensorSpec) for s in tf.nest.flatten(spec)):
            return iterator
        data = next(iterator)
        self._check_first_batch(data)
        return _one_batch(data, spec)

    def _check_first_batch(self, data: Any) -> None:
        """Raises a ValueError if a batch cannot be trained on."""

    def _warn_of_nonfinite_gradients(self) -> None:
        """Warns if an attack's gradients were not finite."""

    def _maybe_symbolic_build(
        self, iterator: Any = None, data_batch: Any = None
    ) -> None:
        """Builds as Keras does, also from a batch that is spread over workers.

        Keras takes the mean over replicas to find a batch's shapes, which
        MultiWorkerMirroredStrategy cannot do for a tuple (Keras issue 20585).
        One replica's share has the same shapes.
        """
        strategy = self.distribute_strategy
        if iterator is not None and self._distribute_strategy is not None:
            for _, _, batches in iterator:
                data_batch = tf.nest.map_structure(
                    lambda t: strategy.experimental_local_results(t)[0],
                    next(batches),
                )
                break
        super()._maybe_symbolic_build(data_batch=data_batch)

    def compute_metrics(
        self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None
    ) -> Any:
        """Computes Keras's metrics, in a shape that workers can reduce.

        Under MultiWorkerMirroredStrategy Keras takes the mean over the first
        axis, which a scalar does not have.

        Args:
            x: the inputs that the network saw.
            y: labels.
            y_pred: predictions.
            sample_weight: weights of the examples, or None.

        Returns:
            A dict from names to values.
        """
        results = super().compute_metrics(x, y, y_pred, sample_weight)
        if devices.workers(tf.distribute.get_strategy()) == 1:
            return results
        return tf.nest.map_structure(lambda t: tf.reshape(t, [1]), results)

    def _track_loss(self, loss: tf.Tensor, size: tf.Tensor) -> None:
        """Adds a batch's loss to the running mean that Keras reports.

        Args:
            loss: of the batch, a scalar. It carries 1/replicas for the sum
                over replicas.
            size: number of examples.
        """
        tracker = next(m for m in self.metrics if m.name == "loss")
        many = replicas()
        tracker.update_state(
            loss if many == 1 else loss * tf.cast(many, loss.dtype),
            sample_weight=size,
        )


def _one_batch(data: Any, spec: Any) -> Any:
    """Returns an iterator over one batch, of the given element spec.

    With the spec of the data's own iterator it runs the same trace.
    """

    @tf.autograph.experimental.do_not_convert
    def with_spec(data: Any) -> Any:
        return tf.nest.map_structure(
            lambda t, s: tf.compat.v1.placeholder_with_default(t, s.shape),
            data,
            spec,
        )

    return iter(tf.data.Dataset.from_tensors((data,)).map(with_spec))


def replicas() -> int:
    """Returns the number of replicas of the current strategy."""
    return int(tf.distribute.get_strategy().num_replicas_in_sync)


def tensor(value: Any) -> Any:
    """Converts a NumPy array, which Keras passes when it runs eagerly.

    Args:
        value: an array; anything else is returned as it is.
    """
    return (
        tf.convert_to_tensor(value) if isinstance(value, np.ndarray) else value
    )
