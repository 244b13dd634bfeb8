"""Norms, and the points at which linear functions are largest in their balls.

`FACTS` holds, for each norm, the facts that depend on it. Computations that
differ by norm choose among functions by `for_norm`, so that a norm without a
function of its own is an error.
"""

import math
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple
from typing import TypeVar

import tensorflow as tf

from tfsam.support.validators import check_choice

Choice = TypeVar("Choice")


class Norm(NamedTuple):
    """Facts about a norm.

    Attributes:
        order: The p of l_p, as `numpy.linalg.norm` takes it.
        dual: Name of the dual norm, which measures gradients.
        steps_across: Number of PGD steps of the default length that make
            epsilon: 4 in l-inf, as in Madry et al., 2018, and 8 in the others.
        dense: Name of the norm whose steepest direction changes all pixels: in
            l1, whose own changes a single one, l2; in the others the norm.
    """

    order: float
    dual: str
    steps_across: int
    dense: str


FACTS = {
    "linf": Norm(order=math.inf, dual="l1", steps_across=4, dense="linf"),
    "l2": Norm(order=2, dual="l2", steps_across=8, dense="l2"),
    "l1": Norm(order=1, dual="linf", steps_across=8, dense="l2"),
}

NORMS = tuple(FACTS)

# Added to denominators in the attacks' losses and in every weight perturbation.
# A single constant keeps identities between methods, such as GSAM with alpha=0
# and SAM, exact.
TINY = 1e-12


def check_norm(norm: str) -> str:
    """Checks the name of a norm.

    Args:
        norm: "linf", "l2" or "l1".

    Returns:
        `norm`.

    Raises:
        ValueError: If `norm` is not one of `NORMS`.

    Example:
        >>> check_norm("l2")
        'l2'
    """
    return check_choice("norm", norm, NORMS)


def for_norm(norm: str, **choices: Choice) -> Choice:
    """Chooses by norm; a norm that is not among the choices is an error.

    Args:
        norm: Name of the norm.
        **choices: The choice for each norm, such as a function.

    Returns:
        The choice for `norm`.

    Raises:
        ValueError: If there is none.

    Example:
        >>> for_norm("l2", linf=abs, l2=round)(2.6)
        3
    """
    return choices[check_choice("norm", norm, choices)]


def global_norm(tensors: Sequence[tf.Tensor]) -> tf.Tensor:
    """Computes the l2 norm of a list of tensors, taken as a single vector.

    The sum of squares is at least float32: in float16 it would overflow at 256
    weights of size 16.

    Args:
        tensors: List of float tensors of any shapes.

    Returns:
        Scalar tensor, float64 if the tensors are float64, else float32.

    Example:
        >>> import tensorflow as tf
        >>> float(global_norm([tf.constant([3.0]), tf.constant([[4.0]])]))
        5.0
    """
    return tf.sqrt(
        tf.add_n([tf.reduce_sum(tf.square(_precise(t))) for t in tensors])
    )


def example_sums(values: tf.Tensor, keepdims: bool = True) -> tf.Tensor:
    """Sums the values of each example of a batch.

    Args:
        values: Float tensor (batch, ...).
        keepdims: If True, the result has shape (batch, 1, ..., 1), which
            broadcasts against `values`; else it has shape (batch,).

    Returns:
        Tensor of the dtype of `values`.

    Example:
        >>> import tensorflow as tf
        >>> example_sums(tf.ones([2, 3]), keepdims=False).numpy().tolist()
        [3.0, 3.0]
    """
    axes = list(range(1, values.shape.rank))
    return tf.reduce_sum(values, axis=axes, keepdims=keepdims)


def example_norms(
    perturbations: tf.Tensor, norm: str, keepdims: bool = True
) -> tf.Tensor:
    """Computes the norm of each example of a batch.

    Args:
        perturbations: Float tensor (batch, ...).
        norm: "linf", "l2" or "l1".
        keepdims: If True, the result has shape (batch, 1, ..., 1), which
            broadcasts against `perturbations`; else it has shape (batch,).

    Returns:
        Tensor of the dtype of `perturbations`, >= 0.

    Raises:
        ValueError: If `norm` is not one of `NORMS`.

    Example:
        >>> import tensorflow as tf
        >>> batch = tf.constant([[3.0, -4.0], [0.0, 1.0]])
        >>> example_norms(batch, "linf", keepdims=False).numpy().tolist()
        [4.0, 1.0]
        >>> example_norms(batch, "l2", keepdims=False).numpy().tolist()
        [5.0, 1.0]
        >>> example_norms(batch, "l1", keepdims=False).numpy().tolist()
        [7.0, 1.0]
    """
    norms = for_norm(norm, linf=_linf_norms, l2=_l2_norms, l1=_l1_norms)
    return norms(perturbations, keepdims)


def _linf_norms(perturbations: tf.Tensor, keepdims: bool) -> tf.Tensor:
    axes = list(range(1, perturbations.shape.rank))
    return tf.reduce_max(tf.abs(perturbations), axis=axes, keepdims=keepdims)


def _l2_norms(perturbations: tf.Tensor, keepdims: bool) -> tf.Tensor:
    return tf.sqrt(example_sums(tf.square(perturbations), keepdims))


def _l1_norms(perturbations: tf.Tensor, keepdims: bool) -> tf.Tensor:
    return example_sums(tf.abs(perturbations), keepdims)


