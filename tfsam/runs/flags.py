"""The flags of the command line: their declaration and parsing.

Nothing here imports TensorFlow, so that `--help` and a mistyped flag are
answered at once. `settings.py` turns the flags that were given into the
settings of a run.
"""

import dataclasses
import math
import re
from collections.abc import Callable
from collections.abc import Sequence
from fractions import Fraction
from typing import Any
from typing import NamedTuple

from absl import flags

from tfsam import registries
from tfsam.support.registry import Registry
from tfsam.support.registry import did_you_mean
from tfsam.support.validators import check_choice
from tfsam.support.validators import check_count
from tfsam.support.validators import check_number

# The largest numbers that TensorFlow computes with in most places: those of
# float32 and int32.
_LARGEST = 3.4e38
_LARGEST_INTEGER = 2**31 - 1

# With more epochs or steps than this, a run would never end; the steps of an
# ascent are traced one by one.
_MOST_REPETITIONS = 10**6
_MOST_ASCENT_STEPS = 100


def _number(text: str) -> float:
    """Parses a number, which may be a fraction such as 8/255."""
    stripped = text.replace(" ", "")
    try:
        # Fraction would write out all the zeros of 1e999999999.
        number = float(Fraction(stripped) if "/" in stripped else stripped)
    except (OverflowError, ValueError, ZeroDivisionError):
        number = math.nan
    if not abs(number) <= _LARGEST:
        raise ValueError(
            "expected a number such as 0.1 or 8/255, at most "
            f"{_LARGEST:g}. Received: {text}"
        )
    return number


def _integer(text: str) -> int:
    """Parses a whole number."""
    try:
        number = int(text)
    except ValueError:
        number = _LARGEST_INTEGER + 1
    if abs(number) > _LARGEST_INTEGER:
        raise ValueError(
            f"expected a whole number, at most {_LARGEST_INTEGER}. "
            f"Received: {text}"
        )
    return number


def _size(text: str) -> str:
    """Parses a size, HEIGHTxWIDTH or a side, which stays a text."""
    stripped = text.replace(" ", "").lower()
    if not re.fullmatch(r"\d+(x\d+)?", stripped):
        raise ValueError(
            "expected a side such as 32, or HEIGHTxWIDTH such as 64x48. "
            f"Received: {text}"
        )
    return stripped


def _words(text: str) -> list[str]:
    """Parses words separated by commas."""
    return [word.strip() for word in text.split(",") if word.strip()]


def _numbers(text: str) -> list[float]:
    """Parses numbers separated by commas."""
    return [_number(word) for word in _words(text)]


def _boolean(text: str) -> bool:
    """Parses true or false."""
    value = flags.BooleanParser().parse(text)
    return bool(value)


@dataclasses.dataclass(frozen=True)
class Flag:
    """A flag of the command line.

    Attributes:
        group: the heading that `--help` lists it under.
        help: its description.
        parse: turns the text of the command line into the value, or raises a
            ValueError.
        choices: returns the values that are allowed; None allows any.
        least: the smallest number that is allowed, or None.
        most: the largest number that is allowed, or None.
    """

    group: str
    help: str
    parse: Callable[[str], Any] = str
    choices: Callable[[], Sequence[str]] | None = None
    least: float | None = None
    most: float | None = None

    @property
    def is_switch(self) -> bool:
        """Whether the flag may come without a value, and as --noNAME."""
        return self.parse is _boolean

    def check(self, name: str, value: Any) -> None:
        """Raises a ValueError unless a value, or None, is allowed."""
        if value is None:
            return
        if self.choices is not None:
            check_choice(name, value, self.choices())
        if self.parse is _integer and self.least is not None:
            check_count(name, value, int(self.least))
        if self.parse is _number and self.least is not None:
            check_number(name, value, self.least, self.most or math.inf)
        if self.parse is _integer and self.most and value > self.most:
            raise ValueError(
                f"{name} must be at most {self.most}. Received: {name}={value}"
            )


def _one_of(*options: str) -> Callable[[], Sequence[str]]:
    return lambda: options


TRAINING = "Training"
ATTACK = "Training's attack"
DATA = "Data"
EVALUATION = "Evaluation"
RUNNING = "Running"

GROUPS = (TRAINING, ATTACK, DATA, EVALUATION, RUNNING)

