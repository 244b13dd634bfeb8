"""The robust recipe against plain TRADES: its runs and its table."""

import json

import pytest

from experiments import command
from experiments import robust_recipe
from experiments import sweep_runs
from tfsam.runs import settings

PASSES = (
    *("method", "epochs", "batch_size", "limit_train", "steps", "epsilon"),
    *("step_size", "beta", "norm", "augment", "validation_images"),
)


def configs():
    return {
        row: settings.from_argv(arguments).config()
        for row, arguments in robust_recipe.runs("DIR").items()
    }


def test_the_rows_train_by_as_many_passes_of_one_attack():
    found = configs()
    for key in PASSES:
        assert len({str(config[key]) for config in found.values()}) == 1, key
    assert found["trades"]["beta"] == 5
    assert found["trades"]["epsilon"] == pytest.approx(8 / 255)


def test_the_recipe_is_the_preset_s_and_plain_trades_has_none_of_it():
    plain, recipe, extra = configs().values()
    held = {
        "schedule": ("piecewise", "one_cycle"),
        "average": (None, "ema"),
        "select": ("last", "robust"),
        "label_smoothing": (0, 0.1),
        "decay_exclude": (None, "one_dimensional"),
    }
    for key, (without, with_it) in held.items():
        assert plain[key] == without and recipe[key] == with_it, key
    differing = {key for key in extra if extra[key] != recipe[key]}
    assert differing == {"mix", "mix_fraction"}


def results(accuracy):
    attacked = {"accuracy": accuracy, "n": 500, "interval": [0.1, 0.25]}
    return {
        "natural": {"accuracy": 0.5},
        "train": {"passes": 9.0},
        "robust": [attacked],
    }


def test_the_table_has_the_finished_rows(tmp_path, monkeypatch, capsys):
    started = []

    def run(folder, arguments):
        started.append(folder.name)
        folder.mkdir(parents=True)
        (folder / "results.json").write_text(json.dumps(results(0.2)))
        (folder / "history.csv").write_text("epoch,seconds\n1,90\n2,60\n")

    monkeypatch.setattr(sweep_runs, "run", run)
    main, values = robust_recipe.main, robust_recipe.FLAGS
    workdir, kept = f"--workdir={tmp_path}/runs", tmp_path / "kept"
    assert command.run(main, values, [workdir, "--table"]) == 2
    assert "without trades/results.json" in capsys.readouterr().err
    argv = [workdir, "--images=DIR", f"--keep={kept}"]
    assert command.run(main, values, argv) == 0
    assert started == ["trades", "recipe", "extra"]
    lines = (kept / "recipe.md").read_text().splitlines()
    assert lines[2] == (
        "| trades | 50.0 | 20.0 | 10.0 to 25.0 | 500 | 9.00 | 2.0 |"
    )
    assert len(lines) == 5


def test_a_run_that_fails_ends_the_command(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep_runs, "run", lambda folder, arguments: 6)
    argv = [f"--workdir={tmp_path}", "--images=DIR"]
    main, values = robust_recipe.main, robust_recipe.FLAGS
    assert command.run(main, values, argv) == 6
