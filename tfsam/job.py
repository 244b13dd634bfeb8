"""One run in a folder of its own: train, export, attack, draw, report.

Everything here is a function of `config`, a dict of settings that `run.py`
makes from flags. Each stage leaves a file behind when it is finished, and is
not done again; a run that was killed goes on from there.
"""

import contextlib
import importlib.metadata
import pathlib
import platform
import re
import statistics
import time
import zipfile
import zlib
from collections.abc import Callable
from typing import Any
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tfsam import attacks
from tfsam import callbacks
from tfsam import classifiers
from tfsam import data
from tfsam import evaluation
from tfsam import files
from tfsam import methods
from tfsam import networks
from tfsam import reports
from tfsam.model import RobustModel
from tfsam.optimizers import SGD

_JIT_COMPILE = {"auto": "auto", "true": True, "false": False}

NETWORKS: dict[str, Callable] = {
    "preact_resnet8": networks.preact_resnet8,
    "preact_resnet18": networks.preact_resnet18,
    "wide_resnet": networks.wide_resnet,
}


class Inputs(NamedTuple):
    """What a run works on, checked: nothing has been written yet."""

    strategy: Any
    images: data.Images
    logits: attacks.Logits | None
    surrogate: attacks.Logits | None


def prepare(config):
    """Finds the devices, loads the images and the model to be attacked.

    Args:
        config: settings, as of `tfsam.run.configuration`.

    Returns:
        `Inputs`; `strategy` is None for one device, `logits` where a network
        is to be trained, `surrogate` where the network itself is attacked.

    Raises:
        ValueError: if anything is missing or does not fit.
    """
    for name in config["attacks"]:
        attacks.factory(name)
    strategy = make_strategy(config["devices"])
    images = data.load(
        config["dataset"],
        limit_train=config["limit_train"],
        limit_test=config["limit_test"],
        seed=config["seed"],
    )
    logits = surrogate = None
    if config["surrogate"]:
        surrogate = _classifier(config, config["surrogate"], images)
    if config["evaluate"]:
        evaluation.check_shard(
            config["shard"] or (0, 1),
            len(images.x_test),
            config["attack_batch_size"],
        )
        logits = _classifier(config, config["evaluate"], images)
    else:
        _steps(config, images, strategy)
        _validation_batch_size(config, images, strategy)
        data.training_batches(  # Finds images that are too small to augment.
            images.x_train[:1],
            images.y_train[:1],
            batch_size=1,
            epochs=1,
            seed=0,
            augment=config["augment"],
        )
    return Inputs(strategy, images, logits, surrogate)


def _classifier(config, path, images):
    """A model from a file, found to fit the images."""
    logits = classifiers.load_logits(path, _JIT_COMPILE[config["jit_compile"]])
    x = data.as_float(images.x_test[:128])
    outputs = classifiers.count_classes(logits, x[:1])
    if outputs < len(images.class_names):
        raise ValueError(
            f"the data has {len(images.class_names)} classes; the model "
            f"must have as many outputs. Received: {outputs} outputs"
        )
    # Finds probabilities and NaN, too.
    evaluation.evaluate(logits, (x, images.y_test[: len(x)]), [])
    return logits


def finished(workdir, config):
    """The results of the run that a folder holds, None if it has none yet.

    Args:
        workdir: the folder; it need not exist.
        config: settings, as of `tfsam.run.configuration`.

    Raises:
        ValueError: if the folder holds another run or other files.
    """
    held = files.read_json(workdir / "config.json")
    if held:
        wanted = config | _files(config)
        changes = ", ".join(
            f"{key}={wanted[key]} (it has {held.get(key)})"
            for key in wanted
            if held.get(key) != wanted[key]
        )
        if changes:
            raise ValueError(
                f"workdir {workdir} holds a run with another configuration; "
                f"choose another --workdir. Received: {changes}"
            )
        results = files.read_json(workdir / "results.json")
        # What failed is tried again; what was measured is kept.
        return None if results is None or _failed(results) else results
    if workdir.exists() and not (
        workdir.is_dir()
        and set(workdir.iterdir()) <= set(files.leftovers(workdir))
    ):
        raise ValueError(
            "workdir must be an empty folder or hold a run of this command. "
            f"Received: workdir={workdir}"
        )
    return None


