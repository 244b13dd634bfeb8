"""Train, attack, export and report, from one command.

  python -m tfsam.run --method=sam --rho=0.2
  python -m tfsam.run --preset=cifar100 --method=at --epsilon=1/255
  python -m tfsam.run --evaluate=model.keras --dataset=npz:data.npz

A preset sets every flag, any flag overrides its preset. Training attacks with
--epsilon --norm --steps --step_size; evaluation with --attacks --linf_epsilons
--l2_epsilons --attack_steps. The same command again goes on where it was
stopped, and prints the table of a run that is finished. Exit code 2 is bad
input, 3 a loss that became NaN.
"""

import contextlib
import functools
import importlib.metadata
import inspect
import json
import pathlib
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf
from absl import flags

import tfsam
from tfsam import attacks
from tfsam import callbacks
from tfsam import data
from tfsam import evaluation
from tfsam import networks
from tfsam import reports


class Method(NamedTuple):
    """A method of training: the two perturbations, and a line of help."""

    perturb_inputs: Callable | None
    perturb_weights: Callable | None
    help: str


METHODS = {
    "st": Method(None, None, "standard training"),
    "sam": Method(None, tfsam.SAM, "sharpness-aware minimization"),
    "asam": Method(None, tfsam.ASAM, "adaptive SAM"),
    "at": Method(tfsam.PGD, None, "adversarial training by PGD"),
    "fgsm_at": Method(
        functools.partial(tfsam.FGSM, random_start=True),
        None,
        "adversarial training by FGSM from a random start",
    ),
    "at_sam": Method(tfsam.PGD, tfsam.SAM, "PGD on the inputs, then SAM"),
}

NETWORKS = {
    "preact_resnet8": networks.preact_resnet8,
    "preact_resnet18": networks.preact_resnet18,
    "wide_resnet": networks.wide_resnet,
}

