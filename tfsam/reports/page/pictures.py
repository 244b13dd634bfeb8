"""Images and loss surfaces as pictures that go into the page."""

import base64
import math

import matplotlib
import numpy as np
import tensorflow as tf
from matplotlib.figure import Figure

from tfsam.reports import plots

# Pixels on a side, from which an image is thinned out: pages stay small.
_LARGEST = 64


def data_uri(png):
    """A picture as an address that holds it.

    Args:
        png: its bytes.
    """
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def image(pixels):
    """An image as an address that holds it.

    Args:
        pixels: float array (height, width, 1 or 3) in [0, 1].
    """
    stride = math.ceil(max(pixels.shape[:2]) / _LARGEST)
    thinned = np.clip(pixels[::stride, ::stride], 0, 1)
    return _encoded(np.round(255 * thinned).astype(np.uint8))


def _encoded(bytes_):
    return data_uri(tf.io.encode_png(bytes_).numpy())


def examples(arrays):
    """Yields the pictures of examples.npz.

    Args:
        arrays: what it holds.

    Yields:
        (clean, perturbation, adversarial, factor, before, after): addresses of
        the images, how many times the perturbation was magnified, predictions.
    """
    names = ("clean", "adversarial", "before", "after")
    for clean, adversarial, before, after in zip(
        *(arrays[name] for name in names), strict=True
    ):
        perturbation, factor = plots.magnified(clean, adversarial)
        pictures = map(image, (clean, perturbation, adversarial))
        yield (*pictures, factor, str(before), str(after))


class Scale:
    """Colours and contours for losses: logarithmic, one for all surfaces.

    Args:
        surfaces: the `surface` of each flatness.json.
    """

    def __init__(self, surfaces):
        values = np.concatenate([losses(one).ravel() for one in surfaces])
        finite = values[np.isfinite(values)]
        highest = finite.max(initial=1e-4)
        # Four decades are enough: below, a loss is as good as none.
        self.lowest = max(finite.min(initial=highest), highest / 1e4)
        self.highest = max(highest, 1.01 * self.lowest)
        self.levels = np.geomspace(self.lowest, self.highest, 10)[1:-1]

    def heat(self, surface):
        """A surface as an address of a picture of k x k pixels."""
        return self._colours(losses(surface)[::-1])

    def bar(self):
        """The colours from lowest to highest, as an address of a picture."""
        return self._colours(np.geomspace(self.lowest, self.highest, 256)[None])

    def contours(self, surface):
        """Lines of equal loss in a square of 100 x 100, y downwards.

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

    def _colours(self, heights):
        clipped = np.clip(heights, self.lowest, self.highest)
        part = np.log(clipped / self.lowest) / np.log(
            self.highest / self.lowest
        )
        colours = matplotlib.colormaps["viridis"](part, bytes=True)
        return _encoded(colours)


def losses(surface):
    """The losses of a surface as an array.

    Args:
        surface: the `surface` of a flatness.json.
    """
    return np.asarray(surface["loss"], float)
