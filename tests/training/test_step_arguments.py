"""Arguments of RobustModel: settings without their part, any network."""

import keras
import numpy as np
import pytest

import tfsam

RNG = np.random.default_rng(0)
X = RNG.random((8, 6), dtype="float32")
Y = RNG.integers(0, 3, 8)
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def dense(inputs=True):
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(4, "relu"), keras.layers.Dense(3)]
    return keras.Sequential([keras.Input((6,))] * inputs + layers)


def fitted(network, *args, **kwargs):
    model = tfsam.RobustModel(network, *args, seed=0, **kwargs)
    model.compile(tfsam.SGD(0.1), LOSS)
    model.fit(X, Y, batch_size=4, epochs=2, shuffle=False, verbose=0)
    return model


@pytest.mark.parametrize(
    "setting", [{"sharpness": "global"}, {"exclude": "bias"}]
)
def test_settings_of_the_weight_perturbation_need_one(setting):
    ((name, _),) = setting.items()
    with pytest.raises(ValueError, match=f"{name} needs perturb_weights"):
        tfsam.RobustModel(dense(), tfsam.FGSM(0.1), **setting)
    tfsam.RobustModel(dense(), perturb_weights=tfsam.SAM(), **setting)


@pytest.mark.parametrize("method", ["train_step", "compute_loss"])
def test_a_network_s_own_step_is_ignored_with_a_warning(method):
    own = type("Own", (keras.Sequential,), {method: lambda *_, **__: None})
    network = own([keras.Input((6,)), keras.layers.Dense(3)])
    with pytest.warns(UserWarning, match=f"Own overrides {method}"):
        fitted(network)


@pytest.mark.parametrize(
    "method",
    [
        tfsam.LookSAM(),
        pytest.param(tfsam.SSAM(samples=4), marks=pytest.mark.slow),
        pytest.param(tfsam.GSAM(rho_min=0.01), marks=pytest.mark.slow),
    ],
    ids=["looksam", "ssam", "gsam"],
)
def test_a_network_without_an_input_trains_as_with_one(method):
    """Layers and the perturbation's state are built during tracing."""
    found = fitted(dense(inputs=False), perturb_weights=method)
    expected = fitted(dense(), perturb_weights=method)
    for one, other in zip(found.weights, expected.weights, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_a_failed_build_leaves_later_models_alone():
    class Failing(tfsam.WeightPerturbation):
        def init(self, weights, seed):
            raise ValueError("no state")

        def perturb(self, weights, gradients, state, step):
            return weights, state

    with pytest.raises(ValueError, match="no state"):
        fitted(dense(inputs=False), perturb_weights=Failing())
    found = fitted(dense(inputs=False), perturb_weights=tfsam.SAM(0.0))
    expected = dense()
    expected.compile(tfsam.SGD(0.1), LOSS)
    expected.fit(X, Y, batch_size=4, epochs=2, shuffle=False, verbose=0)
    for one, other in zip(found.network.weights, expected.weights, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