def claim(workdir, config):
    """Makes the folder, and writes into it what run it holds.

    Args:
        workdir: the folder, seen by `finished`.
        config: settings, as of `tfsam.run.configuration`.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    for folder in (workdir, workdir / "checkpoints"):
        for path in files.leftovers(folder):
            files.remove(path)
    files.write_json(workdir / "config.json", config | _files(config))


def _files(config):
    """Size and time of the files that a configuration names.

    Another model in the same place is another run.
    """
    kind, _, path = config["dataset"].partition(":")
    named = [
        *(config["evaluate"], config["surrogate"]),
        path if kind == "npz" else None,
    ]
    found = {}
    for name in filter(None, named):
        path = pathlib.Path(name).expanduser()
        for file in [path, path / "saved_model.pb"]:
            if file.is_file():
                stat = file.stat()
                found[str(file)] = [stat.st_size, stat.st_mtime_ns]
    return {"files": found} if found else {}


def make_strategy(devices):
    """The `tf.distribute` strategy of a --devices value, None for one device.

    Args:
        devices: auto, cpu, cpu:N, gpu:all or gpu:N.

    Raises:
        ValueError: if there are no such devices.
    """
    gpus = tf.config.get_visible_devices("GPU")
    number = r"[1-9]\d*"
    match = re.fullmatch(
        rf"(auto)|cpu(?::({number}))?|gpu:(all|{number})", devices
    )
    if not match:
        raise ValueError(
            "devices must be auto, cpu, cpu:N, gpu:all or gpu:N. "
            f"Received: devices={devices}"
        )
    if match[3] or (match[1] and gpus):
        count = int(match[3]) if (match[3] or "all") != "all" else len(gpus)
        if not 0 < count <= len(gpus):
            raise ValueError(
                f"devices must name GPUs that are here: {len(gpus)}. "
                f"Received: devices={devices}"
            )
        names = [f"GPU:{i}" for i in range(count)]
        # One GPU of several still needs to be told apart from the others.
        return tf.distribute.MirroredStrategy(names) if len(gpus) > 1 else None
    if gpus and match[0].startswith("cpu"):
        try:
            tf.config.set_visible_devices([], "GPU")
        except RuntimeError:
            raise ValueError(
                "devices must be set before TensorFlow starts. "
                f"Received: devices={devices}"
            ) from None
    count = int(match[2] or 1)
    if count == 1:
        return None
    with contextlib.suppress(RuntimeError):  # Already set; counted below.
        tf.config.set_logical_device_configuration(
            tf.config.list_physical_devices("CPU")[0],
            [tf.config.LogicalDeviceConfiguration()] * count,
        )
    if len(tf.config.list_logical_devices("CPU")) < count:
        raise ValueError(
            f"devices must be set before TensorFlow starts, or be those that "
            f"are here. Received: devices={devices}"
        )
    return tf.distribute.MirroredStrategy(
        [f"CPU:{i}" for i in range(count)],
        # Collectives remember shapes by a key that the next strategy of the
        # process counts from the start again: a second run would fail.
        cross_device_ops=tf.distribute.ReductionToOneDevice(),
    )


def make_model(config, images, strategy):
    """A compiled `RobustModel` for the images.

    Args:
        config: settings, as of `tfsam.run.configuration`.
        images: a `tfsam.data.Images`.
        strategy: a `tf.distribute` strategy or None.
    """
    keras.utils.set_random_seed(config["seed"])
    perturb_inputs, perturb_weights = methods.perturbations(
        config["method"], config
    )
    # The paper's statistics where the images are the paper's.
    known = images.name in ("cifar10", "cifar100")
    steps = _steps(config, images, strategy)
    with strategy.scope() if strategy else contextlib.nullcontext():
        network = NETWORKS[config["network"]](
            len(images.class_names),
            input_shape=images.x_train.shape[1:],
            statistics=None if known else data.statistics(images.x_train),
        )
        model = RobustModel(
            network,
            perturb_inputs,
            perturb_weights,
            sharpness=config["sharpness"],
            seed=config["seed"],
        )
        model.compile(
            SGD(
                _schedule(config["learning_rate"], config["epochs"], steps),
                momentum=config["momentum"],
                weight_decay=config["weight_decay"],
            ),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
            jit_compile=classifiers.use_xla(
                _JIT_COMPILE[config["jit_compile"]]
            ),
        )
    return model


def _schedule(learning_rate, epochs, steps):
    """Times 0.1 at 75 % and again at 90 % of the epochs (the paper's)."""
    drops = [round(epochs * part) * steps - 1 for part in (0.75, 0.9)]
    return keras.optimizers.schedules.PiecewiseConstantDecay(
        drops, [learning_rate, learning_rate / 10, learning_rate / 100]
    )


def _steps(config, images, strategy):
    """Steps an epoch; the last, partial batch is kept on one device."""
    full, rest = divmod(len(images.x_train), config["batch_size"])
    steps = full + bool(rest and strategy is None)
    if not steps:
        raise ValueError(
            f"batch_size must be at most {len(images.x_train)}, the number of "
            f"training images. Received: batch_size={config['batch_size']}"
        )
    replicas = strategy.num_replicas_in_sync if strategy else 1
    if config["batch_size"] % replicas:
        raise ValueError(
            f"batch_size must be a multiple of {replicas}, the number of "
            f"devices. Received: batch_size={config['batch_size']}"
        )
    return steps


def _validation_batch_size(config, images, strategy):
    """The largest whose last batch has images for every replica.

    TensorFlow's convolutions fail on a replica without any.
    """
    replicas = strategy.num_replicas_in_sync if strategy else 1
    count = len(images.x_test)
    for size in range(config["batch_size"], 0, -replicas):
        rest = count % size
        if not rest or rest > size - size // replicas:
            return size
    raise ValueError(
        f"{replicas} devices need another number of test images (see "
        f"--limit_test). Received: {count} test images"
    )


def train(config, images, workdir, strategy, log):
    """Trains, from the newest checkpoint if there is one.

    Args:
        config: settings, as of `tfsam.run.configuration`.
        images: a `tfsam.data.Images`.
        workdir: the run's folder.
        strategy: a `tf.distribute` strategy or None.
        log: a function of a line of text.

    Returns:
        The trained network.

    Raises:
        FloatingPointError: if the loss or a weight is not finite any more.
    """
    model, done = _restore(workdir / "checkpoints", strategy, log)
    if model is None:
        model = make_model(config, images, strategy)
    epochs, steps = config["epochs"], _steps(config, images, strategy)
    if done < epochs:
        train_data = data.training_batches(
            images.x_train,
            images.y_train,
            batch_size=config["batch_size"],
            epochs=epochs,
            seed=config["seed"],
            initial_epoch=done,
            augment=config["augment"],
            # Replicas cannot share a batch that is smaller than they are many.
            drop_remainder=strategy is not None,
        )
        model.fit(
            train_data,
            epochs=epochs,
            initial_epoch=done,
            steps_per_epoch=steps,
            validation_data=(data.as_float(images.x_test), images.y_test),
            validation_batch_size=_validation_batch_size(
                config, images, strategy
            ),
            callbacks=[
                callbacks.StopAtNaN(),
                callbacks.History(workdir / "history.csv", done),
                callbacks.Checkpoint(workdir / "checkpoints"),
                callbacks.Progress(log, steps, epochs),
                keras.callbacks.TensorBoard(
                    workdir / "tensorboard", write_graph=False
                ),
            ],
            shuffle=False,  # The data is shuffled, reproducibly.
            verbose=0,
        )
    return model.network


def _restore(folder, strategy, log):
    """The model of the newest checkpoint that can be read, and its epochs."""
    for epochs, path in callbacks.checkpoints(folder):
        try:
            with strategy.scope() if strategy else contextlib.nullcontext():
                model = keras.saving.load_model(path)
        except (
            *(KeyError, OSError, TypeError, ValueError),
            *(zipfile.BadZipFile, zlib.error),
        ) as error:
            log(f"cannot read {path.name} ({error}); trying the one before")
            continue
        log(f"going on after epoch {epochs}")
        return model, epochs
    return None, 0


def epochs_done(workdir):
    """The epochs of the newest checkpoint of a run's folder, 0 without one.

    Args:
        workdir: the folder.
    """
    found = callbacks.checkpoints(workdir / "checkpoints")
    return found[0][0] if found else 0


def attack(config, model, inputs, workdir, log):
    """Evaluates; each verdict stays in a file, chunk by chunk.

    Args:
        config: settings, as of `tfsam.run.configuration`.
        model: a `Logits`.
        inputs: of `prepare`.
        workdir: the run's folder.
        log: a function of a line of text.

    Returns:
        `natural`, `robust` and `warnings`, as of `tfsam.evaluate`.
    """
    images = inputs.images
    asked = [
        (name, _attack_options(name, config)) for name in config["attacks"]
    ]

    def evaluate(norm, epsilons, attacks=asked):
        names = ", ".join(name for name, _ in attacks)
        log(f"attacking in {norm} by {names or 'nothing'}")
        return evaluation.evaluate(
            model,
            (data.as_float(images.x_test), images.y_test),
            attacks,
            norm,
            epsilons,
            seed=config["seed"],
            batch_size=config["attack_batch_size"],
            progress=log,
            workdir=workdir / "evaluation" / norm,
            save_adversarial=config["save_adversarial"],
            devices=inputs.strategy and _device_names(inputs.strategy),
            shard=config["shard"] or (0, 1),
            surrogate=inputs.surrogate,
            warm_start=config["warm_start"],
        )

    measured = {
        norm: evaluate(norm, config[f"{norm}_epsilons"])
        for norm in ("linf", "l2")
        if config[f"{norm}_epsilons"]
    }
    return _together(measured or {"linf": evaluate("linf", [], [])})


def merge(folders, workdir):
    """Puts the shards of an evaluation together, into a results.json.

    Args:
        folders: of runs with --shard.
        workdir: the folder of the whole; it may not hold a run.

    Returns:
        What results.json holds.

    Raises:
        ValueError: if a folder holds no shard, or one of another evaluation, or
            they do not make up the whole.
    """
    paths = [pathlib.Path(folder) for folder in folders]
    first = None
    for path in paths:
        found = files.read_json(path / "results.json")
        if found is None or not found["config"].get("shard"):
            raise ValueError(
                "merge takes folders of finished runs with --shard. "
                f"Received: {path}"
            )
        first = first or found
    if first is None:
        raise ValueError("merge takes folders. Received: none")
    if workdir.exists() and any(workdir.iterdir()):
        raise ValueError(
            f"workdir must be an empty folder. Received: workdir={workdir}"
        )
    measured = {
        norm: evaluation.merge([p / "evaluation" / norm for p in paths])
        for norm in ("linf", "l2")
        if (paths[0] / "evaluation" / norm).is_dir()
    }
    workdir.mkdir(parents=True, exist_ok=True)
    results = {
        **first,
        "config": first["config"] | {"shard": None, "workdir": str(workdir)},
        **_together(measured),
        "merged": [str(path) for path in paths],
    }
    reports.robustness_plot(results, workdir / "robustness.png")
    results["artifacts"] = _artifacts(workdir)
    files.write_json(workdir / "results.json", results)
    return results


def _together(measured):
    """The results of both norms as one, attack by attack."""
    robust = [row for result in measured.values() for row in result["robust"]]
    order = list(dict.fromkeys(row["attack"] for row in robust))
    first, *others = measured.values()
    warnings = list(first["warnings"])
    for other in others:
        warnings += [w for w in other["warnings"] if w not in warnings]
    return {
        "natural": first["natural"],
        # Sorting is stable: l-inf before l2, epsilons as they were given.
        "robust": sorted(robust, key=lambda row: order.index(row["attack"])),
        "warnings": warnings,
    }


def _failed(results):
    return any("error" in row for row in results["robust"])


def _attack_options(name, config):
    """The given number of steps; without it each attack has its own."""
    known = attacks.option_names(attacks.factory(name)) or ()
    steps = config["attack_steps"]
    return {"steps": steps} if steps is not None and "steps" in known else {}


def draw(config, model, inputs, results, workdir, log):
    """Draws robustness.png, and examples.png by the strongest l-inf budget.

    Args:
        config: settings, as of `tfsam.run.configuration`.
        model: a `Logits`.
        inputs: of `prepare`.
        results: of `attack`.
        workdir: the run's folder.
        log: a function of a line of text.
    """
    images = inputs.images
    reports.robustness_plot(results, workdir / "robustness.png")
    rows = [r for r in results["robust"] if r["accuracy"] is not None]
    if not rows:
        return
    row = max(rows, key=lambda r: (r["norm"] == "linf", r["epsilon"]))
    x, y = data.as_float(images.x_test[:200]), images.y_test[:200]
    before = np.argmax(model(tf.constant(x)), axis=1)
    shown = np.flatnonzero(before == y)[:5]
    if not len(shown):
        return
    x, y, before = x[shown], y[shown], before[shown]
    try:
        make = attacks.get(
            row["attack"],
            epsilon=row["epsilon"],
            norm=row["norm"],
            **row["options"],
        )
        source = inputs.surrogate or model
        x_adv = make(source, tf.constant(x), tf.constant(y), config["seed"])
        x_adv = tf.convert_to_tensor(x_adv).numpy()
    except Exception as error:  # Somebody else's attack, after all.
        log(f"no examples.png: {type(error).__name__}: {error}")
        return
    after = np.argmax(model(tf.constant(x_adv)), axis=1)
    names = images.class_names
    reports.examples_plot(
        x,
        x_adv,
        [(names[b], names[a]) for b, a in zip(before, after, strict=True)],
        workdir / "examples.png",
    )


def run(config, inputs, workdir, log):
    """Does all of it, and writes results.json last.

    Args:
        config: settings, as of `tfsam.run.configuration`.
        inputs: of `prepare`.
        workdir: the run's folder, taken by `claim`.
        log: a function of a line of text.

    Returns:
        What results.json holds.

    Raises:
        FloatingPointError: if the loss became NaN.
    """
    images, model, trained = inputs.images, inputs.logits, None
    if model is None:
        network = train(config, images, workdir, inputs.strategy, log)
        with files.replacing(workdir / "model.keras") as temporary:
            network.save(temporary)
        with files.replacing(workdir / "saved_model") as temporary:
            network.export(temporary, verbose=False)
        trained = _training_summary(workdir, config, images)
        model = classifiers.load_logits(
            network, _JIT_COMPILE[config["jit_compile"]]
        )
    measured = attack(config, model, inputs, workdir, log)
    draw(config, model, inputs, measured, workdir, log)
    results = {
        "schema": 1,
        "method": config["method"],
        "config": config | {"workdir": str(workdir)},
        "seed": config["seed"],
        "versions": _versions(),
        "devices": _device_names(inputs.strategy),
        "train": trained,
        **measured,
        "artifacts": _artifacts(workdir),
    }
    files.write_json(workdir / "results.json", results)
    log(f"done: {workdir / 'results.json'}")
    return results


def _training_summary(workdir, config, images):
    rows = callbacks.read_history(workdir / "history.csv")
    step = statistics.median(row["step_seconds_median"] for row in rows)
    return {
        "epochs": len(rows),
        "seconds": sum(row["seconds"] for row in rows),
        "step_seconds_median": step,
        "examples_per_second": min(config["batch_size"], len(images.x_train))
        / step,
    }


def _device_names(strategy):
    """The devices that a run works on."""
    if strategy is not None:
        names = strategy.extended.worker_devices
        return ["/device:" + name.rpartition("device:")[2] for name in names]
    kind = "GPU" if tf.config.list_logical_devices("GPU") else "CPU"
    return [tf.config.list_logical_devices(kind)[0].name]


def _versions():
    packages = ("tfsam", "tensorflow", "keras", "cleverhans", "numpy")
    return {"python": platform.python_version()} | {
        name: importlib.metadata.version(name) for name in packages
    }


def _artifacts(workdir):
    names = (
        *("config.json", "evaluation", "history.csv", "model.keras"),
        *("saved_model", "tensorboard", "robustness.png", "examples.png"),
        "log.txt",
    )
    return [name for name in names if (workdir / name).exists()]


def logger(path):
    """A function that prints a line and keeps it in a file, with the time.

    Args:
        path: of the file.
    """

    def log(line):
        print(line, flush=True)
        with open(path, "a") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")

    return log
