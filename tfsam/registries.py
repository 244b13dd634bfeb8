"""Registries of the parts that a training run or an evaluation is made of.

Each registry holds tfsam's own parts and those that installed packages name in
an entry-point group. A part is imported when it is first needed, and importing
this module imports none. See `tfsam.support.registry.Registry` for the methods
of a registry.

To add a part, write it in a package of your own and name it in the package's
metadata:

    [project.entry-points."tfsam.weights"]
    theirs = "their_package:TheirPerturbation"

The name is then known to the command line and to `get` in Python, and so are
the arguments of the constructor: `--perturb_weights=theirs:strength=2`.
"""

import pathlib
import re

from tfsam.support import files
from tfsam.support.registry import Registry
from tfsam.support.suggestions import did_you_mean

ATTACKS = Registry(
    "attack",
    "tfsam.attacks",
    {
        "apgd_ce": "tfsam.attacks.autoattack.apgd:apgd_ce",
        "apgd_dlr": "tfsam.attacks.autoattack.apgd:apgd_dlr",
        "apgd_t": "tfsam.attacks.autoattack.apgd:apgd_t",
        "autoattack": "tfsam.attacks.autoattack:AutoAttack",
        "autoattack_plus": "tfsam.attacks.autoattack.versions:AutoAttackPlus",
        "autoattack_rand": "tfsam.attacks.autoattack.versions:AutoAttackRand",
        "fab": "tfsam.attacks.autoattack.fab_untargeted:FAB",
        "fab_t": "tfsam.attacks.autoattack.fab:FABT",
        "fgsm": "tfsam.attacks.gradient:FGSM",
        "fgsm_rs": "tfsam.attacks.gradient:fgsm_rs",
        "fmn": "tfsam.attacks.minimum_norm:FMN",
        "free": "tfsam.attacks.free:FreeAT",
        "malt": "tfsam.attacks.malt:MALT",
        "nfgsm": "tfsam.attacks.nfgsm:NFGSM",
        "noise_l1": "tfsam.attacks.noise:NoiseL1",
        "noise_l2": "tfsam.attacks.noise:NoiseL2",
        "noise_linf": "tfsam.attacks.noise:NoiseLinf",
        "pgd": "tfsam.attacks.gradient:PGD",
        "pgd_cw": "tfsam.attacks.gradient:pgd_cw",
        "pgd_dlr": "tfsam.attacks.gradient:pgd_dlr",
        "pgd_kl": "tfsam.attacks.gradient:pgd_kl",
        "pgd_squared": "tfsam.attacks.gradient:pgd_squared",
        "pgd_t": "tfsam.attacks.gradient:pgd_t",
        "square": "tfsam.attacks.autoattack.square:Square",
    },
    base="tfsam.attacks.base:Attack",
    argument="attack",
)

WEIGHTS = Registry(
    "weight perturbation",
    "tfsam.weights",
    {
        "asam": "tfsam.weights.sam:ASAM",
        "awp": "tfsam.weights.sam:AWP",
        "esam": "tfsam.weights.esam:ESAM",
        "friendly_sam": "tfsam.weights.friendly_sam:FriendlySAM",
        "fsam": "tfsam.weights.sam:FSAM",
        "gsam": "tfsam.weights.gsam:GSAM",
        "looksam": "tfsam.weights.looksam:LookSAM",
        "msam": "tfsam.weights.msam:MSAM",
        "sam": "tfsam.weights.sam:SAM",
        "ssam": "tfsam.weights.ssam:SSAM",
        "vasso": "tfsam.weights.vasso:VaSSO",
        "wsam": "tfsam.weights.wsam:WSAM",
    },
    base="tfsam.weights.base:WeightPerturbation",
)

OBJECTIVES = Registry(
    "objective",
    "tfsam.objectives",
    {
        "ikl": "tfsam.training.ikl:IKL",
        "mart": "tfsam.training.objectives:MART",
        "score": "tfsam.training.score:SCORE",
        "trades": "tfsam.training.objectives:TRADES",
    },
    base="tfsam.training.objectives:Objective",
)

OPTIMIZERS = Registry(
    "optimizer",
    "tfsam.optimizers",
    {
        "adadelta": "tfsam.training.keras_optimizers:Adadelta",
        "adafactor": "tfsam.training.keras_optimizers:Adafactor",
        "adagrad": "tfsam.training.keras_optimizers:Adagrad",
        "adam": "tfsam.training.keras_optimizers:Adam",
        "adamax": "tfsam.training.keras_optimizers:Adamax",
        "adamw": "tfsam.training.keras_optimizers:AdamW",
        "entropy_sgd": "tfsam.training.entropy_sgd:EntropySGD",
        "ftrl": "tfsam.training.keras_optimizers:Ftrl",
        "lamb": "tfsam.training.keras_optimizers:Lamb",
        "lion": "tfsam.training.keras_optimizers:Lion",
        "muon": "tfsam.training.keras_optimizers:Muon",
        "nadam": "tfsam.training.keras_optimizers:Nadam",
        "rmsprop": "tfsam.training.keras_optimizers:RMSprop",
        "sgd": "tfsam.training.optimizers:SGD",
    },
)

SCHEDULES = Registry(
    "schedule",
    "tfsam.schedules",
    {
        "cosine": "tfsam.training.schedules:cosine",
        "one_cycle": "tfsam.training.schedules:one_cycle",
        "piecewise": "tfsam.training.schedules:piecewise",
    },
    given=("learning_rate", "epochs", "steps_per_epoch", "warmup_epochs"),
)

