"""m-sharpness by its definition: traced once, and weighed as its loss is."""

import keras
import numpy as np
import pytest

import tfsam

RNG = np.random.default_rng(0)
X = RNG.random((10, 6), dtype="float32")
Y = RNG.integers(0, 3, 10)
WEIGHT = RNG.uniform(0, 3, 10).astype("float32")


def network(activity=None):
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(
                5,
                "relu",
                kernel_regularizer="l2",
                activity_regularizer=activity,
            ),
            keras.layers.Dense(3),
        ]
    )


def loss(reduction="sum_over_batch_size", ignored=None):
    return keras.losses.SparseCategoricalCrossentropy(
        from_logits=True, reduction=reduction, ignore_class=ignored
    )


def trained(count, made=None, *, rho=0.0, given=None, x=X, y=Y, **kwargs):
    kwargs = {"loss": loss(), "jit_compile": False} | kwargs
    model = tfsam.RobustModel(
        made or network(),
        perturb_weights=tfsam.SAM(rho),
        sub_batches=count,
        seed=0,
    )
    model.compile(tfsam.SGD(0.5), **kwargs)
    model.fit(x, y, batch_size=10, sample_weight=given, verbose=0)
    return model.network.get_weights()


def assert_same(found, expected):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.parametrize(
    ("reduction", "given"),
    [
        ("mean_with_sample_weight", WEIGHT),
        pytest.param("sum_over_batch_size", WEIGHT, marks=pytest.mark.slow),
        pytest.param("mean_with_sample_weight", None, marks=pytest.mark.slow),
        pytest.param(
            "mean_with_sample_weight", 0 * WEIGHT, marks=pytest.mark.slow
        ),
    ],
)
def test_parts_of_no_radius_are_the_batch(reduction, given):
    """Three parts, of 3, 3 and 4 examples, whatever the loss divides by."""
    expected = trained(1, loss=loss(reduction), given=given)
    assert_same(trained(3, loss=loss(reduction), given=given), expected)


def sequences():
    """Returns inputs, of which some positions are padding, and labels."""
    padding = RNG.random((10, 5, 1)) < 0.4
    x = np.where(padding, 0, RNG.random((10, 5, 4)))
    return x, RNG.integers(0, 3, (10, 5))


def masking():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((5, 4))
    masked = keras.layers.Masking()(inputs)
    return keras.Model(inputs, keras.layers.Dense(3)(masked))


@pytest.mark.slow
@pytest.mark.parametrize("reduction", ["mean_with_sample_weight", "mean"])
def test_masked_positions_count_in_no_part(reduction):
    x, y = sequences()
    options = {"x": x, "y": y, "loss": loss(reduction)}
    found, expected = (trained(n, masking(), **options) for n in (3, 1))
    assert_same(found, expected)


def test_positions_count_that_neither_mask_hides():
    """The network masks some positions, and the loss ignores others."""
    x, y = sequences()
    y[:, :2] = -1
    options = {"x": x, "y": y, "loss": loss(ignored=-1), "run_eagerly": True}
    found, expected = (trained(n, masking(), **options) for n in (2, 1))
    assert_same(found, expected)


@pytest.mark.parametrize(
    ("reduction", "given"),
    [
        ("sum_over_batch_size", None),
        pytest.param("mean_with_sample_weight", WEIGHT, marks=pytest.mark.slow),
        pytest.param("sum_over_batch_size", WEIGHT, marks=pytest.mark.slow),
    ],
)
def test_ignored_examples_count_in_no_part(reduction, given):
    """Of three parts, the first has nothing else, and the second some."""
    options = {
        "y": np.where(np.arange(10) < 4, -1, Y),
        "loss": loss(reduction, ignored=-1),
        "given": given,
    }
    assert_same(trained(3, **options), trained(1, **options))


@pytest.mark.slow
def test_what_a_function_ignores_counts_in_no_part():
    def ignoring(y, y_pred):
        return keras.losses.sparse_categorical_crossentropy(
            y, y_pred, from_logits=True, ignore_class=-1
        )

    options = {"y": np.where(np.arange(10) < 4, -1, Y), "loss": ignoring}
    assert_same(trained(3, **options), trained(1, **options))


@pytest.mark.slow
def test_weights_of_gradients_whose_shape_is_not_traced_have_parts():
    """A matrix product of a sequence makes its gradient by a reshape."""

    def made():
        keras.utils.set_random_seed(0)
        return keras.Sequential(
            [
                keras.Input((5,)),
                keras.layers.Embedding(7, 4, mask_zero=True),
                keras.layers.Dense(3),
            ]
        )

    x, y = RNG.integers(0, 7, (10, 5)), RNG.integers(0, 3, (10, 5))
    found, expected = (trained(n, made(), x=x, y=y) for n in (3, 1))
    assert_same(found, expected)


def test_ignored_examples_of_several_outputs_are_refused():
    inputs = keras.Input((6,))
    made = keras.Model(inputs, [keras.layers.Dense(3)(inputs) for _ in "ab"])
    with pytest.raises(ValueError, match="ignores a class for one output"):
        trained(2, made, loss=[loss(ignored=-1), loss()], y=[Y, Y])


@pytest.mark.slow
def test_masks_of_several_outputs_are_refused():
    inputs = keras.Input((5,))
    masked = keras.layers.Embedding(7, 4, mask_zero=True)(inputs)
    made = keras.Model(inputs, [keras.layers.Dense(3)(masked) for _ in "ab"])
    x, y = RNG.integers(0, 7, (10, 5)), RNG.integers(0, 3, (10, 5))
    with pytest.raises(ValueError, match="takes masks for one output alone"):
        trained(2, made, loss=[loss(), loss()], x=x, y=[y, y])


def test_a_mean_by_weight_beside_another_loss_is_refused():
    model = tfsam.RobustModel(
        network(),
        perturb_weights=tfsam.SAM(),
        sub_batches=2,
        objective=lambda model, batch: None,
    )
    model.compile(tfsam.SGD(0.1), loss("mean_with_sample_weight"))
    with pytest.raises(ValueError, match="mean_with_sample_weight, loss="):
        model.fit(X, Y, verbose=0)


def test_however_many_parts_are_traced_once():
    passes = []
    model = tfsam.RobustModel(
        network(), perturb_weights=tfsam.SAM(), sub_batches=10
    )
    inner = model._pass

    def counted(*args, **kwargs):
        passes.append(1)
        return inner(*args, **kwargs)

    object.__setattr__(model, "_pass", counted)
    model.compile(tfsam.SGD(0.1), loss(), jit_compile=False)
    model.fit(X, Y, batch_size=10, verbose=0)
    assert len(passes) <= 4  # At w and at w + e; Keras may trace a step twice.


@pytest.mark.slow
@pytest.mark.parametrize("activity", [None, "l2"])
def test_a_loop_in_a_graph_and_in_xla_is_a_loop_in_python(activity):
    results = [
        trained(4, network(activity), rho=0.1, **options)
        for options in (
            {"run_eagerly": True},
            {"jit_compile": False},
            {"jit_compile": True},
        )
    ]
    assert_same(results[1], results[0])
    assert_same(results[2], results[0])
