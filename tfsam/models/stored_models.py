"""Models between the steps of loading: as stored, and as classifiers.

A file is read as a `Stored`. Its ending is removed, which makes a `Classifier`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stored:
    """A model as a file holds it, before anything is changed.

    Attributes:
        model: a `keras.Model`, a model of `tf_keras`, or the result of
            `tf.saved_model.load`.
        format: "keras", "hdf5", "saved_model", or "memory" for a model that
            comes from no file.
        reader: the library that read it: "keras", "tf_keras" or "tensorflow".
        written_by: the library that wrote it with its version, such as
            "Keras 2.4.0", or None.
        notes: sentences about the reading, such as a mended configuration.
        sha256: checksum of the file, or None.
    """

    model: Any
    format: str
    reader: str
    written_by: str | None = None
    notes: tuple[str, ...] = ()
    sha256: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classifier:
    """A model as a function from its own inputs to logits.

    Attributes:
        function: a `keras.Model`, or a callable, from inputs (batch, ...) to
            logits (batch, classes).
        outputs: a callable from the same inputs to the outputs of the stored
            model, to check the logits against.
        logits: "exact" if the model returned logits, "removed_ending" if its
            softmax or sigmoid was removed, or "log_probabilities".
        ends_in: "logits", "softmax", "sigmoid" or "unknown".
        input_shape: shape of an example, with None for free sizes.
        input_dtype: name of the dtype of the stored model's input.
        output_names: names of the outputs that the model offers.
        output: name of the output that was chosen.
        notes: sentences about the changes that were made.
    """

    function: Callable[..., Any]
    outputs: Callable[..., Any]
    logits: str
    ends_in: str
    input_shape: tuple[int | None, ...]
    input_dtype: str
    output_names: tuple[str, ...]
    output: str
    notes: tuple[str, ...] = ()
