"""The comparison with the reference: whose images break what."""

import numpy as np
import pytest
import tensorflow as tf

from experiments import command
from experiments import compare_reference
from tfsam.attacks.autoattack import AutoAttack
from tfsam.attacks.autoattack.versions import AutoAttackPlus


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_images_are_moved_back_into_the_ball(norm):
    x = np.full((3, 4, 1, 1), 0.5, "float32")
    found = x.copy()
    found[0, 0], found[1, 0], found[2, 0] = 0.75, 0.7501, 1.5
    inside, outside = compare_reference.within(x, found, 0.25, norm)
    assert outside == 2
    np.testing.assert_array_equal(inside[0], found[0])
    np.testing.assert_allclose(inside[1:, 0], 0.75, rtol=1e-6)
    np.testing.assert_array_equal(inside[:, 1:], x[:, 1:])


def test_attacks_are_versions_or_stages_with_the_options_of_their_version():
    def made(name, norm="linf"):
        return compare_reference.ours_of(name, norm, 0.1)

    assert type(made("autoattack")) is AutoAttack
    assert type(made("autoattack_plus")) is AutoAttackPlus
    assert made("autoattack_rand").stages[1][1].eot == 20
    assert (made("apgd_ce").restarts, made("apgd_ce", "l1").restarts) == (1, 5)
    assert made("fab").restarts == made("apgd_dlr").restarts == 5
    assert made("fab_t").targets == made("apgd_t").targets == 9
    with pytest.raises(ValueError, match="Received: attack=pgd"):
        made("pgd")


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

    case = "chain", model, x, y
    monkeypatch.setattr(compare_reference, "_cases", lambda: [case])
    monkeypatch.setattr(compare_reference, "_ours", broken(0, 1))
    monkeypatch.setattr(compare_reference, "_theirs", broken(1))
    flags = ["--norm=l1", "--epsilons=3", f"--save={tmp_path}/found.npz"]
    main = compare_reference.main
    assert command.run(main, compare_reference.FLAGS, flags) == 0
    header, rule, row = capsys.readouterr().out.splitlines()
    assert header.count("|") == rule.count("|") == row.count("|")
    cells = [cell.strip() for cell in row.split("|")[1:-1]]
    assert cells[:3] == ["chain", "autoattack", "l1 3"]
    assert cells[3:8] == ["0.500", "0.750", "1", "0", "0"]
    saved = np.load(tmp_path / "found.npz")["chain/3/autoattack"]
    np.testing.assert_array_equal(saved, [True, False, True, True])
