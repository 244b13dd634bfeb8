"""The states of random number generators, set for a call and restored after it.

A program may draw random numbers from generators of its own, and from the
global ones of Python, NumPy and TensorFlow. `seeded` sets them all.
"""

import contextlib
import functools
import random
import threading
import types
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.eager import context

from tfsam.support.identity import bytecode

_OWN = (
    tf.random.Generator,
    np.random.Generator,
    np.random.RandomState,
    random.Random,
)

# Types of values that hold no generator.
_LEAVES = (
    *(str, bytes, bool, int, float, complex, type(None), type),
    *(types.ModuleType, np.ndarray, np.generic, tf.Tensor, tf.Variable),
)

# Largest number of objects that are looked at.
_MOST = 100_000

# The global generators belong to the process, and not to a thread.
_lock = threading.RLock()


@contextlib.contextmanager
def seeded(seed: int, generators: Iterable[Any] = ()) -> Iterator[None]:
    """Sets the state of every generator, and restores it at the end.

    The random operations of a `tf.function` keep states of their own, which
    cannot be set. Other threads wait at their own calls of `seeded`.

    Args:
        seed: Integer >= 0.
        generators: Generators beside the global ones; see `reachable`.

    Yields:
        None.

    Example:
        >>> def draws():
        ...     with seeded(5):
        ...         return float(tf.random.normal([])), np.random.rand()
        >>> draws() == draws()
        True
    """
    with _lock, contextlib.ExitStack() as stack:
        for place, generator in enumerate([None, *generators]):
            words = np.random.SeedSequence([seed, place]).generate_state(1)
            for state in _states(generator):
                stack.enter_context(state(int(words[0] >> 1)))
        yield


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Keeps other threads from calling `seeded`.

    Yields:
        None.

    Example:
        >>> with alone():
        ...     number = tf.random.normal([])
    """
    with _lock:
        yield


def _states(generator: Any) -> list[Callable[[int], Any]]:
    """Returns contexts that set a generator; None stands for the global ones.

    Args:
        generator: A generator, or None.
    """
    if generator is None:
        return [
            _global_of_tensorflow,
            *(
                functools.partial(_of_python, module)
                for module in (random, _Global)
            ),
            functools.partial(_of_tensorflow, tf.random.get_global_generator()),
        ]
    if isinstance(generator, tf.random.Generator):
        return [functools.partial(_of_tensorflow, generator)]
    if isinstance(generator, np.random.Generator):
        return [functools.partial(_of_numpy, generator)]
    return [functools.partial(_of_python, generator)]


class _Global:
    """The global generator of NumPy, with the methods of Python's."""

    seed = staticmethod(np.random.seed)
    getstate = staticmethod(np.random.get_state)
    setstate = staticmethod(np.random.set_state)


@contextlib.contextmanager
def _of_python(generator: Any, seed: int) -> Iterator[None]:
    if isinstance(generator, np.random.RandomState):
        before = generator.get_state()
        restore = generator.set_state
    else:
        before, restore = generator.getstate(), generator.setstate
    generator.seed(seed)
    try:
        yield
    finally:
        restore(before)


@contextlib.contextmanager
def _of_numpy(generator: np.random.Generator, seed: int) -> Iterator[None]:
    bits = generator.bit_generator
    before = bits.state
    bits.state = type(bits)(seed).state
    try:
        yield
    finally:
        bits.state = before


@contextlib.contextmanager
def _of_tensorflow(generator: Any, seed: int) -> Iterator[None]:
    before = tf.identity(generator.state)
    generator.reset_from_seed(seed)
    try:
        yield
    finally:
        generator.reset(before)


@contextlib.contextmanager
def _global_of_tensorflow(seed: int) -> Iterator[None]:
    """Sets the seed of `tf.random`, from which eager operations draw theirs."""
    state = context.context()
    # Without a seed, there is no `_rng` yet, and none is used.
    before = state._seed, getattr(state, "_rng", None)
    tf.random.set_seed(seed)
    try:
        yield
    finally:
        state._seed, state._rng = before


def reachable(function: Any) -> list[Any]:
    """Finds the generators that a callable can reach.

    These are generators of TensorFlow, NumPy and Python in its closure, in the
    globals that its code names, and in the attributes of objects.

    Args:
        function: The callable.

    Returns:
        A list of generators, in the order in which they are found.

    Example:
        >>> generator = np.random.default_rng(0)
        >>> reachable(lambda x: x + generator.normal()) == [generator]
        True
    """
    found: list[Any] = []
    seen: set[int] = set()
    left = [function]
    while left and len(seen) < _MOST:
        value = left.pop()
        if id(value) in seen or isinstance(value, _LEAVES):
            continue
        seen.add(id(value))
        if isinstance(value, _OWN):
            found.append(value)
        else:
            left.extend(reversed(list(_parts(value))))
    return found


def _parts(value: Any) -> Iterator[Any]:
    """Yields the objects that an object refers to."""
    if isinstance(value, types.FunctionType):
        yield from _of_function(value)
    elif isinstance(value, types.MethodType):
        yield from (value.__self__, value.__func__)
    elif isinstance(value, functools.partial):
        yield from (value.func, *value.args, *value.keywords.values())
    elif isinstance(value, Mapping):
        yield from list(value.values())
    elif isinstance(value, (list, tuple, set, frozenset)):
        yield from value
    else:
        yield from getattr(value, "__dict__", {}).values()
        yield getattr(value, "python_function", None)  # Of a tf.function.
        for name in ("__call__", "call"):
            yield getattr(type(value), name, None)


def _of_function(function: types.FunctionType) -> Iterator[Any]:
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # An empty cell.
            yield cell.cell_contents
    yield from function.__defaults__ or ()
    yield from (function.__kwdefaults__ or {}).values()
    names, _, _ = bytecode.read(function.__code__)
    for name in names:
        yield function.__globals__.get(name)
