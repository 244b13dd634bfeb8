"""Base class of attacks, and helpers for authors of attacks.

An attack is any callable

    attack(logits_fn, x, y, seed) -> x_adv

made by a factory that takes the keyword arguments `epsilon=`, `norm=` and
`bounds=`, and options of its own:

- `logits_fn` maps float pixels (batch, ...) to float32 logits (batch, classes),
  in inference mode, without side effects and differentiably.
- `x` is a float tensor (batch, ...) inside `bounds`.
- `y` holds class numbers (batch,), or one-hot or smoothed labels (batch,
  classes).
- `seed` is an int, an int32 tensor (2,), or an int32 tensor (batch, 2) with a
  row for each example.
- `x_adv` has the shape and dtype of x, is inside `bounds` and within `epsilon`
  of x.

`Attack` is a convenient base class: a subclass implements `perturb`. Attacks of
other packages need not use it; the contract above is all that is required, and
`tfsam.attacks.check` tests it.
"""

import copy
import numbers
import types
from collections.abc import Mapping
from typing import Any
from typing import Self

import numpy as np
import tensorflow as tf

from tfsam import geometry
from tfsam.attacks import goals
from tfsam.attacks import tracing
from tfsam.attacks.logits import LogitsFn
from tfsam.attacks.logits import setting
from tfsam.geometry import check_norm
from tfsam.support.configurable import Configurable
from tfsam.support.logit_checks import check_ending
from tfsam.support.pixels import assert_inside
from tfsam.support.pixels import check_floating
from tfsam.support.pixels import inside_bounds
from tfsam.support.validators import Bounds as Bounds
from tfsam.support.validators import bounds_text
from tfsam.support.validators import check_budget
from tfsam.support.validators import check_interval
from tfsam.support.validators import check_number


