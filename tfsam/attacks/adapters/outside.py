"""Base class of adapters for attacks of other libraries.

An attack of another library is selected by the name of its class. It runs
eagerly, in float32 and on a whole batch. It draws from the global random number
generators, whose states are set before and restored after the attack.
"""

import contextlib
import difflib
import random
import threading
import zlib
from collections.abc import Collection
from collections.abc import Iterator
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tfsam.attacks import losses
from tfsam.attacks.base import Attack
from tfsam.attacks.base import Bounds
from tfsam.attacks.logits import Logits
from tfsam.attacks.logits import LogitsFn

# An evaluation runs a thread for each device, and the threads share the global
# generators.
_GENERATORS = threading.RLock()


class Adapter(Attack):
    """Base class of adapters; a subclass implements `find`.

    Args:
        epsilon: Largest perturbation, in the units of x, >= 0.
        norm: "linf", "l2" or "l1".
        attack: Name of a class of the library.
        bounds: (lowest, highest) value of x, two numbers.
        options: Keyword arguments of that class.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> import tensorflow as tf
        >>> class Darken(Adapter):
        ...     def find(self, logits_fn, x, labels):
        ...         return x - 1.0
        >>> attack = Darken(0.25, "linf", "Darken", (0.0, 1.0), {})
        >>> x, y = tf.constant([[0.5, 0.1]]), tf.constant([0])
        >>> attack(lambda x: x, x, y).numpy().tolist()
        [[0.25, 0.0]]
    """

    in_graph = False
    two_bounds = True
    # Depends on the attack of the library.
    gradient_free = None
    bounds: tuple[float, float]

    def __init__(
        self,
        epsilon: float,
        norm: str,
        attack: str,
        bounds: Bounds,
        options: dict[str, Any],
    ) -> None:
        super().__init__(epsilon, norm, bounds)
        if self.bounds is None:
            raise ValueError(
                f"{type(self).__name__} needs bounds, the range of the pixels. "
                f"Received: bounds={bounds}"
            )
        self.attack = attack
        self.options = options

    def perturb(
        self, logits_fn: LogitsFn, x: tf.Tensor, y: tf.Tensor, seeds: tf.Tensor
    ) -> tf.Tensor:
        """Returns the result of the library, projected onto the ball."""
        if tf.inside_function():
            raise ValueError(
                f"{type(self).__name__} runs eagerly, not in a tf.function or "
                "in training; train with one of tfsam's own attacks. "
                f"Received: attack={self}"
            )
        if self.epsilon == 0:
            return x
        with _GENERATORS, _seeded(seeds):
            found = self.find(
                _to_float32(logits_fn),
                self.clip(tf.cast(x, tf.float32)),
                losses.classes(y),
            )
        return self.project(x, tf.cast(found, x.dtype))

    def find(self, logits_fn: LogitsFn, x: tf.Tensor, labels: tf.Tensor) -> Any:
        """Runs the attack of the library; implemented by subclasses.

        Args:
            logits_fn: Function from pixels to a float32 tensor of logits.
            x: float32 tensor (batch, ...), inside `bounds`.
            labels: int64 tensor (batch,), the true classes.

        Returns:
            Array or tensor of x's shape. It may lie outside the ball.

        Raises:
            TypeError: If the subclass does not implement it.
        """
        raise TypeError(
            f"An Adapter must implement find(). Received: {type(self).__name__}"
        )

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments, the options among them."""
        config = super().get_config()
        return config | config.pop("options")


def class_named(name: str, classes: Mapping[str, Any]) -> Any:
    """Returns the class of a given name.

    Args:
        name: Name of the class.
        classes: Classes by name.

    Returns:
        `classes[name]`.

    Raises:
        ValueError: If there is none. The message suggests similar names.

    Example:
        >>> class_named("Square", {"Square": int})
        <class 'int'>
    """
    if name in classes:
        return classes[name]
    by_lower_case = {known.lower(): known for known in classes}
    close = difflib.get_close_matches(str(name).lower(), by_lower_case, 5, 0.4)
    # Without a similar name, shows a few as examples.
    suggestions = [by_lower_case[c] for c in close] or sorted(classes)[:5]
    raise ValueError(
        f"attack must be the name of a class, such as "
        f"{', '.join(suggestions)}. Received: attack={name}"
    )


def check_options(
    name: str, options: Mapping[str, Any], known: Collection[str] | None
) -> None:
    """Rejects unknown options.

    Args:
        name: Name of the attack, for the message.
        options: Keyword arguments for the attack.
        known: Names of its options, or None if it takes any.

    Raises:
        ValueError: If an option is unknown.

    Example:
        >>> check_options("LinfPGD", {"steps": 10}, ["steps", "rel_stepsize"])
    """
    unknown = [] if known is None else sorted(set(options) - set(known))
    if unknown:
        raise ValueError(
            f"The options of {name} are {sorted(known or ())}. "
            f"Received: {', '.join(f'{k}={options[k]}' for k in unknown)}"
        )


def _to_float32(logits_fn: LogitsFn) -> LogitsFn:
    """Returns a function whose logits are float32 tensors."""
    function = logits_fn
    if isinstance(logits_fn, Logits):
        # Traced once for a batch. Other callables may use NumPy, which cannot
        # be traced.
        compiled = tf.function(
            _of_pixels(logits_fn), autograph=False, reduce_retracing=True
        )

        def function(x: tf.Tensor) -> tf.Tensor:
            return compiled(logits_fn.guarded(x))

    return lambda x: tf.cast(tf.convert_to_tensor(function(x)), tf.float32)


def _of_pixels(logits_fn: LogitsFn) -> LogitsFn:
    """Returns the same function with gradients at the pixels alone.

    The tapes of outside libraries watch variables, too, so that TensorFlow
    computes the gradients of all weights: a waste, and unsafe for some layers
    (see `support.onednn`).
    """

    @tf.custom_gradient
    def logits_of(x: tf.Tensor) -> Any:
        with tf.GradientTape(True, watch_accessed_variables=False) as tape:
            tape.watch(x)
            logits = logits_fn(x)

        def gradient(upstream: tf.Tensor, variables: Any = ()) -> Any:
            slopes = tape.gradient(logits, x, upstream)
            return (slopes, [None] * len(variables)) if variables else slopes

        return logits, gradient

    return logits_of


@contextlib.contextmanager
def _seeded(seeds: tf.Tensor) -> Iterator[None]:
    """Seeds the global generators inside the context and restores them after.

    The state of TensorFlow's generator cannot be read. It is therefore seeded
    afterwards with a number that it drew before, which is as random, or as
    reproducible, as it was. With deterministic ops and without a global seed,
    TensorFlow cannot draw, and is left without a seed.
    """
    seed = zlib.crc32(seeds.numpy().tobytes())
    python, numpy = random.getstate(), np.random.get_state()
    following = None
    with contextlib.suppress(RuntimeError):
        drawn = tf.random.uniform([], maxval=2**31 - 1, dtype=tf.int32)
        following = int(drawn)
    random.seed(seed)
    np.random.seed(seed)
    tf.random.set_seed(seed)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        tf.random.set_seed(following)
