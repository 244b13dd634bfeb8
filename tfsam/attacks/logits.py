"""Functions from pixels to logits, as attacks evaluate them.

Attacks accept any function from pixels to logits and evaluate it by `predict`
and `input_gradient`. A `Logits` adds how the network is run: whether it is
compiled, and in blocks of which size.
"""

import copy
import functools
import gc
from collections.abc import Callable
from typing import Any
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tfsam.attacks import losses
from tfsam.attacks.blocks import in_blocks
from tfsam.attacks.blocks import in_parts
from tfsam.attacks.blocks import one_by_one
from tfsam.attacks.context import NOTHING
from tfsam.attacks.context import Context
from tfsam.attacks.pixel_gradients import finite_part
from tfsam.attacks.pixel_gradients import plain_gradient
from tfsam.support.trace_state import Unreadable

# Tolerance for rounding errors, relative to the largest logit. The order of
# float32 sums changed logits by 1e-6.
_ROUNDING = 1e-5

# Number of copies of an example that go through a random network in a call. The
# memory that they take does not depend on the number of draws.
TOGETHER = 32

LogitsFn = Callable[..., Any]
LossFn = Callable[[tf.Tensor, Any], tf.Tensor]
GoalFn = Callable[..., tf.Tensor]


class Counts(NamedTuple):
    """Numbers counted by a `Logits`; see its attributes of the same names.

    Attributes:
        passes: int64 array [forward, gradient].
        nonfinite: Number of examples whose gradient had an entry that was not
            finite.
        taken: Number of gradients taken by other libraries' tapes.

    Example:
        >>> logits = Logits(lambda x: x)
        >>> logits.count_passes()
        >>> logits.counted().nonfinite
        0
    """

    passes: np.ndarray[Any, Any]
    nonfinite: int
    taken: int


