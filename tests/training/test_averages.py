"""Averages of the weights: closed forms, resuming, and errors."""

import keras
import numpy as np
import pytest
from averaged_models import Block
from averaged_models import Epochs
from averaged_models import Steps
from averaged_models import X
from averaged_models import assert_close
from averaged_models import assert_equal
from averaged_models import compiled
from averaged_models import differ
from averaged_models import ema
from averaged_models import fit
from averaged_models import network
from averaged_models import values
from helpers import slow

from tfsam.training.averages import EMA
from tfsam.training.averages import SWA
from tfsam.training.checkpoints import Checkpoint


def test_ema_is_the_closed_form():
    """The sum of (1 - m) m^(T - t) w_t, and m^T w_0."""
    steps, m = Steps(), 0.7
    model = compiled(network(batch_norm=False))
    fit(model, steps, EMA(m, warmup=False))
    count = len(steps.seen) - 1
    shares = [m**count] + [
        (1 - m) * m ** (count - t) for t in range(1, count + 1)
    ]
    expected = [
        sum(share * w for share, w in zip(shares, weights, strict=True))
        for weights in zip(*steps.seen, strict=True)
    ]
    assert count == 9 and sum(shares) == pytest.approx(1)
    assert_close(values(model.trainable_variables), expected)
    assert differ(expected, steps.seen[-1])


def test_ema_warms_up():
    steps, average = Steps(), EMA(0.3)
    fit(compiled(network(batch_norm=False)), steps, average)
    expected = steps.seen[0]
    for t, weights in enumerate(steps.seen[1:]):
        m = min(0.3, (1 + t) / (10 + t))
        expected = [
            m * a + (1 - m) * w for a, w in zip(expected, weights, strict=True)
        ]
    assert_close([a.numpy() for a in average.average], expected)
    assert average.count == 9


def test_ema_at_the_ends():
    now, first = EMA(0.0), EMA(1.0, warmup=False)
    steps, epochs = Steps(), Epochs()
    model = compiled(network(batch_norm=False))
    fit(model, now, first, steps, epochs, validation=False)
    assert_equal([a.numpy() for a in now.average], epochs.trainable()[-1])
    assert_close([a.numpy() for a in first.average], steps.seen[0])


def test_weights_that_never_change_are_their_average():
    averages = [EMA(0.9), EMA(0.999, warmup=False), SWA(0)]
    model = compiled(network(batch_norm=False), learning_rate=0.0)
    before = values(model.variables)
    fit(model, *averages, validation=False)
    for average in averages:
        assert_equal([a.numpy() for a in average.average], before)


def test_half_precision_is_averaged_in_single():
    """In float16 0.9995 is 1, and the average would never move."""
    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(3, dtype="float16")]
    )
    average = EMA(0.9999, warmup=False)
    fit(compiled(model), average, epochs=1)
    assert {a.dtype.name for a in average.average} == {"float32"}
    assert model.trainable_variables[0].dtype == "float16"


@pytest.mark.parametrize(
    ("start", "every", "chosen", "validation"),
    [slow(0, 1, [0, 1, 2, 3], False), (1, 2, [1, 3], True)],
)
def test_swa_is_the_mean_of_its_snapshots(start, every, chosen, validation):
    average, epochs = SWA(start, every=every), Epochs()
    model = compiled(network(batch_norm=False))
    fit(model, average, epochs, epochs=4, validation=validation)
    snapshots = [epochs.trainable()[i] for i in chosen]
    expected = [np.mean(w, axis=0) for w in zip(*snapshots, strict=True)]
    assert average.count == len(chosen)
    assert_close(values(model.trainable_variables), expected)


def test_swa_before_its_first_snapshot_leaves_the_network_alone():
    before, after = Epochs(), Epochs()
    model = compiled(network())
    with pytest.warns(UserWarning, match=r"no snapshot.* start_epoch=9"):
        fit(model, before, SWA(9, data=X), after)
    for one, other in zip(before.seen, after.seen, strict=True):
        assert_equal(one, other)
    assert_equal(values(model.variables), after.seen[-1])


def test_a_second_fit_starts_a_new_average():
    steps, average = Steps(), EMA(0.8, warmup=False)
    model = compiled(network(batch_norm=False))
    fit(model, average)
    fit(model, average, steps, epochs=1)
    assert_close(values(model.trainable_variables), ema(steps.seen, 0.8))


# Killed and resumed.


@pytest.mark.parametrize("kind", [EMA, slow(SWA)])
def test_killed_and_resumed_ends_the_same(kind, tmp_path):
    def average():
        argument = 0.9 if kind is EMA else 1
        return kind(argument, data=X, folder=tmp_path / "averages")

    # As if it had died with the average of epoch 3 written, its checkpoint not.
    whole = compiled(network())
    fit(whole, average(), Checkpoint(tmp_path))
    (tmp_path / "epoch-0003.keras").unlink()
    resumed = keras.saving.load_model(
        tmp_path / "epoch-0002.keras", custom_objects={"Block": Block}
    )
    assert differ(values(resumed.variables), values(whole.variables))
    fit(resumed, average(), initial_epoch=2)
    assert_equal(values(resumed.variables), values(whole.variables))


def test_the_two_newest_files_are_kept(tmp_path):
    (tmp_path / "average-0009.npz").touch()  # Of a training before.
    (tmp_path / "average-best.npz").touch()
    model = compiled(network(batch_norm=False))
    fit(model, SWA(2, folder=tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "average-0002.npz",
        "average-0003.npz",
        "average-best.npz",
    ]


def test_a_missing_file_is_told(tmp_path):
    model = compiled(network(batch_norm=False))
    with pytest.raises(ValueError, match=r"average-0001\.npz"):
        fit(model, EMA(folder=tmp_path), initial_epoch=1)


def test_one_average_at_a_time():
    """After a failed fit, the next one may have its own average."""
    model = compiled(network(batch_norm=False))
    with pytest.raises(ValueError, match="takes one average"):
        fit(model, EMA(), EMA())
    average = EMA()
    fit(model, average)
    assert average.count == 9


def test_statistics_that_stay_behind_are_warned_of():
    with pytest.warns(UserWarning, match="data= to measure"):
        fit(compiled(network()), EMA(), epochs=1)


def test_what_fit_refuses():
    unbuilt = compiled(keras.Sequential([keras.layers.Dense(3)]))
    with pytest.raises(ValueError, match="must be built"):
        fit(unbuilt, SWA(0))
    several = compiled(
        network(batch_norm=False), run_eagerly=False, steps_per_execution=2
    )
    with pytest.raises(ValueError, match="steps_per_execution"):
        fit(several, EMA())
    average = SWA(0)
    fit(several, average, epochs=2)
    assert average.count == 2


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        (EMA, {"momentum": 1.5}),
        (EMA, {"momentum": float("nan")}),
        (EMA, {"data": X, "attack": 0.1}),
        (SWA, {"start_epoch": -1}),
        (SWA, {"start_epoch": 0.5}),
        (SWA, {"start_epoch": 0, "every": 0}),
    ],
)
def test_bad_arguments(kind, arguments):
    with pytest.raises(ValueError, match="Received"):
        kind(**arguments)
