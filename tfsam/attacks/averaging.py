"""Expectation over transformation: means over the draws of a random network.

Athalye et al., 2018, "Obfuscated Gradients Give a False Sense of Security",
section 4.2. A network that draws random numbers, such as noise, is attacked
along the gradient of the expected loss, estimated by a mean over several draws.

AutoAttack's code averages gradients alone, and takes the loss and the logits of
the last draw. A step size is then adapted to noise, and a single unlucky draw
ends the search. Here the gradient, the loss and the logits are all means.
"""

import functools
from collections.abc import Callable
from typing import Any
from typing import NamedTuple

import tensorflow as tf

from tfsam.attacks import losses
from tfsam.attacks.attempts import copies
from tfsam.attacks.context import Context
from tfsam.attacks.logits import Logits
from tfsam.attacks.logits import LogitsFn
from tfsam.attacks.logits import LossFn
from tfsam.attacks.logits import Untraced
from tfsam.attacks.logits import input_gradient
from tfsam.attacks.logits import is_surrogate
from tfsam.attacks.logits import predict
from tfsam.attacks.logits import setting
from tfsam.attacks.pixel_gradients import finite_part
from tfsam.attacks.pixel_gradients import plain_gradient
from tfsam.attacks.seeds import next_seeds

# Turns of calls that are not those of steps, which count from 0.
AT_X, AT_END = -1, -2


class Means(NamedTuple):
    """Means over the draws, with a row for each example.

    Attributes:
        slopes: Float tensor (batch, ...), the gradient of the loss.
        logits: Float tensor (batch, classes).
        losses: Float tensor (batch,).
    """

    slopes: tf.Tensor
    logits: tf.Tensor
    losses: tf.Tensor


