"""Evaluations of inputs that are standardized outside the model."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import slow

import tfsam

MEAN, DEVIATION = np.float32([0.5, 0.25, 0.5]), np.float32(0.25)
RNG = np.random.default_rng(0)
X = (RNG.integers(20, 236, (10, 4, 4, 3)) / 256).astype("float32")
STANDARDIZED = (X - MEAN) / DEVIATION
BOUNDS = (0 - MEAN) / DEVIATION, (1 - MEAN) / DEVIATION
HIDDEN = (RNG.normal(size=(48, 8)) / 4).astype("float32")
OUTPUT = RNG.normal(size=(8, 4)).astype("float32")


def of_pixels(x):
    return tf.tanh(tf.reshape(x, [-1, 48]) @ HIDDEN) @ OUTPUT


def of_standardized(x):
    return of_pixels(x * DEVIATION + MEAN)


Y = np.argmax(of_pixels(tf.constant(X)), axis=1)
ATTACKS = [("pgd", {"steps": 2}), ("fmn", {"steps": 5})]
MORE = [("apgd_t", {"steps": 3, "targets": 2}), ("square", {"queries": 8})]


def measured(attacks=ATTACKS, **options):
    epsilons = [8 / 256 / DEVIATION, 32 / 256 / DEVIATION]
    return tfsam.evaluate(
        of_standardized,
        (STANDARDIZED, Y),
        attacks,
        **{"epsilons": epsilons, "bounds": BOUNDS, "batch_size": 5} | options,
    )


@pytest.mark.parametrize("attacks", [ATTACKS, slow(MORE)])
def test_accuracies_are_those_of_the_pixels(attacks):
    plain = tfsam.evaluate(
        of_pixels, (X, Y), attacks, epsilons=[8 / 256, 32 / 256], batch_size=5
    )
    found = measured(attacks)
    accuracies = [
        [row["accuracy"] for row in result["robust"]]
        for result in (plain, found)
    ]
    assert accuracies[0] == accuracies[1]
    assert len(set(accuracies[0])) > 1
    for row in found["robust"]:
        assert "error" not in row


def test_a_folder_keeps_the_bounds_of_each_channel(tmp_path):
    folder = {"workdir": tmp_path, "name": "net", "save_adversarial": True}
    first = measured(**folder)
    assert measured(**folder) == first
    # As arrays or as lists, they are the same bounds.
    as_lists = tuple(end.tolist() for end in BOUNDS)
    assert measured(bounds=as_lists, **folder) == first
    wider = BOUNDS[0] - 1, BOUNDS[1]
    with pytest.raises(ValueError, match="Received: bounds="):
        measured(bounds=wider, **folder)
    low, high = BOUNDS
    images = [
        np.load(path)["adversarial"]
        for path in tmp_path.rglob("*.npz")
        if "adversarial" in np.load(path)
    ]
    assert images
    for image in images:
        assert (image >= low - 1e-6).all() and (image <= high + 1e-6).all()


def test_images_outside_their_bounds_are_refused():
    bad = STANDARDIZED.copy()
    bad[3, 0, 0, 1] = 3.5
    with pytest.raises(ValueError, match=r"x must lie in .* 0\.5 outside"):
        tfsam.evaluate(of_standardized, (bad, Y), [], bounds=BOUNDS)
    rounded = STANDARDIZED.copy()
    rounded[3, 0, 0, 1] = np.nextafter(np.float32(3), np.float32(4))
    tfsam.evaluate(of_standardized, (rounded, Y), ["fgsm"], bounds=BOUNDS)
    with pytest.raises(ValueError, match=r"broadcast .* \(4, 4, 3\)"):
        tfsam.evaluate(
            of_standardized, (X, Y), [], bounds=([0.0, 0.0], [1.0, 2.0])
        )


@pytest.mark.needs("cleverhans")
def test_a_library_for_two_numbers_has_an_error_in_its_row():
    result = tfsam.evaluate(
        of_standardized,
        (STANDARDIZED, Y),
        ["cleverhans_pgd", "fgsm"],
        epsilons=[0.1],
        bounds=BOUNDS,
    )
    theirs, own = result["robust"]
    assert "takes two numbers as bounds" in theirs["error"]
    assert own["accuracy"] is not None


@pytest.mark.slow
def test_validation_takes_the_bounds_of_the_attack():
    network = keras.Sequential(
        [
            keras.Input((4, 4, 3)),
            keras.layers.Flatten(),
            keras.layers.Dense(4),
        ]
    )
    model = tfsam.RobustModel(network)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(tfsam.SGD(0.01), loss)
    attack = tfsam.PGD(0.1, steps=2, bounds=BOUNDS)
    validation = tfsam.RobustValidation((STANDARDIZED, Y), attack)
    history = model.fit(STANDARDIZED, Y, callbacks=[validation], verbose=0)
    assert 0 <= history.history["val_robust_accuracy"][0] <= 1
    with pytest.raises(ValueError, match="x must lie in bounds"):
        tfsam.RobustValidation((STANDARDIZED - 9, Y), attack)
