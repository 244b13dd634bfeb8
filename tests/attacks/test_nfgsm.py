"""N-FGSM: its noise, its step, and where it is refused."""

import numpy as np
import pytest
import tensorflow as tf

import tfsam
from tfsam import geometry
from tfsam import run
from tfsam.attacks.base import example_seeds

RNG = np.random.default_rng(0)
W = RNG.normal(size=(6, 3)).astype("float32")
X = RNG.random((20, 6), dtype="float32")
Y = RNG.integers(0, 3, 20)


def linear(x):
    return tf.matmul(x, tf.cast(W, x.dtype))


def slopes(x):
    """Returns the gradient of the cross-entropy in the pixels."""
    shares = tf.nn.softmax(x @ W).numpy()
    return (shares - np.eye(3)[Y]) @ W.T


@pytest.mark.parametrize("bounds", [(0.0, 1.0), None])
def test_without_noise_it_is_fgsm(bounds):
    attack = tfsam.NFGSM(0.1, step_size=0.1, noise=0, bounds=bounds)
    fgsm = tfsam.FGSM(0.1, bounds=bounds)
    np.testing.assert_array_equal(
        attack(linear, X, Y, 0), fgsm(linear, X, Y, 0)
    )


def test_by_hand():
    """Noise clipped to the bounds, a step, and the bounds alone."""
    noise = geometry.random_point(
        example_seeds(3, 20), X.shape, 1.0, "linf", tf.float32
    ).numpy()
    assert np.abs(noise).max() > 0.9
    start = np.clip(X + 0.2 * noise, 0, 1)
    expected = np.clip(start + 0.1 * np.sign(slopes(start)), 0, 1)
    found = tfsam.NFGSM(0.1)(linear, X, Y, seed=3).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert 0.2 < np.abs(found - X).max() < 0.3
    projected = np.clip(found, X - 0.1, X + 0.1)
    assert np.abs(found - projected).max() > 0.1


def test_it_keeps_the_rest_of_the_contract():
    tfsam.attacks.check("nfgsm")
    with pytest.raises(ValueError, match="norm must be linf for NFGSM"):
        tfsam.NFGSM(0.1, "l2")
    with pytest.raises(ValueError, match="Received: noise=-1"):
        tfsam.NFGSM(0.1, noise=-1)


@pytest.mark.parametrize(
    "attack", ["nfgsm", "nfgsm:noise=1", tfsam.NFGSM, ("mine", tfsam.NFGSM)]
)
def test_an_evaluation_refuses_it(attack):
    with pytest.raises(ValueError, match=r"is for training.*Received: attack="):
        tfsam.evaluate(linear, (X, Y), [attack], "linf", [0.1])


def test_the_command_refuses_it_before_training(tmp_path, capsys):
    flags = ("--attacks=nfgsm", f"--workdir={tmp_path / 'run'}")
    assert run.main([*flags]) == 2
    assert "the attack nfgsm is for training" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
