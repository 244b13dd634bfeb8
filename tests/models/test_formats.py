"""Files that are no models are refused in a line that names their kind."""

import json
import pathlib
import pickle
import tempfile
import zipfile

import h5py
import hypothesis
import keras
import pytest
import tensorflow as tf
from hypothesis import strategies

from tfsam.models.files import formats
from tfsam.models.files import reading

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
GRAPH = tf.Graph()
with GRAPH.as_default():
    tf.compat.v1.placeholder(tf.float32, (1, 4), name="input")
NOTEBOOK = {"cells": [], "metadata": {}, "nbformat": 4}
TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03."

FILES = {
    "empty": (b"", "an empty file: download or save it again"),
    "lfs": (LFS, "a Git LFS pointer: run git lfs pull"),
    "notebook": (json.dumps(NOTEBOOK).encode(), "a Jupyter notebook: run it"),
    "page": (b"\n<!DOCTYPE html><html></html>", "an HTML page: download"),
    "json": (
        b'{"class_name": "Sequential", "config": {}}',
        "an architecture without weights, in JSON: give a file with",
    ),
    "yaml": (
        b"backend: tensorflow\nclass_name: Sequential\nconfig:\n  name: a\n",
        "an architecture without weights, in YAML",
    ),
    "tfjs": (
        b'{"format": "layers-model", "modelTopology": {}}',
        r"a TensorFlow\.js model: convert it to",
    ),
    "tflite": (b"\x1c\0\0\0TFL3" + bytes(64), "a TensorFlow Lite model"),
    "onnx": (b"\x08\x07\x12\x07pytorch\x1a\x05", "an ONNX model: convert it"),
    "torch": (TORCH, "a PyTorch file: convert it"),
    "pickle": (pickle.dumps([1, 2]), "a pickle, which can run any code"),
    "joblib": (
        b"\x80\x04\x95\0\0\0\0\0\0\0\0\x8c\x16joblib.numpy_pickle",
        "a pickle of joblib, which can run any code",
    ),
    "frozen": (GRAPH.as_graph_def().SerializeToString(), "a frozen graph"),
    "image": (b"\x89PNG\r\n\x1a\n" + bytes(20), "an image: give the file of"),
    "safetensors": (
        (40).to_bytes(8, "little") + b'{"w":{"dtype":"F32","shape":[1]}}',
        "a safetensors file",
    ),
    "archive": (b"\x1f\x8b\x08\0" + bytes(20), "a gzip archive: unpack it"),
    "script": (b"import keras\nmodel = 1\n", "a text file"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(90), "a truncated or damaged HDF5"),
    "zip": (b"PK\x03\x04" + bytes(90), "a truncated or damaged zip archive"),
    "noise": (bytes(range(128, 256)), "a file of unknown content"),
}


def refused(path, match):
    """A path is refused in one line, which names its kind."""
    with pytest.raises(ValueError, match=match) as error:
        reading.read(path)
    message = str(error.value)
    assert "\n" not in message
    assert message.startswith("model must be a Keras model file or a Saved")
    assert message.endswith(f"Received: model={path}")


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("name", ["model.keras", "model"])
def test_files_of_other_kinds(kind, name, tmp_path):
    content, match = FILES[kind]
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, match)


@pytest.mark.parametrize(
    "names, match",
    [
        (["archive/data.pkl", "archive/data/0"], "a PyTorch file"),
        (["a.npy", "b.npy"], r"a NumPy archive \(\.npz\)"),
        (["folder/model.h5"], r"contains folder/model\.h5: unpack it"),
        (["model/saved_model.pb"], "unpack it and give the model in it"),
        (["model/config.json"], "unpack it and give the model in it"),
        (["word/document.xml"], r"without config\.json, which no \.keras"),
        ([], r"without config\.json"),
    ],
)
def test_zip_archives_of_other_kinds(names, match, tmp_path):
    with zipfile.ZipFile(tmp_path / "model.keras", "w") as archive:
        for name in names:
            archive.writestr(name, b"0")
    refused(tmp_path / "model.keras", match)


@pytest.mark.parametrize(
    "names, match",
    [
        ([], r"a folder without saved_model\.pb: give the file of a model"),
        (["net.h5"], r"without saved_model\.pb: give net\.h5 in it"),
        (["model.json", "group1-shard1of1.bin"], r"a TensorFlow\.js model"),
        (["checkpoint"], "a TensorFlow checkpoint: weights need a network"),
        (["w.index", "w.data-00000-of-00001"], "a TensorFlow checkpoint"),
        (["1/saved_model.pb", "2/saved_model.pb"], r"of 2 SavedModels \(1, 2"),
    ],
)
def test_folders_of_other_kinds(names, match, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"0")
    refused(folder, match)


def test_parts_of_a_model(tmp_path):
    with h5py.File(tmp_path / "w.h5", "w") as file:
        file.attrs["layer_names"] = ["dense"]
        file.create_group("dense").attrs["weight_names"] = []
    refused(tmp_path / "w.h5", "--network=MODULE:FUNCTION --weights=FILE")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.attrs["x"] = 1
    refused(tmp_path / "a.h5", "Keras did not write has no model_config")
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "saved_model.pb").write_bytes(LFS)
    refused(tmp_path / "m", r"whose saved_model\.pb is a Git LFS pointer")
    tf.train.Checkpoint(x=tf.Variable(0.0)).write(str(tmp_path / "c"))
    for name in ("c", "c.index", "c.data-00000-of-00001"):
        refused(tmp_path / name, "a TensorFlow checkpoint")
    refused(tmp_path / "nowhere", "there is no such file")
    refused("https://host/model.keras", "not a URL: download the file first")


def test_a_saved_model_by_any_path_to_it(tmp_path, monkeypatch):
    module = tf.Module()
    module.variable = tf.Variable(1.0)
    folder = tmp_path / "serving" / "1"
    tf.saved_model.save(module, str(folder))
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(tmp_path))
    paths = ["", "saved_model.pb", "variables", "variables/variables.index"]
    for path in [
        *(folder / path for path in paths),
        *("." if not path else path for path in paths),
        f"{folder}/",
        folder.parent,
        "~/serving/1",
    ]:
        found = formats.recognize(path)
        assert found.format == "saved_model"
        assert found.path.resolve() == folder


@pytest.mark.parametrize("suffix", ["keras", "h5"])
def test_a_truncated_model(suffix, tmp_path):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    model.save(tmp_path / f"whole.{suffix}")
    content = (tmp_path / f"whole.{suffix}").read_bytes()
    path = tmp_path / "model"
    for part in (0.01, 0.3, 0.6, 0.99):
        path.write_bytes(content[: int(part * len(content))])
        refused(path, "a truncated or damaged (HDF5 file|zip archive)")


@hypothesis.given(
    strategies.sampled_from([b"", LFS, b"PK\x03\x04", b"\x89HDF\r\n\x1a\n"])
    | strategies.binary(max_size=8),
    strategies.binary(max_size=64),
)
def test_any_content_is_recognized_or_refused_in_a_line(start, rest):
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "model.h5")
        path.write_bytes(start + rest)
        refused(path, "Received: model=")
