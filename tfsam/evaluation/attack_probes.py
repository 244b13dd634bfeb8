"""Probes of the attacked model beside the attacks.

`changes_of_loss` and `unbroken_without_budget` compute indicators that the path
of an attack cannot tell; see `tfsam.evaluation.diagnosis`. They look at a few
examples of the first chunk only, so that they cost little even if it is the
whole evaluation. `steepest_images` leads sweeps by bisection to the epsilons
that they try first.
"""

import copy
from typing import Any

import numpy as np
import tensorflow as tf

from tfsam import geometry
from tfsam.attacks import Attack
from tfsam.attacks.check import contract
from tfsam.evaluation import draws
from tfsam.evaluation.attack_batch import attack_batch
from tfsam.evaluation.attack_batch import kind_of
from tfsam.evaluation.budgets import Budget
from tfsam.evaluation.model_probes import traced_gradient
from tfsam.evaluation.plans import Entry
from tfsam.evaluation.plans import Plan
from tfsam.evaluation.workers import Worker
from tfsam.evaluation.workers import as_numpy
from tfsam.evaluation.workers import attacked_predict
from tfsam.registries import ATTACKS

# Number of survivors on which an attack without a budget is tried, and of steps
# with which it is tried first.
_TRIED, _FEW = 8, 3

# Number of examples around which the loss is compared, and number of points
# around each. The paper takes 100 points.
_EXAMPLES, _DRAWS = 16, 8

# Side of the cube from which the points are drawn, for pixels in [0, 1]; a
# pixel changes by at most half of it, as in the authors' code.
_SIDE = 8 / 255


def changes_of_loss(
    plan: Plan, worker: Worker, chosen: np.ndarray
) -> np.ndarray:
    """Returns the mean relative change of the loss around some examples.

    Pintor et al., 2022, indicator "unstable predictions": points are drawn
    uniformly around an example. The loss is the margin max_{i != y} z_i - z_y,
    because any change of a cross-entropy near 0 is relatively large; for the
    same reason, a margin smaller than the median counts as the median.

    Args:
        plan: The plan of the evaluation.
        worker: The worker that measures the first chunk.
        chosen: Int array, indices of correctly classified examples, of which
            the first are used.

    Returns:
        Float array (count,), each in [0, 1].
    """
    chosen = chosen[:_EXAMPLES]
    if not len(chosen):
        return np.zeros(0)
    pairs = [(draw, i) for draw in range(_DRAWS + 1) for i in chosen]
    found = []
    for first in range(0, len(pairs), plan.size):
        part = pairs[first : first + plan.size]
        images = np.stack([_around(plan, index, draw) for draw, index in part])
        indices = np.array([index for _, index in part])
        found.append(_logits(plan, worker, images, indices))
    logits = np.concatenate(found)
    margins = plan.goal.margins(logits, np.tile(chosen, _DRAWS + 1))
    margins = margins.reshape(_DRAWS + 1, len(chosen)).astype(np.float64)
    sizes = np.abs(margins[0])
    sizes = np.maximum(sizes, np.median(sizes))
    sizes = np.where(sizes > 0, sizes, 1.0)
    changes = np.minimum(np.abs(margins[1:] - margins[0]) / sizes, 1)
    return np.nan_to_num(changes.mean(axis=0), nan=1.0)


def _width(plan: Plan) -> np.ndarray:
    """Returns the widths of the bounds, or of the data without bounds."""
    low, high = plan.data.ends if plan.bounds is None else plan.bounds
    return np.subtract(high, low, dtype=np.float64)


def _around(plan: Plan, index: int, draw: int) -> np.ndarray:
    """Returns a point near an image; the image itself for draw 0."""
    image = plan.data.x[index : index + 1][0]
    if not draw:
        return image
    low, high = plan.bounds or (-np.inf, np.inf)
    random = np.random.default_rng([plan.seed, index, draw])
    noise = random.random(image.shape, np.float32) - 0.5
    moved = image + (_SIDE * _width(plan)).astype(np.float32) * noise
    return moved.clip(low, high).astype(image.dtype)


def _logits(
    plan: Plan, worker: Worker, images: np.ndarray, indices: np.ndarray
) -> np.ndarray:
    """Returns the logits of the attacked model, for a chunk of images at most.

    They are computed in batches of the size that `predict` is traced for.

    Args:
        plan: The plan of the evaluation.
        worker: The worker of the model.
        images: Float array (count, ...), near images of the data.
        indices: Int array (count,), the indices of these.
    """
    batch = np.resize(images, (plan.size, *images.shape[1:]))
    active = np.arange(plan.size) < len(images)
    others = plan.data.given(np.resize(indices, plan.size))
    predict = attacked_predict(worker)
    outputs = predict(tf.constant(batch), tf.constant(active), others)
    return as_numpy(outputs)[: len(images)]


