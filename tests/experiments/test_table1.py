"""The sweep of Table 1: rows, cells, tables, and a small real one."""

import contextlib
import csv
import dataclasses
import json
import pathlib
import re
import signal
import textwrap
import threading

import pytest
import scipy.stats
from helpers import settings_of

from experiments import command
from experiments import paper_figures
from experiments import sweep_cells
from experiments import sweep_presets
from experiments import sweep_results
from experiments import sweep_rows
from experiments import sweep_runs
from experiments import table1
from experiments import tables
from tfsam import run
from tfsam.runs import workdirs


@pytest.mark.parametrize("preset", sweep_presets.PRESETS)
def test_every_row_of_a_preset_is_a_run(preset):
    """Checks the command line, down to the attack's settings."""
    found = sweep_presets.PRESETS[preset]
    for row in found.rows:
        for folder, arguments in sweep_cells.commands(
            found, row, 0, sweep_cells.cell_folder(pathlib.Path("w"), row, 0)
        ):
            config = settings_of(*arguments, f"--workdir={folder}").config()
            assert config["seed"] == 0


@pytest.mark.parametrize(
    "row, epsilon, steps, step_size",
    [
        ("at-linf-1", 1, 5, 0.5),
        ("at-linf-2", 2, 5, 1),
        ("at-linf-4", 4, 10, 1),
        ("at-linf-8", 8, 10, 2),
        ("at-l2-16", 16, 5, 8),
        ("at-l2-128", 128, 5, 64),
    ],
)
def test_attacks_in_training_are_the_authors(row, epsilon, steps, step_size):
    config = settings_of(*sweep_rows.row_flags(row)).config()
    assert config["method"] == "at"
    assert config["norm"] == row.split("-")[1]
    assert 255 * config["epsilon"] == pytest.approx(epsilon)
    assert config["steps"] == steps
    assert 255 * config["step_size"] == pytest.approx(step_size)


def test_any_method_is_a_row_with_its_flags():
    config = settings_of(
        *sweep_rows.row_flags("looksam:rho=0.3:every=2")
    ).config()
    assert (config["method"], config["rho"], config["every"]) == (
        *("looksam", 0.3),
        2,
    )
    assert sweep_rows.row_flags("sam-0.4") == ("--method=sam", "--rho=0.4")
    for row in ("sum-0.1", "sam-", "at-l1-3", "sam:rho"):
        with pytest.raises(ValueError, match=f"Received: {row}"):
            sweep_rows.row_flags(row)


def test_the_paper_s_table_is_the_grid_of_its_presets():
    for preset in ("cifar10", "cifar100"):
        assert list(sweep_presets.PRESETS[preset].rows) == list(
            sweep_presets.PAPER
        )
        assert set(sweep_presets.PRESETS[preset].rows.values()) == {3}
    assert sweep_presets.PRESETS["cifar100"].paper == sweep_presets.PAPER
    # Other images than the paper's.
    assert not sweep_presets.PRESETS["cifar10"].paper
    assert all(
        len(f) == len(sweep_results.COLUMNS)
        for f in sweep_presets.PAPER.values()
    )


@pytest.fixture
def workdir(tmp_path, write_run):
    """ST with two seeds, SAM with two, AutoAttack on one; nothing of AT."""
    for row, seed, natural, robust in (
        ("st", 0, 0.7, 0.2),
        ("st", 1, 0.72, 0.24),
        ("sam-0.1", 0, 0.71, 0.3),
        ("sam-0.1", 1, 0.71, 0.32),
    ):
        folder = sweep_cells.cell_folder(tmp_path, row, seed)
        write_run(folder, natural, {("linf", "1/255"): robust})
    write_run(
        sweep_cells.cell_folder(tmp_path, "st", 0) / "autoattack",
        0.5,
        {("linf", "1/255"): 0.125},
        attack="autoattack",
    )
    return tmp_path


PRESET = sweep_presets.Preset(
    "cifar100", {"st": 2, "sam-0.1": 2, "at-linf-1": 1}, attacked_seeds=1
)


def collected(workdir, rows=("st", "sam-0.1", "at-linf-1")):
    return sweep_results.collect(PRESET, rows, PRESET.seeds, workdir)


def test_what_is_missing_is_said(workdir):
    _, missing = collected(workdir)
    assert [str(m.relative_to(workdir)) for m in missing] == [
        "sam-0.1/seed0/autoattack",
        "at-linf-1/seed0",
        "at-linf-1/seed0/autoattack",
    ]


