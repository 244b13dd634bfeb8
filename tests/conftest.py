"""Starts what tests need where tests run."""


def pytest_configure(config):
    """Loads the fixtures, and TensorFlow with them, to run tests.

    The process that only deals tests out to others is quicker without.
    """
    if config.option.dist == "no":
        config.pluginmanager.import_plugin("shared_fixtures")
