"""Perturb the weights: the sharpness-aware family.

Every method is a frozen object whose verbs are pure functions of lists of
tensors. `perturb` is the only one that each method must have; the other four
are None where a method does not need them, and the train step in `model.py`
then leaves them out:

    init(weights)                                  -> state
    due(state)                                     -> is a second pass due?
    perturb(weights, gradients, state, step)       -> weights, state
    select(losses, perturbed_losses, state, step)  -> positions in the batch
    combine(gradients, perturbed_gradients, state, step) -> gradients, state

- `weights`, `gradients`: lists of tensors, one an entry of `step.kinds`, in the
  order of the model's perturbed trainable variables. Gradients carry no loss
  scale and no 1/replicas. A weight that the loss does not depend on has zeros.
- `state`: a list of tensors, () where there is none. The model keeps it in
  Keras variables, so it is saved, restored and replicated.
- `due` gives a Python bool or a scalar boolean tensor; where it is False,
  `combine` gets None for the perturbed gradients (LookSAM's cheap steps).
- `select` chooses the examples of the second pass (ESAM) by their
  cross-entropy before and after; the number of positions must be static.

To add one, subclass `WeightPerturbation` in a file of your own and register it
with `keras.saving.register_keras_serializable`.
"""

from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import keras
import tensorflow as tf

from tfsam.geometry import TINY
from tfsam.geometry import check_radius
from tfsam.geometry import global_norm


class Step(NamedTuple):
    """What a weight perturbation may know of the training step.

    Attributes:
        kinds: for each weight its `kind`.
        seed: int32 tensor (2,), new at each step.
        learning_rate: the optimizer's learning rate, a scalar tensor.
    """

    kinds: Sequence[str]
    seed: tf.Tensor
    learning_rate: tf.Tensor


def kind(variable):
    """The role of a Keras variable: "kernel", "bias", "scale" or "offset".

    Args:
        variable: a `keras.Variable`. Normalisation layers call their scale
            gamma and their offset beta; of all others, those of two or more
            dimensions are kernels (embeddings included).
    """
    known = {
        "gamma": "scale",
        "scale": "scale",
        "beta": "offset",
        "bias": "bias",
    }
    return known.get(
        variable.name, "kernel" if len(variable.shape) > 1 else "bias"
    )


class WeightPerturbation:
    """Base of the family: see the module's docstring for the verbs."""

    init: Any = None
    due: Any = None
    select: Any = None
    combine: Any = None

    def perturb(self, weights, gradients, state, step):
        """Returns the perturbed weights and the new state."""
        raise TypeError(f"{type(self).__name__} has no perturb().")

    def get_config(self):
        """The constructor's arguments, so that a saved model can be loaded."""
        return dict(self.__dict__)

    @classmethod
    def from_config(cls, config):
        """Builds the object that `get_config` described."""
        return cls(**config)

    def __repr__(self):
        arguments = ", ".join(f"{k}={v!r}" for k, v in self.__dict__.items())
        return f"{type(self).__name__}({arguments})"


@keras.saving.register_keras_serializable(package="tfsam")
class SAM(WeightPerturbation):
    """Sharpness-aware minimization (Foret et al., 2021, eq. 2).

    w + rho * g / (||g||_2 + 1e-12), with one norm over all the weights that are
    perturbed. No second-order term is kept.

    Args:
        rho: radius of the ball of weights, >= 0; 0 is standard training.

    Raises:
        ValueError: if rho is negative or no finite number.
    """

    def __init__(self, rho=0.05):
        self.rho = check_radius("rho", rho)

    def perturb(self, weights, gradients, state, step):
        """Returns the weights at the ball's steepest point, and the state."""
        scale = self.rho / (global_norm(gradients) + TINY)
        return _move(weights, gradients, scale), state


@keras.saving.register_keras_serializable(package="tfsam")
class ASAM(WeightPerturbation):
    """Adaptive SAM (Kwon et al., 2021, eq. 7).

    w + rho * T^2 g / (||T g||_2 + 1e-12), T the size of each weight, so that
    the ball does not change when layers are rescaled. `rho` is about ten times
    SAM's.

    Args:
        rho: radius, in units of T, >= 0.
        eta: added to |w|, so that weights near zero move too, >= 0.
        adaptive: "kernels", the authors' code: T = |w| + eta on kernels and
            normalisation scales, 1 elsewhere; or "all": T = |w| + eta on every
            weight.

    Raises:
        ValueError: if a number is negative or not finite, or `adaptive` is
            another string.
    """

    def __init__(self, rho=0.5, *, eta=0.01, adaptive="kernels"):
        self.rho = check_radius("rho", rho)
        self.eta = check_radius("eta", eta)
        if adaptive not in ("kernels", "all"):
            raise ValueError(
                "adaptive must be 'kernels' or 'all'. "
                f"Received: adaptive={adaptive}"
            )
        self.adaptive = adaptive

    def perturb(self, weights, gradients, state, step):
        """Returns the weights at the ellipsoid's steepest point, and state."""
        sizes = [
            tf.abs(w) + self.eta
            if self.adaptive == "all" or k in ("kernel", "scale")
            else tf.ones_like(w)
            for w, k in zip(weights, step.kinds, strict=True)
        ]
        scaled = [
            t * tf.cast(g, t.dtype)
            for t, g in zip(sizes, gradients, strict=True)
        ]
        scale = self.rho / (global_norm(scaled) + TINY)
        directions = [t * s for t, s in zip(sizes, scaled, strict=True)]
        return _move(weights, directions, scale), state


def _move(weights, directions, scale):
    return [
        # In the precision of the scale: rho / 1e-12 overflows in float16.
        w + tf.cast(scale * tf.cast(d, scale.dtype), w.dtype)
        for w, d in zip(weights, directions, strict=True)
    ]
