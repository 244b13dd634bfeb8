"""SGD with coupled weight decay, against PyTorch's rule by hand."""

import keras
import numpy as np
import pytest

import tfsam


def moved(optimizer, gradients, w=2.0):
    variable = keras.Variable(np.array([w]), dtype="float64")
    found = []
    for gradient in gradients:
        optimizer.apply([np.array([gradient])], [variable])
        found.append(float(variable.numpy()[0]))
    return found


def torch_rule(learning_rates, gradients, momentum, decay, nesterov, w=2.0):
    buffer, found = 0.0, []
    for learning_rate, gradient in zip(learning_rates, gradients, strict=True):
        gradient = gradient + decay * w
        buffer = momentum * buffer + gradient
        w -= learning_rate * (
            gradient + momentum * buffer if nesterov else buffer
        )
        found.append(w)
    return found


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_rule(momentum, decay, nesterov):
    gradients = [1.0, -2.0, 0.5, 3.0]
    found = moved(tfsam.SGD(0.1, momentum, decay, nesterov), gradients)
    expected = torch_rule([0.1] * 4, gradients, momentum, decay, nesterov)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_new_learning_rate_holds_at_once():
    """Keras's own buffer would keep the old rate."""
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay(
        [1], [0.1, 0.01]
    )
    gradients = [1.0, 1.0, 1.0]
    found = moved(tfsam.SGD(schedule, momentum=0.9), gradients)
    expected = torch_rule([0.1, 0.1, 0.01], gradients, 0.9, 0.0, False)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    kept = moved(keras.optimizers.SGD(schedule, momentum=0.9), gradients)
    assert abs(kept[-1] - expected[-1]) > 0.01


OPTIMIZERS = pytest.mark.parametrize(
    "make",
    [tfsam.SGD, lambda **settings: tfsam.EntropySGD(inner_steps=0, **settings)],
)


@OPTIMIZERS
def test_the_decay_can_be_read_and_is_applied_once(make):
    """Keras's attribute for it holds the number; Keras's own path is off."""
    optimizer = make(
        learning_rate=0.1, momentum=0.9, weight_decay=0.3, nesterov=False
    )
    assert optimizer.weight_decay == 0.3
    assert optimizer.get_config()["weight_decay"] == 0.3
    copy = type(optimizer).from_config(optimizer.get_config())
    assert copy.weight_decay == 0.3
    gradients = [1.0, -2.0, 0.5]
    expected = torch_rule([0.1] * 3, gradients, 0.9, 0.3, False)
    for each in (optimizer, copy):
        np.testing.assert_allclose(moved(each, gradients), expected, rtol=1e-6)
    assert make().weight_decay == 0.0


@OPTIMIZERS
@pytest.mark.parametrize("scaled", [False, True])
def test_what_is_excluded_does_not_decay(make, scaled):
    """Under loss scaling, too; `weight_decay` is the inner optimizer's."""
    inner = make(learning_rate=0.1, momentum=0.0, weight_decay=0.3)
    inner.exclude_from_weight_decay(var_names=["bias"])
    optimizer = inner
    if scaled:
        optimizer = keras.optimizers.LossScaleOptimizer(inner, initial_scale=1)
    kernel, bias = (
        keras.Variable(np.ones(1), dtype="float32", name=name)
        for name in ("kernel", "bias")
    )
    optimizer.apply([np.zeros(1, "float32")] * 2, [kernel, bias])
    np.testing.assert_allclose(kernel.numpy(), 1 - 0.1 * 0.3, rtol=1e-6)
    assert bias.numpy() == 1
    if scaled:
        assert optimizer.inner_optimizer.weight_decay == 0.3


@pytest.mark.parametrize("accumulated", [None, 2])
def test_the_decay_is_applied_once_with_accumulated_gradients(accumulated):
    optimizer = tfsam.SGD(
        0.1, weight_decay=0.3, gradient_accumulation_steps=accumulated
    )
    found = moved(optimizer, [0.0] * (accumulated or 1))[-1]
    np.testing.assert_allclose(found, 2 * (1 - 0.1 * 0.3), rtol=1e-6)


@pytest.mark.slow
def test_keras_own_decay_is_ten_times_weaker_in_the_long_run():
    """The reason for this optimizer: with momentum 0.9, a factor of ten."""
    zeros = [0.0] * 300
    ours = moved(tfsam.SGD(0.01, 0.9, 0.01), zeros)
    keras_own = moved(
        keras.optimizers.SGD(0.01, momentum=0.9, weight_decay=0.01), zeros
    )
    ratio = np.log(ours[-1] / 2) / np.log(keras_own[-1] / 2)
    assert 9 < ratio < 10.5


def test_excluded_weights_do_not_decay():
    optimizer = tfsam.SGD(0.1, weight_decay=0.5)
    kernel = keras.Variable(np.ones(1), name="kernel")
    bias = keras.Variable(np.ones(1), name="bias")
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    optimizer.apply([np.zeros(1), np.zeros(1)], [kernel, bias])
    assert float(kernel.numpy()[0]) == pytest.approx(0.95)
    assert float(bias.numpy()[0]) == 1.0


def test_config_round_trip():
    optimizer = tfsam.SGD(0.1, 0.9, 5e-4, nesterov=True, clipnorm=1.0)
    config = keras.saving.serialize_keras_object(optimizer)
    copy = keras.saving.deserialize_keras_object(config)
    assert copy.get_config() == optimizer.get_config()
    assert copy.get_config()["weight_decay"] == 5e-4


@pytest.mark.parametrize(
    "arguments", [{"momentum": 1.5}, {"weight_decay": -1.0}]
)
def test_bad_arguments(arguments):
    with pytest.raises(ValueError, match="Received"):
        tfsam.SGD(0.1, **arguments)
