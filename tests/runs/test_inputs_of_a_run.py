"""A run in a folder is one of the same data and the same models."""

import json
import os
import pathlib

import keras
import numpy as np
import pytest

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


def configured(source, **flags):
    flags = [f"--{key}={value}" for key, value in flags.items()]
    return run.configuration([f"--dataset={source}", *flags])[0]


def finish(workdir, config):
    workdirs.claim(workdir, config)
    files.write_json(workdir / "results.json", RESULTS)
    assert workdirs.finished(workdir, config) == RESULTS


def delete(folder):
    (folder / "train/cat/1.png").unlink()


def add(folder):
    keras.utils.save_img(folder / "test/dog/9.png", np.zeros((4, 4, 1)))


def rename(folder):
    (folder / "train/cat/1.png").rename(folder / "train/dog/7.png")


def change(folder):
    keras.utils.save_img(folder / "test/dog/0.png", np.full((4, 4, 1), 200))


def touch(folder):
    """Of the same size and another time: nobody has compared the pixels."""
    os.utime(folder / "test/dog/0.png", (1, 1))


@pytest.mark.parametrize("edit", [delete, add, rename, change, touch])
def test_a_folder_that_changed_is_another_run(images, tmp_path, edit):
    config = configured(f"folder:{images}")
    finish(tmp_path / "run", config)
    edit(images)
    with pytest.raises(ValueError, match=r"files of dataset=1[123] files, "):
        workdirs.finished(tmp_path / "run", config)


def test_the_command_says_so_before_it_prints_a_table(images, tmp_path, capsys):
    workdir = tmp_path / "run"
    command = [f"--dataset=folder:{images}", f"--workdir={workdir}"]
    finish(workdir, run.configuration(command)[0])
    assert run.main(command) == 0
    assert "finished" in capsys.readouterr().out
    delete(images)
    assert run.main(command) == 2
    found = capsys.readouterr()
    (line,) = found.err.splitlines()
    assert "Received: files of dataset=11 files" in line
    assert "(it has 12 files" in line
    assert found.out == ""


def test_what_is_no_image_of_the_data_changes_nothing(images, tmp_path):
    config = configured(f"folder:{images}")
    finish(tmp_path / "run", config)
    for name in ("notes.txt", "train/.hidden", "train/cat/Thumbs.db"):
        (images / name).write_text("")
    assert workdirs.finished(tmp_path / "run", config) == RESULTS


def test_arrays_that_changed_are_another_run(arrays, tmp_path):
    config = configured(f"npz:{arrays}")
    finish(tmp_path / "run", config)
    write_arrays(arrays, 1)
    with pytest.raises(ValueError, match="files of dataset="):
        workdirs.finished(tmp_path / "run", config)


def test_a_saved_model_with_other_weights_is_another_run(arrays, tmp_path):
    """Its graph, which is a file of its own, is the same."""
    model = tmp_path / "saved"
    network = keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Flatten()])
    network.export(model, verbose=False)
    config = configured(f"npz:{arrays}", evaluate=model)
    finish(tmp_path / "run", config)
    (part,) = model.glob("variables/*.index")
    part.write_bytes(part.read_bytes() + b"x")
    with pytest.raises(ValueError, match="files of evaluate="):
        workdirs.finished(tmp_path / "run", config)


def test_a_run_of_0_1_0_knows_no_more_than_it_kept(images, arrays, tmp_path):
    for name, source in (("a", f"folder:{images}"), ("b", f"npz:{arrays}")):
        config = configured(source)
        folder = tmp_path / name
        finish(folder, config)
        older = config | workdirs._files(config)
        files.write_json(folder / "config.json", older)
        assert workdirs.finished(folder, config) == RESULTS
        # Going on with it, the run keeps what it works on.
        (folder / "results.json").unlink()
        assert workdirs.finished(folder, config) is None
        workdirs.claim(folder, config)
        held = json.loads((folder / "config.json").read_text())
        assert list(held["inputs"]) == ["dataset"]
    files.write_json(folder / "config.json", older)
    write_arrays(arrays, 1)
    with pytest.raises(ValueError, match="Received: files="):
        workdirs.finished(folder, config)


def test_a_table_is_shown_where_the_data_is_gone(arrays, tmp_path):
    config = configured(f"npz:{arrays}")
    finish(tmp_path / "run", config)
    pathlib.Path(arrays).unlink()
    assert workdirs.finished(tmp_path / "run", config) == RESULTS


def test_data_without_files_has_no_listing(tmp_path):
    workdirs.claim(tmp_path, configured("digits"))
    held = json.loads((tmp_path / "config.json").read_text())
    assert held["inputs"] == {}
