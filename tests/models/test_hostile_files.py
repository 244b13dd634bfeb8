"""Files that hold code or lead elsewhere: refused before anything runs."""

import functools
import io
import json
import pathlib
import pickle
import stat
import tempfile
import zipfile

import h5py
import keras
import numpy as np
import pytest
from keras import layers

from tfsam.models.files import reading
from tfsam.models.files import trusted_code


@pytest.fixture
def mark(tmp_path):
    """A file that is there if a hostile file ran its code."""
    return tmp_path / "mark"


@pytest.fixture
def hostile_module(tmp_path, monkeypatch, mark):
    """A module that leaves the mark when it is imported."""
    (tmp_path / "hostile_fixture.py").write_text(
        "import keras\n"
        f"open({str(mark)!r}, 'w').close()\n"
        "class Dense(keras.layers.Layer):\n    pass\n"
        "def run(x):\n    return x\n"
    )
    monkeypatch.syspath_prepend(tmp_path)


def code(mark):
    """The stored code of a lambda that leaves the mark."""
    path = str(mark)
    layer = layers.Lambda(lambda x: open(path, "w").close() or x * 1)
    return layer.get_config()["function"]


def model():
    return keras.Sequential(
        [keras.Input((4,)), layers.Dense(4, name="dense")], name="outer"
    )


def entries(function):
    """A Lambda layer, as an entry of each format."""
    config = {"name": "target", "trainable": True, "function": function}
    new = {
        "module": "keras.layers",
        "class_name": "Lambda",
        "config": config,
        "registered_name": None,
    }
    old = {"class_name": "Lambda", "config": dict(config)}
    inner = function.get("config")
    if function["class_name"] == "__lambda__":
        parts = ("code", "defaults", "closure")
        old["config"]["function"] = [inner[part] for part in parts]
        old["config"]["function_type"] = "lambda"
    else:
        old["config"]["function"] = inner
        old["config"]["function_type"] = "function"
    return {"keras": new, "h5": old}


def nested(entry):
    """The entry inside another Sequential."""
    inner = {"name": "inner", "trainable": True, "layers": [entry]}
    return {
        "module": "keras",
        "class_name": "Sequential",
        "config": inner,
        "registered_name": None,
    }


