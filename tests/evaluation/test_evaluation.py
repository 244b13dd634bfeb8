"""Accuracy under attack: checked against brute force and against cheats."""

import json
import sys

import keras
import numpy as np
import pytest
import scipy.stats
import tensorflow as tf

import tfsam
from tfsam.evaluation import budgets
from tfsam.models.loading import load_logits
from tfsam.support import files

RNG = np.random.default_rng(0)
W = RNG.normal(size=(16, 3)).astype("float32")
X = RNG.uniform(0.2, 0.8, size=(50, 4, 4, 1)).astype("float32")
MARGINS = X.reshape(-1, 16) @ W
# Nine in ten are classified right.
Y = np.where(np.arange(50) % 10, MARGINS.argmax(1), (MARGINS.argmax(1) + 1) % 3)


def linear(x):
    return tf.matmul(tf.reshape(x, [-1, 16]), W)


def exact(epsilon, norm):
    """Robust accuracy of a linear model: every margin's distance is known."""
    robust = np.ones(len(X), bool)
    for other in range(3):
        rows = W[:, Y] - W[:, [other]]
        gap = MARGINS[np.arange(50), Y] - MARGINS[:, other]
        dual = np.abs(rows).sum(0) if norm == "linf" else None
        dual = np.linalg.norm(rows, axis=0) if dual is None else dual
        robust &= (other == Y) | (gap > epsilon * dual)
    return robust.mean()


def run(attacks=("pgd",), epsilons=(0.01,), model=linear, **kwargs):
    return tfsam.evaluate(model, (X, Y), attacks, "linf", epsilons, **kwargs)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_linear_model_has_its_exact_robust_accuracy(norm):
    scale = 0.02 if norm == "linf" else 0.05
    epsilons = [scale, 4 * scale, 2 * scale]
    result = tfsam.evaluate(
        linear,
        (X, Y),
        [("pgd", {"steps": 50, "early_stop": True})],
        norm,
        epsilons,
        batch_size=16,
    )
    assert result["natural"]["accuracy"] == 0.9
    found = [row["accuracy"] for row in result["robust"]]
    # To move all the way to the other class, and not only up the loss.
    np.testing.assert_allclose(
        found, [exact(e, norm) for e in epsilons], atol=0.0201
    )
    assert [row["epsilon"] for row in result["robust"]] == epsilons
    assert 0.1 < found[1] < found[2] < found[0] < 0.9
    for row, epsilon in zip(result["robust"], epsilons, strict=True):
        assert 0.9 * epsilon < row["max_perturbation"] <= epsilon * (1 + 1e-5)
        assert row["norm"] == norm and row["attack"] == "pgd"
        assert row["seconds"] > 0 and row["n"] == 50


def test_rows_are_independent_of_each_other():
    """Verdicts do not depend on order, other attacks, epsilons or batches."""

    def accuracies(attacks, epsilons, batch_size=128):
        result = run(attacks, epsilons, batch_size=batch_size)
        return {
            (row["attack"], row["epsilon"]): row["accuracy"]
            for row in result["robust"]
        }

    whole = accuracies(["fgsm", "pgd"], [0.02, 0.01])
    turned = accuracies(["pgd", "fgsm"], [0.01, 0.02], 7)
    assert whole == turned
    assert accuracies(["pgd"], [0.01])["pgd", 0.01] == whole["pgd", 0.01]


def test_verdicts_are_inherited():
    result = run(["pgd"], [0.02, 0.01])
    large, small = result["robust"]
    assert small["inherited"] == 0
    broken_at_small = round(50 * (0.9 - small["accuracy"]))
    assert large["inherited"] == broken_at_small > 0
    assert large["accuracy"] <= small["accuracy"]


class Replays:
    """Breaks everything at small epsilons and nothing at large ones."""

    def __init__(self, epsilon, norm, bounds):
        self.epsilon = epsilon

    def __call__(self, logits_fn, x, y, seed):
        inner = tfsam.PGD(0.04, steps=20)(logits_fn, x, y, seed)
        return inner if self.epsilon < 0.1 else x


