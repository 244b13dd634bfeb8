"""The soak: its faults and the differences that it finds."""

import json
import os
import pathlib
import random
import shutil

import numpy as np
import pytest
from helpers import cpu_only

from experiments import soak


def test_draws_of_the_soak_are_by_the_seed():
    spans = {"start": 5.0, "training": 9.0, "evaluation": 7.0}

    def drawn(seed, training=True):
        rng = random.Random(seed)
        return [soak.draw(rng, spans, training) for _ in range(100)]

    found = drawn(0)
    assert found == drawn(0) != drawn(1)
    assert {fault.name for fault in found} == set(soak.FAULTS)
    assert {fault.phase for fault in found} == {"start", "training"}
    assert {f.phase for f in drawn(0, False)} == {"start", "evaluation"}
    assert all(0 <= f.seconds <= spans[f.phase] for f in found)


def test_differences_of_runs_are_found(whole, tmp_path):
    one, other = tmp_path / "run", whole
    shutil.copytree(whole, one)
    assert soak.differences(one, other) == []
    (one / ".123-results.json").write_text("{")
    results = json.loads((one / "results.json").read_text())
    results["natural"]["accuracy"] += 0.05
    (one / "results.json").write_text(json.dumps(results))
    (chunk,) = one.glob("evaluation/00-pgd/linf-*/000000.npz")
    with np.load(chunk) as arrays:
        arrays = dict(arrays)
    arrays["verdict"][0] += 1
    np.savez(chunk, **arrays)
    (one / "best.keras").write_text("")
    (one / "checkpoints" / "epoch-0003.keras").unlink()
    assert soak.differences(one, other) == [
        ".123-results.json is in one alone",
        "best.keras is in one alone",
        f"{chunk.relative_to(one)} differs",
        "results.json differs",
        "the last checkpoint differs",
    ]


@pytest.mark.slow
@cpu_only
def test_soak(tmp_path, monkeypatch):
    """Kills runs of a small network, which leave files of all kinds."""
    folder = str(pathlib.Path(__file__).parent)
    paths = [folder, os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    network = "--network=small_network:small"
    monkeypatch.setattr(soak, "SMALL", (*soak.SMALL, network))
    lines = []
    rows, runs, problems = soak.soak(tmp_path / "soak", 3, 1, lines.append)
    assert problems == []
    assert len(rows) == 3 and runs >= 1
    assert "3 faults" in soak.table(rows, runs, problems)
