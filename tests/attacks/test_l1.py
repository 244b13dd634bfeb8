"""Tests of attacks in l1: exact distances, l1-APGD's rules and its ensemble."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import TESTS
from helpers import network
from helpers import slow

import tfsam
from tfsam import attacks
from tfsam.attacks import get
from tfsam.attacks import noise
from tfsam.attacks.autoattack import apgd_l1
from tfsam.attacks.autoattack import square_moves
from tfsam.attacks.autoattack.square_windows import eta
from tfsam.attacks.check import check

RNG = np.random.default_rng(0)
WEIGHTS = RNG.uniform(0.5, 1.5, 36) * np.where(RNG.random(36) < 0.5, -1, 1)
WEIGHTS = WEIGHTS.astype("float32")
X = np.clip(RNG.uniform(-0.2, 1.2, (16, 6, 6, 1)), 0, 1).astype("float32")
# Verdicts of pyautoattack 0.2.0 with seed 0 on 200 digits, which
# `python -m experiments.compare_reference --norm=l1 --save=FILE` stores.
REFERENCE = np.load(TESTS / "l1_reference.npz")
NATIVE = (
    *("apgd_ce", "apgd_t", "fab_t", "fgsm", "fmn", "noise_l1", "noise_l2"),
    *("noise_linf", "pgd", "square"),
)


def binary(x):
    """Returns the logits of a linear model of two classes."""
    z = tf.reshape(x, [-1, 36]) - 0.5
    z = tf.reduce_sum(z * tf.cast(WEIGHTS, x.dtype), 1)
    return tf.stack([-z, z], axis=1)


def curved(x):
    """Returns four logits whose gradients depend on the pixels."""
    z = binary(x)
    return tf.concat([z, tf.square(z) / 3 - 0.3], axis=1)


Y = np.argmax(binary(X), axis=1)


def l1(perturbations):
    flat = np.reshape(perturbations, (len(perturbations), -1))
    return np.abs(flat.astype("float64")).sum(1)


def exact_distances():
    """Moves pixels of binary's largest weights to their bounds, greedily."""
    distances = []
    for image, label in zip(X.reshape(-1, 36), Y, strict=True):
        needed = abs(float((image - 0.5) @ WEIGHTS))
        rising = (WEIGHTS > 0) == (label == 0)
        room = np.where(rising, 1 - image, image)
        distance = 0.0
        for pixel in np.argsort(-np.abs(WEIGHTS)):
            step = min(room[pixel], needed / abs(WEIGHTS[pixel]))
            distance += step
            needed -= step * abs(WEIGHTS[pixel])
        distances.append(distance)
    return np.array(distances)


def traced(attack, logits_fn=binary, x=X, y=Y):
    """Runs an attack in a graph."""
    run = tf.function(lambda x, y: attack(logits_fn, x, y, 0), autograph=False)
    return run(tf.constant(x), tf.constant(y)).numpy()


@pytest.mark.parametrize(
    ("name", "options", "tolerance"),
    [
        ("apgd_ce", {}, 0.01),
        slow("fab_t", {"steps": 20}, 0.001),
        slow("fmn", {}, 0.01),
        ("pgd", {"steps": 100, "step_size": 0.02}, 0.02),
        slow("apgd_t", {}, 0.01),
    ],
)
def test_a_linear_model_has_its_exact_robust_accuracy(name, options, tolerance):
    """Breaks exactly the examples that epsilon suffices for, in the box."""
    distances = exact_distances()
    epsilon = float(np.median(distances))
    x_adv = traced(get(name, epsilon=epsilon, norm="l1", **options))
    broken = np.argmax(binary(x_adv), axis=1) != Y
    assert (l1(x_adv - X) <= epsilon * (1 + 4e-7)).all()
    sure = np.abs(distances / epsilon - 1) > tolerance
    assert sure.sum() >= 14
    np.testing.assert_array_equal(broken[sure], distances[sure] < epsilon)


