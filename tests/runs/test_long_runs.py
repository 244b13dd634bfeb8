"""Long runs: nothing is traced again, and memory stays flat."""

import functools
import gc
import itertools
import pathlib
import resource

import keras
import numpy as np
import pytest
from helpers import THREE_EPOCHS
from helpers import main
from helpers import tiny

import tfsam
from tfsam.runs import stages
from tfsam.training import checkpoints
from tfsam.training import monitoring
from tfsam.training import progress

pytestmark = pytest.mark.usefixtures("tiny_network")


@pytest.mark.slow
def test_nothing_is_traced_after_the_first_epoch(tmp_path):
    """Python runs a layer only while a function is traced."""
    calls, counts, call = [], [], keras.layers.Dense.call

    @functools.wraps(call)  # Keras reads the arguments' names.
    def counted(self, *arguments, **options):
        calls.append(self.name)
        return call(self, *arguments, **options)

    def count(self, epoch, logs=None):
        counts.append(len(calls))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keras.layers.Dense, "call", counted)
        patch.setattr(progress.Progress, "on_epoch_end", count)
        code, _ = main(
            *(*THREE_EPOCHS, "--method=at_sam", "--steps=1", "--average=ema"),
            *("--limit_train=120", "--batch_size=20", "--epochs=4"),
            *("--validate_every=1", "--validation_images=12"),
            f"--workdir={tmp_path}",
        )
    assert code == 0
    assert counts[0] > 0
    assert counts == [counts[0]] * 4


def resident():
    """Bytes of memory that this process holds."""
    gc.collect()
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


@pytest.mark.slow
def test_memory_stays_flat_over_2000_steps(tmp_path):
    network = tiny(10, (8, 8, 1))
    model = tfsam.RobustModel(network, tfsam.PGD(0.1, steps=1), tfsam.SAM(0.05))
    model.compile(
        tfsam.SGD(0.01),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    rng = np.random.default_rng(0)
    x = rng.random((1600, 8, 8, 1), dtype=np.float32)
    y = rng.integers(0, 10, 1600)
    found = []

    class Measure(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            found.append(resident())

    model.fit(
        *(x, y),
        batch_size=16,
        epochs=24,
        validation_data=(x, y),
        callbacks=[
            tfsam.EMA(0.9, data=x[:200]),
            monitoring.History(tmp_path / "history.csv"),
            checkpoints.Checkpoint(tmp_path / "checkpoints", 100, every=50),
            Measure(),
        ],
        shuffle=False,
        verbose=0,
    )
    assert found[-1] < 1.02 * found[3]  # After 2000 steps more.


@pytest.mark.slow
def test_memory_stays_flat_over_200_chunks(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.random((1840, 8, 8, 1), dtype=np.float32)
    y = rng.integers(0, 10, 1840)
    done, found = itertools.count(1), []

    def measure(*arguments):
        def tell(index, verdict, stage=None):
            if next(done) in (30, 230):
                found.append(resident())

        return tell

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages.measure, "teller", measure)
        tfsam.evaluate(
            *(tiny(10, (8, 8, 1)), (x, y), ["pgd"], "linf", [0.01]),
            batch_size=8,
            workdir=tmp_path,
        )
    early, late = found
    assert late < 1.02 * early
