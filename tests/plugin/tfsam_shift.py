"""Somebody else's parts: nothing of tfsam in them but the contracts."""

import keras
import tensorflow as tf


class Shift:
    """Makes an image darker or brighter, whichever has the higher loss."""

    in_graph = True

    def __init__(self, epsilon, norm="linf", bounds=(0.0, 1.0)):
        self.epsilon = epsilon
        self.norm = norm
        self.bounds = bounds

    def __call__(self, logits_fn, x, y, seed):
        labels = tf.argmax(y, axis=-1) if len(y.shape) == 2 else y
        pixels = tf.cast(tf.size(x[0]), x.dtype)
        length = 1.0 if self.norm == "linf" else tf.sqrt(pixels)
        darker, brighter = (
            self._clip(x + sign * self.epsilon / length) for sign in (-1, 1)
        )
        better = self._loss(logits_fn, brighter, labels) > self._loss(
            logits_fn, darker, labels
        )
        better = tf.reshape(better, [-1] + [1] * (len(x.shape) - 1))
        return tf.where(better, brighter, darker)

    def _clip(self, x):
        return x if self.bounds is None else tf.clip_by_value(x, *self.bounds)

    def _loss(self, logits_fn, x, labels):
        return tf.nn.sparse_softmax_cross_entropy_with_logits(
            labels, logits_fn(x)
        )


@keras.saving.register_keras_serializable(package="tfsam_shift")
class Coin:
    """Moves all weights by rho, up or down as a coin falls."""

    init = due = select = combine = None

    def __init__(self, rho=0.05):
        self.rho = rho

    def perturb(self, weights, gradients, state, step):
        up = tf.random.stateless_uniform([], step.seed) < 0.5
        offset = tf.where(up, self.rho, -self.rho)
        return [w + tf.cast(offset, w.dtype) for w in weights], state

    def get_config(self):
        return {"rho": self.rho}

    @classmethod
    def from_config(cls, config):
        return cls(**config)
