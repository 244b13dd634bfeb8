"""Folders, models and workdirs that are refused, and left alone."""

import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import assert_refused
from helpers import settings_of
from helpers import snapshot
from helpers import spoil_method
from helpers import truncate

from tfsam.runs import stages
from tfsam.runs import workdirs
from tfsam.support import files


def small_model(shape=(8, 8, 1), outputs=10, activation=None):
    return keras.Sequential(
        [
            keras.Input(shape),
            keras.layers.Flatten(),
            keras.layers.Dense(outputs, activation=activation),
        ]
    )


def test_paths_begin_at_home(tmp_path, monkeypatch):
    small_model().save(tmp_path / "model.keras")
    monkeypatch.setenv("HOME", str(tmp_path))
    settings = settings_of(
        "--evaluate=~/model.keras", "--limit_test=20", "--workdir=~/run"
    )
    assert settings.workdir == tmp_path / "run"
    assert stages.prepare(settings).logits is not None


def write_images(folder, *, classes=("ant", "bee"), side=8):
    image = tf.io.encode_png(np.zeros((side, side, 1), np.uint8)).numpy()
    for part in ("train", "test"):
        for name in classes:
            for number in range(2):
                path = folder / part / name / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(image)


def missing_folder(folder):
    return [str(folder)]


def empty_folder(folder):
    folder.mkdir()
    return [str(folder)]


def empty_class(folder):
    write_images(folder)
    (folder / "train" / "cat").mkdir()
    return [str(folder / "train" / "cat")]


def one_class(folder):
    write_images(folder, classes=("ant",))
    return [str(folder / "train"), "ant", "two classes"]


def no_image(folder):
    write_images(folder)
    path = folder / "train" / "bee" / "1.png"
    path.write_text("no image")
    return [str(folder), "must be images", "train/bee/1.png (a text)"]


def truncated_image(folder):
    write_images(folder)
    path = folder / "train" / "bee" / "1.png"
    truncate(path)
    return [str(folder), "must be images", "train/bee/1.png (damaged"]


def too_small_to_augment(folder):
    write_images(folder, side=4)
    return ["4", "pixels"]


@pytest.mark.parametrize(
    "prepare",
    [
        *(missing_folder, empty_folder, empty_class, one_class, no_image),
        *(truncated_image, too_small_to_augment),
    ],
)
def test_bad_folder(tmp_path, capsys, prepare):
    folder, workdir = tmp_path / "images", tmp_path / "work"
    parts = prepare(folder)
    assert_refused(
        capsys,
        f"--dataset=folder:{folder}",
        "--augment",
        f"--workdir={workdir}",
        parts=parts,
    )
    assert not workdir.exists()


def text_file(path):
    path = path.with_suffix(".keras")
    path.write_text("not a model")
    return path, ["model", str(path)]


def text_file_without_suffix(path):
    path.write_text("not a model")
    return path, ["model", str(path)]


def truncated_file(path):
    path = path.with_suffix(".keras")
    small_model().save(path)
    path.write_bytes(path.read_bytes()[:-100])
    return path, ["model", str(path)]


def model_folder_without_model(path):
    path.mkdir()
    return path, ["SavedModel", str(path)]


def few_outputs(path):
    small_model(outputs=4).save(path.with_suffix(".keras"))
    return path.with_suffix(".keras"), ["10 classes", "4 outputs"]


def other_channels(path):
    small_model(shape=(8, 8, 2)).save(path.with_suffix(".keras"))
    return path.with_suffix(".keras"), ["(8, 8, 2)", "neither gray nor RGB"]


def other_size_exported(path):
    small_model(shape=(50,)).export(path, verbose=False)
    return path, ["(50,)", "no square image"]


def not_finite(path):
    model = small_model()
    model.set_weights([np.full_like(w, np.nan) for w in model.get_weights()])
    model.save(path.with_suffix(".keras"))
    return path.with_suffix(".keras"), ["finite", "NaN"]


def code_inside(path):
    model = keras.Sequential(
        [small_model(), keras.layers.Lambda(lambda x: 2 * x)]
    )
    model.save(path.with_suffix(".keras"))
    return path.with_suffix(".keras"), ["ambda", str(path)]


def of_no_method(path):
    path = path.with_suffix(".keras")
    small_model().save(path)
    spoil_method(path)
    return path, ["compression method", str(path)]


def with_config(path, change):
    """A .keras file with a changed config.json."""
    path = path.with_suffix(".keras")
    small_model().save(path)
    with zipfile.ZipFile(path) as archive:
        held = {name: archive.read(name) for name in archive.namelist()}
    held["config.json"] = change(held["config.json"])
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in held.items():
            archive.writestr(name, content)
    return path


def too_deep(path):
    path = with_config(path, lambda text: b"[" * 100_000)
    return path, ["model", str(path)]


def too_large(path):
    units = b'"units": 1000000000000'
    path = with_config(path, lambda text: text.replace(b'"units": 10', units))
    return path, ["model", str(path)]


def exported_without(path, part, content=None):
    """A SavedModel folder without a file, or with another one."""
    small_model().export(path, verbose=False)
    (file,) = path.glob(part)
    file.unlink() if content is None else file.write_bytes(content)
    return path, ["SavedModel", str(path)]


def without_variables(path):
    return exported_without(path, "variables/*.data*")


def with_empty_variables(path):
    return exported_without(path, "variables/*.data*", b"")


def with_empty_index(path):
    return exported_without(path, "variables/*.index", b"")


@pytest.mark.filterwarnings("default:.* is a SavedModel")
@pytest.mark.parametrize(
    "prepare",
    [
        *(of_no_method, too_deep, without_variables),
        *(with_empty_variables, with_empty_index),
        pytest.param(too_large, marks=pytest.mark.slow),  # A wait for memory.
        *(text_file, text_file_without_suffix, truncated_file),
        *(model_folder_without_model, few_outputs, other_channels),
        *(other_size_exported, not_finite, code_inside),
    ],
)
def test_bad_model(tmp_path, capsys, prepare):
    path, parts = prepare(tmp_path / "model")
    capsys.readouterr()
    workdir = tmp_path / "work"
    before = snapshot(tmp_path)
    assert_refused(
        capsys,
        f"--evaluate={path}",
        "--limit_test=20",
        f"--workdir={workdir}",
        parts=parts,
    )
    assert snapshot(tmp_path) == before


def test_an_evaluation_of_an_older_tfsam_goes_on(tmp_path):
    settings = settings_of("--evaluate=model.keras", f"--workdir={tmp_path}")
    config = settings.config()
    later = ("precision", "strategy", "pixels", *workdirs.UNBOUND)
    older = {key: config[key] for key in config if key not in later}
    files.write_json(tmp_path / "config.json", older)
    assert workdirs.finished(settings) is None


@pytest.mark.parametrize("name", ["notes.txt", "config.json", ".hidden"])
def test_workdir_with_foreign_files(tmp_path, capsys, name):
    (tmp_path / name).write_text("mine")
    before = snapshot(tmp_path)
    assert_refused(capsys, f"--workdir={tmp_path}", parts=[tmp_path, "workdir"])
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("below", ["", "below"])
def test_workdir_that_is_a_file(tmp_path, capsys, below):
    path = tmp_path / "file"
    path.write_text("mine")
    assert_refused(capsys, f"--workdir={path / below}", parts=[path])
    assert path.read_text() == "mine"
