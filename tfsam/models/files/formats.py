"""Recognition of the formats of model files, by content and never by name."""

import os
import pathlib
import re
import zipfile
from typing import NamedTuple

from tfsam.models.files import other_files
from tfsam.models.files import tensorflow_checkpoints
from tfsam.support import files

# A path has one slash for two.
_URL = re.compile(r"[a-z0-9+]{2,}:/")
_HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
_ZIP_MAGIC = b"PK\x03\x04"
# Starts of the names of a SavedModel's files.
_PARTS = (
    "saved_model.pb",
    "fingerprint.pb",
    "keras_metadata.pb",
    "variables.index",
    "variables.data-",
)


class Recognized(NamedTuple):
    """A model's place on the disk.

    Attributes:
        format: "keras", "hdf5" or "saved_model".
        path: the file, or the folder of a SavedModel or of an unzipped
            `.keras` file.
    """

    format: str
    path: pathlib.Path


class NoModel(ValueError):
    """A file holds no model.

    Args:
        found: Description of the file, or None if there is none.
        remedy: Description of the remedy.
    """

    def __init__(self, found: str | None, remedy: str) -> None:
        super().__init__(f"{found}: {remedy}" if found else remedy)
        self.found = found
        self.remedy = remedy


def recognize(path: files.Path) -> Recognized:
    """Recognizes the format of a model by the content of its file.

    Args:
        path: Path of a file with any suffix or none, of a SavedModel's folder,
            or of the `saved_model.pb` in it.

    Raises:
        ValueError: If it holds no model. The message says what it is and what
            to do.
    """
    try:
        return look(files.expanded(path))
    except NoModel as error:
        raise rejected(path, error.found, error.remedy) from error
    except OSError as error:
        raise rejected(path, None, f"{files.reason(error)}") from error


def look(place: pathlib.Path) -> Recognized:
    """Recognizes the format of a model, or describes the file.

    Args:
        place: Its path.

    Raises:
        NoModel: If it holds no model.
    """
    if place.is_dir():
        return _folder(place)
    for folder in place.absolute().parents[:2]:
        if place.name.startswith(_PARTS) and _holds_saved_model(folder):
            return _saved_model(folder)
    if tensorflow_checkpoints.prefix(place) is not None:
        raise NoModel("a TensorFlow checkpoint", other_files.ALONE)
    if _URL.match(str(place)):
        raise NoModel("a URL", "download the file first, and give its path")
    if not place.exists():
        raise NoModel(None, "there is no such file")
    if not place.is_file():
        raise NoModel("neither a file nor a folder", "give a file")
    return _file(place)


def rejected(path: files.Path, found: str | None, remedy: str) -> ValueError:
    """Makes the error of a path without a model.

    Args:
        path: The path, as the user gave it.
        found: Description of the file, or None if there is none.
        remedy: Description of the remedy.
    """
    return ValueError(
        "model must be a Keras model file or a SavedModel"
        f"{f', not {found}' if found else ''}: {remedy}. "
        f"Received: model={os.fspath(path)}"
    )


def _file(place: pathlib.Path) -> Recognized:
    """Recognizes a file."""
    size = place.stat().st_size
    if not size:
        raise NoModel("an empty file", "download or save it again")
    with open(place, "rb") as file:
        head = file.read(other_files.HEAD)
    if _has_hdf5(place, head):
        return Recognized("hdf5", place)
    if head.startswith((_ZIP_MAGIC, b"PK\x05\x06")):
        return _zip(place)
    found, remedy = other_files.in_file(place, head)
    raise NoModel(found, remedy)


def _has_hdf5(place: pathlib.Path, head: bytes) -> bool:
    """Returns whether the HDF5 signature is where the format allows it."""
    if head.startswith(_HDF5_MAGIC):
        return True
    # A block of the user's own may come first, of 512 bytes or a power of two
    # times as many.
    at = 512
    while at + len(_HDF5_MAGIC) <= len(head):
        if head.startswith(_HDF5_MAGIC, at):
            return True
        at *= 2
    return False


def _zip(place: pathlib.Path) -> Recognized:
    """Recognizes a zip archive."""
    try:
        with zipfile.ZipFile(place) as archive:
            names = archive.namelist()
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise NoModel(
            "a truncated or damaged zip archive",
            f"download or save it again ({files.reason(error)})",
        ) from error
    if "config.json" in names:
        return Recognized("keras", place)
    found, remedy = other_files.in_archive(names)
    raise NoModel(found, remedy)


def _folder(folder: pathlib.Path) -> Recognized:
    """Recognizes a folder."""
    if _holds_saved_model(folder):
        return _saved_model(folder)
    names = {entry.name for entry in folder.iterdir()}
    if "config.json" in names and names & {
        "model.weights.h5",
        "model.weights.npz",
    }:
        return Recognized("keras", folder)
    if folder.name == "variables" and _holds_saved_model(
        folder.parent.absolute()
    ):
        return _saved_model(folder.parent.absolute())
    inside = sorted(
        entry for entry in folder.iterdir() if _holds_saved_model(entry)
    )
    # TensorFlow Serving keeps each version in a folder named by its number.
    if len(inside) == 1:
        return _saved_model(inside[0])
    if inside:
        found = ", ".join(entry.name for entry in inside[:3])
        raise NoModel(
            f"a folder of {len(inside)} SavedModels ({found})", "give one"
        )
    raise NoModel(*other_files.in_folder(names))


def _holds_saved_model(folder: pathlib.Path) -> bool:
    return any(
        (folder / name).is_file()
        for name in ("saved_model.pb", "saved_model.pbtxt")
    )


def _saved_model(folder: pathlib.Path) -> Recognized:
    """Recognizes a SavedModel, whose graph may be an LFS pointer."""
    graph = folder / "saved_model.pb"
    if graph.is_file():
        with open(graph, "rb") as file:
            head = file.read(other_files.HEAD)
        found = other_files.in_text(graph, head) if head else ("empty", "")
        if not head:
            raise NoModel(
                "a SavedModel with an empty saved_model.pb",
                "download or save it again",
            )
        if found is not None:
            raise NoModel(
                f"a SavedModel whose saved_model.pb is {found[0]}",
                found[1],
            )
    return Recognized("saved_model", folder)
