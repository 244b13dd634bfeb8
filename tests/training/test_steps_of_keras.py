"""Training steps without perturbations: equal to Keras's own."""

import functools

import keras
import numpy as np
import pytest
from helpers import slow
from step_models import LOSS
from step_models import NOTHING
from step_models import Subclassed
from step_models import Wrapped
from step_models import X
from step_models import Y
from step_models import assert_equal
from step_models import fitted
from step_models import functional
from step_models import sequential
from step_models import small
from step_models import without_dropout

import tfsam


@functools.cache
def by_keras(kind, run_eagerly):
    """Trains a network by Keras's own step."""
    return fitted(Wrapped(small(kind)), run_eagerly=run_eagerly)


@pytest.mark.parametrize(
    ("kind", "nothing"),
    [
        slow(functional, "no perturbation"),
        slow(functional, "rho = 0"),
        slow(functional, "rho = 0, adaptive"),
        slow(functional, "epsilon = 0"),
        slow(functional, "both 0, l2"),
        slow(sequential, "both 0, l2"),
        slow(Subclassed, "both 0, l2"),
    ],
)
def test_no_perturbation_is_keras_own_step_eagerly(kind, nothing):
    expected = by_keras(kind, run_eagerly=True)
    model = tfsam.RobustModel(small(kind), **NOTHING[nothing])
    assert_equal(fitted(model, run_eagerly=True), expected)


@pytest.mark.parametrize(
    ("kind", "nothing", "jit_compile"),
    [
        (functional, "both 0, l2", False),
        slow(Subclassed, "both 0, l2", False),
        slow(without_dropout, "both 0, l2", True),
    ],
)
def test_no_perturbation_is_keras_own_step_compiled(kind, nothing, jit_compile):
    expected = by_keras(kind, run_eagerly=False)
    model = tfsam.RobustModel(small(kind), **NOTHING[nothing])
    assert_equal(fitted(model, jit_compile=jit_compile), expected, 1e-6)


@pytest.mark.parametrize(
    "variant",
    [
        slow({"optimizer": keras.optimizers.Adam}),
        {
            "optimizer": lambda: keras.optimizers.SGD(
                0.1, gradient_accumulation_steps=2
            )
        },
        slow(
            {
                "optimizer": lambda: keras.optimizers.SGD(
                    0.1,
                    use_ema=True,
                    ema_momentum=0.5,
                    ema_overwrite_frequency=2,
                )
            }
        ),
        slow({"optimizer": lambda: keras.optimizers.SGD(0.1, clipnorm=0.1)}),
        {"steps_per_execution": 2},
        slow({"fit": {"class_weight": {0: 1.0, 1: 2.0, 2: 0.5}}}),
        slow({"fit": {"validation_split": 0.5}}),
    ],
    ids=["adam", "accumulation", "ema", "clip", "steps", "class", "validation"],
)
def test_keras_features_act_as_in_keras_own_step(variant):
    def run(model):
        # Eager steps are quicker here; of several at once they are no test.
        options = {"run_eagerly": "steps_per_execution" not in variant}
        options |= variant
        if "optimizer" in options:
            options["optimizer"] = options["optimizer"]()
        return fitted(model, **options)

    model = tfsam.RobustModel(small(), **NOTHING["both 0, l2"])
    assert_equal(run(model), run(small()), 1e-6)


def test_dict_losses_are_counted_once():
    def network():
        keras.utils.set_random_seed(0)
        inputs = keras.Input((4, 4, 1))
        x = keras.layers.Flatten()(inputs)
        return keras.Model(
            inputs,
            {
                "a": keras.layers.Dense(3, name="a")(x),
                "b": keras.layers.Dense(1, name="b")(x),
            },
        )

    def run(model):
        model.compile(
            tfsam.SGD(0.1),
            {"a": LOSS, "b": "mse"},
            loss_weights={"a": 1.0, "b": 0.5},
            metrics={"a": ["accuracy"]},
            run_eagerly=True,
        )
        history = model.fit(
            X,
            {"a": Y, "b": Y.astype("float32")},
            batch_size=6,
            epochs=2,
            shuffle=False,
            verbose=0,
        )
        network = getattr(model, "network", model)
        return history.history, [v.numpy() for v in network.variables]

    expected = run(network())
    assert "b_loss" in expected[0]
    model = tfsam.RobustModel(network(), perturb_weights=tfsam.SAM(0.0))
    assert_equal(run(model), expected)


@pytest.mark.parametrize(
    "method",
    [
        "at_sam",
        *map(slow, ("sam", "asam", "at")),
    ],
)
def test_eager_graph_and_xla_agree(method):
    attack = tfsam.PGD(0.1, norm="l2", steps=2) if "at" in method else None
    weights = {"sam": tfsam.SAM(0.1), "asam": tfsam.ASAM(0.5)}.get(
        method.removeprefix("at_")
    )
    results = [
        fitted(
            tfsam.RobustModel(small(without_dropout), attack, weights, seed=3),
            **mode,
        )
        for mode in (
            {"run_eagerly": True},
            {"jit_compile": False},
            {"jit_compile": True},
        )
    ]
    assert_equal(results[1], results[0], 1e-5)
    assert_equal(results[2], results[0], 1e-5)
    plain = fitted(small(without_dropout), run_eagerly=True)
    moved = np.abs(results[0][1][0] - plain[1][0]).max()
    assert moved > 1e-4, "the method must do something"
