"""Convolutions whose weight gradient is unsafe in oneDNN, on CPUs.

oneDNN 3.7.3, in TensorFlow 2.21, computes the kernel's gradient of a strided
1x1 convolution from a copy of the pixels that the strides select. The copy has
room for the channels that there are, but the threads compute their places in it
by multiples of 16 channels. With fewer channels, on a processor with AVX-512,
they write past the copy's memory whenever several threads share an image. This
happens in every batch that does not divide among the threads: a single image,
or an odd number of images on two threads. The process may crash much later.
"""

import os
import warnings

import keras
import tensorflow as tf

from tfsam.support.rescaling import flattened

# The most channels with which `unsafe_gradients` finds a layer: the second last
# axis of its kernel. A depthwise convolution of a single channel is an ordinary
# convolution.
_UNSAFE_CHANNELS = {
    keras.layers.Conv2D: 15,
    keras.layers.Conv2DTranspose: 15,
    keras.layers.DepthwiseConv2D: 1,
    keras.layers.SeparableConv2D: 1,
}


def unsafe_gradients(network: keras.Model) -> list[str]:
    """Returns the names of layers whose weight gradient is unsafe on CPUs.

    Convolutions that a custom layer computes in its `call` are not found.

    Args:
        network: The network.

    Example:
        >>> layer = keras.layers.Conv2D(8, 1, strides=2, name="shortcut")
        >>> network = keras.Sequential([keras.Input((8, 8, 3)), layer])
        >>> unsafe_gradients(network)
        ['shortcut']
    """
    return [layer.name for layer in flattened(network) if _is_unsafe(layer)]


def _is_unsafe(layer: keras.Layer) -> bool:
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


def _uses_onednn() -> bool:
    """Returns whether oneDNN may compute this process's convolutions."""
    gpus = tf.config.list_logical_devices("GPU")
    return not gpus and os.environ.get("TF_ENABLE_ONEDNN_OPTS") != "0"


def warn_of_unsafe_gradients(network: keras.Model) -> None:
    """Warns of the layers that `unsafe_gradients` finds, if oneDNN is used.

    Args:
        network: The network.
    """
    names = unsafe_gradients(network)
    if names and _uses_onednn():
        warnings.warn(
            "Training may write past its memory on CPUs with AVX-512: the "
            f"layers {', '.join(names)} are 1x1 convolutions with strides and "
            "fewer than 16 channels, and oneDNN computes the gradient of such "
            "kernels incorrectly for batches that do not divide among its "
            "threads. Select the pixels with AveragePooling2D(1, strides) "
            "before a convolution without strides, or set "
            "TF_ENABLE_ONEDNN_OPTS=0 before TensorFlow is imported.",
            stacklevel=3,
        )


def copies_of_one(network: keras.Model) -> int:
    """Returns how often to repeat an example so that its gradient is safe.

    Args:
        network: The network.

    Returns:
        1, or the number of oneDNN's threads if `unsafe_gradients` finds a
        layer: a batch of this size divides among the threads.
    """
    if not unsafe_gradients(network) or not _uses_onednn():
        return 1
    threads = tf.config.threading.get_intra_op_parallelism_threads()
    if not threads and hasattr(os, "sched_getaffinity"):
        threads = len(os.sched_getaffinity(0))
    return threads or os.cpu_count() or 1
