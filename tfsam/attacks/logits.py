"""The function that an attack attacks, and how the network behind it is run.

Attacks take any function from pixels to logits, and ask it by `predict` and
`input_gradient`. A `Logits` says more: what to compile, and in which blocks the
examples go through the network.
"""

import copy
import functools
from typing import Any
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tfsam.attacks import losses

# Blocks of examples that go through the network side by side. On two cores two
# were as fast as four, in half the memory.
_PARALLEL_BLOCKS = 2

# Relative to the largest logit; the order of float32 sums changed it by 1e-6.
_ROUNDING = 1e-5


class Counts(NamedTuple):
    """The numbers that a `Logits` counted; see its attributes."""

    passes: np.ndarray
    nonfinite: int
    taken: int


class Logits:
    """A function from pixels to float32 logits that attacks may compile.

    `Attack`s take any callable; one of this class also says how the network is
    to be run. In an evaluation the network is called on blocks of `rows`
    examples, always so many: a block has the same shape whatever the batch, so
    nothing retraces, and an example's logits do not depend on who stands beside
    it, to the bit where it stands at the same place (on some processors a
    product rounds differently from row to row). Only examples that are still
    attacked are put into blocks, so what an attack costs is what it asks for.

    Args:
        function: pixels to logits, a pure function of the pixels.
        jit_compile: whether to compile its gradient with XLA.
        rows: examples in a block; None is the whole batch at once.
        jit_loops: whether to compile whole attack loops with XLA. Shapes are
            fixed then: the whole batch is computed, attacked or not. For GPUs;
            XLA's loops run on one thread of a CPU.
        classes: number of logits, where their static shape may not tell.
        independent: whether an example's logits depend on its own pixels
            alone, unlike those of BatchNorm in training mode.
        loss: function of (outputs, labels) to one number an example, the loss
            that attacks without a loss of their own climb; None is
            cross-entropy.

    Attributes:
        identity: a dict of JSON's types by which an evaluation recognises the
            function, in place of its description (see `support.identity`); or
            None. That of a model from a file has `files`, their checksum, and
            `loading`, a dict of how they became the function.
        active: bool tensor (batch,), the examples to attack; None is all.
        passes: int64 variable [forward, gradient], how many examples went
            through the network; None unless `count_passes` was called.
        surrogate: whether the images found will be shown to another network.
            An attack must not stop at this one's boundary then; see `may_stop`.
        most: how many examples the network may see at once where it is not run
            in blocks; None is as many as are attacked.
        parts: number of parts in which a batch goes through the network where
            it is not run in blocks; see `in_turn`.
        rounding: the relative difference that the size of the batch may make
            to a logit; see `crossed`.
        nonfinite: int64 variable, how many examples had a gradient with an
            entry that is NaN or infinite, counted anew at every gradient; None
            unless `count_passes` was called.
        taken: int64 variable, how many gradients of examples were taken by
            tapes of other libraries' attacks, which `passes` does not count;
            None unless `count_passes` was called.
    """

    def __init__(
        self,
        function,
        jit_compile=False,
        rows=None,
        jit_loops=False,
        classes=None,
        independent=True,
        loss=None,
    ):
        self.function = function
        self.jit_compile = jit_compile
        self.rows = None if jit_loops else rows
        self.jit_loops = jit_loops
        self.classes = classes
        self.independent = independent
        self.loss = loss
        self.identity = None
        self.active = None
        self.surrogate = False
        self.most = None
        self.parts = 1
        self.rounding = _ROUNDING
        self.passes: Any = None
        self.nonfinite: Any = None
        self.taken: Any = None
        self._traced = {}

    def __call__(self, x):
        """Returns the logits of a whole batch, (batch, classes)."""
        return self._logits(self.guarded(x))

    def guarded(self, x):
        """Returns x; a gradient that flows back to it eagerly is made finite.

        So other libraries' attacks, which have tapes of their own, get zeros
        for NaN and infinity, too, and `nonfinite` counts them. In a graph x
        itself is returned: TensorFlow never frees a custom gradient there, nor
        the graph that holds it.
        """
        if tf.inside_function():
            return x

        def finite(slopes):
            if self.taken is not None:
                self.taken.assign_add(tf.shape(slopes, tf.int64)[0])
            return self._finite(slopes, None)

        @tf.custom_gradient
        def identity(x):
            return tf.identity(x), finite

        return identity(tf.convert_to_tensor(x))

    def _logits(self, x):
        logits = tf.convert_to_tensor(self.function(x))
        if self.classes is not None:
            logits = tf.ensure_shape(logits, [None, self.classes])
        return logits if logits.dtype.size > 4 else tf.cast(logits, tf.float32)

    def __identity__(self):
        """Returns what `identity.describe` describes in place of this."""
        return self.function if self.identity is None else self.identity

    def only(self, active):
        """The same logits, for an attack on the active examples alone.

        Args:
            active: bool tensor (batch,).
        """
        other = copy.copy(self)
        other.active = active
        return other

    def as_surrogate(self):
        """Returns the same logits, attacked in another network's place."""
        other = copy.copy(self)
        other.surrogate = True
        return other

    def count_passes(self):
        """Counts from now on, from zero."""
        if self.passes is None:
            self.passes = tf.Variable([0, 0], dtype=tf.int64, trainable=False)
            self.nonfinite = tf.Variable(0, dtype=tf.int64, trainable=False)
            self.taken = tf.Variable(0, dtype=tf.int64, trainable=False)
        else:  # What is traced counts in these variables.
            for counts in (self.passes, self.nonfinite, self.taken):
                counts.assign(tf.zeros_like(counts))

    def counted(self):
        """Returns the `Counts` since `count_passes` was called last."""
        # In the scope of a strategy they are variables of each replica.
        passes, nonfinite, taken = (
            tf.convert_to_tensor(counts).numpy()
            for counts in (self.passes, self.nonfinite, self.taken)
        )
        return Counts(passes, int(nonfinite), int(taken))

    def predict(self, x, active=None):
        """Logits of the active examples, zeros for the others."""
        self._count([1, 0], x, active)
        return self._run("predict", lambda x: (self._logits(x),), active, x)[0]

    def gradient(self, loss):
        """The `input_gradient` of a loss; in a graph it is traced once."""

        def gradient(x, labels, active=None):
            self._count([0, 1], x, active)
            plain = _input_gradient(self._logits, loss, self.independent)
            slopes, logits = self._run(loss, plain, active, x, labels)
            return self._finite(slopes, active), logits

        return gradient

    def _finite(self, slopes, active):
        """Returns `_finite_part` of the slopes, and counts the examples."""
        finite, kept = _finite_part(slopes)
        if self.nonfinite is not None:
            axes = list(range(1, slopes.shape.rank))
            bad = ~tf.reduce_all(kept, axis=axes)
            if active is not None:
                bad &= active
            self.nonfinite.assign_add(tf.math.count_nonzero(bad))
        return finite

    def _count(self, kind, x, active):
        if self.passes is not None:
            count = tf.shape(x, tf.int64)[0]
            if active is not None:
                count = tf.math.count_nonzero(active)
            self.passes.assign_add(tf.constant(kind, tf.int64) * count)

    def _run(self, key, function, active, *tensors):
        if self.rows or self.jit_compile or tf.inside_function():
            if key not in self._traced:
                self._traced[key] = traced(function, self.jit_compile)
            function = self._traced[key]
        batch = tensors[0].shape[0]
        if self.rows and (batch is None or batch > self.rows):
            return _in_blocks(function, self.rows, active, *tensors)
        if self.parts > 1:
            return _in_parts(function, self.parts, *tensors)
        return function(*tensors)