def test_what_is_broken_stays_broken():
    small, large = run([Replays], [0.05, 0.5])["robust"]
    assert small["accuracy"] < 0.9
    assert large["accuracy"] == small["accuracy"]


@pytest.mark.parametrize("images", [False, True])
def test_an_epsilon_tried_again_counts_for_the_larger_ones(images, tmp_path):
    """Verdicts found while it was missing are not measured again."""
    failing = [True]

    class Recovers(Replays):
        def __call__(self, *arguments):
            if failing[0] and self.epsilon < 0.1:
                raise RuntimeError("not today")
            return super().__call__(*arguments)

    def rows():
        return run(
            # By name: the value in its closure is another when it recovers.
            *([("Recovers", Recovers)], [0.05, 0.5]),
            workdir=tmp_path,
            save_adversarial=images,
        )["robust"]

    small, large = rows()
    assert small["error"] and large["accuracy"] == 0.9
    failing[0] = False
    small, large = rows()
    assert large["accuracy"] == small["accuracy"] < 0.9
    for epsilon in (0.05, 0.5):
        path = tmp_path / "00-Recovers" / f"linf-{epsilon}" / "000000.npz"
        with np.load(path) as arrays:
            assert ("adversarial" in arrays) == images


def test_wilson_interval():
    result = run([], [])["natural"]
    z = scipy.stats.norm.ppf(0.975)
    p, n = 0.9, 50
    middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    np.testing.assert_allclose(
        result["interval"], [middle - half, middle + half], rtol=1e-6
    )


def cheat(change):
    """Returns a factory of attacks that return `change(x, epsilon)`."""

    def factory(epsilon, norm, bounds):
        return lambda logits_fn, x, y, seed: change(x, epsilon)

    factory.__name__ = "cheat"
    return factory


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, e: x + 1.01 * e, "left its ball"),
        (lambda x, e: x - 0.21, "left the image range|left its ball"),
        (lambda x, e: x * np.nan, "NaN"),
        (lambda x, e: x[:1], "of shape"),
        (lambda x, e: tf.cast(x, tf.float64), "float64"),
        (lambda x, e: 1 / 0, "ZeroDivisionError"),
    ],
)
def test_a_bad_attack_gives_a_row_with_error(change, message):
    result = run([cheat(change), cheat(lambda x, e: x)], [0.01])
    bad, good = result["robust"]
    assert bad["accuracy"] is None and bad["interval"] is None
    assert bad["error"] and good["accuracy"] == 0.9
    assert any(part in bad["error"] for part in message.split("|"))
    with pytest.raises((ValueError, ZeroDivisionError)):
        run([cheat(change)], [0.01], strict=True)


def test_the_image_range_is_checked():
    edge = np.zeros_like(X)
    result = tfsam.evaluate(
        linear,
        (edge, np.argmax(linear(edge), 1)),
        [cheat(lambda x, e: x - e)],
        "linf",
        [0.01],
    )
    assert "left the image range" in result["robust"][0]["error"]


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        ("no_such", "attack must be one of .*Received: attack=no_such"),
        ("autoatack", r"did you mean autoattack\b"),
        (("pgd", {"stepsize": 1}), r"mean step_size.*Received: stepsize=1"),
        ("pgd:stepsize=1", r"did you mean step_size.*Received: stepsize=1"),
        ((tfsam.PGD, {"stepsize": 1}), "options of PGD.*Received: stepsize=1"),
        ("pgd:epsilon=0.1", r"sets epsilon .*Received: epsilon=0\.1"),
        (("pgd", {"norm": "l2"}), "sets norm .*Received: norm=l2"),
    ],
)
def test_an_unknown_attack_or_option_is_refused_at_once(attack, message):
    def attacked(epsilon, norm, bounds):
        raise AssertionError("an attack was made")

    with pytest.raises(ValueError, match=message):
        run([attacked, attack], strict=True)


