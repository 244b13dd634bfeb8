"""TRADES, MART and their attacks: identities and steps by hand."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import slow

import tfsam
from tfsam.attacks import losses
from tfsam.training.stateless import Batch

RNG = np.random.default_rng(0)
X = RNG.random((16, 6), dtype="float32")
Y = RNG.integers(0, 3, 16)
SAMPLE_WEIGHT = RNG.random(16).astype("float32")
KERNEL = RNG.normal(size=(6, 3)).astype("float32")
SPARSE = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
ONE_HOT = keras.losses.CategoricalCrossentropy(from_logits=True)
TRADES_ATTACK = tfsam.PGD(0.1, steps=2, loss="kl", random_start="normal")
MART_ATTACK = tfsam.PGD(0.1, steps=2, random_start="normal")
OBJECTIVES = {
    "TRADES": (tfsam.TRADES(), TRADES_ATTACK),
    "MART": (tfsam.MART(), MART_ATTACK),
}
# In the slow tests the other one tests their common parts, too.
ONE_BY_DEFAULT = [slow("TRADES"), "MART"]
SLOW_MODES = [slow("eager"), slow("xla")]


def network(batch_norm=True, regularizer=None, dropout=0.0, dtype=None):
    keras.utils.set_random_seed(0)
    layers = [
        keras.layers.Dense(5, kernel_regularizer=regularizer, dtype=dtype)
    ]
    if batch_norm:
        layers.append(keras.layers.BatchNormalization(dtype=dtype))
    layers.append(keras.layers.Activation("tanh", dtype=dtype))
    if dropout:
        layers.append(keras.layers.Dropout(dropout, seed=1, dtype=dtype))
    layers.append(
        keras.layers.Dense(3, kernel_regularizer=regularizer, dtype=dtype)
    )
    return keras.Sequential([keras.Input((6,)), *layers])


def compiled(model, mode="eager", loss=SPARSE, momentum=0.9, **kwargs):
    """Compiles a model. A few small steps are quicker than tracing one."""
    model.compile(
        tfsam.SGD(0.5, momentum=momentum),
        loss,
        jit_compile=mode == "xla",
        run_eagerly=mode == "eager",
        **kwargs,
    )
    return model


def made(objective=None, attack=None, mode="eager", *, net=None, **kwargs):
    kwargs.setdefault("seed", 0)
    return compiled(
        tfsam.RobustModel(
            net or network(), attack, objective=objective, **kwargs
        ),
        mode,
    )


def fitted(model, steps=4, y=Y, sample_weight=None):
    model.fit(
        X,
        y,
        sample_weight=sample_weight,
        batch_size=8,
        epochs=steps // 2,
        shuffle=False,
        verbose=0,
    )
    return model


def trained(*args, **kwargs):
    return fitted(made(*args, **kwargs))


def difference(one, other):
    """Compares all weights, and BatchNorm's statistics."""
    return max(
        np.abs(a - b).max()
        for a, b in zip(
            getattr(one, "network", one).get_weights(),
            getattr(other, "network", other).get_weights(),
            strict=True,
        )
    )


@keras.saving.register_keras_serializable(package="test")
def shifted(logits_fn, x, y, seed):
    """An attack that is known, and cheap to trace."""
    return x + 0.3 * tf.cos(30 * x)


X_ADV = shifted(None, X, None, None).numpy()


@pytest.fixture(scope="module")
def alone():
    """Each objective, without a perturbation of the weights."""
    return {name: trained(OBJECTIVES[name][0], shifted) for name in OBJECTIVES}


# TRADES is standard training where it has nothing to add.


def regularised():
    """A network with every term that Keras adds to a loss."""
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(5, kernel_regularizer="l2"),
            keras.layers.BatchNormalization(),
            keras.layers.Activation("tanh", activity_regularizer="l2"),
            keras.layers.Dense(3, bias_regularizer="l1"),
        ]
    )


@pytest.fixture(scope="module")
def standard():
    return fitted(compiled(regularised()), sample_weight=SAMPLE_WEIGHT)


