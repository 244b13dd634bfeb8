"""Corruptions of a run of the command."""

import numpy as np
import pytest
from helpers import SMALL
from helpers import assert_refused
from helpers import main
from helpers import network
from helpers import read_json
from helpers import settings_of

import tfsam
from tfsam import run

KINDS = "--corruptions=Weather,contrast"


def test_a_run_measures_them_and_ends(tiny_network, tmp_path, capsys):
    workdir = tmp_path / "run"
    flags = [*SMALL, "--method=st", "--epochs=1", f"--workdir={workdir}"]
    flags += [KINDS, "--severities=1,5", "--attacks=none"]
    flags.remove("--attacks=pgd")
    flags.remove("--attack_steps=1")
    code, printed = main(*flags)
    assert code == 0
    results = read_json(workdir / "results.json")
    assert results["robust"] == []
    found = results["corruptions"]
    assert found["severities"] == [1, 5] and found["n"] == 20
    kinds = ["brightness", "fog", "snow", "contrast"]
    assert [row["corruption"] for row in found["rows"][::2]] == kinds
    assert found["left_out"] == {"frost": "needs photographs"}
    mean = np.mean([row["accuracy"] for row in found["rows"]])
    assert found["mean_accuracy"] == pytest.approx(mean)
    assert found["natural"] == results["natural"]
    assert results["worst_case"] == []  # Nothing was attacked.
    assert {"corruptions", "corruptions.png"} <= {*results["artifacts"]}
    lines = (
        f"tfsam corruptions (not CIFAR-10-C): mean accuracy {100 * mean:.2f} %",
        "over 4 kinds at severities 1, 5",
        "the corruption frost is left out: it needs photographs",
    )
    again = main(*flags)
    assert again[0] == 0 and "finished" in again[1]
    for line in lines:
        assert line in printed and line in again[1]
    images = tfsam.data.load("digits", limit_test=20)
    other = tfsam.evaluate_corruptions(
        tfsam.models.load(workdir / "model.keras"),
        (tfsam.data.as_float(images.x_test), images.y_test),
        ["weather", "contrast"],
        [1, 5],
    )
    assert other["rows"] == found["rows"]


@pytest.mark.parametrize(
    "flags, parts",
    [
        (["--corruptions=frost"], ["frost is left out: it needs photographs"]),
        (["--corruptions=blurr"], ["did you mean blur", "corruption=blurr"]),
        (["--severities=1"], ["--severities needs --corruptions"]),
        (["--corruptions=fog", "--severities=6"], ["Received: severity=6"]),
        (["--corruptions=fog", "--severities="], ["severities must be some"]),
        (["--attacks=none"], ["attacks must name one at least"]),
    ],
)
def test_bad_corruptions_are_refused(capsys, flags, parts):
    assert_refused(capsys, *flags, parts=parts)


@pytest.mark.slow
def test_shards_of_a_run_are_merged(tmp_path, short_runs):
    path = tmp_path / "model.keras"
    network("standard").save(path)
    common = [
        *(f"--evaluate={path}", "--dataset=digits", "--limit_test=20"),
        *("--attacks=none", "--attack_batch_size=8"),
        *("--corruptions=contrast,weather", "--severities=5"),
    ]

    def made(name, *flags):
        workdir = tmp_path / name
        code, printed = main(*common, *flags, f"--workdir={workdir}")
        assert code == 0
        return workdir, read_json(workdir / "results.json"), printed

    _, whole, text = made("whole")
    shards = [made(str(index), f"--shard={index}/2")[0] for index in (0, 1)]
    folders = ",".join(map(str, shards))
    code, printed = main(f"--merge={folders}", f"--workdir={tmp_path / 'all'}")
    assert code == 0
    merged = read_json(tmp_path / "all" / "results.json")
    for name in ("natural", "corruptions"):
        assert merged[name] == whole[name]
    assert "corruptions.png" in merged["artifacts"]
    lines = [line for line in text.splitlines() if "mean accuracy" in line]
    assert lines[0] in printed and "frost is left out" in printed


def test_settings_have_them():
    made = settings_of("--corruptions=ALL,speckle_noise", "--severities=2, 3")
    assert made.corruptions == ("all", "speckle_noise")
    assert made.severities == (2, 3)
    assert settings_of().corruptions is None
    assert settings_of("--corruptions=").corruptions is None
    config = settings_of("--corruptions=fog", "--attacks=none").config()
    assert config["attacks"] == [] and config["corruptions"] == ["fog"]
    assert config["severities"] is None


def test_corruptions_of_another_package(other_package, capsys):
    assert settings_of("--corruptions=Veil").corruptions == ("veil",)
    assert "veil" not in tfsam.corruptions.chosen("all,extra")
    x = np.zeros((4, 8, 8, 1), "float32")
    found = tfsam.corruptions.corrupted(x, "veil", 5)
    np.testing.assert_allclose(found, 128 / 255)
    other = tfsam.corruptions.get("veil:value=1")(x[0], 5, None)
    np.testing.assert_allclose(other, 1)
    assert run.main(["--help=veil"]) == 0
    assert "of the package tfsam-shift-fixture" in capsys.readouterr().out
