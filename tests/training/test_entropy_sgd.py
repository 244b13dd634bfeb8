"""Entropy-SGD against its rule in NumPy, and as a Keras optimizer."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfsam
from tfsam.training.entropy_sgd import EntropySGD

RNG = np.random.default_rng(0)
HESSIAN = np.array([[2.0, 0.5, 0.0], [0.5, 1.0, 0.25], [0.0, 0.25, 0.5]])
START = np.array([1.0, -2.0, 0.5])
X = RNG.normal(size=(16, 4)).astype("float32")
Y = RNG.integers(0, 3, 16)
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def descended(optimizer, steps, w=START, hessian=HESSIAN):
    """Returns the variable after each step on w'Hw / 2."""
    variable = keras.Variable(w, dtype="float64")
    found = []
    for _ in range(steps):
        optimizer.apply([hessian @ variable.numpy()], [variable])
        found.append(variable.numpy())
    return np.array(found)


def rule(
    steps,
    learning_rate,
    momentum,
    decay,
    nesterov,
    inner_steps,
    gamma,
    scoping,
    inner_learning_rate,
    w=START,
):
    """Entropy-SGD without noise on w'Hw / 2, loop in loop."""

    def with_momentum(gradient, buffer):
        buffer = momentum * buffer + gradient
        return (gradient + momentum * buffer if nesterov else buffer), buffer

    found, outer, t = [], np.zeros_like(w), 0
    while len(found) < steps:
        x, mean, inner = w, w, np.zeros_like(w)
        for _ in range(inner_steps):
            direction, inner = with_momentum(HESSIAN @ x + decay * x, inner)
            direction = direction + gamma * (1 + scoping) ** t * (x - w)
            x = x - inner_learning_rate * direction
            mean = 0.75 * mean + 0.25 * x
            found.append(x)
        direction, outer = with_momentum(w - mean + decay * w, outer)
        w = w - learning_rate * direction
        t += 1
        found[-1] = w
    return np.array(found[:steps])


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.75])
@pytest.mark.parametrize("decay", [0.0, 0.25])
def test_rule(momentum, decay, nesterov):
    """Three walks and a half; every number is one that float32 has."""
    outer = (0.5, momentum, decay, nesterov)
    inner = {
        "inner_steps": 4,
        "gamma": 0.5,
        "scoping": 0.25,
        "inner_learning_rate": 0.125,
    }
    found = descended(EntropySGD(*outer, **inner, noise=0), 14)
    np.testing.assert_allclose(found, rule(14, *outer, **inner), rtol=1e-12)


@pytest.mark.parametrize(
    "nesterov, factor", [(True, 1.9), (False, 1.0)], ids=["nesterov", "heavy"]
)
def test_one_inner_step_is_a_small_step_of_sgd(nesterov, factor):
    """mu = w - 0.25 * 0.1 * gradient, 1.9 times that with Nesterov's 0.9."""
    optimizer = EntropySGD(1.0, 0.9, 0.0, nesterov, inner_steps=1, noise=0)
    moved = descended(optimizer, 1)[0] - START
    # The outer momentum is Nesterov's too.
    expected = -0.025 * factor**2 * HESSIAN @ START
    np.testing.assert_allclose(moved, expected, rtol=1e-6)
    optimizer = EntropySGD(1.0, 0.0, inner_steps=1, noise=0)
    moved = descended(optimizer, 1)[0] - START
    np.testing.assert_allclose(moved, -0.025 * HESSIAN @ START, rtol=1e-6)


def test_walk_on_a_quadratic():
    """x' - w and mu - w in closed form, and w jumps to mu."""
    gamma, rate, steps = 0.5, 0.25, 5
    optimizer = EntropySGD(
        1.0, 0.0, inner_steps=steps, gamma=gamma, noise=0,
        inner_learning_rate=rate,
    )  # fmt: skip
    found = descended(optimizer, steps)
    shrink = np.eye(3) - rate * (HESSIAN + gamma * np.eye(3))
    # The walk's fixed point; the walk is (I - shrink^i) of the way to it.
    rest = -np.linalg.solve(HESSIAN + gamma * np.eye(3), HESSIAN @ START)
    away = [
        rest - np.linalg.matrix_power(shrink, i) @ rest
        for i in range(steps + 1)
    ]
    for i in range(1, steps):
        np.testing.assert_allclose(found[i - 1] - START, away[i], rtol=1e-12)
    mean = sum(0.25 * 0.75 ** (steps - i) * away[i] for i in range(steps + 1))
    np.testing.assert_allclose(found[-1] - START, mean, rtol=1e-12)


