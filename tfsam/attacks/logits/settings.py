"""Settings of a `Logits` that attacks follow; defaults for other functions."""

import copy
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tfsam.attacks.logits.network import Logits
from tfsam.attacks.logits.network import LogitsFn
from tfsam.attacks.logits.untraced import Untraced


def setting(logits_fn: LogitsFn, name: str) -> Any:
    """Returns an attribute of a `Logits`, and None for any other function.

    Attributes of other callables are ignored, because they may have the same
    name and another meaning: the `loss` of a compiled Keras model, for
    instance, takes (y_true, y_pred).

    Args:
        logits_fn: Function from pixels to logits.
        name: Name of an attribute of `Logits`.

    Example:
        >>> setting(Logits(lambda x: x, rows=8), "rows")
        8
        >>> setting(lambda x: x, "rows")
    """
    if isinstance(logits_fn, Untraced):
        return vars(logits_fn).get(name)
    return getattr(logits_fn, name) if isinstance(logits_fn, Logits) else None


def examples(logits_fn: LogitsFn, x: tf.Tensor) -> tf.Tensor:
    """Returns which examples are to be attacked.

    Args:
        logits_fn: Function from pixels to logits.
        x: Float tensor (batch, ...).

    Returns:
        Bool tensor (batch,): the attribute `active` of a `Logits`, else True
        for all.

    Example:
        >>> import tensorflow as tf
        >>> examples(lambda x: x, tf.zeros([2, 3])).numpy().tolist()
        [True, True]
    """
    active = setting(logits_fn, "active")
    return tf.ones(tf.shape(x)[:1], tf.bool) if active is None else active


def is_surrogate(logits_fn: LogitsFn) -> bool:
    """Returns whether the adversarial examples are for another network.

    Args:
        logits_fn: Function from pixels to logits.

    Example:
        >>> is_surrogate(Logits(lambda x: x).as_surrogate())
        True
    """
    return bool(setting(logits_fn, "surrogate"))


def in_turn(logits_fn: LogitsFn, copies: int, x: tf.Tensor) -> LogitsFn:
    """Returns the same function, which processes copies of a batch in turn.

    If the network is not run in blocks, it would process all copies at once,
    and use more memory than the batch size was chosen for.

    Args:
        logits_fn: Function from pixels to logits.
        copies: Number of copies of a batch in each call, >= 1.
        x: Float tensor (batch, ...), of a known shape if `copies` > 1.

    Returns:
        Function from pixels (copies * batch, ...) to logits.

    Example:
        >>> import tensorflow as tf
        >>> in_turn(lambda x: x, 9, tf.zeros([2, 3])).parts  # One batch each.
        9
    """
    if copies == 1 or setting(logits_fn, "rows"):
        return logits_fn
    known = isinstance(logits_fn, Logits)
    other: Any = copy.copy(logits_fn) if known else Logits(logits_fn)
    most = max(other.most or 0, x.shape[0])
    other.parts = next(
        parts
        for parts in range(1, copies + 1)
        if copies % parts == 0 and copies // parts * x.shape[0] <= most
    )
    return other


def compiled(
    logits_fn: LogitsFn, function: Callable[..., Any]
) -> Callable[..., Any]:
    """Compiles an attack's loop by XLA if `logits_fn` has `jit_loops`.

    Args:
        logits_fn: Function from pixels to logits.
        function: Pure function from tensors to tensors. It must not draw random
            numbers, which are different under XLA.

    Returns:
        The function, compiled or as it is.

    Example:
        >>> compiled(lambda x: x, abs) is abs
        True
    """
    if not setting(logits_fn, "jit_loops"):
        return function
    return tf.function(function, jit_compile=True, autograph=False)
