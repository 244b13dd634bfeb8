"""A run on images of all kinds, by the command line."""

import json

import numpy as np
import pytest
from helpers import assert_refused
from helpers import main
from helpers import read_json
from PIL import Image

NAMES = ("ant", "bee", "10")


@pytest.fixture
def folder(tmp_path):
    """Classes alone: 3 of 40 images, of uneven sizes and formats."""
    random = np.random.default_rng(0)
    for label, name in enumerate(NAMES):
        for number in range(40):
            path = tmp_path / "images" / name / f"{number:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = random.integers(0, 90, (9 + number % 5, 12, 3), np.uint8)
            pixels[..., label] += 120
            with open(path, "wb") as file:
                kind = ("PNG", "JPEG", "BMP")[number % 3]
                Image.fromarray(pixels).save(file, kind)
    return tmp_path / "images"


CHEAP = (
    *("--attacks=noise_linf", "--linf_epsilons=0.1", "--l2_epsilons="),
    "--limit_test=20",
)


def train(folder, workdir, *more):
    """Trains on images that are not square."""
    return main(
        *("--method=st", f"--dataset=folder:{folder}", "--image_size=10x8"),
        *("--augment", "--epochs=1", "--batch_size=32", *CHEAP, *more),
        f"--workdir={workdir}",
    )


def without(path, *names):
    """Removes settings from a config.json, which older ones lack."""
    config = read_json(path)
    path.write_text(json.dumps({k: config[k] for k in {*config} - {*names}}))


def test_a_run_knows_its_classes_and_evaluates_other_data(
    folder, tmp_path, tiny_network
):
    run = tmp_path / "run"
    code, output = train(folder, run)
    assert code == 0, output
    assert "24 of 120 images are the test part" in output
    results, config = read_json(run / "results.json"), run / "config.json"
    assert results["class_names"] == ["10", "ant", "bee"]
    assert results["config"]["image_size"] == "10x8"
    assert results["natural"]["n"] == 20
    assert read_json(config)["class_names"] == ["10", "ant", "bee"]
    assert (run / "classes.txt").read_text() == "10\nant\nbee\n"
    assert "classes.txt" in results["artifacts"]
    # A run of an older tfsam, which has fewer settings, is the same run.
    added = ("resize", "test_fraction", "bad_images", "class_order")
    without(config, *added, "class_names")
    code, output = train(folder, run)
    assert code == 0 and "holds this run, finished" in output
    code, _ = train(folder, run, "--resize=pad")
    assert code == 2
    # Arrays without training images, and all images of the folder.
    x = np.zeros((6, 10, 8, 3), np.uint8)
    np.savez(tmp_path / "a.npz", x=x, y=np.eye(3)[[0, 1, 2, 0, 1, 2]])
    sources = {
        f"--dataset=npz:{tmp_path / 'a.npz'}": 6,
        f"--dataset=folder:{folder}": 120,
    }
    for number, (source, count) in enumerate(sources.items()):
        code, output = main(
            *(f"--evaluate={run / 'model.keras'}", source, *CHEAP[:-1]),
            *("--pixels=0..1", f"--workdir={tmp_path / str(number)}"),
        )
        assert code == 0, output
        assert f"all {count} images are tested" in output
        found = read_json(tmp_path / str(number) / "results.json")
        assert found["natural"]["n"] == count
        assert len(found["class_names"]) == 3


def test_refusals(folder, tmp_path, capsys):
    workdir = f"--workdir={tmp_path / 'work'}"

    def refused(*arguments, parts):
        assert_refused(capsys, *arguments, workdir, parts=parts)
        assert not (tmp_path / "work").exists()

    source = f"--dataset=folder:{folder}"
    refused(f"--dataset={folder}", parts=[f"folder:{folder}"])
    refused(source, "--image_size=8,9", parts=["64x48", "8,9"])
    refused(source, "--image_size=9999", parts=["8192", "image_size=9999"])
    refused(source, "--resize=squeeze", parts=["crop", "resize=squeeze"])
    refused(source, "--test_fraction=1", parts=["test_fraction=1"])
    refused(source, "--test_fraction=2", parts=["test_fraction=2"])
    refused(source, "--bad_images=keep", parts=["skip", "bad_images=keep"])
    refused(source, "--class_order=nowhere", parts=["class_order=nowhere"])
    (folder / "ant/notes.txt").write_text("notes")
    refused(source, "--bad_images=refuse", parts=["1 of 121", "ant/notes.txt"])
