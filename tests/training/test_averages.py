"""Averages of the weights: closed forms, visibility, and resuming."""

import contextlib
import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfsam
from tfsam.attacks.base import example_seeds
from tfsam.training.averages import EMA
from tfsam.training.averages import SWA
from tfsam.training.checkpoints import Checkpoint
from tfsam.training.recalibration import recalibrate

RNG = np.random.default_rng(0)
X = RNG.random((24, 4)).astype("float32")
Y = RNG.integers(0, 3, 24)
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


class Block(keras.layers.Layer):
    """A layer, no model, that holds a BatchNorm; counts its tracings."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.norm = keras.layers.BatchNormalization(momentum=0.9)
        self.calls = 0

    def build(self, input_shape):
        self.norm.build(input_shape)

    def call(self, inputs, training=None):
        self.calls += 1
        return self.norm(inputs, training=training)


def network(*, batch_norm=True, dropout=0.0):
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(5, activation="tanh")]
    if dropout:
        layers.append(keras.layers.Dropout(dropout))
    if batch_norm:
        layers += [Block(), keras.layers.Activation("tanh")]
    if batch_norm:
        inner = [keras.Input((5,)), keras.layers.BatchNormalization()]
        layers.append(keras.Sequential(inner))
    layers.append(keras.layers.Dense(3))
    return keras.Sequential([keras.Input((4,)), *layers])


def compiled(model, learning_rate=0.5, run_eagerly=True, **kwargs):
    """Compiles a model. A few small steps are quicker than tracing one."""
    model.compile(
        tfsam.SGD(learning_rate, momentum=0.9),
        LOSS,
        run_eagerly=run_eagerly,
        **kwargs,
    )
    return model


def fit(model, *callbacks, epochs=3, validation=True, **kwargs):
    return model.fit(
        X,
        Y,
        batch_size=8,
        epochs=epochs,
        shuffle=False,
        verbose=0,
        validation_data=(X, Y) if validation else None,
        callbacks=list(callbacks),
        **kwargs,
    )


def values(variables):
    return [v.numpy() for v in variables]


def statistics(model):
    return [v.numpy() for v in model.variables if "moving" in v.path]


def assert_equal(found, expected):
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def assert_close(found, expected, **kwargs):
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(
            one, other, **{"rtol": 1e-5, "atol": 1e-6} | kwargs
        )


def differ(found, expected):
    return any(
        np.abs(one - other).max() > 1e-4
        for one, other in zip(found, expected, strict=True)
    )


class Steps(keras.callbacks.Callback):
    """The trainable weights at the start and after each step."""

    def on_train_begin(self, logs=None):
        self.seen = [values(self.model.trainable_variables)]

    def on_train_batch_end(self, batch, logs=None):
        self.seen.append(values(self.model.trainable_variables))


class Epochs(keras.callbacks.Callback):
    """All of the network's variables at the end of each epoch."""

    def on_train_begin(self, logs=None):
        self.network = getattr(self.model, "network", self.model)
        self.seen = []

    def on_epoch_end(self, epoch, logs=None):
        self.seen.append(values(self.network.variables))

    def trainable(self):
        """The averaged ones among them, epoch by epoch."""
        chosen = {id(v) for v in self.network.trainable_variables}
        return [
            [
                value
                for value, variable in zip(
                    epoch, self.network.variables, strict=True
                )
                if id(variable) in chosen
            ]
            for epoch in self.seen
        ]


def ema(weights, momentum):
    """The average of weights in their order, without warmup."""
    average = weights[0]
    for step in weights[1:]:
        average = [
            momentum * a + (1 - momentum) * w
            for a, w in zip(average, step, strict=True)
        ]
    return average


# Recalibration.


def by_hand(model, batches):
    """The statistics as the weighted mean of the batches' own."""
    dense, block, _, inner, _ = model.layers
    found, sizes = [], [len(x) for x in batches]
    for x in batches:
        hidden = dense(x).numpy().astype("float64")
        mean, variance = hidden.mean(0), hidden.var(0)
        normal = (hidden - mean) / np.sqrt(variance + block.norm.epsilon)
        gamma, beta = values([block.norm.gamma, block.norm.beta])
        other = np.tanh(normal * gamma + beta)
        found.append([mean, variance, other.mean(0), other.var(0)])
    assert inner.layers[0].momentum == 0.99
    return [
        np.average(part, axis=0, weights=sizes)
        for part in zip(*found, strict=True)
    ]


