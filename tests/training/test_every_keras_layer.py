"""The step equals Keras's own, for every layer that Keras exports.

A layer that Keras adds fails here until it has a place in a table below.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfsam
from tfsam.weights.sam import steepest

RNG = np.random.default_rng(0)
BATCH, STEPS = 4, 3
Y = RNG.integers(0, 3, BATCH * STEPS)
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

VECTOR, SEQUENCE, IMAGE, VIDEO = (6,), (5, 4), (8, 8, 3), (4, 4, 4, 2)


def alone(layer):
    """A layer between the input and a head."""
    return lambda x: layer()(x)


def of_two(layer):
    """A layer of two branches, each with weights of its own."""

    def apply(x):
        return layer()([layers.Dense(4)(x), layers.Dense(4)(x)])

    return apply


def attention(layer):
    """A layer of queries and values."""
    return lambda x: layer()(layers.Dense(4)(x), x)


def after_dense(layer):
    """A layer of one input that has weights before it."""
    return lambda x: layer()(layers.Dense(x.shape[-1])(x))


def numbers(layer):
    """A layer of whole numbers, drawn from the input."""

    def apply(x):
        whole = keras.ops.cast(8 * x, "int32")
        return keras.ops.cast(layer()(whole), "float32")

    return apply


def words(layer):
    """A layer of strings."""

    def apply(x):
        as_text = layers.Lambda(lambda t: tf.strings.as_string(8 * t, 0))
        return keras.ops.cast(layer()(as_text(x)), "float32")

    return apply


def crossed(layer):
    """A layer of two columns of whole numbers."""

    def apply(x):
        whole = keras.ops.cast(8 * x, "int32")
        return layer()((whole[:, :1], whole[:, 1:2]))

    return apply


def tied(layer):
    """An embedding that is used there and back."""

    def apply(x):
        made = layer()
        return made(made(keras.ops.cast(8 * x, "int32")), reverse=True)

    return apply


def cell(made):
    return lambda x: layers.RNN(made())(x)


# Name of the class: (shape of an example, a function from input to features).
LAYERS = {
    "Activation": (VECTOR, after_dense(lambda: layers.Activation("tanh"))),
    "ActivityRegularization": (
        VECTOR,
        after_dense(lambda: layers.ActivityRegularization(l2=0.1)),
    ),
    "AdditiveAttention": (
        SEQUENCE,
        lambda x: layers.AdditiveAttention()([layers.Dense(4)(x), x]),
    ),
    "AlphaDropout": (VECTOR, after_dense(lambda: layers.AlphaDropout(0.3))),
    "Attention": (
        SEQUENCE,
        lambda x: layers.Attention(use_scale=True, dropout=0.2)(
            [layers.Dense(4)(x), x]
        ),
    ),
    "BatchNormalization": (VECTOR, alone(layers.BatchNormalization)),
    "Bidirectional": (
        SEQUENCE,
        alone(lambda: layers.Bidirectional(layers.LSTM(3))),
    ),
    "CategoryEncoding": (
        VECTOR,
        numbers(lambda: layers.CategoryEncoding(9, output_mode="multi_hot")),
    ),
    "Concatenate": (VECTOR, of_two(layers.Concatenate)),
    "Dense": (VECTOR, alone(lambda: layers.Dense(4, kernel_regularizer="l2"))),
    "Discretization": (
        VECTOR,
        lambda x: keras.ops.cast(
            layers.Discretization(bin_boundaries=[0.2, 0.5])(x), "float32"
        ),
    ),
    "Dot": (VECTOR, of_two(lambda: layers.Dot(1))),
    "Dropout": (VECTOR, after_dense(lambda: layers.Dropout(0.3))),
    "ELU": (VECTOR, after_dense(layers.ELU)),
    "EinsumDense": (
        SEQUENCE,
        alone(lambda: layers.EinsumDense("abc,cd->abd", (5, 3))),
    ),
    "Embedding": (VECTOR, numbers(lambda: layers.Embedding(9, 4))),
    "Flatten": (SEQUENCE, after_dense(layers.Flatten)),
    "GRU": (SEQUENCE, alone(lambda: layers.GRU(3, dropout=0.2))),
    "GRUCell": (SEQUENCE, cell(lambda: layers.GRUCell(3))),
    "GaussianDropout": (
        VECTOR,
        after_dense(lambda: layers.GaussianDropout(0.3)),
    ),
    "GaussianNoise": (VECTOR, after_dense(lambda: layers.GaussianNoise(0.3))),
    "GroupNormalization": (IMAGE, alone(lambda: layers.GroupNormalization(3))),
    "GroupQueryAttention": (
        SEQUENCE,
        attention(lambda: layers.GroupQueryAttention(3, 4, 2, dropout=0.2)),
    ),
    "HashedCrossing": (
        VECTOR,
        crossed(lambda: layers.HashedCrossing(9, output_mode="one_hot")),
    ),
    "Hashing": (
        VECTOR,
        numbers(lambda: layers.Hashing(9, output_mode="multi_hot")),
    ),
    "Identity": (VECTOR, after_dense(layers.Identity)),
    "IntegerLookup": (
        VECTOR,
        numbers(
            lambda: layers.IntegerLookup(
                vocabulary=[1, 2, 3], output_mode="multi_hot"
            )
        ),
    ),
    "LSTM": (
        SEQUENCE,
        alone(lambda: layers.LSTM(3, dropout=0.2, recurrent_dropout=0.2)),
    ),
    "LSTMCell": (SEQUENCE, cell(lambda: layers.LSTMCell(3))),
    "Lambda": (
        VECTOR,
        after_dense(
            lambda: layers.Lambda(lambda t: 2 * t + keras.random.normal((6,)))
        ),
    ),
    "LayerNormalization": (VECTOR, alone(layers.LayerNormalization)),
    "LeakyReLU": (VECTOR, after_dense(layers.LeakyReLU)),
    "Masking": (
        SEQUENCE,
        lambda x: layers.LSTM(3)(layers.Masking(0.5)(x)),
    ),
    "MelSpectrogram": (
        (64,),
        alone(
            lambda: layers.MelSpectrogram(
                fft_length=16, sequence_stride=8, num_mel_bins=4
            )
        ),
    ),
    "MultiHeadAttention": (
        SEQUENCE,
        attention(lambda: layers.MultiHeadAttention(2, 3, dropout=0.2)),
    ),
    "Normalization": (
        VECTOR,
        after_dense(lambda: layers.Normalization(mean=0.5, variance=2.0)),
    ),
    "PReLU": (VECTOR, after_dense(layers.PReLU)),
    "Permute": (SEQUENCE, after_dense(lambda: layers.Permute((2, 1)))),
    "RMSNormalization": (VECTOR, alone(layers.RMSNormalization)),
    "RNN": (
        SEQUENCE,
        alone(
            lambda: layers.RNN(
                [layers.LSTMCell(3), layers.GRUCell(3, dropout=0.2)]
            )
        ),
    ),
    "ReLU": (VECTOR, after_dense(layers.ReLU)),
    "RepeatVector": (VECTOR, after_dense(lambda: layers.RepeatVector(2))),
    "Rescaling": (VECTOR, after_dense(lambda: layers.Rescaling(2.0, 1.0))),
    "Reshape": (VECTOR, after_dense(lambda: layers.Reshape((2, 3)))),
    "ReversibleEmbedding": (
        VECTOR,
        tied(lambda: layers.ReversibleEmbedding(9, 4)),
    ),
    "STFTSpectrogram": (
        (64, 1),
        alone(
            lambda: layers.STFTSpectrogram(
                frame_length=16, frame_step=8, fft_length=16, trainable=True
            )
        ),
    ),
    "SimpleRNN": (SEQUENCE, alone(lambda: layers.SimpleRNN(3))),
    "SimpleRNNCell": (SEQUENCE, cell(lambda: layers.SimpleRNNCell(3))),
    "Softmax": (VECTOR, after_dense(layers.Softmax)),
    "SpectralNormalization": (
        VECTOR,
        alone(lambda: layers.SpectralNormalization(layers.Dense(4))),
    ),
    "StackedRNNCells": (
        SEQUENCE,
        cell(
            lambda: layers.StackedRNNCells(
                [layers.GRUCell(3), layers.SimpleRNNCell(3)]
            )
        ),
    ),
    "StringLookup": (
        VECTOR,
        words(
            lambda: layers.StringLookup(
                vocabulary=["1", "2", "3"], output_mode="multi_hot"
            )
        ),
    ),
    "TextVectorization": (
        (1,),
        words(
            lambda: layers.TextVectorization(
                vocabulary=["1", "2", "3"], output_mode="multi_hot"
            )
        ),
    ),
    "TimeDistributed": (
        SEQUENCE,
        alone(lambda: layers.TimeDistributed(layers.Dense(3))),
    ),
    "UnitNormalization": (VECTOR, after_dense(layers.UnitNormalization)),
}
LAYERS |= {
    name: (VECTOR, of_two(getattr(layers, name)))
    for name in ("Add", "Average", "Maximum", "Minimum", "Multiply", "Subtract")
}
BY_RANK = {1: (8, 3), 2: IMAGE, 3: VIDEO}
for rank, shape in BY_RANK.items():
    for name, arguments in {
        "Conv": (3, 2),
        "Conv{}Transpose": (3, 2),
        "SeparableConv": (3, 2),
        "DepthwiseConv": (2,),
        "AveragePooling": (2,),
        "MaxPooling": (),
        "GlobalAveragePooling": (),
        "GlobalMaxPooling": (),
        "AdaptiveAveragePooling": (2,),
        "AdaptiveMaxPooling": (2,),
        "UpSampling": (),
        "ZeroPadding": (),
        "Cropping": (),
        "SpatialDropout": (0.3,),
        "ConvLSTM": (2, 2),
    }.items():
        full = (name if "{}" in name else name + "{}").format(rank) + (
            "D" if "{}" not in name else ""
        )
        full = full.replace(f"{rank}Transpose", f"{rank}DTranspose")
        if not hasattr(layers, full):
            continue
        of = (3, *shape) if name == "ConvLSTM" else shape

        def made(full=full, arguments=arguments):
            return getattr(layers, full)(*arguments)

        LAYERS[full] = (of, after_dense(made))

FACTOR = 0.3
AUGMENTATION = {
    "AugMix": {},
    "AutoContrast": {},
    "CenterCrop": {"height": 6, "width": 6},
    "ContrastLimitedAdaptiveHistogramEqualization": {},
    "CutMix": {},
    "Equalization": {},
    "MixUp": {},
    "RandAugment": {},
    "RandomBrightness": {"factor": FACTOR},
    "RandomColorDegeneration": {"factor": FACTOR},
    "RandomColorJitter": {"brightness_factor": FACTOR, "hue_factor": FACTOR},
    "RandomContrast": {"factor": FACTOR},
    "RandomElasticTransform": {},
    "RandomErasing": {},
    "RandomFlip": {},
    "RandomGaussianBlur": {},
    "RandomGrayscale": {},
    "RandomHue": {"factor": FACTOR},
    "RandomInvert": {},
    "RandomPerspective": {},
    "RandomPosterization": {"factor": 4},
    "RandomRotation": {"factor": FACTOR},
    "RandomSaturation": {"factor": FACTOR},
    "RandomSharpness": {"factor": FACTOR},
    "RandomShear": {"x_factor": FACTOR},
    "RandomTranslation": {"height_factor": FACTOR, "width_factor": FACTOR},
    "RandomZoom": {"height_factor": FACTOR},
    "Resizing": {"height": 6, "width": 6},
    "Solarization": {},
}
for name, arguments in AUGMENTATION.items():
    kind = getattr(layers, name)
    if "value_range" in kind.__init__.__code__.co_varnames:
        arguments = {"value_range": (0, 1), **arguments}
    LAYERS[name] = (
        IMAGE,
        alone(lambda kind=kind, arguments=arguments: kind(**arguments)),
    )
LAYERS["RandomCrop"] = (
    IMAGE,
    # It does not crop in inference mode, so the head must take any size.
    lambda x: layers.GlobalMaxPooling2D()(layers.RandomCrop(6, 6)(x)),
)
LAYERS["Pipeline"] = (
    IMAGE,
    alone(
        lambda: layers.Pipeline([layers.RandomFlip(), layers.RandomZoom(0.2)])
    ),
)

# Layers that are no layer of a network on their own.
ABSTRACT = {
    "InputLayer": "every network here has one",
    "InputSpec": "a description, no layer",
    "Layer": "the base class",
    "Wrapper": "a base class; TimeDistributed and others are tested",
    "MaxNumBoundingBoxes": "it has bounding boxes, no images, as inputs",
    "JaxLayer": "it needs JAX",
    "FlaxLayer": "it needs Flax",
    "TorchModuleWrapper": "it needs PyTorch's backend",
}
# Layers that are refused, with the line of Keras that forces it.
REFUSED = {
    "TFSMLayer": "tfsm_layer.py: `return self.call_endpoint_fn(inputs)` runs a "
    "graph that was saved with variables of its own",
}


def exported():
    """The layers that Keras exports, each under its first name."""
    found = {}
    for name in sorted(dir(layers)):
        kind = getattr(layers, name)
        if isinstance(kind, type):
            found.setdefault(kind.__name__, kind)
    return found


# Layers with weights, or a state that is not theirs: in a network alone.
# Others are in a network with the other layers of their inputs.
ALONE = {
    *("AdditiveAttention", "Attention", "BatchNormalization", "Bidirectional"),
    *("Dense", "EinsumDense", "Embedding", "GRU", "GRUCell", "Lambda", "LSTM"),
    *("GroupNormalization", "GroupQueryAttention", "LayerNormalization"),
    *("LSTMCell", "Masking", "MultiHeadAttention", "PReLU", "RNN", "SimpleRNN"),
    *("RMSNormalization", "ReversibleEmbedding", "STFTSpectrogram"),
    *("SimpleRNNCell", "SpectralNormalization", "StackedRNNCells"),
    *("TimeDistributed", *(name for name in LAYERS if "Conv" in name)),
}
# The slowest to trace are spread over several networks.
AUGMENTATIONS = 4


def groups():
    """Returns the layers of each network, under its name."""
    found = {}
    for name in sorted(LAYERS):
        shape = LAYERS[name][0]
        if name in ALONE:
            group = name
        elif name in AUGMENTATION:
            turn = sorted(AUGMENTATION).index(name) % AUGMENTATIONS
            group = f"augmentation-{turn}"
        else:
            group = "inputs-" + "x".join(map(str, shape))
        found.setdefault(group, []).append(name)
    return found


def network(names):
    """Builds a network of a branch for each layer, named as its variables."""
    keras.utils.set_random_seed(1)
    inputs = keras.Input(LAYERS[names[0]][0])
    branches = []
    for name in names:
        with keras.name_scope(name):
            branches.append(layers.Flatten()(LAYERS[name][1](inputs)))
    x = keras.ops.concatenate(branches, axis=1) / len(names)
    with keras.name_scope("head"):
        return keras.Model(inputs, layers.Dense(3)(x))


class LaterSAM(tfsam.SAM):
    """SAM whose radius is 0 in the first steps.

    In one of them it descends along the gradient of the first pass, which then
    equals that of the second.
    """

    def perturb(self, weights, gradients, state, step):
        rho = tf.where(step.count < STEPS, 0.0, self.rho)
        return steepest(weights, gradients, rho), state

    def combine(self, gradients, perturbed_gradients, state, step):
        found = [
            tf.where(step.count == 1, *pair)
            for pair in zip(gradients, perturbed_gradients, strict=True)
        ]
        return found, state


def compiled(model):
    optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
    model.compile(optimizer, LOSS, jit_compile=False)
    return model


def fitted(model, x):
    """Trains; returns paths and values of variables, and which weights moved.

    The path begins with the branch. The rest varies: Keras numbers the layers
    of a second network on.
    """
    inner = getattr(model, "network", model)
    before = [v.numpy() for v in inner.trainable_variables]
    model.fit(x, Y, batch_size=BATCH, shuffle=False, verbose=0)
    moved = [
        (v.path.split("/")[0], (a != v.numpy()).any())
        for a, v in zip(before, inner.trainable_variables, strict=True)
    ]
    return [(v.path, v.numpy()) for v in inner.variables], moved


def check(names):
    """Compares steps of Keras, of SAM without a radius, and of SAM.

    A second model would be traced again: the same one starts again with a
    radius, from the same weights and without momentum.
    """
    x = RNG.random((BATCH * STEPS, *LAYERS[names[0]][0]), dtype="float32")
    expected, keras_moves = fitted(compiled(network(names)), x)
    model = tfsam.RobustModel(network(names), perturb_weights=LaterSAM(0.1))
    start = model.network.get_weights()
    found, _ = fitted(compiled(model), x)
    for (path, one), (_, other) in zip(found, expected, strict=True):
        np.testing.assert_allclose(
            one, other, atol=1e-6, rtol=1e-6, err_msg=path
        )
    model.network.set_weights(start)
    for momentum in model.optimizer.momentums:
        momentum.assign(tf.zeros_like(momentum))
    _, moved = fitted(model, x)
    assert moved == keras_moves


FAST = ("SpectralNormalization",)


def test_every_layer_of_keras_is_tested_or_has_a_reason():
    known = {
        getattr(layers, name).__name__
        for name in [*LAYERS, *ABSTRACT, *REFUSED]
    }
    assert set(exported()) == known
    assert len(REFUSED) <= 8
    grouped = [name for names in groups().values() for name in names]
    assert sorted(grouped) == sorted(LAYERS)


@pytest.mark.parametrize("name", FAST)
def test_layers_with_a_state_of_their_own_train_as_in_keras(name):
    check([name])


@pytest.mark.slow
@pytest.mark.parametrize("group", sorted(set(groups()) - set(FAST)))
def test_every_layer_trains_as_in_keras(group, monkeypatch):
    # AugMix chooses its operations in Python whenever it is traced. RobustModel
    # traces its step less often than Keras, so each trace has to choose alike.
    monkeypatch.setattr("random.choice", lambda options: options[0])
    check(groups()[group])
