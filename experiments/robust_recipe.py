"""The recipe of the preset cifar10-robust against plain TRADES, on two cores.

  python -m experiments.robust_recipe --images=DIR --workdir=runs/recipe

All rows are trained by TRADES at l-inf 8/255 with ten steps of 2/255 and
beta 5, on 10,000 shifted and flipped images, with as many steps of as many
passes; standard AutoAttack attacks 500 test images. The rows:

  trades     plain: the paper's learning rates, the network of the last epoch
  recipe     SiLU, label smoothing, one cycle of learning rates, Nesterov's
             momentum, no decay of one-dimensional weights, and the moving
             average of the weights, of its most robust epoch
  extra      the recipe, and 70 % of each batch are other training images of
             DIR, which stand for the synthetic images that the recipe mixes in

In all, the preset is cut to `preact_resnet8` instead of a WideResNet, batches
of 128 instead of 512 (at learning rate 0.1 instead of 0.2), 10,000 images and
15 epochs. The same command resumes, and makes WORKDIR/recipe.md when all runs
are finished. `--table` makes it alone.
"""

import pathlib
import sys

from absl import flags

from experiments import command
from experiments import sweep_cells
from experiments import sweep_results
from experiments import sweep_runs
from experiments import tables
from tfsam.support import files

FLAGS = flags.FlagValues()
_IMAGES = flags.DEFINE_string(
    "images", None, "The folder of the images of CIFAR-10.", FLAGS
)
_WORKDIR = flags.DEFINE_string("workdir", "runs/recipe", "Folder.", FLAGS)
_KEEP = flags.DEFINE_string(
    "keep", None, "Folder for copies of the finished runs' results.", FLAGS
)
_TABLE = flags.DEFINE_boolean(
    "table", False, "Make the table only; run nothing.", FLAGS
)

_CUT = (
    *("--batch_size=128", "--learning_rate=0.1", "--epochs=15", "--seed=0"),
    *("--limit_train=10500", "--validation_images=500", "--validate_every=3"),
    *("--limit_test=500", "--attacks=autoattack"),
    *("--linf_epsilons=8/255", "--l2_epsilons="),
)
_PLAIN = (
    *("--preset=cifar10", "--method=trades", "--network=preact_resnet8"),
    *("--epsilon=8/255", "--steps=10", "--step_size=2/255", "--beta=5"),
)
_RECIPE = (
    "--preset=cifar10-robust",
    "--network=preact_resnet8:activation=silu",
)
HEADS = (
    *("row", "natural", "AutoAttack l-inf 8/255", "95 % interval", "images"),
    *("passes a step", "training, minutes"),
)


def runs(images):
    """Returns the flags of `tfsam.run` for each row, a dict.

    Args:
        images: the folder of the images.
    """
    dataset = f"folder:{images}"
    both = (f"--dataset={dataset}", *_CUT)
    return {
        "trades": (*_PLAIN, *both),
        "recipe": (*_RECIPE, *both),
        "extra": (*_RECIPE, *both, f"--mix={dataset}", "--mix_fraction=0.7"),
    }


def main():
    """Runs the unfinished rows and makes the table."""
    workdir = pathlib.Path(_WORKDIR.value)
    if not _TABLE.value:
        if _IMAGES.value is None:
            raise ValueError(
                "images must be the folder of the images of CIFAR-10. "
                "Received: images=None"
            )
        for row, arguments in runs(_IMAGES.value).items():
            if code := sweep_runs.run(workdir / row, arguments):
                return code
    if _KEEP.value:
        workdir = pathlib.Path(_KEEP.value)
        sweep_runs.keep(pathlib.Path(_WORKDIR.value), workdir)
    text = table(workdir)
    with files.replacing(workdir / "recipe.md") as temporary:
        temporary.write_text(text + "\n")
    print(text)
    return 0


def table(workdir):
    """Returns the table of the finished rows, as Markdown.

    Args:
        workdir: folder of the runs.

    Raises:
        ValueError: if a row is not finished.
    """
    lines = []
    for row in runs(""):
        found = sweep_cells.read(workdir / row)
        if found is None:
            raise ValueError(
                "all rows must be finished; run the command without --table. "
                f"Received: workdir={workdir} without {row}/results.json"
            )
        (attacked,) = found["robust"]
        low, high = (f"{100 * end:.1f}" for end in attacked["interval"])
        minutes = _minutes(sweep_results.epoch_seconds(workdir / row))
        lines.append(
            [
                row,
                f"{100 * found['natural']['accuracy']:.1f}",
                f"{100 * attacked['accuracy']:.1f}",
                *(f"{low} to {high}", attacked["n"]),
                *(f"{found['train']['passes']:.2f}", f"{minutes:.1f}"),
            ]
        )
    return tables.markdown(HEADS, lines)


def _minutes(seconds):
    """Returns the minutes of training, if all epochs were the fastest."""
    return len(seconds) * min(seconds) / 60


if __name__ == "__main__":
    sys.exit(command.run(main, FLAGS))
