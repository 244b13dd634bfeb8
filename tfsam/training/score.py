"""SCORE: squared errors of probabilities, in place of divergences.

Pang et al., 2022, "Robustness and Accuracy Could Be Reconcilable by (Proper)
Definition".
"""

from typing import Any

import keras
import tensorflow as tf

from tfsam.attacks import losses
from tfsam.support.validators import check_number
from tfsam.training.batch import Batch
from tfsam.training.objectives import TwoPasses
from tfsam.training.objectives import logits_of_second_pass
from tfsam.training.objectives import penalized
from tfsam.training.objectives import precise
from tfsam.training.soft_labels import check_smoothing
from tfsam.training.soft_labels import smoothed


@keras.saving.register_keras_serializable(package="tfsam")
class SCORE(TwoPasses):
    """SCORE in the form of TRADES, with squared errors (Pang et al., 2022).

    Mean of |p - y|^2 + beta * max(|p_adv - p|^2 - margin, 0), where p are the
    probabilities of the clean inputs, p_adv those of the perturbed ones, and y
    the label, one-hot or soft. It replaces the compiled loss; losses that
    layers add are kept. Gradients flow through both predictions.

    The paper's attack maximizes |p_adv - p|^2 from a random start:
    `tfsam.PGD(8 / 255, step_size=2 / 255, loss="squared_error")`. The default
    of beta is that of the authors' published networks.

    Args:
        beta: weight of the distance between the two predictions, >= 0.
        margin: squared distance that costs nothing, >= 0.
        label_smoothing: share of each label that goes to all classes alike, in
            [0, 1].

    Raises:
        ValueError: if an argument is out of its range.

    Example:
        >>> import keras, tfsam
        >>> network = keras.Sequential(
        ...     [keras.Input((64,)), keras.layers.Dense(10)]
        ... )
        >>> model = tfsam.RobustModel(
        ...     network,
        ...     perturb_inputs=tfsam.PGD(8 / 255, loss="squared_error"),
        ...     objective=tfsam.SCORE(beta=4),
        ... )
        >>> model.objective
        SCORE(beta=4.0, margin=0.0, label_smoothing=0.0)
    """

    clean_statistics = True
    source = "Pang et al., 2022"

    def __init__(
        self,
        beta: float = 3.0,
        margin: float = 0.0,
        label_smoothing: float = 0.0,
    ) -> None:
        self.beta = check_number("beta", beta)
        self.margin = check_number("margin", margin)
        self.label_smoothing = check_smoothing(label_smoothing)

    def __call__(self, model: Any, batch: Batch) -> tuple[Any, Any, Any]:
        """Computes the objective; predictions are of clean inputs."""
        y_pred = model(batch.x, training=True)
        penalties = self.penalties(model)
        perturbed = logits_of_second_pass(model, batch.x_adv)
        clean = precise(y_pred)
        y = smoothed(batch.y, clean, self.label_smoothing)
        apart = losses.squared_error(perturbed, tf.nn.softmax(clean))
        each = losses.squared_error(clean, y)
        each += self.beta * tf.nn.relu(apart - self.margin)
        loss = self.mean(each, batch.sample_weight)
        return penalized(loss, penalties), y_pred, each
