"""Images that are larger than memory: the memory that they take, their speed.

  python -m experiments.benchmark_large --folder=DIR

prints Markdown. DIR is filled with JPEG images of 224 x 224 x 3 in folders of
ten classes, if it does not exist. The first table has the memory that a run
takes which trains a strided network of three convolutions on the folder for an
epoch and attacks it by FGSM, in a process of its own: the peak, and the use by
TensorFlow after a first step. The second compares images per second with those
of `keras.utils.image_dataset_from_directory(crop_to_aspect_ratio=True)`, in
rounds of all three: the first pass decodes and keeps the images, the next one
takes them from the cache. Its files were read before. Times are medians.
"""

import concurrent.futures
import multiprocessing
import os
import pathlib
import resource
import shutil
import statistics
import sys
import tempfile
import time

import keras
import numpy as np
from absl import flags
from PIL import Image

from experiments import command
from tfsam import data
from tfsam import run
from tfsam.data import batches

FLAGS = flags.FlagValues()
_FOLDER = flags.DEFINE_string(
    "folder",
    None,
    "Folder of images, made if it is missing.",
    flag_values=FLAGS,
)
_IMAGES = flags.DEFINE_integer(
    "images", 20_000, "Images to make.", 20, flag_values=FLAGS
)
_TIMED = flags.DEFINE_integer(
    "timed",
    4_000,
    "Images of the second table; 0 for the first table alone.",
    0,
    flag_values=FLAGS,
)
_ROUNDS = flags.DEFINE_integer(
    "rounds", 5, "Rounds timed.", 1, flag_values=FLAGS
)
_MEMORY = flags.DEFINE_boolean(
    "memory", True, "Whether to print the first table.", flag_values=FLAGS
)

_SIDE, _CLASSES, _BATCH_SIZE = 224, 10, 128
_GIB = 1 << 30


def strided(num_classes, input_shape=(_SIDE, _SIDE, 3), statistics=None):
    """Makes a network of three convolutions with strides."""
    layers = [
        keras.layers.Conv2D(filters, 3, 2, padding="same", activation="relu")
        for filters in (8, 16, 32)
    ]
    return keras.Sequential(
        [
            keras.Input(input_shape),
            *layers,
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(num_classes),
        ]
    )


def make_image(path, number):
    """Writes an image with the frequencies of a photograph, by its number."""
    random = np.random.default_rng(number)
    small = random.integers(0, 256, (12, 12, 3), np.uint8)
    smooth = Image.fromarray(small).resize((_SIDE, _SIDE), Image.BICUBIC)
    noise = random.integers(-20, 21, (_SIDE, _SIDE, 1))
    pixels = np.clip(np.asarray(smooth) + noise, 0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(path, quality=90)


def make_folder(folder, count):
    """Writes a folder of classes; an image's number determines its class."""
    for label in range(_CLASSES):
        (folder / f"class{label}").mkdir(parents=True)
    paths = [
        folder / f"class{number % _CLASSES}" / f"{number}.jpg"
        for number in range(count)
    ]
    forks = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(os.cpu_count(), forks) as pool:
        for _ in pool.map(make_image, paths, range(count), chunksize=100):
            pass


def resident():
    """Returns the memory of this process now, in bytes."""
    pages = pathlib.Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * resource.getpagesize()


def first_step():
    """Trains a small network for a step, and returns the memory after it."""
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(2)])
    model.compile("sgd", "mse")
    model.fit(np.zeros((2, 8)), np.zeros((2, 2)), verbose=0)
    return resident()