def traced(function, jit_compile=None):
    """A `tf.function` that TensorFlow does not warn of being traced anew.

    It counts the tracings of a line of code, and takes many for a mistake; of
    ours each is another model's, attack's or size's. A partial has no line.

    Args:
        function: of tensors to tensors.
        jit_compile: as of `tf.function`.
    """
    return tf.function(
        functools.partial(function), jit_compile=jit_compile, autograph=False
    )


def input_gradient(logits_fn, loss=losses.cross_entropy):
    """The gradient of a loss with respect to the pixels alone.

    Args:
        logits_fn: function from pixels to logits.
        loss: function of (logits, labels) to one number an example.

    Returns:
        A function of (x, labels, active=None) to (gradient, logits). Each
        example's gradient is that of its own loss, whatever the batch. What it
        returns for examples that are not active means nothing; where it can,
        they are not computed. Entries of the gradient that are NaN or infinite
        are replaced by zeros; a `Logits` counts them in `nonfinite`.
    """
    if isinstance(logits_fn, Logits):
        return logits_fn.gradient(loss)
    plain = _input_gradient(logits_fn, loss)

    def gradient(x, labels, active=None):
        slopes, logits = plain(x, labels)
        return _finite_part(slopes)[0], logits

    return gradient


def predict(logits_fn, x, active=None):
    """The logits, where it can those of the active examples alone.

    Args:
        logits_fn: function from pixels to logits.
        x: float tensor (batch, ...).
        active: bool tensor (batch,); None is all.
    """
    if isinstance(logits_fn, Logits):
        return logits_fn.predict(x, active)
    return tf.convert_to_tensor(logits_fn(x))


