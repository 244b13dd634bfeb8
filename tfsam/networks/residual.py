"""Residual networks built from stock Keras layers.

The architectures follow He et al., 2016, "Identity mappings in deep
residual networks", as in the paper's code: no biases in convolutions, padding
of one pixel on each side (Keras's "same" pads only one side at stride 2),
BatchNorm with momentum 0.9 and epsilon 1e-5, and kernels uniform in
+-1/sqrt(fan_in).
"""

from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import keras
from keras import layers

from tfsam.networks.pixel_statistics import Statistics
from tfsam.networks.pixel_statistics import normalized
from tfsam.support.validators import check_choice

_LAYOUT = "channels_last"


class _Style(NamedTuple):
    """The layers between two convolutions.

    Attributes:
        activation: Name of a Keras activation.
        normalization: "batch" for BatchNorm, or "none", which gives the
            convolutions biases instead.
    """

    activation: str
    normalization: str


def preact_resnet18(
    num_classes: int = 10,
    *,
    width: int = 64,
    input_shape: tuple[int, int, int] = (32, 32, 3),
    statistics: Statistics | None = None,
    activation: str = "relu",
    normalization: str = "batch",
) -> keras.Model:
    """Builds a PreActResNet-18, with 64-128-256-512 channels in four stages.

    It has 11,172,170 trainable weights for 10 classes and 11,218,340 for 100.

    Args:
        num_classes: Number of logits.
        width: Number of channels of the first stage.
        input_shape: (height, width, channels).
        statistics: (means, standard deviations) of the channels, or "none" to
            leave the pixels as they are. None means the statistics of CIFAR-100
            for 100 classes and of CIFAR-10 otherwise, and (0.5, 0.25) for
            images that are not RGB.
        activation: Name of a Keras activation, such as "silu".
        normalization: "batch" for BatchNorm, or "none", which gives the
            convolutions biases instead.

    Returns:
        A functional `keras.Model` from pixels in [0, 1], a float tensor
        (batch, height, width, channels), to logits (batch, num_classes).

    Raises:
        ValueError: If Keras has no such activation, or an argument is another
            word.

    Example:
        >>> preact_resnet18(num_classes=100, width=8).output_shape
        (None, 100)
    """
    return _preact_resnet(
        "preact_resnet18",
        num_classes,
        stem=width,
        stages=[(width, 2), (2 * width, 2), (4 * width, 2), (8 * width, 2)],
        input_shape=input_shape,
        statistics=statistics,
        style=_checked_style(activation, normalization),
    )


def preact_resnet8(
    num_classes: int = 10,
    *,
    width: int = 16,
    input_shape: tuple[int, int, int] = (32, 32, 3),
    statistics: Statistics | None = None,
    activation: str = "relu",
    normalization: str = "batch",
) -> keras.Model:
    """Builds a small network of three stages with a single block each.

    It trains in minutes on a CPU. It has 77,850 trainable weights for 10
    classes of RGB images.

    Args:
        num_classes: Number of logits.
        width: Number of channels of the first stage.
        input_shape: (height, width, channels).
        statistics: See `preact_resnet18`.
        activation: See `preact_resnet18`.
        normalization: See `preact_resnet18`.

    Returns:
        A functional `keras.Model`; see `preact_resnet18`.

    Example:
        >>> preact_resnet8().count_params()
        78330
    """
    return _preact_resnet(
        "preact_resnet8",
        num_classes,
        stem=width,
        stages=[(width, 1), (2 * width, 1), (4 * width, 1)],
        input_shape=input_shape,
        statistics=statistics,
        style=_checked_style(activation, normalization),
    )


def wide_resnet(
    num_classes: int = 10,
    *,
    depth: int = 28,
    widen_factor: int = 10,
    input_shape: tuple[int, int, int] = (32, 32, 3),
    statistics: Statistics | None = None,
    activation: str = "relu",
    normalization: str = "batch",
) -> keras.Model:
    """Builds a WRN-depth-widen_factor (Zagoruyko and Komodakis, 2016).

    Args:
        num_classes: Number of logits.
        depth: Number of layers, 6 * n + 4 for n >= 1 blocks in each stage.
        widen_factor: The stages have 16, 32 and 64 times this number of
            channels.
        input_shape: (height, width, channels).
        statistics: See `preact_resnet18`.
        activation: See `preact_resnet18`.
        normalization: See `preact_resnet18`.

    Returns:
        A functional `keras.Model`; see `preact_resnet18`.

    Raises:
        ValueError: If depth is not 6 * n + 4; see `preact_resnet18`.

    Example:
        >>> wide_resnet(depth=10, widen_factor=1).name
        'wide_resnet10_1'
    """
    blocks, rest = divmod(depth - 4, 6)
    if rest or blocks < 1:
        raise ValueError(
            f"depth must be 6 * n + 4 with n >= 1. Received: depth={depth}"
        )
    return _preact_resnet(
        f"wide_resnet{depth}_{widen_factor}",
        num_classes,
        stem=16,
        stages=[(c * widen_factor, blocks) for c in (16, 32, 64)],
        input_shape=input_shape,
        statistics=statistics,
        style=_checked_style(activation, normalization),
    )


