"""The cost of a training step of each method, relative to standard training.

  python -m experiments.benchmark_steps

prints Markdown: the median seconds of a step, its ratio to standard training
(st), the ideal ratio, and the target. Ideals count forward passes F: a backward
pass takes 2 F, or 1 F for the gradient of the inputs alone, so st takes 3 F.

Steps are timed in rounds, one step of each method, so that a slow phase of the
machine affects all of them. A ratio is the median of the ratios of the rounds.

  --jit_compile=both times each method in a plain graph as well as with XLA.
  --torch times the same steps in PyTorch, in the same rounds and on the CPU;
      pip install -e ".[bench]".
  --profile=METHOD times the parts of one method's step instead.
"""

import functools
import os
import statistics
import sys
import time
from typing import Any
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf
from absl import flags

import tfsam
from experiments import command
from experiments import step_pieces


class Method(NamedTuple):
    """A method and the target for the cost of its step.

    Attributes:
        options: arguments of `RobustModel`.
        ideal: the step's passes, relative to standard training's.
        limit: its largest cost relative to `base`; None for no target.
        base: name of the method that `limit` refers to.
        steps: training steps that are timed together; their mean counts.
    """

    options: dict[str, Any]
    ideal: float
    limit: float | None = None
    base: str = "st"
    steps: int = 1


_SAM = tfsam.SAM(0.1)
_PGD5 = tfsam.PGD(8 / 255, steps=5)
_PGD10 = tfsam.PGD(8 / 255, steps=10)
_TRADES_PGD10 = tfsam.PGD(
    0.031, steps=10, step_size=0.007, loss="kl", random_start="normal"
)
# A new mask is due at steps 0 and 10**9, and none of these is trained.
_SSAM = functools.partial(tfsam.SSAM, 0.1, refresh_every=10**9)

METHODS = {
    "st": Method({}, 1),
    "sam": Method({"perturb_weights": _SAM}, 2, 2.15),
    "asam": Method({"perturb_weights": tfsam.ASAM(1.0)}, 2, 2.15),
    "fsam": Method({"perturb_weights": tfsam.FSAM(0.1)}, 2, 2.15),
    "gsam": Method({"perturb_weights": tfsam.GSAM(0.1)}, 2, 2.15),
    "ssam_f": Method({"perturb_weights": _SSAM(mask="fisher")}, 2, 2.15),
    "ssam_d": Method({"perturb_weights": _SSAM(mask="dynamic")}, 2, 2.15),
    "friendly_sam": Method(
        {"perturb_weights": tfsam.FriendlySAM(0.1)}, 2, 1.05, "sam"
    ),
    "vasso": Method({"perturb_weights": tfsam.VaSSO(0.1)}, 2, 1.05, "sam"),
    "msam": Method({"perturb_weights": tfsam.MSAM(0.1)}, 1, 1.1),
    "wsam": Method({"perturb_weights": tfsam.WSAM(0.1)}, 2, 2.15),
    "sam_on": Method(
        {"perturb_weights": tfsam.SAM(0.1, layers="normalization")}, 2, 2.15
    ),
    "sam_4_parts": Method({"perturb_weights": _SAM, "sub_batches": 4}, 2),
    # A static graph saves no time by frozen weights, and passes the half of the
    # batch that it chose forward again.
    "esam": Method(
        {
            "perturb_weights": tfsam.ESAM(
                0.1, weight_fraction=0.6, sample_fraction=0.5
            )
        },
        5.5 / 3,
        1.9,
    ),
    "looksam": Method(
        {"perturb_weights": tfsam.LookSAM(0.1, every=5)}, 1.2, 1.3, steps=5
    ),
    "fgsm_at": Method(
        {"perturb_inputs": tfsam.FGSM(8 / 255, random_start=True)}, 5 / 3, 1.75
    ),
    "nfgsm_at": Method({"perturb_inputs": tfsam.NFGSM(8 / 255)}, 5 / 3, 1.75),
    # A step uses its batch eight times; the gradient of the pixels is that of
    # the first layer alone.
    "free_at": Method({"perturb_inputs": tfsam.FreeAT(8 / 255)}, 8),
    "at": Method({"perturb_inputs": _PGD5}, 13 / 3, 4.5),
    "at10": Method({"perturb_inputs": _PGD10}, 23 / 3),
    "trades": Method(
        {"perturb_inputs": _TRADES_PGD10, "objective": tfsam.TRADES()}, 9, 9.5
    ),
    "mart": Method(
        {"perturb_inputs": _PGD10, "objective": tfsam.MART()}, 26 / 3
    ),
    "ikl": Method(
        {"perturb_inputs": _TRADES_PGD10, "objective": tfsam.IKL()}, 9
    ),
    "awp": Method(
        {"perturb_inputs": _PGD10, "perturb_weights": tfsam.AWP()},
        26 / 3,
        1.2,
        "at10",
    ),
    "at_sam": Method(
        {"perturb_inputs": _PGD5, "perturb_weights": _SAM}, 16 / 3
    ),
}

