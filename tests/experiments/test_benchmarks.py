"""The benchmarks run, and their sentences about times are true."""

import keras
import numpy as np
import pytest

from experiments import benchmark_input
from experiments import benchmark_steps
from experiments import command

SETTING = {
    "network": "preact_resnet8",
    "width": 4,
    "batch_size": 4,
    "repeats": 1,
}


@pytest.mark.slow
def test_every_method_is_timed_in_every_round():
    methods = benchmark_steps.with_bases(["sam"])
    assert methods == ["st", "sam"]
    rounds = benchmark_steps.measure(methods, ["graph"], **SETTING)
    (row,) = rounds
    assert list(row) == [("graph", "st"), ("graph", "sam")]
    assert min(row.values()) > 0
    lines = benchmark_steps.report(rounds, ["graph"], methods).splitlines()
    assert lines[2].startswith("| st | ") and lines[2].endswith(
        " | 1.00 | 1.00 |  |"
    )
    assert lines[3].startswith("| sam | ")


def test_a_ratio_is_the_median_of_the_rounds_ratios():
    st, sam = ("XLA", "st"), ("XLA", "sam")
    rounds = [{st: 1.0, sam: 2.0}, {st: 4.0, sam: 12.0}, {st: 5.0, sam: 11.0}]
    assert benchmark_steps.ratio(rounds, sam, st) == 2.2
    assert benchmark_steps.median(rounds, sam) == 11.0
    text = benchmark_steps.report(rounds, ["XLA"], ["st", "sam"])
    assert "| sam | 11.000 | 2.20 | 2.00 | 2.15 |" in text
    assert text.endswith(
        "\nMissed: XLA sam is 2.20 of XLA st, the target 2.15."
    )
    rounds[2][sam] = 10.0
    text = benchmark_steps.report(rounds, ["XLA"], ["st", "sam"])
    assert text.endswith("\nNo target was missed.")


def test_awp_is_held_against_the_training_that_it_stands_on():
    names = benchmark_steps.with_bases(["awp"])
    assert names == ["st", "at10", "awp"]
    rounds = [{("XLA", "st"): 1.0, ("XLA", "at10"): 8.0, ("XLA", "awp"): 10.0}]
    text = benchmark_steps.report(rounds, ["XLA"], names)
    assert "| awp | 10.000 | 10.00 | 8.67 | 1.2 of at10 (1.25) |" in text
    assert text.endswith("XLA awp is 1.25 of XLA at10, the target 1.2.")


def test_pytorch_and_both_of_ours_are_held_against_each_other():
    rounds = [
        {
            ("graph", "st"): 1.0,
            ("XLA", "st"): 0.5,
            ("PyTorch", "st"): 0.8,
        }
    ]
    text = benchmark_steps.report(rounds, ["graph", "XLA"], ["st"])
    assert "| graph st | 1.000 | PyTorch st | 0.800 | 1.25 | 1 |" in text
    assert "| XLA st | 0.500 | graph st | 1.000 | 0.50 |  |" in text
    assert text.endswith(
        "\n\nMissed: graph st is 1.25 of PyTorch st, the target 1."
    )


def test_an_unknown_method_is_refused():
    with pytest.raises(ValueError, match=r"Received: .*'samm'"):
        benchmark_steps.with_bases(["st", "samm"])


@pytest.mark.slow
def test_the_parts_of_a_step():
    text = benchmark_steps.profile("at_sam", "graph", **SETTING)
    parts = [line.split(" | ")[0][2:] for line in text.splitlines()[2:]]
    assert parts == [
        "st",
        "forward_pass",
        "one_pass",
        "input_gradient",
        "attack",
        "weight_perturbation",
        "all_passes",
        "optimizer",
        "at_sam",
    ]


@pytest.mark.slow
def test_the_parts_of_a_step_that_may_renew_a_mask():
    """Tracing SSAM's perturbation traces the renewal of its mask, too."""
    text = benchmark_steps.profile("ssam_f", "graph", **SETTING)
    assert "| weight_perturbation |" in text


def torch_training(seed=0):
    torch = pytest.importorskip("torch")
    from experiments import torch_networks

    torch.manual_seed(seed)
    return torch_networks.Training(
        torch_networks.PreActResNet18(10, 4),
        torch.rand(4, 3, 32, 32),
        torch.randint(10, (4,)),
    )


def weights_after(training, step, **options):
    getattr(training, step)(**options)
    return [w.detach().numpy() for w in training.network.parameters()]


def test_pytorch_sam_without_a_radius_is_standard_training():
    once = weights_after(torch_training(), "st")
    again = weights_after(torch_training(), "sam", rho=0.0)
    other = weights_after(torch_training(), "sam", rho=0.1)
    for one, same in zip(once, again, strict=True):
        np.testing.assert_array_equal(one, same)
    assert any((a != b).any() for a, b in zip(once, other, strict=True))


def test_pytorch_weight_gradients_only_take_time():
    for one, same in zip(
        weights_after(torch_training(), "at"),
        weights_after(torch_training(), "at_with_weight_gradients"),
        strict=True,
    ):
        np.testing.assert_array_equal(one, same)


@pytest.mark.slow
def test_pytorch_stands_in_the_same_rounds():
    pytest.importorskip("torch")
    setting = SETTING | {"network": "preact_resnet18"}
    (row,) = benchmark_steps.measure(["st"], ["graph"], torch=True, **setting)
    assert list(row) == [("graph", "st"), ("PyTorch", "st")]
    with pytest.raises(ValueError, match="Received: network=preact_resnet8"):
        benchmark_steps.measure(["st"], ["graph"], torch=True, **SETTING)


def test_operations_by_hand():
    network = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            keras.layers.Conv2D(4, 3, 2, padding="same"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(5),
        ]
    )
    # Of 4 x 4 places, each 3 x 3 x 3 x 4; of the head 4 x 5.
    expected = 6 * (16 * 108 + 20)
    assert benchmark_input.operations(network) == expected


@pytest.mark.slow
def test_the_input_is_measured(capsys):
    values = benchmark_input.FLAGS
    arguments = ["--rounds=1", "--batches=2"]
    code = command.run(benchmark_input.main, values, arguments)
    assert code == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "PreActResNet-18: 3.33 GFLOP a training image."
    plain, augmented, other = (
        [float(cell.replace(",", "")) for cell in line.split("|")[2:5]]
        for line in lines[4:7]
    )
    assert min(*plain, *augmented, *other) > 0
    assert lines[10].startswith("| 2,000 | ")
