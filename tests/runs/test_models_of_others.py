"""Models of other origin, attacked and inspected by the command."""

import re
import shlex

import keras
import pytest
from helpers import main
from helpers import network
from helpers import read_json
from helpers import settings_of
from keras import layers

pytestmark = pytest.mark.usefixtures("short_runs")

QUICK = ("--attacks=fgsm", "--linf_epsilons=0.1", "--l2_epsilons=")


@pytest.fixture(scope="module")
def trained():
    """The reference's CNN of the digits, with a softmax, for 0..255."""
    made = network("standard")
    kernel, *rest = made.get_weights()
    made.set_weights([kernel / 255, *rest])
    return keras.Sequential([keras.Input((8, 8, 1)), made, layers.Softmax()])


@pytest.fixture
def path(trained, tmp_path):
    """An HDF5 file with a space in its name."""
    trained.save(tmp_path / "my model.h5")
    return tmp_path / "my model.h5"


def evaluated(path, tmp_path, *arguments):
    return main(
        f"--evaluate={path}",
        "--dataset=digits",
        "--limit_test=100",
        *QUICK,
        f"--workdir={tmp_path / 'run'}",
        *arguments,
    )


@pytest.mark.filterwarnings("ignore:.*HDF5")
def test_an_h5_file_with_a_softmax_and_pixels_in_0_to_255(path, tmp_path):
    code, text = evaluated(path, tmp_path)
    assert code == 0
    results = read_json(tmp_path / "run/results.json")
    model = results["model"]
    assert results["natural"]["accuracy"] > 0.9
    assert (model["format"], model["logits"]) == ("hdf5", "removed_ending")
    assert model["pixels"] == "0..255"
    assert model["natural_accuracy"]["0..255"] > 0.9
    assert f"SHA-256 {model['sha256']}; its softmax was removed" in text
    assert "model: pixels in 0..255; natural accuracy on some images: " in text


@pytest.mark.filterwarnings("ignore:.*HDF5")
def test_the_wrong_range_is_refused_before_anything_is_written(
    path, tmp_path, capsys
):
    code, _ = evaluated(path, tmp_path, "--pixels=0..1")
    (line,) = capsys.readouterr().err.splitlines()
    assert code == 2
    assert re.match(
        r"tfsam: natural accuracy is \d+\.\d % with pixels in 0\.\.1 and "
        r"9\d\.\d % in 0\.\.255: add --pixels=0\.\.255 ",
        line,
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.filterwarnings("ignore:.*HDF5")
@pytest.mark.slow
def test_a_surrogate_has_pixels_of_its_own(path, tmp_path):
    plain = network("standard")
    plain.save(tmp_path / "plain.keras")
    other = f"--surrogate={tmp_path / 'plain.keras'}"
    code, text = evaluated(path, tmp_path, other, "--pixels=0..255")
    assert code == 0
    assert "surrogate: pixels in 0..1;" in text


@pytest.mark.filterwarnings("ignore:.*HDF5")
def test_inspect_prints_a_table_and_the_command(path):
    code, text = main(f"--inspect={path}", "--dataset=digits")
    assert code == 0
    rows = dict(
        re.split(r"\s{2,}|: ", line, maxsplit=1) for line in text.splitlines()
    )
    assert rows["format"] == "HDF5, read by keras"
    assert rows["written by"] == f"Keras {keras.__version__}"
    assert rows["input"] == "(8, 8, 1) float32"
    assert rows["outputs"] == "10 classes"
    assert rows["ends in"] == "softmax, which is removed"
    assert rows["pixels"] == "0..255"
    assert "% in 0..1, 9" in rows["natural accuracy"]
    tfsam, *flags = shlex.split(rows["to evaluate it"])
    assert tfsam == "tfsam" and "--pixels=0..255" in flags
    made = settings_of(*flags)
    assert (made.evaluate, made.pixels) == (str(path), "0..255")


def test_inspect_without_images(tmp_path):
    keras.Sequential([keras.Input((64,)), layers.Dense(1, "sigmoid")]).save(
        tmp_path / "one.keras"
    )
    code, text = main(f"--inspect={tmp_path / 'one.keras'}")
    assert code == 0
    assert "2 classes" in text
    assert "sigmoid, which is removed" in text
    assert text.endswith("one.keras --dataset=folder:PATH\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--inspect=none.keras"], "none.keras"),
        (["--inspect=a.keras", "--evaluate=b.keras"], "Received: both"),
        (["--inspect=a.keras", "--pixels=0..2"], "pixels must be"),
        (["--inspect=a.keras", "--import=no.such"], "--import"),
    ],
)
def test_what_cannot_be_inspected_is_one_line(arguments, message, capsys):
    code, text = main(*arguments)
    (line,) = capsys.readouterr().err.splitlines()
    assert (code, text) == (2, "")
    assert line.startswith("tfsam: ")
    assert message.strip("-") in line