FLAGS: dict[str, Flag] = {
    "method": Flag(
        TRAINING,
        "Method of training, listed below; --methods prints the table of all "
        "methods with their flags and costs.",
    ),
    "perturb_weights": Flag(
        TRAINING,
        "Perturbation of the weights, which replaces the method's: a name, "
        "a name with options such as looksam:alpha=0.3:every=5, or none.",
    ),
    "objective": Flag(
        TRAINING,
        "Objective of training, which replaces the method's: trades, mart, "
        "with options such as trades:beta=3, or none.",
    ),
    "optimizer": Flag(
        TRAINING,
        "Optimizer, which replaces the method's: sgd or entropy_sgd.",
    ),
    "average": Flag(
        TRAINING,
        "Average of the weights, which replaces the method's: ema, swa or "
        "none. The average is the network that is validated, exported and "
        "attacked.",
    ),
    "rho": Flag(
        TRAINING,
        "Radius of the perturbation of the weights, for SAM and its variants.",
        _number,
    ),
    "eta": Flag(
        TRAINING,
        "ASAM: added to |w|. FSAM: weight of the Fisher information.",
        _number,
    ),
    "adaptive": Flag(
        TRAINING,
        "ASAM: the weights whose size scales the perturbation, kernels or all.",
    ),
    "ascent_steps": Flag(
        TRAINING,
        "SAM: number of ascent steps.",
        _integer,
        most=_MOST_ASCENT_STEPS,
    ),
    "alpha": Flag(
        TRAINING,
        "GSAM: weight of the surrogate gap. LookSAM: weight of the direction "
        "that is reused.",
        _number,
    ),
    "rho_min": Flag(
        TRAINING, "GSAM: rho at the lowest learning rate.", _number
    ),
    "every": Flag(
        TRAINING,
        "LookSAM: steps between two computations of the perturbation.",
        _integer,
    ),
    "weight_fraction": Flag(
        TRAINING, "ESAM: fraction of the weight tensors to perturb.", _number
    ),
    "sample_fraction": Flag(
        TRAINING,
        "ESAM: fraction of the batch used by the second pass.",
        _number,
    ),
    "sparsity": Flag(
        TRAINING, "SSAM: fraction of the weights left unperturbed.", _number
    ),
    "mask": Flag(
        TRAINING,
        "SSAM: kind of mask, fisher (SSAM-F) or dynamic (SSAM-D).",
    ),
    "refresh_every": Flag(
        TRAINING,
        "SSAM: steps between two masks. The default is 5 epochs.",
        _integer,
    ),
    "gamma": Flag(
        TRAINING,
        "AWP: size of the perturbation relative to the kernel's.",
        _number,
    ),
    "sub_batches": Flag(
        TRAINING,
        "m-sharpness: number of parts of the batch, each with its own "
        "perturbation of the weights.",
        _integer,
        least=0,
    ),
    "sharpness": Flag(
        TRAINING,
        "Gradient that perturbs the weights on several devices: each "
        "device's own, or the gradient of the whole batch.",
        choices=_one_of("per_replica", "global"),
    ),
    "beta": Flag(
        TRAINING,
        "TRADES, MART: weight of the distance between the predictions for "
        "clean and perturbed images.",
        _number,
    ),
    "inner_steps": Flag(
        TRAINING,
        "Entropy-SGD: number of gradients per step.",
        _integer,
        least=0,
    ),
    "average_momentum": Flag(
        TRAINING, "EMA: momentum of the moving average.", _number
    ),
    "average_start": Flag(
        TRAINING,
        "SWA: first epoch that is averaged, counted from 0. The default is "
        "at 75 % of the epochs.",
        _integer,
    ),
    "network": Flag(
        TRAINING,
        "Network to train: {networks}, with options such as "
        "wide_resnet:depth=16; keras:NAME, a class of keras.applications, "
        "such as keras:MobileNetV2:alpha=0.35; the path of a .keras or HDF5 "
        "file, which is trained further, under a new head if it has another "
        "number of classes; or MODULE:FUNCTION, a function of yours.",
    ),
    "weights": Flag(
        TRAINING,
        "File of weights that the network begins with; imagenet for keras:NAME "
        "downloads those of ImageNet.",
    ),
    "freeze": Flag(
        TRAINING,
        "Regular expression for the names of layers that keep their weights "
        "and BatchNorm statistics, such as '^(?!predictions)'; none trains "
        "all. By default layers are frozen as a file has them.",
    ),
    "epochs": Flag(
        TRAINING,
        "Number of epochs.",
        _integer,
        least=1,
        most=_MOST_REPETITIONS,
    ),
    "batch_size": Flag(
        TRAINING, "Batch size over all devices.", _integer, least=1
    ),
    "learning_rate": Flag(
        TRAINING,
        "Learning rate; it is multiplied by 0.1 after 75 % and after 90 % of "
        "the epochs.",
        _number,
        least=0,
    ),
    "momentum": Flag(TRAINING, "Momentum of SGD.", _number, least=0, most=1),
    "weight_decay": Flag(
        TRAINING,
        "Weight decay of SGD, added to the gradient.",
        _number,
        least=0,
    ),
    "precision": Flag(
        TRAINING,
        "Precision of the computations inside the network.",
        choices=_one_of("float32", "mixed_bfloat16", "mixed_float16"),
    ),
    "select": Flag(
        TRAINING,
        "Network to keep: the last, or the best by clean or robust accuracy "
        "on training images that are held out.",
        choices=_one_of("last", "clean", "robust"),
    ),
    "validate_every": Flag(
        TRAINING,
        "Epochs between two attacks on the held-out images. The default is 1 "
        "with --select=clean or robust, otherwise never.",
        _integer,
        least=1,
    ),
    "validation_images": Flag(
        TRAINING,
        "Number of training images to hold out. The default is a tenth, at "
        "most 1000.",
        _integer,
        least=1,
    ),
    "checkpoint_steps": Flag(
        TRAINING,
        "Steps between two checkpoints, in addition to the checkpoints after "
        "each epoch.",
        _integer,
        least=1,
    ),
    "perturb_inputs": Flag(
        ATTACK,
        "Attack on the training images, which replaces the method's: a name, "
        "a name with options such as pgd:steps=7, or none. It must be able "
        "to run in a graph: pgd, pgd_cw, pgd_dlr, pgd_kl, fgsm, fgsm_rs, ...",
    ),
    "epsilon": Flag(
        ATTACK,
        "Largest perturbation of an image, in units of its pixels, which are "
        "in [0, 1]. The default is the method's: 8/255, and 0.031 for trades "
        "and mart; on the digits of --preset=digits it is 0.1.",
        _number,
    ),
    "norm": Flag(ATTACK, "Norm in which epsilon is measured, linf or l2."),
    "steps": Flag(ATTACK, "Number of steps.", _integer, most=_MOST_REPETITIONS),
    "step_size": Flag(
        ATTACK,
        "Size of a step. The default for pgd is epsilon/4 in linf and "
        "epsilon/8 in l2; for fgsm_at it is 1.25 epsilon.",
        _number,
    ),
    "attack_loss": Flag(
        ATTACK,
        "Loss that the attack maximizes: cross_entropy, margin, dlr or kl.",
    ),
    "attack_mode": Flag(
        ATTACK,
        "Mode of the network during the attack.",
        choices=_one_of("inference", "training"),
    ),
    "epsilon_warmup": Flag(
        ATTACK,
        "Number of epochs over which epsilon grows from 0.",
        _integer,
        least=0,
    ),
    "collapse_drop": Flag(
        ATTACK,
        "fgsm_at: stops training where the accuracy under PGD drops by more "
        "than this within an epoch (catastrophic overfitting); 1 disables it.",
        _number,
        least=0,
    ),
    "dataset": Flag(
        DATA,
        "Images: SOURCE or SOURCE:PATH, as in digits, folder:PATH, csv:PATH "
        "and npz:PATH, or the name of an image data set of TensorFlow "
        "Datasets such as cifar10. Sources: {sources}.",
    ),
    "limit_train": Flag(
        DATA,
        "Number of training images to use, stratified by class.",
        _integer,
        least=1,
    ),
    "limit_test": Flag(
        DATA,
        "Number of test images to use, stratified by class.",
        _integer,
        least=1,
    ),
    "image_size": Flag(
        DATA,
        "Size that all images get: a side such as 32, or HEIGHTxWIDTH such as "
        "64x48. The default is the images' own size or, where they have "
        "several, the most common square of at most 64 pixels a side.",
        _size,
    ),
    "resize": Flag(
        DATA,
        "How images get another size: crop cuts out the centre, pad adds black "
        "margins, stretch changes the proportions",
        choices=_one_of("crop", "pad", "stretch"),
    ),
    "test_fraction": Flag(
        DATA,
        "Part of each class that is tested, where the images are not split "
        "into train and test; --seed chooses it. The default is 0.2; with "
        "--evaluate it is all of them.",
        _number,
        least=0,
        most=1,
    ),
    "bad_images": Flag(
        DATA,
        "What to do about files that are no images: skip leaves them out with "
        "a warning, up to 5 % of all",
        choices=_one_of("skip", "refuse"),
    ),
    "class_order": Flag(
        DATA,
        "Order of classes that are known by name: name (0, 1, 10, 2), number "
        "(0, 1, 2, 10), or a file of names, one a line, in the order of a "
        "network's outputs.",
    ),
    "augment": Flag(DATA, "Random crops and flips in training.", _boolean),
    "cache_dir": Flag(
        DATA,
        "Folder that keeps decoded images for later runs, or none. The "
        "default is ~/.cache/tfsam, or tfsam in XDG_CACHE_HOME.",
    ),
    "attacks": Flag(
        EVALUATION,
        "Attacks, separated by commas, with options such as "
        "pgd:steps=50:restarts=5: {attacks}.",
        _words,
    ),
    "linf_epsilons": Flag(
        EVALUATION,
        "Values of epsilon in the linf norm, separated by commas, such as "
        "1/255,2/255; empty for none.",
        _numbers,
    ),
    "l2_epsilons": Flag(
        EVALUATION,
        "Values of epsilon in the l2 norm; empty for none.",
        _numbers,
    ),
    "attack_steps": Flag(
        EVALUATION,
        "Number of steps of the attacks that have steps. The default is each "
        "attack's own: 10 for pgd.",
        _integer,
        least=0,
        most=_MOST_REPETITIONS,
    ),
    "attack_batch_size": Flag(
        EVALUATION,
        "Number of images attacked at once: a chunk.",
        _integer,
        least=1,
    ),
    "evaluate": Flag(
        EVALUATION,
        "Model to attack, a file of Keras (.keras, or HDF5 under any name) or "
        "a SavedModel folder; nothing is trained. The softmax or sigmoid at "
        "its end is removed. A file of weights alone needs the --network that "
        "they belong to. A SavedModel is a program: load only those you trust.",
    ),
    "surrogate": Flag(
        EVALUATION,
        "Model to compute the attacks on, for transfer attacks; see "
        "--evaluate. Its pixels are found out separately.",
    ),
    "inspect": Flag(
        EVALUATION,
        "Model to look at, as for --evaluate: prints its format, input, "
        "outputs and ending, with --dataset also its natural accuracy under "
        "each range of pixels, and the command that evaluates it.",
    ),
    "pixels": Flag(
        EVALUATION,
        "Pixels that the model was trained on: 0..1, 0..255, -1..1, caffe, "
        "MEAN/STD by channel such as 0.49,0.48,0.45/0.2,0.2,0.2, or "
        "MODULE:FUNCTION, a differentiable function of pixels in [0, 1]; auto "
        "takes what its layers or its natural accuracy tell. Epsilon is in "
        "units of [0, 1] in any case.",
    ),
    "output": Flag(
        EVALUATION,
        "Output of the model that holds the classes, by its name or number.",
    ),
    "import": Flag(
        EVALUATION,
        "Modules of yours to import first, separated by commas, such as those "
        "that register the model's layers with Keras.",
        _words,
    ),
    "trust": Flag(
        EVALUATION,
        "Names of the model's Lambda layers whose stored code may run, "
        "separated by commas.",
        _words,
    ),
    "warm_start": Flag(
        EVALUATION,
        "Start at each epsilon from the image found at the smaller one, for "
        "attacks that support it, such as pgd.",
        _boolean,
    ),
    "save_adversarial": Flag(
        EVALUATION,
        "Keep the adversarial images in WORKDIR/evaluation.",
        _boolean,
    ),
    "shard": Flag(
        EVALUATION,
        "With --evaluate: i/n attacks every n-th chunk of images, beginning "
        "with chunk i, so that n processes share the work; see --merge.",
    ),
    "merge": Flag(
        EVALUATION,
        "Folders of finished shards, separated by commas, to combine in the "
        "folder --workdir; takes no other flag.",
        _words,
    ),
    "preset": Flag(
        RUNNING,
        "Defaults of all other flags. digits: 8x8 images that come with "
        "scikit-learn, a small network, one minute; its values of epsilon "
        "apply to this data set only. cifar10, cifar100: the paper's recipe.",
    ),
    "workdir": Flag(
        RUNNING,
        "Folder of the run. The default is runs/NAME, where NAME describes "
        "the run.",
    ),
    "overwrite": Flag(
        RUNNING,
        "Start again in a folder that holds another run, whose files are "
        "removed first.",
        _boolean,
    ),
    "seed": Flag(RUNNING, "Seed of all random numbers.", _integer, least=0),
    "devices": Flag(
        RUNNING,
        "auto (all GPUs, otherwise the CPU), cpu, cpu:2 (two logical "
        "devices), gpu:all or gpu:2.",
    ),
    "strategy": Flag(
        RUNNING,
        "Devices that share each batch: mirrored, the --devices of this "
        "process; multi_worker, the devices of all processes in TF_CONFIG, "
        "each started by this command with the same --workdir; auto, "
        "multi_worker if TF_CONFIG is set.",
    ),
    "jit_compile": Flag(
        RUNNING,
        "Whether to compile gradients with XLA; auto does so on GPUs.",
        choices=_one_of("auto", "true", "false"),
    ),
    "help": Flag(
        RUNNING,
        "Print this help; --help=NAME prints the options of a method, an "
        "attack or another part.",
    ),
    "methods": Flag(
        RUNNING, "Print the table of all methods with their flags.", _boolean
    ),
    "version": Flag(RUNNING, "Print the version.", _boolean),
}

