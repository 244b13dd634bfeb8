"""Runs that were killed or interrupted, and resumed."""

import pathlib
import re
import shutil
import signal

import keras
import numpy as np
import pytest
from helpers import SMALL
from helpers import Killed
from helpers import assert_same_run
from helpers import cpu_only
from helpers import kill_at_write
from helpers import main
from helpers import read_json
from helpers import settings_of
from helpers import spoil_method
from helpers import start

from tfsam.runs import fit
from tfsam.runs import stages
from tfsam.runs import workdirs
from tfsam.support import files
from tfsam.training import monitoring
from tfsam.training import progress


def weights_of(path):
    return keras.saving.load_model(path).get_weights()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["ssam", "entropy_sgd"])
def test_state_averages_and_the_best_network_are_resumed(
    tmp_path, monkeypatch, tiny_network, method
):
    """A run interrupted after each epoch, the last too, ends the same."""
    arguments = (
        *(*SMALL, f"--method={method}", "--average=ema", "--epochs=2"),
        *("--select=clean", "--validation_images=20"),
    )
    assert main(*arguments, f"--workdir={tmp_path / 'whole'}")[0] == 0
    with monkeypatch.context() as patch:

        def interrupt(self, epoch, logs=None):
            raise KeyboardInterrupt

        patch.setattr(progress.Progress, "on_epoch_end", interrupt)
        for epochs in (1, 2):
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


def test_a_finished_run_takes_more_attacks_and_epsilons(tmp_path, tiny_network):
    """The network is not trained again, and verdicts are not measured again."""
    arguments = (*SMALL, "--method=st", "--epochs=1", f"--workdir={tmp_path}")
    assert main(*arguments)[0] == 0
    network = (tmp_path / "history.csv").read_bytes()
    verdicts = tmp_path.glob("evaluation/[n0]*/**/*.npz")  # natural and 00-pgd.
    held = {path: path.stat().st_mtime_ns for path in verdicts}
    first = read_json(tmp_path / "results.json")["robust"]
    more = (
        "--attacks=fgsm,pgd",
        "--l2_epsilons=0.5",
        "--linf_epsilons=0.2,0.1",
    )
    assert main(*arguments, *more)[0] == 0
    rows = read_json(tmp_path / "results.json")["robust"]
    assert [(r["attack"], r["norm"], r["epsilon"]) for r in rows] == [
        (attack, *budget)
        for attack in ("fgsm", "pgd")
        for budget in (("linf", 0.2), ("linf", 0.1), ("l2", 0.5))
    ]
    assert rows[4] == first[0]
    assert (tmp_path / "history.csv").read_bytes() == network
    assert held == {path: path.stat().st_mtime_ns for path in held} != {}
    code, output = main(*arguments, *more)
    assert code == 0
    assert "finished" in output


def test_a_network_selected_under_the_budget_is_not_that_of_another(
    tmp_path, tiny_network, capsys
):
    arguments = (
        *(*SMALL, "--method=st", "--epochs=1", f"--workdir={tmp_path}"),
        *("--select=robust", "--validation_images=20"),
    )
    assert main(*arguments)[0] == 0
    assert main(*arguments, "--linf_epsilons=0.2")[0] == 2
    assert "linf_epsilons is 0.2, was 0.1" in capsys.readouterr().err


# Another process can import the network, too.
LONG = (
    *(*SMALL, "--method=at_sam", "--steps=2", "--epochs=4"),
    *("--attacks=pgd,fgsm", "--network=small_network:small"),
)


@pytest.fixture(scope="module")
def no_pictures():
    """The soak has the pictures of resumed runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages, "draw", lambda *_, **__: None)
        yield


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, no_pictures):
    workdir = tmp_path_factory.mktemp("uninterrupted") / "run"
    assert main(*LONG, f"--workdir={workdir}")[0] == 0
    return workdir


def resume(workdir):
    """Starts the run again; returns its output."""
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
from tfsam import run
from tfsam.training import monitoring

def kill(self, batch, logs=None):
    if int(self.model.optimizer.iterations) == 8:
        os.kill(os.getpid(), signal.SIGKILL)

monitoring.StopAtNaN.on_train_batch_end = kill
run.main(sys.argv[1:])
"""


