"""The training step: identities with Keras's own, closed forms, habits."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import slow

import tfsam

RNG = np.random.default_rng(0)
X = RNG.random((12, 4, 4, 1), dtype="float32")
Y = RNG.integers(0, 3, 12)
SAMPLE_WEIGHT = RNG.random(12).astype("float32")
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def layers(dropout=0.3):
    """BatchNorm, dropout, a kernel and an activity regulariser."""
    return [
        keras.layers.Conv2D(4, 3, kernel_regularizer="l2"),
        keras.layers.BatchNormalization(momentum=0.9),
        keras.layers.ReLU(activity_regularizer=keras.regularizers.L1(0.01)),
        keras.layers.Dropout(dropout, seed=1),
        keras.layers.Flatten(),
        keras.layers.Dense(3),
    ]


def functional(dropout=0.3):
    inputs = outputs = keras.Input((4, 4, 1))
    for layer in layers(dropout):
        outputs = layer(outputs)
    return keras.Model(inputs, outputs)


def sequential():
    return keras.Sequential([keras.Input((4, 4, 1)), *layers()])


class Subclassed(keras.Model):
    """Without `training` in call, and not built before fit."""

    def __init__(self):
        super().__init__()
        self.parts = layers()

    def call(self, inputs):
        for layer in self.parts:
            inputs = layer(inputs)
        return inputs


def without_dropout():
    """XLA draws other random numbers than a graph does."""
    return functional(dropout=0.0)


class Wrapped(keras.Model):
    """Keras trains this network in training mode, but not `Subclassed`."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def call(self, inputs, training=None):
        return self.network(inputs)


def small(kind=functional, seed=0):
    keras.utils.set_random_seed(seed)
    return kind()


def compiled(model, **kwargs):
    kwargs.setdefault("optimizer", tfsam.SGD(0.1, momentum=0.9))
    kwargs.setdefault("loss", LOSS)
    model.compile(metrics=["accuracy"], **kwargs)
    return model


def fitted(model, *, epochs=2, x=X, y=Y, fit=None, **kwargs):
    """Histories and the network's variables after a few steps."""
    fit = {"sample_weight": SAMPLE_WEIGHT} if fit is None else fit
    history = compiled(model, **kwargs).fit(
        x, y, batch_size=6, epochs=epochs, shuffle=False, verbose=0, **fit
    )
    network = getattr(model, "network", model)
    return history.history, [v.numpy() for v in network.variables]


def assert_equal(found, expected, atol=0.0):
    for key, values in expected[0].items():
        np.testing.assert_allclose(
            found[0][key], values, atol=atol, rtol=atol, err_msg=key
        )
    for one, other in zip(found[1], expected[1], strict=True):
        np.testing.assert_allclose(one, other, atol=atol, rtol=0)


NOTHING = {
    "no perturbation": {},
    "rho = 0": {"perturb_weights": tfsam.SAM(0.0)},
    "rho = 0, adaptive": {"perturb_weights": tfsam.ASAM(0.0)},
    "epsilon = 0": {"perturb_inputs": tfsam.PGD(0.0, steps=2)},
    "both 0, l2": {
        "perturb_inputs": tfsam.PGD(0.0, norm="l2", steps=2),
        "perturb_weights": tfsam.SAM(0.0),
    },
}


@functools.cache
def by_keras(kind, run_eagerly):
    """Trains a network by Keras's own step."""
    return fitted(Wrapped(small(kind)), run_eagerly=run_eagerly)


@pytest.mark.parametrize(
    ("kind", "nothing"),
    [
        (functional, "no perturbation"),
        (functional, "rho = 0"),
        slow(functional, "rho = 0, adaptive"),
        (functional, "epsilon = 0"),
        (functional, "both 0, l2"),
        slow(sequential, "both 0, l2"),
        (Subclassed, "both 0, l2"),
    ],
)
def test_no_perturbation_is_keras_own_step_eagerly(kind, nothing):
    expected = by_keras(kind, run_eagerly=True)
    model = tfsam.RobustModel(small(kind), **NOTHING[nothing])
    assert_equal(fitted(model, run_eagerly=True), expected)


