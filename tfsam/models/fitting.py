"""Fitting of images to the input of a model, inside the model.

Images are (height, width, channels) with pixels in [0, 1]. A model may want
another size, gray in place of RGB or the reverse, no channel axis, flat
vectors, channels first, or another range of pixels. Steps in front of the model
change the images, so that an attack works on the images themselves.
"""

import math
from collections.abc import Callable
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import keras
import tensorflow as tf

from tfsam.models import pixel_ranges
from tfsam.models.pixel_ranges import PixelRange
from tfsam.support import files

# Without the batch; in a model's input, None is any size.
Shape = tuple[Any, ...]
Step = Callable[[Any], Any]

_CHANNELS = (1, 3)


class Layout(NamedTuple):
    """How a model's input holds an image.

    Attributes:
        kind: "last" or "first", the place of the channel axis; "none" without
            one; "rows" of pixels with their channels side by side; "flat"; or
            "more", with more axes of size 1.
        height: the height of the image, None for any.
        width: its width, None for any.
        channels: 1 or 3.
    """

    kind: str
    height: int | None
    width: int | None
    channels: int


class Fit(NamedTuple):
    """What is done to images in front of a model.

    Attributes:
        steps: functions of images, of which the first comes first.
        notes: sentences about them, for the user.
    """

    steps: tuple[Step, ...]
    notes: tuple[str, ...] = ()


def image_shape(wanted: Shape) -> Shape | None:
    """Returns the (height, width, channels) of the images that a model takes.

    Args:
        wanted: The shape of its input, without the batch.

    Returns:
        The shape, with None for any size; None if the input is no image.

    Example:
        >>> image_shape((3, 32, 48)), image_shape((784,))
        ((32, 48, 3), (28, 28, 1))
    """
    try:
        found = layout(wanted)
    except ValueError:
        return None
    return found.height, found.width, found.channels


def layout(wanted: Shape, image: Shape = ()) -> Layout:
    """Finds how an input of a shape holds an image.

    Args:
        wanted: The shape of a model's input, without the batch.
        image: The (height, width, channels) of the images at hand, which
            decides where several layouts are possible. Empty if unknown.

    Raises:
        ValueError: If the input holds no image, or several layouts are
            possible.
    """
    if len(wanted) == 1 or (len(wanted) == 2 and wanted[1] == 1):
        return _flat(wanted, image)
    if len(wanted) == 2:
        if image and wanted == (image[0], image[1] * image[2]):
            return Layout("rows", *image)
        return Layout("none", *wanted, 1)
    if len(wanted) == 3:
        return _with_channels(wanted, image)
    if image and _without_ones(wanted) == _without_ones(image):
        return Layout("more", *image)
    raise _refused(wanted, "which is neither gray nor RGB")


def _with_channels(wanted: Shape, image: Shape) -> Layout:
    """Returns the layout of an input with an axis of channels."""
    height, width, channels = wanted
    first, last = height in _CHANNELS, channels in _CHANNELS
    if first and last and image != wanted:
        raise _refused(
            wanted, "whose channels may be the first axis or the last"
        )
    if last:
        return Layout("last", height, width, channels)
    if first:
        return Layout("first", width, channels, height)
    if channels is None:
        return Layout("last", height, width, image[2] if image else 3)
    raise _refused(wanted, "which is neither gray nor RGB")


