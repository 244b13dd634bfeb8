"""The page of many runs: its contents and its errors."""

import base64
import hashlib
import json
import pathlib
import re

import numpy as np
import pytest
import tensorflow as tf
from helpers import PageReader
from helpers import accuracy
from helpers import decoded
from helpers import leave
from helpers import results_of
from helpers import robust
from helpers import settings_of
from runs_of_pages import EVIL
from runs_of_pages import SCRIPT
from runs_of_pages import leave_three

from tfsam import data
from tfsam.reports import command
from tfsam.reports import page
from tfsam.reports.page import pictures
from tfsam.runs import drawing

FOLDER = pathlib.Path(page.__file__).parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return leave_three(tmp_path_factory.mktemp("three").resolve())


@pytest.fixture(scope="module")
def reader(folder):
    return PageReader(page.render([folder]))


@pytest.fixture(scope="module")
def content(reader):
    (script,) = reader.all("script", id="data")
    return json.loads(script["text"])


# The page.


def test_structure(reader):
    sections = [section["id"] for section in reader.all("section")]
    assert sections == [
        *("warnings", "runs", "robustness", "training", "cost"),
        *("examples", "flatness", "settings"),
    ]
    assert len(reader.all("h1")) == 1
    assert len(reader.all("h2")) == len(sections)
    links = [a["href"] for a in reader.all("a") if a["href"] != "#warnings"]
    assert links == [f"#{name}" for name in sections[1:]]
    assert len(reader.all("caption")) == len(reader.all("table")) == 3
    boxes = reader.all("input", type="checkbox")
    assert [box["value"] for box in boxes] == ["0", "1", "2"]
    assert all(image["alt"] for image in reader.all("img"))
    drawings = reader.all("svg", role="img")
    assert [drawing["aria-label"] for drawing in drawings] == [
        "Loss surface of full: loss 1 at the centre, up to 4, both directions "
        "from -1 to 1"
    ]


def test_heads_sort(reader):
    heads = [th for th in reader.all("th") if "aria-sort" in th]
    natural = next(th for th in heads if th["text"] == "natural")
    assert (natural["aria-sort"], natural["data-kind"]) == ("none", "number")
    assert len(heads) == len([b for b in reader.all("button")]) - 3


def test_what_a_run_has_not_left_is_not_shown(tmp_path):
    least = {"schema": 1, "natural": accuracy(8), "robust": []}
    reader = PageReader(page.render([leave(tmp_path / "run", least)]))
    sections = [section["id"] for section in reader.all("section")]
    assert sections == ["runs", "settings"]


def test_a_picture_stands_in_for_examples(tmp_path):
    run = leave(tmp_path / "run", results_of("st", accuracy(8), []))
    (run / "examples.png").write_bytes(b"picture")
    (image,) = PageReader(page.render([run])).all("img")
    address = "data:image/png;base64," + base64.b64encode(b"picture").decode()
    assert image["src"] == address


def test_nothing_in_a_file_becomes_markup(reader):
    assert [s.get("type") for s in reader.all("script")] == [
        *("application/json", None)
    ]
    for element in reader.elements:
        assert not [name for name in element if name.startswith("on")]
        assert "style" not in element or element["tag"] == "style"
        for name in ("src", "href"):
            address = element.get(name, "#")
            assert address.startswith(("#", "data:image/png;base64,", "data:,"))
    texts = [th["text"] for th in reader.all("th", scope="row")]
    assert texts.count(EVIL) == 1  # In the settings; else with a badge.
    assert texts[0] == f"{EVIL}2 warnings"
    warnings = [li["text"] for li in reader.all("li")]
    assert warnings[0].startswith(f"few classes: {SCRIPT} {EVIL}")
    assert warnings[1].startswith(f"pgd failed: linf 0.1: {SCRIPT}")
    captions = [c["text"] for c in reader.all("figcaption")]
    assert f"\N{RIGHTWARDS ARROW} {EVIL}" in captions


def test_only_the_page_s_own_script_and_style_are_allowed(reader):
    policy = reader.all("meta", **{"http-equiv": "Content-Security-Policy"})
    allowed = policy[0]["content"]
    assert allowed.startswith("default-src 'none'; img-src data:; ")
    for kind in ("script", "style"):
        text = reader.all(kind)[-1]["text"]
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest())
        assert f"{kind}-src 'sha256-{digest.decode()}'" in allowed
    for file in FOLDER.glob("report.*"):
        assert not re.search(r"//\w|url\(|@import", file.read_text()), file


def test_the_page_is_ascii(tmp_path):
    name = "l\N{INFINITY} \N{RIGHTWARDS ARROW}"
    run = leave(tmp_path / name, results_of("st", accuracy(8), []))
    text = page.render([run])
    assert text.isascii()
    reader = PageReader(text)
    assert reader.all("span", title=str(run))[0]["text"] == name


def test_examples(folder):
    with np.load(folder / "full" / "examples.npz") as arrays:
        first, _ = pictures.examples(dict(arrays))
    clean, perturbation, adversarial, factor, before, after = first
    assert (before, after) == ("cat", "dog")
    assert factor == pytest.approx(4)
    np.testing.assert_array_equal(decoded(clean), np.zeros((4, 4, 3)))
    np.testing.assert_array_equal(decoded(perturbation), round(0.9 * 255))
    np.testing.assert_array_equal(decoded(adversarial), round(25.5))


