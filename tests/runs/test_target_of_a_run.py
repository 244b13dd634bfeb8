"""Runs whose attacks aim at a class, --target."""

import numpy as np
import pytest
from helpers import assert_refused
from helpers import main
from helpers import network
from helpers import read_json

import tfsam
from tfsam.data import load
from tfsam.runs.targets import without_target


def test_the_images_of_the_target_are_left_out():
    images = load("digits", limit_train=20, limit_test=40)
    kept = without_target(images, 3)
    assert 3 not in kept.y_test and 3 in images.y_test
    others = images.x_test[images.y_test != 3]
    np.testing.assert_array_equal(kept.x_test, others)
    left_out = len(images.x_test) - len(others)
    note = f"target 3, 3: its {left_out} test images are left out"
    assert kept.notes == (*images.notes, note)
    assert without_target(images, None) is images
    only = images._replace(
        x_test=images.x_test[images.y_test == 3],
        y_test=images.y_test[images.y_test == 3],
    )
    with pytest.raises(ValueError, match="test images of other classes"):
        without_target(only, 3)
    with pytest.raises(ValueError, match="a class number below 10"):
        without_target(images, 10)


def test_a_run_aims_at_the_class(tmp_path, short_runs):
    network("standard").save(tmp_path / "model.keras")
    arguments = (
        f"--evaluate={tmp_path / 'model.keras'}",
        *("--dataset=digits", "--limit_test=40", "--attacks=pgd"),
        *("--attack_steps=3", "--linf_epsilons=0.1", "--l2_epsilons="),
    )
    aimed = tmp_path / "aimed"
    code, output = main(*arguments, "--target=3", f"--workdir={aimed}")
    assert code == 0
    assert "target 3, 3: its 4 test images are left out" in output
    (row,) = read_json(aimed / "results.json")["robust"]
    assert (row["target"], row["n"]) == (3, 36)
    assert 0 < row["accuracy"] < 1
    page = tmp_path / "page.html"
    tfsam.page.write([aimed], page)
    note = "towards class 3: the share that does not reach it"
    assert f"worst case ({note})" in page.read_text()


def test_a_target_is_no_entry_of_a_leaderboard(capsys):
    assert_refused(
        capsys,
        *("--attacks=autoattack", "--robustbench=entry.json", "--target=1"),
        parts=["any wrong class", "Received: target=1"],
    )
