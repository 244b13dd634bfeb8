"""TRADES and MART by hand: their values, gradients and steps."""

import keras
import numpy as np
import pytest
from helpers import slow
from objective_models import OBJECTIVES
from objective_models import RNG
from objective_models import SAMPLE_WEIGHT
from objective_models import SPARSE
from objective_models import X_ADV
from objective_models import X
from objective_models import Y
from objective_models import compiled
from objective_models import made
from objective_models import network
from objective_models import shifted

import tfsam
from tfsam.attacks import losses
from tfsam.training.stateless import Batch

SLOW_MODES = [slow("eager"), slow("xla")]


# The value of each objective, where it is known.


def value(objective, clean, perturbed, y, sample_weight=None):
    """The objective of these probabilities, and of each example."""
    clean, perturbed = (
        np.log(np.array(p, "float32")) for p in (clean, perturbed)
    )
    inputs = keras.Input(clean.shape[1:])
    model = tfsam.RobustModel(keras.Model(inputs, inputs), shifted)
    model.compile(tfsam.SGD(0.1), SPARSE)
    batch = Batch(clean, perturbed, np.array(y), sample_weight)
    loss, _, each = objective(model, batch)
    return float(loss), each.numpy()


def test_the_divergence_is_that_of_the_clean_predictions():
    p, q = [[0.9, 0.1]], [[0.5, 0.5]]
    forth = value(tfsam.TRADES(1), p, q, [0])[0] + np.log(0.9)
    back = value(tfsam.TRADES(1), q, p, [0])[0] + np.log(0.5)
    expected = 0.9 * np.log(1.8) + 0.1 * np.log(0.2)
    np.testing.assert_allclose(forth, expected, atol=1e-6)
    np.testing.assert_allclose([forth, back], [0.368, 0.511], atol=1e-3)


def test_the_divergence_is_never_negative():
    p, q = RNG.dirichlet(np.full(4, 0.3), (2, 1000)).astype("float32")
    for one, other in ((p, q), (p, p)):
        assert losses.kl(np.log(other), one).numpy().min() > -1e-6
    assert losses.kl(np.log(q), p).numpy().max() > 1
    np.testing.assert_allclose(losses.kl(np.log(p), p), 0, atol=1e-6)


def test_mart_without_its_weight_is_the_boosted_cross_entropy():
    q = np.array([[0.2, 0.7, 0.1], [0.6, 0.3, 0.1]])
    loss, each = value(tfsam.MART(0), q[::-1], q, [0, 0])
    expected = [
        -np.log(0.2) - np.log(1.0001 - 0.7),
        -np.log(0.6) - np.log(1.0001 - 0.3),
    ]
    np.testing.assert_allclose(each, expected, rtol=1e-6)
    np.testing.assert_allclose(loss, np.mean(expected), rtol=1e-6)


def test_of_two_classes_the_boosted_cross_entropy_is_twice_the_plain():
    loss, _ = value(tfsam.MART(0), [[0.5, 0.5]], [[0.3, 0.7]], [0])
    np.testing.assert_allclose(loss, 2.4076, atol=5e-5)
    np.testing.assert_allclose(-2 * np.log(0.3), 2.4079, atol=5e-5)


def test_mart_weighs_the_divergence_by_the_doubt():
    p, q = [[0.9, 0.1], [0.2, 0.8]], [[0.5, 0.5], [0.5, 0.5]]
    _, each = value(tfsam.MART(2), p, q, [0, 0])
    _, boosted = value(tfsam.MART(0), p, q, [0, 0])
    apart = np.sum(p * np.log(np.divide(p, q)), axis=1)
    np.testing.assert_allclose(
        each - boosted, 2 * apart * [0.1, 0.8], atol=1e-5
    )


