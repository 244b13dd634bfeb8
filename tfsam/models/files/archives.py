"""Archives of Keras (`.keras`), checked before anything in them is read."""

import contextlib
import json
import pathlib
import shutil
import stat
import tempfile
import zipfile
from collections.abc import Iterator
from typing import Any

from tfsam.models.files import hdf5_files

CONFIG = "config.json"
METADATA = "metadata.json"
WEIGHTS = "model.weights.h5"

# Keras stores members uncompressed. Compressed again, weights shrink little.
_LARGEST = 1 << 26
_RATIO = 100


@contextlib.contextmanager
def opened(path: pathlib.Path) -> Iterator[zipfile.ZipFile]:
    """Opens a `.keras` file and checks its members.

    Args:
        path: Path of the file, or of the folder of an unpacked one.

    Yields:
        The open archive.

    Raises:
        ValueError: If a member would be unpacked outside of its folder, is a
            link, is listed twice or is far larger than its stored bytes; or if
            the weights refer to other files or need pickle.
    """
    with contextlib.ExitStack() as stack:
        if path.is_dir():
            place = stack.enter_context(tempfile.TemporaryDirectory())
            path = _packed(path, pathlib.Path(place, "model.keras"))
        archive = stack.enter_context(zipfile.ZipFile(path))
        _check(archive)
        _check_weights(archive)
        yield archive


def _packed(folder: pathlib.Path, path: pathlib.Path) -> pathlib.Path:
    """Packs the files of a folder into an archive."""
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file() and not file.is_symlink():
                archive.write(file, file.relative_to(folder).as_posix())
    return path


def _check(archive: zipfile.ZipFile) -> None:
    """Checks the members of an archive by their paths and sizes."""
    seen = set()
    for member in archive.infolist():
        name = member.filename
        place = pathlib.PurePosixPath(name.replace("\\", "/"))
        if place.is_absolute() or ".." in place.parts or ":" in name:
            raise ValueError(
                f"the member {name} of the archive is outside of its folder"
            )
        if stat.S_ISLNK(member.external_attr >> 16):
            raise ValueError(f"the member {name} of the archive is a link")
        if name in seen:
            raise ValueError(f"the archive has its member {name} twice")
        seen.add(name)
        if member.file_size > max(_LARGEST, _RATIO * member.compress_size):
            raise ValueError(
                f"the member {name} of the archive declares {member.file_size} "
                f"bytes and stores {member.compress_size}"
            )


def _check_weights(archive: zipfile.ZipFile) -> None:
    """Checks that the weights are an HDF5 file that stands alone."""
    names = archive.namelist()
    if WEIGHTS not in names:
        found = [name for name in names if name.endswith(".npz")]
        raise ValueError(
            f"the weights {found[0]} of the archive need pickle, which can run "
            "any code: save the model with weights in HDF5"
            if found
            else f"the archive has no {WEIGHTS}"
        )
    with weights(archive):
        pass


@contextlib.contextmanager
def weights(archive: zipfile.ZipFile) -> Iterator[pathlib.Path]:
    """Unpacks and checks the weights: HDF5 is slow to read in an archive.

    Args:
        archive: The archive, whose members have been checked.

    Yields:
        Path of the HDF5 file, which is removed afterwards.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(archive.extract(WEIGHTS, folder))
        with hdf5_files.opened(path):
            pass
        yield path


def read_json(archive: zipfile.ZipFile, name: str) -> dict[str, Any]:
    """Reads a JSON object in an archive.

    Args:
        archive: The open archive.
        name: Name of the member.

    Raises:
        ValueError: If there is no such member, or it is no JSON object.
    """
    try:
        content = json.loads(archive.read(name))
    except (KeyError, RecursionError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"the member {name} is missing or damaged") from error
    if not isinstance(content, dict):
        raise ValueError(f"the member {name} of the archive is no object")
    return content


def with_config(
    archive: zipfile.ZipFile, config: dict[str, Any], path: pathlib.Path
) -> None:
    """Writes an archive with another configuration and the same weights.

    Args:
        archive: The open archive.
        config: The configuration.
        path: Path of the new archive.
    """
    with zipfile.ZipFile(path, "w") as changed:
        changed.writestr(CONFIG, json.dumps(config))
        for member in archive.infolist():
            if member.filename == CONFIG or member.is_dir():
                continue
            with (
                archive.open(member) as source,
                changed.open(member.filename, "w", force_zip64=True) as target,
            ):
                shutil.copyfileobj(source, target)
