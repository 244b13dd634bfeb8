"""Rules of this house for its tests."""

import collections
import pathlib


def test_files_of_tests_have_names_of_their_own():
    """Pytest would import the first of two files of one name for both."""
    paths = pathlib.Path(__file__).parent.rglob("test_*.py")
    names = collections.Counter(path.name for path in paths)
    assert len(names) > 1
    assert [name for name, count in names.items() if count > 1] == []
