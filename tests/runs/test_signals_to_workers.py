"""A signal to one worker of several stops all of them, also before training."""

import os
import signal

import pytest
from helpers import settings_of

from tfsam import run
from tfsam.runs import stages
from tfsam.runs import workdirs
from tfsam.support import devices
from tfsam.support import signals


@pytest.fixture
def cluster(monkeypatch):
    """This process as one of two workers; a dict has the other's numbers."""
    other = {"asked": [False, False], "agreed": False}

    def anywhere(strategy, facts):
        other["told"] = facts
        return [a or b for a, b in zip(facts, other["asked"], strict=True)]

    def agree(strategy, what):
        other["agreed"] = True

    monkeypatch.setattr(devices, "cluster_size", lambda: 2)
    monkeypatch.setattr(devices, "workers", lambda strategy: 2)
    monkeypatch.setattr(devices, "anywhere", anywhere)
    monkeypatch.setattr(devices, "check_agreement", agree)
    return other


@pytest.fixture
def prepared(monkeypatch):
    """A function that is called while the run's inputs are prepared."""

    def during(function):
        def prepare(config):
            function()
            return stages.Inputs(None, None, None, None)

        monkeypatch.setattr(stages, "prepare", prepare)

    return during


@pytest.mark.parametrize("signum", signals.SIGNALS)
def test_a_signal_amid_preparation_is_told_to_the_others(
    cluster, prepared, tmp_path, signum
):
    prepared(lambda: os.kill(os.getpid(), signum))
    assert run.main([f"--workdir={tmp_path / 'run'}"]) == 128 + signum
    assert cluster["agreed"]  # It did not leave the other waiting.
    assert cluster["told"] == [signum == other for other in signals.SIGNALS]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("signum", signals.SIGNALS)
def test_a_signal_to_another_worker_stops_this_one(
    cluster, prepared, tmp_path, signum
):
    prepared(lambda: None)
    cluster["asked"] = [signum == other for other in signals.SIGNALS]
    assert run.main([f"--workdir={tmp_path / 'run'}"]) == 128 + signum
    assert not (tmp_path / "run").exists()


def test_a_signal_between_agreement_and_training_waits_for_training(cluster):
    stop = signals.Stop()
    stop.hold()
    workdirs.agree(settings_of("--workdir=nowhere"), None, stop)
    stop.ask(signal.SIGTERM)  # Does not raise.
    with (
        pytest.raises(signals.Stopped, match="SIGTERM"),
        stop.deferred(),
    ):
        assert devices.asked_to_stop(None, stop) == signal.SIGTERM
    with pytest.raises(signals.Stopped):
        stop.ask(signal.SIGTERM)


def test_one_process_stops_at_once(prepared, tmp_path, monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    reached = []

    def asked():
        os.kill(os.getpid(), signal.SIGTERM)
        reached.append(True)

    prepared(asked)
    assert run.main([f"--workdir={tmp_path / 'run'}"]) == 128 + signal.SIGTERM
    assert not reached