def test_no_inner_steps_is_sgd():
    gradients = RNG.normal(size=(5, 3)).astype("float32")
    arguments = (0.1, 0.9, 5e-4, True)
    weights = []
    for optimizer in (
        tfsam.SGD(*arguments),
        EntropySGD(*arguments, inner_steps=0),
    ):
        variable = keras.Variable(START, dtype="float32")
        for gradient in gradients:
            optimizer.apply([gradient], [variable])
        weights.append(variable.numpy())
        assert len(optimizer.variables) == 3  # Iteration, rate and momentum.
    np.testing.assert_array_equal(*weights)


def drawn(seed, steps=1, size=50_000):
    """The two variables' moves in a walk without gradients, and their mus."""
    optimizer = EntropySGD(
        1.0, 0.0, inner_steps=3, gamma=0.0, noise=0.5, inner_learning_rate=0.02,
        seed=seed,
    )  # fmt: skip
    variables = [keras.Variable(np.zeros(size)) for _ in range(2)]
    for _ in range(steps):
        optimizer.apply([np.zeros(size)] * 2, variables)
    moves = [v.numpy() for v in variables]
    return moves, [m.numpy() for m in optimizer.means]


def test_noise():
    """0.5 * sqrt(2 * 0.02) = 0.1 a step, in x' alone; mu follows from x'.

    Of 50 000 draws the deviation is known to 0.3 %, a correlation to 0.0045.
    """
    (one, other), means = drawn(seed=0)
    np.testing.assert_allclose(one.std(), 0.1, rtol=0.015)
    assert abs(one.mean()) < 0.002
    np.testing.assert_allclose(np.mean(one**4), 3e-4, rtol=0.1)
    np.testing.assert_allclose(means[0], 0.25 * one, rtol=1e-6)
    later = drawn(seed=0, steps=2)[0][0] - one
    np.testing.assert_allclose(later.std(), 0.1, rtol=0.015)
    for unlike in (other, later, drawn(seed=1)[0][0]):
        assert abs(np.corrcoef(one, unlike)[0, 1]) < 0.02
    np.testing.assert_array_equal(drawn(seed=0)[0], (one, other))


def trained(model, steps):
    """The model after some steps on the whole batch; `fit` would finalize."""
    for _ in range(steps):
        model.train_on_batch(X, Y)
    return [v.numpy() for v in model.trainable_variables]


def compiled(
    perturb_weights=None, jit_compile=False, run_eagerly=False, **kwargs
):
    keras.utils.set_random_seed(0)
    network = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(5, activation="tanh"),
            keras.layers.Dense(3),
        ]
    )
    model = tfsam.RobustModel(network, perturb_weights=perturb_weights, seed=0)
    settings = {"inner_steps": 3, "scoping": 0.5, "gamma": 0.1, "noise": 0.1}
    optimizer = EntropySGD(0.5, **{**settings, **kwargs})
    model.compile(
        optimizer, LOSS, jit_compile=jit_compile, run_eagerly=run_eagerly
    )
    return model


def assert_same(found, expected, atol=0.0):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=atol)


def furthest(found, expected):
    pairs = zip(found, expected, strict=True)
    return max(np.abs(one - other).max() for one, other in pairs)


def test_saved_amid_a_walk(tmp_path):
    """Four steps, a file and four steps equal eight steps."""
    model = compiled(weight_decay=0.01)
    trained(model, 4)
    model.save(tmp_path / "model.keras")
    expected = trained(model, 4)
    resumed = keras.saving.load_model(tmp_path / "model.keras")
    assert_same(trained(resumed, 4), expected)


def test_fit_ends_at_w():
    """Walks of 3 in epochs of 5 steps: fit, and fit again, are 3 steps each."""
    data = tf.data.Dataset.from_tensors((X, Y)).repeat(5)
    # A few small steps are quicker than tracing one.
    walked, model = (compiled(noise=0, run_eagerly=True) for _ in range(2))
    for _ in range(2):
        model.fit(data, verbose=0)
        expected = trained(walked, 3)
        assert_same([v.numpy() for v in model.trainable_variables], expected)


def test_a_resumed_fit_with_nothing_left_ends_at_w(tmp_path):
    model = compiled(run_eagerly=True)
    expected = trained(model, 3)
    assert furthest(trained(model, 1), expected) > 1e-3
    model.save(tmp_path / "model.keras")
    resumed = keras.saving.load_model(tmp_path / "model.keras")
    resumed.fit(X, Y, initial_epoch=1, epochs=1, verbose=0)
    assert_same([v.numpy() for v in resumed.trainable_variables], expected)