def test_the_table_has_means_deviations_and_the_paper_s_figures(workdir):
    cells, _ = collected(workdir)
    found = tables.summaries(cells)
    lines = tables.accuracies(found, sweep_presets.PAPER).split("\n")
    assert lines[0] == (
        "| row | seeds | natural | PGD-10 l-inf 1/255 "
        "| AutoAttack l-inf 1/255 | on training images | training, minutes |"
    )
    # Natural accuracy is that of the whole test part, not of AutoAttack's.
    assert lines[2] == (
        "| `st` | 2 | 71.0 ± 1.4 (76.9) | 22.0 ± 2.8 (13.6) | 12.5 "
        "| 99.0 ± 0.0 | 2.0 |"  # Both epochs as fast as the first.
    )
    assert lines[3].startswith("| `sam-0.1` | 2 | 71.0 ± 0.0 (78.0) | 31.0 ± ")
    assert len(lines) == 4  # Nothing is there of AT.


def test_radii_are_chosen_by_the_last_look_at_held_out_images(workdir):
    history = sweep_cells.cell_folder(workdir, "st", 0) / "history.csv"
    history.write_text(
        "epoch,seconds,val_clean_accuracy,val_robust_accuracy\n"
        "1,60,0.5,0.25\n2,60,0.75,0.125\n3,60,,\n"
    )
    preset = dataclasses.replace(PRESET, held_out=True)
    cells, _ = sweep_results.collect(preset, ("st",), preset.seeds, workdir)
    line = tables.accuracies(tables.summaries(cells), {}).split("\n")[2]
    assert " 75.0 | 12.5 | " in line  # No look after the third epoch.
    cells, _ = collected(workdir)  # Other sweeps' tables lack the columns.
    assert not {sweep_results.HELD_OUT, sweep_results.HELD_OUT_ATTACKED} & set(
        cells["st"][0]
    )


def test_csv_and_latex_hold_the_same(workdir):
    cells, _ = collected(workdir)
    texts = tables.by_suffix(cells, sweep_presets.PAPER)
    rows = list(csv.DictReader(texts["csv"].splitlines()))
    (found,) = [
        r
        for r in rows
        if (r["row"], r["column"]) == ("st", "PGD-10 l-inf 1/255")
    ]
    assert float(found["mean"]) == pytest.approx(22)
    assert float(found["standard_deviation"]) == pytest.approx(8**0.5, abs=1e-4)
    assert (found["seeds"], found["paper"]) == ("2", "13.6")
    assert "st & 2 & 71.0 $\\pm$ 1.4 (76.9) & " in texts["tex"]
    assert texts["tex"].count("\\\\") == 3


def test_differences_are_paired_by_seed(workdir):
    cells, _ = collected(workdir)
    # Natural: +1 and -1. Under attack: +10 and +8.
    half = scipy.stats.t.ppf(0.975, 1)
    natural, robust = re.findall(
        r"([+-][\d.]+) \(([+-][\d.]+) to ([+-][\d.]+)\)",
        tables.differences(cells),
    )
    assert natural == ("+0.0", f"{-half:+.1f}", f"{half:+.1f}")
    assert robust == ("+9.0", f"{9 - half:+.1f}", f"{9 + half:+.1f}")
    assert tables.differences({"st": cells["st"]}) is None
    assert "minus sam-0.1" in tables.differences(cells, "sam-0.1")


def test_a_single_seed_has_the_interval_of_its_images():
    cells = {
        "st": {
            0: {
                sweep_results.NATURAL: sweep_results.Result(
                    0.5, [0.47, 0.53], 1000
                )
            }
        },
        "sam-0.4": {
            0: {
                sweep_results.NATURAL: sweep_results.Result(
                    0.6, [0.56, 0.64], 1000
                )
            }
        },
    }
    # Of 3 and 4 points at right angles.
    assert "| `sam-0.4` | 1 | +10.0 (+5.0 to +15.0) |" in tables.differences(
        cells
    )
    assert "natural ±4.0 (1000)" in tables.test_images(cells)


def test_a_line_says_what_a_seed_takes():
    hour = sweep_results.Result(60.0)
    trained = {
        sweep_results.MINUTES: hour,
        sweep_results.TOOK: sweep_results.Result(120.0),
    }
    cells = {
        "st": {
            1: {**trained, sweep_results.ATTACKED: hour},
            0: {**trained, sweep_results.ATTACKED: sweep_results.Result(90.0)},
        },
        "sam-0.1": {0: {**trained, sweep_results.ATTACKED: hour}},
        "sam-0.2": {},
    }
    assert tables.computing(cells) == (
        "One seed of 2 rows took 4.0 h of training (2.0 h by each run's "
        "fastest epoch) and 2.5 h of attacks; all 3 cells 6.0 h of training "
        "(3.0 h by each run's fastest epoch) and 3.5 h of attacks."
    )
    assert tables.computing({"st": {}}) is None