@pytest.mark.parametrize("batch", [8, 12, 10])
def test_statistics_are_the_mean_over_examples_of_the_batches_own(batch):
    """For any momentum, and with a smaller last batch."""
    model = network()
    batches = [X[i : i + batch] for i in range(0, 24, batch)]
    recalibrate(model, tf.data.Dataset.from_tensor_slices(X).batch(batch))
    assert_close(statistics(model), by_hand(model, batches))


def test_data_of_any_kind():
    many = RNG.random((150, 4)).astype("float32")
    labels = np.zeros(150, int)
    expected = by_hand(network(), [many[:128], many[128:]])
    datasets = [
        tf.data.Dataset.from_tensor_slices(parts).batch(128)
        for parts in ((many, labels), (many, labels, np.ones(150)))
    ]
    for data in (many, (many, labels), *datasets):
        model = network()
        recalibrate(model, data)
        assert_close(statistics(model), expected)


def test_nothing_else_moves():
    model = network(dropout=0.5)
    norms = [model.layers[2].norm, model.layers[4].layers[0]]
    before = [v.numpy() for v in model.variables if "moving" not in v.path]
    recalibrate(model, X)
    after = [v.numpy() for v in model.variables if "moving" not in v.path]
    assert_equal(after, before)
    assert any("seed" in v.path for v in model.variables)
    assert [norm.momentum for norm in norms] == [0.9, 0.99]


def test_dropout_draws_anew_for_each_batch():
    once, twice = network(dropout=0.5), network(dropout=0.5)
    recalibrate(once, X)
    data = tf.data.Dataset.from_tensors(X)
    recalibrate(twice, data.concatenate(data))
    assert differ(statistics(once), statistics(twice))
    plain, repeated = network(), network()
    recalibrate(plain, X)
    recalibrate(repeated, data.concatenate(data))
    assert_close(statistics(plain), statistics(repeated))


def test_frozen_layers_and_those_of_momentum_1_keep_their_statistics():
    frozen, still, moving = (
        keras.layers.BatchNormalization(trainable=False),
        keras.layers.BatchNormalization(momentum=1.0),
        keras.layers.BatchNormalization(momentum=0.0),
    )
    model = keras.Sequential([keras.Input((4,)), frozen, still, moving])
    frozen.moving_mean.assign([1.0, 2.0, 3.0, 4.0])
    recalibrate(model, X)
    np.testing.assert_array_equal(frozen.moving_mean.numpy(), [1, 2, 3, 4])
    np.testing.assert_array_equal(still.moving_variance.numpy(), np.ones(4))
    # Behind a layer that normalises by the batch, as it does in training.
    np.testing.assert_allclose(moving.moving_mean.numpy(), 0, atol=1e-5)
    assert (moving.moving_variance.numpy() < 1).all()


def test_under_attack_the_statistics_are_those_of_perturbed_inputs():
    attack = tfsam.PGD(0.2, steps=2)
    model, clean, expected = network(), network(), network()
    for one in (model, clean, expected):
        one.layers[1].norm.moving_mean.assign([0.3, -0.2, 0.1, 0.5, -0.4])
    x_adv = attack(
        lambda x: expected(x, training=False), X, Y, example_seeds(7, 24)
    )
    data = tf.data.Dataset.from_tensor_slices
    recalibrate(model, data((X, Y)).batch(8), attack, seed=7)
    recalibrate(expected, data(x_adv).batch(8))
    recalibrate(clean, data(X).batch(8))
    assert_close(statistics(model), statistics(expected))
    assert differ(statistics(model), statistics(clean))


def test_an_attack_that_cannot_run_in_a_graph():
    class Shift:
        in_graph = False

        def __call__(self, logits_fn, x, y, seed):
            assert logits_fn(x).numpy().shape == (24, 3)
            return x + 0.5 * y.numpy()[:, None].astype("float32")

    model, expected = network(), network()
    recalibrate(model, (X, Y), Shift())
    recalibrate(expected, X + 0.5 * Y[:, None].astype("float32"))
    assert_close(statistics(model), statistics(expected))


