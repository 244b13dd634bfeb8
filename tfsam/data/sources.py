"""Sources of images: `load` reads a data set by name into plain arrays.

`batches.py` turns the arrays into training batches.
"""

import difflib
import os
import pathlib
import re
from typing import Any

import numpy as np

from tfsam import registries
from tfsam.data import arrays
from tfsam.data import class_orders
from tfsam.data import options as reading
from tfsam.data import tfds
from tfsam.data.files import folders
from tfsam.data.files import layouts
from tfsam.data.files import tables
from tfsam.data.files.decoding import refusal
from tfsam.data.images import Images
from tfsam.data.images import absences
from tfsam.data.images import as_float
from tfsam.data.images import in_order
from tfsam.data.images import limited
from tfsam.data.images import subset
from tfsam.data.images import without_test
from tfsam.data.images import without_training
from tfsam.data.options import Options
from tfsam.data.options import Pick
from tfsam.support import files
from tfsam.support.factories import option_names
from tfsam.support.validators import check_count

SOURCES = (
    "digits",
    "folder:PATH",
    "csv:PATH",
    "npz:PATH",
    "the name of a TFDS image data set, such as cifar10",
)


def load(
    source: str,
    *,
    limit_train: int | None = None,
    limit_test: int | None = None,
    seed: int = 0,
    data_dir: str | os.PathLike[str] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    image_size: int | str | tuple[int, int] | None = None,
    network_size: tuple[int, int] | None = None,
    resize: str = "crop",
    test_fraction: float | None = None,
    bad_images: str = "skip",
    class_order: str = "name",
    part: str = "all",
) -> Images:
    """Loads a data set by name.

    Args:
      source: one of
        `"digits"`: 1797 real images of digits, 8 x 8 and gray, that come
        with scikit-learn, always split 80/20 in the same way;
        `"folder:PATH"`: images of any format and size in folders of classes,
        in `PATH/train` and `PATH/test` (or `val`, `Training`, ...) or in
        `PATH` itself, which is split then;
        `"csv:PATH"`: a table of the names of image files and their classes,
        and optionally of their splits;
        `"npz:PATH"`: a file of arrays `x_train`, `y_train`, `x_test` and
        `y_test`, or of `x` and `y`, which are split; x uint8 or float in
        [0, 1], y integers or one-hot;
        `"NAME:LOCATION"` with the name of a source of another package, see
        `tfsam.registries.SOURCES`;
        any other name: an image classification data set of TensorFlow
        Datasets, such as `"cifar10"`, downloaded if it is missing.
      limit_train: the number of training examples to keep, at least the
        number of classes, or None for all. The subset keeps the proportions
        of the classes; `seed` chooses and shuffles it.
      limit_test: the same for test examples.
      seed: a non-negative integer, used by the limits and by splits.
      data_dir: where TensorFlow Datasets keeps its files, None for its
        default. Archives downloaded by hand go to `downloads/manual` there.
      cache_dir: the folder that keeps decoded images of files for later
        calls, such as `cache.default_folder()`; None keeps none.
      image_size: the size to give to all images: a side, "64x48" or
        (height, width). None is the images' own size or, where they have
        several, the most common square of at most 64 pixels a side.
      network_size: the (height, width) that a network takes. Files get it where
        `image_size` is None; arrays do not.
      resize: how an image gets another size, antialiased: "crop" cuts out the
        centre, "pad" adds black margins, "stretch" changes proportions.
      test_fraction: the part of each class that is the test part, where the
        data is not split; identical files stay together. None means 0.2; all
        with `part="test"`, and nothing with `part="train"`.
      bad_images: "skip" leaves out files that cannot be decoded, with a
        warning, up to 5 % of all; "refuse" raises an error.
      class_order: the order of classes that are known by name: "name" sorts
        them as strings, "number" by the numbers in them; or a file of names,
        one a line, in the order of a network's outputs. The classes of arrays
        are numbers unless the arrays name them; a file of other names names
        them.
      part: "all", or "train" or "test" to load that part alone. The other part
        need not exist then, and data that is not split belongs to this part as
        a whole.

    Returns:
      The `Images`.

    Raises:
      ValueError: if the source is unknown, unreachable or of another form
        than described above, or if an option is out of range.

    Example:
    >>> import tfsam
    >>> images = tfsam.data.load("digits", limit_train=100, limit_test=20)
    >>> images.x_test.shape, images.y_test.shape
    ((20, 8, 8, 1), (20,))
    """
    limits = {"train": limit_train, "test": limit_test}
    for split, limit in limits.items():
        if limit is not None:
            check_count(f"limit_{split}", limit, 1)

    def pick(labels: np.ndarray, split: str) -> Any:
        if not len(labels):  # The part is not wanted.
            return slice(None)
        return subset(labels, limits[split], seed, f"limit_{split}")

    options = reading.make(
        image_size=image_size,
        network_size=network_size,
        resize=resize,
        test_fraction=test_fraction,
        bad_images=bad_images,
        class_order=class_order,
        part=part,
        seed=seed,
    )
    images = _loaded(str(source), pick, options, data_dir, cache_dir)
    images = images._replace(notes=(*images.notes, *absences(images)))
    if options.class_file is None:
        return images
    return in_order(images, class_orders.read(options.class_file))