@functools.cache
def saved(suffix):
    """The content of a harmless file."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, f"model{suffix}")
        model().save(path)
        return path.read_bytes()


def write(path, entry, version="3.8.0"):
    """Writes a model to which a layer was added by hand."""
    path.write_bytes(saved(path.suffix))
    if path.suffix == ".h5":
        with h5py.File(path, "r+") as file:
            config = json.loads(file.attrs["model_config"])
            config["config"]["layers"].append(entry)
            file.attrs["model_config"] = json.dumps(config)
            file.attrs["keras_version"] = version
        return
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(members["config.json"])
    config["config"]["layers"].append(entry)
    members["config.json"] = json.dumps(config)
    members["metadata.json"] = json.dumps({"keras_version": version})
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def refused(path, match, **options):
    with pytest.raises(ValueError, match=match) as error:
        reading.read(path, **options)
    assert "\n" not in str(error.value)
    assert str(error.value).endswith(f"Received: model={path}")


CONTAINERS = [
    ("keras", "3.8.0"),
    pytest.param("keras", "2.15.0", marks=pytest.mark.slow),
    pytest.param("h5", "3.8.0", marks=pytest.mark.slow),
    ("h5", "2.4.0"),
]


@pytest.mark.parametrize("suffix, version", CONTAINERS)
@pytest.mark.parametrize("wrap", [lambda entry: entry, nested])
def test_code_runs_only_where_its_layer_is_trusted(
    suffix, version, wrap, tmp_path, mark
):
    path = tmp_path / f"model.{suffix}"
    write(path, wrap(entries(code(mark))[suffix]), version)
    refused(path, r"layer target holds code \(Lambda\).* add --trust=target")
    refused(path, "layer target holds code", trusted=("inner", "dense"))
    assert not mark.exists()
    found = reading.read(path, trusted=("target",))
    found.model(np.zeros((1, 4), "float32"))
    assert mark.exists()


@pytest.mark.parametrize("suffix, version", CONTAINERS)
def test_a_registered_function_takes_its_place(suffix, version, tmp_path):
    function = {
        "module": "theirs",
        "class_name": "function",
        "config": "double",
        "registered_name": "double",
    }
    path = tmp_path / f"model.{suffix}"
    write(path, entries(function)[suffix], version)
    refused(path, "layer target (holds code|needs the function)")
    found = reading.read(path, {"double": lambda x: x * 2}).model
    dense = found.get_layer("dense")
    x = np.ones((1, 4), "float32")
    np.testing.assert_allclose(found(x), dense(x) * 2)


def test_code_of_keras_2_is_replaced_by_a_function_of_the_layers_name(
    tmp_path, mark
):
    write(tmp_path / "m.h5", entries(code(mark))["h5"], "2.4.0")
    found = reading.read(tmp_path / "m.h5", {"target": lambda x: x * 2}).model
    found(np.zeros((1, 4), "float32"))
    assert not mark.exists()


def layer(module, name, config=None, **extra):
    return {
        "module": module,
        "class_name": name,
        "config": {"name": "target"} | (config or {}),
        "registered_name": None,
    } | extra


def activation(module, name):
    function = {
        "module": module,
        "class_name": "function",
        "config": name,
        "registered_name": name,
    }
    return layer("keras.layers", "Activation", {"activation": function})


HOSTILE = [
    layer("hostile_fixture", "Dense"),
    layer("hostile_fixture", "Dense", registered_name="Custom>Dense"),
    # A class of theirs that has the name of one of Keras's.
    layer("hostile_fixture", "Dense", {"units": 3}),
    layer(None, "Theirs"),
    layer("keras.src.utils", "Theirs"),
    layer("keras.saving", "load_model", {"filepath": "other.keras"}),
    layer("keras.utils", "get_file", {"origin": "http://host"}),
    layer("keras.layers", "deserialize"),
    layer("keras.layers", "TFSMLayer", {"filepath": "/other"}),
    layer("keras.layers", "TorchModuleWrapper", {"module": "AAAA"}),
    layer("keras.layers", "JaxLayer", {"call_fn": None}),
    layer("keras.layers", "StringLookup", {"vocabulary": "/etc/hostname"}),
    activation("hostile_fixture", "run"),
    activation("os", "system"),
    activation("keras.utils", "get_file"),
    activation("keras.src.utils.io_utils", "print_msg"),
    activation("keras_hostile.ops", "run"),
    layer(
        "keras.layers",
        "Dense",
        {
            "units": 3,
            "kernel_regularizer": layer("hostile_fixture", "Dense"),
        },
    ),
    layer(
        "keras.layers",
        "Activation",
        {
            "activation": {
                "class_name": "__typespec__",
                "spec_name": "Dense",
                "module": "hostile_fixture",
                "registered_name": None,
                "config": [],
            }
        },
    ),
]


@pytest.mark.parametrize(
    "kind, config",
    [
        ("TFOpLambda", {"function": "io.write_file"}),
        ("TFOpLambda", {"function": "raw_ops.WriteFile"}),
        ("TensorFlowOpLayer", {"node_def": {"op": "WriteFile"}}),
        ("ClassMethod", {"cls_symbol": "tf.io.gfile.GFile"}),
    ],
)
def test_tf_keras_calls_no_function_that_writes_files(kind, config):
    entry = {"class_name": kind, "config": {"name": "target"} | config}
    with pytest.raises(trusted_code.Untrusted, match=r"^layer target (c|h)"):
        trusted_code.check(entry, {}, ())
    harmless = {"name": "target", "function": "math.add"}
    trusted_code.check({"class_name": "TFOpLambda", "config": harmless}, {}, ())


def test_the_shape_of_a_lambda_layer_may_be_code_of_keras_2():
    config = {"name": "target", "function": "double"}
    entry = {"class_name": "Lambda", "config": config}
    assert not trusted_code.check(entry, {"double": abs}, ())
    config |= {"output_shape": ["code"], "output_shape_type": "lambda"}
    with pytest.raises(trusted_code.Untrusted, match="layer target holds code"):
        trusted_code.check(entry, {"double": abs}, ())


@pytest.mark.usefixtures("hostile_module")
@pytest.mark.parametrize("suffix, version", CONTAINERS)
@pytest.mark.parametrize("entry", HOSTILE)
def test_nothing_else_is_imported_called_or_read(
    entry, suffix, version, tmp_path, mark
):
    path = tmp_path / f"model.{suffix}"
    write(path, nested(entry), version)
    refused(path, "layer target (needs|holds|reads)")
    assert not mark.exists()


def keras_file(path):
    """Writes a `.keras` file; returns its members."""
    path.write_bytes(saved(".keras"))
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.mark.parametrize(
    "name", ["../outside", "/outside", "a/../../outside", "..\\outside", "C:/x"]
)
def test_members_outside_of_their_folder(name, tmp_path):
    path = tmp_path / "model.keras"
    keras_file(path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, "text")
    refused(path, "is outside of its folder")
    assert not (tmp_path.parent / "outside").exists()


def test_links_and_repeated_members(tmp_path):
    path = tmp_path / "model.keras"
    members = keras_file(path)
    link = zipfile.ZipInfo("assets")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(link, "/etc")
    refused(path, "the member assets of the archive is a link")
    keras_file(path)
    with zipfile.ZipFile(path, "a") as archive:
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("config.json", members["config.json"])
    refused(path, r"has its member config\.json twice")


def test_bombs(tmp_path):
    path = tmp_path / "model.keras"
    members = keras_file(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
        archive.writestr("assets/large", bytes((1 << 26) + 1))
    refused(path, r"declares \d+ bytes and stores \d+")
    (tmp_path / "model.h5").write_bytes(saved(".h5"))
    with h5py.File(tmp_path / "model.h5", "r+") as file:
        file["model_weights"].create_dataset("x", (1 << 33,), "f4", chunks=True)
    refused(tmp_path / "model.h5", r"dataset x declares \d+ bytes and stores 0")


class Exploit:
    """An object that leaves a mark when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_pickles_are_never_loaded(tmp_path, mark):
    path = tmp_path / "model.keras"
    members = keras_file(path)
    content = io.BytesIO()
    np.savez(content, weights=np.array([Exploit(mark)], object))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", members["config.json"])
        archive.writestr("metadata.json", members["metadata.json"])
        archive.writestr("model.weights.npz", content.getvalue())
    refused(path, r"model\.weights\.npz of the archive need pickle")
    (tmp_path / "model.pkl").write_bytes(pickle.dumps(Exploit(mark)))
    refused(tmp_path / "model.pkl", "a pickle, which can run any code")
    assert not mark.exists()


