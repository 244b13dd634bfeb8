"""Signals to a process: deferred, ignored, repeated."""

import ctypes
import os
import signal
import subprocess
import sys
import time

import pytest
from helpers import THREE_EPOCHS
from helpers import main
from helpers import snapshot
from interrupted_runs import terminate

from tfsam.runs import stages
from tfsam.support import signals


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


@pytest.mark.usefixtures("tiny_network")
def test_sigterm_in_the_evaluation_leaves_at_once(tmp_path, monkeypatch):
    """Finished verdicts are kept; a resumed run measures the rest."""
    arguments = (*THREE_EPOCHS, "--epochs=1", "--attacks=pgd,fgsm")
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
