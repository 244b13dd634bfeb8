"""The examples, copied out of the repository and run."""

import csv
import pathlib
import re
import runpy
import shutil
import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfsam
from experiments.examples import attack_a_defended_model
from experiments.examples import attack_a_random_model
from experiments.examples import attack_model
from experiments.examples import fit_folder
from tfsam import run

EXAMPLES = pathlib.Path(fit_folder.__file__).parent
README = (EXAMPLES / "attack_package" / "README.md").read_text()

pytestmark = pytest.mark.slow


def python(folder, *command):
    """Returns the output of a Python command that is started in a folder."""
    done = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def executed(script, monkeypatch, capsys):
    """Returns the output of a script that is executed as a program here."""
    monkeypatch.setattr(sys, "argv", [script])
    monkeypatch.syspath_prepend(str(pathlib.Path.cwd()))
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(script, run_name="__main__")
    assert not ended.value.code
    return capsys.readouterr().out


def accuracies(output):
    """Reads the first table: {(attack, epsilon): percent, as text}."""
    rows = re.findall(
        r"^\| (\w+) \| \w* \| ([\d/.]*) \| ([\d.]+) \|", output, re.M
    )
    return {row[:2]: row[2] for row in reversed(rows)}


def percent(logits, labels):
    return f"{100 * np.mean(np.argmax(logits, axis=1) == labels):.2f}"


@pytest.fixture(scope="module")
def images():
    """Returns 8-bit pixels, as in files."""
    images = tfsam.data.load("digits", limit_train=1000, limit_test=150)
    return images._replace(
        x_train=np.round(255 * images.x_train).astype("uint8"),
        x_test=np.round(255 * images.x_test).astype("uint8"),
    )


@pytest.fixture(scope="module")
def old(images):
    """A typical model: from pixels in 0..255 to probabilities."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Flatten(),
            keras.layers.Dense(32, "relu"),
            keras.layers.Dense(10, "softmax"),
        ]
    )
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(images.x_train, images.y_train, epochs=20, verbose=0)
    return model


@pytest.fixture
def reader(images, tmp_path, monkeypatch):
    """A reader's folder, the current one, with the scripts and the arrays."""
    for script in EXAMPLES.glob("*.py"):
        shutil.copy(script, tmp_path)
    names = ("x_train", "y_train", "x_test", "y_test")
    arrays = {name: getattr(images, name) for name in names}
    np.savez(tmp_path / "data.npz", **arrays)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_folder(images, folder):
    for split in ("train", "test"):
        x, y = getattr(images, f"x_{split}"), getattr(images, f"y_{split}")
        for index, (image, label) in enumerate(zip(x, y, strict=True)):
            path = folder / split / f"digit{label}" / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(tf.io.encode_png(image).numpy())


def test_fit_folder(reader, images):
    write_folder(images, reader / "images")
    output = python(reader, "fit_folder.py", "images")
    found = accuracies(output)
    # The saved weights are the measured ones.
    network = keras.saving.load_model("model.keras")
    logits = network(tfsam.data.as_float(images.x_test))
    natural = found["clean", ""]
    assert natural == percent(logits, images.y_test)
    assert float(natural) > 80
    curve = [float(found["pgd", f"{k}/255"]) for k in (4, 2, 1)]
    assert curve == sorted(curve) and curve[0] < float(natural)
    for name in ("model.keras", "saved_model"):
        (difference,) = re.findall(f"{name}: logits differ by (.*) at", output)
        assert float(difference) < 1e-4
    assert re.search(r"^the first test image: digit\d, in truth", output, re.M)
    with open("history.csv", newline="") as file:
        epochs = list(csv.DictReader(file))
    assert len(epochs) == 20
    assert float(epochs[-1]["loss"]) < float(epochs[0]["loss"]) / 4
    assert 0 < float(epochs[-1]["val_clean_accuracy"]) <= 1


def mend(model):
    """Follows the docstring on a model, which writes model.keras."""
    lines = re.findall(r"^  .*= .*\n(?:^  .*\n)+", attack_model.__doc__, re.M)
    exec(textwrap.dedent(lines[0]), {"keras_model": model, "tfsam": tfsam})


