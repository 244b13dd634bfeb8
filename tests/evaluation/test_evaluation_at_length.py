"""Evaluation at length: sweeps, devices, shards, resume, transfer, warnings."""

import functools
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import TESTS
from helpers import network
from helpers import slow

import tfsam
from tfsam.attacks import Logits
from tfsam.evaluation import arguments
from tfsam.evaluation import attack_batch
from tfsam.evaluation import records
from tfsam.evaluation import verdicts
from tfsam.evaluation import workers
from tfsam.evaluation.verdicts import STANDS
from tfsam.support import files

EPSILONS = [0.04, 0.08, 0.12]
PGD = ("pgd", {"steps": 4})
CHEAP = {"attacks": ["fgsm"], "epsilons": [0.1]}


@pytest.fixture(scope="module")
def cnn():
    return network("standard")


@pytest.fixture(scope="module")
def data(digits):
    return digits[0][1200:1300], digits[1][1200:1300]


def evaluate(model, data, attacks=(PGD,), epsilons=EPSILONS, **kwargs):
    kwargs = {"batch_size": 32, "strict": True, "diagnose": False, **kwargs}
    return tfsam.evaluate(model, data, attacks, "linf", epsilons, **kwargs)


def same(result, other):
    """Returns results without their durations."""

    def timeless(result):
        rows = [{**row, "seconds": None} for row in result["robust"]]
        return {**result, "robust": rows}

    assert timeless(result) == timeless(other)


@pytest.fixture(scope="module")
def whole(cnn, data):
    return evaluate(cnn, data, [PGD, "fgsm"])


@pytest.fixture(scope="module")
def recorded(cnn, data, tmp_path_factory):
    """The folder of an evaluation's record."""
    folder = tmp_path_factory.mktemp("recorded")
    evaluate(cnn, data, workdir=folder)
    return folder


def test_rows_tell_what_they_cost(whole):
    small, middle, large = whole["robust"][:3]
    natural = round(100 * whole["natural"]["accuracy"])
    assert small["attacked"] == natural
    assert small["inherited"] == 0
    for before, after in ((small, middle), (middle, large)):
        assert after["attacked"] == round(100 * before["accuracy"])
        assert after["inherited"] == natural - after["attacked"]
    assert small["gradient_passes"] == 4
    assert small["forward_passes"] == 0
    assert whole["robust"][3]["gradient_passes"] == 1
    assert 1 > small["accuracy"] > middle["accuracy"] > large["accuracy"] > 0
    assert whole["warnings"] == []


def test_an_early_stop_is_cheaper_and_leaves_no_more(cnn, data, whole):
    options = {"steps": 4, "early_stop": True}
    result = evaluate(cnn, data, [("pgd", options)])
    for row, last in zip(result["robust"], whole["robust"], strict=False):
        assert row["accuracy"] <= last["accuracy"]
    assert result["robust"][0]["gradient_passes"] < 4


def counting(model):
    """Returns a model, and a list that grows with each of its traces."""
    traces = []

    def function(x):
        if tf.inside_function():
            traces.append(tuple(x.shape))
        return model(x, training=False)

    return function, traces


def test_a_sweep_traces_the_network_a_few_times(cnn, data):
    """Neither epsilons nor numbers of survivors cause another trace."""
    found = []
    for epsilons in ([0.05], np.linspace(0.02, 0.2, 4)):
        function, traces = counting(cnn)
        attacks = ["pgd:steps=2", ("apgd_t", {"steps": 2, "targets": 2})]
        evaluate(function, data, attacks, epsilons)
        found.append(traces)
    once, often = found
    assert len(often) == len(once) <= 8
    # The look at the model beforehand, batches, and two targets side by side.
    assert {shape[0] for shape in often} == {1, 32, 64}


