"""Folders of images, one folder a class, decoded once.

Decoding a large data set takes minutes. The decoded images are kept in one file
that later runs map into memory. The file is replaced when an image or a name
changes, and removed when the folder is gone and no run has used it for 30 days.
"""

import contextlib
import hashlib
import os
import pathlib
import re
import time
import warnings
from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfsam.data.decoding import decode
from tfsam.data.decoding import is_decoded
from tfsam.data.decoding import pixels_of
from tfsam.data.decoding import refusal
from tfsam.support import files

# Of a file of decoded images; see `_digests`.
_NAME = re.compile(r"[0-9a-f]{16}-[0-9a-f]{32}\.npy")

_SUFFIXES = (".jpg", ".jpeg", ".png")
_GONE_FOR = 30 * 24 * 3600.0  # Seconds.
# Files that file managers leave in folders.
_DROPPINGS = ("Thumbs.db", "desktop.ini")


def default_cache() -> pathlib.Path:
    """Returns the folder of decoded images, `tfsam` in the user's cache."""
    # The XDG standard of freedesktop.org, which ignores relative paths.
    base = os.environ.get("XDG_CACHE_HOME")
    if not base or not os.path.isabs(base):
        base = os.path.join(os.path.expanduser("~"), ".cache")
    return pathlib.Path(base, "tfsam")


def load(
    path: pathlib.Path,
    pick: Callable[[np.ndarray, str], Any],
    cache_dir: pathlib.Path | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, tuple[str, ...]]:
    """Loads `train/CLASS/*` and `test/CLASS/*`, JPEG and PNG.

    Args:
      path: the folder that holds `train` and `test`.
      pick: a function from the labels of a split and its name to an index of
        the examples to keep.
      cache_dir: the folder of decoded images, see `default_cache`; None keeps
        none. A part of a folder is not kept, but is read from the kept whole
        if there is one.

    Returns:
      x_train and y_train, x_test and y_test, and the names of the classes.

    Raises:
      ValueError: if the folder holds something else, or an image cannot be
        decoded, is not square, or has another size than the first.
    """
    for folder in (path, path / "train", path / "test"):
        if not folder.is_dir():
            raise refusal(
                "folder:PATH must name a folder that holds train and test",
                f"no folder {folder}",
            )
    classes = _class_folders(path / "train")
    if len(classes) < 2:
        raise refusal(
            f"{path / 'train'} must hold a folder for each of two classes or"
            " more",
            ", ".join(classes) or "no folder",
        )
    unknown = sorted(set(_class_folders(path / "test")) - set(classes))
    if unknown:
        raise refusal(
            f"{path / 'test'} must hold classes of train only",
            ", ".join(unknown),
        )
    train_files, y_train = _list_files(path / "train", classes)
    test_files, y_test = _list_files(path / "test", classes)
    everything = np.arange(len(train_files) + len(test_files))
    train = everything[: len(train_files)][pick(y_train, "train")]
    test = everything[len(train_files) :][pick(y_test, "test")]
    images = _decoded(
        path,
        np.concatenate([train_files, test_files]),
        np.concatenate([train, test]),
        cache_dir,
    )
    labels = np.concatenate([y_train, y_test])
    pixels = pixels_of(images)
    return (
        pixels[: len(train)],
        labels[train],
        pixels[len(train) :],
        labels[test],
        tuple(classes),
    )


def entries(path: pathlib.Path) -> list[tuple[str, os.stat_result]]:
    """Lists the files that `load` reads, for `files.listing`.

    Args:
      path: the folder that holds `train` and `test`.
    """
    found = []
    for split in ("train", "test"):
        classes = path / split
        for name in _class_folders(classes) if classes.is_dir() else ():
            found += [
                (f"{split}/{name}/{entry.name}", entry.stat())
                for entry in os.scandir(classes / name)
                if _is_image(entry)
            ]
    return found


def _is_image(entry: os.DirEntry[str]) -> bool:
    """Returns whether a file was not left by a file manager."""
    return (
        entry.is_file()
        and not entry.name.startswith(".")
        and entry.name not in _DROPPINGS
    )


def _decoded(
    path: pathlib.Path,
    names: np.ndarray,
    chosen: np.ndarray,
    cache_dir: pathlib.Path | None,
) -> np.ndarray:
    """Returns the chosen images from the cache; keeps them if they are all."""
    is_all = np.array_equal(chosen, np.arange(len(names)))
    if cache_dir is None:
        return decode(names[chosen], names[chosen], tf.io.read_file)
    folder, content = _digests(path, names)
    cache = cache_dir / f"{folder}-{content}.npy"
    images = _read(cache, len(names))
    if images is not None:
        with contextlib.suppress(OSError):  # Of a cache that cannot be written.
            os.utime(cache)  # See `_unused`.
            _record(cache, path)
        return images if is_all else images[chosen]
    images = decode(names[chosen], names[chosen], tf.io.read_file)
    if is_all:
        _keep(cache, images, path)
    return images


