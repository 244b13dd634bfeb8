"""Training of a run's network, which resumes at the newest checkpoint."""

import contextlib
import dataclasses
import json
import pathlib
import statistics
from collections.abc import Callable
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf

from tfsam import data
from tfsam import registries
from tfsam.attacks import PGD
from tfsam.data import batches
from tfsam.data.rows import part
from tfsam.evaluation import measure
from tfsam.models.functions import use_xla
from tfsam.models.networks import freezing
from tfsam.models.networks import trainable
from tfsam.runs.settings import Settings
from tfsam.support import devices
from tfsam.support import files
from tfsam.support import signals
from tfsam.support.validators import check_count
from tfsam.training import checkpoints
from tfsam.training import monitoring
from tfsam.training import progress
from tfsam.training.model import RobustModel
from tfsam.training.robust_validation import RobustValidation
from tfsam.training.robust_validation import StopAtCollapse

Log = Callable[[str], None]

# The number of training images on which an average's BatchNorm statistics are
# measured, and the number on which the trained network's accuracy is.
_RECALIBRATION = 10_000
_FITTED = 10_000

# Position in training: finished epochs, and steps in the epoch after them.
_Position = tuple[int, int]


def check(settings: Settings, images: data.Images, strategy: Any) -> None:
    """Rejects settings that cannot be trained, before a file is written.

    Args:
        settings: the settings of the run.
        images: the images.
        strategy: a `tf.distribute` strategy or None.

    Raises:
        ValueError: if a setting does not fit another, the images or the
            devices.
    """
    images = trained_on(settings, images)
    steps = _steps_per_epoch(settings, images, strategy)
    _validation_batch_size(settings, images, strategy)
    batches.training_batches(  # Rejects images that are too small to augment.
        images.x_train[:1],
        images.y_train[:1],
        batch_size=1,
        epochs=1,
        seed=0,
        augment=settings.recipe.augment,
    )
    # Any network shows whether the parts combine.
    network = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
    model = _robust_model(settings, network, steps)
    _optimizer(settings, steps)
    try:
        model.get_config()  # Checkpoints need it.
    except (AttributeError, TypeError) as error:
        raise ValueError(
            "the parts of a run must be objects that Keras can save, with "
            "get_config() and keras.saving.register_keras_serializable. "
            f"Received: {error}"
        ) from error
    _average(settings, images, None)


def make_network(
    settings: Settings,
    images: data.Images,
    strategy: Any,
    log: Log = lambda line: None,
) -> keras.Model:
    """Builds the network for the images.

    With several workers it is outside the strategy, within which they would
    wait for one another; `make_model` copies it.

    Args:
        settings: the settings of the run.
        images: the images.
        strategy: a `tf.distribute` strategy or None.
        log: a function of a line of text.

    Raises:
        ImportError, OSError, ValueError: see `trainable.build`.
    """
    recipe = settings.recipe

    def statistics() -> Any:
        # The paper's where the images are the paper's.
        known = images.name in ("cifar10", "cifar100")
        return None if known else data.statistics(images.x_train)

    keras.utils.set_random_seed(settings.seed)
    alone = strategy if devices.workers(strategy) == 1 else None
    with _scope(alone), _precision(recipe.precision):
        network = trainable.build(
            recipe.network,
            len(images.class_names),
            images.x_train.shape[1:],
            statistics=statistics,
            weights=recipe.weights,
            freeze=recipe.freeze,
            pixels=settings.pixels,
            trusted=settings.trust or (),
            log=log,
        )
    steps = recipe.epochs * _steps_per_epoch(settings, images, strategy)
    line = freezing.slow_statistics(network, steps)
    if line and recipe.average is None:
        log(line)
    return network


def make_model(
    settings: Settings,
    images: data.Images,
    strategy: Any,
    network: keras.Model | None = None,
) -> RobustModel:
    """Makes a compiled `RobustModel` for the images.

    Args:
        settings: the settings of the run.
        images: the images.
        strategy: a `tf.distribute` strategy or None.
        network: the result of `make_network`; None makes it.
    """
    recipe = settings.recipe
    if network is None:
        network = make_network(settings, images, strategy)
    steps = _steps_per_epoch(settings, images, strategy)
    with _scope(strategy), _precision(recipe.precision):
        if devices.workers(strategy) > 1:
            network = trainable.copied(network)
        model = _robust_model(settings, network, steps)
        model.compile(
            _optimizer(settings, steps),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
            jit_compile=use_xla(settings.compiles),
        )
    return model


