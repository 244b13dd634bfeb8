"""Faults from outside: interrupted runs, broken files, NaN, the clock."""

import pathlib
import random
import shutil
import time

import keras
import numpy as np
import pytest
from helpers import THREE_EPOCHS
from helpers import Killed
from helpers import assert_same_run
from helpers import cpu_only
from helpers import kill_at_write
from helpers import main
from helpers import make_runs_tiny
from helpers import settings_of
from helpers import truncate
from helpers import without_clocks
from interrupted_runs import at_step
from interrupted_runs import positions
from interrupted_runs import terminate
from interrupted_runs import terminated_at

from tfsam.runs import attacked
from tfsam.runs import fit
from tfsam.runs import methods
from tfsam.runs import stages
from tfsam.runs.parts import flags_of
from tfsam.support import devices
from tfsam.support import files
from tfsam.support import signals
from tfsam.training import checkpoints
from tfsam.training import monitoring

pytestmark = pytest.mark.usefixtures("tiny_network")

# Six steps an epoch, and files of every kind.
AVERAGED = (
    *(*THREE_EPOCHS, "--method=at", "--steps=1", "--average=ema"),
    *("--select=robust", "--limit_train=112", "--validation_images=16"),
)


@pytest.fixture(scope="module")
def averaged(tmp_path_factory):
    """The folder of a run that was not interrupted."""
    workdir = tmp_path_factory.mktemp("averaged") / "run"
    with pytest.MonkeyPatch.context() as patch:
        make_runs_tiny(patch)
        assert main(*AVERAGED, f"--workdir={workdir}")[0] == 0
    return workdir


# Amid an epoch.


@cpu_only
def test_stopped_by_sigterm_it_goes_on_from_that_step(averaged, tmp_path):
    arguments = (*AVERAGED, f"--workdir={tmp_path}")
    output = terminated_at(2, *arguments)
    assert output.splitlines()[-1].startswith("interrupted; the same command")
    assert positions(tmp_path) == [(0, 2)]
    # Again, at the last step of an epoch: its validation is still made.
    assert "resuming after epoch 0 and 2 steps" in terminated_at(12, *arguments)
    assert positions(tmp_path) == [(2, 0), (1, 0)]
    code, output = main(*arguments)
    assert code == 0
    assert "resuming after epoch 2" in output
    assert "epoch 2/3" not in output
    assert_same_run(tmp_path, averaged)


def trained(workdir, *arguments):
    """The weights and the history after training alone."""
    workdir.mkdir(exist_ok=True)
    settings = settings_of(*THREE_EPOCHS, *arguments, f"--workdir={workdir}")
    images = stages.load_images(settings, attacked.opened(settings))
    strategy = devices.make_strategy(settings.devices, settings.strategy)
    with pytest.MonkeyPatch.context() as patch, signals.handled() as stop:
        # The accuracy after training, which no test here looks at.
        patch.setattr(fit, "_summary", lambda *_, **__: None)
        network, _ = fit.train(settings, images, strategy, print, stop)
    return network.get_weights(), without_clocks(workdir / "history.csv")


# Of both averages, and of a watch for a collapse.
STATES = [
    ("--method=looksam", "--average=swa", "--average_start=1"),
    ("--method=fgsm_at", "--average=ema", "--collapse_drop=0.9"),
]


@cpu_only
@pytest.mark.slow
@pytest.mark.parametrize("method", STATES, ids=lambda method: method[0][9:])
def test_stopped_in_the_last_epoch_it_goes_on(tmp_path, capsys, method):
    weights, history = trained(tmp_path / "whole", *method)
    parts = tmp_path / "parts"

    def stopped_at(step):
        with pytest.MonkeyPatch.context() as patch:
            at_step(patch, step, terminate)
            with pytest.raises(signals.Stopped):
                trained(parts, *method)
        return capsys.readouterr().out

    stopped_at(2)
    assert positions(parts) == [(0, 2)]
    # Again, in the last one after its first step.
    assert "resuming after epoch 0 and 2 steps" in stopped_at(13)
    assert positions(parts) == [(2, 1), (2, 0)]
    # At the last step of an epoch its validation is still made.
    output = stopped_at(18)
    assert "resuming after epoch 2 and 1 steps" in output
    assert "epoch 2/3" not in output
    assert positions(parts) == [(3, 0), (2, 1)]
    found, rows = trained(parts, *method)
    assert "resuming after epoch 3" in capsys.readouterr().out
    assert rows == history
    for one, other in zip(found, weights, strict=True):
        np.testing.assert_array_equal(one, other)
    # The network of the run is the average, not the last one trained.
    last = keras.saving.load_model(parts / "checkpoints" / "epoch-0003.keras")
    assert np.abs(found[0] - last.network.get_weights()[0]).max() > 1e-4