@pytest.mark.slow
@cpu_only
def test_killed_in_an_epoch_and_resumed(uninterrupted, tmp_path):
    workdir = tmp_path / "run"
    script = ("-c", KILLED_AT_STEP, *LONG, f"--workdir={workdir}")
    process = start(*script, cwd=pathlib.Path(__file__).parent)
    _, error = process.communicate(timeout=250)
    assert process.returncode == -signal.SIGKILL, error
    assert len(monitoring.read_history(workdir / "history.csv")) == 2
    assert not (workdir / "results.json").exists()
    output = resume(workdir)
    assert "resuming after epoch 2" in output
    assert "resuming after epoch 2" in (workdir / "log.txt").read_text()
    assert "epoch 2/4" not in output
    assert "epoch 3/4 done" in output
    assert_same_run(workdir, uninterrupted)


# The files that a run writes last, in their order, which of their writes is
# cut off, and the epochs that were done before.
KILLS = [
    *(("epoch-0004.keras", 1, 3), ("history.csv", 1, 3), ("model.keras", 1, 3)),
    *(("saved_model", 1, 4), ("000000.npz", 2, 4), ("results.json", 1, 4)),
]


@pytest.mark.slow
@cpu_only
def test_killed_while_writing(uninterrupted, tmp_path):
    """Runs are killed in turn, each at a later file; the last is whole."""
    workdir = without_results(uninterrupted, tmp_path)
    shutil.rmtree(workdir / "evaluation")
    (workdir / "checkpoints" / "epoch-0004.keras").unlink()
    (workdir / "model.keras").unlink()  # It is kept where it is the same.
    for name, nth, epochs in KILLS:
        with pytest.MonkeyPatch.context() as patch:
            kill_at_write(patch, name, nth)
            with pytest.raises(Killed):
                main(*LONG, f"--workdir={workdir}")
        assert not (workdir / "results.json").exists()
        assert _resumed_last(workdir) == epochs
        assert name in _leftovers(workdir)
    resume(workdir)
    assert _resumed_last(workdir) == 4
    assert_same_run(workdir, uninterrupted)
    assert _leftovers(workdir) == []


def _leftovers(workdir):
    """The names of the files that were being written."""
    folders = (workdir, *(p for p in workdir.rglob("*") if p.is_dir()))
    return [
        path.name.partition("-")[2]
        for folder in folders
        for path in files.leftovers(folder)
    ]


def _resumed_last(workdir):
    """The epochs that were done where the last run began."""
    log = (workdir / "log.txt").read_text()
    return int(re.findall(r"resuming after epoch (\d+)", log)[-1])


def test_killed_before_anything_is_written(tmp_path, monkeypatch):
    settings = settings_of(f"--workdir={tmp_path}")
    with monkeypatch.context() as patch:
        kill_at_write(patch, "config.json")
        with pytest.raises(Killed):
            workdirs.claim(settings)
    assert len(list(tmp_path.iterdir())) == 1
    assert workdirs.finished(settings) is None
    workdirs.claim(settings)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    assert workdirs.finished(settings) is None


def spoil(path):
    """Zeros in the middle, as a file system leaves them after a crash."""
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle - 4096 : middle + 4096] = bytes(8192)
    path.write_bytes(content)


@pytest.mark.slow
@cpu_only
@pytest.mark.parametrize("damage", [spoil_method, spoil])
def test_broken_checkpoint_falls_back_to_the_one_before(
    uninterrupted, tmp_path, damage
):
    workdir = without_results(uninterrupted, tmp_path)
    damage(workdir / "checkpoints" / "epoch-0004.keras")
    output = resume(workdir)
    assert "cannot read epoch-0004.keras" in output
    assert "resuming after epoch 3" in output
    assert "epoch 4/4 done" in output
    assert_same_run(workdir, uninterrupted)


@pytest.mark.slow
def test_killed_between_two_attacks(uninterrupted, tmp_path):
    workdir = without_results(uninterrupted, tmp_path)
    record = workdir / "evaluation"
    assert {path.name for path in record.iterdir()} == {
        *("record.json", "natural", "gradients", "00-pgd", "01-fgsm")
    }
    shutil.rmtree(record / "01-fgsm")
    (chunk,) = record.glob("00-pgd/*/000000.npz")
    with np.load(chunk) as arrays:
        measured = dict(arrays)
    measured["seconds"] = np.array(12345.0)  # Identifies the chunk.
    np.savez(chunk, **measured)
    output = resume(workdir)
    assert "epoch 4/4" not in output
    pgd, fgsm = read_json(workdir / "results.json")["robust"]
    assert pgd["seconds"] >= 12345.0
    assert fgsm["seconds"] < 1000
    assert_same_run(workdir, uninterrupted)
