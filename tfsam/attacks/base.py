"""The contract of an attack, and what attacks share.

An attack is any callable

    attack(logits_fn, x, y, seed) -> x_adv

made by a factory that takes `epsilon=`, `norm=` and `bounds=` by keyword, and
options of its own:

- `logits_fn`: float pixels (batch, ...) to float32 logits (batch, classes), in
  inference mode, without side effects, differentiable.
- `x`: float (batch, ...), inside `bounds`; `y`: class numbers (batch,), or
  one-hot or smoothed labels (batch, classes).
- `seed`: an int, an int32 tensor (2,), or one of (batch, 2), a row an example.
- `x_adv`: of x's shape and dtype, inside `bounds`, within `epsilon` of x.

`Attack` is a convenient base for it: a subclass writes `perturb`. Nothing but
the contract is required of other people's attacks.
"""

import numbers

import tensorflow as tf

from tfsam.attacks import losses
from tfsam.geometry import check_norm
from tfsam.geometry import check_radius


class Attack:
    """Base of attacks: validates, converts, and calls `perturb`.

    Args:
        epsilon: the largest perturbation, in the units of x, >= 0.
        norm: "linf" or "l2".
        bounds: (lowest, highest) value of x, or None for inputs that are not
            images.

    Attributes:
        in_graph: whether the attack can be traced by `tf.function`. False, the
            default, is slower in evaluation, and refused in training.

    Raises:
        ValueError: if an argument is out of its range.
    """

    in_graph = False

    def __init__(self, epsilon, norm="linf", bounds=(0.0, 1.0)):
        self.epsilon = check_radius("epsilon", epsilon)
        self.norm = check_norm(norm)
        self.bounds = _check_bounds(bounds)

    def __call__(self, logits_fn, x, y, seed=0):
        """Attacks a batch.

        Args:
            logits_fn: function from pixels to logits.
            x: float array or tensor (batch, ...).
            y: labels, array or tensor.
            seed: an int, int32 (2,) or int32 (batch, 2).

        Returns:
            A tensor of x's shape and dtype, through which no gradient flows;
            within epsilon of x to the rounding of that dtype.

        Raises:
            ValueError: if x is not of a floating-point dtype.
        """
        x = tf.convert_to_tensor(x)
        if not x.dtype.is_floating:
            raise ValueError(
                "x must be of a floating-point dtype, with pixels in "
                f"{self.bounds}. Received: x.dtype={x.dtype.name}"
            )
        # float16 near 1 has steps of 4.9e-4: half of a 0.25/255 attack step.
        precise = x if x.dtype.size >= 4 else tf.cast(x, tf.float32)
        x_adv = self.perturb(
            logits_fn,
            precise,
            tf.convert_to_tensor(y),
            example_seeds(seed, tf.shape(x)[0]),
        )
        x_adv = tf.ensure_shape(tf.cast(x_adv, x.dtype), x.shape)
        return tf.stop_gradient(x_adv)

    def perturb(self, logits_fn, x, y, seeds):
        """Returns x_adv; `seeds` is int32 (batch, 2)."""
        raise TypeError(f"{type(self).__name__} has no perturb().")

    def clip(self, x):
        """Brings pixels back into `bounds`."""
        return x if self.bounds is None else tf.clip_by_value(x, *self.bounds)

    def get_config(self):
        """The constructor's arguments, so that a saved model can be loaded."""
        return dict(self.__dict__)

    @classmethod
    def from_config(cls, config):
        """Builds the attack that `get_config` described."""
        return cls(**config)

    def __repr__(self):
        arguments = ", ".join(f"{k}={v!r}" for k, v in self.__dict__.items())
        return f"{type(self).__name__}({arguments})"


class Logits:
    """A function from pixels to float32 logits that attacks may compile.

    `Attack`s take any callable; one of this class also says whether XLA may
    compile its gradient, and keeps the traced gradient for the next attack:
    a sweep over epsilons traces and compiles a network once.

    Args:
        function: pixels to logits, a pure function of the pixels.
        jit_compile: whether to compile its gradient with XLA.
    """

    def __init__(self, function, jit_compile=False):
        self.function = function
        self.jit_compile = jit_compile
        self._gradients = {}

    def __call__(self, x):
        """Returns the logits, (batch, classes)."""
        logits = self.function(x)
        return logits if logits.dtype.size > 4 else tf.cast(logits, tf.float32)

    def gradient(self, loss):
        """The `input_gradient` of a loss; in a graph it is traced once."""
        if not (self.jit_compile or tf.inside_function()):
            return _input_gradient(self, loss)
        if loss not in self._gradients:
            self._gradients[loss] = tf.function(
                _input_gradient(self, loss),
                jit_compile=self.jit_compile,
                autograph=False,
            )
        return self._gradients[loss]


def input_gradient(logits_fn, loss=losses.cross_entropy):
    """The gradient of a loss with respect to the pixels alone.

    Args:
        logits_fn: function from pixels to logits.
        loss: function of (logits, labels) to one number an example.

    Returns:
        A function of (x, labels) to (gradient, logits). Each example's gradient
        is that of its own loss, whatever the batch.
    """
    if isinstance(logits_fn, Logits):
        return logits_fn.gradient(loss)
    return _input_gradient(logits_fn, loss)


def _input_gradient(logits_fn, loss):
    def gradient(x, labels):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(x)
            logits = logits_fn(x)
            total = tf.reduce_sum(loss(logits, labels))
        result = tape.gradient(total, x)
        if result is None:
            raise ValueError(
                "A gradient attack needs logits that depend on the pixels by "
                "differentiable operations; no gradient flows. "
                f"Received: logits_fn={logits_fn}"
            )
        return result, logits

    return gradient


def example_seeds(seed, batch):
    """A seed for each example of a batch.

    An int gives the rows (seed, position); a pair is a key of which position i
    takes the i-th draw, whatever the size of the batch.

    Args:
        seed: an int, an int32 tensor (2,) or an int32 tensor (batch, 2).
        batch: number of examples, an int or a scalar tensor.

    Returns:
        An int32 tensor (batch, 2).

    Raises:
        ValueError: if `seed` has another shape.
    """
    if isinstance(seed, numbers.Integral):
        # Any Python int will do: what an int32 holds of it is kept.
        seed = (int(seed) + 2**31) % 2**32 - 2**31
        positions = tf.range(batch, dtype=tf.int32)
        return tf.stack([tf.fill([batch], seed), positions], axis=1)
    seed = tf.cast(tf.convert_to_tensor(seed), tf.int32)
    if seed.shape.rank == 2:
        return seed
    if seed.shape.as_list() != [2]:
        raise ValueError(
            "seed must be an int, or of shape (2,) or (batch, 2). "
            f"Received: seed of shape {seed.shape}"
        )
    return tf.random.stateless_uniform(
        [batch, 2],
        seed,
        minval=None,
        maxval=None,
        dtype=tf.int32,
        alg="philox",
    )


def _check_bounds(bounds):
    if bounds is None:
        return None
    if len(bounds) != 2 or not bounds[0] < bounds[1]:
        raise ValueError(
            "bounds must be (lowest, highest) or None. "
            f"Received: bounds={bounds}"
        )
    return (float(bounds[0]), float(bounds[1]))