# Ours, PyTorch's (see `torch_networks.Training`), and the most that ours may
# cost relative to it.
TORCH = [
    ("st", "st", 1.0),
    ("sam", "sam", 1.15),
    ("at", "at", None),
    ("at", "at_with_weight_gradients", 1 / 1.6),
]


FLAGS = flags.FlagValues()
_NETWORK = flags.DEFINE_enum(
    "network",
    "preact_resnet18",
    ["preact_resnet8", "preact_resnet18"],
    "Network, for images of 32x32.",
    flag_values=FLAGS,
)
_WIDTH = flags.DEFINE_integer(
    "width", 16, "Channels of its first stage.", flag_values=FLAGS
)
_BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", 128, "Images a step.", flag_values=FLAGS
)
_REPEATS = flags.DEFINE_integer(
    "repeats", 5, "Rounds timed.", lower_bound=1, flag_values=FLAGS
)
_METHODS = flags.DEFINE_list(
    "methods",
    [],
    "Methods to time, with the methods that they are compared to; or all.",
    flag_values=FLAGS,
)
_JIT_COMPILE = flags.DEFINE_enum(
    "jit_compile",
    "true",
    ["true", "false", "both"],
    "Whether to use XLA.",
    flag_values=FLAGS,
)
_TORCH = flags.DEFINE_boolean(
    "torch", False, "Compare to PyTorch.", flag_values=FLAGS
)
_PROFILE = flags.DEFINE_enum(
    "profile",
    None,
    list(METHODS),
    "The method whose step to time in parts.",
    flag_values=FLAGS,
)


class Comparison(NamedTuple):
    """A target: the clock `one` takes at most `limit` times `other`'s time."""

    one: tuple[str, str]
    other: tuple[str, str]
    limit: float | None


def with_bases(names):
    """Returns the methods, st and the methods that they are compared with.

    Args:
        names: names of methods; an empty list means all.

    Raises:
        ValueError: if there is no such method.
    """
    if unknown := sorted(set(names) - set(METHODS)):
        raise ValueError(
            f"methods must be among {list(METHODS)}. Received: {unknown}"
        )
    wanted = set(names or METHODS)
    wanted |= {METHODS[name].base for name in wanted} | {"st"}
    return [name for name in METHODS if name in wanted]


def images(batch_size):
    """Returns a batch of random images and labels."""
    random = np.random.default_rng(0)
    x = random.random((batch_size, 32, 32, 3), dtype="float32")
    return x, random.integers(0, 10, batch_size)


def trained(network, method, system, x, y):
    """Returns a model of the method, and its training step, traced and warm.

    Args:
        network: a new `keras.Model`.
        method: a `Method`.
        system: "graph" or "XLA".
        x: images.
        y: labels.
    """
    model = tfsam.RobustModel(network, **method.options)
    model.compile(
        tfsam.SGD(0.1, momentum=0.9, weight_decay=5e-4),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=system == "XLA",
    )
    step = functools.partial(
        model.train_on_batch, tf.constant(x), tf.constant(y)
    )
    # Step 0 is SSAM's most expensive; steps between two masks are timed.
    model.step_count.assign(1)
    # Every kind of step that it takes, and the first one twice.
    for _ in range(method.steps + 1):
        step()
    return model, step


