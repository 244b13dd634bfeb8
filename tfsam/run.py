r"""Train, attack, export and report, from one command.

  python -m tfsam.run --method=sam --rho=0.2
  python -m tfsam.run --preset=cifar100 --method=at --epsilon=1/255
  python -m tfsam.run --evaluate=model.keras --dataset=npz:data.npz \
    --attacks=autoattack --linf_epsilons=1/255,2/255,4/255

A preset sets every flag, any flag overrides its preset. A method is a row of a
table; --perturb_inputs, --perturb_weights and --average put other parts into
it. Training attacks with --epsilon --norm --steps --step_size; evaluation with
--attacks --linf_epsilons --l2_epsilons --attack_steps. The same command again
goes on where it was stopped, and prints the table of a run that is finished.
Exit code 2 is bad input, 3 a loss that became NaN, 4 a full disk, 5 a worker
that was lost, 130 and 143 a run that SIGINT or SIGTERM stopped.
"""

import contextlib
import functools
import json
import math
import pathlib
import re
import sys
import warnings
import zlib
from fractions import Fraction

from absl import flags

from tfsam import attacks
from tfsam import data
from tfsam import parts
from tfsam import reports
from tfsam import weights
from tfsam.attacks.base import check_scale
from tfsam.runs import fit
from tfsam.runs import methods
from tfsam.runs import stages
from tfsam.runs import workdirs
from tfsam.support import devices
from tfsam.support import files
from tfsam.support import signals
from tfsam.support.validators import check_budget
from tfsam.support.validators import check_choice
from tfsam.support.validators import check_count
from tfsam.support.validators import check_number

_PAPER = {
    "method": "sam",
    "network": "preact_resnet18",
    "epochs": 100,
    "batch_size": 128,
    "learning_rate": 0.1,
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "augment": True,
    "select": "last",
    "seed": 0,
    "attacks": ["cleverhans_pgd"],
    "attack_steps": None,
    "attack_batch_size": 128,
    "save_adversarial": False,
    "warm_start": False,
    "linf_epsilons": [1 / 255, 2 / 255],
    "l2_epsilons": [16 / 255, 32 / 255],
    "devices": "auto",
    "strategy": "auto",
    "jit_compile": "auto",
    "precision": "float32",
    "sharpness": "per_replica",
}

PRESETS = {
    "digits": _PAPER
    | {
        "dataset": "digits",
        "network": "preact_resnet8",
        "epochs": 20,
        "augment": False,
        "epsilon": 0.1,
        "linf_epsilons": [0.05, 0.1],
        "l2_epsilons": [0.25, 0.5],
    },
    "cifar10": _PAPER | {"dataset": "cifar10"},
    "cifar100": _PAPER | {"dataset": "cifar100"},
}

SELECT = ("last", "clean", "robust")
JIT_COMPILE = ("auto", "true", "false")

# What training alone uses: refused beside --evaluate.
_TRAINING = (
    *("method", "perturb_inputs", "perturb_weights", "average"),
    *methods.SETTINGS,
    *("network", "epochs", "batch_size", "learning_rate", "momentum"),
    *("weight_decay", "augment", "sharpness", "limit_train"),
    *("select", "validate_every", "validation_images", "precision"),
    "checkpoint_steps",
)


# Of the pixels, whatever the data set.
_BOUNDS = (0.0, 1.0)

# The most that these flags may ask for. A step of training and an attack on a
# chunk of images are done as a whole, and the ascent's steps are traced one by
# one: with more, the work would never end, or never begin.
LIMITS = {
    "epochs": 10**6,
    "steps": 10**6,
    "attack_steps": 10**6,
    "ascent_steps": 100,
}

# The largest number that TensorFlow computes with in most places: float32's,
# and int32's.
_LARGEST = 3.4e38
_LARGEST_INTEGER = 2**31 - 1


