"""Orders in which targeted attacks try the wrong classes.

A targeted attack aims at a few wrong classes of each example in turn.
`by_logits` begins with the most likely class, as AutoAttack does (Croce and
Hein, 2020). `by_distance` begins with the class whose decision boundary is
nearest by the linearised network, as MALT does (Melamed et al., 2024, "MALT
Powers Up Adversarial Attacks", arXiv 2407.02240). An attack chooses between
them by its argument `target_order`.
"""

import math
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tfsam.attacks import losses
from tfsam.attacks.attempts import copies
from tfsam.attacks.attempts import side_by_side
from tfsam.attacks.attempts import turn
from tfsam.attacks.averaging import AT_X
from tfsam.attacks.averaging import Averaged
from tfsam.attacks.averaging import Means
from tfsam.attacks.logits import LogitsFn
from tfsam.attacks.logits import compiled
from tfsam.attacks.logits import in_turn
from tfsam.geometry import dual_norms
from tfsam.support.validators import check_choice

# Values of `target_order`.
ORDERS = ("logits", "distance")

# Number of most likely wrong classes whose distances are compared, as in MALT.
CANDIDATES = 100


def check_order(order: Any) -> str:
    """Checks the value of `target_order`.

    Args:
        order: "logits" or "distance".

    Returns:
        `order`.

    Raises:
        ValueError: If `order` is not one of `ORDERS`.

    Example:
        >>> check_order("distance")
        'distance'
    """
    return check_choice("target_order", order, ORDERS)


def gradients_of(attack: Any) -> int:
    """Returns the number of gradients of an attack for a batch.

    Ordering the targets by distance costs one gradient for each candidate. A
    model of few classes has fewer candidates than are counted here.

    Args:
        attack: An attack with the attributes `steps`, `restarts`, `targets`,
            `target_order` and `eot`.

    Returns:
        An int, over all restarts and targets.

    Example:
        >>> from tfsam.attacks import apgd_t
        >>> gradients_of(apgd_t(0.1, steps=100, targets=9))
        900
    """
    ordered = attack.targets and attack.target_order == "distance"
    runs = attack.restarts * max(attack.targets, 1)
    each = attack.steps * runs + (CANDIDATES if ordered else 0)
    return int(each * attack.eot)


def targets_of(
    attack: Any,
    logits_fn: LogitsFn,
    x: tf.Tensor,
    y: tf.Tensor,
    logits: tf.Tensor,
    active: tf.Tensor,
    seeds: tf.Tensor | None = None,
) -> tf.Tensor:
    """Returns the wrong classes that an attack aims at, in its order.

    Args:
        attack: An attack with the attributes `targets`, `target_order` and
            `norm`, and optionally `candidates` and `eot`.
        logits_fn: Function from pixels to logits.
        x: Float tensor (batch, ...), the clean images.
        y: Class numbers, or one-hot or smoothed labels.
        logits: Float tensor (batch, classes), the logits of x.
        active: Bool tensor (batch,), the examples to attack.
        seeds: int32 tensor (batch, 2), for an attack with `eot`.

    Returns:
        int64 tensor (batch, min(targets, classes - 1)). The classes of examples
        that are not active are undefined.

    Example:
        >>> import tensorflow as tf
        >>> from tfsam.attacks import apgd_t
        >>> x, y = tf.constant([[3.0, 1.0, 2.0]]), tf.constant([0])
        >>> attack = apgd_t(0.1, targets=1)
        >>> targets_of(attack, abs, x, y, x, y == 0).numpy().tolist()
        [[2]]
    """
    if attack.target_order == "logits":
        return by_logits(logits, y, attack.targets)
    return by_distance(
        logits_fn,
        x,
        y,
        attack.targets,
        attack.norm,
        logits=logits,
        active=active,
        candidates=getattr(attack, "candidates", CANDIDATES),
        eot=getattr(attack, "eot", 1),
        seeds=seeds,
    )


def by_logits(logits: tf.Tensor, labels: tf.Tensor, count: int) -> tf.Tensor:
    """Returns the most likely wrong classes, most likely first.

    Args:
        logits: Float tensor (batch, classes), the logits of the clean images.
        labels: Class numbers, or one-hot or smoothed labels.
        count: Number of classes. If there are fewer wrong classes, all of them
            are returned.

    Returns:
        int64 tensor (batch, min(count, classes - 1)).

    Example:
        >>> import tensorflow as tf
        >>> logits = tf.constant([[3.0, 1.0, 2.0]])
        >>> by_logits(logits, tf.constant([0]), 9).numpy().tolist()
        [[2, 1]]
    """
    count = min(count, logits.shape[-1] - 1)
    right = losses.one_hot(logits, labels)
    others = tf.where(
        right, tf.constant(logits.dtype.min, logits.dtype), logits
    )
    return tf.cast(tf.math.top_k(others, count).indices, tf.int64)


