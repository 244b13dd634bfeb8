"""Adapter for attacks of foolbox.

    attack = Foolbox(8 / 255, attack="LinfPGD", steps=10)

Written for foolbox 3.3.4, which is imported when an attack is made.
"""

import inspect
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfsam import geometry
from tfsam.attacks.adapters.outside import Adapter
from tfsam.attacks.adapters.outside import check_options
from tfsam.attacks.adapters.outside import class_named
from tfsam.attacks.base import Bounds
from tfsam.attacks.logits import LogitsFn


@keras.saving.register_keras_serializable("tfsam", "Foolbox")
class Foolbox(Adapter):
    """An untargeted attack of foolbox at a single epsilon.

    Attacks of foolbox that search for the smallest perturbation stop early
    where they can; perturbations outside the epsilon ball are projected onto
    it. Attacks that take a distance as an argument use `norm`.

    foolbox draws from global random number generators for a whole batch. They
    are seeded from `seed`: the same batch gives the same result, but another
    batch size may give other points and other verdicts.

    Args:
        epsilon: Largest perturbation, in the units of x, >= 0.
        norm: "linf", "l2" or "l1", the norm of the attack.
        attack: Name of a class in `foolbox.attacks`.
        bounds: (lowest, highest) value of x.
        **options: Keyword arguments of that class.

    Raises:
        ImportError: If foolbox is not installed.
        ValueError: If there is no such attack, it is for another norm, or an
            option is unknown.

    Example:
        >>> attack = Foolbox(8 / 255, attack="LinfPGD")  # doctest: +SKIP
        >>> x_adv = attack(logits_fn, x, y, seed=0)  # doctest: +SKIP
    """

    library = "foolbox"
    norms = geometry.NORMS
    requires = ("foolbox", "foolbox")

    def __init__(
        self,
        epsilon: float,
        norm: str = "linf",
        attack: str = "LinfPGD",
        bounds: Bounds = (0.0, 1.0),
        **options: Any,
    ) -> None:
        super().__init__(epsilon, norm, attack, bounds, options)
        if isinstance(self._make(), _foolbox().attacks.base.MinimizationAttack):
            # Minimum-norm attacks are weak within a given epsilon.
            self.follows_gradient = False

    def find(self, logits_fn: LogitsFn, x: tf.Tensor, labels: tf.Tensor) -> Any:
        """Runs foolbox's attack; foolbox clips the result."""
        model = _foolbox().TensorFlowModel(
            logits_fn,
            # Rounded to float32, as x is: foolbox asserts that x is inside.
            bounds=tuple(float(np.float32(bound)) for bound in self.bounds),
            device=x.device,
        )
        _, (found,), _ = self._make()(model, x, labels, epsilons=[self.epsilon])
        return found

    def _make(self) -> Any:
        """Makes the attack of foolbox."""
        foolbox = _foolbox()
        cls = class_named(self.attack, _classes(foolbox))
        known = inspect.signature(cls).parameters
        check_options(self.attack, self.options, known)
        defaults = {}
        if "distance" in known:
            defaults["distance"] = getattr(foolbox.distances, self.norm)
        attack = cls(**defaults | self.options)
        # Attacks such as SpatialAttack have no distance.
        order = getattr(getattr(attack, "distance", None), "p", None)
        if order != geometry.FACTS[self.norm].order:
            own = "no norm" if order is None else f"l{order:g}"
            raise ValueError(
                f"foolbox's {self.attack} is an attack in {own}. "
                f"Received: attack={self.attack}, norm={self.norm}"
            )
        return attack


def _foolbox() -> Any:
    """Imports foolbox."""
    try:
        import foolbox
    except ImportError as error:
        raise ImportError(
            f'This attack needs foolbox: pip install "tfsam[foolbox]" ({error})'
        ) from error
    return foolbox


def _classes(foolbox: Any) -> dict[str, Any]:
    """Returns foolbox's attacks by name."""
    return {
        name: member
        for name, member in vars(foolbox.attacks).items()
        if inspect.isclass(member) and not inspect.isabstract(member)
    }
