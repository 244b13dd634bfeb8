"""Records to which attacks, epsilons, norms and surrogates are added."""

import json
import logging
import operator
import os
import pathlib
import shutil
import threading

import helpers
import numpy as np
import pytest

import tfsam
from tfsam import geometry
from tfsam.evaluation import verdicts
from tfsam.support import files

FILES = pathlib.Path(__file__).parents[1] / "compatibility/files_of_0_1_0"
RANDOM = np.random.default_rng(0)
X = RANDOM.uniform(0.3, 0.7, (24, 9)).astype("float32")
WEIGHTS = RANDOM.normal(size=(9, 3)).astype("float32")
Y = (X @ WEIGHTS).argmax(axis=1)
Y[::8] = (Y[::8] + 1) % 3  # Three are misclassified.


def linear(x):
    """In NumPy, so that nothing is traced."""
    return np.asarray(x) @ WEIGHTS


def surrogate(x):
    return np.asarray(x) @ (WEIGHTS + 0.3)


def calls(caplog):
    """Returns the epsilons of the calls since the last time, and forgets them.

    A list of the calls would be a part of the attacks, which would then be
    others after each call.
    """
    found = [r.args for r in caplog.records if r.name == "calls"]
    caplog.clear()
    return [epsilon for (epsilon,) in found]


class Signs:
    """Steps against the weights of the true class, with noise by example."""

    gradient_free = True

    def __init__(self, epsilon, norm, bounds, away=True):
        self.epsilon, self.norm, self.away = epsilon, norm, away

    def __call__(self, logits_fn, x, y, seeds):
        logging.getLogger("calls").warning("%s", self.epsilon)
        noise = [
            np.random.default_rng([*row]).normal(size=9)
            for row in np.asarray(seeds)
        ]
        return self.moved(x, np.array(noise) - 3 * self.away * slopes(y))

    def moved(self, x, steps):
        order = geometry.FACTS[self.norm].order
        steps = np.sign(steps) if self.norm == "linf" else steps
        steps = steps / np.linalg.norm(steps, order, axis=1, keepdims=True)
        return x + np.asarray(0.999 * self.epsilon * steps, "float32")


def slopes(y):
    return WEIGHTS.T[np.asarray(y)]


class Nearest(Signs):
    """A minimum-norm attack: its image is the same at all epsilons."""

    minimum_norm = True

    def closest(self, logits_fn, x, y, seeds):
        logging.getLogger("calls").warning("%s", "nearest")
        return Signs(0.06, self.norm, None).moved(x, -slopes(y))


class Both(Signs):
    """An ensemble."""

    @property
    def stages(self):
        return [
            (str(away), Signs(self.epsilon, self.norm, None, away))
            for away in (False, True)
        ]


ALL = [Signs, Nearest, Both]
BUDGETS = {"linf": [0.04, 0.02, 0.08], "l2": [0.1, 0.2]}


def evaluate(folder, attacks=ALL, budgets=BUDGETS, **kwargs):
    return tfsam.evaluate(
        *(linear, (X, Y), attacks),
        budgets=budgets,
        workdir=folder,
        **{"batch_size": 10, "strict": True, "diagnose": False, **kwargs},
    )


COSTS = ("attacked", "forward_passes", "gradient_passes", "seconds")
COSTS = (*COSTS, "max_perturbation")


def assert_same(result, other):
    """Checks that results are equal, except for times and counts."""
    found, expected = (
        {
            **dict(one),
            "robust": [
                {k: v for k, v in row.items() if k not in COSTS}
                for row in one["robust"]
            ],
        }
        for one in (result, other)
    )
    assert found == expected


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """The folder of a record that was measured at once, and its result."""
    folder = tmp_path_factory.mktemp("fresh")
    return folder, evaluate(folder)


