"""The examples in public docstrings run, and print the documented text."""

import doctest
import inspect
import os
import sys

import pytest

import tfsam

PUBLIC = (
    tfsam,
    tfsam.attacks,
    tfsam.attacks.logits,
    tfsam.corruptions,
    tfsam.data,
    tfsam.models,
    tfsam.networks,
    tfsam.page,
    tfsam.reports,
    tfsam.verdicts,
    tfsam.weights,
)


def public():
    """Every public class and function of tfsam's own, by its name."""
    found = {}
    for module in PUBLIC:
        for name in getattr(module, "__all__", None) or vars(module):
            part = getattr(module, name)
            own = getattr(part, "__module__", "") or ""
            if name.startswith("_") or not own.startswith("tfsam"):
                continue
            if inspect.isclass(part) or inspect.isfunction(part):
                found[f"{own}.{part.__qualname__}"] = part
    return found


@pytest.mark.parametrize("name", sorted(public()))
def test_the_example_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    part = public()[name]
    # A short example of a class may name it without an import.
    names = dict(vars(sys.modules[part.__module__]))
    (test,) = doctest.DocTestFinder(recurse=False).find(part, name, globs=names)
    runner = doctest.DocTestRunner(verbose=False)
    printed = []
    runner.run(test, out=printed.append)
    assert runner.failures == 0, "".join(printed)
    assert test.examples, f"{name} has no example"
    assert os.listdir(tmp_path) == []  # An example leaves nothing behind.
