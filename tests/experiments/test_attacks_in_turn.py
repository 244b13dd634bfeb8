"""Two attacks in turn: the verdicts of `evaluate`, kept and resumed."""

import numpy as np
import pytest
from helpers import network

import tfsam
from experiments import attacks_in_turn
from experiments import benchmark_attacks
from experiments import command


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model.keras"
    network("adversarial").save(path)
    return path


@pytest.fixture(scope="module")
def data(digits):
    return digits[0][1200:1220], digits[1][1200:1220]


@pytest.mark.slow
def test_the_verdicts_are_those_of_an_evaluation(
    model, data, tmp_path, monkeypatch
):
    names, lines = ["fgsm", "noise_linf"], []
    arguments = (model, data, names, "linf", 0.3, 8, tmp_path, lines.append)
    found = attacks_in_turn.compare(*arguments)
    rows = tfsam.evaluate(network("adversarial"), data, names, epsilons=[0.3])
    for row, name in zip(rows["robust"], names, strict=True):
        assert found[name]["stands"].sum() == round(20 * row["accuracy"])
        assert (found[name]["cpu_seconds"] > 0).all()
    assert found["fgsm"]["stands"].sum() < found["noise_linf"]["stands"].sum()
    right = round(20 * rows["natural"]["accuracy"])
    assert found["fgsm"]["gradient"].sum() == right
    assert [line.partition(":")[0] for line in lines] == [
        "fgsm",  # Traced.
        "noise_linf",
        *(f"chunk {number} of 3" for number in (1, 2, 3)),
    ]
    # A second run loads no model.
    (tmp_path / "fgsm" / "000002.npz").rename(tmp_path / "kept.npz")
    monkeypatch.setattr(attacks_in_turn, "_Rival", None)
    with pytest.raises(TypeError):
        attacks_in_turn.compare(*arguments)
    (tmp_path / "kept.npz").rename(tmp_path / "fgsm" / "000002.npz")
    again = attacks_in_turn.compare(*arguments)
    for name in names:
        for key, values in found[name].items():
            np.testing.assert_array_equal(again[name][key], values)
    with pytest.raises(ValueError, match="Received: workdir="):
        attacks_in_turn.compare(model, data, names, "linf", 0.2, 8, tmp_path)


def test_the_table_by_hand():
    entries = {
        "seconds": np.array([3.0, 1.0]),
        "cpu_seconds": np.array([8.0, 2.0]),
        "forward": np.array([30, 10]),
        "gradient": np.array([8, 4]),
    }
    slow = {"stands": np.array([True, False, True, False]), **entries}
    fast = {"stands": np.array([True, True, False, False])}
    fast |= {key: values / 4 for key, values in entries.items()}
    text = attacks_in_turn.table({"slow": slow, "fast": fast})
    first, second, last = text.splitlines()[2:]
    assert first == "| slow | 4 | 2 | 50.00 | 4.0 | 10.0 | 3.0 | 10.0 |"
    assert second == "| fast | 4 | 2 | 50.00 | 1.0 | 2.5 | 0.8 | 2.5 |"
    assert last == (
        "fast takes 0.250 of slow's time, 0.250 of its CPU seconds. After "
        "fast, 1 images stand that slow breaks; after slow, 1 that fast breaks."
    )


def test_malt_needs_a_model(capsys):
    arguments = ["--part=malt"]
    code = command.run(
        benchmark_attacks.main, benchmark_attacks.FLAGS, arguments
    )
    assert code == 2
    assert "--part=malt needs --model=PATH" in capsys.readouterr().err


@pytest.mark.slow
def test_malt_against_autoattack_on_digits(model, tmp_path, capsys):
    arguments = [
        *("--part=malt", f"--model={model}", "--dataset=digits"),
        *("--images=30", "--batch_size=16", "--epsilon=0.1"),
        f"--workdir={tmp_path}",
    ]
    code = command.run(
        benchmark_attacks.main, benchmark_attacks.FLAGS, arguments
    )
    output = capsys.readouterr().out
    assert code == 0
    assert "chunk 2 of 2: autoattack" in output
    rows = [line.split(" | ") for line in output.splitlines()[-3:-1]]
    assert [row[0] for row in rows] == ["| autoattack", "| malt"]
    assert 0 <= int(rows[1][2]) - int(rows[0][2]) <= 1
    assert float(rows[1][6]) + float(rows[1][7].rstrip(" |")) < float(
        rows[0][6]
    ) + float(rows[0][7].rstrip(" |"))
