"""Custom layers train as in Keras's step, or are refused."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfsam

RNG = np.random.default_rng(0)
X = RNG.random((12, 6), dtype="float32")
Y = RNG.integers(0, 3, 12)
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


class Own(layers.Layer):
    """A kernel with a regulariser, so that it has a gradient in any case."""

    def build(self, input_shape):
        self.kernel = self.add_weight(
            shape=(input_shape[-1], 4), name="kernel", regularizer="l2"
        )

    def call(self, inputs):
        return inputs @ self.kernel


class Function(Own):
    """Its call is a `tf.function`, with control flow by AutoGraph."""

    @tf.function
    def call(self, inputs):
        if tf.reduce_sum(inputs) > 0:
            inputs = 2 * inputs
        return inputs @ self.kernel


class Compiled(Own):
    @tf.function(jit_compile=True)
    def call(self, inputs):
        return inputs @ self.kernel


@tf.function
def product(layer, inputs):
    return inputs @ layer.kernel


class Helper(Own):
    """Its weights are read in a function of the module."""

    def call(self, inputs):
        return product(self, inputs)


class Attribute(Own):
    """Its weights are read in a function that is its attribute."""

    def build(self, input_shape):
        super().build(input_shape)
        self.held = [tf.function(lambda inputs: inputs @ self.kernel)]

    def call(self, inputs):
        return self.held[0](inputs)


class Assigning(Own):
    """Reads its kernel before, between and after two assignments."""

    def call(self, inputs):
        first = inputs @ self.kernel
        self.kernel.assign(0.9 * self.kernel)
        second = inputs @ self.kernel
        self.kernel.assign(1.1 * tf.tanh(self.kernel))
        return first * second + inputs @ self.kernel


class Normalising(Own):
    """Assigns its kernel from a weight that so has no gradient, as in Keras."""

    def build(self, input_shape):
        self.scale = self.add_weight(shape=(4,), name="scale")
        super().build(input_shape)

    def call(self, inputs):
        self.kernel.assign(
            self.scale * tf.math.l2_normalize(self.kernel, axis=0)
        )
        return inputs @ self.kernel


class GlobalSeed(Own):
    """Draws by Keras's global seed, a variable of no layer."""

    def call(self, inputs):
        return inputs @ self.kernel + keras.random.normal((4,))


def rematerialised():
    with keras.RematScope("full"):
        return Own()


def with_lora():
    layer = layers.Dense(4)
    layer.build((None, 6))
    layer.enable_lora(2)
    return layer


def quantised_with_lora():
    layer = layers.Dense(4)
    layer.build((None, 6))
    layer.quantize("int8")
    layer.enable_lora(2)
    return layer


def in_float8():
    layer = layers.Dense(4)
    layer.build((None, 6))
    layer.quantize("float8")
    return layer


class Held(Own):
    """Reads the `tf.Variable` behind its kernel."""

    def build(self, input_shape):
        super().build(input_shape)
        self.held = self.kernel.value

    def call(self, inputs):
        return inputs @ self.held


class Traced(Own):
    """Reads its kernel in a graph that was traced before."""

    def build(self, input_shape):
        super().build(input_shape)
        function = tf.function(lambda inputs: inputs @ self.kernel)
        self.graph = function.get_concrete_function(tf.TensorSpec((None, 6)))

    def call(self, inputs):
        return self.graph(inputs)


class Remat(Own):
    """Runs its forward pass again for the gradient, by an older function."""

    def __init__(self):
        super().__init__()
        self.again = keras.remat(self.product)

    def product(self, inputs):
        return inputs @ self.kernel

    def call(self, inputs):
        return self.again(inputs)


class Counting(Own):
    """Counts its calls in a variable that Keras cannot see."""

    def build(self, input_shape):
        super().build(input_shape)
        self.count = tf.Variable(0.0, trainable=False)

    def call(self, inputs):
        self.count.assign_add(1.0)
        return inputs @ self.kernel


def some(names, fast):
    return [
        name if name in fast else pytest.param(name, marks=pytest.mark.slow)
        for name in names
    ]


def network(make):
    keras.utils.set_random_seed(1)
    inputs = keras.Input((6,))
    return keras.Model(inputs, layers.Dense(3)(make()(inputs)))


def trained(model, **kwargs):
    """The network's variables, and which of the trainable ones moved."""
    inner = getattr(model, "network", model)
    before = [v.numpy() for v in inner.trainable_variables]
    kwargs = {"jit_compile": False} | kwargs
    model.compile(keras.optimizers.SGD(0.1), LOSS, **kwargs)
    model.fit(X, Y, batch_size=4, shuffle=False, verbose=0)
    after = [v.numpy() for v in inner.trainable_variables]
    moved = [(a != b).any() for a, b in zip(after, before, strict=True)]
    return [v.numpy() for v in inner.variables], moved


def assert_same(found, expected):
    for one, other in zip(found[0], expected[0], strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6, rtol=1e-6)


TRAINED = {
    "function": Function,
    "compiled": Compiled,
    "helper": Helper,
    "attribute": Attribute,
    "assigning": Assigning,
    "normalising": Normalising,
    "global_seed": GlobalSeed,
    "rematerialised": rematerialised,
    "lora": with_lora,
    "quantised": quantised_with_lora,
    "float8": in_float8,
}


