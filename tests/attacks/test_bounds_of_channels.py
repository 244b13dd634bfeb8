"""Attacks within bounds of each channel, as standardized inputs have them."""

import hypothesis
import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import slow
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import tfsam
from tfsam import attacks
from tfsam import geometry
from tfsam.attacks.adapters.outside import Adapter
from tfsam.attacks.autoattack.fab import project_onto_hyperplane
from tfsam.attacks.check import contract
from tfsam.attacks.logits import Logits
from tfsam.attacks.recorder import Recorder
from tfsam.support import validators

ATTACKS = {
    "fgsm": {},
    "pgd": {"steps": 4},
    "apgd_ce": {"steps": 4},
    "square": {"queries": 12},
    "fab": {"steps": 4},
    "fmn": {"steps": 8},
}


# With enough steps to come near.
PATIENT = {
    "fgsm": {},
    "pgd": {"steps": 30},
    "apgd_ce": {"steps": 20},
    "square": {"queries": 40},
    "fab": {"steps": 10},
    "fmn": {"steps": 30},
    "noise_linf": {},
}

# A single image of two channels. The first has room for 0.1 up to its bound.
X = np.float32([[[[0.9, -0.5]]]])
BOUNDS = ((0.0, -1.0), (1.0, 0.7))
SLOPES = (2.0, 1.0)
# What it takes to change 2 d_0 + d_1 by 0.5 with d_0 <= 0.1: d = (0.1, 0.3).
DISTANCES = {"linf": 0.3, "l2": np.hypot(0.1, 0.3), "l1": 0.4}


def linear(x):
    gain = tf.reduce_sum(SLOPES * (x - X), axis=[1, 2, 3]) - 0.5
    return tf.stack([tf.zeros_like(gain), gain], axis=1)


# A norm for each attack by default, so that each norm comes; all if slow.
QUICK = {
    ("fgsm", "linf"),
    ("pgd", "l2"),
    ("apgd_ce", "linf"),
    ("square", "linf"),
    ("fab", "l2"),
    ("fmn", "l1"),
}


def cases(names):
    """Attacks and norms, of which only some are tried by default."""
    return [
        (name, norm) if (name, norm) in QUICK else slow(name, norm)
        for name in names
        for norm in geometry.NORMS
    ]


@pytest.mark.parametrize(("name", "norm"), cases(PATIENT))
def test_a_linear_model_breaks_where_the_bounds_of_its_channels_allow(
    name, norm
):
    def broken(share):
        epsilon = share * DISTANCES[norm]
        attack = attacks.get(
            name,
            epsilon=epsilon,
            norm=norm,
            bounds=BOUNDS,
            **PATIENT[name],
        )
        x_adv = attack(linear, X, [0], seed=1)
        contract(X, x_adv, epsilon, norm, attack.bounds)
        return bool(linear(x_adv)[0, 1] > 0)

    assert not broken(0.98)
    if name in ("fmn", "fab", "apgd_ce"):
        assert broken(1.05)
    elif name == "pgd" or (norm == "linf" and name in ("fgsm", "square")):
        assert broken(1.5)


# All numbers of a standardized input are exact, as the mean and the deviation
# are powers of two, so that both attacks do the same.
MEAN, DEVIATION = np.float32([0.5, 0.25, 0.5]), np.float32(0.25)
RNG = np.random.default_rng(0)
IMAGES = (RNG.integers(20, 236, (8, 3, 3, 3)) / 256).astype("float32")
HIDDEN = (RNG.normal(size=(27, 8)) / 2).astype("float32")
OUTPUT = RNG.normal(size=(8, 4)).astype("float32")


def of_pixels(x):
    flat = tf.reshape(x, [-1, 27])
    return tf.tanh(flat @ HIDDEN) @ OUTPUT


def of_standardized(x):
    return of_pixels(x * DEVIATION + MEAN)


LABELS = np.argmax(of_pixels(tf.constant(IMAGES)), axis=1)
LEVELS = {"linf": 1 / 32, "l2": 1 / 8, "l1": 3 / 8}


@pytest.mark.parametrize(("name", "norm"), cases(ATTACKS))
def test_standardized_inputs_break_like_the_pixels_that_they_stand_for(
    name, norm
):
    epsilon, options = LEVELS[norm], ATTACKS[name] | {"norm": norm}
    plain = attacks.get(name, epsilon=epsilon, **options)
    expected = plain(of_pixels, IMAGES, LABELS, seed=2).numpy()
    bounds = (0 - MEAN) / DEVIATION, (1 - MEAN) / DEVIATION
    wide = float(epsilon / DEVIATION)
    attack = attacks.get(name, epsilon=wide, bounds=bounds, **options)
    x = (IMAGES - MEAN) / DEVIATION
    found = attack(of_standardized, x, LABELS, seed=2).numpy()
    contract(x, found, wide, norm, attack.bounds)
    broken, expected_broken = (
        np.argmax(logits, axis=1) != LABELS
        for logits in (of_standardized(found), of_pixels(expected))
    )
    np.testing.assert_array_equal(broken, expected_broken)
    assert 0 < broken.sum() < len(broken)
    if (name, norm) != ("apgd_ce", "l1"):  # Its first noise has no unit.
        pixels = found * DEVIATION + MEAN
        np.testing.assert_allclose(pixels, expected, atol=2e-5)