def trained_in_parts(folder, step, *arguments):
    """Trains, and again from a checkpoint at a step of it; both results.

    A signal saves the same checkpoint as the interval of checkpoints does.
    """
    arguments = ("--epochs=2", f"--checkpoint_steps={step}", *arguments)
    replays = settings_of(*THREE_EPOCHS, *arguments).recipe.replays

    def copy(model):
        shutil.copytree(folder / "whole", folder / "parts")

    with pytest.MonkeyPatch.context() as patch:
        at_step(patch, (step + 1) * replays, copy)
        whole = trained(folder / "whole", *arguments)
    assert positions(folder / "parts")[0] == divmod(step, 6)
    return whole, trained(folder / "parts", *arguments)


# Their steps are those of SAM, AT or TRADES, and nothing is kept from one to
# the next; or the tests above stop them.
TESTED_WITH_OTHERS = (
    *("st", "sam", "asam", "fsam", "esam", "wsam", "sam_on", "looksam"),
    *("at", "fgsm_at", "nfgsm_at", "trades", "mart", "score", "ema", "swa"),
)


@cpu_only
@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "step"),
    [
        (method, 4 + n % 5)
        for n, method in enumerate(methods.methods())
        if method not in TESTED_WITH_OTHERS
    ],
)
def test_each_method_goes_on_from_any_step(tmp_path, method, step):
    """Each with a state of its own, and each of the parts that methods have.

    The parts are no attack, PGD, an attack with a state, a perturbation of the
    weights, an objective and an optimizer. The tests above have the averages.
    """
    arguments = [f"--method={method}"]
    attack = methods.methods()[method].perturb_inputs
    if attack and "steps" in flags_of("perturb_inputs", attack):
        arguments.append("--steps=1")
    (weights, history), (found, rows) = trained_in_parts(
        tmp_path, step, *arguments
    )
    assert rows == history
    for one, other in zip(found, weights, strict=True):
        np.testing.assert_array_equal(one, other)


@cpu_only
@pytest.mark.slow
def test_two_devices_go_on_amid_an_epoch(tmp_path):
    """The metrics of both workers are restored as one, to rounding.

    BatchNorm's statistics, which differ, are restored as their mean.
    """
    (_, history), (_, rows) = trained_in_parts(tmp_path, 8, "--devices=cpu:2")
    for one, other in zip(rows, history, strict=True):
        for key in ("loss", "accuracy"):
            assert one[key] == pytest.approx(other[key], rel=1e-3)


@cpu_only
def test_checkpoints_every_few_steps(averaged, tmp_path):
    """A killed run loses three steps at most; damaged states are skipped."""
    parts = tmp_path / "parts"
    arguments = (*AVERAGED, "--checkpoint_steps=4")
    with pytest.MonkeyPatch.context() as patch:
        kill_at_write(patch, "epoch-0002-step-000004.keras")
        with pytest.raises(Killed):
            main(*arguments, f"--workdir={parts}")
    assert positions(parts) == [(2, 0), (1, 2)]
    truncate(parts / "checkpoints" / "epoch-0002.keras")
    # The interval between checkpoints may change.
    code, output = main(*AVERAGED, f"--workdir={parts}")
    assert code == 0
    assert "cannot read epoch-0002.keras" in output
    assert "resuming after epoch 1 and 2 steps" in output
    assert_same_run(parts, averaged)
    assert positions(parts) == [(3, 0), (2, 0)]
    assert not files.leftovers(parts / "checkpoints")


