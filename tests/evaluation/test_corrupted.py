"""Accuracy on corrupted images."""

import os
import signal
import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest
import scipy.stats
import tensorflow as tf

import tfsam
from tfsam import registries
from tfsam.evaluation import corrupted
from tfsam.evaluation import draws
from tfsam.evaluation import intervals
from tfsam.support import files

RANDOM = np.random.default_rng(0)
# Of little contrast, so that noise changes classes.
X = (0.4 + 0.2 * RANDOM.random((20, 8, 8, 1))).astype("float32")
WEIGHTS = RANDOM.normal(size=(64, 3)).astype("float32")
WEIGHTS -= WEIGHTS.mean(axis=0)
Y = (X.reshape(20, 64) @ WEIGHTS).argmax(axis=1)


def linear(x):
    return tf.reshape(x, (-1, 64)) @ WEIGHTS


def evaluate(model=linear, data=(X, Y), kinds="noise,contrast", **options):
    options = {"severities": [1, 5], "batch_size": 8} | options
    return tfsam.evaluate_corruptions(model, data, kinds, **options)


def test_rows_are_accuracies_on_the_corrupted_images():
    result = evaluate(kinds="contrast,gaussian_noise", seed=3)
    assert result["name"] == "tfsam corruptions (not CIFAR-10-C)"
    assert result["natural"]["accuracy"] == 1.0
    assert result["severities"] == [1, 5]
    assert result["n"] == 20 and result["constants"] == 32
    assert result["left_out"] == {}
    order = [(row["corruption"], row["severity"]) for row in result["rows"]]
    kinds = ("contrast", "gaussian_noise")
    assert order == [(kind, severity) for kind in kinds for severity in (1, 5)]
    for row in result["rows"]:
        images = tfsam.corruptions.corrupted(
            X, row["corruption"], row["severity"], seed=3
        )
        plain = tfsam.evaluate(linear, (images, Y), [])["natural"]
        expected = {k: row[k] for k in ("accuracy", "n")}
        assert {k: plain[k] for k in ("accuracy", "n")} == expected
        np.testing.assert_allclose(row["interval"], plain["interval"])
    accuracies = [row["accuracy"] for row in result["rows"]]
    assert result["mean_accuracy"] == pytest.approx(np.mean(accuracies))
    low, high = result["interval"]
    assert low < result["mean_accuracy"] < high
    assert min(accuracies) < 1


def test_by_hand():
    """A model that separates bright from dark images, and loses contrast."""

    def bright(x):
        brightest = tf.reduce_max(x, axis=(1, 2, 3))
        return tf.stack([0.7 - brightest, brightest - 0.7], axis=1)

    images = np.zeros((4, 8, 8, 1), "float32")
    images[0, 0], images[1, 0] = 0.9, 0.8  # Means of 0.1125 and 0.1.
    labels = np.array([1, 1, 0, 0])
    result = evaluate(bright, (images, labels), "contrast", severities=[1, 2])
    # 0.70 and 0.62 are left of 0.9 and 0.8 at severity 1, then 0.51 and 0.45.
    assert [row["accuracy"] for row in result["rows"]] == [0.75, 0.5]
    assert result["mean_accuracy"] == 0.625


def test_frost_is_named_where_it_is_missed():
    result = evaluate(kinds="weather", severities=[1])
    assert result["left_out"] == {"frost": "needs photographs"}
    kinds = [row["corruption"] for row in result["rows"]]
    assert kinds == ["brightness", "fog", "snow"]


def test_batches_and_devices_do_not_matter():
    expected = evaluate(batch_size=20)
    assert evaluate(batch_size=7) == expected
    devices = ["CPU:0", "CPU:1"]
    assert evaluate(batch_size=3, devices=devices) == expected


class Noise(keras.layers.Layer):
    """Adds normal noise to each pixel, also in inference mode."""

    def __init__(self):
        super().__init__()
        self.generator = keras.random.SeedGenerator(1)

    def call(self, x):
        return x + keras.random.normal(tf.shape(x), 0, 0.1, seed=self.generator)


@pytest.fixture(scope="module")
def noisy():
    """A Keras model with noise in front of a linear layer."""
    layers = [Noise(), keras.layers.Flatten(), keras.layers.Dense(3)]
    model = keras.Sequential([keras.Input((8, 8, 1)), *layers])
    model.layers[-1].set_weights([WEIGHTS, np.zeros(3)])
    return model


def of_noise(model, **options):
    options = {"kinds": "contrast", "severities": [1, 2], "draws": 5} | options
    return evaluate(model, **options)