def test_minimum_norm_attacks_find_the_exact_distances():
    for attack in (attacks.FABT(1.0, "l1", 20), attacks.FMN(1.0, "l1")):
        found = tf.function(attack.closest, autograph=False)(
            binary, tf.constant(X), tf.constant(Y), tf.zeros([16, 2], tf.int32)
        )
        assert (np.argmax(binary(found), axis=1) != Y).all()
        far = l1(found.numpy() - X) / exact_distances()
        assert 1 - 1e-5 <= far.min() and far.max() < 1.02


@pytest.mark.parametrize(
    "name",
    [n if n in ("fgsm", "square") else slow(n) for n in NATIVE],
)
def test_budget_and_bounds_hold(name):
    options = {"queries": 20} if name == "square" else {}
    for epsilon, bounds in ((0.3, (0.0, 1.0)), (9.0, (0.0, 1.0)), (2.0, None)):
        attack = get(name, epsilon=epsilon, norm="l1", bounds=bounds, **options)
        x_adv = traced(attack, curved)
        assert (l1(x_adv - X) <= epsilon * (1 + 4e-7)).all()
        assert (x_adv != X).any()
        if bounds:
            assert x_adv.min() >= 0 and x_adv.max() <= 1


# Enough steps for each checkpoint rule, and for each ball of l1-APGD. Tests of
# their own check the other attacks.
SHORT = {
    "apgd_ce": {"steps": 4},
    "apgd_t": {"steps": 2, "targets": 2},
    "fab_t": {"steps": 2, "targets": 2},
    "fmn": {"steps": 5},
    "noise_l1": {"samples": 3},
    "pgd": {},
    "square": {"queries": 8},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SHORT)
def test_the_contract_in_all_norms(name):
    check(name, **SHORT[name])


def test_attacks_that_do_not_take_l1_refuse_it():
    class Plain(attacks.Attack):
        """An attack older than l1 in tfsam: all but l-inf is l2."""

    for make in (
        Plain,
        attacks.factory("cleverhans_pgd"),
        attacks.factory("cleverhans_cw"),
    ):
        with pytest.raises(ValueError, match=r"^norm must be .*norm=l1$"):
            make(1.0, norm="l1")


def test_pgd_steps_along_the_largest_gradients_that_have_room():
    x = np.zeros((1, 300), "float32")
    x[0, :3] = 0.5, 1.0, 0.5
    slopes = np.linspace(1, 0.1, 300).astype("float32")
    slopes[2] = -0.99  # The second is at the bound to which it would move.

    def logits(x):
        z = tf.reduce_sum(x * slopes, 1)
        return tf.stack([-z, z], axis=1)

    attack = tfsam.PGD(3.0, "l1", 1, 0.6, random_start=False)
    moved = (attack(logits, x, np.zeros(1, int)) - x).numpy()[0]
    expected = np.zeros(300)
    expected[[0, 2, 3]] = 0.2, -0.2, 0.2  # The largest 1 %: 3 of 300.
    np.testing.assert_allclose(moved, expected, atol=1e-6)
    # The same where the size of an image is unknown when it is traced.
    run = tf.function(
        lambda x: attack(logits, x, tf.zeros([1], tf.int32), 0),
        [tf.TensorSpec([None, None])],
        autograph=False,
    )
    np.testing.assert_allclose(run(x)[0] - x[0], expected, atol=1e-6)
    assert tfsam.PGD(3.0, "l1").follows_gradient
    assert not tfsam.PGD(3.0, "l1", steps=7).follows_gradient