MODULE = """
import keras

def digits_network(num_classes):
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(16, 3, padding="same", activation="relu"),
            keras.layers.ZeroPadding2D(1),
            keras.layers.Conv2D(32, 3, strides=2, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(num_classes, "softmax"),
        ]
    )

@keras.saving.register_keras_serializable("of_runs_19")
class Doubled(keras.layers.Layer):
    def call(self, x):
        return 2 * x

def halved(x):
    return x / 2
"""


@pytest.mark.slow
def test_modules_of_the_user(tmp_path, monkeypatch):
    (tmp_path / "layers_of_runs_19.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    import layers_of_runs_19 as mine

    inputs = keras.Input((8, 8, 1))
    outputs = network("standard")(mine.Doubled()(inputs))
    keras.Model(inputs, outputs).save("custom.keras")
    objects = keras.saving.get_custom_objects()
    monkeypatch.delitem(objects, "of_runs_19>Doubled")
    monkeypatch.delitem(__import__("sys").modules, "layers_of_runs_19")
    code, _ = evaluated("custom.keras", tmp_path)
    assert code == 2
    code, _ = evaluated(
        *("custom.keras", tmp_path, "--import=layers_of_runs_19"),
        "--pixels=layers_of_runs_19:halved",
    )
    assert code == 0
    results = read_json(tmp_path / "run/results.json")
    assert results["model"]["pixels"] == "layers_of_runs_19:halved"
    assert results["natural"]["accuracy"] > 0.9


@pytest.mark.parametrize(
    "arguments",
    [
        ["--evaluate={}", "--network=networks_of_runs_19:digits_network"],
        pytest.param(
            ["--evaluate=networks_of_runs_19:digits_network", "--weights={}"],
            marks=pytest.mark.slow,
        ),
    ],
)
def test_weights_without_a_model(tmp_path, monkeypatch, arguments):
    (tmp_path / "networks_of_runs_19.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "alone.weights.h5"
    network("standard").save_weights(path)
    found = [argument.format(path) for argument in arguments]
    workdir = tmp_path / "run"
    found += ["--dataset=digits", f"--workdir={workdir}", *QUICK]
    found += ["--linf_epsilons=", "--limit_test=60"]
    assert main(*found)[0] == 0
    results = read_json(workdir / "results.json")
    assert results["natural"]["accuracy"] > 0.9
    assert results["model"]["format"] == "weights"
    assert results["model"]["logits"] == "removed_ending"
    # The same command again finds it finished.
    code, text = main(*found)
    assert (code, "holds this run, finished" in text) == (0, True)


def test_weights_without_a_network_are_refused(tmp_path, capsys):
    network("standard").save_weights(tmp_path / "alone.weights.h5")
    code, _ = evaluated(tmp_path / "alone.weights.h5", tmp_path)
    (line,) = capsys.readouterr().err.splitlines()
    assert code == 2
    assert "--network=MODULE:FUNCTION --weights=FILE" in line
    code, _ = main("--evaluate=a.h5", "--network=a:b", "--weights=b.h5")
    assert code == 2
    assert "evaluate=a.h5, weights=b.h5" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:.*HDF5")
def test_the_order_of_classes_is_refused_in_one_line(trained, tmp_path, capsys):
    """A model of 1..10 in the order of strings, on data in that of numbers."""
    numbers = [str(number) for number in range(1, 11)]
    places = [numbers.index(name) for name in sorted(numbers)]
    order = list(map(str, places))
    inputs = keras.Input((8, 8, 1))
    outputs = keras.ops.take(trained(inputs), places, axis=1)
    keras.Model(inputs, outputs).save(tmp_path / "other.keras")
    code, _ = evaluated(tmp_path / "other.keras", tmp_path)
    (line,) = capsys.readouterr().err.splitlines()
    assert code == 2
    assert "--class_order=FILE, a file with the lines 0, 9, 1, 2" in line
    assert re.search(r"the lines (.*)\. Received", line)[1] == ", ".join(order)


@pytest.mark.slow
def test_classes_in_the_order_of_a_file(trained, tmp_path):
    lines = list("3456789012")
    inputs = keras.Input((8, 8, 1))
    outputs = keras.ops.take(trained(inputs), list(map(int, lines)), axis=1)
    keras.Model(inputs, outputs).save(tmp_path / "other.keras")
    (tmp_path / "order.txt").write_text("\n".join(lines))
    order = f"--class_order={tmp_path / 'order.txt'}"
    code, _ = evaluated(tmp_path / "other.keras", tmp_path, order)
    assert code == 0
    results = read_json(tmp_path / "run/results.json")
    assert results["natural"]["accuracy"] > 0.9
    assert results["class_names"] == lines