class Attack(Configurable):
    """Base class of attacks: validates, converts and calls `perturb`.

    A subclass implements `perturb` and keeps every constructor argument as an
    attribute of the same name. The attributes below describe the attack to
    training and evaluation; a subclass sets those that differ from the default.
    Attacks of other packages need not derive from this class: the defaults also
    apply to any attribute that they lack.

    Args:
        epsilon: Largest perturbation, in the units of x, >= 0; for one of each
            example, see `with_epsilon`.
        norm: "linf", "l2" or "l1"; one of `norms`.
        bounds: (lowest, highest) value of x, or None for inputs that are not
            images. Each of the two is a number, or an array that broadcasts
            against an image, such as one number for each channel.

    Attributes:
        collapses: Whether training with the attack is known to collapse
            (catastrophic overfitting), so that a run watches the accuracy under
            PGD. The default is False.
        flag_names: Flag that sets an argument of the constructor, for arguments
            whose flag has another name.
        predictions: Number of forward passes without a gradient for a batch;
            part of the cost of a training step. The default is 0.
        in_graph: Whether `tf.function` can trace the attack, including for
            batches of unknown size. Attacks with False run eagerly, which is
            slower, and are rejected in training. With None, the default, an
            evaluation runs the attack eagerly, and training tries to trace it.
        gradient_free: Whether the attack uses no gradients. If a gradient-free
            attack breaks examples that gradient attacks missed, an evaluation
            warns of masked gradients. None lets the evaluation count the
            gradients. The default is False.
        follows_gradient: Whether the attack follows the gradient for several
            steps, so that a stronger gradient-free attack is a sign of masked
            gradients. False for attacks of a single step, for steps that are
            shorter than epsilon in total, and for attacks that are weak within
            a given epsilon. With None, the default, an evaluation counts the
            gradients; where it cannot, every attack that is not
            `gradient_free` is assumed to follow them.
        eot: Number of draws of a random network that each step averages
            ("expectation over transformation"). The default is 1: the attack
            follows a single draw, which says little about a random network.
        minimum_norm: Whether a single call finds the nearest point for all
            epsilons. The default is False.
        climbs: Whether the attack raises a loss step by step, so that a loss
            which still rises at the end is a sign of too few steps. False for
            attacks that search for the nearest point, along the decision
            boundary. The default is True.
        norms: The norms that the attack takes. The default is l-inf and l2;
            in another norm the attack is rejected.
        leaves_ball: Whether the images may be farther than epsilon from x. Such
            an attack is for training, and an evaluation rejects it. The default
            is False.
        library: Name of the distribution package whose version the attack
            depends on, or None.
        replays: Number of times that training uses each batch, with offsets
            that the attack's method `moved` changes by the gradient of the
            training pass; see `tfsam.training.replays`. 0, the default, for
            attacks that perturb each batch by themselves.
        stages: For an ensemble, the list of its attacks in order, as (name,
            attack); empty for other attacks.
        targets: Number of wrong classes that the attack aims at, most likely
            first. 0, the default, means untargeted.
        needs_classes: Whether the labels must name classes, for instance for a
            loss of the attack's own. `RobustModel` then rejects regression,
            multi-label classification and segmentation. The default is True.
        version: For AutoAttack, the name of the version: "standard", "rand" or
            "plus". The default is None.
        tensor_epsilon: Whether `perturb` accepts an epsilon that is a tensor.
            A sweep over epsilons then traces the attack once. The default is
            False.
        example_epsilons: Whether `perturb` also accepts a tensor (batch,), one
            epsilon for each example; see `radius` and `radii`. The default is
            False.
        two_bounds: Whether the bounds must be two numbers, for instance because
            the library of the attack takes no others. The default is False.
        selective: Whether `perturb` skips the examples that are not in
            `tfsam.attacks.logits.examples(logits_fn, x)`, so that the network
            computes only the survivors. The default is False.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> import tensorflow as tf
        >>> class Brighten(Attack):
        ...     in_graph = True
        ...
        ...     def perturb(self, logits_fn, x, y, seeds):
        ...         return self.clip(x + self.epsilon)
        >>> attack = Brighten(epsilon=0.25)
        >>> x, y = tf.constant([[0.5, 1.0]]), tf.constant([0])
        >>> attack(lambda x: x, x, y).numpy().tolist()
        [[0.75, 1.0]]
    """

    collapses: bool = False
    flag_names: Mapping[str, str] = types.MappingProxyType(
        {"loss": "attack_loss"}
    )
    predictions: Any = 0
    in_graph: bool | None = None
    gradient_free: bool | None = False
    follows_gradient: Any = None
    replays: int = 0
    stages: Any = ()
    eot: int = 1
    minimum_norm: bool = False
    climbs: bool = True
    norms: tuple[str, ...] = ("linf", "l2")
    leaves_ball: bool = False
    library: str | None = None
    targets: int = 0
    needs_classes: Any = True
    version: str | None = None
    tensor_epsilon: bool = False
    example_epsilons: bool = False
    two_bounds: bool = False
    selective: bool = False

    def __init__(
        self,
        epsilon: float,
        norm: str = "linf",
        bounds: Bounds = (0.0, 1.0),
    ) -> None:
        self.epsilon = check_number("epsilon", epsilon)
        self.norm = check_norm(norm)
        if norm not in self.norms:
            raise ValueError(
                f"norm must be {' or '.join(self.norms)} for "
                f"{type(self).__name__}. Received: norm={norm}"
            )
        self.bounds = check_interval("bounds", bounds)
        if self.two_bounds and any(map(np.ndim, self.bounds or ())):
            raise ValueError(
                f"{type(self).__name__} takes two numbers as bounds, the same "
                "for all channels; use an attack of tfsam's own. "
                f"Received: bounds={bounds_text(self.bounds)}"
            )

    @property
    def gradients(self) -> int:
        """Number of gradients for a batch: 0 if gradient-free, else the steps.

        Each counts as often as it is drawn. Part of the cost of a training
        step.
        """
        if getattr(self, "gradient_free", False):
            return 0
        # Attacks of other packages, for which it is called too, may lack both.
        return int(getattr(self, "steps", 1)) * int(getattr(self, "eot", 1))

    def __call__(
        self,
        logits_fn: LogitsFn,
        x: Any,
        y: Any,
        seed: Any = 0,
        start: Any = None,
        target: Any = None,
    ) -> tf.Tensor:
        """Attacks a batch.

        An attack with `in_graph` on a network is traced at the first call, and
        the trace is reused for the same function, attack and shapes; see
        `tfsam.attacks.tracing`.

        Args:
            logits_fn: Function from pixels to logits.
            x: Float array or tensor (batch, ...), inside `bounds`. Rounding
                errors of a few units in the last place are clipped.
            y: Array or tensor of labels: class numbers (batch,), or one-hot or
                smoothed labels (batch, classes).
            seed: An int, an int32 tensor (2,) or an int32 tensor (batch, 2).
            start: None, or a tensor of x's shape: the starting point of attacks
                whose `perturb` has an argument `start`, instead of x or a
                random point.
            target: None, or the class to find in place of any wrong class: an
                int, or integers (batch,), one for each example. The attack then
                succeeds only where this class has the largest logit; see
                `tfsam.attacks.goals`.

        Returns:
            Tensor of x's shape and dtype, through which no gradient flows. In
            l2 and l1 it is within epsilon of x to a few units in the last place
            of float32; in l-inf each pixel is, to within its own rounding.

        Raises:
            ValueError: If x is not of a floating-point dtype, if epsilon is
                larger than the width of the bounds in l-inf or holds another
                number of values than the batch, if x lies outside the bounds,
                if the bounds do not broadcast against an image, if logits_fn is
                a Keras model that ends in a softmax or a sigmoid, or if a
                target is no class of the network or the label of its example.
                In a graph, targets are not checked, and pixels outside the
                bounds raise an InvalidArgumentError at run time; XLA, which
                drops assertions, clips them.
        """
        check_scale(self)
        check_ending(logits_fn)
        x = tf.convert_to_tensor(x)
        if not (tf.inside_function() and setting(logits_fn, "checked")):
            x = self._checked(x)
        self._check_length(x)
        y = tf.convert_to_tensor(y)
        if target is not None:
            logits_fn, y = goals.aimed(logits_fn, x, y, target)
        seeds = example_seeds(seed, tf.shape(x)[0])
        inputs = {"x": x, "y": y, "seeds": seeds}
        if start is not None:
            inputs["start"] = tf.convert_to_tensor(start)
        if tf.inside_function():
            return _attacked(self, logits_fn, **inputs)
        return tracing.call(_attacked, self, logits_fn, inputs)

    def _checked(self, x: tf.Tensor) -> tf.Tensor:
        """Rejects pixels outside the bounds, and clips rounding errors."""
        if tf.inside_function():
            return assert_inside(x, self.bounds)
        check_floating(x, self.bounds)
        return tf.convert_to_tensor(inside_bounds(x.numpy(), self.bounds))

    def _check_length(self, x: tf.Tensor) -> None:
        """Rejects epsilons of each example for a batch of another size."""
        epsilon: Any = getattr(self, "epsilon", None)
        if not _of_each(epsilon) or x.shape[:1].is_compatible_with(
            epsilon.shape
        ):
            return
        raise ValueError(
            "an attack with an epsilon for each example needs as many as the "
            f"batch has examples. Received: {epsilon.shape[0]} epsilons, "
            f"{x.shape[0]} examples"
        )

    def perturb(
        self, logits_fn: LogitsFn, x: tf.Tensor, y: tf.Tensor, seeds: tf.Tensor
    ) -> tf.Tensor:
        """Finds adversarial examples; implemented by subclasses.

        Args:
            logits_fn: Function from pixels to logits.
            x: Tensor (batch, ...) of dtype float32 or float64, inside `bounds`.
            y: Tensor of labels: class numbers (batch,), or one-hot or smoothed
                labels (batch, classes).
            seeds: int32 tensor (batch, 2), a row for each example.

        Returns:
            Tensor of the shape and dtype of x, inside `bounds` and within
            `epsilon` of x.

        Raises:
            TypeError: If the subclass does not implement it.
        """
        raise TypeError(
            "An Attack must implement perturb(). "
            f"Received: {type(self).__name__}"
        )

    def with_epsilon(self, epsilon: Any) -> Self:
        """Returns the same attack with another budget.

        Args:
            epsilon: A number, a scalar tensor if `tensor_epsilon`, or an array
                or tensor (batch,) if `example_epsilons`: one for each example
                of the batches that the attack will be given. For a number, the
                attack is constructed again, so that attributes that the
                constructor derives from epsilon follow. For a tensor or an
                array, all other attributes stay as they are.

        Raises:
            ValueError: If an epsilon is out of its range, if the attack takes
                only one for all examples, or if it cannot be constructed again
                because an argument of its constructor has no attribute.

        Example:
            >>> from tfsam.attacks import PGD
            >>> PGD(epsilon=0.1, steps=5).with_epsilon(0.2).epsilon
            0.2

            Of two equal images, the second may change twice as much:

            >>> import tensorflow as tf
            >>> attack = PGD(0.1, steps=5).with_epsilon([0.1, 0.2])
            >>> x, y = tf.fill([2, 2], 0.5), tf.constant([0, 0])
            >>> print(attack(lambda x: 10 * x, x, y).numpy().round(3))
            [[0.4 0.6]
             [0.3 0.7]]
        """
        if not isinstance(epsilon, numbers.Real):
            other = copy.copy(self)
            other.epsilon = self._checked_radii(epsilon)
            return other
        try:
            config = self.get_config()
        except AttributeError as error:
            raise ValueError(
                f"{type(self).__name__} must have an attribute for every "
                f"argument of its constructor ({error}); make a new attack "
                f"instead. Received: epsilon={epsilon}"
            ) from error
        made = self.from_config(config | {"epsilon": epsilon})
        return _with_attributes(made, vars(self))

    def _checked_radii(self, epsilon: Any) -> tf.Tensor:
        """Returns an epsilon that is no number as a tensor () or (batch,)."""
        if not tf.is_tensor(epsilon):
            epsilon = tf.constant(np.asarray(epsilon, np.float64))
        if not epsilon.shape.rank:  # Also of an unknown rank.
            return epsilon
        if epsilon.shape.rank > 1:
            raise ValueError(
                "epsilon must be a number, or of shape (batch,), one for each "
                "example. For an epsilon of each channel, put the division by "
                "it into the network, such as a Normalization layer. "
                f"Received: epsilon of shape {tuple(epsilon.shape)}"
            )
        if not self.example_epsilons:
            raise ValueError(
                f"{type(self).__name__} takes one epsilon for all examples. "
                f"Received: epsilon of shape {tuple(epsilon.shape)}"
            )
        # The values of a tensor in a graph are unknown.
        known = isinstance(epsilon, tf.Tensor) and hasattr(epsilon, "numpy")
        if known and epsilon.shape[0]:
            check_number("epsilon", float(epsilon.numpy().min()))
            largest = check_number("epsilon", float(epsilon.numpy().max()))
            check_budget(largest, self.norm, self.bounds)
        return epsilon

    def radii(self, x: tf.Tensor) -> Any:
        """Returns epsilon such that it broadcasts against a number an example.

        Args:
            x: Float tensor (rows, ...), a batch or copies of it, one after the
                other.

        Returns:
            `epsilon` itself, or for one of each example a tensor (rows,) of the
            dtype of x.

        Example:
            >>> import tensorflow as tf
            >>> from tfsam.attacks import PGD
            >>> attack = PGD(0.1).with_epsilon([0.25, 0.5])
            >>> attack.radii(tf.zeros([4, 3])).numpy().tolist()
            [0.25, 0.5, 0.25, 0.5]
        """
        if not _of_each(self.epsilon):
            return self.epsilon
        epsilon = tf.cast(self.epsilon, x.dtype)
        rows, batch = x.shape[0], epsilon.shape[0]
        if rows is not None and rows == batch:
            return epsilon
        if rows is None or batch is None:
            times = tf.shape(x)[0] // tf.shape(epsilon)[0]
        else:
            times = rows // batch
        return tf.ensure_shape(tf.tile(epsilon, [times]), x.shape[:1])

    def radius(self, x: tf.Tensor) -> Any:
        """Returns epsilon such that it broadcasts against images.

        Args:
            x: Float tensor (rows, ...), a batch or copies of it, one after the
                other.

        Returns:
            `epsilon` itself, or for one of each example a tensor (rows, 1, ...,
            1) of the dtype and the rank of x.

        Example:
            >>> import tensorflow as tf
            >>> from tfsam.attacks import PGD
            >>> attack = PGD(0.1).with_epsilon([0.25, 0.5])
            >>> attack.radius(tf.zeros([2, 3])).numpy().tolist()
            [[0.25], [0.5]]
        """
        radii = self.radii(x)
        return per_example(radii, x) if _of_each(radii) else radii

    def clip(self, x: tf.Tensor) -> tf.Tensor:
        """Clips pixels to `bounds`.

        Args:
            x: Float tensor (batch, ...).

        Returns:
            Tensor of x's shape and dtype; x itself if `bounds` is None.
        """
        return x if self.bounds is None else tf.clip_by_value(x, *self.bounds)

    def project(self, x: tf.Tensor, moved: tf.Tensor) -> tf.Tensor:
        """Projects points onto the ball around x and into the bounds.

        Args:
            x: Float tensor (batch, ...), inside `bounds`.
            moved: Float tensor of the shape and dtype of x.

        Returns:
            Tensor of x's shape and dtype; see `geometry.project_within`.
        """
        return geometry.project_within(
            x, moved, self.radius(x), self.norm, self.bounds
        )


