"""Objects that are their constructor's arguments: how Keras saves them."""

import inspect


class Configurable:
    """Keeps each argument of `__init__` as an attribute of the same name.

    So it can be shown, and saved within a Keras model and loaded again.
    """

    def get_config(self):
        """The constructor's arguments, so that a saved model can be loaded."""
        names = inspect.signature(type(self)).parameters
        return {name: getattr(self, name) for name in names}

    @classmethod
    def from_config(cls, config):
        """Builds the object that `get_config` described."""
        return cls(**config)

    def __repr__(self):
        config = self.get_config()
        arguments = ", ".join(f"{k}={v!r}" for k, v in config.items())
        return f"{type(self).__name__}({arguments})"
