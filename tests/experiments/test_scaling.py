"""The model of communication, against sums by hand; the bytes it predicts."""

import pytest

import tfsam
from experiments import command
from experiments import scaling

LINK = scaling.Link(bandwidth=1e9, latency=1e-3)


def test_ring_all_reduce_by_hand():
    # Four GPUs, six messages of a quarter: 1 ms to arrive, 2 ms to send.
    assert scaling.ring_seconds(8e6, 4, LINK) == pytest.approx(6 * 3e-3)
    assert scaling.ring_seconds(8e6, 1, LINK) == 0


@pytest.mark.parametrize(
    ("perturbation", "per_replica", "both"),
    [
        (None, 1, 1),
        (tfsam.SAM(0.1), 1, 2),
        (tfsam.AWP(), 1, 2),
        (tfsam.GSAM(0.1), 1, 3),
        (tfsam.LookSAM(0.1), 2, 4),
        (tfsam.SAM(0.1, steps=3), 1, 4),
        (tfsam.SSAM(0.1, refresh_every=9), 3, 4),
        (tfsam.FriendlySAM(0.1), 2, 3),
        (tfsam.MSAM(0.1), 1, 1),
        (tfsam.SAM(0.1, layers="normalization"), 1, 1),
    ],
)
def test_reductions(perturbation, per_replica, both):
    method = {"perturb_weights": perturbation}
    assert scaling.reductions(method, "per_replica") == per_replica
    assert scaling.reductions(method, "global") == both
    assert scaling.volume(method, "global", 100) == 400 * both
    method["sub_batches"] = 4
    if perturbation is not None:
        parts = per_replica + 4 * (both - per_replica)
        assert scaling.reductions(method, "global") == parts


def test_reductions_of_a_step_after_the_optimizer_s():
    method = {"perturb_weights": tfsam.WSAM(0.1)}
    assert scaling.reductions(method, "per_replica") == 3
    assert scaling.reductions(method, "global") == 3


def test_predicted_step():
    method = {"perturb_weights": tfsam.SAM(0.1)}
    # Two reductions of 4 MB: on two GPUs two messages of 2 MB each.
    found = scaling.predicted(0.1, method, "global", 10**6, 2, LINK)
    assert found == pytest.approx(0.1 + 2 * 2 * 3e-3)


def test_the_table_on_paper(capsys):
    flags = ["--weights=1000000", "--gigabytes=1,1", "--microseconds=1000,0"]
    assert command.run(scaling.main, scaling.FLAGS, ["--rounds=0", *flags]) == 0
    rows = {
        tuple(cells[1:3]): cells[3:-1]
        for line in capsys.readouterr().out.splitlines()
        if len(cells := [cell.strip() for cell in line.split("|")]) > 3
    }
    # 50 ms, and 14 messages of 0.5 MB, or 126 of 62.5 kB.
    assert rows["st", "per_replica"] == [
        *("1", "4", "71.0", "70%", "23%"),
        *("57.9", "86%", "9%"),
    ]
    assert rows["sam", "global"][:3] == ["2", "8", "142.0"]


@pytest.mark.parametrize(
    "flag", ["--gigabytes=1", "--microseconds=a,b", "--rounds=-1"]
)
def test_bad_flags(flag, capsys):
    arguments = ["--rounds=0", flag]
    assert command.run(scaling.main, scaling.FLAGS, arguments) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


# A worker with a network of few weights, and one method of each kind: a
# gradient that perturbs no weights, and one that does, with a state and a
# second gradient that is read.
METHODS = ("at", "looksam")
SMALLER = f"""
import keras
import tfsam
from experiments import command
from experiments import scaling

def small(num_classes, input_shape):
    return keras.Sequential([
        keras.Input(input_shape),
        keras.layers.Conv2D(4, 3, strides=4),
        keras.layers.BatchNormalization(),
        keras.layers.Flatten(),
        keras.layers.Dense(num_classes),
    ])

tfsam.networks.preact_resnet8 = small
scaling._cells.__defaults__ = ({METHODS},)
raise SystemExit(command.run(scaling.main, scaling.FLAGS))
"""


@pytest.mark.slow
def test_the_graph_reduces_what_the_formula_says(monkeypatch):
    start = scaling.workers.start

    def start_smaller(commands, *arguments, **options):
        python, *line = commands[0]
        assert line[:2] == ["-m", "experiments.scaling"]
        smaller = [python, "-c", SMALLER, *line[2:]]
        return start([smaller] * len(commands), *arguments, **options)

    monkeypatch.setattr(scaling.workers, "start", start_smaller)
    found = scaling.measure_workers(1, 8)
    assert found.keys() == set(scaling._cells(METHODS))
    for (name, sharpness), row in found.items():
        options = scaling._options(name, sharpness)
        expected = scaling.volume(options, sharpness, row["weights"])
        assert row["bytes"] == expected
