"""The page of many runs: contents, errors and behaviour."""

import base64
import hashlib
import json
import pathlib
import re
import shutil

import numpy as np
import pytest
import tensorflow as tf
from helpers import PageReader
from helpers import accuracy
from helpers import decoded
from helpers import leave
from helpers import palette
from helpers import results_of
from helpers import robust
from helpers import settings_of

from tfsam import data
from tfsam import reports
from tfsam.reports import command
from tfsam.reports import page
from tfsam.reports.page import document
from tfsam.reports.page import pictures
from tfsam.reports.page import runs
from tfsam.reports.page import table
from tfsam.runs import stages

EVIL = "<img src=x onerror=alert(1)>"
SCRIPT = "</script><script>document.title = 'no'</script>"
FOLDER = pathlib.Path(page.__file__).parent


def evaluation(network, rows, **others):
    config = {"evaluate": str(network), "method": None}
    return results_of(
        None, accuracy(5, 5), rows, config=config, train=None, **others
    )


def leave_three(folder):
    """A run with all files, one with the fewest, one with a hostile name."""
    full = leave(
        folder / "full",
        results_of(
            "sam",
            accuracy(10),
            [
                robust("pgd", "linf", 0.2, 3, median_distance=0.15),
                robust("pgd", "linf", 0.1, 7),
                robust("pgd", "l2", 0.5, 9),
            ],
            config={"rho": 0.1},
        ),
    )
    (full / "history.csv").write_text(
        "epoch,seconds,step_seconds_median,accuracy,loss,val_robust_accuracy\n"
        "1,10,0.1,0.25,2.0,\n2,10,0.1,0.75,nan,0.5\n"
    )
    (full / "flatness.json").write_text(
        json.dumps(
            {
                "measures": {"largest_eigenvalue": 12.5, "worst_rise": None},
                "surface": {
                    "coordinates": [-1, 0, 1],
                    "loss": [[4, 2, 4], [2, 1, 2], [4, 2, float("nan")]],
                },
                "n": 100,
            }
        )
    )
    clean = np.zeros((2, 4, 4, 3), "float32")
    np.savez(
        full / "examples.npz",
        clean=clean,
        adversarial=clean + 0.1,
        before=["cat", EVIL],
        after=["dog", EVIL],
        attack="pgd",
        norm="linf",
        epsilon=0.1,
    )
    leave(
        full / "autoattack",
        evaluation(
            full / "model.keras", [robust("autoattack", "linf", 0.1, 2, 5)]
        ),
    )
    leave(
        folder / "least",
        {
            "schema": 1,
            "natural": accuracy(8),
            "robust": [robust("pgd", "linf", 0.1, 8)],
        },
    )
    evil = leave(
        folder / EVIL,
        results_of(
            SCRIPT,
            accuracy(9),
            [
                robust("pgd", "linf", 0.1, 5)
                | {"accuracy": None, "error": SCRIPT},
                robust(EVIL, "l2", 0.5, 4),
            ],
            warnings=[{"warning": "few_classes", "message": SCRIPT}],
            config={"rho": 0.2, EVIL: SCRIPT},
        ),
    )
    shutil.copy(full / "examples.npz", evil)
    (full / "examples.png").write_bytes(b"not used")
    return folder


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


# Input.


def test_results_can_be_read_back(folder, content):
    assert [run["name"] for run in content["runs"]] == [EVIL, "full", "least"]
    for run in content["runs"]:
        path = pathlib.Path(run["path"])
        assert run["results"] == json.loads((path / "results.json").read_text())
    full = content["runs"][1]
    nested = folder / "full" / "autoattack"
    assert full["evaluations"] == [
        {
            "path": str(nested),
            "results": json.loads((nested / "results.json").read_text()),
        }
    ]
    assert full["history"][1] == {
        **{"epoch": 2, "seconds": 10, "step_seconds_median": 0.1},
        **{"accuracy": 0.75, "loss": None, "val_robust_accuracy": 0.5},
    }
    assert full["flatness"]["surface"]["loss"][2] == [4, 2, None]
    assert (full["minutes"], full["passes"]) == (1.5, 8)
    assert content["runs"][2]["minutes"] is None