_PAPER = {
    "method": "sam",
    "network": "preact_resnet18",
    "epochs": 100,
    "batch_size": 128,
    "learning_rate": 0.1,
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "augment": True,
    "epsilon": 8 / 255,
    "steps": 5,
    "seed": 0,
    "attacks": ["cleverhans_pgd"],
    "attack_steps": 10,
    "linf_epsilons": [1 / 255, 2 / 255],
    "l2_epsilons": [16 / 255, 32 / 255],
    "devices": "auto",
    "jit_compile": "auto",
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

# What training alone uses: refused beside --evaluate.
_TRAINING = (
    *("method", "rho", "epsilon", "norm", "steps", "step_size", "network"),
    *("epochs", "batch_size", "learning_rate", "momentum", "weight_decay"),
    *("augment", "sharpness", "limit_train"),
)


class _NumberParser(flags.ArgumentParser):
    """A number, also as a fraction: 8/255."""

    def parse(self, argument):
        try:
            return float(Fraction(str(argument).replace(" ", "")))
        except (ValueError, ZeroDivisionError):
            raise ValueError(
                f"expected a number such as 0.1 or 8/255. Received: {argument}"
            ) from None

    def flag_type(self):
        return "number"


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
    integer = functools.partial(flags.DEFINE_integer, flag_values=values)

    def choice(name, options, help):
        # No enum: its error message would name neither flag nor value last.
        text(name, None, f"{help}: {', '.join(options)}.")

    def number(name, help):
        flags.DEFINE(
            _NumberParser(), name, None, help, values,
            flags.ArgumentSerializer(),
        )  # fmt: skip

    def numbers(name, help):
        flags.DEFINE(
            _NumbersParser(), name, None, help, values,
            flags.ArgumentSerializer(),
        )  # fmt: skip

    text(
        "preset",
        "digits",
        "What all other flags default to. digits: real 8x8 images that come "
        "with scikit-learn, a small network, a minute. cifar10, cifar100: the "
        "paper's recipe.",
    )
    methods = "; ".join(f"{name}: {m.help}" for name, m in METHODS.items())
    text("method", None, f"Method of training. {methods}.")
    number("rho", "SAM's, ASAM's radius around the weights.")
    number("epsilon", "Training's attack: largest perturbation of a pixel.")
    text("norm", None, "Training's attack: linf or l2.")
    integer("steps", None, "Training's attack: steps.")
    number(
        "step_size",
        "Training's attack: size of a step. Default: epsilon/4 for PGD in "
        "l-inf, epsilon/8 in l2; 1.25 epsilon for fgsm_at.",
    )
    text("dataset", None, f"Images: {'; '.join(data.SOURCES)}.")
    choice("network", NETWORKS, "Network")
    integer("epochs", None, "Epochs of training.")
    integer("batch_size", None, "Batch size over all devices.")
    number(
        "learning_rate", "Learning rate; times 0.1 at 75 % and 90 % of epochs."
    )
    number("momentum", "Momentum of SGD.")
    number("weight_decay", "Coupled weight decay of SGD.")
    flags.DEFINE_boolean(
        "augment", None, "Random crops and flips.", flag_values=values
    )
    integer("seed", None, "Seed of everything random.")
    text(
        "workdir", None, "Folder of the run. Default: runs/NAME, by the flags."
    )
    integer("limit_train", None, "Train on so many images, stratified.")
    integer("limit_test", None, "Evaluate on so many images, stratified.")
    flags.DEFINE_list(
        "attacks",
        None,
        "Evaluation's attacks, with commas between them: "
        f"{', '.join(attacks.names())}.",
        flag_values=values,
    )
    numbers("linf_epsilons", "Evaluation's l-inf budgets, such as 1/255,2/255.")
    numbers("l2_epsilons", "Evaluation's l2 budgets.")
    integer("attack_steps", None, "Evaluation's steps, for attacks with steps.")
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
        "jit_compile",
        ("auto", "true", "false"),
        "XLA for gradients; auto: on GPUs and for large networks",
    )
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
    rest = values(["tfsam.run", *argv])[1:]
    if rest:
        raise ValueError(f"expected flags only. Received: {' '.join(rest)}")
    if values.help:
        return None, None
    given = {
        name: values[name].value
        for name in values
        if values[name].present and values[name].value is not None
    }
    preset = _one_of("preset", given.get("preset", "digits"), PRESETS)
    config = {"preset": given.get("preset", "digits")}
    names = (n for n in values if n not in ("help", "preset", "workdir"))
    config |= {n: given.get(n, preset.get(n)) for n in sorted(names)}
    _check_choices(config)
    if config["evaluate"]:
        unused = [name for name in _TRAINING if name in given]
        config |= dict.fromkeys(_TRAINING)
        reason = "--evaluate, which trains nothing,"
    else:
        unused = _fill_perturbations(config, given)
        reason = f"--method={config['method']}"
    if unused:
        raise ValueError(
            f"{reason} does not use --{unused[0]}. "
            f"Received: --{unused[0]}={given[unused[0]]}"
        )
    name = config["preset"]
    for flag in sorted(given):
        if flag not in ("preset", "workdir"):
            name += f"-{flag}={_slug(given[flag])}"
    workdir = given.get("workdir") or f"runs/{name[:200]}"
    return config, pathlib.Path(workdir).expanduser()


def _check_choices(config):
    _one_of("method", config["method"], METHODS)
    _one_of("network", config["network"], NETWORKS)
    _one_of("jit_compile", config["jit_compile"], ("auto", "true", "false"))
    _one_of("sharpness", config["sharpness"], ("per_replica", "global"))
    if not config["attacks"]:
        raise ValueError("attacks must name one at least. Received: none")
    for attack in config["attacks"]:
        _one_of("attack", attack, attacks.names())
    for flag in ("epochs", "batch_size", "limit_train", "limit_test"):
        if config[flag] is not None and config[flag] < 1:
            raise ValueError(
                f"{flag} must be >= 1. Received: {flag}={config[flag]}"
            )
    if config["attack_steps"] < 0:
        raise ValueError(
            "attack_steps must be >= 0. "
            f"Received: attack_steps={config['attack_steps']}"
        )
    if not 0 <= config["seed"] < 2**31:
        raise ValueError(
            f"seed must be in [0, 2^31). Received: seed={config['seed']}"
        )
    for flag in ("learning_rate", "momentum", "weight_decay"):
        tfsam.geometry.check_radius(flag, config[flag])
    for flag in ("linf_epsilons", "l2_epsilons"):
        for epsilon in config[flag]:
            tfsam.geometry.check_radius(flag, epsilon)


