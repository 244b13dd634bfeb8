"""Malformed input of every kind: one line, exit code 2, nothing changed.

Hypothesis breaks command lines, flags, results files, .npz files, folders of
images and model files. A broken byte may do no harm: such input is let through,
to a run that is not started here, and does not count. A sample of rejected
input is then given to the command itself, each in a process of its own.
"""

import contextlib
import io
import json
import os
import pathlib
import random
import re
import shutil
import subprocess
import sys
import zipfile
from typing import NamedTuple

import hypothesis
import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import settings_of
from hypothesis import strategies as st

from tfsam import run
from tfsam.runs import stages

pytestmark = pytest.mark.slow


class Refused(NamedTuple):
    """Input that was refused: a command, and the files of its folder."""

    folder: pathlib.Path
    command: list
    files: dict
    line: str


REFUSED = []
SETTINGS = hypothesis.settings(
    max_examples=110,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(hypothesis.HealthCheck),
)


@pytest.fixture(scope="module", autouse=True)
def no_runs():
    """Valid input would start a training: this prevents it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages, "run", lambda *_: None)
        patch.setattr(stages.reports, "table", lambda _: "let through")
        yield


@pytest.fixture
def folder(tmp_path):
    """A folder for all files of a kind of input."""
    return tmp_path


def contents(folder):
    """Every path below a folder, with the bytes of the files."""
    return {
        path: path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def errors(text):
    """The lines, without the warning that comes before a SavedModel."""
    return [line for line in text.splitlines() if "a program" not in line]


def assert_refused_or_let_through(folder, arguments, workdir, surely):
    """Calls the command line, and keeps rejected input."""
    command = [*arguments, f"--workdir={workdir}"]
    before = contents(folder)
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run.main(command)
    if code == 0 and not surely:
        return
    assert code == 2, out.getvalue()
    (line,) = errors(err.getvalue())
    assert line.startswith("tfsam: ") and len(line) > 10
    assert out.getvalue() == ""
    assert before == contents(folder)
    REFUSED.append(Refused(folder, command, before, line))


# Command lines.

WORDS = st.text(st.characters(codec="ascii", exclude_characters="\0"))


def is_not(parse):
    def check(text):
        try:
            parse(text)
        except Exception:
            return True
        return False

    return check


def numbers_below_zero(flag):
    return st.builds(
        lambda a, b: f"--{flag}=-{a}/{b}",
        st.integers(1, 10**6),
        st.integers(1, 10**6),
    )


INTEGERS = (
    *("epochs", "batch_size", "limit_train", "limit_test", "seed"),
    *("steps", "attack_steps", "checkpoint_steps", "average_start", "draws"),
)
NUMBERS = ("rho", "learning_rate", "momentum", "weight_decay", "epsilon")
CHOICES = (
    *("method", "preset", "network", "attacks", "select", "jit_compile"),
    *("sharpness", "devices", "dataset", "norm", "precision", "strategy"),
    *("shard", "transfer_attacks", "sweep"),
)
VALUES = ("auto", "true", "false", "last", "clean", "robust", "global", "cpu")

broken_flags = st.one_of(
    # Whole numbers that are malformed or out of range.
    *(
        WORDS.filter(is_not(int)).map(f"--{flag}={{}}".format)
        for flag in INTEGERS
    ),
    *(
        st.integers(max_value=-1).map(f"--{flag}={{}}".format)
        for flag in INTEGERS
    ),
    *(
        st.integers(min_value=2**31).map(f"--{flag}={{}}".format)
        for flag in INTEGERS
    ),
    # Numbers.
    *(numbers_below_zero(flag) for flag in NUMBERS),
    *(
        st.sampled_from(
            ["nan", "inf", "-inf", "1e999", "0/0", "x", "1/", "--"]
        ).map(f"--{flag}={{}}".format)
        for flag in (*NUMBERS, "linf_epsilons", "l2_epsilons", "l1_epsilons")
    ),
    # Names.
    *(
        st.text("abcdefghijklmnop:/.", min_size=1)
        .filter(lambda text: text not in VALUES)
        .map(f"--{flag}=zz{{}}".format)
        for flag in CHOICES
    ),
    # Home folders of unknown users.
    *(
        st.text("abcdefghij", min_size=1).map(f"--{flag}~zz{{}}/x".format)
        for flag in ("cache_dir=", "dataset=npz:", "dataset=folder:")
    ),
    # Unknown flags, and words that are no flags.
    st.text("abcdefghij_", min_size=3).map("--zz{}".format),
    st.text("abcdefghij", min_size=1),
    st.sampled_from(["--shard=3/3", "--merge=", "--evaluate=", "--shard=0/2"]),
    st.sampled_from(["--cache_dir=", "--epsilon=1e39", "--steps=1e9"]),
)


@SETTINGS
@hypothesis.given(
    st.lists(broken_flags, min_size=1, max_size=3),
    st.lists(st.sampled_from(["--rho=0.1", "--epochs=2", "--seed=3"])),
)
def test_command_lines(folder, broken, good):
    workdir = folder / "never"
    assert_refused_or_let_through(
        folder, [*good, *broken], workdir, surely=True
    )
    assert not workdir.exists()


# Files: their bytes, broken.


def broken_bytes(whole):
    """Truncates, overwrites or replaces a file."""
    size = len(whole)
    cut = st.integers(0, size - 1).map(lambda n: whole[:n])
    overwritten = st.tuples(
        st.integers(0, size - 1), st.binary(min_size=1, max_size=64)
    ).map(lambda p: whole[: p[0]] + p[1] + whole[p[0] + len(p[1]) :])
    return st.one_of(cut, overwritten, st.binary(max_size=200))


def npz_bytes(**arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


IMAGES = {
    "x_train": np.linspace(0, 1, 24 * 64).reshape(24, 8, 8, 1),
    "y_train": np.arange(24) % 3,
    "x_test": np.linspace(0, 1, 12 * 64).reshape(12, 8, 8, 1),
    "y_test": np.arange(12) % 3,
}
NAMES = st.sampled_from(list(IMAGES))
WRONG_ARRAYS = st.sampled_from(
    [
        *(np.zeros(0), np.zeros(5), np.zeros((24, 8, 9, 1)), np.array(3.0)),
        *(np.full((24, 8, 8, 1), np.nan), np.full((24, 8, 8, 1), 2.0)),
        *(np.full((24, 8, 8, 1), -0.5), np.array(["a"] * 24)),
        *(np.full(24, -1), np.full(24, 10**9), np.full(24, 0.5)),
        *(np.full(24, np.nan), np.zeros((24, 8, 8, 7)), np.ones(24, bool)),
    ]
)
npz_files = st.one_of(
    broken_bytes(npz_bytes(**IMAGES)),
    st.tuples(NAMES, WRONG_ARRAYS).map(
        lambda p: npz_bytes(**(IMAGES | {p[0]: p[1]}))
    ),
    NAMES.map(lambda n: npz_bytes(**{k: IMAGES[k] for k in IMAGES if k != n})),
)


@SETTINGS
@hypothesis.given(npz_files)
def test_npz_files(folder, data):
    path = folder / "data.npz"
    path.write_bytes(data)
    with fresh(folder) as workdir:
        assert_refused_or_let_through(
            folder, [f"--dataset=npz:{path}"], workdir, surely=False
        )


@contextlib.contextmanager
def fresh(folder):
    """A workdir that exists neither before nor after."""
    workdir = folder / "work"
    yield workdir
    if workdir.exists():  # It was let through.
        (workdir / "config.json").unlink()
        for path in sorted(workdir.rglob("*"), reverse=True):
            path.unlink() if path.is_file() else path.rmdir()
        workdir.rmdir()


PNG = tf.io.encode_png(np.full((8, 8, 1), 7, "uint8")).numpy()
OTHER_SIZE = tf.io.encode_png(np.zeros((8, 9, 1), "uint8")).numpy()
COLOURED = tf.io.encode_png(np.zeros((8, 8, 3), "uint8")).numpy()


@SETTINGS
@hypothesis.given(
    st.sampled_from(["train/ant/0.png", "test/bee/1.png", "train/cat/0.png"]),
    st.one_of(broken_bytes(PNG), st.sampled_from([OTHER_SIZE, COLOURED])),
)
def test_folders_of_images(folder, broken, data):
    images = folder / "images"
    for part in ("train", "test"):
        for name in ("ant", "bee"):
            for number in range(2):
                path = images / part / name / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(PNG)
    path = images / broken
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    with fresh(folder) as workdir:
        assert_refused_or_let_through(
            folder, [f"--dataset=folder:{images}"], workdir, surely=False
        )
    path.unlink()
    if not any(path.parent.iterdir()):
        path.parent.rmdir()


@pytest.fixture(scope="module")
def model():
    inputs = keras.Input((8, 8, 1))
    outputs = keras.layers.Dense(10)(keras.layers.Flatten()(inputs))
    return keras.Model(inputs, outputs)


@pytest.fixture(scope="module")
def model_bytes(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model.keras"
    model.save(path)
    return path.read_bytes()


def with_zip_header(whole):
    """A .keras file with another byte in a header of the zip archive."""
    starts = [found.start() for found in re.finditer(b"PK[\x01-\x06]", whole)]
    return st.tuples(
        st.sampled_from(starts), st.integers(4, 29), st.integers(0, 255)
    ).map(
        lambda p: (
            whole[: p[0] + p[1]] + bytes([p[2]]) + whole[p[0] + p[1] + 1 :]
        )
    )


def with_config(whole, change):
    """A .keras file with a changed config.json."""
    target = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(whole)) as old,
        zipfile.ZipFile(target, "w") as new,
    ):
        for name in old.namelist():
            data = old.read(name)
            new.writestr(name, change(data) if name == "config.json" else data)
    return target.getvalue()


CHANGES = [
    lambda text: b"",
    lambda text: b"[]",
    lambda text: b"{}",
    lambda text: b"null",
    lambda text: text.replace(b"Dense", b"Danse"),
    lambda text: text.replace(b'"units": 10', b'"units": -1'),
    lambda text: text.replace(b'"units": 10', b'"units": "many"'),
    lambda text: text.replace(b"keras.layers", b"os.path"),
    lambda text: text.replace(b'"Functional"', b'"Lambda"'),
    lambda text: text.replace(b"[null, 8, 8, 1]", b"[null, 7, 7, 3]"),
    lambda text: text[: len(text) // 2],
    lambda text: b"[" * 100_000,
]


@SETTINGS
@hypothesis.given(st.data())
def test_model_files(folder, model_bytes, data):
    path = folder / "model.keras"
    path.write_bytes(
        data.draw(
            st.one_of(
                broken_bytes(model_bytes),
                with_zip_header(model_bytes),
                st.sampled_from(CHANGES).map(
                    lambda change: with_config(model_bytes, change)
                ),
            )
        )
    )
    with fresh(folder) as workdir:
        assert_refused_or_let_through(
            folder, [f"--evaluate={path}"], workdir, surely=False
        )


@pytest.fixture(scope="module")
def saved_model(model, tmp_path_factory):
    """The files of a SavedModel, by their paths in its folder."""
    path = tmp_path_factory.mktemp("model") / "saved_model"
    model.export(path, verbose=False)
    return {
        str(file.relative_to(path)): data
        for file, data in contents(path).items()
        if data is not None
    }


@pytest.mark.filterwarnings("default:.* is a SavedModel")
@hypothesis.settings(SETTINGS, max_examples=60)
@hypothesis.given(st.data())
def test_saved_models(folder, saved_model, data):
    path = folder / "saved_model"
    broken = data.draw(st.sampled_from(sorted(saved_model)))
    changed = data.draw(st.none() | broken_bytes(saved_model[broken]))
    for name, content in (saved_model | {broken: changed}).items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).unlink(missing_ok=True)
        if content is not None:
            (path / name).write_bytes(content)
    with fresh(folder) as workdir:
        assert_refused_or_let_through(
            folder,
            [f"--evaluate={path}", "--limit_test=20"],
            workdir,
            surely=False,
        )


OBJECTS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.text(max_size=5), inner, max_size=2)
    ),
    max_leaves=5,
)
ACCURACY = {"accuracy": 0.5, "n": 10, "interval": [0.2, 0.8]}
RESULTS = {
    "schema": 1,
    "natural": ACCURACY,
    "robust": [
        ACCURACY
        | {"attack": "pgd", "norm": "linf", "epsilon": 0.1}
        | {"epsilon_text": "0.1"}
    ],
    "config": {"shard": [0, 2]},
}
RECORD = {
    "n": 10,
    "batch_size": 5,
    "classes": 3,
    "attacks": [
        {
            "name": "pgd",
            "options": {},
            "surrogate": None,
            "budgets": {"linf": [0.1]},
        }
    ],
    "surrogates": [],
}


def broken_json(content):
    """An object with a changed or missing key, or damaged bytes."""
    keys = st.sampled_from(list(content))
    changed = st.tuples(keys, OBJECTS).filter(
        lambda p: type(p[1]) is not type(content[p[0]])
    )
    return st.one_of(
        changed.map(lambda p: json.dumps(content | {p[0]: p[1]}).encode()),
        keys.map(
            lambda key: json.dumps(
                {k: v for k, v in content.items() if k != key}
            ).encode()
        ),
        OBJECTS.map(lambda value: json.dumps(value).encode()),
        broken_bytes(json.dumps(content).encode()),
    )


@SETTINGS
@hypothesis.given(st.data())
def test_results_files(folder, data):
    """Files of a workdir with a finished run."""
    workdir = folder / "results"
    workdir.mkdir(exist_ok=True)
    config = settings_of().config()
    name = data.draw(st.sampled_from(["config.json", "results.json"]))
    if name == "config.json":
        (workdir / name).write_bytes(data.draw(broken_json(config)))
        (workdir / "results.json").write_text(json.dumps(RESULTS))
    else:
        (workdir / "config.json").write_text(json.dumps(config))
        (workdir / name).write_bytes(data.draw(broken_json(RESULTS)))
    assert_refused_or_let_through(folder, [], workdir, surely=False)


@SETTINGS
@hypothesis.given(st.data())
def test_shards_to_be_merged(folder, data):
    shard = folder / "shard"
    record = shard / "evaluation"
    record.mkdir(parents=True, exist_ok=True)
    which = data.draw(st.sampled_from(["results.json", "record.json"]))
    broken, whole = (
        (RESULTS, RECORD) if which == "results.json" else (RECORD, RESULTS)
    )
    other = {"results.json": record / "record.json"}.get(
        which, shard / "results.json"
    )
    other.write_text(json.dumps(whole))
    path = shard / which if which == "results.json" else record / which
    path.write_bytes(data.draw(broken_json(broken)))
    assert_refused_or_let_through(
        folder, [f"--merge={shard}"], folder / "merged", surely=True
    )


def test_there_were_five_hundred():
    assert len(REFUSED) >= 500
    assert len({refused.line for refused in REFUSED}) > 100


def restore(folder, files):
    """Restores the contents of a folder."""
    shutil.rmtree(folder)
    folder.mkdir()
    for path, data in files.items():
        path.mkdir() if data is None else path.write_bytes(data)


# Refused by the flags, and by each library that may write lines of its own: for
# images, for files of Keras and for SavedModels. The rest is read by NumPy and
# as JSON, which write none.
LIBRARIES = (
    *("test_command_lines", "test_folders_of_images"),
    *("test_model_files", "test_saved_models"),
)


@pytest.mark.timeout(900)  # Each loads TensorFlow.
def test_one_of_each_library_as_a_process():
    """The command itself: exit code 2, and one line that is ours.

    TensorFlow writes lines of its own before it, whatever its log level is.
    """
    kinds = {refused.folder: [] for refused in REFUSED}
    for refused in REFUSED:
        kinds[refused.folder].append(refused)
    assert len(kinds) == 7
    draw = random.Random(0)
    sample = [
        draw.choice(kind)
        for folder, kind in kinds.items()
        if folder.name.rstrip("0123456789") in LIBRARIES
    ]
    assert len(sample) == len(LIBRARIES)
    root = pathlib.Path(run.__file__).parent.parent
    for folder, command, files, line in sample:
        restore(folder, files)
        done = subprocess.run(
            [sys.executable, "-m", "tfsam.run", *command],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(root)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 2, command
        ours = [one for one in errors(done.stderr) if one.startswith("tfsam: ")]
        assert ours == [line], command
        assert "Traceback" not in done.stderr
        assert done.stdout == ""
        assert contents(folder) == files
