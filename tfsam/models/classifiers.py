"""A model of any kind as a function from pixels to logits."""

import hashlib
import math
import os
import re
import warnings
import zipfile

import keras
import numpy as np
import tensorflow as tf

from tfsam.attacks.logits import Logits
from tfsam.support import files
from tfsam.support import identity
from tfsam.support.layers import flattened
from tfsam.support.outputs import check_ending

# Examples that go through the network at once on a CPU: images of many pixels,
# and of few. The same whatever the batch, so that an example's logits are.
_BLOCK_ROWS, _BLOCK_ROWS_OF_SMALL = 32, 128
_SMALL = 1024

# How a `.keras` file marks an object that several layers share.
_SHARED = re.compile(rb'("shared_object_id": )(\d+)')

_HALVES = {"float16": 2.0**-10, "bfloat16": 2.0**-7}


class _Stateless:
    """A function of pixels whose calls leave every Keras variable as it was.

    A layer may write when it is called: a BatchNormalization in training mode
    its moving statistics, a Dropout the state of its seed generator, a metric
    its totals. Here the scope of a call drops these writes.

    Args:
        function: pixels to logits.
    """

    def __init__(self, function):
        self.function = function

    def __call__(self, x):
        return self.in_turn([x])[0]

    def in_turn(self, batches):
        """Calls the function on one batch after the other, in one scope.

        A call reads the state that the call before it wrote, as it would
        outside of an evaluation.

        Args:
            batches: a list of float tensors (batch, ...).

        Returns:
            A list of what the function returned.
        """
        with keras.StatelessScope(self._mapping()):
            return [self._call(x) for x in batches]

    def __identity__(self):
        """Returns what `identity.describe` describes in place of this."""
        return self.function

    def _mapping(self):
        return []

    def _call(self, x):
        return self.function(x)


class _Network(_Stateless):
    """A Keras model in inference mode, with its weights or copies of them."""

    def __init__(self, model, values=None):
        super().__init__(model)
        self.model = model
        self.values = values

    def copied(self):
        """The same model with copies of its weights on the current device."""
        values = [tf.identity(v.value) for v in self.model.variables]
        return _Network(self.model, values)

    def _mapping(self):
        if self.values is None:
            return []
        return list(zip(self.model.variables, self.values, strict=True))

    def _call(self, x):
        inputs = getattr(self.model, "inputs", None) or []
        outputs = getattr(self.model, "outputs", None) or []
        if len(inputs) != 1 or len(outputs) != 1:
            return self._predict(x)
        (output,) = outputs
        spec = tf.TensorSpec(output.shape, output.dtype)
        return in_batches_of(inputs[0].shape[0], self._predict, x, spec)

    def _predict(self, x):
        return self.model(x, training=False)


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
        return Logits(_Network(model), compiled)
    if not callable(model):
        raise ValueError(
            "model must be a Keras model, a path, or a callable from pixels to "
            f"logits. Received: model={model}"
        )
    # XLA cannot compile all callables: it has to be asked for.
    return Logits(_Stateless(model), compiled and jit_compile != "auto")


def from_file(path, format):
    """Describes a model by its files, for the `identity` of a `Logits`.

    Args:
        path: of the file or the folder.
        format: "keras" or "saved_model", how it was loaded.
    """
    checksum = files.digest(path)
    if zipfile.is_zipfile(path):
        checksum = _digest_of_archive(path)
    return {"files": checksum, "loading": {"format": format}}


def _digest_of_archive(path):
    """Computes a checksum of a `.keras` file that saving again does not change.

    The archive has the time of the day in its directory and in metadata.json,
    whose versions a record has of its own, and addresses of shared objects in
    the configuration; their order of appearance stands for them.

    Args:
        path: of the archive.
    """
    total = hashlib.sha256()
    seen: dict[bytes, int] = {}

    def numbered(match):
        return match[1] + b"%d" % seen.setdefault(match[2], len(seen))

    with zipfile.ZipFile(path) as archive:
        for name in sorted(archive.namelist()):
            if name == "metadata.json":
                continue
            content = archive.read(name)
            if name == "config.json":
                content = _SHARED.sub(numbered, content)
            part = hashlib.sha256(content)
            total.update(name.encode() + b"\0" + part.digest())
    return total.hexdigest()


def _stateless(logits):
    """The same `Logits`, of a function whose calls change no variable."""
    if isinstance(logits.function, _Stateless):
        return logits
    stateless = Logits(
        _Stateless(logits.function),
        logits.jit_compile,
        logits.rows,
        logits.jit_loops,
        logits.classes,
        logits.independent,
    )
    stateless.identity = logits.identity
    return stateless