def test_a_weight_without_gradients_stays():
    used, unused = (keras.Variable(START, dtype="float64") for _ in range(2))
    optimizer = EntropySGD(inner_steps=3, noise=0)
    with pytest.warns(UserWarning, match="Gradients do not exist"):
        optimizer.apply([np.ones(3), None], [used, unused])
    unused.assign(2 * START)
    optimizer.finalize_variable_values([used, unused])
    np.testing.assert_array_equal(used.numpy(), START)
    np.testing.assert_array_equal(unused.numpy(), 2 * START)


def test_accumulated_gradients_are_one_inner_step():
    gradients = RNG.normal(size=(10, 3))
    variables = [keras.Variable(START, dtype="float64") for _ in range(2)]
    whole, parts = (
        EntropySGD(0.5, inner_steps=3, gradient_accumulation_steps=steps)
        for steps in (None, 2)
    )
    for first, second in gradients.reshape(5, 2, 3):
        whole.apply([(first + second) / 2], variables[:1])
        parts.apply([first], variables[1:])
        parts.apply([second], variables[1:])
        np.testing.assert_allclose(
            variables[1].numpy(), variables[0].numpy(), rtol=1e-12
        )


def on_devices(devices):
    strategy = (
        tf.distribute.MirroredStrategy(
            [f"CPU:{i}" for i in range(devices)],
            # Collectives remember shapes by a key that the next strategy of
            # the process counts from the start again.
            cross_device_ops=tf.distribute.ReductionToOneDevice(),
        )
        if devices > 1
        else tf.distribute.get_strategy()
    )
    with strategy.scope():
        model = compiled(tfsam.SAM(0.0), run_eagerly=devices == 1)
    data = tf.data.Dataset.from_tensors((X, Y)).unbatch().batch(16)
    walking = []
    watch = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: walking.append(
            [v.numpy() for v in model.trainable_variables]
        )
    )
    model.fit(data, epochs=5, verbose=0, callbacks=[watch])
    return model, walking


@pytest.mark.slow
def test_two_devices_are_one():
    """Amid the walk, noise and all, and at w when `fit` ends."""
    expected, expected_walk = on_devices(1)
    found, walk = on_devices(2)
    for one, other in zip(walk, expected_walk, strict=True):
        assert_same(one, other, atol=1e-5)
    assert furthest(walk[3], walk[4]) > 1e-3
    for variable in found.trainable_variables:
        first, second = variable.value.values
        np.testing.assert_array_equal(first.numpy(), second.numpy())
    assert_same(
        [v.numpy() for v in found.trainable_variables],
        [v.numpy() for v in expected.trainable_variables],
        atol=1e-5,
    )
    assert_same([v.numpy() for v in found.trainable_variables], walk[2], 0)


@pytest.mark.slow
@pytest.mark.parametrize("jit_compile", [False, True])
def test_it_trains_with_sam(jit_compile):
    model = compiled(tfsam.SAM(0.05), jit_compile, noise=1e-3, scoping=1e-3)
    losses = model.fit(X, Y, batch_size=8, epochs=60, verbose=0).history["loss"]
    assert losses[-1] < 0.5 * losses[0]


def test_config_round_trip():
    arguments = {
        "learning_rate": 0.5,
        "momentum": 0.5,
        "weight_decay": 0.25,
        "nesterov": False,
        "inner_steps": 7,
        "gamma": 0.125,
        "scoping": 0.5,
        "noise": 2.0,
        "inner_learning_rate": 0.25,
        "seed": 3,
        "name": "mine",
        "clipnorm": 1.0,
    }
    optimizer = EntropySGD(**arguments)
    config = keras.saving.serialize_keras_object(optimizer)
    copy = keras.saving.deserialize_keras_object(config)
    assert type(copy) is EntropySGD
    assert copy.get_config() == optimizer.get_config()
    assert arguments.items() <= copy.get_config().items()


@pytest.mark.parametrize(
    "arguments",
    [
        {"inner_steps": -1},
        {"inner_steps": 2.5},
        {"gamma": -1.0},
        {"scoping": -1.0},
        {"noise": float("nan")},
        {"inner_learning_rate": 0.0},
        {"inner_learning_rate": -0.1},
        {"momentum": 1.5},
    ],
)
def test_bad_arguments(arguments):
    with pytest.raises(ValueError, match=f"Received: {next(iter(arguments))}="):
        EntropySGD(**arguments)
