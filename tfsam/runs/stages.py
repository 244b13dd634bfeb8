"""One run in a folder of its own: train, export, attack, draw, report.

Everything here is a function of `config`, a dict of settings that `run.py`
makes from flags. Each stage leaves a file behind when it is finished, and is
not done again; a run that was killed goes on from there.
"""

import importlib.metadata
import pathlib
import platform
import time
from typing import Any
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tfsam import attacks
from tfsam import data
from tfsam import parts
from tfsam import reports
from tfsam.data import folders
from tfsam.evaluation import measure
from tfsam.models.fingerprints import from_file
from tfsam.models.functions import count_classes
from tfsam.models.loading import load_logits
from tfsam.runs import fit
from tfsam.support import devices
from tfsam.support import files

# Relative and absolute, of a weight.
_ROUNDING = (1e-4, 1e-5)


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
    taking = [name for name in config["attacks"] if _takes_steps(name)]
    if config["attack_steps"] is not None and not taking:
        raise ValueError(
            f"no attack of {','.join(config['attacks'])} takes --attack_steps. "
            f"Received: attack_steps={config['attack_steps']}"
        )
    if config["evaluate"] and devices.cluster_size() > 1:
        raise ValueError(
            "processes share an evaluation by --shard=i/n, each with a "
            "workdir of its own, without TF_CONFIG. "
            f"Received: evaluate={config['evaluate']}"
        )
    _check_warm_start(config)
    strategy = devices.make_strategy(config["devices"], config["strategy"])
    images = data.load(
        config["dataset"],
        limit_train=config["limit_train"],
        limit_test=config["limit_test"],
        seed=config["seed"],
        cache_dir=_cache_dir(config),
    )
    logits = surrogate = None
    if config["surrogate"]:
        surrogate = _classifier(config, config["surrogate"], images)
    if config["evaluate"]:
        measure.check_shard(
            config["shard"] or (0, 1),
            len(images.x_test),
            config["attack_batch_size"],
        )
        logits = _classifier(config, config["evaluate"], images)
    else:
        fit.check(config, images, strategy)
    return Inputs(strategy, images, logits, surrogate)


def _check_warm_start(config):
    """Refuses a warm start that no attack of the run can use."""
    budgets = {
        norm: config[f"{norm}_epsilons"]
        for norm in ("linf", "l2")
        if config[f"{norm}_epsilons"]
    }
    if config["warm_start"] and budgets:
        (epsilon, *_), *_ = budgets.values()
        measure.check_warm_start(
            [
                (name, _attack_options(name, config))
                for name in config["attacks"]
            ],
            list(budgets),
            epsilon,
            (0.0, 1.0),
        )


def _cache_dir(config):
    given = config["cache_dir"]
    if given == "none":
        return None
    if given is None:
        return folders.default_cache()
    return files.expanded(given)