@pytest.mark.parametrize("norm", ["linf", slow("l2"), slow("l1")])
def test_inputs_without_columns_have_bounds_of_their_own(norm):
    """Square treats them as the columns of an image."""
    x = np.float32([[0.5, 0.5, 0.5]])
    bounds = ((0.0, 0.4, 0.5), (0.6, 0.6, 1.0))
    attack = attacks.get(
        "square", epsilon=0.5, norm=norm, bounds=bounds, queries=10
    )
    x_adv = attack(lambda x: x - [[0.0, 9.0, 9.0]], x, [0]).numpy()
    assert (x_adv >= np.float32(bounds[0])).all()
    assert (x_adv <= np.float32(bounds[1])).all()
    assert (x_adv != x).any()


@hypothesis.given(
    centres=hnp.arrays(np.float64, (2, 3, 2), elements=st.floats(0, 1)),
    noise=hnp.arrays(np.float64, (2, 3, 2), elements=st.floats(-4, 4)),
    low=hnp.arrays(np.float64, 2, elements=st.floats(-2, 0)),
    width=hnp.arrays(np.float64, 2, elements=st.floats(1e-3, 3)),
    radius=st.just(0.0) | st.floats(1e-3, 5),
    norm=st.sampled_from(geometry.NORMS),
)
def test_a_projection_ends_in_the_ball_and_in_the_box_of_each_channel(
    centres, noise, low, width, radius, norm
):
    high = low + width
    bounds = validators.check_interval("bounds", (low, high))
    x = low + centres * width
    found = geometry.project_within(
        tf.constant(x), tf.constant(x + noise), radius, norm, bounds
    ).numpy()
    assert (found >= low).all() and (found <= high).all()
    order = geometry.FACTS[norm].order
    sizes = np.linalg.norm((found - x).reshape(2, -1), order, axis=1)
    assert (sizes <= radius * (1 + 1e-6) + 1e-12).all()
    # Where the radius suffices, only the bounds count.
    inside = np.clip(x + noise, low, high)
    far = np.linalg.norm(noise.reshape(2, -1), order, axis=1) > radius
    np.testing.assert_allclose(found[~far], inside[~far], atol=1e-12)
    # In l-inf the nearest point is that of each number by itself.
    if norm == "linf":
        nearest = np.clip(x + noise.clip(-radius, radius), low, high)
        np.testing.assert_allclose(found, nearest, atol=1e-12)


@pytest.mark.parametrize("norm", geometry.NORMS)
def test_a_hyperplane_is_reached_within_the_box_of_each_channel(norm):
    """Scaling each channel to a common box changes nothing but the units."""
    rng = np.random.default_rng(3)
    low, high = np.array([-1.0, -3.0]), np.array([1.0, 5.0])
    x = rng.uniform(low, high, (20, 4, 2))
    goal = rng.uniform(low, high, (20, 4, 2))
    w = rng.normal(size=(20, 4, 2))
    value = np.sum(w * (x - goal), axis=(1, 2))
    tensors = map(tf.constant, (x, w, value))
    bounds = validators.check_interval("bounds", (low, high))
    found = project_onto_hyperplane(*tensors, norm, bounds).numpy()
    assert (found >= low).all() and (found <= high).all()
    change = np.sum(w * (found - x), axis=(1, 2))
    np.testing.assert_allclose(change, -value, atol=1e-9)
    order = geometry.FACTS[norm].order
    flat = (found - x).reshape(20, -1), (goal - x).reshape(20, -1)
    nearest, other = (np.linalg.norm(move, order, axis=1) for move in flat)
    assert (nearest <= other + 1e-12).all()


def test_bounds_are_kept_in_a_form_that_compares_and_is_saved():
    given = ([-1.0, -2.0], np.float32([1.0, 2.0]))
    attack = tfsam.PGD(0.1, bounds=given)
    assert attack.bounds == ((-1.0, -2.0), (1.0, 2.0))
    again = tfsam.PGD.from_config(attack.get_config())
    assert again.bounds == attack.bounds
    assert hash(attack.bounds) == hash(again.bounds)
    # Equal for all channels, they are two numbers, as ever.
    assert tfsam.PGD(0.1, bounds=([0, 0], [1, 1])).bounds == (0.0, 1.0)


