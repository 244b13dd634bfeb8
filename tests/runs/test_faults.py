"""Faults from outside: signals, full disks, other runs, the clock."""

import ctypes
import errno
import functools
import gc
import itertools
import json
import os
import pathlib
import random
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import SMALL
from helpers import Killed
from helpers import assert_same_run
from helpers import cpu_only
from helpers import kill_at_write
from helpers import main
from helpers import settings_of
from helpers import shorten_runs
from helpers import slow
from helpers import snapshot
from helpers import spoil_method
from helpers import tiny
from helpers import truncate
from helpers import without_clocks

import tfsam
from experiments import soak
from tfsam import registries
from tfsam.runs import fit
from tfsam.runs import methods
from tfsam.runs import stages
from tfsam.runs import workdirs
from tfsam.support import files
from tfsam.support import signals
from tfsam.training import checkpoints
from tfsam.training import monitoring
from tfsam.training import progress

# Six steps an epoch; the last one of them is of 16 images, too.
RUN = (
    *(*SMALL, "--method=st"),
    *("--limit_train=96", "--batch_size=16", "--epochs=3"),
)


@pytest.fixture(scope="module", autouse=True)
def tiny_network():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(registries.NETWORKS.native, "preact_resnet8", tiny)
        shorten_runs(patch)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that the others should equal."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    assert main(*RUN, f"--workdir={workdir}")[0] == 0
    return workdir


def at_step(monkeypatch, step, act):
    """Calls `act(model)` at the end of a training step, before saving."""
    watch = monitoring.StopAtNaN.on_train_batch_end

    def on_train_batch_end(self, batch, logs=None):
        watch(self, batch, logs)
        if int(self.model.optimizer.iterations.numpy()) == step:
            act(self.model)

    monkeypatch.setattr(
        monitoring.StopAtNaN, "on_train_batch_end", on_train_batch_end
    )


def terminate(model=None):
    os.kill(os.getpid(), signal.SIGTERM)


def terminated_at(step, *arguments):
    """Runs the command until a step, where it gets SIGTERM; its output."""
    with pytest.MonkeyPatch.context() as patch:
        at_step(patch, step, terminate)
        code, output = main(*arguments)
    assert code == 128 + signal.SIGTERM
    return output


def positions(workdir):
    found = checkpoints.newest_first(workdir / "checkpoints")
    return [position for position, _ in found]


# Amid an epoch.

STATES = [
    ("--method=at", "--steps=1", "--average=ema"),
    slow(("--method=looksam", "--average=swa", "--average_start=1")),
    slow(("--method=fgsm_at", "--collapse_drop=0.9")),
]


@cpu_only
@pytest.mark.parametrize("method", STATES, ids=lambda method: method[0][9:])
def test_stopped_by_sigterm_it_goes_on_from_that_step(tmp_path, method):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main(*RUN, *method, f"--workdir={whole}")[0] == 0
    arguments = (*RUN, *method, f"--workdir={parts}")
    output = terminated_at(2, *arguments)
    assert output.splitlines()[-1].startswith("interrupted; the same command")
    assert positions(parts) == [(0, 2)]
    # Again, in the last one after its first step.
    assert "resuming after epoch 0 and 2 steps" in terminated_at(13, *arguments)
    assert positions(parts) == [(2, 1), (2, 0)]
    code, output = main(*arguments)
    assert code == 0
    assert "resuming after epoch 2 and 1 steps" in output
    assert "epoch 2/3" not in output
    assert_same_run(parts, whole)
    # At the last step of an epoch its validation is still made.
    (parts / "results.json").unlink()
    (parts / "checkpoints" / "epoch-0003.keras").unlink()
    terminated_at(18, *arguments)
    assert positions(parts) == [(3, 0), (2, 1)]


def trained(workdir, *arguments):
    """The weights and the history after training alone."""
    workdir.mkdir(exist_ok=True)
    settings = settings_of(*RUN, *arguments, f"--workdir={workdir}")
    inputs = stages.prepare(settings)
    with signals.handled() as stop:
        network, _ = fit.train(
            settings, inputs.images, inputs.strategy, print, stop
        )
    return network.get_weights(), without_clocks(workdir / "history.csv")


