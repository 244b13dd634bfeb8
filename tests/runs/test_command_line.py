"""The command line before a run: help, mistyped flags, the banner."""

import importlib.metadata
import os
import re
import resource
import subprocess
import sys

import pytest
from helpers import main

from tfsam import registries
from tfsam.reports import page
from tfsam.runs import command_line
from tfsam.runs import flags
from tfsam.runs import help
from tfsam.runs import method_table

SCRIPT = "import sys\nfrom tfsam.run import main\nsys.exit(main())\n"


@pytest.fixture
def forms(tmp_path):
    """The ways in which the command is started, by name."""
    script = tmp_path / "bin" / "tfsam"
    script.parent.mkdir()
    script.write_text(SCRIPT)
    return {
        "module": [sys.executable, "-m", "tfsam.run"],
        "package": [sys.executable, "-m", "tfsam"],
        "script": [sys.executable, str(script)],
    }


@pytest.fixture
def without_tensorflow(tmp_path):
    """An environment in which the import of TensorFlow or Keras is an error."""
    folder = tmp_path / "traps"
    folder.mkdir()
    for name in ("tensorflow", "keras"):
        (folder / f"{name}.py").write_text(f"raise SystemExit('no {name}')")
    path = os.pathsep.join([str(folder), *filter(None, sys.path)])
    return os.environ | {"PYTHONPATH": path}


ANSWERED = [
    (["--help"], 0),
    (["--version"], 0),
    (["--metod=sam"], 2),
    (["--method=sma"], 2),
    (["--attacks=pdg"], 2),
    (["--epochs=0"], 2),
]