@pytest.mark.parametrize(
    "bounds",
    [
        ([0.0, 1.0], [1.0, 1.0]),
        ([0.0, 1.0], [1.0, 2.0, 3.0]),
        ([0.0, float("nan")], 1.0),
        ([[0.0], [0.0, 1.0]], 2.0),
        ([], 1.0),
    ],
)
def test_bounds_that_are_none_are_refused(bounds):
    with pytest.raises(ValueError, match=r"bounds must be .*Received: bounds"):
        tfsam.PGD(0.1, bounds=bounds)


def test_bounds_that_do_not_fit_the_images_are_refused():
    attack = tfsam.PGD(0.1, bounds=((0.0, 0.0, -1.0), 1.0))
    x = np.zeros((2, 5, 5, 1), "float32")
    expected = r"image of shape \(5, 5, 1\)\. Received: bounds of shape \(3,\)"
    with pytest.raises(ValueError, match=expected):
        attack(lambda x: x[:, 0, 0], x, [0, 0])
    traced = tf.function(lambda x: attack(lambda x: x[:, 0, 0], x, [0, 0]))
    with pytest.raises(ValueError, match=expected):
        traced(x)


def test_pixels_outside_their_own_bounds_are_refused():
    attack = tfsam.FGSM(0.1, bounds=((0.0, -2.0), (1.0, 2.0)))
    fine, bad = np.float32([[1.0, 2.0]]), np.float32([[1.5, 2.0]])
    over = np.float32([[np.nextafter(np.float32(1), np.float32(2)), -2.0]])
    attack(lambda x: x, fine, [0])
    assert attack(lambda x: x, over, [0]).numpy().max() <= 1
    with pytest.raises(ValueError, match=r"bounds=.*Received: a value .* 0\.5"):
        attack(lambda x: x, bad, [0])
    with pytest.raises(tf.errors.InvalidArgumentError, match="x must lie in"):
        tf.function(lambda x: attack(lambda x: x, x, [0]))(bad)


def test_the_budget_is_that_of_the_widest_channel():
    bounds = ((0.0, -1.0), (1.0, 2.0))
    tfsam.PGD(2.9, bounds=bounds, steps=1)(lambda x: x, [[0.5, 0.5]], [0])
    with pytest.raises(ValueError, match=r"at most 3, the width"):
        tfsam.PGD(3.1, bounds=bounds)(lambda x: x, [[0.5, 0.5]], [0])


def test_the_contract_is_that_of_each_channel():
    x = np.float32([[0.5, 0.5]])
    bounds = ((0.0, 0.0), (1.0, 0.6))
    assert contract(x, np.float32([[1, 0.6]]), 0.5, "linf", bounds) == 0.5
    with pytest.raises(ValueError, match=r"image range \(\(0.0, 0.0\)"):
        contract(x, np.float32([[0.5, 0.7]]), 0.5, "linf", bounds)


def test_a_recorder_counts_no_point_outside_the_bounds_of_a_channel():
    recorder = Recorder((1, 2), "float32", "linf", ((0.0, 0.0), (1.0, 0.6)))
    recorder.start(tf.constant([[0.5, 0.5]]), [0])
    recorder.begin()
    logits = tf.constant([[0.0, 1.0]])
    for point in ([0.5, 0.7], [0.9, 0.6]):
        x = tf.constant([point])
        recorder.record(x, x, logits, None)
    assert recorder.path().nearest == pytest.approx([0.4])


def test_libraries_that_take_two_numbers_are_named_in_a_line():
    class Theirs(Adapter):
        pass

    with pytest.raises(ValueError, match="Theirs takes two numbers") as caught:
        Theirs(0.1, "linf", "Any", ((0.0, 0.0), (1.0, 2.0)), {})
    assert "\n" not in str(caught.value)
    # The same for all channels, they are two numbers.
    Theirs(0.1, "linf", "Any", ([0.0, 0.0], [1.0, 1.0]), {})


def test_training_keeps_to_the_bounds_of_each_channel():
    bounds = ((-1.0, -2.0), (1.0, 2.0))
    network = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
    attack = tfsam.PGD(0.5, bounds=bounds, steps=2)
    model = tfsam.RobustModel(network, perturb_inputs=attack)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(tfsam.SGD(0.1), loss, run_eagerly=True)
    x = np.float32([[1.0, 2.0], [-1.0, -2.0]])
    with pytest.raises(ValueError, match="x must lie in bounds"):
        model.fit(x[:, ::-1], np.array([0, 1]), verbose=0)
    config = keras.saving.serialize_keras_object(attack)
    again = keras.saving.deserialize_keras_object(config)
    assert again.bounds == bounds


def test_blocks_of_examples_keep_their_bounds():
    attack = attacks.get(
        "apgd_t", epsilon=0.1, steps=3, bounds=(-MEAN, 1 - MEAN), norm="l2"
    )
    x = IMAGES - MEAN
    logits_fn = Logits(lambda x: of_pixels(x + MEAN), rows=3)
    found = attack(logits_fn, x, LABELS, seed=4)
    contract(x, found, 0.1, "l2", attack.bounds)
