"""The time of attacks that is not the network's own, and of sweeps.

  python -m experiments.benchmark_tracing --part=direct
  python -m experiments.benchmark_tracing --part=second --images=200
  python -m experiments.benchmark_tracing --part=bisect --model=model.keras
      --dataset=folder:DIR --images=512
  python -m experiments.benchmark_tracing --part=profile --images=200

Each part prints Markdown, with wall-clock and processor time: on a machine that
others use, only ratios of processor time can be trusted. Variants are timed in
turn; numbers are medians of --repeats runs in one process.

- direct: attacks that are called directly, on a PreAct ResNet-18 with random
  weights, compared with cleverhans as shipped and with eager calls.
- second: the first and the next evaluations of a network by AutoAttack, and the
  numbers of graphs and of operations that TensorFlow makes for them. It also
  runs on tfsam 0.1.0.
- bisect: eight epsilons in a full sweep and in one by bisection, compared with
  the dearest epsilon alone, the gradients that they take, and the verdicts that
  differ. --batch_size images are attacked together.
- profile: the part of an evaluation that the network's own kernels take, at
  the best size of a batch.
"""

import statistics
import sys

import keras
import numpy as np
import tensorflow as tf
from absl import flags
from sklearn.datasets import load_digits

import tfsam
from experiments import command
from experiments import timing

FLAGS = flags.FlagValues()
_PART = flags.DEFINE_enum(
    "part",
    "direct",
    ["direct", "second", "bisect", "profile"],
    "What to time.",
    flag_values=FLAGS,
)
_WIDTH, _BATCH_SIZE, _REPEATS, _MODEL, _DATASET, _IMAGES = timing.define_flags(
    FLAGS, 200, "bisect"
)
_ATTACKS = flags.DEFINE_list(
    "attacks", ["apgd_ce", "pgd"], "Attacks of bisect.", flag_values=FLAGS
)

EPSILON = 8 / 255
STEPS = 10
CURVE = [e / 255 for e in (0.5, 1, 1.5, 2, 3, 4, 6, 8)]


def show(title, kinds, base):
    """Prints times, and ratios of processor time to one of the kinds."""
    first, later = timing.in_turn(kinds, _REPEATS.value)
    print(f"\n| {title} | seconds | processor | it / {base} | first call |")
    print("|---|---|---|---|---|")
    for kind in kinds:
        wall, processor = (
            statistics.median(row[kind][place] for row in later)
            for place in (0, 1)
        )
        ratio = statistics.median(row[kind][1] / row[base][1] for row in later)
        print(
            f"| {kind} | {wall:.2f} | {processor:.2f} | {ratio:.2f} "
            f"| {first[kind][1]:.2f} |"
        )
    print()


class Graphs:
    """Counts the graphs that TensorFlow makes, and their operations."""

    def __enter__(self):
        self._graphs, self._init = [], tf.__internal__.FuncGraph.__init__

        def counting(graph, *arguments, **options):
            self._graphs.append(graph)
            self._init(graph, *arguments, **options)

        tf.__internal__.FuncGraph.__init__ = counting
        return self

    def __exit__(self, *error):
        tf.__internal__.FuncGraph.__init__ = self._init
        made = [len(graph.get_operations()) for graph in self._graphs]
        self.counts = len(made), sum(made)
        self._graphs.clear()


def eagerly(function):
    """Returns a function that runs without traces, as in tfsam 0.1.0."""

    def run():
        tf.config.run_functions_eagerly(True)
        try:
            function()
        finally:
            tf.config.run_functions_eagerly(False)

    return run


def direct():
    """Times attacks that are called directly."""
    from cleverhans.tf2.attacks.projected_gradient_descent import (
        projected_gradient_descent,
    )

    network = tfsam.networks.preact_resnet18(10, width=_WIDTH.value)
    random = np.random.default_rng(0)
    x = random.random((_BATCH_SIZE.value, 32, 32, 3), dtype="float32")
    y = random.integers(0, 10, _BATCH_SIZE.value)
    inputs = tf.constant(x), tf.constant(y)

    def logits_fn(pixels):
        return network(pixels, training=False)

    def shipped():
        projected_gradient_descent(
            *(logits_fn, inputs[0], EPSILON, EPSILON / 4, STEPS, np.inf),
            clip_min=0.0,
            clip_max=1.0,
            y=inputs[1],
            rand_init=True,
        ).numpy()

    def called(name, model=logits_fn, batch=inputs, **options):
        attack = tfsam.attacks.get(name, epsilon=EPSILON, **options)
        return lambda: attack(model, *batch, 0).numpy()

    pgd = called("pgd", steps=STEPS)
    kinds = {
        "cleverhans as shipped": shipped,
        "pgd": pgd,
        "pgd, eagerly": eagerly(pgd),
        "cleverhans_pgd": called("cleverhans_pgd", steps=STEPS),
    }
    show(f"PGD-10, {len(x)} images", kinds, "cleverhans as shipped")
    model, data = digits_network(), digits(32)
    for name, options in (("fmn", {"steps": 20}), ("autoattack", {})):
        attack = called(name, model, data, **options)
        kinds = {"traced": attack, "eagerly": eagerly(attack)}
        if name == "autoattack":  # An eager call takes minutes.
            kinds.pop("eagerly")
        show(f"{name}, 32 digits", kinds, "traced")


def digits(count):
    """Returns the first test images of the digits, and their labels."""
    found = load_digits()
    images = (found.images / 16).astype("float32")[..., None]
    return images[1200:][:count], found.target[1200:][:count]


