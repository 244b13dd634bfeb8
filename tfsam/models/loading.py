"""Loading of models of any kind, as functions from pixels to logits."""

import os
import warnings
from typing import Any

import keras
import tensorflow as tf

from tfsam.attacks.logits import Logits
from tfsam.models.fingerprints import from_file
from tfsam.models.functions import NetworkFunction
from tfsam.models.functions import StatelessFunction
from tfsam.models.functions import in_batches_of
from tfsam.models.functions import use_xla
from tfsam.support import files


def load_logits(model: Any, jit_compile: bool | str = "auto") -> Logits:
    """Loads a model of any kind as a function from pixels to logits.

    Args:
        model: A Keras model, the path of a `.keras` file or of a SavedModel, or
            a callable from pixels (batch, ...) to logits (batch, classes). A
            SavedModel is a program: load only models from people you trust. A
            warning reminds of that.
        jit_compile: Whether XLA compiles the network's gradients: True, False,
            or "auto" to compile them on GPUs only.

    Returns:
        A `tfsam.attacks.Logits`, in inference mode. A call changes no variable
        of a Keras layer, even if a callable calls a layer in training mode.

    Raises:
        ValueError: If `model` is none of these, a file holds no model, or
            `jit_compile` is invalid.

    Example:
        >>> import keras
        >>> import numpy as np
        >>> network = keras.Sequential(
        ...     [keras.Input((4,)), keras.layers.Dense(3)]
        ... )
        >>> logits_fn = load_logits(network)
        >>> logits_fn(np.zeros((2, 4), "float32")).shape
        TensorShape([2, 3])
    """
    compiled = use_xla(jit_compile)
    if isinstance(model, (str, os.PathLike)):
        path = os.fspath(model)
        model = _load(path)
        network = isinstance(model, keras.Model)
        logits = load_logits(model, jit_compile)
        logits.identity = from_file(path, "keras" if network else "saved_model")
        return logits
    if isinstance(model, Logits):
        return _stateless(model)
    if isinstance(model, keras.Model):
        return Logits(NetworkFunction(model), compiled)
    if not callable(model):
        raise ValueError(
            "model must be a Keras model, a path, or a callable from pixels to "
            f"logits. Received: model={model}"
        )
    # XLA cannot compile every callable, so "auto" does not try.
    return Logits(StatelessFunction(model), compiled and jit_compile != "auto")


def _stateless(logits: Logits) -> Logits:
    """Returns the same model as a function that changes no variable."""
    if isinstance(logits.function, StatelessFunction):
        return logits
    stateless = Logits(
        StatelessFunction(logits.function),
        logits.jit_compile,
        logits.rows,
        logits.jit_loops,
        logits.classes,
        logits.independent,
    )
    stateless.identity = logits.identity
    return stateless


def _load(path: str) -> Any:
    if os.path.isdir(path) and tf.saved_model.contains_saved_model(path):
        warnings.warn(
            f"{path} is a SavedModel, a program that can do anything that you "
            "can do. Load only models from people you trust, or use a .keras "
            "file.",
            stacklevel=2,
        )
    try:
        return _loaded(path)
    except Exception as error:
        # A file can be damaged in many ways.
        raise ValueError(
            "model must be the path of a .keras file or of a SavedModel folder "
            f"({files.reason(error)}). Received: model={path}"
        ) from error


def _loaded(path: str) -> Any:
    if not os.path.exists(path):
        raise ValueError("no such file")
    if not os.path.isdir(path):
        return keras.saving.load_model(path, compile=False, safe_mode=True)
    return _SavedModel(tf.saved_model.load(path))


class _SavedModel:
    """The function from pixels to logits of a loaded SavedModel.

    For an export of Keras it is the endpoint `serve`, otherwise the signature
    `serving_default`.

    Args:
        loaded: The result of `tf.saved_model.load`.

    Raises:
        ValueError: If there is no such function, or it does not map one tensor
            to one tensor.
    """

    def __init__(self, loaded: Any) -> None:
        # The variables are freed with the loaded object.
        self._loaded = loaded
        if hasattr(loaded, "serve"):
            self._function = loaded.serve
            concrete = list(getattr(loaded.serve, "concrete_functions", []))
        else:
            signatures = loaded.signatures
            if "serving_default" not in signatures:
                raise ValueError(
                    "it has no signature serving_default: "
                    f"{sorted(signatures) or 'no signature at all'}"
                )
            self._function = signatures["serving_default"]
            concrete = [self._function]
        # With several signatures, the specs are unknown.
        self._input = self._output = None
        if len(concrete) == 1:
            specs = concrete[0].structured_input_signature
            self._input = _only("inputs", specs)
            self._output = _only("outputs", concrete[0].structured_outputs)

    def __call__(self, x: tf.Tensor) -> Any:
        """Returns the logits of a batch of any size."""
        if self._input is None:
            return self._function(x)
        shape, dtype = self._input.shape, self._input.dtype
        if not dtype.is_floating or not shape[1:].is_compatible_with(
            x.shape[1:]
        ):
            raise ValueError(
                f"it takes images of shape {tuple(shape[1:])} and {dtype.name}"
            )
        size = shape[0] if shape.rank else None
        return in_batches_of(
            size, self._logits, tf.cast(x, dtype), self._output
        )

    def _logits(self, x: tf.Tensor) -> tf.Tensor:
        (logits,) = tf.nest.flatten(self._function(x))
        return logits


def _only(kind: str, specs: Any) -> tf.TensorSpec:
    """Returns the only tensor of a signature.

    Args:
        kind: "inputs" or "outputs", for the error.
        specs: A structure of specs.

    Raises:
        ValueError: If there are several tensors or none.
    """
    found = [s for s in tf.nest.flatten(specs) if isinstance(s, tf.TensorSpec)]
    if len(found) != 1:
        names = sorted(str(spec.name) for spec in found)
        raise ValueError(f"its {kind} are {names}, not one")
    return found[0]
