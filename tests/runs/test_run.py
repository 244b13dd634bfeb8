"""The command: its outputs, its flags, bad input, NaN, kill and resume."""

import contextlib
import io
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfsam import attacks
from tfsam import data
from tfsam import reports
from tfsam import run
from tfsam.runs import fit
from tfsam.runs import methods
from tfsam.runs import stages
from tfsam.runs import workdirs
from tfsam.support import files
from tfsam.training import checkpoints
from tfsam.training import monitoring

SMALL = (
    "--limit_train=96",
    "--batch_size=32",
    "--limit_test=20",
    "--attacks=pgd",
    "--attack_steps=1",
    "--linf_epsilons=0.1",
    "--l2_epsilons=",
)

GPUS = tf.config.get_visible_devices("GPU")
cpu_only = pytest.mark.skipif(
    bool(GPUS), reason="A GPU is in use: no CPU devices, no equality to the bit"
)


def main(*arguments):
    """Runs the command in this process: (exit code, what it printed)."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        code = run.main([str(argument) for argument in arguments])
    return code, output.getvalue()


def read_json(path):
    return json.loads(pathlib.Path(path).read_text())


def snapshot(folder):
    """Everything in a folder: names, contents, times."""
    return {
        path: (path.stat().st_mtime_ns, path.is_file() and path.read_bytes())
        for path in [folder, *folder.rglob("*")]
    }


def read_weights(path):
    return keras.saving.load_model(path, compile=False).get_weights()


def without_clocks(history):
    """The rows of a history file, less what differs from run to run."""
    clocks = ("seconds", "step_seconds_median")
    return [
        {key: value for key, value in row.items() if key not in clocks}
        for row in monitoring.read_history(history)
    ]


def verdicts(results):
    rows = [results["natural"], *results["robust"]]
    return [(row["accuracy"], row.get("max_perturbation")) for row in rows]


def assert_same_run(workdir, expected):
    """Same weights to the bit, same history, same accuracies."""
    pairs = zip(
        read_weights(workdir / "model.keras"),
        read_weights(expected / "model.keras"),
        strict=True,
    )
    for found, wanted in pairs:
        np.testing.assert_array_equal(found, wanted)
    assert without_clocks(workdir / "history.csv") == without_clocks(
        expected / "history.csv"
    )
    assert verdicts(read_json(workdir / "results.json")) == verdicts(
        read_json(expected / "results.json")
    )


# One whole run, shared, and what it leaves behind.

FINISHED = (
    "--epochs=2",
    "--batch_size=10",
    "--limit_train=200",
    "--limit_test=60",
    "--attacks=pgd,fgsm",
    "--attack_steps=2",
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run: (its folder, what it printed)."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    code, output = main(*FINISHED, f"--workdir={workdir}")
    assert code == 0
    return workdir, output


def assert_measured(row, n):
    assert type(row["accuracy"]) is float
    assert row["n"] == n
    low, high = row["interval"]
    assert 0 <= low <= row["accuracy"] <= high <= 1
    assert low < high
    assert row["accuracy"] * n == pytest.approx(round(row["accuracy"] * n))


def test_results_fields(finished):
    workdir, _ = finished
    results = read_json(workdir / "results.json")
    assert results["schema"] == 1
    assert results["method"] == "sam"
    assert results["seed"] == 0
    gpus = [f"/device:GPU:{i}" for i in range(len(GPUS))]
    assert results["devices"] == (gpus or ["/device:CPU:0"])
    for name in ("python", "tfsam", "tensorflow", "keras", "cleverhans"):
        assert results["versions"][name][0].isdigit()
    assert results["versions"]["tensorflow"] == tf.__version__
    assert_measured(results["natural"], 60)
    assert results["natural"]["accuracy"] > 0.3  # It has learned something.


def test_results_config_has_every_flag(finished):
    workdir, _ = finished
    config = read_json(workdir / "results.json")["config"]
    parts = {"objective", "optimizer"}  # Of the method; no flags.
    assert set(config) == set(run.define_flags()) - {"help", "merge"} | parts
    assert config["preset"] == config["dataset"] == "digits"
    assert config["workdir"] == str(workdir)
    assert (config["epochs"], config["batch_size"]) == (2, 10)
    assert (config["limit_train"], config["limit_test"]) == (200, 60)
    assert config["attacks"] == ["pgd", "fgsm"]
    assert config["attack_steps"] == 2
    assert config["rho"] == 0.05
    assert config["epsilon"] is None  # SAM has none.


def test_results_train(finished):
    workdir, _ = finished
    train = read_json(workdir / "results.json")["train"]
    assert train["epochs"] == 2
    assert 0 < train["step_seconds_median"] < train["seconds"] < 600
    assert train["examples_per_second"] == pytest.approx(
        10 / train["step_seconds_median"]
    )
    assert_measured(train["natural"], 200)
    assert train["passes"] == 2


def test_results_robust_rows(finished):
    workdir, _ = finished
    results = read_json(workdir / "results.json")
    rows = results["robust"]
    assert [(r["attack"], r["norm"], r["epsilon"]) for r in rows] == [
        (attack, norm, epsilon)
        for attack in ("pgd", "fgsm")
        for norm, epsilons in (("linf", (0.05, 0.1)), ("l2", (0.25, 0.5)))
        for epsilon in epsilons
    ]
    for row in rows:
        assert "error" not in row
        assert_measured(row, 60)
        assert row["accuracy"] <= results["natural"]["accuracy"]
        assert row["max_perturbation"] <= row["epsilon"] + 1e-5
        assert row["max_perturbation"] > row["epsilon"] / 10
        assert type(row["inherited"]) is int
        assert row["seconds"] > 0
        assert row["epsilon_text"] == f"{row['epsilon']:g}"
        steps = {"steps": 2} if row["attack"] == "pgd" else {}
        assert row["options"] == steps
    assert rows[1]["accuracy"] < results["natural"]["accuracy"]


def test_artifacts(finished):
    workdir, _ = finished
    artifacts = read_json(workdir / "results.json")["artifacts"]
    assert set(artifacts) == {
        *("config.json", "evaluation", "history.csv", "model.keras"),
        *("saved_model", "tensorboard", "robustness.png", "examples.png"),
        *("examples.npz", "log.txt"),
    }
    for name in artifacts:
        assert (workdir / name).exists()
    assert not files.leftovers(workdir)
    assert not files.leftovers(workdir / "checkpoints")
    for part in ("train", "validation"):
        events = (workdir / "tensorboard" / part).glob("events.out.tfevents*")
        assert sum(path.stat().st_size for path in events) > 100


def test_history(finished):
    workdir, _ = finished
    rows = monitoring.read_history(workdir / "history.csv")
    assert [row["epoch"] for row in rows] == [1, 2]
    assert rows[1]["loss"] < rows[0]["loss"]
    for row in rows:
        assert row["seconds"] > row["step_seconds_median"] > 0
        assert row["learning_rate"] == pytest.approx(0.1)
        for name in ("accuracy", "val_accuracy"):
            assert 0 <= row[name] <= 1
    results = read_json(workdir / "results.json")
    assert rows[1]["val_accuracy"] == pytest.approx(
        results["natural"]["accuracy"], abs=1 / 60 + 1e-6
    )


def test_model_file_is_the_network_that_was_measured(finished):
    workdir, _ = finished
    model = keras.saving.load_model(workdir / "model.keras")
    images = data.load("digits", limit_train=200, limit_test=60, seed=0)
    outputs = model.predict(images.x_test, verbose=0)
    assert outputs.shape == (60, 10)
    assert not np.allclose(outputs.sum(axis=1), 1, atol=0.1)  # Logits.
    natural = read_json(workdir / "results.json")["natural"]
    assert np.mean(outputs.argmax(axis=1) == images.y_test) == pytest.approx(
        natural["accuracy"], abs=1 / 60 + 1e-6
    )


@pytest.mark.parametrize("name", ["robustness.png", "examples.png"])
def test_pictures(finished, name):
    workdir, _ = finished
    content = (workdir / name).read_bytes()
    assert content.startswith(b"\x89PNG\r\n")
    picture = tf.io.decode_png(content, channels=3).numpy()
    height, width, _ = picture.shape
    assert 200 < height < 2000
    assert 400 < width < 2000
    # A part of it is drawn, most of it is not.
    assert 0.02 < np.mean(picture.min(axis=2) < 230) < 0.9


def test_progress_is_shown_and_logged(finished):
    workdir, output = finished
    log = (workdir / "log.txt").read_text()
    for part in (
        *("epoch 1/2 done: ", "epoch 2/2 done: ", "s left"),
        *("attacking in linf by pgd, fgsm", "attacking in l2 by pgd, fgsm"),
        "pgd linf: robust accuracy so far 0.05 0.",
        *FINISHED,
    ):
        assert part in output
        assert part in log


def test_table_shows_what_results_hold(finished):
    workdir, output = finished
    results = read_json(workdir / "results.json")
    lines = [line for line in output.splitlines() if line.startswith("|")]
    shown = reports.table(results).splitlines()
    assert lines == [line for line in shown if line.startswith("|")]
    assert len(lines) == 2 + 1 + 8
    accuracies = [float(line.split("|")[4]) for line in lines[2:]]
    assert accuracies == pytest.approx(
        [100 * a for a, _ in verdicts(results)], abs=0.005
    )


def test_finished_run_again_prints_its_table_and_changes_nothing(finished):
    workdir, output = finished
    before = snapshot(workdir)
    code, again = main(*FINISHED, f"--workdir={workdir}")
    assert code == 0
    assert snapshot(workdir) == before
    first, *rest = again.splitlines()
    assert str(workdir) in first
    assert "finished" in first
    assert rest == [x for x in output.splitlines() if x.startswith("|")]


# Methods, devices, flags.


def test_the_best_network_by_its_robust_accuracy_is_kept(tmp_path):
    """Held-out images choose; an average is what is chosen among."""
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


def weights_of(path):
    return keras.saving.load_model(path).get_weights()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["looksam", "ssam", "entropy_sgd"])
def test_state_averages_and_the_best_network_are_resumed(
    tmp_path, monkeypatch, tiny_network, method
):
    """Interrupted after each epoch, the last one too, it ends the same."""
    arguments = (
        *(*SMALL, f"--method={method}", "--average=ema", "--epochs=3"),
        *("--select=clean", "--validation_images=20"),
    )
    assert main(*arguments, f"--workdir={tmp_path / 'whole'}")[0] == 0
    with monkeypatch.context() as patch:

        def interrupt(self, epoch, logs=None):
            raise KeyboardInterrupt

        patch.setattr(monitoring.Progress, "on_epoch_end", interrupt)
        for epochs in (1, 2, 3):
            code, _ = main(*arguments, f"--workdir={tmp_path / 'parts'}")
            assert code == 130
            assert fit.epochs_done(tmp_path / "parts") == epochs
    assert main(*arguments, f"--workdir={tmp_path / 'parts'}")[0] == 0
    for name in ("model.keras", "best.keras"):
        for one, other in zip(
            weights_of(tmp_path / "whole" / name),
            weights_of(tmp_path / "parts" / name),
            strict=True,
        ):
            np.testing.assert_array_equal(one, other)
    whole, parts = (
        read_json(tmp_path / name / "results.json")
        for name in ("whole", "parts")
    )
    assert whole["train"]["selected"] == parts["train"]["selected"]


@pytest.mark.slow
@pytest.mark.parametrize("average", ["ema", "swa"])
def test_an_average_alone_is_resumed(
    tmp_path, monkeypatch, tiny_network, average
):
    arguments = (*SMALL, "--method=st", f"--average={average}", "--epochs=3")
    assert main(*arguments, f"--workdir={tmp_path / 'whole'}")[0] == 0
    plain = ("--average=none", f"--workdir={tmp_path / 'plain'}")
    assert main(*arguments, *plain)[0] == 0
    with monkeypatch.context() as patch:

        def interrupt(self, epoch, logs=None):
            raise KeyboardInterrupt

        patch.setattr(monitoring.Progress, "on_epoch_end", interrupt)
        for _ in range(3):
            code, _ = main(*arguments, f"--workdir={tmp_path / 'parts'}")
            assert code == 130
    assert main(*arguments, f"--workdir={tmp_path / 'parts'}")[0] == 0
    whole, parts, plain = (
        np.concatenate(
            [w.ravel() for w in weights_of(tmp_path / n / "model.keras")]
        )
        for n in ("whole", "parts", "plain")
    )
    np.testing.assert_array_equal(whole, parts)
    assert np.abs(whole - plain).max() > 1e-4


@pytest.mark.slow
def test_validation_without_selection_is_measured_now_and_then(tmp_path):
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
    """Those of a folder come class by class."""
    x, y = np.zeros((90, 8, 8, 1), np.float32), np.repeat([0, 1, 2], 30)
    images = data.Images("folder:x", x, y, x, y, ("a", "b", "c"))
    arguments = ["--method=fgsm_at", "--batch_size=20"]
    stop = fit._stop(run.configuration(arguments)[0], images, None)
    assert set(stop.data.y) == {0, 1, 2}
    assert len(stop.data.y) == 20


@pytest.mark.slow
def test_a_collapse_stops_training_for_good(tmp_path, monkeypatch):
    """What falls by more than nothing at all is a collapse here."""
    falling = iter([0.9, 0.5, 0.8, 0.1])
    monkeypatch.setattr(
        "tfsam.training.robust_validation.StopAtCollapse._robust_accuracy",
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


@pytest.mark.slow
@pytest.mark.parametrize("method", methods.methods())
def test_each_method_trains_and_reports(
    tmp_path, monkeypatch, tiny_network, method
):
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
    assert 1 < history["loss"] < 4  # It begins at log(10).
    config, row = results["config"], methods.methods()[method]
    assert (config["rho"] is not None) == (
        row.perturb_weights not in (None, "awp")
    )
    for flag in ("epsilon", "norm", "attack_mode"):
        assert (config[flag] is not None) == bool(row.perturb_inputs)


@cpu_only
def test_two_devices(tmp_path):
    # The last of the 33 images would leave the second device with none.
    code, _ = main(
        *SMALL,
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


def test_fractions_are_accepted_as_written():
    config, _ = run.configuration(
        [
            *("--method=at", "--epsilon=8/255", "--step_size=2/255"),
            *("--linf_epsilons=1/255,2/255,0.1", "--weight_decay=5e-4"),
        ]
    )
    assert config["epsilon"] == 8 / 255
    assert config["step_size"] == 2 / 255
    assert config["linf_epsilons"] == [1 / 255, 2 / 255, 0.1]
    assert config["weight_decay"] == 0.0005


OVERRIDES = {
    "method": ("st", "st"),
    "rho": ("0.2", 0.2),
    "epsilon": ("2/255", 2 / 255),
    "norm": ("l2", "l2"),
    "steps": ("7", 7),
    "step_size": ("0.01", 0.01),
    "dataset": ("digits", "digits"),
    "network": ("wide_resnet", "wide_resnet"),
    "epochs": ("3", 3),
    "batch_size": ("64", 64),
    "learning_rate": ("0.3", 0.3),
    "momentum": ("0.5", 0.5),
    "weight_decay": ("0", 0.0),
    "augment": ("false", False),
    "seed": ("5", 5),
    "limit_train": ("1000", 1000),
    "limit_test": ("100", 100),
    "attacks": ("fgsm,pgd", ["fgsm", "pgd"]),
    "linf_epsilons": ("4/255", [4 / 255]),
    "l2_epsilons": ("", []),
    "attack_steps": ("20", 20),
    "attack_batch_size": ("64", 64),
    "save_adversarial": ("true", True),
    "warm_start": ("true", True),
    "surrogate": ("other.keras", "other.keras"),
    "perturb_inputs": ("pgd_dlr", "pgd_dlr"),
    "perturb_weights": ("sam", "sam"),
    "average": ("ema", "ema"),
    "eta": ("0.1", 0.1),
    "adaptive": ("all", "all"),
    "ascent_steps": ("2", 2),
    "alpha": ("0.1", 0.1),
    "rho_min": ("0.01", 0.01),
    "every": ("2", 2),
    "weight_fraction": ("0.9", 0.9),
    "sample_fraction": ("0.9", 0.9),
    "sparsity": ("0.9", 0.9),
    "mask": ("dynamic", "dynamic"),
    "refresh_every": ("3", 3),
    "gamma": ("0.1", 0.1),
    "sub_batches": ("2", 2),
    "beta": ("1", 1.0),
    "inner_steps": ("3", 3),
    "average_momentum": ("0.9", 0.9),
    "average_start": ("3", 3),
    "epsilon_warmup": ("3", 3),
    "attack_loss": ("dlr", "dlr"),
    "attack_mode": ("training", "training"),
    "collapse_drop": ("0.5", 0.5),
    "select": ("robust", "robust"),
    "validate_every": ("3", 3),
    "validation_images": ("50", 50),
    "checkpoint_steps": ("7", 7),
    "cache_dir": ("none", "none"),
    "evaluate": ("model.keras", "model.keras"),
    "devices": ("cpu:2", "cpu:2"),
    "strategy": ("mirrored", "mirrored"),
    "jit_compile": ("false", "false"),
    "sharpness": ("global", "global"),
    "precision": ("mixed_float16", "mixed_float16"),
}


# Flags of other methods than at_sam, which has most of them.
OF = {
    "perturb_weights": "at",
    "eta": "asam",
    "adaptive": "asam",
    "alpha": "gsam",
    "rho_min": "gsam",
    "every": "looksam",
    "weight_fraction": "esam",
    "sample_fraction": "esam",
    "sparsity": "ssam",
    "mask": "ssam",
    "refresh_every": "ssam",
    "gamma": "awp",
    "beta": "trades",
    "inner_steps": "entropy_sgd",
    "average_momentum": "ema",
    "average_start": "swa",
    "collapse_drop": "fgsm_at",
}

# These change what other settings there are.
PARTS = ("method", "evaluate", "perturb_inputs", "perturb_weights", "average")


@pytest.mark.parametrize("flag", OVERRIDES)
def test_any_flag_overrides_its_preset(flag):
    text, value = OVERRIDES[flag]
    arguments = ["--preset=cifar10"]
    if flag not in ("method", "evaluate"):
        arguments.append(f"--method={OF.get(flag, 'at_sam')}")
    if flag == "validation_images":
        arguments.append("--select=clean")
    before, _ = run.configuration(arguments)
    after, _ = run.configuration([*arguments, f"--{flag}={text}"])
    assert after[flag] == value
    assert before[flag] != value
    if flag not in PARTS:
        assert after == before | {flag: value}


def test_overrides_are_all_flags():
    assert set(OVERRIDES) == set(run.define_flags()) - {
        *("help", "preset", "workdir", "shard", "merge"),
    }


def test_digits_is_the_default_preset():
    config, _ = run.configuration([])
    assert config == run.configuration(["--preset=digits"])[0]
    assert config["dataset"] == "digits"
    assert config["method"] == "sam"
    assert config["attacks"] == ["cleverhans_pgd"]


@pytest.mark.parametrize(
    "preset, classes, weights",
    [("cifar10", 10, 11_172_170), ("cifar100", 100, 11_218_340)],
)
def test_presets_are_the_papers_recipe(preset, classes, weights):
    config, _ = run.configuration([f"--preset={preset}"])
    assert config["dataset"] == preset
    assert config["network"] == "preact_resnet18"
    assert (config["batch_size"], config["epochs"]) == (128, 100)
    assert config["augment"] is True
    assert config["attacks"] == ["cleverhans_pgd"]
    assert config["attack_steps"] is None
    assert attacks.get("cleverhans_pgd", epsilon=0.1).steps == 10
    assert config["linf_epsilons"] == [1 / 255, 2 / 255]
    assert config["l2_epsilons"] == [16 / 255, 32 / 255]
    assert config["limit_train"] is config["limit_test"] is None
    images = data.Images(
        preset,
        x_train=np.broadcast_to(np.uint8(0), (50_000, 32, 32, 3)),
        y_train=np.zeros(50_000, np.int64),
        x_test=np.zeros((1, 32, 32, 3), np.uint8),
        y_test=np.zeros(1, np.int64),
        class_names=tuple(map(str, range(classes))),
    )
    model = fit.make_model(config, images, None)
    assert sum(v.numpy().size for v in model.trainable_variables) == weights
    optimizer = model.optimizer
    assert optimizer.momentum == 0.9
    assert optimizer.get_config()["weight_decay"] == 5e-4
    steps = 391  # 50 000 / 128, the last batch smaller.
    for step, rate in (
        (0, 0.1),
        (75 * steps - 1, 0.1),
        (75 * steps, 0.01),
        (90 * steps - 1, 0.01),
        (90 * steps, 0.001),
        (100 * steps - 1, 0.001),
    ):
        optimizer.iterations.assign(step)
        assert float(optimizer.learning_rate) == pytest.approx(rate)


def test_adversarial_training_of_the_presets():
    config, _ = run.configuration(["--preset=cifar100", "--method=at"])
    perturb_inputs = methods.build("perturb_inputs", config)
    assert methods.build("perturb_weights", config) is None
    assert perturb_inputs.epsilon == 8 / 255
    assert perturb_inputs.norm == "linf"
    assert perturb_inputs.steps == 5
    assert perturb_inputs.random_start is True


@pytest.mark.parametrize("method", methods.methods())
def test_a_step_s_passes_are_the_table_s(method):
    config, _ = run.configuration([f"--method={method}"])
    cost = methods.methods()[method].cost.replace("2 steps", "2 * steps")
    cost = cost.replace("3 sample_fraction", "3 * sample_fraction")
    assert methods.passes(config) == pytest.approx(eval(cost, dict(config)))


def test_parts_add_their_passes():
    config, _ = run.configuration(
        ["--method=trades", "--perturb_weights=awp", "--steps=4"]
    )
    # Four steps and their target; clean and perturbed images, by the weights
    # and by the perturbed weights.
    assert methods.passes(config) == pytest.approx(8 / 3 + 1 / 3 + 4)
    config, _ = run.configuration(["--method=sam", "--ascent_steps=3"])
    assert methods.passes(config) == 4


def built(*arguments):
    config, _ = run.configuration(arguments)
    return [
        methods.build(part, config)
        for part in ("perturb_inputs", "perturb_weights", "objective")
    ]


def test_trades_has_its_paper_s_attack_where_epsilon_is_its_paper_s():
    attack, _, objective = built("--preset=cifar10", "--method=trades")
    assert (attack.epsilon, attack.step_size) == (0.031, 0.007)
    assert (attack.loss, attack.random_start) == ("kl", "normal")
    assert attack.steps == 10
    assert objective.beta == 6
    attack, *_ = built("--preset=cifar10", "--method=trades", "--epsilon=0.1")
    assert (attack.epsilon, attack.step_size) == (0.1, None)


def test_parts_compose():
    attack, moved, objective = built(
        *("--method=trades", "--perturb_weights=awp", "--gamma=0.005"),
    )
    assert attack.loss == "kl"
    assert moved.gamma == 0.005
    assert objective.beta == 6
    attack, moved, _ = built(
        *("--method=at", "--perturb_inputs=fgsm_rs"),
        *("--perturb_weights=looksam", "--every=3"),
    )
    assert type(attack).__name__ == "FGSM"
    assert attack.random_start is True
    assert (type(moved).__name__, moved.every) == ("LookSAM", 3)
    attack, moved, _ = built("--method=at_sam", "--perturb_inputs=none")
    assert attack is None
    assert type(moved).__name__ == "SAM"


def test_default_workdirs_differ():
    folder = "x" * 150
    variants = [
        [],
        ["--method=st"],
        ["--rho=0.2"],
        ["--seed=1"],
        ["--preset=cifar10"],
        ["--linf_epsilons=1/255"],
        ["--l2_epsilons=1/255"],
        ["--evaluate=a/model.keras"],
        ["--evaluate=b/model.keras"],
        [f"--dataset=folder:{folder}", f"--evaluate={folder}", "--seed=1"],
        [f"--dataset=folder:{folder}", f"--evaluate={folder}", "--seed=2"],
    ]
    path = run.configuration(variants[-1])[1]
    free = ["--cache_dir=elsewhere", "--checkpoint_steps=7"]
    assert run.configuration([*variants[1], *free]) == (
        run.configuration(variants[1])[0]
        | {"cache_dir": "elsewhere", "checkpoint_steps": 7},
        run.configuration(variants[1])[1],
    )
    assert run.configuration([*variants[-1], free[0]])[1] == path
    found = [run.configuration(arguments)[1] for arguments in variants]
    assert len(set(found)) == len(variants)
    for path in found:
        assert path.parent == pathlib.Path("runs")
        assert len(path.name) < 250
    assert found[2].name == "digits-rho=0.2"
    assert run.configuration(["--rho=0.2"])[1] == found[2]


def test_help(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, output = main("--help")
    assert code == 0
    for name in set(run.define_flags()) - {"help"}:
        assert f"--{name}:" in output or f"--[no]{name}:" in output
    for name in (*methods.methods(), *fit.NETWORKS, *attacks.names()):
        assert name in output
    assert not list(tmp_path.iterdir())


# Bad input: exit code 2, one line that holds what was received, no trace.


def assert_refused(capsys, *arguments, parts):
    code = run.main([str(argument) for argument in arguments])
    output, error = capsys.readouterr()
    assert code == 2
    assert output == ""
    # A SavedModel that is refused was loaded, with a warning.
    *warned, line = error.splitlines()
    assert all("is a SavedModel" in warning for warning in warned)
    assert line.startswith("tfsam: ")
    assert "Traceback" not in line
    for part in parts:
        assert str(part) in line


METHODS = tuple(methods.methods())
NETWORKS = ("preact_resnet8", "preact_resnet18", "wide_resnet")
ATTACKS = ("fgsm", "pgd", "cleverhans_pgd", "cleverhans_fgm")

PATHS = ("workdir", "cache_dir", "evaluate", "surrogate")

BAD_FLAGS = [
    (["--method=adam"], ["adam", *METHODS]),
    (["--network=lenet"], ["lenet", *NETWORKS]),
    (["--attacks=pgd,bogus"], ["bogus", *ATTACKS]),
    (["--attacks="], ["attacks", "none"]),
    (["--dataset=nosuchdata"], ["nosuchdata", "digits", "folder:PATH"]),
    (["--preset=imagenet"], ["imagenet", "digits", "cifar10", "cifar100"]),
    (["--bogus=1"], ["--bogus"]),
    (["train"], ["train"]),
    (["--rho"], ["rho"]),
    (["--rho=-0.1"], ["rho", "-0.1"]),
    (["--rho=nan"], ["rho", "nan"]),
    (["--rho=inf"], ["rho", "inf"]),
    (["--rho=1e999"], ["rho", "1e999"]),
    (["--rho=1/0"], ["rho", "1/0"]),
    (["--rho=abc"], ["rho", "abc"]),
    (["--method=st", "--rho=0.1"], ["--method=st", "--rho=0.1"]),
    (["--method=at", "--rho=0.1"], ["--method=at", "--rho=0.1"]),
    (["--method=gsam", "--rho_min=1"], ["rho_min", "1"]),
    (["--method=looksam", "--every=0"], ["every", "0"]),
    (["--method=esam", "--sample_fraction=2"], ["sample_fraction", "2"]),
    (["--method=awp", "--rho=0.1"], ["--method=awp", "--rho=0.1"]),
    (["--method=mart", "--beta=-1"], ["beta", "-1"]),
    (["--method=trades", "--perturb_inputs=none"], ["TRADES", "None"]),
    (["--method=st", "--perturb_inputs=cleverhans_cw"], ["graph"]),
    (["--method=st", "--perturb_weights=adam"], ["awp", "adam"]),
    (["--method=st", "--average=mean"], ["ema", "swa", "mean"]),
    (["--method=ema", "--average_momentum=2"], ["momentum", "2"]),
    (["--method=entropy_sgd", "--inner_steps=-1"], ["inner_steps", "-1"]),
    (["--method=looksam", "--sub_batches=2"], ["state", "sub_batches=2"]),
    (["--method=sam", "--sub_batches=99"], ["sub_batches", "99"]),
    (["--method=at", "--attack_mode=eval"], ["training", "eval"]),
    (["--select=best"], ["last", "robust", "best"]),
    (["--validate_every=0"], ["validate_every", "0"]),
    (["--validation_images=50"], ["validation_images", "50"]),
    (
        ["--select=clean", "--validation_images=1437"],
        ["validation_images", "1437"],
    ),
    (["--method=at", "--epsilon=-8/255"], ["epsilon", "-0.03137"]),
    (["--method=at", "--epsilon=nan"], ["epsilon", "nan"]),
    (["--method=at", "--epsilon=inf"], ["epsilon", "inf"]),
    (["--method=at", "--epsilon=8/x"], ["epsilon", "8/x"]),
    (["--method=sam", "--epsilon=0.1"], ["--method=sam", "--epsilon=0.1"]),
    (["--method=sam", "--norm=l2"], ["--method=sam", "--norm=l2"]),
    (
        ["--preset=cifar10", "--method=sam", "--perturb_inputs=pgd"],
        ["--perturb_inputs=pgd needs --epsilon", "Received: epsilon=None"],
    ),
    (["--method=fgsm_at", "--steps=3"], ["fgsm_at", "--steps=3"]),
    (["--method=at", "--norm=l1"], ["linf", "l2", "norm=l1"]),
    (["--method=at", "--steps=-1"], ["steps", "-1"]),
    (["--method=at", "--steps=1.5"], ["steps", "1.5"]),
    (["--method=at", "--step_size=-1"], ["step_size", "-1"]),
    (["--epochs=0"], ["epochs", "0"]),
    (["--checkpoint_steps=0"], ["checkpoint_steps", "0"]),
    (["--batch_size=0"], ["batch_size", "0"]),
    (["--learning_rate=-1"], ["learning_rate", "-1"]),
    (["--momentum=2"], ["momentum", "2"]),
    (["--weight_decay=-1"], ["weight_decay", "-1"]),
    (["--augment=perhaps"], ["augment", "perhaps"]),
    (["--seed=-1"], ["seed", "-1"]),
    (["--limit_test=3"], ["limit_test", "10", "3"]),
    (["--limit_train=9"], ["limit_train", "10", "9"]),
    (["--linf_epsilons=0.1,-0.2"], ["linf_epsilons", "-0.2"]),
    (["--l2_epsilons=nan"], ["l2_epsilons", "nan"]),
    (["--attack_steps=-1"], ["attack_steps", "-1"]),
    (["--devices=gpu:4"], ["devices", "gpu:4"]),
    (["--devices=cpu:0"], ["devices", "cpu:0"]),
    (["--devices=cpu:99"], ["devices", "cpu:99"]),
    (["--devices=tpu"], ["devices", "tpu"]),
    (["--strategy=tpu"], ["strategy=tpu", "a TPU needs all of it"]),
    (["--strategy=parameter_server"], ["parameter servers do not"]),
    (["--strategy=multi_worker"], ["TF_CONFIG", "two workers"]),
    (
        ["--devices=cpu:2", "--limit_train=20", "--batch_size=64"],
        ["batch_size", "20", "64"],
    ),
    (["--devices=cpu:2", "--batch_size=33"], ["batch_size", "2", "33"]),
    (["--jit_compile=maybe"], ["auto", "jit_compile=maybe"]),
    (["--sharpness=local"], ["per_replica", "global", "local"]),
    (["--method=at", "--sharpness=global"], ["at does", "sharpness=global"]),
    (
        ["--attacks=autoattack,square", "--attack_steps=5"],
        ["autoattack,square", "attack_steps=5"],
    ),
    (["--precision=float16"], ["mixed_float16", "precision=float16"]),
    (["--evaluate=m.keras", "--method=sam"], ["--method=sam"]),
    (["--evaluate=m.keras", "--rho=0.1"], ["--rho=0.1"]),
    (["--evaluate=m.keras", "--epochs=3"], ["--epochs=3"]),
    (["--evaluate=m.keras", "--limit_train=50"], ["--limit_train=50"]),
    (["--evaluate=missing.keras"], ["missing.keras", ".keras file"]),
    *(([f"--{flag}=~no_one/x"], ["~no_one/x", "home"]) for flag in PATHS),
    (["--dataset=npz:~no_one/x"], ["~no_one/x", "home"]),
    (["--dataset=folder:~no_one/x"], ["~no_one/x", "home"]),
    (["--merge=a,~no_one/x", "--workdir=w"], ["~no_one/x", "home"]),
    (["--cache_dir="], ["cache_dir", "none"]),
    (["--epochs=2147483648"], ["epochs", "2147483648"]),
    (["--epochs=1000001"], ["at most 1000000", "epochs=1000001"]),
    (["--method=at", "--steps=2000000000"], ["steps=2000000000"]),
    (["--method=sam", "--ascent_steps=2000000000"], ["ascent_steps=2000"]),
    (["--attack_steps=2000000000"], ["attack_steps=2000000000"]),
    (
        ["--method=sam", "--sub_batches=2000000000"],
        ["smallest batch", "sub_batches=2000000000"],
    ),
    ([f"--batch_size={10**19}"], ["batch_size", 10**19]),
    (["--batch_size=1e4"], ["batch_size", "whole number", "1e4"]),
    (["--method=entropy_sgd", f"--inner_steps={10**19}"], ["inner_steps"]),
    (["--average=swa", f"--average_start={10**19}"], ["average_start"]),
    (["--average=swa", "--average_start=20"], ["epochs=20", "_start=20"]),
    (["--learning_rate=1e300"], ["learning_rate", "1e300"]),
    (["--linf_epsilons=0.1,1e39"], ["linf_epsilons", "1e39"]),
]


def test_a_library_that_is_missing_is_bad_input(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "art", None)
    flags = (f"--workdir={tmp_path / 'work'}", "--perturb_inputs=art")
    assert_refused(capsys, *flags, parts=["attack", "art"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments, parts", BAD_FLAGS, ids=[" ".join(a) for a, _ in BAD_FLAGS]
)
def test_bad_flags(tmp_path, monkeypatch, capsys, arguments, parts):
    if GPUS and "--devices=cpu:2" in arguments:
        pytest.skip("A GPU is in use")
    monkeypatch.chdir(tmp_path)
    workdir = tmp_path / "work"
    assert_refused(capsys, f"--workdir={workdir}", *arguments, parts=parts)
    assert_refused(capsys, *arguments, parts=parts)
    assert not list(tmp_path.iterdir())


def test_paths_begin_at_home(tmp_path, monkeypatch):
    small_model().save(tmp_path / "model.keras")
    monkeypatch.setenv("HOME", str(tmp_path))
    config, workdir = run.configuration(
        ["--evaluate=~/model.keras", "--limit_test=20", "--workdir=~/run"]
    )
    assert workdir == tmp_path / "run"
    assert stages.prepare(config).logits is not None


def write_images(folder, *, classes=("ant", "bee"), side=8):
    image = tf.io.encode_png(np.zeros((side, side, 1), np.uint8)).numpy()
    for part in ("train", "test"):
        for name in classes:
            for number in range(2):
                path = folder / part / name / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(image)


def missing_folder(folder):
    return [str(folder)]


def empty_folder(folder):
    folder.mkdir()
    return [str(folder)]


def empty_class(folder):
    write_images(folder)
    (folder / "train" / "cat").mkdir()
    return [str(folder / "train" / "cat")]


def one_class(folder):
    write_images(folder, classes=("ant",))
    return [str(folder / "train"), "ant", "two classes"]


def no_image(folder):
    write_images(folder)
    path = folder / "train" / "bee" / "1.png"
    path.write_text("no image")
    return [str(path), "JPEG or PNG"]


def truncated_image(folder):
    write_images(folder)
    path = folder / "train" / "bee" / "1.png"
    truncate(path)
    return [str(path), "JPEG or PNG"]


def too_small_to_augment(folder):
    write_images(folder, side=4)
    return ["4", "pixels"]


@pytest.mark.parametrize(
    "prepare",
    [
        *(missing_folder, empty_folder, empty_class, one_class, no_image),
        *(truncated_image, too_small_to_augment),
    ],
)
def test_bad_folder(tmp_path, capsys, prepare):
    folder, workdir = tmp_path / "images", tmp_path / "work"
    parts = prepare(folder)
    assert_refused(
        capsys,
        f"--dataset=folder:{folder}",
        "--augment",
        f"--workdir={workdir}",
        parts=parts,
    )
    assert not workdir.exists()


def small_model(shape=(8, 8, 1), outputs=10, activation=None):
    return keras.Sequential(
        [
            keras.Input(shape),
            keras.layers.Flatten(),
            keras.layers.Dense(outputs, activation=activation),
        ]
    )


def text_file(path):
    path = path.with_suffix(".keras")
    path.write_text("not a model")
    return path, ["model", str(path)]


def text_file_without_suffix(path):
    path.write_text("not a model")
    return path, ["model", str(path)]


def truncated_file(path):
    path = path.with_suffix(".keras")
    small_model().save(path)
    path.write_bytes(path.read_bytes()[:-100])
    return path, ["model", str(path)]


def model_folder_without_model(path):
    path.mkdir()
    return path, ["SavedModel", str(path)]


def few_outputs(path):
    small_model(outputs=4).save(path.with_suffix(".keras"))
    return path.with_suffix(".keras"), ["10 classes", "4 outputs"]


def softmax(path):
    small_model(activation="softmax").save(path.with_suffix(".keras"))
    return path.with_suffix(".keras"), ["logits", "softmax"]


def softmax_exported(path):
    small_model(activation="softmax").export(path, verbose=False)
    return path, ["logits", "[0, 1]"]


def other_size(path):
    small_model(shape=(16, 16, 1)).save(path.with_suffix(".keras"))
    return path.with_suffix(".keras"), ["(8, 8, 1)"]


def other_size_exported(path):
    small_model(shape=(16, 16, 1)).export(path, verbose=False)
    return path, ["(8, 8, 1)"]


def not_finite(path):
    model = small_model()
    model.set_weights([np.full_like(w, np.nan) for w in model.get_weights()])
    model.save(path.with_suffix(".keras"))
    return path.with_suffix(".keras"), ["finite", "NaN"]


def code_inside(path):
    model = keras.Sequential(
        [small_model(), keras.layers.Lambda(lambda x: 2 * x)]
    )
    model.save(path.with_suffix(".keras"))
    return path.with_suffix(".keras"), ["ambda", str(path)]


def of_no_method(path):
    path = path.with_suffix(".keras")
    small_model().save(path)
    spoil_method(path)
    return path, ["compression method", str(path)]


def with_config(path, change):
    """A .keras file whose config.json is changed."""
    path = path.with_suffix(".keras")
    small_model().save(path)
    with zipfile.ZipFile(path) as archive:
        held = {name: archive.read(name) for name in archive.namelist()}
    held["config.json"] = change(held["config.json"])
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in held.items():
            archive.writestr(name, content)
    return path


def too_deep(path):
    path = with_config(path, lambda text: b"[" * 100_000)
    return path, ["recursion", str(path)]


def too_large(path):
    units = b'"units": 1000000000000'
    path = with_config(path, lambda text: text.replace(b'"units": 10', units))
    return path, ["model", str(path)]


def exported_without(path, part, content=None):
    """A SavedModel folder without a file, or with another one."""
    small_model().export(path, verbose=False)
    (file,) = path.glob(part)
    file.unlink() if content is None else file.write_bytes(content)
    return path, ["SavedModel folder", str(path)]


def without_variables(path):
    return exported_without(path, "variables/*.data*")


def with_empty_variables(path):
    return exported_without(path, "variables/*.data*", b"")


def with_empty_index(path):
    return exported_without(path, "variables/*.index", b"")


@pytest.mark.filterwarnings("default:.* is a SavedModel")
@pytest.mark.parametrize(
    "prepare",
    [
        *(of_no_method, too_deep, without_variables),
        *(with_empty_variables, with_empty_index),
        pytest.param(too_large, marks=pytest.mark.slow),  # A wait for memory.
        *(text_file, text_file_without_suffix, truncated_file),
        *(model_folder_without_model, few_outputs, softmax, softmax_exported),
        *(other_size, other_size_exported, not_finite, code_inside),
    ],
)
def test_bad_model(tmp_path, capsys, prepare):
    path, parts = prepare(tmp_path / "model")
    capsys.readouterr()
    workdir = tmp_path / "work"
    before = snapshot(tmp_path)
    assert_refused(
        capsys,
        f"--evaluate={path}",
        "--limit_test=20",
        f"--workdir={workdir}",
        parts=parts,
    )
    assert snapshot(tmp_path) == before


def test_an_evaluation_of_an_older_tfsam_goes_on(tmp_path):
    config, _ = run.configuration(["--evaluate=model.keras"])
    later = ("precision", "strategy", *workdirs.UNBOUND)
    older = {key: config[key] for key in config if key not in later}
    files.write_json(tmp_path / "config.json", older)
    assert workdirs.finished(tmp_path, config) is None


def test_workdir_of_another_configuration(finished, capsys):
    workdir, _ = finished
    before = snapshot(workdir)
    assert_refused(
        capsys,
        *FINISHED,
        "--rho=0.3",
        f"--workdir={workdir}",
        parts=[workdir, "rho=0.3", "another configuration"],
    )
    assert snapshot(workdir) == before


@pytest.mark.parametrize("name", ["notes.txt", "config.json", ".hidden"])
def test_workdir_with_foreign_files(tmp_path, capsys, name):
    (tmp_path / name).write_text("mine")
    before = snapshot(tmp_path)
    assert_refused(capsys, f"--workdir={tmp_path}", parts=[tmp_path, "workdir"])
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("below", ["", "below"])
def test_workdir_that_is_a_file(tmp_path, capsys, below):
    path = tmp_path / "file"
    path.write_text("mine")
    assert_refused(capsys, f"--workdir={path / below}", parts=[path])
    assert path.read_text() == "mine"


# Processes of their own start TensorFlow: they run side by side.


def start(*arguments, **options):
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def test_bad_input_of_a_process(tmp_path):
    cases = {
        "--method=adam": ["adam", *METHODS],
        "--dataset=folder:nowhere": ["nowhere"],
        "--evaluate=nothing.keras": ["nothing.keras"],
    }
    processes = [
        start("-m", "tfsam.run", argument, cwd=tmp_path) for argument in cases
    ]
    for process, parts in zip(processes, cases.values(), strict=True):
        output, error = process.communicate(timeout=200)
        assert process.returncode == 2
        assert output == ""
        # TensorFlow's own start may say something before.
        line = error.splitlines()[-1]
        assert line.startswith("tfsam: ")
        assert error.count("tfsam: ") == 1
        assert "Traceback" not in error
        for part in parts:
            assert part in line
    assert not list(tmp_path.iterdir())


# A loss that becomes NaN.


@pytest.mark.parametrize(
    "devices", ["auto", pytest.param("cpu:2", marks=cpu_only)]
)
def test_nan_in_the_first_epoch(tmp_path, devices):
    code, output = main(
        *SMALL,
        "--learning_rate=1e30",
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
    def schedule(config, steps):
        return keras.optimizers.schedules.PiecewiseConstantDecay(
            [2 * steps], [config["learning_rate"], 1e30]
        )

    monkeypatch.setattr(fit, "_schedule", schedule)
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


# Killed, and started again.

LONG = (
    *SMALL,
    "--method=at_sam",
    "--steps=2",
    "--epochs=4",
    "--attacks=pgd,fgsm",
)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("uninterrupted") / "run"
    assert main(*LONG, f"--workdir={workdir}")[0] == 0
    return workdir


def resume(workdir):
    """Starts the run again; returns what it printed."""
    code, output = main(*LONG, f"--workdir={workdir}")
    assert code == 0
    return output


def without_results(uninterrupted, tmp_path):
    """A copy of the run as it is before its evaluation is reported."""
    workdir = tmp_path / "run"
    shutil.copytree(uninterrupted, workdir)
    (workdir / "results.json").unlink()
    return workdir


KILLED_AT_STEP = """
import os, signal, sys
from tfsam import callbacks, run

