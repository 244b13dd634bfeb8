"""Tests of the Square attack: schedule, windows and search."""

import itertools

import hypothesis
import keras
import numpy as np
import pytest
import sklearn.datasets
import tensorflow as tf
from helpers import REFERENCE
from helpers import examples
from helpers import network
from helpers import slow
from hypothesis import strategies as st

from tfsam.attacks.autoattack import square
from tfsam.attacks.autoattack import square_moves
from tfsam.attacks.autoattack.square import Square
from tfsam.attacks.autoattack.square_windows import eta
from tfsam.attacks.autoattack.square_windows import tiles
from tfsam.attacks.autoattack.square_windows import window_shares
from tfsam.attacks.autoattack.square_windows import window_sizes
from tfsam.attacks.logits import Logits

RNG = np.random.default_rng(0)
W = RNG.normal(size=(108, 3)).astype("float32")
X = RNG.random((12, 6, 6, 3), dtype="float32")


def quadratic(x):
    """Returns six logits that are quadratic in the pixels."""
    z = tf.matmul(tf.reshape(x, [-1, 108]), tf.cast(W, x.dtype))
    return tf.concat([z, tf.square(z) / 5], axis=1)


Y = np.argmax(quadratic(X), axis=1)


def traced(attack, logits_fn, x=X, y=Y, seed=0):
    """Runs the attack in a graph, because eager queries are slow."""
    return tf.function(
        lambda x, y: attack(logits_fn, x, y, seed), autograph=False
    )(x, y).numpy()


def norms(delta, norm):
    order = {"linf": np.inf, "l2": 2, "l1": 1}[norm]
    delta = np.reshape(delta, (len(delta), -1)).astype("float64")
    return np.linalg.norm(delta, order, axis=1)


def margins(x, y, logits_fn=quadratic):
    """Returns the margins of the true class, (batch,)."""
    logits = np.array(logits_fn(x))
    rows = np.arange(len(y))
    right = logits[rows, y]
    logits[rows, y] = -np.inf
    return right - logits.max(1)


def test_the_schedule_by_hand():
    # With 10,000 queries, the schedule is not scaled.
    shares = np.r_[0, window_shares(10_000, 0.8)]
    assert len(shares) == 10_000
    ends = [10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000, 9999]
    for power, (after, last) in enumerate(itertools.pairwise([0, *ends])):
        assert (shares[after + 1 : last + 1] == 0.8 / 2**power).all()
    # With 100: iterations 0, 1 (100: after 50), 2 (200), 3 (300), ..., 99.
    np.testing.assert_array_equal(
        np.log2(0.8 / window_shares(100, 0.8))[[0, 1, 2, 4, 5, 98]],
        [2, 2, 3, 3, 4, 9],
    )
    assert not len(window_shares(1, 0.8))


def test_window_sizes_by_hand():
    linf = Square(0.1, queries=10_000)
    heights, widths = window_sizes(linf, 8, 8)
    # sqrt(0.8 * 64) = 7.2, then sqrt(0.4 * 64) = 5.06, ..., at least 1.
    assert [heights[0], heights[10], heights[-1]] == [7, 5, 1]
    np.testing.assert_array_equal(heights, widths)
    heights, _ = window_sizes(Square(0.1, "l2"), 10, 10)
    # 8.9 is 9; 6.3 is 6, made odd; at least 3.
    assert list(dict.fromkeys(heights.tolist())) == [9, 7, 5, 3]
    heights, widths = window_sizes(Square(0.1), 90, 1)
    assert heights[0] == 8 and (widths == 1).all()


def unit(pattern):
    return np.array(pattern) / np.linalg.norm(pattern)


def test_eta_by_hand():
    np.testing.assert_array_equal(eta(1, 1), [[-1]])
    # 1 + 1/4 at the centre of a half, 1/4 beside it, in quarters; then 1 + 1/4
    # + 1/9, 1/4 + 1/9 and 1/9, in 36ths. Halves weigh the same.
    for upper, lower in [
        ([[1, 5, 1]], [[1, 1, 1], [1, 5, 1]]),
        ([[1]], [[1], [5]]),
        (
            [[4, 13, 13, 13, 4], [4, 13, 49, 13, 4]],
            [[4, 13, 13, 13, 4], [4, 13, 49, 13, 4], [4, 13, 13, 13, 4]],
        ),
    ]:
        expected = unit(np.concatenate([unit(upper), -unit(lower)]))
        found = eta(*expected.shape)
        np.testing.assert_allclose(found, expected)
    # A single row has an empty upper half.
    np.testing.assert_allclose(eta(1, 3), -unit([[1, 5, 1]]))


