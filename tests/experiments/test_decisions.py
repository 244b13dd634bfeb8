"""Decisions: fronts and answers by hand, the page of two sweeps."""

import json
import pathlib

import pytest
import sweeps

from experiments import command
from experiments import decisions
from experiments import sweep_cells
from experiments import sweep_presets
from experiments import sweep_results

# Seeds, natural and robust accuracy; 1, 2, 2, 5/3 and 13/3 passes.
ROWS = {
    "st": (2, 0.70, 0.2),
    "sam-0.1": (2, 0.72, 0.3),
    "sam-0.4": (1, 0.69, 0.29),
    "fgsm_at:epsilon=1/255": (1, 0.65, 0.4),
    "at-linf-1": (1, 0.6, 0.5),
}
PRESET = sweep_presets.Preset(
    "cifar100",
    {row: seeds for row, (seeds, *_) in ROWS.items()},
    training=("--network=preact_resnet8", "--epochs=3"),
    attacked_seeds=0,
)


@pytest.fixture
def workdir(tmp_path, write_run, monkeypatch):
    monkeypatch.setitem(sweep_presets.PRESETS, "tiny", PRESET)
    for row, (seeds, natural, robust) in ROWS.items():
        for seed in range(seeds):
            folder = sweep_cells.cell_folder(tmp_path, row, seed)
            write_run(folder, natural, dict.fromkeys(sweeps.BUDGETS, robust))
    path = sweep_cells.cell_folder(tmp_path, "st", 1) / "results.json"
    results = json.loads(path.read_text())
    results["natural"] |= {"interval": [0.65, 0.75], "n": 300}
    path.write_text(json.dumps(results))
    return tmp_path


@pytest.fixture
def found(workdir):
    return decisions.choices(PRESET, workdir)


def test_a_front_has_passes_and_both_accuracies(found):
    column = sweep_results.COLUMNS[1]
    assert decisions.columns_of(found) == list(sweep_results.COLUMNS[1:])
    # SAM with rho 0.4 has SAM's passes and is worse in both.
    assert decisions.front(found, column) == [
        *("st", "sam-0.1", "fgsm_at:epsilon=1/255", "at-linf-1"),
    ]


def test_the_best_is_the_most_robust_within_bounds(found):
    column = sweep_results.COLUMNS[1]
    best = [decisions.best(found, column, n) for n in (0.5, 1, 1.7, 2, 5)]
    fgsm = "fgsm_at:epsilon=1/255"
    assert best == [None, "st", fgsm, fgsm, "at-linf-1"]
    accurate = [decisions.best(found, column, n, 70) for n in (1, 2, 5)]
    assert accurate == ["st", "sam-0.1", "sam-0.1"]


def test_commands_have_the_flags_of_sweep_and_row(found):
    assert found["sam-0.1"].line == (
        "python -m tfsam.run --preset=cifar100 --network=preact_resnet8 "
        "--epochs=3 --method=sam --rho=0.1"
    )


def test_the_page_says_where_there_is_one_seed(workdir, tmp_path, capsys):
    kept = pathlib.Path(decisions.__file__).parent / "results/table1/augmented"
    arguments = [
        f"--sweeps=tiny:{workdir},augmented:{kept}",
        f"--figures={tmp_path / 'f'}",
    ]
    assert command.run(decisions.main, decisions.FLAGS, arguments) == 0
    printed = capsys.readouterr().out
    assert (tmp_path / "f/decisions.md").read_text() == printed
    assert "## tiny (cifar100)\n" in printed
    assert "## augmented (cifar10)\n" in printed
    lines = printed.splitlines()
    (line,) = [text for text in lines if text.startswith("| `st` | 1.00 ")]
    assert line == "| `st` | 1.00 | 70.0 ± 5.0 |" + " 20.0 \\* |" * 4
    line = "| `sam-0.4` (one seed) | 2.00 | 69.0 |" + " 29.0 |" * 4
    assert line in lines
    fgsm = " `fgsm_at:epsilon=1/255` (one seed) 40.0 |"
    assert f"| any | 1.67 |{4 * fgsm}" in lines
    assert f"| at least st's, 70.0 | 2.00 |{4 * ' `sam-0.1` 30.0 |'}" in lines
    commands = [text for text in lines if text.startswith("    python")]
    assert sum("--epochs=3" in text for text in commands) == 4


def test_bad_sweeps_are_refused(workdir, tmp_path, capsys):
    for arguments, received in (
        ([], "--sweeps=PRESET:WORKDIR"),
        (["--sweeps=tiny"], "Received: tiny"),
        (["--sweeps=tiny:nowhere"], "Received: tiny:nowhere"),
        ([f"--sweeps=nothing:{workdir}"], "preset=nothing"),
        ([f"--sweeps=cifar10:{tmp_path / 'x'}"], "workdir"),
    ):
        (tmp_path / "x").mkdir(exist_ok=True)
        code = command.run(decisions.main, decisions.FLAGS, arguments)
        (line,) = capsys.readouterr().err.splitlines()
        assert code == 2 and received in line
