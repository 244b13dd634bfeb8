"""Attacks with an epsilon for each example: as if each were alone."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import counted_graphs
from helpers import slow

import tfsam
from tfsam import attacks
from tfsam import geometry
from tfsam import registries
from tfsam.attacks import Attack
from tfsam.attacks.check import contract
from tfsam.attacks.logits import Logits

RNG = np.random.default_rng(1)
X = RNG.uniform(0.1, 0.9, (3, 3, 3, 2)).astype("float32")
HIDDEN = RNG.normal(size=(18, 6)).astype("float32")
OUTPUT = RNG.normal(size=(6, 4)).astype("float32")


def smooth(x):
    return tf.tanh(tf.reshape(x, [-1, 18]) @ HIDDEN) @ OUTPUT


Y = np.argmax(smooth(tf.constant(X)), axis=1)
SEEDS = np.int32([[5, 0], [5, 1], [5, 2]])
RADII = {
    "linf": np.array([0.0, 0.05, 0.3]),
    "l2": np.array([0.0, 0.2, 1.0]),
    "l1": np.array([0.0, 0.5, 3.0]),
}

# Every native attack; an option that makes it short.
NATIVE = {
    "apgd_ce": {"steps": 3, "restarts": 2},
    "apgd_t": {"steps": 3},
    "fab": {"steps": 2, "restarts": 2},
    "fab_t": {"steps": 2},
    "fgsm": {},
    "fgsm_rs": {},
    "fmn": {"steps": 4},
    "malt": {"steps": 4, "targets": 2},
    "noise_l1": {"samples": 2},
    "noise_l2": {"samples": 2},
    "noise_linf": {"samples": 2},
    "pgd": {"steps": 3, "early_stop": True},
    "pgd_kl": {"steps": 3},
    "square": {"queries": 6},
}


def assert_as_if_alone(attack, logits_fn, radii, tolerance=1e-6):
    """Checks an attack on a batch against those on each of its examples."""
    norm = attack.norm
    found = attack.with_epsilon(radii)(logits_fn, X, Y, SEEDS).numpy()
    contract(X, found, radii, norm, attack.bounds)
    for row, radius in enumerate(radii):
        one = slice(row, row + 1)
        alone = attack.with_epsilon(float(radius))
        expected = alone(logits_fn, X[one], Y[one], SEEDS[one]).numpy()
        np.testing.assert_allclose(found[one], expected, rtol=0, atol=tolerance)
    return found


# By default, a norm for each attack but those that are others with options.
QUICK = {
    *(("apgd_ce", "l1"), ("apgd_t", "l2"), ("fab", "linf"), ("fab_t", "l2")),
    *(("fgsm", "linf"), ("fmn", "l2"), ("noise_l2", "linf"), ("pgd", "l2")),
    ("square", "linf"),
}
# These are others with options, which have nothing to do with the norm.
LIKE_OTHERS = ("fgsm_rs", "malt", "pgd_kl")
CASES = [
    (name, norm) if (name, norm) in QUICK else slow(name, norm)
    for name in NATIVE
    for norm in (("linf",) if name in LIKE_OTHERS else geometry.NORMS)
]


@pytest.mark.parametrize(("name", "norm"), CASES)
def test_each_example_is_attacked_as_if_it_were_alone(name, norm):
    attack = attacks.get(name, epsilon=0.1, norm=norm, **NATIVE[name])
    assert attack.example_epsilons
    found = assert_as_if_alone(attack, smooth, RADII[norm])
    np.testing.assert_array_equal(found[0], X[0])
    # A search for the nearest point may find none in so few steps.
    if name not in ("fab", "fmn"):
        assert (found[-1] != X[-1]).any()


@pytest.mark.parametrize("name", ["autoattack", slow("autoattack_plus")])
@pytest.mark.parametrize("norm", ["linf", slow("l2")])
def test_ensembles_pass_it_on(name, norm):
    """With radii at which every example is soon broken."""
    radii = {"linf": np.array([0.5, 0.6, 0.8])}
    radii["l2"] = 4 * radii["linf"]
    attack = attacks.get(name, epsilon=0.1, norm=norm)
    found = assert_as_if_alone(attack, smooth, radii[norm])
    assert (np.argmax(smooth(found), axis=1) != Y).all()


def test_every_native_attack_takes_it():
    for name in registries.ATTACKS.native:
        assert attacks.get(name, epsilon=0.1).example_epsilons


@pytest.mark.parametrize(
    "name", ["apgd_t", slow("fab_t"), slow("fmn"), slow("square")]
)
def test_in_blocks(name):
    attack = attacks.get(name, epsilon=0.1, norm="l2", **NATIVE[name])
    blocks = Logits(smooth, rows=2)
    x_adv = attack.with_epsilon(RADII["l2"])(blocks, X, Y, SEEDS).numpy()
    whole = attack.with_epsilon(RADII["l2"])(smooth, X, Y, SEEDS).numpy()
    np.testing.assert_allclose(x_adv, whole, atol=1e-5)


@pytest.mark.parametrize(
    "name", [slow("apgd_t"), "fab_t", slow("fmn"), slow("square")]
)
def test_on_a_surrogate(name):
    attack = attacks.get(name, epsilon=0.1, norm="l2", **NATIVE[name])
    surrogate = Logits(smooth).as_surrogate()
    assert_as_if_alone(attack, surrogate, RADII["l2"], 1e-5)


def test_a_trace_serves_all_epsilons_of_a_batch():
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Flatten(), keras.layers.Dense(64, "tanh")]
    network = keras.Sequential(
        [keras.Input(X.shape[1:]), *layers, keras.layers.Dense(4)]
    )
    y = np.argmax(network(X), axis=1)
    attack = attacks.get("apgd_t", epsilon=0.1, steps=3)
    first = attack.with_epsilon(RADII["linf"])(network, X, y, 0).numpy()
    with counted_graphs() as graphs:
        other = RADII["linf"][::-1]
        found = attack.with_epsilon(other)(network, X, y, 0).numpy()
    assert not graphs
    contract(X, first, RADII["linf"], "linf", (0.0, 1.0))
    contract(X, found, other, "linf", (0.0, 1.0))
    assert (found[0] != X[0]).any() and (found[2] == X[2]).all()


@pytest.mark.parametrize("name", ["apgd_t", slow("square"), slow("fab_t")])
def test_in_a_graph_for_batches_of_any_size(name):
    attack = attacks.get(name, epsilon=0.1, **NATIVE[name])

    @tf.function(
        autograph=False,
        input_signature=[
            tf.TensorSpec((None, *X.shape[1:])),
            tf.TensorSpec([None], tf.int64),
            tf.TensorSpec([None]),
        ],
    )
    def run(x, y, radii):
        return attack.with_epsilon(radii)(smooth, x, y, 0)

    radii = RADII["linf"].astype("float32")
    for count in (3, 2):
        x_adv = run(X[:count], Y[:count], radii[-count:])
        contract(X[:count], x_adv, radii[-count:], "linf", (0.0, 1.0))
        # The search for the nearest point may find none in so few steps.
        assert name == "fab_t" or (x_adv.numpy()[-1] != X[count - 1]).any()


def test_float16_images_keep_to_it():
    x = X.astype("float16")
    attack = tfsam.PGD(0.1, norm="l2").with_epsilon(RADII["l2"])
    x_adv = attack(lambda x: smooth(tf.cast(x, tf.float32)), x, Y)
    contract(x, x_adv, RADII["l2"], "l2", (0.0, 1.0))


@pytest.mark.parametrize(
    ("epsilon", "message"),
    [
        ([[0.1], [0.2]], r"Normalization layer\. Received: .*shape \(2, 1\)"),
        ([0.1, -0.2], r">= 0\. Received: epsilon=-0\.2"),
        ([0.1, float("nan")], r"finite number"),
        ([0.1, 8.0], r"at most 1, the width of the bounds"),
    ],
)
def test_epsilons_that_are_none_are_refused(epsilon, message):
    with pytest.raises(ValueError, match=message):
        tfsam.PGD(0.1).with_epsilon(epsilon)


def test_there_must_be_as_many_as_examples():
    attack = tfsam.PGD(0.1).with_epsilon([0.1, 0.2])
    with pytest.raises(ValueError, match="Received: 2 epsilons, 3 examples"):
        attack(smooth, X, Y)


class Brighten(Attack):
    """An attack of another package, as it is in the documentation."""

    def perturb(self, logits_fn, x, y, seeds):
        return self.clip(x + self.epsilon)


def test_an_attack_that_takes_one_epsilon_says_so():
    with pytest.raises(ValueError, match="Brighten takes one epsilon for all"):
        Brighten(0.1).with_epsilon([0.1, 0.2])


def test_the_contract_is_that_of_each_example():
    """Also for an attack of another package, which leaves a smaller ball."""
    moved = X.clip(0, 0.8) + np.float32(0.1)
    x = X.clip(0, 0.8)
    assert contract(x, moved, np.full(3, 0.11), "linf", (0.0, 1.0)) < 0.11
    radii = np.array([0.2, 0.05, 0.2])
    with pytest.raises(ValueError, match=r"radius 0\.05 in linf\. .*n of 0\.1"):
        contract(x, moved, radii, "linf", (0.0, 1.0))


class Forgetful(Attack):
    """Claims to take an epsilon for each example, and uses the largest."""

    example_epsilons = True
    tensor_epsilon = True

    def perturb(self, logits_fn, x, y, seeds):
        return self.clip(x + tf.cast(tf.reduce_max(self.epsilon), x.dtype))


def test_check_finds_an_attack_that_forgets_the_smaller_ones():
    with pytest.raises(ValueError, match="with an epsilon for each example, "):
        attacks.check(Forgetful)


def test_training_needs_one_epsilon():
    """The batches of training are not those that the epsilons belong to."""
    network = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    attack = tfsam.PGD(0.1).with_epsilon([0.1, 0.2])
    with pytest.raises(ValueError, match=r"one epsilon.* Received: 2 epsilo"):
        tfsam.RobustModel(network, perturb_inputs=attack)
    with pytest.raises(ValueError, match=r"one epsilon.* Received: 2 epsilo"):
        tfsam.RobustValidation((X, Y), attack)


@pytest.mark.parametrize("norm", geometry.NORMS)
def test_radii_are_those_of_the_copies_of_a_batch(norm):
    attack = tfsam.PGD(0.1, norm=norm).with_epsilon([0.25, 0.5])
    rows = tf.zeros([6, 2, 2])
    assert attack.radius(rows).shape == (6, 1, 1)
    expected = [0.25, 0.5] * 3
    np.testing.assert_array_equal(attack.radii(rows), expected)
    moved = attack.project(tf.fill([6, 2, 2], 0.5), tf.ones([6, 2, 2]))
    sizes = geometry.example_norms(moved - 0.5, norm, keepdims=False)
    largest = {"linf": 0.5, "l2": 1.0, "l1": 2.0}[norm]
    np.testing.assert_allclose(sizes, np.minimum(expected, largest), rtol=1e-6)
    # One for all is returned as it is.
    assert tfsam.PGD(0.1).radius(rows) == tfsam.PGD(0.1).radii(rows) == 0.1
