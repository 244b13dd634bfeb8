"""Files that people take for models, described with a remedy each."""

import json
import pathlib
from collections.abc import Callable
from typing import Any

# A description and a remedy.
Found = tuple[str, str]

HEAD = 1 << 16  # Bytes that are looked at.

_WEIGHTS = "--network=MODULE:FUNCTION --weights=FILE"
ALONE = f"weights need a network: {_WEIGHTS}"
_KERAS = "give a .keras or .h5 file of the model"
_CONVERT = "convert it to a .keras file or a SavedModel first"

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


def in_archive(names: list[str]) -> Found:
    """Describes a zip archive that is no `.keras` file.

    Args:
        names: Names of its members.
    """
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


def in_file(place: pathlib.Path, head: bytes) -> Found:
    """Describes a file that is neither HDF5 nor a zip archive.

    Args:
        place: Its path.
        head: Its first bytes, at most `HEAD`.
    """
    for test in (_binary, in_text):
        found = test(place, head)
        if found is not None:
            return found
    return "a file of unknown content", "give the file of a Keras model"


def _binary(place: pathlib.Path, head: bytes) -> Found | None:
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


def _pickle(head: bytes) -> Found:
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


def _protocol_buffer(place: pathlib.Path, head: bytes) -> Found | None:
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


def in_text(place: pathlib.Path, head: bytes) -> Found | None:
    """Describes a text file; returns None if it is none.

    Args:
        place: Its path.
        head: Its first bytes, at most `HEAD`.
    """
    # A longer text may be cut within a character.
    errors = "strict" if len(head) < HEAD else "ignore"
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


def _architecture(language: str) -> Found:
    return (
        f"an architecture without weights, in {language}",
        "give a file with the weights, or the network by "
        "--network=MODULE:FUNCTION",
    )


_JSON: tuple[tuple[Callable[[Any], bool], Found], ...] = (
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
        ("an index of weights", ALONE),
    ),
)


def _json(place: pathlib.Path) -> Found:
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


def in_folder(names: set[str]) -> Found:
    """Describes a folder without a model.

    Args:
        names: Names of the files in it.
    """
    if any(name.endswith(".index") for name in names) or "checkpoint" in names:
        return "a TensorFlow checkpoint", ALONE
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