def _fill_perturbations(config, given):
    """Fills in the method's defaults; returns the given flags it has not."""
    settings = {}
    method = METHODS[config["method"]]
    for constructor in (method.perturb_inputs, method.perturb_weights):
        if constructor is not None:
            settings |= inspect.signature(constructor).parameters
    flags_of_methods = ("rho", "epsilon", "norm", "steps", "step_size")
    for flag in flags_of_methods:
        if flag not in settings:
            config[flag] = None
        elif config[flag] is None:
            default = settings[flag].default
            config[flag] = (
                None if default is inspect.Parameter.empty else default
            )
    perturbations(config)  # Checks the ranges.
    return [f for f in flags_of_methods if f in given and f not in settings]


def perturbations(config):
    """What perturbs the inputs and the weights: two objects, or None.

    Args:
        config: settings, as of `configuration`.

    Raises:
        ValueError: if a setting is out of its range.
    """
    method = METHODS[config["method"]]
    return tuple(
        None
        if constructor is None
        else constructor(
            **{
                name: config[name]
                for name in inspect.signature(constructor).parameters
                if config.get(name) is not None
            }
        )
        for constructor in (method.perturb_inputs, method.perturb_weights)
    )


def _one_of(name, value, known):
    if value not in known:
        raise ValueError(
            f"{name} must be one of {', '.join(known)}. "
            f"Received: {name}={value}"
        )
    return known[value] if isinstance(known, dict) else value


def _slug(value):
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    return re.sub(r"[^\w.,+-]+", "_", text.rstrip("/").rpartition("/")[2])


def open_workdir(workdir, config):
    """Takes a folder for this run, or refuses one that holds something else.

    Args:
        workdir: the folder; it need not exist.
        config: settings, as of `configuration`.

    Returns:
        The results of the run, if it is finished already, else None.

    Raises:
        ValueError: if the folder holds another run or other files.
    """
    record = workdir / "config.json"
    if workdir.exists() and not workdir.is_dir():
        raise ValueError(f"workdir must be a folder. Received: {workdir}")
    if record.exists():
        held = json.loads(record.read_text())
        different = [k for k in config if held.get(k) != config[k]]
        if different:
            changes = ", ".join(
                f"{k}={config[k]} (it has {held.get(k)})" for k in different
            )
            raise ValueError(
                f"workdir {workdir} holds a run with another configuration; "
                f"choose another --workdir. Received: {changes}"
            )
        finished = workdir / "results.json"
        return json.loads(finished.read_text()) if finished.exists() else None
    if workdir.is_dir() and any(workdir.iterdir()):
        raise ValueError(
            "workdir must be empty or hold a run of this command. "
            f"Received: workdir={workdir}"
        )
    workdir.mkdir(parents=True, exist_ok=True)
    reports.write_json(record, config)
    return None


