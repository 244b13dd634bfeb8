"""Tests that attacks stay in their ball to a few units in the last place."""

import hypothesis
import numpy as np
import pytest
import tensorflow as tf
from helpers import examples
from hypothesis import strategies as st

from tfsam import attacks
from tfsam import geometry
from tfsam.attacks.check import contract

FEW_UNITS = 5e-7
BFLOAT16 = tf.bfloat16.as_numpy_dtype
NATIVE = {
    "apgd_ce": {"steps": 5},
    "apgd_t": {"steps": 3, "targets": 2},
    "fab_t": {"steps": 3, "targets": 2},
    "fgsm": {},
    "fmn": {"steps": 6},
    "noise_l2": {"samples": 2},
    "noise_linf": {"samples": 2},
    "pgd": {"steps": 5},
    "square": {"queries": 10},
}


def images(rng, shape, kind, bounds):
    """Returns images of noise, of a single color, or of black and white."""
    low, high = bounds or (-2.0, 3.0)
    x = rng.uniform(size=shape)
    if kind == "flat":
        x = np.broadcast_to(x[:, :1, :1], shape)
    elif kind == "saturated":
        x = np.round(x)
    return (low + (high - low) * x).astype("float32")


def length(x, x_adv):
    difference = np.asarray(x_adv, "float64") - np.asarray(x, "float64")
    return np.linalg.norm(difference.reshape(len(x), -1), axis=1)


def pooled(side):
    """Returns a network that sees an image as 8 x 8 averages."""
    weights = np.random.default_rng(2).normal(size=(8 * 8 * 3, 4))

    def network(x):
        size = side // 8
        pools = tf.nn.avg_pool2d(x, size, size, "VALID")
        flat = tf.reshape(pools, [-1, 8 * 8 * 3])
        return tf.matmul(flat, tf.constant(weights, x.dtype))

    return network


@hypothesis.given(
    seed=st.integers(0, 2**31),
    side=st.sampled_from([1, 3, 8, 32, 64]),
    kind=st.sampled_from(["noise", "flat", "saturated"]),
    exponent=st.floats(-4, 1.5),
    scale=st.floats(0, 1.001),
    size=st.sampled_from([1.0, 255.0]),
    dtype=st.sampled_from(["float32", "float64", "float16", BFLOAT16]),
)
# Radii that float16 rounds up and down, and that float32 rounds.
@hypothesis.example(0, 1, "noise", 0.25, 1.0, 1.0, BFLOAT16)
@hypothesis.example(0, 1, "noise", 0.03125, 1.0, 1.0, "float16")
@hypothesis.example(0, 1, "noise", 1.5, 1.001, 1.0, "float64")
def test_a_perturbation_is_shrunk_into_the_ball(
    seed, side, kind, exponent, scale, size, dtype
):
    rng = np.random.default_rng(seed)
    radius, shape = 10**exponent, (3, side, side, 3)
    x = images(rng, shape, kind, (-size, size)).astype(dtype)
    delta = rng.normal(size=shape)
    if kind == "flat":
        delta = np.broadcast_to(delta[:, :1, :1], shape)
    delta = (
        radius * scale * delta / length(0 * delta, delta)[:, None, None, None]
    )
    moved = (x.astype("float64") + delta).astype(dtype)
    before = length(x, moved)
    found = geometry.shrink(tf.constant(x), tf.constant(moved), radius).numpy()
    after = length(x, found)
    assert found.dtype == x.dtype
    assert (after <= radius * (1 + FEW_UNITS)).all()
    inside = before <= radius
    np.testing.assert_array_equal(found[inside], moved[inside])
    # Rounding each pixel once shortens it by at most this length.
    unit = np.spacing(np.abs(moved).max(initial=size).astype(dtype))
    lost = np.sqrt(x[0].size) * float(unit)
    assert (after >= np.minimum(before, radius) - lost - 1e-9).all()


@pytest.mark.parametrize("sign", [-1, 1])
def test_a_pixel_that_is_rounded_to_zero_is_moved_on_towards_x(sign):
    x = np.full((1, 1, 1, 1), sign * 2.0**-10, "float16")
    radius = (1 - 1e-5) * 2.0**-10
    found = geometry.shrink(tf.constant(x), tf.constant(-x), radius).numpy()
    assert length(x, found) <= radius
    np.testing.assert_array_equal(found, np.nextafter(0 * x, x))


@pytest.mark.parametrize("jit_compile", [False, True])
def test_it_is_shrunk_in_graphs(jit_compile):
    x = np.full((2, 128, 128, 3), 0.7, "float32")
    moved = x + np.float32(0.05 / np.sqrt(x[0].size))
    moved[1] = 0.7 + 0.5 * (moved[1] - 0.7)
    eager = geometry.shrink(tf.constant(x), tf.constant(moved), 0.05)
    graph = tf.function(geometry.shrink, jit_compile=jit_compile)
    found = graph(tf.constant(x), tf.constant(moved), tf.constant(0.05))
    np.testing.assert_array_equal(found, eager)
    assert length(x, moved)[0] > 0.05 * (1 + 1e-5)
    assert 0.0499 < length(x, found)[0] <= 0.05 * (1 + FEW_UNITS)
    np.testing.assert_array_equal(found[1], moved[1])


