"""The contract of an attack, and what attacks share.

An attack is any callable

    attack(logits_fn, x, y, seed) -> x_adv

made by a factory that takes `epsilon=`, `norm=` and `bounds=` by keyword, and
options of its own:

- `logits_fn`: float pixels (batch, ...) to float32 logits (batch, classes), in
  inference mode, without side effects, differentiable.
- `x`: float (batch, ...), inside `bounds`; `y`: class numbers (batch,), or
  one-hot or smoothed labels (batch, classes).
- `seed`: an int, an int32 tensor (2,), or one of (batch, 2), a row an example.
- `x_adv`: of x's shape and dtype, inside `bounds`, within `epsilon` of x.

`Attack` is a convenient base for it: a subclass writes `perturb`. Nothing but
the contract is required of other people's attacks.
"""

import copy
import numbers
import types
from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from tfsam import geometry
from tfsam.attacks.logits import is_surrogate
from tfsam.geometry import check_norm
from tfsam.support.configurable import Configurable
from tfsam.support.outputs import check_ending
from tfsam.support.pixels import assert_inside
from tfsam.support.pixels import check_floating
from tfsam.support.pixels import inside_bounds
from tfsam.support.validators import check_budget
from tfsam.support.validators import check_interval
from tfsam.support.validators import check_number

# In the copies of a batch that are attacked side by side: 16 MB a tensor.
_MOST_PIXELS = 2**22


class Attack(Configurable):
    """Base of attacks: validates, converts, and calls `perturb`.

    Args:
        epsilon: the largest perturbation, in the units of x, >= 0.
        norm: "linf" or "l2".
        bounds: (lowest, highest) value of x, or None for inputs that are not
            images.

    An attack of another package need not inherit from this class: a fact that
    the attack does not state has the default that is declared here.

    Attributes:
        collapses: whether training with the attack is known to collapse, so
            that a run watches the accuracy under PGD (catastrophic
            overfitting).
        flag_names: see `tfsam.support.registry.Part`.
        gradients: number of gradients of the loss that the attack takes of a
            batch, for the cost of a training step.
        predictions: number of forward passes without a gradient, likewise.
        in_graph: whether `tf.function` can trace the attack, for batches of any
            size. False runs it eagerly, which is slower, and training rejects
            it. None, the default, leaves it open: an evaluation runs the attack
            eagerly, and training tries to trace it.
        gradient_free: whether the attack asks for no gradient. Where it breaks
            what gradient attacks missed, an evaluation warns that the gradients
            may be masked. Other people's attacks may have it, too. None: an
            evaluation sees whether it takes one.
        follows_gradient: whether the attack follows the gradient for several
            steps, so that a gradient-free attack that breaks more is a sign of
            masked gradients. False for a single step, for steps that together
            are shorter than epsilon, and for an attack that is weak within a
            given epsilon. None, the default, also of attacks
            without the attribute: an evaluation counts the gradients that it
            takes; where it cannot, an attack that is not `gradient_free` counts
            as one that follows them.
        minimum_norm: whether one call finds the nearest point for all epsilons.
        library: the distribution package whose version the attack depends on,
            or None.
        stages: of an ensemble, the attacks that it makes in turn, a list of
            (name, attack); else empty.
        targets: number of wrong classes that the attack goes for, likeliest
            first; 0, the default, is untargeted.

    Raises:
        ValueError: if an argument is out of its range.
    """

    collapses = False
    flag_names: Mapping[str, str] = types.MappingProxyType(
        {"loss": "attack_loss"}
    )
    in_graph: bool | None = None
    predictions: Any = 0
    gradient_free: bool | None = False
    follows_gradient: Any = None
    stages: Any = ()
    minimum_norm = False
    library: str | None = None
    targets = 0
    # Whether the labels must name classes, as for a loss of the attack's own:
    # a `RobustModel` then refuses regressions, several tags and segmentations.
    needs_classes: Any = True
    # Whether `perturb` computes with an epsilon that is a tensor: a sweep over
    # epsilons then traces it once.
    tensor_epsilon = False
    # Whether `perturb` leaves out the examples that are not `examples` of its
    # logits_fn: a network in blocks is then asked about the others only.
    selective = False

    def __init__(self, epsilon, norm="linf", bounds=(0.0, 1.0)):
        self.epsilon = check_number("epsilon", epsilon)
        self.norm = check_norm(norm)
        self.bounds = check_interval("bounds", bounds)

    @property
    def gradients(self):
        """The number of gradients that the attack takes: one for each step."""
        if getattr(self, "gradient_free", False):
            return 0
        return getattr(self, "steps", 1)

    def __call__(self, logits_fn, x, y, seed=0, start=None):
        """Attacks a batch.

        Args:
            logits_fn: function from pixels to logits.
            x: float array or tensor (batch, ...), inside `bounds` but for a few
                units in the last place, which are clipped.
            y: labels, array or tensor.
            seed: an int, int32 (2,) or int32 (batch, 2).
            start: where to start instead of at x or at random, for attacks
                whose `perturb` can; a tensor of x's shape.

        Returns:
            A tensor of x's shape and dtype, through which no gradient flows.
            In l2 it is within epsilon of x but for a few units in the last
            place of float32; in l-inf each pixel is, to its own rounding.

        Raises:
            ValueError: if x is not of a floating-point dtype, or epsilon is
                larger than the width of the bounds in l-inf, or x lies outside
                the bounds; in a graph the last is an InvalidArgumentError when
                it runs, and XLA, which drops assertions, clips. Also if
                logits_fn is a Keras model that ends in a softmax or a sigmoid.
        """
        check_scale(self)
        check_ending(logits_fn)
        x = self._checked(tf.convert_to_tensor(x))
        # float16 near 1 has steps of 4.9e-4: half of a 0.25/255 attack step.
        precise = x if x.dtype.size >= 4 else tf.cast(x, tf.float32)
        if start is not None:
            start = {"start": tf.cast(start, precise.dtype)}
        x_adv = self.perturb(
            logits_fn,
            precise,
            tf.convert_to_tensor(y),
            example_seeds(seed, tf.shape(x)[0]),
            **(start or {}),
        )
        x_adv = tf.ensure_shape(tf.cast(x_adv, x.dtype), x.shape)
        if self.norm == "l2":
            x_adv = geometry.shrink(x, x_adv, self.epsilon)
            x_adv = tf.ensure_shape(x_adv, x.shape)
        return tf.stop_gradient(x_adv)

    def _checked(self, x):
        """Refuses pixels that the attack could only clip, far from x."""
        if tf.inside_function():
            return assert_inside(x, self.bounds)
        check_floating(x, self.bounds)
        return tf.convert_to_tensor(inside_bounds(x.numpy(), self.bounds))

    def perturb(self, logits_fn, x, y, seeds):
        """Returns x_adv; `seeds` is int32 (batch, 2)."""
        raise TypeError(f"{type(self).__name__} has no perturb().")

    def with_epsilon(self, epsilon):
        """Returns the same attack with another budget.

        Args:
            epsilon: a number, for which the attack is made anew, so that what
                its constructor derives from epsilon fits; or a scalar tensor,
                for attacks that compute with one (`tensor_epsilon`), with which
                all other attributes stay as they are.

        Raises:
            ValueError: if the number is out of its range, or the attack has no
                attribute for an argument of its constructor, so that it cannot
                be made anew.
        """
        if not isinstance(epsilon, numbers.Real):
            other = copy.copy(self)
            other.epsilon = epsilon
            return other
        try:
            config = self.get_config()
        except AttributeError as error:
            raise ValueError(
                f"{type(self).__name__} must have an attribute for every "
                f"argument of its constructor ({error}); make the attack anew "
                f"instead. Received: epsilon={epsilon}"
            ) from error
        made = self.from_config(config | {"epsilon": epsilon})
        return _with_attributes(made, vars(self))

    def clip(self, x):
        """Brings pixels back into `bounds`."""
        return x if self.bounds is None else tf.clip_by_value(x, *self.bounds)


