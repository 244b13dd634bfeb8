"""Entries of RobustBench's leaderboards."""

import json

import pytest
from helpers import accuracy
from helpers import assert_one_line_error
from helpers import results_of
from helpers import robust

from tfsam import reports
from tfsam.reports import leaderboards


def autoattack(norm, epsilon, text, correct, **others):
    row = robust("autoattack", norm, epsilon, correct, 10_000, standard=True)
    return row | {"epsilon_text": text} | others


def cifar(*rows, **others):
    """Results of CIFAR-10 as a run leaves them."""
    config = {"dataset": "cifar10", "network": "preact_resnet18"}
    return results_of(
        "at", accuracy(8532, 10_000), list(rows), config=config, **others
    )


LINF = autoattack("linf", 8 / 255, "8/255", 5112)


def test_an_entry_has_the_fields_of_a_model_info_file():
    """Of model_info/cifar10/Linf: strings, but for a count and flags."""
    assert reports.robustbench(cifar(LINF, warnings=[])) == {
        "link": "",
        "name": "",
        "authors": "",
        "additional_data": False,
        "number_forward_passes": 1,
        "dataset": "cifar10",
        "venue": "",
        "architecture": "preact_resnet18",
        "eps": "8/255",
        "clean_acc": "85.32",
        "reported": "",
        "autoattack_acc": "51.12",
        "unreliable": False,
    }


def test_external_is_the_worst_case_where_something_beat_autoattack():
    worst = {
        **{"norm": "linf", "epsilon": 8 / 255, "epsilon_text": "8/255"},
        **accuracy(5001, 10_000),
        "attacks": [
            {"attack": "autoattack", "broken": 4888},
            {"attack": "pgd:restarts=50", "broken": 4900},
            {"attack": "fgsm", "broken": 0},
        ],
    }
    entry = reports.robustbench(cifar(LINF, worst_case=[worst]))
    assert entry["external"] == "50.01"
    assert entry["footnote"] == (
        "50.01% robust accuracy is the worst case over AutoAttack and "
        "pgd:restarts=50."
    )
    for changes in ({"epsilon": 0.1}, accuracy(5112, 10_000)):
        entry = reports.robustbench(cifar(LINF, worst_case=[worst | changes]))
        assert "external" not in entry
        assert "footnote" not in entry


def test_the_row_is_that_of_robustbench_s_budget():
    larger = autoattack("linf", 16 / 255, "16/255", 2000)
    l2 = autoattack("l2", 0.5, "0.5", 7000)
    results = cifar(larger, LINF, l2)
    assert reports.robustbench(results)["eps"] == "8/255"
    found = reports.robustbench(results, norm="l2")
    assert (found["eps"], found["autoattack_acc"]) == ("0.5", "70.00")
    found = reports.robustbench(results, epsilon=16 / 255)
    assert found["autoattack_acc"] == "20.00"
    assert found["footnote"] == "Uses epsilon 16/255 in linf."
    results["config"]["dataset"] = "mnist"
    assert reports.robustbench(results)["eps"] == "16/255"


def warned(*names):
    return [{"warning": name, "message": "..."} for name in names]


def test_doubts_are_in_the_footnote():
    natural = accuracy(85, 100) | {"draws": 20, "spread": 0.1}
    results = cifar(LINF, warnings=warned("zero_gradients"))
    entry = reports.robustbench(results | {"natural": natural})
    assert entry["number_forward_passes"] == 20
    assert entry["footnote"] == (
        "Evaluated on 100 of the 10000 images. Warning of the evaluation: "
        "zero_gradients."
    )
    finding = {"message": "m", "remedy": "r", "count": 1}
    found = [
        finding | {"indicator": name}
        for name in ("incomplete_optimization", "not_recorded")
    ]
    row = LINF | {"diagnosis": found}
    assert reports.robustbench(cifar(row))["footnote"] == (
        "Diagnosis of AutoAttack: incomplete optimization."
    )


