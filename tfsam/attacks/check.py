"""Tests of whether an attack satisfies the contract of `tfsam.attacks.base`.

`contract` tests a single batch; evaluations apply it to the output of every
attack. `check` runs an attack on a small network, for authors of attacks:

    tfsam.attacks.check("shift")
"""

import contextlib
import math
from collections.abc import Callable
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from tfsam import geometry
from tfsam.attacks.base import Bounds
from tfsam.registries import ATTACKS
from tfsam.support import factories
from tfsam.support.validators import bounds_text

# The relative rounding error of a norm that is computed in float32.
TOLERANCE = 1e-6

# Tolerance for the ball and the image range, in units in the last place of the
# largest pixel.
_UNITS = 8
# Tolerance for the length of a perturbation in a large image, whose rounding
# errors add up, relative to epsilon.
_OF_EPSILON = 5e-5

# Tolerance for pixels that differ only in the order of float32 sums.
_CLOSE = 1e-4

_BATCH, _SHAPE, _PIXELS, _CLASSES = 8, (6, 6, 1), 36, 4
_BOUNDS = (0.0, 1.0)
_EPSILON = {"linf": 0.1, "l2": 0.5, "l1": 1.5}
_SEED = 3


def contract(
    x: np.ndarray[Any, Any],
    x_adv: Any,
    epsilon: float | np.ndarray[Any, Any],
    norm: str,
    bounds: Bounds,
) -> float:
    """Checks the output of an attack against its budget and bounds.

    The tolerance is a few units in the last place of float32, or of x's dtype
    if that is coarser. In l2 and l1, rounding errors add up over the pixels.

    Args:
        x: Float array (batch, ...), the attacked images.
        x_adv: Output of the attack.
        epsilon: Budget of the attack, >= 0, or an array (batch,), the budget of
            each example.
        norm: "linf", "l2" or "l1".
        bounds: (lowest, highest) value of x, or None.

    Returns:
        A float, the largest perturbation of an example, in `norm`.

    Raises:
        ValueError: If `x_adv` has another shape or dtype than x, is not finite,
            or lies outside the bounds or the ball.

    Example:
        >>> import numpy as np
        >>> x = np.zeros([1, 4], "float32")
        >>> contract(x, x + 0.125, 0.125, "linf", (0.0, 1.0))
        0.125
    """
    x_adv = _tensor(x_adv)
    if x_adv.shape != x.shape or x_adv.dtype != x.dtype:
        raise ValueError(
            f"the attack must return {x.dtype} of shape {x.shape}. Received: "
            f"{x_adv.dtype.name} of shape {tuple(x_adv.shape)}"
        )
    # In float64, so that the check adds no rounding errors of its own.
    found = x_adv.numpy().astype(np.float64)
    tolerance, unit = _rounding(x)
    if not np.isfinite(found).all():
        raise ValueError(
            "the attack must return finite pixels. Received: NaN or infinity"
        )
    if bounds is not None:
        outside = np.maximum(bounds[0] - found, found - bounds[1])
        if outside.max(initial=0.0) > tolerance:
            raise ValueError(
                f"the attack left the image range {bounds_text(bounds)}. "
                f"Received: pixels in [{found.min():g}, {found.max():g}]"
            )
    perturbation = (found - x.astype(np.float64)).reshape(len(x), -1)
    return _check_ball(perturbation, epsilon, norm, tolerance, unit)


def _check_ball(
    perturbation: np.ndarray[Any, Any],
    epsilon: float | np.ndarray[Any, Any],
    norm: str,
    tolerance: float,
    unit: float,
) -> float:
    """Checks that perturbations are in their balls; returns the largest size.

    Args:
        perturbation: float64 array (batch, pixels).
        epsilon: Radius of the balls, or an array (batch,).
        norm: "linf", "l2" or "l1".
        tolerance: Tolerance for a pixel.
        unit: The largest unit in the last place.
    """
    order = geometry.FACTS[norm].order
    sizes = np.linalg.norm(perturbation, order, axis=1)
    radii = np.broadcast_to(np.asarray(epsilon, np.float64), sizes.shape)
    slack = np.full_like(radii, tolerance)
    if norm != "linf":
        added = unit / 2 * perturbation.shape[1] ** (1 / order)
        slack = np.maximum(slack, np.minimum(added, _OF_EPSILON * radii))
    outside = sizes - (radii * (1 + TOLERANCE) + slack)
    if outside.max(initial=0.0) > 0:
        worst = int(outside.argmax())
        raise ValueError(
            f"the attack left its ball of radius {radii[worst]:g} in {norm}. "
            f"Received: a perturbation of {sizes[worst]:g}"
        )
    return float(sizes.max(initial=0.0))


