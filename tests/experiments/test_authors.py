"""The authors' differences: identities, closed forms, one step by hand."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfsam
from experiments import authors

RNG = np.random.default_rng(0)
X = RNG.random((8, 6), dtype="float32")
Y = RNG.integers(0, 3, 8)
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
RHO = 0.2
SAM = tfsam.SAM(RHO)
PGD = tfsam.PGD(0.2, steps=2)
SWITCHES = ("second_pass_statistics", "attack_statistics", "polluted_ascent")


pytestmark = pytest.mark.slow


def network(*first):
    """Custom layers, then a small network of smooth layers."""
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((6,)),
            *first,
            keras.layers.Dense(5, "tanh"),
            keras.layers.Dense(3),
        ]
    )


def batch_norm():
    return keras.layers.BatchNormalization(momentum=0.9)


def normalised(*more):
    """BatchNorm with statistics that depend on the weights."""
    keras.utils.set_random_seed(0)
    return network(keras.layers.Dense(5), batch_norm(), *more)


def with_dropout():
    return normalised(keras.layers.Dropout(0.3, seed=1))


def fitted(model, mode="graph", epochs=1, batch_size=8, optimizer=None):
    model.compile(
        optimizer or tfsam.SGD(0.5, momentum=0.9),
        LOSS,
        metrics=["accuracy"],
        jit_compile=mode == "xla",
        run_eagerly=mode == "eager",
    )
    return model.fit(
        X, Y, batch_size=batch_size, epochs=epochs, shuffle=False, verbose=0
    ).history


def trained(*perturbations, make=normalised, **kwargs):
    """The network of an `AuthorsModel` after some steps, and its history."""
    model = authors.AuthorsModel(make(), *perturbations, seed=0, **kwargs)
    return model.network, fitted(model, "eager", epochs=2, batch_size=4)


def clean(*perturbations, make=normalised, mode="eager", **kwargs):
    """Does the same for a `RobustModel`."""
    model = tfsam.RobustModel(make(), *perturbations, seed=0, **kwargs)
    return model.network, fitted(model, mode, epochs=2, batch_size=4)


def assert_equal(found, expected, atol=0.0):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=atol, rtol=0)


@pytest.mark.parametrize(
    ("perturbations", "mode"),
    [
        ((None, SAM), "graph"),
        ((PGD, None), "graph"),
        ((PGD, SAM), "eager"),
        ((PGD, SAM), "graph"),
        ((PGD, SAM), "xla"),
    ],
)
def test_without_differences_it_is_the_clean_rule_to_the_bit(
    perturbations, mode
):
    expected, history = clean(*perturbations, make=with_dropout, mode=mode)
    model = authors.AuthorsModel(with_dropout(), *perturbations, seed=0)
    assert fitted(model, mode, epochs=2, batch_size=4) == history
    assert_equal(model.network.get_weights(), expected.get_weights())


@pytest.mark.parametrize(
    ("attack", "sam", "switches", "passes", "mode"),
    [
        (None, SAM, (), 1, "eager"),
        (None, SAM, ("second_pass_statistics",), 2, "eager"),
        (PGD, None, ("attack_statistics",), 3, "eager"),
        (PGD, SAM, ("polluted_ascent",), 1, "eager"),
        (PGD, SAM, ("second_pass_statistics",), 2, "eager"),
        (PGD, SAM, ("attack_statistics",), 3, "eager"),
        (PGD, SAM, SWITCHES, 4, "graph"),
        (PGD, SAM, SWITCHES, 4, "xla"),
    ],
)
def test_each_pass_in_training_mode_keeps_nine_tenths_of_the_old_mean(
    attack, sam, switches, passes, mode
):
    """BatchNorm of the pixels, the same in each pass: K = 2 and the step's."""
    layer = batch_norm()
    model = authors.AuthorsModel(
        network(layer),
        attack and attack.with_epsilon(0.0),
        sam,
        **dict.fromkeys(switches, True),
    )
    mean, variance = np.full(6, 0.7), np.full(6, 2.0)
    layer.moving_mean.assign(mean)
    layer.moving_variance.assign(variance)
    fitted(model, mode)
    old = 0.9**passes
    for found, before, batch in (
        (layer.moving_mean, mean, X.mean(axis=0)),
        (layer.moving_variance, variance, X.var(axis=0)),
    ):
        np.testing.assert_allclose(
            found, old * before + (1 - old) * batch, rtol=1e-5
        )


