"""The README promises nothing that is not so."""

import pathlib
import re

import tfsam
from tfsam import methods
from tfsam import run

README = (pathlib.Path(__file__).parents[1] / "README.md").read_text()


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
