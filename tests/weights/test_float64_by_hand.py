"""Compares the methods of 2023 to 2025 with runs in NumPy, in float64.

The network has two dense layers with a layer normalization between them; its
gradients are differences of the loss. Four batches, momentum and decay. No
line of the rules below is the library's.
"""

import functools

import keras
import numpy as np
import pytest
from helpers import slow

import tfsam

RNG = np.random.default_rng(0)
BATCHES = [(RNG.random((5, 3)), RNG.integers(0, 3, 5)) for _ in range(4)]
RATE, MOMENTUM, DECAY, RHO = 0.3, 0.9, 0.01, 0.4
# Kernel and bias, scale and offset, kernel and bias.
SHAPES = [(3, 4), (4,), (4,), (4,), (4, 3), (3,)]
SIZES = [int(np.prod(shape)) for shape in SHAPES]
ENDS = np.cumsum(SIZES)
W = RNG.normal(size=ENDS[-1])
NORMALIZATION = np.zeros(ENDS[-1])
NORMALIZATION[ENDS[1] : ENDS[3]] = 1

# A few steps are quicker than tracing one; the slow tests use all modes.
MODES = ["eager", slow("graph"), slow("xla")]


def set_precision(name):
    # The dtype policy is set from floatx with the first layer, and remains.
    keras.config.set_floatx(name)
    keras.config.set_dtype_policy(name)


@pytest.fixture(autouse=True)
def float64():
    set_precision("float64")
    yield
    set_precision("float32")


def parts(w):
    flat = np.split(w, ENDS[:-1])
    return [v.reshape(s) for v, s in zip(flat, SHAPES, strict=True)]


def loss(w, x, y):
    """Returns the mean cross-entropy."""
    k1, b1, scale, offset, k2, b2 = parts(w)
    h = x @ k1 + b1
    centred = h - h.mean(axis=1, keepdims=True)
    spread = np.sqrt((centred**2).mean(axis=1, keepdims=True) + 1e-3)
    logits = np.tanh(scale * centred / spread + offset) @ k2 + b2
    logits = logits - logits.max(axis=1, keepdims=True)
    picked = logits[np.arange(len(y)), y]
    return (np.log(np.exp(logits).sum(axis=1)) - picked).mean()


def gradient(w, batch):
    """Computes the gradient by central differences, to ten digits."""
    found = np.empty_like(w)
    for i in range(len(w)):
        h = np.zeros_like(w)
        h[i] = 1e-3
        one = loss(w + h, *batch) - loss(w - h, *batch)
        two = loss(w + 2 * h, *batch) - loss(w - 2 * h, *batch)
        four = loss(w + 4 * h, *batch) - loss(w - 4 * h, *batch)
        # Richardson's extrapolation of three steps.
        found[i] = (256 * one - 40 * two + four) / 360e-3
    return found


def unit(v):
    size = np.linalg.norm(v)
    return v / size if size else v


@functools.cache
def by_hand(rule, momentum=MOMENTUM, nesterov=False, decay=DECAY):
    """Runs SGD, in PyTorch's form, on what a rule gives it.

    A rule takes w, v, a function from weights to gradients, and a dict that
    lives as long as the run. It returns the gradient for the optimizer, and a
    step after the optimizer's.
    """
    w, v, kept = W.copy(), np.zeros_like(W), {}
    for batch in BATCHES:
        slope = functools.partial(gradient, batch=batch)
        g, later = rule(w, v, slope, kept)
        g = g + decay * w
        v = momentum * v + g
        w = w - RATE * (g + momentum * v if nesterov else v) + later
    return w


def standard(w, v, slope, kept):
    return slope(w), 0


def sam(w, v, slope, kept, mask=1):
    mask = NORMALIZATION if mask == "normalization" else mask
    return slope(w + RHO * unit(mask * slope(w))), 0


def asam_on(w, v, slope, kept, eta=0.05):
    size = np.abs(w) + eta
    scaled = NORMALIZATION * size * slope(w)
    return slope(w + RHO * size * unit(scaled)), 0


def friendly(w, v, slope, kept, sigma=0.7, decay=0.6):
    g = slope(w)
    if "m" not in kept:
        d = kept["m"] = g
    else:
        d = g - sigma * kept["m"]
        kept["m"] = decay * kept["m"] + (1 - decay) * g
    return slope(w + RHO * unit(d)), 0


def vasso(w, v, slope, kept, theta=0.4):
    g = slope(w)
    kept["d"] = (1 - theta) * kept["d"] + theta * g if kept else g
    return slope(w + RHO * unit(kept["d"])), 0


def msam(w, v, slope, kept):
    return slope(w - RHO * unit(v)), 0


def coupled(w, v, slope, kept, gamma=0.8):
    g, sharp = slope(w), slope(w + RHO * unit(slope(w)))
    alpha = gamma / (1 - gamma)
    return (1 - alpha) * g + alpha * sharp, 0


def decoupled(w, v, slope, kept, gamma=0.8):
    g, sharp = slope(w), slope(w + RHO * unit(slope(w)))
    return g, -RATE * gamma / (1 - gamma) * (sharp - g)


def trained(method, mode="eager", momentum=MOMENTUM, optimizer=None, **kwargs):
    """Returns the weights after four batches, as a vector."""
    network = keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Dense(4),
            keras.layers.LayerNormalization(),
            keras.layers.Activation("tanh"),
            keras.layers.Dense(3),
        ]
    )
    network.set_weights(parts(W))
    model = tfsam.RobustModel(network, perturb_weights=method, seed=0, **kwargs)
    model.compile(
        optimizer or tfsam.SGD(RATE, momentum=momentum, weight_decay=DECAY),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        run_eagerly=mode == "eager",
        jit_compile=mode == "xla",
    )
    for x, y in BATCHES:
        model.train_on_batch(x, y)
    assert network.weights[0].dtype == "float64"
    return np.concatenate([w.ravel() for w in network.get_weights()])