def test_the_second_pass_s_statistics_are_those_of_the_perturbed_weights():
    model = authors.AuthorsModel(
        normalised(), None, SAM, second_pass_statistics=True
    )
    first, layer = model.network.layers[:2]
    layer.moving_mean.assign(np.full(5, 0.7))
    with tf.GradientTape() as tape:
        loss = LOSS(Y, model.network(X, training=True))
    weights = model.network.trainable_variables
    gradients = [g.numpy() for g in tape.gradient(loss, weights)]
    layer.moving_mean.assign(np.full(5, 0.7))  # The pass above moved it.
    scale = RHO / np.sqrt(sum(np.square(g).sum() for g in gradients))
    kernel, bias = first.get_weights()
    sharp = X @ (kernel + scale * gradients[0]) + bias + scale * gradients[1]
    expected = 0.81 * 0.7 + 0.09 * first(X).numpy().mean(axis=0)
    fitted(model)
    np.testing.assert_allclose(
        layer.moving_mean, expected + 0.1 * sharp.mean(axis=0), atol=1e-6
    )


def test_the_attack_s_statistics_are_those_of_its_iterates():
    """BatchNorm of the pixels sees the start, then one step of epsilon."""
    layer = batch_norm()
    attack = tfsam.PGD(0.2, steps=2, step_size=0.2, random_start=False)
    attack.bounds = None
    model = authors.AuthorsModel(network(layer), attack, attack_statistics=True)
    x, iterates = tf.constant(X), [X]
    for _ in range(2):
        with tf.GradientTape() as tape:
            point = tf.constant(iterates[-1])
            tape.watch(point)
            loss = LOSS(Y, model.network(point, training=True))
        slope = tape.gradient(loss, point)
        moved = iterates[-1] - x + 0.2 * tf.sign(slope)
        iterates.append(x + tf.clip_by_value(moved, -0.2, 0.2))
    layer.moving_mean.assign(np.full(6, 0.7))
    fitted(model)
    expected = 0.7
    for iterate in iterates:
        expected = 0.9 * expected + 0.1 * np.mean(iterate, axis=0)
    np.testing.assert_allclose(layer.moving_mean, expected, atol=1e-6)


SAME_WEIGHTS = {
    "SAM": ((None, SAM), ("second_pass_statistics",), "inference"),
    "AT": ((PGD, None), ("attack_statistics",), "training"),
    "AT+SAM": ((PGD, SAM), SWITCHES[:2], "training"),
}


@pytest.mark.parametrize("name", SAME_WEIGHTS)
def test_statistics_change_nothing_but_inference(name):
    """Training uses batch statistics: weights, losses, accuracies are equal."""
    perturbations, switches, mode = SAME_WEIGHTS[name]
    expected, history = clean(
        *perturbations, make=with_dropout, attack_mode=mode
    )
    found, other = trained(
        *perturbations, make=with_dropout, **dict.fromkeys(switches, True)
    )
    for key, values in history.items():
        np.testing.assert_allclose(other[key], values, rtol=1e-6)
    for one, other in zip(
        found.trainable_variables, expected.trainable_variables, strict=True
    ):
        np.testing.assert_allclose(one.numpy(), other.numpy(), atol=1e-6)
    layer, clean_layer = found.layers[1], expected.layers[1]
    assert np.abs(layer.moving_mean - clean_layer.moving_mean).max() > 1e-2
    logits = np.abs(found(X, training=False) - expected(X, training=False))
    assert logits.max() > 1e-2


