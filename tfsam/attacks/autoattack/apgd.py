"""Auto-PGD, the first two attacks of AutoAttack.

Croce and Hein, 2020, "Reliable evaluation of adversarial robustness with an
ensemble of diverse parameter-free attacks", algorithm 1.

Auto-PGD is PGD with momentum and an adaptive step size; see `apgd_search.py`,
and for the l1 norm `apgd_l1.py`. The search stops at an example's first
misclassified iterate.
"""

import copy
from typing import Any

import keras
import tensorflow as tf

from tfsam import geometry
from tfsam.attacks import losses
from tfsam.attacks.attempts import copies
from tfsam.attacks.attempts import repeat
from tfsam.attacks.attempts import seeds_of_copies
from tfsam.attacks.attempts import side_by_side
from tfsam.attacks.attempts import turns
from tfsam.attacks.autoattack import apgd_l1
from tfsam.attacks.autoattack import apgd_search
from tfsam.attacks.autoattack.parallel_searches import Searches
from tfsam.attacks.averaging import Averaged
from tfsam.attacks.base import Attack
from tfsam.attacks.base import Bounds
from tfsam.attacks.logits import Logits
from tfsam.attacks.logits import LogitsFn
from tfsam.attacks.logits import LossFn
from tfsam.attacks.logits import Untraced
from tfsam.attacks.logits import examples
from tfsam.attacks.seeds import next_seeds
from tfsam.attacks.targeting import check_order
from tfsam.attacks.targeting import gradients_of
from tfsam.attacks.targeting import targets_of
from tfsam.support.validators import check_choice
from tfsam.support.validators import check_count
from tfsam.support.validators import check_number


