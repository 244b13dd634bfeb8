"""Accuracy under attack, measured so that it can be trusted.

An attack is believed in nothing: what it returns is checked against the image
range and its budget, and classified again in inference mode. An example that is
misclassified without an attack counts as broken, one broken at a smaller
epsilon stays broken at a larger one, and only the others are attacked.
"""

import os
import time
import zipfile
from typing import NamedTuple

import keras
import numpy as np
import scipy.stats
import tensorflow as tf

from tfsam import attacks as registry
from tfsam import geometry
from tfsam.attacks.base import Logits

# Rounding in float32 of x + perturbation, and of its norm over an image,
# relative to the largest pixel.
_TOLERANCE = 1e-6


class _Data(NamedTuple):
    x: np.ndarray
    y: np.ndarray
    labels: np.ndarray


class _Entry(NamedTuple):
    name: str
    options: dict
    make: object


def evaluate(
    model,
    data,
    attacks,
    norm="linf",
    epsilons=(1 / 255, 2 / 255),
    *,
    bounds=(0.0, 1.0),
    seed=0,
    batch_size=128,
    strict=False,
    jit_compile="auto",
    progress=None,
):
    """Measures natural accuracy and accuracy under each attack.

    Args:
        model: a Keras model, the path of a `.keras` file or of a SavedModel, or
            a callable from pixels to logits. A SavedModel is a program: load
            those of people you trust.
        data: (x, y) or a batched `tf.data.Dataset` of them; x float
            (n, ...) inside `bounds`, y class numbers (n,) or one-hot
            (n, classes).
        attacks: a list; an entry is a name of `tfsam.attacks.names()`, a pair
            (name, options), or a factory.
        norm: "linf" or "l2".
        epsilons: the budgets, in the units of x.
        bounds: (lowest, highest) value of x, or None for inputs that are not
            images.
        seed: with an example's index, the key of its randomness.
        batch_size: examples attacked at once.
        strict: raise what an attack raises, instead of giving a row with
            `error`.
        jit_compile: whether XLA compiles the network's gradients; "auto" does
            on GPUs.
        progress: a function of a line of text, called now and then.

    Returns:
        A dict: `natural` {`accuracy`, `n`, `interval`} and `robust`, a list,
        attack by attack and epsilon by epsilon in the order given: {`attack`,
        `options`, `norm`, `epsilon`, `epsilon_text`, `accuracy`, `n`,
        `interval`, `max_perturbation`, `inherited`, `seconds`}, and `error`,
        with accuracy None, where the attack failed. Accuracies are fractions of
        all n examples, `interval` is Wilson's 95 % interval.

    Raises:
        ValueError: if the model, the data, norm or an epsilon is bad: nothing
            is attacked then.
    """
    geometry.check_norm(norm)
    epsilons = [
        geometry.check_radius("epsilon", e) for e in np.ravel(epsilons).tolist()
    ]
    entries = [_entry(a) for a in ([attacks] if _is_name(attacks) else attacks)]
    if batch_size < 1:
        raise ValueError(
            f"batch_size must be >= 1. Received: batch_size={batch_size}"
        )
    data = _load_data(data, bounds)
    logits = load_logits(model, jit_compile)
    count_classes(logits, data.x[:1])
    predict, in_graph = _predictor(logits, data.x[:1])
    correct = _natural_verdicts(predict, data, batch_size)
    result: dict = {"natural": _accuracy(correct), "robust": []}
    for entry in entries:
        broken = {0.0: ~correct}
        rows = {}
        for epsilon in sorted(set(epsilons)):
            rows[epsilon], broken[epsilon] = _attack_row(
                entry,
                epsilon,
                broken[max(broken)],
                logits=logits if in_graph else logits.function,
                predict=predict,
                in_graph=in_graph,
                data=data,
                norm=norm,
                bounds=bounds,
                seed=seed,
                batch_size=batch_size,
                strict=strict,
                natural=~correct,
                progress=progress or (lambda line: None),
            )
        result["robust"] += [rows[epsilon] for epsilon in epsilons]
    return result