def kill(self, batch, logs=None):
    if int(self.model.optimizer.iterations) == 8:
        os.kill(os.getpid(), signal.SIGKILL)

callbacks.StopAtNaN.on_train_batch_end = kill
run.main(sys.argv[1:])
"""


@pytest.mark.slow
@cpu_only
def test_killed_in_an_epoch_and_resumed(uninterrupted, tmp_path):
    workdir = tmp_path / "run"
    process = start("-c", KILLED_AT_STEP, *LONG, f"--workdir={workdir}")
    _, error = process.communicate(timeout=250)
    assert process.returncode == -signal.SIGKILL, error
    assert len(monitoring.read_history(workdir / "history.csv")) == 2
    assert not (workdir / "results.json").exists()
    output = resume(workdir)
    assert "going on after epoch 2" in output
    assert "going on after epoch 2" in (workdir / "log.txt").read_text()
    assert "epoch 2/4" not in output
    assert "epoch 3/4 done" in output
    assert_same_run(workdir, uninterrupted)


@cpu_only
@pytest.mark.slow
def test_killed_from_outside_and_resumed(uninterrupted, tmp_path):
    workdir = tmp_path / "run"
    process = start("-m", "tfsam.run", *LONG, f"--workdir={workdir}")
    while not monitoring.read_history(workdir / "history.csv"):
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert not (workdir / "results.json").exists()
    resume(workdir)
    assert_same_run(workdir, uninterrupted)


class Killed(BaseException):
    """Stands for SIGKILL where nothing is cleaned up either."""


def kill_at_write(monkeypatch, name, nth=1):
    """Lets the process die before it moves `name` to its place."""
    replace, seen = os.replace, []

    def replace_or_die(source, target, **options):
        if pathlib.Path(target).name == name:
            seen.append(target)
            if len(seen) == nth:
                raise Killed
        return replace(source, target, **options)

    monkeypatch.setattr(os, "replace", replace_or_die)
    monkeypatch.setattr(files, "remove", lambda path: None)


@pytest.mark.slow
@cpu_only
@pytest.mark.parametrize(
    "name, nth",
    [
        *(("epoch-0004.keras", 1), ("history.csv", 1), ("model.keras", 1)),
        *(("saved_model", 1), ("000000.npz", 2), ("results.json", 1)),
    ],
)
def test_killed_while_writing(uninterrupted, tmp_path, monkeypatch, name, nth):
    workdir = without_results(uninterrupted, tmp_path)
    shutil.rmtree(workdir / "evaluation")
    in_training = name in ("epoch-0004.keras", "history.csv")
    if in_training:
        (workdir / "checkpoints" / "epoch-0004.keras").unlink()
    if name == "model.keras":  # It is kept where it is the same network.
        (workdir / name).unlink()
    with monkeypatch.context() as patch:
        kill_at_write(patch, name, nth)
        with pytest.raises(Killed):
            main(*LONG, f"--workdir={workdir}")
    assert not (workdir / "results.json").exists()
    leftovers = [
        path
        for folder in (workdir, *(p for p in workdir.rglob("*") if p.is_dir()))
        for path in files.leftovers(folder)
    ]
    assert [path.name.partition("-")[2] for path in leftovers] == [name]
    output = resume(workdir)
    assert f"going on after epoch {3 if in_training else 4}" in output
    assert_same_run(workdir, uninterrupted)
    assert not leftovers[0].exists()


def test_killed_before_anything_is_written(tmp_path, monkeypatch):
    config, workdir = run.configuration([f"--workdir={tmp_path}"])
    with monkeypatch.context() as patch:
        kill_at_write(patch, "config.json")
        with pytest.raises(Killed):
            workdirs.claim(workdir, config)
    assert len(list(tmp_path.iterdir())) == 1
    assert workdirs.finished(workdir, config) is None
    workdirs.claim(workdir, config)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    assert workdirs.finished(workdir, config) is None


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def spoil_method(path):
    """A byte of the zip directory: the last file's method of compression."""
    content = bytearray(path.read_bytes())
    content[content.rindex(b"PK\x01\x02") + 10] = 99
    path.write_bytes(content)