def test_curves_begin_at_the_natural_accuracy_of_the_same_images(content):
    curves = {curve["name"]: curve for curve in content["curves"]}
    pgd = curves["pgd l\N{INFINITY}, n = 10"]
    assert [e["text"] for e in pgd["epsilons"]] == ["0", "0.1", "0.2"]
    of_evil, of_full, of_least = (
        [(one["epsilon"], one["accuracy"]) for one in curve]
        for curve in pgd["points"]
    )
    assert of_full == [(0, 1.0), (0.1, 0.7), (0.2, 0.3)]
    assert of_least == [(0, 0.8), (0.1, 0.8)]
    assert of_evil == []  # Its attack failed.
    (autoattack,) = (
        one for name, one in curves.items() if "autoattack" in name
    )
    natural, attacked = autoattack["points"][1]
    assert natural == {
        **{"epsilon": 0, "accuracy": 1.0, "low": 0.6, "high": 1.0, "n": 5}
    }
    assert (attacked["accuracy"], attacked["n"]) == (0.4, 5)


def test_standard_training_sam_and_at_are_drawn_first(tmp_path):
    for name, method, seed in (
        *(("a", "asam", 0), ("b", "at", 0), ("c", "sam", 1)),
        *(("d", "sam", 0), ("e", "st", 1), ("f", "st", 0)),
    ):
        results = results_of(method, accuracy(9), [])
        leave(tmp_path / name, results | {"seed": seed})
    found = document._data(runs.read([tmp_path]))["first"]
    assert "".join("abcdef"[run] for run in found) == "fdba" + "ec"


def test_a_folder_given_twice_is_one_run(folder):
    found = runs.read([folder / "full", folder, folder / "least"])
    assert [run.name for run in found] == ["full", EVIL, "least"]


def test_an_evaluation_of_a_run_s_network_is_part_of_the_run(tmp_path):
    """Nested or named by --evaluate, but no shards and no records."""
    rows = [robust("pgd", "linf", 0.1, 5)]
    run = leave(tmp_path / "b", results_of("st", accuracy(9), rows))
    network = run / "model.keras"
    other = [robust("fgsm", "linf", 0.1, 5)]
    leave(tmp_path / "a", evaluation(network, other))
    leave(run / "moved", evaluation("/nowhere", [robust("pgd", "l2", 1, 5)]))
    leave(tmp_path / "c", evaluation(network, rows))
    leave(tmp_path / "d", evaluation(network, other))
    # Within another run's folder: the network identifies the run.
    elsewhere = leave(tmp_path / "e", results_of("sam", accuracy(9), rows))
    leave(elsewhere / "in", evaluation(network, [robust("z", "l2", 1, 5)]))
    shard = evaluation(network, [robust("y", "l2", 1, 5)])
    shard["config"]["shard"] = [0, 2]
    leave(tmp_path / "f", shard)
    found = {run.name: run for run in runs.read([tmp_path])}
    assert list(found) == ["b", "c", "d", "e", "f"]
    names = [e.path.name for e in found["b"].evaluations]
    assert names == ["a", "moved", "in"]
    assert not any(found[name].evaluations for name in "cdef")


def test_names_are_the_shortest_ends_that_differ(tmp_path):
    for path in ("x/st/0", "x/sam/0", "x/sam/1", "y/sam/0"):
        leave(tmp_path / path, results_of("st", accuracy(9), []))
    names = [run.name for run in runs.read([tmp_path])]
    assert names == ["x/sam/0", "1", "st/0", "y/sam/0"]


def test_methods_are_named_with_what_tells_them_apart(tmp_path):
    for name, method, config in (
        ("a", "sam", {"rho": 0.1, "seed": 1, "workdir": "a"}),
        ("b", "sam", {"rho": 0.2, "seed": 2, "workdir": "b"}),
        ("c", "at", {"epsilon": 8 / 255, "norms": ["l2"]}),
        ("d", "at", {"epsilon": 0.1, "norms": []}),
        ("e", "st", {"epsilon": 3}),
    ):
        results = results_of(method, accuracy(9), [], config=config)
        leave(tmp_path / name, results)
    assert table.method_names(runs.read([tmp_path])) == [
        *("sam rho=0.1", "sam rho=0.2"),
        *("at epsilon=8/255 norms=l2", "at epsilon=0.1 norms=\N{EN DASH}"),
        "st",
    ]


