"""Tests of APGD: the paper's rules by hand, and against the reference."""

import numpy as np
import pytest
import tensorflow as tf
from helpers import REFERENCE
from helpers import network
from helpers import slow

from tfsam.attacks import Logits
from tfsam.attacks import get
from tfsam.attacks.autoattack import apgd
from tfsam.attacks.autoattack import apgd_search

RNG = np.random.default_rng(0)
W = RNG.normal(size=(16, 5)).astype("float32")
X = RNG.uniform(0.2, 0.8, size=(20, 4, 4, 1)).astype("float32")
NAMES = ("apgd_ce", "apgd_dlr", "apgd_t")
# A loss for each of the two, of which DLR is tested by hand elsewhere.
SOME = [slow(name) if name == "apgd_dlr" else name for name in NAMES]


def linear(x):
    return tf.matmul(tf.reshape(x, [-1, 16]), tf.cast(W, x.dtype))


def curved(x):
    z = linear(x)
    return z + 2 * tf.sin(3 * z)


Y = np.argmax(curved(X), axis=1)


def norms(delta, norm):
    order = np.inf if norm == "linf" else 2
    return np.linalg.norm(np.reshape(delta, (len(delta), -1)), order, axis=1)


def test_checkpoints_are_the_paper_s():
    """Section 3.2: p = 0, 0.22, 0.41, 0.57, 0.70, 0.80, 0.87, 0.93, 0.99."""
    assert apgd_search.checkpoints(100) == [0, 22, 41, 57, 70, 80, 87, 93, 99]
    assert apgd_search.checkpoints(10) == [0, 3, 5, 6, 7, 8, 9, 10]
    assert apgd_search.checkpoints(1) == [0, 1]


def state(**values):
    ones = tf.ones([2])
    images = tf.zeros([2, 1])
    return apgd_search._State(
        **{
            "x": images + 1,
            "previous": images,
            "step_size": ones,
            "broken": ones < 0,
            "loss": ones,
            "best": images + 5,
            "best_loss": 3 * ones,
            "best_slope": images + 7,
            "rises": 4 * ones,
            "checkpoint_loss": 2 * ones,
            "just_halved": ones < 0,
            **values,
        }
    )


def test_the_step_size_is_halved_by_the_paper_s_two_conditions():
    slope = tf.zeros([2, 1])
    # 1: fewer than rho of the window's steps raised the loss: 0.75 * 4 = 3.
    after, new_slope = apgd_search._adapted(
        state(rises=tf.constant([2.0, 3.0])), slope, tf.constant(4), 0.75
    )
    np.testing.assert_array_equal(after.step_size, [0.5, 1])
    np.testing.assert_array_equal(after.x, [[5], [1]])  # Back to the best.
    np.testing.assert_array_equal(new_slope, [[7], [0]])
    np.testing.assert_array_equal(after.just_halved, [True, False])
    np.testing.assert_array_equal(after.rises, [0, 0])
    np.testing.assert_array_equal(after.checkpoint_loss, [3, 3])
    # 2: neither step size nor best loss changed since the last checkpoint.
    after, _ = apgd_search._adapted(
        state(
            checkpoint_loss=tf.constant([3.0, 3.0]),
            just_halved=tf.constant([False, True]),
        ),
        slope,
        tf.constant(4),
        0.75,
    )
    np.testing.assert_array_equal(after.step_size, [0.5, 1])