class _NumberParser(flags.ArgumentParser):
    """A number, also as a fraction: 8/255."""

    def parse(self, argument):
        text = str(argument).replace(" ", "")
        try:
            # Fraction would write out all the zeros of 1e999999999.
            number = float(Fraction(text) if "/" in text else text)
        except (OverflowError, ValueError, ZeroDivisionError):
            number = math.nan
        if not abs(number) <= _LARGEST:
            raise ValueError(
                "expected a number such as 0.1 or 8/255, at most "
                f"{_LARGEST:g}. Received: {argument}"
            )
        return number

    def flag_type(self):
        return "number"


class _IntegerParser(flags.ArgumentParser):
    """A whole number."""

    def parse(self, argument):
        with contextlib.suppress(ValueError):
            number = int(argument)
            if abs(number) <= _LARGEST_INTEGER:
                return number
        raise ValueError(
            f"expected a whole number, at most {_LARGEST_INTEGER}. "
            f"Received: {argument}"
        )

    def flag_type(self):
        return "whole number"


class _NumbersParser(flags.ArgumentParser):
    """Numbers with commas between them."""

    def parse(self, argument):
        if isinstance(argument, list):
            return argument
        parts = [part for part in argument.split(",") if part.strip()]
        return [_NumberParser().parse(part) for part in parts]

    def flag_type(self):
        return "numbers with commas between them"


