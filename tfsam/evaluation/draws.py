"""Verdicts over several draws of a random model.

A model that draws random numbers may classify an image correctly in one call
and wrongly in the next. A verdict is therefore that of most of k draws, whose
random numbers are keyed by the seed of the evaluation and the index of the
example. An image then has the same verdict whatever the batch, the device and
the order of the work. Natural images and adversarial ones are judged by the
same draws, so that noise does not count as an attack; no attack sees them.

An example's k draws are the rows of a call on k copies of it. If all rows of a
call have the same noise, each draw is a call on the whole batch, whose key is
that of the draw alone. How the random
numbers are keyed depends on where they come from, which `examined` finds out:

- Those of Keras come from seed generators, whose states are replaced
  (`tfsam.models.keyed_noise`). The model may run in a graph.
- Those of `tf.random`, NumPy and Python come from generators that are set
  before each call (`tfsam.support.random_states`). The model runs eagerly.
- Others, such as those of a SavedModel, cannot be keyed. Another run then gives
  other verdicts, as the warning `draws_not_repeatable` says.
"""

import contextlib
from collections.abc import Callable
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tfsam.attacks.averaging import draw_batch
from tfsam.attacks.averaging import draw_logits
from tfsam.attacks.logits import TOGETHER
from tfsam.attacks.logits import Logits
from tfsam.evaluation import model_probes
from tfsam.evaluation import red_flags
from tfsam.evaluation.plans import Plan
from tfsam.evaluation.workers import Worker
from tfsam.evaluation.workers import as_numpy
from tfsam.registries import ATTACKS
from tfsam.support import random_states
from tfsam.support.graphs import traced
from tfsam.support.validators import check_count

# Number of draws for a random model.
DRAWS = 20

# Sources of random numbers that can be keyed, and other ones.
KERAS, GLOBAL, UNKNOWN = "keras", "global", "unknown"

# Part of the keys of verdicts, which no attack has.
_JUDGE = 0x4A554447

# Number of examples with which a model is tried, and of copies of each.
_EXAMPLES, _COPIES = 16, 8


class Draws(NamedTuple):
    """The draws by which a random model is judged.

    Attributes:
        number: Number of draws for each example, >= 1.
        source: Origin of the random numbers: `KERAS`, `GLOBAL` or `UNKNOWN`.
        together: Number of copies of an example in a call; 1 if all rows of a
            call have the same noise, and 0 if they depend on each other, so
            that whole batches are drawn.
    """

    number: int
    source: str
    together: int


class Judged(NamedTuple):
    """Verdicts of some images.

    Attributes:
        outputs: Float array (n, classes), the logits, or their means.
        wrong: Float array (n,), the fraction of the draws that reach the goal
            of the attacks, a wrong class by default.
        broken: Bool array (n,), whether at least half of the draws do.
        mistaken: Float array (n,), the fraction of the draws that are wrong
            about the label.
        right: Bool array (n, labels), whether most of the draws are right about
            each of several labels.
    """

    outputs: np.ndarray
    wrong: np.ndarray
    broken: np.ndarray
    mistaken: np.ndarray
    right: np.ndarray


def planned(draws: Any, logits: Logits, x: Any) -> Draws | None:
    """Chooses the draws for a model, and notes what is found out about it.

    The attributes `random` and `together` of a random model are set, for the
    attacks on it.

    Args:
        draws: The argument of `evaluate`: a number, or None for `DRAWS` draws
            of a random model and a single one of another.
        logits: The model.
        x: Float array (n, ...), the images of the evaluation.

    Returns:
        The `Draws`; None for a single draw of a model that is not random.

    Raises:
        ValueError: If `draws` is not an integer >= 1.
    """
    if draws is not None:
        draws = check_count("draws", draws, 1)
    some = np.asarray(x[:_EXAMPLES])
    found, tolerance = model_probes.randomness(logits.function, some)
    if found > tolerance:
        source, logits.together = _source(logits, some, tolerance)
        logits.random = True
        return Draws(draws or DRAWS, source, logits.together)
    if draws is None or draws == 1:
        return None
    return Draws(draws, KERAS, TOGETHER)


def _source(logits: Logits, x: np.ndarray, tolerance: float) -> tuple[str, int]:
    """Returns the `source` and `together` of a random model's `Draws`."""
    for source in (KERAS, GLOBAL):
        together = _tried(_eager(logits, source), x, tolerance)
        if together is not None:
            return source, together
    return UNKNOWN, TOGETHER


