"""Whether an attack keeps the contract of `base.py`.

`contract` judges one batch; evaluation believes no attack without it. `check`
tries an attack out on a small network, for its author:

    tfsam.attacks.check("shift")
"""

import contextlib

import numpy as np
import tensorflow as tf

from tfsam import attacks as registry
from tfsam import geometry

# The relative rounding error of a norm that is computed in float32.
TOLERANCE = 1e-6

# Units in the last place of the largest pixel by which any perturbation may
# miss the ball or the image range.
_UNITS = 8
# What roundings may add to a perturbation's length in a large image, relative
# to epsilon.
_OF_EPSILON = 5e-5

# What is the same but for the order of float32 sums.
_CLOSE = 1e-4

_BATCH, _SHAPE, _PIXELS, _CLASSES = 8, (6, 6, 1), 36, 4
_BOUNDS = (0.0, 1.0)
_EPSILON = {"linf": 0.1, "l2": 0.5}
_SEED = 3


def contract(x, x_adv, epsilon, norm, bounds):
    """The largest perturbation; raises where an attack broke its contract.

    Args:
        x: float array (batch, ...), what was attacked.
        x_adv: what the attack returned.
        epsilon: its budget, >= 0.
        norm: "linf" or "l2".
        bounds: (lowest, highest) value of x, or None.

    Returns:
        A float, in `norm`.

    Raises:
        ValueError: if `x_adv` has another shape or dtype than x, is not finite,
            or left the bounds or the ball by more than rounding: by some units
            in the last place of float32, or of x's type if that is coarser; in
            l2 they add up over the pixels.
    """
    x_adv = _tensor(x_adv)
    if x_adv.shape != x.shape or x_adv.dtype != x.dtype:
        raise ValueError(
            f"the attack must return {x.dtype} of shape {x.shape}. Received: "
            f"{x_adv.dtype.name} of shape {tuple(x_adv.shape)}"
        )
    # In float64: the check must not add rounding of its own.
    found = x_adv.numpy().astype(np.float64)
    tolerance, unit = _rounding(x)
    if not np.isfinite(found).all():
        raise ValueError(
            "the attack must return finite pixels. Received: NaN or infinity"
        )
    if bounds is not None:
        low, high = found.min(), found.max()
        if low < bounds[0] - tolerance or high > bounds[1] + tolerance:
            raise ValueError(
                f"the attack left the image range {bounds}. "
                f"Received: pixels in [{low:g}, {high:g}]"
            )
    perturbation = (found - x.astype(np.float64)).reshape(len(x), -1)
    order = np.inf if norm == "linf" else 2
    largest = float(np.linalg.norm(perturbation, order, axis=1).max())
    if norm == "l2":
        added = unit / 2 * np.sqrt(perturbation.shape[1])
        tolerance = max(tolerance, min(added, _OF_EPSILON * epsilon))
    if largest > epsilon * (1 + TOLERANCE) + tolerance:
        raise ValueError(
            f"the attack left its ball of radius {epsilon:g} in {norm}. "
            f"Received: a perturbation of {largest:g}"
        )
    return largest


def _rounding(x):
    """Returns how far rounding may move a pixel, and the pixels' largest unit.

    Attacks compute in float32 at least, and round what they return to x's type.
    """
    size = max(1.0, float(np.abs(x).max(initial=0.0)))
    computed = float(np.spacing(np.float32(size)))
    unit = float(np.spacing(np.asarray(size).astype(x.dtype)))
    if unit <= computed:
        return _UNITS * computed, computed
    return _UNITS * computed + unit / 2, unit


def check(attack, **options):
    """Tries an attack out, in each norm that it takes; silent if all is well.

    On eight random images and a small network it checks: shape, dtype, finite
    pixels, bounds and budget; that epsilon = 0 changes nothing; the forms of
    labels and of seeds; that the same seed gives the same result; that x and y
    are left alone; that an unknown option is refused; and, of an attack that
    declares `in_graph`, that a `tf.function` of it gives the same, and that one
    for batches of any size keeps the budget: so it is traced in training.

    A factory that raises a ValueError for a norm is taken not to support it.

    Args:
        attack: a name of `tfsam.attacks.names()`, or a factory.
        **options: what else the factory takes; neither `epsilon`, `norm` nor
            `bounds`.

    Raises:
        ValueError: if the attack breaks a rule of the contract: which one, in
            which norm, and how.
    """
    factory = registry.factory(attack) if isinstance(attack, str) else attack
    refusals = []
    for norm in geometry.NORMS:

        def make(epsilon, norm=norm, **more):
            return registry.make(
                factory,
                epsilon=epsilon,
                norm=norm,
                bounds=_BOUNDS,
                **options,
                **more,
            )

        try:
            make(_EPSILON[norm])
        except ValueError as error:
            refusals.append(f"{norm}: {error}")
            continue
        with _saying(f"{attack} in {norm}: "):
            _check_norm(make, norm)
    if len(refusals) == len(geometry.NORMS):
        raise ValueError(
            f"an attack must take linf or l2 ({'; '.join(refusals)}). "
            f"Received: attack={attack}"
        )