def _rounding(x: np.ndarray[Any, Any]) -> tuple[float, float]:
    """Returns the tolerance for a pixel and the largest unit in the last place.

    Attacks compute at least in float32, and round their output to x's dtype.
    """
    size = max(1.0, float(np.abs(x).max(initial=0.0)))
    computed = float(np.spacing(np.float32(size)))
    unit = float(np.spacing(np.asarray(size).astype(x.dtype)))
    if unit <= computed:
        return _UNITS * computed, computed
    return _UNITS * computed + unit / 2, unit


def check(attack: Any, **options: Any) -> None:
    """Tests whether an attack satisfies the contract, in each supported norm.

    Runs the attack on eight random images and a small network, and checks that

    - the result has the shape and dtype of x, is finite, and is within the
      bounds and the budget, for all forms of labels and seeds (the bounds
      alone, for an attack with `leaves_ball`);
    - epsilon = 0 changes nothing;
    - the same seed gives the same result;
    - x and y are not modified;
    - an unknown option is rejected;
    - for attacks with `example_epsilons`, each example stays within an epsilon
      of its own;
    - for attacks with `in_graph`, a `tf.function` gives the eager result, and
      a `tf.function` for batches of unknown size, as traced in training,
      satisfies the budget.

    A norm for which the factory raises a ValueError counts as unsupported, and
    so does a norm that is not in the attack's `norms`, by default l1.

    Args:
        attack: A name from `tfsam.attacks.names()`, or a factory.
        **options: Options of the factory other than `epsilon`, `norm` and
            `bounds`.

    Raises:
        ValueError: If the attack violates the contract. The message names the
            rule and the norm.

    Example:
        >>> check("pgd", steps=2)
    """
    factory = ATTACKS.factory(attack) if isinstance(attack, str) else attack
    refusals = []
    for norm in geometry.NORMS:

        def make(epsilon: float, norm: str = norm, **more: Any) -> Any:
            return factories.make(
                factory,
                epsilon=epsilon,
                norm=norm,
                bounds=_BOUNDS,
                **options,
                **more,
            )

        try:
            made = make(_EPSILON[norm])
        except ValueError as error:
            refusals.append(f"{norm}: {error}")
            continue
        if norm not in ATTACKS.fact(made, "norms"):
            refusals.append(f"{norm}: not in its norms")
            continue
        with _prefix_errors(f"{attack} in {norm}: "):
            _check_norm(make, norm)
    if len(refusals) == len(geometry.NORMS):
        raise ValueError(
            f"an attack must take linf, l2 or l1 ({'; '.join(refusals)}). "
            f"Received: attack={attack}"
        )