def test_the_paper_s_figures_stand_beside_its_images_alone(workdir):
    preset = sweep_presets.Preset(
        "cifar100", {"st": 2}, paper=sweep_presets.PAPER
    )
    assert paper_figures.beside(preset, workdir) == sweep_presets.PAPER
    path = sweep_cells.cell_folder(workdir, "st", 0) / "results.json"
    results = json.loads(path.read_text())
    for dataset, figures in (
        ("cifar100", sweep_presets.PAPER),
        ("folder:x", {}),
    ):
        results["config"] = {"dataset": dataset}
        path.write_text(json.dumps(results))
        assert paper_figures.beside(preset, workdir) == figures


def test_a_failed_attack_is_missing(workdir):
    path = sweep_cells.cell_folder(workdir, "st", 0) / "results.json"
    results = json.loads(path.read_text())
    results["robust"][0] |= {"accuracy": None, "error": "OSError: away"}
    path.write_text(json.dumps(results))
    cells, missing = collected(workdir)
    assert path.parent in missing
    assert "| `st` | 1 | 72.0 " in tables.by_suffix(cells, {})["md"]


def test_the_results_of_another_sweep_are_refused(workdir, capsys):
    path = sweep_cells.cell_folder(workdir, "st", 1) / "results.json"
    results = json.loads(path.read_text())
    path.write_text(json.dumps(results | {"config": {"preset": "cifar10"}}))
    code, printed = called(
        capsys, "--preset=cifar100", "--table", f"--workdir={workdir}"
    )
    assert code == 2
    assert printed.err.endswith("Received: preset=cifar10\n")


def test_finished_cells_are_kept_small_in_the_same_layout(workdir, tmp_path):
    kept = tmp_path / "kept"
    sweep_runs.keep(workdir, kept)
    names = {p.name for p in kept.rglob("*") if p.is_file()}
    assert names == {"results.json", "history.csv"}
    assert collected(kept)[0] == collected(workdir)[0]


def test_the_results_that_are_kept_make_tables(capsys):
    """Cells of the first try have no accuracy on training images."""
    folder = pathlib.Path(tables.__file__).parent / "results/table1/augmented"
    preset = sweep_presets.PRESETS["augmented"]
    cells, missing = sweep_results.collect(
        preset, preset.rows, preset.seeds, folder
    )
    assert not missing
    table = tables.by_suffix(cells, preset.paper)["md"]
    assert "| `st` | 1 | 72.7 | 45.6 | 21.7 | 62.9 | 53.6 |\n" in table
    # Half the intervals of each, one on top of the other at right angles.
    assert "| `at:epsilon=1/255` | 1 | -3.9 (-6.8 to -1.1) | +13.2 (" in table
    assert "PGD-10 ±2.2 (2000)" in table


def test_shares_are_all_cells_once():
    cells = sweep_cells.in_order(PRESET, ["a", "b"], lambda row: [4, 5, 6])
    assert cells == [  # AutoAttack attacks the first of the given seeds.
        *[("a", 4, True), ("b", 4, True), ("a", 5, False), ("b", 5, False)],
        *[("a", 6, False), ("b", 6, False)],
    ]
    shares = [cells[i::4] for i in range(4)]
    assert sorted(c for share in shares for c in share) == sorted(cells)


def called(capsys, *arguments):
    code = command.run(table1.main, table1.FLAGS, arguments)
    return code, capsys.readouterr()


