"""Objectives of training that are more than the loss of the perturbed inputs.

Each is a callable (model, Batch) -> (loss, predictions, losses): the loss of
the batch, the predictions that the metrics see, and the loss of each example.
Two passes through the network are two calls; the statistics of BatchNorm are
those of the pass whose predictions are returned.
"""

from typing import Any

import keras
import tensorflow as tf

from tfsam.attacks import losses
from tfsam.geometry import TINY
from tfsam.support.configurable import Configurable
from tfsam.support.validators import check_number
from tfsam.training.trainer import replicas


class Objective(Configurable):
    """Base of objectives that weigh clean against perturbed predictions.

    Args:
        beta: weight of the distance between the two, >= 0.

    Attributes:
        clean_statistics: whether the BatchNorm statistics are those of the
            clean inputs, not of the perturbed ones.
        needs_attack: whether the objective needs perturbed inputs.
        needs_classes: whether it takes logits of classes, and labels of
            classes.
        passes: forward and backward passes through the network.

    Raises:
        ValueError: if beta is negative or no finite number.
    """

    clean_statistics = False
    needs_attack = True
    needs_classes = False
    passes: Any = 2.0

    def __init__(self, beta=6.0):
        self.beta = check_number("beta", beta)


@keras.saving.register_keras_serializable(package="tfsam")
class TRADES(Objective):
    """TRADES (Zhang et al., 2019, eq. 5).

    The compiled loss of the clean inputs + beta * mean KL(p || p_adv), with p
    the clean predictions and p_adv those of the perturbed inputs; gradients
    flow through both. beta = 0 is standard training. The paper's attack climbs
    that divergence: `tfsam.PGD(0.031, steps=10, step_size=0.007, loss="kl",
    random_start="normal")`.

    Args:
        beta: the paper's 1/lambda, >= 0.

    Raises:
        ValueError: if beta is negative or no finite number.
    """

    clean_statistics = True
    needs_classes = True

    def __call__(self, model, batch):
        """Returns (loss, clean predictions, losses)."""
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
    cross-entropy BCE = -log p_adv_y - log(1 - max_{k != y} p_adv_k). It stands
    in the place of the compiled loss; the network's regularisation is added.
    The constants against log 0 are the authors'. Gradients flow through p, too.
    The paper's attack is PGD on cross-entropy.

    Args:
        beta: the paper's lambda, >= 0.

    Raises:
        ValueError: if beta is negative or no finite number.
    """

    needs_classes = True

    def __call__(self, model, batch):
        """Returns (loss, perturbed predictions, losses)."""
        y_pred = model(batch.x_adv, training=True)
        penalties = model.losses  # Before the second pass: of this one alone.
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


def _precise(logits):
    """Logits in float32 at least."""
    return logits if logits.dtype.size > 4 else tf.cast(logits, tf.float32)


def _mean(values, sample_weight):
    """The weighted mean, over replicas: Keras sums what they return."""
    if sample_weight is not None:
        weights = tf.cast(tf.reshape(sample_weight, [-1]), values.dtype)
        values = values * weights
    if replicas() == 1:
        return tf.reduce_mean(values)
    # A replica's share of a last batch may be empty, whose mean is not 0.
    size = tf.cast(tf.size(values), values.dtype)
    return tf.math.divide_no_nan(tf.reduce_sum(values), size) / replicas()