def for_evaluation(logits, classes, shape, device=None):
    """The logits as an evaluation runs them on a device.

    On a CPU in blocks; on a GPU whole batches, attack loops inside XLA.

    Args:
        logits: a `Logits`.
        classes: number of logits.
        shape: of an example.
        device: name of a device that gets a copy of a Keras model's weights;
            None is TensorFlow's own choice, and no copy.

    Returns:
        A new `Logits`, which shares nothing that is traced.
    """
    function = logits.function
    if device is not None and isinstance(function, _Network):
        with tf.device(device):
            function = function.copied()
    gpu = tf.config.list_logical_devices("GPU")
    if gpu and (device is None or "GPU" in device.upper()):
        rows, jit_loops = None, logits.jit_compile
    else:
        small = math.prod(shape) <= _SMALL
        rows = logits.rows or (_BLOCK_ROWS_OF_SMALL if small else _BLOCK_ROWS)
        jit_loops = False
    made = Logits(function, logits.jit_compile, rows, jit_loops, classes)
    made.rounding = max(made.rounding, _coarsest(function))
    return made


def _coarsest(function):
    """Returns the relative rounding error of a network of halves, else 0."""
    network = getattr(function, "model", None)
    layers = flattened(network) if isinstance(network, keras.Model) else []
    return max(
        (_HALVES.get(layer.compute_dtype, 0.0) for layer in layers), default=0.0
    )


def use_xla(jit_compile="auto"):
    """Whether XLA is to compile a network's gradients.

    Args:
        jit_compile: "auto" is yes on GPUs; on CPUs a plain graph was the faster
            one. Or a bool.

    Raises:
        ValueError: if it is something else.
    """
    if jit_compile == "auto":
        return bool(tf.config.list_logical_devices("GPU"))
    if not isinstance(jit_compile, (bool, np.bool_)):
        raise ValueError(
            "jit_compile must be True, False or auto. "
            f"Received: jit_compile={jit_compile}"
        )
    return bool(jit_compile)


def describe(logits, name=None):
    """Describes a model so that another process recognises it.

    A name given by the user stands for the whole model. A model from files is
    known by their checksum, the way it was loaded, and the code of those of its
    layers that is not in the files; any other one by all that
    `identity.describe` finds.

    Args:
        logits: the `Logits` that it was loaded as.
        name: the user's, or None.

    Returns:
        A dict of JSON's types.

    Raises:
        tfsam.support.identity.Unknown: if it has no description and no name.
    """
    if name is not None:
        return {"named": str(name)}
    if logits.identity is None:
        return identity.compact(identity.describe(logits))
    network = getattr(logits.function, "model", None)
    if network is None or not any(
        identity.has_foreign_code(layer) for layer in flattened(network)
    ):
        return dict(logits.identity)
    try:
        code = identity.digest(identity.describe(network))
    except identity.Unknown:
        return dict(logits.identity)  # The files are all that can be told.
    return logits.identity | {"network": code}


def count_classes(logits, example):
    """The number of a model's logits.

    Args:
        logits: a `Logits`.
        example: float array (1, ...), one example.

    Raises:
        ValueError: if the model does not take it, or returns something else
            than logits (1, classes), such as probabilities.
    """
    try:
        output = logits.function(tf.convert_to_tensor(example))
    except (TypeError, ValueError, tf.errors.OpError) as error:
        raise ValueError(
            f"model must take the data's images ({files.reason(error)}). "
            f"Received: images of shape {example.shape[1:]}"
        ) from error
    if isinstance(output, (dict, list, tuple)):
        raise ValueError(
            "model must return one tensor of logits. "
            f"Received: a {type(output).__name__} of {len(output)}"
        )
    output = tf.convert_to_tensor(output)
    shape = tuple(output.shape)
    if len(shape) != 2 or shape[1] < 2 or not output.dtype.is_floating:
        raise ValueError(
            "model must return logits (batch, classes), not labels. Received: "
            f"{output.dtype.name} of shape {shape} for one example"
        )
    check_ending(getattr(logits.function, "model", None))
    return shape[1]


def traceable(logits, example):
    """Whether `tf.function` can trace a model.

    Args:
        logits: a `Logits`.
        example: float array (1, ...), one example.
    """
    predict = tf.function(
        logits, jit_compile=logits.jit_compile, autograph=False
    )
    try:
        predict(tf.convert_to_tensor(example))
    except Exception:
        # Whatever a callable of the user's does, in NumPy or with `.numpy()`,
        # it worked eagerly when its outputs were counted.
        return False
    return True


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


def in_batches_of(size, function, x, output):
    """Calls a function that takes batches of one size on a batch of any size.

    The last part is filled up with its last example.

    Args:
        size: examples that the function takes; None is any number.
        function: a float tensor (size, ...) to a tensor (size, ...).
        x: float tensor (batch, ...).
        output: `tf.TensorSpec` of the function's result.

    Returns:
        A tensor (batch, ...).
    """
    if size is None or x.shape[0] == size:
        return function(x)
    count = tf.shape(x)[0]
    parts = (count + size - 1) // size
    # Not by a gather, whose gradient would be sparse.
    filling = tf.repeat(x[-1:], parts * size - count, axis=0)
    filled = tf.reshape(
        tf.concat([x, filling], 0),
        tf.concat([[parts, size], tf.shape(x)[1:]], 0),
    )
    filled = tf.ensure_shape(filled, [None, size, *x.shape[1:]])
    found = tf.map_fn(function, filled, fn_output_signature=output)
    found = tf.reshape(found, tf.concat([[-1], tf.shape(found)[2:]], 0))
    return tf.ensure_shape(found[:count], [x.shape[0], *output.shape[1:]])
