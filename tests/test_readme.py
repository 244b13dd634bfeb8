"""The README promises nothing that is not so."""

import pathlib
import re

import tfsam
from tfsam import run
from tfsam.runs import methods

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_python_example_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = re.search(r"```python\n(import keras.*?)```", README, re.S)[1]
    assert len(code.split("\n\n")[1].strip().splitlines()) == 5
    names: dict = {}
    exec(code, names)
    result = names["result"]
    assert [row["epsilon"] for row in result["robust"]] == [0.05, 0.1]
    assert all(row["accuracy"] is not None for row in result["robust"])
    assert (tmp_path / "saved_model" / "saved_model.pb").exists()


def test_the_table_of_methods_is_the_table_of_the_methods():
    assert methods.table() in README


def test_every_flag_is_mentioned():
    flags = [name for name in run.define_flags() if name != "help"]
    missing = [f for f in flags if f"--{f}" not in README]
    assert not missing


def test_every_attack_is_mentioned():
    for name in tfsam.attacks.names():
        assert re.search(f"`{name}[`:]", README), name


RESULTS = ROOT / "experiments/results"


def rows(text):
    return [line for line in text.splitlines() if re.match(r"\| *`", line)]


def row_of(title):
    """The sweep's name of a row of README's table."""
    others = {
        "ST": "st",
        "LookSAM alpha 0.7": "looksam:rho=0.2",
        "LookSAM alpha 0.3": "looksam:rho=0.2:alpha=0.3",
        "ASAM": "asam",
        "ESAM rho 0.2": "esam:rho=0.2",
        "FGSM-AT 1/255": "fgsm_at:epsilon=1/255",
        "AWP 4/255": "awp:epsilon=4/255",
    }
    for start, prefix in {
        "SAM rho ": "sam-",
        "AT l-inf ": "at-linf-",
        "AT l2 ": "at-l2-",
    }.items():
        if title.startswith(start):
            return prefix + title.removeprefix(start).removesuffix("/255")
    return others[title]


def test_the_readme_s_accuracies_are_those_of_the_table():
    table = rows((RESULTS / "table1/small/table.md").read_text())
    by_name = {row.split("`")[1]: row.split(" | ") for row in table[::-1]}
    kinds = "ST|SAM|AT|LookSAM|ASAM|ESAM|FGSM-AT|AWP"
    shown = re.findall(rf"^\| ((?:{kinds}) .*?) \|$", README, re.M)
    assert len(shown) >= 5
    for title, *cells in (row.split(" | ") for row in shown):
        assert cells == by_name[row_of(title)][2 : 2 + len(cells)], title


def test_the_ci_knows_all_folders_with_slow_tests():
    script = (ROOT / ".ci/run").read_text()
    groups = script.partition("groups=(")[2].partition(")")[0]
    named = set(re.findall(r"\w+", groups))
    mark = "mark" + ".slow"
    slow = {
        path.relative_to(ROOT / "tests").parts[0]
        for path in (ROOT / "tests").rglob("test_*.py")
        if mark in path.read_text()
    }
    assert slow and named >= slow
    assert all((ROOT / "tests" / name).is_dir() for name in named)
