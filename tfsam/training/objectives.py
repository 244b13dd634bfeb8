"""Objectives of training beyond the loss of the perturbed inputs.

An objective is a callable (model, Batch) -> (loss, predictions, losses): the
loss of the batch, the predictions that the metrics see, and, optionally, the
loss of each example. `Objective` is a base class for them. Both objectives here
run the network twice; BatchNorm statistics are those of the pass whose
predictions are returned.
"""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tfsam.attacks import losses
from tfsam.geometry import TINY
from tfsam.support.configurable import Configurable
from tfsam.support.single_logits import of_two_classes
from tfsam.support.validators import check_number
from tfsam.training.batch import Batch
from tfsam.training.soft_labels import check_smoothing
from tfsam.training.soft_labels import check_takes_rows
from tfsam.training.soft_labels import smoothed
from tfsam.training.trainer import replicas


class Objective(Configurable):
    """Base class of objectives of training.

    A subclass implements `__call__`, which replaces Keras's `compute_loss`: it
    runs the network and returns the loss. Every constructor argument must be
    kept as an attribute of the same name, and the class registered with
    `keras.saving.register_keras_serializable`, so that models can be saved.

    An objective has to apply sample weights and to add the losses of the
    model's regularizers: `mean` and `penalties` do this, also on several
    replicas. The compiled loss, `model.compute_loss(x, y, y_pred,
    sample_weight)`, includes both. A second call of the model belongs into
    `with model.unrecorded():`, so that BatchNorm statistics are those of the
    first call.

    An objective may keep a state from batch to batch: `init` returns its first
    values, and `model.objective_state` holds the variables. The values assigned
    in a step's first pass are kept, and saved with the model.

    An objective need not inherit from this class: any callable with the same
    arguments and result will do, and a fact that it does not state has the
    default that is declared here.

    Attributes:
        attack: name of the attack that trains by the method which is named
            after the objective, with or without options; for an objective with
            `needs_attack`.
        clean_statistics: whether the BatchNorm statistics, and the predictions
            for the metrics, are those of the clean inputs.
        init: None, or a method (classes) -> list of tensors, the state that the
            objective begins with.
        needs_attack: whether `RobustModel` must have `perturb_inputs`.
        needs_classes: whether the network must return logits of classes, and
            the labels must name classes.
        needs_true_class: whether each label must be that of a single class, so
            that labels which are mixed or smoothed are refused.
        passes: number of forward and backward passes through the network.

    Example:
        >>> import keras, tensorflow as tf, tfsam
        >>> @keras.saving.register_keras_serializable(package="example")
        ... class Focal(tfsam.Objective):
        ...     def __init__(self, power=2.0):
        ...         self.power = power
        ...
        ...     def __call__(self, model, batch):
        ...         logits = model(batch.x_adv, training=True)
        ...         losses = keras.losses.sparse_categorical_crossentropy(
        ...             batch.y, logits, from_logits=True
        ...         )
        ...         losses *= (1 - tf.exp(-losses)) ** self.power
        ...         loss = self.mean(losses, batch.sample_weight)
        ...         return loss + sum(self.penalties(model)), logits, losses
        >>> Focal(power=1.0)
        Focal(power=1.0)
        >>> network = keras.Sequential(
        ...     [keras.Input((64,)), keras.layers.Dense(10)]
        ... )
        >>> model = tfsam.RobustModel(network, objective=Focal())
        >>> model.compile("sgd")
        >>> history = model.fit(tf.ones([4, 64]), tf.range(4), verbose=0)
    """

    attack = "pgd"
    clean_statistics = False
    init: Any = None
    needs_attack = False
    needs_classes = False
    needs_true_class = False
    passes: Any = 1.0

    def __call__(self, model: Any, batch: Batch) -> tuple[Any, ...]:
        """Computes the objective of a batch; implemented by subclasses.

        Args:
            model: the `RobustModel`. Call it as any Keras model, with
                `training=True`.
            batch: the batch: `batch.x`, the inputs; `batch.x_adv`, the
                perturbed inputs, which are `x` itself without an attack;
                `batch.y`, the labels as they are passed to `fit`; and
                `batch.sample_weight`, a tensor (batch,) or None.

        Returns:
            (loss, predictions) or (loss, predictions, losses): a scalar, the
            outputs of the network that the metrics are computed on, and the
            loss of each example (batch,). Perturbations that select examples,
            such as `tfsam.ESAM`, need the losses.

        Raises:
            TypeError: if the subclass does not implement it.
        """
        raise TypeError(
            "An Objective must implement __call__(model, batch). "
            f"Received: {type(self).__name__}"
        )

    @staticmethod
    def mean(values: tf.Tensor, sample_weight: Any = None) -> tf.Tensor:
        """Returns the weighted mean over the batch, as Keras computes losses.

        On several replicas it carries the factor 1/replicas, because the
        gradients of the replicas are summed.

        Args:
            values: a float tensor (batch,).
            sample_weight: weights of the examples, a tensor (batch,), or None.

        Returns:
            A scalar: the sum of the weighted values, divided by the number of
            examples.
        """
        if sample_weight is not None:
            weights = tf.cast(tf.reshape(sample_weight, [-1]), values.dtype)
            values = values * weights
        if replicas() == 1:
            return tf.reduce_mean(values)
        # A replica's share of a last batch may be empty: the mean is 0 then.
        size = tf.cast(tf.size(values), values.dtype)
        total = tf.reduce_sum(values)
        return tf.math.divide_no_nan(total, size) / replicas()

    @staticmethod
    def penalties(model: Any) -> list[tf.Tensor]:
        """Returns the losses of the model's regularizers and `add_loss`.

        Read them before a second call of the model. `model.compute_loss`
        includes them already.

        Args:
            model: the `RobustModel`, after it was called.

        Returns:
            A list of scalars, to be added to the loss. On several replicas
            they carry the factor 1/replicas, as `mean` does.
        """
        return [tf.reduce_sum(loss) / replicas() for loss in model.losses]


