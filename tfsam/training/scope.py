"""A Keras scope in which a pass reads and writes tensors instead of variables.

`keras.StatelessScope` drops the derivative of a write to a trainable variable,
and three kinds of code escape it: a `tf.function` keeps the tensors of the
scope in which it was first traced, `keras.RematScope` runs a layer again after
the scope has ended, and a layer may hold the `tf.Variable` itself. `PureScope`
handles the first two; `foreign_code.py` detects the third.
"""

import random
import threading
from collections.abc import Callable
from collections.abc import Iterable
from typing import Any

import keras
import tensorflow as tf

_FUNCTION = type(tf.function(lambda: None))
_lock = threading.Lock()
_local = threading.local()
_plain: dict[str, Any] = {}
_entered = 0


class Draws:
    """The state of Python's `random` that all passes of a step begin with.

    Some of Keras's layers of random augmentation use it to choose an operation.
    """

    def __init__(self) -> None:
        self._before = self._after = random.getstate()
        self._entered: list[Any] = []

    def enter(self) -> None:
        """Begins a pass."""
        self._entered.append(random.getstate())
        random.setstate(self._before)

    def exit(self, recorded: bool) -> None:
        """Ends a pass.

        Args:
            recorded: whether a tape recorded the pass. The draws of the first
                recorded pass are those of the step.
        """
        if recorded and self._after is self._before:
            self._after = random.getstate()
        random.setstate(self._entered.pop())

    def finish(self) -> None:
        """Ends the step: advances `random` by the draws of its first pass."""
        if self._after != self._before:
            random.setstate(self._after)


class PureScope(keras.StatelessScope):
    """Replaces variables by tensors, and records assignments.

    As with Keras's own tape, a gradient with respect to a variable is the sum
    of those with respect to its `versions`: the value that the pass begins
    with, and each value that a layer assigns. No gradient flows from one
    version to the one before it.

    Args:
        trained: pairs of a trainable `keras.Variable` and its tensor.
        others: pairs of another `keras.Variable` and its tensor.
        tape: the `tf.GradientTape` that records the pass, or None.
        versions: None, or the values that some trainable variables, by
            position, take in the pass, first to last. An assignment then gives
            a variable its next value, and leaves a variable without any as it
            is.
        draws: the `Draws` of the step, or None.

    Attributes:
        versions: for each trainable variable, a list of its values so far.
        unknown: assigned variables that are in neither list.
        read: positions of the trainable variables that were read.
        unrecorded: positions of those that were read while no tape recorded.
        inspecting: whether to fill `unrecorded`.
    """

    def __init__(
        self,
        trained: Iterable[tuple[Any, tf.Tensor]],
        others: Iterable[tuple[Any, tf.Tensor]],
        tape: Any = None,
        versions: dict[str, list[tf.Tensor]] | None = None,
        draws: Draws | None = None,
    ) -> None:
        trained = [
            (variable, (versions or {}).get(str(place), [value])[0])
            for place, (variable, value) in enumerate(trained)
        ]
        # Without collect_losses a scope drops losses that layers add.
        super().__init__([*trained, *others], collect_losses=True)
        self._places = {id(v): i for i, (v, _) in enumerate(trained)}
        self._known = set(self.state_mapping)
        self._begin = dict(self.state_mapping)
        self._tape = tape
        self._given = versions
        self._draws = draws
        self.versions = [[self.state_mapping[id(v)]] for v, _ in trained]
        self.unknown: list[Any] = []
        self.read: set[int] = set()
        self.unrecorded: set[int] = set()
        self.inspecting = False

    def __enter__(self) -> Any:
        _enter(self)
        if self._draws is not None:
            self._draws.enter()
        return super().__enter__()

    def __exit__(self, *args: Any, **kwargs: Any) -> None:
        super().__exit__(*args, **kwargs)
        if self._draws is not None:
            self._draws.exit(recorded=self._tape is not None)
        _exit()

    def get_current_value(self, variable: Any) -> Any:
        """Returns the tensor in a variable's place.

        Args:
            variable: a `keras.Variable`.

        Returns:
            A tensor; None for a variable that the scope does not know.
        """
        place = self._places.get(id(variable))
        if place is not None:
            self.read.add(place)
            if self.inspecting and not _recording():
                self.unrecorded.add(place)
        return super().get_current_value(variable)

    def add_update(self, update: tuple[Any, Any]) -> None:
        """Keeps a new value of a variable, for later reads and `versions`.

        Args:
            update: pair of a `keras.Variable` and its new value.
        """
        variable, value = update
        value = tf.convert_to_tensor(value)
        place = self._places.get(id(variable))
        if place is not None:
            value = self._version(place, value)
        elif id(variable) not in self._known:
            self._known.add(id(variable))
            self.unknown.append(variable)
        super().add_update((variable, value))

    def _version(self, place: int, value: tf.Tensor) -> tf.Tensor:
        """Returns the value that an assignment gives a trainable variable."""
        versions = self.versions[place]
        if self._given is not None:
            given = self._given.get(str(place), [])
            if len(versions) >= len(given):
                return versions[-1]
            value = given[len(versions)]
        else:
            # An assignment cuts the value off from the tape.
            value = tf.stop_gradient(value)
        versions.append(value)
        if self._tape is not None:
            self._tape.watch(value)
        return value

    def again(self, restarted: Iterable[Any] = ()) -> "PureScope":
        """Returns a scope for a second call, whose writes are dropped.

        Args:
            restarted: variables that have the value with which this scope
                began, instead of their current one.
        """
        scope = PureScope((), (), versions={})
        scope.collect_losses = False
        scope.state_mapping = dict(self.state_mapping)
        for variable in restarted:
            scope.state_mapping[id(variable)] = self._begin[id(variable)]
        scope.versions = [values[-1:] for values in self.versions]
        scope._places, scope._known = self._places, set(self._known)
        return scope


