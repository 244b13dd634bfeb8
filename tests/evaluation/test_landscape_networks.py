"""The landscapes of networks other than dense image classifiers."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfsam

RNG = np.random.default_rng(0)
TOKENS = RNG.integers(0, 7, (10, 5))
X = RNG.random((10, 4))
Y = np.arange(10) % 3
SIDES = np.arange(10) % 2


def of_layers(*layers, shape=(4,), dtype="float64"):
    """A network of double precision, for finite differences."""
    keras.utils.set_random_seed(0)
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float64")
    try:
        return keras.Sequential(
            [keras.Input(shape, dtype=dtype), *(make() for make in layers)]
        )
    finally:
        keras.config.set_dtype_policy(policy)


@pytest.fixture(scope="module")
def of_tokens():
    network = of_layers(
        lambda: keras.layers.Embedding(7, 2),
        lambda: keras.layers.GlobalAveragePooling1D(),
        lambda: keras.layers.Dense(3),
        shape=(5,),
        dtype="int32",
    )
    return tfsam.Landscape(network, (TOKENS, Y), batch_size=4)


def flat(tensors):
    return np.concatenate([np.ravel(t) for t in tensors])


def test_the_gradient_by_an_embedding_is_the_loss_s_slope(of_tokens):
    weights = of_tokens.weights
    direction = [RNG.normal(size=w.shape) for w in weights]
    h = 1e-5
    ahead, back = (
        of_tokens.loss(
            [w + s * d for w, d in zip(weights, direction, strict=True)]
        )
        for s in (h, -h)
    )
    slope = (ahead - back) / (2 * h)
    gradient = flat(of_tokens.gradient())
    np.testing.assert_allclose(gradient @ flat(direction), slope, rtol=1e-6)


def test_the_curvature_of_an_embedding_is_the_gradient_s_slope(of_tokens):
    weights = of_tokens.weights
    direction = [RNG.normal(size=w.shape) for w in weights]
    h = 1e-5
    ahead, back = (
        flat(
            of_tokens.gradient(
                [w + s * d for w, d in zip(weights, direction, strict=True)]
            )
        )
        for s in (h, -h)
    )
    found = flat(of_tokens.curvature([tf.constant(d) for d in direction]))
    np.testing.assert_allclose(found, (ahead - back) / (2 * h), atol=1e-7)
    assert of_tokens.sharpness(tfsam.SAM(0.1)) > 0


def test_tokens_have_no_input_gradients(of_tokens):
    with pytest.raises(ValueError, match=r"floats.* Received: x.dtype=int64"):
        of_tokens.input_gradients()


def test_one_logit_is_the_binary_cross_entropy():
    network = of_layers(lambda: keras.layers.Dense(1))
    landscape = tfsam.Landscape(network, (X, SIDES))
    logits = network(X).numpy()[:, 0]
    wrong = 1 / (1 + np.exp(np.where(SIDES, logits, -logits)))
    loss = -np.log1p(-wrong).mean()
    assert float(landscape.loss()) == pytest.approx(loss, rel=1e-6)
    slopes = np.linalg.norm(network.layers[0].kernel) * wrong
    np.testing.assert_allclose(landscape.input_gradients()["l2"], slopes)
    # The Hessian by hand: the mean of p (1 - p) times (x, 1) (x, 1)'.
    ones = np.concatenate([X, np.ones((10, 1))], axis=1)
    hessian = (ones.T * (wrong * (1 - wrong))) @ ones / 10
    assert landscape.largest_eigenvalue(tolerance=1e-8) == pytest.approx(
        np.linalg.eigvalsh(hessian)[-1], rel=1e-6
    )
    with pytest.raises(ValueError, match="below 2"):
        tfsam.Landscape(network, (X, Y))


def two_outputs(kind):
    inputs = keras.Input((4,))
    outputs = [keras.layers.Dense(3)(inputs) for _ in range(2)]
    if kind is dict:
        outputs = dict(zip("ab", outputs, strict=True))
    return keras.Model(inputs, outputs)


class Other:
    """A model of another Keras."""


@pytest.mark.parametrize(
    ("make", "x", "message"),
    [
        (lambda: two_outputs(list), X, "one tensor.* Received: a list of 2"),
        (lambda: two_outputs(dict), X, "one tensor.* Received: a dict of 2"),
        (lambda: Other(), X, "Keras 3.* Received: network of type .*Other"),
        (lambda: lambda x: x, X, "Keras 3.* Received: network of type"),
        (
            lambda: of_layers(lambda: keras.layers.Conv1D(3, 1), shape=(4, 1)),
            X[..., None],
            r"must return logits.* Received: float64 of shape \(1, 4, 3\)",
        ),
        (
            lambda: of_layers(lambda: keras.layers.Dense(3)),
            X[:, :3],
            r"take the data's inputs.* Received: x of .* \(10, 3\)",
        ),
        (
            lambda: of_layers(lambda: keras.layers.Dense(2)),
            X,
            "class numbers below 2",
        ),
    ],
)
def test_other_networks_are_refused_in_one_line(make, x, message):
    with pytest.raises(ValueError, match=message) as raised:
        tfsam.Landscape(make(), (x, Y))
    assert "\n" not in str(raised.value)


@pytest.mark.slow
def test_a_model_of_tf_keras_is_refused():
    tf_keras = pytest.importorskip("tf_keras")
    network = tf_keras.Sequential([tf_keras.layers.Dense(3, input_shape=(4,))])
    with pytest.raises(ValueError, match="Received: network of type tf_keras"):
        tfsam.Landscape(network, (X, Y))


def test_several_inputs_are_refused():
    inputs = [keras.Input((4,)), keras.Input((4,))]
    joined = keras.layers.Concatenate()(inputs)
    network = keras.Model(inputs, keras.layers.Dense(3)(joined))
    with pytest.raises(
        ValueError, match=r"one tensor.* Received: a tuple of 2"
    ):
        tfsam.Landscape(network, ((X, X), Y))


# The largest eigenvalue.


@pytest.fixture(scope="module")
def wide():
    network = of_layers(lambda: keras.layers.Dense(400))
    return tfsam.Landscape(network, (X, Y))


def test_an_eigenvalue_that_is_not_found_says_what_to_raise(wide, monkeypatch):
    """The 2000 eigenvalues from 0 to 1 are close to each other."""
    spectrum = np.linspace(0, 1, 2000)
    kernel, bias = spectrum[:1600].reshape(4, 400), spectrum[1600:]
    monkeypatch.setattr(
        wide, "curvature", lambda d: [d[0] * kernel, d[1] * bias]
    )
    with pytest.raises(
        ValueError,
        match=r"raise tolerance or iterations .* Received: tolerance=1e-14, "
        "iterations=1",
    ) as raised:
        wide.largest_eigenvalue(tolerance=1e-14, iterations=1)
    assert "\n" not in str(raised.value)
    found = wide.largest_eigenvalue(tolerance=0.1, iterations=100)
    assert found == pytest.approx(1, rel=0.1)


@pytest.mark.parametrize(
    "arguments", [{"tolerance": -1}, {"tolerance": np.nan}, {"iterations": 0}]
)
def test_bad_arguments_of_the_eigenvalue(wide, arguments):
    with pytest.raises(ValueError, match="Received"):
        wide.largest_eigenvalue(**arguments)


def test_a_hessian_of_one_weight_is_its_eigenvalue():
    network = of_layers(
        lambda: keras.layers.Dense(1, use_bias=False), shape=(1,)
    )
    network.set_weights([np.zeros((1, 1))])
    found = tfsam.Landscape(network, (np.array([[1.0], [3.0]]), [0, 1]))
    assert found.largest_eigenvalue() == pytest.approx((1 + 9) / 2 / 4)


def test_a_flat_loss_has_eigenvalue_zero():
    network = of_layers(lambda: keras.layers.Dense(3, use_bias=False))
    assert tfsam.Landscape(network, (0 * X, Y)).largest_eigenvalue() == 0


def test_a_network_that_diverged_has_no_eigenvalue(wide):
    weights = wide.network.get_weights()
    wide.network.set_weights([np.full_like(w, np.nan) for w in weights])
    with pytest.raises(ValueError, match="must be finite"):
        wide.largest_eigenvalue()
    wide.network.set_weights(weights)


# Retracing.


@pytest.mark.parametrize("kind", ["landscape", "validation"])
def test_many_measurements_do_not_warn_of_retracing(kind, caplog):
    network = of_layers(lambda: keras.layers.Dense(3))

    def landscape():
        tfsam.Landscape(network, (X, Y)).loss()

    def validation():
        found = tfsam.RobustValidation((X, Y), tfsam.FGSM(0.1), every=1)
        found.set_model(network)
        found.on_train_begin()
        found.on_epoch_begin(0)
        found.on_epoch_end(0, {})

    measure = {"landscape": landscape, "validation": validation}[kind]
    logger = tf.get_logger()
    logger.propagate, before = True, logger.propagate
    try:
        with warnings.catch_warnings(record=True):
            for _ in range(8):
                measure()
    finally:
        logger.propagate = before
    assert "retracing" not in caplog.text