@functools.cache
def of_sam():
    return trained(tfsam.SAM(RHO))


@functools.cache
def of_standard_training():
    return trained(None)


GENERIC = {
    "friendly_sam": (
        tfsam.FriendlySAM(RHO, sigma=0.7, decay=0.6),
        friendly,
    ),
    "vasso": (tfsam.VaSSO(RHO, theta=0.4), vasso),
    "msam": (tfsam.MSAM(RHO), msam),
    "wsam": (tfsam.WSAM(RHO, gamma=0.8), decoupled),
    "wsam, coupled": (tfsam.WSAM(RHO, gamma=0.8, decoupled=False), coupled),
    "sam_on": (
        tfsam.SAM(RHO, layers="normalization"),
        functools.partial(sam, mask="normalization"),
    ),
    "asam_on": (
        tfsam.ASAM(RHO, eta=0.05, adaptive="all", layers="normalization"),
        asam_on,
    ),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", GENERIC)
def test_a_run_is_numpy_s_and_not_sam_s(name, mode):
    method, rule = GENERIC[name]
    found, expected = trained(method, mode), by_hand(rule)
    np.testing.assert_allclose(found, expected, atol=1e-6, rtol=0)
    for other in (sam, standard):
        assert np.abs(found - by_hand(other)).max() > 1e-3


SAM = {
    "FriendlySAM(sigma=0)": tfsam.FriendlySAM(RHO, sigma=0),
    "VaSSO(theta=1)": tfsam.VaSSO(RHO, theta=1),
    "WSAM(gamma=1/2), coupled": tfsam.WSAM(RHO, gamma=0.5, decoupled=False),
}


@pytest.mark.parametrize("name", SAM)
def test_they_are_sam_to_the_bit(name):
    found = trained(SAM[name])
    np.testing.assert_array_equal(found, of_sam())
    np.testing.assert_allclose(found, by_hand(sam), atol=1e-6, rtol=0)


STANDARD = {
    "MSAM(0)": tfsam.MSAM(0),
    "WSAM(gamma=0)": tfsam.WSAM(RHO, gamma=0),
    "WSAM(gamma=0), coupled": tfsam.WSAM(RHO, gamma=0, decoupled=False),
    "WSAM(gamma=0) on normalization": tfsam.WSAM(
        RHO, gamma=0, layers="normalization"
    ),
    "WSAM(0)": tfsam.WSAM(0),
    "FriendlySAM(0)": tfsam.FriendlySAM(0),
    "VaSSO(0)": tfsam.VaSSO(0),
}


@pytest.mark.parametrize(
    "name",
    [
        name if "gamma" in name or name == "MSAM(0)" else slow(name)
        for name in STANDARD
    ],
)
def test_they_are_standard_training_to_the_bit(name):
    found = trained(STANDARD[name])
    np.testing.assert_array_equal(found, of_standard_training())
    np.testing.assert_allclose(found, by_hand(standard), atol=1e-6, rtol=0)


def test_wsam_decoupled_is_sam_without_momentum():
    found = trained(tfsam.WSAM(RHO, gamma=0.5), momentum=0)
    np.testing.assert_allclose(found, by_hand(sam, momentum=0), atol=1e-6)
    with_momentum = trained(tfsam.WSAM(RHO, gamma=0.5))
    assert np.abs(with_momentum - by_hand(sam)).max() > 1e-3


@pytest.mark.parametrize("nesterov", [slow(False), True])
def test_msam_takes_the_momentum_of_each_sgd_with_its_sign(nesterov):
    """A literal port on Keras's SGD would perturb to the other side."""
    expected = by_hand(msam, nesterov=nesterov, decay=0)
    for make in (keras.optimizers.SGD, tfsam.SGD):
        optimizer = make(RATE, momentum=MOMENTUM, nesterov=nesterov)
        found = trained(tfsam.MSAM(RHO), optimizer=optimizer)
        np.testing.assert_allclose(found, expected, atol=1e-6, rtol=0)


def test_exclude_and_layers_restrict_one_another():
    """Of the normalization's two vectors one is left."""
    mask = np.zeros_like(W)
    mask[ENDS[2] : ENDS[3]] = 1
    found = trained(tfsam.SAM(RHO, layers="normalization"), exclude="gamma")
    w, v = W.copy(), 0
    for batch in BATCHES:
        moved = w + RHO * unit(mask * gradient(w, batch))
        v = MOMENTUM * v + gradient(moved, batch) + DECAY * w
        w = w - RATE * v
    np.testing.assert_allclose(found, w, atol=1e-6, rtol=0)


def test_sam_on_is_sam_where_normalization_is_all_that_trains():
    def fitted(method):
        network = keras.Sequential(
            [
                keras.Input((3,)),
                keras.layers.BatchNormalization(momentum=0.5),
                keras.layers.Dense(3, trainable=False),
                keras.layers.GroupNormalization(groups=1),
            ]
        )
        values = np.random.default_rng(1)
        network.set_weights(
            [np.abs(values.normal(size=v.shape)) for v in network.weights]
        )
        model = tfsam.RobustModel(network, perturb_weights=method)
        model.compile(
            tfsam.SGD(RATE, momentum=MOMENTUM),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            run_eagerly=True,
        )
        for x, y in BATCHES:
            model.train_on_batch(x, y)
        return np.concatenate([w.ravel() for w in network.get_weights()])

    alone = fitted(tfsam.SAM(RHO, layers="normalization"))
    np.testing.assert_array_equal(alone, fitted(tfsam.SAM(RHO)))
    assert np.abs(alone - fitted(None)).max() > 1e-3