def spoil(path):
    """Zeros in the middle, as a file system leaves them after a crash."""
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle - 4096 : middle + 4096] = bytes(8192)
    path.write_bytes(content)


@pytest.mark.slow
@cpu_only
@pytest.mark.parametrize("damage", [truncate, spoil])
def test_broken_checkpoint_falls_back_to_the_one_before(
    uninterrupted, tmp_path, damage
):
    workdir = without_results(uninterrupted, tmp_path)
    damage(workdir / "checkpoints" / "epoch-0004.keras")
    output = resume(workdir)
    assert "cannot read epoch-0004.keras" in output
    assert "going on after epoch 3" in output
    assert "epoch 4/4 done" in output
    assert_same_run(workdir, uninterrupted)


@pytest.mark.slow
def test_killed_between_two_attacks(uninterrupted, tmp_path):
    workdir = without_results(uninterrupted, tmp_path)
    record = workdir / "evaluation" / "linf"
    assert {path.name for path in record.iterdir()} == {
        *("record.json", "natural", "00-pgd", "01-fgsm")
    }
    shutil.rmtree(record / "01-fgsm")
    with np.load(record / "00-pgd" / "000000.npz") as arrays:
        measured = dict(arrays)
    measured["0/seconds"] = np.array(12345.0)  # To know it by.
    np.savez(record / "00-pgd" / "000000.npz", **measured)
    output = resume(workdir)
    assert "epoch 4/4" not in output
    pgd, fgsm = read_json(workdir / "results.json")["robust"]
    assert pgd["seconds"] >= 12345.0
    assert fgsm["seconds"] < 1000
    assert_same_run(workdir, uninterrupted)


