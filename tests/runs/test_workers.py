"""Several processes that train together: one batch, one writer."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import float64_training
import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import network
from helpers import settings_of
from small_network import small

import tfsam
from experiments import workers
from tfsam import data
from tfsam import registries
from tfsam import run
from tfsam.data import batches
from tfsam.runs import batch_sharing
from tfsam.runs import fit
from tfsam.runs import workdirs
from tfsam.support import devices
from tfsam.support import files
from tfsam.support import signals
from tfsam.training import checkpoints
from tfsam.training import monitoring

HERE = pathlib.Path(__file__).parent
ENVIRONMENT = {
    # The folder of the package, and that of the network.
    "PYTHONPATH": f"{HERE.parents[1]}{os.pathsep}{HERE}",
    "CUDA_VISIBLE_DEVICES": "",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}
METHODS = float64_training.METHODS


def replicas(count):
    """The strategy of so many logical CPU devices."""
    return devices.make_strategy(f"cpu:{count}") or tf.distribute.get_strategy()


@pytest.fixture(scope="module")
def one_device():
    """A function: the weights that a method trains on one device."""
    known = {}

    def train(name):
        options = METHODS[name] | {"jit_compile": False}
        key = str(options)
        if key not in known:
            known[key] = float64_training.trained(replicas(1), **options)
        return known[key]

    return train


def assert_same(found, expected):
    """Weights, and a loss, which Keras adds up in float32."""
    for one, other in zip(found, expected, strict=True):
        precision = {"atol": 1e-6} if one.ndim else {"rtol": 1e-5}
        np.testing.assert_allclose(one, other, **{"rtol": 0} | precision)


# The tests of the devices compare some of these in float32.
SHARED = ("sam", "looksam", "msam", "wsam", "awp", "linf", "st", "sam_xla")


@pytest.mark.slow
@pytest.mark.parametrize("name", SHARED)
def test_two_devices_train_as_one(name, one_device):
    found = float64_training.trained(replicas(2), **METHODS[name])
    assert_same(found, one_device(name))


@pytest.mark.slow
def test_the_methods_differ(one_device):
    """Otherwise the equalities would prove nothing."""
    names = ["sam", "looksam", "msam", "wsam", "awp"]
    kernels = [one_device(name)[0] for name in names]
    for index, one in enumerate(kernels):
        for other in kernels[:index]:
            assert np.abs(one - other).max() > 1e-4


@pytest.mark.slow
def test_two_workers_train_as_one_device(tmp_path, one_device):
    """With a sharpness per replica, workers equal two devices."""
    script = HERE / "float64_training.py"
    command = [sys.executable, str(script), str(tmp_path)]
    started = workers.start([command, command], ENVIRONMENT)
    assert workers.wait(started, 180) == [0, 0]
    chief, other = (dict(np.load(tmp_path / f"{i}.npz")) for i in (0, 1))
    for key, array in chief.items():
        np.testing.assert_array_equal(array, other[key])
    for name in float64_training.OF_WORKERS:
        options = METHODS[name]
        found = [a for key, a in chief.items() if key.startswith(f"{name}:")]
        expected = (
            float64_training.trained(replicas(2), **options)
            if name == "replicas"
            else one_device(name)
        )
        assert_same(found, expected)


# Contents of TF_CONFIG.


def tf_config(jobs, kind, index):
    hosts = {job: ["127.0.0.1:1"] * count for job, count in jobs.items()}
    task = {"type": kind, "index": index}
    return json.dumps({"cluster": hosts, "task": task})


def bad_hosts(hosts):
    task = {"type": "worker", "index": 0}
    return json.dumps({"cluster": {"worker": hosts}, "task": task})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", 1),
        (tf_config({"worker": 1}, "worker", 0), 1),
        (tf_config({"worker": 3}, "worker", 2), 3),
        (tf_config({"chief": 1, "worker": 1}, "chief", 0), 2),
        (tf_config({"chief": 1, "worker": 1}, "worker", 0), 2),
    ],
)
def test_clusters(monkeypatch, text, expected):
    monkeypatch.setenv("TF_CONFIG", text)
    assert devices.cluster_size() == expected


@pytest.mark.parametrize(
    "text",
    [
        *("{", "[]", "{}", '{"cluster": {"worker": ["a:1"]}}'),
        tf_config({"worker": 2}, "worker", 2),
        tf_config({"worker": 2}, "evaluator", 0),
        tf_config({"worker": 2, "ps": 1}, "worker", 0),
        tf_config({"worker": 2}, "worker", -1),
        *(bad_hosts(hosts) for hosts in ("a:1", {"a:1": 0}, [["a:1"]], ["a"])),
    ],
)
def test_bad_clusters(monkeypatch, text):
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(ValueError, match="TF_CONFIG must name workers"):
        devices.cluster_size()


def test_what_workers_cannot_do(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("TF_CONFIG", tf_config({"worker": 2}, "worker", 0))
    tf.zeros(())  # TensorFlow has started.
    workdir = tmp_path / "run"
    for flags, expected in [
        (["--devices=cpu:2"], "devices must be auto, cpu or gpu:all"),
        (["--evaluate=model.keras"], "--shard=i/n"),
        ([], "workers must connect before TensorFlow starts"),
    ]:
        assert run.main([*flags, f"--workdir={workdir}"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert expected in line
    assert not workdir.exists()


@pytest.mark.parametrize(
    ("error", "code", "expected"),
    [
        (tf.errors.UnknownError, 2, "a free port of its own (gone.)"),
        (tf.errors.DeadlineExceededError, 5, "another worker never connected"),
    ],
)
def test_workers_that_cannot_meet(
    error, code, expected, monkeypatch, tmp_path, capsys
):
    def start():
        raise error(None, None, "gone.\nMore.")

    monkeypatch.setattr(tf.distribute, "MultiWorkerMirroredStrategy", start)
    monkeypatch.setenv("TF_CONFIG", tf_config({"worker": 2}, "worker", 0))
    assert run.main([f"--workdir={tmp_path / 'run'}"]) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert expected in line
    assert not (tmp_path / "run").exists()


def test_workers_may_differ_where_their_results_do_not(tmp_path, monkeypatch):
    settings = settings_of("--cache_dir=here", f"--workdir={tmp_path}")
    agreed = {}
    monkeypatch.setattr(
        devices, "check_agreement", lambda strategy, what: agreed.update(what)
    )
    workdirs.agree(settings, None, signals.Stop())
    bound = settings.config().keys() - {*workdirs.UNBOUND}
    assert agreed.keys() == bound | {"checkpoint"}


def test_mirrored_does_not_look_at_the_cluster(monkeypatch):
    monkeypatch.setenv("TF_CONFIG", tf_config({"worker": 2}, "worker", 0))
    assert devices.make_strategy("cpu", "mirrored") is None
    strategy = devices.make_strategy("cpu:2", "mirrored")
    assert isinstance(strategy, tf.distribute.MirroredStrategy)
    assert devices.workers(strategy) == 1 and devices.is_chief(strategy)


# Strategies that a model refuses.


def test_a_model_refuses_another_strategy():
    strategy = tf.distribute.experimental.CentralStorageStrategy(["CPU:0"])
    network = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
    with (
        strategy.scope(),
        pytest.raises(ValueError, match="strategy=CentralStorage"),
    ):
        tfsam.RobustModel(network)


@pytest.mark.parametrize("name", ["TPUStrategy", "ParameterServerStrategy"])
def test_tpus_and_parameter_servers_are_refused(monkeypatch, name):
    strategy = object.__new__(getattr(tf.distribute, name))
    monkeypatch.setattr(tf.distribute, "has_strategy", lambda: True)
    with pytest.raises(ValueError, match=f"strategy={name}"):
        devices.check_strategy(strategy)


# Output and effects of a run.


def test_a_lost_worker_is_said_in_one_way(monkeypatch):
    text = "{{function_node f}} Collective ops is aborted by: gone.\nMore."
    error = tf.errors.UnavailableError(None, None, text)
    with pytest.raises(tf.errors.UnavailableError):
        with devices.losing_workers(replicas(2)):
            raise error
    monkeypatch.setattr(devices, "workers", lambda strategy: 2)
    with pytest.raises(ConnectionError, match=r"lost: Collective .* gone\.$"):
        with devices.losing_workers(None):
            raise error


def test_all_workers_draw_the_seed_of_the_chief(monkeypatch):
    monkeypatch.setattr(devices, "workers", lambda strategy: 2)
    monkeypatch.setattr(
        *(devices, "_of_workers"),
        lambda strategy, value: np.array([5, value]),
    )
    network = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
    assert tfsam.RobustModel(network).seed == 5
    assert tfsam.RobustModel(network, seed=3).seed == 3


def test_what_is_true_anywhere(monkeypatch):
    class TwoReplicasOfWhichOneKnows:
        def __init__(self, strategy):
            self.strategy = strategy

        def run(self, function, args):
            def first_alone(array):
                replica = tf.distribute.get_replica_context()
                first = replica.replica_id_in_sync_group == 0
                return function(tf.cast(first, array.dtype) * array)

            return self.strategy.run(first_alone, args)

        def experimental_local_results(self, values):
            return self.strategy.experimental_local_results(values)[1:]

    facts = [True, False]
    assert devices.anywhere(None, facts) == facts
    monkeypatch.setattr(devices, "workers", lambda strategy: 2)
    one_knows = TwoReplicasOfWhichOneKnows(replicas(2))
    for facts in ([True, False], [False, False], [True, True]):
        assert devices.anywhere(one_knows, facts) == facts


def test_what_the_devices_share_is_said():
    settings = settings_of("--batch_size=32")
    assert batch_sharing.sharing(settings, None) == (
        "a step takes 32 images at learning rate 0.1"
    )
    line = batch_sharing.sharing(settings, replicas(2))
    assert "16 on each of 2 devices, the rate is for all" in line
    assert "perturbs the weights by its own gradient" in line
    line = batch_sharing.sharing(
        settings_of("--batch_size=32", "--sharpness=global"), replicas(2)
    )
    assert "by the gradient of the whole batch" in line
    line = batch_sharing.sharing(
        settings_of("--batch_size=32", "--method=st"), replicas(2)
    )
    assert "perturbs" not in line


def global_batches():
    images = np.arange(24 * 3 * 3, dtype="float32").reshape(24, 3, 3, 1) / 256
    return batches.training_batches(
        images,
        np.arange(24),
        batch_size=8,
        epochs=1,
        seed=0,
        drop_remainder=True,
    )


def test_batches_are_shared_in_order():
    shared = batch_sharing.shared(global_batches(), replicas(2))
    local = replicas(2).experimental_local_results
    for shares, (x, y) in zip(shared, global_batches(), strict=True):
        np.testing.assert_array_equal(np.concatenate(local(shares[0])), x)
        np.testing.assert_array_equal(np.concatenate(local(shares[1])), y)


def test_workers_with_several_devices_share_in_order():
    class TwoWorkersOfTwo:
        num_replicas_in_sync = 4

        def distribute_datasets_from_function(self, function):
            contexts = [tf.distribute.InputContext(2, i, 4) for i in range(2)]
            return [list(function(context)) for context in contexts]

    first, second = batch_sharing.shared(global_batches(), TwoWorkersOfTwo())
    for index, (x, y) in enumerate(global_batches()):
        two = slice(2 * index, 2 * index + 2)
        parts = first[two] + second[two]
        np.testing.assert_array_equal(np.concatenate([p[0] for p in parts]), x)
        np.testing.assert_array_equal(np.concatenate([p[1] for p in parts]), y)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "jit_compile"),
    [
        *((m, "false") for m in ("st", "esam", "gsam", "msam", "wsam")),
        *((m, "false") for m in ("awp", "ikl", "ema", "entropy_sgd")),
        *((m, "true") for m in ("at_sam", "ssam")),
    ],
)
def test_each_kind_of_method_trains_an_epoch_on_two_devices(
    method, jit_compile, tmp_path, monkeypatch
):
    """The kinds differ in what a replica's step has beside SAM's or PGD's.

    It chooses examples, reads both gradients, perturbs in its only pass, takes
    a step after the optimizer's or perturbs after an attack; the objective, the
    average, the optimizer or a mask has a state. Other tests compare each
    perturbation of the weights and each objective on two devices with one.
    """
    monkeypatch.setitem(registries.NETWORKS.native, "preact_resnet8", small)
    settings = settings_of(
        *(f"--method={method}", "--devices=cpu:2", "--epochs=1"),
        *(f"--jit_compile={jit_compile}", "--batch_size=32"),
        f"--workdir={tmp_path}",
    )
    images = data.load("digits")
    network, summary = fit.train(
        settings, images, replicas(2), print, signals.Stop()
    )
    assert summary["epochs"] == 1
    (row,) = monitoring.read_history(tmp_path / "history.csv")
    assert np.isfinite(row["loss"])
    assert summary["natural"]["accuracy"] > 0.2  # It has learned something.
    assert all(np.isfinite(w).all() for w in network.get_weights())


# Every callback that writes or decides.
SMALL = (
    *("--method=fgsm_at", "--perturb_weights=sam", "--sharpness=global"),
    *("--collapse_drop=0.99", "--average=ema", "--select=robust"),
    *("--limit_train=200", "--batch_size=32", "--limit_test=33"),
    *("--validation_images=20", "--attacks=pgd", "--attack_steps=1"),
    *("--linf_epsilons=0.1", "--l2_epsilons="),
    "--network=small_network:small",
)


def command(workdir, *flags):
    flags = [*SMALL, *flags, f"--workdir={workdir}"]
    return [sys.executable, "-m", "tfsam.run", *flags]


def files_of(folder):
    """The files of a run, with the numbers of epochs left out."""
    return {
        re.sub(r"-\d{4}", "", str(path.relative_to(folder)))
        for path in folder.rglob("*")
        # Named by time, process and machine.
        if "tensorboard" not in path.parts
    }


@pytest.mark.slow
def test_a_run_of_two_workers_outlives_one(tmp_path):
    """A killed worker ends all in bounded time; the run can be resumed."""
    workdir = tmp_path / "run"
    both = [command(workdir, "--epochs=8")] * 2
    started = workers.start(both, ENVIRONMENT)
    try:
        end = time.monotonic() + 120
        while not checkpoints.newest_first(workdir / "checkpoints"):
            assert time.monotonic() < end
            time.sleep(0.1)
    finally:
        started[1].kill()
    assert workers.wait(started, 60)[0] == 5
    assert "another worker was lost" in (workdir / "log.txt").read_text()
    assert not (workdir / "results.json").exists()
    resumed = workers.start(both, ENVIRONMENT)
    assert workers.wait(resumed, 150) == [0, 0]
    results = files.read_json(workdir / "results.json")
    assert results["workers"] == 2
    assert results["train"]["epochs"] == 8
    assert results["natural"]["accuracy"] > 0.5
    assert "resuming after epoch" in (workdir / "log.txt").read_text()
    # The files of a single process, and no others.
    alone = tmp_path / "alone"
    assert run.main([*SMALL, "--epochs=2", f"--workdir={alone}"]) == 0
    assert files_of(workdir) == files_of(alone)
    events = list((workdir / "tensorboard").rglob("*.*"))
    assert {path.suffix for path in events} <= {".v2"}


@pytest.mark.slow
def test_a_signal_to_one_worker_stops_both_after_the_same_step(tmp_path):
    workdir = tmp_path / "run"
    flags = [
        *("--epochs=2", "--limit_train=1000", "--batch_size=16"),
        *("--network=small_network:small", f"--workdir={workdir}"),
        *("--limit_test=33", "--attacks=fgsm"),
        *("--linf_epsilons=0.1", "--l2_epsilons="),
    ]
    both = [[sys.executable, "-m", "tfsam.run", *flags]] * 2
    # The many checkpoints take longer than the steps of so small a network.
    often = [[*one, "--checkpoint_steps=5"] for one in both]
    started = workers.start(often, ENVIRONMENT)
    try:
        end = time.monotonic() + 120
        while not checkpoints.newest_first(workdir / "checkpoints"):
            assert time.monotonic() < end
            time.sleep(0.02)
    finally:
        started[1].terminate()
    assert workers.wait(started, 40) == [128 + signal.SIGTERM] * 2
    (epoch, step), *_ = (
        position
        for position, _ in checkpoints.newest_first(workdir / "checkpoints")
    )
    assert epoch == 0 and 5 < step < 62
    assert "interrupted; the same" in (workdir / "log.txt").read_text()
    resumed = workers.start(both, ENVIRONMENT)
    assert workers.wait(resumed, 150) == [0, 0]
    log = (workdir / "log.txt").read_text()
    assert f"resuming after epoch 0 and {step} steps" in log
    history = monitoring.read_history(workdir / "history.csv")
    # The examples of the whole epoch were counted, each once.
    right = history[0]["accuracy"] * 62 * 16
    assert right == pytest.approx(round(right), abs=0.01)


@pytest.mark.slow
def test_workers_that_disagree_write_nothing(tmp_path):
    workdir = tmp_path / "run"
    commands = [command(workdir, f"--seed={i}") for i in range(2)]
    started = workers.start(
        commands, ENVIRONMENT, stderr=subprocess.PIPE, text=True
    )
    assert workers.wait(started, 120) == [2, 2]
    for process in started:
        assert "all workers must have the same seed" in process.stderr.read()
    assert not workdir.exists()


@pytest.mark.slow
def test_two_processes_find_the_verdicts_of_one(tmp_path):
    model = tmp_path / "model.keras"
    network("standard").save(model)
    flags = [
        *(f"--evaluate={model}", "--attacks=pgd", "--limit_test=60"),
        *("--linf_epsilons=0.02,0.1", "--l2_epsilons="),
        *("--attack_batch_size=16", "--devices=cpu"),
    ]
    assert run.main([*flags, f"--workdir={tmp_path / 'one'}"]) == 0
    started = [
        *workers.start([shard_command(flags, tmp_path, 0)], ENVIRONMENT),
        *workers.start([shard_command(flags, tmp_path, 1)], ENVIRONMENT),
    ]
    assert workers.wait(started, 150) == [0, 0]
    merged = tmp_path / "both"
    shards = ",".join(str(tmp_path / str(i)) for i in range(2))
    assert run.main([f"--merge={shards}", f"--workdir={merged}"]) == 0
    one, *both = (
        chunks(tmp_path / name / "evaluation") for name in ("one", "0", "1")
    )
    assert len(one) == len(both[0]) + len(both[1])
    for path, found in (both[0] | both[1]).items():
        for key in [k for k in one[path] if not k.endswith("seconds")]:
            np.testing.assert_array_equal(found[key], one[path][key])
    results = [
        files.read_json(folder / "results.json")["robust"]
        for folder in (tmp_path / "one", merged)
    ]
    first, second = ([row["accuracy"] for row in rows] for rows in results)
    assert first == second


def chunks(folder):
    """The entries that an evaluation keeps of each chunk of examples."""
    return {
        path.relative_to(folder): dict(np.load(path))
        for path in folder.rglob("[0-9]*.npz")
    }


def shard_command(flags, folder, index):
    return [
        *(sys.executable, "-m", "tfsam.run", *flags),
        *(f"--shard={index}/2", f"--workdir={folder / str(index)}"),
    ]
