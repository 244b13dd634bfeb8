"""Networks of stock Keras layers: pixels in [0, 1] in, logits out.

The normalisation by channel is the first layer inside, so that an attack's
epsilon is in the units of the pixels, and `.keras` files and SavedModels of
these networks load without tfsam.

The residual networks follow He et al. 2016, "Identity mappings in deep residual
networks", in the form of the paper's code: no biases in convolutions, padding
of one pixel on each side (Keras's "same" pads one side only at stride 2),
BatchNorm with momentum 0.9 and epsilon 1e-5, kernels uniform in
+-1/sqrt(fan_in).

The layout is (batch, height, width, channels), whatever the global
`keras.config.image_data_format()` is: tfsam's data has this layout, and so has
every image that an evaluation gives to a network.
"""

import keras
from keras import layers

_LAYOUT = "channels_last"

CIFAR10_STATISTICS = (
    (0.4914, 0.4822, 0.4465),
    (0.2471, 0.2435, 0.2616),
)
CIFAR100_STATISTICS = (
    (0.5071, 0.4865, 0.4409),
    (0.2673, 0.2564, 0.2762),
)


def preact_resnet18(
    num_classes=10,
    *,
    width=64,
    input_shape=(32, 32, 3),
    statistics=None,
):
    """PreActResNet-18: stages of two blocks, 64-128-256-512 channels wide.

    11,172,170 trainable weights for 10 classes, 11,218,340 for 100.

    Args:
        num_classes: number of logits.
        width: channels of the first stage.
        input_shape: (height, width, channels).
        statistics: (mean, standard deviation) of each channel; None takes
            those of CIFAR-100 for 100 classes, else of CIFAR-10, and of gray
            images 0.5 and 0.25.

    Returns:
        A functional `keras.Model`, float (batch, height, width, channels) in
        [0, 1] to logits (batch, num_classes).
    """
    return _preact_resnet(
        "preact_resnet18",
        num_classes,
        stem=width,
        stages=[(width, 2), (2 * width, 2), (4 * width, 2), (8 * width, 2)],
        input_shape=input_shape,
        statistics=statistics,
    )


def preact_resnet8(
    num_classes=10,
    *,
    width=16,
    input_shape=(32, 32, 3),
    statistics=None,
):
    """The small one: three stages of one block, trains on a CPU in minutes.

    77,850 trainable weights for 10 classes of RGB images. Arguments and result
    as of `preact_resnet18`.
    """
    return _preact_resnet(
        "preact_resnet8",
        num_classes,
        stem=width,
        stages=[(width, 1), (2 * width, 1), (4 * width, 1)],
        input_shape=input_shape,
        statistics=statistics,
    )


def wide_resnet(
    num_classes=10,
    *,
    depth=28,
    widen_factor=10,
    input_shape=(32, 32, 3),
    statistics=None,
):
    """WRN-depth-widen_factor (Zagoruyko and Komodakis, 2016).

    Args:
        num_classes: number of logits.
        depth: 6 n + 4 for n blocks a stage.
        widen_factor: the stages have 16, 32 and 64 times as many channels.
        input_shape: as of `preact_resnet18`.
        statistics: as of `preact_resnet18`.

    Returns:
        As of `preact_resnet18`.

    Raises:
        ValueError: if depth is not 6 n + 4.
    """
    blocks, rest = divmod(depth - 4, 6)
    if rest or blocks < 1:
        raise ValueError(
            "depth must be 6 * n + 4 with n >= 1. Received: depth=" + str(depth)
        )
    return _preact_resnet(
        f"wide_resnet{depth}_{widen_factor}",
        num_classes,
        stem=16,
        stages=[(c * widen_factor, blocks) for c in (16, 32, 64)],
        input_shape=input_shape,
        statistics=statistics,
    )


def _preact_resnet(name, num_classes, stem, stages, input_shape, statistics):
    mean, deviation = statistics or _default_statistics(
        num_classes, input_shape[-1]
    )
    inputs = keras.Input(input_shape, name="pixels")
    x = layers.Normalization(
        mean=list(mean),
        variance=[float(s) ** 2 for s in deviation],
        name="normalization",
    )(inputs)
    x = _convolution(x, stem, 3, 1, "stem")
    for index, (channels, blocks) in enumerate(stages):
        for block in range(blocks):
            stride = 2 if index > 0 and block == 0 else 1
            x = _block(x, channels, stride, f"stage{index + 1}_{block + 1}")
    x = _activation(x, "final")
    x = layers.GlobalAveragePooling2D(data_format=_LAYOUT, name="pool")(x)
    fan_in = x.shape[-1]
    logits = layers.Dense(
        num_classes,
        kernel_initializer=_uniform_initializer(),
        bias_initializer=keras.initializers.RandomUniform(
            -(fan_in**-0.5), fan_in**-0.5
        ),
        # Under mixed precision the logits and the loss stay in float32.
        dtype="float32",
        name="logits",
    )(x)
    return keras.Model(inputs, logits, name=name)


def _block(x, channels, stride, name):
    """Two 3x3 convolutions; the shortcut starts at the pre-activated tensor."""
    activated = _activation(x, f"{name}_a")
    shortcut = x
    if stride != 1 or x.shape[-1] != channels:
        pixels = _every(stride, activated, f"{name}_shortcut_pixels")
        shortcut = _convolution(pixels, channels, 1, 1, f"{name}_shortcut")
    y = _convolution(activated, channels, 3, stride, f"{name}_conv_a")
    y = _activation(y, f"{name}_b")
    y = _convolution(y, channels, 3, 1, f"{name}_conv_b")
    return layers.Add(name=f"{name}_add")([y, shortcut])


def _activation(x, name):
    x = layers.BatchNormalization(
        momentum=0.9, epsilon=1e-5, name=f"{name}_norm"
    )(x)
    return layers.ReLU(name=f"{name}_relu")(x)


def _every(stride, x, name):
    """Takes every `stride`-th pixel: a mean over windows of one pixel.

    A 1x1 convolution with this stride is the same function, but its gradient is
    unsafe on CPUs; see `onednn.warn_of_unsafe_gradients`.
    """
    if stride == 1:
        return x
    return layers.AveragePooling2D(
        1, strides=stride, data_format=_LAYOUT, name=name
    )(x)


def _convolution(x, channels, size, stride, name):
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
        use_bias=False,
        kernel_initializer=_uniform_initializer(),
        name=name,
    )(x)


def _uniform_initializer():
    """PyTorch's default: uniform in +-1/sqrt(fan_in), variance 1/(3 fan_in)."""
    return keras.initializers.VarianceScaling(
        scale=1 / 3, mode="fan_in", distribution="uniform"
    )


def _default_statistics(num_classes, channels):
    if channels == 3:
        return CIFAR100_STATISTICS if num_classes == 100 else CIFAR10_STATISTICS
    return (0.5,) * channels, (0.25,) * channels
