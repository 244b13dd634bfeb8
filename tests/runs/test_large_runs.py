"""Runs on folders that are larger than memory: the same, read from disk."""

import numpy as np
import pytest
from helpers import assert_same_run
from helpers import main
from PIL import Image

from tfsam import data
from tfsam.data import rows


@pytest.fixture
def folder(tmp_path):
    random = np.random.default_rng(0)
    for name, darkest in (("ant", 0), ("cat", 60)):
        for number in range(40):
            path = tmp_path / f"images/{name}/{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = random.integers(darkest, 256, (8, 8, 3), np.uint8)
            Image.fromarray(pixels).save(path)
    return tmp_path / "images"


def run(folder, workdir, *options):
    code, _ = main(
        *(f"--dataset=folder:{folder}", f"--workdir={workdir}"),
        *("--method=at", "--epsilon=0.05", "--steps=1", "--epochs=2"),
        *("--batch_size=16", "--average=ema", "--select=robust"),
        *("--validation_images=12", "--attacks=fgsm", "--l2_epsilons="),
        *(f"--cache_dir={workdir.parent}/cache", *options),
    )
    assert code == 0


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["--devices=cpu:2"]])
def test_a_run_from_disk_is_the_run_in_memory(
    options, folder, tmp_path, tiny_network, monkeypatch
):
    run(folder, tmp_path / "in_memory", *options)
    monkeypatch.setattr(rows, "MOST_IN_MEMORY", 1000)
    read = data.load(f"folder:{folder}", cache_dir=tmp_path / "cache")
    assert isinstance(read.x_train, data.Rows)
    run(folder, tmp_path / "from_disk", *options)
    assert_same_run(tmp_path / "from_disk", tmp_path / "in_memory")