@keras.saving.register_keras_serializable(package="tfsam")
class APGD(Attack):
    """Auto-PGD on a single loss, untargeted or targeted.

    Croce and Hein, 2020, algorithm 1. The attacks `apgd_ce`, `apgd_dlr` and
    `apgd_t` are Auto-PGD with different losses. In l1 it is l1-APGD (Croce and
    Hein, 2021); see `tfsam.attacks.autoattack.apgd_l1`.

    Args:
        epsilon: Largest perturbation, in the units of x, >= 0.
        norm: "linf", "l2" or "l1".
        steps: Number of gradient steps in each attempt, >= 1.
        loss: "cross_entropy", "margin" or "dlr".
        targets: Number of wrong classes to attack in turn, >= 0; if there are
            fewer, all. 0 means untargeted.
        restarts: Number of attempts (for each target), >= 1; each attacks the
            survivors of the previous ones.
        rho: Part of the steps since the last checkpoint, in [0, 1]; if fewer
            steps raised the loss, the step size is halved. Not used in l1.
        bounds: (lowest, highest) value of x, or None.
        eot: Number of draws of a random network, >= 1, over which each step
            takes the mean of the gradient, the loss and the logits; see
            `tfsam.attacks.averaging`.
        target_order: "logits" tries the most likely wrong class first,
            "distance" the one of the nearest boundary; see
            `tfsam.attacks.targeting`.
        random_start: Whether to start at a random point on the ball's surface
            instead of at x.
        early_stop: Whether to stop at an example's first misclassified point.
            Otherwise the point of the highest loss is returned, as training
            needs it; of several attempts, the point of the largest margin.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> import tensorflow as tf
        >>> x, y = tf.constant([[0.6, 0.4]]), tf.constant([0])
        >>> x_adv = APGD(epsilon=0.2, steps=10)(lambda x: 10 * x, x, y)
        >>> bool(x_adv[0, 1] > x_adv[0, 0])
        True

        Adversarial training by two steps from x, as in "Revisiting Adversarial
        Training for ImageNet" (Singh et al., 2023):

        >>> import tfsam
        >>> layers = [keras.Input((4,)), keras.layers.Dense(2)]
        >>> steps = {"steps": 2, "random_start": False, "early_stop": False}
        >>> attack = APGD(4 / 255, **steps)
        >>> model = tfsam.RobustModel(
        ...     keras.Sequential(layers), perturb_inputs=attack
        ... )
    """

    in_graph = True
    norms: tuple[str, ...] = ("linf", "l2", "l1")
    selective = True
    tensor_epsilon = True
    example_epsilons = True

    def __init__(
        self,
        epsilon: float,
        norm: str = "linf",
        steps: int = 100,
        loss: str = "cross_entropy",
        targets: int = 0,
        restarts: int = 1,
        rho: float = 0.75,
        bounds: Bounds = (0.0, 1.0),
        eot: int = 1,
        target_order: str = "logits",
        random_start: bool = True,
        early_stop: bool = True,
    ) -> None:
        super().__init__(epsilon, norm, bounds)
        self.steps = check_count("steps", steps, 1)
        self.follows_gradient = self.steps > 1
        self.loss = check_choice("loss", loss, sorted(losses.LOSSES))
        self.targets = check_count("targets", targets)
        self.restarts = check_count("restarts", restarts, 1)
        self.rho = check_number("rho", rho, 0, 1)
        self.eot = check_count("eot", eot, 1)
        self.target_order = check_order(target_order)
        self.random_start = random_start
        self.early_stop = early_stop

    @property
    def stops(self) -> bool:
        """Whether it ends at an example's first misclassified point."""
        return self.early_stop

    @property
    def gradients(self) -> int:
        """Number of gradients for a batch, over all restarts and targets."""
        return gradients_of(self)

    @property
    def predictions(self) -> int:
        """Number of forward passes: for the last point of each run, and at x.

        The pass at x chooses the targets.
        """
        runs = self.restarts * max(self.targets, 1)
        return (runs + bool(self.targets)) * self.eot

    def perturb(
        self, logits_fn: LogitsFn, x: tf.Tensor, y: tf.Tensor, seeds: tf.Tensor
    ) -> tf.Tensor:
        """Returns the first misclassified point, else that of the highest loss.

        On a surrogate, or without `early_stop`, returns the point of the
        highest loss of each attempt, and of several attempts the point of the
        largest margin.
        """
        if not self.early_stop:
            logits_fn = _without_stops(logits_fn)
        active = examples(logits_fn, x)
        network = Averaged(logits_fn, self.eot, seeds)
        loss: LossFn
        loss, targeted_loss = losses.LOSSES[self.loss]
        runs, targets = self.restarts, None
        if self.targets:
            loss = targeted_loss
            logits = network.predict(x, active)
            targets = targets_of(self, logits_fn, x, y, logits, active, seeds)
            runs *= targets.shape[1]

        # The draws of a network already fill a call.
        beside = 1 if self.eot > 1 else side_by_side(runs, x, logits_fn)
        searching = geometry.for_norm(
            self.norm, linf=apgd_search, l2=apgd_search, l1=apgd_l1
        )

        def attempt(
            round: tf.Tensor, active: tf.Tensor
        ) -> tuple[tf.Tensor, tf.Tensor]:
            first = round * beside
            keys = seeds_of_copies(seeds, first, beside)
            labels: Any = copies(y, beside)
            if targets is not None:
                chosen = turns(targets, first, beside)
                labels = (losses.classes(labels), chosen)
            searches = Searches(
                self,
                logits_fn,
                x,
                y,
                loss=loss,
                labels=labels,
                beside=beside,
                seeds=next_seeds(seeds, round * (self.steps + 1)),
            )
            starts = copies(x, beside)
            if self.random_start:
                starts = searching.start(self, starts, keys)
            return searching.search(self, searches, x, starts, active)

        best = network.score(y, active)
        return repeat(attempt, runs // beside, x, active, best)


def apgd_ce(
    epsilon: float,
    norm: str = "linf",
    steps: int = 100,
    restarts: int = 1,
    bounds: Bounds = (0.0, 1.0),
    eot: int = 1,
    random_start: bool = True,
    early_stop: bool = True,
) -> APGD:
    """Makes APGD on the cross-entropy, the first attack of AutoAttack.

    Args:
        epsilon: Largest perturbation, in the units of x, >= 0.
        norm: "linf", "l2" or "l1".
        steps: Number of gradient steps in each attempt, >= 1.
        restarts: Number of attempts, >= 1.
        bounds: (lowest, highest) value of x, or None.
        eot: Number of draws of a random network in each step; see `APGD`.
        random_start: Whether to start at a random point, or at x; see `APGD`.
        early_stop: Whether to stop at the first misclassified point; see
            `APGD`.

    Returns:
        The attack.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> apgd_ce(epsilon=8 / 255).loss
        'cross_entropy'
    """
    return APGD(
        epsilon,
        norm,
        steps,
        restarts=restarts,
        bounds=bounds,
        eot=eot,
        random_start=random_start,
        early_stop=early_stop,
    )


def apgd_dlr(
    epsilon: float,
    norm: str = "linf",
    steps: int = 100,
    restarts: int = 1,
    bounds: Bounds = (0.0, 1.0),
    eot: int = 1,
    random_start: bool = True,
    early_stop: bool = True,
) -> APGD:
    """Makes APGD on the difference of logits ratio, untargeted.

    Args:
        epsilon: Largest perturbation, in the units of x, >= 0.
        norm: "linf", "l2" or "l1".
        steps: Number of gradient steps in each attempt, >= 1.
        restarts: Number of attempts, >= 1.
        bounds: (lowest, highest) value of x, or None.
        eot: Number of draws of a random network in each step; see `APGD`.
        random_start: Whether to start at a random point, or at x; see `APGD`.
        early_stop: Whether to stop at the first misclassified point; see
            `APGD`.

    Returns:
        The attack.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> apgd_dlr(epsilon=8 / 255).loss
        'dlr'
    """
    return APGD(
        epsilon,
        norm,
        steps,
        "dlr",
        restarts=restarts,
        bounds=bounds,
        eot=eot,
        random_start=random_start,
        early_stop=early_stop,
    )


def apgd_t(
    epsilon: float,
    norm: str = "linf",
    steps: int = 100,
    targets: int = 9,
    restarts: int = 1,
    bounds: Bounds = (0.0, 1.0),
    eot: int = 1,
    target_order: str = "logits",
    random_start: bool = True,
    early_stop: bool = True,
) -> APGD:
    """Makes APGD on the targeted DLR loss, the second attack of AutoAttack.

    Args:
        epsilon: Largest perturbation, in the units of x, >= 0.
        norm: "linf", "l2" or "l1".
        steps: Number of gradient steps in each attempt, >= 1.
        targets: Number of wrong classes to attack in turn; if there are fewer,
            all.
        restarts: Number of attempts for each target, >= 1.
        bounds: (lowest, highest) value of x, or None.
        eot: Number of draws of a random network in each step; see `APGD`.
        target_order: "logits" tries the most likely wrong class first,
            "distance" the one of the nearest boundary; see
            `tfsam.attacks.targeting`.
        random_start: Whether to start at a random point, or at x; see `APGD`.
        early_stop: Whether to stop at the first misclassified point; see
            `APGD`.

    Returns:
        The attack.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> apgd_t(epsilon=8 / 255).targets
        9
    """
    return APGD(
        epsilon,
        norm,
        steps,
        "dlr",
        targets,
        restarts,
        bounds=bounds,
        eot=eot,
        target_order=target_order,
        random_start=random_start,
        early_stop=early_stop,
    )


def _without_stops(logits_fn: LogitsFn) -> LogitsFn:
    """Returns the same function, as a surrogate: no search on it stops early.

    Args:
        logits_fn: Function from pixels to logits.
    """
    known = isinstance(logits_fn, (Logits, Untraced))
    other: Any = copy.copy(logits_fn) if known else Logits(logits_fn)
    other.surrogate = True
    return other
