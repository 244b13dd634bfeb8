"""Norms and balls, by their defining properties."""

import functools

import hypothesis
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tfsam import attacks
from tfsam import geometry
from tfsam.attacks.autoattack import fab

# Any batch of small images, of any size from denormal to large.
BATCHES = hnp.arrays(
    np.float32,
    st.tuples(
        st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.just(2)
    ),
    elements=st.floats(-1e4, 1e4, width=32),
)


def norms(x, norm):
    order = {"linf": np.inf, "l2": 2, "l1": 1}[norm]
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
    # Subnormal numbers are flushed to zero.
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
    dual = norms(gradients, geometry.FACTS[norm].dual)
    np.testing.assert_allclose(products, dual, rtol=1e-4, atol=1e-44)


@pytest.mark.parametrize("norm", geometry.NORMS)
def test_sums_and_norms_are_of_each_example(norm):
    x = np.array([[[3, -4]], [[0, 0]]], "float32")
    lengths = [{"linf": 4, "l2": 5, "l1": 7}[norm], 0]
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


def nearest_in_ball_and_box(x, moved, radius, bounds):
    """Projects one example in float64, by bisection of the threshold."""
    low, high = bounds or (-np.inf, np.inf)
    x, moved = x.astype("float64"), moved.astype("float64")
    sizes = np.abs(moved - x)
    room = np.where(moved > x, high - x, x - low)

    def lengths(threshold):
        return np.minimum(np.maximum(sizes - threshold, 0), room)

    below, above = 0.0, sizes.max()
    if lengths(0).sum() <= radius:
        above = 0.0
    for _ in range(200):
        middle = (below + above) / 2
        if lengths(middle).sum() > radius:
            below = middle
        else:
            above = middle
    return x + np.sign(moved - x) * lengths(above)


@hypothesis.given(
    x=hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 3), st.integers(1, 9)),
        # TensorFlow takes subnormal numbers for zero.
        elements=st.floats(0, 1, width=32, allow_subnormal=False)
        | st.sampled_from([0.0, 1.0]),
    ),
    noise=hnp.arrays(
        np.float32,
        (3, 9),
        elements=st.floats(-100, 100, width=32, allow_subnormal=False),
    ),
    scale=st.sampled_from([1.0, 0.01, 1e-6]),
    radius=st.just(0.0) | st.floats(1e-3, 12),
    bounds=st.sampled_from([(0.0, 1.0), (-0.5, 1.25), None]),
)
def test_l1_projection_onto_ball_and_box_is_exact(
    x, noise, scale, radius, bounds
):
    moved = x + np.float32(scale) * noise[: len(x), : x.shape[1]]
    found = geometry.project_within(
        tf.constant(x), tf.constant(moved), radius, "l1", bounds
    ).numpy()
    for start, end, point in zip(x, moved, found, strict=True):
        expected = nearest_in_ball_and_box(start, end, radius, bounds)
        size = max(1.0, np.abs(end).max() if bounds is None else 1.25)
        unit = np.spacing(np.float32(size))
        np.testing.assert_allclose(point, expected, rtol=0, atol=2 * unit)
        inside = np.abs(end.astype("float64") - start).sum() <= radius
        if inside and bounds is None:
            np.testing.assert_array_equal(point, end)
    shrunk = geometry.shrink(tf.constant(x), tf.constant(found), radius, "l1")
    moves = shrunk.numpy().astype("float64") - x
    assert (np.abs(moves).sum(1) <= radius * (1 + 4e-7)).all()
    if bounds is not None:
        low, high = np.float32(bounds)
        assert low <= shrunk.numpy().min() and shrunk.numpy().max() <= high


def test_l1_projection_by_hand():
    """Solves sum_i min(max(sizes_i - t, 0), room_i) = radius for t."""

    def project(x, moved, radius, bounds=(0.0, 1.0)):
        tensors = (tf.constant([values], tf.float32) for values in (x, moved))
        found = geometry.project_within(*tensors, radius, "l1", bounds)
        return found.numpy()[0]

    # Without bounds t = 0.5; the third pixel is not worth its cost.
    x, moved = [0.5, 0.5, 0.5], [1.5, -0.25, 0.75]
    np.testing.assert_allclose(
        project(x, moved, 0.75, None), [1.0, 0.25, 0.5], rtol=1e-6
    )
    # The bound takes 0.5 of the first pixel, so that t = 0.375 is enough for
    # 0.875.
    np.testing.assert_allclose(
        project(x, moved, 0.875), [1.0, 0.125, 0.5], rtol=1e-6
    )
    # Clipping alone is enough.
    np.testing.assert_array_equal(project(x, moved, 1.5), [1.0, 0.0, 0.75])
    # A radius for each example.
    both = geometry.project_within(
        *(tf.constant([values] * 2, tf.float32) for values in (x, moved)),
        tf.constant([[0.875], [1.5]]),
        "l1",
        (0.0, 1.0),
    )
    expected = [[1.0, 0.125, 0.5], [1.0, 0.0, 0.75]]
    np.testing.assert_allclose(both, expected, rtol=1e-6)


