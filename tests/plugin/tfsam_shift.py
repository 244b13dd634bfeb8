"""An attack of another package, which imports nothing of tfsam."""

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable(package="tfsam_shift")
class Shift:
    """Makes an image darker or brighter, whichever has the higher loss.

    Args:
        epsilon: the largest perturbation.
        norm: "linf" or "l2".
        bounds: (lowest, highest) pixel value, or None.
        share: the part of epsilon by which the image is moved, in [0, 1].
    """

    in_graph = True

    def __init__(self, epsilon, norm="linf", bounds=(0.0, 1.0), share=1.0):
        self.epsilon = epsilon
        self.norm = norm
        self.bounds = bounds
        if not 0 <= share <= 1:
            raise ValueError(
                f"share must be in [0, 1]. Received: share={share}"
            )
        self.share = share

    def __call__(self, logits_fn, x, y, seed):
        labels = tf.argmax(y, axis=-1) if len(y.shape) == 2 else y
        pixels = tf.cast(tf.size(x[0]), x.dtype)
        length = 1.0 if self.norm == "linf" else tf.sqrt(pixels)
        size = self.share * self.epsilon / length
        darker, brighter = (self._clip(x + sign * size) for sign in (-1, 1))
        better = self._loss(logits_fn, brighter, labels) > self._loss(
            logits_fn, darker, labels
        )
        better = tf.reshape(better, [-1] + [1] * (len(x.shape) - 1))
        return tf.where(better, brighter, darker)

    def get_config(self):
        return {
            "epsilon": self.epsilon,
            "norm": self.norm,
            "bounds": self.bounds,
            "share": self.share,
        }

    @classmethod
    def from_config(cls, config):
        return cls(**config)

    def _clip(self, x):
        return x if self.bounds is None else tf.clip_by_value(x, *self.bounds)

    def _loss(self, logits_fn, x, labels):
        return tf.nn.sparse_softmax_cross_entropy_with_logits(
            labels, logits_fn(x)
        )
