"""Tests of the adapters for cleverhans: results, labels, seeds and traces."""

import gc
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf
from cleverhans.tf2.attacks import basic_iterative_method
from cleverhans.tf2.attacks import fast_gradient_method
from cleverhans.tf2.attacks import momentum_iterative_method
from cleverhans.tf2.attacks import projected_gradient_descent
from helpers import slow

import tfsam
from tfsam.attacks.adapters import cleverhans
from tfsam.attacks.logits import Logits

BATCH, SHAPE, CLASSES = 6, (4, 4, 2), 3
ORDER = {"linf": np.inf, "l2": 2}
EPSILON = {"linf": 0.05, "l2": 0.3}

GRADIENT_ATTACKS = [
    cleverhans.FGM,
    cleverhans.PGD,
    cleverhans.BIM,
    cleverhans.MIM,
]
EVERY = [
    *((attack, norm) for attack in GRADIENT_ATTACKS for norm in ORDER),
    (cleverhans.CarliniWagner, "l2"),
    (cleverhans.SPSA, "linf"),
]
# Each of them once: the norm does not matter in these tests.
EACH = [(attack, "linf") for attack in GRADIENT_ATTACKS] + EVERY[-2:]
SHORT = {
    cleverhans.CarliniWagner: {
        "steps": 20,
        "search_steps": 2,
        "learning_rate": 0.05,
    },
    cleverhans.SPSA: {"steps": 3, "samples": 16},
}
# An adapter of each kind: gradients in a graph, eager with and without them.
KINDS = [
    each if each[0] in (cleverhans.PGD, *SHORT) else slow(*each)
    for each in EACH
]
TRACED = [
    (cleverhans.PGD, True),
    (cleverhans.MIM, False),
    slow(cleverhans.PGD, False),
    slow(cleverhans.MIM, True),
]


def network(seed=0):
    """Returns a network of three layers with fixed weights."""
    rng = np.random.default_rng(seed)
    kernel = tf.constant(rng.normal(size=(3, 3, 2, 4)), tf.float32)
    dense = tf.constant(rng.normal(size=(64, CLASSES)), tf.float32)

    def logits(x):
        x = tf.nn.relu(tf.nn.conv2d(x - 0.5, kernel, 1, "SAME"))
        return tf.matmul(tf.reshape(x, [-1, 64]), dense)

    return logits


def linear(seed=0):
    """Returns logits with a convex loss, which every attack step raises."""
    rng = np.random.default_rng(seed)
    weights = tf.constant(rng.normal(size=(32, CLASSES)), tf.float32)
    return lambda x: tf.matmul(tf.reshape(x - 0.5, [-1, 32]), weights)


def data(logits_fn, batch=BATCH, dtype=np.float32):
    x = np.random.default_rng(1).random((batch, *SHAPE)).astype(dtype)
    y = tf.argmax(logits_fn(tf.constant(x, tf.float32)), axis=-1)
    return tf.constant(x), y


def make(attack, norm, **options):
    options = {**SHORT.get(attack, {}), **options}
    return attack(epsilon=EPSILON[norm], norm=norm, **options)


def sizes(perturbation, norm):
    flat = np.reshape(perturbation, [len(perturbation), -1])
    return np.linalg.norm(np.float64(flat), ORDER[norm], axis=1)


def loss(logits_fn, x, y):
    return tf.nn.sparse_softmax_cross_entropy_with_logits(y, logits_fn(x))


@pytest.mark.parametrize(("attack", "norm"), EVERY)
def test_budget_bounds_and_effect(attack, norm):
    logits_fn = linear()
    x, y = data(logits_fn)
    x_adv = make(attack, norm)(logits_fn, x, y, seed=3)
    assert x_adv.dtype == x.dtype and x_adv.shape == x.shape
    assert sizes(x_adv - x, norm).max() <= EPSILON[norm] * (1 + 1e-5)
    assert 0 <= x_adv.numpy().min() and x_adv.numpy().max() <= 1
    assert np.all(loss(logits_fn, x_adv, y) > loss(logits_fn, x, y))