def test_an_attack_whose_library_is_missing_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "foolbox", None)
    with pytest.raises(ImportError, match=r'pip install "tfsam\[foolbox\]"'):
        run(["foolbox:LinfPGD"])


def test_attacks_that_differ_in_their_options_stay_apart():
    attacks = ["PGD:steps=1", "pgd:steps=3", ("pgd", {"steps": 3})]
    rows = run([*attacks, "FGSM"], [0.01])["robust"]
    assert [(row["attack"], row["options"]) for row in rows] == [
        ("pgd:steps=1", {"steps": 1}),
        ("pgd:steps=3", {"steps": 3}),
        ("pgd", {"steps": 3}),
        ("fgsm", {}),
    ]
    assert rows[1]["accuracy"] == rows[2]["accuracy"]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda x: tf.nn.softmax(linear(x)), "not probabilities"),
        (lambda x: tf.nn.sigmoid(linear(x)), "not probabilities"),
        (lambda x: tf.argmax(linear(x), axis=1), "not labels"),
        (lambda x: linear(x)[:, 0], "not labels"),
        (lambda x: tf.one_hot(tf.argmax(linear(x), 1), 3), "not probabilities"),
        (lambda x: linear(x)[:, :2], "below the model's number of outputs"),
        (lambda x: {"logits": linear(x)}, "Received: a dict"),
        (lambda x: linear(x) * np.nan, "finite logits"),
        (7, "Received: model=7"),
    ],
)
def test_a_bad_model_is_refused_before_any_attack(model, message):
    called = []
    spy = cheat(lambda x, e: called.append(1) or x)
    with pytest.raises(ValueError, match=message):
        run([spy], [0.01], model=model)
    assert not called


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        ((X * 255).astype("uint8"), Y, "divide"),
        (X * 255, Y, "normalisation belongs inside"),
        (X - 0.5, Y, "Received: x in"),
        (np.where(X > 0.7, np.nan, X), Y, "finite"),
        (X, Y[:-1], "Received: 50 and 49"),
        (X[:0], Y[:0], "at least one"),
        (X, Y.astype("float32"), "dtype float32"),
        (X, Y - 1, "Received: y in"),
        (X[:, :2], Y, "Received: images of shape"),
        (X, keras.utils.to_categorical(Y, 5), "one-hot y must have"),
        (X[0, 0, 0], Y[:1], "Received: \\(1,\\) and \\(1,\\)"),
    ],
)
def test_bad_data_is_refused(x, y, message):
    with pytest.raises(ValueError, match=message):
        tfsam.evaluate(linear, (x, y), ["pgd"], "linf", [0.01])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"norm": "l3"}, "Received: norm=l3"),
        ({"epsilons": [-1]}, "Received: epsilon=-1"),
        ({"attacks": [3]}, "Received: 3"),
        ({"attacks": None}, "Received: attacks=None"),
        ({"attacks": [("pgd", 5)]}, r"Received: \('pgd', 5\)"),
        ({"attacks": [tfsam.PGD(0.1)]}, r"a factory, .* Received: PGD\("),
        ({"bounds": 1.0}, "Received: bounds=1.0"),
        ({"bounds": (0, 1, 2)}, r"Received: bounds=\(0, 1, 2\)"),
        ({"bounds": (1, 0)}, r"Received: bounds=\(1, 0\)"),
        ({"bounds": (0, float("nan"))}, r"Received: bounds=\(0, nan\)"),
        ({"seed": "a"}, "Received: seed=a"),
        ({"seed": 1.5}, "Received: seed=1.5"),
        ({"shard": "0/2"}, "Received: shard=0/2"),
        ({"shard": (0,)}, r"Received: shard=\(0,\)"),
        ({"shard": ("0", 1)}, "Received: shard=0/1"),
        ({"jit_compile": "false"}, "Received: jit_compile=false"),
        ({"devices": ["CPU:0", "GPU:7"]}, "among CPU:0.* Received: .*GPU:7"),
        ({"devices": "CPU:99"}, r"Received: devices=\['CPU:99'\]"),
        ({"devices": ["banana"]}, r"Received: devices=\['banana'\]"),
        ({"batch_size": 0}, "Received: batch_size=0"),
    ],
)
def test_bad_arguments(arguments, message):
    given = {"attacks": ["pgd"], "norm": "linf", "epsilons": [0.1], **arguments}
    with pytest.raises(ValueError, match=message):
        tfsam.evaluate(linear, (X, Y), **given)