def _attacked(
    attack: Attack,
    logits_fn: LogitsFn,
    x: tf.Tensor,
    y: tf.Tensor,
    seeds: tf.Tensor,
    start: tf.Tensor | None = None,
) -> tf.Tensor:
    """Attacks a batch of tensors that is already checked.

    Args:
        attack: The attack.
        logits_fn: Function from pixels to logits.
        x: Float tensor (batch, ...), inside the bounds.
        y: Tensor of labels.
        seeds: int32 tensor (batch, 2).
        start: None, or a tensor of x's shape.

    Returns:
        Tensor of x's shape and dtype, through which no gradient flows.
    """
    # The spacing of float16 near 1 is 4.9e-4, half of an attack's step of
    # 0.25/255.
    precise = x if x.dtype.size >= 4 else tf.cast(x, tf.float32)
    given = {}
    if start is not None:
        given["start"] = tf.cast(start, precise.dtype)
    x_adv = attack.perturb(logits_fn, precise, y, seeds, **given)
    x_adv = tf.ensure_shape(tf.cast(x_adv, x.dtype), x.shape)
    if attack.norm != "linf":
        x_adv = geometry.shrink(x, x_adv, attack.radius(precise), attack.norm)
        x_adv = tf.ensure_shape(x_adv, x.shape)
    return tf.stop_gradient(x_adv)


