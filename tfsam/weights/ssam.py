"""Sparse SAM: SAM on the weights selected by a mask, renewed periodically."""

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfsam.geometry import TINY
from tfsam.geometry import global_norm
from tfsam.support.validators import check_choice
from tfsam.support.validators import check_count
from tfsam.support.validators import check_number
from tfsam.weights.base import Step
from tfsam.weights.base import Tensors
from tfsam.weights.base import WeightPerturbation
from tfsam.weights.base import along
from tfsam.weights.base import check_layers

MASKS = ("fisher", "dynamic")


@keras.saving.register_keras_serializable(package="tfsam")
class SSAM(WeightPerturbation):
    """Sparse SAM (Mi et al., 2022, algorithms 1 to 3).

    The perturbed weights are w + rho * m * g / (||g||_2 + 1e-12). The norm is
    that of the whole gradient; the mask m has n - ceil(sparsity * n) ones, for
    n weights in total. A new mask is made every `refresh_every` training steps.

    - "fisher" (SSAM-F) selects the weights of the largest empirical Fisher
      information: the squared gradients of the cross-entropy of single
      examples, in inference mode, summed over at least `samples` examples of
      the batches that follow the refresh. The network must return class
      logits. Until the first mask is ready, all weights are perturbed.
    - "dynamic" (SSAM-D) starts from a random mask. Each refresh drops the
      selected weights with the smallest |g| and adds as many unselected ones at
      random. The part that is exchanged decreases by a cosine from
      `drop_fraction` to 0.

    The mask saves no time: the perturbation is computed densely.

    Args:
        rho: Radius, >= 0.
        sparsity: Part of the weights that are not perturbed, in [0, 1]; with 0
            it equals SAM.
        mask: "fisher" or "dynamic".
        refresh_every: Number of training steps between masks, >= 1. The default
            is the authors' five epochs, for CIFAR with batches of 128.
        samples: Number of examples for the Fisher information, >= 1.
        drop_fraction: Part of the selected weights that the first refresh
            exchanges, in [0, 1].
        total_steps: Number of training steps after which nothing is exchanged,
            >= 1. None keeps exchanging `drop_fraction`.
        layers: "all", or "normalization" to perturb the weights of
            normalization layers alone.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> import tensorflow as tf
        >>> ssam = SSAM(rho=0.1, sparsity=0.75, mask="dynamic")
        >>> mask, _ = ssam.init([tf.zeros([4, 2])], seed=[0, 1])
        >>> float(mask.sum())
        2.0
    """

    def __init__(
        self,
        rho: float = 0.05,
        *,
        sparsity: float = 0.2,
        mask: str = "fisher",
        refresh_every: int = 1955,
        samples: int = 1024,
        drop_fraction: float = 0.5,
        total_steps: int | None = None,
        layers: str = "all",
    ) -> None:
        self.rho = check_number("rho", rho)
        self.sparsity = check_number("sparsity", sparsity, 0, 1)
        self.mask = check_choice("mask", mask, MASKS)
        self.refresh_every = check_count("refresh_every", refresh_every, 1)
        self.samples = check_count("samples", samples, 1)
        self.drop_fraction = check_number("drop_fraction", drop_fraction, 0, 1)
        if total_steps is not None:
            total_steps = check_count("total_steps", total_steps, 1)
        self.total_steps = total_steps
        self.layers = check_layers(layers)

    @property
    def needs_classes(self) -> bool:
        """Whether class labels are required: for the Fisher information."""
        return self.mask == "fisher"

    def init(self, weights: Tensors, seed: Any) -> list[Any]:
        """Returns the first mask, and the data of the next one."""
        count = sum(w.shape.num_elements() for w in weights)
        zeros = np.zeros(count, "float32")
        if self.mask == "fisher":
            # The number of examples in the sum; -1 while none is collected.
            return [np.ones(count, "float32"), zeros, np.float32(-1)]
        mask = zeros.copy()
        mask[: self._live(count)] = 1
        return [np.random.default_rng(seed).permutation(mask), zeros]

    def perturb(
        self, weights: Tensors, gradients: Tensors, state: Tensors, step: Step
    ) -> tuple[list[tf.Tensor], Tensors]:
        """Moves the selected weights along the gradient."""
        renew = self._fisher if self.mask == "fisher" else self._dynamic
        state = renew(gradients, state, step)
        masked = [
            g * tf.cast(m, g.dtype)
            for g, m in zip(gradients, _split(state[0], gradients), strict=True)
        ]
        scale = self.rho / (global_norm(gradients) + TINY)
        return along(weights, masked, scale), state

    def _fisher(
        self, gradients: Tensors, state: Tensors, step: Step
    ) -> list[tf.Tensor]:
        """Collects the Fisher information, or makes a mask once complete."""
        mask, fisher, count = state
        full = count >= self.samples
        mask = tf.cond(
            full,
            lambda: largest(fisher, self._live(fisher.shape[0])),
            lambda: mask,
        )
        count = tf.where(full, -1.0, count)
        # A sum that is incomplete at the next refresh is continued; restarted,
        # it might never be completed.
        begins = (step.count % self.refresh_every == 0) & (count < 0)
        count = tf.where(begins, 0.0, count)
        fisher = tf.where(begins, 0.0, fisher)

        def grown() -> tuple[tf.Tensor, tf.Tensor]:
            squares, examples = step.squared_gradients()
            return (
                fisher + _flat(squares),
                count + tf.cast(examples, tf.float32),
            )

        fisher, count = tf.cond(count >= 0, grown, lambda: (fisher, count))
        return [mask, fisher, count]

    def _dynamic(
        self, gradients: Tensors, state: Tensors, step: Step
    ) -> list[tf.Tensor]:
        """Stores |g| on a refresh step; makes the mask from it one step later.

        In between, |g| is state, so it is averaged over the replicas, which
        then make the same mask.
        """
        mask, scores = state
        since = step.count % self.refresh_every
        refreshes = (step.count > 0) & (
            (since == 1) | (self.refresh_every == 1)
        )
        mask = tf.cond(
            refreshes,
            lambda: self._exchanged(mask, scores, step),
            lambda: mask,
        )
        scores = tf.cond(
            since == 0, lambda: tf.abs(_flat(gradients)), lambda: scores
        )
        return [mask, scores]

    def _exchanged(
        self, mask: tf.Tensor, scores: tf.Tensor, step: Step
    ) -> tf.Tensor:
        """Returns the mask with a part of its ones exchanged."""
        live = self._live(mask.shape[0])
        dead = mask.shape[0] - live
        part = tf.constant(self.drop_fraction)
        if self.total_steps is not None:
            # Counts up to the refresh step, which is the previous step.
            done = tf.cast(step.count - 1, tf.float32) / self.total_steps
            part *= (1 + tf.cos(math.pi * tf.minimum(done, 1.0))) / 2
        exchanged = tf.cast(tf.round(part * live), tf.int32)
        exchanged = tf.minimum(exchanged, dead)
        # The score -1 ranks entries that must not be chosen last.
        kept = largest(tf.where(mask > 0, scores, -1.0), live - exchanged)
        drawn = tf.random.stateless_uniform(
            tf.shape(mask), step.seed, alg="philox"
        )
        grown = largest(tf.where(mask > 0, -1.0, drawn), exchanged)
        return kept + grown

    def _live(self, count: int) -> int:
        """Returns the number of ones in a mask of `count` entries."""
        # Rounds first: 0.1 * 30 is more than 3 in floating point.
        return count - math.ceil(round(self.sparsity * count, 6))


def largest(scores: tf.Tensor, count: Any) -> tf.Tensor:
    """Marks the largest scores with ones; of equal scores, the first.

    Args:
        scores: Float tensor (n,).
        count: Number of ones, an int or a scalar tensor.

    Returns:
        float32 tensor (n,) of zeros and exactly `count` ones.

    Example:
        >>> import tensorflow as tf
        >>> largest(tf.constant([0.1, 0.3, 0.3, 0.2]), 2).numpy().tolist()
        [0.0, 1.0, 1.0, 0.0]
    """
    order = tf.argsort(scores, direction="DESCENDING", stable=True)
    ranks = tf.math.invert_permutation(order)
    return tf.cast(ranks < count, tf.float32)


def _flat(tensors: Tensors) -> tf.Tensor:
    """Concatenates tensors into a float32 vector."""
    return tf.concat(
        [tf.reshape(tf.cast(t, tf.float32), [-1]) for t in tensors], 0
    )


def _split(flat: tf.Tensor, like: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """Splits a vector into tensors of the shapes of `like`."""
    sizes = [t.shape.num_elements() for t in like]
    return [
        tf.reshape(part, t.shape)
        for part, t in zip(tf.split(flat, sizes), like, strict=True)
    ]
