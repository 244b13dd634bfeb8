"""Training of a run's network, which resumes at the newest checkpoint."""

import dataclasses
import pathlib
import statistics
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tfsam import data
from tfsam.data import batches
from tfsam.data.rows import part
from tfsam.evaluation import measure
from tfsam.runs import batch_sharing
from tfsam.runs import early_stops
from tfsam.runs import held_out
from tfsam.runs import recipes
from tfsam.runs import trained_model
from tfsam.runs.settings import Settings
from tfsam.support import devices
from tfsam.support import files
from tfsam.support import signals
from tfsam.training import checkpoints
from tfsam.training import monitoring
from tfsam.training import progress
from tfsam.training.arguments import check_normalization_weights
from tfsam.training.model import RobustModel
from tfsam.training.robust_validation import RobustValidation
from tfsam.training.sharpness import check_optimizer

Log = Callable[[str], None]

# The number of training images on which the trained network's accuracy is
# measured.
_FITTED = 10_000

# Position in training: finished epochs, and steps in the epoch after them.
_Position = tuple[int, int]


def check(
    settings: Settings,
    images: data.Images,
    strategy: Any,
    network: keras.Model,
    mix: batches.Examples | None = None,
) -> None:
    """Rejects settings that cannot be trained, before a file is written.

    Args:
        settings: the settings of the run.
        images: the images.
        strategy: a `tf.distribute` strategy or None.
        network: the network to train.
        mix: the result of `recipes.mix`.

    Raises:
        ValueError: if a setting does not fit another, the images, the network
            or the devices.
    """
    images = held_out.trained_on(settings, images)
    steps = trained_model.optimizer_steps(settings, images, strategy)
    batch_sharing.validation_batch_size(settings, images, strategy)
    # Rejects images that are too small to augment, and images to mix in that
    # have another shape.
    batches.training_batches(
        images.x_train[:1],
        images.y_train[:1],
        batch_size=1,
        epochs=1,
        seed=0,
        augment=recipes.augmentations(settings),
        classes=len(images.class_names),
        mix=mix and (mix[0][:1], mix[1][:1]),
        mix_fraction=settings.recipe.mix_fraction or 0.0,
    )
    # Any network with weights of all kinds shows whether the parts combine.
    layers = [keras.layers.LayerNormalization(), keras.layers.Dense(2)]
    small = keras.Sequential([keras.Input((2,)), *layers])
    model = trained_model.robust_model(settings, small, steps)
    check_normalization_weights(model.perturb_weights, network)
    model.compile(trained_model.optimizer(settings, steps))
    model.optimizer.build(model.trainable_variables)
    check_optimizer(model)
    try:
        model.get_config()  # Checkpoints need it.
    except (AttributeError, TypeError) as error:
        raise ValueError(
            "the parts of a run must be objects that Keras can save, with "
            "get_config() and keras.saving.register_keras_serializable. "
            f"Received: {error}"
        ) from error
    trained_model.average(settings, images, None)


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
        mix: images of another source and their labels, or None.
    """

    settings: Settings
    images: data.Images
    strategy: Any
    steps: int
    position: _Position
    state: Any
    average: Any
    validation: RobustValidation | None
    mix: batches.Examples | None

    @property
    def epochs(self) -> int:
        """The epochs of the whole training, fewer where it had collapsed."""
        stopped = early_stops.stopped_epoch(self.settings.workdir)
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
            augment=recipes.augmentations(self.settings),
            classes=len(self.images.class_names),
            mix=self.mix,
            mix_fraction=recipe.mix_fraction or 0.0,
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
        collapse = early_stops.at_collapse(
            self.settings, self.images, self.average
        )
        history = monitoring.History(workdir / "history.csv", done)
        kept = [p for p in (self.average, collapse, history) if p is not None]
        remaining = self.steps - step if step else None
        used = [
            checkpoints.Resume(self.state, kept, remaining),
            *(monitoring.StopAtNaN(), self.validation),
            *(self.average, collapse),
        ]
        if collapse and chief:
            used.append(
                early_stops.KeepStop(collapse, workdir / "stopped.json", log)
            )
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
    mix: batches.Examples | None = None,
) -> tuple[keras.Model, dict[str, Any] | None]:
    """Trains, from the newest checkpoint if there is one.

    Args:
        settings: the settings of the run.
        images: the images.
        strategy: a `tf.distribute` strategy or None.
        log: a function of a line of text.
        stop: the signals that the run has received; on a signal, training
            stops after the current step.
        network: the result of `trained_model.make_network`, used where there
            is no checkpoint; None makes it.
        mix: the result of `recipes.mix`; None loads it.

    Returns:
        (network, summary): the last, averaged or best network, as the settings
        have it, and a dict for results.json. The summary is None in a worker
        that is not the chief, which writes nothing.

    Raises:
        FloatingPointError: if the loss or a weight is no longer finite.
        tfsam.support.signals.Stopped: if a signal has arrived.
    """
    model, session = _begin(settings, images, strategy, log, network, mix)
    log(batch_sharing.sharing(settings, strategy))
    batches_left = session.batches()
    if session.position[1]:  # The metrics must exist to take their state.
        with trained_model.scope(strategy):
            model.build_for(batches_left.element_spec)
    callbacks = session.callbacks(log, stop)
    # TensorBoard does not name the file that it fails to write.
    with stop.deferred(), files.writing(settings.workdir / "tensorboard"):
        model.fit(
            batch_sharing.shared(batches_left, strategy),
            epochs=session.epochs,
            initial_epoch=session.position[0],
            steps_per_epoch=session.steps,
            **batch_sharing.validation_data(settings, images, strategy),
            callbacks=callbacks,
            shuffle=False,  # The batches are shuffled, reproducibly.
            verbose=0,
        )
    if not devices.is_chief(strategy):
        return model.network, None
    return model.network, _summary(session, model.network)


def _begin(
    settings: Settings,
    images: data.Images,
    strategy: Any,
    log: Log,
    network: keras.Model | None,
    mix: batches.Examples | None,
) -> tuple[RobustModel, _Session]:
    """Restores the newest checkpoint, or makes a new model."""
    mix = mix or recipes.mix(settings, images)
    apart = None
    if settings.recipe.holds_out:
        images, apart = held_out.split(settings, images)
    average = trained_model.average(
        settings, images, settings.workdir / "average"
    )
    validation = apart and held_out.validation(settings, apart, average)
    model, position, state = _restore(
        settings.workdir / "checkpoints", average, strategy, log
    )
    if model is None:
        model = trained_model.make_model(settings, images, strategy, network)
    steps = batch_sharing.steps_per_epoch(settings, images, strategy)
    return model, _Session(
        *(settings, images, strategy, steps, position, state),
        *(average, validation, mix),
    )


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
            with trained_model.scope(strategy):
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
        "stopped_epoch": early_stops.stopped_epoch(settings.workdir),
        "natural": fitted["natural"],
    }