@pytest.mark.parametrize(
    ("size", "side", "free", "count"),
    [
        (32, 6, (1, 1), 5),
        (28, 5, (1, 2), 5),
        (8, 1, (1, 0), 7),
        (3, 1, (0, 0), 3),
    ],
)
def test_the_first_grid(size, side, free, count):
    patterns, grid = tiles(size, size)
    kept = slice(free[0], size - free[1])
    inside = patterns[:, kept, kept]
    assert (inside != 0).all()
    assert (patterns != 0).sum() == inside.size
    assert grid.max() + 1 == count**2
    tile_patterns = eta(side, side), eta(side, side).T
    for pattern, expected in zip(inside, tile_patterns, strict=True):
        for tile in (0, count**2 - 1):
            np.testing.assert_array_equal(
                pattern[grid[kept, kept] == tile], expected.ravel()
            )


@pytest.mark.parametrize("queries", [1, 4])
def test_the_first_query_is_stripes(queries):
    attack = Square(0.1, queries=queries, bounds=None)
    # No candidate is accepted: the margin is constant.
    start = traced(attack, lambda x: tf.ones([tf.shape(x)[0], 6]), y=Y * 0) - X
    np.testing.assert_allclose(np.abs(start), 0.1, atol=1e-6)
    up = start > 0
    assert (up == up[:, :1]).all()
    stripes = up[:, 0].reshape(12, 18)
    assert 0.35 < stripes.mean() < 0.65
    assert len({row.tobytes() for row in stripes}) == 12


def candidates(norm, queries=200, size=9, channels=2, epsilon=0.5, count=3):
    """Returns the candidates of a search that accepts all of them."""
    attack = Square(epsilon, norm, queries, bounds=None)
    x = tf.zeros([count, size, size, channels])
    seeds = tf.stack([tf.fill([count], 3), tf.range(count)], axis=1)
    start, moves, propose = square_moves.prepared(attack, x, seeds)
    found = [start]
    for index in range(queries - 1):
        move = [tf.gather(values, index) for values in moves]
        found.append(propose(x, found[-1], move))
    return np.stack(found), window_sizes(attack, size, size)[0]


def test_linf_moves_are_squares():
    found, sides = candidates("linf")
    np.testing.assert_array_equal(np.abs(found), 0.5)
    touched = np.zeros((9, 9), bool)
    for before, after, side in zip(found, found[1:], sides, strict=False):
        for change in before != after:
            rows, columns, _ = np.nonzero(change)
            if len(rows):
                assert np.ptp(rows) < side and np.ptp(columns) < side
            for channel in np.moveaxis(change, -1, 0):
                touched |= channel
    # Windows reach the last row and column.
    assert touched.all()


def test_l2_moves_are_two_windows():
    found, sides = candidates("l2")
    np.testing.assert_allclose(
        norms(found.reshape(-1, 9 * 9 * 2), "l2"), 0.5, rtol=1e-5
    )
    for before, after, side in zip(found, found[1:], sides, strict=False):
        for old, new in zip(before, after, strict=True):
            # Outside the windows a perturbation is only rescaled; the window
            # that loses is zero but where it meets the one that gains.
            kept = (old != 0) & (new != 0)
            ratio = np.median(new[kept] / old[kept]) if kept.any() else 1
            changed = (np.abs(new - ratio * old) > 1e-5).any(-1)
            assert changed.sum() <= 2 * side**2
            lost = ((new == 0).all(-1)) & (old != 0).any(-1)
            assert lost.sum() <= side**2


def test_mass_moves_as_in_algorithm_3():
    """Compares one move with loops over examples and channels."""
    delta = RNG.normal(size=(4, 7, 7, 2)) / 10
    signs = np.where(RNG.random((4, 1, 1, 2)) < 0.5, -1.0, 1.0)
    bump, emptied = np.zeros((4, 7, 7, 1)), np.zeros((4, 7, 7, 1), bool)
    expected, epsilon = delta.copy(), 1.5
    for i, (r, c, r2, c2) in enumerate(RNG.integers(0, 5, (4, 4))):
        gains, loses = (
            np.s_[r : r + 3, c : c + 3],
            np.s_[r2 : r2 + 3, c2 : c2 + 3],
        )
        bump[(i, *gains)] = eta(3, 3)[..., None]
        emptied[(i, *loses)] = True
        unused = max(epsilon**2 - (delta[i] ** 2).sum(), 0)
        for k in range(2):
            both = (bump[i, ..., 0] != 0) | emptied[i, ..., 0]
            mass = (delta[i, ..., k][both] ** 2).sum() + unused / 2
            own = delta[i, ..., k][gains]
            new = eta(3, 3) * signs[i, 0, 0, k]
            new = new + own / np.linalg.norm(own)
            expected[i, ..., k][loses] = 0
            expected[i, ..., k][gains] = (
                new / np.linalg.norm(new) * np.sqrt(mass)
            )
    found = square_moves._move_mass(
        *(tf.constant(t) for t in (delta, bump, emptied, signs)), epsilon
    )
    np.testing.assert_allclose(found, expected, atol=1e-9)
    # The budget lost by clipping is restored.
    np.testing.assert_allclose(norms(found, "l2"), epsilon)