def define_flags():
    """Every flag, on a `FlagValues` of its own, so that runs are independent.

    Returns:
        An `absl.flags.FlagValues`, not parsed yet.
    """
    values = flags.FlagValues()
    text = functools.partial(flags.DEFINE_string, flag_values=values)

    def choice(name, options, help):
        # No enum: its error message would name neither flag nor value last.
        text(name, None, f"{help}: {', '.join(options)}.")

    def parsed(parser, name, help):
        serializer: flags.ArgumentSerializer = flags.ArgumentSerializer()
        flags.DEFINE(parser, name, None, help, values, serializer)

    integer = functools.partial(parsed, _IntegerParser())
    number = functools.partial(parsed, _NumberParser())
    numbers = functools.partial(parsed, _NumbersParser())

    text(
        "preset",
        "digits",
        "What all other flags default to. digits: real 8x8 images that come "
        "with scikit-learn, a small network, a minute. cifar10, cifar100: the "
        "paper's recipe.",
    )
    rows = "; ".join(
        f"{name}: {row.help}" + (f" ({row.source})" if row.source else "")
        for name, row in methods.methods().items()
    )
    text("method", None, f"Method of training. {rows}.")
    text(
        "perturb_inputs",
        None,
        "Training's attack, instead of the method's: none, or one that can run "
        "in a graph: pgd, pgd_cw, pgd_dlr, pgd_kl, fgsm, fgsm_rs, ...",
    )
    choice(
        "perturb_weights",
        ("none", *weights.names()),
        "What perturbs the weights, instead of the method's",
    )
    choice(
        "average",
        ("none", *parts.AVERAGES.names()),
        "Average of the weights, instead of the method's: the network that is "
        "validated, exported and attacked",
    )
    number("rho", "Radius around the weights: SAM and its family.")
    number("eta", "ASAM: added to |w|. FSAM: weight of the Fisher information.")
    choice("adaptive", ("kernels", "all"), "ASAM: which weights have a size")
    integer("ascent_steps", "SAM: steps of the ascent.")
    number("alpha", "GSAM: weight of the gap. LookSAM: of its direction.")
    number("rho_min", "GSAM: radius at the lowest learning rate.")
    integer("every", "LookSAM: steps from one second pass to the next.")
    number("weight_fraction", "ESAM: part of the weight tensors that move.")
    number("sample_fraction", "ESAM: part of the batch in the second pass.")
    number("sparsity", "SSAM: part of the weights that stay.")
    choice("mask", ("fisher", "dynamic"), "SSAM-F or SSAM-D")
    integer(
        "refresh_every", "SSAM: steps from mask to mask. Default: 5 epochs."
    )
    number("gamma", "AWP: size of the perturbation, relative to the kernel's.")
    integer(
        "sub_batches",
        "m-sharpness: parts of the batch, each with its own perturbation.",
    )
    number("beta", "TRADES, MART: weight of the distance that an attack makes.")
    integer("inner_steps", "Entropy-SGD: gradients of a walk.")
    number("average_momentum", "EMA: momentum of the average.")
    integer(
        "average_start",
        "SWA: first epoch whose weights it takes, from 0. Default: at 75 %.",
    )
    number("epsilon", "Training's attack: largest perturbation of a pixel.")
    integer("epsilon_warmup", "Epochs over which epsilon grows from nothing.")
    choice(
        "attack_loss",
        ("cross_entropy", "margin", "dlr", "kl"),
        "Training's attack: what it climbs",
    )
    choice(
        "attack_mode",
        ("inference", "training"),
        "Training's attack: the mode of the network in it",
    )
    number(
        "collapse_drop",
        "fgsm_at: training stops where the accuracy under PGD falls by more "
        "than this in an epoch (catastrophic overfitting); 1 is never.",
    )
    choice(
        "select",
        SELECT,
        "Which network is kept: the last, or the best by its accuracy, clean "
        "or under attack, on training images that are held out",
    )
    integer(
        "validate_every",
        "Epochs from one attack on the held-out images to the next. Default: "
        "1 with --select, else never.",
    )
    integer(
        "validation_images",
        "Training images that are held out. Default: a tenth, at most 1000.",
    )
    integer(
        "checkpoint_steps",
        "Training steps from one checkpoint to the next, beside those after "
        "each epoch. Default: none.",
    )
    text("norm", None, "Training's attack: linf or l2.")
    integer("steps", "Training's attack: steps.")
    number(
        "step_size",
        "Training's attack: size of a step. Default: epsilon/4 for PGD in "
        "l-inf, epsilon/8 in l2; 1.25 epsilon for fgsm_at.",
    )
    text("dataset", None, f"Images: {'; '.join(data.SOURCES)}.")
    text(
        "cache_dir",
        None,
        "Keep the decoded images of folder:PATH here, for later runs; none: "
        "nowhere. Default: ~/.cache/tfsam, or tfsam in XDG_CACHE_HOME.",
    )
    choice("network", fit.NETWORKS, "Network")
    integer("epochs", "Epochs of training.")
    integer("batch_size", "Batch size over all devices.")
    number(
        "learning_rate", "Learning rate; times 0.1 at 75 % and 90 % of epochs."
    )
    number("momentum", "Momentum of SGD.")
    number("weight_decay", "Coupled weight decay of SGD.")
    flags.DEFINE_boolean(
        "augment", None, "Random crops and flips.", flag_values=values
    )
    integer("seed", "Seed of everything random.")
    text(
        "workdir", None, "Folder of the run. Default: runs/NAME, by the flags."
    )
    integer("limit_train", "Train on so many images, stratified.")
    integer("limit_test", "Evaluate on so many images, stratified.")
    flags.DEFINE_list(
        "attacks",
        None,
        "Evaluation's attacks, with commas between them: "
        f"{', '.join(attacks.names())}.",
        flag_values=values,
    )
    numbers("linf_epsilons", "Evaluation's l-inf budgets, such as 1/255,2/255.")
    numbers("l2_epsilons", "Evaluation's l2 budgets.")
    integer(
        "attack_steps",
        "Evaluation's steps, for attacks with steps. Default: each attack's "
        "own; 10 for PGD.",
    )
    integer("attack_batch_size", "Images attacked at once: a chunk.")
    flags.DEFINE_boolean(
        "save_adversarial",
        None,
        "Keep the adversarial images, in WORKDIR/evaluation.",
        flag_values=values,
    )
    flags.DEFINE_boolean(
        "warm_start",
        None,
        "Start at each epsilon from the image of the smaller one, for attacks "
        "that can: pgd and its kin.",
        flag_values=values,
    )
    text(
        "surrogate",
        None,
        "Attack this model, a file as of --evaluate, and judge by the other: "
        "transfer attacks.",
    )
    text(
        "shard",
        None,
        "With --evaluate: attack every n-th chunk of images only, from the "
        "i-th: 0/4, 1/4, ... in as many processes. See --merge.",
    )
    flags.DEFINE_list(
        "merge",
        None,
        "Put the shards in these folders, with commas between them, together "
        "into the folder --workdir; no other flag.",
        flag_values=values,
    )
    text(
        "evaluate",
        None,
        "Attack this .keras file or SavedModel folder and train nothing. A "
        "SavedModel is a program: use those of people you trust.",
    )
    text(
        "devices",
        None,
        "auto (all GPUs, else the CPU), cpu, cpu:2 (two logical devices), "
        "gpu:all, gpu:2.",
    )
    choice(
        "strategy",
        devices.STRATEGIES,
        "Who shares each batch: mirrored, the --devices of this process; "
        "multi_worker, those of all processes that TF_CONFIG names, each "
        "started by this command with one --workdir; auto, the latter if it "
        "names any",
    )
    choice(
        "jit_compile",
        ("auto", "true", "false"),
        "XLA for gradients; auto: on GPUs",
    )
    choice("precision", fit.PRECISIONS, "Arithmetic inside the network")
    choice(
        "sharpness",
        ("per_replica", "global"),
        "Whose gradient perturbs the weights on several devices",
    )
    flags.DEFINE_boolean(
        "help", False, "Shows this and stops.", flag_values=values
    )
    return values