def seconds(function, times=1):
    """Returns the mean seconds of consecutive calls."""
    started = time.perf_counter()
    for _ in range(times):
        function()
    # A GPU may still be computing.
    tf.test.experimental.sync_devices()
    return (time.perf_counter() - started) / times


def in_turn(clocks, repeats):
    """Returns the rounds of seconds: a list of dicts, by the clocks' names.

    Args:
        clocks: functions without arguments that return seconds, by name.
        repeats: number of rounds.
    """
    rounds = []
    for index in range(repeats):
        rounds.append({name: clock() for name, clock in clocks.items()})
        took = sum(rounds[-1].values())
        note(f"round {index + 1} of {repeats}: {took:.1f} s a step of each")
    return rounds


def measure(
    methods, systems, *, network, width, batch_size, repeats, torch=False
):
    """Returns the rounds of seconds a step, by (system, method).

    Args:
        methods: names in `METHODS`.
        systems: any of "graph" and "XLA".
        network: name in `tfsam.networks`.
        width: channels of its first stage.
        batch_size: images a step.
        repeats: number of rounds.
        torch: whether to time PyTorch's steps too, as the system "PyTorch".

    Raises:
        ValueError: if PyTorch has no such network.
    """
    x, y = images(batch_size)
    theirs = _torch_steps(network, width, x, y) if torch else {}
    make = getattr(tfsam.networks, network)
    clocks = {}
    for name in methods:
        method = METHODS[name]
        for system in systems:
            started = time.perf_counter()
            _, step = trained(make(width=width), method, system, x, y)
            clocks[system, name] = functools.partial(
                seconds, step, method.steps
            )
            took = time.perf_counter() - started
            note(f"{system} {name}: {took:.1f} s to trace and warm up")
        for one, other, _ in TORCH:
            if one == name and other in theirs:
                step = theirs[other]
                step()
                clocks["PyTorch", other] = functools.partial(seconds, step)
    return in_turn(clocks, repeats)


def _torch_steps(network, width, x, y):
    import torch

    from experiments import torch_networks

    if network != "preact_resnet18":
        raise ValueError(
            f"torch needs network=preact_resnet18. Received: network={network}"
        )
    # TensorFlow's default number of threads.
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    images = torch.tensor(x.transpose(0, 3, 1, 2).copy())
    steps = {}
    for _, name, _ in TORCH:
        model = torch_networks.PreActResNet18(10, width)
        training = torch_networks.Training(model, images, torch.tensor(y))
        steps[name] = getattr(training, name)
    return steps


def median(rounds, clock):
    """Returns the median seconds of a clock."""
    return statistics.median(row[clock] for row in rounds)


def ratio(rounds, one, other):
    """Returns the median over the rounds of one clock relative to another."""
    return statistics.median(row[one] / row[other] for row in rounds)


def costs(rounds, system, methods):
    """Returns the table of one system, relative to standard training."""
    lines = [
        f"| method, {system} | seconds | / st | ideal | target |",
        "|---|---|---|---|---|",
    ]
    for name in methods:
        method, clock = METHODS[name], (system, name)
        target = "" if method.limit is None else f"{method.limit:g}"
        if method.base != "st":
            found = ratio(rounds, clock, (system, method.base))
            target += f" of {method.base} ({found:.2f})"
        lines.append(
            f"| {name} | {median(rounds, clock):.3f} "
            f"| {ratio(rounds, clock, (system, 'st')):.2f} "
            f"| {method.ideal:.2f} | {target} |"
        )
    return "\n".join(lines)


