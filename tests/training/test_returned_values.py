"""Wrong results of parts are rejected in a line that names the part."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfsam

X = np.random.default_rng(0).random((8, 4)).astype("float32")
Y = np.arange(8) % 3
LOGITS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def fitted(**parts):
    network = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    model = tfsam.RobustModel(network, **parts)
    model.compile("sgd", LOGITS)
    model.fit(X, Y, verbose=0)


class Own(tfsam.WeightPerturbation):
    """Returns its argument."""

    def __init__(self, returns, final=None):
        self.returns = returns
        if final is not None:
            self.combine = lambda *arguments: final(*arguments)

    def perturb(self, weights, gradients, state, step):
        return self.returns(weights, state)


@pytest.mark.parametrize(
    ("returns", "received"),
    [
        (lambda w, s: list(w), r"\(a tensor of shape \(4, 3\), a tensor"),
        (lambda w, s: w[0], r"a tensor of shape \(4, 3\)$"),
        (lambda w, s: None, "None$"),
        (lambda w, s: (w[:-1], s), "1 weights, for 2$"),
        (lambda w, s: (w[::-1], s), r"weights of shape \(3,\), for shape"),
        (lambda w, s: (w, w[:1]), "1 tensors of state, for 0$"),
        (lambda w, s: (w, s, s), r"\(a list of 2, a list of 0, a list"),
    ],
)
def test_a_perturbation_returns_weights_and_state(returns, received):
    rule = r"^Own\.perturb must return \(weights, state\), with as many "
    with pytest.raises(ValueError, match=rule) as caught:
        fitted(perturb_weights=Own(returns))
    assert "\n" not in str(caught.value)
    assert caught.match("Received: " + received)


def test_combine_returns_gradients_and_state():
    method = Own(lambda w, s: (w, s), lambda clean, other, state, step: clean)
    with pytest.raises(ValueError, match=r"Own\.combine must return"):
        fitted(perturb_weights=method)


@pytest.mark.parametrize("verb", ["before", "after"])
@pytest.mark.parametrize(
    ("returns", "received"),
    [
        (lambda w: None, "None$"),
        (lambda w: w[::-1], r"weights of shape \(3,\), for shape \(4, 3\)$"),
        (lambda w: w[:-1], "1 weights, for 2$"),
    ],
)
def test_a_perturbation_moves_weights_before_and_after(verb, returns, received):
    method = Own(lambda w, s: (w, s))
    setattr(method, verb, lambda weights, *others: returns(weights))
    with pytest.raises(ValueError, match=rf"^Own\.{verb} must return as") as e:
        fitted(perturb_weights=method)
    assert "\n" not in str(e.value) and e.match("Received: " + received)


@pytest.mark.parametrize(
    ("returns", "received"),
    [
        (lambda loss, y: loss, r"a tensor of shape \(\)$"),
        (lambda loss, y: (loss,), "1 values$"),
        (lambda loss, y: (y, y), r"loss of shape \(None, 3\)$"),
        (lambda loss, y: (loss, y, loss), r"losses of shape \(\)$"),
    ],
)
def test_an_objective_returns_loss_and_predictions(returns, received):
    def focal(model, batch):
        y_pred = model(batch.x, training=True)
        return returns(tf.reduce_mean(y_pred), y_pred)

    with pytest.raises(
        ValueError, match=r"^focal must return \(loss, predi"
    ) as e:
        fitted(objective=focal)
    assert "\n" not in str(e.value) and e.match("Received: " + received)


class Alone:
    """A weight perturbation that lacks the other verbs."""

    def perturb(self, weights, gradients, state, step):
        return weights, state


@pytest.mark.parametrize(
    ("name", "part", "message"),
    [
        ("perturb_weights", Alone(), "inherit from tfsam.WeightPerturbation"),
        ("perturb_weights", tfsam.SAM, "must be a weight perturbation"),
        ("perturb_inputs", tfsam.PGD, "must be an attack"),
        ("objective", tfsam.TRADES, "must be a function"),
        ("objective", "trades", "must be a function"),
    ],
)
def test_an_argument_that_is_no_part_is_rejected(name, part, message):
    with pytest.raises(ValueError, match=message):
        fitted(**{name: part})