@pytest.mark.parametrize("form", ["module", "package", "script"])
def test_answers_come_without_tensorflow(forms, without_tensorflow, form):
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    # All of them in one form, an answer and an error in the others.
    answered = ANSWERED if form == "module" else ANSWERED[1:3]
    for arguments, code in answered:
        done = subprocess.run(
            [*forms[form], *arguments],
            env=without_tensorflow,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == code, done.stderr
        said = done.stderr if code else done.stdout
        assert said and "Traceback" not in said
    # A second of computing for each; a busy machine takes longer.
    used = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
    assert used < len(answered)


def test_the_traps_work(forms, without_tensorflow):
    done = subprocess.run(
        [*forms["module"], "--method=st"],
        env=without_tensorflow,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "no keras" in done.stderr


@pytest.mark.slow
def test_no_banner_comes_before_an_error(forms, tmp_path):
    """With `-m tfsam.run`, `test_bad_input_of_a_process` tests the same."""
    environment = {
        k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"
    }
    done = subprocess.run(
        [*forms["script"], "--method=st", "--rho=0.1"],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "tfsam: --method=st does not use --rho. Received: --rho=0.1\n"
    )


CRASH = """
import os
from tfsam.support import import_noise
with import_noise.silenced():
    os.write(2, b"WARNING: All log messages before absl::InitializeLog()\\n")
    os.write(2, b"I0000 00:00:1796076240.910169 16137 port.cc:153] oneDNN\\n")
    os.write(2, b"2026-01-01 10:00:00.123456: I core/cpu.cc:1] optimized\\n")
    os.write(2, b"To enable the following instructions: AVX2, rebuild\\n")
    os.write(2, b"E0000 00:00:1796076240.910169 16137 a.cc:1] an error\\n")
    os.write(2, b"not a line of a log\\nnot even ended")
    os.{end}
"""


@pytest.mark.parametrize("end", ["abort()", "getpid()"])
def test_no_error_is_lost_with_the_banner(forms, without_tensorflow, end):
    """Even if a crash follows."""
    environment = without_tensorflow.copy()
    environment.pop("TF_CPP_MIN_LOG_LEVEL", None)
    script = forms["script"][1]
    with open(script, "w") as file:
        file.write(CRASH.replace("{end}", end))
    done = subprocess.run(
        forms["script"], env=environment, capture_output=True, check=False
    )
    assert (done.returncode == 0) == (end == "getpid()")
    first, second, *rest = done.stderr.splitlines()
    assert first.endswith(b"an error")
    assert second == b"not a line of a log"
    assert rest[0].startswith(b"not even ended")


def test_help_is_grouped_and_shows_the_preset_s_values():
    text = help.answer(command_line.parse(["--help"]))
    places = [text.index(f"\n{group}:\n") for group in flags.GROUPS]
    assert places == sorted(places)
    assert max(map(len, text.splitlines())) < 80

    def defaults(*arguments):
        shown = help.answer(command_line.parse(["--help", *arguments]))
        return re.findall(r"Default:\s+(\S+)\.\s", shown)

    assert {"0.05,0.1", "0.1", "preact_resnet8"} <= {*defaults()}
    cifar = {"1/255,2/255", "16/255,32/255", "preact_resnet18"}
    assert cifar <= {*defaults("--preset=cifar10")}
    # The values of epsilon for digits do not apply to other data.
    other = {*defaults("--dataset=folder:x")}
    assert {"1/255,2/255", "preact_resnet8"} <= other
    assert "0.05,0.1" not in other


@pytest.mark.parametrize(
    "name, parts",
    [
        ("looksam", ["looksam: method", "every=5", "Liu et al., 2022"]),
        ("friendly_sam", ["friendly_sam: method", "decay=0.6", "Li et al."]),
        ("autoattack", ["autoattack: attack"]),
        ("trades", ["trades: method", "beta=6"]),
        ("preact_resnet8", ["network"]),
    ],
)
def test_help_of_a_part_shows_its_options(name, parts):
    code, output = main(f"--help={name}")
    assert code == 0
    for part in parts:
        assert part in output


@pytest.mark.parametrize("given", ["shifty", "SHIFTY:share=1", "Shifty"])
def test_help_shows_the_registered_spelling(monkeypatch, given):
    point = importlib.metadata.EntryPoint(
        "Shifty", "tfsam.attacks.gradient:FGSM", registries.ATTACKS.group
    )
    monkeypatch.setattr(
        importlib.metadata,
        "entry_points",
        lambda group: [point] if group == registries.ATTACKS.group else [],
    )
    code, output = main(f"--help={given}")
    assert code == 0
    assert output.startswith("Shifty: method\n")
    assert "\nShifty: attack of the package" in output


def test_help_of_an_unknown_part_suggests_another(capsys):
    code, _ = main("--help=loksam")
    assert code == 2
    assert "did you mean looksam" in capsys.readouterr().err


def test_the_methods_are_printed():
    code, output = main("--methods")
    assert code == 0
    assert output == method_table.table() + "\n"


@pytest.mark.parametrize(
    "argument, hint",
    [
        ("--epsilonn=1", "did you mean epsilon"),
        ("--method=looksm", "did you mean looksam"),
        ("--attacks=autoatack", "did you mean autoattack"),
        ("--network=preact_resnet9", "did you mean preact_resnet"),
        ("--perturb_weights=smm", "Received: perturb_weights=smm"),
        ("--method=looksm:every=3", "did you mean looksam"),
        ("--help looksam", "did you mean --help=looksam"),
    ],
)
def test_a_mistyped_name_has_a_suggestion(argument, hint, capsys):
    code, _ = main(*argument.split())
    assert code == 2
    assert hint in capsys.readouterr().err


def test_report_is_a_command(monkeypatch, capsys):
    monkeypatch.setattr(page, "write", lambda folders, path: len(folders))
    code, output = main("report", "a", "b", "--output=c.html")
    assert (code, output) == (0, "c.html: 2 runs\n")
    monkeypatch.undo()
    code, output = main("report", "/nowhere")
    assert (code, output) == (2, "")
    assert capsys.readouterr().err.startswith("report: ")


def test_a_reader_that_has_ended_is_no_error():
    """`tfsam --help | head -1` prints no traceback."""
    command = f"{sys.executable} -m tfsam --help | head -1"
    done = subprocess.run(
        command,
        shell=True,  # The pipe is the point.
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("Train, attack")
    assert done.stderr == ""