def _checked_style(activation: str, normalization: str) -> _Style:
    """Returns the layers between convolutions; rejects unknown ones."""
    try:
        keras.activations.get(activation)
    except ValueError as error:
        raise ValueError(
            "activation must be the name of a Keras activation, such as relu, "
            f"silu or gelu. Received: activation={activation}"
        ) from error
    check_choice("normalization", normalization, ("batch", "none"))
    return _Style(activation, normalization)


def _preact_resnet(
    name: str,
    num_classes: int,
    stem: int,
    stages: Sequence[tuple[int, int]],
    input_shape: tuple[int, int, int],
    statistics: Statistics | None,
    style: _Style,
) -> keras.Model:
    """Builds a network; `stages` holds (channels, blocks) for each stage."""
    inputs = keras.Input(input_shape, name="pixels")
    x = normalized(inputs, statistics, num_classes)
    x = _convolution(x, stem, 3, 1, style, "stem")
    for index, (channels, blocks) in enumerate(stages):
        for block in range(blocks):
            stride = 2 if index > 0 and block == 0 else 1
            name_of_block = f"stage{index + 1}_{block + 1}"
            x = _block(x, channels, stride, style, name_of_block)
    x = _activation(x, style, "final")
    x = layers.GlobalAveragePooling2D(data_format=_LAYOUT, name="pool")(x)
    fan_in = x.shape[-1]
    logits = layers.Dense(
        num_classes,
        kernel_initializer=_uniform_initializer(),
        bias_initializer=keras.initializers.RandomUniform(
            -(fan_in**-0.5), fan_in**-0.5
        ),
        # Under mixed precision, keeps the logits and the loss in float32.
        dtype="float32",
        name="logits",
    )(x)
    return keras.Model(inputs, logits, name=name)


def _block(x: Any, channels: int, stride: int, style: _Style, name: str) -> Any:
    """Adds two 3x3 convolutions and a shortcut.

    The identity shortcut starts before the first activation, a shortcut with a
    convolution after it.
    """
    activated = _activation(x, style, f"{name}_a")
    shortcut = x
    if stride != 1 or x.shape[-1] != channels:
        pixels = _every(stride, activated, f"{name}_shortcut_pixels")
        shortcut = _convolution(
            pixels, channels, 1, 1, style, f"{name}_shortcut"
        )
    y = _convolution(activated, channels, 3, stride, style, f"{name}_conv_a")
    y = _activation(y, style, f"{name}_b")
    y = _convolution(y, channels, 3, 1, style, f"{name}_conv_b")
    return layers.Add(name=f"{name}_add")([y, shortcut])


def _activation(x: Any, style: _Style, name: str) -> Any:
    """Adds the normalisation and the activation."""
    if style.normalization == "batch":
        x = layers.BatchNormalization(
            momentum=0.9, epsilon=1e-5, name=f"{name}_norm"
        )(x)
    if style.activation == "relu":
        return layers.ReLU(name=f"{name}_relu")(x)
    return layers.Activation(
        style.activation, name=f"{name}_{style.activation}"
    )(x)


def _every(stride: int, x: Any, name: str) -> Any:
    """Takes every `stride`-th pixel, as the mean over windows of one pixel.

    A 1x1 convolution with this stride is the same function, but its gradient is
    unsafe on CPUs; see `onednn.warn_of_unsafe_gradients`.
    """
    if stride == 1:
        return x
    return layers.AveragePooling2D(
        1, strides=stride, data_format=_LAYOUT, name=name
    )(x)


def _convolution(
    x: Any, channels: int, size: int, stride: int, style: _Style, name: str
) -> Any:
    """Adds a convolution, padded by size // 2 on each side.

    It has a bias only if no normalisation follows, which would remove it.
    """
    padding = "same"
    if stride > 1:
        x = layers.ZeroPadding2D(
            size // 2, data_format=_LAYOUT, name=f"{name}_padding"
        )(x)
        padding = "valid"
    return layers.Conv2D(
        channels,
        size,
        strides=stride,
        padding=padding,
        data_format=_LAYOUT,
        use_bias=style.normalization == "none",
        kernel_initializer=_uniform_initializer(),
        name=name,
    )(x)


def _uniform_initializer() -> keras.initializers.Initializer:
    """Returns PyTorch's default, uniform in +-1/sqrt(fan_in).

    Its variance is 1/(3 fan_in).
    """
    return keras.initializers.VarianceScaling(
        scale=1 / 3, mode="fan_in", distribution="uniform"
    )
