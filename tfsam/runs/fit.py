"""Trains a network as a configuration says, and goes on where it was killed.

Everything here is a function of `config`, a dict of settings that `run.py`
makes from flags.
"""

import contextlib
import json
import statistics
from collections.abc import Callable

import keras
import tensorflow as tf

from tfsam import data
from tfsam import evaluation
from tfsam import networks
from tfsam import parts
from tfsam.attacks import PGD
from tfsam.data import batches
from tfsam.models.functions import use_xla
from tfsam.runs import methods
from tfsam.support import devices
from tfsam.support import files
from tfsam.support.validators import check_count
from tfsam.training import checkpoints
from tfsam.training import monitoring
from tfsam.training.model import RobustModel
from tfsam.training.robust_validation import RobustValidation
from tfsam.training.robust_validation import StopAtCollapse

JIT_COMPILE = {"auto": "auto", "true": True, "false": False}

NETWORKS: dict[str, Callable] = {
    "preact_resnet8": networks.preact_resnet8,
    "preact_resnet18": networks.preact_resnet18,
    "wide_resnet": networks.wide_resnet,
}

PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")

# Training images on which an average's BatchNorm statistics are measured, and
# on which the trained network's accuracy is.
_RECALIBRATION = 10_000
_FITTED = 10_000


def check(config, images, strategy):
    """Finds what cannot be trained, before anything is written.

    Args:
        config: settings, as of `tfsam.run.configuration`.
        images: a `tfsam.data.Images`.
        strategy: a `tf.distribute` strategy or None.

    Raises:
        ValueError: if a setting is out of its range, or does not go with
            another, with the images or with the devices.
    """
    images = trained_on(config, images)
    steps = _steps(config, images, strategy)
    _validation_batch_size(config, images, strategy)
    batches.training_batches(  # Finds images that are too small to augment.
        images.x_train[:1],
        images.y_train[:1],
        batch_size=1,
        epochs=1,
        seed=0,
        augment=config["augment"],
    )
    # Any network shows which parts combine.
    network = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
    _robust_model(config, network, steps)
    _average(config, images, None)


def make_model(config, images, strategy):
    """A compiled `RobustModel` for the images.

    Args:
        config: settings, as of `tfsam.run.configuration`.
        images: a `tfsam.data.Images`.
        strategy: a `tf.distribute` strategy or None.
    """
    keras.utils.set_random_seed(config["seed"])
    # The paper's statistics where the images are the paper's.
    known = images.name in ("cifar10", "cifar100")
    steps = _steps(config, images, strategy)
    with _scope(strategy), _precision(config["precision"]):
        network = NETWORKS[config["network"]](
            len(images.class_names),
            input_shape=images.x_train.shape[1:],
            statistics=None if known else data.statistics(images.x_train),
        )
        model = _robust_model(config, network, steps)
        optimizer = methods.build(
            "optimizer",
            config,
            _schedule(config, steps),
            momentum=config["momentum"],
            weight_decay=config["weight_decay"],
            seed=config["seed"],
        )
        model.compile(
            optimizer,
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
            jit_compile=use_xla(JIT_COMPILE[config["jit_compile"]]),
        )
    return model


def _scope(strategy):
    return strategy.scope() if strategy else contextlib.nullcontext()