def told(logits_fn, name):
    """Returns an attribute of a `Logits`, and None of any other function.

    Other callables have attributes of the same names and another meaning: the
    `loss` of a compiled Keras model takes (y_true, y_pred), for instance.

    Args:
        logits_fn: function from pixels to logits.
        name: name of an attribute of `Logits`.
    """
    return getattr(logits_fn, name) if isinstance(logits_fn, Logits) else None


def examples(logits_fn, x):
    """Which examples are to be attacked, bool (batch,).

    Args:
        logits_fn: function from pixels to logits.
        x: float tensor (batch, ...).
    """
    active = told(logits_fn, "active")
    return tf.ones(tf.shape(x)[:1], tf.bool) if active is None else active


def may_stop(logits_fn, logits, labels):
    """Returns which examples an attack may leave as they are, bool (batch,).

    An attack may stop at an example's first misclassified point. On a surrogate
    it may not: a point that only just fools the surrogate seldom fools another
    network, so the attack makes all of its steps, and the point of the highest
    loss counts.

    Args:
        logits_fn: function from pixels to logits.
        logits: float tensor (batch, classes), its logits.
        labels: labels.
    """
    found = losses.misclassified(logits, labels)
    return tf.zeros_like(found) if is_surrogate(logits_fn) else found


def is_surrogate(logits_fn):
    """Returns whether the images found will be shown to another network.

    Args:
        logits_fn: function from pixels to logits.
    """
    return bool(told(logits_fn, "surrogate"))


def score(logits_fn, y, active):
    """Returns a function that ranks several points found on a surrogate.

    Args:
        logits_fn: function from pixels to logits.
        y: labels.
        active: bool tensor (batch,).

    Returns:
        For a surrogate a function from points to their margins (batch,); else
        None, for the first misclassified point counts.
    """
    if not is_surrogate(logits_fn):
        return None
    return lambda x: losses.margin(predict(logits_fn, x, active), y)


def crossed(logits_fn, logits, labels):
    """Returns where points are misclassified beyond rounding, bool (batch,).

    Attacks that look for the nearest point end next to the boundary, where the
    logits of a batch of another size may be rounded to the other side.

    Args:
        logits_fn: function from pixels to logits.
        logits: float tensor (batch, classes), its logits.
        labels: labels.
    """
    rounding = told(logits_fn, "rounding")
    rounding = _ROUNDING if rounding is None else rounding
    largest = tf.reduce_max(tf.abs(logits), axis=-1)
    return losses.margin(logits, labels) > rounding * largest