@pytest.fixture(scope="module")
def drawn(noisy):
    return of_noise(noisy)


def test_a_random_model_is_judged_by_draws_that_are_keyed(noisy, drawn):
    """Each verdict is that of `tfsam.evaluate` on the corrupted images."""
    rows = {0: drawn["natural"]} | {r["severity"]: r for r in drawn["rows"]}
    for severity, row in rows.items():
        images = X
        if severity:
            images = tfsam.corruptions.corrupted(X, "contrast", severity)
        plain = tfsam.evaluate(noisy, (images, Y), [], draws=5)["natural"]
        assert {name: row[name] for name in plain} == plain
        assert row["draws"] == 5 and 0 < row["spread"] < 0.5
    (warning,) = drawn["warnings"]
    assert warning["warning"] == "randomness"
    assert "by 5 draws, of which more than half" in warning["message"]


@pytest.mark.parametrize(
    "options", [{"batch_size": 20}, {"devices": ["CPU:0", "CPU:1"]}], ids=str
)
def test_verdicts_of_a_random_model_depend_on_no_batch(noisy, drawn, options):
    assert of_noise(noisy, **options) == drawn


def test_a_random_model_that_is_killed_is_resumed(noisy, drawn, tmp_path):
    class Killed(BaseException):
        pass

    chunks, judge = [], draws.judge

    def killing(*arguments):
        chunks.append(arguments)
        if len(chunks) == 5:  # Amid the chunks of the first severity.
            raise Killed
        return judge(*arguments)

    options = {"workdir": tmp_path, "name": "noisy"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(draws, "judge", killing)
        with pytest.raises(Killed):
            of_noise(noisy, **options)
        assert of_noise(noisy, **options) == drawn
        assert len(chunks) == 5 + 3 * 3 - 4
    with pytest.raises(files.Unusable, match=r"draws=6 \(it has 5\)"):
        of_noise(noisy, **options | {"draws": 6})


def test_models_that_depend_on_more_than_the_image_are_named():
    def noisy(x):
        return linear(x) + tf.random.normal((len(x), 3))

    def untold(x):
        byte = np.frombuffer(os.urandom(1), np.uint8)[0]
        return linear(x) * (1 + float(byte))

    def together(x):
        return linear(x) - tf.reduce_mean(linear(x), axis=0)

    def both(x):
        return noisy(x) - tf.reduce_mean(noisy(x), axis=0)

    for model, count, names in (
        (linear, None, []),
        (noisy, 1, ["randomness"]),
        (untold, 2, ["randomness", "draws_not_repeatable"]),
        (together, None, ["batch_dependence"]),
        (both, 2, ["randomness", "batch_dependence"]),
    ):
        options = {"kinds": "contrast", "severities": [1], "draws": count}
        found = evaluate(model, **options)
        assert [one["warning"] for one in found["warnings"]] == names
        assert ("draws" in found["natural"]) is (count is not None)
        if count == 1:
            assert (
                "a single draw. Judge it by" in found["warnings"][0]["message"]
            )


def sharded(folder, count, model=linear, **options):
    """Evaluates all shards; returns their folders and results."""
    folders = [folder / str(index) for index in range(count)]
    found = [
        evaluate(model, shard=(index, count), workdir=path, **options)
        for index, path in enumerate(folders)
    ]
    return folders, found


def test_shards_are_merged_to_the_same_result(tmp_path):
    options = {"kinds": "fog,contrast,weather", "name": "linear"}
    whole = evaluate(**options)
    folders, (first, last) = sharded(tmp_path, 2, **options)
    assert tfsam.merge(folders) == tfsam.merge(folders[::-1]) == whole
    # Chunks of 8, 8 and 4.
    assert (first["n"], last["n"]) == (12, 8)
    assert first["left_out"] == {"frost": "needs photographs"}
    for row, *parts in zip(
        whole["rows"], first["rows"], last["rows"], strict=True
    ):
        right = [part["accuracy"] * part["n"] for part in parts]
        assert row["accuracy"] * 20 == pytest.approx(sum(right))
    # A folder takes the work of all, and of another division.
    evaluate(shard=(1, 2), workdir=folders[0], **options)
    assert evaluate(workdir=folders[0], **options) == whole
    assert tfsam.merge(folders[:1]) == whole


@pytest.mark.slow
def test_shards_of_a_random_model_are_merged(noisy, drawn, tmp_path):
    options = {"kinds": "contrast", "severities": [1, 2], "draws": 5}
    folders, _ = sharded(tmp_path, 2, noisy, name="noisy", **options)
    assert tfsam.merge(folders) == drawn


def test_what_is_no_whole_evaluation_is_not_merged(tmp_path):
    options = {"kinds": "contrast", "severities": [1], "name": "linear"}
    folders, _ = sharded(tmp_path, 2, **options)
    with pytest.raises(ValueError, match=r"no shard with chunk 1$"):
        tfsam.merge(folders[:1])
    evaluate(shard=(0, 2), workdir=folders[0], **options | {"kinds": "fog"})
    with pytest.raises(ValueError, match=r"no shard with chunk 1 of fog-1$"):
        tfsam.merge(folders)
    others, _ = sharded(tmp_path / "seeds", 2, seed=1, **options)
    with pytest.raises(files.Unusable, match=r"Received: seed=0 \(it has 1\)"):
        tfsam.merge([folders[0], others[1]])
    with pytest.raises(ValueError, match=r"workdir of evaluate_corruptions"):
        tfsam.merge([folders[0], tmp_path])
    with pytest.raises(ValueError, match=r"shard must be .* shard=3/4"):
        evaluate(shard=(3, 4), **options)


def test_two_versions_of_a_corruption_are_not_merged(tmp_path, monkeypatch):
    folders = [tmp_path / "0", tmp_path / "1"]
    for index, made in enumerate((lambda: _dim, lambda: _dimmer)):
        monkeypatch.setitem(registries.CORRUPTIONS.native, "dim", made)
        options = {"kinds": "dim", "severities": [1], "name": "linear"}
        evaluate(shard=(index, 2), workdir=folders[index], **options)
    with pytest.raises(ValueError, match=r"version of the corruption dim-1"):
        tfsam.merge(folders)


def _dim(image, severity, rng):
    return image * 0.5


def _dimmer(image, severity, rng):
    return image * 0.25


def test_threads_do_not_matter():
    images = RANDOM.random((5, 128, 130, 3)).astype("float32")
    weights = RANDOM.normal(size=(128 * 130 * 3, 3)).astype("float32")
    weights -= weights.mean(axis=0)

    def model(x):
        return tf.reshape(x, (-1, len(weights))) @ weights

    labels = np.argmax(model(images), axis=1)
    kinds = ("glass_blur", "motion_blur", "gaussian_noise")
    found = evaluate(model, (images, labels), kinds, severities=[5])
    assert found["constants"] == 224
    for row, kind in zip(found["rows"], kinds, strict=True):
        changed = tfsam.corruptions.corrupted(images, kind, 5)
        correct = np.argmax(model(changed), axis=1) == labels
        assert row["accuracy"] == correct.mean()
    assert {row["accuracy"] for row in found["rows"]} != {1.0}


def test_a_folder_is_resumed_and_goes_on(tmp_path, monkeypatch):
    lines = []
    whole = evaluate(progress=lines.append)
    assert len(lines) == 4
    assert lines[-1].startswith("contrast: accuracy ")
    assert lines[-1].endswith(" of 20 at severity 1, 5; 0 s left")
    measured, found = [], corrupted._judged

    def count(*arguments):
        measured.append(arguments[-1])
        return found(*arguments)

    monkeypatch.setattr(corrupted, "_judged", count)
    evaluate(kinds="contrast", severities=[5], workdir=tmp_path)
    assert evaluate(workdir=tmp_path) == whole
    # The images as they are, and 3 noises and contrast at 2 severities.
    assert measured == [0, 1, 2] * (1 + 8)
    (tmp_path / "shot_noise-1" / "000001.npz").write_bytes(b"damaged")
    assert evaluate(workdir=tmp_path) == whole
    assert measured[27:] == [1]


def other_network():
    keras.utils.set_random_seed(1)
    layers = [keras.layers.Flatten(), keras.layers.Dense(3)]
    return keras.Sequential([keras.Input((8, 8, 1)), *layers])


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda: {"seed": 1}, r"Received: seed=1 \(it has 0\)"),
        (lambda: {"model": other_network()}, "Received: model_parts="),
        (lambda: {"data": (X, (Y + 1) % 3)}, "Received: data="),
        (lambda: {"batch_size": 4}, "Received: batch_size="),
    ],
)
def test_verdicts_of_another_evaluation_are_refused(tmp_path, change, message):
    evaluate(kinds="contrast", severities=[1], workdir=tmp_path)
    with pytest.raises(files.Unusable, match=message):
        evaluate(kinds="contrast", severities=[1], workdir=tmp_path, **change())


