"""Sets up the processes that run tests."""


def pytest_configure(config):
    """Loads the fixtures, and TensorFlow with them, to run tests.

    The process that distributes tests to others is quicker without them.
    """
    if config.option.dist == "no":
        config.pluginmanager.import_plugin("shared_fixtures")
