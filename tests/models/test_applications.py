"""Networks of keras.applications: their preprocessing, sizes and weights."""

import inspect
import sys
import urllib.error

import keras
import numpy as np
import pytest
from helpers import assert_one_line_error
from keras.src.utils import file_utils

from tfsam.models.networks import applications

# The smallest images of the classes that do not take 32 x 32.
SIDES = {"InceptionV3": 75, "InceptionResNetV2": 75, "Xception": 71}

# The smallest class of each module of Keras. The others call the same function
# of their module, with more layers.
SMALLEST = [
    *("ConvNeXtTiny", "DenseNet121", "EfficientNetB0", "EfficientNetV2B0"),
    *("InceptionResNetV2", "InceptionV3", "MobileNet", "MobileNetV2"),
    *("MobileNetV3Small", "NASNetMobile", "ResNet50", "ResNet50V2"),
    *("VGG16", "VGG19", "Xception"),
]


def pixels(*shape):
    return np.random.default_rng(0).random(shape, dtype="float32")


def tiny(**options):
    """The smallest network of all classes."""
    given = {"name": "MobileNetV2", "input_shape": (32, 32, 3), "alpha": 0.35}
    return applications.keras_application(4, **given | options)


@pytest.mark.parametrize("name", applications.names())
def test_pixels_are_preprocessed_as_the_class_asks_for(name):
    application = getattr(keras.applications, name)
    module = sys.modules[application.__module__]
    x = pixels(2, 5, 4, 3)
    found = x
    for step in applications._pixels_of(application).steps():
        found = step(found)
    expected = module.preprocess_input(255 * x)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_a_class_of_each_module_is_built():
    """All classes of a module have the same arguments."""

    def facts(name):
        application = getattr(keras.applications, name)
        arguments = inspect.signature(application).parameters
        return application.__module__, frozenset(arguments)

    built = [facts(name) for name in SMALLEST]
    assert len(set(built)) == len(SMALLEST)
    assert {facts(name) for name in applications.names()} == set(built)


@pytest.fixture(scope="module")
def network():
    keras.utils.set_random_seed(0)
    return tiny()


@pytest.mark.slow
def test_preprocessing_is_inside(network):
    own = keras.applications.MobileNetV2(
        (32, 32, 3), 0.35, weights=None, classes=4, classifier_activation=None
    )
    own.set_weights(network.get_weights())
    x = pixels(3, 32, 32, 3)
    expected = own(keras.applications.mobilenet_v2.preprocess_input(255 * x))
    np.testing.assert_allclose(network(x), expected, atol=1e-5)


def test_reversed_channels_survive_saving(tmp_path):
    keras.utils.set_random_seed(0)
    made = applications._pixels_of(keras.applications.ResNet50)
    x = inputs = keras.Input((4, 4, 3))
    for step in made.steps():
        x = step(x)
    network = keras.Model(inputs, x)
    network.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    x = pixels(1, 4, 4, 3)
    expected = keras.applications.resnet.preprocess_input(255 * x)
    np.testing.assert_allclose(loaded(x), expected, atol=1e-4)


@pytest.mark.slow
def test_gray_images_are_repeated(network):
    """Also where Keras is configured for another layout than tfsam's."""
    keras.config.set_image_data_format("channels_first")
    try:
        gray = tiny(input_shape=(32, 32, 1))
        assert keras.config.image_data_format() == "channels_first"
    finally:
        keras.config.set_image_data_format("channels_last")
    gray.set_weights(network.get_weights())
    x = pixels(2, 32, 32, 1)
    expected = network(np.repeat(x, 3, axis=-1))
    np.testing.assert_allclose(gray(x), expected, atol=1e-5)


@pytest.mark.slow
def test_logits_stay_in_float32_under_mixed_precision():
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        assert tiny().outputs[0].dtype == "float32"
    finally:
        keras.config.set_dtype_policy(before)


@pytest.mark.parametrize(
    "options, parts",
    [
        (
            {"name": "mobilenet_v2"},
            ["did you mean MobileNetV2", "mobilenet_v2"],
        ),
        ({"aplha": 1.0}, ["did you mean alpha", "aplha=1.0"]),
        ({"include_top": False}, ["include_top=False"]),
        (
            {"input_shape": (8, 9, 3)},
            ["MobileNetV2 cannot be built", "8x9", "32x32", "--image_size"],
        ),
        ({"input_shape": (32, 32, 4)}, ["gray or RGB", "(32, 32, 4)"]),
        ({"weights": "imagnet"}, ["imagnet"]),
    ],
)
def test_wrong_arguments_are_one_line(options, parts):
    with pytest.raises(ValueError) as error:
        tiny(**options)
    assert_one_line_error(error, *parts)


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No file can be downloaded, and none was before."""

    def fails(*arguments, **options):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(file_utils, "urlretrieve", fails)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))


def test_without_a_network_a_line_names_the_file_to_place(offline):
    with pytest.raises(OSError) as error:
        tiny(weights="imagenet", input_shape=(96, 96, 3))
    assert_one_line_error(
        error,
        "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_0.35_96_no_top.h5",
        *("~/.keras/models", "no route", "weights=imagenet"),
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALLEST)
def test_the_file_has_the_name_that_keras_looks_for(name, offline, monkeypatch):
    names = []
    get_file = file_utils.get_file
    monkeypatch.setattr(
        file_utils,
        "get_file",
        lambda *args, **options: (
            names.append(args[0] if args else options["fname"])
            or get_file(*args, **options)
        ),
    )
    with pytest.raises(OSError, match="place it in") as error:
        applications.keras_application(
            4, name=name, input_shape=(224, 224, 3), weights="imagenet"
        )
    assert f"~/.keras/models as {names[-1]} " in str(error.value)


@pytest.mark.slow
def test_weights_of_imagenet_are_under_a_new_head(monkeypatch, tmp_path):
    """Keras's download is a file that the class itself wrote."""
    keras.utils.set_random_seed(0)
    base = keras.applications.MobileNetV2(
        (32, 32, 3), 0.35, include_top=False, weights=None
    )
    path = tmp_path / "downloaded.h5"
    base.save(path)
    monkeypatch.setattr(
        file_utils, "get_file", lambda *args, **options: str(path)
    )
    network = tiny(weights="imagenet", input_shape=(96, 96, 3))
    assert network.output_shape == (None, 4)
    head = network.layers[-1]
    assert head.name == "predictions" and head.activation.__name__ == "linear"
    kept = network.weights[: -len(head.weights)]
    for found, expected in zip(kept, base.weights, strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALLEST)
def test_a_class_is_built_at_its_smallest_size(name):
    side = SIDES.get(name, 32)
    network = applications.keras_application(
        3, name=name, input_shape=(side, side, 3)
    )
    assert network.input_shape == (None, side, side, 3)
    assert network(pixels(1, side, side, 3)).shape == (1, 3)
    keras.models.clone_model(network)
