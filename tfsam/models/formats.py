"""Recognition of the formats of model files, by content and never by name."""

import json
import os
import pathlib
import re
import zipfile
from collections.abc import Callable
from typing import Any
from typing import NamedTuple

from tfsam.models import checkpoints
from tfsam.support import files

# A path has one slash for two.
_URL = re.compile(r"[a-z0-9+]{2,}:/")
_HEAD = 1 << 16  # Bytes that are looked at.
_HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
_ZIP_MAGIC = b"PK\x03\x04"
_WEIGHTS = "--network=MODULE:FUNCTION --weights=FILE"
_ALONE = f"weights need a network: {_WEIGHTS}"
_KERAS = "give a .keras or .h5 file of the model"
_CONVERT = "convert it to a .keras file or a SavedModel first"

# Starts of the names of a SavedModel's files.
_PARTS = (
    "saved_model.pb",
    "fingerprint.pb",
    "keras_metadata.pb",
    "variables.index",
    "variables.data-",
)

# Starts of files of other kinds, and the kinds.
_STARTS = {
    b"\x89PNG": "an image",
    b"\xff\xd8\xff": "an image",
    b"GIF8": "an image",
    b"BM": "an image",
    b"II*\0": "an image",
    b"MM\0*": "an image",
    b"%PDF": "a PDF document",
    b"\x93NUMPY": "a NumPy array",
    b"\x1f\x8b": "a gzip archive",
    b"7z\xbc\xaf": "a 7z archive",
    b"Rar!": "a RAR archive",
    b"BZh": "a bzip2 archive",
    b"\xfd7zXZ": "an xz archive",
    b"GGUF": "a GGUF file",
}
# PyTorch's old files start with this number, pickled.
_TORCH_MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"


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
    if checkpoints.prefix(place) is not None:
        raise NoModel("a TensorFlow checkpoint", _ALONE)
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
        head = file.read(_HEAD)
    if _has_hdf5(place, head):
        return Recognized("hdf5", place)
    if head.startswith((_ZIP_MAGIC, b"PK\x05\x06")):
        return _zip(place)
    found, remedy = _other(place, head)
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
    found, remedy = _archive_kind(names)
    raise NoModel(found, remedy)


def _archive_kind(names: list[str]) -> tuple[str, str]:
    """Describes a zip archive that is no `.keras` file."""
    bases = {name.rpartition("/")[2] for name in names}
    if "data.pkl" in bases:
        return "a PyTorch file", _CONVERT
    if names and all(name.endswith(".npy") for name in names):
        return "a NumPy archive (.npz)", _KERAS
    inside = sorted(
        name
        for name in names
        if name.endswith((".keras", ".h5", ".hdf5", "saved_model.pb"))
    )
    inside += [name for name in names if name.endswith("/config.json")]
    if inside:
        return (
            f"a zip archive that contains {inside[0]}",
            "unpack it and give the model in it",
        )
    return (
        "a zip archive without config.json, which no .keras file lacks",
        "give the file of the model itself",
    )


def _other(place: pathlib.Path, head: bytes) -> tuple[str, str]:
    """Describes a file that is neither HDF5 nor a zip archive."""
    for test in (_binary, _text):
        found = test(place, head)
        if found is not None:
            return found
    return "a file of unknown content", "give the file of a Keras model"


def _binary(place: pathlib.Path, head: bytes) -> tuple[str, str] | None:
    if head[4:8] == b"TFL3":
        return "a TensorFlow Lite model, which has no gradients", (
            "give the model from which it was converted"
        )
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "an image", "give the file of a model"
    if _TORCH_MAGIC in head[:32]:
        return "a PyTorch file", _CONVERT
    if head[:1] == b"\x80" and head[1:2] in (b"\2", b"\3", b"\4", b"\5"):
        return _pickle(head)
    if b'{"__metadata__"' in head[8:32] or head[8:10] == b'{"':
        return "a safetensors file", _KERAS
    if head[257:262] == b"ustar":
        return "a tar archive", "unpack it and give the model in it"
    for start, kind in _STARTS.items():
        if head.startswith(start):
            remedy = (
                "unpack it and give the model in it"
                if kind.endswith("archive")
                else "give the file of a model"
            )
            return kind, remedy
    return _protocol_buffer(place, head)