def _classifier(config, path, images):
    """A model from a file, found to fit the images."""
    logits = load_logits(
        files.expanded(path), fit.JIT_COMPILE[config["jit_compile"]]
    )
    x = data.as_float(images.x_test[:128])
    outputs = count_classes(logits, x[:1])
    if outputs < len(images.class_names):
        raise ValueError(
            f"the data has {len(images.class_names)} classes; the model "
            f"must have as many outputs. Received: {outputs} outputs"
        )
    # Finds probabilities and NaN, too.
    measure.evaluate(logits, (x, images.y_test[: len(x)]), [])
    return logits


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
        return measure.evaluate(
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
            devices=inputs.strategy and devices.names(inputs.strategy),
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
        found = reports.read(path / "results.json")
        if found is None or not (found.get("config") or {}).get("shard"):
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
        norm: measure.merge([p / "evaluation" / norm for p in paths])
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


def _attack_options(name, config):
    """The given number of steps; without it each attack has its own."""
    steps = config["attack_steps"]
    return {} if steps is None or not _takes_steps(name) else {"steps": steps}


def _takes_steps(name):
    """Returns whether --attack_steps sets the steps of an attack."""
    _, options = parts.ATTACKS.parse(name)
    return "steps" not in options and "steps" in parts.ATTACKS.options(name)


def draw(config, model, inputs, results, workdir, log):
    """Draws robustness.png, and examples.png by the strongest l-inf budget.

    examples.npz holds what examples.png shows.

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
    some = data.sample(len(images.x_test), 200, config["seed"])
    x, y = data.as_float(images.x_test[some]), images.y_test[some]
    before = np.argmax(model(tf.constant(x)), axis=1)
    shown = np.flatnonzero(before == y)[:5]
    if not len(shown):
        return
    x, y, before = x[shown], y[shown], before[shown]
    name = row["attack"]
    try:
        attack = attacks.get(
            name, epsilon=row["epsilon"], norm=row["norm"], **row["options"]
        )
        stages = parts.ATTACKS.fact(attack, "stages")
        if stages:  # The whole ensemble would take minutes for five images.
            name, attack = stages[0]
        source = model
        if inputs.surrogate is not None:
            source = inputs.surrogate.as_surrogate()

        def attacked():
            return attack(
                source, tf.constant(x), tf.constant(y), config["seed"]
            )

        if parts.ATTACKS.fact(
            attack, "in_graph"
        ):  # Op by op it would take long.
            attacked = tf.function(attacked, autograph=False)
        x_adv = tf.convert_to_tensor(attacked()).numpy()
    except Exception as error:  # Somebody else's attack, after all.
        log(f"no examples.png: {type(error).__name__}: {error}")
        return
    after = np.argmax(model(tf.constant(x_adv)), axis=1)
    known = len(images.class_names)
    # A network may have more outputs than the data has classes.
    others = range(known, 1 + max(*before, *after))
    names = np.array([*images.class_names, *map(str, others)])
    titles = list(zip(names[before], names[after], strict=True))
    reports.examples_plot(
        x,
        x_adv,
        titles,
        workdir / "examples.png",
        heading=f"{name}, {row['norm']}, epsilon {row['epsilon_text']}",
    )
    arrays = {
        "clean": x,
        "adversarial": x_adv,
        "before": names[before],
        "after": names[after],
        "attack": name,
        "norm": row["norm"],
        "epsilon": row["epsilon"],
    }
    files.write_arrays(workdir / "examples.npz", arrays)


def run(config, inputs, workdir, log, stop):
    """Does all of it, and writes results.json last.

    Args:
        config: settings, as of `tfsam.run.configuration`.
        inputs: of `prepare`.
        workdir: the run's folder, taken by `claim`.
        log: a function of a line of text.
        stop: a `tfsam.support.signals.Stop`.

    Returns:
        What results.json holds; None in a worker that is not the chief.

    Raises:
        ConnectionError: if another worker was lost.
        FloatingPointError: if the loss became NaN.
        tfsam.support.files.DiskFull: if there is no room for a file.
        tfsam.support.signals.Stopped: if a signal asked for it.
    """
    model, trained = inputs.logits, None
    if model is None:
        with devices.losing_workers(inputs.strategy):
            network, trained = fit.train(
                config, inputs.images, workdir, inputs.strategy, log, stop
            )
        stop.release()  # Where training had nothing left to do.
        if not devices.is_chief(inputs.strategy):
            log("done; the chief goes on alone")
            return None
        _keep(network, workdir / "model.keras")
        with files.replacing(workdir / "saved_model") as temporary:
            network.export(temporary, verbose=False)
        model = load_logits(network, fit.JIT_COMPILE[config["jit_compile"]])
        model.identity = from_file(workdir / "model.keras", "keras")
    measured = attack(config, model, inputs, workdir, log)
    draw(config, model, inputs, measured, workdir, log)
    results = {
        "schema": 1,
        "method": config["method"],
        "config": config | {"workdir": str(workdir)},
        "seed": config["seed"],
        "versions": _versions(),
        "devices": devices.names(inputs.strategy),
        "workers": devices.workers(inputs.strategy),
        "train": trained,
        **measured,
        "artifacts": _artifacts(workdir),
    }
    files.write_json(workdir / "results.json", results)
    log(f"done: {workdir / 'results.json'}")
    return results


def _keep(network, path):
    """Writes the trained network, unless the file has it but for rounding.

    A run that goes on in its evaluation restores the network from the newest
    checkpoint, and measures the BatchNorm statistics of averaged weights again:
    sums over many threads round differently. The network in the file is the
    one that the verdicts so far are of, so its weights are taken.

    Args:
        network: a built `keras.Model`.
        path: of the `.keras` file.
    """
    restored = network.get_weights()
    if path.exists():
        try:
            network.load_weights(path)
        except Exception:
            # A file can be broken in more ways than one knows.
            network.set_weights(restored)
        else:
            pairs = zip(network.get_weights(), restored, strict=True)
            if all(np.allclose(*pair, *_ROUNDING) for pair in pairs):
                return
            network.set_weights(restored)
    with files.replacing(path) as temporary:
        network.save(temporary)


def _versions():
    packages = ("tfsam", "tensorflow", "keras", "cleverhans", "numpy")
    return {"python": platform.python_version()} | {
        name: importlib.metadata.version(name) for name in packages
    }


def _artifacts(workdir):
    names = (
        *("config.json", "evaluation", "history.csv", "model.keras"),
        *("saved_model", "tensorboard", "robustness.png", "examples.png"),
        *("examples.npz", "log.txt"),
    )
    return [name for name in names if (workdir / name).exists()]


def logger(path, strategy=None):
    """A function that prints a line and keeps it in a file, with the time.

    Args:
        path: of the file.
        strategy: a `tf.distribute` strategy or None; a worker that is not the
            chief prints alone.
    """

    def log(line):
        if not devices.is_chief(strategy):
            worker = strategy.cluster_resolver.task_id
            print(f"worker {worker}: {line}", flush=True)
            return
        print(line, flush=True)
        with files.writing(path), open(path, "a") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")

    return log