def load_logits(model, jit_compile="auto"):
    """A model of any kind as a function from pixels to logits.

    Args:
        model: as of `evaluate`.
        jit_compile: as of `evaluate`.

    Returns:
        A `tfsam.attacks.base.Logits`, in inference mode.

    Raises:
        ValueError: if it is none of these, or a file that is no model.
    """
    if isinstance(model, (str, os.PathLike)):
        model = _load(os.fspath(model))
    if isinstance(model, Logits):
        return model
    if isinstance(model, keras.Model):

        def function(x):
            return model(x, training=False)

        return Logits(function, use_xla(jit_compile))
    if not callable(model):
        raise ValueError(
            "model must be a Keras model, a path, or a callable from pixels to "
            f"logits. Received: model={model}"
        )
    return Logits(model, jit_compile is True)


def use_xla(jit_compile="auto"):
    """Whether XLA is to compile a network's gradients.

    Args:
        jit_compile: "auto" is yes on GPUs; on CPUs a plain graph was the faster
            one (BUILD_NOTES.md). Or a bool.
    """
    if jit_compile == "auto":
        return bool(tf.config.list_logical_devices("GPU"))
    return bool(jit_compile)


def _load(path):
    try:
        if os.path.isdir(path):
            loaded = tf.saved_model.load(path)
            # The variables live only as long as what was loaded: both
            # functions hold it.
            if hasattr(loaded, "serve"):
                return lambda x: loaded.serve(x)
            outputs = loaded.signatures["serving_default"].structured_outputs
            if len(outputs) != 1:
                raise ValueError(f"its outputs are {sorted(outputs)}, not one")
            (name,) = outputs
            return lambda x: loaded.signatures["serving_default"](x)[name]
        if not os.path.exists(path):
            raise ValueError("no such file")
        return keras.saving.load_model(path, compile=False, safe_mode=True)
    except (
        KeyError,
        OSError,
        TypeError,
        ValueError,
        zipfile.BadZipFile,
    ) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(
            "model must be the path of a .keras file or of a SavedModel folder "
            f"({reason[0]}). Received: model={path}"
        ) from error


def _load_data(data, bounds):
    """Arrays, checked."""
    if isinstance(data, tf.data.Dataset):
        batches = [
            keras.utils.unpack_x_y_sample_weight(b)
            for b in data.as_numpy_iterator()
        ]
        if not batches:
            raise ValueError("data must hold examples. Received: none")
        data = (
            np.concatenate([b[0] for b in batches]),
            np.concatenate([b[1] for b in batches]),
        )
    if not isinstance(data, (tuple, list)) or len(data) not in (2, 3):
        raise ValueError(
            "data must be (x, y) or a batched tf.data.Dataset of them. "
            f"Received: {type(data).__name__}"
        )
    x, y = (np.asarray(part) for part in data[:2])
    if x.ndim < 2 or y.ndim < 1:
        raise ValueError(
            "x must be of shape (n, ...) and y of (n,) or (n, classes); a "
            f"Dataset must be batched. Received: {x.shape} and {y.shape}"
        )
    if not np.issubdtype(x.dtype, np.floating):
        raise ValueError(
            f"x must be float with values in {bounds}; divide images of 0 to "
            f"255 by 255. Received: x.dtype={x.dtype}"
        )
    if len(x) == 0 or len(x) != len(y):
        raise ValueError(
            "x and y must have the same number of examples, at least one. "
            f"Received: {len(x)} and {len(y)}"
        )
    if not np.isfinite(x).all():
        raise ValueError("x must be finite. Received: x with NaN or infinity")
    if bounds is not None and (x.min() < bounds[0] or x.max() > bounds[1]):
        raise ValueError(
            f"x must lie in bounds={bounds}; normalisation belongs inside the "
            f"model. Received: x in [{x.min():g}, {x.max():g}]"
        )
    # An attack's result, rounded to float16, would leave its ball.
    x = x.astype(np.float32) if x.dtype.itemsize < 4 else x
    if y.ndim == 2 and y.shape[1] > 1:
        return _Data(x, y, y.argmax(axis=1))
    labels = y.reshape(len(y), -1)
    if labels.shape[1] != 1 or not np.issubdtype(y.dtype, np.integer):
        raise ValueError(
            "y must be integers (n,) or one-hot (n, classes). "
            f"Received: y of shape {y.shape} and dtype {y.dtype}"
        )
    labels = labels[:, 0].astype(np.int64)
    return _Data(x, labels, labels)


