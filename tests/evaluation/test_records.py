"""Records: recognising their evaluation, and resuming it."""

import json
import pathlib
import shutil
import subprocess
import sys
import textwrap
import threading
import types
import zipfile

import hypothesis
import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import TESTS
from helpers import examples
from helpers import to_0_1_0
from hypothesis import strategies as st

import tfsam
from tfsam import registries
from tfsam.evaluation import cache_key
from tfsam.evaluation import headers
from tfsam.evaluation import measure
from tfsam.evaluation import verdicts
from tfsam.models.fingerprints import from_file
from tfsam.models.loading import load_logits
from tfsam.support import files

RANDOM = np.random.default_rng(0)
X = RANDOM.random((20, 4, 4, 1)).astype("float32")
WEIGHTS = RANDOM.normal(size=(16, 3)).astype("float32")
Y = (X.reshape(20, 16) @ WEIGHTS).argmax(axis=1)


def linear(x):
    return tf.reshape(x, (-1, 16)) @ WEIGHTS


def evaluate(folder, model=linear, attacks=(), data=(X, Y), **kwargs):
    kwargs = {"epsilons": [0.1], "strict": True, "batch_size": 8} | kwargs
    return tfsam.evaluate(model, data, attacks, workdir=folder, **kwargs)


@pytest.fixture(scope="module")
def network():
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Flatten(), keras.layers.Dense(3)]
    return keras.Sequential([keras.Input((4, 4, 1)), *layers])


def made(text, **names):
    """Returns `made` from a module with this source."""
    module = types.ModuleType("somebody_s")
    vars(module).update(keras=keras, tf=tf, tfsam=tfsam, **names)
    exec(text, vars(module))
    return module.made


def factory(steps):
    return made(
        "def made(epsilon, norm, bounds):\n"
        f"    return tfsam.PGD(epsilon, norm, {steps}, bounds=bounds)"
    )


def parts(folder):
    """Returns the attacks' parts of a record."""
    return sorted(path.name for path in folder.glob("[0-9]*-*"))


def test_an_attack_with_another_setting_is_another_attack(tmp_path):
    for steps in (1, 1, 2, 1, 2):
        evaluate(tmp_path, attacks=[factory(steps)])
    assert parts(tmp_path) == ["00-made", "01-made"]


def test_the_error_says_which_setting_is_another(tmp_path):
    evaluate(tmp_path)
    with pytest.raises(files.Unusable, match=r"seed=2 \(it has 0\)$"):
        evaluate(tmp_path, seed=2)


def test_the_same_logits_with_another_gradient_are_another_model(tmp_path):
    @tf.custom_gradient
    def reversed_(x):
        return tf.identity(x), lambda slopes: -slopes

    class Opaque:
        """An attack that only a name can describe."""

        def __init__(self, function):
            self.function, self.lock = function, threading.Lock()

        def __call__(self, x):
            return self.function(x)

    evaluate(tmp_path, Opaque(linear), name="mine")
    evaluate(tmp_path, Opaque(linear), name="mine")
    with pytest.raises(files.Unusable, match="model_sketch=other logits or"):
        evaluate(tmp_path, Opaque(lambda x: linear(reversed_(x))), name="mine")
    with pytest.raises(files.Unusable, match=r"Received: .*model=yours \(it"):
        evaluate(tmp_path, Opaque(linear), name="yours")


def locked(lock):
    def model(x):
        with lock:
            return linear(x)

    return model


def test_a_model_that_cannot_be_described_needs_a_name(tmp_path):
    model = locked(threading.Lock())
    expected = evaluate(None, model)["natural"]
    with pytest.raises(ValueError, match=r"thread\.lock\) needs name='\.\.\.'"):
        evaluate(tmp_path, model)
    assert not list(tmp_path.iterdir())
    assert evaluate(tmp_path, model, name="mine")["natural"] == expected
    other = tmp_path / "transfer"
    with pytest.raises(ValueError, match="needs surrogate_name="):
        evaluate(other, surrogate=model)
    for number, called in enumerate(["mine", "yours"], 1):
        evaluate(other, surrogate=model, surrogate_name=called)
        record = json.loads((other / "record.json").read_text())
        assert len(record["surrogates"]) == number


