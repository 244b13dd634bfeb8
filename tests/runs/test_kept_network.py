"""The network of a run: its verdicts belong to this network."""

import json
import zipfile

import keras
import numpy as np
import pytest
from helpers import tiny

from tfsam import registries
from tfsam import run
from tfsam.models.fingerprints import from_file
from tfsam.networks import preact_resnet8
from tfsam.runs import stages
from tfsam.training import recalibration

RUN = [
    *("--method=st", "--epochs=1", "--batch_size=64", "--limit_train=128"),
    *("--limit_test=64", "--attacks=fgsm", "--linf_epsilons=0.1"),
    *("--l2_epsilons=", "--average=ema"),
]


@pytest.fixture
def network():
    return tiny(3, (4, 4, 1))


def test_a_network_of_the_same_weights_but_for_rounding_is_kept(
    network, tmp_path
):
    path = tmp_path / "model.keras"
    stages._keep(network, path)
    content, weights = path.read_bytes(), network.get_weights()
    network.set_weights([w * np.float32(1 + 1e-6) for w in weights])
    stages._keep(network, path)
    assert path.read_bytes() == content
    for kept, weight in zip(network.get_weights(), weights, strict=True):
        np.testing.assert_array_equal(kept, weight)


@pytest.mark.parametrize("damage", [False, True])
def test_another_network_is_written(network, tmp_path, damage):
    path = tmp_path / "model.keras"
    stages._keep(network, path)
    if damage:
        path.write_bytes(path.read_bytes()[:100])
    weights = [w + np.float32(1e-2) for w in network.get_weights()]
    network.set_weights(weights)
    stages._keep(network, path)
    network.load_weights(path)
    for kept, weight in zip(network.get_weights(), weights, strict=True):
        np.testing.assert_array_equal(kept, weight)


@pytest.mark.slow
def test_an_averaged_run_is_resumed_where_statistics_round_differently(
    tmp_path, monkeypatch, tiny_network
):
    """On many threads BatchNorm's statistics are not the same to the bit."""
    monkeypatch.setattr(stages, "draw", _stop)
    with pytest.raises(_Stopped):
        run.main([*RUN, f"--workdir={tmp_path}"])
    monkeypatch.undo()
    monkeypatch.setitem(registries.NETWORKS.native, "preact_resnet8", tiny)
    measure = recalibration.Recalibration.measure
    monkeypatch.setattr(
        recalibration.Recalibration,
        "measure",
        lambda self, *a, **k: [v * (1 + 1e-6) for v in measure(self, *a, **k)],
    )
    before = (tmp_path / "model.keras").read_bytes()
    assert run.main([*RUN, f"--workdir={tmp_path}"]) == 0
    assert (tmp_path / "model.keras").read_bytes() == before
    results = json.loads((tmp_path / "results.json").read_text())
    assert "error" not in results["robust"][0]


class _Stopped(Exception):
    """The run was stopped after its evaluation."""


def _stop(*arguments):
    raise _Stopped


def test_a_network_that_is_saved_again_is_the_same_model(tmp_path):
    found, networks = [], []
    for name in ("one", "two"):
        # Two objects, at different addresses.
        keras.utils.set_random_seed(0)
        keras.backend.clear_session()
        network = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
        networks.append(network)
        path = tmp_path / f"{name}.keras"
        network.save(path)
        # The archive's directory holds seconds, its metadata the time of day.
        with zipfile.ZipFile(path) as archive:
            held = {n: archive.read(n) for n in archive.namelist()}
        metadata = json.loads(held["metadata.json"])
        held["metadata.json"] = json.dumps(metadata | {"date_saved": name})
        with zipfile.ZipFile(path, "w") as archive:
            for member, content in held.items():
                archive.writestr(member, content)
        found.append(from_file(path, "keras"))
    assert found[0] == found[1]
    network.layers[-1].bias.assign([0.0, 0.0, 1e-3])
    network.save(path)
    assert from_file(path, "keras") != found[0]


def test_a_network_that_was_loaded_and_saved_is_the_same_model(tmp_path):
    """As in a run that resumes: its layers no longer share their policy."""
    keras.utils.set_random_seed(0)
    network = preact_resnet8(3, input_shape=(8, 8, 1))
    network.save(tmp_path / "made.keras")
    loaded = keras.saving.load_model(tmp_path / "made.keras")
    loaded.save(tmp_path / "again.keras")
    made, again = (
        from_file(tmp_path / f"{name}.keras", "keras")
        for name in ("made", "again")
    )
    assert made == again
