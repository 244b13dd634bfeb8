"""A small run, and ways to interrupt it."""

import os
import signal

import pytest
from helpers import main

from tfsam.training import checkpoints
from tfsam.training import monitoring


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
