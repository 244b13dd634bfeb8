"""The command line's evaluations: ensembles, shards, transfer, images kept."""

import json

import numpy as np
import pytest
import tensorflow as tf
from helpers import network

import tfsam
from tfsam import run

pytestmark = pytest.mark.usefixtures("short_runs")

COMMON = (
    "--dataset=digits",
    "--limit_test=60",
    "--l2_epsilons=",
    "--attack_batch_size=16",
)


def main(*arguments):
    return run.main([*COMMON, *map(str, arguments)])


def results(folder):
    return json.loads((folder / "results.json").read_text())


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "model.keras"
    network("standard").save(path)
    return path


def timeless(results):
    rows = [{**row, "seconds": None} for row in results["robust"]]
    return results["natural"], rows, results["warnings"]


def test_shards_make_up_the_whole(model, tmp_path, capsys):
    attack = (
        f"--evaluate={model}",
        "--attacks=pgd",
        "--attack_steps=2",
        "--linf_epsilons=0.1",
        "--nodiagnose",
    )
    # TensorFlow has started: this process's devices are the command's.
    whole = ("--devices=cpu:2", f"--workdir={tmp_path / 'whole'}")
    assert main(*attack, *whole) == 0
    shards = [tmp_path / f"shard{i}" for i in range(2)]
    for number, folder in enumerate(shards):
        assert main(*attack, f"--shard={number}/2", f"--workdir={folder}") == 0
    merged = tmp_path / "merged"
    merge = f"--merge={','.join(map(str, shards))}"
    assert run.main([merge, f"--workdir={merged}"]) == 0
    whole, found = results(tmp_path / "whole"), results(merged)
    assert timeless(found) == timeless(whole)
    assert found["natural"]["n"] == 60
    assert found["config"]["shard"] is None
    assert found["merged"] == [str(s) for s in shards]
    assert results(shards[0])["natural"]["n"] == 32  # Chunks 0 and 2.
    assert results(shards[0])["config"]["shard"] == [0, 2]
    table = capsys.readouterr().out.rpartition("| attack |")[2]
    assert "| pgd (steps=2) | linf | 0.1 |" in table
    # Incomplete and foreign shards are refused.
    for folders, message in (
        (shards[:1], "run the missing shard"),
        ([shards[0], tmp_path / "whole"], "finished runs with --shard"),
        ([tmp_path], "finished runs with --shard"),
    ):
        merge = f"--merge={','.join(map(str, folders))}"
        assert run.main([merge, f"--workdir={tmp_path / 'other'}"]) == 2
        assert message in capsys.readouterr().err
    merge = f"--merge={shards[0]}"
    assert run.main([merge, f"--workdir={merged}"]) == 2
    assert "must be an empty folder" in capsys.readouterr().err


@pytest.mark.slow
def test_autoattack_tells_how_far_it_is(model, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        tfsam.attacks.Square.__init__, "__defaults__", ("linf", 20, 0.8, (0, 1))
    )
    code = main(
        f"--evaluate={model}",
        "--attacks=autoattack",
        "--linf_epsilons=0.15,0.2",
        "--limit_test=20",
        f"--workdir={tmp_path}",
    )
    assert code == 0
    output = capsys.readouterr().out
    assert "autoattack linf: robust accuracy so far 0.15 0." in output
    assert " of 20, 0.2 0." in output and "0 s left" in output
    small, large = results(tmp_path)["robust"]
    assert small["standard"] and large["standard"]
    assert sum(large["broken_by"].values()) >= sum(small["broken_by"].values())
    assert large["accuracy"] <= small["accuracy"] < 0.5