def test_training_with_pgd_in_l1():
    network = keras.Sequential(
        [keras.Input((6, 6, 1)), keras.layers.Flatten(), keras.layers.Dense(2)]
    )
    model = tfsam.RobustModel(
        network, perturb_inputs=tfsam.PGD(0.5, "l1", steps=2)
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(tfsam.SGD(0.1), loss, metrics=["accuracy"])
    history = model.fit(X, Y, batch_size=8, epochs=2, verbose=0).history
    assert history["loss"][1] < history["loss"][0]


def test_the_schedule_of_l1_apgd():
    turns = apgd_l1.schedule(100)
    radii = [turn.radius for turn in turns]
    assert radii == [3] * 31 + [2] * 31 + [1] * 40
    assert [i for i, turn in enumerate(turns) if turn.leaves] == [30, 61]
    # max(floor(0.04 n), 1) is 1: all points but the first of a ball.
    adapts = [i for i, turn in enumerate(turns) if not turn.adapts]
    assert adapts == [0, 31, 62]
    adapts = [i for i, turn in enumerate(apgd_l1.schedule(200)) if turn.adapts]
    assert adapts[:60] == [*range(2, 61, 2), *range(63, 122, 2)][:60]
    # Balls of steps: at least one is left for epsilon itself.
    for steps, expected in (
        (1, [1]),
        (2, [1, 1]),
        (3, [3, 3, 2, 2, 1]),
        (4, [3, 3, 2, 2, 1, 1]),
        (7, [3] * 4 + [2] * 4 + [1]),
    ):
        turns = apgd_l1.schedule(steps)
        assert [turn.radius for turn in turns] == expected
        assert len(turns) == steps + sum(turn.leaves for turn in turns)


def state(**values):
    """Returns a state of two examples of four pixels around 0."""
    values = {
        "x": [[0.4, 0, 0, 0]] * 2,
        "step_size": [1.0] * 2,
        "count": np.int32([4, 4]),
        "sparsity": np.int32([4, 4]),
        "broken": [False] * 2,
        "best": [[0.1, 0.2, 0, 0]] * 2,
        "best_loss": [1.0] * 2,
        "best_slope": [[9.0] * 4] * 2,
        **values,
    }
    return apgd_l1._State(**{k: tf.constant(v) for k, v in values.items()})


def test_the_step_size_follows_from_the_sparsity():
    before = state(sparsity=np.int32([2, 3]))
    x, slope = tf.zeros([2, 4]), tf.ones([2, 4])
    after, at = apgd_l1._adapted(x, before, slope, tf.constant(0.9))
    # As sparse as before: a shorter step. Sparser: back to the best point.
    np.testing.assert_allclose(after.step_size, [1 / 1.5, 0.9])
    np.testing.assert_allclose(after.x, [[0.4, 0, 0, 0], [0.1, 0.2, 0, 0]])
    np.testing.assert_array_equal(at, [[1] * 4, [9] * 4])
    np.testing.assert_array_equal(after.sparsity, [2, 2])
    np.testing.assert_array_equal(after.count, [2, 2])  # ceil(2 / 1.5).
    # The step size is at least a tenth of the radius.
    small = state(step_size=[0.1, 0.1], sparsity=np.int32([2, 2]))
    after, _ = apgd_l1._adapted(x, small, slope, tf.constant(0.9))
    np.testing.assert_allclose(after.step_size, [0.09] * 2)
    # Broken examples stay where they are.
    broken = state(sparsity=np.int32([9, 9]), broken=[True, False])
    after, _ = apgd_l1._adapted(x, broken, slope, tf.constant(0.9))
    np.testing.assert_allclose(after.x, [[0.4, 0, 0, 0], [0.1, 0.2, 0, 0]])


def test_a_step_and_a_smaller_ball():
    attack = attacks.apgd_ce(0.3, "l1")
    x, slope = tf.zeros([2, 4]), tf.constant([[1.0, -2.0, 4.0, 3.0]] * 2)
    before = state(count=np.int32([1, 2]), broken=[False, False])
    after = apgd_l1._moved(attack, x, before, slope, tf.constant(0.9))
    # 0.4 and 1 in a ball of 0.9: less 0.25 each. Below, 0.4, 0.5 and 0.5: less
    # 1/6 each.
    expected = [[0.15, 0, 0.75, 0], [7 / 30, 0, 1 / 3, 1 / 3]]
    np.testing.assert_allclose(after.x, expected, rtol=1e-6)
    stays = before._replace(broken=tf.constant([True, False]))
    after = apgd_l1._moved(attack, x, stays, slope, tf.constant(0.9))
    np.testing.assert_allclose(after.x[0], [0.4, 0, 0, 0])
    # From the best point into a ball of 0.2: less 0.05 each.
    after = apgd_l1._entered(attack, x, before, tf.constant(0.2))
    np.testing.assert_allclose(after.x, [[0.05, 0.15, 0, 0]] * 2, rtol=1e-6)
    np.testing.assert_allclose(after.step_size, [0.2] * 2)
    np.testing.assert_array_equal(after.sparsity, [2, 2])
    np.testing.assert_array_equal(after.count, [2, 2])
    assert (after.best_loss.numpy() == tf.float32.min).all()
    first = apgd_l1._initial(tf.zeros([3, 5, 5, 1]), tf.constant(0.9))
    np.testing.assert_array_equal(first.count, [5] * 3)  # A fifth of 25.
    np.testing.assert_array_equal(first.sparsity, [25] * 3)


def test_only_points_within_epsilon_break_an_example():
    """A point of a larger ball is not where the search ends."""
    distances = exact_distances()
    epsilon = float(distances.min()) * 0.6  # 3 epsilon would suffice.
    assert (distances < 3 * epsilon).any()
    x_adv = traced(attacks.apgd_ce(epsilon, "l1", 10))
    assert (np.argmax(binary(x_adv), axis=1) == Y).all()
    np.testing.assert_allclose(l1(x_adv - X), epsilon, rtol=1e-5)


@pytest.mark.slow
def test_an_epsilon_that_is_a_tensor_and_parts_of_the_batch():
    whole = traced(attacks.apgd_t(0.5, "l1", 10, 2), curved)
    attack = attacks.apgd_t(0.0, "l1", 10, 2)
    rows = [5, 2, 11]
    seeds = tf.constant([[0, row] for row in rows])
    part = tf.function(
        lambda x, y, epsilon: attack.with_epsilon(epsilon)(curved, x, y, seeds),
        autograph=False,
    )(X[rows], Y[rows], tf.constant(0.5))
    np.testing.assert_allclose(part, whole[rows], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["apgd_ce", "fab_t", "fmn", "pgd", "square"])
def test_a_loop_inside_xla_agrees(name):
    options = {"queries": 20} if name == "square" else {"steps": 5}
    attack = get(name, epsilon=0.1, norm="l1", **options)
    compiled = attacks.Logits(curved, jit_compile=True, jit_loops=True)
    plain = traced(attack, attacks.Logits(curved))
    np.testing.assert_allclose(traced(attack, compiled), plain, atol=1e-5)


def test_the_ensemble_in_l1():
    """Croce and Hein, 2021, section 5, and their code."""
    stages = dict(get("autoattack", epsilon=12.0, norm="l1").stages)
    assert list(stages) == ["apgd_ce", "apgd_t", "fab_t", "square"]
    ce, t, fab, square = (stage.get_config() for stage in stages.values())
    assert (ce["steps"], ce["restarts"], ce["loss"], ce["targets"]) == (
        *(100, 5, "cross_entropy", 0),
    )
    assert (t["steps"], t["restarts"], t["loss"], t["targets"]) == (
        *(100, 1, "dlr", 5),
    )
    assert (fab["steps"], fab["targets"]) == (100, 9)
    assert (square["queries"], square["p_init"]) == (5000, 0.8)
    assert {(s.epsilon, s.norm) for s in stages.values()} == {(12.0, "l1")}


def test_noise_fills_the_surface_of_the_l1_ball():
    x = np.full((500, 36), 0.5, "float32")
    y = np.argmax(binary(x), axis=1)
    attack = noise.NoiseL1(2.0, "l1", samples=1, bounds=None)
    moved = (attack(binary, x, y, 1) - x).numpy()
    np.testing.assert_allclose(l1(moved), 2.0, rtol=1e-6)
    assert np.abs(moved.mean(0)).max() < 0.02
    # The size of an entry is Beta(1, d - 1): its mean square is 2/(d (d + 1)).
    np.testing.assert_allclose((moved**2).mean(), 4 * 2 / (36 * 37), rtol=0.05)


def test_the_windows_of_square_in_l1():
    # 1 + 1/16 at the centre of a half, 1/16 beside it. Halves weigh the same.
    upper = np.array([1, 17, 1]) / 19
    lower = np.array([[1, 1, 1], [1, 17, 1]]) / 22
    expected = np.concatenate([upper[None], -lower]) / 2
    np.testing.assert_allclose(eta(3, 3, "l1"), expected)
    delta = RNG.normal(size=(2, 5, 5, 2)) / 20
    bump, emptied = np.zeros((2, 5, 5, 1)), np.zeros((2, 5, 5, 1), bool)
    bump[:, :3, 1:4], emptied[:, 2:, 2:] = expected[..., None], True
    signs = np.array([1.0, -1.0]).reshape(1, 1, 1, 2)
    found = square_moves._move_mass_l1(
        *(tf.constant(t) for t in (delta, bump, emptied, signs)), 4.0
    ).numpy()
    gaining = np.zeros((5, 5), bool)
    gaining[:3, 1:4] = True
    losing = emptied[0, ..., 0] & ~gaining
    for i in range(2):
        unused = max(4 - np.abs(delta[i]).sum(), 0)
        for k in range(2):
            old, new = delta[i, ..., k], found[i, ..., k]
            mass = unused + 2 * np.abs(old[gaining | losing]).sum()
            np.testing.assert_allclose(np.abs(new[gaining]).sum(), mass)
            np.testing.assert_array_equal(new[losing], 0)
            kept = ~(gaining | losing)
            np.testing.assert_array_equal(new[kept], old[kept])
            own = old[gaining] / np.abs(old[gaining]).sum()
            shape = signs[0, 0, 0, k] * expected.ravel() + own
            shape *= mass / np.abs(shape).sum()
            np.testing.assert_allclose(new[gaining], shape)


def test_every_attack_is_evaluated():
    listed = [
        ("apgd_ce", {"steps": 10}),
        "fmn",
        ("noise_l1", {"samples": 2}),
    ]
    distances = exact_distances()
    epsilons = [float(np.quantile(distances, q)) for q in (0.3, 0.85)]
    rows = tfsam.evaluate(
        binary, (X, Y), listed, "l1", epsilons, batch_size=16, strict=True
    )["robust"]
    assert [row["norm"] for row in rows] == ["l1"] * 6
    robust = [float(np.mean(distances > epsilon)) for epsilon in epsilons]
    for row, exact in zip(rows, robust * 3, strict=True):
        assert row["max_perturbation"] <= row["epsilon"] * (1 + 1e-6)
        assert row["accuracy"] >= exact
    assert [row["accuracy"] for row in rows[2:4]] == robust  # FMN.


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "cell", ["standard/1/autoattack", "adversarial/1.5/autoattack"]
)
def test_the_verdicts_of_the_reference(cell, digits):
    """Attacks what the reference breaks, and a tenth of what it leaves.

    An example that the reference leaves cannot show that an attack is weaker.
    Each network and each epsilon is in a cell.
    """
    name, epsilon, attack = cell.split("/")
    x, y = digits[0][1200:1400], digits[1][1200:1400]
    model, expected = network(name), REFERENCE[cell]
    right = np.argmax(model(x), axis=1) == y
    attacked = right & (~expected | (np.cumsum(expected) % 10 == 1))
    x, y, expected = x[attacked], y[attacked], expected[attacked]
    logits = attacks.Logits(lambda x: model(x, training=False), rows=32)
    attack = get(attack, epsilon=float(epsilon), norm="l1")
    found = traced(attack, logits, x, y)
    stands = np.argmax(model(found), axis=1) == y
    assert 5 < expected.sum() < 15 < 50 < (~expected).sum()
    assert (stands & ~expected).sum() <= 2
    assert (stands != expected).sum() <= 4
    moved = found.astype("float64") - x
    assert (l1(moved) <= float(epsilon) * (1 + 4e-7)).all()
