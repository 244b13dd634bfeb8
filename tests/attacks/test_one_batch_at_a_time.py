"""Tests that a network without blocks processes one batch at a time."""

import numpy as np
import pytest
import tensorflow as tf
from helpers import slow

from tfsam import attacks
from tfsam.attacks import losses

RNG = np.random.default_rng(7)
W = RNG.normal(size=(36, 5)).astype("float32")
X = RNG.uniform(0.2, 0.8, (16, 6, 6, 1)).astype("float32")
Y = np.argmax(X.reshape(16, 36) @ W, axis=1)
ATTACKS = {
    "apgd_ce": {"steps": 3, "restarts": 2},
    "apgd_t": {"steps": 5},
    "fab_t": {"steps": 5},
    "square": {"queries": 30},
}


class Network:
    """Logits that record the sizes of their batches."""

    def __init__(self):
        self.seen = set()

    def __call__(self, x):
        self.seen.add(x.shape[0])
        flat = tf.reshape(x, [-1, 36])
        return tf.matmul(tf.tanh(4 * flat - 2), tf.cast(W, x.dtype))


def made(name, norm="linf"):
    epsilon = {"linf": 0.05, "l2": 0.25}[norm]
    return attacks.get(name, epsilon=epsilon, norm=norm, **ATTACKS[name])


def run(attack, logits, jit_compile=False):
    call = tf.function(
        lambda x, y: attack(logits, x, y, 0),
        autograph=False,
        jit_compile=jit_compile,
    )
    return call(tf.constant(X), tf.constant(Y)).numpy()


@pytest.mark.parametrize(
    "name", [slow(name) if name == "apgd_ce" else name for name in ATTACKS]
)
def test_the_network_sees_the_batch_and_no_more(name):
    network = Network()
    run(made(name), attacks.Logits(network))
    assert network.seen == {16}
    made(name)(network, X[:5], Y[:5])
    assert network.seen == {16, 5}


@pytest.mark.parametrize(
    ("name", "norm"),
    [
        ("fab_t", "linf"),
        *(
            pytest.param(name, norm, marks=pytest.mark.slow)
            for name, norm in (
                *(("apgd_ce", "linf"), ("apgd_t", "l2"), ("fab_t", "l2")),
                ("square", "linf"),
            )
        ),
    ],
)
def test_what_is_found_is_the_same(name, norm):
    """Equal to all copies at once, and to blocks: in a norm for each attack.

    How copies are processed has nothing to do with the norm, but FAB's pairs of
    points, which have a projection for each.
    """
    network = Network()
    in_turn = attacks.Logits(network)
    at_once = attacks.Logits(network)
    at_once.most = 16 * 4
    blocks = attacks.Logits(network, rows=16)
    expected = run(made(name, norm), at_once)
    assert max(network.seen) > 16
    for logits in (in_turn, blocks):
        found = run(made(name, norm), logits)
        np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("most", [32, pytest.param(31, marks=pytest.mark.slow)])
def test_the_network_sees_as_many_as_it_may(most):
    network = Network()
    logits = attacks.Logits(network)
    logits.most = most
    run(made("apgd_t"), logits)
    assert max(network.seen) == {31: 16, 32: 32}[most]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["apgd_t", "fab_t"])
def test_loops_inside_xla_see_the_batch_and_no_more(name):
    network = Network()
    logits = attacks.Logits(network, jit_compile=True, jit_loops=True)
    found = run(made(name), logits)
    assert network.seen == {16}
    plain = run(made(name), network)
    broken = [losses.misclassified(network(x), Y) for x in (found, plain)]
    np.testing.assert_array_equal(*broken)
