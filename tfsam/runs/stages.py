"""The stages of a run: train, export, attack, draw, report.

Each stage leaves a file behind when it is finished and is not repeated; a run
that was killed resumes from there.
"""

import pathlib
import time
from collections.abc import Callable
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import keras
import numpy as np

from tfsam import attacks
from tfsam import data
from tfsam import reports
from tfsam.data import batches
from tfsam.data import cache
from tfsam.data import class_orders
from tfsam.evaluation import arguments
from tfsam.evaluation import measure
from tfsam.evaluation import merging
from tfsam.models.fingerprints import from_file
from tfsam.models.loading import load_logits
from tfsam.models.networks import fine_tuning
from tfsam.runs import artifacts
from tfsam.runs import attack_entries
from tfsam.runs import attacked
from tfsam.runs import corrupted
from tfsam.runs import fit
from tfsam.runs import recipes
from tfsam.runs import targets
from tfsam.runs import trained_model
from tfsam.runs import versions
from tfsam.runs.attack_entries import BOUNDS
from tfsam.runs.drawing import draw
from tfsam.runs.settings import Settings
from tfsam.support import devices
from tfsam.support import files
from tfsam.support import signals

# Differences between two weights that count as rounding: relative, absolute.
_ROUNDING = (1e-4, 1e-5)

Log = Callable[[str], None]


class Inputs(NamedTuple):
    """The inputs of a run, checked before a file is written.

    Attributes:
        strategy: a `tf.distribute` strategy, or None for one device.
        images: the images.
        logits: the model to attack; None where a network is to be trained.
        surrogate: the model that attacks are computed on; None for the
            attacked model itself.
        network: the network to train; None where nothing is trained.
        mix: the images that are mixed into the batches, and their labels, or
            None.
        notes: lines about the inputs, for the log.
    """

    strategy: Any
    images: data.Images
    logits: attacks.Logits | None
    surrogate: attacks.Logits | None
    network: keras.Model | None = None
    mix: batches.Examples | None = None
    notes: Sequence[str] = ()


def prepare(settings: Settings) -> Inputs:
    """Selects the devices, and loads the images and the models to attack.

    Args:
        settings: the settings of the run.

    Raises:
        ValueError: if an input is missing, or does not fit the others.
    """
    if settings.evaluate and devices.cluster_size() > 1:
        raise ValueError(
            "processes share an evaluation by --shard=i/n, each with a "
            "workdir of its own, without TF_CONFIG. "
            f"Received: evaluate={settings.evaluate}"
        )
    _check_warm_start(settings)
    entries, transfers = _entries(settings)
    arguments.check_sweep(
        *(settings.sweep, [*entries, *transfers], settings.budgets, BOUNDS),
        warm_start=settings.warm_start,
    )
    strategy = devices.make_strategy(settings.devices, settings.strategy)
    models = attacked.opened(settings)
    images = load_images(settings, models)
    images = targets.without_target(images, settings.target)
    models = attacked.with_weights(settings, models, images)
    logits = surrogate = network = mix = None
    notes: list[str] = []
    if settings.training:
        # First of all: the names of its layers depend on those before.
        network = trained_model.make_network(
            settings, images, strategy, notes.append
        )
    if models.surrogate is not None:
        surrogate = attacked.classifier(settings, models.surrogate, images)
    if models.model is not None:
        arguments.check_shard(
            settings.shard or (0, 1),
            len(images.x_test),
            settings.attack_batch_size,
        )
        logits = attacked.classifier(
            settings, models.model, images, settings.pixels
        )
    else:
        mix = recipes.mix(settings, images, _cache_dir(settings), notes.append)
        fit.check(settings, images, strategy, network, mix)
    corrupted.check(settings, images)
    return Inputs(strategy, images, logits, surrogate, network, mix, notes)


def load_images(settings: Settings, models: attacked.Models) -> data.Images:
    """Loads the images of a run.

    Args:
        settings: the settings of the run.
        models: the models of the run, which decide the size of the images
            unless the settings do.
    """
    size = attacked.image_size(models)
    if settings.training:
        size = fine_tuning.image_size(
            settings.training.network, settings.trust or ()
        )
    return data.load(
        settings.dataset,
        limit_train=settings.limit_train,
        limit_test=settings.limit_test,
        seed=settings.seed,
        cache_dir=_cache_dir(settings),
        image_size=settings.image_size,
        network_size=size,
        resize=settings.resize,
        test_fraction=settings.test_fraction,
        bad_images=settings.bad_images,
        class_order=settings.class_order,
        part="all" if settings.evaluate is None else "test",
    )