@cpu_only
@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "step"),
    [(method, 4 + n % 5) for n, method in enumerate(methods.methods())],
)
def test_each_method_goes_on_from_any_step(tmp_path, method, step):
    arguments = [f"--method={method}", "--epochs=2"]
    if methods.methods()[method].perturb_inputs and method != "fgsm_at":
        arguments.append("--steps=1")
    weights, history = trained(tmp_path / "whole", *arguments)
    with pytest.MonkeyPatch.context() as patch:
        at_step(patch, step, terminate)
        with pytest.raises(signals.Stopped):
            trained(tmp_path / "parts", *arguments)
    assert positions(tmp_path / "parts")[0] == divmod(step, 6)
    found, rows = trained(tmp_path / "parts", *arguments)
    assert rows == history
    for one, other in zip(found, weights, strict=True):
        np.testing.assert_array_equal(one, other)


@cpu_only
@pytest.mark.slow
def test_two_devices_go_on_amid_an_epoch(tmp_path):
    """The metrics of both workers are restored as one, to rounding.

    BatchNorm's statistics, which differ, are restored as their mean.
    """
    _, history = trained(tmp_path / "whole", "--devices=cpu:2")
    with pytest.MonkeyPatch.context() as patch:
        at_step(patch, 8, terminate)
        with pytest.raises(signals.Stopped):
            trained(tmp_path / "parts", "--devices=cpu:2")
    _, rows = trained(tmp_path / "parts", "--devices=cpu:2")
    for one, other in zip(rows, history, strict=True):
        for key in ("loss", "accuracy"):
            assert one[key] == pytest.approx(other[key], rel=1e-3)


@cpu_only
def test_checkpoints_every_few_steps(whole, tmp_path):
    """A killed run loses three steps at most; damaged states are skipped."""
    parts = tmp_path / "parts"
    arguments = (*RUN, "--checkpoint_steps=4")
    with pytest.MonkeyPatch.context() as patch:
        kill_at_write(patch, "epoch-0002-step-000004.keras")
        with pytest.raises(Killed):
            main(*arguments, f"--workdir={parts}")
    assert positions(parts) == [(2, 0), (1, 2)]
    truncate(parts / "checkpoints" / "epoch-0002.keras")
    # The interval between checkpoints may change.
    code, output = main(*RUN, f"--workdir={parts}")
    assert code == 0
    assert "cannot read epoch-0002.keras" in output
    assert "resuming after epoch 1 and 2 steps" in output
    assert_same_run(parts, whole)
    assert positions(parts) == [(3, 0), (2, 0)]
    assert not files.leftovers(parts / "checkpoints")


@pytest.mark.slow
def test_a_state_that_cannot_be_read_is_not_used(tmp_path):
    arguments = (*RUN, f"--workdir={tmp_path}")
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


@pytest.fixture(scope="module")
def averaged(tmp_path_factory):
    """A run that leaves files of every kind, and its command."""
    kept = ("--average=ema", "--select=robust", "--validation_images=16")
    command = (*RUN, *kept)
    workdir = tmp_path_factory.mktemp("averaged") / "run"
    assert main(*command, f"--workdir={workdir}")[0] == 0
    return workdir, command


def damaged(averaged, tmp_path, name, damage):
    """A copy with a damaged file, and the command that reads it again."""
    workdir, command = averaged
    shutil.copytree(workdir, tmp_path / "run")
    (tmp_path / "run/results.json").unlink()
    damage(tmp_path / "run" / name)
    return tmp_path / "run", (*command, f"--workdir={tmp_path / 'run'}")


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
@pytest.mark.parametrize(
    ("name", "damage"),
    [
        pytest.param(
            *("checkpoints/epoch-0003.keras", spoil_method),
            marks=pytest.mark.slow,
        ),
        ("average/average-0003.npz", truncate),
    ],
)
def test_a_damaged_epoch_is_done_again(averaged, tmp_path, name, damage):
    workdir, command = damaged(averaged, tmp_path, name, damage)
    code, output = main(*command)
    assert code == 0
    assert "cannot read epoch-0003.keras" in output
    assert "resuming after epoch 2" in output
    assert_same_run(workdir, averaged[0])