def test_without_batch_norm_the_data_is_not_read():
    def read():
        raise AssertionError
        yield

    data = tf.data.Dataset.from_generator(
        read, output_signature=tf.TensorSpec((None, 4))
    )
    model = network(batch_norm=False)
    before = values(model.variables)
    recalibrate(model, data)
    assert_equal(values(model.variables), before)


def test_data_that_cannot_be_used():
    data = tf.data.Dataset.from_tensors(X)
    for bad in (X[:0], data.take(0), data.repeat()):
        with pytest.raises(ValueError, match="Received: data="):
            recalibrate(network(), bad)
    with pytest.raises(ValueError, match="labels"):
        recalibrate(network(), X, tfsam.PGD(0.1))
    with pytest.raises(ValueError, match="needs data"):
        EMA(attack=tfsam.PGD(0.1))


@pytest.mark.skipif(
    "renorm"
    not in inspect.signature(keras.layers.BatchNormalization).parameters,
    reason="this Keras has no batch renormalisation",
)
def test_batch_renormalisation_is_refused():
    layer = keras.layers.BatchNormalization(renorm=True)
    with pytest.raises(ValueError, match="renormalisation"):
        recalibrate(keras.Sequential([keras.Input((4,)), layer]), X)


# The averages.


def test_ema_is_the_closed_form():
    """The sum of (1 - m) m^(T - t) w_t, and m^T w_0."""
    steps, m = Steps(), 0.7
    model = compiled(network(batch_norm=False))
    fit(model, steps, EMA(m, warmup=False))
    count = len(steps.seen) - 1
    shares = [m**count] + [
        (1 - m) * m ** (count - t) for t in range(1, count + 1)
    ]
    expected = [
        sum(share * w for share, w in zip(shares, weights, strict=True))
        for weights in zip(*steps.seen, strict=True)
    ]
    assert count == 9 and sum(shares) == pytest.approx(1)
    assert_close(values(model.trainable_variables), expected)
    assert differ(expected, steps.seen[-1])


def test_ema_warms_up():
    steps, average = Steps(), EMA(0.3)
    fit(compiled(network(batch_norm=False)), steps, average)
    expected = steps.seen[0]
    for t, weights in enumerate(steps.seen[1:]):
        m = min(0.3, (1 + t) / (10 + t))
        expected = [
            m * a + (1 - m) * w for a, w in zip(expected, weights, strict=True)
        ]
    assert_close([a.numpy() for a in average.average], expected)
    assert average.count == 9


def test_ema_at_the_ends():
    now, first = EMA(0.0), EMA(1.0, warmup=False)
    steps, epochs = Steps(), Epochs()
    model = compiled(network(batch_norm=False))
    fit(model, now, first, steps, epochs, validation=False)
    assert_equal([a.numpy() for a in now.average], epochs.trainable()[-1])
    assert_close([a.numpy() for a in first.average], steps.seen[0])


def test_weights_that_never_change_are_their_average():
    averages = [EMA(0.9), EMA(0.999, warmup=False), SWA(0)]
    model = compiled(network(batch_norm=False), learning_rate=0.0)
    before = values(model.variables)
    fit(model, *averages, validation=False)
    for average in averages:
        assert_equal([a.numpy() for a in average.average], before)


def test_half_precision_is_averaged_in_single():
    """In float16 0.9995 is 1, and the average would never move."""
    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(3, dtype="float16")]
    )
    average = EMA(0.9999, warmup=False)
    fit(compiled(model), average, epochs=1)
    assert {a.dtype.name for a in average.average} == {"float32"}
    assert model.trainable_variables[0].dtype == "float16"


@pytest.mark.parametrize(
    ("start", "every", "chosen", "validation"),
    [(0, 1, [0, 1, 2, 3], False), (1, 2, [1, 3], True)],
)
def test_swa_is_the_mean_of_its_snapshots(start, every, chosen, validation):
    average, epochs = SWA(start, every=every), Epochs()
    model = compiled(network(batch_norm=False))
    fit(model, average, epochs, epochs=4, validation=validation)
    snapshots = [epochs.trainable()[i] for i in chosen]
    expected = [np.mean(w, axis=0) for w in zip(*snapshots, strict=True)]
    assert average.count == len(chosen)
    assert_close(values(model.trainable_variables), expected)