@functools.cache
def by_keras(name):
    """Trains a network with a layer by Keras's own step."""
    return trained(network(TRAINED[name]))


@pytest.mark.parametrize("name", some(TRAINED, ("function", "assigning")))
@pytest.mark.parametrize(
    "options",
    [
        {},
        pytest.param({"jit_compile": True}, marks=pytest.mark.slow),
        pytest.param({"run_eagerly": True}, marks=pytest.mark.slow),
    ],
    ids=["graph", "xla", "eager"],
)
@pytest.mark.filterwarnings("ignore:Gradients do not exist:UserWarning")
def test_a_layer_trains_as_in_keras(name, options):
    make = TRAINED[name]
    if name == "global_seed" and "jit_compile" in options:
        pytest.skip("XLA draws other numbers, and Keras's own step fails in it")
    expected = by_keras(name)
    still = tfsam.RobustModel(network(make), perturb_weights=tfsam.SAM(0.0))
    assert_same(trained(still, **options), expected)
    moving = tfsam.RobustModel(network(make), perturb_weights=tfsam.SAM(0.1))
    found, moved = trained(moving, **options)
    assert moved == expected[1]
    assert max(map(np.ptp, np.subtract(found[-2], expected[0][-2]))) > 1e-4


@pytest.mark.filterwarnings("ignore:Gradients do not exist:UserWarning")
def test_a_layer_that_assigns_trains_where_an_objective_calls_twice():
    def twice(model, batch):
        loss, y_pred = tfsam.training.stateless.compiled_loss(model, batch)
        with model.unrecorded():
            again = model(batch.x, training=True)
        return loss + tf.reduce_mean(again**2), y_pred

    results = []
    for options in ({"jit_compile": False}, {"run_eagerly": True}):
        model = tfsam.RobustModel(
            network(Normalising),
            perturb_weights=tfsam.SAM(0.1),
            objective=twice,
        )
        results.append(trained(model, **options))
    assert_same(*results)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Held, "kernel"),
        pytest.param(Traced, "kernel", marks=pytest.mark.slow),
        (Remat, "kernel"),
        (Counting, "must keep its state in Keras variables.*Variable"),
    ],
)
def test_a_layer_that_no_pass_can_perturb_is_refused_by_name(make, message):
    model = tfsam.RobustModel(network(make), perturb_weights=tfsam.SAM(0.1))
    with pytest.raises(ValueError, match=f"{message}"):
        trained(model)


@pytest.mark.slow
def test_a_saved_model_s_weights_are_refused_unless_they_are_frozen(tmp_path):
    keras.Sequential([keras.Input((6,)), layers.Dense(4)]).export(
        tmp_path, verbose=False
    )

    def loaded(trainable=True):
        layer = layers.TFSMLayer(str(tmp_path), trainable=trainable)
        layer.trainable = trainable
        return layer

    model = tfsam.RobustModel(network(loaded), perturb_weights=tfsam.SAM(0.1))
    with pytest.raises(ValueError, match=r"Received: variable=.*kernel"):
        trained(model)
    frozen = network(lambda: loaded(False))
    expected = trained(network(lambda: loaded(False)))
    model = tfsam.RobustModel(frozen, perturb_weights=tfsam.SAM(0.0))
    assert_same(trained(model), expected)


def spectral():
    return keras.layers.SpectralNormalization(layers.Dense(4))


def test_the_perturbation_is_added_to_what_a_layer_assigned():
    """By hand: w' is the normalised kernel, and e does not normalise again."""
    net, rho = network(spectral), 0.3
    layer = net.layers[1]
    reference = network(spectral)
    reference(X, training=True)  # Assigns the values of the first pass.

    def gradients(weights):
        for variable, value in zip(
            reference.trainable_variables, weights, strict=True
        ):
            variable.assign(value)
        with tf.GradientTape() as tape:
            loss = LOSS(Y, reference(X, training=False))
        return tape.gradient(loss, reference.trainable_variables)

    weights = [tf.constant(v.value) for v in reference.trainable_variables]
    g = gradients(weights)
    scale = rho / tf.linalg.global_norm(g)
    g = gradients([w + scale * d for w, d in zip(weights, g, strict=True)])
    expected = [w - 0.1 * d for w, d in zip(weights, g, strict=True)]
    model = tfsam.RobustModel(net, perturb_weights=tfsam.SAM(rho))
    model.compile(keras.optimizers.SGD(0.1), LOSS)
    model.train_on_batch(X, Y)
    for one, other in zip(net.trainable_variables, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
    np.testing.assert_allclose(
        layer.vector_u, reference.layers[1].vector_u, atol=1e-6
    )


@pytest.mark.slow
@pytest.mark.parametrize("jit_compile", [False, True])
def test_what_a_layer_assigned_is_committed_on_two_replicas(jit_compile):
    def run(wrap, **kwargs):
        strategy = tf.distribute.MirroredStrategy(
            ["CPU:0", "CPU:1"],
            cross_device_ops=tf.distribute.ReductionToOneDevice(),
        )
        with strategy.scope():
            return trained(wrap(network(spectral)), **kwargs)

    expected = run(lambda net: net)  # Keras has no XLA on several replicas.
    found = run(
        lambda net: tfsam.RobustModel(net, perturb_weights=tfsam.SAM(0.0)),
        jit_compile=jit_compile,
    )
    assert_same(found, expected)