STEPS = {
    "attacks": [([a], BUDGETS) for a in reversed(ALL)],
    "epsilons": [
        (ALL, {"linf": [epsilon], "l2": [0.2]})
        for epsilon in (0.08, 0.02, 0.04)
    ],
    "norms": [(ALL, {"l2": [0.2]}), (ALL, {"linf": BUDGETS["linf"]})],
    "corners": [(ALL[:2], {"linf": [0.08]}), (ALL[1:], {"l2": [0.1]})],
}


@pytest.mark.parametrize("steps", STEPS.values(), ids=STEPS)
def test_a_record_that_grew_is_a_record_measured_at_once(
    steps, fresh, tmp_path, caplog
):
    whole, expected = fresh
    for attacks, budgets in steps:
        result = evaluate(tmp_path, attacks, budgets)
        assert [row["attack"] for row in result["robust"]] == [
            attack.__name__
            for attack in attacks
            for epsilons in budgets.values()
            for _ in epsilons
        ]
    assert_same(evaluate(tmp_path), expected)
    assert calls(caplog)
    assert_same(evaluate(tmp_path), expected)
    assert calls(caplog) == []
    found, columns = verdicts.load(tmp_path), verdicts.load(whole)
    assert found.keys() == columns.keys() and len(found) == 15
    for key, column in columns.items():
        np.testing.assert_array_equal(found[key], column)


def test_the_attacks_tell_epsilons_apart(fresh):
    """The equalities above compare numbers that differ."""
    _, result = fresh
    accuracies = [row["accuracy"] for row in result["robust"]]
    assert len(set(accuracies)) >= 5
    assert result["natural"]["accuracy"] == 21 / 24
    assert 0 < min(accuracies) < max(accuracies) <= 21 / 24
    worst = [row["accuracy"] for row in result["worst_case"]]
    assert min(worst) >= result["union"]["accuracy"] > 0


def test_only_what_is_new_is_measured(tmp_path, caplog):
    evaluate(tmp_path, [Signs, Nearest], {"linf": [0.02, 0.08]})
    before = helpers.snapshot(tmp_path / "natural")
    assert set(calls(caplog)) == {0.02, 0.08, "nearest"}
    rows = evaluate(tmp_path, [Signs, Nearest], {"linf": [0.04]})["robust"]
    assert set(calls(caplog)) == {0.04}  # The nearest images are known.
    small = verdicts.load(tmp_path)["Signs", 0.02]
    broken = int((small > 0).sum())
    assert rows[0]["inherited"] == broken > 0
    assert rows[0]["attacked"] == 21 - broken
    assert rows[1]["attacked"] == 0
    evaluate(tmp_path, [Both, Signs], {"linf": [0.02, 0.08]})
    # Two stages at two epsilons of three chunks.
    assert len(calls(caplog)) == 12
    assert helpers.snapshot(tmp_path / "natural") == before


def test_the_gradients_of_the_largest_epsilon_are_examined(tmp_path):
    part = tmp_path / "gradients" / "model" / "000000.npz"
    for epsilon, reach in ((0.04, 0.04), (0.02, 0.04), (0.08, 0.08)):
        evaluate(tmp_path, [Signs], {"linf": [epsilon]})
        with np.load(part) as arrays:
            assert arrays["reach"] == reach


def test_a_merge_returns_everything(tmp_path):
    evaluate(tmp_path, [Signs], {"linf": [0.04]})
    evaluate(tmp_path, [Both], {"l2": [0.2]})
    found = tfsam.merge([tmp_path])
    rows = [(r["attack"], r["norm"], r["epsilon"]) for r in found["robust"]]
    assert rows == [("Signs", "linf", 0.04), ("Both", "l2", 0.2)]
    assert [r["norm"] for r in found["worst_case"]] == ["linf", "l2"]