@hypothesis.settings(max_examples=max(examples(4), 12))
@hypothesis.given(
    epsilon=st.sampled_from([0.0, 1e-3, 0.05, 0.3, 2.0]),
    norm=st.sampled_from(["linf", "l2", "l1"]),
    queries=st.integers(1, 12),
    p_init=st.floats(1e-3, 1),
    seed=st.integers(0, 9),
    bounds=st.sampled_from([(0.0, 1.0), None]),
    dtype=st.sampled_from(["float32", "float64"]),
    shape=st.sampled_from([(6, 6, 3), (108,), (9, 12), (27, 4, 1), (2, 54, 1)]),
)
def test_budget_and_bounds_hold(
    epsilon, norm, queries, p_init, seed, bounds, dtype, shape
):
    # In l-inf, a ball that is wider than the bounds is rejected.
    hypothesis.assume(norm != "linf" or bounds is None or epsilon <= 1)
    x = X.reshape(12, *shape).astype(dtype)
    attack = Square(epsilon, norm, queries, p_init, bounds)
    found = attack(quadratic, x, Y, seed).numpy()
    assert found.dtype == x.dtype and found.shape == x.shape
    assert (norms(found - x, norm) <= epsilon * (1 + 1e-6) + 1e-6).all()
    if bounds:
        assert found.min() >= 0 and found.max() <= 1


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_whole_budget_is_used(norm):
    found = traced(Square(0.01, norm, 50, bounds=None), quadratic)
    np.testing.assert_allclose(norms(found - X, norm), 0.01, rtol=1e-4)


@pytest.mark.parametrize("norm", ["linf", slow("l2")])
def test_the_margin_never_goes_up(norm):
    epsilon = 0.005 if norm == "linf" else 0.03
    logits = Logits(quadratic, rows=4)
    first, some, most = (
        margins(traced(Square(epsilon, norm, queries), logits), Y)
        for queries in (1, 15, 60)
    )
    assert (some <= first).all() and (most <= first).all()
    assert most.mean() < some.mean() < first.mean()
    logits.count_passes()
    broken = margins(traced(Square(epsilon, norm, 60), logits), Y) < 0
    assert 0 < broken.sum() < 12
    # Unbroken examples take all queries, broken ones stop before; queries
    # made ahead in vain are added.
    asked = logits.passes.numpy()
    assert 60 * (~broken).sum() < asked[0] < 60 * 12 * 4 / 2 and asked[1] == 0


@pytest.mark.parametrize("norm", [slow("linf"), "l2", slow("l1")])
def test_asking_ahead_changes_nothing(norm, monkeypatch):
    attack = Square(0.02, norm, 50)
    logits = Logits(quadratic, rows=8)
    several = traced(attack, logits)
    monkeypatch.setattr(square, "_SMALL", 0)
    one_by_one = traced(attack, logits)
    np.testing.assert_array_equal(several, one_by_one)


@pytest.mark.parametrize("norm", ["linf", slow("l2"), slow("l1")])
def test_an_example_s_search_is_its_own(norm):
    attack = Square({"linf": 0.02, "l2": 0.1, "l1": 0.5}[norm], norm, 40)
    logits = Logits(quadratic, rows=8)
    run = tf.function(
        lambda x, y, seeds, active: attack(logits.only(active), x, y, seeds),
        autograph=False,
    )
    rows = np.array([[5, i] for i in range(12)], "int32")
    whole = run(X, Y, rows, np.ones(12, bool)).numpy()
    order = RNG.permutation(12)[:7]
    part = run(X[order], Y[order], rows[order], np.ones(7, bool))
    np.testing.assert_array_equal(part, whole[order])
    active = np.arange(12) % 3 > 0
    some = run(X, Y, rows, active).numpy()
    np.testing.assert_array_equal(some[active], whole[active])
    np.testing.assert_array_equal(some[~active], X[~active])
    assert (norms(whole - X, norm) > 0).all()
    other = run(X, Y, rows + 1, np.ones(12, bool))
    assert (norms(whole - other, norm) > 0).all()
    none = run(X, Y, rows, np.zeros(12, bool))
    np.testing.assert_array_equal(none, X)


