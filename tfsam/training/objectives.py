"""Objectives of training beyond the loss of the perturbed inputs.

An objective is a callable (model, Batch) -> (loss, predictions, losses): the
loss of the batch, the predictions that the metrics see, and the loss of each
example. Both objectives here run the network twice; BatchNorm statistics are
those of the pass whose predictions are returned.
"""

from typing import Any

import keras
import tensorflow as tf

from tfsam.attacks import losses
from tfsam.geometry import TINY
from tfsam.support.configurable import Configurable
from tfsam.support.validators import check_number
from tfsam.training.batch import Batch
from tfsam.training.trainer import replicas


class Objective(Configurable):
    """Base of objectives that weigh clean against perturbed predictions.

    An objective of another package need not inherit from this class: a fact
    that it does not state has the default that is declared here.

    Args:
        beta: weight of the distance between the two, >= 0.

    Attributes:
        clean_statistics: whether the BatchNorm statistics, and the predictions
            for the metrics, are those of the clean inputs.
        needs_attack: whether `RobustModel` must have `perturb_inputs`.
        needs_classes: whether the network must return logits of classes, and
            the labels must name classes.
        passes: number of forward and backward passes through the network.

    Raises:
        ValueError: if beta is negative or not finite.
    """

    clean_statistics = False
    needs_attack = False
    needs_classes = False
    passes: Any = 1.0

    def __init__(self, beta: float = 6.0) -> None:
        self.beta = check_number("beta", beta)


@keras.saving.register_keras_serializable(package="tfsam")
class TRADES(Objective):
    """TRADES (Zhang et al., 2019, eq. 5).

    The compiled loss of the clean inputs plus beta * mean KL(p || p_adv), where
    p are the probabilities of the clean inputs and p_adv those of the perturbed
    ones. Gradients flow through both. With beta = 0 it is standard training.
    The paper's attack maximizes the same divergence: `tfsam.PGD(0.031,
    steps=10, step_size=0.007, loss="kl", random_start="normal")`.

    Args:
        beta: the paper's 1/lambda, >= 0.

    Raises:
        ValueError: if beta is negative or not finite.

    Example:
        >>> import keras, tfsam
        >>> network = keras.Sequential(
        ...     [keras.Input((64,)), keras.layers.Dense(10)]
        ... )
        >>> model = tfsam.RobustModel(
        ...     network,
        ...     perturb_inputs=tfsam.PGD(8 / 255, loss="kl"),
        ...     objective=tfsam.TRADES(beta=6),
        ... )
        >>> model.objective
        TRADES(beta=6.0)
    """

    clean_statistics = True
    needs_attack = True
    needs_classes = True
    passes = 2.0

    def __call__(self, model: Any, batch: Batch) -> tuple[Any, Any, Any]:
        """Computes the objective of a batch.

        Args:
            model: the `RobustModel`.
            batch: the batch.

        Returns:
            (loss, predictions, losses): a scalar, the logits of the clean
            inputs (batch, classes), and the loss of each example (batch,).
        """
        y_pred = model(batch.x, training=True)
        loss = model.compute_loss(
            x=batch.x,
            y=batch.y,
            y_pred=y_pred,
            sample_weight=batch.sample_weight,
            training=True,
        )
        with model.unrecorded():
            perturbed = _precise(model(batch.x_adv, training=True))
        clean = _precise(y_pred)
        apart = self.beta * losses.kl(perturbed, tf.nn.softmax(clean))
        loss += tf.cast(_mean(apart, batch.sample_weight), loss.dtype)
        return loss, y_pred, losses.cross_entropy(clean, batch.y) + apart


@keras.saving.register_keras_serializable(package="tfsam")
class MART(Objective):
    """Misclassification-aware adversarial training (Wang et al., 2020, eq. 11).

    Mean of BCE(p_adv, y) + beta * KL(p || p_adv) * (1 - p_y), with the boosted
    cross-entropy BCE = -log p_adv_y - log(1 - max_{k != y} p_adv_k). It
    replaces the compiled loss; losses that layers add are kept. The constants
    that avoid log 0 are the authors'. Gradients flow through p as well. The
    paper's attack is PGD on the cross-entropy.

    Args:
        beta: the paper's lambda, >= 0.

    Raises:
        ValueError: if beta is negative or not finite.

    Example:
        >>> import keras, tfsam
        >>> network = keras.Sequential(
        ...     [keras.Input((64,)), keras.layers.Dense(10)]
        ... )
        >>> model = tfsam.RobustModel(
        ...     network,
        ...     perturb_inputs=tfsam.PGD(8 / 255),
        ...     objective=tfsam.MART(beta=5),
        ... )
        >>> model.objective
        MART(beta=5.0)
    """

    needs_attack = True
    needs_classes = True
    passes = 2.0

    def __call__(self, model: Any, batch: Batch) -> tuple[Any, Any, Any]:
        """Computes the objective of a batch.

        Args:
            model: the `RobustModel`.
            batch: the batch.

        Returns:
            (loss, predictions, losses): a scalar, the logits of the perturbed
            inputs (batch, classes), and the loss of each example (batch,).
        """
        y_pred = model(batch.x_adv, training=True)
        penalties = model.losses  # Read before the second pass adds its own.
        with model.unrecorded():
            clean = tf.nn.softmax(_precise(model(batch.x, training=True)))
        perturbed = tf.nn.softmax(_precise(y_pred))
        right = losses.one_hot(perturbed, batch.y)
        zeros = tf.zeros_like(perturbed)
        other = tf.reduce_max(tf.where(right, zeros, perturbed), axis=-1)
        boosted = losses.cross_entropy(_precise(y_pred), batch.y)
        boosted -= tf.math.log(1.0001 - other + TINY)
        apart = tf.reduce_sum(
            tf.math.xlogy(clean, clean) - clean * tf.math.log(perturbed + TINY),
            axis=-1,
        )
        sure = tf.reduce_sum(tf.where(right, clean, zeros), axis=-1)
        each = boosted + self.beta * apart * (1.0000001 - sure)
        loss = _mean(each, batch.sample_weight)
        for penalty in penalties:
            loss += tf.cast(tf.reduce_sum(penalty), loss.dtype) / replicas()
        return loss, y_pred, each


def _precise(logits: tf.Tensor) -> tf.Tensor:
    """Returns logits in float32, or in float64 if they are."""
    return logits if logits.dtype.size > 4 else tf.cast(logits, tf.float32)


def _mean(values: tf.Tensor, sample_weight: Any) -> tf.Tensor:
    """Returns the weighted mean over the global batch, which Keras sums."""
    if sample_weight is not None:
        weights = tf.cast(tf.reshape(sample_weight, [-1]), values.dtype)
        values = values * weights
    if replicas() == 1:
        return tf.reduce_mean(values)
    # A replica's share of a last batch may be empty: the mean is 0 then.
    size = tf.cast(tf.size(values), values.dtype)
    return tf.math.divide_no_nan(tf.reduce_sum(values), size) / replicas()
