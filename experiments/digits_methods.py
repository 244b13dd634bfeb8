"""Every method on the digits, side by side, with equal numbers of gradients.

  python -m experiments.digits_methods --workdir=runs/digits_methods

trains each method of the table with the digits preset, methods with an attack
at l-inf 0.05. Each method gets as many epochs as use the same number of
gradients (of a whole batch, with respect to weights or pixels) as --epochs of
standard training. PGD-10 attacks the whole test part at two epsilons in l-inf
and l2, AutoAttack 100 images of it at one epsilon each. The command prints a
Markdown table, and resumes where it stopped.
"""

import json
import pathlib
import sys

from absl import flags

from experiments import command
from tfsam import run
from tfsam.runs import methods

FLAGS = flags.FlagValues()
_WORKDIR = flags.DEFINE_string(
    "workdir",
    "runs/digits_methods",
    "Folder of the results.",
    flag_values=FLAGS,
)
_EPOCHS = flags.DEFINE_integer(
    "epochs", 120, "Epochs of standard training.", flag_values=FLAGS
)
_METHODS = flags.DEFINE_list(
    "methods", None, "Rows of the table; all by default.", flag_values=FLAGS
)

# Rows with another name than their method.
_VARIANTS = {
    "ssam_f": ("--method=ssam", "--mask=fisher"),
    "ssam_d": ("--method=ssam", "--mask=dynamic"),
}

# Gradients per step, of whole batches.
_GRADIENTS = {
    "st": 1,
    "ema": 1,
    "swa": 1,
    "entropy_sgd": 1,
    "msam": 1,
    "looksam": 1.2,
    "esam": 1.5,
    "fgsm_at": 2,
    "nfgsm_at": 2,
    "free_at": 8,
    "at": 6,
    "at_sam": 7,
    "trades": 12,
    "mart": 12,
    "ikl": 12,
    "score": 12,
    "awp": 12,
}
_PGD = ("--attacks=pgd", "--linf_epsilons=0.05,0.1", "--l2_epsilons=0.25,0.5")
_AUTOATTACK = (
    *("--attacks=autoattack", "--limit_test=100"),
    *("--linf_epsilons=0.05", "--l2_epsilons=0.25"),
)


def done(workdir, *arguments):
    """Runs `tfsam.run`, or resumes it, and returns its results."""
    code = run.main([*arguments, f"--workdir={workdir}"])
    if code:
        raise SystemExit(code)
    return json.loads((workdir / "results.json").read_text())


def measured(name, folder):
    """Returns the results of a method's run, and of AutoAttack on it."""
    epochs = round(_EPOCHS.value / _GRADIENTS.get(name, 2))
    row = methods.methods().get(name)
    attacked = ("--epsilon=0.05",) if row and row.perturb_inputs else ()
    trained = done(
        folder / name,
        *_VARIANTS.get(name, [f"--method={name}"]),
        f"--epochs={epochs}",
        *attacked,
        *_PGD,
    )
    attacked = done(
        folder / f"{name}-autoattack",
        f"--evaluate={folder / name / 'model.keras'}",
        *_AUTOATTACK,
    )
    return trained, attacked


def line(name, trained, attacked, base):
    """Returns a row; `base` is the time of a step of standard training."""
    accuracies = [
        trained["natural"]["accuracy"],
        *(row["accuracy"] for row in trained["robust"]),
        *(row["accuracy"] for row in attacked["robust"]),
    ]
    numbers = " | ".join(f"{100 * a:.1f}" for a in accuracies)
    training = trained["train"]
    return (
        f"| {name} | {training['epochs']} | {numbers} "
        f"| {training['step_seconds_median'] / base:.2f} "
        f"| {training['seconds']:.0f} |"
    )


def main():
    """Prints the table."""
    folder = pathlib.Path(_WORKDIR.value)
    names = _METHODS.value or [
        *(name for name in methods.methods() if name != "ssam"),
        *_VARIANTS,
    ]
    results = {name: measured(name, folder) for name in names}
    base = results["st"][0]["train"]["step_seconds_median"]
    print(
        "| method | epochs | natural | PGD l-inf 0.05 | 0.1 | PGD l2 0.25 "
        "| 0.5 | AA l-inf 0.05 | AA l2 0.25 | step, st = 1 | seconds |"
    )
    print("|---" * 11 + "|")
    for name, (trained, attacked) in results.items():
        print(line(name, trained, attacked, base))


if __name__ == "__main__":
    sys.exit(command.run(main, FLAGS))
