"""Data that is larger than memory: equal verdicts, and only chunks are held."""

import tracemalloc

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import tfsam
from tfsam import data
from tfsam.data import examples
from tfsam.data import rows
from tfsam.evaluation import cache_key
from tfsam.evaluation import plans
from tfsam.support import files

RANDOM = np.random.default_rng(0)
PIXELS = RANDOM.integers(0, 256, (20, 4, 4, 3), np.uint8)
X = data.as_float(PIXELS)
WEIGHTS = RANDOM.normal(size=(48, 3)).astype("float32")
Y = (X.reshape(20, 48) @ WEIGHTS).argmax(axis=1)


def linear(x):
    return tf.reshape(x, (-1, 48)) @ WEIGHTS


def as_rows(array):
    return rows.Rows(lambda at: array[at], array.shape, array.dtype)


def images_of(x, y):
    return data.Images("", x[:0], y[:0], x, y, ("a", "b", "c"))


WAYS = {
    "rows": lambda: (data.as_float(as_rows(PIXELS)), Y),
    "images": lambda: images_of(as_rows(PIXELS), Y),
    "batches": lambda: tf.data.Dataset.from_tensor_slices((X, Y)).batch(6),
    "examples": lambda: tf.data.Dataset.from_tensor_slices((X, Y)),
    "generator": lambda: (
        (X[n : n + 3], Y[n : n + 3]) for n in range(0, 20, 3)
    ),
}


@pytest.fixture
def is_large(monkeypatch):
    """Little is kept in memory, and few examples are read at once."""
    monkeypatch.setattr(rows, "MOST_IN_MEMORY", 1000)
    monkeypatch.setattr(rows, "_BLOCK", 1000)


def evaluate(given, folder, attack=tfsam.FGSM, **options):
    return tfsam.evaluate(
        linear,
        given,
        [("attack", attack)],
        epsilons=[0.02, 0.1],
        batch_size=8,
        strict=True,
        workdir=folder,
        name="linear",
        **options,
    )


def without_clocks(result):
    for row in result["robust"]:
        del row["seconds"]
    return result


@pytest.fixture(scope="module")
def in_memory(tmp_path_factory):
    """The result of arrays in memory, and the folder of its record."""
    folder = tmp_path_factory.mktemp("in_memory")
    return without_clocks(evaluate((X, Y), folder)), folder


def unused(**_):
    raise AssertionError("the verdicts are in the record")


@pytest.mark.parametrize("way", WAYS)
def test_verdicts_are_equal_and_resume(way, in_memory, is_large, tmp_path):
    expected, folder = in_memory
    found = without_clocks(evaluate(WAYS[way](), tmp_path))
    assert found == expected
    assert 0 < found["robust"][1]["accuracy"] < 1
    headers = [files.read_json(at / "record.json") for at in (tmp_path, folder)]
    assert headers[0] == headers[1]
    # Either resumes from the record of the other.
    assert without_clocks(evaluate(WAYS[way](), folder, unused)) == expected
    assert without_clocks(evaluate((X, Y), tmp_path, unused)) == expected


def test_other_data_is_another_evaluation(in_memory, is_large):
    other = X.copy()
    other[-1, -1, -1, -1] = 1 - other[-1, -1, -1, -1]
    with pytest.raises(files.Unusable, match="data"):
        evaluate((as_rows(other), Y), in_memory[1])


def test_a_folder_is_evaluated(is_large, tmp_path):
    order = np.argsort(Y, kind="stable")
    for number in order:
        path = tmp_path / f"images/{Y[number]}/{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(PIXELS[number]).save(path)
    expected = without_clocks(evaluate((X[order], Y[order]), tmp_path / "a"))
    named = f"folder:{tmp_path}/images"
    for given in (named, tmp_path / "images", data.load(named, part="test")):
        found = evaluate(given, tmp_path / "a", unused)
        assert without_clocks(found) == expected


