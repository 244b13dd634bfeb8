"""Images and loss surfaces as pictures that go into the page."""

import base64
import math
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
import tensorflow as tf
from matplotlib.figure import Figure

from tfsam.reports import plots

# Pixels a side beyond which an image is thinned out, to keep pages small.
_LARGEST = 64


def data_uri(png: bytes) -> str:
    """Encodes a picture as a data URI.

    Args:
        png: its bytes.
    """
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def image(pixels: np.ndarray) -> str:
    """Encodes an image as a data URI.

    Args:
        pixels: float array (height, width, 1 or 3) in [0, 1].
    """
    stride = math.ceil(max(pixels.shape[:2]) / _LARGEST)
    thinned = np.clip(pixels[::stride, ::stride], 0, 1)
    return _encoded(np.round(255 * thinned).astype(np.uint8))


def _encoded(pixels: np.ndarray) -> str:
    return data_uri(tf.io.encode_png(pixels).numpy())


def examples(
    arrays: Mapping[str, Any],
) -> Iterator[tuple[str, str, str, float, str, str]]:
    """Yields the pictures of examples.npz.

    Args:
        arrays: the content of examples.npz.

    Yields:
        (clean, perturbation, adversarial, factor, before, after): data URIs of
        the images, the magnification of the perturbation, and the predictions.
    """
    names = ("clean", "adversarial", "before", "after")
    for clean, adversarial, before, after in zip(
        *(arrays[name] for name in names), strict=True
    ):
        perturbation, factor = plots.magnified(clean, adversarial)
        yield (
            image(clean),
            image(perturbation),
            image(adversarial),
            factor,
            str(before),
            str(after),
        )


class Scale:
    """A logarithmic scale of colours and contours, shared by all surfaces.

    Args:
        surfaces: the `surface` of each flatness.json.
    """

    def __init__(self, surfaces: Sequence[Mapping[str, Any]]) -> None:
        values = np.concatenate([losses(one).ravel() for one in surfaces])
        finite = values[np.isfinite(values)]
        highest = finite.max(initial=1e-4)
        # Smaller losses are as good as zero.
        self.lowest = max(finite.min(initial=highest), highest / 1e4)
        self.highest = max(highest, 1.01 * self.lowest)
        self.levels = np.geomspace(self.lowest, self.highest, 10)[1:-1]

    def heat(self, surface: Mapping[str, Any]) -> str:
        """Encodes a surface of k x k losses as a data URI of k x k pixels."""
        return self._colours(losses(surface)[::-1])

    def bar(self) -> str:
        """Encodes the colours from lowest to highest as a data URI."""
        return self._colours(np.geomspace(self.lowest, self.highest, 256)[None])

    def contours(self, surface: Mapping[str, Any]) -> list[np.ndarray]:
        """Computes lines of equal loss in a square of 100 x 100, y downwards.

        Args:
            surface: the `surface` of a flatness.json.

        Returns:
            A list of arrays (points, 2), in no order.
        """
        heights = np.ma.masked_invalid(losses(surface))
        lowest, highest = heights.min(), heights.max()
        levels = [one for one in self.levels if lowest < one < highest]
        if not levels:
            return []
        centres = (np.arange(len(heights)) + 0.5) * 100 / len(heights)
        axes = Figure().subplots()
        drawn = axes.contour(centres, 100 - centres, heights, levels=levels)
        return [line for lines in drawn.allsegs for line in lines if len(line)]

    def _colours(self, heights: np.ndarray) -> str:
        clipped = np.clip(heights, self.lowest, self.highest)
        part = np.log(clipped / self.lowest) / np.log(
            self.highest / self.lowest
        )
        colours = matplotlib.colormaps["viridis"](part, bytes=True)
        return _encoded(colours)


def losses(surface: Mapping[str, Any]) -> np.ndarray:
    """Returns the losses of a surface as an array.

    Args:
        surface: the `surface` of a flatness.json.
    """
    return np.asarray(surface["loss"], float)