def configuration(argv):
    """The flags as a dict of every setting, the preset's where none is given.

    Args:
        argv: command-line arguments, without the program's name.

    Returns:
        (config, workdir). A setting that the method does not use is None.

    Raises:
        ValueError: if a value is unknown, out of range, or not used.
        absl.flags.Error: if a flag is unknown or has no such value.
    """
    values = define_flags()
    try:
        rest = values(["tfsam.run", *argv])[1:]
    except flags.UnrecognizedFlagError as error:
        raise ValueError(
            f"expected a flag that --help shows. Received: --{error.flagname}"
        ) from None
    if rest:
        raise ValueError(f"expected flags only. Received: {' '.join(rest)}")
    if values.help:
        return None, None
    given = {
        name: values[name].value
        for name in values
        if values[name].present and values[name].value is not None
    }
    if "merge" in given:
        return _merging(given)
    name = check_choice("preset", given.get("preset", "digits"), PRESETS)
    preset, config = PRESETS[name], {"preset": name}
    other = ("help", "merge", "preset", "workdir")
    names = (n for n in values if n not in other)
    config |= {n: given.get(n, preset.get(n)) for n in sorted(names)}
    _check_choices(config)
    if config["evaluate"]:
        unused = [name for name in _TRAINING if name in given]
        config |= dict.fromkeys([*_TRAINING, *methods.PARTS])
        reason = "--evaluate, which trains nothing,"
    else:
        unused = _fill_parts(config, given)
        reason = f"--method={config['method']}"
    if unused:
        raise ValueError(
            f"{reason} does not use --{unused[0]}. "
            f"Received: --{unused[0]}={given[unused[0]]}"
        )
    for flag, most in LIMITS.items():
        if config[flag] is not None and config[flag] > most:
            raise ValueError(
                f"{flag} must be at most {most}. "
                f"Received: {flag}={config[flag]}"
            )
    workdir = given.pop("workdir", None) or f"runs/{_name(config, given)}"
    return config, files.expanded(workdir)


def _merging(given):
    """The configuration of --merge, which takes --workdir and nothing else."""
    unused = sorted(set(given) - {"merge", "workdir"})
    if unused:
        raise ValueError(
            f"--merge takes --workdir alone. Received: --{unused[0]}"
        )
    if "workdir" not in given:
        raise ValueError("--merge needs --workdir. Received: none")
    merged = [str(files.expanded(folder)) for folder in given["merge"]]
    return {"merge": merged}, files.expanded(given["workdir"])


