"""Corruptions by noise: Gaussian, shot, impulse and speckle noise."""

import numpy as np

from tfsam.corruptions.base import Corruption


class GaussianNoise(Corruption):
    """Adds normal noise of a standard deviation to every value.

    The constant is the standard deviation (Hendrycks and Dietterich, 2019,
    section 4.1).
    """

    group = "noise"
    small = (0.04, 0.06, 0.08, 0.09, 0.10)
    large = (0.08, 0.12, 0.18, 0.26, 0.38)

    def corrupt(
        self, image: np.ndarray, constant: float, rng: np.random.Generator
    ) -> np.ndarray:
        """Corrupts an image; see `Corruption.corrupt`."""
        return image + rng.normal(0.0, constant, image.shape)


class ShotNoise(Corruption):
    """Draws the number of photons that arrive at every pixel.

    The constant is the mean number of photons for the value 1; every value
    becomes a draw from the Poisson distribution (Hendrycks and Dietterich,
    2019, section 4.1).
    """

    group = "noise"
    small = (500, 250, 100, 75, 50)
    large = (60, 25, 12, 5, 3)

    def corrupt(
        self, image: np.ndarray, constant: float, rng: np.random.Generator
    ) -> np.ndarray:
        """Corrupts an image; see `Corruption.corrupt`."""
        return rng.poisson(image * constant) / constant


class ImpulseNoise(Corruption):
    """Replaces some values by 0 or 1, as salt and pepper.

    The constant is the part of the values, of each channel separately, that is
    replaced, by 0 or 1 with equal chances (Hendrycks and Dietterich, 2019,
    section 4.1).
    """

    group = "noise"
    small = (0.01, 0.02, 0.03, 0.05, 0.07)
    large = (0.03, 0.06, 0.09, 0.17, 0.27)

    def corrupt(
        self, image: np.ndarray, constant: float, rng: np.random.Generator
    ) -> np.ndarray:
        """Corrupts an image; see `Corruption.corrupt`."""
        replaced = rng.random(image.shape) < constant
        salt = rng.integers(0, 2, image.shape)
        return np.where(replaced, salt, image)


class SpeckleNoise(Corruption):
    """Multiplies every value by 1 plus normal noise.

    The constant is the standard deviation. It is one of the additional
    corruptions of Hendrycks and Dietterich, 2019, appendix B, which are no part
    of the mean.
    """

    group = "extra"
    small = (0.06, 0.1, 0.12, 0.16, 0.2)
    large = (0.15, 0.2, 0.35, 0.45, 0.6)

    def corrupt(
        self, image: np.ndarray, constant: float, rng: np.random.Generator
    ) -> np.ndarray:
        """Corrupts an image; see `Corruption.corrupt`."""
        return image + image * rng.normal(0.0, constant, image.shape)
