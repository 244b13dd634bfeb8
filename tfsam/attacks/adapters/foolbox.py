"""Any attack of foolbox (3.3.4), by the name of its class.

    attack = Foolbox(8 / 255, attack="LinfPGD", steps=10)

foolbox is imported when an attack is made, not before.
"""

import inspect

import keras
import numpy as np

from tfsam.attacks.adapters.outside import Adapter
from tfsam.attacks.adapters.outside import check_options
from tfsam.attacks.adapters.outside import class_named

_ORDER = {"linf": np.inf, "l2": 2}


@keras.saving.register_keras_serializable("tfsam", "Foolbox")
class Foolbox(Adapter):
    """An attack of foolbox, away from the true label, at one epsilon.

    An attack of foolbox that looks for the smallest perturbation stops early
    where it can, and what it finds outside the epsilon ball is projected onto
    it. Attacks that leave the distance open measure in `norm`.

    foolbox draws from global generators for a whole batch. They are seeded from
    `seed`: the same batch gives the same points, another batch size others, and
    so may verdicts differ.

    Args:
        epsilon: the largest perturbation, in the units of x, >= 0.
        norm: "linf" or "l2"; the attack's own.
        attack: name of a class in `foolbox.attacks`.
        bounds: (lowest, highest) value of x.
        **options: keyword arguments of that class.

    Raises:
        ImportError: if foolbox is not installed.
        ValueError: if there is no such attack, it is for another norm, or an
            option is unknown.
    """

    library = "foolbox"
    requires = ("foolbox", "foolbox")

    def __init__(
        self,
        epsilon,
        norm="linf",
        attack="LinfPGD",
        bounds=(0.0, 1.0),
        **options,
    ):
        super().__init__(epsilon, norm, attack, bounds, options)
        if isinstance(self._make(), _foolbox().attacks.base.MinimizationAttack):
            self.follows_gradient = False  # It is weak within a given epsilon.

    def find(self, logits_fn, x, labels):
        """Returns foolbox's points, clipped by foolbox."""
        model = _foolbox().TensorFlowModel(
            logits_fn,
            # foolbox asserts that x is inside, and x is rounded to float32.
            bounds=tuple(float(np.float32(bound)) for bound in self.bounds),
            device=x.device,
        )
        _, (found,), _ = self._make()(model, x, labels, epsilons=[self.epsilon])
        return found

    def _make(self):
        foolbox = _foolbox()
        cls = class_named(self.attack, _classes(foolbox))
        known = inspect.signature(cls).parameters
        check_options(self.attack, self.options, known)
        defaults = {}
        if "distance" in known:
            defaults["distance"] = getattr(foolbox.distances, self.norm)
        attack = cls(**defaults | self.options)
        # Attacks like SpatialAttack measure no distance at all.
        order = getattr(getattr(attack, "distance", None), "p", None)
        if order != _ORDER[self.norm]:
            own = "no norm" if order is None else f"l{order:g}"
            raise ValueError(
                f"foolbox's {self.attack} is an attack in {own}. "
                f"Received: attack={self.attack}, norm={self.norm}"
            )
        return attack


def _foolbox():
    try:
        import foolbox
    except ImportError as error:
        raise ImportError(
            f'This attack needs foolbox: pip install "tfsam[foolbox]" ({error})'
        ) from error
    return foolbox


def _classes(foolbox):
    return {
        name: member
        for name, member in vars(foolbox.attacks).items()
        if inspect.isclass(member) and not inspect.isabstract(member)
    }