def run_of(folder, workdir):
    """Trains on a folder and attacks the network, in this process.

    Returns:
        (bytes after TensorFlow's first step, peak bytes, seconds)
    """
    before, started = first_step(), time.perf_counter()
    code = run.main(
        [
            f"--dataset=folder:{folder}",
            f"--network=experiments.benchmark_large:{strided.__name__}",
            f"--image_size={_SIDE}",
            f"--workdir={workdir}/run",
            f"--cache_dir={workdir}/cache",
            "--method=st",
            "--epochs=1",
            "--learning_rate=0.01",
            "--attacks=fgsm",
            "--linf_epsilons=1/255",
            "--l2_epsilons=",
        ]
    )
    if code:
        raise ValueError(f"the run must succeed. Received: exit code {code}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return before, peak, time.perf_counter() - started


def consumed(dataset):
    """Reads all batches of a dataset, and returns the number of images."""
    return sum(len(labels) for _, labels in dataset)


def of_keras(folder):
    """Reads a folder by Keras."""
    return consumed(
        keras.utils.image_dataset_from_directory(
            folder,
            image_size=(_SIDE, _SIDE),
            batch_size=_BATCH_SIZE,
            crop_to_aspect_ratio=True,
            verbose=False,
        )
    )


def of_tfsam(folder, cache):
    """Reads a folder by tfsam."""
    images = data.load(
        f"folder:{folder}",
        image_size=_SIDE,
        cache_dir=cache,
        test_fraction=0.01,
    )
    return consumed(
        batches.training_batches(
            images.x_train,
            images.y_train,
            batch_size=_BATCH_SIZE,
            epochs=1,
            seed=0,
        )
    )


def rates(folder, rounds):
    """Returns images a second by each way, medians of rounds."""
    found = {"Keras": [], "first pass": [], "from the cache": []}
    with tempfile.TemporaryDirectory() as temporary:
        cache = pathlib.Path(temporary, "cache")

        def first_pass():
            shutil.rmtree(cache, ignore_errors=True)
            return of_tfsam(folder, cache)

        ways = (
            lambda: of_keras(folder),
            first_pass,
            lambda: of_tfsam(folder, cache),
        )
        for number in range(rounds + 1):
            for seconds, way in zip(found.values(), ways, strict=True):
                started = time.perf_counter()
                count = way()
                if number:  # The first round warms up.
                    seconds.append(count / (time.perf_counter() - started))
    return {name: statistics.median(values) for name, values in found.items()}


def part_of(folder, count, into):
    """Links some images of a folder, the same number of each class."""
    for source in sorted(folder.iterdir()):
        target = into / source.name
        target.mkdir(parents=True)
        for path in sorted(source.iterdir())[: count // _CLASSES]:
            os.link(path, target / path.name)


def print_memory(folder):
    """Prints the first table."""
    count = sum(len(files) for _, _, files in os.walk(folder))
    forks = multiprocessing.get_context("spawn")
    with (
        tempfile.TemporaryDirectory() as temporary,
        concurrent.futures.ProcessPoolExecutor(1, forks) as pool,
    ):
        before, peak, seconds = pool.submit(run_of, folder, temporary).result()
    decoded = count * _SIDE * _SIDE * 3
    print(
        "| images | decoded, GiB | after TensorFlow's first step, GiB | peak,"
        " GiB | difference, GiB | seconds |"
    )
    print("|---|---|---|---|---|---|")
    sizes = [decoded, before, peak, peak - before]
    cells = " | ".join(f"{size / _GIB:.2f}" for size in sizes)
    print(f"| {count:,} | {cells} | {seconds:.0f} |\n", flush=True)


def main():
    """Prints both tables."""
    if _FOLDER.value is None:
        raise ValueError("a folder must be given. Received: none")
    folder = pathlib.Path(_FOLDER.value)
    if not folder.exists():
        make_folder(folder, _IMAGES.value)
    if _MEMORY.value:
        print_memory(folder)
    if not _TIMED.value:
        return
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        part = pathlib.Path(temporary, "images")
        part_of(folder, _TIMED.value, part)
        found = rates(part, _ROUNDS.value)
    print(f"| {_TIMED.value:,} images | images/s | to Keras's |")
    print("|---|---|---|")
    for name, rate in found.items():
        print(f"| {name} | {rate:,.0f} | {rate / found['Keras']:.2f} |")


if __name__ == "__main__":
    sys.exit(command.run(main, FLAGS))