def in_turn(logits_fn, copies, x):
    """Returns the same function, with copies of a batch sent through in turn.

    Without blocks the network would see all copies at once, and use more memory
    than the batch size was chosen for.

    Args:
        logits_fn: function from pixels to logits.
        copies: of how many copies of a batch it will be called.
        x: float tensor (batch, ...), of a known shape if there are several.
    """
    if copies == 1 or told(logits_fn, "rows"):
        return logits_fn
    known = isinstance(logits_fn, Logits)
    other = copy.copy(logits_fn) if known else Logits(logits_fn)
    most = max(other.most or 0, x.shape[0])
    other.parts = next(
        parts
        for parts in range(1, copies + 1)
        if copies % parts == 0 and copies // parts * x.shape[0] <= most
    )
    return other


def compiled(logits_fn, function):
    """A loop over tensors, compiled by XLA where `logits_fn` asks for that.

    Args:
        logits_fn: function from pixels to logits.
        function: a pure function from tensors to tensors; random numbers are
            drawn outside, for XLA draws others.
    """
    if not told(logits_fn, "jit_loops"):
        return function
    return tf.function(function, jit_compile=True, autograph=False)


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
        parallel_iterations=_PARALLEL_BLOCKS if tf.inside_function() else 1,
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


def _in_parts(function, parts, *tensors):
    """Calls a function on equal parts of a batch, one after the other."""

    def apart(tensor):
        size = tensor.shape[0] // parts
        return tf.reshape(tensor, [parts, size, *tensor.shape[1:]])

    pieces = tf.nest.map_structure(apart, tensors)

    def call(part):
        return function(*tf.nest.map_structure(lambda t: t[part], pieces))

    if not tf.inside_function():
        found = zip(*map(call, range(parts)), strict=True)
        return tuple(tf.concat(results, 0) for results in found)
    specs = tf.nest.map_structure(
        lambda t: tf.TensorSpec(t.shape[1:], t.dtype), pieces
    )
    outputs = function.get_concrete_function(*specs).structured_outputs
    found = tf.map_fn(
        call,
        tf.range(parts),
        parallel_iterations=1,
        fn_output_signature=tf.nest.map_structure(
            lambda t: tf.TensorSpec(t.shape, t.dtype), tuple(outputs)
        ),
    )
    return tuple(tf.reshape(f, [-1, *f.shape[2:]]) for f in found)


def _finite_part(slopes):
    """Zeros in place of NaN and infinity, and which entries were kept.

    Zero is a subgradient of the usual causes, a norm or a square root at 0, and
    the other pixels of the example can still be attacked.
    """
    kept = tf.math.is_finite(slopes)
    return tf.where(kept, slopes, tf.zeros([], slopes.dtype)), kept


def _input_gradient(logits_fn, loss, independent=True):
    def gradient(x, labels):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(x)
            logits = tf.convert_to_tensor(logits_fn(x))
        with tf.GradientTape(watch_accessed_variables=False) as loss_tape:
            loss_tape.watch(logits)
            total = tf.reduce_sum(loss(logits, labels))
        slopes = loss_tape.gradient(total, logits)
        result = None
        if slopes is not None:
            # Inside a network of halves the slopes of a confident example
            # would vanish: each goes through it at its own loss scale.
            axis = list(range(1, logits.shape.rank)) if independent else None
            largest = tf.reduce_max(tf.abs(slopes), axis, keepdims=True)
            scale = _power_of_two(largest)
            result = tape.gradient(logits, x, slopes / scale)
        if result is None:
            raise ValueError(
                "A gradient attack needs logits that depend on the pixels by "
                "differentiable operations; no gradient flows. "
                f"Received: logits_fn={logits_fn}"
            )
        each = [-1] + [1] * (x.shape.rank - 1)
        result *= tf.cast(tf.reshape(scale, each), result.dtype)
        return tf.ensure_shape(result, x.shape), logits

    return gradient


def _power_of_two(values):
    """The largest power of two up to each value; 1 for 0 and the infinite.

    To multiply by it and to divide by it is exact.
    """
    exponents = tf.bitcast(tf.cast(values, tf.float32), tf.int32) & 0x7F800000
    powers = tf.bitcast(exponents, tf.float32)
    usual = (powers > 0) & tf.math.is_finite(powers)
    return tf.cast(tf.where(usual, powers, 1.0), values.dtype)