@pytest.mark.parametrize(
    ("attack", "norm", "dtype"),
    [
        (cleverhans.PGD, "linf", "float16"),
        (cleverhans.CarliniWagner, "l2", "float16"),
        (cleverhans.SPSA, "linf", "float64"),
        *(slow(*each, "float16") for each in (*EACH[:1], *EACH[2:4])),
        *(slow(attack, "l2", "float64") for attack in GRADIENT_ATTACKS),
    ],
)
def test_dtypes_in_a_batch_of_one(attack, norm, dtype):
    logits_fn = linear()
    x, y = data(logits_fn, 1, dtype)
    x_adv = make(attack, norm)(logits_fn, x, y)
    assert x_adv.dtype == dtype
    slack = {"float16": 2e-2, "float64": 1e-9}[dtype]
    assert sizes(x_adv - x, norm).max() <= EPSILON[norm] * (1 + slack)
    nothing = attack(epsilon=0.0, norm=norm, **SHORT.get(attack, {}))
    assert np.array_equal(nothing(logits_fn, x, y), x)


@pytest.mark.parametrize(
    ("norm", "bounds"), [("linf", (0.0, 255.0)), ("l2", None)]
)
@pytest.mark.parametrize("attack", GRADIENT_ATTACKS)
def test_equals_cleverhans_as_shipped(attack, norm, bounds):
    inner = network()
    scale = 255.0 if bounds == (0.0, 255.0) else 1.0

    def logits_fn(x):
        return inner(x / scale)

    x, y = data(inner)
    x, epsilon = x * scale, EPSILON[norm] * scale
    low, high = bounds or (None, None)
    shared = {"clip_min": low, "clip_max": high, "y": y}
    step = epsilon / (4 if norm == "linf" else 8)
    options = {"random_start": False} if attack is cleverhans.PGD else {}
    if attack is cleverhans.FGM:
        expected = fast_gradient_method.fast_gradient_method(
            logits_fn, x, epsilon, ORDER[norm], **shared
        )
    else:
        function = {
            cleverhans.PGD: (
                projected_gradient_descent.projected_gradient_descent
            ),
            cleverhans.BIM: basic_iterative_method.basic_iterative_method,
            cleverhans.MIM: momentum_iterative_method.momentum_iterative_method,
        }[attack]
        expected = function(
            logits_fn,
            x,
            epsilon,
            step,
            10,
            ORDER[norm],
            sanity_checks=False,
            **shared,
        )
    x_adv = attack(epsilon, norm=norm, bounds=bounds, **options)(
        logits_fn, x, y
    )
    np.testing.assert_allclose(x_adv, expected, atol=1e-5 * scale)


@pytest.mark.parametrize("random_start", [False, True])
def test_equals_native_pgd(random_start):
    logits_fn = network()
    x, y = data(logits_fn)
    options = {"epsilon": 0.05, "norm": "linf", "random_start": random_start}
    ours = cleverhans.PGD(**options)(logits_fn, x, y, seed=5)
    native = tfsam.PGD(**options)(logits_fn, x, y, seed=5)
    np.testing.assert_allclose(ours, native, atol=1e-5)


@pytest.mark.parametrize("norm", ORDER)
def test_random_start_is_seeded(norm):
    logits_fn = network()
    x, y = data(logits_fn)
    start = make(cleverhans.PGD, norm, steps=0, bounds=None)
    first = start(logits_fn, x, y, 1)
    assert np.array_equal(first, start(logits_fn, x, y, 1))
    changed = np.any(first != start(logits_fn, x, y, 2), axis=(1, 2, 3))
    assert np.all(changed)
    assert np.all(sizes(first - x, norm) > 0.5 * EPSILON[norm])
    # TensorFlow's global generator and its seed have no effect.
    state = tf.random.get_global_generator().state.numpy()
    tf.random.set_seed(7)
    assert np.array_equal(first, start(logits_fn, x, y, 1))
    assert np.array_equal(tf.random.get_global_generator().state, state)

    pair = tf.constant([1, 2])
    assert np.array_equal(
        start(logits_fn, x, y, pair), start(logits_fn, x, y, pair)
    )


@pytest.mark.parametrize("jit_compile", [False, slow(True)])
def test_random_start_is_seeded_in_graphs(jit_compile):
    x, y = data(network())
    rows = tf.stack([tf.fill([BATCH], 1), tf.range(BATCH)], axis=1)
    attack = make(cleverhans.PGD, "linf", steps=2)
    graph = tf.function(
        lambda x, y, rows: attack(linear(), x, y, rows),
        jit_compile=jit_compile,
    )
    x_adv = graph(x, y, rows)
    assert np.array_equal(x_adv, graph(x, y, rows))
    assert not np.allclose(x_adv, graph(x, y, rows + 1), atol=1e-3)
    # XLA has another random number generator.
    if not jit_compile:
        eager = attack(linear(), x, y, 1)
        np.testing.assert_allclose(x_adv, eager, atol=1e-5)