_Entries = list[tuple[str, dict[str, Any]]]


def _entries(settings: Settings) -> tuple[_Entries, _Entries]:
    """Returns the attacks of the evaluation, and those on the surrogate alone.

    Each attack is (name, options).
    """
    steps = settings.attack_steps
    return (
        attack_entries.entries(settings.attacks, steps),
        attack_entries.entries(settings.transfer_attacks, steps),
    )


def _check_warm_start(settings: Settings) -> None:
    """Rejects a warm start that no attack of the run can use."""
    if settings.warm_start and settings.budgets:
        (epsilon, *_), *_ = settings.budgets.values()
        entries, transfers = _entries(settings)
        arguments.check_warm_start(
            [*entries, *transfers], list(settings.budgets), epsilon, BOUNDS
        )


def _cache_dir(settings: Settings) -> pathlib.Path | None:
    """Returns the folder for decoded images, or None."""
    if settings.cache_dir == "none":
        return None
    if settings.cache_dir is None:
        return cache.default_folder()
    return files.expanded(settings.cache_dir)


def attack(
    settings: Settings, model: attacks.Logits, inputs: Inputs, log: Log
) -> dict[str, Any]:
    """Evaluates a model; each verdict is kept in a file, chunk by chunk.

    Args:
        settings: the settings of the run.
        model: the model to attack.
        inputs: the inputs of the run.
        log: a function of a line of text.

    Returns:
        `natural`, `robust`, `worst_case` and `warnings`; see `tfsam.evaluate`.
    """
    images, (entries, transfers) = inputs.images, _entries(settings)
    names = ", ".join(
        [name for name, _ in entries]
        + [f"{name} on the surrogate" for name, _ in transfers]
    )
    budgets = settings.budgets if names else {}
    norms = ", ".join(budgets)
    log(f"attacking in {norms} by {names}" if norms else "attacking by nothing")
    return measure.evaluate(
        model,
        (data.as_float(images.x_test), images.y_test),
        entries if norms else [],
        budgets=budgets,
        target=settings.target,
        seed=settings.seed,
        batch_size=settings.attack_batch_size,
        progress=log,
        workdir=settings.workdir / "evaluation",
        save_adversarial=settings.save_adversarial,
        devices=inputs.strategy and devices.names(inputs.strategy),
        shard=settings.shard or (0, 1),
        surrogate=inputs.surrogate,
        transfer_attacks=transfers if norms else [],
        warm_start=settings.warm_start,
        diagnose=settings.diagnose,
        draws=settings.draws,
        sweep=settings.sweep,
    )


def merge(
    folders: Sequence[pathlib.Path], workdir: pathlib.Path
) -> dict[str, Any]:
    """Merges the shards of an evaluation, and writes the whole results.json.

    Args:
        folders: folders of finished runs with --shard.
        workdir: the folder of the result; it may not hold a run.

    Returns:
        The content of results.json.

    Raises:
        ValueError: if a folder holds no shard, or a shard of another
            evaluation, or shards are missing.
    """
    first = _first_shard(folders)
    if workdir.exists() and any(workdir.iterdir()):
        raise ValueError(
            f"workdir must be an empty folder. Received: workdir={workdir}"
        )
    measured = merging.merge([path / "evaluation" for path in folders])
    corruptions = [path / "corruptions" for path in folders]
    if any(path.exists() for path in corruptions):
        measured["corruptions"] = merging.merge(corruptions)
    workdir.mkdir(parents=True, exist_ok=True)
    results = {
        **first,
        "config": first["config"] | {"shard": None, "workdir": str(workdir)},
        **measured,
        "merged": [str(path) for path in folders],
    }
    reports.robustness_plot(results, workdir / "robustness.png")
    if "corruptions" in measured:
        reports.corruptions_plot(results, workdir / "corruptions.png")
    results["artifacts"] = artifacts.names(workdir)
    files.write_json(workdir / "results.json", results)
    return results