def count_classes(logits, example):
    """The number of a model's logits.

    Args:
        logits: a `Logits`.
        example: float array (1, ...), one example.

    Raises:
        ValueError: if the model does not take it, or returns something else
            than logits (1, classes).
    """
    try:
        output = logits.function(tf.convert_to_tensor(example))
    except (TypeError, ValueError, tf.errors.InvalidArgumentError) as error:
        reason = (str(error).strip().splitlines() or [""])[0]
        raise ValueError(
            f"model must take the data's images ({reason}). "
            f"Received: images of shape {example.shape[1:]}"
        ) from error
    if isinstance(output, (dict, list, tuple)):
        raise ValueError(
            "model must return one tensor of logits. "
            f"Received: a {type(output).__name__} of {len(output)}"
        )
    output = tf.convert_to_tensor(output)
    shape = tuple(output.shape)
    if len(shape) != 2 or shape[1] < 2 or not output.dtype.is_floating:
        raise ValueError(
            "model must return logits (batch, classes), not labels. Received: "
            f"{output.dtype.name} of shape {shape} for one example"
        )
    return shape[1]


def _predictor(logits, example):
    """The prediction function, and whether it can be traced."""
    predict = tf.function(
        logits, jit_compile=logits.jit_compile, autograph=False
    )
    try:
        predict(tf.convert_to_tensor(example))
    except Exception:
        # Whatever a callable of the user's does, in NumPy or with `.numpy()`,
        # it worked eagerly when its outputs were counted.
        return lambda x: tf.convert_to_tensor(logits.function(x)), False
    return predict, True


def _natural_verdicts(predict, data, batch_size):
    outputs = np.concatenate(
        [
            predict(tf.convert_to_tensor(data.x[batch])).numpy()[:count]
            for batch, count in _batches(np.arange(len(data.x)), batch_size)
        ]
    )
    if not np.isfinite(outputs).all():
        raise ValueError(
            "model must return finite logits. Received: NaN or infinity"
        )
    softmax = np.allclose(outputs.sum(axis=1), 1, atol=1e-2)
    sigmoid = 0.5 < outputs.max() <= 1
    if outputs.min() >= 0 and (softmax or sigmoid):
        raise ValueError(
            "model must return logits, not probabilities: their gradients "
            "vanish, and the model looks robust. Take the softmax or sigmoid "
            "off its last layer. Received: outputs that lie in [0, 1]"
        )
    classes = outputs.shape[1]
    if data.y.ndim == 2 and data.y.shape[1] != classes:
        raise ValueError(
            f"one-hot y must have the model's number of outputs, {classes}. "
            f"Received: y of shape {data.y.shape}"
        )
    if data.labels.min() < 0 or data.labels.max() >= classes:
        raise ValueError(
            f"y must be below the model's number of outputs, {classes}. "
            f"Received: y in [{data.labels.min()}, {data.labels.max()}]"
        )
    return outputs.argmax(axis=1) == data.labels


def _attack_row(entry, epsilon, broken, *, natural, strict, norm, **context):
    """One row of the result, and which examples are broken now."""
    started = time.perf_counter()
    inherited = int((broken & ~natural).sum())
    row = {
        "attack": entry.name,
        "options": entry.options,
        "norm": norm,
        "epsilon": epsilon,
        "epsilon_text": epsilon_text(epsilon),
    }
    try:
        now_broken, largest = _attack(
            entry, epsilon, broken, norm=norm, **context
        )
    except Exception as error:
        if strict:
            raise
        row |= _accuracy(~broken) | {
            "accuracy": None,
            "interval": None,
            "max_perturbation": None,
            "error": f"{type(error).__name__}: {error}",
        }
        now_broken = broken
    else:
        row |= _accuracy(~now_broken) | {"max_perturbation": largest}
    row["inherited"] = inherited
    row["seconds"] = time.perf_counter() - started
    return row, now_broken


