"""A network as a function from pixels to logits: `Logits`."""

import copy
import functools
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tfsam.attacks.context import NOTHING
from tfsam.attacks.context import Context
from tfsam.attacks.logits.calls import Calls
from tfsam.attacks.logits.pass_counter import PassCounter
from tfsam.attacks.logits.untraced import Untraced
from tfsam.attacks.pixel_gradients import plain_gradient
from tfsam.support.graphs import traced
from tfsam.support.trace_state import Unreadable

# Tolerance for rounding errors, relative to the largest logit. The order of
# float32 sums changed logits by 1e-6.
ROUNDING = 1e-5

# Number of copies of an example that go through a random network in a call. The
# memory that they take does not depend on the number of draws.
TOGETHER = 32

LogitsFn = Callable[..., Any]
LossFn = Callable[[tf.Tensor, Any], tf.Tensor]
GoalFn = Callable[..., tf.Tensor]


class Logits(Calls, PassCounter):
    """A function from pixels to float32 logits, and how to run its network.

    Attacks take any callable; an instance of this class also carries settings
    for running the network. In an evaluation the network is called on blocks of
    exactly `rows` examples. Blocks have the same shape whatever the size of the
    batch, so the network is traced once, and the logits of an example do not
    depend on its neighbours: they are equal to the bit at the same position in
    a block (on some processors, products round differently from row to row).
    Blocks are filled with survivors only, so that broken examples cost nothing.

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
        passes, nonfinite, taken: Counters; see `PassCounter`.

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
        super().__init__(jit_compile, None if jit_loops else rows)
        self.function = function
        self.jit_loops = jit_loops
        self.classes = classes
        self.independent = independent
        self.loss = loss
        self.identity: Any = None
        self.origin: Any = None
        self.active: tf.Tensor | None = None
        self.goal: GoalFn | None = None
        self.checked = False
        self.surrogate = False
        self.recorder: Any = None
        self.momentary = False
        self.most: int | None = None
        self.together = TOGETHER
        self.random = False
        self.rounding = ROUNDING

    def __call__(self, x: Any) -> tf.Tensor:
        """Computes the logits of a whole batch.

        Args:
            x: Float array or tensor (batch, ...).

        Returns:
            Tensor (batch, classes), float32 or float64.
        """
        x = self.guarded(x)
        return self._logits(x, self.context.of_rows(x))

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

    def _network(self, x: tf.Tensor, *others: tf.Tensor) -> tf.Tensor:
        """Returns the network's own logits, of the declared shape."""
        return self._declared(self.function(x, *others))

    def _declared(self, outputs: Any) -> tf.Tensor:
        """Returns outputs as logits of the declared shape."""
        logits = tf.convert_to_tensor(outputs)
        if self.classes is not None:
            logits = tf.ensure_shape(logits, [None, self.classes])
        return logits if logits.dtype.size > 4 else tf.cast(logits, tf.float32)

    def _aimed(
        self, logits: tf.Tensor, context: Context, loss: LossFn | None
    ) -> tf.Tensor:
        """Turns the network's logits into those of the goal, if any."""
        if self.goal is None:
            return logits
        return self.goal(logits, *context.goal, loss=loss)

    def __identity__(self) -> Any:
        """Returns the object to describe in an identity in place of this."""
        return self.function if self.identity is None else self.identity

    def __trace_state__(self) -> Any:
        """Raises an error: a copy that is traced must not share `_traced`."""
        if self._traced:
            raise Unreadable("a Logits that was traced before")
        return self

    def _with(self, **attributes: Any) -> "Logits":
        """Returns a copy that shares all traces, with other attributes."""
        other = copy.copy(self)
        vars(other).update(attributes)
        return other

    def without_traces(self) -> "Logits":
        """Returns a copy of the settings on which a trace depends.

        The copy shares no trace with this object, and all examples are active.
        """
        return self._with(
            active=None, identity=None, origin=None, context=NOTHING, _traced={}
        )

    def aimed_at(self, goal: GoalFn | None) -> "Logits":
        """Returns a copy for attacks with another goal than a wrong class.

        Args:
            goal: A function of `tfsam.attacks.goals`, which needs a context
                (see `given`), or None.
        """
        return self._with(goal=goal, _traced={})

    def given(self, context: Context) -> "Logits":
        """Returns a copy for a batch, which shares all traces.

        Args:
            context: The context of the batch.
        """
        return self._with(context=context)

    def only(self, active: tf.Tensor) -> "Logits":
        """Returns a copy for attacks on the active examples only.

        Args:
            active: Bool tensor (batch,).
        """
        return self._with(active=active)

    def on_checked(self) -> "Logits":
        """Returns a copy for attacks on pixels that were checked before."""
        return self._with(checked=True)

    def as_surrogate(self) -> "Logits":
        """Returns a copy for attacks whose target is another network."""
        return self._with(surrogate=True)

    def recorded(self, recorder: Any) -> "Logits":
        """Returns a copy whose gradients are shown to a recorder.

        Args:
            recorder: A `tfsam.attacks.recorder.Recorder`, or None.
        """
        return self._with(recorder=recorder)

    def untraced(self) -> Untraced:
        """Returns the model as a plain function, which attacks do not trace."""
        return Untraced(self)
