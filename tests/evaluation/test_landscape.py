"""The landscape, compared with closed forms and an explicit Hessian."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfsam


def make_network(seed=0, dtype="float64"):
    """A small network with a convolution, BatchNorm and a bias."""
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            keras.Input((4, 4, 1), dtype=dtype),
            keras.layers.Conv2D(2, 3, dtype=dtype),
            keras.layers.BatchNormalization(dtype=dtype),
            keras.layers.Activation("softplus", dtype=dtype),
            keras.layers.Flatten(dtype=dtype),
            keras.layers.Dense(3, dtype=dtype),
        ]
    )


@pytest.fixture(scope="module")
def data():
    generator = np.random.default_rng(1)
    return generator.random((11, 4, 4, 1)), generator.integers(0, 3, 11)


@pytest.fixture(scope="module")
def landscape(data):
    return tfsam.Landscape(make_network(), data, batch_size=4)


def flat(tensors):
    return np.concatenate([np.ravel(t) for t in tensors])


def test_the_loss_is_keras_own_mean_in_inference_mode(landscape, data):
    network, (x, y) = landscape.network, data
    network(x, training=True)  # BatchNorm's statistics are not the batch's.
    wanted = keras.losses.SparseCategoricalCrossentropy(from_logits=True)(
        y, network(x, training=False)
    )
    np.testing.assert_allclose(landscape.loss(), wanted, rtol=1e-6)


def test_nothing_is_assigned(landscape):
    before = [v.numpy() for v in landscape.network.variables]
    landscape.sharpness(tfsam.SAM(0.5, steps=2))
    landscape.surface(points=2)
    landscape.largest_eigenvalue()
    for old, variable in zip(before, landscape.network.variables, strict=True):
        np.testing.assert_array_equal(old, variable)


def test_the_gradient_is_the_loss_s_slope(landscape):
    generator = np.random.default_rng(2)
    direction = [generator.normal(size=w.shape) for w in landscape.weights]
    h = 1e-5
    ahead = [
        w + h * d for w, d in zip(landscape.weights, direction, strict=True)
    ]
    back = [
        w - h * d for w, d in zip(landscape.weights, direction, strict=True)
    ]
    slope = (landscape.loss(ahead) - landscape.loss(back)) / (2 * h)
    np.testing.assert_allclose(
        flat(landscape.gradient()) @ flat(direction), slope, rtol=1e-7
    )


def test_the_largest_eigenvalue_is_that_of_the_explicit_hessian(landscape):
    like = landscape.weights
    size = len(flat(like))
    columns = []
    for index in range(size):
        unit = np.eye(size)[index]
        parts, start = [], 0
        for w in like:
            count = int(tf.size(w))
            part = unit[start : start + count].reshape(w.shape)
            parts.append(tf.constant(part))
            start += count
        columns.append(flat(landscape.curvature(parts)))
    hessian = np.array(columns)
    np.testing.assert_allclose(hessian, hessian.T, atol=1e-12)
    wanted = np.linalg.eigvalsh(hessian)[-1]
    assert wanted > 0.1
    np.testing.assert_allclose(
        landscape.largest_eigenvalue(tolerance=1e-8), wanted, rtol=1e-7
    )


def test_the_hessian_of_softmax_regression_by_hand():
    # Without weights the probabilities are 1/2 each, and the Hessian is
    # (I - 1/2) / 2 (x) x x': its largest eigenvalue is mean(x^2) / 2.
    inputs = keras.Input((1,), dtype="float64")
    outputs = keras.layers.Dense(
        2, use_bias=False, kernel_initializer="zeros", dtype="float64"
    )(inputs)
    x = np.array([[1.0], [2.0], [3.0]])
    found = tfsam.Landscape(keras.Model(inputs, outputs), (x, [0, 1, 0]))
    assert found.largest_eigenvalue() == pytest.approx(14 / 3 / 2, rel=1e-6)


def test_sharpness_is_the_rise_at_sam_s_point(landscape):
    gradient = landscape.gradient()
    norm = np.linalg.norm(flat(gradient))
    moved = [
        w + 0.3 * g / norm
        for w, g in zip(landscape.weights, gradient, strict=True)
    ]
    wanted = float(landscape.loss(moved) - landscape.loss())
    found = landscape.sharpness(tfsam.SAM(0.3))
    assert found == pytest.approx(wanted, rel=1e-6)
    assert landscape.sharpness(tfsam.SAM(0.0)) == 0
    # More steps find a point at least as sharp, separate parts a sharper one.
    assert landscape.sharpness(tfsam.SAM(0.3, steps=10)) >= found - 1e-9


def test_m_sharpness_is_the_mean_over_the_parts(landscape, data):
    x, y = data
    found = landscape.sharpness(tfsam.SAM(0.3), examples=4)
    parts = [slice(0, 4), slice(4, 8), slice(8, 11)]
    wanted = [
        tfsam.Landscape(landscape.network, (x[p], y[p])).sharpness(
            tfsam.SAM(0.3)
        )
        for p in parts
    ]
    assert found == pytest.approx(np.dot(wanted, [4, 4, 3]) / 11, rel=1e-6)
    assert found > landscape.sharpness(tfsam.SAM(0.3))


def test_adaptive_sharpness_does_not_see_the_scale_of_layers(data):
    network = make_network()
    x, y = data
    perturbation = tfsam.ASAM(0.3, eta=0.0, adaptive="all")
    before = tfsam.Landscape(network, (x, y)).sharpness(perturbation)
    kernel, bias = network.layers[0].variables
    normalization = network.layers[1]
    kernel.assign(4 * kernel)
    bias.assign(4 * bias)
    normalization.moving_mean.assign(4 * normalization.moving_mean)
    # (4 a)^2 of the variance, epsilon included.
    tiny = normalization.epsilon
    normalization.moving_variance.assign(
        16 * (normalization.moving_variance + tiny) - tiny
    )
    after = tfsam.Landscape(network, (x, y)).sharpness(perturbation)
    assert after == pytest.approx(before, rel=1e-6)


def test_the_surface_has_the_loss_in_its_middle(landscape):
    coordinates, losses = landscape.surface(extent=0.5, points=5)
    np.testing.assert_allclose(coordinates, [-0.5, -0.25, 0, 0.25, 0.5])
    assert losses.shape == (5, 5)
    np.testing.assert_allclose(losses[2, 2], landscape.loss(), rtol=1e-6)
    assert len(np.unique(losses.round(9))) == 25
    again = landscape.surface(extent=0.5, points=5)[1]
    np.testing.assert_array_equal(losses, again)


def test_filters_of_a_direction_are_as_long_as_the_network_s():
    from tfsam.evaluation import landscape as module

    network = make_network(dtype="float32")
    kernel = network.layers[0].kernel
    generator = np.random.default_rng(0)
    weight = tf.convert_to_tensor(kernel.value)
    found = module._filter_normalized(generator, kernel, weight).numpy()
    np.testing.assert_allclose(
        np.linalg.norm(found.reshape(-1, 2), axis=0),
        np.linalg.norm(np.reshape(weight, (-1, 2)), axis=0),
        rtol=1e-5,
    )
    assert not np.allclose(found, weight)
    scale = network.layers[1].gamma
    zeros = module._filter_normalized(generator, scale, scale.value)
    np.testing.assert_array_equal(zeros, np.zeros(2))


def test_input_gradients_of_a_linear_network_by_hand():
    kernel = np.array([[1.0, -1.0], [0.5, 2.0]])
    inputs = keras.Input((2,), dtype="float64")
    layer = keras.layers.Dense(2, use_bias=False, dtype="float64")
    network = keras.Model(inputs, layer(inputs))
    layer.kernel.assign(kernel)
    x, y = np.array([[0.3, 0.4], [0.0, 0.0]]), [0, 1]
    found = tfsam.Landscape(network, (x, y), batch_size=1).input_gradients()
    z = x @ kernel
    wrong = 1 / (1 + np.exp(np.array([z[0, 0] - z[0, 1], z[1, 1] - z[1, 0]])))
    between = kernel[:, 1] - kernel[:, 0]
    np.testing.assert_allclose(found["l1"], wrong * np.abs(between).sum())
    np.testing.assert_allclose(found["l2"], wrong * np.linalg.norm(between))
    cosine = abs(between @ x[0]) / (np.linalg.norm(between) * 0.5)
    np.testing.assert_allclose(found["alignment"], [cosine, 0], atol=1e-9)


def test_it_refuses_what_it_cannot_measure(data):
    x, y = data
    with pytest.raises(ValueError, match="Received: 11 and 3"):
        tfsam.Landscape(make_network(), (x, y[:3]))
    with pytest.raises(ValueError, match="batch_size=0"):
        tfsam.Landscape(make_network(), (x, y), batch_size=0)
    with pytest.raises(ValueError, match="trainable weights"):
        inputs = keras.Input((2,))
        tfsam.Landscape(keras.Model(inputs, inputs), (x, y))
    found = tfsam.Landscape(make_network(), (x, y))
    with pytest.raises(ValueError, match="perturbation=LookSAM"):
        found.sharpness(tfsam.LookSAM(0.1))
    with pytest.raises(ValueError, match="Received: examples=0"):
        found.sharpness(tfsam.SAM(0.1), examples=0)
    with pytest.raises(ValueError, match="points=1"):
        found.surface(points=1)