def test_data_of_other_kinds():
    expected = run(["fgsm"])["robust"][0]["accuracy"]
    dataset = tf.data.Dataset.from_tensor_slices((X, Y)).batch(16)
    one_hot = keras.utils.to_categorical(Y, 3)
    for data in (dataset, (X, one_hot), (X, Y[:, None])):
        result = tfsam.evaluate(linear, data, ["fgsm"], "linf", [0.01])
        assert result["robust"][0]["accuracy"] == expected


def test_inputs_that_are_not_images():
    x = X * 100 - 50
    y = np.argmax(linear(x), 1)
    result = tfsam.evaluate(
        linear, (x, y), ["pgd"], "linf", [20.0], bounds=None
    )
    assert result["robust"][0]["accuracy"] < 0.9
    assert result["robust"][0]["max_perturbation"] > 19


@pytest.fixture(scope="module")
def network():
    """An untrained network; its biases make it predict all classes."""
    keras.utils.set_random_seed(0)
    network = keras.Sequential(
        [
            keras.Input((4, 4, 1)),
            keras.layers.Conv2D(8, 3, activation="relu"),
            keras.layers.BatchNormalization(),
            keras.layers.Flatten(),
            keras.layers.Dense(3, name="logits"),
        ]
    )
    bias = -network(X, training=False).numpy().mean(axis=0)
    network.get_layer("logits").bias.assign(bias)
    return network


@pytest.mark.filterwarnings("default:.* is a SavedModel")
def test_files_and_models_agree(network, tmp_path):
    """A Keras model, its file, its SavedModel, a RobustModel, a callable."""
    network.save(tmp_path / "network.keras")
    network.export(tmp_path / "saved", verbose=False)
    y = np.argmax(network(X, training=False), 1)
    models = [
        network,
        tmp_path / "network.keras",
        str(tmp_path / "saved"),
        tfsam.RobustModel(network),
        lambda x: network(x, training=False),
    ]
    found = []
    for model in models:
        result = tfsam.evaluate(model, (X, y), ["fgsm"], "linf", [0.005, 0.02])
        found.append([row["accuracy"] for row in result["robust"]])
    assert 1 > found[0][0] > found[0][1] > 0
    np.testing.assert_allclose(found, [found[0]] * 5, atol=1 / 50 + 1e-9)


@pytest.mark.filterwarnings("default:.* is a SavedModel")
def test_a_saved_model_goes_by_its_files_however_it_comes(network, tmp_path):
    """Logits would differ on another kind of CPU, but files do not."""
    path = tmp_path / "saved"
    network.export(path, verbose=False)
    found = []
    for number, model in enumerate((path, load_logits(path))):
        workdir = tmp_path / f"evaluation{number}"
        tfsam.evaluate(model, (X, Y), [], workdir=workdir)
        record = json.loads((workdir / "record.json").read_text())
        found.append(record["model"])
    assert found == [files.digest(path)] * 2


@pytest.mark.slow
def test_xla_agrees(network):
    y = np.argmax(network(X, training=False), 1)
    found = [
        tfsam.evaluate(
            network, (X, y), ["pgd"], "l2", [0.05], jit_compile=jit_compile
        )["robust"][0]["accuracy"]
        for jit_compile in (False, True)
    ]
    assert abs(found[0] - found[1]) <= 1 / 50 + 1e-9 and 0 < found[0] < 1