def test_settings(tmp_path):
    """Settings that differ in columns, the others once, unused ones never."""
    for name, config, numpy in (
        ("a", {"rho": 0.1, "augment": True, "l2_epsilons": []}, "1"),
        ("b", {"augment": False, "l2_epsilons": [8 / 255, 0.5]}, "2"),
    ):
        versions = {"numpy": numpy, "keras": "3"}
        config |= {"epochs": 2, "workdir": name}
        others = {"config": config, "versions": versions}
        leave(tmp_path / name, results_of("st", accuracy(9), [], **others))
    found = runs.read([tmp_path])
    columns = table.settings(found)
    assert [(c.name, [cell.text for cell in c.cells]) for c in columns] == [
        ("rho", ["0.1", "\N{EN DASH}"]),
        ("augment", ["True", "False"]),
        ("l2_epsilons", ["\N{EN DASH}", "8/255, 0.5"]),
        ("numpy", ["1", "2"]),
    ]
    # Sorted by numbers, or as texts; missing values come last.
    assert [[cell.value for cell in c.cells] for c in columns] == [
        *([0.1, None], ["True", "False"], [None, "8/255, 0.5"]),
        ["1", "2"],
    ]
    assert [c.is_numeric for c in columns] == [True, False, False, False]
    assert table.shared(found) == {
        **{"method": "st", "seed": "0", "dataset": "digits"},
        **{"epochs": "2", "keras": "3"},
    }


def test_columns(folder):
    """Every attack, norm and epsilon; the best of each; failures and gaps."""
    columns = table.columns(runs.read([folder]))
    linf = "pgd l\N{INFINITY}, n = 10"
    names = [column.name for column in columns]
    assert names == [
        *("method", "natural", f"{linf}, 0.1", f"{linf}, 0.2"),
        f"{EVIL} l2, n = 10, 0.5",
        "pgd l2, n = 10, 0.5",
        "autoattack l\N{INFINITY}, n = 5, 0.1",
        f"{linf}, median distance",
        *("training, epochs", "training, passes a step"),
        *("training, minutes", "training, ms a step", "n", "seed"),
    ]
    shown = {c.name: [cell.text for cell in c.cells] for c in columns}
    assert shown["natural"] == ["90.0", "100.0", "80.0"]
    assert shown[f"{linf}, 0.1"] == ["failed", "70.0", "80.0"]
    assert shown["training, minutes"] == ["1.50", "1.50", "\N{EN DASH}"]
    assert shown[f"{linf}, median distance"] == [
        *("\N{EN DASH}", "0.15", "\N{EN DASH}")
    ]
    found = columns[2]
    assert found.cells[1].detail == "50.0\N{EN DASH}80.0"
    assert "n = 10" in found.cells[1].title
    assert [found.is_best(cell) for cell in found.cells] == [0, 0, 1]


def test_an_attack_has_its_options_in_its_name():
    row = {"attack": "pgd", "options": {"steps": 5}, "standard": False}
    assert reports.attack_name(row) == "pgd (steps=5) (not standard)"
    assert reports.attack_name({"attack": "pgd"}) == "pgd"


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
    inputs = stages.Inputs(None, images, None, None)
    settings = settings_of(f"--workdir={tmp_path}")
    stages.draw(settings, model, inputs, results, print)
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


# In a browser.

ARGUMENTS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"),
    *("--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
)


@pytest.fixture(scope="module")
def browser():
    reason = "needs playwright, of the dev extra"
    api = pytest.importorskip("playwright.sync_api", reason=reason)
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("needs chromium or google-chrome on the PATH")
    with api.sync_playwright() as driver:
        started = driver.chromium.launch(
            executable_path=path, args=list(ARGUMENTS)
        )
        yield started
        started.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    folder = leave_three(tmp_path_factory.mktemp("browser").resolve())
    for i in range(8):
        rows = [robust("pgd", "linf", 0.1, i), robust("pgd", "l2", 0.5, 9)]
        results = results_of("st", accuracy(9), rows, seed=i)
        leave(folder / f"more{i}", results)
    page.write([folder], folder / "report.html")
    return (folder / "report.html").as_uri()