@contextlib.contextmanager
def _precision(policy):
    """Layers made in it have this policy; the weights are float32 in all."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def _robust_model(config, network, steps):
    """The network with what perturbs it, by a configuration."""
    return RobustModel(
        network,
        methods.build("perturb_inputs", config),
        methods.build(
            "perturb_weights",
            config,
            # Of SSAM's masks: five epochs is its authors' default.
            refresh_every=5 * steps,
            total_steps=config["epochs"] * steps,
        ),
        objective=methods.build("objective", config),
        sharpness=config["sharpness"],
        sub_batches=config["sub_batches"] or 1,
        attack_mode=config["attack_mode"] or "inference",
        epsilon_warmup_steps=(config["epsilon_warmup"] or 0) * steps,
        seed=config["seed"],
    )


def _schedule(config, steps):
    """Times 0.1 at 75 % and again at 90 % of the epochs (the paper's).

    For an average such as SWA the rate stays high, at half from the first
    snapshot on: weights that hardly move are not worth averaging (Izmailov et
    al., 2018).
    """
    rate, epochs = config["learning_rate"], config["epochs"]
    average = config["average"]
    if average and parts.AVERAGES.fact(
        parts.AVERAGES.factory(average), "holds_rate"
    ):
        start = max(_average_start(config) * steps - 1, 0)
        bounds, rates = [start], [rate, rate / 2]
    else:
        bounds = [round(epochs * part) * steps - 1 for part in (0.75, 0.9)]
        rates = [rate, rate / 10, rate / 100]
    return keras.optimizers.schedules.PiecewiseConstantDecay(bounds, rates)


def _average_start(config):
    """The first epoch, from 0, whose weights SWA takes: 75 % of the way."""
    start, epochs = config["average_start"], config["epochs"]
    if start is None:
        return min(round(0.75 * epochs), epochs - 1)
    if start >= epochs:
        raise ValueError(
            f"average_start must be below epochs={epochs}, or no weights are "
            f"averaged. Received: average_start={start}"
        )
    return start


def _average(config, images, folder):
    """The callback that averages the weights, or None."""
    if config["average"] is None:
        return None
    some = data.sample(len(images.x_train), _RECALIBRATION, config["seed"])
    objective = methods.build("objective", config)
    clean = objective is not None and parts.OBJECTIVES.fact(
        objective, "clean_statistics"
    )
    start = {"start_epoch": _average_start(config)}
    return methods.build(
        "average",
        config,
        data=(data.as_float(images.x_train[some]), images.y_train[some]),
        # Where only perturbed inputs are trained on, they move the statistics.
        attack=None if clean else methods.build("perturb_inputs", config),
        folder=folder,
        **start,
    )


def _validates(config):
    return config["select"] != "last" or config["validate_every"] is not None


def trained_on(config, images):
    """The images without those that a run holds out.

    Args:
        config: settings, as of `tfsam.run.configuration`.
        images: a `tfsam.data.Images`.
    """
    return _split(config, images)[0] if _validates(config) else images


def _split(config, images):
    """The images without, and with only, those that are held out."""
    count = config["validation_images"]
    if count is None:
        count = min(1000, len(images.x_train) // 10)
    return data.hold_out(images, count, config["seed"])


def _validation(config, held_out, average, path):
    """The callback that attacks the held-out images."""
    epsilon, norm = config["epsilon"], config["norm"]
    if epsilon is None:  # A method without an attack of its own.
        norm = "linf" if config["linf_epsilons"] else "l2"
        epsilon = max(config[f"{norm}_epsilons"] or [0.0])
    keep = None if config["select"] == "last" else config["select"]
    return RobustValidation(
        (data.as_float(held_out.x_train), held_out.y_train),
        PGD(epsilon, norm, steps=10),
        every=config["validate_every"] or 1,
        seed=config["seed"],
        keep=keep,
        path=path if keep else None,
        average=average,
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
    parts = (config["sub_batches"] or 1) * replicas
    smallest = rest if rest and strategy is None else config["batch_size"]
    if smallest < parts:
        raise ValueError(
            f"sub_batches must be at most the smallest batch, of {smallest} "
            f"images. Received: sub_batches={config['sub_batches']}"
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


def train(config, images, workdir, strategy, log, stop):
    """Trains, from the newest checkpoint if there is one.

    Args:
        config: settings, as of `tfsam.run.configuration`.
        images: a `tfsam.data.Images`.
        workdir: the run's folder.
        strategy: a `tf.distribute` strategy or None.
        log: a function of a line of text.
        stop: a `tfsam.support.signals.Stop`; on a signal, training stops
            after the current step.

    Returns:
        (network, what is to be known of it): the last, averaged or best network
        as the configuration says, and a dict for results.json; (network, None)
        in a worker that is not the chief, which writes nothing.

    Raises:
        FloatingPointError: if the loss or a weight is not finite any more.
        tfsam.support.signals.Stopped: if `stop` was asked.
    """
    held_out = validation = None
    if _validates(config):
        images, held_out = _split(config, images)
    average = _average(config, images, workdir / "average")
    if held_out is not None:
        best = workdir / "best.keras"
        validation = _validation(config, held_out, average, best)
    model, (done, step), state = _restore(
        workdir / "checkpoints", average, strategy, log
    )
    if model is None:
        model = make_model(config, images, strategy)
    epochs, steps = config["epochs"], _steps(config, images, strategy)
    log(sharing(config, strategy))
    stopped = _stopped_epoch(workdir)
    if stopped is not None and done >= stopped:
        epochs = done
    train_data = batches.training_batches(
        images.x_train,
        images.y_train,
        batch_size=config["batch_size"],
        # One at least: Keras looks at a batch even if no epoch is left.
        epochs=max(epochs, done + 1),
        seed=config["seed"],
        initial_epoch=done,
        initial_step=step,
        augment=config["augment"],
        # Replicas cannot share a batch that is smaller than they are many.
        drop_remainder=strategy is not None,
    )
    collapse = _stop(config, images, average)
    history = monitoring.History(workdir / "history.csv", done)
    parts = [part for part in (average, collapse, history) if part is not None]
    if step:  # The metrics are there before their state is put back.
        with _scope(strategy):
            model.build_for(train_data.element_spec)
    chief = devices.is_chief(strategy)
    watching = [
        checkpoints.Resume(state, parts, steps - step if step else None),
        *(monitoring.StopAtNaN(), validation, average, collapse),
    ]
    if collapse and chief:
        watching.append(_KeepStop(collapse, workdir / "stopped.json", log))
    checkpoint = checkpoints.Checkpoint(
        workdir / "checkpoints",
        steps,
        every=config["checkpoint_steps"],
        first_step=step,
        parts=parts,
        stop=stop,
    )
    keeping = [
        *(history, checkpoint),
        monitoring.Progress(log, steps, epochs, first_step=step),
        keras.callbacks.TensorBoard(workdir / "tensorboard", write_graph=False),
    ]
    used = watching + (keeping if chief else [checkpoint])
    # TensorBoard's is the one file within that does not say its name.
    with stop.deferred(), files.writing(workdir / "tensorboard"):
        model.fit(
            shared(train_data, strategy),
            epochs=epochs,
            initial_epoch=done,
            steps_per_epoch=steps,
            validation_data=(data.as_float(images.x_test), images.y_test),
            validation_batch_size=_validation_batch_size(
                config, images, strategy
            ),
            callbacks=[c for c in used if c is not None],
            shuffle=False,  # The data is shuffled, reproducibly.
            verbose=0,
        )
    if not chief:
        return model.network, None
    summary = _summary(config, workdir, images, validation)
    some = data.sample(len(images.x_train), _FITTED, config["seed"])
    fitted = evaluation.evaluate(
        model.network,
        (data.as_float(images.x_train[some]), images.y_train[some]),
        attacks=[],
        jit_compile=JIT_COMPILE[config["jit_compile"]],
    )
    return model.network, summary | {"natural": fitted["natural"]}


def sharing(config, strategy):
    """A line on what the replicas share: a batch, a rate, a perturbation."""
    batch, rate = config["batch_size"], config["learning_rate"]
    replicas = strategy.num_replicas_in_sync if strategy else 1
    line = f"a step takes {batch} images at learning rate {rate:g}"
    if replicas == 1:
        return line
    workers = devices.workers(strategy)
    line += (
        f": {batch // replicas} on each of {replicas} devices"
        + f" of {workers} workers" * (workers > 1)
        + ", the rate is for all of them"
    )
    if config["perturb_weights"] is None:
        return line
    whose = {
        "global": "the gradient of the whole batch",
        "per_replica": "its own gradient",
    }
    return f"{line}; each perturbs the weights by {whose[config['sharpness']]}"


def shared(dataset, strategy):
    """The batches as replicas get them: the first part to the first replica.

    Keras would leave the order to TensorFlow, which gives the parts of a batch
    to the workers in turn. What a replica draws goes by the position in the
    batch, so the order is part of the result.
    """
    if strategy is None:
        return dataset
    replicas = strategy.num_replicas_in_sync

    def of_worker(context):
        here = replicas // context.num_input_pipelines
        first = here * context.input_pipeline_id

        def part(tensor):
            rows = tensor.shape[0] // replicas
            parts = tf.reshape(tensor, [replicas, rows, *tensor.shape[1:]])
            return parts[first : first + here]

        return dataset.map(
            lambda *batch: tf.nest.map_structure(part, batch)
        ).unbatch()

    return strategy.distribute_datasets_from_function(of_worker)


class _KeepStop(keras.callbacks.Callback):
    """Remembers in a file that training was stopped: a resumed run heeds it."""

    def __init__(self, stop, path, log):
        super().__init__()
        self.stop, self.path, self.log = stop, path, log

    def on_epoch_end(self, epoch, logs=None):
        """Comes before the checkpoint of the epoch, with which it is valid."""
        if self.stop.stopped_epoch:
            files.write_json(self.path, {"epoch": self.stop.stopped_epoch})
            self.log(
                f"epoch {epoch + 1}: the accuracy under attack collapsed; the "
                "weights of the epoch before are put back, and training stops"
            )


def _stop(config, images, average):
    """The callback that watches for catastrophic overfitting, or None."""
    drop = config["collapse_drop"]
    if drop is None or drop >= 1:
        return None
    some = data.sample(
        len(images.x_train), config["batch_size"], config["seed"]
    )
    return StopAtCollapse(
        (data.as_float(images.x_train[some]), images.y_train[some]),
        PGD(config["epsilon"], config["norm"], steps=5),
        drop=drop,
        average=average,
        seed=config["seed"],
    )


def _stopped_epoch(workdir):
    """The epoch after which a collapse stopped training, or None."""
    path = workdir / "stopped.json"
    if not path.exists():
        return None
    with files.reading(path, "the epoch that training stopped after"):
        return check_count("epoch", json.loads(path.read_text())["epoch"], 1)


def _restore(folder, average, strategy, log):
    """The model of the newest checkpoint that can be read, with its average.

    Returns:
        (model, position, state): what the checkpoint holds, and where it is;
        model is None without a checkpoint.
    """
    for position, path in checkpoints.newest_first(folder):
        epochs, step = position
        try:
            state = checkpoints.read_state(path, amid=step > 0)
            if average and epochs:
                average.read_state(epochs)
            with _scope(strategy):
                model = keras.saving.load_model(path)
        except Exception as error:
            # A file can be broken in more ways than one knows.
            reason = files.reason(error)
            log(f"cannot read {path.name} ({reason}); trying the one before")
            continue
        steps = f" and {step} steps" if step else ""
        log(f"going on after epoch {epochs}{steps}")
        return model, position, state
    return None, (0, 0), {}


def epochs_done(workdir):
    """The epochs of the newest checkpoint of a run's folder, 0 without one.

    Args:
        workdir: the folder.
    """
    found = checkpoints.newest_first(workdir / "checkpoints")
    return found[0][0][0] if found else 0


def _summary(config, workdir, images, validation):
    """What results.json says of the training."""
    path = workdir / "history.csv"
    rows = monitoring.read_history(path)
    with files.reading(path, "the seconds of each epoch"):
        step = statistics.median(row["step_seconds_median"] for row in rows)
        seconds = sum(row["seconds"] for row in rows)
    return {
        "epochs": len(rows),
        "seconds": seconds,
        "step_seconds_median": step,
        "examples_per_second": min(config["batch_size"], len(images.x_train))
        / step,
        "passes": methods.passes(config),
        "images": len(images.x_train),
        "selected": validation and validation.best,
        "stopped_epoch": _stopped_epoch(workdir),
    }
