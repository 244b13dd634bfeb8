"""Compares every update with a computation by hand, on two float64 weights.

The model has two inputs and the logits (u, -u), u = w'x. Its gradients are a
line of NumPy, and everything else is written out from the papers' equations,
without TensorFlow.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfsam

X = np.array(
    [[0.3, 0.8], [0.9, 0.1], [0.2, 0.6], [0.7, 0.7], [0.5, 0.2], [0.8, 0.95]]
)
Y = np.array([0, 1, 1, 0, 1, 0])
W = np.array([0.7, -0.4])
RATE, MOMENTUM, RHO = 0.3, 0.9, 0.4


def set_precision(name):
    # The dtype policy is set from floatx with the first layer, and remains.
    keras.config.set_floatx(name)
    keras.config.set_dtype_policy(name)


@pytest.fixture(autouse=True)
def float64():
    set_precision("float64")
    yield
    set_precision("float32")


def trained(steps=3, **kwargs):
    """Returns the two weights after some steps on the whole batch."""
    layer = keras.layers.Dense(1, use_bias=False)
    inputs = keras.Input((2,))
    logit = layer(inputs)
    logits = keras.layers.Concatenate()(
        [logit, keras.layers.Rescaling(-1.0)(logit)]
    )
    network = keras.Model(inputs, logits)
    layer.kernel.assign(W[:, None])
    model = tfsam.RobustModel(network, seed=0, **kwargs)
    model.compile(
        tfsam.SGD(RATE, momentum=MOMENTUM),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    data = tf.data.Dataset.from_tensors((X, Y))
    model.fit(data, epochs=steps, verbose=0)
    assert layer.kernel.dtype == "float64"
    return layer.kernel.numpy()[:, 0], model


def softmax(w, x=X):
    u = x @ w
    return np.stack([1 / (1 + np.exp(-2 * u)), 1 / (1 + np.exp(2 * u))], 1)


def losses(w, x=X):
    return -np.log(softmax(w, x)[np.arange(6), Y])


def slopes(w, x=X):
    """Returns the derivative of each example's loss by u, (6,)."""
    return 2 * (softmax(w, x)[:, 0] - (Y == 0))


def gradients(w, x=X):
    """Returns the gradient of each example, (6, 2)."""
    return slopes(w, x)[:, None] * x


def gradient(w, x=X):
    return gradients(w, x).mean(axis=0)


def unit(v):
    return v / np.linalg.norm(v)


def descended(update, steps=3):
    """Runs SGD with momentum on the gradients `update(w, step)`."""
    w, buffer = W.copy(), 0
    for step in range(steps):
        buffer = MOMENTUM * buffer + update(w, step)
        w = w - RATE * buffer
    return w


def assert_same(found, update, steps=3):
    np.testing.assert_allclose(found, descended(update, steps), rtol=1e-9)


def ball(radius, direction):
    """Descends along the gradient at the edge of a ball."""
    return lambda w, _: gradient(w + radius * direction(w, gradient(w)))


def two_steps(w, _):
    first = RHO / 2 * unit(gradient(w))
    return gradient(w + first + RHO / 2 * unit(gradient(w + first)))


def asam(w, g, eta=0.1):
    size = np.abs(w) + eta
    return size**2 * g / np.linalg.norm(size * g)


def fsam(w, g, eta=30.0):
    inverse = g / (1 + eta * g**2)
    return inverse / np.sqrt(g @ inverse)


def gsam(w, _):
    g = gradient(w)
    sharp = gradient(w + RHO * unit(g))
    along = unit(sharp)
    return sharp - 0.4 * (g - (g @ along) * along)


def part_by_part(w, _):
    """Computes m-sharpness with two parts of three examples."""

    def of(some):
        g = gradients(w)[some].mean(axis=0)
        return gradients(w + RHO * unit(g))[some].mean(axis=0)

    return (of(slice(0, 3)) + of(slice(3, 6))) / 2


def esam(w, _):
    moved = w + RHO * unit(gradient(w))
    worst = np.argsort(losses(w) - losses(moved))[:3]
    return gradients(moved)[worst].mean(axis=0)


