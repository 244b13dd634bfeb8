"""Rules of this house for its modules and its tests."""

import ast
import collections
import graphlib
import pathlib

ROOT = pathlib.Path(__file__).parents[1]


def test_files_of_tests_have_names_of_their_own():
    """Pytest would import the first of two files of one name for both."""
    paths = pathlib.Path(__file__).parent.rglob("test_*.py")
    names = collections.Counter(path.name for path in paths)
    assert len(names) > 1
    assert [name for name, count in names.items() if count > 1] == []


def modules():
    """Returns the files of tfsam's modules and packages by their names."""
    found = {}
    for path in (ROOT / "tfsam").rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(p for p in parts if p != "__init__")] = path
    return found


def imported(path, known):
    """Returns the modules of tfsam that a module needs to be imported."""
    names = []
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    # The last part of a name may be a function.
    owners = [name.rpartition(".")[0] for name in names]
    pairs = zip(names, owners, strict=True)
    return {n if n in known else o for n, o in pairs} & set(known)


def test_no_modules_import_each_other():
    known = modules()
    graph = {name: imported(path, known) for name, path in known.items()}
    assert "tfsam.attacks.logits" in graph["tfsam.attacks.base"]
    graphlib.TopologicalSorter(graph).prepare()  # Raises a CycleError.
