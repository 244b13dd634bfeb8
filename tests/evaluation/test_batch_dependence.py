"""Whether the logits of random models depend on the rest of their batch."""

import itertools

import numpy as np
import pytest
import tensorflow as tf

from tfsam.evaluation import batch_dependence
from tfsam.evaluation import draws
from tfsam.evaluation import model_probes
from tfsam.evaluation import red_flags
from tfsam.models.loading import load_logits

RNG = np.random.default_rng(0)
X = RNG.random((16, 64), dtype="float32")
W = RNG.normal(size=(64, 10)).astype("float32")

# Student's t with two degrees of freedom has no variance.
NOISE = {
    "of its own for each logit": lambda rng: rng.standard_t(2, (16, 10)),
    "shared by all rows": lambda rng: rng.standard_t(2, 10),
}


def probed(model, x=X):
    return model_probes.probe_outputs(load_logits(model).function, x)


def noisy(noise, seed, logits=lambda x: x @ W, scale=1.0):
    rng = np.random.default_rng(seed)
    return lambda x: logits(x.numpy()) + np.float32(scale * noise(rng))


@pytest.mark.parametrize("noise", NOISE.values(), ids=list(NOISE))
def test_noise_with_heavy_tails_is_no_dependence(noise):
    found = [probed(noisy(noise, seed)) for seed in range(50)]
    assert all(each["randomness"] > each["tolerance"] for each in found)
    assert not any(map(red_flags.depends_on_batch, found))
    # The largest difference, to which no test was applied, misleads.
    ratios = [each["batch_dependence"] / each["randomness"] for each in found]
    assert max(ratios) > 3


def of_the_batch(x):
    return (x - x.mean()) @ W


def by_rank(x):
    """The logits of an example depend on which ones are brighter."""
    means = x.mean(axis=1)
    return x @ W + (means[:, None] > np.median(means))


HIDDEN = {"the mean": of_the_batch, "the median": by_rank}


@pytest.mark.parametrize("noise", NOISE.values(), ids=list(NOISE))
@pytest.mark.parametrize("logits", HIDDEN.values(), ids=list(HIDDEN))
def test_statistics_of_the_batch_are_found_in_noise(logits, noise):
    x = X * np.linspace(0.3, 1, 16, dtype="float32")[:, None]
    for seed in range(5):
        found = probed(noisy(noise, seed, logits, 0.1), x)
        assert red_flags.depends_on_batch(found)


def test_the_p_value_is_that_of_all_divisions():
    first, second = RNG.normal(size=(2, 3, 4, 2))
    second += 0.5
    both = np.concatenate([first, second]).reshape(6, -1)
    ranks = both.argsort(axis=0).argsort(axis=0)

    def statistic(half):
        rest = [call for call in range(6) if call not in half]
        apart = ranks[list(half)].sum(axis=0) - ranks[rest].sum(axis=0)
        return (apart**2).sum()

    found = [statistic(half) for half in itertools.combinations(range(6), 3)]
    expected = np.mean([each >= found[0] for each in found])
    assert 0 < expected < 1
    assert batch_dependence.p_value_of(first, second) == expected


def test_p_values_of_equal_distributions_are_seldom_small():
    """No more of them are below a level than that level."""
    rng = np.random.default_rng(1)
    calls = rng.standard_t(2, (400, 2, 4, 6))
    found = np.array([batch_dependence.p_value_of(*each) for each in calls])
    for level in (0.1, 0.3, 0.5):
        assert abs((found <= level).mean() - level) < 0.08
    assert found.min() >= 1 / 35


def test_a_shift_that_rounding_explains_is_none():
    first = np.arange(8.0)[:, None]
    assert batch_dependence.p_value_of(first, first + 100) == 1 / 6435
    assert batch_dependence.p_value_of(first, first + 100, 101.0) == 1
    broken = np.where(first > 6, np.nan, np.inf)
    assert batch_dependence.p_value_of(first, broken) == 1 / 6435


def test_draws_of_one_key_tell_below_the_noise():
    """The test does not find a shift that is far below the noise."""

    def model(x):
        shift = tf.reduce_mean(x) * tf.ones(10)
        return tf.matmul(x, W) + shift + tf.random.normal([len(x), 10])

    found = probed(model)
    assert found["batch_p_value"] > batch_dependence.LEVEL
    logits = load_logits(model)
    together = draws.planned(None, logits, X).together
    assert together == 0
    assert red_flags.depends_on_batch(found | {"together": together})


def test_records_without_the_test_have_the_older_rule():
    older = {"randomness": 1.0, "tolerance": 0.1, "batch_dependence": 2.9}
    assert not red_flags.depends_on_batch(older)
    assert red_flags.depends_on_batch(older | {"batch_dependence": 3.1})
    assert not red_flags.depends_on_batch({"randomness": 0.0})