def _flat(wanted: Shape, image: Shape) -> Layout:
    """Returns the layout of a vector: the images at hand, or a square."""
    size = wanted[0]
    if image and size in (None, math.prod(image)):
        return Layout("flat", *image)
    sides = [image[:2]] if image else []
    if size is not None:
        sides += [(math.isqrt(size // c),) * 2 for c in _CHANNELS]
    for height, width in sides:
        for channels in _CHANNELS:
            if height * width * channels == size:
                return Layout("flat", height, width, channels)
    raise _refused(wanted, "which is no square image, gray or RGB")


def fit(shape: Shape, wanted: Shape, pixels: PixelRange) -> Fit:
    """Finds the steps from images to a model's input.

    Args:
        shape: The shape of an image: (height, width, channels), (height,
            width), or the model's own.
        wanted: The shape of the model's input, without the batch.
        pixels: The range of pixels that the model takes.

    Raises:
        ValueError: If images of that shape do not fit.
    """
    shape = tuple(shape)
    image = (*shape, 1) if len(shape) == 2 else shape
    if pixels.function is not None:
        return _behind_function(shape, image, wanted, pixels)
    if _matches(shape, wanted):
        channels = shape[2] if len(shape) == 3 else 1
        return Fit(tuple(_ranged(pixels, channels)))
    if len(shape) == 1:
        image = _square(shape, wanted)
    if len(image) != 3 or image[2] not in _CHANNELS:
        raise _refused(wanted, "and images of another shape", shape)
    first = () if shape == image else (_reshape(image),)
    rest = _of_image(image, wanted, pixels)
    return Fit((*first, *rest.steps), rest.notes)


def _of_image(image: Shape, wanted: Shape, pixels: PixelRange) -> Fit:
    """Fits images (height, width, channels)."""
    found = layout(wanted, image)
    size = (found.height or image[0], found.width or image[1])
    resized, notes = _resized(image[:2], size)
    recoloured, more = _recoloured(image[2], found.channels)
    steps = [*resized, *recoloured, *_ranged(pixels, found.channels)]
    notes += more
    if found.kind == "first":
        steps.append(keras.layers.Permute((3, 1, 2), dtype="float32"))
        notes.append("the model takes channels first")
    elif found.kind == "flat":
        total = math.prod((*size, found.channels))
        steps.append(_reshape((total, *wanted[1:])))
    elif found.kind != "last":
        full = wanted if found.kind == "more" else (*size, found.channels)
        pairs = zip(wanted, full, strict=False)
        steps.append(_reshape(tuple(w or f for w, f in pairs)))
    return Fit(tuple(steps), tuple(notes))


def _resized(given: Shape, size: Shape) -> tuple[list[Step], list[str]]:
    """Returns the steps from one (height, width) to another, and notes."""
    if given == size:
        return [], []
    before, after = (f"{height}x{width}" for height, width in (given, size))
    layer = keras.layers.Resizing(*size, antialias=True, dtype="float32")
    return [layer], [
        f"images of {before} are resized to {after} inside the model, so that "
        f"epsilon refers to {before}"
    ]


def _recoloured(given: int, wanted: int) -> tuple[list[Step], list[str]]:
    """Returns the steps from one number of channels to another, and notes."""
    if (given, wanted) == (1, 3):
        return [_repeat], ["gray images are repeated as red, green and blue"]
    if (given, wanted) == (3, 1):
        gray = keras.ops.image.rgb_to_grayscale
        return [gray], ["RGB images become gray, by their luma"]
    return [], []


def _square(shape: Shape, wanted: Shape) -> Shape:
    """Returns the image that a vector holds, for a model of such images."""
    image = image_shape(wanted) or (None,)
    if None in image or math.prod(image) != shape[0]:
        raise _refused(wanted, "and images of another shape", shape)
    return image


def _behind_function(
    shape: Shape, image: Shape, wanted: Shape, pixels: PixelRange
) -> Fit:
    """Fits what a user's function makes of images."""
    made = _made(pixels, image)
    rest = fit(made, wanted, pixel_ranges.parse(pixel_ranges.PLAIN))
    first = () if shape == image else (_reshape(image),)
    return Fit((*first, *pixels.steps(), *rest.steps), rest.notes)


def _made(pixels: PixelRange, image: Shape) -> Shape:
    """Returns the shape of what a user's function makes of an image.

    Raises:
        ValueError: If it fails, or no gradient flows through it.
    """
    (function,) = pixels.steps()
    x = tf.fill([1, *image], 0.5)
    try:
        with tf.GradientTape() as tape:
            tape.watch(x)
            made = tf.convert_to_tensor(function(x))
        slope = tape.gradient(made, x)
    except Exception as error:  # It is the user's code.
        raise ValueError(
            "the function of pixels must take images (batch, height, width, "
            f"channels) ({files.reason(error)}). Received: "
            f"pixels={pixels.name}"
        ) from error
    if slope is None:
        raise ValueError(
            "the function of pixels must be differentiable, of operations of "
            "TensorFlow or Keras alone, or attacks have no gradient. Received: "
            f"pixels={pixels.name}"
        )
    return tuple(made.shape[1:])


def _ranged(pixels: PixelRange, channels: int) -> list[Step]:
    """Returns the steps of a range, which must be one of such images."""
    if not pixels.fits(channels):
        raise ValueError(
            f"pixels must be a range of images of {channels} channels, which "
            f"the model takes. Received: pixels={pixels.name}"
        )
    return pixels.steps()


def _matches(shape: Shape, wanted: Shape) -> bool:
    """Returns whether a shape is the wanted one, where None is any size."""
    return len(shape) == len(wanted) and all(
        w in (None, s) for s, w in zip(shape, wanted, strict=True)
    )


def _without_ones(shape: Shape) -> Shape:
    return tuple(size for size in shape if size != 1)


def _reshape(shape: Shape) -> Step:
    return keras.layers.Reshape(shape, dtype="float32")


def _repeat(images: Any) -> Any:
    return keras.layers.Concatenate(dtype="float32")([images] * 3)


def _refused(wanted: Shape, what: str, shape: Shape = ()) -> ValueError:
    received = f"images of shape {shape}" if shape else f"shape {wanted}"
    return ValueError(
        f"the model takes inputs of shape {wanted}, {what}; expected images "
        f"(height, width, channels), gray or RGB. Received: {received}"
    )


def in_front(function: Any, steps: Sequence[Step], shape: Shape) -> Any:
    """Puts steps in front of a model.

    Args:
        function: A `keras.Model`, or a callable.
        steps: Functions of images.
        shape: The shape of an image.

    Returns:
        A functional `keras.Model`, which can be saved, if the function is a
        model and all takes symbolic inputs; else a callable.
    """
    if not steps:
        return function
    applied = _in_turn([*steps, function])
    if not isinstance(function, keras.Model):
        return applied
    inputs = getattr(function, "inputs", None) or [None]
    size = None if inputs[0] is None else inputs[0].shape[0]
    pixels = keras.Input(batch_shape=(size, *shape), name="pixels")
    try:
        outputs = applied(pixels)
    except Exception:  # A user's function may take tensors only.
        return applied
    return keras.Model(pixels, outputs, name=function.name)


def _in_turn(steps: Sequence[Step]) -> Step:
    def applied(images: Any) -> Any:
        for step in steps:
            images = step(images)
        return images

    return applied
