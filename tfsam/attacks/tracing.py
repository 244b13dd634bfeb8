"""Traces of attacks that are called directly.

Without a trace, TensorFlow runs an attack operation by operation, and a network
layer by layer in Python, at each step again. An attack that is called directly
is therefore traced, once for each attack, function and shape, and the trace is
called the next time. See `tfsam.support.trace_state` for what makes two calls
equal: a trace is never used for a function or an attack that has changed.

Functions that a trace may not repeat, for instance because they count their
calls or draw random numbers of NumPy, are called eagerly, and so are functions
of a few weights, whose trace would take longer than the attack, and those of a
training step that runs eagerly, which are new in each step.
"""

import collections
import random
import threading
import weakref
from collections.abc import Callable
from collections.abc import Hashable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfsam.attacks.context import NOTHING
from tfsam.attacks.context import Context
from tfsam.attacks.logits import Logits
from tfsam.attacks.logits import LogitsFn
from tfsam.support import trace_state
from tfsam.support.graphs import traced

# Number of traces that are kept; the one that was not called for the longest
# time is dropped first.
_MOST = 64

# Smallest number of weights of a function that is traced. Below, the attack
# itself takes less time than the trace.
_LEAST = 1000

Inputs = dict[str, tf.Tensor]
Function = Callable[[Inputs], tf.Tensor]
Method = Callable[..., tf.Tensor]


class _Traces:
    """Traces by key. A trace is dropped when an object that it names dies."""

    def __init__(self) -> None:
        self._traces: collections.OrderedDict[Hashable, Any]
        self._traces = collections.OrderedDict()
        self._lock = threading.RLock()

    def __len__(self) -> int:
        return len(self._traces)

    def get(self, key: Hashable) -> tuple[bool, Function | None]:
        """Returns whether the key is known, and its trace.

        The trace is None for a function that could not be traced.
        """
        with self._lock:
            if key not in self._traces:
                return False, None
            self._traces.move_to_end(key)
            return True, self._traces[key][0]

    def put(
        self, key: Hashable, function: Function | None, owners: list[Any]
    ) -> None:
        """Keeps a trace as long as all of its owners exist."""

        def drop(_: Any) -> None:
            # A single operation: the garbage collector may call it anywhere.
            self._traces.pop(key, None)

        unique = {id(owner): owner for owner in owners}.values()
        kept = [weakref.ref(owner, drop) for owner in unique]
        with self._lock:
            self._traces[key] = function, kept
            while len(self._traces) > _MOST:
                self._traces.popitem(last=False)


_traces = _Traces()


def call(
    method: Method, attack: Any, logits_fn: LogitsFn, inputs: Inputs
) -> tf.Tensor:
    """Calls `method(attack, logits_fn, **inputs)`, traced if possible.

    Args:
        method: Function of a library, so that its code is always the same.
        attack: An `Attack`.
        logits_fn: Function from pixels to logits.
        inputs: Tensors by name.

    Returns:
        The result of the method.

    Raises:
        Exception: As the method does when it is called eagerly.
    """
    found = _function(method, attack, logits_fn, inputs)
    if found is not None:
        try:
            return found(inputs)
        except tf.errors.InvalidArgumentError:
            pass  # The eager call raises the operation's own error.
    return method(attack, logits_fn, **inputs)


