"""Corruptions by blur: defocus, frosted glass, motion, zoom and Gaussian."""

import numpy as np
import scipy.ndimage
import scipy.signal

from tfsam.corruptions.base import Corruption
from tfsam.corruptions.filters import motion
from tfsam.corruptions.filters import zoomed


class DefocusBlur(Corruption):
    """Averages over a disk, like a lens that is out of focus.

    The constants are the radius of the disk, and the standard deviation of a
    Gaussian that smooths its edge, both in pixels (Hendrycks and Dietterich,
    2019, section 4.1). The border is reflected.
    """

    group = "blur"
    small = ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1.0, 0.2), (1.5, 0.1))
    large = ((3.0, 0.1), (4.0, 0.5), (6.0, 0.5), (8.0, 0.5), (10.0, 0.5))

    def corrupt(
        self,
        image: np.ndarray,
        constant: tuple[float, float],
        rng: np.random.Generator,
    ) -> np.ndarray:
        """Corrupts an image; see `Corruption.corrupt`."""
        kernel = disk(*constant)
        reach = len(kernel) // 2
        around = ((reach, reach), (reach, reach), (0, 0))
        padded = np.pad(image, around, "reflect")
        return scipy.signal.fftconvolve(
            padded, kernel[..., None], "valid", axes=(0, 1)
        )


def disk(radius: float, smoothing: float) -> np.ndarray:
    """Returns the kernel of a disk with a smooth edge; its sum is 1.

    The sum of the benchmark's kernels of radius 8 and 10 is 1.01, because a
    border of their grid is reflected; they brighten the image.

    Args:
        radius: The radius, in pixels.
        smoothing: The standard deviation of the Gaussian that smooths the edge,
            in pixels. It is cut off 1 pixel from its centre, 2 pixels where the
            radius is above 8.

    Returns:
        Float array (size, size), where size is odd.

    Example:
        >>> disk(1.0, 0.01)[2].round(2).tolist()
        [0.0, 0.2, 0.2, 0.2, 0.0]
    """
    edge = np.arange(-1, 2) if radius <= 8 else np.arange(-2, 3)
    reach = int(radius) + edge[-1]
    line = np.arange(-reach, reach + 1)
    inside = line**2 + line[:, None] ** 2 <= radius**2
    weights = np.exp(-(edge**2) / (2 * smoothing**2))
    kernel = inside.astype(np.float64)
    for axis in (0, 1):
        kernel = scipy.ndimage.convolve1d(
            kernel, weights, axis, mode="constant"
        )
    return kernel / kernel.sum()


class GlassBlur(Corruption):
    """Mixes up neighbouring pixels, like frosted glass.

    The constants are the standard deviation of the Gaussian that blurs the
    image before and after, the largest distance to a neighbour, both in pixels,
    and the number of rounds (Hendrycks and Dietterich, 2019, section 4.1).

    Pixels are visited from the lower right to the upper left. As in the code of
    the benchmark, a pixel takes the value of the neighbour, which keeps its
    own, and in each direction a neighbour is from -distance to distance - 1
    pixels away.
    """

    group = "blur"
    small = (
        *((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1)),
        *((0.25, 1, 2), (0.4, 1, 2)),
    )
    large = ((0.7, 1, 2), (0.9, 2, 1), (1.0, 2, 3), (1.1, 3, 2), (1.5, 4, 2))

    def corrupt(
        self,
        image: np.ndarray,
        constant: tuple[float, int, int],
        rng: np.random.Generator,
    ) -> np.ndarray:
        """Corrupts an image; see `Corruption.corrupt`."""
        sigma, distance, rounds = constant
        moved = sources(image.shape[:2], distance, rounds, rng)
        blurred = gaussian(image, sigma).reshape(-1, image.shape[2])
        return gaussian(blurred[moved].reshape(image.shape), sigma)


