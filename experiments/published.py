r"""Models and folders of images that others published, brought to tfsam.

  python -m experiments.published --collection=DIR \
    --write=experiments/results/published.md

DIR holds models/NAME/, with a file or a SavedModel, images/NAME.npz and
folders/NAME/. Each model is evaluated by one command, `tfsam --evaluate`, on
the images that published.csv names, or on 32 random images of its size, and
each folder is trained on and evaluated by one command, `tfsam
--dataset=folder:PATH`. The natural accuracy is compared with that of the model
as another library reads it: tf_keras where it is installed, else Keras or
TensorFlow. The runs are kept in --workdir, so that the command resumes.
"""

import csv
import json
import pathlib
import shlex
import subprocess
import sys
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from absl import flags

from experiments import command

FLAGS = flags.FlagValues()
_COLLECTION = flags.DEFINE_string(
    "collection", None, "Folder of models, images and folders.", FLAGS
)
_WORKDIR = flags.DEFINE_string(
    "workdir", "runs/published", "Folder of the runs.", FLAGS
)
_ONLY = flags.DEFINE_list("only", None, "Some of the names.", FLAGS)
_WRITE = flags.DEFINE_string("write", None, "File for the tables.", FLAGS)

LISTING = pathlib.Path(__file__).with_suffix(".csv")
# Random images, if the collection has none for a model.
_RANDOM = 32
_EPSILON = "1/255"
# Models that read a range of pixels, as functions of pixels in [0, 1].
_SCALES = {
    "0..1": lambda x: x,
    "0..255": lambda x: 255 * x,
    "-1..1": lambda x: 2 * x - 1,
    "unit_columns": lambda x: unit_columns(x).numpy(),
}


class Answer(NamedTuple):
    """The end of a command.

    Attributes:
        results: the content of results.json; None if the input was rejected.
        line: the last line of its errors.
    """

    results: dict | None
    line: str


def unit_columns(x):
    """Scales each image so that its columns have unit l2 length.

    Args:
        x: float tensor (batch, height, width) or with channels.
    """
    return tf.math.l2_normalize(x, axis=1)


def answer(workdir, *arguments):
    """Runs tfsam in a process of its own, unless the folder has its result."""
    done = workdir / "results.json"
    errors = workdir.with_suffix(".err")
    if not done.exists():
        workdir.parent.mkdir(parents=True, exist_ok=True)
        line = [*(sys.executable, "-m", "tfsam"), *arguments]
        print("+", shlex.join(line[2:]), flush=True)
        with open(errors, "w") as file:
            subprocess.run([*line, f"--workdir={workdir}"], stderr=file)
    said = [
        line
        for line in errors.read_text().splitlines()
        if line.startswith("tfsam: ")
    ]
    if not done.exists():
        return Answer(None, said[-1] if said else "no line of tfsam's")
    return Answer(json.loads(done.read_text()), " ".join(said))


def evaluated(row, folder, workdir):
    """Evaluates a model by one command.

    Args:
        row: a row of published.csv, a dict.
        folder: the collection.
        workdir: folder of the runs.
    """
    (path,) = (folder / "models" / row["name"]).iterdir()
    flags_ = shlex.split(row["flags"])
    if row["images"]:
        images = folder / "images" / f"{row['images']}.npz"
    else:
        images = workdir / f"{row['name']}.npz"
        if row["pixels"]:
            flags_.append(f"--pixels={row['pixels']}")
            _write_random(path, row["pixels"], images)
    return answer(
        workdir / row["name"],
        f"--evaluate={path}",
        f"--dataset=npz:{images}",
        *("--attacks=fgsm", f"--linf_epsilons={_EPSILON}", "--l2_epsilons="),
        *flags_,
    )


def _write_random(path, pixels, images):
    """Writes random images of a model's size, labelled by the model itself."""
    import tfsam

    if images.exists():
        return
    shape = tfsam.models.inspect(path)["input_shape"]
    x = np.random.default_rng(0).uniform(size=(_RANDOM, *shape))
    x = x.astype(np.float32)
    logits = tfsam.models.load(path, pixels=pixels)(tf.constant(x))
    images.parent.mkdir(parents=True, exist_ok=True)
    np.savez(images, x_test=x, y_test=np.argmax(logits, axis=1))


