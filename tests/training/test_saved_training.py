"""Saved models, and callbacks of Keras."""

import keras
import numpy as np
import pytest
from step_models import X
from step_models import Y
from step_models import compiled
from step_models import small

import tfsam


def test_save_load_and_go_on(tmp_path):
    def make():
        model = tfsam.RobustModel(
            small(),
            tfsam.PGD(0.1, norm="l2", steps=2),
            tfsam.ASAM(0.3, eta=0.2, adaptive="all"),
            sharpness="global",
            exclude=["bias"],
            seed=5,
        )
        optimizer = tfsam.SGD(0.1, momentum=0.9, weight_decay=5e-4)
        return compiled(model, optimizer=optimizer, run_eagerly=True)

    halted = make()
    halted.fit(X, Y, epochs=2, shuffle=False, verbose=0)
    halted.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    for key in ("sharpness", "exclude", "seed", "objective"):
        assert loaded.get_config()[key] == halted.get_config()[key]
    assert loaded.perturb_inputs.get_config() == (
        halted.perturb_inputs.get_config()
    )
    assert repr(loaded.perturb_weights) == repr(halted.perturb_weights)
    assert loaded.optimizer.get_config() == halted.optimizer.get_config()
    np.testing.assert_array_equal(
        loaded.predict(X, verbose=0), halted.predict(X, verbose=0)
    )
    # Dropout's own seeds are Keras's to save; it does not.
    assert int(loaded.step_count) == 2
    loaded.fit(X, Y, epochs=2, shuffle=False, verbose=0)
    assert int(loaded.step_count) == 4


@pytest.mark.slow
def test_going_on_after_loading_is_exact(tmp_path):
    def make():
        keras.utils.set_random_seed(0)
        network = tfsam.networks.preact_resnet8(3, input_shape=(4, 4, 1))
        model = tfsam.RobustModel(
            network, tfsam.PGD(0.1, steps=2), tfsam.SAM(0.1), seed=5
        )
        return compiled(
            model, optimizer=tfsam.SGD(0.1, momentum=0.9, weight_decay=5e-4)
        )

    straight = make()
    straight.fit(X, Y, batch_size=6, epochs=4, shuffle=False, verbose=0)
    halted = make()
    halted.fit(X, Y, batch_size=6, epochs=2, shuffle=False, verbose=0)
    halted.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    loaded.fit(X, Y, batch_size=6, epochs=2, shuffle=False, verbose=0)
    for one, other in zip(
        straight.network.variables, loaded.network.variables, strict=True
    ):
        np.testing.assert_array_equal(one, other)


def test_the_inner_network_loads_without_tfsam_objects(tmp_path):
    network = tfsam.networks.preact_resnet8(3, input_shape=(4, 4, 1))
    network.save(tmp_path / "network.keras")
    loaded = keras.saving.load_model(tmp_path / "network.keras")
    np.testing.assert_array_equal(loaded(X), network(X))


def test_callbacks(tmp_path):
    model = tfsam.RobustModel(small(), perturb_weights=tfsam.SAM(0.1))
    optimizer = keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.5)
    history = compiled(model, optimizer=optimizer, run_eagerly=True).fit(
        X,
        Y,
        epochs=6,
        validation_data=(X, Y),
        callbacks=[
            keras.callbacks.BackupAndRestore(tmp_path / "backup"),
            keras.callbacks.EarlyStopping("val_loss", patience=1, min_delta=9),
            keras.callbacks.ModelCheckpoint(tmp_path / "best.keras"),
            keras.callbacks.SwapEMAWeights(),
        ],
        verbose=0,
    )
    assert len(history.history["loss"]) == 2
    assert (tmp_path / "best.keras").exists()
