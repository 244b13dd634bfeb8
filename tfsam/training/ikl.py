"""IKL, the improved Kullback-Leibler divergence between clean and perturbed.

Cui et al., 2024, "Decoupled Kullback-Leibler Divergence Loss". The gradients of
KL(p || q) by the logits of p and of q are those of a sum of two terms: a
squared difference of the logits, weighted by p and with q's logits held fixed,
and a cross-entropy of q with the soft labels p, held fixed. IKL changes the
first term in two places: gradients flow into both logits, and the weights are
mean predictions of the example's class.
"""

from typing import Any

import keras
import tensorflow as tf

from tfsam.attacks import losses
from tfsam.support.validators import check_count
from tfsam.support.validators import check_number
from tfsam.training.objectives import AddedDistance
from tfsam.training.soft_labels import check_smoothing


@keras.saving.register_keras_serializable(package="tfsam")
class IKL(AddedDistance):
    """IKL-AT (Cui et al., 2024, section 3), with DKL as a special case.

    The compiled loss of the clean inputs plus the mean of
    alpha / 4 * sum_ij w_i w_j (dm_ij - dn_ij)^2 - beta * sum_i p_i log q_i,
    where dm and dn are the pairwise differences of the logits of the clean and
    of the perturbed inputs, p and q their probabilities, without a gradient
    into p, and w the weights of the classes, without a gradient.

    In IKL, w is the mean of the predictions, softened by `temperature`, over
    the clean examples of the same class in the `refresh_every` steps before; at
    first it is the same for all classes. `class_means=False` and
    `symmetric=False` undo the two changes, which gives DKL: w is the example's
    own p, and no gradient flows into dn. The gradients of DKL with alpha = beta
    = b are those of `TRADES(b)`.

    The paper's attack maximizes a like divergence;
    `tfsam.PGD(8 / 255, step_size=2 / 255, loss="kl", random_start="normal")`
    does. The default values are those of the authors' scripts for WRN-34-10,
    in which alpha and beta have each other's name.

    Args:
        alpha: weight of the squared differences, >= 0.
        beta: weight of the cross-entropy with soft labels, >= 0.
        temperature: temperature of the predictions whose class means are the
            weights, > 0.
        label_smoothing: see `tfsam.TRADES`.
        refresh_every: number of calls, one a training step and part of a batch,
            over which class means are taken, >= 1. The paper's is an epoch; 391
            are one of 50,000 images in batches of 128.
        class_means: whether the weights are the means of classes.
        symmetric: whether gradients of the squared differences also flow into
            the logits of the perturbed inputs.

    Raises:
        ValueError: if an argument is out of its range.

    Example:
        >>> import keras, tfsam
        >>> network = keras.Sequential(
        ...     [keras.Input((64,)), keras.layers.Dense(10)]
        ... )
        >>> model = tfsam.RobustModel(
        ...     network,
        ...     perturb_inputs=tfsam.PGD(8 / 255, loss="kl"),
        ...     objective=tfsam.IKL(alpha=20, beta=4),
        ... )
        >>> [tuple(v.shape) for v in model.objective_state]
        [(10, 10), (10, 10), ()]
    """

    source = "Cui et al., 2024"

    def __init__(
        self,
        alpha: float = 20.0,
        beta: float = 4.0,
        temperature: float = 4.0,
        label_smoothing: float = 0.0,
        refresh_every: int = 391,
        *,
        class_means: bool = True,
        symmetric: bool = True,
    ) -> None:
        self.alpha = check_number("alpha", alpha)
        self.beta = check_number("beta", beta)
        self.temperature = check_number("temperature", temperature)
        if not temperature:
            raise ValueError(
                f"temperature must be > 0. Received: temperature={temperature}"
            )
        self.label_smoothing = check_smoothing(label_smoothing)
        self.refresh_every = check_count("refresh_every", refresh_every, 1)
        self.class_means = class_means
        self.symmetric = symmetric

    def init(self, classes: int) -> list[tf.Tensor]:
        """Returns the state of the class means.

        Args:
            classes: number of classes.

        Returns:
            The means (classes, classes), a row for each class; the sums for the
            next means, of the same shape; and the number of calls in them.
        """
        if not self.class_means:
            return []
        dtype = keras.config.floatx()
        means = tf.constant(1 / classes, dtype, (classes, classes))
        return [means, tf.zeros_like(means), tf.zeros([], dtype)]

    def distance(
        self, model: Any, clean: tf.Tensor, perturbed: tf.Tensor, y: tf.Tensor
    ) -> tf.Tensor:
        """Computes both terms of the divergence; see `AddedDistance`."""
        if self.class_means:
            weights = self._class_weights(model, clean, y)
        else:
            weights = tf.nn.softmax(clean)
        apart = self.alpha * squared_differences(
            clean,
            perturbed if self.symmetric else tf.stop_gradient(perturbed),
            weights,
        )
        return apart + self.beta * losses.cross_entropy(
            perturbed, tf.stop_gradient(tf.nn.softmax(clean))
        )

    def _class_weights(
        self, model: Any, clean: tf.Tensor, y: tf.Tensor
    ) -> tf.Tensor:
        """Returns the weights of a batch, and adds it to the next class means.

        Args:
            model: the `RobustModel`, of whose state the values of the step's
                first pass are kept.
            clean: logits (batch, classes).
            y: labels; a soft label takes its part of each class.
        """
        means, sums, calls = model.objective_state
        rows = losses.one_hot(clean, y) if losses.is_sparse(y) else y
        old = tf.convert_to_tensor(means.value)
        rows = tf.cast(rows, old.dtype)
        shares = tf.cast(tf.nn.softmax(clean / self.temperature), old.dtype)
        total = sums.value + tf.matmul(rows, shares, transpose_a=True)
        count = calls.value + 1
        full = count >= self.refresh_every
        sizes = tf.reduce_sum(total, axis=1, keepdims=True)
        seen = full & (sizes > 0)  # A class without examples keeps its mean.
        means.assign(tf.where(seen, tf.math.divide_no_nan(total, sizes), old))
        sums.assign(tf.where(full, tf.zeros_like(total), total))
        calls.assign(tf.where(full, tf.zeros_like(count), count))
        return tf.cast(tf.matmul(rows, old), clean.dtype)


def squared_differences(
    m: tf.Tensor, n: tf.Tensor, weights: tf.Tensor
) -> tf.Tensor:
    """Computes 1/4 sum_ij w_i w_j ((m_i - m_j) - (n_i - n_j))^2.

    With weights that add up to 1 it is half the weighted variance of m - n over
    the classes, which needs no (classes, classes) differences.

    Args:
        m: logits, a float tensor (batch, classes).
        n: logits of the same shape.
        weights: tensor of the same shape, whose rows add up to 1; no gradient
            flows into it.

    Returns:
        A float tensor (batch,), >= 0.

    Example:
        >>> import tensorflow as tf
        >>> m, n = tf.constant([[3.0, 1.0]]), tf.zeros([1, 2])
        >>> squared_differences(m, n, tf.constant([[0.5, 0.5]])).numpy()
        array([0.5], dtype=float32)
    """
    weights = tf.stop_gradient(weights)
    apart = m - n
    mean = tf.reduce_sum(weights * apart, axis=-1, keepdims=True)
    return tf.reduce_sum(weights * tf.square(apart - mean), axis=-1) / 2