# The exported model, and the evaluation of a model.

WITHOUT_TFSAM = """
import sys
sys.modules["tfsam"] = None
import numpy as np
import tensorflow as tf
from cleverhans.tf2.attacks.projected_gradient_descent import (
    projected_gradient_descent,
)

folder, images, outputs = sys.argv[1:]
with np.load(images) as arrays:
    x, y = tf.constant(arrays["x"]), arrays["y"]
found = {}

def measure(name, model):
    x_adv = projected_gradient_descent(
        model, x, 0.1, 0.025, 5, np.inf,
        clip_min=0.0, clip_max=1.0, y=y, rand_init=0.0, sanity_checks=False,
    )
    found[name] = model(x).numpy()
    found[name + "_robust"] = model(x_adv).numpy().argmax(axis=1) == y

loaded = tf.saved_model.load(folder + "/saved_model")
measure("exported", loaded.serve)
import keras
model = keras.saving.load_model(folder + "/model.keras")
measure("keras", lambda x: model(x, training=False))
np.savez(outputs, **found)
"""


def test_exported_model_without_tfsam(finished, tmp_path):
    workdir, _ = finished
    images = data.load("digits", limit_train=200, limit_test=60, seed=0)
    np.savez(tmp_path / "images.npz", x=images.x_test, y=images.y_test)
    process = start(
        *("-c", WITHOUT_TFSAM, workdir),
        *(tmp_path / "images.npz", tmp_path / "outputs.npz"),
        cwd=tmp_path,
    )
    _, error = process.communicate(timeout=250)
    assert process.returncode == 0, error
    found = np.load(tmp_path / "outputs.npz")
    model = keras.saving.load_model(workdir / "model.keras")
    logits = model.predict(images.x_test, verbose=0)
    for name in ("exported", "keras"):
        np.testing.assert_allclose(found[name], logits, rtol=1e-5, atol=1e-4)
    robust = found["exported_robust"].sum(), found["keras_robust"].sum()
    assert abs(robust[0] - robust[1]) <= 1
    natural = (logits.argmax(axis=1) == images.y_test).sum()
    assert 0 < robust[0] < natural