def test_a_step_is_equation_1():
    """x + 0.75 (z - x) + 0.25 (x - previous), z the projected gradient step."""
    attack = get("apgd_ce", epsilon=0.1, bounds=None)
    x = tf.zeros([1, 2])
    now = state(
        x=tf.constant([[0.02, 0.1]]),
        previous=tf.constant([[0.04, 0.06]]),
        step_size=tf.constant([0.05]),
    )
    slope = tf.constant([[3.0, -1.0]])
    moved = apgd_search._moved(attack, x, now, slope, first=tf.constant(False))
    z = [0.07, 0.05]
    expected = [
        0.02 + 0.75 * (z[0] - 0.02) + 0.25 * (0.02 - 0.04),
        0.1 + 0.75 * (z[1] - 0.1) + 0.25 * (0.1 - 0.06),
    ]
    np.testing.assert_allclose(moved, [expected], rtol=1e-6)
    moved = apgd_search._moved(attack, x, now, slope, first=tf.constant(True))
    np.testing.assert_allclose(moved, [z], rtol=1e-6)
    start = apgd_search._initial(attack, tf.zeros([3, 2]))
    np.testing.assert_allclose(start.step_size, [0.2] * 3, rtol=1e-6)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("name", SOME)
@pytest.mark.parametrize("bounds", [(0.0, 1.0), slow(None)])
def test_budget_and_bounds_hold(name, norm, bounds):
    for epsilon in (0.03, 0.9):
        attack = get(name, epsilon=epsilon, norm=norm, steps=5, bounds=bounds)
        x_adv = attack(curved, X, Y, 0).numpy()
        assert (norms(x_adv - X, norm) <= epsilon * (1 + 1e-6) + 1e-6).all()
        if bounds:
            assert x_adv.min() >= 0 and x_adv.max() <= 1


@pytest.mark.parametrize(
    ("name", "norm"),
    [
        ("apgd_ce", "linf"),
        ("apgd_t", "l2"),
        slow("apgd_ce", "l2"),
        slow("apgd_t", "linf"),
        *(slow("apgd_dlr", norm) for norm in ("linf", "l2")),
    ],
)
def test_a_linear_model_has_its_exact_robust_accuracy(name, norm):
    """Breaks exactly the examples that epsilon suffices for."""
    y = np.argmax(linear(X), axis=1)
    z = linear(X).numpy()
    distance = np.full(20, np.inf)
    for other in range(5):
        rows = W[:, y] - W[:, [other]]
        dual = np.linalg.norm(rows, 1 if norm == "linf" else 2, axis=0)
        gap = z[np.arange(20), y] - z[:, other]
        far = np.where(other == y, np.inf, gap / np.maximum(dual, 1e-9))
        distance = np.minimum(distance, far)
    epsilon = float(np.median(distance))
    attack = get(name, epsilon=epsilon, norm=norm, steps=25, bounds=None)
    x_adv = attack(linear, X, y, 0)
    broken = np.argmax(linear(x_adv), axis=1) != y
    sure = np.abs(distance / epsilon - 1) > 0.01
    assert not (broken & sure & (distance > epsilon)).any()
    if name == "apgd_t":  # The others climb towards a mixture of classes.
        np.testing.assert_array_equal(broken[sure], distance[sure] < epsilon)
    assert 5 < broken.sum() < 15


@pytest.mark.parametrize("name", SOME)
def test_verdicts_do_not_depend_on_the_batch(name):
    attack = get(name, epsilon=0.1, steps=10)
    seeds = np.stack([np.zeros(20), np.arange(20)], axis=1).astype("int32")

    def run(order, rows):
        logits = Logits(curved, rows=rows)
        x_adv = attack(logits, X[order], Y[order], seeds[order])
        return x_adv.numpy()

    everyone = np.arange(20)
    whole = run(everyone, 8)
    order = RNG.permutation(20)[:11]
    np.testing.assert_array_equal(run(order, 8), whole[order])
    np.testing.assert_allclose(run(everyone, None), whole, atol=1e-4)
    active = everyone % 2 == 0
    some = attack(Logits(curved, rows=8).only(active), X, Y, seeds).numpy()
    np.testing.assert_array_equal(
        some, np.where(active.reshape(-1, 1, 1, 1), whole, X)
    )


def test_it_stops_at_the_first_broken_iterate():
    attack = get("apgd_ce", epsilon=0.3, steps=20)
    logits = Logits(curved, rows=8)
    logits.count_passes()
    x_adv = attack(logits, X, Y, 0)
    assert (np.argmax(curved(x_adv), axis=1) != Y).all()
    assert logits.passes[1] < 20 * 20 // 2