@pytest.fixture
def opened(browser, address):
    """Opens the page; it must log nothing and load nothing."""
    heard, tabs = [], []

    def open_(width=1280, scheme="light"):
        tab = browser.new_page(
            viewport={"width": width, "height": 900}, color_scheme=scheme
        )
        tabs.append(tab)
        tab.on("console", lambda message: heard.append(message.text))
        tab.on("pageerror", lambda error: heard.append(str(error)))
        tab.on("dialog", lambda dialog: heard.append(dialog.message))
        tab.on("request", lambda request: asked(request.url))
        tab.goto(address)
        return tab

    def asked(url):
        if not url.startswith(("file:", "data:")):
            heard.append(url)

    yield open_
    for tab in tabs:
        assert tab.title() == "Robustness report"
        assert not tab.locator("img[src=x]").count()
        tab.close()
    assert not heard


@pytest.mark.slow
@pytest.mark.parametrize(
    ("width", "scheme"), [(1280, "light"), (1280, "dark"), (360, "light")]
)
def test_it_looks_as_it_should(opened, tmp_path, width, scheme):
    tab = opened(width, scheme)
    path = tmp_path / "page.png"
    tab.screenshot(path=path, full_page=True)
    picture = tf.io.decode_png(path.read_bytes(), channels=3).numpy()
    assert picture.shape[1] == width
    ground = palette(scheme)["ground"]
    expected = [int(ground[i : i + 2], 16) for i in (1, 3, 5)]
    is_ground = (picture == expected).all(axis=2)
    assert 0.5 < is_ground.mean() < 0.97
    assert tab.evaluate("document.documentElement.scrollWidth") == width
    # Every chart has curves in colours that differ.
    for chart in tab.locator("svg.chart").all():
        strokes = chart.locator(".mark").evaluate_all(
            "marks => marks.map(mark => getComputedStyle(mark).fill)"
        )
        assert strokes
        assert chart.get_attribute("aria-label").endswith(".")


def texts(tab, column):
    rows = tab.locator("#runs tbody tr")
    return rows.evaluate_all(
        f"rows => rows.map(row => row.cells[{column}].firstChild.textContent)"
    )


@pytest.mark.slow
def test_the_table_sorts(opened):
    tab = opened()
    head = tab.locator("#runs th", has_text="0.1").first
    column = int(head.get_attribute("data-position"))
    before = texts(tab, column)
    assert before[1:] == ["70.0", "80.0", *(f"{10 * i:.1f}" for i in range(8))]
    numbers = sorted(map(float, before[1:]))
    for direction, expected in (
        ("ascending", numbers),
        ("descending", numbers[::-1]),
        ("ascending", numbers),
    ):
        head.locator("button").press("Enter")
        assert head.get_attribute("aria-sort") == direction
        # Rows without a number come last in both.
        assert texts(tab, column) == [*(f"{x:.1f}" for x in expected), "failed"]
    tab.locator("#runs th", has_text="run").first.locator("button").click()
    assert head.get_attribute("aria-sort") == "none"
    names = texts(tab, 0)
    assert names[-1] == "more7"
    assert names.index("full") < names.index("least") < names.index("more0")


@pytest.mark.slow
def test_runs_are_selected(opened):
    tab = opened()

    def curves(run):
        return tab.locator(f"#robustness .panel [data-run='{run}']").count()

    # The first eight at first; pgd l-inf, l2, and autoattack.
    assert [bool(curves(run)) for run in range(11)] == [True] * 8 + [False] * 3
    assert curves(1) == 3
    assert tab.locator("#selected").text_content() == "8 of 11 drawn"
    tab.locator("input[value='1']").uncheck()
    assert curves(1) == 0
    assert tab.locator("#examples article:visible").count() == 1
    # Its colour is free, and the next run takes it; the others keep theirs.
    kept = tab.locator("#robustness .panel [data-run='2']").first
    look = kept.get_attribute("class")
    tab.locator("input[value='9']").check()
    assert curves(9) == 2
    nine = tab.locator("#robustness .panel [data-run='9']").first
    assert "colour-1" in nine.get_attribute("class")
    assert kept.get_attribute("class") == look
    tab.locator("[data-select=none]").click()
    assert tab.locator(".panel [data-run]").count() == 0
    tab.locator("[data-select=all]").click()
    assert all(curves(run) for run in range(11))
    assert tab.locator("#robustness .legend li").count() == 11