@pytest.mark.filterwarnings("default:.* is a SavedModel")
def test_evaluate_a_model_file_and_an_exported_model(
    finished, tmp_path, capsys
):
    source, _ = finished
    found = {}
    for name in ("model.keras", "saved_model"):
        before = snapshot(source / name)
        workdir = tmp_path / name
        code, output = main(
            f"--evaluate={source / name}",
            "--limit_test=60",
            "--attacks=cleverhans_pgd",
            "--attack_steps=3",
            "--linf_epsilons=0.05",
            "--l2_epsilons=",
            f"--workdir={workdir}",
        )
        assert code == 0
        said = capsys.readouterr().err
        if name == "saved_model":
            start = f"tfsam: {source / name} is a SavedModel, a program"
            assert said.startswith(start) and said.count("\n") == 1
        else:
            assert said == ""
        assert snapshot(source / name) == before
        results = found[name] = read_json(workdir / "results.json")
        assert results["schema"] == 1
        assert results["method"] is results["train"] is None
        assert results["config"]["evaluate"] == str(source / name)
        assert results["config"]["epochs"] is None
        (row,) = results["robust"]
        assert "error" not in row
        assert_measured(row, 60)
        assert row["options"] == {"steps": 3}
        assert "epoch" not in output
        for file in ("model.keras", "saved_model", "history.csv"):
            assert not (workdir / file).exists()
        for file in ("robustness.png", "examples.png", "log.txt"):
            assert (workdir / file).exists()
            assert file in results["artifacts"]
    whole = read_json(source / "results.json")
    for results in found.values():
        assert results["natural"] == whole["natural"]
    exported, kept = (found[name]["robust"][0] for name in reversed(found))
    assert abs(exported["accuracy"] - kept["accuracy"]) <= 1 / 60 + 1e-9
    assert kept["accuracy"] < whole["natural"]["accuracy"]