def test_verdicts_without_a_header_are_refused(tmp_path):
    evaluate(kinds="contrast", severities=[1], workdir=tmp_path)
    (tmp_path / "record.json").unlink()
    with pytest.raises(files.Unusable, match=r"record\.json is missing"):
        evaluate(kinds="contrast", severities=[1], workdir=tmp_path)


def test_verdicts_of_a_corruption_with_other_code_are_measured_again(
    tmp_path, monkeypatch
):
    def made(share):
        code = (
            f"def made(): return lambda image, severity, rng: image * {share}"
        )
        names = {}
        exec(code, names)
        return names["made"]

    found = []
    for share in (1.0, 0.0):
        monkeypatch.setitem(registries.CORRUPTIONS.native, "dim", made(share))
        result = evaluate(kinds="dim", severities=[1], workdir=tmp_path)
        found.append(result["rows"][0]["accuracy"])
    assert found == [1.0, np.mean(np.zeros(20) == Y)]


def test_a_model_without_a_description_needs_a_name(tmp_path):
    lock = __import__("threading").Lock()

    def locked(x):
        with lock:
            return linear(x)

    options = {"kinds": "contrast", "severities": [1], "workdir": tmp_path}
    with pytest.raises(ValueError, match=r"needs name='\.\.\.'"):
        evaluate(locked, **options)
    assert evaluate(locked, name="mine", **options)["n"] == 20


