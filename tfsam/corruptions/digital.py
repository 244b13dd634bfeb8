"""Corruptions of digital images: contrast, elastic, pixels and JPEG."""

import functools
import io

import numpy as np
import scipy.ndimage
from PIL import Image

from tfsam.corruptions.base import Corruption
from tfsam.corruptions.base import size_of_constants


class Contrast(Corruption):
    """Moves every value towards the mean of its channel.

    The constant is the part of the distance to the mean that is left (Hendrycks
    and Dietterich, 2019, section 4.1).
    """

    group = "digital"
    small = (0.75, 0.5, 0.4, 0.3, 0.15)
    large = (0.4, 0.3, 0.2, 0.1, 0.05)

    def corrupt(
        self, image: np.ndarray, constant: float, rng: np.random.Generator
    ) -> np.ndarray:
        """Corrupts an image; see `Corruption.corrupt`."""
        mean = image.mean(axis=(0, 1))
        return (image - mean) * constant + mean


class Elastic(Corruption):
    """Stretches and shears the image, and then parts of it.

    The constants are the size of the displacements of the parts, the standard
    deviation of the Gaussian that smooths them, and the largest displacement of
    the three points that define the affine map of the whole (Hendrycks and
    Dietterich, 2019, section 4.1). They are pixels of an image of 32 x 32 or
    224 x 224, and grow with the shorter side of the image.
    """

    group = "digital"
    small = (
        *((0.0, 0.0, 2.56), (1.6, 6.4, 2.24), (2.56, 1.92, 1.92)),
        *((3.2, 1.28, 1.6), (3.2, 0.96, 0.96)),
    )
    # The benchmark's code multiplies fractions by 244.
    large = (
        *((488.0, 170.8, 24.4), (488.0, 19.52, 48.8), (12.2, 2.44, 4.88)),
        *((17.08, 2.44, 4.88), (29.28, 2.44, 4.88)),
    )

    def corrupt(
        self,
        image: np.ndarray,
        constant: tuple[float, float, float],
        rng: np.random.Generator,
    ) -> np.ndarray:
        """Corrupts an image; see `Corruption.corrupt`."""
        scale = min(image.shape[:2]) / size_of_constants(image.shape)
        size, sigma, most = (scale * number for number in constant)
        places = np.indices(image.shape[:2], np.float64)
        rows, columns = places[0], places[1]
        sheared = _sampled(
            image, _affine(rows, columns, most, rng), mode="mirror"
        )
        over_rows, over_columns = (_smoother(n, sigma) for n in rows.shape)
        noise = rng.uniform(-1.0, 1.0, (2, *rows.shape))
        moves = size * (over_rows @ noise @ over_columns.T)
        return _sampled(
            sheared, (rows + moves[0], columns + moves[1]), mode="reflect"
        )


@functools.lru_cache(maxsize=32)
def _smoother(size: int, sigma: float) -> np.ndarray:
    """Returns the matrix (size, size) that smooths a line; it reflects.

    For a deviation near the size, a product is faster than a convolution.
    """
    matrix = scipy.ndimage.gaussian_filter(
        np.eye(size), (sigma, 0), mode="reflect", truncate=3.0
    )
    matrix.setflags(write=False)
    return matrix


def _affine(
    rows: np.ndarray,
    columns: np.ndarray,
    most: float,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the places (rows, columns) that a random affine map reads.

    The map moves three points around the centre, each by at most `most` pixels
    in each direction.
    """
    centre = np.array(rows.shape) // 2
    side = min(rows.shape) // 3
    corners = np.array([[1, 1], [1, -1], [-1, -1]])
    before = centre + side * corners
    after = before + rng.uniform(-most, most, (3, 2))
    # The map of places after to places before, which are read.
    matrix = np.linalg.solve(np.column_stack([after, np.ones(3)]), before)
    places = rows[..., None] * matrix[0] + columns[..., None] * matrix[1]
    places += matrix[2]
    return places[..., 0], places[..., 1]


def _sampled(
    image: np.ndarray, places: tuple[np.ndarray, np.ndarray], mode: str
) -> np.ndarray:
    """Returns the values at places (rows, columns), interpolated linearly."""
    channels = [
        scipy.ndimage.map_coordinates(channel, places, order=1, mode=mode)
        for channel in np.moveaxis(image, 2, 0)
    ]
    return np.stack(channels, axis=2)


class Pixelate(Corruption):
    """Reduces the number of pixels, and enlarges them to the old size.

    The constant is the part of the height and of the width that is left
    (Hendrycks and Dietterich, 2019, section 4.1).
    """

    group = "digital"
    small = (0.95, 0.9, 0.85, 0.75, 0.65)
    large = (0.6, 0.5, 0.4, 0.3, 0.25)

    def corrupt(
        self, image: np.ndarray, constant: float, rng: np.random.Generator
    ) -> np.ndarray:
        """Corrupts an image; see `Corruption.corrupt`."""
        height, width = image.shape[:2]
        size = max(int(width * constant), 1), max(int(height * constant), 1)
        channels = []
        for channel in np.moveaxis(image.astype(np.float32), 2, 0):
            small = Image.fromarray(channel).resize(size, Image.Resampling.BOX)
            large = small.resize((width, height), Image.Resampling.BOX)
            channels.append(np.asarray(large))
        return np.stack(channels, axis=2)


class JPEG(Corruption):
    """Compresses the image as JPEG.

    The constant is the quality (Hendrycks and Dietterich, 2019, section 4.1).
    """

    group = "digital"
    small = (80, 65, 58, 50, 40)
    large = (25, 18, 15, 10, 7)

    def corrupt(
        self, image: np.ndarray, constant: int, rng: np.random.Generator
    ) -> np.ndarray:
        """Corrupts an image; see `Corruption.corrupt`."""
        pixels = np.rint(255 * image).astype(np.uint8)
        file = io.BytesIO()
        gray = image.shape[2] == 1
        Image.fromarray(pixels[..., 0] if gray else pixels).save(
            file, "JPEG", quality=constant
        )
        with Image.open(file) as decoded:
            return np.asarray(decoded).reshape(image.shape) / 255