class Averaged:
    """A network whose logits, losses and gradients are means over its draws.

    If the network can be given a key, as those that `tfsam.models` loads, an
    example's draws are the rows of a call on copies of it, and their random
    numbers are keyed by the example's seed and by the turn. They then depend
    neither on the other examples of the batch nor on earlier calls. If all rows
    of a call have the same noise, or depend on each other, each draw is a call
    on the whole batch, keyed by the seed and the turn. Any other network is
    called on the whole batch, and draws as it does.

    A single draw is the network itself, to the bit.

    Args:
        logits_fn: Function from pixels to logits.
        eot: Number of draws, >= 1.
        seeds: int32 tensor (batch, 2), a row for each example.

    Example:
        >>> import tensorflow as tf
        >>> draws = iter([1.0, 3.0])
        >>> seeds = tf.constant([[0, 0]])
        >>> network = Averaged(lambda x: next(draws) * x, 2, seeds)
        >>> network.predict(tf.constant([[1.0, 2.0]])).numpy().tolist()
        [[2.0, 4.0]]
    """

    def __init__(self, logits_fn: LogitsFn, eot: int, seeds: tf.Tensor) -> None:
        self._logits_fn = logits_fn
        self._eot = eot
        self._seeds = seeds
        self._keyed = keyed_logits(logits_fn) if eot > 1 else None

    def gradient(self, loss: LossFn) -> Callable[..., Means]:
        """Returns a function that computes the gradient of a loss.

        Args:
            loss: Function from (logits, labels) to a float tensor (batch,).

        Returns:
            Function (x, labels, active, turn) -> `Means`. `turn` is the number
            of the step, an int or a scalar int32 tensor; a draw of another turn
            is independent. For the rest, see `input_gradient`.
        """
        # Not each draw is recorded, but their mean.
        averaged = self._eot > 1
        plain = input_gradient(self._logits_fn, loss, recorded=not averaged)
        recorder = setting(self._logits_fn, "recorder") if averaged else None
        if recorder is not None:
            recorder.begin()

        def gradient(
            x: tf.Tensor, labels: Any, active: tf.Tensor | None, turn: Any
        ) -> Means:
            def once(call: int) -> Means:
                if self._keyed is not None:
                    batch = x, labels, self._keys(turn, call)
                    return _batch_gradient(self._keyed, loss, batch, active)
                slopes, logits = plain(x, labels, active)
                return Means(slopes, logits, loss(logits, labels))

            if self._keyed is None or self._keyed.together < 2:
                found = Means(*self._repeated(once))
            else:
                batch = x, labels, next_seeds(self._seeds, turn)
                found = _keyed_gradient(
                    self._keyed, loss, self._eot, batch, active
                )
            if recorder is not None:
                recorder.record(x, found.slopes, found.logits, active)
            return found

        return gradient

    def values(
        self,
        loss: LossFn,
        x: tf.Tensor,
        labels: Any,
        active: tf.Tensor | None,
        turn: Any = AT_END,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Computes the logits and the losses.

        Args:
            loss: Function from (logits, labels) to a float tensor (batch,).
            x: Float tensor (batch, ...).
            labels: The labels that the loss takes.
            active: Bool tensor (batch,). None means all.
            turn: As in `gradient`.

        Returns:
            (logits, losses), tensors (batch, classes) and (batch,).
        """

        def once(call: int) -> tuple[tf.Tensor, tf.Tensor]:
            if self._keyed is None:
                logits = predict(self._logits_fn, x, active)
            else:
                keys = self._keys(turn, call)
                logits = draw_batch(self._keyed, x, keys, active)
            return logits, loss(logits, labels)

        if self._keyed is None or self._keyed.together < 2:
            logits, values = self._repeated(once)
            return logits, values
        batch = x, labels, next_seeds(self._seeds, turn)
        return _keyed_values(self._keyed, loss, self._eot, batch, active)

    def predict(
        self, x: tf.Tensor, active: tf.Tensor | None = None, turn: Any = AT_X
    ) -> tf.Tensor:
        """Computes the logits, as `tfsam.attacks.logits.predict` does.

        Args:
            x: Float tensor (batch, ...).
            active: Bool tensor (batch,). None means all.
            turn: As in `gradient`.

        Returns:
            Tensor (batch, classes).
        """
        return self.values(_no_loss, x, (), active, turn)[0]

    def score(
        self, y: tf.Tensor, active: tf.Tensor
    ) -> Callable[[tf.Tensor], tf.Tensor] | None:
        """Returns a function that ranks points on a surrogate.

        It is that of `tfsam.attacks.logits.score`, for the mean logits.

        Args:
            y: Class numbers, or one-hot or smoothed labels.
            active: Bool tensor (batch,).
        """
        if not is_surrogate(self._logits_fn):
            return None
        return lambda x: losses.margin(self.predict(x, active, AT_END), y)

    def _repeated(self, once: Callable[[int], Any]) -> list[tf.Tensor]:
        """Returns the means of the results of calls on the whole batch."""
        if self._eot == 1:
            return list(once(0))
        found = [once(call) for call in range(self._eot)]
        return [_mean(list(each)) for each in zip(*found, strict=True)]

    def _keys(self, turn: Any, call: int) -> tf.Tensor:
        """Returns the keys of a call on the whole batch, all of them equal."""
        seeds = call_seeds(next_seeds(self._seeds, turn), call)
        return tf.stack([seeds[:, 0], tf.zeros_like(seeds[:, 0])], axis=1)


def keyed_logits(logits_fn: LogitsFn) -> Logits | None:
    """Returns the network that can be given a key, None if there is none.

    Args:
        logits_fn: Function from pixels to logits.

    Example:
        >>> keyed_logits(lambda x: x) is None
        True
    """
    if isinstance(logits_fn, Untraced):
        logits_fn = logits_fn.logits
    if not isinstance(logits_fn, Logits):
        return None
    return logits_fn if hasattr(logits_fn.function, "draw") else None


def call_seeds(seeds: tf.Tensor, call: int) -> tf.Tensor:
    """Derives the keys of one of several calls.

    Args:
        seeds: int32 tensor (batch, 2).
        call: Number of the call; 0 returns `seeds`.

    Returns:
        int32 tensor (batch, 2), unlike the seeds of another turn.

    Example:
        >>> call_seeds(tf.constant([[3, 0]]), 0).numpy().tolist()
        [[3, 0]]
    """
    return seeds + call * tf.constant([0x2545F491, 0], tf.int32)


def draw_logits(
    logits: Logits,
    x: tf.Tensor,
    seeds: tf.Tensor,
    count: int,
    active: tf.Tensor | None = None,
) -> tf.Tensor:
    """Computes the logits of several draws for each example.

    Args:
        logits: A network that can be given a key; see `keyed_logits`.
        x: Float tensor (batch, ...).
        seeds: int32 tensor (batch, 2), the keys of the examples.
        count: Number of draws, >= 1.
        active: Bool tensor (batch,). None means all.

    Returns:
        Float tensor (batch, count, classes), zeros for examples that are not
        active.
    """

    def compute(
        x: tf.Tensor, key: tf.Tensor, context: Context
    ) -> tuple[tf.Tensor]:
        return (logits.draw(x, key, context)[None],)

    logits.count([count, 0], x, active)
    (calls,) = _each(logits, "draw", compute, count, (x, seeds), active)
    return tf.concat([tf.reshape(c, [-1, *c.shape[-2:]]) for c in calls], 1)


def draw_batch(
    logits: Logits,
    x: tf.Tensor,
    keys: tf.Tensor,
    active: tf.Tensor | None = None,
) -> tf.Tensor:
    """Computes the logits of a single draw of the whole batch.

    Args:
        logits: A network that can be given a key; see `keyed_logits`.
        x: Float tensor (batch, ...).
        keys: int32 tensor (batch, 2), the key of the batch in every row.
        active: Bool tensor (batch,). None means all.

    Returns:
        Float tensor (batch, classes).
    """

    def compute(
        x: tf.Tensor, keys: tf.Tensor, context: Context
    ) -> tuple[tf.Tensor]:
        return (logits.draw(x, keys[0], context),)

    logits.count([1, 0], x, active)
    (found,) = logits.run("draw_batch", compute, active, x, keys)
    return found


def _batch_gradient(
    logits: Logits,
    loss: LossFn,
    batch: tuple[tf.Tensor, Any, tf.Tensor],
    active: tf.Tensor | None,
) -> Means:
    """Returns the results of a single draw of the whole batch.

    Args:
        logits: The network.
        loss: The loss.
        batch: (x, labels, keys), with the key of the batch in every row.
        active: Bool tensor (batch,), or None.
    """

    def compute(
        x: tf.Tensor, labels: Any, keys: tf.Tensor, context: Context
    ) -> tuple[tf.Tensor, ...]:
        network = functools.partial(
            logits.draw, key=keys[0], context=context, loss=loss
        )
        gradient = plain_gradient(network, loss, logits.independent)
        slopes, found = gradient(x, labels)
        return slopes, found, loss(found, labels)

    logits.count([0, 1], batch[0], active)
    key = "gradient_batch", loss
    slopes, found, values = logits.run(key, compute, active, *batch)
    return Means(logits.finite(slopes, active), found, values)


def _keyed_gradient(
    logits: Logits,
    loss: LossFn,
    eot: int,
    batch: tuple[tf.Tensor, Any, tf.Tensor],
    active: tf.Tensor | None,
) -> Means:
    """Returns the means over keyed draws.

    Args:
        logits: The network.
        loss: The loss.
        eot: Number of draws.
        batch: (x, labels, seeds).
        active: Bool tensor (batch,), or None.
    """

    def compute(
        x: tf.Tensor, labels: Any, key: tf.Tensor, context: Context
    ) -> tuple[tf.Tensor, ...]:
        network = functools.partial(
            logits.draw, key=key, context=context, loss=loss
        )
        slopes, found = plain_gradient(network, loss)(x, labels)
        slopes, kept = finite_part(slopes)
        means = (
            _mean_row(slopes),
            _mean_row(found),
            _mean_row(loss(found, labels)),
        )
        return *means, tf.reshape(tf.reduce_all(kept), [1])

    logits.count([0, eot], batch[0], active)
    *found, finite = _each(logits, loss, compute, eot, batch, active)
    logits.count_nonfinite(tf.reduce_all(tf.stack(finite), axis=0), active)
    means = Means(*map(_mean, found))
    slopes = tf.ensure_shape(means.slopes, batch[0].shape)
    return means._replace(slopes=slopes)


def _keyed_values(
    logits: Logits,
    loss: LossFn,
    eot: int,
    batch: tuple[tf.Tensor, Any, tf.Tensor],
    active: tf.Tensor | None,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the means of the logits and the losses; see `_keyed_gradient`."""

    def compute(
        x: tf.Tensor, labels: Any, key: tf.Tensor, context: Context
    ) -> tuple[tf.Tensor, ...]:
        found = logits.draw(x, key, context)
        return _mean_row(found), _mean_row(loss(found, labels))

    logits.count([eot, 0], batch[0], active)
    key = "values", loss
    outputs, values = _each(logits, key, compute, eot, batch, active)
    return _mean(outputs), _mean(values)


def _each(
    logits: Logits,
    key: Any,
    compute: Callable[..., Any],
    draws: int,
    batch: tuple[Any, ...],
    active: tf.Tensor | None,
) -> list[list[tf.Tensor]]:
    """Calls a function on copies of each example, in as few calls as possible.

    Args:
        logits: The network.
        key: Key of the trace.
        compute: Function of copies of an example (size, ...), its labels, if
            there are any, a key (2,), and their context. Returns a tuple of
            tensors (1, ...).
        draws: Number of copies in all calls.
        batch: Tensors (batch, ...), the last of which are the seeds.
        active: Bool tensor (batch,), or None.

    Returns:
        For each result of the function, a list of tensors (batch, ...), one for
        each call.
    """
    most = min(draws, logits.together)
    size = max(n for n in range(1, most + 1) if not draws % n)
    *tensors, seeds = batch

    def one(*example: Any) -> Any:
        *tensors, seeds, context = example
        *repeated, context = tf.nest.map_structure(
            lambda t: copies(t, size), [*tensors, context]
        )
        return compute(*repeated, seeds[0], context)

    found = [
        logits.each(
            (key, size),
            one,
            # In a loop that XLA compiles, the number of examples is fixed.
            None if logits.jit_loops else active,
            *tensors,
            call_seeds(seeds, call),
        )
        for call in range(draws // size)
    ]
    return [list(results) for results in zip(*found, strict=True)]


def _mean_row(values: tf.Tensor) -> tf.Tensor:
    return tf.reduce_mean(values, axis=0, keepdims=True)


def _mean(tensors: list[tf.Tensor]) -> tf.Tensor:
    """Returns the mean of tensors, entry by entry.

    `tf.reduce_mean` adds the numbers of an entry in an order that depends on
    the size of the batch.
    """
    return tf.add_n(tensors) / len(tensors)


def _no_loss(logits: tf.Tensor, labels: Any) -> tf.Tensor:
    return tf.zeros_like(logits[:, 0])