def digits_network():
    """Trains a small network on the digits, for a few epochs."""
    keras.utils.set_random_seed(0)
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(16, 3, padding="same", activation="relu"),
            layers.Conv2D(32, 3, strides=2, activation="relu"),
            layers.Flatten(),
            layers.Dense(10),
        ]
    )
    found = load_digits()
    images = (found.images / 16).astype("float32")[..., None]
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, jit_compile=False)
    model.fit(images[:1200], found.target[:1200], epochs=8, verbose=0)
    return model


def second():
    """Times the first and the later evaluations of a network."""
    model, data = digits_network(), digits(_IMAGES.value)
    tfsam.evaluate(digits_network(), data, ["fgsm"], epsilons=[0.1])

    def evaluate():
        tfsam.evaluate(
            *(model, data, ["autoattack"], "linf", [0.1]),
            batch_size=200,
            strict=True,
        )

    times, counts = [], []
    for _ in range(1 + _REPEATS.value):
        with Graphs() as made:
            times.append(timing.timed(evaluate))
        counts.append(made.counts)
    print("| autoattack | seconds | processor | graphs | operations |")
    print("|---|---|---|---|---|")
    for name, (wall, processor), (graphs, operations) in (
        ("first", times[0], counts[0]),
        ("later", np.median(times[1:], axis=0), max(counts[1:])),
    ):
        print(
            f"| {name} | {wall:.2f} | {processor:.2f} | {graphs} "
            f"| {operations} |"
        )


def bisect():
    """Times eight epsilons in a full sweep and in one by bisection."""
    images = tfsam.data.load(_DATASET.value, limit_test=_IMAGES.value)
    data = tfsam.data.as_float(images.x_test), images.y_test
    model = keras.saving.load_model(_MODEL.value, compile=False)
    for attack in _ATTACKS.value:
        found, gradients = {}, {}

        def evaluate(
            name,
            epsilons,
            attack=attack,
            found=found,
            gradients=gradients,
            **options,
        ):
            rows = tfsam.evaluate(
                *(model, data, [attack], "linf", epsilons),
                batch_size=_BATCH_SIZE.value,
                strict=True,
                **options,
            )["robust"]
            found[name] = [round(r["accuracy"] * r["n"]) for r in rows]
            gradients[name] = round(
                sum(r["attacked"] * (r["gradient_passes"] or 0) for r in rows)
            )

        kinds = {
            "full": lambda e=evaluate: e("full", CURVE),
            "bisect": lambda e=evaluate: e("bisect", CURVE, sweep="bisect"),
        } | {
            f"{255 * epsilon:g}/255 alone": lambda e=evaluate, x=epsilon: e(
                x, [x]
            )
            for epsilon in CURVE
        }
        show(f"{attack}, {len(data[0])} images", kinds, "bisect")
        for name in ("full", "bisect"):
            print(f"survivors, {name}: {found[name]}")
        more = np.subtract(found["bisect"], found["full"])
        print(
            f"verdicts that differ, at least: {more.clip(min=0).sum()} more "
            f"survive, {-more.clip(max=0).sum()} fewer"
        )
        dearest = max(gradients[epsilon] for epsilon in CURVE)
        print(
            f"gradients: full {gradients['full']}, bisect "
            f"{gradients['bisect']}, dearest epsilon {dearest}"
        )


def profile():
    """Prints the part of an evaluation that is the network's own time."""
    model, (x, y) = digits_network(), digits(_IMAGES.value)
    forward, backward = (best(run, x) for run in passes_of(model))
    print(
        f"Network alone, at the best size of a batch: {forward * 1e6:.1f} "
        f"us for a forward pass, {backward * 1e6:.1f} us for a gradient"
    )
    print("| attack | processor | network's own | part |")
    print("|---|---|---|---|")
    for name in ("pgd", "apgd_ce", "apgd_t", "fab_t", "square", "autoattack"):
        found = {}

        def evaluate(name=name, found=found):
            (found["row"],) = tfsam.evaluate(
                model, (x, y), [name], "linf", [0.1], batch_size=200
            )["robust"]

        evaluate()
        later = [timing.timed(evaluate)[1] for _ in range(_REPEATS.value)]
        row = found["row"]
        own = row["attacked"] * (
            row["forward_passes"] * forward + row["gradient_passes"] * backward
        )
        total = statistics.median(later)
        print(f"| {name} | {total:.2f} | {own:.2f} | {own / total:.2f} |")


def passes_of(model):
    """Returns a forward pass and a gradient of a batch, each traced."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    @tf.function(autograph=False)
    def forward(x):
        return model(x, training=False)

    @tf.function(autograph=False)
    def backward(x):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(x)
            total = loss(tf.zeros(x.shape[0]), model(x, training=False))
        return tape.gradient(total, x)

    return forward, backward


def best(run, x):
    """Returns the processor seconds for an image, at the best batch size."""
    found = []
    for size in (32, 64, 128, 256, 512):
        batch = tf.constant(np.resize(x, (size, *x.shape[1:])))
        run(batch)
        calls = max(2048 // size, 1)
        found += [
            timing.timed(
                lambda c=calls, b=batch: [run(b).numpy() for _ in range(c)]
            )[1]
            / (calls * size)
            for _ in range(_REPEATS.value)
        ]
    return min(found)


def main():
    """Prints the tables of one part."""
    parts = {
        "direct": direct,
        "second": second,
        "bisect": bisect,
        "profile": profile,
    }
    parts[_PART.value]()


if __name__ == "__main__":
    sys.exit(command.run(main, FLAGS))
