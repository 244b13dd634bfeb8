"""The end of a run, a folder that holds another run, and --overwrite."""

import pytest
from helpers import main
from helpers import settings_of

from tfsam.runs import log_lines
from tfsam.runs import stages
from tfsam.runs import workdirs
from tfsam.support import files

ACCURACY = {"accuracy": 0.5, "n": 20, "interval": [0.2, 0.8]}
ROW = ACCURACY | {
    "attack": "pgd",
    "norm": "linf",
    "epsilon": 0.1,
    "epsilon_text": "0.1",
}
FAILED = ROW | {"accuracy": None, "interval": None, "error": "no\nmemory"}


def results(*rows):
    return {
        "schema": 1,
        "natural": ACCURACY,
        "robust": list(rows),
        "warnings": [],
        "artifacts": ["model.keras", "robustness.png"],
    }


@pytest.fixture
def ends(monkeypatch):
    """A function: the stages of a run end with these rows."""

    def end(*rows):
        def run(settings, inputs, log, stop):
            return results(*rows)

        monkeypatch.setattr(stages, "run", run)

    return end


def test_the_end_says_what_was_made_and_what_the_numbers_mean(ends, tmp_path):
    ends(ROW)
    code, output = main("--method=at", f"--workdir={tmp_path / 'a run'}")
    assert code == 0
    for part in (
        "| clean |",
        "Trained by at: pgd, epsilon 0.1, norm linf, steps 5",
        "percentage of the 20 test images",
        f"Made in {tmp_path / 'a run'}: model.keras (the network)",
        f"Report: tfsam report '{tmp_path / 'a run'}'",
    ):
        assert part in output
    assert output.splitlines()[-1].startswith("done: ")


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (("--method=st",), "Trained by st."),
        (
            ("--perturb_weights=asam:rho=1.0",),
            "Trained with asam:rho=1.0, eta 0.01",
        ),
        (("--perturb_weights=none",), "Trained with no perturbation."),
    ],
)
def test_the_method_is_not_named_if_its_part_was_replaced(
    flags, line, ends, tmp_path
):
    ends(ROW)
    _, output = main(*flags, f"--workdir={tmp_path / 'run'}")
    assert line in output


def test_a_failed_attack_is_exit_code_6_and_said_last(ends, tmp_path):
    ends(ROW, FAILED)
    code, output = main(f"--workdir={tmp_path}")
    assert code == 6
    last = output.splitlines()[-1]
    assert last.startswith("failed: pgd: no memory")
    assert last in (tmp_path / "log.txt").read_text()
    assert log_lines.failure(results(ROW)) is None


def held(tmp_path, *arguments):
    settings = settings_of(*arguments, f"--workdir={tmp_path}")
    workdirs.claim(settings)
    return settings


def test_another_setting_is_named_with_both_values(tmp_path, capsys):
    held(tmp_path, "--method=at", "--epsilon=4/255")
    code, _ = main("--method=at", "--epsilon=8/255", f"--workdir={tmp_path}")
    assert code == 2
    line = capsys.readouterr().err
    assert "epsilon is 8/255, was 4/255" in line
    assert "--overwrite" in line
    assert "Received: epsilon=8/255" in line


def test_overwrite_removes_what_the_run_made_and_nothing_else(ends, tmp_path):
    ends(ROW)
    settings = held(tmp_path, "--rho=0.1")
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "old").write_text("old")
    (tmp_path / "history.csv").write_text("old")
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "other").mkdir()
    code, _ = main("--rho=0.3", f"--workdir={tmp_path}", "--overwrite")
    assert code == 0
    assert {path.name for path in tmp_path.iterdir()} == {
        *("notes.txt", "other", "config.json", "log.txt", "lock")
    }
    config = files.read_json(tmp_path / "config.json")
    assert config["rho"] == 0.3
    assert "overwrite" not in config
    assert settings.training.rho == 0.1


def test_overwrite_of_other_files_is_refused(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    code, _ = main(f"--workdir={tmp_path}", "--overwrite")
    assert code == 2
    assert "must be an empty folder" in capsys.readouterr().err
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_overwrite_keeps_the_model_that_is_evaluated(tmp_path, capsys):
    held(tmp_path)
    model = tmp_path / "model.keras"
    model.write_text("a model")
    code, _ = main(
        f"--evaluate={model}", f"--workdir={tmp_path}", "--overwrite"
    )
    assert code == 2
    assert "and with it the model" in capsys.readouterr().err
    assert model.read_text() == "a model"


def test_overwrite_starts_where_nothing_is(ends, tmp_path):
    ends(ROW)
    workdir = tmp_path / "new"
    assert main(f"--workdir={workdir}", "--overwrite")[0] == 0
    assert (workdir / "config.json").exists()