def _digests(path: pathlib.Path, names: np.ndarray) -> tuple[str, str]:
    """Returns digests of the folder's path and of the state of its files."""
    state = hashlib.sha256(tf.__version__.encode())
    for name in names:
        stat, inside = os.stat(name), name[len(str(path)) :]
        state.update(f"{inside}\0{stat.st_size} {stat.st_mtime_ns}\0".encode())
    where = hashlib.sha256(str(path.resolve()).encode())
    return where.hexdigest()[:16], state.hexdigest()[:32]


def _read(cache: pathlib.Path, count: int) -> np.ndarray | None:
    try:
        # Pages are read when they are needed, and shared by processes;
        # writing to the array does not write to the file.
        images = np.load(cache, mmap_mode="c", allow_pickle=False)
        if is_decoded(images, count) and _fills(images, cache):
            return images
        reason = "it holds something else"
    except FileNotFoundError:
        return None
    except Exception as error:  # A header can be broken in many ways.
        reason = f"{type(error).__name__}: {error}"
    warnings.warn(
        f"The decoded images in {cache} cannot be read ({reason}): decoding "
        "again.",
        stacklevel=2,
    )
    return None


def _fills(images: np.memmap, cache: pathlib.Path) -> bool:
    return images.offset + images.nbytes == cache.stat().st_size


def _keep(cache: pathlib.Path, images: np.ndarray, path: pathlib.Path) -> None:
    """Keeps the images of a folder, and removes unused files."""
    folder = _folder_of(cache)
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        older = [
            *cache.parent.glob(f"{folder}-*.npy"),
            *files.leftovers(cache.parent),
            *_unused(cache.parent),
        ]
        for other in older:
            files.remove(other)
        with files.replacing(cache) as temporary:
            np.save(temporary, images)
        _record(cache, path)
    except OSError as error:
        # The images are in memory: the run can go on.
        warnings.warn(
            f"Decoded images are not kept in {cache.parent}: {error}",
            stacklevel=2,
        )


def _folder_of(cache: pathlib.Path) -> str:
    return cache.name.partition("-")[0]


def _record(cache: pathlib.Path, path: pathlib.Path) -> None:
    """Records the folder whose images a file holds, once."""
    record = cache.parent / f"{_folder_of(cache)}.json"
    if not record.exists():
        files.write_json(record, {"folder": str(path.resolve())})


def _unused(cache_dir: pathlib.Path) -> list[pathlib.Path]:
    """Lists decoded images whose folder is gone, and the records of folders.

    A folder may be on a disk that is not mounted now, and tfsam 0.1.0 did not
    record folders: so images that a run has used within 30 days stay.
    """
    found = []
    for cache in cache_dir.glob("*-*.npy"):
        if not _NAME.fullmatch(cache.name):
            continue
        record = cache_dir / f"{_folder_of(cache)}.json"
        folder = (files.read_json(record) or {}).get("folder")
        if folder is not None and os.path.isdir(folder):
            continue
        with contextlib.suppress(FileNotFoundError):  # Another run was faster.
            if time.time() - cache.stat().st_mtime > _GONE_FOR:
                found += [cache, record]
    return found


def _class_folders(folder: pathlib.Path) -> list[str]:
    return sorted(
        entry.name
        for entry in os.scandir(folder)
        if entry.is_dir() and not entry.name.startswith(".")
    )


def _list_files(
    folder: pathlib.Path, classes: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Lists the image files of a split, (n,) paths and (n,) int64 labels."""
    present = set(_class_folders(folder))
    paths: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        if name not in present:  # Only a test folder can lack a class.
            continue
        found = sorted(
            entry.path
            for entry in os.scandir(folder / name)
            if _is_image(entry)
        )
        for path in found:
            if not path.lower().endswith(_SUFFIXES):
                raise refusal(
                    f"a class must hold files {', '.join(_SUFFIXES)} only",
                    path,
                )
        if not found:
            raise refusal(
                f"a class must hold files {', '.join(_SUFFIXES)}",
                f"none in {folder / name}",
            )
        paths += found
        labels += [label] * len(found)
    if not paths:
        raise refusal(f"{folder} must hold class folders", "none")
    return np.array(paths), np.array(labels, np.int64)
