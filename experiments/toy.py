"""The toy model of the paper: the reason for SAM's robustness.

  python -m experiments.toy --workdir=runs/toy

The label y is 1 or -1 with equal probability. The robust feature x_1 is y with
probability p, else -y; d non-robust features are drawn from N(eta y, 1). For a
linear classifier, W_R is the weight of the robust feature divided by that of a
non-robust one, or by their mean. For the Bayes classifier it is W_R* = ln(p /
(1 - p)) / (2 eta). A method's excess is W_R / W_R* - 1. Zhang et al. (2024, "On
the Duality Between Sharpness-Aware Minimization and Adversarial Training") give

  AT, l-inf, epsilon < eta on the non-robust features:  epsilon/(eta - epsilon)
  SAM of a small rho:                                   2/3 rho^2

and hence 2 + 3 / rho^2 = 2 eta / epsilon where both are equal. This command
compares these formulas with SAM's optimum computed exactly, of the population
and of samples, with its expansion in rho, and with the weights that
`tfsam.RobustModel` finds. It writes toy.json (with the seconds it took), toy.md
and toy.svg. `--quick` takes a minute. The same command resumes after the last
part in toy.json.

See `experiments/toy_model.py` for the meanings of "SAM".
"""

import pathlib
import sys
import time

import keras
import numpy as np
import scipy.stats
import tensorflow as tf
from absl import flags

import tfsam
from experiments import command
from experiments import toy_report
from experiments.toy_model import AROUND
from experiments.toy_model import CENTRE
from experiments.toy_model import DOUBTFUL
from experiments.toy_model import EXPONENTIAL
from experiments.toy_model import FRACTIONS
from experiments.toy_model import GRID
from experiments.toy_model import RHOS
from experiments.toy_model import SQUARE
from experiments.toy_model import WEAK
from experiments.toy_model import adversarial_excess
from experiments.toy_model import band
from experiments.toy_model import draw
from experiments.toy_model import example_balls
from experiments.toy_model import expansion
from experiments.toy_model import minimiser
from experiments.toy_model import on_a_line
from experiments.toy_model import population
from experiments.toy_model import population_example_balls
from experiments.toy_model import published_excess
from experiments.toy_model import sharpened
from experiments.toy_model import worst_case
from experiments.toy_model import zero_one
from tfsam.support import files
from tfsam.support.validators import check_count

FLAGS = flags.FlagValues()
_WORKDIR = flags.DEFINE_string("workdir", "runs/toy", "Folder.", FLAGS)
_QUICK = flags.DEFINE_boolean(
    "quick", False, "Measure a part of it, in a minute.", FLAGS
)
_SAMPLES = flags.DEFINE_integer(
    "samples", 10000, "Examples drawn.", flag_values=FLAGS
)
_SEEDS = flags.DEFINE_integer("seeds", 3, "Samples drawn.", flag_values=FLAGS)


class NonRobust(tfsam.FGSM):
    """The toy model's attack: epsilon on every feature but the first.

    One step of the whole epsilon is the worst case of a linear classifier.

    Args:
        epsilon: the radius in l-inf, >= 0.
    """

    def __init__(self, epsilon):
        super().__init__(epsilon, bounds=None)

    def perturb(self, logits_fn, x, y, seeds):
        """Returns x with its non-robust features moved by epsilon."""
        moved = super().perturb(logits_fn, x, y, seeds)
        return tf.concat([x[:, :1], moved[:, 1:]], axis=1)


def linear(d):
    """Returns a network with the logits -w.x / 2 and w.x / 2."""
    x = keras.Input((d + 1,), dtype="float64")
    score = keras.layers.Dense(1, use_bias=False, dtype="float64")(x)
    both = keras.layers.Concatenate(dtype="float64")([-score / 2, score / 2])
    return keras.Model(x, both)