class TwoPasses(Objective):
    """Base class of objectives of clean and of perturbed predictions."""

    needs_attack = True
    needs_classes = True
    passes = 2.0


class AddedDistance(TwoPasses):
    """Base class of objectives that add a distance to the compiled loss.

    The loss is that of the clean inputs. A subclass implements `distance`, and
    has the attribute `label_smoothing`.
    """

    clean_statistics = True
    label_smoothing: float

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
        loss, plain = clean_loss(model, batch, y_pred, self.label_smoothing)
        perturbed = logits_of_second_pass(model, batch.x_adv)
        apart = self.distance(model, precise(y_pred), perturbed, batch.y)
        loss += tf.cast(self.mean(apart, batch.sample_weight), loss.dtype)
        return loss, y_pred, plain + apart

    def distance(
        self, model: Any, clean: tf.Tensor, perturbed: tf.Tensor, y: tf.Tensor
    ) -> tf.Tensor:
        """Computes the weighted distance between two predictions.

        Args:
            model: the `RobustModel`.
            clean: logits of the clean inputs, a float tensor (batch, classes).
            perturbed: logits of the perturbed inputs, of the same shape.
            y: labels.

        Returns:
            A float tensor (batch,).

        Raises:
            TypeError: if the subclass does not implement this method.
        """
        raise TypeError(
            "An AddedDistance must implement distance(model, clean, perturbed, "
            f"y). Received: objective={type(self).__name__}"
        )


@keras.saving.register_keras_serializable(package="tfsam")
class TRADES(AddedDistance):
    """TRADES (Zhang et al., 2019, eq. 5).

    The compiled loss of the clean inputs plus beta * mean KL(p || p_adv), where
    p are the probabilities of the clean inputs and p_adv those of the perturbed
    ones. Gradients flow through both. With beta = 0 it is standard training.
    The paper's attack maximizes the same divergence: `tfsam.PGD(0.031,
    steps=10, step_size=0.007, loss="kl", random_start="normal")`.

    Args:
        beta: the paper's 1/lambda, >= 0.
        label_smoothing: share of each label that goes to all classes alike, in
            [0, 1]; for the compiled loss, which must be a cross-entropy. 0.1 in
            "Better Diffusion Models Further Improve Adversarial Training" (Wang
            et al., 2023); 0, the default, changes nothing.

    Raises:
        ValueError: if beta is negative or not finite, or label_smoothing is not
            in [0, 1].

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
        TRADES(beta=6.0, label_smoothing=0.0)
    """

    def __init__(self, beta: float = 6.0, label_smoothing: float = 0.0) -> None:
        self.beta = check_number("beta", beta)
        self.label_smoothing = check_smoothing(label_smoothing)

    def distance(
        self, model: Any, clean: tf.Tensor, perturbed: tf.Tensor, y: tf.Tensor
    ) -> tf.Tensor:
        """Computes beta times the divergence; see `AddedDistance`."""
        return self.beta * losses.kl(perturbed, tf.nn.softmax(clean))


