"""Why SAM is robust: measures of a real run, correlations by hand, figures."""

import functools
import json

import numpy as np
import pytest
import sweeps

from experiments import sweep_cells
from experiments import sweep_presets
from experiments import why_robust
from tfsam import run

ROWS = ("st", "sam-0.1", "sam-0.2", "at-linf-1")


@pytest.fixture
def workdir(tmp_path, write_run):
    """The flatter the more robust; AT is robust, and not flat."""
    for index, row in enumerate(ROWS):
        folder = sweep_cells.cell_folder(tmp_path, row, 0)
        write_run(folder, 0.7, dict.fromkeys(sweeps.BUDGETS, 0.1 * (index + 1)))
        (folder / "model.keras").unlink()
        sharp = 9.0 if row == "at-linf-1" else 8.0 - index
        flat = {
            "n": 7,
            "measures": dict.fromkeys(why_robust.MEASURES, sharp),
            "surface": {
                "coordinates": [-1.0, 0.0, 1.0],
                "loss": [[9, 3, 9], [3, 0.1 + index, 3], [9, 3, 9]],
            },
        }
        (folder / "flatness.json").write_text(json.dumps(flat))
        head = "epoch,seconds,loss,val_clean_accuracy,val_robust_accuracy\n"
        # Nothing robust is a number, too.
        lines = ["1,2,1.5,,\n", "2,2,1.1,0.5,0\n", "3,2,0.9,0.6,0.25\n"]
        (folder / "history.csv").write_text(head + "".join(lines))
    return tmp_path


called = functools.partial(sweeps.called, why_robust, ROWS)


def test_correlations_are_spearman_s(workdir, capsys):
    assert called(workdir) == 0
    lines = capsys.readouterr().out.splitlines()
    (line,) = [li for li in lines if li.startswith("| largest Hessian eig")]
    # Ranks of sharpness 3 2 1 4, of robustness 1 2 3 4:
    # 1 - 6 (4 + 0 + 4 + 0) / (4 * 15); without AT they are reversed.
    assert line.count("+0.20 (-1.00)") == 4
    assert "n: 4 rows (3 without an attack in training), of 4 runs." in lines
    assert "| `sam-0.2` | 6 | 6 | 6 | 6 | 6 | 6 | 6 | 6 |" in lines


def test_figures_are_drawn_from_what_is_kept(workdir, tmp_path):
    assert called(workdir, f"--figures={tmp_path / 'f'}") == 0
    found = {p.name: p.read_text() for p in (tmp_path / "f").iterdir()}
    assert set(found) == {
        *("surfaces.svg", "trajectory.svg", "why_robust.svg"),
        "why_robust.md",
    }
    assert all(f">{row}</text>" in found["why_robust.svg"] for row in ROWS)
    # AT's held-out images are attacked at its own epsilon.
    assert ">sam-0.1 (1)</text>" in found["trajectory.svg"]
    assert "at-linf-1" not in found["trajectory.svg"]
    assert ">sam-0.1</text>" in found["surfaces.svg"]


@pytest.mark.slow
def test_figures_of_other_rows_are_drawn_as_well(workdir, tmp_path, capsys):
    """Of some rows that the surfaces leave out, and of AT alone."""
    figures = f"--figures={tmp_path / 'f'}"
    assert called(workdir, "--rows=sam-0.2", figures) == 0
    text = (tmp_path / "f/surfaces.svg").read_text()
    assert ">sam-0.2</text>" in text and ">st</text>" not in text
    printed = capsys.readouterr().out
    assert (tmp_path / "f/why_robust.md").read_text() == printed
    (tmp_path / "f/trajectory.svg").unlink()
    assert called(workdir, "--rows=at-linf-1", figures) == 0
    assert not (tmp_path / "f/trajectory.svg").exists()


def test_trajectories_are_means_over_the_seeds(workdir, write_run):
    other = sweep_cells.cell_folder(workdir, "st", 4)
    write_run(other, 0.7, {})
    (other / "history.csv").write_text(
        "epoch,val_clean_accuracy,val_robust_accuracy\n2,0.7,0.5\n4,0.8,0.5\n"
    )
    curves = why_robust.trajectories(ROWS, workdir)
    count, found = curves["st"]
    assert why_robust.trajectory_table(curves).splitlines()[2:4] == [
        "| `st` | 2 | 60.0 / 25.0 | 60.0 / 25.0 | 80.0 / 50.0 |",
        "| `sam-0.1` | 1 | 50.0 / 0.0 | 60.0 / 25.0 |  |",
    ]
    assert count == 2
    assert found == {
        2: {"val_clean_accuracy": 0.6, "val_robust_accuracy": 0.25},
        3: {"val_clean_accuracy": 0.6, "val_robust_accuracy": 0.25},
        4: {"val_clean_accuracy": 0.8, "val_robust_accuracy": 0.5},
    }


def test_without_cells_it_says_so(tmp_path, capsys):
    sweeps.assert_cells_are_missed(why_robust, tmp_path, capsys)


@pytest.mark.slow
def test_a_finished_cell_is_measured_on_its_own_images(
    tmp_path, capsys, monkeypatch, tiny_network
):
    folder = sweep_cells.cell_folder(tmp_path, "st", 0)
    preset = sweeps.ON_DIGITS
    monkeypatch.setitem(sweep_presets.PRESETS, "small", preset)
    ((_, arguments),) = sweep_cells.commands(
        preset, "st", 0, folder, attacked=False
    )
    assert run.main([*arguments, f"--workdir={folder}"]) == 0
    seen = []
    measure = why_robust.measure

    def watched(network, training_data, test_data):
        seen.append((training_data, test_data))
        return measure(network, training_data, test_data, points=3)

    monkeypatch.setattr(why_robust, "measure", watched)
    assert called(tmp_path, "--rows=st", "--examples=30") == 0
    assert "| `st` | " in capsys.readouterr().out
    ((training_data, test_data),) = seen
    assert len(training_data[0]) == 30 and len(test_data[0]) == 20
    flat = json.loads((folder / "flatness.json").read_text())
    assert set(flat["measures"]) == set(why_robust.MEASURES)
    assert all(np.isfinite(v) for v in flat["measures"].values())
    assert flat["surface"]["loss"][1][1] == pytest.approx(
        flat["measures"]["loss"]
    )
    assert called(tmp_path, "--rows=st") == 0  # Nothing is measured twice.
    assert len(seen) == 1