def check_budget(name, norm, epsilon, x, bounds, network):
    y = np.argmax(network(tf.constant(x)), axis=1)
    attack = attacks.get(
        name, epsilon=epsilon, norm=norm, bounds=bounds, **NATIVE[name]
    )
    x_adv = attack(network, x, y, 0).numpy()
    contract(x, x_adv, epsilon, norm, bounds)
    if bounds is not None:
        assert x_adv.min() >= bounds[0] and x_adv.max() <= bounds[1]
    if norm == "l2":
        assert (length(x, x_adv) <= epsilon * (1 + FEW_UNITS)).all()
        return
    difference = np.abs(x_adv.astype("float64") - x.astype("float64"))
    units = np.spacing(np.maximum(np.abs(x), np.abs(x_adv)))
    assert (difference <= epsilon * (1 + FEW_UNITS) + units).all()


@pytest.mark.parametrize("name", NATIVE)
@pytest.mark.parametrize("kind", ["noise", "flat"])
def test_attacks_on_images_of_128_pixels_stay_in_the_ball(name, kind):
    x = images(np.random.default_rng(1), (2, 128, 128, 3), kind, (0.2, 0.8))
    check_budget(name, "l2", 0.05, x, (0.0, 1.0), pooled(128))


@hypothesis.settings(max_examples=examples(4))
@hypothesis.given(
    name=st.sampled_from(list(NATIVE)),
    norm=st.sampled_from(["linf", "l2"]),
    exponent=st.floats(-3, 1),
    side=st.sampled_from([8, 24, 40]),
    kind=st.sampled_from(["noise", "flat", "saturated"]),
    bounds=st.sampled_from([(0.0, 1.0), (0.0, 255.0), (-1.0, 1.0), None]),
)
def test_attacks_stay_in_the_ball(name, norm, exponent, side, kind, bounds):
    x = images(np.random.default_rng(1), (2, side, side, 3), kind, bounds)
    epsilon = min(10**exponent, 1.0) if norm == "linf" else 10**exponent
    check_budget(name, norm, epsilon, x, bounds, pooled(side))


KINDS = [
    ("noise", (0.0, 1.0)),
    ("flat", (0.0, 1.0)),
    ("saturated", (0.0, 255.0)),
    ("flat", (-1.0, 1.0)),
    ("noise", None),
]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "bounds"), KINDS)
@pytest.mark.parametrize("name", NATIVE)
def test_attacks_on_images_of_224_pixels_stay_in_the_ball(name, kind, bounds):
    """Every other epsilon in l2, where rounding adds up, and one in l-inf."""
    x = images(np.random.default_rng(1), (2, 224, 224, 3), kind, bounds)
    number = KINDS.index((kind, bounds))
    for epsilon in (1e-3, 0.01, 0.05, 0.25, 1.0, 10.0)[number % 2 :: 2]:
        check_budget(name, "l2", epsilon, x, bounds, pooled(224))
    epsilon = (1e-4, 1 / 255, 0.1, 1.0)[number % 4]
    check_budget(name, "linf", epsilon, x, bounds, pooled(224))


@pytest.mark.parametrize("side", [8, 32, 224])
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("epsilon", [0.02, 0.5, 3.0])
def test_the_contract_finds_a_violation_of_one_in_ten_thousand(
    side, norm, epsilon
):
    x = np.zeros((2, side, side, 3), "float32")
    delta = np.random.default_rng(0).normal(size=x.shape)
    order = np.inf if norm == "linf" else 2
    delta[1] *= epsilon / np.linalg.norm(delta[1].ravel(), order)
    delta[0] = 0
    bounds = None
    contract(x, (delta * (1 + 1e-7)).astype("float32"), epsilon, norm, bounds)
    with pytest.raises(ValueError, match="left its ball"):
        far = (delta * (1 + 1e-4)).astype("float32")
        contract(x, far, epsilon, norm, bounds)


def test_the_contract_allows_what_rounding_adds_in_a_large_image():
    """Tests an attack that projects in float32 without a check."""
    unit = np.spacing(np.float32(0.7))
    step = np.float32(0.5 / np.sqrt(224 * 224 * 3))
    step = (np.ceil(step / unit) - 0.49) * unit  # All pixels are rounded up.
    x = np.full((1, 224, 224, 3), 0.7, "float32")
    epsilon = step * np.sqrt(x.size)
    moved = (x + step).astype("float32")
    assert length(x, moved)[0] > epsilon + 1e-5
    contract(x, moved, epsilon, "l2", (0.0, 1.0))


@pytest.mark.parametrize("dtype", ["float16", BFLOAT16])
def test_the_contract_knows_the_rounding_of_halves(dtype):
    x = np.full((1, 8, 8, 1), 0.7, dtype)
    unit = float(np.spacing(x.max()))
    near = (x.astype("float32") + 0.1 + 0.4 * unit).astype(dtype)
    contract(x, near, 0.1, "linf", (0.0, 1.0))
    far = (x.astype("float32") + 0.1 + 3 * unit).astype(dtype)
    with pytest.raises(ValueError, match="left its ball"):
        contract(x, far, 0.1, "linf", (0.0, 1.0))