def _check_norm(make: Callable[..., Any], norm: str) -> None:
    """Checks all rules; `make` maps an epsilon to an attack in this norm."""
    x, y = _data()
    attack, epsilon = make(_EPSILON[norm]), _EPSILON[norm]
    if ATTACKS.fact(attack, "leaves_ball"):
        epsilon = math.inf

    def run(attack: Any, y: np.ndarray[Any, Any], seed: Any) -> tf.Tensor:
        inputs = tf.constant(x), tf.constant(y)
        x_adv = _tensor(attack(_network, *inputs, seed))
        for given, now in zip((x, y), inputs, strict=True):
            if not np.array_equal(given, now):
                raise ValueError(
                    "the attack must not modify x and y. Received: a batch "
                    "that was modified in place"
                )
        return x_adv

    with _prefix_errors("with integer labels and an int as the seed, "):
        first = run(attack, y, _SEED)
        contract(x, first, epsilon, norm, _BOUNDS)
    with _prefix_errors("with the same seed again, "):
        _check_same(first, run(attack, y, _SEED), "the result must be the same")
    rows = np.stack([np.full(_BATCH, _SEED), np.arange(_BATCH)], 1)
    one_hot = np.eye(_CLASSES, dtype=np.float32)[y]
    for form, labels, seed in (
        ("a seed of shape (2,)", y, tf.constant([_SEED, 1])),
        ("a seed of shape (batch, 2)", y, tf.constant(rows, tf.int32)),
        ("one-hot labels", one_hot, _SEED),
    ):
        with _prefix_errors(f"with {form}, "):
            contract(x, run(attack, labels, seed), epsilon, norm, _BOUNDS)
    with _prefix_errors("with epsilon = 0, "):
        contract(x, run(make(0.0), y, _SEED), 0.0, norm, _BOUNDS)
    if ATTACKS.fact(attack, "example_epsilons"):
        with _prefix_errors("with an epsilon for each example, "):
            radii = np.linspace(0.0, _EPSILON[norm], _BATCH)
            x_adv = run(attack.with_epsilon(radii), y, _SEED)
            limits = radii if math.isfinite(epsilon) else epsilon
            contract(x, x_adv, limits, norm, _BOUNDS)
    if ATTACKS.fact(attack, "in_graph"):
        inputs = tf.constant(x), tf.constant(y), tf.constant(rows, tf.int32)

        def traced(x: tf.Tensor, y: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
            return attack(_network, x, y, seed)

        with _prefix_errors("in a tf.function, as in_graph=True promises, "):
            _check_same(
                run(attack, y, inputs[-1]),
                tf.function(traced, autograph=False)(*inputs),
                "the result must equal the eager result",
            )
        with _prefix_errors("in a tf.function for any batch size, "):
            any_size = [
                tf.TensorSpec((None, *i.shape[1:]), i.dtype) for i in inputs
            ]
            graph = tf.function(traced, any_size, autograph=False)
            contract(x, graph(*inputs), epsilon, norm, _BOUNDS)
    _check_unknown_option(make, _EPSILON[norm])


def _check_unknown_option(make: Callable[..., Any], epsilon: float) -> None:
    """Checks that the factory raises an error for an unknown option."""
    try:
        make(epsilon, no_such_option=1)
    except (TypeError, ValueError):
        return
    raise ValueError(
        "the factory must reject unknown options with an error. "
        "Received: no_such_option=1, and no error"
    )


def _check_same(one: tf.Tensor, other: tf.Tensor, rule: str) -> None:
    """Checks that two results are equal up to rounding."""
    difference = float(tf.reduce_max(tf.abs(one - other)))
    if not difference <= _CLOSE:
        raise ValueError(
            f"{rule}. Received: pixels that differ by {difference:g}"
        )


def _tensor(x_adv: Any) -> tf.Tensor:
    """Converts the output of an attack to a tensor."""
    try:
        return tf.convert_to_tensor(x_adv)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"the attack must return a tensor. Received: {x_adv}"
        ) from error


@contextlib.contextmanager
def _prefix_errors(where: str) -> Iterator[None]:
    """Turns exceptions into ValueErrors whose messages begin with `where`."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{where}{error}") from error
    except Exception as error:
        raise ValueError(
            f"{where}the attack must not raise. "
            f"Received: {type(error).__name__}: {error}"
        ) from error


def _data() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Returns images with pixels at the bounds, and the network's labels."""
    noise = np.random.default_rng(0).uniform(-0.2, 1.2, (_BATCH, *_SHAPE))
    x = np.clip(noise, *_BOUNDS).astype(np.float32)
    return x, np.argmax(_network(tf.constant(x)), axis=1)


def _network(x: Any) -> tf.Tensor:
    """Computes logits that are smooth, nonlinear functions of the pixels."""
    rng = np.random.default_rng(1)
    hidden = tf.constant(rng.normal(size=(_PIXELS, 8)), x.dtype)
    output = tf.constant(rng.normal(size=(8, _CLASSES)), x.dtype)
    flat = tf.reshape(x, [-1, _PIXELS])
    return tf.matmul(tf.tanh(tf.matmul(flat - 0.5, hidden)), output)