@pytest.mark.parametrize(
    ("kind", "nothing", "jit_compile"),
    [
        (functional, "both 0, l2", False),
        slow(Subclassed, "both 0, l2", False),
        slow(without_dropout, "both 0, l2", True),
    ],
)
def test_no_perturbation_is_keras_own_step_compiled(kind, nothing, jit_compile):
    expected = by_keras(kind, run_eagerly=False)
    model = tfsam.RobustModel(small(kind), **NOTHING[nothing])
    assert_equal(fitted(model, jit_compile=jit_compile), expected, 1e-6)


@pytest.mark.parametrize(
    "variant",
    [
        {"optimizer": keras.optimizers.Adam},
        {
            "optimizer": lambda: keras.optimizers.SGD(
                0.1, gradient_accumulation_steps=2
            )
        },
        {
            "optimizer": lambda: keras.optimizers.SGD(
                0.1, use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=2
            )
        },
        {"optimizer": lambda: keras.optimizers.SGD(0.1, clipnorm=0.1)},
        {"steps_per_execution": 2},
        {"fit": {"class_weight": {0: 1.0, 1: 2.0, 2: 0.5}}},
        {"fit": {"validation_split": 0.5}},
    ],
    ids=["adam", "accumulation", "ema", "clip", "steps", "class", "validation"],
)
def test_keras_features_act_as_in_keras_own_step(variant):
    def run(model):
        # Eager steps are quicker here; of several at once they are no test.
        options = {"run_eagerly": "steps_per_execution" not in variant}
        options |= variant
        if "optimizer" in options:
            options["optimizer"] = options["optimizer"]()
        return fitted(model, **options)

    model = tfsam.RobustModel(small(), **NOTHING["both 0, l2"])
    assert_equal(run(model), run(small()), 1e-6)


def test_dict_losses_are_counted_once():
    def network():
        keras.utils.set_random_seed(0)
        inputs = keras.Input((4, 4, 1))
        x = keras.layers.Flatten()(inputs)
        return keras.Model(
            inputs,
            {
                "a": keras.layers.Dense(3, name="a")(x),
                "b": keras.layers.Dense(1, name="b")(x),
            },
        )

    def run(model):
        model.compile(
            tfsam.SGD(0.1),
            {"a": LOSS, "b": "mse"},
            loss_weights={"a": 1.0, "b": 0.5},
            metrics={"a": ["accuracy"]},
            run_eagerly=True,
        )
        history = model.fit(
            X,
            {"a": Y, "b": Y.astype("float32")},
            batch_size=6,
            epochs=2,
            shuffle=False,
            verbose=0,
        )
        network = getattr(model, "network", model)
        return history.history, [v.numpy() for v in network.variables]

    expected = run(network())
    assert "b_loss" in expected[0]
    model = tfsam.RobustModel(network(), perturb_weights=tfsam.SAM(0.0))
    assert_equal(run(model), expected)


@pytest.mark.parametrize(
    "method",
    [
        "at_sam",
        *map(slow, ("sam", "asam", "at")),
    ],
)
def test_eager_graph_and_xla_agree(method):
    attack = tfsam.PGD(0.1, norm="l2", steps=2) if "at" in method else None
    weights = {"sam": tfsam.SAM(0.1), "asam": tfsam.ASAM(0.5)}.get(
        method.removeprefix("at_")
    )
    results = [
        fitted(
            tfsam.RobustModel(small(without_dropout), attack, weights, seed=3),
            **mode,
        )
        for mode in (
            {"run_eagerly": True},
            {"jit_compile": False},
            {"jit_compile": True},
        )
    ]
    assert_equal(results[1], results[0], 1e-5)
    assert_equal(results[2], results[0], 1e-5)
    plain = fitted(small(without_dropout), run_eagerly=True)
    moved = np.abs(results[0][1][0] - plain[1][0]).max()
    assert moved > 1e-4, "the method must do something"


def linear(weights):
    """A linear model without bias on flat inputs, with mean squared error."""
    network = keras.Sequential(
        [keras.Input((2,)), keras.layers.Dense(1, use_bias=False)]
    )
    network.set_weights([np.array(weights, "float32")[:, None]])
    return network