def _pickle(head: bytes) -> tuple[str, str]:
    """Describes a pickle, which is never loaded."""
    for name, library in (
        (b"torch", "PyTorch"),
        (b"joblib", "joblib"),
        (b"sklearn", "scikit-learn"),
        (b"keras", "Keras"),
    ):
        if name in head:
            return f"a pickle of {library}, which can run any code", (
                "load it where you trust it, and save the model as .keras"
            )
    return "a pickle, which can run any code", (
        "load it where you trust it, and save the model as .keras"
    )


def _protocol_buffer(
    place: pathlib.Path, head: bytes
) -> tuple[str, str] | None:
    """Describes a serialized graph of another program."""
    if head[:1] == b"\x08" and b"\x12" in head[2:4]:
        names = (b"pytorch", b"onnx", b"keras", b"CNTK", b"sk")
        if place.suffix == ".onnx" or any(name in head[:64] for name in names):
            return "an ONNX model", _CONVERT
        return (
            "the graph of a SavedModel without its folder",
            "give the whole folder, with saved_model.pb and variables/",
        )
    operations = (b"Placeholder", b"Const", b"Identity", b"Conv2D", b"MatMul")
    if head[:1] == b"\x0a" and any(name in head for name in operations):
        return "a frozen graph (GraphDef)", (
            "save it as a SavedModel with a signature"
        )
    return None


def _text(place: pathlib.Path, head: bytes) -> tuple[str, str] | None:
    """Describes a text file."""
    # A longer text may be cut within a character.
    errors = "strict" if len(head) < _HEAD else "ignore"
    try:
        text = head.decode("utf-8-sig", errors)
    except UnicodeDecodeError:
        return None
    start = text.lstrip().lower()
    if "\0" in text:
        return None
    if start.startswith("version https://git-lfs.github.com/spec"):
        return "a Git LFS pointer", (
            "run git lfs pull in its repository to fetch the model"
        )
    if start.startswith(("<!doctype html", "<html")):
        return "an HTML page", "download the file itself, not its page"
    if start.startswith(("{", "[")):
        return _json(place)
    if start.startswith("<"):
        return "an XML document", "give the file of a model"
    if "class_name:" in start and "config:" in start:
        return _architecture("YAML")
    if place.suffix == ".py":
        return "a Python file", f"make the network by {_WEIGHTS}"
    return "a text file", "give the file of a model"


def _architecture(language: str) -> tuple[str, str]:
    return (
        f"an architecture without weights, in {language}",
        "give a file with the weights, or the network by "
        "--network=MODULE:FUNCTION",
    )


_JSON: tuple[tuple[Callable[[Any], bool], tuple[str, str]], ...] = (
    (
        lambda keys: "nbformat" in keys,
        (
            "a Jupyter notebook",
            "run it, and give the model that it saves",
        ),
    ),
    (
        lambda keys: keys & {"modelTopology", "weightsManifest"},
        ("a TensorFlow.js model", _CONVERT),
    ),
    (lambda keys: "class_name" in keys, _architecture("JSON")),
    (
        lambda keys: "weight_map" in keys,
        ("an index of weights", _ALONE),
    ),
)


def _json(place: pathlib.Path) -> tuple[str, str]:
    """Describes a JSON file."""
    try:
        content = json.loads(place.read_text("utf-8-sig"))
    except (RecursionError, ValueError):
        return "a text file", "give the file of a model"
    keys = set(content) if isinstance(content, dict) else set()
    for test, found in _JSON:
        if test(keys):
            return found
    return "a JSON file", "give the file of a model"


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
    raise NoModel(*_other_folder(names))


def _other_folder(names: set[str]) -> tuple[str, str]:
    """Describes a folder without a SavedModel by the names in it."""
    if any(name.endswith(".index") for name in names) or "checkpoint" in names:
        return "a TensorFlow checkpoint", _ALONE
    if "model.json" in names:
        return "a TensorFlow.js model", _CONVERT
    if "tfhub_module.pb" in names:
        return "a module of TensorFlow Hub of version 1", _CONVERT
    models = sorted(
        name for name in names if name.endswith((".keras", ".h5", ".hdf5"))
    )
    return (
        "a folder without saved_model.pb",
        f"give {models[0]} in it" if models else "give the file of a model",
    )


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
            head = file.read(_HEAD)
        found = _text(graph, head) if head else ("empty", "")
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
