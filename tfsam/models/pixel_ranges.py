"""Ranges of pixels that models were trained on, as layers in front of them.

Inside tfsam, pixels are floats in [0, 1]. A model that was trained on other
numbers gets a rescaling in front of it.
"""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from tfsam.support import imports
from tfsam.support.rescaling import flattened

# The means of ImageNet in the order BGR, which networks ported from Caffe
# subtract.
_CAFFE = (103.939, 116.779, 123.68)

# The statistics of ImageNet in [0, 1], by which networks ported from PyTorch
# normalize.
IMAGENET = "0.485,0.456,0.406/0.229,0.224,0.225"

# A standard deviation above this is one of pixels in 0..255, and so is a mean
# above 1. No pixels in -1..1 deviate by more than 1.
_LARGEST_DEVIATION = 4.0

PLAIN = "0..1"

_FORMS = "0..1, 0..255, -1..1, caffe, MEAN/STD or MODULE:FUNCTION"

Function = Callable[[Any], Any]


@dataclasses.dataclass(frozen=True)
class PixelRange:
    """Numbers that a model takes for pixels.

    Attributes:
        name: the name by which `parse` finds it.
        scale: the factor of pixels in [0, 1], a number or one for each channel.
        offset: the summand, likewise.
        reversed: whether the channels are in the order BGR.
        function: a function of pixels (batch, height, width, channels) in
            [0, 1], in place of all these; or None.
    """

    name: str
    scale: tuple[float, ...] = (1.0,)
    offset: tuple[float, ...] = (0.0,)
    reversed: bool = False
    function: Function | None = None

    def steps(self) -> list[Function]:
        """Returns functions of images, of which the first comes first.

        They are layers and operations of Keras, for tensors and for symbolic
        inputs, unless the range is a function.
        """
        if self.function is not None:
            return [self.function]
        steps: list[Function] = []
        if self.reversed:
            steps.append(_reverse)
        if self.scale != (1.0,) or self.offset != (0.0,):
            steps.append(
                keras.layers.Rescaling(
                    _plain(self.scale), _plain(self.offset), dtype="float32"
                )
            )
        return steps

    def fits(self, channels: int) -> bool:
        """Returns whether the range is one of images of that many channels."""
        if self.reversed:
            return channels == 3
        return {len(self.scale), len(self.offset)} <= {1, channels}


def _reverse(images: Any) -> Any:
    return keras.ops.flip(images, axis=-1)


def _plain(numbers: tuple[float, ...]) -> Any:
    return numbers[0] if len(numbers) == 1 else list(numbers)


_NAMED = {
    "0..1": PixelRange("0..1"),
    "0..255": PixelRange("0..255", (255.0,)),
    "-1..1": PixelRange("-1..1", (2.0,), (-1.0,)),
    "caffe": PixelRange(
        "caffe", (255.0,), tuple(-mean for mean in _CAFFE), reversed=True
    ),
}


def candidates(channels: int) -> list[str]:
    """Returns the ranges to try on images, the most usual ones first.

    Args:
        channels: Number of channels of the images.

    Example:
        >>> candidates(1)
        ['0..1', '0..255', '-1..1']
    """
    names = [*_NAMED, IMAGENET]
    return [name for name in names if parse(name).fits(channels)]


def parse(text: str) -> PixelRange:
    """Finds a range of pixels by its name.

    Args:
        text: "0..1", "0..255", "-1..1"; "caffe" for 0..255 in the order BGR
            without the means of ImageNet; "MEAN/STD", numbers by channel such
            as "0.49,0.48,0.45/0.2,0.2,0.2", in units of 0..255 if one of them
            is above 1; or "MODULE:FUNCTION", a differentiable function of
            pixels (batch, height, width, channels) in [0, 1].

    Raises:
        ValueError: If the text has another form.

    Example:
        >>> parse("-1..1").scale, parse("127.5/127.5").scale
        ((2.0,), (2.0,))
    """
    text = text.replace(" ", "")
    if text in _NAMED:
        return _NAMED[text]
    if "/" in text:
        return _normalization(text)
    if re.fullmatch(r"[\w.]+:[\w.]+", text):
        return PixelRange(text, function=imports.attribute("pixels", text))
    raise ValueError(f"pixels must be {_FORMS}. Received: pixels={text}")


def _normalization(text: str) -> PixelRange:
    """Parses MEAN/STD."""
    try:
        means, deviations = (
            np.array([float(number) for number in part.split(",")])
            for part in text.split("/")
        )
        sound = {1, len(means), len(deviations)} == {1, len(means)} or (
            len(means) == 1
        )
    except ValueError:
        sound = False
    if not sound or not (
        np.isfinite([*means, *deviations]).all() and (deviations > 0).all()
    ):
        raise ValueError(
            "pixels as MEAN/STD must be numbers by channel with STD above 0, "
            "such as 0.49,0.48,0.45/0.2,0.2,0.2. "
            f"Received: pixels={text}"
        )
    unit = 255.0 if max([*means, *deviations]) > 1 else 1.0
    scale = tuple((unit / deviations).tolist())
    offset = tuple((-means / deviations).tolist())
    return PixelRange(text, scale, offset)


def told(model: Any) -> str | None:
    """Returns the range of pixels that a model's leading layers tell, or None.

    A Rescaling or Normalization in front of all layers with weights, also
    inside nested models, subtracts a mean and divides by a deviation, which
    tell the range of its inputs.

    Args:
        model: A model of Keras or of `tf_keras`; any other object tells
            nothing.

    Example:
        >>> import keras
        >>> rescaling = keras.layers.Rescaling(1 / 255)
        >>> told(keras.Sequential([keras.Input((8, 8, 3)), rescaling]))
        '0..255'
    """
    for layer in flattened(model):
        if getattr(layer, "layers", ()):
            continue  # Its parts follow.
        found = _statistics(layer)
        if found is not None:
            return _range_of(*found)
        if getattr(layer, "weights", ()):
            break
    return None


def _statistics(layer: Any) -> tuple[float, float] | None:
    """Returns the (mean, deviation) that a layer takes away, None for none."""
    kind = type(layer).__name__
    if kind == "Rescaling":
        scale, offset = (
            np.asarray(number, np.float64)
            for number in (layer.scale, layer.offset)
        )
        mean, deviation = -offset / scale, 1 / np.abs(scale)
    elif kind == "Normalization" and getattr(layer, "mean", None) is not None:
        mean = keras.ops.convert_to_numpy(layer.mean)
        deviation = np.sqrt(keras.ops.convert_to_numpy(layer.variance))
    else:
        return None
    found = float(np.mean(mean)), float(np.mean(deviation))
    return None if found == (0.0, 1.0) else found


def _range_of(mean: float, deviation: float) -> str:
    """Returns the range of pixels of a mean and a deviation."""
    if deviation > _LARGEST_DEVIATION or mean > 1:
        return "0..255"
    return "-1..1" if mean < -0.05 else "0..1"