class Logits:
    """A function from pixels to float32 logits, and how to run its network.

    Attacks take any callable; an instance of this class also carries settings
    for running the network. In an evaluation the network is called on blocks of
    exactly `rows` examples. Blocks have the same shape whatever the size of the
    batch, so it is traced once, and the logits of an example do not depend
    on its neighbours; they are equal to the bit at the same position in a block
    (on some processors, products round differently from row to row). Blocks
    are filled with survivors only, so that broken examples cost nothing.

    Args:
        function: Function from pixels (batch, ...) to logits (batch, classes),
            a pure function of the pixels, and of the `inputs` of the context.
        jit_compile: Whether to compile its gradient with XLA.
        rows: Number of examples in a block, >= 1. None means the whole batch at
            once.
        jit_loops: Whether to compile whole attack loops with XLA. Shapes are
            then fixed: the whole batch is computed, including broken examples.
            For GPUs; on a CPU, XLA runs loops on a single thread.
        classes: Number of logits, if their static shape may be unknown.
        independent: Whether the logits of an example depend only on its own
            pixels, unlike those of BatchNorm in training mode.
        loss: Function from (outputs, labels) to a float tensor (batch,): the
            loss for attacks without a loss of their own. None means
            cross-entropy.

    Attributes:
        identity: None, or a dict of JSON types that identifies the function to
            an evaluation, in place of a description of its code. For a model
            from a file, it has the keys `files`, the checksum, and `loading`,
            a dict that describes how the file was loaded.
        origin: None, or a dict of JSON types about the file that the function
            comes from, for results.
        active: Bool tensor (batch,), the examples to attack. None means all.
        goal: None, or a function of `tfsam.attacks.goals`, which turns the
            network's logits into those that attacks see.
        context: The `Context` of the batch, or of the batch that the rows of a
            call are copies of.
        checked: Whether all pixels that attacks are given lie inside their
            bounds, so that a graph need not assert it.
        surrogate: Whether the adversarial examples are for another network. If
            so, an attack must not stop at the decision boundary of this one;
            see `may_stop`.
        recorder: None, or the `tfsam.attacks.recorder.Recorder` to which each
            gradient of `input_gradient` is shown.
        momentary: Whether the function is made for a single call, such as that
            of a training step: a trace of it could not be used again.
        most: Largest number of examples that the network may process at once if
            `rows` is None. None means the batch size of the attack.
        parts: Number of parts that a batch is split into if `rows` is None; see
            `in_turn`.
        together: Largest number of copies of an example in a call that draws
            from a random network: 1 if all rows of a call have the same noise,
            0 if they depend on each other. See `tfsam.attacks.averaging`.
        random: Whether two calls are known to give different logits. An attack
            that follows a single draw then means nothing.
        rounding: Relative difference that the size of the batch may make to a
            logit; see `crossed`.
        passes: int64 variable [forward, gradient], the number of examples that
            went through the network. None before `count_passes` is called.
        nonfinite: int64 variable, the number of examples, summed over all
            gradients, whose gradient had an entry that was NaN or infinite.
            None before `count_passes` is called.
        taken: int64 variable, the number of examples' gradients taken by the
            tapes of other libraries' attacks, which `passes` does not count.
            None before `count_passes` is called.

    Example:
        >>> import keras
        >>> import tensorflow as tf
        >>> dense = keras.layers.Dense(2)
        >>> network = keras.Sequential([keras.Input((4,)), dense])
        >>> logits_fn = Logits(network, rows=8)
        >>> logits_fn(tf.zeros([3, 4])).shape.as_list()
        [3, 2]
    """

    def __init__(
        self,
        function: LogitsFn,
        jit_compile: bool | None = False,
        rows: int | None = None,
        jit_loops: bool = False,
        classes: int | None = None,
        independent: bool = True,
        loss: LossFn | None = None,
    ) -> None:
        self.function = function
        self.jit_compile = jit_compile
        self.rows = None if jit_loops else rows
        self.jit_loops = jit_loops
        self.classes = classes
        self.independent = independent
        self.loss = loss
        self.identity: Any = None
        self.origin: Any = None
        self.active: tf.Tensor | None = None
        self.goal: GoalFn | None = None
        self.context = NOTHING
        self.checked = False
        self.surrogate = False
        self.recorder: Any = None
        self.momentary = False
        self.most: int | None = None
        self.parts = 1
        self.together = TOGETHER
        self.random = False
        self.rounding = _ROUNDING
        self.passes: Any = None
        self.nonfinite: Any = None
        self.taken: Any = None
        self._traced: dict[Any, Callable[..., Any]] = {}

    def __call__(self, x: Any) -> tf.Tensor:
        """Computes the logits of a whole batch.

        Args:
            x: Float array or tensor (batch, ...).

        Returns:
            Tensor (batch, classes), float32 or float64.
        """
        x = self.guarded(x)
        return self._logits(x, self.context.of_rows(x))

    def guarded(self, x: Any) -> tf.Tensor:
        """Returns x such that gradients with respect to it are finite.

        Other libraries' attacks use tapes of their own. This replaces NaN and
        infinity in their gradients by zeros, and counts them in `nonfinite`. In
        a graph, x itself is returned: TensorFlow never frees a custom gradient
        in a graph, nor the graph that holds it.

        Args:
            x: Float array or tensor (batch, ...).
        """
        if tf.inside_function():
            return x

        def finite(slopes: tf.Tensor) -> tf.Tensor:
            if self.taken is not None:
                self.taken.assign_add(tf.shape(slopes, tf.int64)[0])
            return self.finite(slopes, None)

        @tf.custom_gradient
        def identity(x: tf.Tensor) -> Any:
            return tf.identity(x), finite

        return identity(tf.convert_to_tensor(x))

    def _logits(
        self, x: tf.Tensor, context: Context, loss: LossFn | None = None
    ) -> tf.Tensor:
        """Returns the logits that attacks see, in float32 or float64.

        Args:
            x: Float tensor (batch, ...).
            context: The context of its rows.
            loss: The loss whose gradient is taken, None if it is unknown.
        """
        found = self._network(x, *context.inputs)
        return self._aimed(found, context, loss)

    def _network(self, x: tf.Tensor, *others: tf.Tensor) -> tf.Tensor:
        """Returns the network's own logits, of the declared shape."""
        return self._declared(self.function(x, *others))

    def _aimed(
        self, logits: tf.Tensor, context: Context, loss: LossFn | None
    ) -> tf.Tensor:
        """Turns the network's logits into those of the goal, if any."""
        if self.goal is None:
            return logits
        return self.goal(logits, *context.goal, loss=loss)

    def _once(
        self, x: tf.Tensor, context: Context, loss: LossFn | None = None
    ) -> tf.Tensor:
        """Returns `_logits`; in a graph, by a trace that all losses share.

        The gradient of the trace is shared, too. Under XLA the network is not
        shared: XLA would recompile the calling function at every call.
        """
        compiled = self.jit_compile or self.jit_loops
        if compiled or not tf.inside_function():
            return self._logits(x, context, loss)
        network = self.once("logits", lambda: traced(self._network))
        return self._aimed(network(x, *context.inputs), context, loss)

    def _declared(self, outputs: Any) -> tf.Tensor:
        """Returns outputs as logits of the declared shape."""
        logits = tf.convert_to_tensor(outputs)
        if self.classes is not None:
            logits = tf.ensure_shape(logits, [None, self.classes])
        return logits if logits.dtype.size > 4 else tf.cast(logits, tf.float32)

    def draw(
        self,
        x: tf.Tensor,
        key: tf.Tensor,
        context: Context = NOTHING,
        loss: LossFn | None = None,
    ) -> tf.Tensor:
        """Computes the logits with random numbers that depend on a key.

        Args:
            x: Float tensor (batch, ...).
            key: int32 tensor (2,), which the method `draw` of `function` takes.
            context: The context of the rows of x.
            loss: The loss whose gradient is taken, None if it is unknown.

        Returns:
            Tensor (batch, classes), float32 or float64.
        """
        draw = self.function.draw  # type: ignore[attr-defined]
        found = draw(x, key, *context.inputs)
        return self._aimed(self._declared(found), context, loss)

    def __identity__(self) -> Any:
        """Returns the object to describe in an identity in place of this."""
        return self.function if self.identity is None else self.identity

    def __trace_state__(self) -> Any:
        """Raises an error: a copy that is traced must not share `_traced`."""
        if self._traced:
            raise Unreadable("a Logits that was traced before")
        return self

    def without_traces(self) -> "Logits":
        """Returns a copy of the settings on which a trace depends.

        It shares no trace with this, and all examples are active.
        """
        other = copy.copy(self)
        other.active = other.identity = other.origin = None
        other.context = NOTHING
        other._traced = {}
        return other

    def aimed_at(self, goal: GoalFn | None) -> "Logits":
        """Returns a copy for attacks with another goal than a wrong class.

        Args:
            goal: A function of `tfsam.attacks.goals`, or None. It needs a
                context; see `given`.
        """
        other = copy.copy(self)
        other.goal = goal
        other._traced = {}
        return other

    def given(self, context: Context) -> "Logits":
        """Returns a copy for a batch, which shares all traces.

        Args:
            context: The context of the batch.
        """
        other = copy.copy(self)
        other.context = context
        return other

    def once(
        self, key: Any, make: Callable[[], Callable[..., Any]]
    ) -> Callable[..., Any]:
        """Returns the traced function of a key, which is made once.

        Args:
            key: The key.
            make: Makes the function.
        """
        if key not in self._traced:
            self._traced[key] = make()
        return self._traced[key]

    def only(self, active: tf.Tensor) -> "Logits":
        """Returns a copy for attacks on the active examples only.

        Args:
            active: Bool tensor (batch,).
        """
        other = copy.copy(self)
        other.active = active
        return other

    def on_checked(self) -> "Logits":
        """Returns a copy for attacks on pixels that were checked before."""
        other = copy.copy(self)
        other.checked = True
        return other

    def as_surrogate(self) -> "Logits":
        """Returns a copy for attacks whose target is another network."""
        other = copy.copy(self)
        other.surrogate = True
        return other

    def recorded(self, recorder: Any) -> "Logits":
        """Returns a copy whose gradients are shown to a recorder.

        Args:
            recorder: A `tfsam.attacks.recorder.Recorder`, or None.
        """
        other = copy.copy(self)
        other.recorder = recorder
        return other

    def untraced(self) -> "Untraced":
        """Returns the model as a function of which attacks trace nothing."""
        return Untraced(self)

    def count_passes(self) -> None:
        """Starts counting passes, from zero."""
        if self.passes is None:
            self.passes = tf.Variable([0, 0], dtype=tf.int64, trainable=False)
            self.nonfinite = tf.Variable(0, dtype=tf.int64, trainable=False)
            self.taken = tf.Variable(0, dtype=tf.int64, trainable=False)
        else:  # Functions traced before count in these variables.
            for counts in (self.passes, self.nonfinite, self.taken):
                counts.assign(tf.zeros_like(counts))

    def counted(self) -> Counts:
        """Returns the `Counts` since the last call of `count_passes`."""
        # Made in the scope of a strategy, the variables belong to replicas, and
        # have no numpy().
        passes, nonfinite, taken = (
            tf.convert_to_tensor(counts).numpy()
            for counts in (self.passes, self.nonfinite, self.taken)
        )
        return Counts(passes, int(nonfinite), int(taken))

    def predict(
        self, x: tf.Tensor, active: tf.Tensor | None = None
    ) -> tf.Tensor:
        """Computes the logits of the active examples.

        Args:
            x: Float tensor (batch, ...).
            active: Bool tensor (batch,). None means all.

        Returns:
            Tensor (batch, classes). If the network is run in blocks, examples
            that are not active have zeros.
        """

        def compute(x: tf.Tensor, context: Context) -> tuple[tf.Tensor]:
            return (self._once(x, context),)

        self.count([1, 0], x, active)
        return self.run("predict", compute, active, x)[0]

    def gradient(self, loss: LossFn) -> Callable[..., Any]:
        """Returns the `input_gradient` of a loss; in a graph it is traced once.

        Args:
            loss: Function from (logits, labels) to a float tensor (batch,).

        Returns:
            Function (x, labels, active=None) -> (gradient, logits).
        """

        def compute(x: tf.Tensor, labels: Any, context: Context) -> Any:
            network = functools.partial(self._once, context=context, loss=loss)
            return plain_gradient(network, loss, self.independent)(x, labels)

        def gradient(
            x: tf.Tensor, labels: Any, active: tf.Tensor | None = None
        ) -> tuple[tf.Tensor, tf.Tensor]:
            self.count([0, 1], x, active)
            slopes, logits = self.run(loss, compute, active, x, labels)
            return self.finite(slopes, active), logits

        return gradient

    def each(
        self,
        key: Any,
        function: Callable[..., Any],
        active: tf.Tensor | None,
        *tensors: Any,
    ) -> tuple[tf.Tensor, ...]:
        """Calls a function on every active example by itself.

        The function's computation for an example therefore has the same shape
        whatever the batch, and its random numbers may be keyed by the example.

        Args:
            key: Key of the function's trace.
            function: Function from tensors (1, ...), the last of which are the
                context, to a tuple of tensors (1, ...).
            active: Bool tensor (batch,). None means all.
            *tensors: Tensors (batch, ...), or structures of them.

        Returns:
            A tuple of tensors (batch, ...), with zeros for examples that are
            not active.
        """
        tensors = (*tensors, self.context.of_rows(tensors[0]))
        if self.rows or self.jit_compile or tf.inside_function():
            if key not in self._traced:
                self._traced[key] = traced(function, self.jit_compile)
            return in_blocks(self._traced[key], 1, active, *tensors)
        return one_by_one(function, active, *tensors)

    def finite(self, slopes: tf.Tensor, active: tf.Tensor | None) -> tf.Tensor:
        """Replaces NaN and infinity by zeros, and counts the examples.

        Args:
            slopes: Float tensor (batch, ...), gradients.
            active: Bool tensor (batch,). None means all.
        """
        finite, kept = finite_part(slopes)
        axes = list(range(1, slopes.shape.rank))
        self.count_nonfinite(tf.reduce_all(kept, axis=axes), active)
        return finite

    def count_nonfinite(
        self, finite: tf.Tensor, active: tf.Tensor | None
    ) -> None:
        """Adds the number of active examples without a finite gradient.

        Args:
            finite: Bool tensor (batch,), the examples whose gradient is finite.
            active: Bool tensor (batch,). None means all.
        """
        if self.nonfinite is not None:
            bad = ~finite if active is None else ~finite & active
            self.nonfinite.assign_add(tf.math.count_nonzero(bad))

    def count(
        self, kind: list[int], x: tf.Tensor, active: tf.Tensor | None
    ) -> None:
        """Adds the number of active examples to `passes`.

        Args:
            kind: Numbers of forward and gradient passes for an example.
            x: Float tensor (batch, ...).
            active: Bool tensor (batch,). None means all.
        """
        if self.passes is not None:
            count = tf.shape(x, tf.int64)[0]
            if active is not None:
                count = tf.math.count_nonzero(active)
            self.passes.assign_add(tf.constant(kind, tf.int64) * count)

    def run(
        self,
        key: Any,
        function: Callable[..., Any],
        active: tf.Tensor | None,
        *tensors: Any,
    ) -> Any:
        """Calls a function, traced once for each key, in blocks or parts.

        Args:
            key: Key of the function's trace.
            function: Function from tensors (batch, ...), the last of which are
                the context, to a tuple of tensors (batch, ...).
            active: Bool tensor (batch,). None means all.
            *tensors: Tensors (batch, ...), or structures of them.
        """
        tensors = (*tensors, self.context.of_rows(tensors[0]))
        if self.rows or self.jit_compile or tf.inside_function():
            if key not in self._traced:
                self._traced[key] = traced(function, self.jit_compile)
            function = self._traced[key]
        batch = tensors[0].shape[0]
        if self.rows and (batch is None or batch > self.rows):
            plain = functools.partial(in_blocks, function, self.rows)
            if not tf.inside_function():
                return plain(active, *tensors)
            # An attack makes the same calls in and before its loops, on the
            # batch and on copies of it.
            blocks = self.once(("blocks", key), lambda: of_any_batch(plain))
            return tuple(
                tf.ensure_shape(found, [batch, *found.shape[1:]])
                for found in blocks(active, *tensors)
            )
        if self.parts > 1:
            return in_parts(function, self.parts, *tensors)
        return function(*tensors)