def test_a_bug_keeps_its_traceback(tmp_path, monkeypatch):
    def fail(*arguments):
        raise ValueError("a bug")

    monkeypatch.setattr(stages, "run", fail)
    with pytest.raises(ValueError, match="a bug"):
        main(*RUN, f"--workdir={tmp_path}")


# Signals.


def test_a_signal_waits_where_it_is_deferred():
    before = [signal.getsignal(signum) for signum in signals.SIGNALS]
    with signals.handled() as stop:
        with pytest.raises(signals.Stopped, match="SIGTERM") as stopped:
            with stop.deferred():
                terminate()
                assert stop.asked == signal.SIGTERM
                done = True
        assert done
        assert stopped.value.code == 143
    with signals.handled():
        with pytest.raises(signals.Stopped, match="SIGINT"):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
    assert [signal.getsignal(signum) for signum in signals.SIGNALS] == before


def test_a_handler_that_python_did_not_see_is_replaced():
    """Behaves as TensorFlow's when workers register."""
    before = signal.getsignal(signal.SIGTERM)
    ignored = ctypes.c_void_p(1)
    with signals.handled():
        with signals.defaulted():
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
            ctypes.CDLL(None).signal(signal.SIGTERM, ignored)
            terminate()
        with pytest.raises(signals.Stopped, match="SIGTERM"):
            terminate()
            time.sleep(1)
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_signal_that_is_ignored_stays_so():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with signals.handled(), signals.defaulted():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


