"""The model that a run trains, made from its settings."""

import contextlib
import pathlib
from collections.abc import Callable
from collections.abc import Iterator
from typing import Any

import keras

from tfsam import data
from tfsam import registries
from tfsam.data.rows import part
from tfsam.models.functions import use_xla
from tfsam.models.networks import freezing
from tfsam.models.networks import trainable
from tfsam.runs import recipes
from tfsam.runs.batch_sharing import steps_per_epoch
from tfsam.runs.settings import Settings
from tfsam.support import devices
from tfsam.training import schedules
from tfsam.training.model import RobustModel

Log = Callable[[str], None]

# The number of training images on which an average's BatchNorm statistics are
# measured.
_RECALIBRATION = 10_000


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
    with scope(alone), _precision(recipe.precision):
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
    steps = recipe.epochs * optimizer_steps(settings, images, strategy)
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
    steps = optimizer_steps(settings, images, strategy)
    with scope(strategy), _precision(recipe.precision):
        if devices.workers(strategy) > 1:
            network = trainable.copied(network)
        model = robust_model(settings, network, steps)
        model.compile(
            optimizer(settings, steps),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
            jit_compile=use_xla(settings.compiles),
        )
    return model


def optimizer_steps(
    settings: Settings, images: data.Images, strategy: Any
) -> int:
    """Returns the optimizer's steps in an epoch.

    Args:
        settings: the settings of the run.
        images: the images that are trained on.
        strategy: a `tf.distribute` strategy or None.
    """
    batches = steps_per_epoch(settings, images, strategy)
    return batches * settings.recipe.replays


def scope(strategy: Any) -> contextlib.AbstractContextManager[Any]:
    """Returns the scope of a strategy.

    Args:
        strategy: a `tf.distribute` strategy, or None for a scope that does
            nothing.
    """
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


def optimizer(settings: Settings, steps: int) -> keras.Optimizer:
    """Makes the optimizer of a run.

    Args:
        settings: the settings of the run.
        steps: the optimizer's steps per epoch.
    """
    return settings.recipe.build(
        "optimizer", _schedule(settings, steps), seed=settings.seed
    )


def robust_model(
    settings: Settings, network: keras.Model, steps: int
) -> RobustModel:
    """Makes the model of the method around a network.

    Args:
        settings: the settings of the run.
        network: the network.
        steps: the optimizer's steps per epoch.
    """
    recipe = settings.recipe
    return RobustModel(
        network,
        recipe.build("perturb_inputs", batch_size=recipe.batch_size),
        recipe.build(
            "perturb_weights",
            # Five epochs between two masks of SSAM, as its authors have it.
            refresh_every=5 * steps,
            total_steps=recipe.epochs * steps,
        ),
        objective=recipes.objective(settings, steps),
        sharpness=recipe.sharpness,
        sub_batches=recipe.sub_batches or 1,
        attack_mode=recipe.attack_mode or "inference",
        epsilon_warmup_steps=(recipe.epsilon_warmup or 0) * steps,
        seed=settings.seed,
    )


def _schedule(
    settings: Settings, steps: int
) -> keras.optimizers.schedules.LearningRateSchedule:
    """Makes the schedule of the learning rate.

    For an average such as SWA a piecewise one stays high, at half from the
    first snapshot on: weights that hardly move are not worth averaging
    (Izmailov et al., 2018).
    """
    recipe = settings.recipe
    rate, average = recipe.learning_rate, recipe.average
    holds = average and registries.AVERAGES.fact(
        registries.AVERAGES.factory(average), "holds_rate"
    )
    length = recipe.epochs, steps, recipe.warmup_epochs
    if holds and recipe.schedule == "piecewise":
        start = max(_average_start(settings) * steps - 1, 0)
        held = keras.optimizers.schedules.PiecewiseConstantDecay(
            [start], [rate, rate / 2]
        )
        return schedules.warmed_up(held, *length)
    made: keras.optimizers.schedules.LearningRateSchedule = (
        registries.SCHEDULES.factory(recipe.schedule)(rate, *length)
    )
    return made


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


def average(
    settings: Settings, images: data.Images, folder: pathlib.Path | None
) -> Any:
    """Makes the callback that averages the weights, or returns None.

    Args:
        settings: the settings of the run.
        images: the images that are trained on.
        folder: the folder of the average's files, or None.
    """
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