def test_attack_model(reader, images, old):
    mend(old)
    output = python(reader, "attack_model.py", "model.keras", "data.npz")
    found = accuracies(output)
    natural = percent(old(images.x_test), images.y_test)
    assert found["clean", ""] == natural
    for epsilon in ("1/255", "16/255"):
        noise, pgd = (
            float(found[attack, epsilon]) for attack in ("noise_linf", "pgd")
        )
        assert pgd <= noise <= float(natural)
    assert float(found["pgd", "16/255"]) < float(natural) - 20
    assert "AutoAttack on 50 of them" in output
    assert ("autoattack", "8/255") in found
    ((changed, size),) = re.findall(
        r"^changed (\d+) answers of 50, by ([\d.]+)\.$", output, re.M
    )
    assert int(changed) > 25
    assert 0.9 < float(size) <= 1.0  # The bounds of the pixels take some.
    assert re.search(r"^image \d+: (\d) became (?!\1)\d$", output, re.M)


@pytest.mark.filterwarnings("default:.* is a SavedModel")
def test_attack_model_takes_a_saved_model(
    reader, images, old, monkeypatch, capsys
):
    mend(old)
    keras.saving.load_model("model.keras").export("saved_model", verbose=False)
    monkeypatch.setattr(attack_model, "EPSILONS", [8 / 255])
    monkeypatch.setattr(attack_model, "FEW", 4)
    assert attack_model.main(["", "saved_model", "data.npz"]) == 0
    found = accuracies(capsys.readouterr().out)
    assert found["clean", ""] == percent(old(images.x_test), images.y_test)


def test_a_file_that_is_not_mended(reader, images, old, monkeypatch, capsys):
    """A softmax, and pixels in 0..255."""
    old.save("old.keras")
    monkeypatch.setattr(attack_model, "EPSILONS", [8 / 255])
    monkeypatch.setattr(attack_model, "FEW", 4)
    assert attack_model.main(["", "old.keras", "data.npz"]) == 0
    found = accuracies(capsys.readouterr().out)
    assert found["clean", ""] == percent(old(images.x_test), images.y_test)


