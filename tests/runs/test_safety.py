"""Input from elsewhere runs no code and writes no files."""

import json
import os
import pathlib
import shutil
import zipfile

import keras
import numpy as np
import pytest
from helpers import settings_of

import tfsam
from tfsam.evaluation import verdicts
from tfsam.training import checkpoints

X = np.random.default_rng(0).random((6, 8, 8, 1), dtype=np.float32)
Y = np.arange(6) % 3


class Trap:
    """Unpickled, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return pathlib.Path.touch, (self.path,)


def network():
    return keras.Sequential(
        [keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(3)]
    )


def everything(folder):
    return {str(path) for path in folder.rglob("*")}


OUTSIDE = ["../outside", "../../outside", "assets/../../../outside"]


def test_members_of_a_model_file_stay_where_they_belong(tmp_path):
    folder = tmp_path / "a/b/c"
    folder.mkdir(parents=True)
    path = folder / "model.keras"
    network().save(path)
    with zipfile.ZipFile(path, "a") as archive:
        for name in [*OUTSIDE, str(tmp_path / "absolute")]:
            archive.writestr(name, b"outside")
    before = everything(tmp_path)
    try:
        tfsam.evaluate(path, (X, Y), ["fgsm"], epsilons=[0.1])
    except ValueError as error:  # An error is as good as no effect.
        assert "model.keras" in str(error)
    assert everything(tmp_path) == before


def test_a_checkpoint_s_state_is_no_pickle(tmp_path):
    path = tmp_path / "epoch-0001.keras"
    tfsam.RobustModel(network()).save(path)
    trap = np.array([Trap(tmp_path / "sprung")], dtype=object)
    np.savez(tmp_path / "state.npz", trap=trap, allow_pickle=True)
    with zipfile.ZipFile(path, "a") as archive:
        archive.write(tmp_path / "state.npz", "state.npz")
    with pytest.raises(ValueError, match="allow_pickle=False"):
        checkpoints.read_state(path)
    assert not (tmp_path / "sprung").exists()


def test_a_chunk_of_verdicts_is_no_pickle(tmp_path):
    record = tmp_path / "record"
    tfsam.evaluate(network(), (X, Y), ["fgsm"], epsilons=[0.1], workdir=record)
    trap = np.array([Trap(tmp_path / "sprung")], dtype=object)
    (chunk,) = record.glob("00-fgsm/*/*.npz")
    np.savez(chunk, verdict=trap, allow_pickle=True)
    assert verdicts.load(record) == {}
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("name", ["../../outside", "/outside", "..", "a/b"])
def test_parts_of_a_record_are_folders_in_it(name):
    part = pathlib.Path("record", verdicts.part_of(3, name))
    assert os.path.normpath(part) == str(part)
    assert part.parent == pathlib.Path("record")


def test_default_workdirs_are_below_runs():
    path = settings_of(
        "--dataset=folder:../../outside/..", "--evaluate=/etc/../outside"
    ).workdir
    assert path.parent == pathlib.Path("runs")
    assert path.name not in ("", ".", "..")


def test_a_record_s_header_names_no_other_folder(tmp_path):
    """Only files inside the folder are read."""
    workdir = tmp_path / "record"
    tfsam.evaluate(network(), (X, Y), ["fgsm"], epsilons=[0.1], workdir=workdir)
    shutil.move(workdir / "00-fgsm", tmp_path / "outside")
    header = json.loads((workdir / "record.json").read_text())
    header["attacks"][0]["name"] = "../../outside"
    (workdir / "record.json").write_text(json.dumps(header))
    assert verdicts.load(workdir) == {}
