"""Files that tfsam 0.1.0 wrote are read, and runs that it began go on.

`files_of_0_1_0/make.py` wrote them, with the code of that version.
"""

import json
import pathlib
import re
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest
from helpers import main
from helpers import read_json
from helpers import snapshot

import tfsam

FILES = pathlib.Path(__file__).parent / "files_of_0_1_0"
EXPECTED = np.load(FILES / "expected.npz")
PARTS = json.loads((FILES / "parts.json").read_text())
ADAPTERS = {"cleverhans": "cleverhans_pgd", "art": "art", "foolbox": "foolbox"}

# The arguments of both runs are in their logs.
LOG = (FILES / "finished" / "log.txt").read_text().splitlines()
RUN = [a for a in LOG[0].split() if re.match("--(?!workdir)", a)]
CLOSE = {"rtol": 1e-4, "atol": 1e-5}  # Another processor's rounding.


@pytest.fixture(scope="module")
def data():
    images = tfsam.data.load("digits")
    return images.x_test[:40], images.y_test[:40]


@pytest.mark.parametrize("name", ["sam", "trades"])
def test_a_model_gives_the_same_logits_and_trains_on(name, data):
    model = keras.saving.load_model(FILES / f"{name}.keras")
    assert isinstance(model, tfsam.RobustModel)
    assert isinstance(model.perturb_inputs, tfsam.PGD)
    assert model.perturb_inputs.steps == 2
    kinds = type(model.perturb_weights), type(model.objective)
    assert (
        kinds
        == {
            "sam": (tfsam.SAM, type(None)),
            "trades": (tfsam.AWP, tfsam.TRADES),
        }[name]
    )
    assert isinstance(model.optimizer, tfsam.SGD)
    assert int(model.optimizer.iterations) == 2
    logits = model.network.predict(data[0], verbose=0)
    np.testing.assert_allclose(logits, EXPECTED[f"{name}/logits"], **CLOSE)
    # With the optimizer's momentum.
    loss = model.train_on_batch(*data)[0]
    np.testing.assert_allclose(loss, EXPECTED[f"{name}/loss"], **CLOSE)
    for number, weight in enumerate(model.network.get_weights()):
        expected = EXPECTED[f"{name}/after/{number}"]
        np.testing.assert_allclose(weight, expected, **CLOSE)


@pytest.mark.parametrize(
    "part",
    [
        pytest.param(
            part,
            id=f"{part['class_name']}-{number}",
            marks=[
                pytest.mark.needs(library)
                for library in ("art", "foolbox")
                if part["module"].endswith(library)
            ],
        )
        for number, part in enumerate(PARTS)
    ],
)
def test_a_part_of_a_file_is_made_again(part):
    # An adapter is registered when it is first used, as it was then.
    adapter = ADAPTERS.get(part["module"].rpartition(".")[2])
    if adapter:
        tfsam.attacks.factory(adapter)
    made = keras.saving.deserialize_keras_object(part)
    assert type(made).__name__ == part["class_name"]
    config = json.loads(json.dumps(made.get_config()))
    assert config.items() >= part["config"].items()


@pytest.mark.slow
def test_importing_tfsam_is_enough_to_read_its_parts():
    """Other tests of this process have imported more."""
    code = f"""
import json, keras, tfsam
for part in json.load(open({str(FILES / "parts.json")!r})):
    if not part["module"].endswith({(*ADAPTERS,)}):
        keras.saving.deserialize_keras_object(part)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_records_are_read_and_merged():
    merged = tfsam.merge([FILES / "record" / str(shard) for shard in range(2)])
    expected = read_json(FILES / "merged.json")
    assert merged["natural"] == expected["natural"]
    for row, old in zip(merged["robust"], expected["robust"], strict=True):
        assert row.items() >= old.items()
    found = tfsam.verdicts.load(FILES / "record" / "whole")
    assert len(found) == 4
    for (name, epsilon), column in found.items():
        np.testing.assert_array_equal(column, EXPECTED[f"{name} {epsilon}"])


def test_an_evaluation_is_not_resumed_but_its_results_are_the_same(
    data, tmp_path
):
    model = keras.saving.load_model(FILES / "sam.keras").network
    options = {
        "attacks": ["pgd", "noise_linf"],
        "epsilons": [0.05, 0.1],
        "batch_size": 20,
    }
    whole = shutil.copytree(FILES / "record" / "whole", tmp_path / "whole")
    with pytest.raises(ValueError, match="another version of tfsam"):
        tfsam.evaluate(model, data, **options, workdir=whole)
    found = tfsam.evaluate(model, data, **options)
    expected = read_json(FILES / "merged.json")
    assert found["natural"] == expected["natural"]
    for row, old in zip(found["robust"], expected["robust"], strict=True):
        assert row["attack"] == old["attack"]
        # An example may lie at a boundary.
        assert row["accuracy"] == pytest.approx(old["accuracy"], abs=0.026)


def test_a_finished_run_is_reported_and_used_again(
    tmp_path, tiny_network, capsys
):
    workdir = shutil.copytree(FILES / "finished", tmp_path / "finished")
    before = snapshot(workdir)
    code, output = main(*RUN, f"--workdir={workdir}")
    assert code == 0
    table = tfsam.reports.table(read_json(workdir / "results.json"))
    assert "finished" in output and table in output
    assert len(table.splitlines()) == 7
    assert snapshot(workdir) == before
    assert tfsam.page.write([workdir], tmp_path / "report.html") == 1
    # With another flag it is refused.
    code, _ = main(*RUN, "--rho=0.1", f"--workdir={workdir}")
    assert code == 2 and "rho=0.1" in capsys.readouterr().err
    assert snapshot(workdir) == before


def test_a_finished_run_s_model_is_evaluated(tmp_path, short_runs):
    flags = [a for a in RUN if re.match("--(att|linf|l2|limit_test)", a)]
    model = FILES / "finished" / "model.keras"
    workdir = tmp_path / "evaluation"
    code, output = main(*flags, f"--evaluate={model}", f"--workdir={workdir}")
    assert code == 0, output
    found, expected = (
        read_json(folder / "results.json")
        for folder in (workdir, FILES / "finished")
    )
    assert found["natural"] == expected["natural"]
    for row, old in zip(found["robust"], expected["robust"], strict=True):
        assert row["accuracy"] == pytest.approx(old["accuracy"], abs=0.026)


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_as_the_finished_one(
    tmp_path, tiny_network
):
    """It was killed in its second epoch, after a step's checkpoint."""
    workdir = shutil.copytree(FILES / "killed", tmp_path / "killed")
    held = (workdir / "history.csv").read_text()
    code, output = main(*RUN, f"--workdir={workdir}")
    assert code == 0, output
    assert "resuming after epoch 1 and 1 step" in output
    assert (workdir / "history.csv").read_text().startswith(held)
    found, expected = (
        keras.saving.load_model(folder / "model.keras", compile=False)
        for folder in (workdir, FILES / "finished")
    )
    pairs = zip(found.weights, expected.weights, strict=True)
    for weight, old in pairs:
        np.testing.assert_allclose(weight, old, **CLOSE, err_msg=weight.path)
    results = read_json(workdir / "results.json")
    assert [row["attack"] for row in results["robust"]] == [
        *["pgd"] * 2,
        *["noise_linf"] * 2,
    ]