STANDARD = {
    "beta = 0": (tfsam.TRADES(0), TRADES_ATTACK),
    "epsilon = 0": (tfsam.TRADES(), TRADES_ATTACK.with_epsilon(0.0)),
}


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("beta = 0", "graph"),
        ("epsilon = 0", "eager"),
        slow("beta = 0", "eager"),
        slow("epsilon = 0", "graph"),
        *(slow(name, "xla") for name in STANDARD),
    ],
)
def test_trades_with_nothing_to_add_is_standard_training(name, mode, standard):
    model = made(*STANDARD[name], mode, net=regularised())
    assert difference(fitted(model, sample_weight=SAMPLE_WEIGHT), standard) < (
        1e-6
    )


def test_trades_adds_something(standard):
    model = made(tfsam.TRADES(), TRADES_ATTACK, net=regularised())
    assert difference(fitted(model, sample_weight=SAMPLE_WEIGHT), standard) > (
        1e-4
    )


@pytest.mark.parametrize("name", OBJECTIVES)
def test_labels_may_be_one_hot(name, alone):
    one_hot = keras.utils.to_categorical(Y, 3)
    objective, _ = OBJECTIVES[name]
    model = tfsam.RobustModel(network(), shifted, objective=objective)
    found = fitted(compiled(model, loss=ONE_HOT), y=one_hot)
    assert difference(found, alone[name]) < 1e-6


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


# State and metrics come from the pass that returns the predictions.


@pytest.mark.parametrize(
    ("name", "mode"),
    [("TRADES", "graph"), ("MART", "eager"), slow("MART", "xla")],
)
def test_statistics_come_from_one_pass(name, mode):
    objective, _ = OBJECTIVES[name]
    net = network()
    seen = X if name == "TRADES" else X_ADV
    features = net.layers[0](seen).numpy()
    made(objective, shifted, mode, net=net).train_on_batch(X, Y)
    layer = net.layers[1]
    for found, start, batch in (
        (layer.moving_mean.numpy(), 0, features.mean(axis=0)),
        (layer.moving_variance.numpy(), 1, features.var(axis=0)),
    ):
        np.testing.assert_allclose(
            found, 0.99 * start + 0.01 * batch, atol=1e-6
        )


def test_dropout_s_seeds_move_once():
    def state(*objective):
        net = network(dropout=0.5)
        if objective:
            made(*objective, shifted, "eager", net=net).train_on_batch(X, Y)
        return net.layers[3].seed_generator.state.numpy()

    once = state(None)
    assert (once != state()).any()
    for objective, _ in OBJECTIVES.values():
        np.testing.assert_array_equal(state(objective), once)


@pytest.mark.parametrize(("name", "accuracy"), [("TRADES", 1), ("MART", 0)])
def test_metrics_are_those_of_one_pass(name, accuracy):
    inputs = keras.Input((3,))
    net = keras.Model(inputs, keras.layers.Dense(3, use_bias=False)(inputs))
    net.set_weights([np.eye(3, dtype="float32")])
    model = tfsam.RobustModel(
        net,
        lambda logits_fn, x, y, seed: 1 - x,
        objective=OBJECTIVES[name][0],
    )
    compiled(model, "eager", metrics=["accuracy"])
    logs = model.train_on_batch(np.eye(3), np.arange(3), return_dict=True)
    assert logs["accuracy"] == accuracy


# With perturbed weights, on devices, saved, in other precisions.

NO_RADIUS = {
    "SAM": tfsam.SAM(0),
    "AWP": tfsam.AWP(0),
    "ESAM": tfsam.ESAM(0, sample_fraction=1),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "method"),
    [*itertools.product(["TRADES"], NO_RADIUS), ("MART", "SAM")],
)
def test_without_a_radius_the_objective_is_alone(name, method, alone):
    found = trained(
        OBJECTIVES[name][0], shifted, perturb_weights=NO_RADIUS[method]
    )
    assert difference(found, alone[name]) < 1e-6


RADIUS = {
    "SAM": tfsam.SAM(0.2),
    "AWP": tfsam.AWP(0.1),
    "ESAM": tfsam.ESAM(0.2),
}


@pytest.mark.parametrize(
    ("name", "method"),
    [*itertools.product(["TRADES"], RADIUS), ("MART", "SAM")],
)
def test_objectives_train_with_perturbed_weights(name, method, alone):
    found = trained(
        OBJECTIVES[name][0], shifted, perturb_weights=RADIUS[method]
    )
    assert np.isfinite(difference(found, network()))
    assert difference(found, alone[name]) > 1e-4


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


