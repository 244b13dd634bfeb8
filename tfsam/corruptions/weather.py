"""Corruptions by weather: snow, fog and brightness.

Frost is left out: the benchmark's is made of photographs.
"""

import numpy as np

from tfsam.corruptions.base import Corruption
from tfsam.corruptions.filters import motion
from tfsam.corruptions.filters import zoomed

# The weights of red, green and blue in the brightness of a pixel (ITU-R
# recommendation BT.601).
_LUMA = (0.299, 0.587, 0.114)


class Snow(Corruption):
    """Whitens the image, and adds flakes that fall.

    The constants are the mean and the standard deviation of the noise that
    becomes flakes, its enlargement, the value below which there is no flake,
    the reach and the standard deviation of the flakes' motion in pixels, and
    the weight of the image against its whitened copy (Hendrycks and Dietterich,
    2019, section 4.1). The flakes fall at an angle uniform in -135 to -45
    degrees, and are added a second time, turned by half a circle.
    """

    group = "weather"
    small = (
        (0.1, 0.2, 1.0, 0.6, 8, 3.0, 0.95),
        (0.1, 0.2, 1.0, 0.5, 10, 4.0, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4.0, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6.0, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12.0, 0.8),
    )
    large = (
        (0.1, 0.3, 3.0, 0.5, 10, 4.0, 0.8),
        (0.2, 0.3, 2.0, 0.5, 12, 4.0, 0.7),
        (0.55, 0.3, 4.0, 0.9, 12, 8.0, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8.0, 0.65),
        (0.55, 0.3, 2.5, 0.85, 12, 12.0, 0.55),
    )

    def corrupt(
        self,
        image: np.ndarray,
        constant: tuple[float, float, float, float, int, float, float],
        rng: np.random.Generator,
    ) -> np.ndarray:
        """Corrupts an image; see `Corruption.corrupt`."""
        mean, deviation, zoom, least, reach, sigma, weight = constant
        noise = rng.normal(mean, deviation, (*image.shape[:2], 1))
        flakes = zoomed(noise, zoom)
        flakes = np.where(flakes < least, 0.0, np.clip(flakes, 0.0, 1.0))
        flakes = motion(flakes, reach, sigma, rng.uniform(-135.0, -45.0))
        gray = image @ _LUMA if image.shape[2] == 3 else image[..., 0]
        white = np.maximum(image, 1.5 * gray[..., None] + 0.5)
        whitened = weight * image + (1 - weight) * white
        return whitened + flakes + np.rot90(flakes, 2)


class Fog(Corruption):
    """Adds a cloud, and scales the image back to its largest value.

    The constants are the weight of the cloud, and the factor by which its
    variation falls from a scale to the next finer one (Hendrycks and
    Dietterich, 2019, section 4.1).
    """

    group = "weather"
    small = ((0.2, 3.0), (0.5, 3.0), (0.75, 2.5), (1.0, 2.0), (1.5, 1.75))
    large = ((1.5, 2.0), (2.0, 2.0), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4))

    def corrupt(
        self,
        image: np.ndarray,
        constant: tuple[float, float],
        rng: np.random.Generator,
    ) -> np.ndarray:
        """Corrupts an image; see `Corruption.corrupt`."""
        weight, decay = constant
        height, width = image.shape[:2]
        cloud = plasma(max(height, width), decay, rng)[:height, :width, None]
        largest = image.max()
        return (image + weight * cloud) * largest / (largest + weight)


def plasma(size: int, decay: float, rng: np.random.Generator) -> np.ndarray:
    """Returns a cloud, drawn by the diamond-square algorithm on a torus.

    From scale to scale, the value half way between known values is their mean
    plus noise, which is uniform. The decay divides a factor of the noise that
    enters squared, as in the code of the benchmark.

    Args:
        size: The least height and width.
        decay: Divides the factor of the noise at each scale, > 1.
        rng: The source of random numbers.

    Returns:
        Float array (side, side) with values from 0 to 1, where side is the next
        power of 2 (2 at least).

    Example:
        >>> import numpy as np
        >>> cloud = plasma(28, 2.0, np.random.default_rng(0))
        >>> cloud.shape, float(cloud.min()), float(cloud.max())
        ((32, 32), 0.0, 1.0)
    """
    side = max(1 << (size - 1).bit_length(), 2)
    cloud = np.zeros((side, side))
    factor, step = 1.0, side
    while step > 1:
        half, spread = step // 2, factor**2
        corners = cloud[::step, ::step]
        right, below = (np.roll(corners, -1, axis) for axis in (1, 0))
        across = np.roll(right, -1, 0)
        centres = _between([corners, right, below, across], spread, rng)
        above, left = (np.roll(centres, 1, axis) for axis in (0, 1))
        tops = _between([corners, right, centres, above], spread, rng)
        sides = _between([corners, below, centres, left], spread, rng)
        cloud[half::step, half::step] = centres
        cloud[::step, half::step] = tops
        cloud[half::step, ::step] = sides
        factor, step = factor / decay, half
    cloud -= cloud.min()
    return cloud / cloud.max()


def _between(
    around: list[np.ndarray], spread: float, rng: np.random.Generator
) -> np.ndarray:
    """Returns the mean of the values around, plus noise."""
    noise = rng.uniform(-spread, spread, around[0].shape)
    return np.mean(around, axis=0) + noise


class Brightness(Corruption):
    """Raises the value of every pixel; hue and saturation stay.

    The constant is added to the value of the HSV colour space, the largest of
    red, green and blue, which ends at 1 (Hendrycks and Dietterich, 2019,
    section 4.1).
    """

    group = "weather"
    small = (0.05, 0.1, 0.15, 0.2, 0.3)
    large = (0.1, 0.2, 0.3, 0.4, 0.5)

    def corrupt(
        self, image: np.ndarray, constant: float, rng: np.random.Generator
    ) -> np.ndarray:
        """Corrupts an image; see `Corruption.corrupt`."""
        value = image.max(axis=2, keepdims=True)
        raised = np.minimum(value + constant, 1.0)
        # Black has no hue: it becomes gray.
        factor = raised / np.where(value > 0, value, 1.0)
        return np.where(value > 0, image * factor, raised)
