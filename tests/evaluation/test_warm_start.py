"""A warm start is for attacks that can start from an image."""

import warnings

import numpy as np
import pytest

import tfsam
from tfsam import run

WEIGHTS = np.random.default_rng(0).normal(size=(6, 3)).astype("float32")
X = np.random.default_rng(1).random((8, 6)).astype("float32")
Y = np.argmax(X @ WEIGHTS, 1)


def measured(attacks, **settings):
    return tfsam.evaluate(
        lambda x: x @ WEIGHTS,
        (X, Y),
        attacks,
        epsilons=[0.01, 0.02],
        warm_start=True,
        **settings,
    )


def cold_factory(epsilon, norm, bounds):
    return lambda logits_fn, x, y, seed: x


def warm_factory(epsilon, norm, bounds):
    return lambda logits_fn, x, y, seed, start=None: x


@pytest.mark.parametrize(
    "attacks", [["fgsm"], ["fgsm", "apgd_ce"], [cold_factory], "autoattack"]
)
def test_a_warm_start_that_no_attack_takes_is_refused(attacks):
    with pytest.raises(ValueError, match="warm_start needs an attack"):
        measured(attacks)


def test_attacks_that_start_cold_are_named():
    with pytest.warns(UserWarning, match="fgsm, cold_factory cannot start"):
        measured(["pgd", "fgsm", cold_factory])


@pytest.mark.parametrize("attacks", [["pgd"], [warm_factory], []])
def test_attacks_that_can_start_are_not_named(attacks):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        measured(attacks)


def test_an_attack_that_cannot_be_made_is_its_row_s_matter():
    def broken(epsilon, norm, bounds):
        raise RuntimeError("no")

    found = measured([broken])
    assert all("no" in row["error"] for row in found["robust"])


@pytest.mark.parametrize(
    ("given", "code"), [("fgsm,autoattack", 2), ("square", 2)]
)
def test_the_command_refuses_it_before_it_trains(tmp_path, capsys, given, code):
    found = run.main(
        [
            *(f"--attacks={given}", "--warm_start"),
            f"--workdir={tmp_path / 'run'}",
        ]
    )
    assert found == code
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("tfsam: warm_start needs an attack")
    assert not (tmp_path / "run").exists()
