"""A Keras scope in which a pass reads and writes tensors, and no variable.

`keras.StatelessScope` drops the derivative of a write to a trainable variable,
and three kinds of code go past it: a `tf.function` keeps the tensors of the
scope in which it was traced first, `keras.RematScope` runs a layer again when
the scope is over, and a layer may hold the `tf.Variable` itself. `PureScope`
mends the first two and names the third.
"""

import random
import threading
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

    Some of Keras's layers of random augmentation choose by it what to do.
    """

    def __init__(self):
        self._before = self._after = random.getstate()
        self._entered = []

    def enter(self):
        """Begins a pass."""
        self._entered.append(random.getstate())
        random.setstate(self._before)

    def exit(self, recorded):
        """Ends a pass, whose draws count if it is the first recorded one."""
        if recorded and self._after is self._before:
            self._after = random.getstate()
        random.setstate(self._entered.pop())

    def finish(self):
        """Ends the step: what the first recorded pass drew has been drawn."""
        if self._after != self._before:
            random.setstate(self._after)


class PureScope(keras.StatelessScope):
    """Reads tensors in the place of variables, and keeps what is written.

    A gradient with respect to a variable is the sum of those with respect to
    each of its `versions`, as it is for Keras's own tape: the value that the
    pass begins with, and each value that it assigns. No gradient flows from one
    version into the one before it.

    Args:
        trained: pairs of a trainable `keras.Variable` and its tensor.
        others: pairs of another `keras.Variable` and its tensor.
        tape: the `tf.GradientTape` that records the pass, or None.
        versions: None, or the values that some trainable variables, by
            position, have in the pass, first to last. An assignment then gives
            a variable the next of them, and none to a variable without.
        draws: the `Draws` of the step, or None.

    Attributes:
        versions: for each trainable variable, a list of its values so far.
        unknown: variables that are in neither list and were assigned.
        read: positions of the trainable variables that were read.
        unrecorded: positions of those that were read while no tape recorded.
        inspecting: whether to find out about `unrecorded`.
    """

    def __init__(self, trained, others, tape=None, versions=None, draws=None):
        trained = [
            (variable, (versions or {}).get(str(place), [value])[0])
            for place, (variable, value) in enumerate(trained)
        ]
        # Without collect_losses a scope drops what layers add as losses.
        super().__init__([*trained, *others], collect_losses=True)
        self._places = {id(v): i for i, (v, _) in enumerate(trained)}
        self._known = set(self.state_mapping)
        self._begin = dict(self.state_mapping)
        self._tape = tape
        self._given = versions
        self._draws = draws
        self.versions = [[self.state_mapping[id(v)]] for v, _ in trained]
        self.unknown = []
        self.read, self.unrecorded = set(), set()
        self.inspecting = False

    def __enter__(self):
        _enter(self)
        if self._draws is not None:
            self._draws.enter()
        return super().__enter__()

    def __exit__(self, *args, **kwargs):
        super().__exit__(*args, **kwargs)
        if self._draws is not None:
            self._draws.exit(recorded=self._tape is not None)
        _exit()

    def get_current_value(self, variable):
        """The tensor in the variable's place, None for an unknown one."""
        place = self._places.get(id(variable))
        if place is not None:
            self.read.add(place)
            if self.inspecting and not _recording():
                self.unrecorded.add(place)
        return super().get_current_value(variable)

    def add_update(self, update):
        """Keeps a new value of a variable, for later reads and `versions`."""
        variable, value = update
        value = tf.convert_to_tensor(value)
        place = self._places.get(id(variable))
        if place is not None:
            value = self._version(place, value)
        elif id(variable) not in self._known:
            self._known.add(id(variable))
            self.unknown.append(variable)
        super().add_update((variable, value))

    def _version(self, place, value):
        """What an assignment gives a trainable variable."""
        versions = self.versions[place]
        if self._given is not None:
            given = self._given.get(str(place), ())
            if len(versions) >= len(given):
                return versions[-1]
            value = given[len(versions)]
        else:
            # An assignment ends what a tape knows of the value.
            value = tf.stop_gradient(value)
        versions.append(value)
        if self._tape is not None:
            self._tape.watch(value)
        return value

    def again(self, restarted=()):
        """A scope for a second call that leaves the first one's writes.

        Args:
            restarted: variables that begin with the value that this scope began
                with, instead of the current one.
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
    """Reads the variables themselves, and keeps what is written.

    As for Keras's tape outside of any scope, no gradient flows through an
    assignment, from the new value of a variable into what it was made of.

    Args:
        tape: the `tf.GradientTape` that records the pass, or None.
        values: pairs of a `keras.Variable` and a value to read in its place.
    """

    def __init__(self, tape, values=()):
        super().__init__(values, collect_losses=tape is not None)
        self._tape = tape
        self._assigned = {}

    def add_update(self, update):
        """Keeps a new value of a variable, for later reads."""
        variable, value = update
        value = tf.convert_to_tensor(value)
        if value.dtype.is_floating:
            value = tf.stop_gradient(value)
            if self._tape is not None:
                self._tape.watch(value)
        self._assigned.setdefault(id(variable), []).append(value)
        super().add_update((variable, value))

    def assigned(self, variable):
        """Returns the values that a variable was assigned, first to last."""
        return self._assigned.get(id(variable), [])


def current():
    """The `PureScope` of this thread, None outside of any."""
    scopes = getattr(_local, "scopes", ())
    return scopes[-1] if scopes else None


def _recording():
    """Whether operations are recorded, which `keras.remat` stops."""
    with tf.GradientTape() as tape:
        value = tf.constant(0.0)
        tape.watch(value)
        copied = tf.identity(value)
    return tape.gradient(copied, value) is not None


def _enter(scope):
    global _entered
    with _lock:
        if not _entered:
            _plain.update(call=_FUNCTION.__call__, remat=tf.recompute_grad)
            _FUNCTION.__call__ = _call
            tf.recompute_grad = _recompute_grad
        _entered += 1
    _local.scopes = [*getattr(_local, "scopes", ()), scope]


def _exit():
    global _entered
    _local.scopes = _local.scopes[:-1]
    with _lock:
        _entered -= 1
        if not _entered:
            _FUNCTION.__call__ = _plain["call"]
            tf.recompute_grad = _plain["remat"]


def _call(function, *args, **kwargs):
    """Calls a `tf.function`; in a scope as a part of the graph around it.

    Its own graph reads the tensors of the scope in which it was traced, or the
    variables themselves, and what it assigns is lost outside of it.
    """
    if current() is None or type(function) is not _FUNCTION:
        return _plain["call"](function, *args, **kwargs)
    inner = function.python_function
    if getattr(function, "_autograph", True) and not tf.executing_eagerly():
        inner = _with_autograph(inner)
    return inner(*args, **kwargs)


def _with_autograph(function):
    """The function, with Python's control flow as operations of the graph."""

    def call(*args, **kwargs):
        return function(*args, **kwargs)

    return tf.autograph.to_graph(call)


def _recompute_grad(function):
    """TensorFlow's own; in a scope the function, which is not run again.

    Run again it would read the variables, and it has no gradients for tensors
    that are not among its arguments.
    """
    return function if current() is not None else _plain["remat"](function)