@pytest.mark.slow
def test_transfer_and_images(model, tmp_path):
    other = tmp_path / "other.keras"
    network("adversarial").save(other)
    arguments = (
        f"--evaluate={model}",
        "--attacks=pgd",
        "--linf_epsilons=0.1",
        "--save_adversarial",
    )
    direct, transferred = tmp_path / "direct", tmp_path / "transferred"
    assert main(*arguments, f"--workdir={direct}") == 0
    assert (
        main(*arguments, f"--surrogate={other}", f"--workdir={transferred}")
        == 0
    )
    rows = [results(f)["robust"][0] for f in (direct, transferred)]
    assert rows[0]["accuracy"] < rows[1]["accuracy"]
    assert results(transferred)["config"]["surrogate"] == str(other)
    assert results(transferred)["surrogate"]["format"] == "keras"
    assert "surrogate" not in results(direct)
    files = sorted((direct / "evaluation").glob("00-pgd/linf-0.1/*.npz"))
    images = np.concatenate([np.load(f)["adversarial"] for f in files])
    assert images.shape == (60, 8, 8, 1)
    found = tfsam.verdicts.load(direct / "evaluation")
    stands = found["pgd", 0.1] == tfsam.verdicts.STANDS
    assert rows[0]["accuracy"] == stands.mean()
    assert tf.reduce_max(images) <= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shard=0/2"], "--shard needs --evaluate"),
        (["--evaluate=m.keras", "--shard=2/2"], "Received: shard=2/2"),
        (["--evaluate=m.keras", "--shard=half"], "Received: shard=half"),
        (["--merge=a,b"], "--merge needs --workdir"),
        (["--merge=a,b", "--seed=3"], "Received: --seed"),
        (["--attack_batch_size=0"], "Received: attack_batch_size=0"),
        (["--attacks=foolbix:LinfPGD"], "Received: attack=foolbix"),
        (["--surrogate=nowhere.keras"], "Received: model=nowhere.keras"),
    ],
)
def test_bad_flags(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run.main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not list(tmp_path.iterdir())


def test_l1_and_the_diagnosis_of_attacks(model, tmp_path):
    arguments = (
        *(f"--evaluate={model}", "--attacks=pgd", "--attack_steps=2"),
        *("--linf_epsilons=0.1", "--l1_epsilons=0.5,2", "--limit_test=20"),
    )
    assert main(*arguments, f"--workdir={tmp_path / 'run'}") == 0
    found = results(tmp_path / "run")["robust"]
    rows = [(row["norm"], row["epsilon"]) for row in found]
    assert rows == [("linf", 0.1), ("l1", 0.5), ("l1", 2.0)]
    assert found[1]["accuracy"] >= found[2]["accuracy"]
    assert found[2]["max_perturbation"] <= 2 + 1e-5
    assert all("diagnosis" in row for row in found)


def test_transfers_come_in_addition_to_attacks_on_the_model(model, tmp_path):
    other = tmp_path / "other.keras"
    network("adversarial").save(other)
    arguments = (
        *(f"--evaluate={model}", f"--surrogate={other}", "--limit_test=20"),
        *("--attacks=fgsm", "--transfer_attacks=fgsm,pgd:steps=2"),
        *("--linf_epsilons=0.1", "--nodiagnose"),
    )
    assert main(*arguments, f"--workdir={tmp_path / 'run'}") == 0
    found = results(tmp_path / "run")
    rows = found["robust"]
    assert [(row["attack"], row.get("surrogate")) for row in rows] == [
        *(("fgsm", None), ("fgsm", True), ("pgd:steps=2", True))
    ]
    assert rows[0]["accuracy"] < rows[1]["accuracy"]
    assert not any("diagnosis" in row for row in rows)
    (worst,) = found["worst_case"]
    assert len(worst["attacks"]) == 3
    assert worst["accuracy"] <= rows[0]["accuracy"]
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "by fgsm, fgsm on the surrogate, pgd:steps=2 on the surr" in log


def test_sweeps_by_bisection(model, tmp_path, capsys):
    arguments = (
        *(f"--evaluate={model}", "--attacks=pgd", "--attack_steps=2"),
        *("--linf_epsilons=0.02,0.05,0.1", "--limit_test=20"),
        "--nodiagnose",
    )
    found = {}
    for sweep in ("full", "bisect"):
        folder = tmp_path / sweep
        flags = (f"--sweep={sweep}", f"--workdir={folder}")
        assert main(*arguments, *flags) == 0
        found[sweep] = results(folder)["robust"]
    assert [row.get("sweep") for row in found["bisect"]] == ["bisect"] * 3
    assert not any("sweep" in row for row in found["full"])
    attacked = [sum(r["attacked"] for r in rows) for rows in found.values()]
    assert attacked[0] > attacked[1] > 0
    assert "| pgd (steps=2) (sweep by bisection) |" in capsys.readouterr().out
    folder = tmp_path / "standard"
    flags = ("--sweep=bisect", f"--workdir={folder}")
    assert main(arguments[0], "--attacks=autoattack", *flags) == 2
    assert "Received: sweep=bisect, attack=auto" in capsys.readouterr().err
    assert not folder.exists()
