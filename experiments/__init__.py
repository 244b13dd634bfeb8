"""Commands that measure, each a module that prints its results."""
