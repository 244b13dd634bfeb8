"""Networks that users bring to train, as files or as functions."""

import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import SMALL
from helpers import Killed
from helpers import assert_refused
from helpers import assert_same_run
from helpers import cpu_only
from helpers import kill_at_write
from helpers import main
from helpers import read_json
from helpers import read_weights
from helpers import settings_of
from helpers import start

from tfsam import registries
from tfsam.models.networks import trainable
from tfsam.runs import attacked
from tfsam.runs import names
from tfsam.runs import stages
from tfsam.runs import trained_model

pytestmark = pytest.mark.usefixtures("short_runs")

MODULE = """
import keras
from keras import layers

def cnn(num_classes, input_shape, width=4):
    return keras.Sequential(
        [
            keras.Input(input_shape),
            layers.Conv2D(width, 3, strides=2, name="base_conv"),
            layers.BatchNormalization(name="base_norm", momentum=0.5),
            layers.ReLU(),
            layers.Dropout(0.2),
            layers.Flatten(),
            layers.Dense(num_classes, name="head"),
        ]
    )

def softmax(num_classes, input_shape):
    body = [layers.Flatten(), layers.Dense(num_classes, "softmax")]
    return keras.Sequential([keras.Input(input_shape), *body])

def of_ten(classes):
    return keras.Sequential([layers.Flatten(), layers.Dense(7)])

def broken(num_classes):
    raise KeyError("width")

def a_function(num_classes):
    return lambda x: x

class Unregistered(layers.Layer):
    pass

def unregistered(num_classes):
    layer = Unregistered()
    return keras.Sequential([layer, layers.Flatten(), layers.Dense(10)])

class Subclassed(keras.Model):
    def __init__(self, num_classes, **kwargs):
        super().__init__(**kwargs)
        self.flat, self.num_classes = layers.Flatten(), num_classes
        self.head = layers.Dense(num_classes)
    def call(self, x):
        return self.head(self.flat(x))
    def get_config(self):
        return {"num_classes": self.num_classes}

keras.saving.register_keras_serializable("bring")(Subclassed)

def subclassed(num_classes):
    return Subclassed(num_classes)
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module in the working directory, under a name of its own."""
    name = f"bring_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


def trained(*arguments, workdir):
    code, output = main(*SMALL, *arguments, f"--workdir={workdir}")
    assert code == 0
    return output


def weights(path, prefix):
    """The weights of a saved network's layers with a prefix."""
    network = keras.saving.load_model(path, compile=False)
    found = {
        v.path.split("/")[-2] + "/" + v.name: np.asarray(v)
        for v in network.variables
    }
    return {k: v for k, v in found.items() if k.startswith(prefix)}


@pytest.mark.slow
def test_a_function_is_trained_with_a_frozen_base_and_resumed(
    module, tmp_path, monkeypatch
):
    arguments = (
        *("--method=at_sam", "--steps=1", "--epochs=2"),
        *(f"--network={module}:cnn:width=3", "--freeze=^base"),
    )
    output = trained(*arguments, workdir=tmp_path / "whole")
    assert "280 of 322 weights are trained; 2 of 3 layers" in output
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at_write(patch, "epoch-0002.keras")
        trained(*arguments, workdir=tmp_path / "parts")
    trained(*arguments, workdir=tmp_path / "parts")
    assert_same_run(tmp_path / "parts", tmp_path / "whole")
    config = read_json(tmp_path / "whole" / "config.json")
    assert config["network"] == f"{module}:cnn:width=3"
    assert config["freeze"] == "^base"
    # Frozen layers keep their initial weights.
    begun = trainable.build(
        f"{module}:cnn:width=3", 10, (8, 8, 1), freeze="^base"
    )
    found = weights(tmp_path / "whole" / "model.keras", "base_norm")
    for name, value in found.items():
        expected = 1.0 if name.endswith(("gamma", "variance")) else 0.0
        np.testing.assert_array_equal(value, expected)
    assert len(found) == 4 and len(begun.trainable_variables) == 2


@pytest.fixture
def brought(tmp_path):
    """A network for other data, as its owner trained it: 4 classes, softmax."""
    keras.utils.set_random_seed(1)
    network = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Rescaling(1 / 255, name="rescaling"),
            keras.layers.Conv2D(3, 3, name="base_conv"),
            keras.layers.BatchNormalization(name="base_norm"),
            keras.layers.Flatten(),
            keras.layers.Dense(4, "softmax", name="head"),
        ]
    )
    path = tmp_path / "of=another" / "brought.h5"
    path.parent.mkdir()
    network.save(path)
    return path