def against(rounds, comparisons):
    """Returns the table of one system's clocks relative to another's."""
    lines = [
        "| step | seconds | relative to | seconds | ratio | target |",
        "|---|---|---|---|---|---|",
    ]
    for one, other, limit in comparisons:
        lines.append(
            f"| {' '.join(one)} | {median(rounds, one):.3f} "
            f"| {' '.join(other)} | {median(rounds, other):.3f} "
            f"| {ratio(rounds, one, other):.2f} "
            f"| {'' if limit is None else f'{limit:.3g}'} |"
        )
    return "\n".join(lines)


def missed(rounds, comparisons):
    """Returns a sentence on each target that was missed."""
    return [
        f"Missed: {' '.join(one)} is {found:.2f} of {' '.join(other)}, "
        f"the target {limit:.3g}."
        for one, other, limit in comparisons
        if limit is not None and (found := ratio(rounds, one, other)) > limit
    ]


def report(rounds, systems, methods):
    """Returns all tables of the rounds, and the targets missed, as Markdown."""
    parts, targets = [], []
    for system in systems:
        parts.append(costs(rounds, system, methods))
        targets += [
            Comparison((system, name), (system, m.base), m.limit)
            for name in methods
            if (m := METHODS[name]).limit is not None
        ]
    theirs = [
        Comparison((system, one), ("PyTorch", other), limit)
        for system in systems
        for one, other, limit in TORCH
        if ("PyTorch", other) in rounds[0]
    ]
    if theirs:
        parts.append(against(rounds, theirs))
    if len(systems) > 1:
        pairs = [
            Comparison(("XLA", name), ("graph", name), None) for name in methods
        ]
        parts.append(against(rounds, pairs))
    wrong = missed(rounds, targets + theirs)
    parts.append("\n".join(wrong) or "No target was missed.")
    return "\n\n".join(parts)


def profile(name, system, *, network, width, batch_size, repeats):
    """Returns the table of the parts of one method's step.

    Args:
        name: in `METHODS`.
        system: "graph" or "XLA".
        network: as the others, see `measure`.
        width: see `measure`.
        batch_size: see `measure`.
        repeats: see `measure`.
    """
    x, y = images(batch_size)
    make = getattr(tfsam.networks, network)
    standard, method = METHODS["st"], METHODS[name]
    _, base = trained(make(width=width), standard, system, x, y)
    model, step = trained(make(width=width), method, system, x, y)
    clocks = {"st": functools.partial(seconds, base)}
    for part, piece in step_pieces.pieces(model, x, y).items():
        piece()
        clocks[part] = functools.partial(seconds, piece)
    clocks[name] = functools.partial(seconds, step, method.steps)
    rounds = in_turn(clocks, repeats)
    lines = [f"| {name}, {system} | seconds | / st |", "|---|---|---|"]
    for part in clocks:
        lines.append(
            f"| {part} | {median(rounds, part):.4f} "
            f"| {ratio(rounds, part, 'st'):.3f} |"
        )
    return "\n".join(lines)


def note(text):
    """Prints progress to standard error, beside the tables."""
    print(text, file=sys.stderr, flush=True)


def main():
    """Prints the tables."""
    systems = {"true": ["XLA"], "false": ["graph"], "both": ["graph", "XLA"]}[
        _JIT_COMPILE.value
    ]
    setting = {
        "network": _NETWORK.value,
        "width": _WIDTH.value,
        "batch_size": _BATCH_SIZE.value,
        "repeats": _REPEATS.value,
    }
    print(", ".join(f"{key} {value}" for key, value in setting.items()), "\n")
    if _PROFILE.value:
        for system in systems:
            print(profile(_PROFILE.value, system, **setting), "\n")
        return
    if _TORCH.value:
        tf.config.set_visible_devices([], "GPU")
    methods = with_bases(_METHODS.value)
    rounds = measure(methods, systems, torch=_TORCH.value, **setting)
    print(report(rounds, systems, methods))


if __name__ == "__main__":
    sys.exit(command.run(main, FLAGS))
