"""Adversarial training on pixels of another range than the network's."""

import warnings

import keras
import pytest

import tfsam


def scaled(*scales):
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            *[keras.layers.Rescaling(scale) for scale in scales],
            keras.layers.Flatten(),
            keras.layers.Dense(3),
        ]
    )


def test_a_network_for_pixels_of_0_to_255_is_warned_of():
    with pytest.warns(UserWarning, match=r"Rescaling.*bounds=\(0\.0, 1\.0\)"):
        tfsam.RobustModel(scaled(1 / 255), tfsam.PGD(8 / 255))


@pytest.mark.parametrize(
    ("scales", "bounds"),
    [
        ((1 / 255,), (0.0, 255.0)),
        ((1 / 255,), None),
        ((255.0, 1 / 255), (0.0, 1.0)),
        ((2.0,), (0.0, 1.0)),
        ((), (0.0, 1.0)),
    ],
)
def test_pixels_of_the_network_s_own_range_raise_no_alarm(scales, bounds):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tfsam.RobustModel(scaled(*scales), tfsam.PGD(0.03, bounds=bounds))