def reference(row, folder):
    """Returns the accuracy of a model as another library reads it, or None."""
    if not row["images"]:
        return None
    (path,) = (folder / "models" / row["name"]).iterdir()
    with np.load(folder / "images" / f"{row['images']}.npz") as arrays:
        x, y = np.float32(arrays["x_test"]) / 255, arrays["y_test"]
    x = _SCALES[row["pixels"]](x)
    predict, shape = _reader(path, row["signature"])
    outputs = predict(tf.constant(x.reshape(-1, *shape), tf.float32))
    return float(np.mean(np.argmax(outputs, axis=1) == y))


def _reader(path, signature):
    """Returns a model as another library reads it, and its input's shape."""
    try:
        import tf_keras as library
    except ImportError:
        import keras as library
    if signature:
        loaded = tf.saved_model.load(str(path))
        function = loaded.signatures[signature]
        (name,) = function.structured_input_signature[1]
        (spec,) = function.structured_input_signature[1].values()

        def predict(x):
            (outputs, *_) = function(**{name: x}).values()
            return outputs.numpy()

        # Models of TensorFlow 1 are kept alive by the object.
        predict.loaded = loaded
        return predict, spec.shape[1:]
    try:
        model = library.models.load_model(path, compile=False)
    except (TypeError, ValueError, OSError):
        import keras

        model = keras.models.load_model(path, compile=False)
    return (lambda x: model.predict(x, verbose=0)), model.input_shape[1:]


def trained(path, workdir):
    """Trains on a folder of images for an epoch and evaluates, one command."""
    return answer(
        workdir / path.name,
        f"--dataset=folder:{path}",
        *("--method=sam", "--epochs=1", "--image_size=32"),
        *("--network=preact_resnet8:width=8", "--attacks=fgsm"),
        *(f"--linf_epsilons={_EPSILON}", "--l2_epsilons="),
    )


def line_of_model(row, found, own):
    """Returns a row of the table of models.

    Args:
        row: a row of published.csv, a dict.
        found: its `Answer`.
        own: the accuracy by another library, or None.
    """
    if found.results is None:
        return f"| {row['name']} | refused: {found.line} | | | | | |"
    model = found.results["model"]
    natural = found.results["natural"]["accuracy"]
    robust = found.results["robust"][0]["accuracy"]
    images = row["images"] or f"{_RANDOM} random"
    return (
        f"| {row['name']} | {model['written_by'] or model['format']} "
        f"| {model['logits']} | {model['pixels']} | {images} "
        f"| {_percent(natural if row['images'] else None)} ({_percent(own)}) "
        f"| {_percent(robust)} |"
    )


def _percent(share):
    return "-" if share is None else f"{100 * share:.1f}"


def line_of_folder(path, found):
    """Returns a row of the table of folders.

    Args:
        path: the folder.
        found: its `Answer`.
    """
    if found.results is None:
        return f"| {path.name} | refused: {found.line} | | | |"
    results = found.results
    return (
        f"| {path.name} | {len(results['class_names'])} "
        f"| {results['natural']['n']} "
        f"| {_percent(results['natural']['accuracy'])} "
        f"| {found.line or '-'} |"
    )


def tables(folder, workdir, only=None):
    """Evaluates all models and folders, and returns the tables in Markdown.

    Args:
        folder: the collection.
        workdir: folder of the runs.
        only: names, or None for all.
    """
    with open(LISTING, newline="") as file:
        rows = [
            r for r in csv.DictReader(file) if r["name"] in (only or r["name"])
        ]
    lines = [
        "| model | written by | logits | pixels | images "
        "| natural (another reader), % | FGSM, % |",
        "|---" * 7 + "|",
    ]
    for row in rows:
        found = evaluated(row, folder, workdir / "models")
        own = reference(row, folder) if found.results else None
        lines.append(line_of_model(row, found, own))
    lines += ["", "| folder | classes | test images | natural, % | said |"]
    lines.append("|---" * 5 + "|")
    for path in sorted((folder / "folders").iterdir()):
        if not only or path.name in only:
            found = trained(path, workdir / "folders")
            lines.append(line_of_folder(path, found))
    return "\n".join(lines).replace(f"{folder}/", "DIR/") + "\n"


def main():
    """Prints the tables."""
    if _COLLECTION.value is None:
        raise ValueError("give --collection=DIR. Received: none")
    folder = pathlib.Path(_COLLECTION.value)
    text = tables(folder, pathlib.Path(_WORKDIR.value), _ONLY.value)
    print(text)
    if _WRITE.value:
        pathlib.Path(_WRITE.value).write_text(text)


if __name__ == "__main__":
    sys.exit(command.run(main, FLAGS))