# The module alone, for TensorFlow takes long to load.
DEAF = """
import importlib.util, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)
spec = importlib.util.spec_from_file_location("signals", sys.argv[1])
signals = importlib.util.module_from_spec(spec)
spec.loader.exec_module(signals)
signals.GRACE = float(sys.argv[2])
with signals.handled() as stop, stop.deferred():
    print("ready", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize(
    "grace, signums",
    [
        (30, (signal.SIGTERM, signal.SIGTERM)),
        (30, (signal.SIGINT, signal.SIGTERM)),
        (0.1, (signal.SIGTERM,)),
    ],
)
def test_a_second_signal_or_the_grace_s_end_is_the_end(grace, signums):
    process = subprocess.Popen(
        [sys.executable, "-c", DEAF, signals.__file__, str(grace)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    for signum in signums:
        assert process.poll() is None
        process.send_signal(signum)
        time.sleep(0.2)
    _, error = process.communicate(timeout=20)
    assert process.returncode == 128 + signums[0]
    assert (
        error == "tfsam: stopped immediately; run the same command to resume\n"
    )


def test_sigterm_in_the_evaluation_leaves_at_once(tmp_path, monkeypatch):
    """Finished verdicts are kept; a resumed run measures the rest."""
    arguments = (*RUN, "--epochs=1", "--attacks=pgd,fgsm")
    arguments = (*arguments, f"--workdir={tmp_path}")
    with monkeypatch.context() as patch:
        say = stages.measure.teller

        def teller(plan, entry, *arguments):
            if entry.name == "fgsm":
                terminate()
            return say(plan, entry, *arguments)

        patch.setattr(stages.measure, "teller", teller)
        assert main(*arguments)[0] == 143
    record = tmp_path / "evaluation"
    assert not (record / "01-fgsm").exists()
    before = snapshot(record / "00-pgd")
    code, output = main(*arguments)
    assert code == 0
    assert "epoch 1/1" not in output
    assert snapshot(record / "00-pgd") == before


# Two runs.


def test_what_another_host_writes_is_no_leftover(tmp_path, monkeypatch):
    """The process of another host has a number that may be free here."""
    monkeypatch.setattr("os.getpid", lambda: 4194305)  # Of no process.
    monkeypatch.setattr("socket.gethostname", lambda: "node-1.net")
    with files.replacing(tmp_path / "a-b.npz") as temporary:
        temporary.write_text("half")
        assert files.leftovers(tmp_path) == [temporary]
        monkeypatch.setattr("socket.gethostname", lambda: "node-2.net")
        assert files.leftovers(tmp_path) == []


def test_a_lock_says_who_holds_it(whole, tmp_path, capsys):
    workdir = tmp_path / "run"
    arguments = (*RUN, f"--workdir={workdir}")
    with workdirs.locked(workdir):
        before = snapshot(workdir)
        assert main(*arguments)[0] == 2
        assert snapshot(workdir) == before
        assert [path.name for path in workdir.iterdir()] == ["lock"]
        held = json.loads((workdir / "lock").read_text())
    line = capsys.readouterr().err.splitlines()[-1]
    assert held["pid"] == os.getpid()
    assert held["command"] == shlex.join(sys.orig_argv)
    for part in (
        f"is in use by pid {os.getpid()} on host {held['host']} since "
        f"{held['since']}",
        f"Received: workdir={workdir}",
    ):
        assert part in line
    # The kernel's lock counts, not the file that it left.
    shutil.copytree(whole, workdir, dirs_exist_ok=True)
    assert main(*arguments)[0] == 0
    results = json.loads((workdir / "results.json").read_text())
    assert "lock" not in results["artifacts"]


def test_who_waits_for_a_folder_says_for_whom(tmp_path):
    said = []
    workdirs.wait_until_free(tmp_path / "run", said.append)
    with workdirs.locked(tmp_path / "run"):
        waiting = threading.Thread(
            target=workdirs.wait_until_free,
            args=(tmp_path / "run", said.append),
        )
        waiting.start()
        waiting.join(0.3)
        assert waiting.is_alive()
    waiting.join(30)
    assert not waiting.is_alive()
    (line,) = said
    assert line.startswith(f"waiting for pid {os.getpid()} on host ")
    assert line.endswith(f", who has {tmp_path / 'run'}")


@pytest.mark.parametrize("flags, code", [([], 0), (["--seed=1"], 2)])
def test_the_folder_is_looked_at_again_under_the_lock(
    whole, tmp_path, monkeypatch, capsys, flags, code
):
    """Another run may begin and end while this one loads its images."""
    workdir = tmp_path / "run"

    def agree(*_):
        shutil.copytree(whole, workdir)

    monkeypatch.setattr(workdirs, "agree", agree)
    found, output = main(*RUN, *flags, f"--workdir={workdir}")
    assert found == code
    if code:
        assert "another configuration" in capsys.readouterr().err
    else:
        assert "holds this run, finished" in output
    assert_same_run(workdir, whole)
    assert positions(workdir) == positions(whole)


# A full disk.


@pytest.mark.parametrize(
    "error, full",
    [
        (OSError(errno.ENOSPC, "No room"), True),
        (OSError(errno.EDQUOT, "No room"), True),
        (OSError(errno.EFBIG, "No room"), True),
        (RuntimeError("errno = 28, 'No space left on device'"), True),
        (tf.errors.OutOfRangeError(None, None, "a; File too large"), True),
        (OSError(errno.EACCES, "Permission denied"), False),
        (tf.errors.OutOfRangeError(None, None, "End of sequence"), False),
    ],
)
def test_a_full_disk_is_known_by_the_system_s_words(tmp_path, error, full):
    assert (files.no_room(error) is not None) == full
    wrapped = ValueError("something")
    wrapped.__cause__ = error
    assert (files.no_room(wrapped) is not None) == full
    path = tmp_path / "file"
    with pytest.raises(files.DiskFull if full else type(error)) as raised:
        with files.replacing(path) as temporary:
            temporary.write_text("half")
            raise error
    assert (str(path) in str(raised.value)) == full
    assert not list(tmp_path.iterdir())


@pytest.fixture
def limit():
    """A function that limits the size of this process's files."""
    kind = resource.RLIMIT_FSIZE
    before, hard = resource.getrlimit(kind)
    yield lambda size=before: resource.setrlimit(kind, (size, hard))
    resource.setrlimit(kind, (before, hard))