def trained(
    samples,
    setting,
    steps,
    epsilon=0.0,
    perturb_weights=None,
    batch_size=None,
    rate=1.0,
    decay=True,
):
    """Returns the weights that `tfsam.RobustModel` finds, a row a sample.

    SGD starts at the best weights of the population, from which the sample's
    differ. Full batches have a momentum of 0.9.

    Args:
        samples: `Sample`s of one size.
        setting: their `Setting`.
        steps: number of steps of SGD, >= 1.
        epsilon: radius of `NonRobust`, below eta; 0 is no attack.
        perturb_weights: see `RobustModel`.
        batch_size: None is the whole sample.
        rate: the learning rate, over that of a Newton step along the top
            eigenvector of the population's Hessian at the start.
        decay: whether the rate falls: to 0, linearly, or of small batches as
            one over the step, so that all steps count alike in the end.
    """
    start = setting.bayes(epsilon)
    line = on_a_line(setting)._replace(
        eta=(setting.eta - epsilon) * setting.d**0.5
    )
    hessian = population(line).hessian(line.bayes())
    half, rate = rate / 2, rate / np.linalg.eigvalsh(hessian)[-1]
    schedules = keras.optimizers.schedules
    if decay and batch_size:
        rate = schedules.InverseTimeDecay(rate, decay_steps=1, decay_rate=half)
    elif decay:
        rate = schedules.PolynomialDecay(rate, steps, 0.0)
    model = tfsam.RobustModel(
        linear(setting.d),
        perturb_inputs=NonRobust(epsilon) if epsilon else None,
        perturb_weights=perturb_weights,
        seed=0,
    )
    model.compile(
        tfsam.SGD(rate, momentum=0.0 if batch_size or not decay else 0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        steps_per_execution=min(steps, 100),
        jit_compile=False,
    )
    found = []
    for sample in samples:
        model.network.set_weights([start[:, None]])
        for variable in model.optimizer.variables:
            if decay or variable is not model.optimizer.learning_rate:
                variable.assign(tf.zeros_like(variable.value))
        data = (sample.x, (sample.y > 0).astype("int64"))
        batches = tf.data.Dataset.from_tensors(data)
        if batch_size:
            batches = tf.data.Dataset.from_tensor_slices(data)
            batches = batches.shuffle(len(sample.y), seed=0).repeat()
            batches = batches.batch(batch_size)
        model.fit(
            batches.repeat(), steps_per_epoch=steps, shuffle=False, verbose=0
        )
        found.append(model.network.get_weights()[0][:, 0])
    return np.array(found)


def coefficients(settings):
    """Returns rows of the excess over rho^2 for small rho, of every SAM."""
    return [
        setting._asdict() | expansion(setting) | {"zero_one": zero_one(setting)}
        for setting in settings
    ]


def exact(settings, rhos):
    """Returns rows of the population's optima, and of the exchange with AT.

    Args:
        settings: `Setting`s.
        rhos: radii.
    """
    rows = []
    for setting in settings:
        points = population(setting)
        base = minimiser(points)
        plain = minimiser(population_example_balls(setting, 0.0))
        for rho in rhos:
            balls = population_example_balls(setting, rho)
            excess = None
            try:
                excess = points.excess(worst_case(points, rho), base)
            except ValueError as error:
                print(f"{setting}: {error}", file=sys.stderr)
            rows.append(
                setting._asdict()
                | {
                    "rho": rho,
                    "published": published_excess(rho),
                    "worst": excess,
                    "example": balls.excess(minimiser(balls), plain),
                }
            )
    return rows


def adversarial(setting, fractions, samples, steps):
    """Returns rows of AT's excess: closed form, optima and trained weights.

    Args:
        setting: a `Setting`.
        fractions: epsilons over eta.
        samples: `Sample`s.
        steps: number of steps of SGD.
    """
    points = population(setting)
    base = minimiser(points)
    bases = [minimiser(sample.points()) for sample in samples]
    rows = []
    for fraction in fractions:
        epsilon = fraction * setting.eta
        optima = [minimiser(sample.points(epsilon)) for sample in samples]
        found = trained(samples, setting, steps, epsilon)
        rows.append(
            setting._asdict()
            | {
                "fraction": fraction,
                "closed": adversarial_excess(fraction),
                "exact": points.excess(
                    minimiser(population(setting, epsilon)), base
                ),
                "samples": excesses(samples, optima, bases),
                "trained": excesses(samples, found, bases),
                "distance": float(np.abs(found - optima).max()),
            }
        )
    return rows


def other_losses(setting, rho):
    """Returns the worst case's excess with other losses, at one radius."""
    rows = []
    for name, loss in (("exponential", EXPONENTIAL), ("square", SQUARE)):
        points = population(setting, loss=loss)
        base = minimiser(points)
        rows.append(
            {
                "loss": name,
                "ratio": points.ratio(base),
                "excess": points.excess(worst_case(points, rho), base),
            }
        )
    return rows


def summary(values):
    """Returns mean, standard error and half of the 95 % Student interval.

    The last two are None for a single value.
    """
    error = half = None
    if len(values) > 1:
        error = float(np.std(values, ddof=1) / np.sqrt(len(values)))
        half = float(scipy.stats.t.ppf(0.975, len(values) - 1) * error)
    return {"mean": float(np.mean(values)), "error": error, "half": half}


def excesses(samples, weights, bases):
    """Returns the `summary` of the excess of weights over others."""
    triples = zip(samples, weights, bases, strict=True)
    return summary([s.points().excess(w, base) for s, w, base in triples])


def training(setting, rho, samples, steps):
    """Returns a row: full batches of SAM beside the same samples' optima.

    The worst case's is exact for two weights; of more it takes minutes a
    sample, and is left to the expansion.

    Args:
        setting: a `Setting`.
        rho: SAM's radius.
        samples: `Sample`s.
        steps: number of steps of SGD.
    """
    points = [sample.points() for sample in samples]
    bases = [minimiser(p) for p in points]
    sam = trained(samples, setting, steps, perturb_weights=tfsam.SAM(rho))
    expanded = [
        base + rho**2 * sharpened(p, base)["worst"]
        for p, base in zip(points, bases, strict=True)
    ]
    balls = [minimiser(example_balls(p, rho)) for p in points]
    row = setting._asdict() | {
        "rho": rho,
        "sam": excesses(samples, sam, bases),
        "expanded": excesses(samples, expanded, bases),
        "example": excesses(samples, balls, bases),
    }
    if setting.d == 1:
        worst = [worst_case(p, rho) for p in points]
        row["worst"] = excesses(samples, worst, bases)
    return row


def batches(setting, rhos, samples, steps, size):
    """Returns rows of SAM's excess over ST's, both by the same batches.

    Args:
        setting: a `Setting`.
        rhos: SAM's radii.
        samples: `Sample`s.
        steps: number of steps of SGD.
        size: size of a batch.
    """
    found = [
        trained(samples, setting, steps, 0.0, method, size, rate=0.1)
        for method in (None, *map(tfsam.SAM, rhos))
    ]
    balls = population_example_balls
    base = minimiser(balls(setting, 0.0))
    return [
        setting._asdict()
        | {
            "size": size,
            "rho": rho,
            "excess": excesses(samples, sam, found[0]),
            "example": balls(setting, 0.0).excess(
                minimiser(balls(setting, rho)), base
            ),
        }
        for rho, sam in zip(rhos, found[1:], strict=True)
    ]


def hovering(setting, rho, samples, steps, rates):
    """Returns rows of the ends of full-batch SAM at a constant rate.

    `distance` is to the sample's minimum, `predicted` that of bouncing between
    two points along the top eigenvector.
    """
    bases = [minimiser(sample.points()) for sample in samples]
    rows = []
    for rate in rates:
        method = tfsam.SAM(rho)
        found = trained(
            samples,
            setting,
            steps,
            perturb_weights=method,
            rate=rate,
            decay=False,
        )
        distances = np.linalg.norm(found - bases, axis=1)
        rows.append(
            {
                "rate": rate,
                "rho": rho,
                "distance": summary(distances),
                "predicted": rate * rho / (2 - rate),
            }
        )
    return rows


def parts(quick, n, seeds):
    """Yields all that the command reports, part by part.

    Args:
        quick: whether to measure only a little.
        n: examples of a sample, >= 100.
        seeds: number of samples, >= 1; small batches, with much larger
            noise, get three times as many.

    Returns:
        A dict from name to a function without arguments that measures it,
        which returns a list of rows.
    """
    settings = (CENTRE, WEAK) if quick else AROUND
    rhos = RHOS[1:4:2] if quick else RHOS
    steps = 300 if quick else 1000
    drawn = {s: [draw(s, n, seed) for seed in range(seeds)] for s in settings}
    attacked = {s: FRACTIONS if s == CENTRE else FRACTIONS[1:2] for s in drawn}
    radii = [(s, 0.2) for s in settings]
    radii += [(s, rho) for s in (CENTRE, WEAK) for rho in rhos if rho != 0.2]
    small = [(s, (0.1, 0.2, 0.4), 1) for s in (WEAK, DOUBTFUL)]
    small += [(CENTRE, (0.2,), size) for size in (1, 10, 100)]
    passes = 10_000
    if quick:
        radii, small, passes = radii[:2], small[-2:-1], 1000
    return {
        "bands": lambda: [{"p": p} | band(p) for p in (0.55, 0.7, 0.9, 0.99)],
        "coefficients": lambda: coefficients(settings),
        "exact": lambda: exact((CENTRE, WEAK) if quick else GRID, rhos),
        "adversarial": lambda: [
            row
            for s, fractions in attacked.items()
            for row in adversarial(s, fractions, drawn[s], steps)
        ],
        "losses": lambda: other_losses(CENTRE, 0.2),
        "training": lambda: [
            training(s, rho, drawn[s], steps) for s, rho in radii
        ],
        "batches": lambda: [
            row
            for s, rhos, size in small
            for row in batches(
                s,
                rhos,
                [draw(s, n, seed) for seed in range(3 * seeds)],
                passes,
                size,
            )
        ],
        "hovering": lambda: hovering(
            CENTRE, 0.2, drawn[CENTRE], steps, (0.1, 0.5)
        ),
    }


def main():
    """Measures and writes toy.json, toy.md and toy.svg."""
    n = check_count("samples", _SAMPLES.value, 100)
    seeds = check_count("seeds", _SEEDS.value, 1)
    workdir = pathlib.Path(_WORKDIR.value)
    workdir.mkdir(parents=True, exist_ok=True)
    asked = {"quick": _QUICK.value, "samples": n, "seeds": seeds}
    found = files.read_json(workdir / "toy.json") or {
        "arguments": asked,
        "seconds": 0.0,
    }
    if found.get("arguments") != asked:
        raise ValueError(
            f"{workdir} must hold what the same flags found; choose another "
            f"workdir. Received: {asked}, and there {found.get('arguments')}"
        )
    for name, measure in parts(*asked.values()).items():
        if name in found:
            continue
        begin = time.monotonic()
        found[name] = measure()
        found["seconds"] += time.monotonic() - begin
        files.write_json(workdir / "toy.json", found)
    text = toy_report.text(found)
    files.write_atomically(workdir / "toy.md", text + "\n")
    toy_report.draw(found, workdir / "toy.svg")
    print(text)


if __name__ == "__main__":
    sys.exit(command.run(main, FLAGS))