def traced(
    function: Callable[..., Any], jit_compile: bool | None = None
) -> Any:
    """Makes a `tf.function` without TensorFlow's warning of retracing.

    TensorFlow counts how often functions of the same line of code are traced,
    and warns of many. Here each trace is for another model, attack or size. The
    count does not apply to a `functools.partial`, which has no line.

    Args:
        function: Function from tensors to tensors.
        jit_compile: See `tf.function`.

    Returns:
        A `tf.function`.

    Example:
        >>> import tensorflow as tf
        >>> float(traced(lambda x: 2 * x)(tf.constant(1.5)))
        3.0
    """
    return tf.function(
        functools.partial(_without_collections, function),
        jit_compile=jit_compile,
        autograph=False,
    )


def of_any_batch(function: Callable[..., Any]) -> Callable[..., Any]:
    """Makes a `tf.function` that is traced once for batches of any size.

    Args:
        function: Function from tensors (batch, ...), structures of them or
            None, to tensors (batch, ...).

    Returns:
        The function. The batch size of its results is unknown in a graph.

    Example:
        >>> import tensorflow as tf
        >>> sizes = []
        >>> double = of_any_batch(lambda x: sizes.append(len(sizes)) or 2 * x)
        >>> [float(tf.reduce_sum(double(tf.ones([n])))) for n in (1, 2, 3)]
        [2.0, 4.0, 6.0]
        >>> len(sizes)
        1
    """
    whole = traced(function)

    def call(*tensors: Any) -> Any:
        specs = tf.nest.map_structure(
            lambda t: t if t is None else _any_batch(t), tensors
        )
        return whole.get_concrete_function(*specs)(*tensors)

    return call