def external_link(file, other):
    del file["dense/vars/0"]
    file["dense/vars/0"] = h5py.ExternalLink(str(other), "x")


def soft_link(file, other):
    file["extra"] = h5py.SoftLink("/dense/vars/0")


def external_storage(file, other):
    file.create_dataset("x", (4, 4), "f4", external=[(str(other), 0, 64)])


def virtual(file, other):
    layout = h5py.VirtualLayout((4, 4), "f4")
    layout[:] = h5py.VirtualSource(str(other), "x", (4, 4))
    file.create_virtual_dataset("x", layout)


@pytest.mark.parametrize(
    "change", [external_link, soft_link, external_storage, virtual]
)
@pytest.mark.parametrize("suffix", ["h5", "keras"])
def test_weights_in_other_files(change, suffix, tmp_path):
    other = tmp_path / "other.h5"
    with h5py.File(other, "w") as file:
        file["x"] = np.zeros((4, 4), "f4")
    path = tmp_path / f"model.{suffix}"
    path.write_bytes(saved(path.suffix))
    weights = path
    if suffix == "keras":
        weights = tmp_path / "model.weights.h5"
        weights.write_bytes(keras_file(path)["model.weights.h5"])
    with h5py.File(weights, "r+") as file:
        group = file["model_weights" if suffix == "h5" else "layers"]
        if suffix == "h5":
            group["dense/vars/0"] = np.zeros(1)
        change(group, other)
    if suffix == "keras":
        members = keras_file(path) | {"model.weights.h5": weights.read_bytes()}
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, content)
    refused(path, "an HDF5 file (with a link|whose dataset x)")
