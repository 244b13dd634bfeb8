"""Relative margins: exact distances, verdicts, and the command's tables."""

import functools
import json
import types

import numpy as np
import pytest
import sweeps
import tensorflow as tf

import tfsam
from experiments import margin_tables
from experiments import margins
from experiments import sweep_cells
from experiments import sweep_measures
from experiments import sweep_presets
from tfsam import run


@pytest.fixture
def linear():
    """A linear network of two classes, with images and labels."""
    random = np.random.default_rng(0)
    weights = random.normal(size=(12, 2)).astype("float32")
    x = random.uniform(0.3, 0.7, (60, 2, 2, 3)).astype("float32")
    y = random.integers(0, 2, 60)

    def logits_fn(pixels):
        return tf.reshape(pixels, (-1, 12)) @ weights

    return types.SimpleNamespace(logits_fn=logits_fn, weights=weights, x=x, y=y)


def test_of_a_linear_network_it_is_the_distance_to_the_boundary(linear):
    found = margins.of_images(linear.logits_fn, linear.x, linear.y)
    other = 1 - linear.y
    slopes = (linear.weights[:, linear.y] - linear.weights[:, other]).T
    flat = linear.x.reshape(60, 12)
    for norm, length, step in (
        ("linf", np.abs(slopes).sum(1), np.sign(slopes)),
        ("l2", np.linalg.norm(slopes, axis=1), None),
    ):
        margin = np.sum(flat * slopes, axis=1)
        np.testing.assert_allclose(
            found[norm], margin / length, rtol=2e-4, atol=1e-6
        )
        if step is None:
            step = slopes / length[:, None]
        moved = flat - found[norm][:, None] * step
        np.testing.assert_allclose(np.sum(moved * slopes, 1), 0, atol=1e-4)
    assert found["margin"] == pytest.approx(margin, abs=1e-4)


def test_no_scaling_of_the_logits_changes_it(linear):
    weights = np.random.default_rng(1).normal(size=(2, 3)).astype("float32")

    def network(pixels):
        return tf.tanh(linear.logits_fn(pixels)) @ weights

    one, other = (
        margins.of_images(function, linear.x, linear.y)
        for function in (network, lambda pixels: 7 * network(pixels))
    )
    for norm in ("linf", "l2"):
        np.testing.assert_allclose(other[norm], one[norm], rtol=1e-3, atol=1e-7)
    np.testing.assert_allclose(other["margin"], 7 * one["margin"], rtol=1e-3)


def test_images_are_measured_batch_by_batch(linear):
    one, other = (
        margins.of_images(linear.logits_fn, linear.x, linear.y, batch_size=n)
        for n in (60, 7)
    )
    for name, values in one.items():
        np.testing.assert_allclose(other[name], values, rtol=1e-4, atol=1e-6)


def test_medians_are_those_of_correctly_classified_images():
    found = {
        "margin": np.array([-1.0, 2.0, 4.0, 9.0]),
        "linf": np.array([-5.0, 0.1, 0.3, 0.2]),
    }
    assert margins.medians(found) == {"margin": 4.0, "linf": 0.2}
    wrong = {"margin": np.array([-1.0])}
    assert np.isnan(margins.medians(wrong)["margin"])


@pytest.fixture
def attacked(linear, tmp_path, monkeypatch):
    """The folder of a run of an attack on the linear network."""
    folder = tmp_path / "autoattack"
    result = tfsam.evaluate(
        linear.logits_fn,
        (linear.x, linear.y),
        ["fgsm"],
        norm="linf",
        epsilons=[0.05],
        workdir=folder / "evaluation",
    )
    config = {"dataset": "of the test"}
    results = {"robust": result["robust"], "config": config}
    (folder / "results.json").write_text(json.dumps(results))
    monkeypatch.setattr(
        margins,
        "_images",
        lambda config: types.SimpleNamespace(x_test=linear.x, y_test=linear.y),
    )
    return folder


def test_what_survives_a_linear_network_has_a_value_above_epsilon(
    linear, attacked
):
    """FGSM is exact there, so values and verdicts say the same."""
    held = margins._attacked(attacked, linear.logits_fn)
    (verdict,) = held["verdicts"]
    assert (verdict["attack"], verdict["norm"]) == ("fgsm", "linf")
    survives = np.array(verdict["survives"])
    assert 5 < survives.sum() < 55
    np.testing.assert_array_equal(survives, np.array(held["linf"]) > 0.05)


def test_verdicts_on_other_images_are_refused(linear, attacked):
    linear.y[:] = 1 - linear.y
    with pytest.raises(ValueError, match="images that were attacked"):
        margins._attacked(attacked, linear.logits_fn)


ROWS = {
    # Training loss, relative margin in units of 1/255, survivors' threshold.
    "st": (0.1, 0.8, 1.0),
    "st:epochs=8": (0.5, 1.2, 1.0),
    "sam-0.1": (0.4, 1.5, 0.5),
    "at-linf-1": (0.9, 3.0, 0.9),
}


