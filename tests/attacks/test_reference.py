"""Compares with reference implementations in PyTorch; see the .json file."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import REFERENCE
from helpers import TESTS
from helpers import network
from helpers import slow

import tfsam

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


@pytest.mark.parametrize("name", ["standard", "adversarial"])
def test_logits(name, digits):
    logits = network(name)(digits[0][1200:1400], training=False)
    expected = REFERENCE[f"{name}/logits200"]
    np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("steps", "jit_compile"),
    [
        (10, False),
        *(slow(*case) for case in ((1, False), (2, False))),
        *(slow(steps, True) for steps in (1, 2, 10)),
    ],
)
@pytest.mark.parametrize(
    ("norm", "epsilon", "step_size"),
    [("linf", 0.1, 0.025), ("l2", 0.5, 0.0625)],
)
def test_pgd_iterates(norm, epsilon, step_size, steps, jit_compile, digits):
    x, y = digits[0][1200:1264], digits[1][1200:1264]
    attack = tfsam.PGD(
        epsilon, norm, steps, step_size=step_size, random_start=False
    )
    model = network("adversarial")
    logits_fn = tfsam.attacks.Logits(
        lambda x: model(x, training=False), jit_compile
    )
    found = attack(logits_fn, x, y, seed=0).numpy()
    # For smaller losses the gradient is dominated by rounding errors.
    steady = REFERENCE["pgd/clean_loss"] > 1e-3
    assert steady.sum() == 26
    expected = REFERENCE[f"pgd/{norm}/{steps}"]
    np.testing.assert_allclose(
        found[steady], expected[steady], atol=1e-5, rtol=0
    )


@pytest.mark.parametrize(
    ("name", "perturb_weights", "mode"),
    [
        pytest.param(
            name,
            method,
            mode,
            marks=[] if mode == default else pytest.mark.slow,
        )
        for name, method, default in (
            ("sgd", None, "eager"),
            ("sam_rho0.1", tfsam.SAM(0.1), "eager"),
            ("sam_rho0.4", tfsam.SAM(0.4), None),
            (
                "asam_rho1.0",
                tfsam.ASAM(1.0, eta=0.0, adaptive="all"),
                "graph",
            ),
        )
        for mode in ("eager", "graph", "xla")
    ],
)
def test_weights_after_three_steps(name, perturb_weights, mode, digits):
    model = tfsam.RobustModel(network("init"), perturb_weights=perturb_weights)
    model.compile(
        tfsam.SGD(0.1, momentum=0.9, weight_decay=5e-4),
        LOSS,
        run_eagerly=mode == "eager",
        jit_compile=mode == "xla",
    )
    x, y = digits[0][:64], digits[1][:64]
    history = model.fit(
        tf.data.Dataset.from_tensors((x, y)), epochs=3, verbose=0
    )
    for (layer, part), found in zip(
        [
            (layer, part)
            for layer in ("conv1", "conv2", "dense")
            for part in ("kernel", "bias")
        ],
        model.network.get_weights(),
        strict=True,
    ):
        expected = REFERENCE[f"after3/{name}/{layer}/{part}"]
        np.testing.assert_allclose(found, expected, atol=1e-6, rtol=0)
    # The reported loss is that at the unperturbed weights.
    updates = json.loads((TESTS / "digits_reference.json").read_text())[
        "updates"
    ]
    losses = updates[name]
    np.testing.assert_allclose(history.history["loss"], losses, rtol=1e-5)
