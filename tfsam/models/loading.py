"""Models of any kind, loaded as functions from pixels to logits."""

import os
import warnings

import keras
import tensorflow as tf

from tfsam.attacks.logits import Logits
from tfsam.models.fingerprints import from_file
from tfsam.models.functions import NetworkFunction
from tfsam.models.functions import StatelessFunction
from tfsam.models.functions import in_batches_of
from tfsam.models.functions import use_xla
from tfsam.support import files


def load_logits(model, jit_compile="auto"):
    """A model of any kind as a function from pixels to logits.

    Args:
        model: a Keras model, the path of a `.keras` file or of a SavedModel, or
            a callable from pixels to logits. A SavedModel is a program: load
            those of people you trust; a warning says so.
        jit_compile: whether XLA compiles the network's gradients: True, False
            or "auto", which does on GPUs.

    Returns:
        A `tfsam.attacks.Logits`, in inference mode. Calling it changes no
        variable of a Keras layer, also where a callable calls one in training
        mode.

    Raises:
        ValueError: if it is none of these, or a file that is no model, or
            jit_compile is something else.
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
    # XLA cannot compile all callables: it has to be asked for.
    return Logits(StatelessFunction(model), compiled and jit_compile != "auto")


def _stateless(logits):
    """The same `Logits`, of a function whose calls change no variable."""
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


def _load(path):
    if os.path.isdir(path) and tf.saved_model.contains_saved_model(path):
        warnings.warn(
            f"{path} is a SavedModel, a program that can do whatever you can: "
            "load those of people you trust, or ask for a .keras file.",
            stacklevel=2,
        )
    try:
        return _loaded(path)
    except Exception as error:
        # A file can be broken in more ways than one knows.
        raise ValueError(
            "model must be the path of a .keras file or of a SavedModel folder "
            f"({files.reason(error)}). Received: model={path}"
        ) from error


def _loaded(path):
    if not os.path.exists(path):
        raise ValueError("no such file")
    if not os.path.isdir(path):
        return keras.saving.load_model(path, compile=False, safe_mode=True)
    return _SavedModel(tf.saved_model.load(path))


class _SavedModel:
    """The function from pixels to logits of a loaded SavedModel.

    Of a Keras export it is the endpoint `serve`, else the signature
    `serving_default`.

    Args:
        loaded: the result of `tf.saved_model.load`.

    Raises:
        ValueError: if there is no such function, or not of one tensor to one.
    """

    def __init__(self, loaded):
        # The variables live only as long as the loaded object.
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
        # Unknown where several signatures are possible.
        self._input = self._output = None
        if len(concrete) == 1:
            specs = concrete[0].structured_input_signature
            self._input = _only("inputs", specs)
            self._output = _only("outputs", concrete[0].structured_outputs)

    def __call__(self, x):
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

    def _logits(self, x):
        (logits,) = tf.nest.flatten(self._function(x))
        return logits


def _only(kind, specs):
    """Returns the only tensor of a signature."""
    found = [s for s in tf.nest.flatten(specs) if isinstance(s, tf.TensorSpec)]
    if len(found) != 1:
        names = sorted(str(spec.name) for spec in found)
        raise ValueError(f"its {kind} are {names}, not one")
    return found[0]
