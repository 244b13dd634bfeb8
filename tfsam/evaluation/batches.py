"""One batch: an attack, whose result is checked and classified."""

import functools
from typing import Any
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tfsam.attacks.check import contract
from tfsam.attacks.logits import traced
from tfsam.evaluation import red_flags
from tfsam.evaluation.plans import Entry
from tfsam.evaluation.plans import Plan
from tfsam.evaluation.plans import has_epsilon
from tfsam.evaluation.workers import Worker
from tfsam.evaluation.workers import as_numpy
from tfsam.parts import ATTACKS
from tfsam.support import identity


class Turn(NamedTuple):
    """An attack's turn at a worker."""

    plan: Plan
    entry: Entry
    part: str  # Of the record, where its verdicts go.
    worker: Worker


class Found(NamedTuple):
    """What an attack returned, checked and classified."""

    images: np.ndarray
    outputs: np.ndarray
    largest: float
    passes: np.ndarray  # Forward, gradient.
    nonfinite: int  # Gradients of examples that are not finite.
    facts: red_flags.Facts  # About the attack.


def attack_batch(turn, attack, trace, indices, epsilon=None, start=None):
    """Attacks some examples of a chunk; without an epsilon, finds the nearest.

    The network sees blocks of the active examples, whatever the batch, so one
    batch does for all; attacks that do not leave examples out get the smallest
    of three batches that will do.

    An attack that runs in a graph is traced once for all chunks. `trace` says
    which trace is its own: the position in an ensemble, from 1, for two stages
    may have one name, and the attack's `kind_of`.
    """
    plan, worker = turn.plan, turn.worker
    in_graph = worker.traceable and ATTACKS.fact(attack, "in_graph")
    asks_for = ATTACKS.fact(attack, "selective")
    selective = in_graph and asks_for and worker.source.rows is not None
    any_epsilon = (
        ATTACKS.fact(attack, "tensor_epsilon")
        and epsilon is not None
        and has_epsilon(attack, epsilon)
    )
    size = plan.size if selective else _batch_size(len(indices), plan.size)
    batch = np.resize(indices, size)
    x = plan.data.x[batch]
    seeds = np.stack([np.full_like(batch, plan.seed), batch], axis=1)
    active = tf.constant(np.arange(size) < len(indices))
    logits: Any = worker.source
    if not worker.traceable:  # A plain function: nothing may be traced.
        logits = functools.partial(worker.source)
        logits.surrogate = worker.source.surrogate

    def run(x, y, seeds, active, radius, *start):
        made = attack.with_epsilon(radius) if any_epsilon else attack
        source = logits.only(active) if selective else logits
        call = made.closest if epsilon is None else made
        return call(source, x, y, seeds, *start)

    if in_graph:
        key = (turn.part, trace, size, start is None, epsilon is None)
        run = worker.runs.setdefault(key, traced(run))
    worker.source.count_passes()
    x_adv = run(
        tf.constant(x),
        tf.constant(plan.data.y[batch]),
        tf.constant(seeds.astype(np.int32)),
        active,
        tf.constant(epsilon or 0.0, x.dtype),
        *([] if start is None else [tf.constant(np.resize(start, x.shape))]),
    )
    passes, nonfinite, taken = worker.source.counted()
    steps = max(passes[1] / (len(indices) if selective else size), taken / size)
    uncounted = in_graph and not passes.any()
    if uncounted and not red_flags.facts_of(attack).gradient_free:
        # Gradients by tapes of its own cannot be counted in a graph.
        steps = np.inf
        red_flags.look_at_slopes(worker.source, x, plan.data.y[batch])
        nonfinite = worker.source.counted().nonfinite
    allowed = np.inf if epsilon is None else epsilon
    try:
        largest = contract(x, x_adv, allowed, plan.norm, plan.bounds)
    except ValueError as error:
        if not nonfinite:
            raise
        raise ValueError(
            "the network's input gradients are NaN or infinite, which the "
            f"warning nan_gradients explains, and {error}"
        ) from error
    outputs = as_numpy(worker.predict(x_adv, active))
    if not np.isfinite(outputs).all():
        raise ValueError(
            "the model must return finite logits under attack. "
            "Received: NaN or infinity"
        )
    count = len(indices)
    return Found(
        as_numpy(x_adv)[:count],
        outputs[:count],
        largest,
        passes,
        nonfinite,
        red_flags.facts_of(attack, steps),
    )


def _batch_size(count, largest):
    """The smallest of three sizes that holds so many examples."""
    sizes = (-(-largest // 16), -(-largest // 4), largest)
    return next(size for size in sizes if size >= count)


def kind_of(attack, epsilon):
    """Returns a key, equal for attacks that may share a trace or a run.

    An attack that computes with a tensor for epsilon (`tensor_epsilon`), or
    whose run serves every epsilon (`minimum_norm`), is of the same kind at
    another epsilon if all of its other attributes are equal: one that derives a
    step size from its epsilon is not. Where the attributes cannot be described,
    the epsilon itself keeps the attacks apart.
    """
    shared = any(
        ATTACKS.fact(attack, flag)
        for flag in ("tensor_epsilon", "minimum_norm")
    )
    if not shared or not has_epsilon(attack, epsilon):
        return epsilon
    try:
        described = identity.describe(attack, without=["epsilon"])
    except identity.Unknown:
        return epsilon
    return identity.digest(described)