def test_parts_of_the_batch_are_one_batch():
    """m-sharpness without a radius; BatchNorm would make the parts differ."""
    one, parts = (
        fitted(
            made(
                tfsam.MART(),
                shifted,
                net=network(False, "l2"),
                perturb_weights=tfsam.SAM(0),
                sub_batches=count,
            ),
            sample_weight=SAMPLE_WEIGHT,
        )
        for count in (1, 2)
    )
    assert difference(one, parts) < 1e-6


def replicated(name, devices, mode="graph"):
    strategy = tf.distribute.get_strategy()
    if devices > 1:
        strategy = tf.distribute.MirroredStrategy(
            [f"CPU:{i}" for i in range(devices)],
            cross_device_ops=tf.distribute.ReductionToOneDevice(),
        )
    with strategy.scope():
        model = made(
            *OBJECTIVES[name],
            mode,
            net=network(False, "l2"),
            perturb_weights=tfsam.SAM(0.2),
            sharpness="global",
        )
    data = tf.data.Dataset.from_tensors((X, Y, SAMPLE_WEIGHT))
    data = data.unbatch().batch(16)
    history = model.fit(data, epochs=3, verbose=0)
    return model, history.history["loss"]


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("TRADES", "graph"),
        slow("TRADES", "xla"),
        slow("MART", "graph"),
    ],
)
def test_two_devices_are_one(name, mode):
    one, loss = replicated(name, 1)
    two, found = replicated(name, 2, mode)
    np.testing.assert_allclose(found, loss, rtol=1e-5)
    assert difference(one, two) < 1e-5


@pytest.mark.parametrize("name", ONE_BY_DEFAULT)
def test_training_goes_on_after_loading(name, alone, tmp_path):
    """Four steps are two, a file, and two."""
    objective, _ = OBJECTIVES[name]
    fitted(made(objective, shifted), 2).save(tmp_path / "half.keras")
    again = keras.saving.load_model(tmp_path / "half.keras")
    assert repr(again.objective) == repr(objective)
    assert difference(fitted(again, 2), alone[name]) == 0


def test_the_attack_of_trades_is_saved():
    saved = keras.saving.serialize_keras_object(TRADES_ATTACK)
    again = keras.saving.deserialize_keras_object(saved)
    assert repr(again) == repr(TRADES_ATTACK)


@pytest.mark.parametrize("name", ONE_BY_DEFAULT)
def test_mixed_precision(name):
    objective, attack = OBJECTIVES[name]
    net = network(dtype="mixed_float16")
    model = tfsam.RobustModel(
        net,
        attack,
        objective=objective,
        dtype="mixed_float16",
    )
    compiled(model, momentum=0)
    assert type(model.optimizer).__name__ == "LossScaleOptimizer"
    assert model.network(X).dtype == tf.float16
    history = model.fit(X, Y, batch_size=8, epochs=4, verbose=0)
    assert np.isfinite(history.history["loss"]).all()
    assert np.isfinite(difference(net, network()))
    assert difference(net, network()) > 1e-3


