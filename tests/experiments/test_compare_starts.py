"""The comparison with the reference from equal starts."""

import numpy as np
import tensorflow as tf

from experiments import command
from experiments import compare_starts
from tfsam.attacks.autoattack.apgd import APGD


def test_the_starts_are_those_of_the_search():
    x = np.full((3, 4), 0.5, "float32")
    points = []

    def logits(x):
        points.append(np.array(x))
        return tf.stack([tf.ones(3), tf.reduce_sum(x, 1) / 1000], 1)

    attack = APGD(0.25, steps=1)
    seeds = compare_starts.example_seeds(7, 3)
    attack.perturb(logits, tf.constant(x), tf.zeros(3, tf.int32), seeds)
    starts = compare_starts._starts(attack, x, 7)
    assert np.abs(starts - x).max() > 0.2
    np.testing.assert_array_equal(points[0], starts)


def test_a_row_counts_the_images_that_differ(monkeypatch, capsys):
    right = np.array([True, True, True, False])
    logits = np.stack([right, ~right], 1)
    left = {
        "ours": np.array([True, True, False, True]),
        "equal": np.array([True, False, True, True]),
        "own": np.array([True, True, True, True]),
    }
    x, y = np.zeros((4, 8, 8, 1), "float32"), np.zeros(4, int)
    module = compare_starts
    monkeypatch.setattr(module.reference, "digits", lambda count: (x, y))
    monkeypatch.setattr(
        module.reference, "digits_cnn", lambda *_: lambda x: logits
    )
    monkeypatch.setattr(module, "_ours", lambda *_: left["ours"])
    monkeypatch.setattr(
        module, "_theirs", lambda *a: left["own" if a[-1] is None else "equal"]
    )
    assert command.run(module.main, module.FLAGS, ["--seeds=1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2] == "| cross_entropy | 0 | 2 | 2 | 2 | 3 |"
    assert lines[3] == "| cross_entropy | mean | 2.0 | 2.0 | 2.0 | 3.0 |"
    assert lines[4].startswith("| dlr | 0 |")