def test_l1_projection_is_of_each_example_and_of_large_images():
    rng = np.random.default_rng(0)
    x = rng.random((6, 3072), dtype="float32")
    moved = x + rng.normal(size=x.shape).astype("float32") * [[1e-3]] * 3
    moved[3:] = x[3:] + rng.standard_cauchy((3, 3072))
    moved = moved.astype("float32")

    def project(rows):
        tensors = (tf.constant(values[rows]) for values in (x, moved))
        found = geometry.project_within(*tensors, 12.0, "l1", (0.0, 1.0))
        return found.numpy()

    whole = project(np.arange(6))
    for rows in ([3], [5, 0]):
        np.testing.assert_allclose(project(rows), whole[rows], atol=1e-7)
    for row in (0, 4):
        expected = nearest_in_ball_and_box(x[row], moved[row], 12, (0.0, 1.0))
        np.testing.assert_allclose(whole[row], expected, rtol=0, atol=2e-7)


def test_the_sparse_direction():
    gradients = tf.constant([[4.0, -3.0, 3.0, 0.5], [0.0, 0.0, -1e-30, 0.0]])
    for counts in (2, tf.constant(2), tf.constant([2, 2])):
        found = geometry.steepest_sparse(gradients, counts)
        third = [1 / 3, -1 / 3, 1 / 3, 0]  # The second and third are equal.
        np.testing.assert_allclose(found, [third, [0, 0, -1, 0]], rtol=1e-6)
    found = geometry.steepest_sparse(gradients, tf.constant([1, 9]))
    np.testing.assert_array_equal(found, [[1, 0, 0, 0], [0, 0, -1, 0]])
    zero = tf.zeros([2, 3])
    np.testing.assert_array_equal(geometry.steepest_sparse(zero, 2), zero)


def test_the_default_steps():
    steps = [geometry.default_step(0.8, norm) for norm in geometry.NORMS]
    np.testing.assert_allclose(steps, [0.2, 0.1, 0.1])


def test_global_norm_is_of_all_tensors_and_survives_float16():
    tensors = [tf.fill([300, 2], tf.constant(200.0, tf.float16)), tf.ones([4])]
    expected = np.sqrt(600 * 200.0**2 + 4)
    assert geometry.global_norm(tensors).numpy() == pytest.approx(expected)
    assert geometry.global_norm([tf.ones(4, tf.float64)]).dtype == tf.float64


@pytest.mark.parametrize("norm", ["l0", "Linf", 2, None])
def test_unknown_norm(norm):
    with pytest.raises(ValueError, match=f"Received: norm={norm}"):
        geometry.project(tf.ones((1, 2)), 1.0, norm)


def test_a_norm_without_functions_of_its_own_is_an_error(monkeypatch):
    """A norm that the table alone has is treated as none of the others."""
    monkeypatch.setitem(geometry.FACTS, "l3", geometry.FACTS["l2"])
    monkeypatch.setattr(geometry.norms, "NORMS", tuple(geometry.FACTS))
    assert geometry.check_norm("l3") == "l3"
    x, seeds = tf.ones((1, 4, 4, 1)), tf.zeros((1, 2), tf.int32)
    for compute in (
        lambda: geometry.example_norms(x, "l3"),
        lambda: geometry.steepest(x, "l3"),
        lambda: geometry.project(x, 1.0, "l3"),
        lambda: geometry.project_within(x, x, 1.0, "l3", (0.0, 1.0)),
        lambda: geometry.random_point(seeds, x.shape, 1.0, "l3"),
        lambda: fab.project_onto_hyperplane(x, x, tf.ones(1), "l3", None),
        *(
            functools.partial(kind, 0.1, norm="l3")
            for kind in (attacks.apgd_ce, attacks.AutoAttack, attacks.Square)
        ),
    ):
        with pytest.raises(ValueError, match="Received: norm=l3"):
            compute()