def test_a_file_is_trained_further_under_a_new_head(brought, tmp_path, capsys):
    arguments = (
        *("--method=sam", "--epochs=1", f"--network={brought}"),
        *("--freeze=^base",),
    )
    workdir = tmp_path / "run"
    output = trained(*arguments, workdir=workdir)
    assert "head for 4 classes is replaced by one for 10" in output
    assert "pixels in 0..255 (as its layers tell)" in output
    before = keras.saving.load_model(brought).get_layer("base_conv")
    found = weights(workdir / "model.keras", "base_conv")
    np.testing.assert_array_equal(found["base_conv/kernel"], before.kernel)
    # Another file in its place is another run.
    found = read_json(workdir / "config.json")["inputs"]["network"]
    assert found.startswith("SHA-256 ")
    brought.write_bytes(brought.read_bytes() + b"changed")
    assert_refused(
        capsys,
        *(*SMALL, *arguments, f"--workdir={workdir}"),
        parts=["the file of the network changed since", "--overwrite"],
    )
    assert_refused(
        capsys,
        *(*SMALL, f"--network={workdir / 'model.keras'}"),
        *(f"--workdir={workdir}", "--overwrite"),
        parts=["--overwrite removes", "network="],
    )


@pytest.mark.slow
def test_a_file_that_is_trained_further_is_resumed(
    brought, tmp_path, monkeypatch
):
    arguments = ("--method=sam", "--epochs=2", f"--network={brought}")
    trained(*arguments, workdir=tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at_write(patch, "epoch-0002.keras")
        trained(*arguments, workdir=tmp_path / "parts")
    output = trained(*arguments, workdir=tmp_path / "parts")
    assert "resuming after epoch 1" in output
    # Gradients of convolutions are sums over threads, which round differently.
    for one, two in zip(
        read_weights(tmp_path / "parts" / "model.keras"),
        read_weights(tmp_path / "whole" / "model.keras"),
        strict=True,
    ):
        np.testing.assert_allclose(one, two, atol=1e-5)


def test_weights_are_loaded_into_a_function_s_network(module, tmp_path):
    spec = f"{module}:cnn"
    keras.utils.set_random_seed(5)
    first = trainable.build(spec, 10, (8, 8, 1))
    first.save_weights(tmp_path / "own.weights.h5")
    second = trainable.build(
        spec, 10, (8, 8, 1), weights=str(tmp_path / "own.weights.h5")
    )
    for one, two in zip(first.weights, second.weights, strict=True):
        np.testing.assert_array_equal(one, two)


def test_images_get_the_size_of_the_network_that_is_trained_further(
    brought, tmp_path
):
    for place in ("train", "test"):
        for label in ("cat", "dog"):
            folder = tmp_path / "images" / place / label
            folder.mkdir(parents=True)
            for side in (9, 12, 20):
                keras.utils.save_img(
                    folder / f"{side}.png", np.full((side, side + 3, 3), side)
                )
    settings = settings_of(
        f"--network={brought}", f"--dataset=folder:{tmp_path / 'images'}"
    )
    images = stages.load_images(settings, attacked.opened(settings))
    assert images.x_train.shape[1:] == (8, 8, 3)
    network = trained_model.make_network(settings, images, None)
    assert network.input_shape == (None, 8, 8, 3)
    assert network.output_shape == (None, 2)


@pytest.mark.slow
def test_a_subclassed_network_is_trained_and_resumed(
    module, tmp_path, monkeypatch
):
    arguments = ("--method=sam", "--epochs=2", f"--network={module}:subclassed")
    trained(*arguments, workdir=tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at_write(patch, "epoch-0002.keras")
        trained(*arguments, workdir=tmp_path / "parts")
    output = trained(*arguments, workdir=tmp_path / "parts")
    assert "resuming after epoch 1" in output
    assert_same_run(tmp_path / "parts", tmp_path / "whole")


@pytest.mark.slow
@cpu_only
def test_two_devices_train_the_head_alone(module, tmp_path):
    arguments = (
        *("--method=at_sam", "--steps=1", "--epochs=1", "--devices=cpu:2"),
        *(f"--network={module}:cnn", "--freeze=^base", "--average=ema"),
    )
    trained(*arguments, workdir=tmp_path / "run")
    found = weights(tmp_path / "run" / "model.keras", "base_norm")
    np.testing.assert_array_equal(found["base_norm/moving_mean"], 0.0)


@pytest.mark.slow
def test_the_exported_network_needs_neither_tfsam_nor_the_module(
    module, tmp_path
):
    arguments = ("--method=sam", "--epochs=1", f"--network={module}:cnn")
    trained(*arguments, workdir=tmp_path / "run")
    program = (
        "import sys, keras\n"
        "class Refuse:\n"
        "    def find_spec(self, name, *rest):\n"
        f"        if name.partition('.')[0] in ('tfsam', '{module}'):\n"
        "            raise ImportError(name)\n"
        "sys.meta_path.insert(0, Refuse())\n"
        "network = keras.saving.load_model('run/model.keras')\n"
        "print(network.output_shape)\n"
    )
    process = start("-c", program, cwd=tmp_path)
    output, error = process.communicate(timeout=200)
    assert output.split("\n")[-2] == "(None, 10)", error


@pytest.mark.parametrize(
    "arguments, parts",
    [
        (["--network={}:softmax"], ["logits", "tfsam.models.load"]),
        (["--network={}:of_ten"], ["10 logits", "(7,)"]),
        (["--network={}:broken"], ["cannot build a network", "width"]),
        (["--network={}:a_function"], ["keras.Model", "function"]),
        (["--network={}:unregistered"], ["register_keras_serializable"]),
        (["--network={}:nothing"], ["a function of the module"]),
        (["--network={}:cnn:wdth=3"], ["did you mean width?", "wdth=3"]),
        (["--network={}:cnn", "--freeze=stem"], ["base_conv", "0 of 3"]),
        (["--network={}:cnn", "--freeze=."], ["leave others", "3 of 3"]),
        (["--network={}:cnn", "--freeze=("], ["regular expression"]),
        (["--network={}:subclassed", "--freeze=head"], ["functional"]),
        (["--network=no_such_module:cnn"], ["no_such_module", "imported"]),
        (["--network=kears:MobileNetV2"], ["did you mean keras"]),
        (["--network=keras"], ["keras:NAME"]),
        (["--network=keras:MobileNetV2"], ["32x32", "--image_size"]),
        (["--network=no/such.keras"], ["no such file", "no/such.keras"]),
        (["--network={}.py"], ["{}.py"]),
        (["--weights=imagenet"], ["--network=keras:NAME"]),
        (["--weights=no_such.h5"], ["no_such.h5"]),
        (["--network=wide_resnet:depth=27"], ["depth=27"]),
    ],
)
def test_networks_that_cannot_be_trained_are_one_line(
    module, capsys, arguments, parts
):
    def filled(texts):
        return [text.replace("{}", module) for text in texts]

    assert_refused(
        capsys, *SMALL, "--workdir=run", *filled(arguments), parts=filled(parts)
    )
    assert not pathlib.Path("run").exists()


def test_a_savedmodel_is_not_run_to_be_refused(tmp_path, capsys):
    tf.saved_model.save(tf.Module(), str(tmp_path / "exported"))
    with pytest.raises(ValueError) as error:
        trainable.build(str(tmp_path / "exported"), 10, (8, 8, 1))
    assert "a SavedModel" in str(error.value)
    assert "--network=MODULE:FUNCTION" in str(error.value)


@pytest.mark.parametrize(
    "spec, name, options",
    [
        ("keras:MobileNetV2:alpha=0.35", "keras", {"alpha": 0.35}),
        ("runs/a=b/model.keras", "file", {"name": "runs/a=b/model.keras"}),
        ("model.h5", "file", {"name": "model.h5"}),
        ("FILE:a.h5", "file", {"name": "a.h5"}),
        ("nets:cnn:width=8", "function", {"name": "nets:cnn", "width": 8}),
        ("kerashub:hf://a/b", "kerashub", {"name": "hf://a/b"}),
        ("wide_resnet:depth=16", "wide_resnet", {"depth": 16}),
    ],
)
def test_a_spec_says_whose_network_it_is(spec, name, options, monkeypatch):
    if name == "kerashub":
        monkeypatch.setitem(registries.NETWORKS.native, name, lambda name: name)
    found, given = registries.NETWORKS.parse(spec)
    assert found == name
    assert options.items() <= given.items()
    # A spec means the same once it was written down.
    written = registries.NETWORKS.canonical(spec)
    assert registries.NETWORKS.parse(written) == (found, given)


def test_names_of_runs_differ_where_networks_do():
    def named(*arguments):
        return settings_of(*arguments).workdir.name

    specs = ("keras:MobileNetV2:alpha=0.35", "keras:MobileNetV2:alpha=0.5")
    assert len({named(f"--network={spec}") for spec in specs}) == 2
    assert "alpha=0.35" in named(f"--network={specs[0]}")
    files = ("a/model.keras", "b/c/model.keras", "model.keras")
    assert len({named(f"--network={file}") for file in files}) == 3
    patterns = ("^a", "a", "a$")
    assert len({named(f"--freeze={p}") for p in patterns}) == 3
    assert names._slug("^a") == "a"