def test_exports_do_not_tell_how_they_came_about(finished):
    """No path, flag or name of who trained: a file to hand on."""
    workdir, _ = finished
    secrets = [str(workdir), str(workdir.parent), os.getcwd(), sys.prefix]
    secrets += ["/home/", "--method", "digits", "tfsam", "workdir"]
    secrets += ["perturb", "learning_rate", "optimizer"]
    paths = [p for p in (workdir / "saved_model").rglob("*") if p.is_file()]
    content = {path.name: path.read_bytes() for path in paths}
    with zipfile.ZipFile(workdir / "model.keras") as archive:
        content |= {name: archive.read(name) for name in archive.namelist()}
    assert {"saved_model.pb", "config.json"} <= set(content)
    for name, text in content.items():
        for secret in secrets:
            assert secret.encode() not in text, (name, secret)
    assert b"preact" in content["config.json"]  # What is in it is found.


def test_an_average_measures_batchnorm_on_images_of_all_classes(monkeypatch):
    labels = np.repeat(np.arange(10), 2000)  # As a folder lists them.
    x = np.zeros([len(labels), 1, 1, 1], np.uint8)
    images = data.Images("sorted", x, labels, x, labels, list("0123456789"))
    config, _ = run.configuration(["--preset=cifar10", "--method=swa"])
    monkeypatch.setattr(methods, "build", lambda part, config, **given: given)
    _, y = fit._average(config, images, None)["data"]
    assert len(y) == 10_000
    assert set(y[:128]) == set(range(10))