def test_a_run_leaves_its_examples(tmp_path):
    """The file that `draw` writes beside examples.png has the same data."""
    images = data.load("digits", limit_train=50, limit_test=20)
    pixels = tf.reshape(images.x_train[:, :, :, 0], (50, 64))
    pixels = tf.cast(pixels, "float32")
    columns = [
        tf.reduce_mean(pixels[images.y_train == k], 0) for k in range(10)
    ]
    means = tf.stack(columns, 1) / tf.reduce_max(pixels)

    def model(x):
        """Predicts the class with the nearest mean."""
        x = tf.reshape(tf.cast(x, "float32"), (-1, 64))
        return 2 * x @ means - tf.reduce_sum(means**2, 0)

    results = {
        "natural": accuracy(9),
        "robust": [robust("fgsm", "linf", 0.25, 2)],
    }
    settings = settings_of(f"--workdir={tmp_path}")
    drawing.draw(settings, model, images, None, results, print)
    with np.load(tmp_path / "examples.npz") as arrays:
        clean, adversarial = arrays["clean"], arrays["adversarial"]
        assert arrays["attack"] == "fgsm"
        assert (arrays["norm"], arrays["epsilon"]) == ("linf", 0.25)
        for name, shown in (("before", clean), ("after", adversarial)):
            found = np.argmax(model(shown), axis=1)
            assert [str(k) for k in found] == arrays[name].tolist()
    assert clean.shape == (5, 8, 8, 1)
    assert 0 < np.abs(adversarial - clean).max() <= 0.25 + 1e-6
    (tmp_path / "results.json").write_text(
        json.dumps(results_of("st", results["natural"], results["robust"]))
    )
    assert len(PageReader(page.render([tmp_path])).all("img")) == 15


# Bad input.


def write(text, name="results.json"):
    def spoil(run):
        (run / name).write_text(text)

    return spoil


def change(**changes):
    def spoil(run):
        results = json.loads((run / "results.json").read_text())
        (run / "results.json").write_text(json.dumps(results | changes))

    return spoil


def change_row(**changes):
    row = robust("pgd", "linf", 0.1, 5) | changes
    return change(robust=[row])


def pickled(run):
    np.savez(run / "examples.npz", clean=np.array([{}], object))


def mismatched(run):
    np.savez(
        run / "examples.npz",
        clean=np.zeros((2, 4, 4, 1)),
        adversarial=np.zeros((2, 4, 4, 3)),
    )


def surface(loss):
    found = {"surface": {"coordinates": [0, 1], "loss": loss}}
    return write(json.dumps(found), "flatness.json")


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda run: (run / "results.json").unlink(), "a results.json"),
        (write('{"schema": 1'), "results.json (JSONDecodeError"),
        (write("[]"), "results.json (TypeError"),
        (change(schema=2), "schema must be 1, is 2"),
        (change(natural=None), "results.json (TypeError"),
        (change(natural={"accuracy": 0.5}), "results.json (KeyError"),
        (change(natural=accuracy(5) | {"accuracy": 2}), "a fraction"),
        (change(natural=accuracy(5, 5) | {"accuracy": "1"}), "TypeError"),
        (change(train=[1]), "train must be an object"),
        (change_row(attack=3), "attack must be a string, is 3"),
        (change_row(epsilon=float("nan")), "epsilon must be finite"),
        (change_row(accuracy=None), "results.json (KeyError"),
        (change(warnings=[{}]), "results.json (KeyError"),
        (write("epoch,loss\n1,much\n", "history.csv"), "a row of numbers"),
        (write("step\n1\n", "history.csv"), "a row of numbers"),
        (write("no zip", "examples.npz"), "examples.npz (ValueError"),
        (pickled, "examples.npz (ValueError"),
        (mismatched, "images must come in pairs"),
        (write("{", "flatness.json"), "flatness.json (JSONDecodeError"),
        (surface([[1, 2]]), "a square of losses"),
        (surface([[None, None]] * 2), "finite losses"),
        (write('{"measures": {"a": "b"}}', "flatness.json"), "a number"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(tmp_path, capsys, spoil, why):
    rows = [robust("pgd", "linf", 0.1, 5)]
    run = leave(tmp_path / "run", results_of("st", accuracy(9), rows))
    spoil(run)
    output = tmp_path / "report.html"
    arguments = [str(run), f"--output={output}"]
    assert command.main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("report: expected a f")
    assert "Received: " in line
    assert str(run) in line
    assert why in line
    assert not output.exists()


@pytest.mark.parametrize("arguments", [[], ["/nowhere"], ["--unknown"]])
def test_no_folder_is_exit_code_2(arguments, capsys):
    assert command.main(arguments) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_the_command_writes_the_page(folder, tmp_path, capsys):
    output = tmp_path / "report.html"
    arguments = [str(folder), f"--output={output}"]
    assert command.main(arguments) == 0
    assert capsys.readouterr().out == f"{output}: 3 runs\n"
    assert output.read_text() == page.render([folder])
