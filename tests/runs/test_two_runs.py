"""Two runs of one workdir: their locks, and the errors of the second."""

import json
import os
import shlex
import shutil
import sys
import threading

import pytest
from helpers import THREE_EPOCHS
from helpers import assert_same_run
from helpers import main
from helpers import snapshot
from interrupted_runs import positions

from tfsam.runs import workdirs
from tfsam.support import files

pytestmark = pytest.mark.usefixtures("tiny_network")


def test_what_another_host_writes_is_no_leftover(tmp_path, monkeypatch):
    """The process of another host has a number that may be free here."""
    monkeypatch.setattr("os.getpid", lambda: 4194305)  # Of no process.
    monkeypatch.setattr("socket.gethostname", lambda: "node-1.net")
    with files.replacing(tmp_path / "a-b.npz") as temporary:
        temporary.write_text("half")
        assert files.leftovers(tmp_path) == [temporary]
        monkeypatch.setattr("socket.gethostname", lambda: "node-2.net")
        assert files.leftovers(tmp_path) == []


def test_a_lock_says_who_holds_it(whole, tmp_path, capsys):
    workdir = tmp_path / "run"
    arguments = (*THREE_EPOCHS, f"--workdir={workdir}")
    with workdirs.locked(workdir):
        before = snapshot(workdir)
        assert main(*arguments)[0] == 2
        assert snapshot(workdir) == before
        assert [path.name for path in workdir.iterdir()] == ["lock"]
        held = json.loads((workdir / "lock").read_text())
    line = capsys.readouterr().err.splitlines()[-1]
    assert held["pid"] == os.getpid()
    assert held["command"] == shlex.join(sys.orig_argv)
    for part in (
        f"is in use by pid {os.getpid()} on host {held['host']} since "
        f"{held['since']}",
        f"Received: workdir={workdir}",
    ):
        assert part in line
    # The kernel's lock counts, not the file that it left.
    shutil.copytree(whole, workdir, dirs_exist_ok=True)
    assert main(*arguments)[0] == 0
    results = json.loads((workdir / "results.json").read_text())
    assert "lock" not in results["artifacts"]


def test_who_waits_for_a_folder_says_for_whom(tmp_path):
    said = []
    workdirs.wait_until_free(tmp_path / "run", said.append)
    with workdirs.locked(tmp_path / "run"):
        waiting = threading.Thread(
            target=workdirs.wait_until_free,
            args=(tmp_path / "run", said.append),
        )
        waiting.start()
        waiting.join(0.3)
        assert waiting.is_alive()
    waiting.join(30)
    assert not waiting.is_alive()
    (line,) = said
    assert line.startswith(f"waiting for pid {os.getpid()} on host ")
    assert line.endswith(f", who has {tmp_path / 'run'}")


@pytest.mark.parametrize("flags, code", [([], 0), (["--seed=1"], 2)])
def test_the_folder_is_looked_at_again_under_the_lock(
    whole, tmp_path, monkeypatch, capsys, flags, code
):
    """Another run may begin and end while this one loads its images."""
    workdir = tmp_path / "run"

    def agree(*_):
        shutil.copytree(whole, workdir)

    monkeypatch.setattr(workdirs, "agree", agree)
    found, output = main(*THREE_EPOCHS, *flags, f"--workdir={workdir}")
    assert found == code
    if code:
        assert "another configuration" in capsys.readouterr().err
    else:
        assert "holds this run, finished" in output
    assert_same_run(workdir, whole)
    assert positions(workdir) == positions(whole)