@pytest.fixture
def workdir(tmp_path, write_run):
    """Images survive above a threshold; SAM's is lower than ST's."""
    for index, (row, (loss, scale, least)) in enumerate(ROWS.items()):
        folder = sweep_cells.cell_folder(tmp_path, row, 0)
        robust = 0.1 * (index + 1)
        write_run(folder, 0.7, dict.fromkeys(sweeps.BUDGETS, robust))
        (folder / "model.keras").unlink()
        write_run(
            folder / "autoattack",
            0.7,
            {("linf", "1/255"): robust, ("l2", "16/255"): robust},
            attack="autoattack",
        )
        values = scale * np.linspace(-0.2, 2, 50) / 255
        content = {
            "n": 50,
            "measures": dict.fromkeys(margin_tables.MEASURES, scale / 255)
            | {"loss": loss},
            "attacked": {
                "linf": values.tolist(),
                "l2": (16 * values).tolist(),
                "verdicts": [
                    {
                        "attack": attack,
                        "norm": norm,
                        "epsilon": epsilon,
                        "epsilon_text": text,
                        # MALT breaks one image less.
                        "survives": (
                            factor * values > (least - gap) * epsilon
                        ).tolist(),
                    }
                    for norm, epsilon, text, factor in (
                        ("linf", 1 / 255, "1/255", 1),
                        ("l2", 16 / 255, "16/255", 16),
                    )
                    for attack, gap in (("autoattack", 0), ("malt", 0.05))
                ],
            },
        }
        (folder / "margins.json").write_text(json.dumps(content))
    return tmp_path


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    interval = margin_tables.survival.interval
    monkeypatch.setattr(
        margin_tables.survival,
        "interval",
        lambda function, count: interval(function, count, resamples=20),
    )


called = functools.partial(sweeps.called, margins, ROWS)


def test_the_command_makes_tables_and_a_figure_of_kept_cells(
    workdir, tmp_path, capsys
):
    assert called(workdir, f"--figures={tmp_path / 'f'}") == 0
    printed = capsys.readouterr().out
    assert (tmp_path / "f/margins.md").read_text() == printed
    # Each is ordered alike by the measure and by AutoAttack.
    order = "`st` < `st:epochs=8` < `sam-0.1` < `at-linf-1`"
    assert printed.count(order) == 4
    assert printed.count("Rank correlation (Spearman): +1.00.") == 2
    # The loss of SAM, 0.4, is nearer to that of 8 epochs than to ST's.
    (line,) = [
        text
        for text in printed.splitlines()
        if text.startswith("| `sam-0.1` | `st:epochs=8` | 0.400 | 0.500 | ")
    ]
    assert "| 1.25 | 1.25 |" in line and "+10.0" in line
    drawn = (tmp_path / "f/margins.svg").read_text()
    assert all(f">{row}</text>" in drawn for row in ROWS)
    # Of each row, a value or two lie between MALT's threshold and AutoAttack's.
    agreement = json.loads((tmp_path / "f/margins.json").read_text())[
        "agreement"
    ]
    assert agreement["images"] == 8 * 50
    assert agreement["malt"] == 0 < agreement["autoattack"]
    assert f"AutoAttack alone {agreement['autoattack']}." in printed


def test_survival_at_equal_values_tells_thresholds_from_larger_margins(workdir):
    cells = sweep_measures.gather(
        sweep_presets.PRESETS["small100"], ROWS, workdir, "margins.json"
    )
    found = margin_tables.summary(cells, "st")
    rows = found["attacks"][0]["rows"]
    # Every survivor's value is larger than every other's.
    assert all(row["auc"] == 1 for row in rows.values())
    for row, one in rows.items():
        # 45 of 50 values are above 0, and the bins hold them all.
        assert one["correct"] == 45 == sum(n for _, n in one["bins"])
        assert (row == "st") == ("against" not in one)
    # A larger margin alone does not count at an equal value.
    gain, equal, log_odds = rows["st:epochs=8"]["against"]
    assert gain > 0.1 and abs(equal) < 0.1
    assert rows["sam-0.1"]["against"][1] > 0.1
    assert rows["sam-0.1"]["against"][2] > max(log_odds, 1)


def test_a_cell_is_due_until_it_is_measured_with_its_verdicts(
    workdir, write_run
):
    folder = sweep_cells.cell_folder(workdir, "st", 0)
    assert not margins.is_due(folder)  # Without the network.
    (folder / "model.keras").touch()
    assert not margins.is_due(folder)
    content = json.loads((folder / "margins.json").read_text())
    (folder / "margins.json").write_text(
        json.dumps(content | {"attacked": None})
    )
    assert not margins.is_due(folder)  # Without AutoAttack's verdicts.
    (folder / "autoattack/evaluation").mkdir()
    assert margins.is_due(folder)
    (folder / "margins.json").unlink()
    assert margins.is_due(folder)


def test_without_cells_it_says_so(tmp_path, capsys):
    sweeps.assert_cells_are_missed(margins, tmp_path, capsys)


@pytest.mark.slow
def test_a_finished_cell_is_measured_on_its_own_images(
    tmp_path, monkeypatch, tiny_network
):
    preset = sweeps.ON_DIGITS
    monkeypatch.setitem(sweep_presets.PRESETS, "small", preset)
    folder = sweep_cells.cell_folder(tmp_path, "st", 0)
    for path, arguments in sweep_cells.commands(preset, "st", 0, folder):
        assert run.main([*arguments, f"--workdir={path}"]) == 0
    given = ["--preset=small", "--rows=st", "--examples=25"]
    assert called(tmp_path, *given) == 0
    content = json.loads((folder / "margins.json").read_text())
    assert content["n"] == 20
    assert all(np.isfinite(v) for v in content["measures"].values())
    names = [v["attack"] for v in content["attacked"]["verdicts"]]
    assert names == ["pgd", "pgd", "fgsm", "fgsm"]
    assert len(content["attacked"]["l2"]) == 30
    assert not margins.is_due(folder)
