"""The sweep on CIFAR-100: its rows, its images, and the paper's figures."""

import json
import pathlib

import numpy as np
import pytest
from helpers import settings_of

from experiments import command
from experiments import paper_figures
from experiments import sweep_cells
from experiments import sweep_presets
from experiments import sweep_results
from experiments import sweep_rows
from experiments import table1
from experiments import tables
from tfsam.networks.pixel_statistics import CIFAR100_STATISTICS

PRESET = sweep_presets.PRESETS["small100"]


def test_the_rows_are_those_of_the_claims():
    two = [row for row, seeds in PRESET.rows.items() if seeds == 2]
    assert two == ["st", "sam-0.2"]
    assert [row for row in PRESET.rows if row not in two] == [
        *("sam-0.1", "sam-0.4", "at-linf-1", "at-linf-4", "at-l2-16"),
        *("at-l2-128", "fgsm_at:epsilon=1/255", "friendly_sam", "msam"),
        "trades:epsilon=1/255:steps=5:step_size=1/510",
    ]
    assert PRESET.paper == sweep_presets.PAPER


def test_pgd_attacks_all_images_and_autoattack_200():
    (_, train), (_, attack) = sweep_cells.commands(
        PRESET, "st", 0, pathlib.Path("cell")
    )
    pgd, strong = settings_of(*train), settings_of(*attack)
    assert pgd.limit_test is None and pgd.attacks == ("cleverhans_pgd",)
    columns = [
        ("cleverhans_pgd", norm, f"{round(255 * epsilon)}/255")
        for norm, epsilons in pgd.budgets.items()
        for epsilon in epsilons
    ]
    assert columns == list(sweep_results.COLUMNS[1:])
    assert strong.limit_test == 200
    assert strong.attacks == ("autoattack", "malt")
    assert strong.budgets == {"linf": (1 / 255,), "l2": (16 / 255,)}
    # 20,000 images to train on, 500 to look at.
    recipe = pgd.recipe
    assert recipe.limit_train - recipe.validation_images == 20_000
    assert recipe.augment is False


def test_trades_has_the_attack_of_adversarial_training():
    trades, at = (
        settings_of(*sweep_rows.row_flags(row)).recipe
        for row in (list(PRESET.rows)[-1], "at-linf-1")
    )
    for name in ("epsilon", "norm", "steps", "step_size"):
        assert getattr(trades, name) == pytest.approx(getattr(at, name))


def test_options_follow_the_part_that_a_row_names():
    pilot = sweep_presets.PRESETS["pilot100"]
    assert [sweep_rows.row_flags(row) for row in pilot.rows] == [
        ("--method=st", f"--network=preact_resnet{network}")
        for network in ("8:width=16", "8:width=32", "18:width=16", "8:width=64")
    ]
    row = "st:epochs=12:schedule=cosine:final=0.1:network=preact_resnet8"
    recipe = settings_of(*sweep_rows.row_flags(row)).recipe
    assert (recipe.epochs, recipe.schedule) == (12, "cosine:final=0.1")
    for row in ("st:width=16", "st:network=preact_resnet8:strength=2"):
        with pytest.raises(ValueError, match="no part of the method st"):
            sweep_rows.row_flags(row)


def test_the_caption_names_what_differs_from_the_paper_s_runs():
    text = paper_figures.caption(PRESET)
    assert "by preact_resnet18, 100 epochs, all training images" in text
    assert "20,000 images, augmentation: none." in text
    assert "AT in training" in text
    whole = paper_figures.caption(sweep_presets.PRESETS["cifar100"])
    assert whole.startswith("In parentheses: the paper's figures. Steps")
    assert paper_figures.caption(sweep_presets.PRESETS["small"]) is None


def written(path, means):
    """Writes images whose channels have the given means."""
    arrays = {}
    for part in ("train", "test"):
        arrays[f"x_{part}"] = np.ones((4, 2, 2, 3)) * means
        arrays[f"y_{part}"] = np.array([0, 1, 0, 1])
    np.savez(path, **arrays)
    return f"npz:{path}"


def test_a_file_must_hold_the_images_of_the_paper(tmp_path):
    dataset = written(tmp_path / "a.npz", CIFAR100_STATISTICS[0])
    paper_figures.check_images(PRESET, dataset)
    dataset = written(tmp_path / "b.npz", (0.4914, 0.4822, 0.4465))
    with pytest.raises(ValueError, match="must hold CIFAR-100") as raised:
        paper_figures.check_images(PRESET, dataset)
    assert str(raised.value).endswith("with (0.4914, 0.4822, 0.4465)")
    paper_figures.check_images(sweep_presets.PRESETS["small"], dataset)
    paper_figures.check_images(PRESET, "folder:x")
    paper_figures.check_images(PRESET, None)


def called(*arguments):
    given = ["--preset=small100", *arguments]
    return command.run(table1.main, table1.FLAGS, given)


def test_a_file_of_other_images_is_not_trained_on(tmp_path, capsys):
    dataset = written(tmp_path / "b.npz", (0.5, 0.5, 0.5))
    workdir = tmp_path / "w"
    assert called(f"--dataset={dataset}", f"--workdir={workdir}") == 2
    assert "must hold CIFAR-100" in capsys.readouterr().err
    assert not workdir.exists()
    assert called(f"--dataset={dataset}", "--images=x") == 2
    assert "give one of them" in capsys.readouterr().err


def test_the_paper_s_figures_stand_beside_a_file_of_its_images(
    tmp_path, write_run, capsys
):
    folder = sweep_cells.cell_folder(tmp_path, "st", 0)
    write_run(folder, 0.5, {("linf", "1/255"): 0.25})
    path = folder / "results.json"
    results = json.loads(path.read_text())
    config = {"dataset": "npz:cifar100.npz"}
    path.write_text(json.dumps(results | {"config": config}))
    assert called("--table", f"--workdir={tmp_path}", "--rows=st") == 0
    printed = capsys.readouterr().out
    assert "| 50.0 (76.9) | 25.0 (13.6) |" in printed
    assert paper_figures.caption(PRESET) in printed


def test_malt_is_compared_with_autoattack():
    def results(strong, beside):
        return {
            ("autoattack", "linf", "1/255"): sweep_results.Result(
                strong, seconds=100
            ),
            ("malt", "linf", "1/255"): sweep_results.Result(beside, seconds=20),
        }

    cells = {
        "st": {0: results(0.25, 0.25)},
        "sam-0.2": {0: results(0.5, 0.505), 1: {}},
    }
    assert tables.beside_autoattack(cells) == (
        "MALT leaves as many images as AutoAttack in 1 of 2 attacks; the "
        "others differ by +0.5 to +0.5 points. It takes 0.20 of the time."
    )
    assert tables.beside_autoattack({"st": {0: {}}}) is None
