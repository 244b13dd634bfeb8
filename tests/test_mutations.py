"""The mutations that .ci/mutations seeds have their place in the code."""

import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
SCRIPT = ROOT / ".ci/mutations"


def run(*arguments):
    return subprocess.run(
        [sys.executable, SCRIPT, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )


def test_each_mutation_has_its_place_and_its_tests():
    done = run("--check")
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


@pytest.mark.parametrize("times", [0, 2])
def test_a_text_that_is_not_there_once_is_an_error(tmp_path, times):
    package, tests = tmp_path / "tfsam", tmp_path / "tests"
    package.mkdir()
    tests.mkdir()
    (tests / "test_geometry.py").write_text("")
    line = "return tf.sign(gradients)\n"
    (package / "geometry.py").write_text(times * line)
    name = "l-inf steps go downhill"
    done = run("--check", f"--tree={tmp_path}", name)
    assert done.returncode == 1
    assert f"{name}: the text must be found once" in done.stdout
    assert f"Received: {times} times" in done.stdout


@pytest.mark.slow
def test_a_mutation_that_no_test_catches_survives(tmp_path):
    package, tests = tmp_path / "tfsam", tmp_path / "tests"
    package.mkdir()
    tests.mkdir()
    # Without it an installed tfsam would be imported instead.
    (package / "__init__.py").touch()
    (package / "geometry.py").write_text(
        "import types\n\n"
        "tf = types.SimpleNamespace(sign=abs)\n\n\n"
        "def step(gradients):\n    return tf.sign(gradients)\n"
    )
    test = "from tfsam.geometry import step\n\n\n"
    test += "def test_one():\n    assert {}\n"
    name = "l-inf steps go downhill"
    report = tmp_path / "mutations.md"
    for column, check, code, outcome in (
        ("sharp", "step(1) > 0", 0, "`test_geometry.py::test_one`"),
        ("blunt", "step(1) != 0", 1, "survived"),
    ):
        (tests / "test_geometry.py").write_text(test.format(check))
        arguments = (f"--tree={tmp_path}", f"--write={report}")
        done = run(*arguments, f"--column={column}", name)
        assert done.returncode == code, done.stdout + done.stderr
        assert f" {outcome} |" in report.read_text()
    assert f"| {name} | `test_geometry.py::test_one` | survived |" in (
        report.read_text()
    )
    # The test that the column names is there: nothing has to run.
    arguments = (f"--tree={tmp_path}", f"--write={report}", "--missing")
    done = run(*arguments, "--column=sharp", name)
    assert (done.returncode, done.stdout) == (0, "0 of 0 caught\n")