@cpu_only
@pytest.mark.parametrize(
    "step, size, unwritten",
    [
        (8, 4000, "epoch-0002.keras"),
        pytest.param(None, 4000, "saved_model", marks=pytest.mark.slow),
    ],
)
def test_a_full_disk_costs_nothing_but_time(
    whole, tmp_path, limit, capsys, step, size, unwritten
):
    arguments, parts = RUN, tmp_path / "parts"
    export = keras.Sequential.export

    def limited_export(self, path, **options):
        limit(size)
        export(self, path, **options)

    with pytest.MonkeyPatch.context() as patch:
        if step is None:
            patch.setattr(keras.Sequential, "export", limited_export)
        else:
            at_step(patch, step, lambda model: limit(size))
        code, _ = main(*arguments, f"--workdir={parts}")
    limit()
    assert code == 4
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"tfsam: cannot write {parts}")
    assert unwritten in line
    assert line.endswith(
        "File too large; with more room the same command resumes"
    )
    assert not (parts / "results.json").exists()
    assert not [p for p in parts.rglob(".*") if p.is_file()]
    assert main(*arguments, f"--workdir={parts}")[0] == 0
    assert_same_run(parts, whole)


def test_tensorboard_s_full_disk_is_named(tmp_path, capsys):
    arguments = (*RUN, "--epochs=1", f"--workdir={tmp_path}")

    def fail(self, epoch, logs=None):
        raise tf.errors.ResourceExhaustedError(
            None, None, "{{node}} events; No space left on device"
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keras.callbacks.TensorBoard, "on_epoch_end", fail)
        assert main(*arguments)[0] == 4
    line = capsys.readouterr().err.splitlines()[-1]
    assert f"cannot write {tmp_path / 'tensorboard'}: No space left" in line


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
            *(*RUN, f"--method={method}", "--checkpoint_steps=1"),
            f"--workdir={tmp_path}",
        )
    assert code == 3
    # Weights that are not finite are found before they are saved.
    assert f"is not finite after step {step}" in output.splitlines()[-1]
    assert positions(tmp_path)[0] == divmod(step - 1, 6)
    for _, path in checkpoints.newest_first(tmp_path / "checkpoints"):
        for variable in keras.saving.load_model(path).variables:
            assert np.isfinite(variable.numpy()).all()


@cpu_only
def test_a_clock_that_jumps_changes_nothing(whole, tmp_path, monkeypatch):
    """Durations come from a monotonic clock; nothing else reads a clock."""
    arguments, parts = RUN, tmp_path / "parts"
    rng, clock = random.Random(0), time.time
    monkeypatch.setattr(time, "time", lambda: clock() + rng.uniform(-1e8, 1e8))
    assert main(*arguments, f"--workdir={parts}")[0] == 0
    assert_same_run(parts, whole)
    rows = monitoring.read_history(parts / "history.csv")
    assert all(0 < row["seconds"] < 100 for row in rows)


# Long runs.


@pytest.mark.slow
def test_nothing_is_traced_after_the_first_epoch(tmp_path):
    """Python runs a layer only while a function is traced."""
    calls, counts, call = [], [], keras.layers.Dense.call

    @functools.wraps(call)  # Keras reads the arguments' names.
    def counted(self, *arguments, **options):
        calls.append(self.name)
        return call(self, *arguments, **options)

    def count(self, epoch, logs=None):
        counts.append(len(calls))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keras.layers.Dense, "call", counted)
        patch.setattr(progress.Progress, "on_epoch_end", count)
        code, _ = main(
            *(*RUN, "--method=at_sam", "--steps=1", "--average=ema"),
            *("--limit_train=120", "--batch_size=20", "--epochs=4"),
            *("--validate_every=1", "--validation_images=12"),
            f"--workdir={tmp_path}",
        )
    assert code == 0
    assert counts[0] > 0
    assert counts == [counts[0]] * 4


