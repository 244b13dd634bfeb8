"""The paper's first question, small: is SAM alone more robust than ST?

  python -m experiments.small_cifar10 --images=DIR --workdir=runs/small

trains ST, SAM (rho 0.1, 0.2, 0.4) and AT (l-inf 1/255) on a part of the images
of DIR (train/CLASS/*, test/CLASS/*), with the small network and the paper's
recipe but for the number of epochs, attacks each as the paper does, and prints
the table. Each row is a run of `tfsam.run`, whose command it prints too; the
same command again goes on where it was stopped. About an hour on two cores.
"""

import json
import pathlib
import sys

from absl import app
from absl import flags

from tfsam import run

_IMAGES = flags.DEFINE_string(
    "images", None, "Folder of images.", required=True
)
_WORKDIR = flags.DEFINE_string("workdir", "runs/small", "Folder of the runs.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of all runs.")

BUDGET = (
    "--preset=cifar10",
    "--network=preact_resnet8",
    "--epochs=12",
    "--limit_train=20000",
    "--limit_test=2000",
    "--attack_steps=10",
)

ROWS = {
    "st": ("--method=st",),
    "sam0.1": ("--method=sam", "--rho=0.1"),
    "sam0.2": ("--method=sam", "--rho=0.2"),
    "sam0.4": ("--method=sam", "--rho=0.4"),
    "at1": ("--method=at", "--epsilon=1/255"),
}


def row(flags_of_row, results):
    """A line of the table: accuracies in percent, with their intervals."""

    def cell(found):
        low, high = found["interval"]
        accuracy = 100 * found["accuracy"]
        return f"{accuracy:.1f} ({100 * low:.1f} to {100 * high:.1f})"

    cells = [cell(results["natural"]), *map(cell, results["robust"])]
    minutes = results["train"]["seconds"] / 60
    return (
        f"| `{' '.join(flags_of_row)}` | {' | '.join(cells)} | {minutes:.1f} |"
    )


def main(_):
    """Runs what is not finished, and prints the table."""
    lines = []
    for name, flags_of_row in ROWS.items():
        workdir = pathlib.Path(_WORKDIR.value) / name
        command = [
            *BUDGET,
            f"--dataset=folder:{_IMAGES.value}",
            f"--seed={_SEED.value}",
            *flags_of_row,
            f"--workdir={workdir}",
        ]
        print("python -m tfsam.run", *command, flush=True)
        code = run.main(command)
        if code:
            return code
        results = json.loads((workdir / "results.json").read_text())
        if not lines:
            names = [
                f"{r['norm']} {r['epsilon_text']}" for r in results["robust"]
            ]
            lines.append(
                f"| method | natural | {' | '.join(names)} | minutes |"
            )
            lines.append("|" + "---|" * (len(names) + 3))
        lines.append(row(flags_of_row, results))
    n = results["natural"]["n"]
    print(f"Accuracy in % on {n} test images (95 % interval):")
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    app.run(lambda argv: sys.exit(main(argv)))