def test_folders_of_other_norms_attacks_and_shards_are_joined(fresh, tmp_path):
    _, expected = fresh
    for shard in range(3):
        folder, attacks = tmp_path / str(shard), ALL[shard:] + ALL[:shard]
        evaluate(folder, attacks, {"linf": BUDGETS["linf"]}, shard=(shard, 3))
    evaluate(tmp_path / "l2", ALL, {"l2": BUDGETS["l2"]})
    merged = tfsam.merge([tmp_path / name for name in ("l2", "2", "0", "1")])

    def ordered(rows):
        keys = operator.itemgetter("attack", "norm", "epsilon")
        return sorted(rows, key=keys)

    assert_same(
        {"robust": ordered(merged["robust"])},
        {"robust": ordered(expected["robust"])},
    )
    assert merged["union"] == expected["union"] | {
        "budgets": merged["union"]["budgets"]
    }
    assert merged["natural"] == expected["natural"]


def test_shards_of_one_folder_add_at_once(tmp_path, monkeypatch):
    """Each process keeps the other's additions to the header."""
    names = [f"attack-{n}" for n in range(8)]
    header = {
        "schema": 3,
        **dict.fromkeys(("n", "batch_size", "classes"), 4),
        "surrogates": [],
    }
    found = {}
    # Threads of a process take each other's files for leftovers.
    monkeypatch.setattr(files, "leftovers", lambda folder: [])

    def add(name):
        attack = {"name": name, "options": {}, "surrogate": None}
        attack |= {"budgets": {"linf": [0.1]}}
        barrier.wait()
        record = verdicts.Record(header | {"attacks": [attack]}, tmp_path)
        found[name] = record.numbers[0]

    barrier = threading.Barrier(len(names))
    threads = [threading.Thread(target=add, args=[name]) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    held = json.loads((tmp_path / "record.json").read_text())["attacks"]
    assert {a["name"]: n for n, a in enumerate(held)} == found
    assert sorted(found) == names


@pytest.mark.parametrize(
    ("name", "nth"), [("record.json", 1), ("000001.npz", 1), ("000002.npz", 3)]
)
def test_killed_while_it_grows(name, nth, fresh, tmp_path, monkeypatch):
    evaluate(tmp_path, ALL[:2], {"linf": [0.08]})
    with monkeypatch.context() as patch:
        helpers.kill_at_write(patch, name, nth)
        with pytest.raises(helpers.Killed):
            evaluate(tmp_path)
    assert_same(evaluate(tmp_path), fresh[1])


def test_attacks_on_the_model_and_on_surrogates_are_kept_apart(
    tmp_path, caplog
):
    def rows(**kwargs):
        found = evaluate(tmp_path, [Signs], {"linf": [0.04]}, **kwargs)
        return found["robust"]

    direct = rows()
    transfers = {"surrogate": surrogate, "transfer_attacks": [Signs]}
    before, row = rows(**transfers)
    assert [before] == direct and row["surrogate"]
    assert calls(caplog)
    assert rows(surrogate=surrogate) == [row] and not calls(caplog)
    rows(surrogate=lambda x: np.asarray(x) @ (WEIGHTS + 0.2))
    assert calls(caplog)
    record = json.loads((tmp_path / "record.json").read_text())
    assert [a["surrogate"] for a in record["attacks"]] == [None, 0, 1]
    assert set(verdicts.load(tmp_path)) == {
        (f"0{n}-Signs", 0.04) for n in range(3)
    }


def test_a_warm_start_takes_no_other_epsilons(tmp_path):
    class Warm(Signs):
        def __call__(self, logits_fn, x, y, seeds, start=None):
            return super().__call__(logits_fn, x, y, seeds)

    kwargs = {"warm_start": True, "attacks": [Warm]}
    evaluate(tmp_path, budgets={"linf": [0.02, 0.04]}, **kwargs)
    for epsilons in ([0.03], [0.02], [0.02, 0.03, 0.04]):
        with pytest.raises(files.Unusable, match=r"it has \[0\.02, 0\.04\]"):
            evaluate(tmp_path, budgets={"linf": epsilons}, **kwargs)
    evaluate(tmp_path, budgets={"l2": [0.1]}, **kwargs)


def test_a_record_of_several_norms_has_them_in_its_keys(fresh):
    folder, result = fresh
    found = verdicts.load(folder)
    for row in result["robust"]:
        column = found[row["attack"], row["norm"], row["epsilon"]]
        assert (column == verdicts.STANDS).mean() == row["accuracy"]
        alone = verdicts.load(folder / row["norm"])
        np.testing.assert_array_equal(
            alone[row["attack"], row["epsilon"]], column
        )


def test_a_run_of_0_1_0_has_a_folder_for_each_norm(tmp_path):
    shutil.copytree(FILES / "finished" / "evaluation", tmp_path / "one")
    assert len(tfsam.merge([tmp_path / "one"])["robust"]) == 4
    rows = []
    for norm in ("linf", "l2"):
        folder = tmp_path / "two" / norm
        rows += evaluate(folder, [Signs, Both], {norm: [0.08, 0.02]})["robust"]
        helpers.to_0_1_0(folder)
    found = tfsam.merge([tmp_path / "two"])
    order = [r for a in ("Signs", "Both") for r in rows if r["attack"] == a]
    assert_same({"robust": found["robust"]}, {"robust": order})
    assert len(found["worst_case"]) == 4
    assert found["union"]["budgets"] == {"linf": 0.08, "l2": 0.08}
    keys = verdicts.load(tmp_path / "two").keys()
    assert ("Both", "l2", 0.02) in keys and len(keys) == 8


@pytest.mark.parametrize(
    "change",
    [
        {"attacks": None},
        {"attacks": [{"name": "Signs"}]},
        {"surrogates": [None]},
        {"surrogate": 3},
        {"budgets": {"../l2": [0.1]}},
        {"budgets": {"l2": [1]}},
        {"identity": [{"norm": "linf", "epsilons": [0.1]}]},
    ],
    ids=str,
)
def test_a_damaged_header_is_no_header(change, tmp_path):
    evaluate(tmp_path, [], {})
    path = tmp_path / "record.json"
    header = json.loads(path.read_text())
    attack = {"name": "Signs", "options": {}, "surrogate": None}
    attack |= {"budgets": {"linf": [0.1]}, "identity": []}
    assert tfsam.merge([tmp_path])["robust"] == []
    if change.keys() <= attack.keys():
        change = {"attacks": [attack | change]}
    path.write_text(json.dumps(header | change))
    with pytest.raises(ValueError, match="must be the folder of a record"):
        tfsam.merge([tmp_path])
    with pytest.raises(files.Unusable, match="missing or damaged"):
        evaluate(tmp_path, [Signs], {})


def test_epsilons_are_numbers_of_any_kind(tmp_path):
    budgets = {"linf": 0, "l2": np.array([1, 0.5], "float32"), "l1": [2]}
    rows = evaluate(tmp_path, [Signs], budgets, bounds=None)["robust"]
    found = [(row["norm"], row["epsilon"]) for row in rows]
    assert found == [("linf", 0), ("l2", 1), ("l2", 0.5), ("l1", 2)]
    assert tfsam.merge([tmp_path])["robust"] == rows


def test_a_file_of_no_attack_is_left_out(tmp_path):
    """Its verdicts cannot be matched to an attack."""
    evaluate(tmp_path, [Signs], {"linf": [0.02]})
    shutil.copytree(tmp_path / "00-Signs", tmp_path / "01-Both")
    other = tmp_path / "other"
    evaluate(other, [Signs, Both], {"linf": [0.02]}, shard=(0, 3))
    found = tfsam.merge([other, tmp_path])["robust"]
    assert "not run in chunk 1" in found[1]["error"]
    assert "error" not in found[0]
    assert os.path.isdir(other / "01-Both")
