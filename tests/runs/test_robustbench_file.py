"""The file of --robustbench: written at the end, again, or refused."""

import pytest
from helpers import accuracy
from helpers import assert_refused
from helpers import main
from helpers import network
from helpers import read_json
from helpers import robust
from helpers import settings_of

from tfsam.runs import stages

pytestmark = pytest.mark.usefixtures("short_runs")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "model.keras"
    network("standard").save(path)
    return path


def measured(**row):
    return {
        "natural": accuracy(9),
        "robust": [robust("autoattack", "linf", 0.1, 3, **row)],
        "warnings": [],
    }


def test_it_is_written_at_the_end_and_by_a_finished_run(
    model, tmp_path, monkeypatch
):
    monkeypatch.setattr(stages, "attack", lambda *_: measured(standard=True))
    file = tmp_path / "model_info" / "Me2027Mine.json"
    command = (
        *(f"--evaluate={model}", "--dataset=digits", "--limit_test=20"),
        *("--attacks=autoattack", f"--workdir={tmp_path / 'run'}"),
    )
    code, output = main(*command, f"--robustbench={file}")
    assert code == 0
    line = f"{file}: an entry of RobustBench; fill in link, name, authors"
    assert line in output
    assert line in (tmp_path / "run" / "log.txt").read_text()
    entry = read_json(file)
    assert (entry["clean_acc"], entry["autoattack_acc"]) == ("90.00", "30.00")
    file.unlink()
    code, output = main(*command, f"--robustbench={file}")
    assert code == 0 and line in output and "finished" in output
    assert read_json(file) == entry
    # Without the flag it is the same run, and nothing is written.
    file.unlink()
    code, output = main(*command)
    assert code == 0 and "RobustBench" not in output
    assert not file.exists()


def test_what_is_not_standard_is_refused_in_one_line(
    model, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(stages, "attack", lambda *_: measured(standard=False))
    file = tmp_path / "entry.json"
    command = (
        *(f"--evaluate={model}", "--dataset=digits", "--limit_test=20"),
        *("--attacks=autoattack", f"--workdir={tmp_path / 'run'}"),
    )
    code, _ = main(*command, f"--robustbench={file}")
    assert code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "needs a result of the standard AutoAttack" in line
    assert not file.exists()
    assert read_json(tmp_path / "run" / "results.json")["robust"]


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (["--robustbench=a.json", "--attacks=pgd"], ["attacks=pgd"]),
        (["--robustbench="], ["must name a file"]),
        (["--robustbench=."], ["must name a file", "robustbench=."]),
        (
            [
                *("--robustbench=a.json", "--attacks=autoattack"),
                *("--linf_epsilons=", "--l2_epsilons="),
            ],
            ["needs --linf_epsilons"],
        ),
        (
            [
                *("--robustbench=a.json", "--attacks=autoattack"),
                *("--evaluate=model.keras", "--shard=0/2"),
            ],
            ["needs all images", "shard=0/2"],
        ),
    ],
)
def test_an_entry_that_cannot_be_made_is_refused_first(capsys, flags, parts):
    assert_refused(capsys, *flags, parts=parts)


def test_the_file_is_no_part_of_the_run():
    flags = ("--attacks=autoattack", "--workdir=runs/x")
    made = settings_of(*flags, "--robustbench=~/entry.json")
    assert made.robustbench.name == "entry.json"
    assert "~" not in str(made.robustbench)
    assert made.config() == settings_of(*flags).config()
