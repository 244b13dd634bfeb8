"""Optimizers of Keras's, with a rule for the weights that do not decay.

`excluding` gives an optimizer of Keras's the argument `decay_exclude` of
`tfsam.SGD`, which Keras saves with it.
"""

import inspect
from collections.abc import Mapping
from typing import Any

import keras

from tfsam.training.decay_rules import FLAG_NAMES
from tfsam.training.decay_rules import exclude
from tfsam.training.decay_rules import pattern


def excluding(base: Any) -> Any:
    """Makes a subclass of an optimizer that has the argument `decay_exclude`.

    Keras forgets the weights of `exclude_from_weight_decay` when it saves an
    optimizer; a rule is saved.

    Args:
        base: A class of `keras.optimizers`.

    Returns:
        The subclass, which Keras saves as a class of tfsam.

    Example:
        >>> import keras
        >>> optimizer = excluding(keras.optimizers.AdamW)(
        ...     1e-3, decay_exclude="one_dimensional"
        ... )
        >>> optimizer.get_config()["decay_exclude"]
        'one_dimensional'
    """

    class Excluding(base):
        flag_names: Mapping[str, str] = FLAG_NAMES

        def __init__(
            self, *args: Any, decay_exclude: str = "none", **kwargs: Any
        ) -> None:
            super().__init__(*args, **kwargs)
            pattern(decay_exclude)
            self.decay_exclude = decay_exclude

        def build(self, variables: list[Any]) -> None:
            """Creates the optimizer's variables; see `decay_exclude`."""
            exclude(self, variables)
            super().build(variables)

        def get_config(self) -> dict[str, Any]:
            """Returns the constructor's arguments."""
            config: dict[str, Any] = super().get_config()
            return config | {"decay_exclude": self.decay_exclude}

    own = inspect.signature(Excluding).parameters["decay_exclude"]
    listed = [
        p
        for p in inspect.signature(base).parameters.values()
        if p.kind is not p.VAR_KEYWORD
    ]
    Excluding.__signature__ = inspect.Signature([*listed, own])
    Excluding.__name__ = Excluding.__qualname__ = base.__name__
    Excluding.__doc__ = (
        f"`keras.optimizers.{base.__name__}`, with the argument "
        "`decay_exclude`."
    )
    return keras.saving.register_keras_serializable("tfsam")(Excluding)


Adadelta = excluding(keras.optimizers.Adadelta)
Adafactor = excluding(keras.optimizers.Adafactor)
Adagrad = excluding(keras.optimizers.Adagrad)
Adam = excluding(keras.optimizers.Adam)
Adamax = excluding(keras.optimizers.Adamax)
AdamW = excluding(keras.optimizers.AdamW)
Ftrl = excluding(keras.optimizers.Ftrl)
Lamb = excluding(keras.optimizers.Lamb)
Lion = excluding(keras.optimizers.Lion)
Muon = excluding(keras.optimizers.Muon)
Nadam = excluding(keras.optimizers.Nadam)
RMSprop = excluding(keras.optimizers.RMSprop)