def test_a_model_from_a_file(tmp_path):
    keras.utils.set_random_seed(0)
    network = other_network()
    network.save(tmp_path / "model.keras")
    y = network.predict(X, verbose=0).argmax(axis=1)
    found = evaluate(str(tmp_path / "model.keras"), (X, y), pixels="0..1")
    assert found == evaluate(network, (X, y))
    assert found["natural"]["accuracy"] == 1.0


@pytest.mark.parametrize(
    "options, message",
    [
        ({"kinds": "frost"}, "needs photographs. Received: corruption=frost"),
        ({"severities": [0]}, "Received: severity=0"),
        ({"severities": []}, "severities must be .* Received: none"),
        ({"batch_size": 0}, "Received: batch_size=0"),
        ({"data": (X[..., 0, 0], Y)}, "an image of shape"),
        ({"data": (np.repeat(X, 4, 3), Y)}, "an image of shape"),
        ({"data": (np.zeros((20, 70, 70, 1), "f4"), Y)}, "of 70x70 pixels"),
        ({"data": (X * 255, Y)}, "inside|in \\[0, 1\\]"),
        ({"model": lambda x: tf.nn.softmax(linear(x))}, "logits"),
        ({"model": lambda x: linear(x) * np.nan}, "finite logits"),
        ({"data": (X, Y + 1)}, "class"),
    ],
)
def test_bad_input_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        evaluate(**options)


def test_the_interval_is_wilson_s():
    for k in (0, 3, 20):
        wilson = scipy.stats.binomtest(k, 20).proportion_ci(method="wilson")
        found = intervals.wilson(k / 20, 20)
        np.testing.assert_allclose(found, wilson, atol=1e-12)
        assert found[0] <= k / 20 <= found[1]


@pytest.mark.slow
def test_it_survives_sigkill(tmp_path):
    code = textwrap.dedent(
        """
        import os, signal, sys
        import numpy as np, tensorflow as tf, tfsam
        random = np.random.default_rng(0)
        x = (0.4 + 0.2 * random.random((20, 8, 8, 1))).astype("float32")
        weights = random.normal(size=(64, 3)).astype("float32")
        weights -= weights.mean(axis=0)
        y = (x.reshape(20, 64) @ weights).argmax(axis=1)
        lines = []
        def progress(line):
            lines.append(line)
            if len(lines) == int(sys.argv[2]):
                os.kill(os.getpid(), signal.SIGKILL)
        result = tfsam.evaluate_corruptions(
            lambda x: tf.reshape(x, (-1, 64)) @ weights, (x, y), "noise",
            [1, 5], batch_size=8, workdir=sys.argv[1], progress=progress)
        print(result["mean_accuracy"])
        """
    )

    def run(last):
        return subprocess.run(
            [sys.executable, "-c", code, str(tmp_path), str(last)],
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"},
        )

    assert run(2).returncode == -signal.SIGKILL
    assert len([*tmp_path.glob("*-[15]/*.npz")]) == 4 * 3
    done = run(100)
    assert float(done.stdout) == evaluate(kinds="noise")["mean_accuracy"]