def test_part(
    data: str | pathlib.PurePath | Images, image_size: Any = None
) -> tuple[Any, np.ndarray]:
    """Returns the test images of a source, float in [0, 1], and their labels.

    Args:
      data: `Images`, the name of a source as `load` takes it, or the path of a
        folder.
      image_size: see `load`; `Images` keep their size.

    Raises:
      ValueError: see `load`.
    """
    if isinstance(data, pathlib.PurePath):
        data = f"folder:{data}"
    if isinstance(data, str):
        data = load(data, part="test", image_size=image_size)
    return as_float(data.x_test), data.y_test


def _loaded(
    source: str,
    pick: Pick,
    options: Options,
    data_dir: str | os.PathLike[str] | None,
    cache_dir: str | os.PathLike[str] | None,
) -> Images:
    kind, _, location = source.partition(":")
    names = {name.casefold(): name for name in registries.SOURCES.names()}
    if kind.casefold() not in names:
        return _load_tfds(source, pick, options, data_dir)
    read = registries.SOURCES.load(names[kind.casefold()])
    wanted = option_names(read) or set()
    given = {
        "pick": pick,
        "options": options,
        "cache_dir": None if cache_dir is None else pathlib.Path(cache_dir),
    }
    found = read(location, **{k: v for k, v in given.items() if k in wanted})
    if not isinstance(found, Images):
        found = arrays.images(found, options)
    if options.part == "test":
        found = without_training(found)
    if options.part == "train":
        found = without_test(found)
    if "pick" not in wanted:
        found = limited(found, pick)
    return arrays.resized(found, options)._replace(name=source)


def listing(source: str) -> str | None:
    """Describes the files of a data set, so that a change is noticed.

    Args:
      source: as `load` takes it.

    Returns:
      A line with the number of files, their size, and a checksum of their
      names, sizes and times; None if the source has no files of its own.

    Example:
    >>> import tfsam
    >>> tfsam.data.listing("digits") is None
    True
    """
    kind, _, location = str(source).partition(":")
    path = files.expanded(location) if location else None
    if path is None or not path.exists():
        return None
    read = {"folder": layouts.read, "csv": tables.read}.get(kind)
    if read is None:
        return files.listing(files.entries(path))
    return files.listing(folders.entries(read(path)))


def read_digits(location: str) -> Images:
    """Reads the digits of scikit-learn.

    Args:
      location: must be empty: the digits are one data set.
    """
    if location:
        raise refusal("the source must be digits", f"digits:{location}")
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = (digits.images / 16).astype(np.float32)[..., np.newaxis]
    labels = digits.target.astype(np.int64)
    # The split is part of the data set, so it does not depend on the seed.
    x_train, x_test, y_train, y_test = train_test_split(
        images, labels, test_size=0.2, stratify=labels, random_state=0
    )
    names = tuple(str(name) for name in digits.target_names)
    return Images("digits", x_train, y_train, x_test, y_test, names)


def read_folder(
    location: str,
    pick: Pick,
    options: Options,
    cache_dir: pathlib.Path | None,
) -> Images:
    """Reads a folder of images; see `layouts.read` and `folders.load`.

    Args:
      location: the folder.
      pick: see `Pick`.
      options: see `Options`.
      cache_dir: the folder of decoded images, or None.
    """
    if not location:
        raise refusal("the source must be folder:PATH", "folder:")
    listing = layouts.read(files.expanded(location), options.class_order)
    return folders.load(listing, pick, options, cache_dir)


def read_csv(
    location: str,
    pick: Pick,
    options: Options,
    cache_dir: pathlib.Path | None,
) -> Images:
    """Reads the images that a table names; see `tables.read`.

    Args:
      location: the table.
      pick: see `Pick`.
      options: see `Options`.
      cache_dir: the folder of decoded images, or None.
    """
    if not location:
        raise refusal("the source must be csv:PATH", "csv:")
    listing = tables.read(files.expanded(location), options.class_order)
    return folders.load(listing, pick, options, cache_dir)


def read_npz(location: str, options: Options) -> dict[str, np.ndarray]:
    """Reads the arrays of an npz file; see `arrays.read_npz`.

    Args:
      location: the file.
      options: see `Options`.
    """
    if not location:
        raise refusal("the source must be npz:PATH", "npz:")
    return arrays.read_npz(files.expanded(location), options)


def _load_tfds(
    source: str,
    pick: Pick,
    options: Options,
    data_dir: str | os.PathLike[str] | None,
) -> Images:
    known = tfds.names(source)
    base = re.split("[/:]", source)[0]
    if base in known:
        return tfds.load(source, pick, options, data_dir)
    if source and files.expanded(source).exists():
        raise refusal(
            "a path must follow the name of its kind: "
            f"{_kind_of(files.expanded(source))}:{source}",
            repr(source),
        )
    near = difflib.get_close_matches(base, [*known, "digits"], n=5)
    hint = f" (near matches: {', '.join(near)})" if near else ""
    raise refusal(
        f"the source must be one of {'; '.join(SOURCES)}{hint}", repr(source)
    )


def _kind_of(path: pathlib.Path) -> str:
    """Returns the kind of source that a path is."""
    kinds = {".csv": "csv", ".tsv": "csv", ".txt": "csv", ".npz": "npz"}
    return kinds.get(path.suffix.lower(), "folder")
