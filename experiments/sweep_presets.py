"""The presets of sweeps: their rows and the flags of `tfsam.run`.

A row is a method with its settings, by a name that `sweep_rows` reads.
"""

import dataclasses

from tfsam.support.validators import check_choice

# The paper's figures by row, in the order of `sweep_results.COLUMNS`.
PAPER = {
    "st": (76.9, 13.6, 1.7, 44.5, 21.2),
    "sam-0.1": (78.0, 19.6, 3.0, 51.5, 27.2),
    "sam-0.2": (78.5, 23.1, 4.2, 54.2, 31.3),
    "sam-0.4": (78.7, 28.3, 6.5, 57.0, 36.2),
    "at-linf-1": (73.1, 60.4, 46.6, 67.4, 61.5),
    "at-linf-2": (70.1, 60.3, 50.6, 65.7, 60.6),
    "at-linf-4": (66.2, 59.3, 52.0, 62.8, 58.9),
    "at-linf-8": (60.4, 55.1, 50.4, 57.0, 54.3),
    "at-l2-16": (74.8, 52.8, 31.4, 66.3, 57.7),
    "at-l2-32": (73.2, 57.4, 40.6, 67.1, 61.0),
    "at-l2-64": (70.7, 58.1, 45.9, 66.1, 60.7),
    "at-l2-128": (67.4, 58.2, 48.7, 63.9, 60.4),
}


@dataclasses.dataclass(frozen=True)
class Preset:
    """A sweep.

    Attributes:
        images: `--preset` of `tfsam.run`.
        rows: a dict from row to its number of seeds.
        training: more flags of `tfsam.run`, for training.
        testing: for the attack by PGD.
        autoattack: for AutoAttack, and for attacks beside it.
        attacked_seeds: number of a row's seeds that AutoAttack attacks.
        paper: the paper's figures, where the data set is the paper's.
        held_out: whether the tables have the accuracies on training images
            that were held out, by which settings are chosen.
    """

    images: str
    rows: dict[str, int]
    training: tuple[str, ...] = ()
    testing: tuple[str, ...] = ()
    autoattack: tuple[str, ...] = ()
    attacked_seeds: int = 3
    paper: dict[str, tuple[float, ...]] = dataclasses.field(
        default_factory=dict
    )
    held_out: bool = False

    def seeds(self, row):
        """Returns a row's seeds; of an unknown row, the fewest of any row."""
        return range(self.rows.get(row, min(self.rows.values())))


# For two cores: 10,000 images to train on, without augmentation, so that
# standard training fits them, and 500 to measure robustness in training.
_SMALL = (
    *("--network=preact_resnet8", "--noaugment", "--limit_train=10500"),
    "--validation_images=500",
)
# Radii of the methods after SAM: once, twice and four times the default.
_RADII = {
    "vasso": (0.2, 0.4, 0.8),
    "msam": (0.3, 0.6, 1.2),
    "wsam": (0.05, 0.1, 0.2),
    "friendly_sam": (0.2, 0.4, 0.8),
    "sam_on": (0.5, 1, 2),
}


PRESETS = {
    "cifar100": Preset("cifar100", dict.fromkeys(PAPER, 3), paper=PAPER),
    "cifar10": Preset("cifar10", dict.fromkeys(PAPER, 3)),
    "small": Preset(
        "cifar10",
        {
            **dict.fromkeys(("st", "sam-0.1", "sam-0.2", "sam-0.4"), 3),
            **dict.fromkeys(
                (
                    *("at-linf-1", "at-linf-4", "at-l2-32", "at-l2-128"),
                    *("looksam:rho=0.2", "looksam:rho=0.2:alpha=0.3"),
                    *("asam", "esam:rho=0.2", "fgsm_at:epsilon=1/255"),
                    "awp:epsilon=4/255",
                ),
                1,
            ),
        },
        training=(*_SMALL, "--epochs=30", "--validate_every=3"),
        testing=("--limit_test=5000",),
        autoattack=(
            *("--limit_test=200", "--linf_epsilons=1/255"),
            "--l2_epsilons=16/255",
        ),
        attacked_seeds=1,
    ),
    # A third of the epochs of "small", to choose radii for it: PGD-10 at l-inf
    # 1/255 on the held-out images. A run ends with an attack on test images;
    # this one is short, and nothing is chosen by it.
    "small_radii": Preset(
        "cifar10",
        {
            f"{method}:rho={rho}": 1
            for method, radii in _RADII.items()
            for rho in radii
        },
        training=(*_SMALL, "--epochs=10", "--validate_every=10"),
        testing=(
            *("--attacks=fgsm", "--limit_test=100", "--linf_epsilons=1/255"),
            "--l2_epsilons=",
        ),
        attacked_seeds=0,
        held_out=True,
    ),
    # A first try, in which standard training does not fit the images.
    "augmented": Preset(
        "cifar10",
        {
            **dict.fromkeys(("st", "sam-0.1", "sam-0.2", "sam-0.4"), 1),
            "at:epsilon=1/255": 1,
        },
        training=(
            *("--network=preact_resnet8", "--epochs=12"),
            "--limit_train=20000",
        ),
        testing=("--limit_test=2000", "--attack_steps=10"),
        attacked_seeds=0,
    ),
    # The paper's data set, for two cores: a network that fits 20,000 images in
    # standard training without augmentation.
    "small100": Preset(
        "cifar100",
        {
            **dict.fromkeys(("st", "sam-0.2"), 2),
            **dict.fromkeys(
                (
                    *("sam-0.1", "sam-0.4", "at-linf-1", "at-linf-4"),
                    *("at-l2-16", "at-l2-128", "fgsm_at:epsilon=1/255"),
                    *("friendly_sam", "msam"),
                    # The attack of at-linf-1 in training.
                    "trades:epsilon=1/255:steps=5:step_size=1/510",
                ),
                1,
            ),
        },
        training=(
            *("--network=preact_resnet8:width=32", "--epochs=20"),
            *("--noaugment", "--limit_train=20500"),
            *("--validation_images=500", "--validate_every=5"),
        ),
        autoattack=(
            *("--attacks=autoattack,malt", "--limit_test=200"),
            *("--linf_epsilons=1/255", "--l2_epsilons=16/255"),
        ),
        attacked_seeds=1,
        paper=PAPER,
    ),
    # Networks for these images, to compare their fit and the time of epochs and
    # attacks: at this epsilon MALT breaks almost nothing, and takes its full
    # time.
    "pilot100": Preset(
        "cifar100",
        {
            f"st:network={network}": 1
            for network in (
                *("preact_resnet8:width=16", "preact_resnet8:width=32"),
                *("preact_resnet18:width=16", "preact_resnet8:width=64"),
            )
        },
        training=("--epochs=20", "--noaugment", "--limit_train=20000"),
        testing=("--limit_test=5000",),
        autoattack=(
            *("--attacks=malt", "--limit_test=100", "--l2_epsilons="),
            "--linf_epsilons=1/2550",
        ),
        attacked_seeds=1,
    ),
}


def preset(name):
    """Returns the sweep of a name; raises ValueError if there is none.

    Args:
        name: a key of `PRESETS`.
    """
    return PRESETS[check_choice("preset", name, PRESETS)]