@pytest.mark.slow
def test_charts_say_their_numbers(opened):
    tab = opened()
    chart = tab.locator("#robustness svg.chart", has_text="0.2").first
    chart.focus()
    for _ in range(9):  # It stops at the end.
        chart.press("ArrowRight")
    tooltip = tab.locator("#tooltip")
    assert tooltip.text_content() == "epsilon 0.2full30.0 %10.0\u201340.0"
    chart.press("Escape")
    assert not tooltip.is_visible()
    chart.hover(position={"x": 60, "y": 60})
    assert tooltip.text_content().startswith("naturalfull100.0 %")
    cost = tab.locator("#cost svg.chart")
    options = tab.locator("#cost select").first
    options.select_option("natural")
    assert "full 100.0 % at 8 cost" in cost.get_attribute("aria-label")
    tab.locator("#cost select").last.select_option(index=1)
    assert "full 100.0 % at 1.5 minutes" in cost.get_attribute("aria-label")


@pytest.mark.slow
def test_the_theme_switches(opened):
    tab = opened()

    def ground():
        return tab.evaluate("getComputedStyle(document.body).backgroundColor")

    light = ground()
    tab.locator("#theme").click()
    dark = ground()
    tab.locator("#theme").click()
    assert dark != light == ground() == "rgb(255, 255, 255)"


@pytest.mark.slow
def test_head_and_first_column_stay_in_sight(opened):
    tab = opened(360)
    frame = tab.locator("#runs .scroller")
    head = tab.locator("#runs thead th").first
    before = head.bounding_box()
    frame.evaluate("frame => frame.scrollTo(150, 150)")
    left, top = frame.evaluate("frame => [frame.scrollLeft, frame.scrollTop]")
    assert left == 150
    after = head.bounding_box()
    assert after["x"] == before["x"]
    assert after["y"] >= frame.bounding_box()["y"]
    assert top == 0 or after["y"] > before["y"] - top


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 360])
def test_counts_signs_and_corruptions_are_drawn(browser, tmp_path, width):
    finding = {"indicator": "a_sign", "message": "Of it.", "remedy": "So."}
    case = {"norm": "linf", "epsilon": 0.1, "epsilon_text": "0.1"}
    attacks = [{"attack": "pgd", "broken": 5}]
    kinds = [
        {"corruption": kind, "severity": severity, **accuracy(9 - severity)}
        for kind in ("fog", "shot_noise")
        for severity in (1, 2)
    ]
    results = results_of(
        "st",
        accuracy(9),
        [robust("pgd", "linf", 0.1, 4, diagnosis=[finding])],
        worst_case=[case | accuracy(4) | {"attacks": attacks}],
        corruptions={
            **{"name": "mine", "rows": kinds, "mean_accuracy": 0.75},
            **{"n": 10, "interval": [0.5, 1.0]},
        },
    )
    run, heard = leave(tmp_path / "run", results), []
    page.write([run], tmp_path / "report.html")
    tab = browser.new_page(viewport={"width": width, "height": 900})
    tab.on("console", lambda message: heard.append(message.text))
    tab.on("pageerror", lambda error: heard.append(str(error)))
    tab.goto((tmp_path / "report.html").as_uri())
    assert tab.evaluate("document.documentElement.scrollWidth") == width
    charts = tab.locator("#corruptions svg.chart")
    labels = [chart.get_attribute("aria-label") for chart in charts.all()]
    assert labels == [
        "fog. run 70.0 % at severity 2.",
        "shot noise. run 70.0 % at severity 2.",
    ]
    charts.first.focus()
    charts.first.press("ArrowRight")
    assert tab.locator("#tooltip").text_content().startswith("cleanrun90.0 %")
    bar, filled = (
        tab.locator(f"#worst-case {part}").bounding_box()["width"]
        for part in (".bar", ".bar rect")
    )
    assert filled == pytest.approx(bar / 2, abs=1)
    assert tab.locator("#worst-case article:visible").count() == 1
    tab.locator("[data-select=none]").click()
    assert tab.locator("#worst-case article:visible").count() == 0
    assert tab.locator("#trust td", has_text="a sign: Of it.").is_visible()
    tab.close()
    assert not heard