WEIGHTS = {
    "st": (None, lambda w, _: gradient(w)),
    "sam": (tfsam.SAM(RHO), ball(RHO, lambda w, g: unit(g))),
    "sam, two steps": (tfsam.SAM(RHO, steps=2), two_steps),
    "sam, unnormalised": (
        tfsam.SAM(RHO, normalize=False),
        ball(RHO, lambda w, g: g),
    ),
    "asam": (tfsam.ASAM(RHO, eta=0.1), ball(RHO, asam)),
    "fsam": (tfsam.FSAM(RHO, eta=30.0), ball(RHO, fsam)),
    "gsam": (tfsam.GSAM(RHO, alpha=0.4), gsam),
    "esam": (
        tfsam.ESAM(RHO, weight_fraction=1, sample_fraction=0.5),
        esam,
    ),
    "awp": (
        tfsam.AWP(0.3),
        ball(0.3, lambda w, g: np.linalg.norm(w) * unit(g)),
    ),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_perturbations_of_weights(name):
    method, update = WEIGHTS[name]
    found, _ = trained(perturb_weights=method)
    assert_same(found, update)


def test_m_sharpness():
    found, _ = trained(perturb_weights=tfsam.SAM(RHO), sub_batches=2)
    assert_same(found, part_by_part)


def test_looksam():
    kept = {}

    def update(w, step):
        g = gradient(w)
        if step % 3 == 0:
            sharp = gradient(w + RHO * unit(g))
            kept["v"] = sharp - (sharp @ unit(g)) * unit(g)
            return sharp
        return g + 0.7 * np.linalg.norm(g) * unit(kept["v"])

    found, _ = trained(5, perturb_weights=tfsam.LookSAM(RHO, every=3))
    assert_same(found, update, 5)


def test_ssam_f():
    """Perturbs the coordinate with the larger squared gradients."""
    masks = {"now": np.ones(2), "next": np.ones(2)}

    def update(w, step):
        g = gradient(w)
        if step == 0:
            squares = (gradients(w) ** 2).sum(axis=0)
            masks["next"] = (squares == squares.max()).astype(float)
        mask, masks["now"] = masks["now"], masks["next"]
        return gradient(w + RHO * mask * unit(g))

    method = tfsam.SSAM(RHO, sparsity=0.5, samples=6)
    found, model = trained(perturb_weights=method)
    assert_same(found, update)
    np.testing.assert_array_equal(model.perturbation_state[0], masks["next"])
    assert masks["next"].sum() == 1


def test_ssam_d():
    method = tfsam.SSAM(RHO, sparsity=0.5, mask="dynamic", drop_fraction=0)
    found, model = trained(perturb_weights=method)
    mask = model.perturbation_state[0].numpy()
    assert mask.sum() == 1
    assert_same(found, ball(RHO, lambda w, g: mask * unit(g)))


def attacked(w, epsilon, step_size, steps, slope, start=X):
    """Runs PGD in l-inf: signs, ball, box."""
    x = start
    for _ in range(steps):
        x = x + step_size * np.sign(slope(w, x))
        x = np.clip(np.clip(x, X - epsilon, X + epsilon), 0, 1)
    return x


def ce_slope(w, x):
    return slopes(w, x)[:, None] * w


PGD = tfsam.PGD(0.2, steps=3, step_size=0.1, random_start=False)


def pgd(w):
    return attacked(w, 0.2, 0.1, 3, ce_slope)


def test_adversarial_training():
    found, _ = trained(perturb_inputs=PGD)
    assert_same(found, lambda w, _: gradient(w, pgd(w)))


def test_fgsm_training_in_l2():
    """x + epsilon * g / ||g||, clipped."""

    def update(w, _):
        g = ce_slope(w, X)
        g /= np.linalg.norm(g, axis=1, keepdims=True)
        return gradient(w, np.clip(X + 0.1 * g, 0, 1))

    found, _ = trained(perturb_inputs=tfsam.FGSM(0.1, norm="l2"))
    assert_same(found, update)


def test_adversarial_training_with_sam():
    def update(w, _):
        x = pgd(w)
        return gradient(w + RHO * unit(gradient(w, x)), x)

    found, _ = trained(perturb_inputs=PGD, perturb_weights=tfsam.SAM(RHO))
    assert_same(found, update)


def test_adversarial_weight_perturbation():
    def update(w, _):
        x = pgd(w)
        moved = w + 0.3 * np.linalg.norm(w) * unit(gradient(w, x))
        return gradient(moved, x)

    found, _ = trained(perturb_inputs=PGD, perturb_weights=tfsam.AWP(0.3))
    assert_same(found, update)


def of_the_weights(objective):
    """Computes the gradient by central differences, to ten digits."""

    def slope(w):
        steps = 1e-4 * np.eye(2)
        first = [objective(w + h) - objective(w - h) for h in steps]
        second = [objective(w + 2 * h) - objective(w - 2 * h) for h in steps]
        return (8 * np.array(first) - np.array(second)) / 12e-4

    return slope


def kl(p, q):
    return (p * np.log(p / q)).sum(axis=1)


def test_trades():
    def update(w, _):
        # The divergence's gradient by the logits is q - p, which is (d, -d).
        clean = softmax(w)

        def slope(w, x):
            return 2 * (softmax(w, x) - clean)[:, :1] * w

        start = np.clip(X + 0.1 * np.sign(ce_slope(w, X)), 0, 1)
        x = attacked(w, 0.2, 0.1, 2, slope, start)

        def objective(w):
            apart = kl(softmax(w), softmax(w, x))
            return (losses(w) + 3 * apart).mean()

        return of_the_weights(objective)(w)

    class FromFGSM(tfsam.PGD):
        """Starts away from x, where the gradient of the divergence is zero."""

        def __call__(self, logits_fn, x, y, seed=0):
            start = tfsam.FGSM(0.1)(logits_fn, x, y, seed)
            return super().__call__(logits_fn, x, y, seed, start=start)

    attack = FromFGSM(0.2, steps=2, step_size=0.1, loss="kl")
    found, _ = trained(perturb_inputs=attack, objective=tfsam.TRADES(3))
    assert_same(found, update)


def test_mart():
    def update(w, _):
        x = pgd(w)

        def objective(w):
            clean, perturbed = softmax(w), softmax(w, x)
            right = perturbed[np.arange(6), Y]
            other = perturbed[np.arange(6), 1 - Y]
            boosted = -np.log(right) - np.log(1.0001 - other + 1e-12)
            doubt = 1.0000001 - clean[np.arange(6), Y]
            return (boosted + 5 * kl(clean, perturbed) * doubt).mean()

        return of_the_weights(objective)(w)

    found, _ = trained(perturb_inputs=PGD, objective=tfsam.MART(5))
    assert_same(found, update)
