"""Perturbations of weights: closed forms, and a family that needs no more."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfsam
from tfsam import geometry
from tfsam.weights import Step
from tfsam.weights import kind

RNG = np.random.default_rng(0)
KINDS = ("kernel", "bias")


def tensors(*arrays):
    return [tf.constant(a, tf.float64) for a in arrays]


def perturb(method, weights, gradients, kinds=KINDS):
    step = Step(kinds, tf.constant([0, 0]), tf.constant(0.1))
    moved, state = method.perturb(weights, gradients, (), step)
    assert state == ()
    return [m.numpy() - w.numpy() for m, w in zip(moved, weights, strict=True)]


WEIGHTS = tensors(RNG.normal(size=(3, 2)), RNG.normal(size=2))
GRADIENTS = tensors(RNG.normal(size=(3, 2)), RNG.normal(size=2))


def flat(arrays):
    return np.concatenate([np.ravel(a) for a in arrays])


def test_sam_has_radius_rho_and_the_gradient_s_direction():
    e = flat(perturb(tfsam.SAM(0.3), WEIGHTS, GRADIENTS))
    g = flat(GRADIENTS)
    np.testing.assert_allclose(e, 0.3 * g / np.linalg.norm(g), rtol=1e-10)
    scaled = perturb(tfsam.SAM(0.3), WEIGHTS, [1e6 * g for g in GRADIENTS])
    np.testing.assert_allclose(flat(scaled), e, rtol=1e-10)


def test_sam_on_a_quadratic():
    """g~ = H (w + rho H w / ||H w||); along an eigenvector a (||w|| + rho)."""
    h = np.diag([2.0, 5.0])
    w = np.array([1.0, -2.0])
    (e,) = perturb(tfsam.SAM(0.5), tensors(w), tensors(h @ w), ["kernel"])
    hw = h @ w
    np.testing.assert_allclose(
        h @ (w + e), h @ (w + 0.5 * hw / np.linalg.norm(hw)), rtol=1e-10
    )
    w = np.array([0.0, 3.0])
    (e,) = perturb(tfsam.SAM(0.5), tensors(w), tensors(h @ w), ["kernel"])
    np.testing.assert_allclose(h @ (w + e), [0, 5 * 3.5], rtol=1e-10)


def test_asam_is_sam_where_all_weights_have_one_size():
    weights = tensors([2.0, -2.0], [[2.0], [-2.0]])
    gradients = tensors([1.0, 3.0], [[-2.0], [0.5]])
    asam = tfsam.ASAM(0.3, eta=0.0, adaptive="all")
    np.testing.assert_allclose(
        flat(perturb(asam, weights, gradients)),
        flat(perturb(tfsam.SAM(0.6), weights, gradients)),
        rtol=1e-10,
    )


def test_asam_follows_the_rescaling_of_two_layers():
    """w1 -> a w1, w2 -> w2 / a leaves a ReLU network, and e with it."""
    asam = tfsam.ASAM(0.3, eta=0.0, adaptive="all")
    e = perturb(asam, WEIGHTS, GRADIENTS)
    rescaled = perturb(
        asam,
        [4 * WEIGHTS[0], WEIGHTS[1] / 4],
        [GRADIENTS[0] / 4, 4 * GRADIENTS[1]],
    )
    np.testing.assert_allclose(rescaled[0], 4 * e[0], rtol=1e-10)
    np.testing.assert_allclose(rescaled[1], e[1] / 4, rtol=1e-10)
    sam = perturb(tfsam.SAM(0.3), [4 * WEIGHTS[0], WEIGHTS[1]], GRADIENTS)
    assert not np.allclose(sam[0], 4 * e[0])


def test_asam_adapts_kernels_and_scales_only():
    weights = tensors([[3.0]], [3.0], [3.0], [3.0])
    gradients = tensors([[1.0]], [1.0], [1.0], [1.0])
    kinds = ("kernel", "scale", "bias", "offset")
    e = flat(perturb(tfsam.ASAM(0.5, eta=1.0), weights, gradients, kinds))
    sizes = np.array([4.0, 4.0, 1.0, 1.0])
    np.testing.assert_allclose(
        e, 0.5 * sizes**2 / np.linalg.norm(sizes), rtol=1e-10
    )


@pytest.mark.parametrize("method", [tfsam.SAM(0.1), tfsam.ASAM(0.1)])
def test_a_gradient_of_zero_moves_nothing(method):
    zeros = [tf.zeros_like(g) for g in GRADIENTS]
    assert not flat(perturb(method, WEIGHTS, zeros)).any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: tfsam.SAM(-1), "Received: rho=-1"),
        (lambda: tfsam.SAM(float("nan")), "Received: rho=nan"),
        (lambda: tfsam.ASAM(0.1, eta=-2), "Received: eta=-2"),
        (lambda: tfsam.ASAM(0.1, adaptive="some"), "Received: adaptive=some"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_kinds():
    layers = [
        keras.layers.Conv2D(2, 3),
        keras.layers.BatchNormalization(),
        keras.layers.Embedding(3, 2),
    ]
    shapes = [(None, 4, 4, 1), (None, 4), (None,)]
    kinds = []
    for layer, shape in zip(layers, shapes, strict=True):
        layer.build(shape)
        kinds += [kind(v) for v in layer.trainable_variables]
    assert kinds == ["kernel", "bias", "scale", "offset", "kernel"]


# The rest of the family needs new classes only: here are three of them.


class GSAM(tfsam.WeightPerturbation):
    """Surrogate gap minimisation (Zhuang et al., 2022)."""

    def __init__(self, rho, alpha):
        self.rho, self.alpha = rho, alpha

    perturb = tfsam.SAM.perturb

    def combine(self, gradients, perturbed, state, step):
        if perturbed is None:
            return gradients, state
        square = geometry.global_norm(perturbed) ** 2
        inner = tf.add_n(
            [
                tf.reduce_sum(g * p)
                for g, p in zip(gradients, perturbed, strict=True)
            ]
        )
        return [
            p - self.alpha * (g - inner / square * p)
            for g, p in zip(gradients, perturbed, strict=True)
        ], state


class LookSAM(tfsam.WeightPerturbation):
    """A second pass each `every` steps (Liu et al., 2022)."""

    def __init__(self, rho, every, alpha=0.7):
        self.rho, self.every, self.alpha = rho, every, alpha

    def init(self, weights):
        zeros = [np.zeros(w.shape, w.dtype.as_numpy_dtype) for w in weights]
        return [np.zeros((), "int64"), *zeros]

    def due(self, state):
        return state[0] % self.every == 0

    perturb = tfsam.SAM.perturb

    def combine(self, gradients, perturbed, state, step):
        count, *kept = state
        size = geometry.global_norm(gradients)
        if perturbed is None:
            scale = self.alpha * size / (geometry.global_norm(kept) + 1e-12)
            return [
                g + scale * v for g, v in zip(gradients, kept, strict=True)
            ], [count + 1, *kept]
        inner = tf.add_n(
            [
                tf.reduce_sum(g * p)
                for g, p in zip(gradients, perturbed, strict=True)
            ]
        )
        kept = [
            p - inner / size**2 * g
            for g, p in zip(gradients, perturbed, strict=True)
        ]
        return perturbed, [count + 1, *kept]


class SelectingSAM(tfsam.WeightPerturbation):
    """ESAM's second half (Du et al., 2022): the examples that got worse."""

    def __init__(self, rho, count):
        self.rho, self.count = rho, count

    perturb = tfsam.SAM.perturb

    def select(self, losses, perturbed_losses, state, step):
        return tf.math.top_k(perturbed_losses - losses, self.count).indices


