"""A run in a folder is one of the same data and the same models."""

import json
import os
import pathlib

import keras
import numpy as np
import pytest
from helpers import settings_of

from tfsam import run
from tfsam.runs import workdirs
from tfsam.support import files

RESULTS = {
    "schema": 1,
    "natural": {"accuracy": 0.5, "n": 2, "interval": [0.0, 1.0]},
    "robust": [],
}


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    for split in ("train", "test"):
        for label in ("cat", "dog"):
            for number in range(3):
                path = folder / split / label / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                keras.utils.save_img(path, np.full((4, 4, 1), 40 * number))
    return folder


@pytest.fixture
def arrays(tmp_path):
    path = tmp_path / "data.npz"
    write_arrays(path, 0)
    return path


def write_arrays(path, pixel):
    x = np.full((4, 4, 4, 1), pixel, np.uint8)
    y = np.arange(4) % 2
    np.savez(path, x_train=x, y_train=y, x_test=x, y_test=y)


def configured(source, workdir, **flags):
    flags = [f"--{key}={value}" for key, value in flags.items()]
    return settings_of(f"--dataset={source}", f"--workdir={workdir}", *flags)


def finish(settings):
    workdirs.claim(settings)
    files.write_json(settings.workdir / "results.json", RESULTS)
    assert workdirs.finished(settings) == RESULTS


def delete(folder):
    (folder / "train/cat/1.png").unlink()


def add(folder):
    keras.utils.save_img(folder / "test/dog/9.png", np.zeros((4, 4, 1)))


def rename(folder):
    (folder / "train/cat/1.png").rename(folder / "train/dog/7.png")


def change(folder):
    keras.utils.save_img(folder / "test/dog/0.png", np.full((4, 4, 1), 200))


def touch(folder):
    """Of the same size and another time: the pixels are not compared."""
    os.utime(folder / "test/dog/0.png", (1, 1))


@pytest.mark.parametrize("edit", [delete, add, rename, change, touch])
def test_a_folder_that_changed_is_another_run(images, tmp_path, edit):
    settings = configured(f"folder:{images}", tmp_path / "run")
    finish(settings)
    edit(images)
    changed = "the files of the data set changed since: 1[123] files, "
    with pytest.raises(ValueError, match=changed):
        workdirs.finished(settings)


def test_the_command_says_so_before_it_prints_a_table(images, tmp_path, capsys):
    workdir = tmp_path / "run"
    command = [f"--dataset=folder:{images}", f"--workdir={workdir}"]
    finish(settings_of(*command))
    assert run.main(command) == 0
    assert "finished" in capsys.readouterr().out
    delete(images)
    assert run.main(command) == 2
    found = capsys.readouterr()
    (line,) = found.err.splitlines()
    assert "the files of the data set changed since: 11 files" in line
    assert "before: 12 files" in line
    assert "--overwrite" in line
    assert found.out == ""


def test_what_is_no_image_of_the_data_changes_nothing(images, tmp_path):
    settings = configured(f"folder:{images}", tmp_path / "run")
    finish(settings)
    for name in ("notes.txt", "train/.hidden", "train/cat/Thumbs.db"):
        (images / name).write_text("")
    assert workdirs.finished(settings) == RESULTS


def test_arrays_that_changed_are_another_run(arrays, tmp_path):
    settings = configured(f"npz:{arrays}", tmp_path / "run")
    finish(settings)
    write_arrays(arrays, 1)
    with pytest.raises(ValueError, match="files of the data set changed"):
        workdirs.finished(settings)


def test_a_saved_model_with_other_weights_is_another_run(arrays, tmp_path):
    """The graph, a file of its own, is the same."""
    model = tmp_path / "saved"
    network = keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Flatten()])
    network.export(model, verbose=False)
    settings = configured(f"npz:{arrays}", tmp_path / "run", evaluate=model)
    finish(settings)
    (part,) = model.glob("variables/*.index")
    part.write_bytes(part.read_bytes() + b"x")
    with pytest.raises(ValueError, match="the model file changed since"):
        workdirs.finished(settings)


def test_a_run_of_0_1_0_knows_no_more_than_it_kept(images, arrays, tmp_path):
    for name, source in (("a", f"folder:{images}"), ("b", f"npz:{arrays}")):
        folder = tmp_path / name
        settings = configured(source, folder)
        finish(settings)
        older = settings.config() | workdirs._files(settings)
        files.write_json(folder / "config.json", older)
        assert workdirs.finished(settings) == RESULTS
        # A continued run records its inputs.
        (folder / "results.json").unlink()
        assert workdirs.finished(settings) is None
        workdirs.claim(settings)
        held = json.loads((folder / "config.json").read_text())
        assert list(held["inputs"]) == ["dataset"]
    files.write_json(folder / "config.json", older)
    write_arrays(arrays, 1)
    with pytest.raises(ValueError, match="an input file changed since"):
        workdirs.finished(settings)


def test_a_table_is_shown_where_the_data_is_gone(arrays, tmp_path):
    settings = configured(f"npz:{arrays}", tmp_path / "run")
    finish(settings)
    pathlib.Path(arrays).unlink()
    assert workdirs.finished(settings) == RESULTS


def test_data_without_files_has_no_listing(tmp_path):
    workdirs.claim(configured("digits", tmp_path))
    held = json.loads((tmp_path / "config.json").read_text())
    assert held["inputs"] == {}
