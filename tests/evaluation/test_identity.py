"""Descriptions by which attacks, models and functions are recognised."""

import collections
import copy
import dataclasses
import functools
import itertools
import json
import pathlib
import re
import threading
import types

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfsam
from tfsam.evaluation import cache_key
from tfsam.models.fingerprints import alike
from tfsam.models.fingerprints import sketch
from tfsam.support import identity
from tfsam.support.identity import describe

FACTOR = 2.0


def same(value, other):
    found = [describe(value), describe(other)]
    json.dumps(found)
    return found[0] == found[1]


def compiled(text, name="made", **names):
    """Returns the object of a name from a module with this source."""
    module = types.ModuleType("somebody_s")
    vars(module).update(names)
    exec(text, vars(module))
    return vars(module)[name]


def closure(value):
    return lambda x: x * value


def defaults(value):
    return lambda x, factor=value: x * factor


class Times:
    def __init__(self, factor):
        self.factor = factor

    def __call__(self, x):
        return x * self.factor


class Slots:
    __slots__ = ("factor",)

    def __init__(self, factor):
        self.factor = factor


@dataclasses.dataclass
class Settings:
    factor: float
    names: list = dataclasses.field(default_factory=list)


class Module(tf.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = tf.Variable(factor)


def recursive(value):
    def made(x, depth=0):
        return x if depth > value else made(x * value, depth + 1)

    return made


def class_with(value):
    return compiled(f"class made:\n    factor = {value}")


def class_of_method(value):
    return compiled(f"class made:\n    def run(self): return {value}")()


def imported(value):
    helper = types.ModuleType("helper")
    helper.factor = value
    return compiled("def made(x): return x * helper.factor", helper=helper)


def base_class(value):
    class Base:
        factor = value

    class Made(Base):
        pass

    return Made()


MAKERS = {
    "closure": closure,
    "default": defaults,
    "keyword": lambda v: compiled(f"def made(x, *, f={v}): return x * f"),
    "body": lambda v: compiled(f"def made(x): return x * {v}"),
    "nested body": lambda v: compiled(
        f"def made(x): return (lambda y: y * {v})(x)"
    ),
    "global": lambda v: compiled("def made(x): return x * f", f=v),
    "helper": lambda v: compiled(
        f"def helper(x): return x * {v}\ndef made(x): return helper(x)"
    ),
    "module": imported,
    "partial": lambda v: functools.partial(lambda x, f: x * f, f=v),
    "attribute": Times,
    "method": lambda v: Times(v).__call__,
    "slots": Slots,
    "dataclass": Settings,
    "list": lambda v: closure([1, [v]]),
    "dict": lambda v: closure({"a": {"b": v}}),
    "order of a dict": lambda v: closure(
        {v: 0, 7.5: 0} if v < 3 else {7.5: 0, v: 0}
    ),
    "set": lambda v: closure({1, v}),
    "kind of set": lambda v: closure(type("S", (set,), {})({1, v})),
    "array": lambda v: closure(np.array([v])),
    "dtype": lambda v: closure(np.array([1], f"float{int(16 * v)}")),
    "tensor": lambda v: closure(tf.constant(v)),
    "variable": lambda v: closure(keras.Variable(v)),
    "tf.Module": Module,
    "tf.function": lambda v: tf.function(closure(v)),
    "custom gradient": lambda v: tf.custom_gradient(
        lambda x: (x, lambda slopes: slopes * v)
    ),
    "class attribute": class_with,
    "base class": base_class,
    "method's body": class_of_method,
    "function attribute": lambda v: compiled(
        f"def made(x): return x\nmade.factor = {v}"
    ),
    "named tuple": lambda v: collections.namedtuple("N", "f")(v),
    "default dict": lambda v: collections.defaultdict(closure(v)),
    "generator": lambda v: np.random.default_rng(int(v)),
    "recursive": recursive,
    "wrapped": lambda v: functools.wraps(len)(closure(v)),
    "decorated": lambda v: functools.lru_cache(closure(v)),
}


@pytest.mark.parametrize("maker", MAKERS.values(), ids=MAKERS)
def test_what_differs_in_one_value_is_not_the_same(maker):
    assert same(maker(2.0), maker(2.0))
    assert not same(maker(2.0), maker(4.0))


def test_numbers_of_other_types_are_not_the_same():
    values = [1, 1.0, True, np.float32(1), np.float64(1), "1", [1], (1,), {1}]
    for one, other in itertools.combinations(values, 2):
        assert identity.digest(describe(one)) != identity.digest(
            describe(other)
        )


def test_a_copy_is_the_same():
    attack = tfsam.PGD(0.1, steps=3)
    assert same(attack, copy.deepcopy(attack))
    assert describe(attack, ["epsilon"]) == describe(
        tfsam.PGD(0.2, steps=3), ["epsilon"]
    )


def test_what_goes_round_in_a_circle_is_described():
    one, other = [1], [1]
    one.append(one)
    other.append(other)
    assert same(one, other)


def opaque():
    lock = threading.Lock()

    def made(x):
        with lock:
            return x

    return made


@pytest.mark.parametrize(
    "made",
    [
        opaque,
        lambda: (number for number in [1]),
        lambda: Times(threading.Lock()),
        lambda: tf.data.Dataset.range(3),
        lambda: compiled("def made(x): return f(x)", f=open(__file__).read),
    ],
    ids=["closure", "generator", "attribute", "dataset", "C"],
)
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_what_cannot_be_described_is_said(made):
    with pytest.raises(identity.Unknown, match="an object of"):
        describe(made())


def network(activation="relu", seed=0, extra=None):
    keras.utils.set_random_seed(seed)
    layers = [
        keras.Input((4, 4, 1)),
        keras.layers.Flatten(),
        keras.layers.Dropout(0.1),
        keras.layers.Dense(6, activation),
        *([extra] if extra else []),
        keras.layers.Dense(3),
    ]
    return keras.Sequential(layers)


def functional(number, twice=False):
    keras.utils.set_random_seed(0)
    x = keras.Input((4, 4, 1))
    flat = keras.layers.Flatten()(x)
    one, two = keras.layers.Dense(3), keras.layers.Dense(3)
    y, z = one(flat), two(flat)
    return keras.Model(x, number * y + (y if twice else z))


class Defended(keras.Model):
    def __init__(self, inner, defended, unused=None):
        super().__init__()
        self.inner, self.defended = inner, defended
        self.log = unused

    def call(self, x):
        if self.defended:
            x = keras.ops.round(x)
        return self.inner(x)


class Everything(keras.Model):
    """A model with attributes of many kinds, all of which `call` reads."""

    def __init__(self, factor):
        super().__init__()
        keras.utils.set_random_seed(0)
        self.blocks = [keras.layers.Flatten(), keras.layers.Dense(4)]
        self.settings = {"factors": [factor], "kinds": {"a", "b"}}
        self.mean, self.activation = tf.constant([1.0, 2.0]), tf.nn.relu
        self.noise = keras.random.SeedGenerator(3)
        self.dropout = keras.layers.Dropout(0.3)

    def call(self, x, training=None):
        for block in self.blocks:
            x = block(x)
        x = self.dropout(self.activation(x), training=training)
        if training:
            x += keras.random.normal(x.shape, seed=self.noise)
        if "a" in self.settings["kinds"]:
            x *= self.mean[0] * self.settings["factors"][0]
        return x


def subclass(text="x"):
    keras.utils.set_random_seed(0)
    made = compiled(
        "class made(keras.layers.Layer):\n"
        "    def call(self, x):\n"
        f"        return {text}",
        keras=keras,
    )
    return network(extra=made())


@keras.saving.register_keras_serializable("tests")
def twice(x):
    return FACTOR * x


class Wrapped(keras.layers.Wrapper):
    def call(self, x):
        return self.layer(x)


def wrapped(factor):
    return network(extra=Wrapped(ones(activation=closure(factor))))


def ones(**options):
    return keras.layers.Dense(6, kernel_initializer="ones", **options)


NETWORKS = {
    "activation": [lambda: network("relu"), lambda: network("tanh")],
    "weights": [lambda: network(seed=0), lambda: network(seed=1)],
    "function": [lambda: network(closure(2)), lambda: network(closure(3))],
    "Lambda": [
        lambda: network(extra=keras.layers.Lambda(lambda x: x * 2)),
        lambda: network(extra=keras.layers.Lambda(lambda x: x * 3)),
    ],
    "arguments of Lambda": [
        lambda: network(
            extra=keras.layers.Lambda(lambda x, f: f * x, arguments={"f": 2})
        ),
        lambda: network(
            extra=keras.layers.Lambda(lambda x, f: f * x, arguments={"f": 3})
        ),
    ],
    "flag": [
        lambda: Defended(network(), True),
        lambda: Defended(network(), False),
    ],
    "call": [lambda: subclass(text="x"), lambda: subclass(text="x * 2")],
    "wrapped": [lambda: wrapped(2), lambda: wrapped(3)],
    "setting": [lambda: Everything(2.0), lambda: Everything(3.0)],
    "constant": [lambda: functional(2.0), lambda: functional(3.0)],
    "graph": [lambda: functional(2.0), lambda: functional(2.0, True)],
    "policy": [
        lambda: network(extra=ones(dtype="float32")),
        lambda: network(extra=ones(dtype="mixed_bfloat16")),
    ],
    "instance's call": [
        lambda: _with_call(network(), closure(2)),
        lambda: _with_call(network(), closure(3)),
    ],
}


def _with_call(model, call):
    model.layers[-1].call = lambda x, training=None: call(x)
    return model


@pytest.mark.parametrize("makers", NETWORKS.values(), ids=NETWORKS)
def test_networks_that_compute_differently_are_not_the_same(makers):
    """Also if they are made again: Keras numbers names and draws seeds."""
    one, again, other = makers[0](), makers[0](), makers[1]()
    for model in (one, again, other):
        model(np.zeros((1, 4, 4, 1), "float32"))
    assert same(one, again)
    assert not same(one, other)


def test_a_network_is_the_same_in_training_and_from_a_file(tmp_path):
    model = network()
    before = describe(model)
    model.compile("adam", "mse", metrics=["mae"])
    model.save(tmp_path / "model.keras")
    assert describe(model) == before
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert describe(loaded) == before
    assert describe(tfsam.RobustModel(model)) == before
    small = tfsam.networks.preact_resnet8(10, input_shape=(8, 8, 1))
    small.save(tmp_path / "small.keras")
    assert same(small, keras.saving.load_model(tmp_path / "small.keras"))


def test_attributes_that_inference_does_not_read_do_not_matter():
    lock = threading.Lock()
    assert same(
        Defended(network(), True, lock), Defended(network(), True, lock)
    )

    class Locked(Defended):
        def call(self, x):
            with self.log:
                return self.inner(x)

    with pytest.raises(identity.Unknown, match=r"Locked\.log"):
        describe(Locked(network(), True, lock))


def test_a_function_of_a_registered_activation_is_known_by_its_code(
    monkeypatch,
):
    before = describe(network(twice))
    monkeypatch.setitem(globals(), "FACTOR", 3.0)
    assert describe(network(twice)) != before


def linear(x):
    return tf.reshape(x, (len(x), -1)) @ WEIGHTS


WEIGHTS = np.random.default_rng(0).normal(size=(16, 3)).astype("float32")
X = np.random.default_rng(1).random((16, 4, 4, 1)).astype("float32")


def test_a_sketch_tells_gradients_apart_and_forgives_rounding():
    @tf.custom_gradient
    def reversed_(x):
        return tf.identity(x), lambda slopes: -slopes

    plain = sketch(linear, X)
    assert alike(plain, json.loads(json.dumps(plain)))
    rounded = sketch(lambda x: linear(x * (1 + 1e-6)), X)
    assert alike(plain, rounded)
    for other in (
        lambda x: linear(reversed_(x)),
        lambda x: 2 * linear(x),
        lambda x: linear(tf.stop_gradient(x)),
        lambda x: linear(np.asarray(x)[:, ::-1]),
    ):
        assert not alike(plain, sketch(other, X))
    # Of one image in sixteen a quantised network may be at a step.
    step = {k: [[9.0] * 3, *v[1:]] for k, v in plain.items()}
    assert alike(plain, step)


def test_random_outputs_have_no_sketch_and_are_like_any():
    random = sketch(lambda x: linear(x) + tf.random.normal((16, 3)), X)
    assert random is None
    assert alike(random, sketch(linear, X))


# Modules that decide no verdict: of messages, warnings, and headers.
UNDECISIVE = {
    *("budgets", "diagnosis", "headers", "intervals", "old_records"),
    *("progress", "red_flags"),
}


def test_all_code_that_decides_verdicts_is_in_the_cache_key():
    package = pathlib.Path(tfsam.__file__).parent
    decisive = {
        path
        for pattern in cache_key._DECISIVE
        for path in package.glob(pattern)
    }
    for pattern in cache_key._DECISIVE:
        assert list(package.glob(pattern)), pattern
    imported = re.compile(r"^from tfsam\.evaluation(?:\.| import )(\w+)", re.M)
    used = {n for path in decisive for n in imported.findall(path.read_text())}
    known = {path.stem for path in decisive if path.parent.name == "evaluation"}
    assert used - UNDECISIVE <= known
