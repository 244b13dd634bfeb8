"""`tfsam.evaluate` of models from files, with the range of pixels found."""

import keras
import numpy as np
import pytest
from helpers import network
from keras import layers

import tfsam
from tfsam.evaluation import red_flags


@pytest.fixture(scope="module")
def data(digits):
    return digits[0][1200:1264], digits[1][1200:1264]


@pytest.fixture
def path(tmp_path):
    inputs = keras.Input((8, 8, 1))
    outputs = layers.Softmax()(network("standard")(inputs / 255))
    keras.Model(inputs, outputs).save(tmp_path / "model.keras")
    return tmp_path / "model.keras"


def evaluated(model, data, attacks=("fgsm",), **options):
    return tfsam.evaluate(model, data, attacks, epsilons=[0.05], **options)


def natural(model, data, **options):
    return evaluated(model, data, (), **options)


def test_a_file_is_attacked_as_the_network_inside(path, data):
    found = evaluated(path, data)
    expected = evaluated(network("standard"), data)
    assert found["natural"] == expected["natural"]
    accuracies = [r["robust"][0]["accuracy"] for r in (found, expected)]
    assert accuracies[0] == pytest.approx(accuracies[1], abs=0.02)
    assert "model" not in expected
    model = found["model"]
    assert model["pixels"] == "0..255"
    assert model["logits"] == "removed_ending"
    assert set(model["natural_accuracy"]) == {"0..1", "0..255", "-1..1"}


def test_the_origin_of_a_surrogate_is_in_the_result(path, data):
    model = network("standard")
    found = evaluated(model, data, surrogate=path)
    assert "model" not in found
    assert found["surrogate"] == natural(path, data)["model"]
    assert found["surrogate"]["sha256"]
    assert "surrogate" not in evaluated(model, data, surrogate=model)


@pytest.mark.slow
def test_two_ranges_share_no_verdicts(path, data, tmp_path):
    workdir = tmp_path / "record"
    first = evaluated(path, data, workdir=workdir)
    again = evaluated(path, data, workdir=workdir)
    assert first["robust"] == again["robust"]
    with pytest.raises(ValueError, match=r"another evaluation|model"):
        evaluated(path, data, workdir=workdir, pixels="0/0.00394")


def test_another_range_is_refused(path, data):
    with pytest.raises(ValueError, match=r'in Python, pixels="0..255"'):
        natural(path, data, pixels="0..1")
    with pytest.raises(ValueError, match=r"tfsam.models.load\(model, pixels\)"):
        natural(network("standard"), data, pixels="0..255")


def test_other_bounds_leave_the_pixels_alone(data, tmp_path):
    """Even if the model has a Rescaling, which implies 0..255."""
    inputs = keras.Input((8, 8, 1))
    scaled = layers.Rescaling(1 / 255)(inputs)
    model = keras.Model(inputs, network("standard")(scaled))
    model.save(tmp_path / "model.keras")
    x, y = data
    for bounds in ((0, 255), None):
        found = natural(tmp_path / "model.keras", (255 * x, y), bounds=bounds)
        assert found["natural"]["accuracy"] > 0.9
        assert found["model"]["pixels"] == "0..1"
    with pytest.raises(ValueError, match="as they are"):
        natural(
            tmp_path / "model.keras",
            (255 * x, y),
            bounds=(0, 255),
            pixels="0..255",
        )


def test_probabilities_alone_raise_a_warning(data, tmp_path):
    """The mean of two softmaxes has no logits."""
    inputs = keras.Input((8, 8, 1))
    parts = [
        layers.Softmax()(scale * network("standard")(inputs))
        for scale in (1, 100)
    ]
    model = keras.Model(inputs, layers.Average()(parts))
    model.save(tmp_path / "mean.keras")
    found = natural(tmp_path / "mean.keras", data)
    assert found["model"]["logits"] == "log_probabilities"
    (warning,) = [
        w for w in found["warnings"] if w["warning"] == red_flags.LOGARITHMS
    ]
    assert "saturated, as for 0 of " in warning["message"]
    with pytest.raises(ValueError, match=r"tfsam.models.load\(model\)"):
        natural(model, data)


@pytest.mark.parametrize(
    "shape",
    [
        pytest.param((8, 8), marks=pytest.mark.slow),
        pytest.param((64,), marks=pytest.mark.slow),
        (16, 16, 3),
    ],
)
def test_images_of_another_shape(data, tmp_path, shape):
    keras.utils.set_random_seed(0)
    parts = [layers.Flatten(), layers.Dense(10, "softmax")]
    keras.Sequential([keras.Input(shape), *parts]).save(tmp_path / "m.keras")
    found = evaluated(tmp_path / "m.keras", data)
    assert found["robust"][0]["max_perturbation"] <= 0.05 + 1e-6
    assert found["natural"]["n"] == len(np.asarray(data[1]))
