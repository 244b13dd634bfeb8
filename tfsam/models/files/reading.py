"""Reading of stored models of any format."""

import importlib.util
import json
import pathlib
import shutil
import tempfile
import warnings
from collections.abc import Callable
from collections.abc import Mapping
from typing import Any
from typing import NamedTuple

import h5py
import keras

from tfsam.models.files import archives
from tfsam.models.files import formats
from tfsam.models.files import hdf5_files
from tfsam.models.files import keras_1_configs
from tfsam.models.files import ordered_weights
from tfsam.models.files import saved_models
from tfsam.models.files import stored_configs
from tfsam.models.files import trusted_code
from tfsam.models.stored_models import Stored
from tfsam.support import files

_LEGACY = "only Keras 2 reads it: pip install tf_keras (tfsam's extra legacy)"
_COMPILED = "compile_config"


class _Source(NamedTuple):
    """Facts about a file of Keras.

    Attributes:
        path: Its path.
        suffix: The suffix by which Keras knows its format.
        config: The configuration of its model.
        version: The version of Keras that wrote it, or the part that is known.
        objects: Classes and functions by name, given by the user.
        trusted: Names of layers whose stored code may run.
    """

    path: pathlib.Path
    suffix: str
    config: dict[str, Any]
    version: str | None
    objects: dict[str, Any]
    trusted: tuple[str, ...]

    @property
    def new(self) -> bool:
        """Whether Keras 3 wrote it."""
        return _is_new(self.version)


def _is_new(version: str | None) -> bool:
    return bool(version and version.startswith("3"))


def read(
    path: files.Path,
    custom_objects: Mapping[str, Any] | None = None,
    trusted: tuple[str, ...] = (),
) -> Stored:
    """Reads a model, whatever its format and whoever wrote it.

    Args:
        path: Path of a file of Keras 1 to 3 (zip or HDF5, under any name), or
            of a SavedModel.
        custom_objects: Classes and functions of the model by their names,
            beside those that are registered with Keras.
        trusted: Names of Lambda layers whose stored code may run.

    Returns:
        The model, with notes about the reading.

    Raises:
        ValueError: If the file holds no model, needs a class that is not
            registered or a library that is not installed, or holds code that
            is not trusted. The message is one line that says what to do.

    Example:
        >>> import tempfile
        >>> network = keras.Sequential(
        ...     [keras.Input((4,)), keras.layers.Dense(3)]
        ... )
        >>> path = pathlib.Path(tempfile.mkdtemp(), "network.keras")
        >>> network.save(path)
        >>> stored = read(path)
        >>> stored.format, stored.reader
        ('keras', 'keras')
    """
    recognized = formats.recognize(path)
    if recognized.format == "saved_model":
        warnings.warn(
            f"{path} is a SavedModel, a program that can do anything that you "
            "can do. Load only models from people you trust, or use a .keras "
            "file.",
            stacklevel=2,
        )
    reader = {"keras": _keras, "hdf5": _hdf5, "saved_model": _saved_model}
    objects = dict(custom_objects or {})
    try:
        return reader[recognized.format](recognized.path, objects, trusted)
    except Exception as error:
        # A file can be damaged in many ways.
        raise formats.rejected(
            path, None, files.reason(error).rstrip(".")
        ) from error


def _saved_model(
    path: pathlib.Path, objects: dict[str, Any], trusted: tuple[str, ...]
) -> Stored:
    """Reads a SavedModel, whose signatures are functions of its own."""
    loaded, written_by = saved_models.load(path)
    return Stored(
        model=loaded,
        format="saved_model",
        reader="tensorflow",
        written_by=written_by,
        sha256=files.digest(path),
    )


def _hdf5(
    path: pathlib.Path, objects: dict[str, Any], trusted: tuple[str, ...]
) -> Stored:
    """Reads an HDF5 file of Keras 1 to 3."""
    with hdf5_files.opened(path) as file:
        stored = file.attrs.get("model_config")
        if stored is None:
            raise ValueError(_without_model(file))
        text = hdf5_files.text(stored)
        config = _needed(json.loads(text), False)
        version = _attribute(file, "keras_version")
        backend = _attribute(file, "backend")
        guess = "1" if keras_1_configs.is_of_keras_1(text) else "2"
        source = _Source(
            path, ".h5", config, version or guess, objects, trusted
        )

        def build(place: pathlib.Path) -> keras.Model:
            return _from_hdf5(file, source, backend)

        def rewrite(place: pathlib.Path) -> None:
            shutil.copyfile(path, place)
            with h5py.File(place, "r+") as copy:
                copy.attrs["model_config"] = json.dumps(config)

        model, reader, notes = _first(build, rewrite, source)
        writer = _writer(version, backend)
    return Stored(
        model=model,
        format="hdf5",
        reader=reader,
        written_by=writer,
        notes=notes,
        sha256=files.checksum(path),
    )


def _from_hdf5(file: Any, source: _Source, backend: str | None) -> keras.Model:
    """Builds the model of an HDF5 file by Keras 3."""
    if "model_weights" not in file:
        raise ValueError("it has an architecture without weights")
    config, unsafe = _for_keras_3(source)
    model = keras.saving.deserialize_keras_object(
        config, source.objects, safe_mode=not unsafe
    )
    if not model.built:
        raise ValueError(
            "the shape of its input is not stored: give the network by "
            "--network=MODULE:FUNCTION, and the file by --weights"
        )
    ordered_weights.assign(
        model,
        file["model_weights"],
        lambda layer, weight: keras_1_configs.kernel(
            layer, weight, source.version, backend
        ),
    )
    return model


