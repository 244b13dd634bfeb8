"""Lines of `Progress`: the attack, kinds of accuracies, and the time left."""

import time

import keras
import numpy as np
import pytest

import tfsam
from tfsam.training.progress import Progress


def said(monkeypatch, seconds=(), epochs=2, **parts):
    """Lines of a training of two steps an epoch, on a clock of its own."""
    clock, lines = [0.0], []
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    progress = Progress(lines.append, 2, epochs)
    network = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    progress.set_model(tfsam.RobustModel(network, **parts))
    steps = iter(seconds or [1.0] * 2 * epochs)
    progress.on_train_begin()
    for epoch in range(epochs):
        progress.on_epoch_begin(epoch)
        for batch in range(2):
            clock[0] += next(steps)
            progress.on_train_batch_end(batch, {"accuracy": 0.5})
        logs = {"accuracy": 0.5, "loss": 1, "val_accuracy": np.nan}
        progress.on_epoch_end(epoch, logs | {"val_robust_accuracy": 0.25})
    return lines


def test_the_time_left_does_not_include_tracing(monkeypatch):
    lines = said(monkeypatch, [100, 2, 2, 2])
    assert lines == [
        "epoch 1/2 step 1/2: accuracy 0.5000",
        "epoch 1/2 done: accuracy 0.5000, loss 1.0000, "
        "val_robust_accuracy 0.2500, 4 s left",
        "epoch 2/2 done: accuracy 0.5000, loss 1.0000, "
        "val_robust_accuracy 0.2500, 0 s left",
    ]


@pytest.mark.parametrize(
    ("attack", "objective", "first", "kind"),
    [
        (tfsam.PGD(8 / 255), None, "PGD, linf, epsilon 8/255", "under attack"),
        (tfsam.FGSM(0.1), None, "FGSM, linf, epsilon 0.1", "under attack"),
        (tfsam.PGD(0.3, "l2"), tfsam.TRADES(), "PGD, l2, epsilon 0.3", "clean"),
        (
            tfsam.PGD(2, bounds=(0, 255)),
            None,
            "linf, epsilon 2",
            "under attack",
        ),
    ],
)
def test_lines_name_the_attack_and_the_kind_of_accuracies(
    monkeypatch, attack, objective, first, kind
):
    lines = said(monkeypatch, perturb_inputs=attack, objective=objective)
    assert lines[0].startswith("trains under attack: ")
    assert lines[0].endswith(first)
    assert f"accuracy 0.5000 ({kind}), loss 1.0000," in lines[1]
    assert "val_robust_accuracy 0.2500, " in lines[1]