def test_mart_spares_examples_that_are_surely_right():
    sure, q = [[1.0, 1e-12]], [[0.5, 0.5]]
    loss, _ = value(tfsam.MART(6), sure, q, [0])
    boosted, _ = value(tfsam.MART(0), sure, q, [0])
    np.testing.assert_allclose(loss, boosted, atol=2e-6)
    wrong, _ = value(tfsam.MART(6), sure, q, [1])
    np.testing.assert_allclose(wrong - boosted, 6 * np.log(2), atol=1e-4)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_weights_of_examples_weigh_the_whole_objective(name):
    p, q = RNG.dirichlet(np.ones(3), (2, 5))
    weights = np.arange(5, dtype="float32")
    y = [0, 1, 2, 0, 1]
    objective, _ = OBJECTIVES[name]
    loss, each = value(objective, p, q, y, weights)
    np.testing.assert_allclose(loss, np.mean(each * weights), rtol=1e-6)
    loss, _ = value(objective, p, q, y)
    np.testing.assert_allclose(loss, np.mean(each), rtol=1e-6)


@pytest.mark.parametrize("beta", [-1, float("nan"), "6"])
@pytest.mark.parametrize("objective", [tfsam.TRADES, tfsam.MART])
def test_beta_is_checked(objective, beta):
    with pytest.raises(ValueError, match=f"Received: beta={beta}"):
        objective(beta)


# One step of gradient descent by hand, in float64.


def softmax(logits):
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shares / shares.sum(axis=1, keepdims=True)


def forward(weights, x):
    kernel, bias, *last = weights
    hidden = np.tanh(x @ kernel + bias)
    return hidden, hidden @ last[0] + last[1]


def backward(weights, x, slope):
    """Returns the gradients of the four weights, given the logits'."""
    hidden, _ = forward(weights, x)
    inner = slope @ weights[2].T * (1 - hidden**2)
    return [x.T @ inner, inner.sum(0), hidden.T @ slope, slope.sum(0)]


def divergence(p, q):
    """KL(p || q), and its slopes in the logits of p and of q."""
    ratio = np.log(p / q)
    total = np.sum(p * ratio, axis=1, keepdims=True)
    return total, p * (ratio - total), q - p


def trades_by_hand(p, q, right, beta=6):
    """Each example's loss, and its slopes in the logits of p and of q."""
    apart, clean, perturbed = divergence(p, q)
    plain = -np.log(p[right])[:, None]
    return plain + beta * apart, p - right + beta * clean, beta * perturbed


def mart_by_hand(p, q, right, beta=6):
    apart, clean, perturbed = divergence(p, q)
    p_y, q_y = p[right][:, None], q[right][:, None]
    other = np.where(right, 0, q)
    runner = other == other.max(axis=1, keepdims=True)
    q_k = q[runner][:, None]
    boosted = -np.log(q_y) - np.log(1.0001 - q_k)
    return (
        boosted + beta * apart * (1 - p_y),
        beta * (clean * (1 - p_y) - apart * p_y * (right - p)),
        q - right + q_k * (runner - q) / (1.0001 - q_k)
        + beta * perturbed * (1 - p_y),
    )  # fmt: skip


def step_by_hand(terms, weights, sample_weight, penalty):
    """The loss and the weights after one step at a rate of 0.5."""
    weights = [w.astype("float64") for w in weights]
    x, x_adv = X.astype("float64"), X_ADV.astype("float64")
    p, q = (softmax(forward(weights, inputs)[1]) for inputs in (x, x_adv))
    each, clean, perturbed = terms(p, q, np.eye(3, dtype=bool)[Y])
    share = sample_weight.astype("float64")[:, None] / len(X)
    clean = backward(weights, x, share * clean)
    perturbed = backward(weights, x_adv, share * perturbed)
    loss = np.sum(share * each)
    loss += penalty * sum(np.sum(w**2) for w in weights if w.ndim > 1)
    return loss, [
        w - 0.5 * (one + other + (2 * penalty * w if w.ndim > 1 else 0))
        for w, one, other in zip(weights, clean, perturbed, strict=True)
    ]


BY_HAND = {"TRADES": trades_by_hand, "MART": mart_by_hand}


def one_step(objective, sample_weight, penalty, mode="graph"):
    net = network(False, keras.regularizers.L2(penalty) if penalty else None)
    before = net.get_weights()
    model = tfsam.RobustModel(net, shifted, objective=objective)
    compiled(model, mode, momentum=0)
    loss = model.train_on_batch(X, Y, sample_weight=sample_weight)
    return before, loss, net.get_weights()