@pytest.mark.parametrize(
    "arguments",
    [
        (fit_folder,),
        (fit_folder, "nowhere"),
        (attack_model, "model.keras"),
        (attack_model, "nowhere.keras", "nowhere.npz"),
        (attack_model, "nowhere.keras", "data.npz"),
        (attack_a_defended_model, "model.keras"),
        (attack_a_random_model, "model.keras"),
    ],
)
def test_a_wrong_call_is_one_line(arguments, reader, capsys):
    script, *rest = arguments
    assert script.main(["", *rest]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    name = pathlib.Path(script.__file__).name
    usage = f"usage: python {name}"
    assert ("nowhere" in line and "Received: " in line) or line.startswith(
        usage
    )


def test_attack_a_defended_model(reader, monkeypatch, capsys):
    output = executed("attack_a_defended_model.py", monkeypatch, capsys)
    sections = re.split("^## ", output, flags=re.M)[1:]
    found = {}
    for section in sections:
        title = section.partition("\n")[0]
        rows = accuracies(section)
        found[title] = {k: float(v) for (_, k), v in rows.items()}
        found[title]["warnings"] = re.findall(r"^warning, (\w+)", section, re.M)
    plain = found["No defence"]
    assert plain["32/255"] < plain[""] - 40
    quantised = found["quantisation, with its own gradient"]
    assert quantised["warnings"] == ["zero_gradients"]
    assert quantised["32/255"] > quantised[""] - 5
    through = found["quantisation, with tfsam.bpda"]
    assert through["warnings"] == []
    assert through["32/255"] < quantised["32/255"] - 40
    assert found["JPEG, with its own gradient"]["warnings"] == ["no_gradients"]
    assert "32/255" not in found["JPEG, with its own gradient"]
    through = found["JPEG, with tfsam.bpda"]
    assert through["32/255"] < through[""] - 40


def test_attack_a_random_model(reader, monkeypatch, capsys):
    output = executed("attack_a_random_model.py", monkeypatch, capsys)
    assert len(re.findall(r"20 draws, spread [1-9]", output)) == 3
    found = re.findall(r"^(pgd.*): ([\d.]+) %(.*)$", output, re.M)
    (one, single, nothing), (mean, averaged, something) = found
    assert (one, nothing) == ("pgd:steps=20", ", which means nothing")
    assert (mean, something) == ("pgd:steps=20:eot=20", "")
    assert float(averaged) <= float(single) + 3
    assert "warning, single_draws" in output


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The folder of the installed package, by the README's command, offline."""
    pytest.importorskip("pip")
    source = tmp_path_factory.mktemp("source") / "attack_package"
    shutil.copytree(EXAMPLES / "attack_package", source)
    assert "\npip install .\n" in README
    target = tmp_path_factory.mktemp("installed")
    offline = ("--no-index", "--no-deps", "--no-build-isolation")
    install = ("-m", "pip", "install", ".", "--quiet", *offline)
    python(source, *install, f"--target={target}")
    return target


@pytest.fixture
def plugged(installed, monkeypatch):
    monkeypatch.syspath_prepend(installed)
    import tfsam_smooth_pgd

    return tfsam_smooth_pgd.SmoothPGD


def test_the_package_is_checked(plugged):
    (code,) = re.findall(r'^python -c "(.*)"$', README, re.M)
    assert "check('smooth_pgd')" in code
    exec(code)
    assert tfsam.attacks.factory("smooth_pgd") is plugged


def test_the_package_is_on_the_command_line(plugged, tmp_path, capsys):
    (command,) = re.findall(r"^python -m tfsam.run (.*)$", README, re.M)
    small = (
        *("--method=st", "--epochs=1", "--limit_train=96"),
        *("--limit_test=20", "--linf_epsilons=0.1", "--l2_epsilons="),
        f"--workdir={tmp_path}",
    )
    assert run.main([*command.split(), *small]) == 0
    output = capsys.readouterr().out
    assert list(accuracies(output)) == [
        ("smooth_pgd", "0.1"),
        ("pgd", "0.1"),
        ("clean", ""),
    ]


def rippled(x):
    """A linear network, its gradient drowned by ripples of height 0.005."""
    x = tf.reshape(x, [-1, 16])
    height = tf.reduce_sum(x + 0.005 * tf.cos(1000 * x), axis=1)
    return tf.stack([-(height - 8), height - 8], axis=1)


def test_the_attack_sees_through_ripples(plugged):
    """Slopes of 1 - 5 sin(1000 x); the sine averages away.

    The sum is 0.8 below the boundary, and 16 pixels may move by 0.1 each.
    """
    offsets = np.random.default_rng(0).uniform(-0.1, 0.1, (40, 16))
    offsets -= offsets.mean(axis=1, keepdims=True) + 0.05
    x = (0.5 + offsets).astype("float32").reshape(40, 4, 4, 1)
    smooth, plain = tfsam.evaluate(
        rippled,
        (x, np.zeros(40, "int64")),
        attacks=["smooth_pgd", "pgd"],
        epsilons=[0.1],
        strict=True,
    )["robust"]
    assert smooth["accuracy"] == 0
    assert plain["accuracy"] > 0.5


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_without_noise_the_attack_is_pgd(plugged, norm):
    x = tf.constant(np.random.default_rng(0).random((8, 4, 4, 1)), tf.float32)
    y = np.arange(8) % 2
    options = {"epsilon": 0.2, "norm": norm, "steps": 3}
    attack = plugged(**options, draws=1, noise=0.0)
    expected = tfsam.PGD(**options, random_start=False)(rippled, x, y)
    np.testing.assert_array_equal(attack(rippled, x, y), expected)


def test_a_network_trains_with_the_attack(plugged, tmp_path):
    network = keras.Sequential(
        [
            keras.Input((4, 4, 1)),
            keras.layers.Flatten(),
            keras.layers.Dense(2),
        ]
    )
    model = tfsam.RobustModel(network, plugged(0.1, steps=2, draws=2))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss)
    x = np.random.default_rng(0).random((8, 4, 4, 1)).astype("float32")
    losses = model.fit(x, np.arange(8) % 2, verbose=0).history["loss"]
    assert np.isfinite(losses).all()
    model.save(tmp_path / "model.keras")
    attack = keras.saving.load_model(tmp_path / "model.keras").perturb_inputs
    assert type(attack) is plugged and attack.draws == 2