def test_swa_before_its_first_snapshot_leaves_the_network_alone():
    before, after = Epochs(), Epochs()
    model = compiled(network())
    with pytest.warns(UserWarning, match=r"no snapshot.* start_epoch=9"):
        fit(model, before, SWA(9, data=X), after)
    for one, other in zip(before.seen, after.seen, strict=True):
        assert_equal(one, other)
    assert_equal(values(model.variables), after.seen[-1])


# The weights that each callback sees.


def test_training_does_not_feel_the_average():
    """To the bit: the statistics, the noise and the momentum too."""

    def trained(*callbacks):
        model = tfsam.RobustModel(
            network(dropout=0.2), perturb_weights=tfsam.SAM(0.1), seed=0
        )
        epochs = Epochs()
        fit(compiled(model), *callbacks, epochs)
        return epochs.seen, values(model.optimizer.variables)

    expected, expected_state = trained()
    for average in (EMA(0.8, data=X), SWA(1, data=X)):
        seen, state = trained(average)
        for one, other in zip(seen, expected, strict=True):
            assert_equal(one, other)
        assert_equal(state, expected_state)


def test_validation_and_callbacks_before_it_see_the_averaged_network():
    before, steps, after = Epochs(), Steps(), Epochs()
    average = EMA(0.8, warmup=False, data=X)
    model = compiled(network())
    history = fit(model, before, steps, average, after, epochs=2).history
    for epoch in range(2):
        done = 3 * (epoch + 1)
        assert_close(
            before.trainable()[epoch], ema(steps.seen[: done + 1], 0.8)
        )
        assert_equal(after.trainable()[epoch], steps.seen[done])
        # Its statistics are its own, and its loss is the one validated.
        clone = compiled(network())
        for variable, value in zip(
            clone.variables, before.seen[epoch], strict=True
        ):
            variable.assign(value)
        loss = clone.evaluate(X, Y, verbose=0)
        assert history["val_loss"][epoch] == pytest.approx(loss, rel=1e-5)
        found = statistics(clone)
        recalibrate(clone, X)
        assert_close(statistics(clone), found)
        assert differ(after.seen[epoch], before.seen[epoch])


def test_without_validation_callbacks_before_it_see_the_training():
    before, after = Epochs(), Epochs()
    model = compiled(network())
    average = SWA(0, data=X)
    fit(model, before, average, after, validation=False)
    for one, other in zip(before.seen, after.seen, strict=True):
        assert_equal(one, other)
    assert_close(values(model.trainable_variables), average.average)


@pytest.mark.parametrize("validation", [False, True])
def test_in_the_end_the_network_is_the_average(validation):
    average, attack = EMA(0.8, data=(X, Y)), tfsam.PGD(0.2, steps=2)
    average.attack = attack
    model = compiled(network())
    fit(model, average, validation=validation)
    assert_equal(
        values(model.trainable_variables), [a.numpy() for a in average.average]
    )
    before = values(model.variables)
    model.evaluate(X, Y, verbose=0, callbacks=[average])
    assert_equal(values(model.variables), before)
    clean = network()
    clean.set_weights(model.get_weights())
    recalibrate(clean, X)
    assert differ(statistics(model), statistics(clean))


