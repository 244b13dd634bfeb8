"""Norms and balls, by their defining properties."""

import hypothesis
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tfsam import geometry

# Any batch of small images, of any size from denormal to large.
BATCHES = hnp.arrays(
    np.float32,
    st.tuples(
        st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.just(2)
    ),
    elements=st.floats(-1e4, 1e4, width=32),
)


def norms(x, norm):
    order = np.inf if norm == "linf" else 2
    flat = np.asarray(x, "float64").reshape(len(x), -1)
    return np.linalg.norm(flat, order, axis=1)


# Below the constant that guards the division, 1e-12, a radius is as good as 0.
RADII = st.just(0.0) | st.floats(1e-6, 10)


@pytest.mark.parametrize("norm", geometry.NORMS)
@hypothesis.given(x=BATCHES, radius=RADII, inside=st.booleans())
def test_projection_lands_in_the_ball_and_keeps_what_is_inside(
    norm, x, radius, inside
):
    if inside:
        x = (x * (radius / 2 / max(norms(x, norm).max(), 1.0))).astype("f4")
    found = geometry.project(tf.constant(x), radius, norm).numpy()
    assert (norms(found, norm) <= radius * (1 + 1e-6) + 1e-6).all()
    inside = norms(x, norm) <= radius * (1 - 1e-6)
    # Denormals are flushed to zero.
    np.testing.assert_allclose(found[inside], x[inside], 1e-5, 1e-37)
    again = geometry.project(tf.constant(found), radius, norm).numpy()
    np.testing.assert_allclose(again, found, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("norm", geometry.NORMS)
@hypothesis.given(x=BATCHES, scale=st.sampled_from([1.0, 1e-6, 1e-25]))
def test_steepest_maximises_the_linear_loss(norm, x, scale):
    """<g, d> = the dual norm of g, at ||d|| <= 1, however small g is."""
    gradients = (x * np.float32(scale)).astype("float32")
    gradients[np.abs(gradients) < 1e-36] = 0  # Denormals are flushed.
    found = geometry.steepest(tf.constant(gradients), norm).numpy()
    assert (norms(found, norm) <= 1 + 1e-5).all()
    axes = (1, 2, 3)
    products = (gradients.astype("float64") * found).sum(axis=axes)
    dual = np.abs(gradients.astype("float64")).sum(axis=axes)
    if norm == "l2":
        dual = norms(gradients, "l2")
    np.testing.assert_allclose(products, dual, rtol=1e-4, atol=1e-44)


@pytest.mark.parametrize("norm", geometry.NORMS)
def test_sums_and_norms_are_of_each_example(norm):
    x = np.array([[[3, -4]], [[0, 0]]], "float32")
    lengths = [4 if norm == "linf" else 5, 0]
    for keepdims, shape in ((True, (2, 1, 1)), (False, (2,))):
        found = geometry.example_norms(tf.constant(x), norm, keepdims)
        np.testing.assert_array_equal(found, np.reshape(lengths, shape))
        found = geometry.example_sums(tf.constant(x), keepdims)
        np.testing.assert_array_equal(found, np.reshape([-1, 0], shape))


def test_over_largest():
    x = np.array([[[3, -4]], [[1e-30, 0]], [[0, 0]]], "float32")
    scaled, largest = geometry.over_largest(tf.constant(x))
    np.testing.assert_array_equal(scaled, [[[0.75, -1]], [[1, 0]], [[0, 0]]])
    np.testing.assert_array_equal(largest, np.abs(x).max(axis=2, keepdims=True))


@pytest.mark.parametrize("norm", geometry.NORMS)
def test_random_points_fill_the_ball_evenly(norm):
    """P(||d|| <= s radius) = s^d for points uniform in a d-dimensional ball."""
    seeds = tf.stack([tf.fill([4000], 3), tf.range(4000)], axis=1)
    points = geometry.random_point(seeds, (4000, 2, 2, 1), 0.5, norm).numpy()
    sizes = np.sort(norms(points, norm)) / 0.5
    assert sizes[-1] <= 1 + 1e-6
    expected = (np.arange(4000) + 0.5) / 4000
    assert np.abs(sizes**4 - expected).max() < 0.03
    assert np.abs(points.mean(axis=0)).max() < 0.02


@pytest.mark.parametrize("norm", geometry.NORMS)
def test_random_points_depend_on_their_seed_alone(norm):
    seeds = tf.constant([[1, 2], [1, 3], [7, 2]])
    points = geometry.random_point(seeds, (3, 4, 4, 1), 1.0, norm).numpy()
    alone = geometry.random_point(seeds[1:2], (1, 4, 4, 1), 1.0, norm).numpy()
    np.testing.assert_array_equal(points[1], alone[0])
    assert len(np.unique(points.round(6))) > 40
    traced = tf.function(
        lambda s: geometry.random_point(s, (3, 4, 4, 1), 1.0, norm)
    )(seeds)
    np.testing.assert_array_equal(points, traced)


def test_global_norm_is_of_all_tensors_and_survives_float16():
    tensors = [tf.fill([300, 2], tf.constant(200.0, tf.float16)), tf.ones([4])]
    expected = np.sqrt(600 * 200.0**2 + 4)
    assert geometry.global_norm(tensors).numpy() == pytest.approx(expected)
    assert geometry.global_norm([tf.ones(4, tf.float64)]).dtype == tf.float64


@pytest.mark.parametrize("norm", ["l1", "Linf", 2, None])
def test_unknown_norm(norm):
    with pytest.raises(ValueError, match=f"Received: norm={norm}"):
        geometry.project(tf.ones((1, 2)), 1.0, norm)