def test_tensorflow_does_not_complain_of_tracing(cnn, data, caplog):
    """Neither many attacks nor many evaluations trace the model again."""
    attacks = [("pgd", {"steps": steps}) for steps in range(1, 7)]
    few = [part[:8] for part in data]
    tf.get_logger().addHandler(caplog.handler)
    try:
        evaluate(cnn, few, attacks, [0.05])
        for _ in range(5):
            evaluate(counting(cnn)[0], few, attacks[:1], [0.05])
    finally:
        tf.get_logger().removeHandler(caplog.handler)
    assert "retracing" not in caplog.text


def test_attacks_that_are_not_native_get_batches_of_few_sizes(cnn, data):
    sizes = []

    class Looks:
        def __init__(self, epsilon, norm, bounds):
            self.inner = tfsam.FGSM(epsilon)

        def __call__(self, logits_fn, x, y, seed):
            sizes.append(len(x))
            return self.inner(logits_fn, x, y, seed)

    evaluate(cnn, data, [Looks], np.linspace(0.01, 0.3, 9))
    assert set(sizes) == {2, 8, 32}
    assert attack_batch._batch_size(3, 32) == 8
    assert [attack_batch._batch_size(1, n) for n in (1, 2, 100)] == [1, 1, 7]


ALL = [
    *(("apgd_ce", {"steps": 8}), ("apgd_t", {"steps": 4}), "noise_l2"),
    *(("fab_t", {"steps": 4}), ("square", {"queries": 30})),
    *(("fmn", {"steps": 8}), ("pgd_t", {"steps": 3, "restarts": 2})),
]


@pytest.mark.parametrize(
    ("attacks", "epsilons"),
    [([PGD], EPSILONS), slow(ALL, EPSILONS[::2])],
    ids=["pgd", "others"],
)
def test_devices_shards_and_order_change_nothing(
    cnn, data, attacks, epsilons, tmp_path
):
    def measured(name, **options):
        """Evaluates with a diagnosis, which is merged, too."""
        options |= {"workdir": tmp_path / name, "diagnose": True}
        return evaluate(cnn, data, attacks, epsilons, **options)

    alone = measured("one")
    same(measured("two", devices=["CPU:0", "CPU:1"]), alone)
    for shard in (1, 0, 2):
        part = measured(f"shard{shard}", shard=(shard, 3))
        # Chunks 0 and 3, the last of 4 examples; 1; 2.
        assert part["natural"]["n"] == (36, 32, 32)[shard]
    folders = [tmp_path / f"shard{i}" for i in (2, 0, 1)]
    same(tfsam.merge(folders), alone)
    # Example by example, not only in number.
    expected = verdicts.load(tmp_path / "one")
    for key, found in verdicts.load(tmp_path / "two").items():
        np.testing.assert_array_equal(found, expected[key])
    with pytest.raises(ValueError, match="run the missing shard"):
        tfsam.merge(folders[:2])


@pytest.mark.parametrize(
    "name", ["pgd", pytest.param("apgd_ce", marks=pytest.mark.slow)]
)
def test_another_batch_size_changes_at_most_half_a_percent(cnn, digits, name):
    data = digits[0][1200:1400], digits[1][1200:1400]
    attack = (name, {"steps": 8})
    small, large = (
        evaluate(cnn, data, [attack], batch_size=size)["robust"]
        for size in (16, 200)
    )
    for row, other in zip(small, large, strict=True):
        assert abs(row["accuracy"] - other["accuracy"]) <= 0.005


class Dies:
    """PGD that is killed during its third batch."""

    left = 3

    def __init__(self, epsilon, norm, bounds):
        self.inner = tfsam.PGD(epsilon, steps=4)

    def __call__(self, logits_fn, x, y, seed):
        Dies.left -= 1
        if not Dies.left:
            raise KeyboardInterrupt
        return self.inner(logits_fn, x, y, seed)