def make_strategy(devices):
    """The `tf.distribute` strategy of a --devices value, None for one device.

    Args:
        devices: auto, cpu, cpu:N, gpu:all or gpu:N.

    Raises:
        ValueError: if there are no such devices.
    """
    gpus = tf.config.list_physical_devices("GPU")
    match = re.fullmatch(r"(auto)|cpu(?::(\d+))?|gpu:(all|\d+)", devices)
    if not match or "0" in match.groups():
        raise ValueError(
            "devices must be auto, cpu, cpu:N, gpu:all or gpu:N. "
            f"Received: devices={devices}"
        )
    if match[3] or (match[1] and gpus):
        count = int(match[3]) if (match[3] or "all") != "all" else len(gpus)
        if not 0 < count <= len(gpus):
            raise ValueError(
                f"devices must name GPUs that are here: {len(gpus)}. "
                f"Received: devices={devices}"
            )
        names = [f"GPU:{i}" for i in range(count)]
        # One GPU of several still needs to be told apart from the others.
        return tf.distribute.MirroredStrategy(names) if len(gpus) > 1 else None
    if gpus and match[0].startswith("cpu"):
        tf.config.set_visible_devices([], "GPU")
    count = int(match[2] or 1)
    if count == 1:
        return None
    with contextlib.suppress(RuntimeError):  # Already set; counted below.
        tf.config.set_logical_device_configuration(
            tf.config.list_physical_devices("CPU")[0],
            [tf.config.LogicalDeviceConfiguration()] * count,
        )
    if len(tf.config.list_logical_devices("CPU")) < count:
        raise ValueError(
            f"devices must be set before TensorFlow starts, or be those that "
            f"are here. Received: devices={devices}"
        )
    return tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(count)])


def make_model(config, images, strategy):
    """A compiled `RobustModel` for the images.

    Args:
        config: settings, as of `configuration`.
        images: a `tfsam.data.Images`.
        strategy: a `tf.distribute` strategy or None.
    """
    keras.utils.set_random_seed(config["seed"])
    perturb_inputs, perturb_weights = perturbations(config)
    # The paper's statistics where the images are the paper's.
    known = images.name in ("cifar10", "cifar100")
    steps = _steps(config, images)
    with strategy.scope() if strategy else contextlib.nullcontext():
        network = NETWORKS[config["network"]](
            len(images.class_names),
            input_shape=images.x_train.shape[1:],
            statistics=None if known else data.statistics(images.x_train),
        )
        model = tfsam.RobustModel(
            network,
            perturb_inputs,
            perturb_weights,
            sharpness=config["sharpness"],
            seed=config["seed"],
        )
        model.compile(
            tfsam.SGD(
                _schedule(config["learning_rate"], config["epochs"], steps),
                momentum=config["momentum"],
                weight_decay=config["weight_decay"],
            ),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
            jit_compile=_jit_compile(config, network),
        )
    return model


def _schedule(learning_rate, epochs, steps):
    """Times 0.1 at 75 % and again at 90 % of the epochs (the paper's)."""
    drops = [round(epochs * part) * steps - 1 for part in (0.75, 0.9)]
    return keras.optimizers.schedules.PiecewiseConstantDecay(
        drops, [learning_rate, learning_rate / 10, learning_rate / 100]
    )


def _jit_compile(config, network):
    if config["jit_compile"] == "auto":
        return evaluation.load_logits(network).jit_compile
    return config["jit_compile"] == "true"


def _steps(config, images):
    drop = _replicas(config) > 1
    count = len(images.x_train) // config["batch_size"]
    partial = len(images.x_train) % config["batch_size"] and not drop
    return max(count + bool(partial), 1)


def _replicas(config):
    return int((re.search(r"\d+$", config["devices"]) or ["1"])[0])


def train(config, images, workdir, strategy, log):
    """Trains, from the newest checkpoint if there is one.

    Args:
        config: settings, as of `configuration`.
        images: a `tfsam.data.Images`.
        workdir: the run's folder.
        strategy: a `tf.distribute` strategy or None.
        log: a function of a line of text.

    Returns:
        The trained network.

    Raises:
        FloatingPointError: if the loss or a weight is not finite any more.
    """
    model, done = _restore(workdir / "checkpoints", strategy, log)
    if model is None:
        model = make_model(config, images, strategy)
    epochs, steps = config["epochs"], _steps(config, images)
    if done < epochs:
        train_data = data.training_batches(
            images.x_train,
            images.y_train,
            batch_size=config["batch_size"],
            epochs=epochs,
            seed=config["seed"],
            initial_epoch=done,
            augment=config["augment"],
            # Replicas cannot share a batch that is smaller than they are many.
            drop_remainder=strategy is not None,
        )
        model.fit(
            train_data,
            epochs=epochs,
            initial_epoch=done,
            steps_per_epoch=steps,
            validation_data=(data.as_float(images.x_test), images.y_test),
            validation_batch_size=config["batch_size"],
            callbacks=[
                callbacks.StopAtNaN(),
                callbacks.History(workdir / "history.csv", done),
                callbacks.Checkpoint(workdir / "checkpoints"),
                callbacks.Progress(log, steps, epochs),
                keras.callbacks.TensorBoard(
                    workdir / "tensorboard", write_graph=False
                ),
            ],
            shuffle=False,  # The data is shuffled, reproducibly.
            verbose=0,
        )
    return model.network


