"""Networks, reference values and ways to run the command, for several tests."""

import base64
import contextlib
import functools
import html.parser
import io
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import hypothesis
import keras
import numpy as np
import pytest
import tensorflow as tf

import tfsam
from experiments import reference
from tfsam import registries
from tfsam import run
from tfsam.reports import page
from tfsam.runs import settings
from tfsam.runs import stages
from tfsam.support import files
from tfsam.training import monitoring

TESTS = pathlib.Path(__file__).parent

REFERENCE = np.load(reference.PATH)


def network(weights):
    """The reference's CNN, with the weights stored under a key."""
    return reference.digits_cnn(REFERENCE, weights)


# A case of a parametrization for the slow tests alone.
slow = functools.partial(pytest.param, marks=pytest.mark.slow)


def examples(cost):
    """Returns the number of examples of a property with costly examples.

    Args:
        cost: of an example, in units of an ordinary one.
    """
    return max(hypothesis.settings.default.max_examples // cost, 1)


def tiny(classes, input_shape, statistics=None):
    """A network that is traced in no time, with state of every kind."""
    return keras.Sequential(
        [
            keras.Input(input_shape),
            keras.layers.Flatten(),
            keras.layers.Dense(8),
            keras.layers.BatchNormalization(momentum=0.8),
            keras.layers.ReLU(),
            keras.layers.Dropout(0.2),
            keras.layers.Dense(classes),
        ]
    )


# Of pixels and logits, where rows are rounded differently.
_DIFFERENCE = 1e-5


def convolutional(classes, input_shape, statistics=None):
    """Builds a small functional network with a convolution and BatchNorm."""
    inputs = keras.Input(input_shape)
    x = keras.layers.Conv2D(8, 3, padding="same", use_bias=False)(inputs)
    x = keras.layers.BatchNormalization(momentum=0.9)(x)
    x = keras.layers.Flatten()(keras.layers.ReLU()(x))
    outputs = keras.layers.Dense(classes)(x)
    return keras.Model(inputs, outputs, name="preact_small")


@functools.cache
def tolerance():
    """Measures how far rounding moves a row in another place of its batch.

    Returns:
        0.0 where this processor rounds a row alike at any place, so that
        results must agree to the bit. With AVX2 alone strided convolutions and
        dense layers do not.
    """
    network = tfsam.networks.preact_resnet8(10, input_shape=(8, 8, 1))
    rng = np.random.default_rng(0)
    x = rng.random((8, 8, 8, 1), dtype="float32")

    @tf.function(autograph=False)
    def both(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            z = network(x, training=False)
        return z, tape.gradient(z, x)

    whole = both(tf.constant(x))
    for order in (rng.permutation(8) for _ in range(4)):
        for found, expected in zip(
            both(tf.constant(x[order])), whole, strict=True
        ):
            if not np.array_equal(found, expected.numpy()[order]):
                return _DIFFERENCE
    return 0.0


SMALL = (
    "--limit_train=96",
    "--batch_size=32",
    "--limit_test=20",
    "--attacks=pgd",
    "--attack_steps=1",
    "--linf_epsilons=0.1",
    "--l2_epsilons=",
    "--nodiagnose",
)

# Six steps an epoch; the last one of them is of 16 images, too.
THREE_EPOCHS = (
    *(*SMALL, "--method=st"),
    *("--limit_train=96", "--batch_size=16", "--epochs=3"),
)


# Keras's function, also where `shorten_runs` replaces it.
EXPORT = keras.Model.export


def shorten_runs(patch):
    """Leaves out the pictures and SavedModels of runs, a third of their time.

    Other tests look at them, and slow tests have them for each kind of method.

    Args:
        patch: a `pytest.MonkeyPatch`.
    """

    def export(self, path, **options):
        pathlib.Path(path).mkdir()

    patch.setattr(stages, "draw", lambda *_: None)
    patch.setattr(keras.Model, "export", export)


def make_runs_tiny(patch):
    """Lets runs train a tiny network, and leaves out what takes them long.

    Args:
        patch: a `pytest.MonkeyPatch`.
    """
    patch.setitem(registries.NETWORKS.native, "preact_resnet8", tiny)
    shorten_runs(patch)


GPUS = tf.config.get_visible_devices("GPU")


cpu_only = pytest.mark.skipif(
    bool(GPUS), reason="A GPU is in use: no CPU devices, no equality to the bit"
)


def main(*arguments):
    """Runs the command in this process; returns (exit code, output)."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        code = run.main([str(argument) for argument in arguments])
    return code, output.getvalue()


def settings_of(*arguments):
    """The settings of a command line."""
    return settings.from_argv([str(argument) for argument in arguments])


def read_json(path):
    """Reads a JSON file."""
    return json.loads(pathlib.Path(path).read_text())


def snapshot(folder):
    """Everything in a folder: names, contents, times."""
    return {
        path: (path.stat().st_mtime_ns, path.is_file() and path.read_bytes())
        for path in [folder, *folder.rglob("*")]
    }


def read_weights(path):
    """Reads the weights of a .keras file."""
    return keras.saving.load_model(path, compile=False).get_weights()


def without_clocks(history):
    """The rows of a history file, without the columns that vary by run."""
    clocks = ("seconds", "step_seconds_median")
    return [
        {key: value for key, value in row.items() if key not in clocks}
        for row in monitoring.read_history(history)
    ]


def verdicts(results):
    """Returns the accuracy and the largest perturbation of each row."""
    rows = [results["natural"], *results["robust"]]
    return [(row["accuracy"], row.get("max_perturbation")) for row in rows]


def assert_same_run(workdir, expected):
    """Same weights to the bit, same history, same accuracies."""
    pairs = zip(
        read_weights(workdir / "model.keras"),
        read_weights(expected / "model.keras"),
        strict=True,
    )
    for found, wanted in pairs:
        np.testing.assert_array_equal(found, wanted)
    assert without_clocks(workdir / "history.csv") == without_clocks(
        expected / "history.csv"
    )
    assert verdicts(read_json(workdir / "results.json")) == verdicts(
        read_json(expected / "results.json")
    )


def assert_measured(row, n):
    """Checks that a row of results is a fraction of n examples."""
    assert type(row["accuracy"]) is float
    assert row["n"] == n
    low, high = row["interval"]
    assert 0 <= low <= row["accuracy"] <= high <= 1
    assert low < high
    assert row["accuracy"] * n == pytest.approx(round(row["accuracy"] * n))


def assert_refused(capsys, *arguments, parts):
    """Checks that the command refuses its input in one line."""
    code = run.main([str(argument) for argument in arguments])
    output, error = capsys.readouterr()
    assert code == 2
    assert output == ""
    # A SavedModel that is refused was loaded, with a warning.
    *warned, line = error.splitlines()
    assert all("is a SavedModel" in warning for warning in warned)
    assert line.startswith("tfsam: ")
    assert "Traceback" not in line
    for part in parts:
        assert str(part) in line


def start(*arguments, **options):
    """Starts Python in a process of its own."""
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


class Killed(BaseException):
    """Replaces SIGKILL, which does not clean up either."""


def kill_at_write(monkeypatch, name, nth=1):
    """Lets the process die before it moves `name` to its place."""
    replace, seen = os.replace, []

    def replace_or_die(source, target, **options):
        if pathlib.Path(target).name == name:
            seen.append(target)
            if len(seen) == nth:
                raise Killed
        return replace(source, target, **options)

    monkeypatch.setattr(os, "replace", replace_or_die)
    monkeypatch.setattr(files, "remove", lambda path: None)


def truncate(path):
    """Cuts a file in half."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def spoil_method(path):
    """A byte of the zip directory: the last file's method of compression."""
    content = bytearray(path.read_bytes())
    content[content.rindex(b"PK\x01\x02") + 10] = 99
    path.write_bytes(content)


def to_0_1_0(folder):
    """Rewrites the folder's record in the format of tfsam 0.1.0."""
    path = folder / "record.json"
    header = json.loads(path.read_text())
    later = {"jit_compile", "devices", "versions", "surrogates"}
    later |= {k for k in header if k.endswith(("_parts", "_sketch"))}
    header = {k: v for k, v in header.items() if k not in later}
    ((norm, epsilons),) = header["attacks"][0]["budgets"].items()
    header |= {"schema": 1, "norm": norm, "epsilons": epsilons}
    header["attacks"] = [
        {key: attack[key] for key in ("name", "options")}
        for attack in header["attacks"]
    ]
    path.write_text(json.dumps(header | {"surrogate": None}))
    for part in folder.glob("[0-9]*-*"):
        found: dict = {}
        for chunk in part.glob("*/*.npz"):
            epsilon = chunk.parent.name.partition("-")[2]
            number = sorted(epsilons).index(float(epsilon))
            for name, array in np.load(chunk).items():
                if name != "lengths":
                    key = f"{number}/{name}"
                    found.setdefault(chunk.name, {})[key] = array
        shutil.rmtree(part)
        part.mkdir()
        for name, arrays in found.items():
            np.savez(part / name, **arrays)
    for chunk in folder.glob("gradients/model/*.npz"):
        natural = folder / "natural" / chunk.name
        np.savez(natural, **np.load(natural), **np.load(chunk))
    shutil.rmtree(folder / "gradients", ignore_errors=True)


class OwnTape:
    """An attack with a tape of its own that declares no attributes."""

    steps = 3

    def __init__(self, epsilon, norm, bounds):
        self.epsilon, self.bounds = epsilon, bounds

    def __call__(self, logits_fn, x, y, seed):
        x = tf.convert_to_tensor(x)
        x_adv = x
        for _ in range(self.steps):
            with tf.GradientTape() as tape:
                tape.watch(x_adv)
                losses = tf.nn.sparse_softmax_cross_entropy_with_logits(
                    y, logits_fn(x_adv)
                )
            slope = tf.sign(self.slope(tape.gradient(losses, x_adv)))
            x_adv = x_adv + self.epsilon / self.steps * slope
            x_adv = tf.clip_by_value(x_adv, *self.bounds)
        return x_adv

    def slope(self, gradient):
        return gradient


class OwnTapeInGraph(OwnTape):
    """The same attack, declared to run in a graph."""

    in_graph = True


def assert_one_line_error(error, *parts):
    """Checks that an error is one line that holds all of the parts."""
    message = str(error.value)
    assert "\n" not in message
    assert "Received: " in message
    for part in parts:
        assert part in message


def palette(theme):
    """Reads the colours of the page's light or dark theme, by name."""
    style = (pathlib.Path(page.__file__).parent / "report.css").read_text()
    pairs = re.findall(r"--([\w-]+): light-dark\((#\w+), (#\w+)\)", style)
    return {name: pair[theme == "dark"] for name, *pair in pairs}


def decoded(address):
    """Decodes a picture of the page, from its data URL."""
    head, _, body = address.partition(",")
    assert head == "data:image/png;base64"
    return tf.io.decode_png(base64.b64decode(body)).numpy()


def accuracy(correct, n=10):
    """An accuracy as results have it."""
    low, high = max(0, correct - 2) / n, min(n, correct + 1) / n
    return {"accuracy": correct / n, "n": n, "interval": [low, high]}


def robust(attack, norm, epsilon, correct, n=10, **others):
    """A row of an attack as results have it."""
    row = {"attack": attack, "norm": norm, "epsilon": epsilon, "options": {}}
    row |= {"epsilon_text": f"{epsilon:g}"} | accuracy(correct, n)
    return row | others


def results_of(method, natural, rows, **others):
    """The results of a run that trained."""
    config = {"method": method, "seed": 0, "dataset": "digits", "rho": None}
    return {
        "schema": 1,
        "method": method,
        "config": config | others.pop("config", {}),
        "seed": 0,
        "train": {
            "epochs": 4,
            "seconds": 90.0,
            "step_seconds_median": 0.025,
            "passes": 2.0,
        },
        "natural": natural,
        "robust": rows,
        "warnings": [],
    } | others


def leave(folder, results):
    """Leaves the results of a run in its folder."""
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(results))
    return folder


class PageReader(html.parser.HTMLParser):
    """Reads the elements of a page, and the text of each."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        element = {"tag": tag, "text": "", **dict(attributes)}
        self.elements.append(element)
        if tag not in ("img", "input", "link", "meta"):
            self.open.append(element)

    def handle_endtag(self, tag):
        assert self.open.pop()["tag"] == tag

    def handle_data(self, data):
        for element in self.open:
            element["text"] += data

    def all(self, tag, **attributes):
        return [
            element
            for element in self.elements
            if element["tag"] == tag and attributes.items() <= element.items()
        ]


@contextlib.contextmanager
def counted_graphs():
    """Counts the graphs that TensorFlow makes."""
    graphs = []
    init = tf.__internal__.FuncGraph.__init__

    def counting(self, *arguments, **options):
        graphs.append(self)
        init(self, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tf.__internal__.FuncGraph, "__init__", counting)
        yield graphs
