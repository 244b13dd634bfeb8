"""Temporary files of several processes in a folder."""

import os
import pathlib
import time

import pytest
from helpers import settings_of

from tfsam.runs import workdirs
from tfsam.support import files


@pytest.fixture
def inside(monkeypatch):
    """A function that moves this process into a container, as process 1.

    All containers have one host name.
    """
    stat = os.stat

    def enter(number):
        def in_container(path, *args, **kwargs):
            if path == "/proc/self/ns/pid":
                return os.stat_result([0, number, *[0] * 8])
            return stat(path, *args, **kwargs)

        monkeypatch.setattr("os.stat", in_container)
        monkeypatch.setattr("os.getpid", lambda: 1)
        monkeypatch.setattr("socket.gethostname", lambda: "training")

    return enter


@pytest.mark.skipif(
    not pathlib.Path("/proc/self/ns/pid").exists(), reason="Linux alone"
)
def test_containers_of_one_name_leave_each_other_s_files(inside, tmp_path):
    path = tmp_path / "model.keras"
    inside(1)
    with files.replacing(path) as first:
        first.write_text("first")
        inside(2)
        assert not files.leftovers(tmp_path)
        with files.replacing(path) as second:
            assert second != first
            second.write_text("second")
        assert path.read_text() == "second"
        inside(1)
        assert files.leftovers(tmp_path) == [first]  # Its own number, at last.
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


def test_two_writers_of_one_process_have_two_names(tmp_path):
    path = tmp_path / "file"
    with files.replacing(path) as one, files.replacing(path) as other:
        assert one != other
        one.write_text("one")
        other.write_text("other")
    assert path.read_text() == "one"


@pytest.mark.parametrize("name", [".1_elsewhere-a", ".1.0a1b2c3d_else.12-a"])
def test_what_nobody_wrote_for_a_week_is_left(tmp_path, name):
    path = tmp_path / name
    path.write_text("half")
    assert files.temporaries(tmp_path) == [path]
    assert not files.leftovers(tmp_path)
    days = time.time() - 8 * 24 * 3600
    os.utime(path, (days, days))
    assert files.leftovers(tmp_path) == [path]


def test_a_folder_of_temporary_files_alone_is_empty(tmp_path):
    settings = settings_of(f"--workdir={tmp_path}")
    (tmp_path / ".1_elsewhere-config.json").write_text("half")
    assert workdirs.finished(settings) is None
    (tmp_path / ".hidden-file").write_text("somebody's")
    with pytest.raises(ValueError, match="must be an empty folder"):
        workdirs.finished(settings)
