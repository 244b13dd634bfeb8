"""Runs that train: validation, averages, collapse, devices and NaN."""

import keras
import numpy as np
import pytest
from helpers import SMALL
from helpers import assert_measured
from helpers import convolutional
from helpers import cpu_only
from helpers import main
from helpers import read_json
from helpers import settings_of
from helpers import shorten_runs

from tfsam import data
from tfsam import registries
from tfsam.runs import early_stops
from tfsam.runs import methods
from tfsam.runs import parts
from tfsam.runs import trained_model
from tfsam.training import checkpoints
from tfsam.training import monitoring


def test_the_best_network_by_its_robust_accuracy_is_kept(
    tmp_path, tiny_network
):
    """Held-out images choose the best among the averages of the epochs."""
    code, _ = main(
        *(*SMALL, "--method=at", "--epsilon=0.05", "--steps=1"),
        *("--select=robust", "--average=ema", "--epochs=3"),
        *("--validation_images=20", f"--workdir={tmp_path}"),
    )
    assert code == 0
    results = read_json(tmp_path / "results.json")
    rows = monitoring.read_history(tmp_path / "history.csv")
    found = [row["val_robust_accuracy"] for row in rows]
    best = results["train"]["selected"]
    assert best["robust"] == max(found)
    assert best["epoch"] == found.index(max(found)) + 1
    assert results["train"]["images"] == 96 - 20
    kept = keras.saving.load_model(tmp_path / "best.keras").get_weights()
    model = keras.saving.load_model(tmp_path / "model.keras").get_weights()
    for one, other in zip(kept, model, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.slow
def test_validation_without_selection_is_measured_now_and_then(
    tmp_path, tiny_network
):
    code, _ = main(
        *(*SMALL, "--method=st", "--validate_every=2", "--epochs=3"),
        *("--validation_images=20", f"--workdir={tmp_path}"),
    )
    assert code == 0
    rows = monitoring.read_history(tmp_path / "history.csv")
    assert ["val_robust_accuracy" in row for row in rows] == [
        *(False, True, False)
    ]
    assert read_json(tmp_path / "results.json")["train"]["selected"] is None


def test_a_collapse_is_watched_for_on_images_of_all_classes():
    """Images of a folder come class by class."""
    x, y = np.zeros((90, 8, 8, 1), np.float32), np.repeat([0, 1, 2], 30)
    images = data.Images("folder:x", x, y, x, y, ("a", "b", "c"))
    arguments = ["--method=fgsm_at", "--batch_size=20"]
    stop = early_stops.at_collapse(settings_of(*arguments), images, None)
    assert set(stop.data.y) == {0, 1, 2}
    assert len(stop.data.y) == 20


@pytest.mark.slow
def test_a_collapse_stops_training_for_good(
    tmp_path, monkeypatch, tiny_network
):
    """Here any decrease is a collapse."""
    falling = iter([0.9, 0.5, 0.8, 0.1])
    monkeypatch.setattr(
        "tfsam.training.collapse.StopAtCollapse._robust_accuracy",
        lambda self: next(falling),
    )
    arguments = (
        *(*SMALL, "--method=fgsm_at", "--collapse_drop=0.5", "--epochs=5"),
        f"--workdir={tmp_path}",
    )
    code, output = main(*arguments)
    assert code == 0
    assert "collapsed" in output
    train = read_json(tmp_path / "results.json")["train"]
    assert train["epochs"] == train["stopped_epoch"] == 3
    # Killed before it was evaluated, it does not train on.
    before = (tmp_path / "model.keras").read_bytes()
    (tmp_path / "results.json").unlink()
    falling = iter([0.1])
    assert main(*arguments)[0] == 0
    assert len(monitoring.read_history(tmp_path / "history.csv")) == 3
    old = keras.saving.load_model(tmp_path / "model.keras").get_weights()
    (tmp_path / "old.keras").write_bytes(before)
    new = keras.saving.load_model(tmp_path / "old.keras").get_weights()
    for one, other in zip(old, new, strict=True):
        np.testing.assert_array_equal(one, other)


def test_an_average_measures_batchnorm_on_images_of_all_classes(monkeypatch):
    labels = np.repeat(np.arange(10), 2000)  # As a folder lists them.
    x = np.zeros([len(labels), 1, 1, 1], np.uint8)
    images = data.Images("sorted", x, labels, x, labels, list("0123456789"))
    settings = settings_of("--preset=cifar10", "--method=swa")
    monkeypatch.setattr(parts, "build", lambda part, config, **given: given)
    _, y = trained_model.average(settings, images, None)["data"]
    assert len(y) == 10_000
    assert set(y[:128]) == set(range(10))


# Standard training, both perturbations, an average, an optimizer that walks.
WITH_ALL_FILES = ("st", "at_sam", "swa", "entropy_sgd")


@pytest.mark.slow
@pytest.mark.parametrize("method", methods.methods())
def test_each_method_trains_and_reports(
    tmp_path, monkeypatch, full_runs, method
):
    """A few draw pictures and export; a method has no part in either."""
    if method not in WITH_ALL_FILES:
        shorten_runs(monkeypatch)
    monkeypatch.chdir(tmp_path)
    code, _ = main(*SMALL, f"--method={method}", "--epochs=1")
    assert code == 0
    (workdir,) = (tmp_path / "runs").iterdir()  # No --workdir was given.
    results = read_json(workdir / "results.json")
    assert results["method"] == results["config"]["method"] == method
    assert_measured(results["natural"], 20)
    (row,) = results["robust"]
    assert_measured(row, 20)
    (history,) = monitoring.read_history(workdir / "history.csv")
    # It begins at log(10); IKL adds beta times as much, and SCORE's is 0.9.
    low, high = {"ikl": (5, 20), "score": (0.5, 2)}.get(method, (1, 4))
    assert low < history["loss"] < high
    config, row = results["config"], methods.methods()[method]
    assert (config["rho"] is not None) == (
        row.perturb_weights not in (None, "awp")
    )
    for flag in ("epsilon", "norm"):
        assert (config[flag] is not None) == bool(row.perturb_inputs)
    # Free training attacks in the passes of training, in their mode.
    chosen = row.perturb_inputs not in (None, "free")
    assert (config["attack_mode"] is not None) == chosen


@cpu_only
def test_two_devices(tmp_path, monkeypatch):
    monkeypatch.setitem(
        registries.NETWORKS.native, "preact_resnet8", convolutional
    )
    # The last of the 33 images would leave the second device with none, and
    # convolutions fail there.
    code, _ = main(
        *SMALL,
        *("--method=st", "--average=ema"),
        "--limit_test=33",
        "--devices=cpu:2",
        "--epochs=1",
        f"--workdir={tmp_path}",
    )
    assert code == 0
    results = read_json(tmp_path / "results.json")
    assert results["devices"] == ["/device:CPU:0", "/device:CPU:1"]
    assert_measured(results["natural"], 33)
    assert_measured(results["robust"][0], 33)


@pytest.mark.slow
@pytest.mark.parametrize(
    "devices", ["auto", pytest.param("cpu:2", marks=cpu_only)]
)
def test_nan_in_the_first_epoch(tmp_path, devices):
    code, output = main(
        *(*SMALL, "--network=small_network:small", "--learning_rate=1e30"),
        f"--devices={devices}",
        f"--workdir={tmp_path}",
    )
    assert code == 3
    last = output.splitlines()[-1]
    assert "the loss became nan at step 2" in last
    assert "no epoch was finished" in last
    assert last in (tmp_path / "log.txt").read_text()
    assert not (tmp_path / "results.json").exists()
    assert not checkpoints.newest_first(tmp_path / "checkpoints")


def test_nan_later_keeps_the_last_good_checkpoint(tmp_path, monkeypatch):
    def schedule(settings, steps):
        return keras.optimizers.schedules.PiecewiseConstantDecay(
            [2 * steps], [settings.recipe.learning_rate, 1e30]
        )

    monkeypatch.setattr(trained_model, "_schedule", schedule)
    # Of three steps an epoch, the eighth is the first with a rate of 1e30.
    arguments = (*SMALL, "--epochs=5", f"--workdir={tmp_path}")
    code, output = main(*arguments)
    assert code == 3
    last = output.splitlines()[-1]
    assert "at step 9" in last
    assert "epoch 2 is kept" in last
    assert not (tmp_path / "results.json").exists()
    assert not (tmp_path / "model.keras").exists()
    assert len(monitoring.read_history(tmp_path / "history.csv")) == 2
    (position, path), *_ = checkpoints.newest_first(tmp_path / "checkpoints")
    assert position == (2, 0)
    kept = keras.saving.load_model(path)
    assert kept.weights
    for variable in kept.weights:
        assert np.isfinite(variable.numpy()).all()


@pytest.mark.parametrize("spoilt", ["weight", "validation loss"])
def test_an_epoch_that_ends_in_nan_is_not_kept(tmp_path, monkeypatch, spoilt):
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    model.optimizer.build(model.trainable_variables)
    stop = monitoring.StopAtNaN()
    stop.set_model(model)
    logs = {"loss": 1.0, "val_loss": 1.0}
    stop.on_epoch_end(0, logs)
    if spoilt == "weight":
        model.layers[0].bias.assign([np.inf])
    else:
        logs["val_loss"] = np.nan
    with pytest.raises(FloatingPointError, match="step 0"):
        stop.on_epoch_end(0, logs)
