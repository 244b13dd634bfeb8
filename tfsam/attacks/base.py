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

import copy
import numbers

import tensorflow as tf

from tfsam.attacks import losses
from tfsam.geometry import check_norm
from tfsam.geometry import check_radius

# Blocks of examples that go through the network side by side. On two cores two
# were as fast as four, in half the memory (BUILD_NOTES.md).
_PARALLEL_BLOCKS = 2


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
    # Whether `perturb` computes with an epsilon that is a tensor: a sweep over
    # epsilons then traces it once.
    tensor_epsilon = False
    # Whether `perturb` leaves out the examples that are not `examples` of its
    # logits_fn: a network in blocks is then asked about the others only.
    selective = False

    def __init__(self, epsilon, norm="linf", bounds=(0.0, 1.0)):
        self.epsilon = check_radius("epsilon", epsilon)
        self.norm = check_norm(norm)
        self.bounds = _check_bounds(bounds)

    def __call__(self, logits_fn, x, y, seed=0, start=None):
        """Attacks a batch.

        Args:
            logits_fn: function from pixels to logits.
            x: float array or tensor (batch, ...).
            y: labels, array or tensor.
            seed: an int, int32 (2,) or int32 (batch, 2).
            start: where to start instead of at x or at random, for attacks
                whose `perturb` can; a tensor of x's shape.

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
        if start is not None:
            start = {"start": tf.cast(start, precise.dtype)}
        x_adv = self.perturb(
            logits_fn,
            precise,
            tf.convert_to_tensor(y),
            example_seeds(seed, tf.shape(x)[0]),
            **(start or {}),
        )
        x_adv = tf.ensure_shape(tf.cast(x_adv, x.dtype), x.shape)
        return tf.stop_gradient(x_adv)

    def perturb(self, logits_fn, x, y, seeds):
        """Returns x_adv; `seeds` is int32 (batch, 2)."""
        raise TypeError(f"{type(self).__name__} has no perturb().")

    def with_epsilon(self, epsilon):
        """The same attack with another budget.

        Args:
            epsilon: a number, or a scalar tensor for those that compute with
                one (`tensor_epsilon`).
        """
        other = copy.copy(self)
        other.epsilon = epsilon
        return other

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

    `Attack`s take any callable; one of this class also says how the network is
    to be run. In an evaluation the network is called on blocks of `rows`
    examples, always so many: a block has the same shape whatever the batch, so
    nothing retraces, and an example's logits are the same to the bit whoever
    stands beside it. Only examples that are still attacked are put into blocks,
    so what an attack costs is what it asks for.

    Args:
        function: pixels to logits, a pure function of the pixels.
        jit_compile: whether to compile its gradient with XLA.
        rows: examples in a block; None is the whole batch at once.
        jit_loops: whether to compile whole attack loops with XLA. Shapes are
            fixed then: the whole batch is computed, attacked or not. For GPUs;
            XLA's loops run on one thread of a CPU.
        classes: number of logits, where their static shape may not tell.

    Attributes:
        active: bool tensor (batch,), the examples to attack; None is all.
        passes: int64 variable [forward, gradient], how many examples went
            through the network; None unless `count_passes` was called.
    """

    def __init__(
        self,
        function,
        jit_compile=False,
        rows=None,
        jit_loops=False,
        classes=None,
    ):
        self.function = function
        self.jit_compile = jit_compile
        self.rows = None if jit_loops else rows
        self.jit_loops = jit_loops
        self.classes = classes
        self.active = None
        self.passes = None
        self._traced = {}

    def __call__(self, x):
        """Returns the logits of a whole batch, (batch, classes)."""
        logits = tf.convert_to_tensor(self.function(x))
        if self.classes is not None:
            logits = tf.ensure_shape(logits, [None, self.classes])
        return logits if logits.dtype.size > 4 else tf.cast(logits, tf.float32)

    def only(self, active):
        """The same logits, for an attack on the active examples alone.

        Args:
            active: bool tensor (batch,).
        """
        other = copy.copy(self)
        other.active = active
        return other

    def count_passes(self):
        """Counts from now on, from zero."""
        self.passes = tf.Variable([0, 0], dtype=tf.int64, trainable=False)

    def predict(self, x, active=None):
        """Logits of the active examples, zeros for the others."""
        self._count([1, 0], x, active)
        return self._run("predict", lambda x: (self(x),), active, x)[0]

    def gradient(self, loss):
        """The `input_gradient` of a loss; in a graph it is traced once."""

        def gradient(x, labels, active=None):
            self._count([0, 1], x, active)
            plain = _input_gradient(self, loss)
            return self._run(loss, plain, active, x, labels)

        return gradient

    def _count(self, kind, x, active):
        if self.passes is not None:
            count = tf.shape(x, tf.int64)[0]
            if active is not None:
                count = tf.math.count_nonzero(active)
            self.passes.assign_add(tf.constant(kind, tf.int64) * count)

    def _run(self, key, function, active, *tensors):
        if not (self.rows or self.jit_compile or tf.inside_function()):
            return function(*tensors)
        if key not in self._traced:
            self._traced[key] = tf.function(
                function, jit_compile=self.jit_compile, autograph=False
            )
        if not self.rows:
            return self._traced[key](*tensors)
        return _in_blocks(self._traced[key], self.rows, active, *tensors)


