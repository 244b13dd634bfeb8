"""The speed of the input pipeline, and the speed that a GPU needs.

  python -m experiments.benchmark_input
  python -m experiments.benchmark_input --images=cifar10

prints Markdown. The first table compares the batches of `tfsam.data.batches`
with the same shifts and flips image by image with `tf.image`, as in many
tutorials. `images a core-second` counts the time of all cores, so that other
work on the machine matters less. `TFLOP/s` is the speed that a GPU would have
to sustain in standard training of PreActResNet-18 to use up the images of one
core (SAM needs half as many). The second table has the seconds to load a folder
of images by decoding it, and from its cache. Rounds alternate; times are
medians.
"""

import pathlib
import statistics
import sys
import tempfile
import time

import keras
import numpy as np
import tensorflow as tf
from absl import flags

from experiments import command
from tfsam import data
from tfsam import networks
from tfsam.data import batches

FLAGS = flags.FlagValues()
_ROUNDS = flags.DEFINE_integer(
    "rounds", 5, "Rounds timed.", 1, flag_values=FLAGS
)
_BATCHES = flags.DEFINE_integer(
    "batches", 200, "Batches of 128 images a round.", 1, flag_values=FLAGS
)
_IMAGES = flags.DEFINE_string(
    "images",
    None,
    "Folder to load, see --dataset=folder:PATH. Default: 2000 smooth JPEG "
    "images of 64x64, made up.",
    flag_values=FLAGS,
)

_BATCH_SIZE = 128
_SIDE = 32


def operations(network):
    """Counts floating-point operations per image, forward and backward.

    A multiplication and an addition for each weight at each place, and twice as
    much on the way back: for its inputs and for its weights.

    Args:
        network: a built functional model of `Conv2D` and `Dense` layers, other
            layers do not count.
    """
    multiplications = 0
    for layer in network.layers:
        if isinstance(layer, keras.layers.Conv2D):
            height, width = layer.output.shape[1:3]
            multiplications += height * width * int(np.prod(layer.kernel.shape))
        elif isinstance(layer, keras.layers.Dense):
            multiplications += int(np.prod(layer.kernel.shape))
    return 3 * 2 * multiplications


def one_by_one(images, labels):
    """Returns batches shifted and flipped image by image, as in tutorials."""

    def change(image, label):
        image = tf.cast(image, tf.float32) / 255.0
        image = tf.pad(image, [[4, 4], [4, 4], [0, 0]], "REFLECT")
        image = tf.image.random_crop(image, images.shape[1:])
        return tf.image.random_flip_left_right(image), label

    return (
        tf.data.Dataset.from_tensor_slices((images, labels))
        .shuffle(len(images))
        .repeat()
        .map(change, num_parallel_calls=tf.data.AUTOTUNE)
        .batch(_BATCH_SIZE)
        .prefetch(tf.data.AUTOTUNE)
    )


def measure(pipelines, rounds, batches):
    """Returns (images a second, images a core-second), medians of rounds.

    Args:
        pipelines: a dict of endless `tf.data.Dataset`s.
        rounds: number of rounds.
        batches: number of batches in a round.
    """
    iterators = {name: iter(dataset) for name, dataset in pipelines.items()}
    found: dict[str, list] = {name: [] for name in pipelines}
    for round_number in range(rounds + 1):
        for name, iterator in iterators.items():
            wall, cores = time.perf_counter(), time.process_time()
            for _ in range(batches):
                next(iterator)
            wall = time.perf_counter() - wall
            cores = time.process_time() - cores
            if round_number:  # The first round warms up.
                images = batches * _BATCH_SIZE
                found[name].append((images / wall, images / cores))
    return {
        name: [statistics.median(column) for column in zip(*rows, strict=True)]
        for name, rows in found.items()
    }


def make_folder(folder, count=2000, side=64):
    """Writes a folder of two classes of smooth images, like photographs."""
    random = np.random.default_rng(0)
    for number in range(count):
        split = "test" if number % 5 == 0 else "train"
        path = folder / split / f"class{number // 5 % 2}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        small = random.random((1, 8, 8, 3), dtype=np.float32)
        image = tf.image.resize(small, [side, side], "bicubic")[0]
        pixels = tf.cast(tf.clip_by_value(image, 0, 1) * 255, tf.uint8)
        path.write_bytes(tf.io.encode_jpeg(pixels).numpy())


def load_seconds(folder, cache, rounds):
    """Returns (images, seconds to decode, seconds with the cache), medians."""
    seconds: dict[bool, list] = {False: [], True: []}
    data.load(f"folder:{folder}", cache_dir=cache)
    for _ in range(rounds):
        for cached in (False, True):
            started = time.perf_counter()
            images = data.load(
                f"folder:{folder}", cache_dir=cache if cached else None
            )
            # Mapped files are read on access.
            data.statistics(images.x_train)
            seconds[cached].append(time.perf_counter() - started)
    count = len(images.x_train) + len(images.x_test)
    return count, *(statistics.median(s) for s in seconds.values())


def main():
    """Prints both tables."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (10_000, _SIDE, _SIDE, 3), np.uint8)
    labels = random.integers(0, 10, len(images))

    def ours(augment):
        return batches.training_batches(
            images,
            labels,
            batch_size=_BATCH_SIZE,
            epochs=10**6,
            seed=0,
            augment=augment,
        )

    network = networks.preact_resnet18(10, input_shape=(_SIDE, _SIDE, 3))
    needed = operations(network)
    rates = measure(
        {
            "in memory": ours(False),
            "augmented": ours(True),
            "augmented, image by image": one_by_one(images, labels),
        },
        _ROUNDS.value,
        _BATCHES.value,
    )
    print(f"PreActResNet-18: {needed / 1e9:.2f} GFLOP a training image.\n")
    print("| batches | images/s | images a core-second | TFLOP/s |")
    print("|---|---|---|---|")
    for name, (rate, core_rate) in rates.items():
        fed = core_rate * needed / 1e12
        print(f"| {name} | {rate:,.0f} | {core_rate:,.0f} | {fed:.0f} |")
    with tempfile.TemporaryDirectory() as temporary:
        folder = _IMAGES.value and pathlib.Path(_IMAGES.value)
        if not folder:
            folder = pathlib.Path(temporary, "images")
            make_folder(folder)
        cache = pathlib.Path(temporary, "cache")
        count, decoded, cached = load_seconds(folder, cache, _ROUNDS.value)
    print("\n| images | decoded, s | from the cache, s | ratio |")
    print("|---|---|---|---|")
    ratio = decoded / cached
    print(f"| {count:,} | {decoded:.2f} | {cached:.2f} | {ratio:.1f} |")


if __name__ == "__main__":
    sys.exit(command.run(main, FLAGS))