def test_an_attack_that_cannot_be_described_needs_a_name(tmp_path):
    lock = threading.Lock()

    def mine(epsilon, norm, bounds, steps=1):
        def attack(logits_fn, x, y, seed):
            with lock:
                return tfsam.PGD(epsilon, norm, steps)(logits_fn, x, y, seed)

        return attack

    evaluate(None, attacks=[mine])
    with pytest.raises(ValueError, match=r"needs a name, \('\.\.\.', factory"):
        evaluate(tmp_path, attacks=[mine])
    row = evaluate(tmp_path, attacks=[("first", mine)])["robust"][0]
    assert row["attack"] == "first"
    evaluate(tmp_path, attacks=[("first", mine)])
    for other in (("second", mine), ("first", mine, {"steps": 2})):
        evaluate(tmp_path, attacks=[other])
    assert parts(tmp_path) == ["00-first", "01-second", "02-first"]


def test_an_installed_attack_needs_no_name(tmp_path, monkeypatch):
    """An object of a package with a version."""

    class Plugin(tfsam.PGD):
        def __init__(self, epsilon, norm="linf", bounds=(0.0, 1.0)):
            super().__init__(epsilon, norm, 1, bounds=bounds)
            self.lock = threading.Lock()

    monkeypatch.setitem(registries.ATTACKS.native, "plugin", Plugin)
    evaluate(tmp_path, attacks=["plugin"])
    evaluate(tmp_path, attacks=["plugin"])


@pytest.mark.parametrize(
    "bad", [("a", 1), ("a", len, 1), (len, {}, {}), ("a",)]
)
def test_entries_that_are_no_attacks_are_refused(bad):
    with pytest.raises(ValueError, match="an attack must be a name"):
        evaluate(None, attacks=[bad])


def test_an_attack_that_failed_to_be_made_is_tried_again(tmp_path):
    failing = made(
        "def made(epsilon, norm, bounds):\n"
        "    if broken: raise RuntimeError('not today')\n"
        "    return tfsam.FGSM(epsilon, norm, bounds=bounds)",
        broken=True,
    )
    (row,) = evaluate(tmp_path, attacks=[failing], strict=False)["robust"]
    assert "not today" in row["error"]
    failing.__globals__["broken"] = False
    (row,) = evaluate(tmp_path, attacks=[failing])["robust"]
    assert "error" not in row
    # From now on it can be described.
    other = made(
        "def made(epsilon, norm, bounds):\n"
        "    return tfsam.FGSM(epsilon, norm, epsilon / 2, bounds=bounds)"
    )
    assert parts(tmp_path) == ["00-made"]
    evaluate(tmp_path, attacks=[other])
    assert parts(tmp_path) == ["00-made", "01-made"]


def test_options_are_shown_alike_in_every_process():
    options = cache_key.plain_options({"f": factory(1), "g": lambda x: x})
    assert " at 0x" not in str(options)


def test_records_of_0_1_0_are_read_and_merged_and_no_more(tmp_path):
    folders = [tmp_path / str(shard) for shard in range(2)]
    for shard, folder in enumerate(folders):
        evaluate(
            *(folder, linear, ["noise_linf"]),
            epsilons=[0.1, 0.3, 0.2],
            shard=(shard, 2),
        )
        shutil.copytree(folder, tmp_path / "whole", dirs_exist_ok=True)
    expected = tfsam.merge(folders)
    found = verdicts.load(tmp_path / "whole")
    for folder in [*folders, tmp_path / "whole"]:
        to_0_1_0(folder)
    assert tfsam.merge(folders) == expected
    for key, column in verdicts.load(tmp_path / "whole").items():
        np.testing.assert_array_equal(column, found[key])
    with pytest.raises(files.Unusable, match=r"schema=3 \(it has 1\)") as said:
        evaluate(folders[0], attacks=["noise_linf"], shard=(0, 2))
    assert "another version of tfsam" in str(said.value)
    assert len(str(said.value).splitlines()) == 1


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    for shard in range(2):
        evaluate(folder / str(shard), attacks=["noise_l2"], shard=(shard, 2))
    return folder