@pytest.mark.parametrize(
    ("expected", "warnings", "row"),
    [
        # What RobustBench's own files have: these do not make one unreliable.
        (False, ["few_classes", "low_accuracy", "zero_gradients"], {}),
        (False, ["gradients_masked"], {"diagnosis": "not recorded"}),
        (False, [], {"diagnosis": ["incomplete_optimization"]}),
        (False, [], {"broken_by": {"apgd_ce": 9000, "square": 20}}),
        (True, ["random_outputs"], {}),
        (True, ["log_probabilities"], {}),
        (True, ["no_gradients"], {}),
        (True, [], {"diagnosis": ["unavailable_gradients"]}),
        (True, [], {"broken_by": {"apgd_ce": 9000, "square": 21}}),
    ],
)
def test_unreliable_is_a_flag_of_autoattack_s_own_checks(
    expected, warnings, row
):
    finding = {"message": "m", "remedy": "r", "count": 1}
    found = row.get("diagnosis")
    if isinstance(found, list):
        found = [finding | {"indicator": name} for name in found]
    row = LINF | row | {"diagnosis": found}
    results = cifar(row, warnings=warned(*warnings))
    assert reports.robustbench(results)["unreliable"] is expected


def test_what_was_not_looked_at_is_left_out():
    results = cifar(LINF)
    del results["warnings"]
    assert "unreliable" not in reports.robustbench(results)


def test_fields_that_only_the_user_knows_are_given_by_name():
    entry = reports.robustbench(
        {"natural": accuracy(9), "robust": [LINF]},
        **{"name": "A paper", "dataset": "cifar10", "additional_data": True},
    )
    assert entry["name"] == "A paper"
    assert entry["additional_data"] is True
    assert entry["architecture"] == ""
    with pytest.raises(TypeError, match="Received: eps=1"):
        reports.robustbench(cifar(LINF), eps=1)


def test_paths_are_no_names_of_data_sets_or_networks():
    results = cifar(LINF)
    results["config"] |= {"dataset": "npz:a.npz", "network": "a/b.keras"}
    entry = reports.robustbench(results)
    assert entry["dataset"] == entry["architecture"] == ""
    assert entry["additional_data"] == ""
    results["config"] |= {"dataset": "imagenet2012/full:1.0.0"}
    assert reports.robustbench(results)["dataset"] == ""
    results["config"] |= {"dataset": "imagenet2012/full"}
    assert reports.robustbench(results)["dataset"] == "imagenet"


@pytest.mark.parametrize(
    ("row", "received"),
    [
        (robust("pgd", "linf", 0.1, 5), "pgd linf 0.1"),
        (LINF | {"standard": False}, "autoattack (not standard) linf 8/255"),
        (LINF | {"accuracy": None, "error": "no"}, "autoattack linf 8/255"),
        (LINF | {"norm": "l1"}, "autoattack l1 8/255"),
        (LINF | {"surrogate": True}, "autoattack (transfer) linf 8/255"),
    ],
)
def test_anything_but_standard_autoattack_is_refused(row, received, tmp_path):
    path = tmp_path / "entry.json"
    with pytest.raises(ValueError) as error:
        leaderboards.write_robustbench(cifar(row), path)
    assert_one_line_error(error, "standard AutoAttack", received)
    assert not path.exists()


def test_a_written_file_keeps_its_fields_by_hand(tmp_path):
    path = tmp_path / "cifar10" / "Linf" / "Me2027Mine.json"
    (line,) = leaderboards.write_robustbench(cifar(LINF), path)
    assert line == (
        f"{path}: an entry of RobustBench; fill in link, name, authors, venue, "
        "reported"
    )
    held = json.loads(path.read_text())
    assert held == reports.robustbench(cifar(LINF))
    by_hand = {"architecture": "PreActResNet-18", "venue": "ICML"}
    path.write_text(json.dumps(held | by_hand | {"dataset": "?"}))
    better = autoattack("linf", 8 / 255, "8/255", 6000)
    (line,) = leaderboards.write_robustbench(cifar(better), path)
    assert line.endswith("fill in link, name, authors, reported")
    found = json.loads(path.read_text())
    assert found == held | by_hand | {"autoattack_acc": "60.00"}


def test_a_data_set_without_a_leaderboard_is_said(tmp_path):
    results = cifar(LINF)
    results["config"]["dataset"] = "digits"
    lines = leaderboards.write_robustbench(results, tmp_path / "entry.json")
    assert lines[1] == (
        "RobustBench has no leaderboard of digits: cifar10, cifar100, imagenet"
    )


@pytest.mark.parametrize("content", ["[]", "no JSON", '{"mine": 1}'])
def test_other_files_are_not_written_over(tmp_path, content):
    path = tmp_path / "entry.json"
    path.write_text(content)
    with pytest.raises(ValueError) as error:
        leaderboards.write_robustbench(cifar(LINF), path)
    assert_one_line_error(error, "robustbench must name", str(path))
    assert path.read_text() == content