def _first_shard(folders: Sequence[pathlib.Path]) -> dict[str, Any]:
    """Returns the results of the first of some shards; checks that all are."""
    found = []
    for path in folders:
        results = reports.read(path / "results.json")
        if results is None or not (results.get("config") or {}).get("shard"):
            raise ValueError(
                "merge takes folders of finished runs with --shard. "
                f"Received: {path}"
            )
        found.append(results)
    if not found:
        raise ValueError("merge takes folders. Received: none")
    return found[0]


def run(
    settings: Settings, inputs: Inputs, log: Log, stop: signals.Stop
) -> dict[str, Any] | None:
    """Runs all stages, and writes results.json last.

    Args:
        settings: the settings of the run, whose folder is claimed.
        inputs: the inputs of the run.
        log: a function of a line of text.
        stop: the signals that the run has received.

    Returns:
        The content of results.json; None in a worker that is not the chief.

    Raises:
        ConnectionError: if another worker was lost.
        FloatingPointError: if the loss became NaN.
        tfsam.support.files.DiskFull: if there is no room for a file.
        tfsam.support.signals.Stopped: if a signal has arrived.
    """
    model, trained = inputs.logits, None
    if model is None:
        with devices.losing_workers(inputs.strategy):
            network, trained = fit.train(
                *(settings, inputs.images, inputs.strategy),
                *(log, stop, inputs.network),
                mix=inputs.mix,
            )
        stop.release()  # Where training had nothing left to do.
        if not devices.is_chief(inputs.strategy):
            log("done; the chief continues alone")
            return None
        model = _export(settings, network, inputs.images.class_names)
    measured = attack(settings, model, inputs, log)
    draw(settings, model, inputs.images, inputs.surrogate, measured, log)
    workdir = settings.workdir
    measured |= corrupted.measured(
        settings, model, inputs.images, inputs.strategy, log
    )
    if "corruptions" in measured:
        reports.corruptions_plot(measured, workdir / "corruptions.png")
    results = {
        "schema": 1,
        "method": settings.training and settings.training.method,
        "config": settings.config() | {"workdir": str(workdir)},
        "seed": settings.seed,
        "versions": versions.current(settings),
        "devices": devices.names(inputs.strategy),
        "workers": devices.workers(inputs.strategy),
        "class_names": list(inputs.images.class_names),
        "train": trained,
        **({"model": model.origin} if model.origin else {}),
        **measured,
        "artifacts": artifacts.names(workdir),
    }
    files.write_json(workdir / "results.json", results)
    return results


def _export(
    settings: Settings, network: keras.Model, class_names: Sequence[str]
) -> attacks.Logits:
    """Writes the trained network, and returns it as a model to attack."""
    workdir = settings.workdir
    _keep(network, workdir / "model.keras")
    with files.replacing(workdir / "saved_model") as temporary:
        network.export(temporary, verbose=False)
    class_orders.write(workdir / "classes.txt", class_names)
    model = load_logits(network, settings.compiles)
    model.identity = from_file(workdir / "model.keras", "keras")
    return model


def _keep(network: keras.Model, path: pathlib.Path) -> None:
    """Writes the trained network, unless the file has it but for rounding.

    A run that resumes in its evaluation restores the network from the newest
    checkpoint, and measures the BatchNorm statistics of averaged weights again:
    sums over many threads round differently. The verdicts so far belong to the
    network in the file, so its weights are used.

    Args:
        network: a built `keras.Model`.
        path: the `.keras` file.
    """
    restored = network.get_weights()
    if path.exists():
        try:
            network.load_weights(path)
        except Exception:
            # A file can be damaged in many ways.
            network.set_weights(restored)
        else:
            pairs = zip(network.get_weights(), restored, strict=True)
            if all(np.allclose(*pair, *_ROUNDING) for pair in pairs):
                return
            network.set_weights(restored)
    with files.replacing(path) as temporary:
        network.save(temporary)


def logger(path: pathlib.Path, strategy: Any = None) -> Callable[[str], None]:
    """Makes a function that prints a line, and adds it to a file with the time.

    Args:
        path: the file.
        strategy: a `tf.distribute` strategy or None; a worker that is not the
            chief prints alone.
    """

    def log(line: str) -> None:
        if not devices.is_chief(strategy):
            worker = strategy.cluster_resolver.task_id
            print(f"worker {worker}: {line}", flush=True)
            return
        print(line, flush=True)
        with files.writing(path), open(path, "a") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")

    return log