def input_gradient(logits_fn, loss=losses.cross_entropy):
    """The gradient of a loss with respect to the pixels alone.

    Args:
        logits_fn: function from pixels to logits.
        loss: function of (logits, labels) to one number an example.

    Returns:
        A function of (x, labels, active=None) to (gradient, logits). Each
        example's gradient is that of its own loss, whatever the batch. What it
        returns for examples that are not active means nothing; where it can,
        they are not computed.
    """
    if isinstance(logits_fn, Logits):
        return logits_fn.gradient(loss)
    plain = _input_gradient(logits_fn, loss)
    return lambda x, labels, active=None: plain(x, labels)


def predict(logits_fn, x, active=None):
    """The logits, where it can those of the active examples alone.

    Args:
        logits_fn: function from pixels to logits.
        x: float tensor (batch, ...).
        active: bool tensor (batch,); None is all.
    """
    if isinstance(logits_fn, Logits):
        return logits_fn.predict(x, active)
    return logits_fn(x)


def examples(logits_fn, x):
    """Which examples are to be attacked, bool (batch,).

    Args:
        logits_fn: function from pixels to logits.
        x: float tensor (batch, ...).
    """
    active = getattr(logits_fn, "active", None)
    return tf.ones(tf.shape(x)[:1], tf.bool) if active is None else active


def compiled(logits_fn, function):
    """A loop over tensors, compiled by XLA where `logits_fn` asks for that.

    Args:
        logits_fn: function from pixels to logits.
        function: a pure function from tensors to tensors; random numbers are
            drawn outside, for XLA draws others.
    """
    if not getattr(logits_fn, "jit_loops", False):
        return function
    return tf.function(function, jit_compile=True, autograph=False)


def where(condition, x, other):
    """`tf.where` with a condition an example.

    Args:
        condition: bool tensor (batch,).
        x: tensor (batch, ...), taken where it holds.
        other: tensor of x's shape, taken elsewhere.
    """
    return tf.where(per_example(condition, x), x, other)


def per_example(values, x):
    """One value an example, in a shape that broadcasts against x.

    Args:
        values: tensor (batch,).
        x: tensor (batch, ...).
    """
    ones = [1] * (x.shape.rank - 1)
    return tf.reshape(values, [-1, *ones])


def repeat(attempt, runs, x, active):
    """Attempts in turn, each at those whom the ones before left standing.

    Args:
        attempt: function of (run, active), a scalar int32 tensor and a bool
            tensor (batch,), to (x_adv, broken).
        runs: number of attempts, >= 1.
        x: float tensor (batch, ...), returned where no example is active.
        active: bool tensor (batch,).

    Returns:
        x_adv: the last attempt's where none succeeded.
    """
    if runs == 1:
        return where(active, attempt(tf.constant(0), active)[0], x)

    def body(run, x_adv, active):
        found, broken = attempt(run, active)
        return run + 1, where(active, found, x_adv), active & ~broken

    return tf.while_loop(
        lambda run, _, active: (run < runs) & tf.reduce_any(active),
        body,
        (0, x, active),
        parallel_iterations=1,
    )[1]


def turn(choices, run):
    """The choice of each example whose turn it is.

    Args:
        choices: tensor (batch, count).
        run: scalar int32 tensor; after the last choice comes the first.
    """
    return tf.gather(choices, run % choices.shape[1], axis=1)


def next_seeds(seeds, run):
    """Seeds of the attempts after the first, which has `seeds` themselves.

    Args:
        seeds: int32 (batch, 2).
        run: scalar int32 tensor.
    """
    return seeds + run * tf.constant([0x61C88647, 0], tf.int32)


def _in_blocks(function, rows, active, *tensors):
    """Calls a traced function on so many active examples at a time.

    Returns tensors of the whole batch, zeros where an example is not active.
    The last block is filled up with its last example.
    """
    batch = tf.shape(tensors[0])[0]
    chosen = tf.range(batch)
    if active is not None:
        chosen = tf.cast(tf.where(active)[:, 0], tf.int32)
    count = tf.size(chosen)
    blocks = (count + rows - 1) // rows
    filled = tf.gather(chosen, tf.minimum(tf.range(blocks * rows), count - 1))
    filled = tf.reshape(filled, [blocks, rows])

    def take(indices):
        return [
            tf.nest.map_structure(lambda t: tf.gather(t, indices), tensor)
            for tensor in tensors
        ]

    specs = tf.nest.map_structure(
        lambda t: tf.TensorSpec([rows, *t.shape[1:]], t.dtype), list(tensors)
    )
    outputs = tuple(
        tf.TensorSpec(output.shape, output.dtype)
        for output in function.get_concrete_function(*specs).structured_outputs
    )
    found = tf.map_fn(
        lambda indices: function(*take(tf.ensure_shape(indices, [rows]))),
        filled,
        parallel_iterations=_PARALLEL_BLOCKS,
        fn_output_signature=outputs,
    )

    def place(values):
        shape = tf.concat([[blocks * rows], tf.shape(values)[2:]], 0)
        values = tf.reshape(values, shape)[:count]
        whole = tf.concat([[batch], tf.shape(values)[1:]], 0)
        return tf.scatter_nd(chosen[:, None], values, whole)

    return tuple(
        tf.ensure_shape(place(f), [tensors[0].shape[0], *spec.shape[1:]])
        for f, spec in zip(found, outputs, strict=True)
    )


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