def _restore(folder, strategy, log):
    """The model of the newest checkpoint that can be read, and its epochs."""
    for epochs, path in callbacks.checkpoints(folder):
        try:
            with strategy.scope() if strategy else contextlib.nullcontext():
                model = keras.saving.load_model(path)
        except (OSError, ValueError, KeyError) as error:
            log(f"cannot read {path.name} ({error}); trying the one before")
            continue
        log(f"going on after epoch {epochs}")
        return model, epochs
    return None, 0


def attack(config, model, images, workdir, log):
    """Evaluates; what is measured stays in a file, attack by attack.

    Args:
        config: settings, as of `configuration`.
        model: what `tfsam.evaluate` takes.
        images: a `tfsam.data.Images`.
        workdir: the run's folder.
        log: a function of a line of text.

    Returns:
        `natural` and `robust`, as of `tfsam.evaluate`.
    """
    record = workdir / "evaluation.json"
    measured = json.loads(record.read_text()) if record.exists() else {}
    x, y = data.as_float(images.x_test), images.y_test
    jit_compile = {"auto": "auto", "true": True, "false": False}
    result: dict = {"natural": None, "robust": []}
    for name in config["attacks"]:
        options = _attack_options(name, config)
        for norm in ("linf", "l2"):
            epsilons = config[f"{norm}_epsilons"]
            key = f"{name} {norm}"
            if epsilons and key not in measured:
                log(f"attacking by {key} {', '.join(map(str, epsilons))}")
                measured[key] = tfsam.evaluate(
                    model,
                    (x, y),
                    [(name, options)],
                    norm,
                    epsilons,
                    seed=config["seed"],
                    jit_compile=jit_compile[config["jit_compile"]],
                    progress=log,
                )
                reports.write_json(record, measured)
            if epsilons:
                result["natural"] = measured[key]["natural"]
                result["robust"] += measured[key]["robust"]
    if result["natural"] is None:
        result = tfsam.evaluate(model, (x, y), [])
    return result


def _attack_options(name, config):
    known = attacks.option_names(attacks.factory(name)) or ()
    return {"steps": config["attack_steps"]} if "steps" in known else {}


def draw(config, model, images, results, workdir):
    """Draws robustness.png, and examples.png by the strongest l-inf budget.

    Args:
        config: settings, as of `configuration`.
        model: what `tfsam.evaluate` takes.
        images: a `tfsam.data.Images`.
        results: of `attack`.
        workdir: the run's folder.
    """
    reports.robustness_plot(results, workdir / "robustness.png")
    rows = [r for r in results["robust"] if r["accuracy"] is not None]
    if not rows:
        return
    row = max(rows, key=lambda r: (r["norm"] == "linf", r["epsilon"]))
    logits = evaluation.load_logits(model)
    x, y = data.as_float(images.x_test[:200]), images.y_test[:200]
    before = np.argmax(logits(tf.constant(x)), axis=1)
    shown = np.flatnonzero(before == y)[:5]
    if not len(shown):
        return
    x, y, before = x[shown], y[shown], before[shown]
    make = attacks.get(
        row["attack"],
        epsilon=row["epsilon"],
        norm=row["norm"],
        **row["options"],
    )
    x_adv = make(logits, x, y, config["seed"]).numpy()
    after = np.argmax(logits(tf.constant(x_adv)), axis=1)
    names = images.class_names
    reports.examples_plot(
        x,
        x_adv,
        [(names[b], names[a]) for b, a in zip(before, after, strict=True)],
        workdir / "examples.png",
    )