def _attack(
    entry,
    epsilon,
    broken,
    *,
    logits,
    predict,
    in_graph,
    data,
    norm,
    bounds,
    seed,
    batch_size,
    progress,
):
    """Attacks the survivors; returns what is broken and the largest norm."""
    attack = entry.make(epsilon=epsilon, norm=norm, bounds=bounds)

    def run(x, y, seeds):
        return attack(logits, x, y, seeds)

    if in_graph and getattr(attack, "in_graph", False):
        run = tf.function(run, autograph=False)
    broken = broken.copy()
    largest = 0.0
    survivors = np.flatnonzero(~broken)
    started = said = time.perf_counter()
    done = 0
    for batch, count in _batches(survivors, batch_size):
        x = data.x[batch]
        seeds = np.stack([np.full_like(batch, seed), batch], axis=1)
        x_adv = run(
            tf.convert_to_tensor(x),
            tf.convert_to_tensor(data.y[batch]),
            tf.convert_to_tensor(seeds.astype(np.int32)),
        )
        largest = max(largest, _check(x, x_adv, epsilon, norm, bounds))
        outputs = predict(x_adv).numpy()
        if not np.isfinite(outputs).all():
            raise ValueError(
                "the model must return finite logits under attack. "
                "Received: NaN or infinity"
            )
        wrong = outputs.argmax(axis=1) != data.labels[batch]
        broken[batch[:count][wrong[:count]]] = True
        done += count
        now = time.perf_counter()
        if now - said > 5 or done == len(survivors):
            said = now
            left = (now - started) / done * (len(survivors) - done)
            progress(
                f"{entry.name} {norm} {epsilon_text(epsilon)}: {done} of "
                f"{len(survivors)} attacked, robust accuracy "
                f"{'' if done == len(survivors) else 'at most '}"
                f"{1 - broken.mean():.4f}, {left:.0f} s left"
            )
    return broken, largest


def _check(x, x_adv, epsilon, norm, bounds):
    """The largest perturbation; raises where an attack broke its contract."""
    if not tf.is_tensor(x_adv):
        x_adv = tf.convert_to_tensor(x_adv)
    if x_adv.shape != x.shape or x_adv.dtype != x.dtype:
        raise ValueError(
            f"the attack must return {x.dtype} of shape {x.shape}. Received: "
            f"{x_adv.dtype.name} of shape {tuple(x_adv.shape)}"
        )
    # In float64: the check must not add rounding of its own.
    found = x_adv.numpy().astype(np.float64)
    tolerance = _TOLERANCE * max(1.0, float(np.abs(x).max()))
    if not np.isfinite(found).all():
        raise ValueError(
            "the attack must return finite pixels. Received: NaN or infinity"
        )
    if bounds is not None:
        low, high = found.min(), found.max()
        if low < bounds[0] - tolerance or high > bounds[1] + tolerance:
            raise ValueError(
                f"the attack left the image range {bounds}. "
                f"Received: pixels in [{low:g}, {high:g}]"
            )
    perturbation = (found - x.astype(np.float64)).reshape(len(x), -1)
    order = np.inf if norm == "linf" else 2
    largest = float(np.linalg.norm(perturbation, order, axis=1).max())
    if largest > epsilon * (1 + _TOLERANCE) + tolerance:
        raise ValueError(
            f"the attack left its ball of radius {epsilon:g} in {norm}. "
            f"Received: a perturbation of {largest:g}"
        )
    return largest


def _batches(indices, batch_size):
    """Index arrays of one size, the last filled up: (indices, how many)."""
    size = min(batch_size, max(len(indices), 1))
    for start in range(0, len(indices), size):
        batch = indices[start : start + size]
        yield np.resize(batch, size), len(batch)


def _is_name(attack):
    return isinstance(attack, str) or callable(attack)


def _entry(attack):
    """A name, (name, options) or factory as an `_Entry`."""
    options = {}
    if isinstance(attack, (tuple, list)) and len(attack) == 2:
        attack, options = attack[0], dict(attack[1])
    if isinstance(attack, str):
        name = attack

        def make(**arguments):
            return registry.get(name, **arguments, **options)

    elif callable(attack):
        name = getattr(attack, "__name__", type(attack).__name__)

        def make(**arguments):
            return registry.make(attack, **arguments, **options)

    else:
        raise ValueError(
            "an attack must be a name, (name, options) or a factory. "
            f"Received: {attack}"
        )
    return _Entry(name, options, make)


def _accuracy(correct):
    """Accuracy of boolean verdicts, with Wilson's 95 % interval."""
    n, k = len(correct), int(correct.sum())
    interval = scipy.stats.binomtest(k, n).proportion_ci(0.95, method="wilson")
    return {
        "accuracy": k / n,
        "n": n,
        "interval": [float(interval.low), float(interval.high)],
    }


def epsilon_text(epsilon):
    """An epsilon as people write it: "8/255" where it is one, else a number.

    Args:
        epsilon: a number >= 0.
    """
    of_255 = round(epsilon * 255)
    short = float(f"{epsilon:.3g}") == epsilon
    if of_255 and not short and abs(of_255 / 255 - epsilon) < 1e-9:
        return f"{of_255}/255"
    return f"{epsilon:g}"