def resident():
    """Bytes of memory that this process holds."""
    gc.collect()
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


@pytest.mark.slow
def test_memory_stays_flat_over_2000_steps(tmp_path):
    network = tiny(10, (8, 8, 1))
    model = tfsam.RobustModel(network, tfsam.PGD(0.1, steps=1), tfsam.SAM(0.05))
    model.compile(
        tfsam.SGD(0.01),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    rng = np.random.default_rng(0)
    x = rng.random((1600, 8, 8, 1), dtype=np.float32)
    y = rng.integers(0, 10, 1600)
    found = []

    class Measure(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            found.append(resident())

    model.fit(
        *(x, y),
        batch_size=16,
        epochs=24,
        validation_data=(x, y),
        callbacks=[
            tfsam.EMA(0.9, data=x[:200]),
            monitoring.History(tmp_path / "history.csv"),
            checkpoints.Checkpoint(tmp_path / "checkpoints", 100, every=50),
            Measure(),
        ],
        shuffle=False,
        verbose=0,
    )
    assert found[-1] < 1.02 * found[3]  # After 2000 steps more.


@pytest.mark.slow
def test_memory_stays_flat_over_200_chunks(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.random((1840, 8, 8, 1), dtype=np.float32)
    y = rng.integers(0, 10, 1840)
    done, found = itertools.count(1), []

    def measure(plan, entry, chunks, progress):
        def tell(index, verdict, stage=None):
            if next(done) in (30, 230):
                found.append(resident())

        return tell

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages.measure, "teller", measure)
        tfsam.evaluate(
            *(tiny(10, (8, 8, 1)), (x, y), ["pgd"], "linf", [0.01]),
            batch_size=8,
            workdir=tmp_path,
        )
    early, late = found
    assert late < 1.02 * early


# The soak.


def test_draws_of_the_soak_are_by_the_seed():
    spans = {"start": 5.0, "training": 9.0, "evaluation": 7.0}

    def drawn(seed, training=True):
        rng = random.Random(seed)
        return [soak.draw(rng, spans, training) for _ in range(100)]

    found = drawn(0)
    assert found == drawn(0) != drawn(1)
    assert {fault.name for fault in found} == set(soak.FAULTS)
    assert {fault.phase for fault in found} == {"start", "training"}
    assert {f.phase for f in drawn(0, False)} == {"start", "evaluation"}
    assert all(0 <= f.seconds <= spans[f.phase] for f in found)


def test_differences_of_runs_are_found(whole, tmp_path):
    one, other = tmp_path / "run", whole
    shutil.copytree(whole, one)
    assert soak.differences(one, other) == []
    (one / ".123-results.json").write_text("{")
    results = json.loads((one / "results.json").read_text())
    results["natural"]["accuracy"] += 0.05
    (one / "results.json").write_text(json.dumps(results))
    (chunk,) = one.glob("evaluation/00-pgd/linf-*/000000.npz")
    with np.load(chunk) as arrays:
        arrays = dict(arrays)
    arrays["verdict"][0] += 1
    np.savez(chunk, **arrays)
    (one / "best.keras").write_text("")
    (one / "checkpoints" / "epoch-0003.keras").unlink()
    assert soak.differences(one, other) == [
        ".123-results.json is in one alone",
        "best.keras is in one alone",
        f"{chunk.relative_to(one)} differs",
        "results.json differs",
        "the last checkpoint differs",
    ]


@pytest.mark.slow
@cpu_only
def test_soak(tmp_path):
    lines = []
    rows, runs, problems = soak.soak(tmp_path / "soak", 3, 1, lines.append)
    assert problems == []
    assert len(rows) == 3 and runs >= 1
    assert "3 faults" in soak.table(rows, runs, problems)