class AssigningScope(keras.StatelessScope):
    """Reads the variables themselves, and records assignments.

    As with Keras's tape outside of any scope, no gradient flows through an
    assignment, from a variable's new value into the tensors it came from.

    Args:
        tape: the `tf.GradientTape` that records the pass, or None.
        values: pairs of a `keras.Variable` and a value to read in its place.
    """

    def __init__(
        self, tape: Any, values: Iterable[tuple[Any, tf.Tensor]] = ()
    ) -> None:
        super().__init__(values, collect_losses=tape is not None)
        self._tape = tape
        self._assigned: dict[int, list[tf.Tensor]] = {}

    def add_update(self, update: tuple[Any, Any]) -> None:
        """Keeps a new value of a variable, for later reads.

        Args:
            update: pair of a `keras.Variable` and its new value.
        """
        variable, value = update
        value = tf.convert_to_tensor(value)
        if value.dtype.is_floating:
            value = tf.stop_gradient(value)
            if self._tape is not None:
                self._tape.watch(value)
        self._assigned.setdefault(id(variable), []).append(value)
        super().add_update((variable, value))

    def assigned(self, variable: Any) -> list[tf.Tensor]:
        """Returns the values that a variable was assigned, first to last.

        Args:
            variable: a `keras.Variable`.
        """
        return self._assigned.get(id(variable), [])


def current() -> PureScope | None:
    """Returns the innermost `PureScope` of this thread, None without one."""
    scopes = getattr(_local, "scopes", ())
    return scopes[-1] if scopes else None


def _recording() -> bool:
    """Returns whether operations are recorded, which `keras.remat` stops."""
    with tf.GradientTape() as tape:
        value = tf.constant(0.0)
        tape.watch(value)
        copied = tf.identity(value)
    return tape.gradient(copied, value) is not None


def _enter(scope: PureScope) -> None:
    global _entered
    with _lock:
        if not _entered:
            _plain.update(call=_FUNCTION.__call__, remat=tf.recompute_grad)
            _FUNCTION.__call__ = _call
            tf.recompute_grad = _recompute_grad
        _entered += 1
    _local.scopes = [*getattr(_local, "scopes", ()), scope]


def _exit() -> None:
    global _entered
    _local.scopes = _local.scopes[:-1]
    with _lock:
        _entered -= 1
        if not _entered:
            _FUNCTION.__call__ = _plain["call"]
            tf.recompute_grad = _plain["remat"]


def _call(function: Any, *args: Any, **kwargs: Any) -> Any:
    """Calls a `tf.function`; in a scope, as a part of the graph around it.

    Its own graph reads the tensors of the scope in which it was traced, or the
    variables themselves, and its assignments are lost outside of it.
    """
    if current() is None or type(function) is not _FUNCTION:
        return _plain["call"](function, *args, **kwargs)
    inner = function.python_function
    if getattr(function, "_autograph", True) and not tf.executing_eagerly():
        inner = _with_autograph(inner)
    return inner(*args, **kwargs)


def _with_autograph(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the function with control flow converted to graph operations."""

    def call(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    converted: Callable[..., Any] = tf.autograph.to_graph(call)
    return converted


def _recompute_grad(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns TensorFlow's wrapper, or in a scope the function itself.

    Running it again would read the variables, and give no gradients for
    tensors that are not among its arguments.
    """
    if current() is not None:
        return function
    wrapped: Callable[..., Any] = _plain["remat"](function)
    return wrapped
