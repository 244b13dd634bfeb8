"""The README: its commands, its Python and its numbers."""

import ast
import importlib
import pathlib
import re
import shlex

import pytest
from helpers import settings_of

import tfsam
from tfsam import run
from tfsam.runs import command_line
from tfsam.runs import flags
from tfsam.runs import help

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
SMALL = ROOT / "experiments/results/table1/small"


def blocks(*languages):
    """The code blocks of the README in these languages."""
    pattern = rf"^```({'|'.join(languages)})\n(.*?)^```"
    return [code for _, code in re.findall(pattern, README, re.M | re.S)]


@pytest.mark.slow
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


def test_python_uses_names_that_tfsam_has():
    code = "\n".join(blocks("python"))
    ast.parse(code)
    names = set(re.findall(r"\btfsam((?:\.\w+)+)", code + _spans()))
    assert len(names) > 10
    # The module of a command, and groups of entry points.
    others = {".run", ".attacks", ".weights", ".objectives"}
    for name in names - others:
        found = tfsam
        for part in name[1:].split("."):
            found = getattr(found, part)


def _spans():
    """All inline code of the README, a line each."""
    prose = re.sub(r"^```.*?^```", "", README, flags=re.M | re.S)
    return "\n".join(re.findall(r"`([^`\n]+)`", prose))


def commands():
    """The README's commands: the words after `python` or `tfsam`.

    Flags without a command, in a table or in prose, belong to `tfsam.run`.
    """
    lines = [*"".join(blocks("bash", "sh")).splitlines(), *_spans().split("\n")]
    for line in lines:
        for part in line.split("&&"):
            words = shlex.split(part)
            if words and words[0].startswith("--"):
                yield "tfsam.run", words
            elif len(words) > 1 and words[0] == "tfsam":
                yield "tfsam.run", words[1:]
            elif len(words) > 2 and words[0].endswith("python"):
                yield words[2], words[3:]


COMMANDS = [
    (module, words)
    for module, words in commands()
    if "tfsam" in module and "report" not in words
]


def test_the_commands_are_found():
    assert len(COMMANDS) > 15
    assert ["--method=sam", "--rho=0.2"] in [words for _, words in COMMANDS]


@pytest.mark.parametrize("module, words", COMMANDS)
def test_flags_of_a_command_exist(module, words):
    assert module == "tfsam.run"
    known = flags.FLAGS
    for word in words:
        name, _, _ = word.removeprefix("--").partition("=")
        assert name in known, word


@pytest.mark.parametrize(
    "words",
    [
        words
        for _, words in COMMANDS
        if words and "=" in words[0]
        if not re.search("PATH|shift", " ".join(words))  # Placeholders.
    ],
    ids=" ".join,
)
def test_a_command_is_accepted(words):
    if words[0].startswith("--shard"):
        words = ["--evaluate=model.keras", *words]
    settings_of(*words)


@pytest.mark.parametrize(
    "module", sorted({m for m, _ in commands() if m.startswith("experiments")})
)
def test_a_command_of_the_experiments_exists(module):
    assert importlib.import_module(module).main


def test_the_costs_are_those_that_the_command_wrote():
    """Returns the rows of the sweep that a command of the table means."""
    rows = {
        "--method=sam --rho=0.2": "sam-0.2",
        "--method=looksam --rho=0.2 --alpha=0.3": "looksam:rho=0.2:alpha=0.3",
        "--method=fgsm_at --epsilon=1/255": "fgsm_at:epsilon=1/255",
        "--method=at --epsilon=1/255": "at-linf-1",
        "--method=at --epsilon=4/255 --steps=10": "at-linf-4",
        "--method=awp --epsilon=4/255": "awp:epsilon=4/255",
    }
    written = _cells((SMALL / "costs.md").read_text())
    shown = re.findall(r"\| `(--method=[^`]*)` \| ([\d.]+) \|$", README, re.M)
    assert {command for command, _ in shown} == set(rows)
    column = written["row"].index("passes a step")
    for command, cost in shown:
        assert written[rows[command]][column] == cost


def _cells(table):
    """The cells of a Markdown table's rows, by the name in the first one."""
    found: dict = {}
    for line in table.splitlines():
        name, *cells = [cell.strip() for cell in line.strip("|").split("|")]
        name = re.sub(r"^`([^`]*)`.*", r"\1", name)
        found.setdefault(name, cells)
    return found


def test_the_results_are_those_of_the_table():
    written = _cells((SMALL / "table.md").read_text())
    shown = _cells(README.partition("## Results")[2])
    heads = shown["row"]
    assert len(heads) >= 4
    columns = [written["row"].index(head) for head in heads]
    rows = set(shown) & set(written) - {"row", ""}
    assert {"st", "sam-0.4", "at-linf-1"} <= rows
    for row in rows:
        assert shown[row] == [written[row][column] for column in columns]


def test_the_ci_runs_two_commands_of_the_readme():
    """`.ci/run` executes every block of bash; other commands are in sh."""
    install, tests = blocks("bash")
    assert "tfsam.run --method=sam --rho=0.2" in install
    assert tests.strip() == ".venv/bin/python -m pytest"


def test_the_exit_codes_are_those_of_the_command():
    shown = set(re.findall(r"^\| (\d+(?:, \d+)*) \|", README, re.M))
    named = [run.BAD_INPUT, run.NOT_FINITE, run.DISK_FULL]
    named += [run.WORKER_LOST, run.ATTACK_FAILED]
    assert shown == {"0", *map(str, named), "130, 143"}


def test_help_has_every_flag_and_every_attack():
    text = help.answer(command_line.parse(["--help"]))
    for name in flags.FLAGS:
        assert re.search(rf"--(\[no\])?{name}\b", text), name
    for name in tfsam.attacks.names():
        assert re.search(rf"\b{name}\b", text), name


def test_the_ci_runs_all_slow_tests():
    script = (ROOT / ".ci/run").read_text()
    groups = script.partition("groups=(")[2].partition(")")[0]
    named = set(groups.replace('"', " ").split())
    mark = "mark" + ".slow"
    slow = {
        path.relative_to(ROOT / "tests")
        for path in (ROOT / "tests").rglob("test_*.py")
        if mark in path.read_text()
    }
    folders = {path.parts[0] for path in slow if len(path.parts) > 1}
    assert folders and named >= folders
    assert "test_*.py" in named  # The files beside the folders.
    for name in named:
        assert list((ROOT / "tests").glob(name)), name