@pytest.mark.parametrize("weighted, penalty", [slow(False, 0), (True, 0.1)])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_one_step_by_hand(name, penalty, weighted):
    """Gradients flow through both passes; penalties are counted once."""
    sample_weight = SAMPLE_WEIGHT if weighted else None
    objective, _ = OBJECTIVES[name]
    before, loss, found = one_step(objective, sample_weight, penalty)
    used = SAMPLE_WEIGHT if weighted else np.ones(16)
    expected = step_by_hand(BY_HAND[name], before, used, penalty)
    np.testing.assert_allclose(loss, expected[0], rtol=1e-5)
    for one, other in zip(found, expected[1], strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)

    def detached(p, q, right):
        each, clean, perturbed = BY_HAND[name](p, q, right)
        return each, p - right if name == "TRADES" else 0 * clean, perturbed

    _, other = step_by_hand(detached, before, used, penalty)
    assert np.abs(other[0] - expected[1][0]).max() > 1e-3


@pytest.mark.parametrize("mode", SLOW_MODES)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_one_step_by_hand_in_each_mode(name, mode):
    objective, _ = OBJECTIVES[name]
    before, _, found = one_step(objective, SAMPLE_WEIGHT, 0.1, mode)
    _, expected = step_by_hand(BY_HAND[name], before, SAMPLE_WEIGHT, 0.1)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


class Penalised(keras.layers.Layer):
    """Adds a loss an entry, which Keras sums."""

    def call(self, inputs):
        self.add_loss(keras.ops.array([1.0, 2.0]))
        return inputs


@pytest.mark.parametrize("name", OBJECTIVES)
def test_losses_of_layers_are_summed_once(name):
    objective, _ = OBJECTIVES[name]

    def loss(*layers):
        net = keras.Sequential([keras.Input((6,)), *layers])
        keras.utils.set_random_seed(0)
        net.add(keras.layers.Dense(3))
        return made(objective, shifted, "eager", net=net).train_on_batch(X, Y)

    np.testing.assert_allclose(loss(Penalised()) - loss(), 3, rtol=1e-5)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_confident_predictions_have_finite_gradients(name):
    """Tests probabilities of 0 on either side, and on both."""
    objective, _ = OBJECTIVES[name]
    net = keras.Sequential(
        [keras.Input((3,)), keras.layers.Dense(3, use_bias=False)]
    )
    net.set_weights([np.eye(3, dtype="float32") * 1000])
    x = np.eye(3, dtype="float32")
    model = made(
        objective, lambda logits_fn, x, y, seed: x[::-1], "eager", net=net
    )
    loss = model.train_on_batch(x, np.array([0, 1, 0]))
    assert np.isfinite(loss)
    assert np.isfinite(net.get_weights()[0]).all()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_sharpness_aware_step_by_hand(name):
    """SAM's ball is around the weights, for the whole objective."""
    before = network(False).get_weights()

    def gradients(weights):
        _, moved = step_by_hand(BY_HAND[name], weights, np.ones(16), 0)
        return [(w - m) / 0.5 for w, m in zip(weights, moved, strict=True)]

    slope = gradients([w.astype("float64") for w in before])
    size = np.sqrt(sum(np.sum(g**2) for g in slope))
    moved = [w + 0.2 * g / size for w, g in zip(before, slope, strict=True)]
    net = network(False)
    model = tfsam.RobustModel(
        net, shifted, tfsam.SAM(0.2), objective=OBJECTIVES[name][0]
    )
    compiled(model, momentum=0).train_on_batch(X, Y)
    for found, w, g in zip(
        net.get_weights(), before, gradients(moved), strict=True
    ):
        np.testing.assert_allclose(found, w - 0.5 * g, atol=1e-5)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_logits_of_float64_stay_so(name):
    net = network(False, dtype="float64")
    before = net.get_weights()
    model = tfsam.RobustModel(net, shifted, objective=OBJECTIVES[name][0])
    compiled(model, momentum=0).train_on_batch(X, Y)
    _, expected = step_by_hand(BY_HAND[name], before, np.ones(16), 0)
    for one, other in zip(net.get_weights(), expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