@pytest.mark.slow
def test_a_state_that_cannot_be_read_is_not_used(tmp_path):
    arguments = (*THREE_EPOCHS, f"--workdir={tmp_path}")
    terminated_at(2, *arguments)
    terminated_at(4, *arguments)
    (_, newest), _ = checkpoints.newest_first(tmp_path / "checkpoints")
    content = newest.read_bytes()
    newest.write_bytes(content.replace(b"state.npz", b"other.npz"))
    code, output = main(*arguments)
    assert code == 0
    assert f"cannot read {newest.name}" in output
    assert "resuming after epoch 0 and 2 steps" in output


# Damaged files of a run's own.


def damaged(averaged, tmp_path, name, damage):
    """A copy with a damaged file, and the command that reads it again."""
    shutil.copytree(averaged, tmp_path / "run")
    (tmp_path / "run/results.json").unlink()
    damage(tmp_path / "run" / name)
    return tmp_path / "run", (*AVERAGED, f"--workdir={tmp_path / 'run'}")


def written(text):
    return lambda path: path.write_text(text)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("history.csv", written("epoch,seconds\nx,")),
        ("history.csv", written("epoch,seconds\n1,2\n")),
        ("stopped.json", written('{"epoch": "x"}')),
        ("stopped.json", written("{")),
        ("best.keras", truncate),
        pytest.param(
            *("evaluation/record.json", written("{")),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_damaged_file_is_refused(averaged, tmp_path, capsys, name, damage):
    workdir, command = damaged(averaged, tmp_path, name, damage)
    content = (workdir / name).read_bytes()
    assert main(*command)[0] == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("tfsam: ") and "Received: " in line
    assert pathlib.Path(name).name in line
    assert (workdir / name).read_bytes() == content
    assert not (workdir / "results.json").exists()


@cpu_only
def test_a_damaged_epoch_is_done_again(averaged, tmp_path):
    name = "average/average-0003.npz"
    workdir, command = damaged(averaged, tmp_path, name, truncate)
    code, output = main(*command)
    assert code == 0
    assert "cannot read epoch-0003.keras" in output
    assert "resuming after epoch 2" in output
    assert_same_run(workdir, averaged)


def test_a_bug_keeps_its_traceback(tmp_path, monkeypatch):
    def fail(*arguments):
        raise ValueError("a bug")

    monkeypatch.setattr(stages, "run", fail)
    with pytest.raises(ValueError, match="a bug"):
        main(*THREE_EPOCHS, f"--workdir={tmp_path}")


# NaN, and a clock that jumps.


@pytest.mark.parametrize(
    "method", [pytest.param("sam", marks=pytest.mark.slow), "at"]
)
def test_nan_at_a_random_step(tmp_path, method):
    step = random.Random(method).randrange(1, 17)

    def spoil(model):
        model.network.layers[1].kernel.assign_add(
            np.full((64, 8), np.nan, np.float32)
        )

    with pytest.MonkeyPatch.context() as patch:
        at_step(patch, step, spoil)
        code, output = main(
            *(*THREE_EPOCHS, f"--method={method}", "--checkpoint_steps=1"),
            f"--workdir={tmp_path}",
        )
    assert code == 3
    # Weights that are not finite are found before they are saved.
    assert f"is not finite after step {step}" in output.splitlines()[-1]
    assert positions(tmp_path)[0] == divmod(step - 1, 6)
    for _, path in checkpoints.newest_first(tmp_path / "checkpoints"):
        for variable in keras.saving.load_model(path).variables:
            assert np.isfinite(variable.numpy()).all()


@pytest.mark.slow
@cpu_only
def test_a_clock_that_jumps_changes_nothing(whole, tmp_path, monkeypatch):
    """Durations come from a monotonic clock; nothing else reads a clock."""
    arguments, parts = THREE_EPOCHS, tmp_path / "parts"
    rng, clock = random.Random(0), time.time
    monkeypatch.setattr(time, "time", lambda: clock() + rng.uniform(-1e8, 1e8))
    assert main(*arguments, f"--workdir={parts}")[0] == 0
    assert_same_run(parts, whole)
    rows = monitoring.read_history(parts / "history.csv")
    assert all(0 < row["seconds"] < 100 for row in rows)