@pytest.mark.parametrize("norm", [slow("linf"), "l2", slow("l1")])
def test_epsilon_may_be_a_tensor_and_the_batch_of_any_size(norm):
    attack = Square(1.0, norm, 30)
    logits = Logits(quadratic, rows=8)

    @tf.function(
        autograph=False,
        input_signature=[
            tf.TensorSpec([None, 6, 6, 3]),
            tf.TensorSpec([None], tf.int64),
            tf.TensorSpec([]),
        ],
    )
    def run(x, y, epsilon):
        return attack.with_epsilon(epsilon)(logits, x, y, 0)

    for epsilon in (0.02, 0.1):
        plain = traced(Square(epsilon, norm, 30), logits)
        for count in (1, 5, 12):
            found = run(X[:count], Y[:count], epsilon)
            np.testing.assert_array_equal(found, plain[:count], strict=True)


@pytest.mark.parametrize(
    ("norm", "queries"),
    [("l2", 20), slow("linf", 20), slow("l2", 1), slow("linf", 1)],
)
def test_a_loop_inside_xla_agrees(norm, queries):
    attack = Square(0.01 if norm == "linf" else 0.05, norm, queries)
    active = tf.constant(np.arange(12) % 3 > 0)
    compiled = Logits(quadratic, jit_compile=True, jit_loops=True)
    found = traced(attack, compiled.only(active))
    plain = traced(attack, Logits(quadratic).only(active))
    np.testing.assert_allclose(found, plain, atol=1e-6)


def test_a_linear_model_s_exact_robustness():
    """In l-inf, a binary linear model's margin decreases by |w| epsilon."""
    w = W[:64, 0].reshape(8, 8, 1)
    x = RNG.uniform(0.3, 0.7, (40, 8, 8, 1)).astype("float32")

    def binary(x):
        margin = tf.reduce_sum(x * w, axis=[1, 2, 3])
        return tf.stack([margin, -margin], axis=1)

    y = np.argmax(binary(x), axis=1)
    radius = margins(x, y, binary) / (2 * np.abs(w).sum())
    epsilon = np.median(radius)
    found = traced(Square(epsilon, queries=2000), Logits(binary), x, y)
    broken = margins(found, y, binary) < 0
    assert broken[radius < 0.95 * epsilon].all()
    assert not broken[radius > epsilon].any()
    assert (radius < 0.95 * epsilon).sum() > 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epsilon": -1}, "Received: epsilon=-1"),
        ({"queries": 0}, "Received: queries=0"),
        ({"queries": 1.5}, "Received: queries=1.5"),
        ({"p_init": 0}, "Received: p_init=0"),
        ({"p_init": 1.1}, "Received: p_init=1.1"),
        ({"p_init": "1"}, "Received: p_init=1"),
        ({"norm": "l0"}, "Received: norm=l0"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        Square(**{"epsilon": 0.1, **options})


def test_config_round_trip():
    attack = Square(0.1, "l2", 70, 0.5, (-1, 1))
    config = keras.saving.serialize_keras_object(attack)
    copy = keras.saving.deserialize_keras_object(config)
    assert repr(copy) == repr(attack)


# AutoAttack, of which Square is a stage, is compared at every epsilon.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "norm", "epsilon"),
    [
        ("standard", "L2", "1.0"),
        ("standard", "Linf", "0.1"),
        ("adversarial", "L2", "0.5"),
        ("adversarial", "Linf", "0.2"),
    ],
)
def test_no_weaker_than_the_reference(name, norm, epsilon):
    """The reference never draws a window in the last row or column.

    What the reference's whole ensemble leaves would cost all queries and tell
    nothing: a tenth of it is attacked.
    """
    digits = sklearn.datasets.load_digits()
    x = (digits.images / 16).astype("float32")[1200:1400, ..., None]
    y = digits.target[1200:1400]
    model = network(name)
    logits = Logits(lambda x: model(x, training=False), rows=32)
    right = np.argmax(model(x), axis=1) == y
    key = f"{name}/robust/{norm}/{epsilon}"
    standard = REFERENCE[f"{key}/standard"]
    active = right & (~standard | (np.cumsum(standard) % 10 == 1))
    attack = Square(float(epsilon), norm.lower())
    found = traced(attack, logits.only(tf.constant(active)), x, y)
    left = right & (np.argmax(model(found), axis=1) == y)
    assert left.mean() <= REFERENCE[f"{key}/square"].mean() + 0.04
    # Nor much stronger: the ensemble is close to the truth.
    assert left.mean() >= standard.mean() - 0.02