def test_a_resumed_evaluation_gives_the_same(cnn, data, tmp_path):
    Dies.left = -1
    options = {"workdir": tmp_path}
    whole = evaluate(cnn, data, [Dies])
    Dies.left = 6
    # It counts its calls, so its description changes; a name identifies it.
    named = [("Dies", Dies)]
    with pytest.raises(KeyboardInterrupt):
        evaluate(cnn, data, named, **options)
    # Two chunks of three epsilons, less the one that was cut off.
    held = [p.parent.name for p in tmp_path.glob("00-*/*/*.npz")]
    counts = [held.count(f"linf-{epsilon}") for epsilon in EPSILONS]
    assert counts == [2, 2, 1]
    Dies.left = -1
    same(evaluate(cnn, data, named, **options), whole)
    assert Dies.left == -1 - 7  # Finished measurements are not repeated.
    same(evaluate(cnn, data, named, **options), whole)
    assert Dies.left == -1 - 7


def test_a_damaged_chunk_is_measured_again(cnn, data, tmp_path, whole):
    attacks = [PGD, "fgsm"]
    evaluate(cnn, data, attacks, workdir=tmp_path)
    for path in tmp_path.rglob("000001.npz"):
        path.write_bytes(path.read_bytes()[:100])
    left = f".4194305_{files._host()}-000002.npz"
    (tmp_path / "natural" / left).write_bytes(b"left by a kill")
    same(evaluate(cnn, data, attacks, workdir=tmp_path), whole)
    assert not list(tmp_path.rglob(".*"))


SCRIPT = """
    import sys
    sys.path.insert(0, {tests!r})
    import shared_fixtures, numpy, sklearn.datasets
    from helpers import network
    import tfsam
    digits = sklearn.datasets.load_digits()
    x = (digits.images / 16).astype("float32")[..., None][1200:1400]
    tfsam.evaluate(
        network("standard"), (x, digits.target[1200:1400]),
        [("apgd_t", {{"steps": 30, "targets": 3}})], "linf", [0.02, 0.05, 0.1],
        batch_size=16, strict=True, diagnose=False, workdir={workdir!r},
    )
"""


@pytest.mark.slow
def test_kill_nine_loses_at_most_a_chunk(digits, tmp_path):
    data = digits[0][1200:1400], digits[1][1200:1400]
    script = textwrap.dedent(SCRIPT).format(
        tests=str(TESTS),
        workdir=str(tmp_path / "killed"),
    )
    process = subprocess.Popen([sys.executable, "-c", script])
    files = tmp_path / "killed" / "00-apgd_t"
    while process.poll() is None and len(list(files.rglob("0*.npz"))) < 10:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    done = {p: p.read_bytes() for p in files.rglob("0*.npz")}
    assert 10 <= len(done) < 39
    arguments = {
        "attacks": [("apgd_t", {"steps": 30, "targets": 3})],
        "epsilons": [0.02, 0.05, 0.1],
        "batch_size": 16,
    }
    network_ = network("standard")
    resumed = evaluate(network_, data, workdir=tmp_path / "killed", **arguments)
    same(resumed, evaluate(network_, data, **arguments))
    assert all(path.read_bytes() == held for path, held in done.items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "adversarial"}, "Received: model="),
        ({"seed": 1}, r"Received: seed=1 \(it has 0\)"),
        ({"bounds": (0.0, 2.0)}, "Received: bounds="),
        ({"batch_size": 16}, "Received: batch_size=16"),
        ({"first": 1}, "Received: data="),
    ],
)
def test_another_evaluation_is_refused(
    change, message, cnn, data, recorded, tmp_path
):
    workdir = shutil.copytree(recorded, tmp_path / "record")
    change = dict(change)
    model = network(change.pop("model")) if "model" in change else cnn
    first = change.pop("first", 0)
    data = (np.roll(data[0], first, axis=0), data[1])
    with pytest.raises(ValueError, match=message):
        evaluate(model, data, workdir=workdir, **change)


def test_a_callable_is_known_by_its_logits(cnn, data, tmp_path):
    def other(x):
        return cnn(x) * 1.001

    evaluate(lambda x: cnn(x), data, **CHEAP, workdir=tmp_path)
    evaluate(lambda x: cnn(x), data, **CHEAP, workdir=tmp_path)
    with pytest.raises(ValueError, match="Received: model="):
        evaluate(other, data, **CHEAP, workdir=tmp_path)