def over_largest(gradients: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Divides each example by the size of its largest entry.

    The gradients of a confident network can be as small as 1e-30; without this
    scaling their squares would vanish in float32.

    Args:
        gradients: Float tensor (batch, ...).

    Returns:
        Tuple of the scaled gradients, of the shape of `gradients`, and the
        sizes, of shape (batch, 1, ..., 1). Both are zero for examples that are
        zero.

    Example:
        >>> import tensorflow as tf
        >>> scaled, largest = over_largest(tf.constant([[2.0, -4.0]]))
        >>> scaled.numpy().tolist(), largest.numpy().tolist()
        ([[0.5, -1.0]], [[4.0]])
    """
    largest = example_norms(gradients, "linf")
    return tf.math.divide_no_nan(gradients, largest), largest


def dual_norms(gradients: tf.Tensor, norm: str) -> tf.Tensor:
    """Computes how fast each example's linearised function changes.

    A function with the gradient g changes by at most ||g||_dual over a unit of
    distance; `FACTS` names the dual norms. By the quotient of a gap and this
    rate, a linearised decision boundary is that far away.

    Args:
        gradients: Float tensor (batch, ...).
        norm: "linf", "l2" or "l1", the norm of distances.

    Returns:
        Tensor (batch,) of the dtype of `gradients`, >= 0, which is accurate for
        gradients as small as 1e-30.

    Raises:
        ValueError: If `norm` is not one of `NORMS`.

    Example:
        >>> import tensorflow as tf
        >>> dual_norms(tf.constant([[3.0, -4.0]]), "linf").numpy().tolist()
        [7.0]
    """
    dual = FACTS[check_norm(norm)].dual
    scaled, largest = over_largest(gradients)
    sizes = example_norms(scaled, dual, keepdims=False)
    return sizes * tf.reshape(largest, [-1])


def steepest(gradients: tf.Tensor, norm: str) -> tf.Tensor:
    """Maximises each example's linearised loss over the unit ball.

    The result is argmax_d <g, d> over ||d|| <= 1: sign(g) in l-inf, g / ||g||_2
    in l2, and in l1 the sign of the largest entry alone, divided equally among
    equal ones. A gradient of zero gives zero.

    Args:
        gradients: Float tensor (batch, ...).
        norm: "linf", "l2" or "l1".

    Returns:
        Tensor of the shape of `gradients`.

    Raises:
        ValueError: If `norm` is not one of `NORMS`.

    Example:
        >>> import tensorflow as tf
        >>> steepest(tf.constant([[2.0, -0.5]]), "linf").numpy().tolist()
        [[1.0, -1.0]]
        >>> steepest(tf.constant([[2.0, -0.5]]), "l1").numpy().tolist()
        [[1.0, 0.0]]
    """
    direction = for_norm(norm, linf=_signs, l2=_normalized, l1=_largest_sign)
    return direction(gradients)


def _signs(gradients: tf.Tensor) -> tf.Tensor:
    return tf.sign(gradients)


def _normalized(gradients: tf.Tensor) -> tf.Tensor:
    scaled, _ = over_largest(gradients)
    return tf.math.divide_no_nan(scaled, example_norms(scaled, "l2"))


def _largest_sign(gradients: tf.Tensor) -> tf.Tensor:
    return steepest_sparse(gradients, 1)


def steepest_sparse(gradients: tf.Tensor, counts: Any) -> tf.Tensor:
    """Returns the signs of each example's largest gradients, of l1 norm 1.

    The result maximises the linearised loss over perturbations of l1 norm 1
    that change at least `counts` entries by the same size (Tramer and Boneh,
    2019, "Adversarial Training and Robustness for Multiple Perturbations",
    section 2; Croce and Hein, 2021, "Mind the box", section 3).

    Args:
        gradients: Float tensor (batch, ...).
        counts: Number of entries to change, >= 1: an int, or an int32 tensor
            () or (batch,). Entries as large as the last of them are changed,
            too; entries of size zero are not.

    Returns:
        Tensor of the shape of `gradients`; zero for a gradient of zero.

    Example:
        >>> import tensorflow as tf
        >>> gradients = tf.constant([[3.0, -2.0, 1.0, 0.0]])
        >>> steepest_sparse(gradients, 2).numpy().tolist()
        [[0.5, -0.5, 0.0, 0.0]]
    """
    sizes = tf.abs(gradients)
    flat = tf.reshape(sizes, [tf.shape(sizes)[0], -1])
    if isinstance(counts, int) or counts.shape.rank == 0:
        smallest = tf.math.top_k(flat, counts).values[:, -1]
    else:
        ordered = tf.sort(flat, axis=1, direction="DESCENDING")
        last = tf.clip_by_value(counts, 1, tf.shape(flat)[1]) - 1
        smallest = tf.gather(ordered, last, axis=1, batch_dims=1)
    ones = [1] * (gradients.shape.rank - 1)
    large = sizes >= tf.reshape(smallest, [-1, *ones])
    signs = tf.where(large, tf.sign(gradients), 0)
    return tf.math.divide_no_nan(signs, example_norms(signs, "l1"))


def default_step(epsilon: Any, norm: str) -> Any:
    """Returns the default length of a PGD step, from `FACTS`.

    Args:
        epsilon: Radius of the ball, a number or a scalar tensor.
        norm: "linf", "l2" or "l1".

    Returns:
        A number or tensor, like `epsilon`: epsilon/4 in l-inf, else epsilon/8.

    Example:
        >>> default_step(0.5, "linf"), default_step(2.0, "l1")
        (0.125, 0.25)
    """
    return epsilon / FACTS[check_norm(norm)].steps_across


def _precise(tensor: tf.Tensor) -> tf.Tensor:
    """Casts a tensor to float32, unless it is float64."""
    return tensor if tensor.dtype == tf.float64 else tf.cast(tensor, tf.float32)