def test_spsa_is_seeded():
    logits_fn = network()
    x, y = data(logits_fn, 3)
    attack = make(cleverhans.SPSA, "linf", early_stop=False)
    x_adv = attack(logits_fn, x, y, 1)
    assert np.array_equal(x_adv, attack(logits_fn, x, y, 1))
    assert not np.array_equal(x_adv, attack(logits_fn, x, y, 2))
    # The draws of an image do not depend on the rest of the batch.
    rows = tf.constant([[1, 2]])
    alone = attack(logits_fn, x[2:], y[2:], rows)
    np.testing.assert_allclose(alone, x_adv[2:], atol=1e-6)


@pytest.mark.parametrize(("attack", "norm"), KINDS)
def test_compiled_logits_give_the_same(attack, norm):
    function = network()
    x, y = data(function)
    attack = make(attack, norm)
    plain = attack(Logits(function), x, y, 1)
    compiled = attack(Logits(function, jit_compile=True), x, y, 1)
    assert np.array_equal(
        np.argmax(function(plain), -1), np.argmax(function(compiled), -1)
    )


@pytest.mark.parametrize(("attack", "norm"), KINDS)
def test_attacks_the_true_label(attack, norm):
    """Includes misclassified images, and soft labels."""
    logits_fn = linear()
    x, guess = data(logits_fn)
    y = (guess + 1) % CLASSES
    attack = make(attack, norm, **_never_stop(attack))
    x_adv = attack(logits_fn, x, y, 1)
    assert np.all(loss(logits_fn, x_adv, y) >= loss(logits_fn, x, y) - 1e-3)
    soft = 0.1 / CLASSES + 0.9 * tf.one_hot(guess, CLASSES)
    np.testing.assert_array_equal(
        attack(logits_fn, x, soft, 1), attack(logits_fn, x, guess, 1)
    )


def _never_stop(attack):
    return {"early_stop": False} if attack is cleverhans.SPSA else {}


def test_carlini_wagner_finds_a_small_perturbation():
    logits_fn = linear()
    x, y = data(logits_fn)
    attack = cleverhans.CarliniWagner(
        10.0, steps=100, search_steps=5, bounds=(-1.0, 2.0)
    )
    x_adv = attack(logits_fn, x, y)
    assert not np.any(np.argmax(logits_fn(x_adv), -1) == y)
    # The distance to the nearest other class, in closed form.
    corners = np.eye(33, 32, dtype=np.float32)
    weights = logits_fn(corners).numpy()
    weights = weights[:32] - weights[32]
    scores = logits_fn(x).numpy()
    nearest = np.array(
        [
            min(
                (score[label] - score[other])
                / np.linalg.norm(weights[:, label] - weights[:, other])
                for other in range(CLASSES)
                if other != label
            )
            for score, label in zip(scores, y.numpy(), strict=True)
        ]
    )
    found = sizes(x_adv - x, "l2")
    assert np.all(found >= nearest * (1 - 1e-4))
    # The steps of Adam end slightly farther away.
    assert np.all(found <= nearest * 1.2 + 0.06)


def test_spsa_without_gradients():
    smooth = linear()

    def stairs(x):
        return tf.round(50 * smooth(x)) / 50

    x, y = data(stairs)
    with pytest.raises(ValueError, match="no gradient flows"):
        cleverhans.PGD(0.1)(lambda x: tf.stop_gradient(stairs(x)), x, y)
    x_adv = make(cleverhans.SPSA, "linf", bounds=None)(stairs, x, y)
    assert np.mean(loss(stairs, x_adv, y) > loss(stairs, x, y)) > 0.8