def test_adversarial_images_are_kept_chunk_by_chunk(is_large, tmp_path):
    kept = []
    for given, name in (((X, Y), "a"), (WAYS["rows"](), "b")):
        evaluate(given, tmp_path / name, save_adversarial=True)
        kept.append(
            {
                path.relative_to(tmp_path / name): {
                    key: value
                    for key, value in np.load(path).items()
                    if "adversarial" in key
                }
                for path in (tmp_path / name).rglob("*.npz")
            }
        )
    assert kept[0].keys() == kept[1].keys() and any(kept[0].values())
    for path, arrays in kept[0].items():
        for key, images in arrays.items():
            np.testing.assert_array_equal(images, kept[1][path][key])


@pytest.mark.parametrize(
    ("value", "message"), [(np.nan, "finite"), (np.inf, "finite"), (1.1, "lie")]
)
def test_pixels_are_checked_where_they_are(value, message, is_large):
    wrong = X.copy()
    wrong[11, 1, 2, 0] = value
    with pytest.raises(ValueError, match=message):
        tfsam.evaluate(linear, (as_rows(wrong), Y), [])


def test_rounding_errors_are_clipped_when_they_are_read(is_large):
    near = X.copy()
    near[11, 1, 2, 0] = 1 + 2e-7
    found = plans.load_data((as_rows(near), Y), (0.0, 1.0))
    assert found.x[:].max() == 1 and found.ends.tolist() == [X.min(), 1]
    half = as_rows(X.astype(np.float16))
    found = plans.load_data((half, Y), (0.0, 1.0))
    assert found.x.dtype == found.x[:2].dtype == np.float32


def test_the_digest_is_that_of_the_array(is_large):
    plan = [
        plans.load_data((x, Y), (0.0, 1.0))
        for x in (X, as_rows(X), data.as_float(as_rows(PIXELS)))
    ]
    assert len({cache_key.data_digest(each) for each in plan}) == 1


COUNT, SIDE = 600, 64  # 29 MB as floats.


def made(positions):
    shape = (SIDE, SIDE, 3)
    images = [np.full(shape, n % 7 / 7, np.float32) for n in positions]
    return np.stack(images)


def of_dataset(labels):
    def batches():
        for start in range(0, COUNT, 10):
            yield made(range(start, start + 10)), labels[start : start + 10]

    signature = (
        tf.TensorSpec((None, SIDE, SIDE, 3), tf.float32),
        tf.TensorSpec((None,), tf.int64),
    )
    return tf.data.Dataset.from_generator(batches, output_signature=signature)


def test_chunks_alone_are_held(monkeypatch, tmp_path):
    monkeypatch.setattr(rows, "MOST_IN_MEMORY", 1 << 19)
    monkeypatch.setattr(rows, "_BLOCK", 1 << 19)

    def model(x):
        return 9 * x[:, 0, :3, 0]

    def evaluate():
        given = of_dataset(np.arange(COUNT) % 3)
        options = {"epsilons": [0.01], "batch_size": 20, "name": "model"}
        tfsam.evaluate(model, given, ["fgsm"], workdir=tmp_path, **options)

    tracemalloc.start()
    try:
        evaluate()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < COUNT * SIDE * SIDE * 3 * 4 / 2


def test_a_landscape_reads_its_batches():
    network = keras.Sequential(
        [keras.Input((4, 4, 3)), keras.layers.Flatten(), keras.layers.Dense(3)]
    )
    found, expected = (
        tfsam.Landscape(network, (x, Y), batch_size=6)
        for x in (data.as_float(as_rows(PIXELS)), X)
    )
    assert found.loss() == expected.loss()
    assert found.loss(part=slice(3, 12)) == expected.loss(part=slice(3, 12))
    gradients = [each.input_gradients()["l1"] for each in (found, expected)]
    np.testing.assert_array_equal(*gradients)


def test_temporary_files_are_gone(is_large, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    x, _ = examples.load(WAYS["batches"]())
    assert isinstance(x, rows.Rows)
    np.testing.assert_array_equal(x[:], X)
    assert not list(tmp_path.iterdir())