def _tried(
    call: Callable[[tf.Tensor, Sequence[int]], np.ndarray],
    x: np.ndarray,
    tolerance: float,
) -> int | None:
    """Returns how many copies to draw together, None if keys have no effect.

    Args:
        call: Function from a batch and a key to logits.
        x: Float array (n, ...), a few images.
        tolerance: The largest difference that rounding can explain.
    """

    def close(one: np.ndarray, other: np.ndarray) -> bool:
        return model_probes.difference(one, other) <= tolerance

    shared = same = True
    for index in range(min(len(x), 4)):
        copied = np.repeat(x[index : index + 1], _COPIES, axis=0)
        first, again, other = (call(copied, (key, index)) for key in (0, 0, 1))
        if not close(first, again):
            return None
        same &= close(first, other)
        shared &= close(first, np.broadcast_to(first[:1], first.shape))
    if same:
        return None
    mixed = np.resize(x, (_COPIES, *x.shape[1:]))
    alone = np.repeat(x[:1], _COPIES, axis=0)
    if not close(call(mixed, (0, 0))[:1], call(alone, (0, 0))[:1]):
        return 0
    return 1 if shared else TOGETHER


def judge(plan: Plan, worker: Worker, x: Any, indices: np.ndarray) -> Judged:
    """Judges images of some examples.

    Args:
        plan: The plan of the evaluation.
        worker: The worker that runs the model.
        x: Float array or tensor (size, ...), the images, filled up with any
            others to a size that the model was traced for.
        indices: Int array (n,), the indices of the examples.
    """
    draws, active = plan.draws, np.arange(len(x)) < len(indices)
    if draws is None:
        others = plan.data.given(np.resize(indices, len(x)))
        outputs = worker.predict(tf.constant(x), tf.constant(active), others)
        outputs = as_numpy(outputs)[: len(indices)]
        return _judged(plan, outputs[:, None], indices)
    keys = np.stack(
        [np.full(len(x), plan.seed ^ _JUDGE), np.resize(indices, len(x))],
        axis=1,
    )
    eager = draws.source == GLOBAL or not worker.judged
    find = _one_by_one if eager else _in_a_graph
    if draws.together < 2:
        find = _in_batches if eager else _in_batches_of_a_graph
    logits = find(draws, worker, np.asarray(x), keys.astype(np.int32), active)
    return _judged(plan, logits, indices)


def _judged(plan: Plan, logits: np.ndarray, indices: np.ndarray) -> Judged:
    """Judges the logits of several draws, a float array (n, draws, classes)."""
    wrong = plan.goal.reached(logits, indices)
    right = plan.goal.right(logits, indices)
    one = logits.shape[1] == 1
    return Judged(
        outputs=logits[:, 0] if one else logits.mean(axis=1),
        wrong=wrong.mean(axis=1),
        broken=2 * wrong.sum(axis=1) >= logits.shape[1],
        mistaken=plan.goal.mistaken(logits, indices).mean(axis=1),
        right=2 * right.sum(axis=1) > logits.shape[1],
    )


def spread(wrong: np.ndarray, broken: np.ndarray) -> float:
    """Returns the mean fraction of the draws that disagree with the verdict.

    Args:
        wrong: Float array (n,), the fraction of the draws that are wrong.
        broken: Bool array (n,), the verdicts.

    Example:
        >>> spread(np.array([0.25, 1.0]), np.array([False, True]))
        0.125
    """
    return float(np.where(broken, 1 - wrong, wrong).mean(dtype=np.float64))


def _in_a_graph(
    draws: Draws,
    worker: Worker,
    x: np.ndarray,
    keys: np.ndarray,
    active: np.ndarray,
) -> np.ndarray:
    """Returns the logits (n, draws, classes) of the active examples.

    Args:
        draws: The draws.
        worker: The worker that runs the model.
        x: Float array (size, ...).
        keys: Int32 array (size, 2), the keys of the examples.
        active: Bool array (size,).
    """

    def find(x: tf.Tensor, keys: tf.Tensor, active: tf.Tensor) -> tf.Tensor:
        return draw_logits(worker.judge, x, keys, draws.number, active)

    run = _traced_once(worker, draws, find)
    found = run(tf.constant(x), tf.constant(keys), tf.constant(active))
    return as_numpy(found)[active]


