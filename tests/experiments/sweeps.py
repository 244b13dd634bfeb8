"""The sweeps of tests: budgets, a small sweep on digits, and commands."""

from experiments import command
from experiments import sweep_presets
from experiments import sweep_results

BUDGETS = [column[1:] for column in sweep_results.COLUMNS[1:]]

# A cell that is trained and attacked in seconds.
ON_DIGITS = sweep_presets.Preset(
    "digits",
    {"st": 1},
    training=(
        *("--epochs=1", "--limit_train=60", "--validate_every=1"),
        "--validation_images=20",
    ),
    testing=(
        *("--limit_test=20", "--attack_steps=1"),
        *("--linf_epsilons=1/255,2/255", "--l2_epsilons=16/255,32/255"),
    ),
    autoattack=(
        *("--attacks=pgd,fgsm", "--attack_steps=1"),
        *("--limit_test=30", "--linf_epsilons=0.1", "--l2_epsilons=0.5"),
    ),
)


def called(module, rows, workdir, *arguments):
    """Returns the exit code of a command on some rows of a sweep."""
    given = [f"--rows={','.join(rows)}", f"--workdir={workdir}", *arguments]
    return command.run(module.main, module.FLAGS, given)


def assert_cells_are_missed(module, workdir, capsys):
    """Asserts that a command refuses a folder without cells, in one line."""
    assert called(module, ["st"], workdir) == 2
    (line,) = capsys.readouterr().err.splitlines()
    name = module.__name__.rpartition(".")[2]
    assert line.startswith(f"{name}: workdir must hold finished cells")
