"""Pictures and colours of the page: examples, surfaces, contrast."""

import numpy as np
import pytest
from helpers import decoded
from helpers import palette

from tfsam.reports import plots
from tfsam.reports.page import pictures


def test_no_perturbation_is_gray():
    clean = np.full((2, 2, 1), 0.25)
    shown, factor = plots.magnified(clean, clean)
    np.testing.assert_array_equal(shown, 0.5)
    assert factor == 1


def test_large_images_are_thinned_out():
    pixels = np.random.default_rng(0).uniform(size=(200, 100, 1))
    expected = np.round(255 * pixels[::4, ::4])
    np.testing.assert_array_equal(decoded(pictures.image(pixels)), expected)


def plane(low, high, size=9):
    """Losses that grow along x, linearly from `low` to `high`."""
    losses = np.broadcast_to(np.linspace(low, high, size), (size, size))
    return {"coordinates": list(range(size)), "loss": losses.tolist()}


def test_contours_of_a_plane_are_straight_and_at_their_levels():
    scale = pictures.Scale([plane(1, 3), plane(2, 16)])
    assert (scale.lowest, scale.highest) == (1, 16)
    lines = scale.contours(plane(1, 3))
    levels = [level for level in scale.levels if 1 < level < 3]
    # From the middle of the first pixel to that of the last.
    size = 100 / 9
    expected = [size / 2 + (level - 1) / 2 * 8 * size for level in levels]
    assert len(lines) == len(levels) >= 2
    for line, x in zip(lines, expected, strict=True):
        np.testing.assert_allclose(line[:, 0], x, atol=1e-6)
        np.testing.assert_allclose(np.ptp(line[:, 1]), 8 * size, atol=1e-6)


def test_surfaces_share_one_scale_and_stand_upright():
    losses = np.ones((3, 3))
    losses[0] = 8
    surface = {"coordinates": [0, 1, 2], "loss": losses.tolist()}
    heat = decoded(pictures.Scale([surface, plane(1, 8)]).heat(surface))
    bar = decoded(pictures.Scale([surface]).bar())
    np.testing.assert_array_equal(heat[2, 0], bar[0, -1])  # y goes upwards.
    np.testing.assert_array_equal(heat[0, 0], bar[0, 0])


def test_a_flat_surface_has_no_contours():
    flat = plane(1, 1)
    assert pictures.Scale([flat]).contours(flat) == []


def luminance(colour):
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    return np.array(
        [
            c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
            for c in channels
        ]
    )


def contrast(*colours):
    """The contrast ratio of WCAG 2."""
    parts = np.array([0.2126, 0.7152, 0.0722])
    low, high = sorted(float(parts @ luminance(one)) for one in colours)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_contrast(theme):
    """WCAG 2's AA: 4.5 for text, 3 for curves."""
    colours = palette(theme)
    for ground in (colours["ground"], colours["raised"]):
        for text in ("ink", "quiet", "accent"):
            assert contrast(colours[text], ground) >= 4.5
    curves = [colours[f"run-{i}"] for i in range(8)]
    assert min(contrast(one, colours["ground"]) for one in curves) >= 3


# Machado, Oliveira and Fernandes, 2009: dichromats' linear RGB.
VISION = {
    "normal": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
}


# Ottosson, 2020: to cone responses, and from their cube roots to Oklab.
CONES = [
    [0.4122214708, 0.5363325363, 0.0514459929],
    [0.2119034982, 0.6806995451, 0.1073969566],
    [0.0883024619, 0.2817188376, 0.6299787005],
]


OKLAB = [
    [0.2104542553, 0.7936177850, -0.0040720468],
    [1.9779984951, -2.4285922050, 0.4505937099],
    [0.0259040371, 0.7827717662, -0.8086757660],
]


@pytest.mark.parametrize("vision", VISION)
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_colours_differ_for_the_colour_blind(theme, vision):
    colours = palette(theme)
    linear = np.array([luminance(colours[f"run-{i}"]) for i in range(8)])
    seen = np.clip(linear @ np.transpose(VISION[vision]), 0, 1)
    places = np.cbrt(seen @ np.transpose(CONES)) @ np.transpose(OKLAB)
    distances = np.linalg.norm(places[:, None] - places, axis=2)
    assert distances[~np.eye(8, dtype=bool)].min() > 0.12