def run(config, workdir, log):
    """Does all of it, and writes results.json last.

    Args:
        config: settings, as of `configuration`.
        workdir: the run's folder, taken by `open_workdir`.
        log: a function of a line of text.

    Returns:
        What results.json holds.
    """
    strategy = make_strategy(config["devices"])
    images = load_images(config)
    model = config["evaluate"]
    trained = None
    if not model:
        model = train(config, images, workdir, strategy, log)
        with reports.replacing(workdir / "model.keras") as temporary:
            model.save(temporary)
        with reports.replacing(workdir / "saved_model") as temporary:
            model.export(temporary, verbose=False)
        trained = _training_summary(workdir, config)
    measured = attack(config, model, images, workdir, log)
    draw(config, model, images, measured, workdir)
    results = {
        "schema": 1,
        "method": config["method"],
        "config": config,
        "seed": config["seed"],
        "versions": _versions(),
        "devices": [d.name for d in tf.config.list_logical_devices()],
        "train": trained,
        **measured,
        "artifacts": _artifacts(workdir),
    }
    reports.write_json(workdir / "results.json", results)
    return results


def load_images(config):
    """The images of a run.

    Args:
        config: settings, as of `configuration`.
    """
    return data.load(
        config["dataset"],
        limit_train=config["limit_train"],
        limit_test=config["limit_test"],
        seed=config["seed"],
    )


def _training_summary(workdir, config):
    rows = callbacks.read_history(workdir / "history.csv")
    step = statistics.median(row["step_seconds_median"] for row in rows)
    return {
        "epochs": len(rows),
        "seconds": sum(row["seconds"] for row in rows),
        "step_seconds_median": step,
        "examples_per_second": config["batch_size"] / step,
    }


def _versions():
    packages = ("tfsam", "tensorflow", "keras", "cleverhans", "numpy")
    return {"python": platform.python_version()} | {
        name: importlib.metadata.version(name) for name in packages
    }


def _artifacts(workdir):
    names = (
        *("config.json", "evaluation.json", "history.csv", "model.keras"),
        *("saved_model", "tensorboard", "robustness.png", "examples.png"),
        "log.txt",
    )
    return [name for name in names if (workdir / name).exists()]


def _logger(path):
    def log(line):
        print(line, flush=True)
        with open(path, "a") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")

    return log


def main(argv=None):
    """The command line.

    Args:
        argv: arguments without the program's name; None takes `sys.argv`.

    Returns:
        The exit code: 0, 2 for bad input, 3 for a loss that became NaN.
    """
    try:
        config, workdir = configuration(sys.argv[1:] if argv is None else argv)
        if config is None:
            print(f"{__doc__}\n{define_flags().get_help()}")
            return 0
        _check_input(config)
        results = open_workdir(workdir, config)
        if results:
            print(f"{workdir} holds this run, finished:")
            print(reports.table(results))
            return 0
        log = _logger(workdir / "log.txt")
        log(f"{workdir}: {' '.join(sys.argv[1:] if argv is None else argv)}")
        results = run(config, workdir, log)
    except FloatingPointError as error:
        log(f"stopped: {error}; the last good checkpoint is kept")
        return 3
    except (flags.Error, ImportError, OSError, ValueError) as error:
        print(f"tfsam: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    log(f"done: {workdir / 'results.json'}")
    print(reports.table(results))
    return 0


def _check_input(config):
    """Finds what is wrong with the input before a file is written."""
    for name in config["attacks"]:
        attacks.factory(name)
    if config["evaluate"]:
        evaluation.load_logits(config["evaluate"])
    make_strategy(config["devices"])
    load_images(config)


if __name__ == "__main__":
    sys.exit(main())