def _check_norm(make, norm):
    """All rules, for a function from epsilon to an attack in one norm."""
    x, y = _data()
    attack, epsilon = make(_EPSILON[norm]), _EPSILON[norm]

    def run(attack, y, seed):
        inputs = tf.constant(x), tf.constant(y)
        x_adv = _tensor(attack(_network, *inputs, seed))
        for given, now in zip((x, y), inputs, strict=True):
            if not np.array_equal(given, now):
                raise ValueError(
                    "the attack must leave x and y alone. Received: a batch "
                    "that was modified in place"
                )
        return x_adv

    with _saying("with integer labels and an int for a seed, "):
        first = run(attack, y, _SEED)
        contract(x, first, epsilon, norm, _BOUNDS)
    with _saying("with the same seed again, "):
        _check_same(first, run(attack, y, _SEED), "the result must be the same")
    rows = np.stack([np.full(_BATCH, _SEED), np.arange(_BATCH)], 1)
    one_hot = np.eye(_CLASSES, dtype=np.float32)[y]
    for form, labels, seed in (
        ("a seed of shape (2,)", y, tf.constant([_SEED, 1])),
        ("a seed of shape (batch, 2)", y, tf.constant(rows, tf.int32)),
        ("one-hot labels", one_hot, _SEED),
    ):
        with _saying(f"with {form}, "):
            contract(x, run(attack, labels, seed), epsilon, norm, _BOUNDS)
    with _saying("with epsilon = 0, "):
        contract(x, run(make(0.0), y, _SEED), 0.0, norm, _BOUNDS)
    if getattr(attack, "in_graph", False):
        inputs = tf.constant(x), tf.constant(y), tf.constant(rows, tf.int32)

        def traced(x, y, seed):
            return attack(_network, x, y, seed)

        with _saying("in a tf.function, as in_graph=True promises, "):
            _check_same(
                run(attack, y, inputs[-1]),
                tf.function(traced, autograph=False)(*inputs),
                "the result must be the eager one",
            )
        with _saying("in a tf.function of any batch size, "):
            any_size = [
                tf.TensorSpec((None, *i.shape[1:]), i.dtype) for i in inputs
            ]
            graph = tf.function(traced, any_size, autograph=False)
            contract(x, graph(*inputs), epsilon, norm, _BOUNDS)
    _check_unknown_option(make, epsilon)


def _check_unknown_option(make, epsilon):
    try:
        make(epsilon, no_such_option=1)
    except (TypeError, ValueError):
        return
    raise ValueError(
        "an option that the factory does not know must be refused. "
        "Received: no_such_option=1, and no error"
    )


def _check_same(one, other, rule):
    difference = float(tf.reduce_max(tf.abs(one - other)))
    if not difference <= _CLOSE:
        raise ValueError(f"{rule}. Received: pixels that differ {difference:g}")


def _tensor(x_adv):
    try:
        return tf.convert_to_tensor(x_adv)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"the attack must return a tensor. Received: {x_adv}"
        ) from error


@contextlib.contextmanager
def _saying(where):
    """Puts words before what is raised, a ValueError from then on."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{where}{error}") from error
    except Exception as error:
        raise ValueError(
            f"{where}the attack must not raise. "
            f"Received: {type(error).__name__}: {error}"
        ) from error


def _data():
    """Images with pixels at the bounds, and the network's own labels."""
    noise = np.random.default_rng(0).uniform(-0.2, 1.2, (_BATCH, *_SHAPE))
    x = np.clip(noise, *_BOUNDS).astype(np.float32)
    return x, np.argmax(_network(tf.constant(x)), axis=1)


def _network(x):
    """Logits that are smooth, and not linear, in the pixels."""
    rng = np.random.default_rng(1)
    hidden = tf.constant(rng.normal(size=(_PIXELS, 8)), x.dtype)
    output = tf.constant(rng.normal(size=(8, _CLASSES)), x.dtype)
    flat = tf.reshape(x, [-1, _PIXELS])
    return tf.matmul(tf.tanh(tf.matmul(flat - 0.5, hidden)), output)