def step_by_hand(w, x, y, rho, size=None):
    """One SAM step on mean squared error, learning rate 0.1, in float64."""

    def gradient(w):
        return 2 * x.T @ (x @ w - y) / len(x)

    g = gradient(w)
    size = np.ones_like(w) if size is None else size
    perturbation = rho * size**2 * g / np.linalg.norm(size * g)
    return w - 0.1 * gradient(w + perturbation)


@pytest.mark.parametrize(
    ("perturb_weights", "size"),
    [
        (tfsam.ASAM(0.5, eta=0, adaptive="all"), np.array([1.0, 2.0])),
    ],
)
def test_one_step_by_hand(perturb_weights, size):
    x = np.array([[1.0, 2.0], [3.0, -1.0], [0.5, 0.2]])
    y = np.array([1.0, -1.0, 2.0])
    w = np.array([1.0, -2.0])
    model = tfsam.RobustModel(linear(w), perturb_weights=perturb_weights)
    model.compile(tfsam.SGD(0.1), "mse", run_eagerly=True)
    model.train_on_batch(x.astype("float32"), y.astype("float32")[:, None])
    expected = step_by_hand(w, x, y, 0.5, size)
    found = model.network.get_weights()[0][:, 0]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert np.abs(expected - step_by_hand(w, x, y, 0.0)).max() > 0.01


def test_adversarial_training_by_hand():
    """Logistic regression: the l-inf worst case is known."""
    network = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
    w = np.array([[1.0, -1.0], [-0.5, 0.5]], "float32")
    network.set_weights([w, np.zeros(2, "float32")])
    x = np.array([[0.3, 0.6], [0.5, 0.4]], "float32")
    y = np.array([0, 1])
    model = tfsam.RobustModel(network, tfsam.FGSM(0.1))
    model.compile(tfsam.SGD(0.1), LOSS)
    loss = model.train_on_batch(x, y)
    signs = np.where(y == 0, -1, 1)[:, None] * np.sign(w[:, 0] - w[:, 1])
    x_adv = x + 0.1 * signs
    logits = x_adv @ w
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(loss, -np.log(p[[0, 1], y]).mean(), rtol=1e-6)
    p[[0, 1], y] -= 1
    np.testing.assert_allclose(
        network.get_weights()[0], w - 0.1 * x_adv.T @ p / 2, rtol=1e-5
    )


@keras.saving.register_keras_serializable(package="test")
class Penalised(keras.layers.Layer):
    """Adds 0.5 ||w||^2 as a loss of the layer."""

    def build(self, input_shape):
        self.w = self.add_weight(shape=(2,), initializer="ones")

    def call(self, inputs):
        self.add_loss(0.5 * keras.ops.sum(self.w**2))
        return inputs


def test_layer_losses_are_perturbed_too():
    """Of the loss 0.5 ||w||^2 alone, SAM's gradient is w + rho w / ||w||."""
    network = keras.Sequential(
        [keras.Input((2,)), Penalised(), keras.layers.Dense(1)]
    )
    network.layers[-1].trainable = False
    model = tfsam.RobustModel(network, perturb_weights=tfsam.SAM(0.5))
    model.compile(
        tfsam.SGD(0.1), lambda y, y_pred: 0.0 * y_pred, run_eagerly=True
    )
    model.train_on_batch(np.ones((3, 2)), np.ones((3, 1)))
    expected = 1 - 0.1 * (1 + 0.5 / np.sqrt(2))
    np.testing.assert_allclose(network.layers[0].w, expected, rtol=1e-6)


def test_regularisers_are_perturbed_too():
    network = keras.Sequential(
        [
            keras.Input((2,)),
            keras.layers.Dense(
                1, use_bias=False, kernel_regularizer=keras.regularizers.L2(0.5)
            ),
        ]
    )
    network.set_weights([np.ones((2, 1))])
    model = tfsam.RobustModel(network, perturb_weights=tfsam.SAM(0.5))
    model.compile(
        tfsam.SGD(0.1), lambda y, y_pred: 0.0 * y_pred, run_eagerly=True
    )
    model.train_on_batch(np.ones((3, 2)), np.ones((3, 1)))
    expected = 1 - 0.1 * (1 + 0.5 / np.sqrt(2))
    np.testing.assert_allclose(network.get_weights()[0], expected, rtol=1e-6)