def _of_each(epsilon: Any) -> bool:
    """Returns whether an epsilon is one of each example, a tensor (batch,)."""
    return tf.is_tensor(epsilon) and epsilon.shape.rank == 1


def check_one_epsilon(attack: Any) -> None:
    """Rejects an attack that has an epsilon for each example of a batch.

    Args:
        attack: A callable.

    Raises:
        ValueError: If its attribute `epsilon` is a tensor or array (batch,).

    Example:
        >>> from tfsam.attacks import PGD
        >>> check_one_epsilon(PGD(epsilon=8 / 255))
    """
    epsilon: Any = getattr(attack, "epsilon", None)
    if not isinstance(epsilon, numbers.Real) and np.ndim(epsilon) == 1:
        raise ValueError(
            "an attack with an epsilon for each example belongs to a single "
            "batch, and cannot be used on batches that change; give it one "
            f"epsilon. Received: {len(epsilon)} epsilons"
        )


def _with_attributes(attack: Any, attributes: Mapping[str, Any]) -> Any:
    """Adds the attributes that the constructor did not set."""
    own = vars(attack)
    own.update({k: v for k, v in attributes.items() if k not in own})
    return attack


def check_scale(attack: Any) -> None:
    """Rejects an l-inf epsilon that is larger than the width of the bounds.

    Such an epsilon is most likely in other units than the pixels.

    Args:
        attack: A callable. Without attributes `epsilon`, `norm` and `bounds` it
            is not checked.

    Raises:
        ValueError: If epsilon is larger than the width of the bounds.

    Example:
        >>> from tfsam.attacks import PGD
        >>> check_scale(PGD(epsilon=8 / 255))
    """
    check_budget(
        getattr(attack, "epsilon", None),
        getattr(attack, "norm", None),
        getattr(attack, "bounds", None),
    )


