"""Tests of weight perturbations as pure functions, by closed forms."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfsam
from tfsam.weights import Step
from tfsam.weights import kind
from tfsam.weights import ssam

RNG = np.random.default_rng(0)
KINDS = ("kernel", "bias")


def tensors(*arrays):
    return [tf.constant(a, tf.float64) for a in arrays]


def at(count=0, kinds=KINDS, learning_rate=0.1, **kwargs):
    return Step(
        kinds,
        tf.constant([7, count]),
        tf.constant(count, tf.int64),
        tf.constant(learning_rate),
        **kwargs,
    )


def offsets(moved, weights):
    return [m.numpy() - w.numpy() for m, w in zip(moved, weights, strict=True)]


def init(method, weights):
    """Returns the initial state as tensors, as the model keeps it."""
    values = method.init(weights, 0) if method.init else ()
    return [tf.constant(value) for value in values]


def perturb(method, weights, gradients, kinds=KINDS, **kwargs):
    state = init(method, weights)
    moved, _ = method.perturb(weights, gradients, state, at(0, kinds, **kwargs))
    return offsets(moved, weights)


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
    """w1 -> a w1, w2 -> w2 / a leaves a ReLU network and e unchanged."""
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


FAMILY = [
    tfsam.SAM(0.1),
    tfsam.SAM(0.1, normalize=False),
    tfsam.ASAM(0.1),
    tfsam.FSAM(0.1),
    tfsam.AWP(0.1),
    tfsam.GSAM(0.1),
    tfsam.GSAM(0.1, rho_min=0.01),
    tfsam.LookSAM(0.1),
    tfsam.ESAM(0.1),
    tfsam.SSAM(0.1, mask="dynamic"),
    tfsam.FriendlySAM(0.1),
    tfsam.VaSSO(0.1),
    tfsam.MSAM(0.1),
    tfsam.WSAM(0.1),
]


@pytest.mark.parametrize("method", FAMILY, ids=str)
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
        (lambda: tfsam.SAM(0.1, steps=0), "Received: steps=0"),
        (lambda: tfsam.SAM(0.1, step_size=-1), "Received: step_size=-1"),
        (lambda: tfsam.FSAM(0.1, eta=-1), "Received: eta=-1"),
        (lambda: tfsam.AWP(-1), "Received: gamma=-1"),
        (lambda: tfsam.AWP(1, warmup_steps=-1), "Received: warmup_steps=-1"),
        (lambda: tfsam.GSAM(0.1, alpha=-1), "Received: alpha=-1"),
        (lambda: tfsam.GSAM(0.1, rho_min=0.2), "Received: rho_min=0.2"),
        (
            lambda: tfsam.GSAM(0.1, learning_rates=(1, 0)),
            r"Received: learning_rates=\(1, 0\)",
        ),
        (
            lambda: tfsam.GSAM(0.1, learning_rates=0.1),
            "Received: learning_rates=0.1",
        ),
        (
            lambda: tfsam.GSAM(0.1, learning_rates=(-1, 0)),
            "Received: learning_rates=-1",
        ),
        (lambda: tfsam.LookSAM(0.1, every=0), "Received: every=0"),
        (lambda: tfsam.LookSAM(0.1, every=2.5), "Received: every=2.5"),
        (
            lambda: tfsam.ESAM(0.1, weight_fraction=0),
            "Received: weight_fraction=0",
        ),
        (
            lambda: tfsam.ESAM(0.1, sample_fraction=1.1),
            "Received: sample_fraction=1.1",
        ),
        (lambda: tfsam.SSAM(0.1, sparsity=1.1), "Received: sparsity=1.1"),
        (lambda: tfsam.SSAM(0.1, mask="random"), "Received: mask=random"),
        (lambda: tfsam.FriendlySAM(0.1, sigma=-1), "Received: sigma=-1"),
        (lambda: tfsam.FriendlySAM(0.1, decay=1.1), "Received: decay=1.1"),
        (lambda: tfsam.VaSSO(0.1, theta=0), "Received: theta=0"),
        (lambda: tfsam.MSAM(-1), "Received: rho=-1"),
        (lambda: tfsam.WSAM(0.1, gamma=1), "Received: gamma=1"),
        (lambda: tfsam.SAM(0.1, layers="bn"), "Received: layers=bn"),
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


def test_more_steps_of_sam_on_a_quadratic():
    """Computes two steps by hand, the second from the end of the first."""
    h = np.diag([2.0, 5.0])
    w = np.array([1.0, -2.0])

    def direction(w):
        return h @ w / np.linalg.norm(h @ w)

    def gradient(weights):
        return tensors(h @ weights[0].numpy())

    method = tfsam.SAM(0.5, steps=2)
    (e,) = perturb(
        method, tensors(w), tensors(h @ w), ["kernel"], gradient=gradient
    )
    first = 0.25 * direction(w)
    np.testing.assert_allclose(
        e, first + 0.25 * direction(w + first), rtol=1e-10
    )
    # Longer steps end on the sphere.
    method = tfsam.SAM(0.5, steps=2, step_size=0.4)
    (e,) = perturb(
        method, tensors(w), tensors(h @ w), ["kernel"], gradient=gradient
    )
    first = 0.4 * direction(w)
    second = first + 0.4 * direction(w + first)
    assert np.linalg.norm(second) > 0.5
    np.testing.assert_allclose(
        e, 0.5 * second / np.linalg.norm(second), rtol=1e-10
    )


def test_unnormalised_sam_is_short_where_it_is_flat():
    weights, gradients = tensors([1.0, 2.0]), tensors([0.3, 0.4])
    method = tfsam.SAM(0.2, normalize=False)
    (e,) = perturb(method, weights, gradients, ["kernel"])
    np.testing.assert_allclose(e, [0.06, 0.08], rtol=1e-10)
    (e,) = perturb(method, weights, tensors([30.0, 40.0]), ["kernel"])
    np.testing.assert_allclose(e, [0.12, 0.16], rtol=1e-10)


def test_fsam_has_its_radius_in_the_fisher_metric():
    e = flat(perturb(tfsam.FSAM(0.3, eta=2.0), WEIGHTS, GRADIENTS))
    g = flat(GRADIENTS)
    np.testing.assert_allclose(((1 + 2 * g**2) * e**2).sum(), 0.09, rtol=1e-10)
    np.testing.assert_allclose(
        e / e[0], g / (1 + 2 * g**2) * (1 + 2 * g[0] ** 2) / g[0], rtol=1e-9
    )
    # Scaling the loss by c and eta by 1 / c^2 changes nothing.
    scaled = [5 * g for g in GRADIENTS]
    other = perturb(tfsam.FSAM(0.3, eta=2.0 / 25), WEIGHTS, scaled)
    np.testing.assert_allclose(flat(other), e, rtol=1e-10)
    plain = perturb(tfsam.FSAM(0.3, eta=0), WEIGHTS, GRADIENTS)
    np.testing.assert_array_equal(
        flat(plain), flat(perturb(tfsam.SAM(0.3), WEIGHTS, GRADIENTS))
    )


def test_awp_moves_each_kernel_by_gamma_of_its_norm():
    kinds = ("kernel", "bias", "kernel", "scale")
    weights = tensors([[3.0, 4.0]], [1.0], [[0.0, 0.0]], [2.0])
    gradients = tensors([[0.0, -1e3]], [1.0], [[1.0, 1.0]], [1.0])
    method = tfsam.AWP(0.02)
    e = perturb(method, weights, gradients, kinds)
    np.testing.assert_allclose(e[0], [[0.0, -0.1]], rtol=1e-10)
    assert not any(part.any() for part in e[1:])
    # For a single kernel it equals SAM, relative to the kernel's norm.
    one = perturb(method, weights[:1], gradients[:1], kinds[:1])
    sam = perturb(tfsam.SAM(0.1), weights[:1], gradients[:1], kinds[:1])
    np.testing.assert_allclose(one[0], sam[0], rtol=1e-10)
    larger = perturb(method, [10 * w for w in weights], gradients, kinds)
    np.testing.assert_allclose(larger[0], 10 * e[0], rtol=1e-10)


def test_awp_waits_for_its_warm_up():
    method = tfsam.AWP(0.02, warmup_steps=3)
    assert [bool(method.due((), at(n))) for n in range(5)] == [
        *(False, False, False),
        *(True, True),
    ]
    assert tfsam.AWP(0.02).due((), at(0)) is True


def test_gsam_leaves_what_is_along_the_sharp_gradient():
    method = tfsam.GSAM(0.1, alpha=0.7)
    perturbed = tensors(RNG.normal(size=(3, 2)), RNG.normal(size=2))
    final, _ = method.combine(GRADIENTS, perturbed, [], at())
    f, g, p = flat(final), flat(GRADIENTS), flat(perturbed)
    np.testing.assert_allclose(f @ p, p @ p, rtol=1e-10)
    np.testing.assert_allclose(
        f, p - 0.7 * (g - (g @ p) / (p @ p) * p), rtol=1e-9
    )
    zeros = [tf.zeros_like(g) for g in GRADIENTS]
    final, _ = method.combine(GRADIENTS, zeros, [], at())
    np.testing.assert_allclose(flat(final), -0.7 * g, rtol=1e-10)
    # With a single weight, the orthogonal component is zero.
    (final,), _ = method.combine(tensors([3.0]), tensors([-2.0]), [], at())
    np.testing.assert_allclose(final, [-2.0], rtol=1e-10)


def test_gsam_s_radius_follows_the_learning_rate():
    def radius(method, state, learning_rate):
        moved, state = method.perturb(
            WEIGHTS, GRADIENTS, state, at(learning_rate=learning_rate)
        )
        return np.linalg.norm(flat(offsets(moved, WEIGHTS))), state

    method = tfsam.GSAM(0.3, rho_min=0.1, learning_rates=(0.01, 0.11))
    assert init(method, WEIGHTS) == []
    for rate, expected in ((0.11, 0.3), (0.01, 0.1), (0.06, 0.2), (1.0, 0.3)):
        found, _ = radius(method, [], rate)
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    # Without a schedule: the highest learning rate so far.
    method = tfsam.GSAM(0.3, rho_min=0.1)
    state = init(method, WEIGHTS)
    for rate, expected in ((0.05, 0.3), (0.1, 0.3), (0.05, 0.2), (0.0, 0.1)):
        found, state = radius(method, state, rate)
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_looksam_keeps_what_is_orthogonal():
    method = tfsam.LookSAM(0.1, every=3, alpha=0.6)
    due = [bool(method.due([], at(n))) for n in range(7)]
    assert due == [True, False, False, True, False, False, True]
    perturbed = tensors(RNG.normal(size=(3, 2)), RNG.normal(size=2))
    state = init(method, WEIGHTS)
    g = flat(GRADIENTS)
    # Before the first step of SAM, g_v is zero.
    final, state = method.combine(GRADIENTS, None, state, at())
    np.testing.assert_array_equal(flat(final), g)
    final, state = method.combine(GRADIENTS, perturbed, state, at())
    np.testing.assert_array_equal(flat(final), flat(perturbed))
    np.testing.assert_allclose(flat(state) @ g, 0, atol=1e-10)
    final, same = method.combine(GRADIENTS, None, state, at())
    np.testing.assert_array_equal(flat(same), flat(state))
    size = np.linalg.norm(g)
    np.testing.assert_allclose(np.linalg.norm(flat(final) - g), 0.6 * size)
    np.testing.assert_allclose(
        np.linalg.norm(flat(final)), np.sqrt(1.36) * size
    )


@pytest.mark.parametrize("fraction", [0.2, 0.5, 0.9])
def test_esam_moves_some_tensors_by_its_whole_radius(fraction):
    weights = tensors(*RNG.normal(size=(40, 3)))
    gradients = tensors(*RNG.normal(size=(40, 3)))
    method = tfsam.ESAM(0.3, weight_fraction=fraction)
    chosen = []
    for count in range(20):
        moved, _ = method.perturb(
            weights, gradients, (), at(count, ["kernel"] * 40)
        )
        e = np.array(offsets(moved, weights))
        np.testing.assert_allclose(
            np.linalg.norm(e), 0.3 / fraction, rtol=1e-10
        )
        chosen.append(e.any(axis=1))
    # 800 draws: five standard deviations are 0.09 at most.
    assert abs(np.mean(chosen) - fraction) < 0.09
    assert len({tuple(c) for c in chosen}) == 20


def test_esam_selects_whose_loss_rose_most():
    method = tfsam.ESAM(0.1, sample_fraction=0.5)
    before = tf.constant([0.0, 1.0, 2.0, 3.0, 4.0])
    after = tf.constant([5.0, 1.0, 9.0, 3.0, 4.0])
    found = method.select(before, after, (), at())
    assert sorted(found.numpy()) == [0, 2]
    assert method.select(before, before, (), at()).numpy().tolist() == [0, 1]
    unknown = tf.function(
        lambda a, b: method.select(a, b, (), at()),
        input_signature=[tf.TensorSpec([None])] * 2,
    )
    assert sorted(unknown(before, after).numpy()) == [0, 2]
    assert unknown(before[:1], after[:1]).numpy().tolist() == [0]
    assert tfsam.ESAM(0.1, sample_fraction=1).select is None


def test_the_largest_are_exactly_so_many():
    scores = tf.constant([3.0, 1.0, 3.0, 3.0, 5.0])
    assert ssam.largest(scores, 3).numpy().tolist() == [1, 0, 1, 0, 1]
    assert ssam.largest(scores, 0).numpy().sum() == 0
    assert ssam.largest(scores, 5).numpy().sum() == 5


def test_ssam_s_mask_takes_part_of_sam_s_perturbation():
    method = tfsam.SSAM(0.3, sparsity=0.5)
    mask = np.array([1, 0, 0, 1, 1, 0, 0, 1], "float32")
    state = [tf.constant(mask), tf.zeros(8), tf.constant(-1.0)]
    moved, same = method.perturb(WEIGHTS, GRADIENTS, state, at(1))
    e, g = flat(offsets(moved, WEIGHTS)), flat(GRADIENTS)
    np.testing.assert_allclose(
        e,
        0.3 * mask.astype("float64") * g / np.linalg.norm(g),
        rtol=1e-10,
        atol=1e-16,
    )
    np.testing.assert_array_equal(same[0], mask)


def test_ssam_f_keeps_the_largest_fisher_information():
    """The mask is made as soon as enough examples are collected."""
    squares = tensors(np.arange(6.0).reshape(3, 2), [10.0, 0.5])
    calls = []

    def squared_gradients():
        calls.append(1)
        return squares, 4

    method = tfsam.SSAM(0.3, sparsity=0.5, refresh_every=5, samples=6)
    state = init(method, WEIGHTS)
    assert state[0].numpy().tolist() == [1] * 8
    masks = []
    for count in range(7):
        step = at(count, squared_gradients=squared_gradients)
        _, state = method.perturb(WEIGHTS, GRADIENTS, state, step)
        masks.append(state[0].numpy().tolist())
    made = [0, 0, 0, 1, 1, 1, 1, 0]
    assert masks == [[1] * 8] * 2 + [made] * 5
    # Steps 0 and 1 collect 8 examples, as do steps 5 and 6.
    assert len(calls) == 4


def test_ssam_d_exchanges_the_smallest_gradients():
    weights = tensors(RNG.normal(size=100))
    method = tfsam.SSAM(
        0.3,
        sparsity=0.4,
        mask="dynamic",
        refresh_every=2,
        drop_fraction=0.5,
        total_steps=8,
    )
    state = init(method, weights)
    assert state[0].numpy().sum() == 60
    exchanged = []
    for count in range(10):
        gradients = tensors(RNG.normal(size=100))
        before = np.array(state[0])
        moved, after = method.perturb(weights, gradients, state, at(count))
        mask = after[0].numpy()
        assert mask.sum() == 60
        assert set(mask) <= {0, 1}
        dropped = (before == 1) & (mask == 0)
        grown = (before == 0) & (mask == 1)
        assert dropped.sum() == grown.sum()
        exchanged.append(dropped.sum())
        if dropped.any():
            # The smallest |g| of the refresh step, the previous one.
            scores = np.array(state[1])
            kept = (before == 1) & (mask == 1)
            assert scores[dropped].max() < scores[kept].min()
        e = offsets(moved, weights)[0]
        assert ((e != 0) == (mask == 1)).all()
        state = after
    # 0.5 * (1 + cos(pi t / 8)) / 2 of 60 ones, at t = 0, 2, 4, 6, 8.
    assert exchanged == [0, 30, 0, 26, 0, 15, 0, 4, 0, 0]


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.3, 1.0])
@pytest.mark.parametrize("drop_fraction", [0.0, 0.9])
def test_ssam_d_keeps_its_density(sparsity, drop_fraction):
    """Unlike in the official code, the density stays for small sparsities."""
    method = tfsam.SSAM(
        0.3,
        sparsity=sparsity,
        mask="dynamic",
        refresh_every=1,
        drop_fraction=drop_fraction,
    )
    weights = tensors(RNG.normal(size=30))
    state = first = init(method, weights)
    for count in range(4):
        _, state = method.perturb(weights, weights, state, at(count))
        assert state[0].numpy().sum() == round(30 * (1 - sparsity))
    if not drop_fraction:
        np.testing.assert_array_equal(state[0], first[0])


def test_asam_and_awp_follow_two_rescaled_layers_loss():
    """A loss of w1 * w2 is invariant to rescaling, also when perturbed."""

    def loss(weights):
        return float((weights[0] * weights[1] - 1) ** 2)

    for method in (tfsam.ASAM(0.3, eta=0.0), tfsam.AWP(0.1)):
        found = []
        for a in (1.0, 4.0):
            w = [2.0 * a, 3.0 / a]
            slope = 2 * (w[0] * w[1] - 1)
            moved, _ = method.perturb(
                tensors(*w),
                tensors(slope * w[1], slope * w[0]),
                (),
                at(0, ("kernel", "kernel")),
            )
            found.append(loss(moved))
        np.testing.assert_allclose(found[0], found[1], rtol=1e-10)


@pytest.mark.parametrize("method", FAMILY, ids=str)
def test_configurations(method):
    same = type(method).from_config(method.get_config())
    assert same.get_config() == method.get_config()
    assert repr(same) == repr(method)
    e = perturb(same, WEIGHTS, GRADIENTS)
    np.testing.assert_array_equal(
        flat(e), flat(perturb(method, WEIGHTS, GRADIENTS))
    )


def test_names():
    assert set(tfsam.weights.names()) >= {
        *("sam", "asam", "esam", "looksam", "gsam", "fsam"),
        *("ssam", "awp"),
    }
    found = tfsam.weights.get("gsam", rho=0.3, alpha=0.1)
    assert isinstance(found, tfsam.GSAM)
    assert (found.rho, found.alpha) == (0.3, 0.1)
    assert tfsam.weights.get("ssam", mask="dynamic").mask == "dynamic"
    with pytest.raises(ValueError, match="Received: weight perturbation=sgd"):
        tfsam.weights.get("sgd")
    with pytest.raises(ValueError, match="Received: gamma=1"):
        tfsam.weights.get("sam", gamma=1)