def test_adversarial_images_are_kept(cnn, data, tmp_path):
    result = evaluate(cnn, data, workdir=tmp_path, save_adversarial=True)
    found = verdicts.load(tmp_path)
    for row in result["robust"]:
        folder = f"linf-{row['epsilon']}"
        images = np.concatenate(
            [
                np.load(path)["adversarial"]
                for path in sorted(tmp_path.glob(f"00-pgd/{folder}/*.npz"))
            ]
        )
        moved = np.abs(images - data[0]).max()
        np.testing.assert_allclose(moved, row["max_perturbation"], rtol=1e-5)
        verdict = found["pgd", row["epsilon"]]
        right = np.argmax(cnn(images), axis=1) == data[1]
        assert ((verdict == STANDS) <= right).all()
        assert row["accuracy"] == (verdict == STANDS).mean()


def test_warm_start(cnn, data, whole):
    with pytest.warns(UserWarning, match="fgsm cannot start from an image"):
        warm = evaluate(cnn, data, [PGD, "fgsm"], warm_start=True)
    first, *others = warm["robust"][:3]
    assert first["accuracy"] == whole["robust"][0]["accuracy"]
    for row, cold in zip(others, whole["robust"][1:3], strict=True):
        assert row["accuracy"] <= cold["accuracy"] + 0.03
        assert row["max_perturbation"] <= row["epsilon"] * (1 + 1e-5)
    assert [r["accuracy"] for r in warm["robust"][3:]] == [
        r["accuracy"] for r in whole["robust"][3:]
    ]


def test_a_warm_start_keeps_no_images_and_is_resumed_all_the_same(
    cnn, data, tmp_path
):
    kwargs = {"warm_start": True, "workdir": tmp_path}
    before = evaluate(cnn, data, **kwargs)
    path = min(tmp_path.glob("00-pgd/linf-0.12/*.npz"))
    with np.load(path) as held:
        assert not any(map(records.is_image, held))
    path.unlink()  # Cut off after the second epsilon of the first chunk.
    same(evaluate(cnn, data, **kwargs), before)


def test_transfer(cnn, data, whole):
    """An attack is weaker on another model, and equal on the same one."""
    marked = evaluate(cnn, data, [PGD, "fgsm"], surrogate=cnn)
    for row in (*marked["robust"], *marked["worst_case"][0]["attacks"]):
        assert row["surrogate"] is True
    for one, other in zip(marked["robust"], whole["robust"], strict=True):
        assert one["accuracy"] == other["accuracy"]
        assert one["max_perturbation"] == other["max_perturbation"]
    transferred = evaluate(cnn, data, surrogate=network("adversarial"))
    for row, direct in zip(
        transferred["robust"], whole["robust"], strict=False
    ):
        assert direct["accuracy"] < row["accuracy"]
    assert transferred["robust"][2]["accuracy"] < 0.9
    with pytest.raises(
        ValueError, match="surrogate: it must have the model's 10"
    ):
        evaluate(cnn, data, surrogate=lambda x: cnn(x)[:, :9])


def test_a_minimum_norm_attack_runs_once(cnn, data):
    result = evaluate(cnn, data, [("fmn", {"steps": 40})])
    rows = result["robust"]
    assert [r["attacked"] for r in rows[1:]] == [0, 0]
    assert rows[1]["seconds"] == 0 and rows[1]["gradient_passes"] is None
    (median,) = {row["median_distance"] for row in rows}
    strong = evaluate(cnn, data, [("apgd_ce", {"steps": 30})])["robust"]
    for row, other in zip(rows, strong, strict=True):
        assert abs(row["accuracy"] - other["accuracy"]) <= 0.05
        assert (row["accuracy"] < 0.5) == (median < row["epsilon"])