def test_evaluation_moves_no_variable(network):
    before = [v.numpy().copy() for v in network.variables]
    tfsam.evaluate(network, (X, Y), ["pgd"], "linf", [0.05])
    for one, other in zip(before, network.variables, strict=True):
        np.testing.assert_array_equal(one, other)


class Module(tf.Module):
    """A SavedModel without Keras; its signature names the output."""

    def __init__(self, outputs):
        super().__init__()
        self.w = tf.Variable(W)
        self.outputs = outputs

    @tf.function(input_signature=[tf.TensorSpec((None, 4, 4, 1))])
    def predict(self, x):
        logits = tf.matmul(tf.reshape(x, [-1, 16]), self.w)
        return dict.fromkeys(self.outputs, logits)


@pytest.mark.filterwarnings("default:.* is a SavedModel")
def test_a_saved_model_that_is_not_keras_s(tmp_path):
    for outputs in (["logits"], ["features", "classes"]):
        module = Module(outputs)
        path = str(tmp_path / str(len(outputs)))
        tf.saved_model.save(module, path, module.predict)
    expected = run(["pgd"], [0.02])
    found = run(["pgd"], [0.02], model=tmp_path / "1")
    for key in ("accuracy", "max_perturbation"):
        assert found["robust"][0][key] == expected["robust"][0][key]
    with pytest.raises(ValueError, match="outputs classes, features"):
        run(model=tmp_path / "2")


def test_a_saved_model_is_loaded_with_a_warning(tmp_path, monkeypatch):
    def load(path):
        pytest.fail("loaded before the warning")

    module = Module(["logits"])
    tf.saved_model.save(module, str(tmp_path), module.predict)
    monkeypatch.setattr(tf.saved_model, "load", load)
    with pytest.raises(UserWarning, match="a SavedModel, a program"):
        run(model=tmp_path)


def test_a_callable_that_runs_eagerly_only():
    result = run(["pgd"], model=lambda x: tf.constant(linear(x).numpy()))
    assert "no gradient flows" in result["robust"][0]["error"]


def test_pixels_of_another_range_have_its_rounding():
    result = tfsam.evaluate(
        lambda x: linear(x / 255),
        (X * 255, Y),
        "pgd",
        "linf",
        1.3,
        bounds=(0, 255),
    )
    assert result["robust"][0]["accuracy"] is not None


def test_half_precision_images():
    x = X.astype("float16")
    rows = tfsam.evaluate(linear, (x, Y), ["pgd"], "l2", [0.01])["robust"]
    assert rows[0]["accuracy"] is not None


@pytest.mark.parametrize("content", ["missing", "text", "empty folder"])
def test_a_file_that_is_no_model(content, tmp_path):
    path = tmp_path / "model.keras"
    if content == "text":
        path.write_text("not a model")
    if content == "empty folder":
        path.mkdir()
    with pytest.raises(ValueError, match="Received: model="):
        run(model=path)


def test_a_callable_in_numpy_works_with_attacks_that_need_no_gradient():
    result = run(
        [cheat(lambda x, e: x)],
        model=lambda x: np.asarray(x).reshape(-1, 16) @ W,
    )
    assert result["robust"][0]["accuracy"] == 0.9


def test_progress_says_how_far_it_is():
    lines = []
    run(["pgd"], [0.01, 0.02], progress=lines.append)
    assert len(lines) == 1
    assert lines[0].startswith("pgd linf: robust accuracy so far 0.01 0.")
    assert lines[0].endswith(" of 50; 0 s left")


@pytest.mark.parametrize(
    ("epsilon", "text"),
    [
        (8 / 255, "8/255"),
        (1 / 255, "1/255"),
        (0.05, "0.05"),
        (0.2, "0.2"),
        (1.0, "1"),
        (0, "0"),
    ],
)
def test_epsilon_text(epsilon, text):
    assert budgets.epsilon_text(epsilon) == text
