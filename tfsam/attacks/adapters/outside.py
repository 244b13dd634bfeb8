"""What the adapters of other libraries' attacks share.

Those attacks are found by the name of their class. They run eagerly, on float32
and on a whole batch, and draw from the global generators, which are seeded for
them and given back.
"""

import contextlib
import difflib
import random
import threading
import zlib

import numpy as np
import tensorflow as tf

from tfsam import geometry
from tfsam.attacks import losses
from tfsam.attacks.base import Attack
from tfsam.attacks.logits import Logits

# Evaluation runs a thread for each device: the generators are of all of them.
_GENERATORS = threading.RLock()


class Adapter(Attack):
    """Base of adapters: a subclass writes `find`.

    Args:
        epsilon: the largest perturbation, in the units of x, >= 0.
        norm: "linf" or "l2".
        attack: name of a class of the library.
        bounds: (lowest, highest) value of x.
        options: keyword arguments for that class.

    Raises:
        ValueError: if an argument is out of its range.
    """

    in_graph = False
    # Some of a library's attacks take gradients, others do not.
    gradient_free = None

    def __init__(self, epsilon, norm, attack, bounds, options):
        super().__init__(epsilon, norm, bounds)
        if self.bounds is None:
            raise ValueError(
                f"{type(self).__name__} needs the range of the pixels. "
                f"Received: bounds={bounds}"
            )
        self.attack = attack
        self.options = options

    def perturb(self, logits_fn, x, y, seeds):
        """Returns what the library finds, projected onto the ball."""
        if tf.inside_function():
            raise ValueError(
                f"{type(self).__name__} runs eagerly, not in a tf.function or "
                f"in training. Received: attack={self}"
            )
        if self.epsilon == 0:
            return x
        with _GENERATORS, _seeded(seeds):
            found = self.find(
                _to_float32(logits_fn),
                self.clip(tf.cast(x, tf.float32)),
                losses.classes(y),
            )
        perturbation = tf.cast(found, x.dtype) - x
        return self.clip(
            x + geometry.project(perturbation, self.epsilon, self.norm)
        )

    def find(self, logits_fn, x, labels):
        """Returns the library's points.

        Args:
            logits_fn: function from pixels to a float32 tensor of logits.
            x: float32 tensor (batch, ...), inside `bounds`.
            labels: int64 tensor (batch,).
        """
        raise TypeError(f"{type(self).__name__} has no find().")

    def get_config(self):
        """The constructor's arguments."""
        config = super().get_config()
        return config | config.pop("options")


def class_named(name, classes):
    """The class of that name.

    Args:
        name: what the user asks for.
        classes: classes by name.

    Raises:
        ValueError: if there is none.
    """
    if name in classes:
        return classes[name]
    by_lower_case = {known.lower(): known for known in classes}
    close = difflib.get_close_matches(str(name).lower(), by_lower_case, 5, 0.4)
    # Nothing comes close: any will show what names look like.
    suggestions = [by_lower_case[c] for c in close] or sorted(classes)[:5]
    raise ValueError(
        f"attack must be the name of a class, such as "
        f"{', '.join(suggestions)}. Received: attack={name}"
    )


def check_options(name, options, known):
    """Raises a ValueError for an unknown option.

    Args:
        name: the attack's.
        options: keyword arguments for it.
        known: names of its options, or None if it takes any.
    """
    unknown = [] if known is None else sorted(set(options) - set(known))
    if unknown:
        raise ValueError(
            f"The options of {name} are {sorted(known)}. "
            f"Received: {', '.join(f'{k}={options[k]}' for k in unknown)}"
        )


def _to_float32(logits_fn):
    function = logits_fn
    if isinstance(logits_fn, Logits):
        # Traced once a batch. Another callable may be one of NumPy.
        compiled = tf.function(
            logits_fn, autograph=False, reduce_retracing=True
        )

        def function(x):
            return compiled(logits_fn.guarded(x))

    return lambda x: tf.cast(tf.convert_to_tensor(function(x)), tf.float32)


@contextlib.contextmanager
def _seeded(seeds):
    """Global generators that depend on `seeds` inside, and are untouched after.

    TensorFlow's cannot be read. It goes on from a number that it drew before:
    as random, or as reproducible, as it was. Deterministic ops draw nothing
    without a seed; there it is left without one.
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
