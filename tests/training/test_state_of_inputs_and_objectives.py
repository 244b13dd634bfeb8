"""The offsets of Free-AT and the class means of IKL: kept, saved, refused."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import main
from helpers import settings_of
from helpers import slow
from helpers import tiny

import tfsam
from tfsam import registries
from tfsam.runs import log_lines

RNG = np.random.default_rng(0)
X = RNG.random((16, 6), dtype="float32")
Y = RNG.integers(0, 3, 16)
SPARSE = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
PGD = tfsam.PGD(0.1, steps=1)


@keras.saving.register_keras_serializable(package="test_state")
def shifted(logits_fn, x, y, seed):
    """An attack that takes no time."""
    return x + 0.1 * tf.cos(30 * x)


FREE = tfsam.FreeAT(0.1, batch_size=8, replays=3)
PARTS = {
    "free": {"perturb_inputs": FREE},
    "ikl": {
        "perturb_inputs": shifted,
        "objective": tfsam.IKL(refresh_every=3),
    },
}


def compiled(mode="eager", optimizer=None, **parts):
    keras.utils.set_random_seed(0)
    layers = [
        keras.layers.Dense(5),
        keras.layers.BatchNormalization(),
        keras.layers.Activation("tanh"),
        keras.layers.Dense(3),
    ]
    network = keras.Sequential([keras.Input((6,)), *layers])
    model = tfsam.RobustModel(network, seed=0, **parts)
    model.compile(
        optimizer or tfsam.SGD(0.5, momentum=0.9),
        SPARSE,
        metrics=["accuracy"],
        jit_compile=mode == "xla",
        run_eagerly=mode == "eager",
    )
    return model


def fitted(model, epochs=1, x=X, y=Y):
    model.fit(x, y, batch_size=8, epochs=epochs, shuffle=False, verbose=0)
    return model


@pytest.mark.parametrize("name", ["free", slow("ikl")])
def test_training_goes_on_after_loading(name, tmp_path):
    """Two epochs are one, a file, and one: with the same state."""
    whole = fitted(compiled(**PARTS[name]), 2)
    fitted(compiled(**PARTS[name])).save(tmp_path / "half.keras")
    again = keras.saving.load_model(tmp_path / "half.keras")
    assert repr(again.perturb_inputs) == repr(PARTS[name]["perturb_inputs"])
    again = fitted(again)
    pairs = zip(again.weights, whole.weights, strict=True)
    for one, other in pairs:
        np.testing.assert_array_equal(one.numpy(), other.numpy())
    state = [whole.offsets] if name == "free" else whole.objective_state
    assert np.abs(state[0].numpy()).max() > 0


@pytest.mark.parametrize(
    ("name", "mode"), [slow(n, m) for n in PARTS for m in ("graph", "xla")]
)
def test_each_mode_is_alike(name, mode):
    found = fitted(compiled(mode, **PARTS[name]), 2).network.get_weights()
    expected = fitted(compiled(**PARTS[name]), 2).network.get_weights()
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_metrics_are_of_all_uses_of_a_batch():
    class Count(keras.metrics.Metric):
        def __init__(self):
            super().__init__(name="count")
            self.total = self.add_weight(shape=(), initializer="zeros")

        def update_state(self, y_true, y_pred, sample_weight=None):
            self.total.assign_add(tf.cast(tf.shape(y_pred)[0], "float32"))

        def result(self):
            return self.total

    model = compiled(perturb_inputs=FREE)
    model.compile(tfsam.SGD(0.1), SPARSE, metrics=[Count()], run_eagerly=True)
    logs = model.fit(X, Y, batch_size=8, verbose=0).history
    assert logs["count"] == [48]
    assert np.isfinite(logs["loss"]).all()


@pytest.mark.parametrize(
    "parts",
    [
        {"perturb_weights": tfsam.SAM(0.1)},
        slow({"perturb_weights": tfsam.LookSAM(0.1, every=2)}),
        slow({"objective": tfsam.TRADES()}),
        slow({"epsilon_warmup_steps": 4}),
    ],
)
def test_free_training_combines(parts):
    """The pixels' gradient is that of the pass at w, of the objective."""
    model = fitted(compiled(perturb_inputs=FREE, **parts))
    assert int(model.optimizer.iterations) == 6
    assert np.isfinite(model.network.get_weights()[0]).all()
    assert 0 < np.abs(np.asarray(model.offsets)).max() <= 0.1 + 1e-7


def test_the_attack_without_training_is_pgd_from_x():
    def logits(x):
        return tf.matmul(x, tf.ones([6, 3]) * [1.0, -2.0, 0.5])

    found = tfsam.FreeAT(0.1, replays=3)(logits, X, Y, 0)
    pgd = tfsam.PGD(0.1, steps=3, step_size=0.1, random_start=False)
    np.testing.assert_array_equal(found, pgd(logits, X, Y, 0))
    with pytest.raises(ValueError, match="norm must be linf for FreeAT"):
        tfsam.FreeAT(0.1, "l2")


