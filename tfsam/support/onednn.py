"""Convolutions whose weight gradient is unsafe in oneDNN, on CPUs."""

import os
import warnings

import keras
import tensorflow as tf

from tfsam.support.layers import flattened

# The most channels at which `unsafe_gradients` finds a layer: the second last
# axis of its kernel. A depthwise convolution of one channel is a convolution.
_UNSAFE_CHANNELS = {
    keras.layers.Conv2D: 15,
    keras.layers.Conv2DTranspose: 15,
    keras.layers.DepthwiseConv2D: 1,
    keras.layers.SeparableConv2D: 1,
}


def unsafe_gradients(network):
    """Returns the names of layers whose weight gradient is unsafe on CPUs.

    oneDNN 3.7.3, in TensorFlow 2.21, computes the kernel's gradient of a 1x1
    convolution with strides from a copy of the pixels that the strides leave.
    The copy has room for as many channels as there are, but its threads find
    their places in it by multiples of 16 channels. With fewer channels, on a
    processor with AVX-512, they write past the copy's memory as soon as they
    share an image, which they do in every batch that does not divide among
    them: one image, or any odd number of images on two threads. The process may
    die of it much later, and somewhere else.

    Not found are convolutions that a layer's `call` makes by itself.

    Args:
        network: a `keras.Model`.
    """
    return [layer.name for layer in flattened(network) if _is_unsafe(layer)]


def warn_of_unsafe_gradients(network):
    """Warns of layers that `unsafe_gradients` finds, where they are unsafe.

    Args:
        network: a `keras.Model`.
    """
    names = unsafe_gradients(network)
    if names and _uses_onednn():
        warnings.warn(
            "Training may write past its memory on CPUs with AVX-512: the "
            f"layers {', '.join(names)} are 1x1 convolutions with strides, of "
            "fewer than 16 channels, and the gradient of their kernels is "
            "wrong in oneDNN for batches that do not divide among its threads. "
            "Take the pixels by AveragePooling2D(1, strides) before a "
            "convolution without strides, or set TF_ENABLE_ONEDNN_OPTS=0 "
            "before TensorFlow is imported.",
            stacklevel=3,
        )


def copies_of_one(network):
    """Returns how often to repeat an example so that its gradient is safe.

    Args:
        network: a `keras.Model`.

    Returns:
        1, or the number of oneDNN's threads where `unsafe_gradients` finds
        layers: so many examples divide among the threads.
    """
    if not unsafe_gradients(network) or not _uses_onednn():
        return 1
    threads = tf.config.threading.get_intra_op_parallelism_threads()
    if not threads and hasattr(os, "sched_getaffinity"):
        threads = len(os.sched_getaffinity(0))
    return threads or os.cpu_count()


def _is_unsafe(layer):
    for kind, channels in _UNSAFE_CHANNELS.items():
        if isinstance(layer, kind) and layer.built:
            kernel = getattr(layer, "depthwise_kernel", None)
            kernel = layer.kernel if kernel is None else kernel
            return (
                kernel.trainable
                and getattr(layer, "groups", 1) == 1
                and tuple(kernel.shape[:2]) == (1, 1)
                and max(layer.strides) > 1
                and kernel.shape[-2] <= channels
            )
    return False


def _uses_onednn():
    """Whether the convolutions of this process may be oneDNN's."""
    gpus = tf.config.list_logical_devices("GPU")
    return not gpus and os.environ.get("TF_ENABLE_ONEDNN_OPTS") != "0"