def where(condition: tf.Tensor, x: tf.Tensor, other: tf.Tensor) -> tf.Tensor:
    """Selects whole examples, like `tf.where` with a condition per example.

    Args:
        condition: Bool tensor (batch,).
        x: Tensor (batch, ...), selected where the condition holds.
        other: Tensor of x's shape, selected elsewhere.

    Returns:
        Tensor of x's shape.

    Example:
        >>> import tensorflow as tf
        >>> condition = tf.constant([True, False])
        >>> where(condition, tf.ones([2, 2]), tf.zeros([2, 2])).numpy().tolist()
        [[1.0, 1.0], [0.0, 0.0]]
    """
    return tf.where(per_example(condition, x), x, other)


def per_example(values: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
    """Reshapes one value per example so that it broadcasts against x.

    Args:
        values: Tensor (batch,).
        x: Tensor (batch, ...).

    Returns:
        Tensor (batch, 1, ..., 1) of the rank of x.

    Example:
        >>> import tensorflow as tf
        >>> per_example(tf.zeros([3]), tf.zeros([3, 8, 8, 1])).shape.as_list()
        [3, 1, 1, 1]
    """
    ones = [1] * (x.shape.rank - 1)
    return tf.reshape(values, [-1, *ones])


def next_seeds(seeds: tf.Tensor, run: Any) -> tf.Tensor:
    """Derives the seeds of an attempt from those of the first attempt.

    Args:
        seeds: int32 tensor (batch, 2).
        run: Number of the attempt, an int or a scalar int32 tensor; 0 returns
            `seeds`.

    Returns:
        int32 tensor (batch, 2).

    Example:
        >>> import tensorflow as tf
        >>> next_seeds(tf.constant([[3, 0]]), 0).numpy().tolist()
        [[3, 0]]
    """
    return seeds + run * tf.constant([0x61C88647, 0], tf.int32)


def example_seeds(seed: Any, batch: Any) -> tf.Tensor:
    """Derives a seed for each example of a batch.

    An int gives the rows (seed, position). A pair is the key of a random
    generator: the example at position i takes the i-th draw, whatever the size
    of the batch.

    Args:
        seed: An int, an int32 tensor (2,) or an int32 tensor (batch, 2), which
            is returned unchanged.
        batch: Number of examples, an int or a scalar tensor.

    Returns:
        int32 tensor (batch, 2).

    Raises:
        ValueError: If `seed` has another shape.

    Example:
        >>> example_seeds(7, 2).numpy().tolist()
        [[7, 0], [7, 1]]
    """
    if isinstance(seed, numbers.Integral):
        # Accepts any Python int, by wrapping it into the range of int32.
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