def _scope(strategy: Any) -> contextlib.AbstractContextManager[Any]:
    return strategy.scope() if strategy else contextlib.nullcontext()


@contextlib.contextmanager
def _precision(policy: str) -> Iterator[None]:
    """Sets the policy of the layers made within; weights stay float32."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def _optimizer(settings: Settings, steps: int) -> keras.Optimizer:
    """Makes the optimizer of a run."""
    recipe = settings.recipe
    return recipe.build(
        "optimizer",
        _schedule(settings, steps),
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        seed=settings.seed,
    )


def _robust_model(
    settings: Settings, network: keras.Model, steps: int
) -> RobustModel:
    """Makes the model of the method around a network."""
    recipe = settings.recipe
    return RobustModel(
        network,
        recipe.build("perturb_inputs"),
        recipe.build(
            "perturb_weights",
            # Five epochs between two masks of SSAM, as its authors have it.
            refresh_every=5 * steps,
            total_steps=recipe.epochs * steps,
        ),
        objective=recipe.build("objective"),
        sharpness=recipe.sharpness,
        sub_batches=recipe.sub_batches or 1,
        attack_mode=recipe.attack_mode or "inference",
        epsilon_warmup_steps=(recipe.epsilon_warmup or 0) * steps,
        seed=settings.seed,
    )


def _schedule(
    settings: Settings, steps: int
) -> keras.optimizers.schedules.LearningRateSchedule:
    """Makes the paper's schedule: times 0.1 at 75 % and 90 % of the epochs.

    For an average such as SWA the rate stays high, at half from the first
    snapshot on: weights that hardly move are not worth averaging (Izmailov et
    al., 2018).
    """
    rate, epochs = settings.recipe.learning_rate, settings.recipe.epochs
    average = settings.recipe.average
    if average and registries.AVERAGES.fact(
        registries.AVERAGES.factory(average), "holds_rate"
    ):
        start = max(_average_start(settings) * steps - 1, 0)
        bounds, rates = [start], [rate, rate / 2]
    else:
        bounds = [round(epochs * part) * steps - 1 for part in (0.75, 0.9)]
        rates = [rate, rate / 10, rate / 100]
    return keras.optimizers.schedules.PiecewiseConstantDecay(bounds, rates)


def _average_start(settings: Settings) -> int:
    """Returns the first epoch, from 0, that is averaged: at 75 %, or given."""
    start, epochs = settings.recipe.average_start, settings.recipe.epochs
    if start is None:
        return min(round(0.75 * epochs), epochs - 1)
    if start >= epochs:
        raise ValueError(
            f"average_start must be below epochs={epochs}, or no weights are "
            f"averaged. Received: average_start={start}"
        )
    return start


def _average(
    settings: Settings, images: data.Images, folder: pathlib.Path | None
) -> Any:
    """Makes the callback that averages the weights, or returns None."""
    recipe = settings.recipe
    if recipe.average is None:
        return None
    some = data.sample(len(images.x_train), _RECALIBRATION, settings.seed)
    objective = recipe.build("objective")
    clean = objective is not None and registries.OBJECTIVES.fact(
        objective, "clean_statistics"
    )
    return recipe.build(
        "average",
        data=(
            data.as_float(part(images.x_train, some)),
            images.y_train[some],
        ),
        # Training on perturbed inputs alone moves the statistics.
        attack=None if clean else recipe.build("perturb_inputs"),
        folder=folder,
        start_epoch=_average_start(settings),
    )


def trained_on(settings: Settings, images: data.Images) -> data.Images:
    """Returns the images without those held out for validation.

    Args:
        settings: the settings of the run.
        images: the images.
    """
    if not settings.recipe.holds_out:
        return images
    return _split(settings, images)[0]


def _split(
    settings: Settings, images: data.Images
) -> tuple[data.Images, data.Images]:
    """Returns the images without the held-out ones, and these alone."""
    count = settings.recipe.validation_images
    if count is None:
        count = min(1000, len(images.x_train) // 10)
    return data.hold_out(images, count, settings.seed)


def _validation(
    settings: Settings, held_out: data.Images, average: Any
) -> RobustValidation:
    """Makes the callback that attacks the held-out images."""
    recipe = settings.recipe
    epsilon, norm = recipe.epsilon, recipe.norm
    if epsilon is None or norm is None:  # The method has no attack.
        norm = next(iter(settings.budgets), "l2")
        epsilon = max(settings.budgets.get(norm, (0.0,)))
    keep = None if recipe.select == "last" else recipe.select
    return RobustValidation(
        (data.as_float(held_out.x_train), held_out.y_train),
        PGD(epsilon, norm, steps=10),
        every=recipe.validate_every or 1,
        seed=settings.seed,
        keep=keep,
        path=settings.workdir / "best.keras" if keep else None,
        average=average,
    )


def _steps_per_epoch(
    settings: Settings, images: data.Images, strategy: Any
) -> int:
    """Returns the steps of an epoch; one device keeps the partial batch."""
    size = settings.recipe.batch_size
    full, rest = divmod(len(images.x_train), size)
    steps = full + bool(rest and strategy is None)
    if not steps:
        raise ValueError(
            f"batch_size must be at most {len(images.x_train)}, the number of "
            f"training images. Received: batch_size={size}"
        )
    replicas = strategy.num_replicas_in_sync if strategy else 1
    if size % replicas:
        raise ValueError(
            f"batch_size must be a multiple of {replicas}, the number of "
            f"devices. Received: batch_size={size}"
        )
    sub_batches = settings.recipe.sub_batches
    smallest = rest if rest and strategy is None else size
    if smallest < (sub_batches or 1) * replicas:
        raise ValueError(
            f"sub_batches must be at most the smallest batch, of {smallest} "
            f"images. Received: sub_batches={sub_batches}"
        )
    return steps


def _validation_batch_size(
    settings: Settings, images: data.Images, strategy: Any
) -> int:
    """Returns the largest size whose last batch feeds every replica.

    TensorFlow's convolutions fail on a replica without images.
    """
    replicas = strategy.num_replicas_in_sync if strategy else 1
    count = len(images.x_test)
    for size in range(settings.recipe.batch_size, 0, -replicas):
        rest = count % size
        if not rest or rest > size - size // replicas:
            return size
    raise ValueError(
        f"{replicas} devices need another number of test images (see "
        f"--limit_test). Received: {count} test images"
    )


@dataclasses.dataclass(frozen=True)
class _Session:
    """A training that begins, or resumes, at a position.

    Attributes:
        settings: the settings of the run.
        images: the images that are trained on.
        strategy: a `tf.distribute` strategy or None.
        steps: steps per epoch.
        position: the position at which it begins.
        state: the state of the callbacks at that position.
        average: the callback that averages the weights, or None.
        validation: the callback that attacks held-out images, or None.
    """

    settings: Settings
    images: data.Images
    strategy: Any
    steps: int
    position: _Position
    state: Any
    average: Any
    validation: RobustValidation | None

    @property
    def epochs(self) -> int:
        """The epochs of the whole training, fewer where it had collapsed."""
        stopped = _stopped_epoch(self.settings.workdir)
        done = self.position[0]
        if stopped is not None and done >= stopped:
            return done
        return self.settings.recipe.epochs

    def batches(self) -> tf.data.Dataset:
        """Returns the training batches from the position on."""
        recipe, (done, step) = self.settings.recipe, self.position
        return batches.training_batches(
            self.images.x_train,
            self.images.y_train,
            batch_size=recipe.batch_size,
            # One at least: Keras looks at a batch even if no epoch is left.
            epochs=max(self.epochs, done + 1),
            seed=self.settings.seed,
            initial_epoch=done,
            initial_step=step,
            augment=recipe.augment,
            # Replicas cannot share a batch smaller than their number.
            drop_remainder=self.strategy is not None,
        )

    def callbacks(
        self, log: Log, stop: signals.Stop
    ) -> list[keras.callbacks.Callback]:
        """Makes the callbacks; only the chief's write files.

        Args:
            log: a function of a line of text.
            stop: the signals that the run has received.
        """
        workdir, (done, step) = self.settings.workdir, self.position
        chief = devices.is_chief(self.strategy)
        collapse = _stop(self.settings, self.images, self.average)
        history = monitoring.History(workdir / "history.csv", done)
        kept = [p for p in (self.average, collapse, history) if p is not None]
        remaining = self.steps - step if step else None
        used = [
            checkpoints.Resume(self.state, kept, remaining),
            *(monitoring.StopAtNaN(), self.validation),
            *(self.average, collapse),
        ]
        if collapse and chief:
            used.append(_KeepStop(collapse, workdir / "stopped.json", log))
        checkpoint = checkpoints.Checkpoint(
            workdir / "checkpoints",
            self.steps,
            every=self.settings.recipe.checkpoint_steps,
            first_step=step,
            parts=kept,
            stop=stop,
        )
        if chief:
            used += [
                *(history, checkpoint),
                progress.Progress(
                    log, self.steps, self.epochs, first_step=step
                ),
                keras.callbacks.TensorBoard(
                    workdir / "tensorboard", write_graph=False
                ),
            ]
        else:
            used.append(checkpoint)
        return [callback for callback in used if callback is not None]


def train(
    settings: Settings,
    images: data.Images,
    strategy: Any,
    log: Log,
    stop: signals.Stop,
    network: keras.Model | None = None,
) -> tuple[keras.Model, dict[str, Any] | None]:
    """Trains, from the newest checkpoint if there is one.

    Args:
        settings: the settings of the run.
        images: the images.
        strategy: a `tf.distribute` strategy or None.
        log: a function of a line of text.
        stop: the signals that the run has received; on a signal, training
            stops after the current step.
        network: the result of `make_network`, used where there is no
            checkpoint; None makes it.

    Returns:
        (network, summary): the last, averaged or best network, as the settings
        have it, and a dict for results.json. The summary is None in a worker
        that is not the chief, which writes nothing.

    Raises:
        FloatingPointError: if the loss or a weight is no longer finite.
        tfsam.support.signals.Stopped: if a signal has arrived.
    """
    model, session = _begin(settings, images, strategy, log, network)
    log(sharing(settings, strategy))
    batches_left = session.batches()
    if session.position[1]:  # The metrics must exist to take their state.
        with _scope(strategy):
            model.build_for(batches_left.element_spec)
    callbacks = session.callbacks(log, stop)
    # TensorBoard does not name the file that it fails to write.
    with stop.deferred(), files.writing(settings.workdir / "tensorboard"):
        model.fit(
            shared(batches_left, strategy),
            epochs=session.epochs,
            initial_epoch=session.position[0],
            steps_per_epoch=session.steps,
            **_validation_data(settings, images, strategy),
            callbacks=callbacks,
            shuffle=False,  # The batches are shuffled, reproducibly.
            verbose=0,
        )
    if not devices.is_chief(strategy):
        return model.network, None
    return model.network, _summary(session, model.network)


def _validation_data(
    settings: Settings, images: data.Images, strategy: Any
) -> dict[str, Any]:
    """Returns the arguments of `fit` that say what is validated."""
    x, y = images.x_test, images.y_test
    size = _validation_batch_size(settings, images, strategy)
    if isinstance(x, data.Rows):
        return {"validation_data": batches.validation_batches(x, y, size)}
    return {
        "validation_data": (data.as_float(x), y),
        "validation_batch_size": size,
    }


def _begin(
    settings: Settings,
    images: data.Images,
    strategy: Any,
    log: Log,
    network: keras.Model | None,
) -> tuple[RobustModel, _Session]:
    """Restores the newest checkpoint, or makes a new model."""
    held_out = None
    if settings.recipe.holds_out:
        images, held_out = _split(settings, images)
    average = _average(settings, images, settings.workdir / "average")
    validation = held_out and _validation(settings, held_out, average)
    model, position, state = _restore(
        settings.workdir / "checkpoints", average, strategy, log
    )
    if model is None:
        model = make_model(settings, images, strategy, network)
    steps = _steps_per_epoch(settings, images, strategy)
    return model, _Session(
        *(settings, images, strategy, steps, position, state),
        *(average, validation),
    )


def sharing(settings: Settings, strategy: Any) -> str:
    """Returns a line about what replicas share: a batch, a rate, a gradient.

    Args:
        settings: the settings of the run.
        strategy: a `tf.distribute` strategy or None.
    """
    recipe = settings.recipe
    batch, rate = recipe.batch_size, recipe.learning_rate
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
    if recipe.perturb_weights is None:
        return line
    gradient = {
        "global": "the gradient of the whole batch",
        "per_replica": "its own gradient",
    }
    return f"{line}; each perturbs the weights by {gradient[recipe.sharpness]}"


def shared(dataset: tf.data.Dataset, strategy: Any) -> Any:
    """Shares batches among replicas: the first part to the first replica.

    Keras would leave the order to TensorFlow, which gives the parts of a batch
    to the workers in turn. Random numbers depend on the position in the batch,
    so the order matters to the result.

    Args:
        dataset: batches.
        strategy: a `tf.distribute` strategy, or None for one device.
    """
    if strategy is None:
        return dataset
    replicas = strategy.num_replicas_in_sync

    def of_worker(context: tf.distribute.InputContext) -> tf.data.Dataset:
        here = replicas // context.num_input_pipelines
        first = here * context.input_pipeline_id

        def part(tensor: tf.Tensor) -> tf.Tensor:
            rows = tensor.shape[0] // replicas
            parts = tf.reshape(tensor, [replicas, rows, *tensor.shape[1:]])
            return parts[first : first + here]

        return dataset.map(
            lambda *batch: tf.nest.map_structure(part, batch)
        ).unbatch()

    return strategy.distribute_datasets_from_function(of_worker)


class _KeepStop(keras.callbacks.Callback):
    """Records in a file that training was stopped, for a run that resumes."""

    def __init__(self, stop: Any, path: pathlib.Path, log: Log) -> None:
        super().__init__()
        self.stop, self.path, self.log = stop, path, log

    def on_epoch_end(
        self, epoch: int, logs: dict[str, Any] | None = None
    ) -> None:
        """Writes the file before the checkpoint of the epoch."""
        if self.stop.stopped_epoch:
            files.write_json(self.path, {"epoch": self.stop.stopped_epoch})
            self.log(
                f"epoch {epoch + 1}: the accuracy under attack collapsed; the "
                "weights of the epoch before are put back, and training stops"
            )


def _stop(
    settings: Settings, images: data.Images, average: Any
) -> StopAtCollapse | None:
    """Makes the callback that detects catastrophic overfitting, if needed."""
    recipe = settings.recipe
    drop, epsilon, norm = recipe.collapse_drop, recipe.epsilon, recipe.norm
    if drop is None or drop >= 1 or epsilon is None or norm is None:
        return None
    some = data.sample(len(images.x_train), recipe.batch_size, settings.seed)
    return StopAtCollapse(
        (data.as_float(part(images.x_train, some)), images.y_train[some]),
        PGD(epsilon, norm, steps=5),
        drop=drop,
        average=average,
        seed=settings.seed,
    )


def _stopped_epoch(workdir: pathlib.Path) -> int | None:
    """Returns the epoch after which a collapse stopped training, or None."""
    path = workdir / "stopped.json"
    if not path.exists():
        return None
    with files.reading(path, "the epoch that training stopped after"):
        return check_count("epoch", json.loads(path.read_text())["epoch"], 1)


def _restore(
    folder: pathlib.Path, average: Any, strategy: Any, log: Log
) -> tuple[RobustModel | None, _Position, Any]:
    """Loads the newest checkpoint that can be read, with its average.

    Returns:
        (model, position, state): the content of the checkpoint and its
        position; model is None without a checkpoint.
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
            # A file can be damaged in many ways.
            reason = files.reason(error)
            log(f"cannot read {path.name} ({reason}); trying the one before")
            continue
        steps = f" and {step} steps" if step else ""
        log(f"resuming after epoch {epochs}{steps}")
        return model, position, state
    return None, (0, 0), {}


