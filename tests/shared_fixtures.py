"""One TensorFlow for all tests, with three logical CPU devices."""

import configparser
import functools
import gc
import json
import os
import pathlib
import re
import signal

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import hypothesis
import keras
import matplotlib
import pytest
import sklearn.datasets
import tensorflow as tf
from helpers import THREE_EPOCHS
from helpers import main
from helpers import make_runs_tiny
from helpers import shorten_runs
from helpers import tiny
from tensorflow.python.framework import ops

from tfsam import registries

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0],
    [tf.config.LogicalDeviceConfiguration()] * 3,
)

# Examples of a property: a few by default, many in the slow tests.
hypothesis.settings.register_profile(
    "default", max_examples=25, deadline=None, derandomize=True
)
hypothesis.settings.register_profile("slow", max_examples=500, deadline=None)


def pytest_configure(config):
    """Handles SIGINT, and chooses the number of examples by -m."""
    # A job in the background of a shell ignores SIGINT, and so would its tests.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    slow = re.search(r"(?<!not )\bslow", config.option.markexpr)
    hypothesis.settings.load_profile("slow" if slow else "default")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """Counts properties as slow tests, too, where they have many examples."""
    if hypothesis.settings.get_current_profile_name() != "slow":
        return
    for item in items:
        if getattr(getattr(item, "obj", None), "is_hypothesis_test", False):
            item.add_marker("slow")


def _sweep():
    """Collects garbage, and hides the rest from later collections."""
    gc.collect()
    gc.freeze()


def pytest_collection_finish(session):
    """Hides imported objects from the garbage collector.

    A collection otherwise looks at all of TensorFlow's objects each time. Made
    for every 700 new objects, as is usual, collections take a tenth of the
    time of tests that trace graphs.
    """
    _sweep()
    gc.set_threshold(20_000, 10, 10)


@pytest.fixture(scope="module", autouse=True)
def swept():
    """Keeps the objects of earlier test files out of collections."""
    yield
    _sweep()


def pytest_runtest_setup(item):
    """Skips a case if its library is not installed by the extra `test`."""
    for mark in item.iter_markers("needs"):
        for library in mark.args:
            pytest.importorskip(library)


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """Nothing is kept in the user's cache folder, nor found there."""
    with pytest.MonkeyPatch.context() as patch:
        # Searching for its fonts again takes seconds.
        patch.setenv("MPLCONFIGDIR", matplotlib.get_cachedir())
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


_KERAS_CHOICE = keras.Model._resolve_auto_jit_compile


@pytest.fixture(scope="session", autouse=True)
def plain_graphs():
    """Turns XLA off, unless a test turns it on, and Grappler in default tests.

    Keras's own choice is to compile all steps, of which each takes longer to
    compile than to run on the few images of a test: only tests with `full_runs`
    have it. Grappler, TensorFlow's optimizer of graphs, takes a fifth of the
    time of default tests, for graphs that run once or twice.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            keras.Model, "_resolve_auto_jit_compile", lambda self: False
        )
        if hypothesis.settings.get_current_profile_name() != "slow":
            tf.config.optimizer.set_experimental_options(
                {"disable_meta_optimizer": True}
            )
        yield


@pytest.fixture(scope="session", autouse=True)
def no_stacks():
    """Leaves the Python stack out of operations of graphs.

    TensorFlow shows it in error messages, and reads it for each operation.
    Under pytest and Keras stacks are a hundred frames deep: this takes a fifth
    of the time of tracing.
    """
    create = functools.partial(ops._create_c_op, extract_traceback=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ops, "_create_c_op", create)
        yield


@pytest.fixture(scope="session")
def digits():
    """The reference's digits: 1200 to train, 597 to test, 200 attacked."""
    digits = sklearn.datasets.load_digits()
    images = (digits.images / 16).astype("float32")[..., None]
    return images, digits.target.astype("int64")


@pytest.fixture(scope="session")
def write_run():
    """A function that writes a run's folder, as experiments read it."""

    def write(
        folder,
        natural,
        robust,
        attack="cleverhans_pgd",
        seconds=(60, 80),
        **train,
    ):
        """`robust` by (norm, epsilon); `train` of AutoAttack's runs is none.

        `seconds` are the durations of the epochs.
        """
        folder.mkdir(parents=True)
        epochs = "".join(f"{n},{s}\n" for n, s in enumerate(seconds, 1))
        if attack != "autoattack":
            (folder / "history.csv").write_text(f"epoch,seconds\n{epochs}")
        rows = [
            {"attack": attack, "norm": n, "epsilon_text": e, "accuracy": value}
            for (n, e), value in robust.items()
        ]
        trained = {"natural": {"accuracy": 0.99}, "seconds": 120.0} | train
        results = {
            "natural": {"accuracy": natural},
            "robust": rows,
            "train": trained if attack != "autoattack" else None,
        }
        (folder / "results.json").write_text(json.dumps(results))
        (folder / "model.keras").write_text("large")

    return write


@pytest.fixture
def short_runs(monkeypatch):
    """Runs of the command end without pictures and a SavedModel."""
    shorten_runs(monkeypatch)


@pytest.fixture
def tiny_network(monkeypatch):
    """Runs of the command train a tiny network, without what takes long."""
    make_runs_tiny(monkeypatch)


@pytest.fixture
def full_runs(monkeypatch):
    """Runs train a tiny network by XLA, as Keras chooses, and leave all files.

    So do users' runs; other tests leave out what takes long.
    """
    monkeypatch.setattr(keras.Model, "_resolve_auto_jit_compile", _KERAS_CHOICE)
    monkeypatch.setitem(registries.NETWORKS.native, "preact_resnet8", tiny)


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """The run of a tiny network that interrupted ones should equal."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        make_runs_tiny(patch)
        assert main(*THREE_EPOCHS, f"--workdir={workdir}")[0] == 0
    return workdir


_PLUGIN = pathlib.Path(__file__).parent / "plugin"


@pytest.fixture
def other_package(tmp_path_factory, monkeypatch):
    """Has the effect of `pip install tests/plugin`, without the network."""
    package = configparser.ConfigParser()
    package.read(_PLUGIN / "setup.cfg")
    site = tmp_path_factory.mktemp("site")
    folder = site / "tfsam_shift_fixture-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(
        "Metadata-Version: 2.1\n"
        f"Name: {package['metadata']['name']}\n"
        f"Version: {package['metadata']['version']}\n"
    )
    (folder / "entry_points.txt").write_text(
        "\n".join(
            f"[{group}]\n{points.strip()}\n"
            for group, points in package["options.entry_points"].items()
        )
    )
    monkeypatch.syspath_prepend(_PLUGIN)
    monkeypatch.syspath_prepend(site)