@pytest.mark.parametrize(
    "arguments, received",
    [
        (["--preset=mnist"], "preset=mnist"),
        (["--rows=st,foo"], "foo"),
        (["--seeds=1,x"], "seeds=1,x"),
        (["--cells=2/2"], "cells=2/2"),
        (["--table", "--workdir=nowhere"], "workdir=nowhere"),
        (["--table", "--workdir=.", "--base=foo"], "base=foo"),
        (["--nonsense"], "nonsense"),
        (["stray"], ""),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(capsys, arguments, received):
    code, printed = called(capsys, *arguments)
    assert code == 2
    assert printed.err.startswith("table1: ")
    assert received in printed.err
    assert printed.err.count("\n") == 1


def test_help_shows_the_flags(capsys):
    code, printed = called(capsys, "--help")
    assert code == 0
    assert "--cells" in printed.out and "Table 1" in printed.out


def test_the_table_command_writes_three_files(workdir, capsys):
    code, printed = called(
        capsys, "--table", f"--workdir={workdir}", "--rows=st,at-linf-1"
    )
    assert code == 0
    assert "| `st` | 2 |" in printed.out
    assert f"missing: {workdir}/at-linf-1/seed0\n" in printed.out
    for suffix in ("md", "csv", "tex"):
        assert (workdir / f"table.{suffix}").stat().st_size > 100


@pytest.mark.slow
def test_a_sweep_runs_resumes_and_keeps_on_after_a_failure(
    tmp_path, capfd, monkeypatch, tiny_network
):
    """Its second seed runs as a process, as all do; the rest runs here."""
    in_a_process = sweep_runs._run

    def run_it(arguments):
        if "--seed=1" in arguments:
            return in_a_process(arguments)
        return run.main(arguments)

    monkeypatch.setattr(sweep_runs, "_run", run_it)
    tiny = sweep_presets.Preset(
        "digits",
        {"st": 2, "sam:rho=1e30": 1},  # The loss of the second becomes NaN.
        training=("--epochs=1", "--limit_train=100"),
        testing=("--limit_test=20", "--attack_steps=1"),
        autoattack=("--limit_test=10", "--l2_epsilons=", "--linf_epsilons=0.1"),
        attacked_seeds=1,
    )
    monkeypatch.setitem(sweep_presets.PRESETS, "small", tiny)
    arguments = (f"--workdir={tmp_path / 'w'}", f"--keep={tmp_path / 'k'}")
    assert command.run(table1.main, table1.FLAGS, arguments) == 1
    printed = capfd.readouterr().out
    assert (
        f"failed with exit code 3: {tmp_path}/w/sam_rho=1e30/seed0" in printed
    )
    assert "| `st` | 2 |" in printed and "AutoAttack" in printed
    kept = sorted(p.parent for p in (tmp_path / "k").rglob("results.json"))
    assert [str(p.relative_to(tmp_path / "k")) for p in kept] == [
        *("st/seed0", "st/seed0/autoattack"),
        "st/seed1",
    ]
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "w/st").rglob("*")}
    assert command.run(table1.main, table1.FLAGS, arguments) == 1
    printed = capfd.readouterr().out
    assert printed.count("python -m tfsam.run") == 1  # The failed one alone.
    after = {p: p.stat().st_mtime_ns for p in (tmp_path / "w/st").rglob("*")}
    assert before == after


def test_what_was_found_later_is_kept_too(workdir, tmp_path, capsys):
    folder = sweep_cells.cell_folder(workdir, "st", 1)
    (folder / "flatness.json").write_text("{}")
    kept = tmp_path / "kept"
    arguments = ("--table", f"--workdir={workdir}", f"--keep={kept}")
    assert called(capsys, *arguments)[0] == 0
    assert (kept / "st/seed1/flatness.json").exists()


def test_a_sweep_waits_for_a_run_that_a_killed_one_left(tmp_path, monkeypatch):
    order = []
    monkeypatch.setattr(sweep_runs, "_run", lambda command: order.append("run"))
    held = contextlib.ExitStack()
    folder = sweep_cells.cell_folder(tmp_path, "st", 0)
    held.enter_context(workdirs.locked(folder))
    held.callback(order.append, "free")
    release = threading.Timer(0.3, held.close)
    release.start()
    assert sweep_runs.run_cells(PRESET, [("st", 0, False)], tmp_path) == []
    release.join()
    assert order == ["free", "run"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_reaches_the_run_and_ends_the_sweep(
    number, tmp_path, monkeypatch
):
    """A run that takes a moment to save gets this moment."""
    script = tmp_path / "tfsam/run.py"
    script.parent.mkdir()
    (script.parent / "__init__.py").touch()
    script.write_text(
        textwrap.dedent(
            """
            import os, pathlib, signal, sys, time

            def leave(number, frame):
                time.sleep(0.3)
                pathlib.Path("saved").touch()
                sys.exit(128 + number)

            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, leave)
            os.kill(os.getppid(), int(os.environ["SIGNAL"]))
            time.sleep(60)
            """
        )
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("SIGNAL", str(int(number)))
    cells = [("st", 0, False), ("st", 1, False)]
    before = signal.signal(number, signal.default_int_handler)
    try:
        with pytest.raises(SystemExit) as stopped:
            sweep_runs.run_cells(PRESET, cells, tmp_path / "w")
        assert signal.getsignal(number) is signal.default_int_handler
    finally:
        signal.signal(number, before)
    assert stopped.value.code == 128 + number
    assert (tmp_path / "saved").exists()