def sources(
    shape: tuple[int, ...],
    distance: int,
    rounds: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """Returns for each pixel the pixel whose value it takes behind glass.

    Args:
        shape: (height, width) of the image.
        distance: The largest distance to a neighbour, in pixels.
        rounds: The number of rounds.
        rng: The source of random numbers.

    Returns:
        Int array (height * width,) of positions in the flattened image. Pixels
        within `distance` of the border keep their values.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> sources((2, 2), 1, 1, rng).tolist()
        [0, 1, 2, 3]
    """
    height, width = shape
    positions = np.arange(height * width).reshape(shape)
    within = tuple(slice(distance + 1, n - distance + 1) for n in shape)
    found = positions.ravel().tolist()
    for _ in range(rounds):
        targets = positions[within].ravel()[::-1]
        rows, columns = rng.integers(-distance, distance, (2, len(targets)))
        neighbours = targets + rows * width + columns
        pairs = zip(targets.tolist(), neighbours.tolist(), strict=True)
        for target, neighbour in pairs:
            found[target] = found[neighbour]
    return np.array(found)


class MotionBlur(Corruption):
    """Averages along a line, like a camera that moves.

    The constants are the reach of the line and the standard deviation of the
    Gaussian weights along it, both in pixels; the angle is uniform in -45 to 45
    degrees (Hendrycks and Dietterich, 2019, section 4.1).
    """

    group = "blur"
    small = ((6, 1.0), (6, 1.5), (6, 2.0), (8, 2.0), (9, 2.5))
    large = ((10, 3.0), (15, 5.0), (15, 8.0), (15, 12.0), (20, 15.0))

    def corrupt(
        self,
        image: np.ndarray,
        constant: tuple[int, float],
        rng: np.random.Generator,
    ) -> np.ndarray:
        """Corrupts an image; see `Corruption.corrupt`."""
        return motion(image, *constant, rng.uniform(-45.0, 45.0))


class ZoomBlur(Corruption):
    """Averages over enlarged copies, like a camera that moves forward.

    The constants are the step from one factor of enlargement to the next and
    the number of factors, of which the first is 1. The image itself counts
    once more (Hendrycks and Dietterich, 2019, section 4.1).
    """

    group = "blur"
    small = ((0.01, 7), (0.01, 12), (0.01, 16), (0.01, 21), (0.01, 26))
    large = ((0.01, 12), (0.01, 16), (0.02, 11), (0.02, 13), (0.03, 11))

    def corrupt(
        self,
        image: np.ndarray,
        constant: tuple[float, int],
        rng: np.random.Generator,
    ) -> np.ndarray:
        """Corrupts an image; see `Corruption.corrupt`."""
        step, count = constant
        total = 2 * image  # Itself, and the enlargement by the factor 1.
        for number in range(1, count):
            total += zoomed(image, 1 + step * number)
        return total / (count + 1)


class GaussianBlur(Corruption):
    """Averages with Gaussian weights.

    The constant is the standard deviation, in pixels. It is one of the
    additional corruptions of Hendrycks and Dietterich, 2019, appendix B, which
    are no part of the mean.
    """

    group = "extra"
    small = (0.4, 0.6, 0.7, 0.8, 1.0)
    large = (1.0, 2.0, 3.0, 4.0, 6.0)

    def corrupt(
        self, image: np.ndarray, constant: float, rng: np.random.Generator
    ) -> np.ndarray:
        """Corrupts an image; see `Corruption.corrupt`."""
        return gaussian(image, constant)


def gaussian(image: np.ndarray, sigma: float) -> np.ndarray:
    """Averages each channel with Gaussian weights; the border is repeated.

    Args:
        image: Float array (height, width, channels).
        sigma: The standard deviation, in pixels.

    Returns:
        Float array of the same shape.

    Example:
        >>> import numpy as np
        >>> gaussian(np.ones((2, 2, 1)), 1.0).ravel().round(6).tolist()
        [1.0, 1.0, 1.0, 1.0]
    """
    return scipy.ndimage.gaussian_filter(
        image, (sigma, sigma, 0), mode="nearest"
    )