def test_epsilon_may_be_a_tensor():
    attack = get("apgd_t", epsilon=0.0, norm="l2", steps=3)
    run = tf.function(
        lambda e: attack.with_epsilon(e)(Logits(curved, rows=8), X, Y, 0),
        autograph=False,
    )
    for epsilon in (0.1, 0.3):
        found = run(tf.constant(epsilon))
        expected = get("apgd_t", epsilon=epsilon, norm="l2", steps=3)(
            Logits(curved, rows=8), X, Y, 0
        )
        np.testing.assert_allclose(found, expected, atol=1e-5)
    assert run.experimental_get_tracing_count() == 1


@pytest.mark.parametrize("name", ["apgd_ce", slow("apgd_t")])
def test_the_loop_inside_xla_agrees(name):
    attack = get(name, epsilon=0.05, steps=10)
    plain = attack(Logits(curved), X, Y, 0)
    whole = Logits(curved, jit_compile=True, jit_loops=True)
    run = tf.function(lambda: attack(whole, X, Y, 0), autograph=False)
    np.testing.assert_allclose(run(), plain, atol=1e-4)


@pytest.mark.parametrize("classes", [2, 3, slow(4)])
def test_few_classes(classes):
    def few(x):
        return curved(x)[:, :classes]

    y = np.argmax(few(X), axis=1)
    for name in NAMES:
        x_adv = get(name, epsilon=0.2, steps=10)(few, X, y, 0)
        assert (np.argmax(few(x_adv), axis=1) != y).mean() > 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "Received: steps=0"),
        ({"restarts": 0}, "Received: restarts=0"),
        ({"norm": "l0"}, "Received: norm=l0"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        get("apgd_ce", **{"epsilon": 0.1, **options})
    with pytest.raises(ValueError, match="Received: loss=l3"):
        apgd.APGD(0.1, loss="l3")
    with pytest.raises(ValueError, match="Received: rho=5"):
        apgd.APGD(0.1, rho=5.0)


CELLS = [
    (model, norm, epsilon)
    for model in ("standard", "adversarial")
    for norm, epsilons in (
        ("linf", (0.05, 0.1, 0.15, 0.2)),
        ("l2", (0.25, 0.5, 1.0)),
    )
    for epsilon in epsilons
]


@pytest.fixture(scope="module")
def attacked(digits):
    return digits[0][1200:1400], digits[1][1200:1400]


@pytest.mark.parametrize(
    ("name", "model", "norm"),
    [
        ("apgd_ce", "standard", "linf"),
        slow("apgd_ce", "adversarial", "l2"),
        slow("apgd_ce", "standard", "l2"),
        slow("apgd_ce", "adversarial", "linf"),
        slow("apgd_t", "standard", "l2"),
        slow("apgd_t", "adversarial", "linf"),
    ],
)
def test_it_is_as_strong_as_the_reference(name, model, norm, attacked):
    """Compares 200 digits with stored verdicts of the reference.

    Examples that all of AutoAttack leaves take all steps and tell nothing: they
    are not attacked.
    """
    x, y = attacked
    net = network(model)
    logits = Logits(lambda x: net(x, training=False), rows=32)
    right = np.argmax(net(x), axis=1) == y
    attack = get(name, epsilon=0.0, norm=norm)
    run = tf.function(
        lambda epsilon, active: attack.with_epsilon(epsilon)(
            logits.only(active), x, y, 0
        ),
        autograph=False,
    )
    for _, _, epsilon in (c for c in CELLS if c[:2] == (model, norm)):
        key = f"{model}/robust/{norm.capitalize()}/{epsilon}"
        active = right & ~REFERENCE[f"{key}/standard"]
        found = run(epsilon, tf.constant(active))
        stands = right & (np.argmax(net(found), axis=1) == y)
        reference = REFERENCE[f"{key}/{name.replace('_', '-')}"]
        assert stands.mean() <= reference.mean() + 0.02
        assert (stands != reference).mean() <= 0.05