AUGMENTATIONS = Registry(
    "augmentation",
    "tfsam.augmentations",
    {
        "cutmix": "tfsam.data.augmentation:cutmix",
        "mixup": "tfsam.data.augmentation:mixup",
        "mixup_or_cutmix": "tfsam.data.augmentation:MixUpOrCutMix",
        "randaugment": "tfsam.data.augmentation:randaugment",
        "random_erasing": "tfsam.data.augmentation:random_erasing",
        "shift_flip": "tfsam.data.augmentation:ShiftFlip",
        "smooth_labels": "tfsam.data.augmentation:SmoothLabels",
    },
    base="tfsam.data.augmentation:Augmentation",
)

AVERAGES = Registry(
    "average",
    "tfsam.averages",
    {
        "ema": "tfsam.training.averages:EMA",
        "swa": "tfsam.training.averages:SWA",
    },
    base="tfsam.training.weight_average:WeightAverage",
)

# Suffixes of files that hold a network, whether or not the file exists.
_SUFFIXES = (".keras", ".h5", ".hdf5")


def network_file(spec: str) -> pathlib.Path | None:
    """Returns the path that names a network by its file, None for other specs.

    Args:
        spec: the spec of a network.

    Example:
        >>> network_file("runs/sam-rho=0.2/model.keras").name
        'model.keras'
        >>> network_file("wide_resnet:depth=16") is None
        True
    """
    name, *options = _divide_network(spec)
    if name.casefold() != "file" or not options:
        return None
    return files.expanded(options[0].removeprefix("name="))


def _divide_network(spec: str) -> list[str]:
    """Divides the spec of a network into a name and its options.

    Beside the name of a registered network, which has priority, a spec may be
    the path of a file, or MODULE:FUNCTION.
    """
    segments = re.split(r":(?!//)", spec.strip())  # Not within hf://.
    names = {name.casefold() for name in NETWORKS.names()}
    if segments[0].strip().casefold() in names:
        return segments
    if "/" in spec or spec.endswith(_SUFFIXES) or files.expanded(spec).exists():
        return ["file", f"name={spec.strip()}"]
    if len(segments) > 1:
        module, function, *options = segments
        return ["function", f"name={module}:{function}", *options]
    return segments


NETWORKS = Registry(
    "network",
    "tfsam.networks",
    {
        "file": "tfsam.models.networks.fine_tuning:from_file",
        "function": "tfsam.models.networks.network_functions:from_function",
        "keras": "tfsam.models.networks.applications:keras_application",
        "kerashub": "tfsam.models.networks.keras_hub:keras_hub_preset",
        "preact_resnet8": "tfsam.networks:preact_resnet8",
        "preact_resnet18": "tfsam.networks:preact_resnet18",
        "vision_transformer": "tfsam.networks:vision_transformer",
        "wide_resnet": "tfsam.networks:wide_resnet",
    },
    argument="name",
    given=(
        *("num_classes", "input_shape", "statistics"),
        *("weights", "pixels", "trusted", "log"),
    ),
    divide=_divide_network,
)

CORRUPTIONS = Registry(
    "corruption",
    "tfsam.corruptions",
    {
        "brightness": "tfsam.corruptions.weather:Brightness",
        "contrast": "tfsam.corruptions.digital:Contrast",
        "defocus_blur": "tfsam.corruptions.blur:DefocusBlur",
        "elastic_transform": "tfsam.corruptions.digital:Elastic",
        "fog": "tfsam.corruptions.weather:Fog",
        "gaussian_blur": "tfsam.corruptions.blur:GaussianBlur",
        "gaussian_noise": "tfsam.corruptions.noise:GaussianNoise",
        "glass_blur": "tfsam.corruptions.blur:GlassBlur",
        "impulse_noise": "tfsam.corruptions.noise:ImpulseNoise",
        "jpeg_compression": "tfsam.corruptions.digital:JPEG",
        "motion_blur": "tfsam.corruptions.blur:MotionBlur",
        "pixelate": "tfsam.corruptions.digital:Pixelate",
        "shot_noise": "tfsam.corruptions.noise:ShotNoise",
        "snow": "tfsam.corruptions.weather:Snow",
        "speckle_noise": "tfsam.corruptions.noise:SpeckleNoise",
        "zoom_blur": "tfsam.corruptions.blur:ZoomBlur",
    },
    base="tfsam.corruptions.base:Corruption",
)

# A source is a function of the text after the colon, as in folder:PATH. It
# returns a dict of the arrays x_train, y_train, x_test and y_test, and
# optionally class_names.
SOURCES = Registry(
    "data source",
    "tfsam.data",
    {
        "csv": "tfsam.data.sources:read_csv",
        "digits": "tfsam.data.sources:read_digits",
        "folder": "tfsam.data.sources:read_folder",
        "npz": "tfsam.data.sources:read_npz",
    },
)

ALL = (
    *(ATTACKS, WEIGHTS, OBJECTIVES, OPTIMIZERS, AVERAGES, NETWORKS, SOURCES),
    CORRUPTIONS,
)


def describe(name: str) -> str:
    """Returns the help of the parts of a name: a summary and the options.

    Args:
        name: a name that is registered for a part of any kind, in any case.

    Raises:
        ValueError: if no part has the name.
        ImportError: if a part cannot be imported.

    Example:
        >>> print(describe("FGSM").splitlines()[0])
        fgsm: attack
    """
    found = [
        registry.describe(known)
        for registry in ALL
        for known in registry.names()
        if known.casefold() == name.strip().casefold()
    ]
    if not found:
        names = [known for registry in ALL for known in registry.names()]
        raise ValueError(
            f"no part has this name{did_you_mean(name, names)}. "
            f"Received: name={name}"
        )
    return "\n\n".join(found)
