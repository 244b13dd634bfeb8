"""Batches of a run: their sizes, and how several devices share them."""

from typing import Any

import tensorflow as tf

from tfsam import data
from tfsam.data import batches
from tfsam.runs.settings import Settings
from tfsam.support import devices


def steps_per_epoch(
    settings: Settings, images: data.Images, strategy: Any
) -> int:
    """Returns the steps of an epoch; one device keeps the partial batch.

    Args:
        settings: the settings of the run.
        images: the images that are trained on.
        strategy: a `tf.distribute` strategy or None.

    Raises:
        ValueError: if the devices cannot share the batch.
    """
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
    if replicas > 1 and settings.recipe.replays > 1:
        raise ValueError(
            f"{settings.recipe.perturb_inputs} keeps an offset for each "
            "position in a batch, which devices do not share: give --devices "
            f"a single one. Received: {replicas} devices"
        )
    sub_batches = settings.recipe.sub_batches
    smallest = rest if rest and strategy is None else size
    if smallest < (sub_batches or 1) * replicas:
        raise ValueError(
            f"sub_batches must be at most the smallest batch, of {smallest} "
            f"images. Received: sub_batches={sub_batches}"
        )
    return steps


def validation_batch_size(
    settings: Settings, images: data.Images, strategy: Any
) -> int:
    """Returns the largest size whose last batch feeds every replica.

    TensorFlow's convolutions fail on a replica without images.

    Args:
        settings: the settings of the run.
        images: the images.
        strategy: a `tf.distribute` strategy or None.

    Raises:
        ValueError: if there is no such size.
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


def validation_data(
    settings: Settings, images: data.Images, strategy: Any
) -> dict[str, Any]:
    """Returns the arguments of `fit` for validation.

    Args:
        settings: the settings of the run.
        images: the images.
        strategy: a `tf.distribute` strategy or None.
    """
    x, y = images.x_test, images.y_test
    size = validation_batch_size(settings, images, strategy)
    if isinstance(x, data.Rows):
        return {"validation_data": batches.validation_batches(x, y, size)}
    return {
        "validation_data": (data.as_float(x), y),
        "validation_batch_size": size,
    }


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