@pytest.mark.parametrize(
    ("norm", "random_start", "step_size"),
    [("l2", True, None), ("linf", False, 0.1)],
)
def test_without_a_radius_pollution_changes_nothing(
    norm, random_start, step_size
):
    """The attack is PGD, with the same noise."""
    attack = tfsam.PGD(0.2, norm, 2, step_size, random_start)
    expected, history = clean(attack, tfsam.SAM(0))
    found, other = trained(attack, tfsam.SAM(0), polluted_ascent=True)
    assert_equal(found.get_weights(), expected.get_weights(), 1e-6)
    np.testing.assert_allclose(other["loss"], history["loss"], rtol=1e-6)


def by_hand(net, steps, epsilon, step_size):
    """Weights after one polluted step of AT+SAM, learning rate 0.5."""
    weights, x = net.trainable_variables, tf.constant(X)
    point, total = x, 0
    for index in range(steps + 1):
        with tf.GradientTape() as tape:
            tape.watch(point)
            loss = LOSS(Y, net(point))
        slope, *gradients = tape.gradient(loss, [point, *weights])
        total = total + np.concatenate([np.ravel(g) for g in gradients])
        if index < steps:
            moved = point - x + step_size * tf.sign(slope)
            moved = x + tf.clip_by_value(moved, -epsilon, epsilon)
            point = tf.clip_by_value(moved, 0, 1)
    start = net.get_weights()
    sizes = np.cumsum([w.size for w in start])[:-1]
    parts = np.split(RHO * total / np.linalg.norm(total), sizes)
    net.set_weights(
        [w + e.reshape(w.shape) for w, e in zip(start, parts, strict=True)]
    )
    with tf.GradientTape() as tape:
        loss = LOSS(Y, net(point))
    descent = tape.gradient(loss, weights)
    return [w - 0.5 * g for w, g in zip(start, descent, strict=True)]


@pytest.mark.parametrize(
    ("mode", "scaled"), [("graph", False), ("graph", True), ("xla", False)]
)
def test_a_polluted_ascent_by_hand(mode, scaled):
    """The sum of the K + 1 gradients of the batch's mean loss."""
    attack = tfsam.PGD(0.3, steps=2, step_size=0.2, random_start=False)
    expected = by_hand(network(), 2, 0.3, 0.2)

    def found(**kwargs):
        optimizer = tfsam.SGD(0.5)
        if scaled:
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
        model = authors.AuthorsModel(network(), attack, SAM, **kwargs)
        fitted(model, mode, optimizer=optimizer)
        return model.network.get_weights()

    assert_equal(found(polluted_ascent=True), expected, 1e-6)
    assert np.abs(found()[0] - expected[0]).max() > 1e-5


def test_pollution_by_an_attack_in_training_mode_is_another():
    one, _ = trained(PGD, SAM, polluted_ascent=True)
    other, _ = trained(PGD, SAM, polluted_ascent=True, attack_statistics=True)
    assert np.abs(one.get_weights()[0] - other.get_weights()[0]).max() > 1e-4


@pytest.mark.parametrize(
    ("attack", "method", "switch"),
    [
        (None, None, "second_pass_statistics"),
        (PGD, None, "second_pass_statistics"),
        (None, tfsam.SAM(RHO, steps=2), "second_pass_statistics"),
        (None, tfsam.LookSAM(RHO), "second_pass_statistics"),
        (PGD, None, "polluted_ascent"),
        (None, SAM, "polluted_ascent"),
        (None, SAM, "attack_statistics"),
        (tfsam.FGSM(0.1), None, "attack_statistics"),
        (tfsam.PGD(0.1, restarts=2), None, "attack_statistics"),
        (tfsam.PGD(0.1, random_start="normal"), None, "attack_statistics"),
    ],
)
def test_a_difference_needs_what_it_is_about(attack, method, switch):
    with pytest.raises(ValueError, match=rf"{switch}.*Received: perturb_"):
        authors.AuthorsModel(normalised(), attack, method, **{switch: 1})