def _traced_once(
    worker: Worker, draws: Draws, find: Callable[..., Any]
) -> Callable[..., Any]:
    """Returns the traced function, which the worker keeps for an evaluation."""
    key = False, "draws", draws
    return worker.runs.setdefault(key, (traced(find), []))[0]


def _one_by_one(
    draws: Draws,
    worker: Worker,
    x: np.ndarray,
    keys: np.ndarray,
    active: np.ndarray,
) -> np.ndarray:
    """Calls the model eagerly on copies of each example; see `_in_a_graph`."""
    call, size = _eager(worker.judge, draws.source), draws.together
    size = min(size, draws.number)
    found = []
    for index in np.flatnonzero(active):
        copied = np.repeat(x[index : index + 1], size, axis=0)
        calls = [
            call(copied, [*keys[index], turn])
            for turn in range(-(-draws.number // size))
        ]
        found.append(np.concatenate(calls)[: draws.number])
    return np.stack(found)


def _in_batches_of_a_graph(
    draws: Draws,
    worker: Worker,
    x: np.ndarray,
    keys: np.ndarray,
    active: np.ndarray,
) -> np.ndarray:
    """Calls the model on the whole batch; see `_in_a_graph`."""

    def find(x: tf.Tensor, keys: tf.Tensor, active: tf.Tensor) -> tf.Tensor:
        return draw_batch(worker.judge, x, keys, active)

    run = _traced_once(worker, draws, find)
    found = []
    for turn in range(draws.number):
        keys = np.stack([keys[:, 0], np.full_like(keys[:, 0], turn)], axis=1)
        outputs = run(tf.constant(x), tf.constant(keys), tf.constant(active))
        found.append(as_numpy(outputs)[active])
    return np.stack(found, axis=1)


def _in_batches(
    draws: Draws,
    worker: Worker,
    x: np.ndarray,
    keys: np.ndarray,
    active: np.ndarray,
) -> np.ndarray:
    """Calls the model eagerly on the whole batch; see `_in_a_graph`."""
    call = _eager(worker.judge, draws.source)
    found = [call(x, [keys[0, 0], turn]) for turn in range(draws.number)]
    return np.stack(found, axis=1)[active]


def _eager(
    logits: Logits, source: str
) -> Callable[[np.ndarray, Sequence[int]], np.ndarray]:
    """Returns a function that calls the model with keyed random numbers.

    Args:
        logits: The model.
        source: Origin of its random numbers.

    Returns:
        Function from images (batch, ...) and a key, two or three integers, to
        logits (batch, classes).
    """
    generators = []
    if source == GLOBAL:
        generators = random_states.reachable(logits.function)

    def call(x: np.ndarray, key: Sequence[int]) -> np.ndarray:
        words = np.array(key, np.int64) & 0xFFFFFFFF
        state = np.random.SeedSequence(words.tolist()).generate_state(2) >> 1
        pixels = tf.constant(x)
        with contextlib.ExitStack() as stack:
            if source == GLOBAL:
                stack.enter_context(
                    random_states.seeded(int(state[0]), generators)
                )
            found = logits.draw(pixels, tf.constant(state.astype(np.int32)))
        return as_numpy(found)

    return call


def alone(plan: Plan) -> AbstractContextManager[Any]:
    """Returns a context in which no other thread sets the global generators.

    Attacks that run eagerly draw from the generators that `judge` sets on
    another device.

    Args:
        plan: The plan of the evaluation.
    """
    if plan.draws is not None and plan.draws.source == GLOBAL:
        return random_states.alone()
    return contextlib.nullcontext()


def facts(plan: Plan) -> dict[str, np.ndarray]:
    """Returns facts about the draws that warnings depend on.

    Args:
        plan: The plan of the evaluation.
    """
    if plan.draws is None:
        return {}
    return {
        "repeatable": np.array(plan.draws.source != UNKNOWN),
        "together": np.array(plan.draws.together),
    }


def follows_one(
    attack: Any, facts: Sequence[red_flags.Facts], source: Logits
) -> bool:
    """Returns whether an attack follows single draws of a random model.

    Args:
        attack: The attack, or an ensemble.
        facts: The `Facts` about its stages, or about itself.
        source: The model that is attacked.
    """
    stages = [stage for _, stage in ATTACKS.fact(attack, "stages")] or [attack]
    draws = [
        ATTACKS.fact(stage, "eot")
        for stage, fact in zip(stages, facts, strict=True)
        if not fact.gradient_free
    ]
    return source.random and bool(draws) and max(draws) == 1