@keras.saving.register_keras_serializable(package="tfsam")
class MART(TwoPasses):
    """Misclassification-aware adversarial training (Wang et al., 2020, eq. 11).

    Mean of BCE(p_adv, y) + beta * KL(p || p_adv) * (1 - p_y), with the boosted
    cross-entropy BCE = -log p_adv_y - log(1 - max_{k != y} p_adv_k). It
    replaces the compiled loss; losses that layers add are kept. The constants
    that avoid log 0 are the authors'. Gradients flow through p as well. The
    paper's attack is PGD on the cross-entropy. Labels that are mixed or
    smoothed have no true class y, and are refused.

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

    needs_true_class = True

    def __init__(self, beta: float = 6.0) -> None:
        self.beta = check_number("beta", beta)

    def __call__(self, model: Any, batch: Batch) -> tuple[Any, Any, Any]:
        """Computes the objective; predictions are of perturbed inputs."""
        y_pred = model(batch.x_adv, training=True)
        penalties = self.penalties(model)
        clean = tf.nn.softmax(logits_of_second_pass(model, batch.x))
        perturbed = tf.nn.softmax(precise(y_pred))
        right = losses.one_hot(perturbed, batch.y)
        zeros = tf.zeros_like(perturbed)
        other = tf.reduce_max(tf.where(right, zeros, perturbed), axis=-1)
        boosted = losses.cross_entropy(precise(y_pred), batch.y)
        boosted -= tf.math.log(1.0001 - other + TINY)
        apart = tf.reduce_sum(
            tf.math.xlogy(clean, clean) - clean * tf.math.log(perturbed + TINY),
            axis=-1,
        )
        sure = tf.reduce_sum(tf.where(right, clean, zeros), axis=-1)
        each = boosted + self.beta * apart * (1.0000001 - sure)
        loss = self.mean(each, batch.sample_weight)
        return penalized(loss, penalties), y_pred, each


def clean_loss(
    model: Any, batch: Batch, y_pred: tf.Tensor, label_smoothing: float
) -> tuple[tf.Tensor, tf.Tensor]:
    """Computes the compiled loss of the clean inputs, with smoothed labels.

    Args:
        model: the `RobustModel`.
        batch: the batch.
        y_pred: the predictions for the clean inputs.
        label_smoothing: share of each label that goes to all classes alike.

    Returns:
        (loss, losses): the loss of the batch, with those that layers add, and
        the cross-entropy of each example (batch,).

    Raises:
        ValueError: if labels are smoothed for a compiled loss that is no
            cross-entropy.
    """
    clean, y, rows = precise(y_pred), batch.y, batch.y
    if label_smoothing:
        check_takes_rows(model)
        y = rows = smoothed(batch.y, clean, label_smoothing)
        if y_pred.shape[-1] == 1:  # A loss of the logit of class 1.
            y = rows[:, 1:]
    loss = model.compute_loss(
        x=batch.x,
        y=y,
        y_pred=y_pred,
        sample_weight=batch.sample_weight,
        training=True,
    )
    return loss, losses.cross_entropy(clean, rows)


def precise(logits: tf.Tensor) -> tf.Tensor:
    """Returns logits of classes in float32, or in float64 if they are.

    Args:
        logits: float tensor (batch, classes); a single logit becomes those of
            two classes.
    """
    logits = of_two_classes(logits)
    return logits if logits.dtype.size > 4 else tf.cast(logits, tf.float32)


def logits_of_second_pass(model: Any, inputs: Any) -> tf.Tensor:
    """Computes logits by a second call of the model in a training step.

    BatchNorm keeps the statistics of the first call.

    Args:
        model: the `RobustModel`.
        inputs: the inputs of the network.

    Returns:
        A float tensor (batch, classes); see `precise`.
    """
    with model.unrecorded():
        return precise(model(inputs, training=True))


def penalized(loss: tf.Tensor, penalties: Sequence[tf.Tensor]) -> tf.Tensor:
    """Adds the penalties of layers to a loss that replaces the compiled one.

    Args:
        loss: a scalar.
        penalties: scalars; see `Objective.penalties`.

    Returns:
        A scalar of the dtype of `loss`.
    """
    for penalty in penalties:
        loss += tf.cast(penalty, loss.dtype)
    return loss