def test_refusals():
    with pytest.raises(ValueError, match="Received: norm=linf"):
        cleverhans.CarliniWagner(0.1, norm="linf")
    with pytest.raises(ValueError, match="Received: norm=l2"):
        cleverhans.SPSA(0.1, norm="l2")
    with pytest.raises(ValueError, match="Received: norm=l1"):
        cleverhans.PGD(0.1, norm="l1")
    with pytest.raises(ValueError, match="bounds=None"):
        cleverhans.CarliniWagner(0.1, bounds=None)
    with pytest.raises(ValueError, match="step_size="):
        cleverhans.BIM(0.1, step_size=0.2)
    assert cleverhans.MIM(0.1, step_size=0.2).step_size == 0.2
    with pytest.raises(ValueError, match="steps=-1"):
        cleverhans.PGD(0.1, steps=-1)
    with pytest.raises(ValueError, match="samples=3"):
        cleverhans.SPSA(0.1, samples=3)
    with pytest.raises(ValueError, match="Received: colour=3"):
        tfsam.attacks.make(cleverhans.PGD, epsilon=0.1, colour=3)


@pytest.mark.parametrize("name", ["bim", "cw", "fgm", "mim", "pgd", "spsa"])
def test_by_name(name):
    name = f"cleverhans_{name}"
    if name not in tfsam.attacks.names():
        pytest.skip("tfsam is not installed: it has no entry points.")
    norm = "l2" if name == "cleverhans_cw" else "linf"
    attack = tfsam.attacks.get(name, epsilon=0.1, norm=norm, bounds=(0.0, 1.0))
    assert type(attack).__module__ == "tfsam.attacks.adapters.cleverhans"
    with pytest.raises(ValueError, match="Received: colour=3"):
        tfsam.attacks.get(name, epsilon=0.1, colour=3)


@pytest.mark.parametrize(("attack", "norm"), EVERY)
def test_saves_and_loads(attack, norm):
    attack = make(attack, norm)
    config = keras.saving.serialize_keras_object(attack)
    assert config["registered_name"] == (
        f"tfsam>Cleverhans{type(attack).__name__}"
    )
    again = keras.saving.deserialize_keras_object(config)
    assert repr(again) == repr(attack)


@pytest.mark.parametrize(("attack", "jit_compile"), TRACED)
def test_symbolic_weights_of_two_traces(attack, jit_compile):
    """As in a train step, the weights are tensors of the outer trace."""
    x, y = data(linear())
    attack = make(attack, "linf", steps=3)

    def outer(weights, x, y):
        weights = 2.0 * weights

        def function(x):
            return tf.matmul(tf.reshape(x, [-1, 32]), weights)

        return attack(Logits(function, jit_compile), x, y, 1)

    weights = tf.random.stateless_normal([32, CLASSES], [1, 2])
    expected = outer(weights, x, y)
    for _ in range(2):
        graph = tf.function(outer, autograph=False)
        for size in (BATCH, 2):
            np.testing.assert_allclose(
                graph(weights, x[:size], y[:size]), expected[:size], atol=1e-5
            )


@pytest.mark.parametrize(("attack", "norm"), KINDS)
def test_eager_attacks_say_so_in_a_graph(attack, norm):
    attack = make(attack, norm)
    logits_fn = network()
    x, y = data(logits_fn)
    graph = tf.function(lambda x, y: attack(logits_fn, x, y), autograph=False)
    if attack.in_graph:
        assert graph(x, y).shape == x.shape
    else:
        with pytest.raises(ValueError, match="runs eagerly"):
            graph(x, y)


@pytest.mark.parametrize(("attack", "jit_compile"), TRACED)
def test_traces_the_model_once(attack, jit_compile):
    inner = network()
    x, y = data(inner)
    traces = []

    def function(x):
        traces.append(x.shape)
        return inner(x)

    logits_fn = Logits(function, jit_compile)
    attacks = [attack(epsilon) for epsilon in (0.01, 0.02)]
    for attack in attacks:
        graph = tf.function(
            lambda x, y, a=attack: a(logits_fn, x, y), autograph=False
        )
        for _ in range(3):
            graph(x, y)
    # Shared by all attacks on the model.
    assert len(traces) == 1
    if jit_compile:
        attacks[0](logits_fn, x, y)
        assert len(traces) == 1


@pytest.mark.parametrize(("attack", "norm"), KINDS)
def test_frees_the_model(attack, norm):
    attack = make(attack, norm)

    def use():
        logits_fn = Logits(network())
        x, y = data(logits_fn)
        attack(logits_fn, x, y)
        if attack.in_graph:
            tf.function(lambda x, y: attack(logits_fn, x, y))(x, y)
        return weakref.ref(logits_fn)

    alive = use()
    gc.collect()
    assert alive() is None