def by_distance(
    logits_fn: LogitsFn,
    x: tf.Tensor,
    labels: tf.Tensor,
    count: int,
    norm: str,
    *,
    logits: tf.Tensor,
    active: tf.Tensor | None = None,
    candidates: int = CANDIDATES,
    eot: int = 1,
    seeds: tf.Tensor | None = None,
) -> tf.Tensor:
    """Returns the wrong classes of the nearest boundaries, nearest first.

    Melamed et al., 2024: the score of a class c is (z_y - z_c) /
    ||grad_x (z_y - z_c)||_dual, the distance to the boundary between y and c if
    the network were linear. It is computed for the most likely wrong classes,
    by one gradient each. A class with a gradient of zero has no direction to
    follow, and comes last; its score would be 0 / 0 or infinite.

    Args:
        logits_fn: Function from pixels to logits.
        x: Float tensor (batch, ...), the clean images.
        labels: Class numbers, or one-hot or smoothed labels.
        count: Number of classes, >= 1. If there are fewer candidates, all of
            them are returned.
        norm: Norm of the distance, "linf", "l2" or "l1".
        logits: Float tensor (batch, classes), the logits of x.
        active: Bool tensor (batch,), the examples to compute. None means all.
        candidates: Number of most likely wrong classes to compare, >= 1.
        eot: Number of draws of a random network, >= 1, of which the means are
            used; see `tfsam.attacks.averaging`.
        seeds: int32 tensor (batch, 2), for several draws.

    Returns:
        int64 tensor (batch, min(count, candidates, classes - 1)). Classes of
        the same score are in the order of their logits.

    Example:
        >>> import tensorflow as tf
        >>> slopes = tf.constant([[0.0, 1.0, 8.0]])
        >>> def logits_fn(x):
        ...     return x @ slopes + [4.0, 3.0, 1.0]
        >>> x, y = tf.constant([[0.0]]), tf.constant([0])
        >>> by_distance(
        ...     logits_fn, x, y, 2, "l2", logits=logits_fn(x)
        ... ).numpy().tolist()
        [[2, 1]]
    """
    choices = by_logits(logits, labels, candidates)
    if active is None:
        active = tf.ones(tf.shape(x)[:1], tf.bool)
    # The draws of a network already fill a call.
    many = choices.shape[1]
    beside = 1 if eot > 1 else side_by_side(many, x, logits_fn)
    network = Averaged(in_turn(logits_fn, beside, x), eot, seeds)
    gradient = network.gradient(losses.difference)

    def loop(x: tf.Tensor, choices: tf.Tensor, active: tf.Tensor) -> tf.Tensor:
        return _scores(gradient, x, labels, choices, norm, active, beside)

    scores = compiled(logits_fn, loop)(x, choices, active)
    count = min(count, many)
    # Among equals, top_k returns the first: the most likely class.
    nearest = tf.math.top_k(-scores, count).indices
    return tf.gather(choices, nearest, axis=1, batch_dims=1)


def _scores(
    gradient: Callable[..., Means],
    x: tf.Tensor,
    labels: tf.Tensor,
    choices: tf.Tensor,
    norm: str,
    active: tf.Tensor,
    beside: int,
) -> tf.Tensor:
    """Returns the score of each choice, a float tensor (batch, choices).

    Args:
        gradient: The gradient of `losses.difference`, of `Averaged`.
        x: Float tensor (batch, ...), the clean images.
        labels: Class numbers, or one-hot or smoothed labels.
        choices: int64 tensor (batch, choices), classes.
        norm: "linf", "l2" or "l1".
        active: Bool tensor (batch,).
        beside: Number of classes to compute in parallel, a divisor of choices.
    """
    many = choices.shape[1]
    images, wanted = copies(x, beside), copies(active, beside)
    right = losses.classes(copies(labels, beside))

    def some(first: tf.Tensor) -> tf.Tensor:
        turns = [turn(choices, first + number) for number in range(beside)]
        both = right, tf.concat(turns, 0)
        # The same draws for all classes, whose scores are compared.
        means = gradient(images, both, wanted, AT_X)
        gaps = -tf.cast(means.losses, x.dtype)
        steepness = dual_norms(means.slopes, norm)
        scores = tf.math.divide_no_nan(gaps, steepness)
        known = (steepness > 0) & ~tf.math.is_nan(scores)
        return tf.where(known, scores, tf.constant(math.inf, x.dtype))

    found = tf.map_fn(
        some,
        tf.range(0, many, beside),
        parallel_iterations=1,
        fn_output_signature=tf.TensorSpec(images.shape[:1], x.dtype),
    )
    return tf.transpose(tf.reshape(found, [many, -1]))
