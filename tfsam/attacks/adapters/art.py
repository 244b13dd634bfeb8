"""Adapter for evasion attacks of the Adversarial Robustness Toolbox (ART).

    attack = ART(8 / 255, attack="SquareAttack", max_iter=1000)

Written for ART 1.20.1, which is imported when an attack is made.
"""

import inspect
from typing import Any

import keras
import tensorflow as tf

from tfsam import geometry
from tfsam.attacks.adapters.outside import Adapter
from tfsam.attacks.adapters.outside import check_options
from tfsam.attacks.adapters.outside import class_named
from tfsam.attacks.base import Bounds
from tfsam.attacks.logits import LogitsFn

# Arguments that the adapter sets, and that are not options.
_DECIDED = {"eps", "norm", "targeted"}
# Norms of attacks, which ART does not declare. An attack that is not listed
# works in both norms.
_NORM = {
    "l0": ("CarliniL0Method", "PixelAttack", "SaliencyMapMethod"),
    "l1": ("ElasticNet",),
    "l2": (
        "BoundaryAttack",
        "CarliniL2Method",
        "DeepFool",
        "NewtonFool",
        "SignOPTAttack",
        "VirtualAdversarialMethod",
        "ZooAttack",
    ),
    "linf": ("BasicIterativeMethod", "CarliniLInfMethod", "ThresholdAttack"),
}
# DeepFool's overshoot, from its paper. With ART's default, 1e-6, it ends on the
# decision boundary, where rounding decides. As the argument is named epsilon,
# like the budget, users cannot set it.
_OVERSHOOT = {"DeepFool": {"epsilon": 0.02}}


@keras.saving.register_keras_serializable("tfsam", "ART")
class ART(Adapter):
    """An untargeted evasion attack of ART.

    If the attack takes them, the adapter sets `eps`, `norm`, `targeted=False`,
    `verbose=False`, `batch_size`, to the whole batch, and `eps_step`. ART's
    default for the latter is 0.1 regardless of eps; the adapter uses the step
    size of `tfsam.PGD`, eps/4 (l-inf) or eps/8 (l2), and for attacks with
    "Auto" in their names that of APGD, 2 eps. Options override the last three.

    An attack without `eps` searches for the smallest perturbation, regardless
    of epsilon. Perturbations outside the ball are projected onto it, and are
    then seldom adversarial. Attacks that need probabilities, such as SimBA,
    reject a model that returns logits.

    ART draws from global random number generators for a whole batch. They are
    seeded from `seed`: the same batch gives the same result, but another batch
    size may give other points and other verdicts.

    Args:
        epsilon: Largest perturbation, in the units of x, >= 0.
        norm: "linf" or "l2".
        attack: Name of a class in `art.attacks.evasion`.
        bounds: (lowest, highest) value of x.
        **options: Keyword arguments of that class.

    Raises:
        ImportError: If ART is not installed.
        ValueError: If there is no such attack, it is for another norm, or an
            option is unknown.

    Example:
        >>> attack = ART(8 / 255, attack="SquareAttack")  # doctest: +SKIP
        >>> x_adv = attack(logits_fn, x, y, seed=0)  # doctest: +SKIP
    """

    library = "adversarial-robustness-toolbox"
    requires = ("art.attacks.evasion", "art")

    def __init__(
        self,
        epsilon: float,
        norm: str = "linf",
        attack: str = "ProjectedGradientDescent",
        bounds: Bounds = (0.0, 1.0),
        **options: Any,
    ) -> None:
        super().__init__(epsilon, norm, attack, bounds, options)
        known = _parameters(self._class())
        check_options(attack, options, known - _DECIDED)
        if "eps" not in known:
            # Minimum-norm attacks are weak within a given epsilon.
            self.follows_gradient = False
        for own, names in _NORM.items():
            if attack in names and norm != own:
                raise ValueError(
                    f"ART's {attack} is an attack in {own}. "
                    f"Received: attack={attack}, norm={norm}"
                )

    def find(self, logits_fn: LogitsFn, x: tf.Tensor, labels: tf.Tensor) -> Any:
        """Runs ART's attack."""
        from art.estimators.classification import TensorFlowV2Classifier

        classes = logits_fn(x[:1]).shape[-1]
        classifier = TensorFlowV2Classifier(
            model=lambda x, training=False: logits_fn(x),
            nb_classes=classes,
            input_shape=tuple(x.shape[1:]),
            # A mean would divide gradients by the batch size.
            loss_object=keras.losses.CategoricalCrossentropy(
                from_logits=True, reduction="sum"
            ),
            clip_values=self.bounds,
        )
        cls = self._class()
        known = _parameters(cls)
        defaults = {k: v for k, v in self._defaults(x).items() if k in known}
        attack = cls(classifier, **defaults | self.options)
        one_hot = tf.one_hot(labels, classes)
        return attack.generate(x=x.numpy(), y=one_hot.numpy())

    def _class(self) -> Any:
        """Returns ART's class."""
        return class_named(self.attack, _classes())

    def _defaults(self, x: tf.Tensor) -> dict[str, Any]:
        """Returns the arguments to set, if the attack has them."""
        halves_its_steps = "Auto" in self.attack
        step = geometry.default_step(self.epsilon, self.norm)
        return {
            "eps": self.epsilon,
            "eps_step": 2 * self.epsilon if halves_its_steps else step,
            "norm": geometry.FACTS[self.norm].order,
            "targeted": False,
            "batch_size": len(x),
            "verbose": False,
        } | _OVERSHOOT.get(self.attack, {})


def _classes() -> dict[str, Any]:
    """Imports ART and returns its evasion attacks by name."""
    try:
        import art.attacks.evasion as evasion
    except ImportError as error:
        raise ImportError(
            f'This attack needs ART: pip install "tfsam[art]" ({error})'
        ) from error
    return {
        name: member
        for name, member in vars(evasion).items()
        # Attacks for PyTorch take no TensorFlow classifier, and importing
        # PyTorch after TensorFlow can crash the process.
        if inspect.isclass(member) and "PyTorch" not in name
    }


def _parameters(cls: Any) -> set[str]:
    """Returns the names of the constructor's arguments, but the classifier."""
    return set(list(inspect.signature(cls).parameters)[1:])