def _with_attributes(attack, attributes):
    """Gives an attack the attributes that its constructor did not."""
    own = vars(attack)
    own.update({k: v for k, v in attributes.items() if k not in own})
    return attack


def check_scale(attack):
    """Refuses an attack whose l-inf epsilon is larger than its bounds are wide.

    Args:
        attack: a callable; one that lacks `epsilon`, `norm` or `bounds` is let
            through.

    Raises:
        ValueError: if its epsilon is in other units than the pixels.
    """
    check_budget(
        getattr(attack, "epsilon", None),
        getattr(attack, "norm", None),
        getattr(attack, "bounds", None),
    )


def where(condition, x, other):
    """`tf.where` with a condition an example.

    Args:
        condition: bool tensor (batch,).
        x: tensor (batch, ...), taken where it holds.
        other: tensor of x's shape, taken elsewhere.
    """
    return tf.where(per_example(condition, x), x, other)


def per_example(values, x):
    """One value an example, in a shape that broadcasts against x.

    Args:
        values: tensor (batch,).
        x: tensor (batch, ...).
    """
    ones = [1] * (x.shape.rank - 1)
    return tf.reshape(values, [-1, *ones])


def repeat(attempt, runs, x, active, score=None):
    """Attempts in turn, each at those whom the ones before left standing.

    Args:
        attempt: function of (run, active), a scalar int32 tensor and a bool
            tensor (batch,), to (x_adv, broken).
        runs: number of attempts, >= 1.
        x: float tensor (batch, ...), returned where no example is active.
        active: bool tensor (batch,).
        score: None, or a function from points to numbers (batch,). Then all
            attempts are made, and the point of the highest score counts.

    Returns:
        x_adv: the last attempt's where none succeeded.
    """
    if runs == 1:
        return where(active, attempt(tf.constant(0), active)[0], x)
    if score is not None:
        best = strongest(lambda run: attempt(run, active)[0], runs, x, score)
        return where(active, best, x)

    def body(run, x_adv, active):
        found, broken = attempt(run, active)
        return run + 1, where(active, found, x_adv), active & ~broken

    return tf.while_loop(
        lambda run, _, active: (run < runs) & tf.reduce_any(active),
        body,
        (0, x, active),
        parallel_iterations=1,
    )[1]


