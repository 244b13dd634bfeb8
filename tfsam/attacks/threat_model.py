"""The threat model of an attack: epsilon, norm and bounds.

Together they are the set of images that an attack may return for an image.
"""

import copy
import numbers
from collections.abc import Mapping
from typing import Any
from typing import Self

import numpy as np
import tensorflow as tf

from tfsam import geometry
from tfsam.attacks.per_example import per_example
from tfsam.geometry import check_norm
from tfsam.support.configurable import Configurable
from tfsam.support.pixels import assert_inside
from tfsam.support.pixels import check_floating
from tfsam.support.pixels import inside_bounds
from tfsam.support.validators import Bounds
from tfsam.support.validators import bounds_text
from tfsam.support.validators import check_budget
from tfsam.support.validators import check_interval
from tfsam.support.validators import check_number


class ThreatModel(Configurable):
    """The images within epsilon of an image; the base class of `Attack`.

    Args:
        epsilon: See `Attack`.
        norm: See `Attack`.
        bounds: See `Attack`.

    Attributes:
        norms: The norms that the attack supports; any other is rejected. The
            default is l-inf and l2.
        tensor_epsilon: Whether the attack accepts an epsilon that is a tensor.
            A sweep over epsilons then traces the attack once. The default is
            False.
        example_epsilons: Whether the attack also accepts a tensor (batch,), one
            epsilon for each example; see `radius` and `radii`. The default is
            False.
        two_bounds: Whether the bounds must be two numbers, for instance because
            the library of the attack supports nothing else. The default is
            False.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> import tensorflow as tf
        >>> x = tf.constant([[0.5, 1.0]])
        >>> ThreatModel(epsilon=0.25).project(x, x + 1.0).numpy().tolist()
        [[0.75, 1.0]]
    """

    norms: tuple[str, ...] = ("linf", "l2")
    tensor_epsilon: bool = False
    example_epsilons: bool = False
    two_bounds: bool = False

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
        """Converts an epsilon that is not a number to a tensor () or (batch,).

        Raises:
            ValueError: As `with_epsilon`.
        """
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
        """Returns epsilon in a shape that broadcasts against values (rows,).

        Args:
            x: Float tensor (rows, ...), a batch or copies of it, one after the
                other.

        Returns:
            `epsilon` itself if all examples share it, else a tensor (rows,) of
            the dtype of x.

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
        """Returns epsilon in a shape that broadcasts against images.

        Args:
            x: Float tensor (rows, ...), a batch or copies of it, one after the
                other.

        Returns:
            `epsilon` itself if all examples share it, else a tensor (rows, 1,
            ..., 1) of the dtype and the rank of x.

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
            "the attack must have one epsilon for each example of the batch. "
            f"Received: {epsilon.shape[0]} epsilons, {x.shape[0]} examples"
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
            "the attack must have one epsilon for all examples: an epsilon for "
            "each example belongs to a single batch. "
            f"Received: {len(epsilon)} epsilons"
        )


def _of_each(epsilon: Any) -> bool:
    """Returns whether epsilon is a tensor (batch,), a value per example."""
    return tf.is_tensor(epsilon) and epsilon.shape.rank == 1