@pytest.mark.parametrize("name", OBJECTIVES)
def test_logits_of_float64_stay_so(name):
    net = network(False, dtype="float64")
    before = net.get_weights()
    model = tfsam.RobustModel(net, shifted, objective=OBJECTIVES[name][0])
    compiled(model, momentum=0).train_on_batch(X, Y)
    _, expected = step_by_hand(BY_HAND[name], before, np.ones(16), 0)
    for one, other in zip(net.get_weights(), expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


# The mode of the network under attack.


def recording(seen):
    """An attack that changes nothing and keeps the logits that it saw."""

    def record(logits):
        seen.append(logits)
        return np.float32(0)

    def attack(logits_fn, x, y, seed):
        for _ in range(2):
            nothing = tf.numpy_function(record, [logits_fn(x)], tf.float32)
            x = tf.ensure_shape(x + nothing, x.shape)
        return x

    return attack


@pytest.mark.parametrize(
    ("training", "mode"),
    [
        (False, "eager"),
        (True, "graph"),
        slow(False, "graph"),
        slow(True, "eager"),
    ],
)
def test_the_attack_sees_the_mode_that_was_asked_for(training, mode):
    """BatchNorm uses the batch, and dropout the same mask in each pass."""
    seen = []
    net = network(dropout=0.5)
    made(
        None,
        recording(seen),
        mode,
        net=net,
        attack_mode="training" if training else "inference",
    ).train_on_batch(X, Y)
    fresh = network(dropout=0.5)
    expected = fresh(X, training=training)
    assert len(seen) == 2
    for logits in seen:
        np.testing.assert_allclose(logits, expected, atol=1e-6)
    other = fresh(X, training=not training)
    assert np.abs(other - expected).max() > 1e-2


@pytest.mark.parametrize("mode", ["eager", slow("xla")])
def test_an_attack_in_training_mode_moves_no_variable(mode):
    def attack(logits_fn, x, y, seed):
        return shifted(None, x + 0 * tf.reduce_sum(logits_fn(2 * x)), y, seed)

    attacked, other = (
        made(None, a, mode, net=network(dropout=0.5), attack_mode="training")
        for a in (attack, shifted)
    )
    for model in (attacked, other):
        model.train_on_batch(X, Y)
    for one, two in zip(attacked.variables, other.variables, strict=True):
        np.testing.assert_allclose(one, two, atol=1e-6)


# The warm-up of epsilon.


@keras.saving.register_keras_serializable(package="test")
def largest_change(model, batch):
    """The largest change of x, as the loss, so that the history shows it."""
    y_pred = model(batch.x, training=True)
    change = tf.reduce_max(tf.abs(batch.x_adv - batch.x))
    return change + 0.0 * tf.reduce_sum(y_pred), y_pred


WARM = {
    "FGSM": (tfsam.FGSM(0.2, bounds=None), 0.2),
    # Of which the first step is a quarter of epsilon.
    "PGD": (tfsam.PGD(0.2, steps=1, random_start=False, bounds=None), 0.05),
}


def warm(attack, mode="eager", **kwargs):
    inputs = keras.Input((6,))
    net = keras.Model(inputs, keras.layers.Dense(3)(inputs))
    net.set_weights([KERNEL, np.zeros(3, "float32")])
    return made(largest_change, attack, mode, net=net, **kwargs)


def changes(model, steps):
    history = model.fit(X, Y, batch_size=16, epochs=steps, verbose=0)
    return history.history["loss"]


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("FGSM", "graph"),
        ("PGD", "eager"),
        slow("FGSM", "eager"),
        slow("FGSM", "xla"),
        slow("PGD", "graph"),
    ],
)
def test_epsilon_grows_linearly(name, mode):
    attack, full = WARM[name]
    found = changes(warm(attack, mode, epsilon_warmup_steps=4), 6)
    shares = [0.25, 0.5, 0.75, 1, 1, 1]
    np.testing.assert_allclose(found, full * np.array(shares), atol=1e-6)
    assert attack.epsilon == 0.2


def test_without_a_warm_up_epsilon_is_whole():
    np.testing.assert_allclose(changes(warm(WARM["FGSM"][0]), 2), 0.2, 1e-5)


def test_the_warm_up_goes_on_after_loading(tmp_path):
    model = warm(WARM["FGSM"][0], epsilon_warmup_steps=4)
    changes(model, 2)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(changes(again, 3), [0.15, 0.2, 0.2], atol=1e-6)


@keras.saving.register_keras_serializable(package="test_objectives")
class Blend(tfsam.Objective):
    """The compiled loss, from the helpers of the base class."""

    def __init__(self, share=1.0):
        self.share = share

    def __call__(self, model, batch):
        y_pred = model(batch.x_adv, training=True)
        each = losses.cross_entropy(y_pred, batch.y)
        loss = self.share * self.mean(each, batch.sample_weight)
        return loss + sum(self.penalties(model)), y_pred


def test_the_base_class_has_the_parts_of_the_compiled_loss(tmp_path):
    net = network(batch_norm=False, regularizer="l2")
    own = fitted(made(Blend(), net=net), sample_weight=SAMPLE_WEIGHT)
    net = network(batch_norm=False, regularizer="l2")
    plain = fitted(made(net=net), sample_weight=SAMPLE_WEIGHT)
    assert difference(own, plain) < 1e-6
    own.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.objective.get_config() == {"share": 1.0}
    with pytest.raises(TypeError, match="must implement __call__"):
        tfsam.Objective()(own, None)
