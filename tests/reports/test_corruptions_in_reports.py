"""Accuracy on corrupted images: the figure, and the page."""

import json

import pytest
from helpers import PageReader
from helpers import accuracy
from helpers import leave
from helpers import results_of

from tfsam import reports
from tfsam.reports import page
from tfsam.reports import plots


def corrupted(correct, kinds=("fog", "shot_noise")):
    rows = [
        {"corruption": kind, "severity": s, **accuracy(correct - s)}
        for kind in kinds
        for s in (1, 2)
    ]
    mean = accuracy(correct - 1)
    del mean["accuracy"]
    return mean | {
        "name": "mine (not CIFAR-10-C)",
        "mean_accuracy": correct / 10 - 0.15,
        "severities": [1, 2],
        "rows": rows,
        "left_out": {"frost": "needs photographs"},
    }


def test_the_figure_has_a_panel_a_kind(tmp_path):
    figures = []
    results = {"natural": accuracy(9), "corruptions": corrupted(8)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "_save", lambda figure, _: figures.append(figure))
        reports.corruptions_plot(results, tmp_path / "corruptions.png")
    (figure,) = figures
    assert (
        figure.get_suptitle() == "mine (not CIFAR-10-C): mean accuracy 65.0 %"
    )
    assert [axes.get_title() for axes in figure.axes] == ["fog", "shot noise"]
    for axes in figure.axes:
        points = axes.containers[0].lines[0].get_xydata()
        assert points.round(6).tolist() == [[0, 90], [1, 70], [2, 60]]


def test_the_page_has_curves_by_severity_and_a_table(tmp_path):
    for name, found in (("a", corrupted(8)), ("b", corrupted(6, ["fog"]))):
        results = results_of("st", accuracy(9), [], corruptions=found)
        leave(tmp_path / name, results)
    leave(tmp_path / "c", results_of("at", accuracy(9), []))
    reader = PageReader(page.render([tmp_path]))
    (section,) = reader.all("section", id="corruptions")
    assert "mine (not CIFAR-10-C): accuracy over severity" in section["text"]
    assert "Left out: frost (needs photographs)." in section["text"]
    assert "a65.065.065.0b45.045.0\N{EN DASH}" in section["text"]
    data = json.loads(reader.all("script", id="data")[0]["text"])
    fog, shot = data["corruptions"]
    assert (fog["name"], shot["name"]) == ("fog", "shot noise")
    of_a, of_b, of_c = fog["points"]
    found = [(one["severity"], one["accuracy"]) for one in of_a]
    assert found == [(0, 0.9), (1, 0.7), (2, 0.6)]
    assert (of_b[0]["n"], of_c) == (10, [])
    assert shot["points"][1] == []


def test_the_page_says_how_far_accuracies_are_to_be_trusted(tmp_path):
    found = corrupted(8) | {
        "natural": accuracy(9) | {"draws": 20, "spread": 0.031},
        "warnings": [{"warning": "randomness", "message": "It is random."}],
    }
    run = leave(
        tmp_path / "a", results_of("st", accuracy(9), [], corruptions=found)
    )
    reader = PageReader(page.render([run]))
    (section,) = reader.all("section", id="corruptions")
    assert (
        "Verdicts on clean images: 20 draws, spread 3.1 %." in section["text"]
    )
    assert "a: It is random." in section["text"]


def test_runs_without_corruptions_have_no_such_section(tmp_path):
    run = leave(tmp_path / "c", results_of("at", accuracy(9), []))
    assert not PageReader(page.render([run])).all("section", id="corruptions")


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"name": 3}, "name must be a string"),
        ({"mean_accuracy": 7}, "a fraction"),
        ({"rows": [accuracy(3) | {"corruption": 1}]}, "must be a string"),
        ({"left_out": {"frost": 1}}, "frost must be a string"),
        ({"warnings": [{"message": 1}]}, "message must be a string"),
    ],
)
def test_damaged_corruptions_are_refused(tmp_path, changes, why):
    found = corrupted(8) | changes
    results = results_of("st", accuracy(9), [], corruptions=found)
    run = leave(tmp_path / "a", results)
    with pytest.raises(ValueError, match=why):
        page.render([run])
