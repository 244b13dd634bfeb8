"""The comparison in l1: broken examples, after rounding is undone."""

import numpy as np
import tensorflow as tf

from experiments import command
from experiments import compare_l1


def test_images_are_moved_back_into_the_ball():
    x = np.full((3, 4, 1, 1), 0.5, "float32")
    found = x.copy()
    found[0, 0], found[1, 0], found[2, 0] = 0.75, 0.7501, 1.5
    inside, outside = compare_l1.within(x, found, 0.25)
    assert outside == 2
    np.testing.assert_array_equal(inside[0], found[0])
    np.testing.assert_allclose(inside[1:, 0], 0.75, rtol=1e-6)
    np.testing.assert_array_equal(inside[:, 1:], x[:, 1:])


def test_a_row_says_who_broke_what(monkeypatch, capsys, tmp_path):
    x = np.linspace(0, 1, 8, dtype="float32").reshape(4, 2, 1, 1)

    def model(x):
        return tf.stack([tf.zeros(4), 1.0 - tf.reduce_sum(x, [1, 2, 3])], 1)

    y = np.argmax(model(x), axis=1)  # All are right, and wrong elsewhere.
    other = x[::-1].copy()

    def broken(*examples):
        found = x.copy()
        found[list(examples)] = other[list(examples)]
        return lambda *arguments: found

    monkeypatch.setattr(compare_l1, "_cases", lambda: [("chain", model, x, y)])
    monkeypatch.setattr(compare_l1, "_ours", broken(0, 1))
    monkeypatch.setattr(compare_l1, "_theirs", broken(1))
    arguments = ["--epsilons=3", f"--save={tmp_path}/found.npz"]
    assert command.run(compare_l1.main, compare_l1.FLAGS, arguments) == 0
    header, rule, row = capsys.readouterr().out.splitlines()
    assert header.count("|") == rule.count("|") == row.count("|")
    cells = [cell.strip() for cell in row.split("|")[1:-1]]
    assert cells[:3] == ["chain", "autoattack", "3"]
    assert cells[3:8] == ["0.500", "0.750", "1", "0", "0"]
    saved = np.load(tmp_path / "found.npz")["chain/3/autoattack"]
    np.testing.assert_array_equal(saved, [True, False, True, True])