def strongest(attempt, runs, x, score):
    """Returns each example's point of the highest score of several attempts.

    Args:
        attempt: function of a scalar int32 tensor to x_adv.
        runs: number of attempts, >= 1.
        x: float tensor (batch, ...).
        score: function from points to numbers (batch,).
    """

    def body(run, x_adv, best):
        found = attempt(run)
        reached = tf.cast(score(found), x.dtype)
        better = reached > best
        return (
            run + 1,
            where(better, found, x_adv),
            tf.where(better, reached, best),
        )

    return tf.while_loop(
        lambda run, _, best: run < runs,
        body,
        (0, x, tf.fill(tf.shape(x)[:1], x.dtype.min)),
        parallel_iterations=1,
    )[1]


def side_by_side(attempts, x, logits_fn):
    """How many independent attempts to make at once, a divisor of them.

    A small network spends its time on calls, not on examples.

    Args:
        attempts: how many there are.
        x: float tensor (batch, ...).
        logits_fn: function from pixels to logits. Attempts at a surrogate are
            compared with each other, and so made in turn.
    """
    if is_surrogate(logits_fn) or not x.shape.is_fully_defined():
        return 1
    most = max(_MOST_PIXELS // max(x.shape.num_elements(), 1), 1)
    return max(
        n for n in range(1, attempts + 1) if not attempts % n and n <= most
    )


def copies(values, count):
    """So many copies of a batch, one after the other.

    Args:
        values: tensor (batch, ...).
        count: an int >= 1.
    """
    return tf.concat([values] * count, 0) if count > 1 else values


def any_copy(flags, count):
    """Of each example, whether it holds for any of its copies.

    Args:
        flags: bool tensor (count * batch,).
        count: how many copies.

    Returns:
        A bool tensor (batch,).
    """
    return tf.reduce_any(tf.reshape(flags, [count, -1]), axis=0)


def first_copy(flags, values, count):
    """Of each example, the first of its copies for which it holds.

    Args:
        flags: bool tensor (count * batch,).
        values: tensor (count * batch, ...).
        count: how many copies.

    Returns:
        A tensor (batch, ...); the first copy where it holds for none.
    """
    chosen, *others = tf.split(values, count)
    done, *flags = tf.split(flags, count)
    for flag, other in zip(flags, others, strict=True):
        chosen = where(flag & ~done, other, chosen)
        done |= flag
    return chosen


def turn(choices, run):
    """The choice of each example whose turn it is.

    Args:
        choices: tensor (batch, count).
        run: scalar int32 tensor; after the last choice comes the first.
    """
    return tf.gather(choices, run % choices.shape[1], axis=1)


def next_seeds(seeds, run):
    """Seeds of the attempts after the first, which has `seeds` themselves.

    Args:
        seeds: int32 (batch, 2).
        run: scalar int32 tensor.
    """
    return seeds + run * tf.constant([0x61C88647, 0], tf.int32)


def example_seeds(seed, batch):
    """A seed for each example of a batch.

    An int gives the rows (seed, position); a pair is a key of which position i
    takes the i-th draw, whatever the size of the batch.

    Args:
        seed: an int, an int32 tensor (2,) or an int32 tensor (batch, 2).
        batch: number of examples, an int or a scalar tensor.

    Returns:
        An int32 tensor (batch, 2).

    Raises:
        ValueError: if `seed` has another shape.
    """
    if isinstance(seed, numbers.Integral):
        # Any Python int will do: what an int32 holds of it is kept.
        seed = (int(seed) + 2**31) % 2**32 - 2**31
        positions = tf.range(batch, dtype=tf.int32)
        return tf.stack([tf.fill([batch], seed), positions], axis=1)
    seed = tf.cast(tf.convert_to_tensor(seed), tf.int32)
    if seed.shape.rank == 2:
        return seed
    if seed.shape.as_list() != [2]:
        raise ValueError(
            "seed must be an int, or of shape (2,) or (batch, 2). "
            f"Received: seed of shape {seed.shape}"
        )
    return tf.random.stateless_uniform(
        [batch, 2],
        seed,
        minval=None,
        maxval=None,
        dtype=tf.int32,
        alg="philox",
    )