def nontrainable(model):
    return [v.numpy() for v in model.network.non_trainable_variables]


@pytest.mark.parametrize("jit_compile", [False, slow(True)])
def test_statistics_and_seeds_come_from_the_first_pass(jit_compile):
    states = []
    for rho in (None, 0.5):
        weights = None if rho is None else tfsam.SAM(rho)
        model = tfsam.RobustModel(small(), perturb_weights=weights)
        compiled(model, jit_compile=jit_compile).train_on_batch(X, Y)
        states.append(nontrainable(model))
    before = nontrainable(tfsam.RobustModel(small()))
    assert any((b != s).any() for b, s in zip(before, states[0], strict=True))
    for one, other in zip(*states, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


def test_an_attack_moves_no_variable():
    def attack(logits_fn, x, y, seed):
        for _ in range(3):
            logits_fn(x + 0.2)
        return x + 0.1

    found, expected = (
        compiled(tfsam.RobustModel(small(), part), run_eagerly=True)
        for part in (attack, None)
    )
    found.train_on_batch(X, Y)
    expected.train_on_batch(X + 0.1, Y)
    for one, other in zip(
        found.network.variables, expected.network.variables, strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-7)


def test_the_attack_sees_inference_mode():
    seen = []

    def attack(logits_fn, x, y, seed):
        seen.append(logits_fn(x).numpy())
        return x

    model = compiled(tfsam.RobustModel(small(), attack), run_eagerly=True)
    expected = model.network(X, training=False).numpy()
    model.train_on_batch(X, Y)
    np.testing.assert_allclose(seen[0], expected, atol=1e-6)


def test_soft_labels_reach_the_attack():
    one_hot = keras.utils.to_categorical(Y, 3)
    soft = keras.losses.CategoricalCrossentropy(from_logits=True)
    attack = tfsam.PGD(0.1, norm="l2", steps=2)

    def run(**options):
        model = tfsam.RobustModel(small(), attack, seed=0)
        return fitted(model, epochs=1, fit={}, run_eagerly=True, **options)

    hard = run()
    assert_equal(run(y=one_hot, loss=soft), hard, 1e-5)
    smooth = run(y=0.7 * one_hot + 0.1, loss=soft)
    assert np.abs(smooth[1][0] - hard[1][0]).max() > 1e-4


def test_exclude_keeps_weights_out_of_the_perturbation():
    """An excluded layer is trained at its own weights: e is 0 there."""

    def run(**kwargs):
        keras.utils.set_random_seed(0)
        network = keras.Sequential(
            [
                keras.Input((4, 4, 1)),
                keras.layers.Flatten(),
                keras.layers.Dense(5, name="first"),
                keras.layers.Dense(3, name="second"),
            ]
        )
        seen = {}

        class Spy(tfsam.WeightPerturbation):
            def perturb(self, weights, gradients, state, step):
                seen["kinds"] = list(step.kinds)
                seen["shapes"] = [tuple(w.shape) for w in weights]
                return weights, state

        model = tfsam.RobustModel(network, perturb_weights=Spy(), **kwargs)
        compiled(model, run_eagerly=True).train_on_batch(X, Y)
        return seen

    assert run()["kinds"] == ["kernel", "bias", "kernel", "bias"]
    assert run(exclude="second")["shapes"] == [(16, 5), (5,)]
    assert run(exclude=["bias", "first/kernel"])["shapes"] == [(5, 3)]
    with pytest.raises(ValueError, match="Received: exclude=third"):
        run(exclude="third")


def test_frozen_layers_stay():
    network = small()
    network.layers[1].trainable = False
    model = tfsam.RobustModel(
        network, tfsam.PGD(0.1, steps=1), perturb_weights=tfsam.SAM(0.1)
    )
    before = network.layers[1].get_weights()
    compiled(model, run_eagerly=True).train_on_batch(X, Y)
    for one, other in zip(before, network.layers[1].get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_pixels_out_of_the_attack_s_bounds_are_refused():
    model = compiled(tfsam.RobustModel(small(), tfsam.PGD(0.1, steps=1)))
    with pytest.raises(tf.errors.InvalidArgumentError, match="bounds"):
        model.fit(X * 255, Y, verbose=0)
    free = tfsam.PGD(0.0, steps=1, bounds=None)
    options = {"x": X * 255, "epochs": 1, "run_eagerly": True}
    found = fitted(tfsam.RobustModel(small(), free), **options)
    assert_equal(found, fitted(small(), **options), 1e-6)


@pytest.mark.parametrize("bounds", [(0.0, 1.0), None])
def test_pixels_that_are_no_floats_are_refused_under_attack(bounds):
    model = compiled(
        tfsam.RobustModel(functional(), tfsam.FGSM(0.1, bounds=bounds))
    )
    message = r"floating-point dtype, .* Received: x.dtype=uint8"
    with pytest.raises(ValueError, match=message):
        model.fit((255 * X).astype("uint8"), Y, verbose=0)


def test_a_stateful_layer_is_refused():
    network = keras.Sequential(
        [keras.Input((3, 2), batch_size=4), keras.layers.GRU(2, stateful=True)]
    )
    with pytest.raises(ValueError, match="Received: layer=gru"):
        tfsam.RobustModel(network)


def test_a_state_goes_with_the_weights_it_was_made_for():
    class Counting(tfsam.WeightPerturbation):
        def init(self, weights, seed):
            return [np.zeros(w.shape, "float32") for w in weights]

        def perturb(self, weights, gradients, state, step):
            return weights, state

    model = tfsam.RobustModel(small(), perturb_weights=Counting())
    model.network.layers[1].trainable = False
    with pytest.raises(ValueError, match="make a new one"):
        compiled(model).train_on_batch(X, Y)


def test_nothing_to_train_or_perturb():
    network = small()
    with pytest.raises(ValueError, match="leave weights to perturb"):
        tfsam.RobustModel(network, perturb_weights=tfsam.SAM(), exclude=".*")
    network.trainable = False
    before = network.get_weights()
    model = tfsam.RobustModel(network, perturb_weights=tfsam.SAM())
    with pytest.warns(UserWarning, match="no trainable weights"):
        compiled(model).train_on_batch(X, Y)
    for one, other in zip(before, network.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("jit_compile", [False, slow(True)])
def test_masks_reach_weighted_metrics(jit_compile):
    def network():
        keras.utils.set_random_seed(0)
        return keras.Sequential(
            [
                keras.Input((5,), dtype="int32"),
                keras.layers.Embedding(7, 4, mask_zero=True),
                keras.layers.SimpleRNN(4, return_sequences=True),
                keras.layers.Dense(3),
            ]
        )

    tokens = RNG.integers(0, 3, (12, 5))
    labels = RNG.integers(0, 3, (12, 5))

    def run(model):
        model.compile(
            tfsam.SGD(0.1),
            LOSS,
            weighted_metrics=["accuracy"],
            jit_compile=jit_compile and hasattr(model, "network"),
            run_eagerly=not jit_compile,
        )
        return model.fit(tokens, labels, epochs=2, shuffle=False, verbose=0)

    expected = run(network()).history
    found = run(tfsam.RobustModel(network(), perturb_weights=tfsam.SAM(0.0)))
    for key, values in expected.items():
        np.testing.assert_allclose(found.history[key], values, rtol=1e-5)


def softmaxed():
    inputs = keras.Input((4, 4, 1))
    x = keras.layers.Flatten()(inputs)
    return keras.Model(inputs, keras.layers.Dense(3, activation="softmax")(x))


PROBABILITIES = keras.losses.SparseCategoricalCrossentropy()


@pytest.mark.parametrize(
    ("kind", "loss", "attack", "message"),
    [
        (functional, PROBABILITIES, None, "from_logits=True"),
        (functional, "sparse_categorical_crossentropy", None, "from_logits"),
        (Subclassed, PROBABILITIES, tfsam.FGSM(0.1), "from_logits=True"),
        (softmaxed, PROBABILITIES, tfsam.FGSM(0.1), "returns logits"),
    ],
)
def test_a_loss_of_probabilities_is_refused_on_logits(
    kind, loss, attack, message
):
    model = tfsam.RobustModel(kind(), attack, tfsam.SAM(0.1))
    with pytest.raises(ValueError, match=message):
        compiled(model, loss=loss).train_on_batch(X, Y)


def test_a_subclassed_network_of_logits_is_found_out_by_its_values():
    model = tfsam.RobustModel(Subclassed(), perturb_weights=tfsam.SAM(0.1))
    with pytest.raises(tf.errors.InvalidArgumentError, match="from_logits"):
        compiled(model, loss=PROBABILITIES).fit(X, Y, verbose=0)


@pytest.mark.parametrize("ending", [keras.ops.softmax, keras.layers.Softmax()])
def test_other_endings_in_probabilities_are_fine(ending):
    inputs = keras.Input((4, 4, 1))
    x = keras.layers.Dense(3)(keras.layers.Flatten()(inputs))
    x = keras.layers.Reshape((3,))(ending(x))
    model = tfsam.RobustModel(
        keras.Model(inputs, x), perturb_weights=tfsam.SAM(0.1)
    )
    compiled(model, loss=PROBABILITIES, run_eagerly=True)
    loss = model.train_on_batch(X, Y)
    assert np.isfinite(loss).all()


def test_probabilities_with_their_loss_are_fine_without_an_attack():
    model = tfsam.RobustModel(softmaxed(), perturb_weights=tfsam.SAM(0.1))
    compiled(model, loss=PROBABILITIES, run_eagerly=True)
    loss = model.train_on_batch(X, Y)
    assert np.isfinite(loss).all()


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("jit_compile", [False, True])
def test_mixed_precision(policy, jit_compile):
    keras.config.set_dtype_policy(policy)
    try:
        network = tfsam.networks.preact_resnet8(3, input_shape=(4, 4, 1))
        model = tfsam.RobustModel(
            network, tfsam.PGD(0.1, steps=2), tfsam.SAM(0.1)
        )
    finally:
        keras.config.set_dtype_policy("float32")
    before = network.get_weights()
    compiled(model, jit_compile=jit_compile)
    scaled = type(model.optimizer).__name__ == "LossScaleOptimizer"
    assert scaled == (policy == "mixed_float16")
    losses = [model.train_on_batch(X, Y)[0] for _ in range(5)]
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0]
    assert np.abs(network.get_weights()[0] - before[0]).max() > 0


def test_loss_scaling_does_not_change_the_perturbation():
    """Unscaled for methods that are not scale free."""

    class Spy(tfsam.WeightPerturbation):
        def perturb(self, weights, gradients, state, step):
            tf.debugging.assert_all_finite(gradients[0], "finite")
            self.__dict__["seen"] = gradients[0].numpy()
            return weights, state

    seen = []
    for factor in (None, 1024.0):
        spy = Spy()
        model = tfsam.RobustModel(small(), perturb_weights=spy)
        optimizer = keras.optimizers.SGD(0.1, loss_scale_factor=factor)
        compiled(model, optimizer=optimizer, run_eagerly=True)
        model.train_on_batch(X, Y)
        seen.append((spy.seen, model.network.get_weights()[0]))
    np.testing.assert_allclose(seen[0][0], seen[1][0], rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(seen[0][1], seen[1][1], rtol=1e-4, atol=1e-7)


def test_save_load_and_go_on(tmp_path):
    def make():
        model = tfsam.RobustModel(
            small(),
            tfsam.PGD(0.1, norm="l2", steps=2),
            tfsam.ASAM(0.3, eta=0.2, adaptive="all"),
            sharpness="global",
            exclude=["bias"],
            seed=5,
        )
        optimizer = tfsam.SGD(0.1, momentum=0.9, weight_decay=5e-4)
        return compiled(model, optimizer=optimizer, run_eagerly=True)

    halted = make()
    halted.fit(X, Y, epochs=2, shuffle=False, verbose=0)
    halted.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    for key in ("sharpness", "exclude", "seed", "objective"):
        assert loaded.get_config()[key] == halted.get_config()[key]
    assert loaded.perturb_inputs.get_config() == (
        halted.perturb_inputs.get_config()
    )
    assert repr(loaded.perturb_weights) == repr(halted.perturb_weights)
    assert loaded.optimizer.get_config() == halted.optimizer.get_config()
    np.testing.assert_array_equal(
        loaded.predict(X, verbose=0), halted.predict(X, verbose=0)
    )
    # Dropout's own seeds are Keras's to save; it does not.
    assert int(loaded.step_count) == 2
    loaded.fit(X, Y, epochs=2, shuffle=False, verbose=0)
    assert int(loaded.step_count) == 4


@pytest.mark.slow
def test_going_on_after_loading_is_exact(tmp_path):
    def make():
        keras.utils.set_random_seed(0)
        network = tfsam.networks.preact_resnet8(3, input_shape=(4, 4, 1))
        model = tfsam.RobustModel(
            network, tfsam.PGD(0.1, steps=2), tfsam.SAM(0.1), seed=5
        )
        return compiled(
            model, optimizer=tfsam.SGD(0.1, momentum=0.9, weight_decay=5e-4)
        )

    straight = make()
    straight.fit(X, Y, batch_size=6, epochs=4, shuffle=False, verbose=0)
    halted = make()
    halted.fit(X, Y, batch_size=6, epochs=2, shuffle=False, verbose=0)
    halted.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    loaded.fit(X, Y, batch_size=6, epochs=2, shuffle=False, verbose=0)
    for one, other in zip(
        straight.network.variables, loaded.network.variables, strict=True
    ):
        np.testing.assert_array_equal(one, other)


def test_the_inner_network_loads_without_tfsam_objects(tmp_path):
    network = tfsam.networks.preact_resnet8(3, input_shape=(4, 4, 1))
    network.save(tmp_path / "network.keras")
    loaded = keras.saving.load_model(tmp_path / "network.keras")
    np.testing.assert_array_equal(loaded(X), network(X))


def test_callbacks(tmp_path):
    model = tfsam.RobustModel(small(), perturb_weights=tfsam.SAM(0.1))
    optimizer = keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.5)
    history = compiled(model, optimizer=optimizer, run_eagerly=True).fit(
        X,
        Y,
        epochs=6,
        validation_data=(X, Y),
        callbacks=[
            keras.callbacks.BackupAndRestore(tmp_path / "backup"),
            keras.callbacks.EarlyStopping("val_loss", patience=1, min_delta=9),
            keras.callbacks.ModelCheckpoint(tmp_path / "best.keras"),
            keras.callbacks.SwapEMAWeights(),
        ],
        verbose=0,
    )
    assert len(history.history["loss"]) == 2
    assert (tmp_path / "best.keras").exists()


def test_traced_once_for_a_shape():
    traces = []

    def attack(logits_fn, x, y, seed):
        traces.append(1)
        return x

    model = compiled(tfsam.RobustModel(small(), attack, tfsam.SAM(0.1)))
    model.fit(X, Y, batch_size=6, epochs=3, verbose=0)
    assert len(traces) <= 2


def test_noise_is_new_each_step_and_seeded():
    def losses(seed, run_eagerly=True):
        model = tfsam.RobustModel(
            small(), tfsam.PGD(0.3, steps=0), tfsam.SAM(0.0), seed=seed
        )
        compiled(model, optimizer=tfsam.SGD(0.0), run_eagerly=run_eagerly)
        return [float(model.train_on_batch(X, Y)[0]) for _ in range(3)]

    found = losses(0)
    assert len(set(found)) == 3
    assert losses(0, run_eagerly=False) == pytest.approx(found, rel=1e-5)
    assert losses(1) != pytest.approx(found, rel=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"network": lambda x: x}, "network must be a keras.Model"),
        ({"perturb_inputs": 0.1}, "Received: perturb_inputs=0.1"),
        ({"perturb_weights": 0.1}, "Received: perturb_weights=0.1"),
        ({"sharpness": "local"}, "Received: sharpness=local"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        tfsam.RobustModel(**{"network": small(), **arguments})


def test_an_attack_that_cannot_run_in_a_graph_is_refused():
    class Outside(tfsam.attacks.Attack):
        in_graph = False

    with pytest.raises(ValueError, match="can run in a graph"):
        tfsam.RobustModel(small(), Outside(0.1))
