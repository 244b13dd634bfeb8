"""Direct calls of attacks are traced once, and a trace is never stale."""

import functools
import gc
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import counted_graphs

import tfsam
from tfsam import attacks
from tfsam.attacks import tracing
from tfsam.attacks.base import example_seeds

RNG = np.random.default_rng(0)
X = RNG.uniform(0.2, 0.8, (4, 6, 6, 1)).astype("float32")
Y = RNG.integers(0, 3, 4)
EPSILON = 0.1


def network():
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input(X.shape[1:]),
            keras.layers.Flatten(),
            keras.layers.Dense(32, activation="tanh"),
            keras.layers.Dense(3),
        ]
    )


@pytest.fixture(scope="module")
def model():
    return network()


def eager(attack, logits_fn, x=X, y=Y, seed=0):
    """Calls an attack without a trace."""
    tf.config.run_functions_eagerly(True)
    try:
        return attack(logits_fn, x, y, seed).numpy()
    finally:
        tf.config.run_functions_eagerly(False)


def assert_like_eager(attack, logits_fn, **given):
    found = attack(logits_fn, given.get("x", X), given.get("y", Y), 0).numpy()
    expected = eager(attack, logits_fn, **given)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    return found


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("pgd", {"steps": 3}),
        ("fmn", {"steps": 3, "norm": "l2"}),
        ("cleverhans_pgd", {"steps": 2}),
    ],
)
def test_the_second_call_traces_nothing(name, options, model, monkeypatch):
    attack = attacks.get(name, epsilon=EPSILON, **options)
    with counted_graphs() as graphs:
        first = attack(lambda x: model(x), X, Y, 0).numpy()
        assert graphs
        np.testing.assert_allclose(
            first, eager(attack, lambda x: model(x)), atol=1e-6
        )

    calls = []
    call = keras.layers.Dense.call

    def counting(self, *arguments, **options):
        calls.append(1)
        return call(self, *arguments, **options)

    def again():
        # A new function of the same code, and a new attack of the same kind.
        made = attacks.get(name, epsilon=EPSILON, **options)
        return made(lambda x: model(x), X, Y, 0).numpy()

    again()
    monkeypatch.setattr(keras.layers.Dense, "call", counting)
    with counted_graphs() as graphs:
        np.testing.assert_array_equal(again(), first)
        assert not graphs
    assert not calls  # No layer is called in Python.


def test_one_trace_serves_all_epsilons_seeds_and_weights():
    model = network()
    attack = tfsam.PGD(EPSILON, steps=2)
    first = attack(model, X, Y, 0)
    model.layers[-1].kernel.assign(-model.layers[-1].kernel)
    with counted_graphs() as graphs:
        wider = attack.with_epsilon(2 * EPSILON)(model, X, Y, 0)
        other = attack(model, X, Y, tf.constant([1, 2]))
        rows = attack(model, X, Y, example_seeds(0, 4))
        changed = attack(model, X, Y, 0)
        assert not graphs
    np.testing.assert_array_equal(rows, changed)
    for found in (first, wider, other):
        assert np.any(found != changed)
    assert np.abs(wider - X).max() > 1.5 * EPSILON
    np.testing.assert_allclose(changed, eager(attack, model), atol=1e-6)


def test_dtypes_shapes_and_labels(model):
    attack = tfsam.PGD(EPSILON, norm="l2", steps=2)
    whole = assert_like_eager(attack, model)
    one_hot = np.eye(3, dtype="float32")[Y]
    part = attack(model, X[:2], one_hot[:2], 0)
    np.testing.assert_allclose(part, whole[:2], atol=1e-5)
    half = attack(model, X.astype("float16"), Y, 0)
    assert half.dtype == tf.float16
    start = attack(model, X, Y, 0, start=X)
    assert np.any(start != whole)


def test_a_trace_dies_with_its_network():
    gc.collect()
    before = len(tracing._traces)
    model = network()
    logits_fn = functools.partial(model, training=False)
    tfsam.PGD(EPSILON, steps=2)(logits_fn, X, Y, 0)
    assert len(tracing._traces) == before + 1
    assert next(reversed(tracing._traces._traces.values()))[0] is not None
    references = weakref.ref(model), weakref.ref(logits_fn)
    del model, logits_fn
    gc.collect()
    assert [reference() for reference in references] == [None, None]
    assert len(tracing._traces) == before


def test_few_traces_are_kept(monkeypatch, model):
    traces = tracing._Traces()
    monkeypatch.setattr(tracing, "_MOST", 2)
    for name in "abc":
        traces.put(name, abs, [model])
    assert len(traces) == 2
    assert traces.get("a") == (False, None)
    assert traces.get("c") == (True, abs)