def epochs_done(workdir: pathlib.Path) -> int:
    """Returns the epochs of the newest checkpoint of a run, 0 without one.

    Args:
        workdir: the folder of the run.
    """
    found = checkpoints.newest_first(workdir / "checkpoints")
    return int(found[0][0][0]) if found else 0


def _summary(session: _Session, network: keras.Model) -> dict[str, Any]:
    """Returns the training's part of results.json."""
    settings, images = session.settings, session.images
    path = settings.workdir / "history.csv"
    rows = monitoring.read_history(path)
    with files.reading(path, "the seconds of each epoch"):
        step = statistics.median(row["step_seconds_median"] for row in rows)
        seconds = sum(row["seconds"] for row in rows)
    batch = min(settings.recipe.batch_size, len(images.x_train))
    some = data.sample(len(images.x_train), _FITTED, settings.seed)
    fitted = measure.evaluate(
        network,
        (data.as_float(part(images.x_train, some)), images.y_train[some]),
        attacks=[],
        jit_compile=settings.compiles,
    )
    return {
        "epochs": len(rows),
        "seconds": seconds,
        "step_seconds_median": step,
        "examples_per_second": batch / step,
        "passes": settings.recipe.passes(),
        "images": len(images.x_train),
        "selected": session.validation and session.validation.best,
        "stopped_epoch": _stopped_epoch(settings.workdir),
        "natural": fitted["natural"],
    }