@pytest.mark.parametrize("switch", SWITCHES[:2])
def test_statistics_need_batch_norm(switch):
    frozen = batch_norm()
    frozen.trainable = False
    for net in (network(), network(frozen)):
        with pytest.raises(ValueError, match="Received: network=sequential"):
            authors.AuthorsModel(net, PGD, SAM, **{switch: True})


def test_it_trains_on_one_device():
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with strategy.scope():
        with pytest.raises(ValueError, match="Received: replicas=2"):
            authors.AuthorsModel(network())


def fake(images, method, switches, seed, epochs):
    """Accuracies that encode the arguments."""
    natural = 90.0 + 2 * seed - len(switches)
    return {
        "epochs": epochs,
        "natural": natural,
        "linf 0.05": 50.0,
        "linf 0.1": 10.0 * (method.perturb_inputs is not None),
        "seconds": 0.0,
    }


def test_the_command_goes_on_where_it_was_stopped(tmp_path, monkeypatch):
    calls = []

    def counting(*arguments):
        calls.append(arguments)
        return fake(*arguments)

    monkeypatch.setattr(authors, "measured", counting)
    found = authors.results(None, tmp_path / "new", seeds=2, epochs=3)
    assert len(calls) == 18  # Of each seed 2 by SAM, 2 by AT, 5 by AT+SAM.
    (tmp_path / "new" / "at_sam-all-1.json").unlink()
    assert authors.results(None, tmp_path / "new", seeds=2, epochs=3) == found
    assert calls[18:] == [(None, authors.METHODS["at_sam"], SWITCHES, 1, 3)]
    with pytest.raises(ValueError, match="Received: epochs=4"):
        authors.results(None, tmp_path / "new", seeds=2, epochs=4)


def test_the_table(tmp_path, monkeypatch):
    monkeypatch.setattr(authors, "measured", fake)
    lines = authors.table(authors.results(None, tmp_path, 2, 1)).splitlines()
    assert (
        lines[0] == "| method | difference | natural | linf 0.05 | linf 0.1 |"
    )
    assert lines[1] == "|---|---|---|---|---|"
    assert lines[2] == "| sam | clean | 91.0 ± 1.4 | 50.0 ± 0.0 | 0.0 ± 0.0 |"
    assert lines[-1] == (
        "| at_sam | all | 88.0 ± 1.4 (-3.0) | 50.0 ± 0.0 (+0.0) "
        "| 10.0 ± 0.0 (+0.0) |"
    )
    assert len(lines) == 11
    one = authors.table(authors.results(None, tmp_path, 1, 1)).splitlines()
    assert one[2] == "| sam | clean | 90.0 | 50.0 | 0.0 |"


def test_a_network_of_the_table_is_trained_and_attacked(digits, monkeypatch):
    def small(classes, input_shape, statistics):
        return keras.Sequential(
            [
                keras.Input(input_shape),
                keras.layers.Flatten(),
                batch_norm(),
                keras.layers.Dense(classes),
            ]
        )

    monkeypatch.setattr(tfsam.networks, "preact_resnet8", small)
    x, y = digits
    images = tfsam.data.Images(
        "digits", x[:256], y[:256], x[256:320], y[256:320], tuple("0123456789")
    )
    arguments = (authors.METHODS["sam"], SWITCHES[:1], 0, 4)
    cell = authors.measured(images, *arguments)
    net = authors.trained(images, *arguments)  # The seed decides all.
    right = np.argmax(net(x[256:320], training=False), axis=1) == y[256:320]
    assert cell["natural"] == 100 * right.mean()
    assert cell["natural"] > 50
    assert cell["natural"] > cell["linf 0.05"] >= cell["linf 0.1"]
    assert cell["epochs"] == 4
    assert cell["seconds"] > 0
