"""The tables of models and folders that others published."""

import contextlib
import csv

import keras
import numpy as np
import pytest
from PIL import Image

from experiments import published
from tfsam import run

POINTER = "version https://git-lfs.github.com/spec/v1\nsize 5\n"


@pytest.fixture
def collection(tmp_path, monkeypatch):
    """A folder of two models, their images and a folder of images."""
    for name in ("models/good", "models/pointer", "images", "folders"):
        (tmp_path / name).mkdir(parents=True)
    keras.utils.set_random_seed(0)
    network = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Flatten(),
            keras.layers.Dense(3, "softmax"),
        ]
    )
    network.save(tmp_path / "models/good/network.keras")
    (tmp_path / "models/pointer/network.keras").write_text(POINTER)
    pixels = np.random.default_rng(0).integers(0, 256, (9, 8, 8, 1), np.uint8)
    labels = np.argmax(network(pixels / 255.0), axis=1)
    np.savez(tmp_path / "images/ours.npz", x_test=pixels, y_test=labels)
    for index, image in enumerate(pixels):
        place = tmp_path / f"folders/pictures/{index % 2}/{index}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[..., 0]).save(place)
    rows = [
        {"name": "good", "images": "ours", "pixels": "0..1"},
        {"name": "pointer"},
    ]
    listing = tmp_path / "listing.csv"
    with open(listing, "w", newline="") as file:
        names = ["name", "images", "pixels", "signature", "flags"]
        writer = csv.DictWriter(file, names, restval="")
        writer.writeheader()
        writer.writerows(rows)
    monkeypatch.setattr(published, "LISTING", listing)
    return tmp_path


@pytest.fixture
def one_process(monkeypatch):
    """Runs all commands in this process, but those about a pointer."""
    in_a_process = published.subprocess.run

    def run_it(command, *, stderr, **options):
        if any("pointer" in argument for argument in command):
            return in_a_process(command, stderr=stderr, **options)
        with contextlib.redirect_stderr(stderr):
            return run.main(command[3:])  # After `python -m tfsam`.

    monkeypatch.setattr(published.subprocess, "run", run_it)


@pytest.mark.slow
def test_each_model_and_folder_has_a_row(
    collection, monkeypatch, one_process, short_runs
):
    text = published.tables(collection, collection / "runs")
    good, pointer = (
        next(line for line in text.splitlines() if line.startswith(f"| {name}"))
        for name in ("good", "pointer")
    )
    assert "| removed_ending | 0..1 | ours | 100.0 (100.0) |" in good
    assert "refused: tfsam: " in pointer and "git lfs pull" in pointer
    assert "| pictures | 2 | " in text
    # A second call finds the runs, and runs nothing.
    monkeypatch.setattr(published.subprocess, "run", None)
    assert good in published.tables(collection, collection / "runs", ["good"])


def test_columns_get_unit_length():
    images = np.random.default_rng(0).uniform(size=(2, 5, 4))
    scaled = published.unit_columns(images).numpy()
    assert np.allclose(np.linalg.norm(scaled, axis=1), 1)
    assert np.allclose(
        scaled * np.linalg.norm(images, axis=1, keepdims=True), images
    )


def test_a_refused_model_has_its_line_in_the_table():
    row = {"name": "lost", "images": ""}
    line = published.line_of_model(
        row, published.Answer(None, "a reason"), None
    )
    assert line.startswith("| lost | refused: a reason |")
    assert line.count("|") == 8
