"""Any evasion attack of the Adversarial Robustness Toolbox (1.20.1), by name.

    attack = ART(8 / 255, attack="SquareAttack", max_iter=1000)

ART is imported when an attack is made, not before.
"""

import inspect

import keras
import numpy as np
import tensorflow as tf

from tfsam.attacks.adapters.outside import Adapter
from tfsam.attacks.adapters.outside import check_options
from tfsam.attacks.adapters.outside import class_named

# What the adapter decides: no options of the user's.
_DECIDED = {"eps", "norm", "targeted"}
# ART does not say them. Attacks that take a norm, and others, take both.
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
# DeepFool's paper's. ART's 1e-6 ends on the boundary, where float32 decides;
# and it has the name of the budget, so that nobody else can set it.
_OVERSHOOT = {"DeepFool": {"epsilon": 0.02}}


@keras.saving.register_keras_serializable("tfsam", "ART")
class ART(Adapter):
    """An evasion attack of ART on a classifier, away from the true label.

    Where the attack takes them, it gets `eps`, `norm`, `targeted=False`,
    `verbose=False`, the whole batch as its `batch_size` and, as `eps_step`,
    not ART's 0.1 whatever eps but that of `tfsam.PGD`, eps/4 (l-inf) or eps/8
    (l2), or 2 eps, APGD's, for those named Auto. Options override the last
    three.

    An attack that takes no `eps` looks for the smallest perturbation, whatever
    epsilon: what it finds outside the ball is projected onto it, and has most
    often lost its effect. Attacks that need
    probabilities, such as SimBA, refuse a model of logits.

    ART draws from global generators for a whole batch. They are seeded from
    `seed`: the same batch gives the same points, another batch size others, and
    so may verdicts differ.

    Args:
        epsilon: the largest perturbation, in the units of x, >= 0.
        norm: "linf" or "l2".
        attack: name of a class in `art.attacks.evasion`.
        bounds: (lowest, highest) value of x.
        **options: keyword arguments of that class.

    Raises:
        ImportError: if ART is not installed.
        ValueError: if there is no such attack, it is for another norm, or an
            option is unknown.
    """

    library = "adversarial-robustness-toolbox"
    requires = ("art.attacks.evasion", "art")

    def __init__(
        self,
        epsilon,
        norm="linf",
        attack="ProjectedGradientDescent",
        bounds=(0.0, 1.0),
        **options,
    ):
        super().__init__(epsilon, norm, attack, bounds, options)
        known = _parameters(self._class())
        check_options(attack, options, known - _DECIDED)
        if "eps" not in known:
            self.follows_gradient = False  # It is weak within a given epsilon.
        for own, names in _NORM.items():
            if attack in names and norm != own:
                raise ValueError(
                    f"ART's {attack} is an attack in {own}. "
                    f"Received: attack={attack}, norm={norm}"
                )

    def find(self, logits_fn, x, labels):
        """Returns ART's points."""
        from art.estimators.classification import TensorFlowV2Classifier

        classes = logits_fn(x[:1]).shape[-1]
        classifier = TensorFlowV2Classifier(
            model=lambda x, training=False: logits_fn(x),
            nb_classes=classes,
            input_shape=tuple(x.shape[1:]),
            # A mean would divide the gradients by the batch size.
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

    def _class(self):
        return class_named(self.attack, _classes())

    def _defaults(self, x):
        halves_its_steps = "Auto" in self.attack
        steps = 0.5 if halves_its_steps else 4 if self.norm == "linf" else 8
        return {
            "eps": self.epsilon,
            "eps_step": self.epsilon / steps,
            "norm": np.inf if self.norm == "linf" else 2,
            "targeted": False,
            "batch_size": len(x),
            "verbose": False,
        } | _OVERSHOOT.get(self.attack, {})


def _classes():
    try:
        import art.attacks.evasion as evasion
    except ImportError as error:
        raise ImportError(
            f'This attack needs ART: pip install "tfsam[art]" ({error})'
        ) from error
    return {
        name: member
        for name, member in vars(evasion).items()
        # Those for PyTorch take no classifier of TensorFlow, and to import
        # PyTorch beside TensorFlow can end the process.
        if inspect.isclass(member) and "PyTorch" not in name
    }


def _parameters(cls):
    # The first is the classifier.
    return set(list(inspect.signature(cls).parameters)[1:])
