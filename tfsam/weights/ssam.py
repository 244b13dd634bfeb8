"""Sparse SAM: SAM on the coordinates of a mask that is renewed now and then."""

import math

import keras
import numpy as np
import tensorflow as tf

from tfsam.geometry import TINY
from tfsam.geometry import global_norm
from tfsam.support.validators import check_choice
from tfsam.support.validators import check_count
from tfsam.support.validators import check_number
from tfsam.weights.base import WeightPerturbation
from tfsam.weights.base import along

MASKS = ("fisher", "dynamic")


@keras.saving.register_keras_serializable(package="tfsam")
class SSAM(WeightPerturbation):
    """Sparse SAM (Mi et al., 2022, algorithms 1 to 3).

    w + rho * m * g / (||g||_2 + 1e-12): the norm is that of the whole gradient,
    the mask m has n - ceil(sparsity * n) ones among all n weights. A new mask
    is due every `refresh_every` training steps.

    - "fisher" (SSAM-F) keeps the coordinates of the largest empirical Fisher
      information, from `samples` examples at least: the sum over examples of
      their squared gradients of the cross-entropy, in inference mode, so the
      network must return logits of classes. They are those of the batches
      from that step on. Until the first mask is made it is all ones.
    - "dynamic" (SSAM-D) starts at random; of the live coordinates it drops
      those of the smallest |g|, a part that falls by a cosine from
      `drop_fraction` to 0, and lets as many dead ones grow, drawn at random.

    The mask saves no time: the perturbation stays dense.

    Args:
        rho: radius, >= 0.
        sparsity: part of the weights that stays, in [0, 1]; 0 is SAM.
        mask: "fisher" or "dynamic".
        refresh_every: training steps, >= 1. The default is the authors' five
            epochs, of CIFAR at batch size 128.
        samples: examples of the Fisher information, >= 1.
        drop_fraction: part of the live coordinates that is exchanged at first,
            in [0, 1].
        total_steps: training steps at which nothing is exchanged any more;
            None is never.

    Raises:
        ValueError: if an argument is out of its range.
    """

    def __init__(
        self,
        rho=0.05,
        *,
        sparsity=0.2,
        mask="fisher",
        refresh_every=1955,
        samples=1024,
        drop_fraction=0.5,
        total_steps=None,
    ):
        self.rho = check_number("rho", rho)
        self.sparsity = check_number("sparsity", sparsity, 0, 1)
        self.mask = check_choice("mask", mask, MASKS)
        self.refresh_every = check_count("refresh_every", refresh_every, 1)
        self.samples = check_count("samples", samples, 1)
        self.drop_fraction = check_number("drop_fraction", drop_fraction, 0, 1)
        if total_steps is not None:
            total_steps = check_count("total_steps", total_steps, 1)
        self.total_steps = total_steps

    @property
    def needs_classes(self):
        """Whether it takes class labels: for the Fisher information."""
        return self.mask == "fisher"

    def init(self, weights, seed):
        """The mask, and what the next one is made of."""
        count = sum(w.shape.num_elements() for w in weights)
        zeros = np.zeros(count, "float32")
        if self.mask == "fisher":
            # How many examples are in the sum; -1 while none is wanted.
            return [np.ones(count, "float32"), zeros, np.float32(-1)]
        mask = zeros.copy()
        mask[: self._live(count)] = 1
        return [np.random.default_rng(seed).permutation(mask), zeros]

    def perturb(self, weights, gradients, state, step):
        """Returns the weights, those of the mask moved, and the state."""
        renew = self._fisher if self.mask == "fisher" else self._dynamic
        state = renew(gradients, state, step)
        masked = [
            g * tf.cast(m, g.dtype)
            for g, m in zip(gradients, _split(state[0], gradients), strict=True)
        ]
        scale = self.rho / (global_norm(gradients) + TINY)
        return along(weights, masked, scale), state

    def _fisher(self, gradients, state, step):
        """A full sum becomes the mask; a sum that is not full grows."""
        mask, fisher, count = state
        full = count >= self.samples
        mask = tf.cond(
            full,
            lambda: largest(fisher, self._live(fisher.shape[0])),
            lambda: mask,
        )
        count = tf.where(full, -1.0, count)
        # A sum that is not full when the next is due goes on, or it never is.
        begins = (step.count % self.refresh_every == 0) & (count < 0)
        count = tf.where(begins, 0.0, count)
        fisher = tf.where(begins, 0.0, fisher)

        def grown():
            squares, examples = step.squared_gradients()
            return (
                fisher + _flat(squares),
                count + tf.cast(examples, tf.float32),
            )

        fisher, count = tf.cond(count >= 0, grown, lambda: (fisher, count))
        return [mask, fisher, count]

    def _dynamic(self, gradients, state, step):
        """The |g| of a refreshing step makes the mask of the next one.

        In between it is state, and so the mean over replicas, which then make
        the same mask.
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

    def _exchanged(self, mask, scores, step):
        live = self._live(mask.shape[0])
        dead = mask.shape[0] - live
        part = tf.constant(self.drop_fraction)
        if self.total_steps is not None:
            # Of the step that was due, the one before.
            done = tf.cast(step.count - 1, tf.float32) / self.total_steps
            part *= (1 + tf.cos(math.pi * tf.minimum(done, 1.0))) / 2
        exchanged = tf.cast(tf.round(part * live), tf.int32)
        exchanged = tf.minimum(exchanged, dead)
        # What may not be chosen comes after all that may.
        kept = largest(tf.where(mask > 0, scores, -1.0), live - exchanged)
        drawn = tf.random.stateless_uniform(
            tf.shape(mask), step.seed, alg="philox"
        )
        grown = largest(tf.where(mask > 0, -1.0, drawn), exchanged)
        return kept + grown

    def _live(self, count):
        # Rounded first: 0.1 * 30 is more than 3 in floating point.
        return count - math.ceil(round(self.sparsity * count, 6))


def largest(scores, count):
    """Ones where the largest scores stand, exactly `count`; of ties the first.

    Args:
        scores: float tensor (n,).
        count: how many, an int or a scalar tensor.

    Returns:
        A float32 tensor (n,).
    """
    order = tf.argsort(scores, direction="DESCENDING", stable=True)
    ranks = tf.math.invert_permutation(order)
    return tf.cast(ranks < count, tf.float32)


def _flat(tensors):
    return tf.concat(
        [tf.reshape(tf.cast(t, tf.float32), [-1]) for t in tensors], 0
    )


def _split(flat, like):
    sizes = [t.shape.num_elements() for t in like]
    return [
        tf.reshape(part, t.shape)
        for part, t in zip(tf.split(flat, sizes), like, strict=True)
    ]
