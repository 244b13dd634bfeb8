"""A small vision transformer, for images of 32 x 32."""

from typing import Any

import keras
from keras import layers

from tfsam.networks.pixel_statistics import Statistics
from tfsam.networks.pixel_statistics import normalized


def vision_transformer(
    num_classes: int = 10,
    *,
    width: int = 128,
    depth: int = 6,
    heads: int = 4,
    patch_size: int = 4,
    input_shape: tuple[int, int, int] = (32, 32, 3),
    statistics: Statistics | None = None,
) -> keras.Model:
    """Builds a vision transformer (Dosovitskiy et al., 2021).

    It is the plain form of Beyer et al., 2022, "Better plain ViT baselines for
    ImageNet-1k": LayerNorm before attention and MLP, the mean over all patches
    in place of a class token, and a linear head. Positions are learned. All
    layers are stock Keras layers, and none has batch statistics. It has
    1,205,514 trainable weights for 10 classes of RGB images.

    Args:
        num_classes: Number of logits.
        width: Size of the embedding of a patch, a multiple of `heads`.
        depth: Number of blocks, >= 1.
        heads: Number of attention heads of a block, >= 1.
        patch_size: Height and width of a patch, which divides those of the
            images.
        input_shape: (height, width, channels).
        statistics: See `tfsam.networks.preact_resnet18`.

    Returns:
        A functional `keras.Model` from pixels in [0, 1], a float tensor
        (batch, height, width, channels), to logits (batch, num_classes).

    Raises:
        ValueError: If the patches do not fit the images, or the heads the
            width.

    Example:
        >>> network = vision_transformer(100, width=16, depth=1, heads=2)
        >>> network.output_shape
        (None, 100)
    """
    _check(width, depth, heads, patch_size, input_shape)
    inputs = keras.Input(input_shape, name="pixels")
    x = normalized(inputs, statistics, num_classes)
    x = _embedded(x, width, patch_size)
    for block in range(depth):
        x = _block(x, heads, f"block{block + 1}")
    x = _norm(x, "final_norm")
    x = layers.GlobalAveragePooling1D(data_format="channels_last", name="pool")(
        x
    )
    # Under mixed precision, keeps the logits and the loss in float32.
    logits = layers.Dense(num_classes, dtype="float32", name="logits")(x)
    return keras.Model(inputs, logits, name="vision_transformer")


def _check(
    width: int,
    depth: int,
    heads: int,
    patch_size: int,
    input_shape: tuple[int, int, int],
) -> None:
    """Rejects sizes that do not fit each other."""
    if depth < 1:
        raise ValueError(f"depth must be >= 1. Received: depth={depth}")
    if heads < 1 or width % heads:
        raise ValueError(
            "width must be a multiple of heads >= 1. "
            f"Received: width={width}, heads={heads}"
        )
    if patch_size < 1 or any(size % patch_size for size in input_shape[:2]):
        raise ValueError(
            "patch_size must divide the height and the width of the images. "
            f"Received: patch_size={patch_size}, images of "
            f"{input_shape[0]}x{input_shape[1]}"
        )


def _embedded(x: Any, width: int, size: int) -> Any:
    """Embeds each patch linearly, and adds a learned vector of its position."""
    rows, columns = x.shape[1] // size, x.shape[2] // size
    channels = x.shape[3]
    grid = (rows, size, columns, size, channels)
    x = layers.Reshape(grid, name="grid")(x)
    x = layers.Permute((1, 3, 2, 4, 5), name="patches")(x)
    flat = (rows * columns, size * size * channels)
    x = layers.Reshape(flat, name="flat_patches")(x)
    # The bias of each patch is its position.
    return layers.EinsumDense(
        "btp,pd->btd",
        output_shape=(rows * columns, width),
        bias_axes="td",
        bias_initializer=keras.initializers.RandomNormal(stddev=0.02),
        name="embedding",
    )(x)


def _block(x: Any, heads: int, name: str) -> Any:
    """Adds self-attention and an MLP, each with a shortcut."""
    width = x.shape[-1]
    y = _norm(x, f"{name}_norm_a")
    y = layers.MultiHeadAttention(
        heads, key_dim=width // heads, name=f"{name}_attention"
    )(y, y)
    x = layers.Add(name=f"{name}_add_a")([x, y])
    y = _norm(x, f"{name}_norm_b")
    y = layers.Dense(4 * width, activation="gelu", name=f"{name}_hidden")(y)
    y = layers.Dense(width, name=f"{name}_output")(y)
    return layers.Add(name=f"{name}_add_b")([x, y])


def _norm(x: Any, name: str) -> Any:
    return layers.LayerNormalization(epsilon=1e-6, name=name)(x)