def _any_batch(tensor: tf.Tensor) -> tf.TensorSpec:
    """Returns the spec of a tensor, for batches of any size."""
    return tf.TensorSpec([None, *tensor.shape[1:]], tensor.dtype)


def _without_collections(function: Callable[..., Any], *tensors: Any) -> Any:
    """Calls a function while Python collects no garbage.

    A trace makes many objects, none of which is garbage. Collections among them
    took a fifth of the time.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        return function(*tensors)
    finally:
        if enabled:
            gc.enable()


def input_gradient(
    logits_fn: LogitsFn,
    loss: LossFn = losses.cross_entropy,
    recorded: bool = True,
) -> Callable[..., Any]:
    """Returns the gradient of a loss with respect to the pixels alone.

    Args:
        logits_fn: Function from pixels to logits.
        loss: Function from (logits, labels) to a float tensor (batch,).
        recorded: Whether the gradients are shown to the recorder of a `Logits`,
            if it has one. Each call of `input_gradient` then begins an attempt.

    Returns:
        Function (x, labels, active=None) -> (gradient, logits), where the
        gradient has the shape of x. Each example's gradient is that of its own
        loss, independent of the rest of the batch. The values for examples
        that are not active are undefined; if possible they are not computed.
        Entries of the gradient that are NaN or infinite are replaced by zeros;
        a `Logits` counts them in `nonfinite`.

        The function raises a ValueError if the logits do not depend on the
        pixels by differentiable operations.

    Example:
        >>> import tensorflow as tf
        >>> gradient = input_gradient(lambda x: x, losses.margin)
        >>> slopes, _ = gradient(tf.constant([[1.0, 0.0]]), tf.constant([0]))
        >>> slopes.numpy().tolist()
        [[-1.0, 1.0]]
    """
    recorder = setting(logits_fn, "recorder")
    if isinstance(logits_fn, Logits):
        gradient = logits_fn.gradient(loss)
    else:
        gradient = _finite_gradient(logits_fn, loss)
    if recorder is None or not recorded:
        return gradient
    recorder.begin()

    def seen(
        x: tf.Tensor, labels: Any, active: tf.Tensor | None = None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        slopes, logits = gradient(x, labels, active)
        recorder.record(x, slopes, logits, active)
        return slopes, logits

    return seen


def _finite_gradient(logits_fn: LogitsFn, loss: LossFn) -> Callable[..., Any]:
    """Returns the `input_gradient` of a function that is no `Logits`."""
    plain = plain_gradient(logits_fn, loss)

    def gradient(
        x: tf.Tensor, labels: Any, active: tf.Tensor | None = None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        slopes, logits = plain(x, labels)
        return finite_part(slopes)[0], logits

    return gradient


def predict(
    logits_fn: LogitsFn, x: tf.Tensor, active: tf.Tensor | None = None
) -> tf.Tensor:
    """Computes logits, if possible only those of the active examples.

    Args:
        logits_fn: Function from pixels to logits.
        x: Float tensor (batch, ...).
        active: Bool tensor (batch,). None means all.

    Returns:
        Tensor (batch, classes). The logits of examples that are not active are
        undefined.

    Example:
        >>> import tensorflow as tf
        >>> predict(lambda x: 2 * x, tf.constant([[1.0, 2.0]])).numpy().tolist()
        [[2.0, 4.0]]
    """
    if isinstance(logits_fn, Logits):
        return logits_fn.predict(x, active)
    return tf.convert_to_tensor(logits_fn(x))


class Untraced:
    """A model that cannot be traced, as a plain function for attacks.

    Attacks call a plain function eagerly. Whether the model is a surrogate, and
    the recorder, are the only settings that it keeps.

    Args:
        logits: The model.

    Attributes:
        logits: The model.
        surrogate: See `Logits`.
    """

    def __init__(self, logits: Logits) -> None:
        self.logits = logits
        self.surrogate = logits.surrogate
        self.recorder = logits.recorder

    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        """Returns the logits of a batch."""
        return self.logits(x)

    def __trace_state__(self) -> Any:
        """Raises an error, so that direct calls of attacks do not trace it."""
        raise Unreadable("a model that cannot be traced")


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


def may_stop(
    logits_fn: LogitsFn, logits: tf.Tensor, labels: tf.Tensor
) -> tf.Tensor:
    """Returns for which examples an attack may stop at the current point.

    An attack may stop at the first misclassified point, except on a surrogate:
    a point that barely fools the surrogate seldom fools another network. There,
    the attack makes all of its steps and returns the point of the highest loss.

    Args:
        logits_fn: Function from pixels to logits.
        logits: Float tensor (batch, classes), its logits at the current points.
        labels: Class numbers, or one-hot or smoothed labels.

    Returns:
        Bool tensor (batch,).

    Example:
        >>> import tensorflow as tf
        >>> logits, labels = tf.eye(2), tf.constant([0, 0])
        >>> may_stop(lambda x: x, logits, labels).numpy().tolist()
        [False, True]
    """
    found = losses.misclassified(logits, labels)
    return tf.zeros_like(found) if is_surrogate(logits_fn) else found


def is_surrogate(logits_fn: LogitsFn) -> bool:
    """Returns whether the adversarial examples are for another network.

    Args:
        logits_fn: Function from pixels to logits.

    Example:
        >>> is_surrogate(Logits(lambda x: x).as_surrogate())
        True
    """
    return bool(setting(logits_fn, "surrogate"))


def score(
    logits_fn: LogitsFn, y: tf.Tensor, active: tf.Tensor
) -> Callable[[tf.Tensor], tf.Tensor] | None:
    """Returns a function that ranks several points found on a surrogate.

    Args:
        logits_fn: Function from pixels to logits.
        y: Class numbers, or one-hot or smoothed labels.
        active: Bool tensor (batch,).

    Returns:
        For a surrogate, a function from points to their margins (batch,). Else
        None: the first misclassified point is used.

    Example:
        >>> import tensorflow as tf
        >>> score(lambda x: x, tf.constant([0]), tf.constant([True])) is None
        True
    """
    if not is_surrogate(logits_fn):
        return None
    return lambda x: losses.margin(predict(logits_fn, x, active), y)


def crossed(
    logits_fn: LogitsFn, logits: tf.Tensor, labels: tf.Tensor
) -> tf.Tensor:
    """Returns which points are misclassified by more than rounding errors.

    Minimum-norm attacks end next to the decision boundary. There, the logits in
    a batch of another size may be rounded to the other side.

    Args:
        logits_fn: Function from pixels to logits.
        logits: Float tensor (batch, classes), its logits at the points.
        labels: Class numbers, or one-hot or smoothed labels.

    Returns:
        Bool tensor (batch,).

    Example:
        >>> import tensorflow as tf
        >>> logits = tf.constant([[1.0, 1.000001], [1.0, 1.1]])
        >>> crossed(lambda x: x, logits, tf.constant([0, 0])).numpy().tolist()
        [False, True]
    """
    rounding = setting(logits_fn, "rounding")
    rounding = _ROUNDING if rounding is None else rounding
    largest = tf.reduce_max(tf.abs(logits), axis=-1)
    return losses.margin(logits, labels) > rounding * largest


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