def share(name, text):
    """The i-th of n parts, [i, n], as a flag names it: i/n.

    Args:
        name: of the flag.
        text: its value.

    Raises:
        ValueError: unless 0 <= i < n.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or int(match[1]) >= int(match[2]):
        raise ValueError(
            f"{name} must be i/n with 0 <= i < n, such as 0/4. "
            f"Received: {name}={text}"
        )
    return [int(match[1]), int(match[2])]


def _check_choices(config):
    config["method"] = methods.closest(
        "method", config["method"], methods.methods()
    )
    check_choice("select", config["select"], SELECT)
    check_choice("network", config["network"], fit.NETWORKS)
    check_choice("jit_compile", config["jit_compile"], JIT_COMPILE)
    check_choice("precision", config["precision"], fit.PRECISIONS)
    check_choice("sharpness", config["sharpness"], ("per_replica", "global"))
    if not config["attacks"]:
        raise ValueError("attacks must name one at least. Received: none")
    config["attacks"] = [
        parts.ATTACKS.canonical(attack) for attack in config["attacks"]
    ]
    for attack in config["attacks"]:
        parts.ATTACKS.factory(attack)
    if config["shard"]:
        if not config["evaluate"]:
            raise ValueError(
                "--shard needs --evaluate: shards attack one and the same "
                f"model. Received: shard={config['shard']}"
            )
        config["shard"] = share("shard", config["shard"])
    if config["cache_dir"] == "":
        raise ValueError(
            "cache_dir must be a folder, or none, which is nowhere. "
            "Received: cache_dir="
        )
    for flag in (
        *("epochs", "batch_size", "limit_train", "limit_test"),
        *("attack_batch_size", "validate_every", "validation_images"),
        "checkpoint_steps",
    ):
        if config[flag] is not None:
            check_count(flag, config[flag], 1)
    check_count("attack_steps", config["attack_steps"] or 0)
    if not 0 <= config["seed"] < 2**31:
        raise ValueError(
            f"seed must be in [0, 2^31). Received: seed={config['seed']}"
        )
    for flag in ("learning_rate", "weight_decay"):
        check_number(flag, config[flag])
    check_number("momentum", config["momentum"], 0, 1)
    for norm in ("linf", "l2"):
        flag = f"{norm}_epsilons"
        for epsilon in config[flag]:
            check_number(flag, epsilon)
            check_budget(epsilon, norm, _BOUNDS, flag)


def _fill_parts(config, given):
    """Fills in the method's parts and settings; returns the flags not used."""
    row = methods.method(config["method"])
    for part, registry in methods.PARTS.items():
        name = given.get(part, getattr(row, part))
        if name in (None, "none"):
            config[part] = None
        else:
            config[part] = registry.canonical(name)
    chosen = {part: config[part] for part in methods.PARTS}
    defaults = methods.defaults(chosen, row.settings)
    if config["epsilon"] not in (None, defaults.get("epsilon")):
        # A step size that the paper gives goes with the paper's epsilon.
        defaults |= {"step_size": None} if "step_size" in defaults else {}
    for flag in methods.SETTINGS:
        if flag not in defaults:
            config[flag] = None
        elif config[flag] is None:
            config[flag] = defaults[flag]
    config |= methods.named(chosen, given)
    for part in methods.PARTS:  # Checks the ranges.
        if part != "optimizer":
            start = {"start_epoch": 0} if part == "average" else {}
            check_scale(methods.build(part, config, **start))
    for flag in ("sub_batches", "inner_steps"):
        check_count(flag, config[flag] or 0)
    for flag in ("collapse_drop", "epsilon_warmup"):
        check_number(flag, config[flag] or 0)
    unused = [f for f in methods.SETTINGS if f in given and f not in defaults]
    holds_out = config["select"] != "last" or config["validate_every"]
    if not holds_out and "validation_images" in given:
        unused.append("validation_images")
    if config["perturb_weights"] is None and "sharpness" in given:
        unused.append("sharpness")
    return unused


def _name(config, given):
    """A name for a configuration: one of its own, even where it is cut."""
    config = {k: v for k, v in config.items() if k not in workdirs.UNBOUND}
    full = name = config["preset"]
    for flag in sorted(set(given) - {"preset", *workdirs.UNBOUND}):
        value = given[flag]
        text = ",".join(map(str, value)) if type(value) is list else str(value)
        full += f"-{flag}={text}"
        slug = re.sub(r"[^\w.,+-]+", "_", text.rstrip("/").rpartition("/")[2])
        name += f"-{flag}={slug}"
    if name == full and len(name) <= 200:
        return name
    digest = zlib.crc32(json.dumps(config).encode())
    return f"{name[:200]}-{digest:08x}"