def test_what_does_not_combine_with_free_training_is_refused():
    with pytest.raises(ValueError, match=r"must be 1. Received: sub_batches=2"):
        compiled(
            perturb_inputs=FREE, perturb_weights=tfsam.SAM(), sub_batches=2
        )
    sgd = keras.optimizers.SGD(0.1, gradient_accumulation_steps=2)
    with pytest.raises(ValueError, match="gradient_accumulation_steps=2"):
        fitted(compiled(optimizer=sgd, perturb_inputs=FREE))
    with pytest.raises(ValueError, match=r"at most 8 examples.* in .16, 16"):
        compiled(perturb_inputs=FREE).fit(X, Y, batch_size=16, verbose=0)
    with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
        with pytest.raises(ValueError, match=r"one device.*2 replicas"):
            compiled(perturb_inputs=FREE)
    open_ended = keras.Sequential(
        [
            keras.Input((None, None, 1)),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(3),
        ]
    )
    with pytest.raises(ValueError, match=r"a fixed shape\. Received: in"):
        tfsam.RobustModel(open_ended, FREE)


def test_class_means_need_one_output_of_classes():
    inputs = keras.Input((6,))
    dense = keras.layers.Dense(3)(inputs)
    network = keras.Model(inputs, [dense, dense])
    with pytest.raises(ValueError, match="keeps a state for each class"):
        tfsam.RobustModel(network, PGD, objective=tfsam.IKL())


def test_classes_that_are_not_seen_keep_their_mean():
    model = compiled(**PARTS["ikl"])
    y = np.zeros(8, int)
    for _ in range(3):
        model.train_on_batch(X[:8], y)
    means, sums, count = map(np.asarray, model.objective_state)
    np.testing.assert_allclose(means.sum(1), 1, rtol=1e-5)
    assert np.abs(means[0] - 1 / 3).max() > 1e-3
    np.testing.assert_array_equal(means[1:], np.float32(1 / 3))
    assert sums.max() == count == 0


@pytest.mark.slow
def test_replicas_share_the_class_means():
    def means(devices):
        strategy = tf.distribute.MirroredStrategy(
            devices, cross_device_ops=tf.distribute.ReductionToOneDevice()
        )
        with strategy.scope():
            model = tfsam.RobustModel(
                keras.Sequential([keras.Input((6,)), keras.layers.Dense(3)]),
                **PARTS["ikl"],
            )
            model.network.set_weights(
                [np.ones((6, 3)) * [1, -2, 0.5]] * 1 + [np.zeros(3)]
            )
            model.compile(tfsam.SGD(0.0), SPARSE)
        fitted(model, 2)
        return np.asarray(model.objective_state[0])

    np.testing.assert_allclose(
        means(["CPU:0", "CPU:1"]), means(["CPU:0"]), atol=1e-6
    )


# On the command line.

RUN = (
    *("--limit_train=96", "--batch_size=32", "--limit_test=20"),
    *("--attacks=pgd", "--attack_steps=1", "--linf_epsilons=0.1"),
    "--l2_epsilons=",
)


def test_the_preset_s_epochs_are_divided():
    made = settings_of("--preset=cifar10", "--method=free_at")
    assert (made.recipe.epochs, made.recipe.replays) == (13, 8)
    assert made.recipe.passes() == 8
    spec = "--perturb_inputs=free:replays=4"
    made = settings_of("--preset=cifar10", "--method=free_at", spec)
    assert (made.recipe.epochs, made.recipe.replays) == (25, 4)
    made = settings_of("--preset=cifar10", "--method=free_at", "--epochs=30")
    assert made.recipe.epochs == 30
    lines = log_lines.opening(made, [], 100)
    assert any("each batch is used 8 times in a row" in line for line in lines)
    assert settings_of("--preset=cifar10", "--method=at").recipe.replays == 1


def test_the_command_refuses_several_devices(tmp_path, capsys):
    flags = ("--method=free_at", "--devices=cpu:2", f"--workdir={tmp_path}/r")
    code, _ = main(*RUN, *flags)
    assert code == 2
    assert "which devices do not share" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        slow(("--perturb_inputs=free:replays=2", "--method=free_at")),
        slow(("--method=ikl", "--objective=ikl:alpha=5:temperature=1")),
        slow(("--method=nfgsm_at", "--perturb_inputs=nfgsm:noise=1")),
    ],
)
def test_a_run(tmp_path, monkeypatch, arguments):
    monkeypatch.setitem(registries.NETWORKS.native, "preact_resnet8", tiny)
    flags = (*arguments, "--epochs=1", f"--workdir={tmp_path}/run")
    code, output = main(*RUN, *flags)
    assert code == 0, output