def test_each_shape_of_batch_is_traced_once():
    model = compiled(network(), run_eagerly=False)
    counted = model.layers[1]

    class Count(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            found.append(counted.calls)

    found = []
    data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(10)
    fit(model, EMA(data=data), Count())
    assert found[0] > 0 and found[0] == found[1] == found[2]
    counted.calls = 0
    recalibrate(model, data)
    assert counted.calls == 2
    recalibrate(
        model, data, lambda logits_fn, x, y, seed: x + logits_fn(x)[0, 0]
    )
    assert counted.calls == 2 + 4


def test_a_second_fit_starts_a_new_average():
    steps, average = Steps(), EMA(0.8, warmup=False)
    model = compiled(network(batch_norm=False))
    fit(model, average)
    fit(model, average, steps, epochs=1)
    assert_close(values(model.trainable_variables), ema(steps.seen, 0.8))


# Killed and resumed.


@pytest.mark.parametrize("kind", [EMA, SWA])
def test_killed_and_resumed_ends_the_same(kind, tmp_path):
    def average():
        argument = 0.9 if kind is EMA else 1
        return kind(argument, data=X, folder=tmp_path / "averages")

    # As if it had died with the average of epoch 3 written, its checkpoint not.
    whole = compiled(network())
    fit(whole, average(), Checkpoint(tmp_path))
    (tmp_path / "epoch-0003.keras").unlink()
    resumed = keras.saving.load_model(
        tmp_path / "epoch-0002.keras", custom_objects={"Block": Block}
    )
    assert differ(values(resumed.variables), values(whole.variables))
    fit(resumed, average(), initial_epoch=2)
    assert_equal(values(resumed.variables), values(whole.variables))


def test_the_two_newest_files_are_kept(tmp_path):
    (tmp_path / "average-0009.npz").touch()  # Of a training before.
    (tmp_path / "average-best.npz").touch()
    model = compiled(network(batch_norm=False))
    fit(model, SWA(2, folder=tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "average-0002.npz",
        "average-0003.npz",
        "average-best.npz",
    ]


def test_a_missing_file_is_told(tmp_path):
    model = compiled(network(batch_norm=False))
    with pytest.raises(ValueError, match=r"average-0001\.npz"):
        fit(model, EMA(folder=tmp_path), initial_epoch=1)


# Devices, and errors.


def replicas_of(model):
    """Each replica's own copy of every variable."""
    strategy = model.distribute_strategy
    return [
        part.numpy()
        for variable in model.variables
        for part in strategy.experimental_local_results(variable.value)
    ]


class Replicas(Epochs):
    def on_epoch_end(self, epoch, logs=None):
        self.seen.append(replicas_of(self.network))


def on_two_devices(*callbacks, inside=False):
    """Trains, and returns the network."""
    strategy = tf.distribute.MirroredStrategy(
        ["CPU:0", "CPU:1"],
        cross_device_ops=tf.distribute.ReductionToOneDevice(),
    )
    with strategy.scope():
        model = compiled(
            tfsam.RobustModel(network(), seed=0), run_eagerly=False
        )
    with strategy.scope() if inside else contextlib.nullcontext():
        fit(model, *callbacks, epochs=2)
    return model.network


@pytest.mark.parametrize(
    "inside", [False, pytest.param(True, marks=pytest.mark.slow)]
)
def test_two_devices(inside):
    """The statistics of replicas differ; each gets its own back."""
    expected = Replicas()
    on_two_devices(expected, inside=inside)
    assert differ(expected.seen[-1][0::2], expected.seen[-1][1::2])
    before, steps, after = Epochs(), Steps(), Replicas()
    attack = tfsam.PGD(0.1, steps=1)
    average = EMA(0.8, warmup=False, data=(X, Y), attack=attack)
    trained = on_two_devices(before, steps, average, after, inside=inside)
    for one, other in zip(after.seen, expected.seen, strict=True):
        assert_equal(one, other)
    weights = ema(steps.seen, 0.8)
    assert_close(before.trainable()[-1], weights)
    assert_close(values(trained.trainable_variables), weights)
    copies = replicas_of(trained)
    assert_equal(copies[0::2], copies[1::2])


def test_one_average_at_a_time():
    """After a failed fit, the next one may have its own average."""
    model = compiled(network(batch_norm=False))
    with pytest.raises(ValueError, match="takes one average"):
        fit(model, EMA(), EMA())
    average = EMA()
    fit(model, average)
    assert average.count == 9


def test_statistics_that_stay_behind_are_warned_of():
    with pytest.warns(UserWarning, match="data= to measure"):
        fit(compiled(network()), EMA(), epochs=1)


def test_what_fit_refuses():
    unbuilt = compiled(keras.Sequential([keras.layers.Dense(3)]))
    with pytest.raises(ValueError, match="must be built"):
        fit(unbuilt, SWA(0))
    several = compiled(
        network(batch_norm=False), run_eagerly=False, steps_per_execution=2
    )
    with pytest.raises(ValueError, match="steps_per_execution"):
        fit(several, EMA())
    average = SWA(0)
    fit(several, average, epochs=2)
    assert average.count == 2


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        (EMA, {"momentum": 1.5}),
        (EMA, {"momentum": float("nan")}),
        (EMA, {"data": X, "attack": 0.1}),
        (SWA, {"start_epoch": -1}),
        (SWA, {"start_epoch": 0.5}),
        (SWA, {"start_epoch": 0, "every": 0}),
    ],
)
def test_bad_arguments(kind, arguments):
    with pytest.raises(ValueError, match="Received"):
        kind(**arguments)