def main(argv=None):
    """The command line.

    Args:
        argv: arguments without the program's name; None takes `sys.argv`.

    Returns:
        The exit code: 0, 2 for bad input or a damaged file of the run, 3 for a
        loss that became NaN, 4 for a full disk, 5 for a worker that was lost,
        130 and 143 for SIGINT and SIGTERM.
    """
    argv = sys.argv[1:] if argv is None else argv
    try:
        with contextlib.ExitStack() as held:
            held.enter_context(_warnings_in_one_line())
            stop = held.enter_context(signals.handled())
            return _main(argv, stop, held)
    except KeyboardInterrupt as error:
        print("tfsam: interrupted", file=sys.stderr)
        return getattr(error, "code", 130)
    except files.Unusable as error:
        # Of the run's own files, read late: still no fault of the program.
        print(f"tfsam: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except Exception as error:
        if files.no_room(error) is None:
            raise
        line = " ".join(str(error).split())
        print(
            f"tfsam: {line}; with more room the same command goes on",
            file=sys.stderr,
        )
        return 4


@contextlib.contextmanager
def _warnings_in_one_line():
    """Shows tfsam's own warnings as errors are shown, others as ever."""
    show = warnings.showwarning
    ours = pathlib.Path(__file__).parent

    def show_ours(message, category, filename, lineno, file=None, line=None):
        if pathlib.Path(filename).is_relative_to(ours):
            print(f"tfsam: {' '.join(str(message).split())}", file=sys.stderr)
        else:
            show(message, category, filename, lineno, file, line)

    with warnings.catch_warnings():
        warnings.showwarning = show_ours
        yield


def _is_finished(workdir, config):
    """Whether the folder holds this run, finished: then prints its table."""
    results = workdirs.finished(workdir, config)
    if results:
        print(f"{workdir} holds this run, finished:")
        print(reports.table(results))
    return bool(results)


def _main(argv, stop, held):
    """The exit code; what is entered into `held` lasts as long as the run."""
    try:
        config, workdir = configuration(argv)
        if config is None:
            print(f"{__doc__}\n{define_flags().get_help()}")
            return 0
        if "merge" in config:
            print(reports.table(stages.merge(config["merge"], workdir)))
            return 0
        if _is_finished(workdir, config):
            return 0
        # Everything that can be wrong with the input is found before a file is
        # written; what goes wrong later is no fault of the input.
        if devices.cluster_size() > 1:
            stop.hold()  # Until training ends: see `ownership.agree`.
        inputs = stages.prepare(config)
        workdirs.agree(workdir, config, inputs.strategy, stop)
        if devices.is_chief(inputs.strategy):
            held.enter_context(workdirs.locked(workdir))
            # Another process may have been at work here until now.
            if _is_finished(workdir, config):
                return 0
            workdirs.claim(workdir, config)
    except (flags.Error, ImportError, OSError, ValueError) as error:
        if files.no_room(error):
            raise
        print(f"tfsam: {' '.join(str(error).split())}", file=sys.stderr)
        return 5 if isinstance(error, devices.WorkerLost) else 2
    log = stages.logger(workdir / "log.txt", inputs.strategy)
    log(f"{workdir}: {' '.join(argv)}")
    try:
        results = stages.run(config, inputs, workdir, log, stop)
    except FloatingPointError as error:
        kept = fit.epochs_done(workdir)
        what = f"the checkpoint of epoch {kept} is kept" if kept else None
        log(f"stopped: {error}; {what or 'no epoch was finished'}")
        return 3
    except ConnectionError as error:
        log(f"stopped: {error}; the same command on all workers goes on")
        return 5
    except KeyboardInterrupt as error:
        log("interrupted; the same command goes on from here")
        return getattr(error, "code", 130)
    if results:
        print(reports.table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
