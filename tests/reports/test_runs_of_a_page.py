"""The runs of a page: their names, columns and settings."""

import json
import pathlib

import pytest
from helpers import PageReader
from helpers import accuracy
from helpers import leave
from helpers import results_of
from helpers import robust
from runs_of_pages import EVIL
from runs_of_pages import evaluation
from runs_of_pages import leave_three

from tfsam import reports
from tfsam.reports import page
from tfsam.reports.page import document
from tfsam.reports.page import runs
from tfsam.reports.page import table


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
