"""Training of networks of several inputs, of which one is attacked."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import slow

import tfsam
from tfsam.training import perturbed_inputs

RNG = np.random.default_rng(0)
IMAGE = RNG.random((12, 4, 4, 1), dtype="float32")
AGE = RNG.random((12, 1), dtype="float32")
Y = RNG.integers(3, size=12)
DATA = {
    "list": [IMAGE, AGE],
    "dict": {"age": AGE, "image": IMAGE},
}
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def network():
    keras.utils.set_random_seed(0)
    image = keras.Input((4, 4, 1), name="image")
    age = keras.Input((1,), name="age")
    flat = keras.layers.Flatten()(image)
    both = keras.layers.Concatenate()([flat, age])
    return keras.Model([image, age], keras.layers.Dense(3)(both))


def trained(x, **options):
    model = tfsam.RobustModel(network(), seed=1, **options)
    model.compile(tfsam.SGD(0.5), LOSS)
    model.fit(x, Y, batch_size=12, shuffle=False, verbose=0)
    return model


ATTACK = tfsam.PGD(0.1, steps=2, random_start=False)


@pytest.mark.parametrize("kind", ["list", slow("dict")])
def test_a_step_is_that_of_the_images_that_the_attack_finds(kind):
    source = network()
    x_adv = ATTACK(
        lambda x: source([x, tf.constant(AGE)]), IMAGE, Y, seed=0
    ).numpy()
    assert np.abs(x_adv - IMAGE).max() > 0.05
    plain = trained([x_adv, AGE])
    found = trained(DATA[kind], perturb_inputs=ATTACK)
    for one, other in zip(
        found.network.get_weights(), plain.network.get_weights(), strict=True
    ):
        np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.slow
def test_an_attack_on_copies_knows_the_other_input_of_each():
    """Restarts are made side by side where the size of the batch is known."""
    data = tf.data.Dataset.from_tensor_slices(((IMAGE, AGE), Y))
    data = data.batch(12, drop_remainder=True)
    attack = tfsam.attacks.get("apgd_ce", epsilon=0.1, steps=2, restarts=2)
    model = tfsam.RobustModel(
        network(), perturb_inputs=attack, perturb_weights=tfsam.SAM(0.05)
    )
    model.compile(tfsam.SGD(0.1), LOSS, metrics=["accuracy"])
    history = model.fit(data, epochs=2, verbose=0)
    assert np.isfinite(history.history["loss"]).all()


def test_the_input_may_be_chosen_and_is_saved():
    chosen = tfsam.RobustModel(network(), perturb_inputs=ATTACK, attacked="age")
    x = list(map(tf.constant, DATA["list"]))
    assert perturbed_inputs.structure(chosen, x).split(x)[0] is x[1]
    config = chosen.get_config()
    assert config["attacked"] == "age"
    again = tfsam.RobustModel.from_config(config)
    assert again.attacked_input == "age"


@pytest.mark.slow
def test_what_is_trained_may_be_evaluated():
    model = trained(DATA["dict"], perturb_inputs=ATTACK)
    result = tfsam.evaluate(
        model.network, (DATA["dict"], Y), ["pgd"], epsilons=[0.02]
    )
    (row,) = result["robust"]
    assert row["accuracy"] <= result["natural"]["accuracy"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attacked": "name"}, "attacked must be one of the inputs, 0 .image."),
        ({"attacked": 2}, "attacked must be one of the inputs"),
    ],
)
def test_other_inputs_are_rejected(options, message):
    with pytest.raises(ValueError, match=message):
        trained([IMAGE, AGE], perturb_inputs=ATTACK, **options)


def test_two_images_need_a_choice():
    inputs = [keras.Input((4, 4, 1), name=name) for name in ("left", "right")]
    outputs = keras.layers.Concatenate()(
        [keras.layers.Flatten()(each) for each in inputs]
    )
    both = keras.Model(inputs, keras.layers.Dense(3)(outputs))
    model = tfsam.RobustModel(both, perturb_inputs=ATTACK)
    model.compile(tfsam.SGD(0.1), LOSS)
    message = r"2 of the inputs look like images; .* 0 .left., 1 .right."
    with pytest.raises(ValueError, match=message):
        model.fit([IMAGE, IMAGE], Y, verbose=0)