def test_what_a_function_closes_over_is_not_frozen(model):
    attack = tfsam.PGD(EPSILON, steps=2)
    scale, shift, settings = np.ones(1, "float32"), 0.0, {"sign": 1.0}

    def logits_fn(x):
        return settings["sign"] * model(scale * x + shift)

    def result():
        return assert_like_eager(attack, logits_fn)

    first = result()
    scale[0] = 0.5
    second = result()
    shift = 2.0
    third = result()
    settings["sign"] = -1.0
    found = [first, second, third, result()]
    assert len({image.tobytes() for image in found}) == 4


def test_a_changed_attack_and_a_changed_layer_are_traced_again():
    model, attack = network(), tfsam.PGD(EPSILON, steps=2)
    found = [assert_like_eager(attack, model)]
    attack.random_start = False
    found.append(assert_like_eager(attack, model))
    model.layers[1].activation = keras.activations.softsign
    found.append(assert_like_eager(attack, model))
    model.layers[1].activation = lambda x: -x
    found.append(assert_like_eager(attack, model))
    assert len({image.tobytes() for image in found}) == 4


def test_a_function_with_side_effects_runs_eagerly(model):
    calls, noise = [], np.random.default_rng(0)

    def counting(x):
        calls.append(1)
        return model(x)

    def noisy(x):
        return model(x + noise.normal(0, 1, X.shape))

    attack = tfsam.PGD(EPSILON, steps=3)
    for expected in (3, 6):
        attack(counting, X, Y, 0)
        assert len(calls) == expected
    assert np.any(attack(noisy, X, Y, 0) != attack(noisy, X, Y, 0))


def test_random_layers_stay_random():
    model = keras.Sequential([network(), keras.layers.Dropout(0.5)])
    attack = tfsam.PGD(EPSILON, steps=2, random_start=False)

    def logits_fn(x):
        return model(x, training=True)

    first, second = (attack(logits_fn, X, Y, 0) for _ in range(2))
    assert np.any(first != second)


def test_errors_are_those_of_an_eager_call(model):
    attack = tfsam.PGD(EPSILON, steps=2)
    attack(model, X, Y, 0)
    with pytest.raises(ValueError, match=r"x must lie in bounds=\(0.0, 1.0\)"):
        attack(model, X + 1, Y, 0)

    def rounded(x):
        return model(tf.cast(tf.cast(x, tf.int32), tf.float32))

    with pytest.raises(ValueError, match="differentiable") as error:
        attack(rounded, X, Y, 0)
    assert len(str(error.value).splitlines()) == 1

    def checked(x):
        tf.debugging.assert_less(x, 0.5)
        return model(x)

    with pytest.raises(tf.errors.InvalidArgumentError) as error:
        attack(checked, X, Y, 0)
    assert "Graph execution" not in str(error.value)


def test_a_tape_records_no_attack(model):
    attack = tfsam.PGD(EPSILON, steps=2)
    expected = attack(model, X, Y, 0)
    with counted_graphs() as graphs, tf.GradientTape() as tape:
        found = attack(model, X, Y, 0)
        total = tf.reduce_sum(model(found))
        assert not graphs
    np.testing.assert_array_equal(found, expected)
    slopes = tape.gradient(total, model.trainable_variables)
    assert all(slope is not None for slope in slopes)


def test_settings_of_logits_are_kept(model):
    attack = tfsam.PGD(EPSILON, steps=2)
    logits = attacks.Logits(model, rows=2)
    logits.count_passes()
    right = tf.constant([True, False, True, True])
    for some in (right, ~right):
        logits.count_passes()
        found = attack(logits.only(some), X, Y, 0)
        moved = np.any(found != X, axis=(1, 2, 3))
        np.testing.assert_array_equal(moved, some)
        count = np.count_nonzero(some)
        assert logits.counted().passes.tolist() == [0, 2 * count]


def test_a_saved_model_is_traced(model, tmp_path):
    model.export(tmp_path / "saved", verbose=False)
    loaded = tf.saved_model.load(tmp_path / "saved")
    attack = tfsam.PGD(EPSILON, steps=2)
    expected = attack(model, X, Y, 0)
    np.testing.assert_allclose(
        attack(loaded.serve, X, Y, 0), expected, atol=1e-6
    )
    with counted_graphs() as graphs:
        attack(loaded.serve, X, Y, 0)
        assert not graphs


def test_a_training_step_that_runs_eagerly_traces_no_attack(model, monkeypatch):
    """Each step attacks another function: traces would not be used again."""

    def refuse(*_):
        pytest.fail("the attack was traced")

    monkeypatch.setattr(tracing, "_traced", refuse)
    made = tfsam.RobustModel(model, tfsam.PGD(EPSILON, steps=2), seed=0)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    made.compile(tfsam.SGD(0.0), loss, run_eagerly=True)
    assert np.isfinite(made.train_on_batch(X, Y))
    with pytest.raises(pytest.fail.Exception, match="was traced"):
        tfsam.PGD(EPSILON, steps=2)(lambda x: model(x), X, Y, 0)