def _without_model(file: Any) -> str:
    """Describes an HDF5 file without a configuration."""
    if hdf5_files.names(file, "layer_names") or "layers" in file:
        return (
            "an HDF5 file of weights without a model needs a network: "
            "--network=MODULE:FUNCTION --weights=FILE"
        )
    return "an HDF5 file that Keras did not write has no model_config"


def _keras(
    path: pathlib.Path, objects: dict[str, Any], trusted: tuple[str, ...]
) -> Stored:
    """Reads a `.keras` file of Keras 2.12 to 3, or the folder of one."""
    with archives.opened(path) as archive:
        stored = archives.read_json(archive, archives.CONFIG)
        metadata = archives.read_json(archive, archives.METADATA)
        version = metadata.get("keras_version")
        config = _needed(stored, _is_new(version))
        source = _Source(path, ".keras", config, version, objects, trusted)

        def build(place: pathlib.Path) -> keras.Model:
            found, unsafe = _for_keras_3(source)
            # Keras leaves out how the model itself was compiled.
            same = found == {k: stored[k] for k in stored if k != _COMPILED}
            if same and path.is_file():
                place.symlink_to(path.absolute())
            else:
                archives.with_config(archive, found, place)
            return keras.saving.load_model(
                place, objects, compile=False, safe_mode=not unsafe
            )

        def rewrite(place: pathlib.Path) -> None:
            archives.with_config(archive, config, place)

        model, reader, notes = _first(build, rewrite, source)
    return Stored(
        model=model,
        format="keras",
        reader=reader,
        written_by=_writer(version, None),
        notes=notes,
        sha256=files.checksum(path),
    )


def _needed(config: Any, initializers: bool) -> Any:
    """Leaves out losses, metrics and optimizers, which are not needed.

    Args:
        config: A configuration or a part of it.
        initializers: Whether initializers are kept, though weights are stored.
    """
    if isinstance(config, dict):
        return {
            key: _needed(value, initializers)
            for key, value in config.items()
            if key != _COMPILED
            and (initializers or not key.endswith("_initializer"))
        }
    if isinstance(config, list):
        return [_needed(value, initializers) for value in config]
    return config


def _for_keras_3(source: _Source) -> tuple[dict[str, Any], bool]:
    """Returns the configuration for Keras 3, which runs no code of others.

    Returns:
        The configuration, and whether it has code that the user trusts.
    """
    known = trusted_code.registered(source.objects)
    config = source.config
    if source.suffix == ".h5" or not source.new:
        config = stored_configs.mended(config, source.version, known)
    return config, trusted_code.check(config, known, source.trusted)


def _first(
    build: Callable[[pathlib.Path], keras.Model],
    rewrite: Callable[[pathlib.Path], None],
    source: _Source,
) -> tuple[Any, str, tuple[str, ...]]:
    """Reads a model by Keras 3, or by tf_keras where that fails.

    Args:
        build: The reading by Keras 3. It takes a path for a temporary file.
        rewrite: Function that writes the file with `source.config`, the only
            configuration that is checked.
        source: Facts about the file.

    Returns:
        The model, the name of the library that read it, and notes.
    """
    with tempfile.TemporaryDirectory() as folder:
        place = pathlib.Path(folder, f"model{source.suffix}")
        try:
            model = build(place)
        except trusted_code.Untrusted:
            raise
        except Exception as error:
            # Keras raises whatever a layer raises.
            if source.new:
                raise
            place.unlink(missing_ok=True)
            rewrite(place)
            return _by_tf_keras(place, source, error)
    note = f"Keras {source.version} wrote it, and Keras 3 reads it mended"
    return model, "keras", () if source.new else (note,)


def _by_tf_keras(
    place: pathlib.Path, source: _Source, error: Exception
) -> tuple[Any, str, tuple[str, ...]]:
    """Reads a model of Keras 2 by tf_keras, if that is installed."""
    reason = files.reason(error)
    if importlib.util.find_spec("tf_keras") is None:
        raise ValueError(f"{_LEGACY} (Keras 3: {reason})") from error
    import tf_keras

    known = trusted_code.registered_with_tf_keras() | source.objects
    unsafe = trusted_code.check(source.config, known, source.trusted)
    try:
        model = tf_keras.models.load_model(
            place, source.objects, compile=False, safe_mode=not unsafe
        )
    except Exception as other:
        # It, too, raises whatever a layer raises.
        raise ValueError(
            f"neither Keras 3 reads it ({reason}) nor tf_keras "
            f"({files.reason(other)})"
        ) from other
    return model, "tf_keras", (f"tf_keras read it, not Keras 3: {reason}",)


def _attribute(file: Any, name: str) -> str | None:
    """Reads an attribute that the file or its weights may have."""
    for group in (file, file.get("model_weights", file)):
        if name in group.attrs:
            return hdf5_files.text(group.attrs[name])
    return None


def _writer(version: str | None, backend: str | None) -> str | None:
    """Names the library that wrote a file."""
    if version is None:
        return None
    if backend in (None, "tensorflow"):
        return f"Keras {version}"
    return f"Keras {version} on {backend}"