def test_images_of_a_minimum_norm_attack_are_inside_their_ball(
    cnn, data, tmp_path
):
    attacks = [("fmn", {"steps": 10})]
    kwargs = {"workdir": tmp_path, "save_adversarial": True}
    evaluate(cnn, data, attacks, batch_size=100, **kwargs)
    for epsilon in EPSILONS:
        path = tmp_path / "00-fmn" / f"linf-{epsilon}" / "000000.npz"
        with np.load(path) as held:
            moved = np.abs(held["adversarial"] - data[0])
            moved = moved.max(axis=(1, 2, 3))
            assert moved.max() <= epsilon + 1e-6
            # Survivors, and examples misclassified before: x itself.
            assert ((moved > 0) == (held["verdict"] == 1)).all()


def test_bad_shards():
    for shard in ((1, 1), (-1, 2), (0, 0), (3, 4)):
        with pytest.raises(ValueError, match="Received: shard="):
            arguments.check_shard(shard, 96, 32)
    with pytest.raises(ValueError, match="Received: shard=1/2"):
        evaluate(
            lambda x: x,
            (np.eye(3, dtype="float32"), np.arange(3)),
            shard=(1, 2),
        )
    with pytest.raises(ValueError, match="Received: none"):
        tfsam.merge([])
    with pytest.raises(ValueError, match="folder of a record"):
        tfsam.merge(["/nowhere"])


@pytest.mark.slow
def test_a_network_in_xla_loops_gives_the_same_verdicts(cnn, data, monkeypatch):
    """The path that GPUs take."""
    plain = evaluate(cnn, data, [PGD, ("apgd_ce", {"steps": 10})])

    def on_a_gpu(logits, *arguments):
        return Logits(logits.function, jit_compile=True, jit_loops=True)

    monkeypatch.setattr(workers, "for_evaluation", on_a_gpu)
    compiled = evaluate(cnn, data, [PGD, ("apgd_ce", {"steps": 10})])
    for row, other in zip(compiled["robust"], plain["robust"], strict=True):
        assert abs(row["accuracy"] - other["accuracy"]) <= 0.01


def test_subclassed_models_run_on_several_devices(data):
    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(10)
            self.norm = keras.layers.BatchNormalization()

        def call(self, x, training=False):
            x = keras.ops.reshape(x, (-1, 64))
            return self.dense(self.norm(x, training=training))

    model = Model()
    model(data[0][:1])
    alone = evaluate(model, data, **CHEAP)
    devices = ["CPU:0", "CPU:1"]
    same(evaluate(model, data, **CHEAP, devices=devices), alone)


# Regressions that a review found.


def test_the_options_of_a_partial_are_its_configuration(cnn, data, tmp_path):
    def weak(**options):
        return functools.partial(tfsam.PGD, random_start=False, **options)

    result = evaluate(
        cnn, data, [weak(steps=1, step_size=0.0)], workdir=tmp_path
    )
    assert result["robust"][0]["options"]["steps"] == 1
    evaluate(cnn, data, [weak(steps=4)], workdir=tmp_path)
    assert len(list(tmp_path.glob("0*-PGD"))) == 2


def test_a_model_is_known_by_its_layers_settings(data, tmp_path):
    def model(activation):
        layers = [
            keras.layers.Flatten(),
            keras.layers.Dense(10, activation, kernel_initializer="ones"),
            keras.layers.Dense(10, kernel_initializer="ones"),
        ]
        return keras.Sequential([keras.Input((8, 8, 1)), *layers])

    evaluate(model("relu"), data, **CHEAP, workdir=tmp_path)
    evaluate(model("relu"), data, **CHEAP, workdir=tmp_path)
    with pytest.raises(ValueError, match="Received: model="):
        evaluate(model("tanh"), data, **CHEAP, workdir=tmp_path)
    (tmp_path / "record.json").unlink()
    with pytest.raises(ValueError, match="missing or damaged"):
        evaluate(model("relu"), data, **CHEAP, workdir=tmp_path)


