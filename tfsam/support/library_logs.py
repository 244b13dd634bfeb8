"""The logs of TensorFlow and absl while a model of somebody else is read.

They warn of what a file lacks for training and of variables of TensorFlow 1, a
line each time. Nothing of it concerns a model that is evaluated.
"""

import contextlib
import logging
from collections.abc import Iterator

_NAMES = ("absl", "tensorflow")


@contextlib.contextmanager
def errors_only() -> Iterator[None]:
    """Keeps warnings out of the logs of TensorFlow and absl in the context.

    Example:
        >>> with errors_only():
        ...     logging.getLogger("tensorflow").warning("not shown")
    """
    loggers = [logging.getLogger(name) for name in _NAMES]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