X = RNG.random((8, 6), dtype="float32")
Y = RNG.integers(0, 3, 8)


def trained(method, steps=3, jit_compile=False, save_to=None):
    keras.utils.set_random_seed(0)
    network = keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(5, activation="tanh"),
            keras.layers.Dense(3),
        ]
    )
    model = tfsam.RobustModel(network, perturb_weights=method)
    model.compile(
        tfsam.SGD(0.5, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=jit_compile,
    )
    model.fit(X, Y, batch_size=8, epochs=steps, shuffle=False, verbose=0)
    return model


def difference(one, other):
    return max(
        np.abs(a - b).max()
        for a, b in zip(
            one.network.get_weights(), other.network.get_weights(), strict=True
        )
    )


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize(
    "method",
    [GSAM(0.2, 0.0), LookSAM(0.2, 1), SelectingSAM(0.2, 8)],
    ids=["GSAM(0)", "LookSAM(1)", "ESAM(1, 1)"],
)
def test_the_family_s_identities_with_sam(method, jit_compile):
    sam = trained(tfsam.SAM(0.2), jit_compile=jit_compile)
    assert difference(trained(method, jit_compile=jit_compile), sam) < 1e-6


def test_the_family_s_methods_do_something():
    sam = trained(tfsam.SAM(0.2))
    for method in (GSAM(0.2, 0.5), LookSAM(0.2, 2), SelectingSAM(0.2, 4)):
        assert difference(trained(method), sam) > 1e-5


def test_looksam_keeps_its_state_in_the_model():
    """One step in two has a second pass; alpha = 0 is standard on the other."""
    model = trained(LookSAM(0.2, 2), steps=3)
    count, *kept = model.perturbation_state
    assert int(count) == 3
    assert [tuple(v.shape) for v in kept] == [(6, 5), (5,), (5, 3), (3,)]
    assert np.abs(kept[0]).max() > 0

    def steps(method, counts):
        found = trained(method, steps=0)
        for n in counts:
            found.fit(X, Y, batch_size=8, epochs=n, shuffle=False, verbose=0)
        return found

    one = trained(LookSAM(0.2, 2, alpha=0.0), steps=2)
    sam = trained(tfsam.SAM(0.2), steps=1)
    sam.perturb_weights = None
    sam.make_train_function(force=True)
    sam.fit(X, Y, batch_size=8, epochs=1, shuffle=False, verbose=0)
    assert difference(one, sam) < 1e-6


def test_selected_examples_are_those_of_the_second_pass():
    """One step by hand: e from all examples, the gradient from the chosen."""
    model = trained(SelectingSAM(0.2, 3), steps=1)
    start = trained(None, steps=0).network
    loss = keras.losses.SparseCategoricalCrossentropy(
        from_logits=True, reduction="none"
    )

    def losses():
        return loss(Y, start(X)).numpy()

    def gradients(chosen):
        with tf.GradientTape() as tape:
            value = tf.reduce_mean(loss(Y[chosen], start(X[chosen])))
        return tape.gradient(value, start.trainable_weights)

    clean = start.get_weights()
    before = losses()
    g = gradients(np.arange(8))
    scale = 0.2 / geometry.global_norm(g)
    start.set_weights([w + scale * d for w, d in zip(clean, g, strict=True)])
    worst = np.argsort(before - losses())[:3]
    g = gradients(worst)
    expected = [w - 0.5 * d for w, d in zip(clean, g, strict=True)]
    for one, other in zip(model.network.get_weights(), expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_an_objective_of_one_s_own():
    """TRADES (Zhang et al., 2019): beta = 0 is standard training."""

    def trades(beta):
        def objective(model, batch):
            y_pred = model(batch.x, training=True)
            p = tf.nn.softmax(y_pred)
            log_q = tf.nn.log_softmax(model(batch.x_adv, training=True))
            kl = tf.reduce_sum(p * (tf.math.log(p) - log_q), axis=-1)
            loss = model.compute_loss(
                batch.x, batch.y, y_pred, batch.sample_weight
            )
            return loss + beta * tf.reduce_mean(kl), y_pred

        return objective

    def trained_by(beta, epsilon):
        network = trained(None, steps=0).network
        model = tfsam.RobustModel(
            network,
            tfsam.PGD(epsilon, norm="l2", steps=2),
            objective=trades(beta),
            seed=0,
        )
        model.compile(
            tfsam.SGD(0.5, momentum=0.9),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        )
        model.fit(X, Y, batch_size=8, epochs=3, shuffle=False, verbose=0)
        return model

    standard = trained(None)
    assert difference(trained_by(0.0, 0.2), standard) < 1e-6
    assert difference(trained_by(6.0, 0.0), standard) < 1e-6
    assert difference(trained_by(6.0, 0.2), standard) > 1e-4
