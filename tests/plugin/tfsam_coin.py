"""A weight perturbation of another package, which imports nothing of tfsam."""

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable(package="tfsam_coin")
class Coin:
    """Moves all weights by rho, up or down at random.

    Args:
        rho: how far the weights move.
        heads: the probability of moving up.
    """

    summary = "a step of all weights, up or down as a coin falls"
    source = "a casino, 2026"
    init = due = select = combine = None

    def __init__(self, rho=0.05, heads=0.5):
        self.rho = rho
        self.heads = heads

    def perturb(self, weights, gradients, state, step):
        up = tf.random.stateless_uniform([], step.seed) < self.heads
        offset = tf.where(up, self.rho, -self.rho)
        return [w + tf.cast(offset, w.dtype) for w in weights], state

    def get_config(self):
        return {"rho": self.rho, "heads": self.heads}

    @classmethod
    def from_config(cls, config):
        return cls(**config)