class Fails:
    """An attack that raises at small epsilons."""

    def __init__(self, epsilon, norm, bounds):
        if epsilon < 0.1:
            raise ZeroDivisionError("no luck")

    def __call__(self, logits_fn, x, y, seed):
        return x


def test_a_failed_attack_does_not_spoil_the_merge(cnn, data, tmp_path):
    attacks = ["fgsm", Fails]
    whole = evaluate(cnn, data, attacks, strict=False)
    for shard in range(2):
        evaluate(
            cnn,
            data,
            attacks,
            strict=False,
            workdir=tmp_path / str(shard),
            shard=(shard, 2),
        )
    merged = tfsam.merge([tmp_path / "0", tmp_path / "1"])
    for row, other in zip(merged["robust"], whole["robust"], strict=True):
        assert row["accuracy"] == other["accuracy"]
        assert ("error" in row) == ("error" in other)
    assert "ZeroDivisionError" in whole["robust"][3]["error"]
    assert whole["robust"][5]["accuracy"] == whole["natural"]["accuracy"]


def test_a_resumed_minimum_norm_attack_knows_its_distances(cnn, data, tmp_path):
    attack = ("fmn", {"steps": 10})
    whole = evaluate(cnn, data, [attack], workdir=tmp_path)
    (tmp_path / "00-fmn" / "linf-0.12" / "000001.npz").unlink()
    same(evaluate(cnn, data, [attack], workdir=tmp_path), whole)


@pytest.mark.parametrize("norm", [slow("linf"), "l2"])
def test_pixels_in_float64(cnn, digits, norm):
    x, y = digits[0][1200:1220].astype("float64"), digits[1][1200:1220]
    (row,) = tfsam.evaluate(
        cnn, (x, y), [("apgd_t", {"steps": 5})], norm, [0.2], strict=True
    )["robust"]
    assert row["accuracy"] < 1


def test_numbers_of_numpy_s_are_numbers(cnn, data):
    evaluate(
        cnn,
        data,
        seed=np.int64(3),
        batch_size=np.int64(32),
        bounds=(np.float32(0), np.float32(1)),
        devices="CPU:0",
    )
    with pytest.raises(ValueError, match="needs a workdir"):
        evaluate(cnn, data, save_adversarial=True)


def test_callables_of_many_kinds(cnn, data):
    weights = np.random.default_rng(0).normal(size=(64, 10)).astype("float32")

    def numpy(x):
        return np.asarray(x).reshape(-1, 64) @ weights

    def branches(x):
        z = cnn(x)
        if tf.reduce_max(z) > 2:
            z = 1.5 * z
        return z

    def pure(x):
        return tf.py_function(lambda x: cnn(x), [x], tf.float32)

    square = [("square", {"queries": 5})]
    (row,) = evaluate(numpy, data, square, [0.04])["robust"]
    assert row["accuracy"] < 0.2
    (row,) = evaluate(branches, data, [PGD], [0.12], surrogate=cnn)["robust"]
    assert row["accuracy"] < 0.6
    result = evaluate(pure, data, [PGD], [0.12])
    assert result["robust"][0]["accuracy"] < 0.6
    assert not result["warnings"]


def test_a_layer_that_cannot_tell_its_settings_is_known_by_its_logits(
    data, tmp_path
):
    class Apply(keras.layers.Layer):
        def __init__(self, function):
            super().__init__()
            self.function = function

        def call(self, x):
            return self.function(x)

    def model(factor):
        layers = [
            keras.layers.Flatten(),
            keras.layers.Dense(10, kernel_initializer="identity"),
            Apply(lambda x: factor * x),
        ]
        return keras.Sequential([keras.Input((8, 8, 1)), *layers])

    evaluate(model(2.0), data, **CHEAP, workdir=tmp_path)
    evaluate(model(2.0), data, **CHEAP, workdir=tmp_path)
    with pytest.raises(ValueError, match="Received: model="):
        evaluate(model(3.0), data, **CHEAP, workdir=tmp_path)
