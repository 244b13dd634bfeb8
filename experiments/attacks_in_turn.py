"""Two attacks on the same images, chunk by chunk in turn.

`compare` runs both attacks on a chunk of the images before the next chunk, so
that a slow phase of the machine affects both, and the other one first in every
other chunk. Only the images that are classified correctly are attacked, as in
`tfsam.evaluate`, and with the same random numbers. Verdicts and times are kept
in a folder, a file for each attack and chunk; the same comparison resumes
there.
"""

import functools
import hashlib
import pathlib
import time

import numpy as np
import tensorflow as tf

import tfsam
from tfsam.attacks.check import contract
from tfsam.evaluation import cache_key
from tfsam.models.functions import count_classes
from tfsam.models.functions import for_evaluation
from tfsam.models.loading import load_logits
from tfsam.support import files

BOUNDS = (0.0, 1.0)
SEED = 0
# Each line appears at once, also in a file.
LOG = functools.partial(print, flush=True)


def compare(
    model, data, names, norm, epsilon, batch_size, workdir=None, log=LOG
):
    """Attacks all images by two attacks in turn.

    Args:
        model: path of a model from pixels in [0, 1] to logits.
        data: a pair (x, y) of arrays, x float in [0, 1].
        names: names of two attacks, the first the base of all ratios.
        norm: "linf" or "l2".
        epsilon: budget, in the units of x.
        batch_size: images in a chunk.
        workdir: folder for verdicts and times, or None to keep none.
        log: function that is called with a line of text for each chunk.

    Returns:
        A dict {name: {entry: array}}, the entries of all chunks: `stands`, a
        bool for each image; and for each chunk `seconds`, `cpu_seconds`,
        `forward` and `gradient`, the passes of the network.
    """
    x, y = data
    batch_size = min(batch_size, len(x))
    folder = _folder(workdir, model, data, names, norm, epsilon, batch_size)
    rivals = {name: None for name in names}
    found = {name: [] for name in names}
    chunks = -(-len(x) // batch_size)
    for chunk in range(chunks):
        some = np.arange(chunk * batch_size, len(x))[:batch_size]
        for name in names if chunk % 2 == 0 else names[::-1]:
            path = folder and folder / name / f"{chunk:06d}.npz"
            if path is None or not path.exists():
                if rivals[name] is None:
                    rivals[name] = _Rival(
                        model, name, norm, epsilon, x[:batch_size], log
                    )
                kept = rivals[name].attack(x, y, some, batch_size)
                if path is not None:
                    files.write_arrays(path, kept)
            else:
                with np.load(path) as arrays:
                    kept = dict(arrays)
            found[name].append(kept)
        log(f"chunk {chunk + 1} of {chunks}: {line(_joined(found))}")
    return _joined(found)


class _Rival:
    """An attack that is traced once, and its model."""

    def __init__(self, model, name, norm, epsilon, x, log):
        loaded = load_logits(tfsam.models.load(model, pixels="0..1"))
        classes = count_classes(loaded, x[:1])
        self.logits = for_evaluation(loaded, classes, x.shape[1:])
        self.logits.most = len(x)
        self.logits.count_passes()
        self.norm, self.epsilon = norm, epsilon
        attack = tfsam.attacks.get(
            name, epsilon=epsilon, norm=norm, bounds=BOUNDS
        )
        self.predict = tf.function(self.logits.predict, autograph=False)
        self.run = tf.function(
            lambda x, y, seeds, active: attack(
                self.logits.only(active), x, y, seeds
            ),
            autograph=False,
        )
        # With no active image, this traces and computes almost nothing.
        started = time.perf_counter()
        self.attack(x, np.zeros(len(x), "int64"), np.arange(0), len(x))
        log(f"{name}: traced in {time.perf_counter() - started:.1f} s")

    def attack(self, x, y, some, size):
        """Attacks the images of these indices, and returns the arrays."""
        batch = np.resize(some, size) if len(some) else np.arange(size)
        labels = np.asarray(y[batch], "int64")
        inputs = tf.constant(x[batch]), tf.constant(labels)
        seeds = np.stack([np.full_like(batch, SEED), batch], 1)
        chosen = np.arange(size) < len(some)
        clean = np.argmax(self.predict(inputs[0], tf.constant(chosen)), axis=1)
        active = tf.constant(chosen & (clean == labels))
        self.logits.count_passes()
        seconds, cpu = time.perf_counter(), time.process_time()
        x_adv = self.run(*inputs, seeds.astype("int32"), active).numpy()
        seconds = time.perf_counter() - seconds
        cpu = time.process_time() - cpu
        passes = self.logits.counted().passes
        contract(x[batch], x_adv, self.epsilon, self.norm, BOUNDS)
        after = np.argmax(self.predict(x_adv, active), axis=1)
        stands = active.numpy() & (after == labels)
        return {
            "stands": stands[: len(some)],
            "seconds": [seconds],
            "cpu_seconds": [cpu],
            "forward": passes[:1],
            "gradient": passes[1:],
        }


def _folder(workdir, model, data, names, norm, epsilon, batch_size):
    """Returns the folder of a comparison; rejects that of another one."""
    if workdir is None:
        return None
    total = hashlib.sha256()
    for array in data:
        total.update(np.ascontiguousarray(array).data)
    key = {
        "model": files.digest(model),
        "data": total.hexdigest(),
        "attacks": list(names),
        "norm": norm,
        "epsilon": epsilon,
        "batch_size": batch_size,
        "versions": cache_key.versions(),
    }
    folder = pathlib.Path(workdir)
    path = folder / "key.json"
    if path.exists() and files.read_json(path) != key:
        raise ValueError(
            "workdir must be empty or hold the same comparison, by the same "
            f"software. Received: workdir={workdir}"
        )
    for name in names:
        (folder / name).mkdir(parents=True, exist_ok=True)
    files.write_json(path, key)
    return folder


def _joined(found):
    return {
        name: {key: np.concatenate([k[key] for k in kept]) for key in kept[0]}
        for name, kept in found.items()
    }


def line(found):
    """Returns a line about the chunks so far."""
    base, other = found
    parts = [
        f"{name} {entries['stands'].sum()} of {len(entries['stands'])} stand, "
        f"{entries['seconds'].sum():.1f} s, CPU "
        f"{entries['cpu_seconds'].sum():.1f} s"
        for name, entries in found.items()
    ]
    ratios = [
        f"{found[other][key].sum() / max(found[base][key].sum(), 1e-9):.3f}"
        for key in ("seconds", "cpu_seconds")
    ]
    return f"{'; '.join(parts)}; ratio {ratios[0]}, CPU {ratios[1]}"


def table(found):
    """Returns a comparison as Markdown."""
    base, other = found
    lines = [
        "| attack | images | stand | accuracy | seconds | CPU seconds "
        "| gradients / image | forward passes / image |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, entries in found.items():
        count, stand = len(entries["stands"]), entries["stands"].sum()
        lines.append(
            f"| {name} | {count} | {stand} | {100 * stand / count:.2f} "
            f"| {entries['seconds'].sum():.1f} "
            f"| {entries['cpu_seconds'].sum():.1f} "
            f"| {entries['gradient'].sum() / count:.1f} "
            f"| {entries['forward'].sum() / count:.1f} |"
        )
    ratios = {
        text: found[other][key].sum() / max(found[base][key].sum(), 1e-9)
        for text, key in (("seconds", "seconds"), ("CPU", "cpu_seconds"))
    }
    left, right = found[base]["stands"], found[other]["stands"]
    return "\n".join(
        [
            *lines,
            f"{other} takes {ratios['seconds']:.3f} of {base}'s time, "
            f"{ratios['CPU']:.3f} of its CPU seconds. After {other}, "
            f"{(right & ~left).sum()} images stand that {base} breaks; after "
            f"{base}, {(left & ~right).sum()} that {other} breaks.",
        ]
    )