@pytest.mark.parametrize(
    ("change", "merges", "words"),
    [
        ({"devices": "GPU"}, True, "different devices"),
        ({"versions": {"tensorflow": "2.20.0"}}, True, "different versions"),
        ({"versions": {"python": "3.13"}}, True, "different versions"),
        ({"jit_compile": True}, True, "different jit_compile"),
        ({"versions": {"tfsam": "0.3.0"}}, False, "tfsam 0"),
        ({"versions": {"tfsam's attacks": "0"}}, False, "tfsam's attacks"),
        ({"model": "0"}, False, "model="),
    ],
    ids=str,
)
def test_shards_of_different_kinds_do_not_merge_without_a_word(
    shards, tmp_path, change, merges, words
):
    shutil.copytree(shards, tmp_path / "shards")
    folders = [tmp_path / "shards" / str(shard) for shard in range(2)]
    expected = tfsam.merge(folders)
    path = folders[1] / "record.json"
    header = json.loads(path.read_text())
    for key, value in change.items():
        if isinstance(value, dict):
            value = header[key] | value
        path.write_text(json.dumps(header | {key: value}))
    if merges:
        found = tfsam.merge(folders)
        (warning,) = found["warnings"]
        assert warning["warning"] == "mixed_shards"
        assert words in warning["message"]
        assert found["robust"] == expected["robust"]
    else:
        with pytest.raises(files.Unusable, match=words):
            tfsam.merge(folders)
    # Such a folder cannot be resumed.
    with pytest.raises(files.Unusable, match=f"Received: {next(iter(change))}"):
        evaluate(folders[1], attacks=["noise_l2"], shard=(1, 2))


def test_rounding_is_no_other_model(tmp_path):
    """Logits of another processor, or of another number of threads."""
    evaluate(tmp_path)
    path = tmp_path / "record.json"
    header = json.loads(path.read_text())
    for values in header["model_sketch"].values():
        for row in values:
            row[:] = [number * (1 + 1e-5) for number in row]
    path.write_text(json.dumps(header))
    evaluate(tmp_path)


def test_an_evaluation_without_epsilons_is_resumed(tmp_path):
    for _ in range(2):
        assert evaluate(tmp_path, epsilons=[])["robust"] == []


def test_a_model_of_random_outputs_is_resumed(tmp_path):
    def noisy(x):
        return linear(x) + tf.random.normal([3])

    evaluate(tmp_path, noisy)
    evaluate(tmp_path, noisy)


def test_a_model_without_gradients_is_resumed(tmp_path):
    def numpy(x):
        return np.asarray(x).reshape(-1, 16) @ WEIGHTS

    for _ in range(2):
        evaluate(tmp_path, numpy, attacks=["noise_linf"])
    header = json.loads((tmp_path / "record.json").read_text())
    assert header["model_sketch"]["gradients"] is None


def rewritten(path, other):
    """Copies a .keras file, with another date."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(other, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name == "metadata.json":
                day = {"date_saved": "2020-01-01@00:00:00"}
                content = json.dumps(json.loads(content) | day)
            new.writestr(zipfile.ZipInfo(name, (2020, 1, 1, 0, 0, 0)), content)
    return other


def test_a_model_from_a_file_is_known_by_the_file_and_its_code(
    tmp_path, monkeypatch
):
    @keras.saving.register_keras_serializable("test_records")
    class Scaled(keras.layers.Layer):
        factor = 1.0

        def call(self, x):
            return self.factor * x

    inner = [keras.layers.Flatten(), keras.layers.Dense(3), Scaled()]
    model = keras.Sequential([keras.Input((4, 4, 1)), *inner])
    path = tmp_path / "model.keras"
    model.save(path)
    for given in (path, str(path), load_logits(path)):
        evaluate(tmp_path / "a", given)
    header = json.loads((tmp_path / "a" / "record.json").read_text())
    # Of the file's contents, without the time at which it was written.
    assert header["model"] == from_file(path, "keras")["files"]
    assert header["model_parts"]["loading"] == {"format": "keras"}
    again = shutil.copytree(tmp_path / "a", tmp_path / "b")
    evaluate(again, rewritten(path, tmp_path / "again.keras"))
    model.layers[1].bias.assign([0.0, 0.0, 1e-6])
    model.save(tmp_path / "other.keras")
    with pytest.raises(files.Unusable, match="Received: model="):
        evaluate(again, tmp_path / "other.keras")
    monkeypatch.setattr(Scaled, "factor", 1.0 + 1e-7)
    with pytest.raises(files.Unusable, match="model_parts=network"):
        evaluate(tmp_path / "a", path)


SCRIPT = """
    import sys
    sys.path[:0] = {paths!r}
    import test_records as t
    keras, tfsam = t.keras, t.tfsam
    class Net(keras.Model):
        def __init__(self):
            super().__init__()
            self.inner, self.marks = keras.layers.Dense(3), {{"a", "b", "c"}}
        def call(self, x):
            if "a" in self.marks:
                x = keras.ops.reshape(x, (-1, 16))
            return self.inner(x)
    keras.utils.set_random_seed(0)
    for attacks in ([t.factory(1)], ["autoattack"], [t.tfsam.PGD]):
        name = getattr(attacks[0], "__name__", "autoattack")
        t.evaluate({folder!r} + name, Net(), attacks, epsilons=[])
    @keras.saving.register_keras_serializable("test_records")
    class Doubled(keras.layers.Layer):
        def call(self, x):
            return 2 * x
    def network():
        layers = [keras.layers.Flatten(), keras.layers.Dense(3), Doubled()]
        return keras.Sequential([keras.Input((4, 4, 1)), *layers])
    path = {folder!r} + "model.keras"
    if {first}:
        network().save(path)
    else:  # Earlier models increase the numbers in the names of layers.
        networks = [network() for _ in range(3)]
    t.evaluate({folder!r} + "file", path, epsilons=[])
