"""Tests that an epsilon in other units than the pixels is rejected."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import settings_of
from helpers import tiny

import tfsam
from tfsam import run
from tfsam.support.validators import check_budget

X = np.random.default_rng(0).uniform(size=(6, 4, 4, 1)).astype("float32")
Y = np.arange(6) % 3
W = np.random.default_rng(1).normal(size=(16, 3)).astype("float32")
ASKED = "units of the pixels: 8/255"


def linear(x):
    return tf.matmul(tf.reshape(x, [-1, 16]), tf.cast(W, x.dtype))


def train(attack):
    tfsam.RobustModel(tiny(3, (4, 4, 1)), perturb_inputs=attack)


def validate(attack):
    tfsam.training.robust_validation.RobustValidation((X, Y), attack)


def stop(attack):
    tfsam.training.collapse.StopAtCollapse((X, Y), attack)


def apply(attack):
    attack(linear, X, Y, 0)


@pytest.mark.parametrize("use", [train, validate, stop, apply])
def test_an_attack_of_epsilon_8_is_refused_where_it_is_used(use):
    with pytest.raises(ValueError, match=ASKED) as error:
        use(tfsam.PGD(8, steps=1))
    assert "Received: epsilon=8" in str(error.value)
    use(tfsam.PGD(8, "l2", steps=1))
    use(tfsam.PGD(1.0, steps=1))


@pytest.mark.parametrize("name", ["fgsm", "square", "noise_linf", "autoattack"])
def test_whatever_the_attack(name):
    with pytest.raises(ValueError, match=ASKED):
        apply(tfsam.attacks.get(name, epsilon=8))


def test_an_evaluation_refuses_it_before_it_attacks():
    with pytest.raises(ValueError, match=ASKED):
        tfsam.evaluate(linear, (X, Y), ["pgd"], "linf", [8 / 255, 8])
    with pytest.raises(ValueError, match=r"Received: epsilon=1\.01"):
        tfsam.evaluate(linear, (X, Y), [], "linf", [1.01])
    tfsam.evaluate(linear, (X, Y), [], "linf", [1.0])
    tfsam.evaluate(linear, (X, Y), [], "l2", [8])
    tfsam.evaluate(linear, (X, Y), [], "linf", [8], bounds=None)
    tfsam.evaluate(linear, (255 * X, Y), [], "linf", [8], bounds=(0, 255))


@pytest.mark.parametrize(
    "bounds",
    [(0, 1), (-1, 1), (0, 255), (-0.1, 1.2), (0.1, 0.3), (-2.12, 2.64)],
)
def test_exactly_the_width_is_allowed(bounds):
    low, high = np.float32(bounds)
    check_budget(high - low, "linf", bounds)
    check_budget(bounds[1] - bounds[0], "linf", bounds)
    with pytest.raises(ValueError, match="units of the pixels"):
        check_budget(1.01 * (bounds[1] - bounds[0]), "linf", bounds)
    check_budget(1000, "l2", bounds)


def test_the_guess_is_in_the_units_of_the_bounds():
    with pytest.raises(ValueError, match=r"pixels: 0\.0627451\?"):
        check_budget(8, "linf", (-1.0, 1.0))


@pytest.mark.parametrize(
    "flags",
    [
        ["--method=at", "--epsilon=8"],
        ["--method=fgsm_at", "--epsilon=8"],
        ["--method=trades", "--epsilon=8"],
        ["--linf_epsilons=1/255,8"],
        ["--evaluate=model.keras", "--linf_epsilons=8"],
    ],
)
def test_the_command_line_says_so_in_one_line(flags, capsys, tmp_path):
    assert run.main([*flags, f"--workdir={tmp_path / 'run'}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert ASKED in line and "Received: " in line
    assert not (tmp_path / "run").exists()


def test_the_command_line_takes_l2_and_the_whole_width():
    settings_of("--method=at", "--norm=l2", "--epsilon=8")
    settings_of("--method=at", "--epsilon=1", "--l2_epsilons=8")
    settings_of("--linf_epsilons=255/255")


@pytest.mark.slow
def test_a_warm_up_of_epsilon_still_trains():
    model = tfsam.RobustModel(
        tiny(3, (4, 4, 1)), tfsam.PGD(1.0, steps=1), epsilon_warmup_steps=2
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss)
    model.fit(X, Y, batch_size=3, verbose=0)