def unbroken_without_budget(
    plan: Plan,
    worker: Worker,
    entry: Entry,
    part: tuple[int, str],
    chosen: np.ndarray,
) -> np.ndarray:
    """Tries an attack on some examples with a budget that allows any image.

    Pintor et al., 2022, indicator "unconstrained attack failure". The attack is
    first tried with a few steps: an example that it breaks by them needs no
    more, and only what is left is attacked by all of them.

    Args:
        plan: The plan of the evaluation.
        worker: The worker on which the attack runs.
        entry: The attack.
        part: Number of the attack in the record, and its norm.
        chosen: Int array, indices of survivors, of which the first are used.

    Returns:
        Int array [tried, unbroken].
    """
    chosen = chosen[:_TRIED]
    plan = plan._replace(factors=None)
    pixels = plan.data.x[:1].size
    _, norm = part
    power = 1 / geometry.FACTS[norm].order
    epsilon = float(_width(plan).max() * pixels**power)
    left = chosen
    try:
        attack = plan.made(entry, Budget(norm, epsilon))
        stages = ATTACKS.fact(attack, "stages") or [("", attack)]
        left = left[~_broken_by_few(plan, worker, stages[0][1], left)]
        for number, (_, stage) in enumerate(stages, 1):
            if not len(left):
                break
            key = (*part, number, kind_of(stage, epsilon))
            found = attack_batch(plan, worker, stage, key, left, norm, epsilon)
            left = left[~found.broken]
    except Exception:
        # An attack of others may not take such a budget; it is not judged.
        return np.zeros(2, np.int64)
    return np.array([len(chosen), len(left)])


def _broken_by_few(
    plan: Plan, worker: Worker, attack: Any, indices: np.ndarray
) -> np.ndarray:
    """Returns which examples an attack breaks by a few of its steps.

    They are made eagerly: a trace of the attack with fewer steps would take
    longer than all of them, and the gradient has a trace already.

    Args:
        plan: The plan of the evaluation.
        worker: The worker on which the attack runs.
        attack: The attack, with a budget that allows any image.
        indices: Int array (count,), the indices of the examples.

    Returns:
        Bool array (count,); false for all if the attack has no steps to leave
        out, or needs a whole batch.
    """
    none = np.zeros(len(indices), bool)
    rows = worker.source.rows if worker.traceable else None
    shortened = isinstance(attack, Attack) and attack.selective
    if not rows or not shortened or getattr(attack, "steps", 0) <= _FEW:
        return none
    short: Any = copy.copy(attack)
    short.steps = _FEW
    # A block, for which the gradient is traced.
    batch = np.resize(indices, min(rows, plan.size))
    seeds = np.stack([np.full_like(batch, plan.seed), batch], axis=1)
    x = plan.data.x[batch]
    try:
        x_adv = short.perturb(
            worker.aimed.given(plan.context(batch)),
            tf.constant(x),
            tf.constant(plan.goal.labels(batch)),
            tf.constant(seeds.astype(np.int32)),
        )
        contract(x, x_adv, np.inf, attack.norm, plan.bounds)
    except Exception:
        # An attack of others may need all of its steps.
        return none
    images = as_numpy(x_adv)[np.resize(np.arange(len(indices)), plan.size)]
    return draws.judge(plan, worker, images, indices).broken


def steepest_images(
    plan: Plan, worker: Worker, indices: np.ndarray, norm: str
) -> np.ndarray | None:
    """Moves images along the gradient of the cross-entropy.

    Args:
        plan: The plan of the evaluation.
        worker: The worker whose source is attacked.
        indices: Int array (count,), the examples of a chunk.
        norm: Norm of the perturbations.

    Returns:
        Float array (count, ...), images at the distance 1 in the direction in
        which the linearised loss rises most, in l1 that of l2, which changes
        more than one pixel. They may be outside the bounds. None for a model
        without gradients.
    """
    batch = np.resize(indices, plan.size)
    active = np.arange(plan.size) < len(indices)
    x = tf.constant(plan.data.x[batch])
    try:
        aimed = worker.aimed.given(plan.context(batch))
        gradient = traced_gradient(aimed, worker.traceable)
        labels = tf.constant(plan.goal.labels(batch))
        slopes, _ = gradient(x, labels, tf.constant(active))
    except Exception:  # As in `model_probes.probe_gradients`, which reports it.
        return None
    moved = x + geometry.steepest(slopes, geometry.FACTS[norm].dense)
    return moved.numpy()[: len(indices)]