"""


@pytest.mark.slow
def test_another_process_recognises_everything(tmp_path):
    """Hash seeds and earlier objects have no influence."""
    for first in (True, False):
        text = textwrap.dedent(SCRIPT).format(
            first=first,
            paths=[str(pathlib.Path(__file__).parent), str(TESTS)],
            folder=f"{tmp_path}/",
        )
        subprocess.run([sys.executable, "-c", text], check=True)


# A property: whatever is changed is either recognised, or changes no verdict.

ATTACKS = {
    "body": factory,
    "closure": lambda steps: _closure(steps),
    "default": lambda steps: made(
        f"def made(epsilon, norm, bounds, steps={steps}):\n"
        "    return tfsam.PGD(epsilon, norm, steps, bounds=bounds)"
    ),
    "global": lambda steps: made(
        "def made(epsilon, norm, bounds):\n"
        "    return tfsam.PGD(epsilon, norm, steps, bounds=bounds)",
        steps=steps,
    ),
    "options": lambda steps: (tfsam.PGD, {"steps": steps}),
    "name and options": lambda steps: ("pgd", {"steps": steps}),
    "class": lambda steps: made(
        "class made(tfsam.PGD):\n"
        "    def __init__(self, epsilon, norm, bounds):\n"
        f"        super().__init__(epsilon, norm, {steps}, bounds=bounds)"
    ),
    "perturb": lambda steps: made(
        "class made(tfsam.PGD):\n"
        "    def perturb(self, logits_fn, x, y, seeds):\n"
        f"        self.steps = {steps}\n"
        "        return tfsam.PGD.perturb(self, logits_fn, x, y, seeds)"
    ),
    "epsilon": lambda steps: made(
        "class made(tfsam.PGD):\n"
        "    def __init__(self, epsilon, norm, bounds):\n"
        f"        super().__init__({steps} * epsilon / 9, norm, 2)\n"
    ),
    "derived": lambda steps: made(
        "def made(epsilon, norm, bounds):\n"
        f"    return tfsam.PGD(epsilon, norm, 2, {steps} * epsilon / 9)"
    ),
    "stages": lambda steps: made(
        "class made(tfsam.attacks.Attack):\n"
        "    in_graph = True\n"
        "    @property\n"
        "    def stages(self):\n"
        f"        return [('a', tfsam.PGD(self.epsilon, self.norm, {steps}))]"
    ),
    "function": lambda steps: made(
        "def made(epsilon, norm, bounds):\n"
        "    attack = tfsam.PGD(epsilon, norm, steps, bounds=bounds)\n"
        "    return lambda *arguments: attack(*arguments)",
        steps=steps,
    ),
}


def _closure(steps):
    def mine(epsilon, norm, bounds):
        return tfsam.PGD(epsilon, norm, steps, bounds=bounds)

    return mine


def _sequential(*layers):
    keras.utils.set_random_seed(0)
    first = [keras.layers.Flatten(), keras.layers.Dense(3, name="first")]
    return keras.Sequential([keras.Input((4, 4, 1)), *first, *layers])


MODELS = {
    "closure": lambda v: lambda x: linear(x) * v,
    "body": lambda v: made(f"def made(x): return f(x) * {v}", f=linear),
    "global": lambda v: made(
        "def made(x): return f(x) + v * (x[:, 0, 0] - 0.5)", f=linear, v=v
    ),
    "Lambda": lambda v: _sequential(keras.layers.Lambda(lambda x: x * v)),
    "layer": lambda v: _sequential(
        made(
            "class made(keras.layers.Layer):\n"
            f"    def call(self, x): return x * {v}"
        )()
    ),
    "flag": lambda v: made(
        "class made(keras.Model):\n"
        "    def __init__(self, v):\n"
        "        super().__init__()\n"
        "        self.v = v\n"
        "    def call(self, x): return self.v * f(x)",
        f=linear,
    )(v),
    "weights": lambda v: _scaled(_sequential(), v),
    "gradient": lambda v: made(
        "@tf.custom_gradient\n"
        "def g(x): return tf.identity(x), lambda s: v * (s - 1.5)\n"
        "def made(x): return f(g(x))",
        f=linear,
        v=v,
    ),
}


def _scaled(model, factor):
    model.set_weights([w * factor for w in model.get_weights()])
    return model


SPECIFICATIONS = st.fixed_dictionaries(
    {
        "attack": st.tuples(st.sampled_from(list(ATTACKS)), st.integers(1, 3)),
        "model": st.tuples(st.sampled_from(list(MODELS)), st.integers(1, 3)),
        "pixel": st.sampled_from([0.0, 0.25, 0.5]),
        "label": st.integers(0, 2),
        "epsilons": st.sampled_from([(0.1,), (0.2,), (0.1, 0.2)]),
        "norm": st.sampled_from(["linf", "l2"]),
        "seed": st.integers(0, 1),
        "batch_size": st.sampled_from([8, 16]),
        "bounds": st.sampled_from([(0.0, 1.0), (0.0, 1.5), None]),
        "warm_start": st.booleans(),
    }
)


def arguments(specification):
    """Returns new objects for all arguments of `evaluate`."""
    kwargs = dict(specification)
    kind, value = kwargs.pop("model")
    model = MODELS[kind](float(value))
    kind, steps = kwargs.pop("attack")
    x, y = X.copy(), Y.copy()
    x[0, 0, 0] = kwargs.pop("pixel")
    y[0] = kwargs.pop("label")
    return {
        "model": model,
        "data": (x, y),
        # One of them can start where another epsilon has ended.
        "attacks": [ATTACKS[kind](steps), ("pgd", {"steps": 1})],
        **kwargs,
    }


class _Enough(Exception):
    """Raised once the record has its header."""


def header(specification):
    def stop(plan, workers, record, part):
        found.append(record.header)
        raise _Enough

    found: list = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "measure_natural", stop)
        patch.setattr(verdicts.files, "write_json", lambda *arguments: None)
        with pytest.raises(_Enough):
            tfsam.evaluate(
                **arguments(specification), workdir="/tmp/never-written"
            )
    return found[0]


def recognised(held, found):
    try:
        headers.check_same(held, found, "the folder")
        return headers.grown(held, found).header == held
    except files.Unusable:
        return False


def columns(specification):
    result = tfsam.evaluate(**arguments(specification), strict=True)
    return [row["accuracy"] for row in result["robust"]]


CHANGES = SPECIFICATIONS.flatmap(
    lambda other: st.sampled_from([{key: other[key]} for key in other])
)


@pytest.mark.filterwarnings("ignore:.*cannot start from an image")
@pytest.mark.timeout(1800)
@hypothesis.settings(max_examples=examples(4))
@hypothesis.given(SPECIFICATIONS, CHANGES)
def test_a_change_is_recognised_or_changes_no_verdict(specification, other):
    held = header(specification)
    assert recognised(held, json.loads(json.dumps(header(specification))))
    found = header(specification | other)
    if specification | other == specification:
        assert recognised(held, found)
    elif recognised(held, found):
        assert columns(specification) == columns(specification | other)


@pytest.mark.slow
def test_every_attack_and_model_is_recognised_by_its_value():
    """The differences that the property tests cover do occur."""
    plain = {"epsilons": (0.1,), "norm": "linf", "seed": 0, "batch_size": 8}
    plain |= {"bounds": (0.0, 1.0), "warm_start": False, "pixel": 0, "label": 0}
    plain |= {"attack": ("body", 1), "model": ("body", 1)}
    for key, kinds in (("attack", ATTACKS), ("model", MODELS)):
        for kind in kinds:
            one, two = (header(plain | {key: (kind, v)}) for v in (1, 2))
            assert not recognised(one, two), kind
    assert (
        cache_key.versions()["tfsam's attacks"]
        == one["versions"]["tfsam's attacks"]
    )