def _function(
    method: Method, attack: Any, logits_fn: LogitsFn, inputs: Inputs
) -> Function | None:
    """Returns the trace of an attack, or None if it must be called eagerly."""
    if not attack.in_graph or not _may_trace():
        return None
    active, context = None, NOTHING
    if isinstance(logits_fn, Logits):
        if logits_fn.momentary:
            return None
        active, context = logits_fn.active, logits_fn.context
        logits_fn = logits_fn.without_traces()
    any_epsilon = bool(attack.tensor_epsilon)
    try:
        network = trace_state.read(logits_fn)
        if network.size < _LEAST:
            return None
        made = trace_state.read(attack, ["epsilon"] if any_epsilon else [])
    except (trace_state.Unreadable, RecursionError):
        return None
    states = network, made
    epsilon = attack.epsilon if any_epsilon else 0.0
    dtype = inputs["x"].dtype
    # An epsilon in float16 would be that of another ball.
    dtype = dtype if dtype.size >= 4 else tf.float32
    extra = {"epsilon": tf.cast(epsilon, dtype)}
    if active is not None:
        extra["active"] = active
    extra |= _named(context)
    whole = inputs | extra
    key = (method, *(state.key for state in states), *_surroundings(whole))
    known, function = _traces.get(key)
    if not known:
        function = _traced(method, attack, logits_fn, whole)
        owners = [owner for state in states for owner in state.owners]
        _traces.put(key, function, owners)
    if function is None:
        return None
    return lambda inputs: function(inputs | extra)


def _may_trace() -> bool:
    """Returns whether functions run eagerly here unless they are traced."""
    return (
        tf.executing_eagerly()
        and not tf.config.functions_run_eagerly()
        and not tf.distribute.has_strategy()
    )


def _surroundings(inputs: Inputs) -> tuple[Hashable, ...]:
    """Returns what else a trace depends on, such as shapes and the device."""
    return (
        tuple((k, v.dtype, tuple(v.shape)) for k, v in inputs.items()),
        tf.identity(0).device,
        keras.config.floatx(),
        keras.config.epsilon(),
        keras.config.image_data_format(),
        keras.config.dtype_policy().name,
    )


def _named(context: Context) -> Inputs:
    """Returns the tensors of a context by names that `_context_in` reads."""
    return {
        f"{field} {number}": tensor
        for field, tensors in context._asdict().items()
        for number, tensor in enumerate(tensors)
    }


def _context_in(inputs: Inputs) -> Context:
    """Takes the tensors of a context out of the inputs."""

    def taken(field: str) -> tuple[tf.Tensor, ...]:
        names = [name for name in inputs if name.startswith(f"{field} ")]
        return tuple(inputs.pop(name) for name in names)

    return Context(**{field: taken(field) for field in Context._fields})


def _traced(
    method: Method, attack: Any, logits_fn: LogitsFn, inputs: Inputs
) -> Function | None:
    """Traces an attack; returns None if that is not possible.

    Neither the trace nor its graph refers to the attack and the function.
    """

    def run(inputs: dict[str, tf.Tensor]) -> tf.Tensor:
        inputs = dict(inputs)
        radius, active = inputs.pop("epsilon"), inputs.pop("active", None)
        context = _context_in(inputs)
        made = attack.with_epsilon(radius) if attack.tensor_epsilon else attack
        source: Any = logits_fn
        if active is not None:
            source = source.only(active)
        if context != NOTHING:
            source = source.given(context)
        return method(made, source, **inputs)

    specs = {k: tf.TensorSpec(v.shape, v.dtype) for k, v in inputs.items()}
    before = _drawn()
    try:
        found = traced(run).get_concrete_function(specs)
    except Exception:
        # A function that uses NumPy or `.numpy()` can raise anything here. If
        # the attack is to blame, the eager call raises the same.
        found = None
    if _drawn() != before:
        random.setstate(before[0])
        np.random.set_state(before[1])
        return None
    return None if found is None else _unrecorded(found)


def _drawn() -> tuple[Any, Any]:
    """Returns the states of the random numbers of Python and NumPy."""
    state: Any = np.random.get_state()
    kind, keys, *rest = state
    return random.getstate(), (kind, tuple(keys.tolist()), *rest)


def _unrecorded(function: Any) -> Function:
    """Returns the function such that no outer tape records it.

    A tape would have TensorFlow trace the gradient of the whole attack.
    """

    def call(inputs: Inputs) -> tf.Tensor:
        names = list(inputs)
        run = tf.recompute_grad(
            lambda *values: function(dict(zip(names, values, strict=True)))
        )
        return tf.stop_gradient(run(*inputs.values()))

    return call
