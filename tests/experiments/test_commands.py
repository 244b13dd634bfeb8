"""The commands of `experiments`: flags of their own, errors in one line."""

import importlib
import pkgutil

import pytest

import experiments
from experiments import command


def commands():
    """Every module of the folder that has flags."""
    for found in pkgutil.iter_modules(experiments.__path__):
        # The examples import nothing of `experiments`; PyTorch may be missing.
        if found.name not in ("examples", "torch_networks"):
            module = importlib.import_module(f"experiments.{found.name}")
            if hasattr(module, "FLAGS"):
                yield module


COMMANDS = {module.__name__: module for module in commands()}


def test_they_are_found():
    assert {"experiments.table1", "experiments.soak"} <= set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_an_unknown_flag_is_an_error_of_one_line(name, capsys):
    module = COMMANDS[name]
    assert command.run(module.main, module.FLAGS, ["--nope=1"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{name.rpartition('.')[2]}: ") and "nope" in line


@pytest.mark.parametrize("name", COMMANDS)
def test_help_says_what_it_is_for(name, capsys):
    module = COMMANDS[name]
    assert command.run(module.main, module.FLAGS, ["--help"]) == 0
    output = capsys.readouterr().out
    assert output.startswith(module.__doc__)
    for flag in set(module.FLAGS) - {"help"}:
        assert f"--{flag}" in output or f"--[no]{flag}" in output
