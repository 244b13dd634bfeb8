"""The files that a run writes and exports."""

import os
import sys
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import GPUS
from helpers import assert_measured
from helpers import assert_refused
from helpers import convolutional
from helpers import main
from helpers import read_json
from helpers import snapshot
from helpers import start
from helpers import verdicts

from tfsam import data
from tfsam import registries
from tfsam import reports
from tfsam.runs import flags
from tfsam.runs import settings
from tfsam.runs.artifacts import ARTIFACTS
from tfsam.support import files
from tfsam.training import monitoring

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
    """A finished run: (its folder, its output)."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(
            registries.NETWORKS.native, "preact_resnet8", convolutional
        )
        code, output = main(*FINISHED, f"--workdir={workdir}")
    assert code == 0
    return workdir, output


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
    others = {"merge", "inspect", "overwrite", "robustbench", *flags.QUESTIONS}
    named = {settings.FIELDS.get(flag, flag) for flag in flags.FLAGS}
    assert set(config) == named - others
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
        *("examples.npz", "log.txt", "classes.txt"),
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
        "attacking in linf, l2 by pgd, fgsm",
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
    # The worst case at two budgets of two norms, and in any norm.
    assert len(lines) == 2 + 1 + 8 + 5
    accuracies = [float(line.split("|")[4]) for line in lines[2:-5]]
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
    assert rest == reports.table(read_json(workdir / "results.json")).split(
        "\n"
    )
    assert set(rest) <= set(output.splitlines())


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
            "--attack_steps=1",
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
        assert row["options"] == {"steps": 1}
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
    """No path, flag or user's name: the file can be published."""
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
    assert b"preact" in content["config.json"]  # Other texts are found.


def test_every_file_of_a_run_is_an_artifact(finished):
    """--overwrite removes the artifacts; a file that is none would stay."""
    workdir, *_ = finished
    found = {path.name for path in workdir.iterdir()} - {"lock"}
    assert found <= {artifact.name for artifact in ARTIFACTS}