# Flags that answer a question; nothing is run.
QUESTIONS = ("help", "methods", "version")


class Given(NamedTuple):
    """The flags of a command line.

    Attributes:
        values: the values by flag, parsed; flags that are not given are left
            out.
        texts: the same values as they were written.
    """

    values: dict[str, Any]
    texts: dict[str, str]


class _Parser(flags.ArgumentParser[Any]):
    """Adapts a function of a text to absl."""

    def __init__(self, function: Callable[[str], Any]) -> None:
        self._function = function

    def parse(self, argument: Any) -> Any:
        """Parses a text."""
        return self._function(str(argument))

    def flag_type(self) -> str:
        """Returns a description for absl's messages."""
        return "value"


class _Flag(flags.Flag[Any]):
    """A flag of absl's that keeps the text of its value."""

    text = ""

    def parse(self, argument: Any) -> None:
        """Parses a text."""
        self.text = str(argument)
        super().parse(argument)


def parse(argv: Sequence[str]) -> Given:
    """Parses command-line arguments; imports no TensorFlow.

    Args:
        argv: the arguments, without the program's name.

    Raises:
        ValueError: if a flag is unknown, or has no such value.
    """
    values = flags.FlagValues()
    for name, flag in FLAGS.items():
        serializer: flags.ArgumentSerializer[Any] = flags.ArgumentSerializer()
        made = _Flag(_Parser(flag.parse), serializer, name, None, flag.help)
        # A flag that may come without a value; its text is "true" then.
        made.boolean = flag.is_switch or name == "help"
        flags.DEFINE_flag(made, values)
    try:
        rest = values(["tfsam", *argv])[1:]
    except flags.UnrecognizedFlagError as error:
        hint = did_you_mean(error.flagname, FLAGS)
        raise ValueError(
            f"expected a flag that --help shows{hint}. "
            f"Received: --{error.flagname}"
        ) from None
    except flags.Error as error:
        raise ValueError(str(error)) from None
    if rest:
        hint = ""
        if values["help"].value == "true":
            hint = f" (did you mean --help={rest[0]}?)"
        raise ValueError(
            f"expected flags only{hint}. Received: {' '.join(rest)}"
        )
    given = {
        name: defined
        for name in FLAGS
        if (defined := values[name]).present and defined.value is not None
    }
    return Given(
        {name: defined.value for name, defined in given.items()},
        {
            name: defined.text
            for name, defined in given.items()
            if isinstance(defined, _Flag)
        },
    )


# Registries by the flag that takes a name from them.
REGISTRIES: dict[str, Registry] = {
    "attacks": registries.ATTACKS,
    "perturb_inputs": registries.ATTACKS,
    "perturb_weights": registries.WEIGHTS,
    "objective": registries.OBJECTIVES,
    "optimizer": registries.OPTIMIZERS,
    "average": registries.AVERAGES,
    "network": registries.NETWORKS,
}


def written(value: Any) -> str:
    """Returns a value as the command line takes it.

    Args:
        value: the value of a flag.

    Example:
        >>> written(8 / 255), written([1 / 255, 0.1]), written([])
        ('8/255', '1/255,0.1', 'none')
    """
    if isinstance(value, (list, tuple)):
        return ",".join(map(written, value)) or "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        of_255 = round(value * 255)
        short = float(f"{value:.3g}") == value
        if of_255 and not short and abs(of_255 / 255 - value) < 1e-9:
            return f"{of_255}/255"
        return f"{value:g}"
    return str(value)
