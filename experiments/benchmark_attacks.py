"""The running time of attacks, compared with other libraries.

  python -m experiments.benchmark_attacks --part=pgd
  python -m experiments.benchmark_attacks --part=sweep --model=model.keras
      --dataset=folder:DIR
  python -m experiments.benchmark_attacks --part=autoattack
  python -m experiments.benchmark_attacks --part=malt --model=model.keras
      --dataset=npz:FILE --images=1000 --epsilon=1/255 --workdir=DIR
  python -m experiments.benchmark_attacks --part=memory
  python -m experiments.benchmark_attacks --part=diagnosis

Each part prints Markdown. Variants are timed in turn, so that a slow phase of
the machine affects all of them. Times are medians of --repeats runs in one
process.

- pgd: PGD-10 on a PreAct ResNet-18 with random weights, by cleverhans as
  shipped, tfsam, foolbox, ART and torchattacks.
- sweep: PGD-10 on a trained model with and without early stops, and eight
  epsilons in one sweep compared with each of them alone.
- autoattack: standard AutoAttack on the tests' digits, by tfsam and PyTorch.
- malt: MALT and standard AutoAttack, chunk by chunk in turn: their times, and
  the images that survive one and not the other. With --workdir it
  resumes.
- memory: the peak memory for 10,000 images.
- diagnosis: PGD-10 and APGD-100 with and without the recorder of the path, and
  a whole evaluation with and without `diagnose`.

Other libraries are timed where installed: pip install -e ".[bench]".
"""

import importlib.util
import resource
import statistics
import sys
import time

import keras
import numpy as np
import tensorflow as tf
from absl import flags
from cleverhans.tf2.attacks.projected_gradient_descent import (
    projected_gradient_descent,
)

import tfsam
from experiments import attacks_in_turn
from experiments import command
from experiments import reference
from experiments import timing
from tfsam.attacks.recorder import Recorder
from tfsam.runs import flag_types

FLAGS = flags.FlagValues()
_PART = flags.DEFINE_enum(
    "part",
    "pgd",
    ["pgd", "sweep", "autoattack", "malt", "memory", "diagnosis"],
    "What to time.",
    flag_values=FLAGS,
)
_WIDTH, _BATCH_SIZE, _REPEATS, _MODEL, _DATASET, _IMAGES = timing.define_flags(
    FLAGS, 512, "sweep and malt"
)
_NORM = flags.DEFINE_enum(
    "norm", "linf", ["linf", "l2"], "Norm of malt.", flag_values=FLAGS
)
_EPSILON = flags.DEFINE_string(
    "epsilon", "8/255", "Budget of malt.", flag_values=FLAGS
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder in which malt resumes.", flag_values=FLAGS
)

EPSILON = 8 / 255
STEPS = 10
CURVE = [e / 255 for e in (0.5, 1, 1.5, 2, 3, 4, 6, 8)]


def installed(package):
    """Returns whether a package can be imported."""
    return importlib.util.find_spec(package) is not None


def show(title, kinds, base):
    """Times functions and prints wall-clock times, with ratios to one kind."""
    first, later = timing.in_turn(kinds, _REPEATS.value)
    print(f"\n| {title} | seconds | {base} / it | first call |")
    print("|---|---|---|---|")
    for kind in kinds:
        median = statistics.median(row[kind][0] for row in later)
        ratio = statistics.median(row[base][0] / row[kind][0] for row in later)
        print(f"| {kind} | {median:.2f} | {ratio:.2f} | {first[kind][0]:.1f} |")
    print()


def pgd():
    """Times PGD-10 by every installed library."""
    network = tfsam.networks.preact_resnet18(10, width=_WIDTH.value)
    random = np.random.default_rng(0)
    shape = (_BATCH_SIZE.value, 32, 32, 3)
    x = random.random(shape, dtype="float32")
    y = random.integers(0, 10, _BATCH_SIZE.value)
    inputs = tf.constant(x), tf.constant(y)

    def logits_fn(pixels):
        return network(pixels, training=False)

    def shipped():
        return projected_gradient_descent(
            logits_fn,
            inputs[0],
            EPSILON,
            EPSILON / 4,
            STEPS,
            np.inf,
            clip_min=0.0,
            clip_max=1.0,
            y=inputs[1],
            rand_init=True,
        ).numpy()

    def traced(name, **how):
        """Returns an attack of tfsam as `evaluate` runs it."""
        logits = tfsam.attacks.Logits(logits_fn, **how)
        attack = tfsam.attacks.get(name, epsilon=EPSILON, steps=STEPS)
        run = tf.function(
            lambda x, y: attack(logits, x, y, seed=0), autograph=False
        )
        return lambda: run(*inputs).numpy()

    kinds = {
        "cleverhans as shipped": shipped,
        "tfsam pgd": traced("pgd", rows=32),
        "tfsam pgd, whole batches": traced("pgd"),
        "tfsam pgd, XLA gradient": traced("pgd", jit_compile=True),
        "tfsam cleverhans_pgd": traced("cleverhans_pgd", rows=32),
    }
    if installed("foolbox"):
        kinds["foolbox"] = _foolbox(network, *inputs)
    if installed("art"):
        kinds["ART"] = _art(network, x, y)
    if installed("torchattacks"):
        kinds["torchattacks"] = _torchattacks(x, y)
    show("PGD-10", kinds, "cleverhans as shipped")
    speed = _fastest_matmul()
    needed = 2 * STEPS * _BATCH_SIZE.value * _convolutions(network)
    print(
        f"A matrix product of 2048 runs at {speed / 1e9:.0f} GFLOP/s; the "
        f"convolutions of {STEPS} gradients are {needed / 1e9:.0f} GFLOP: at "
        f"that speed {needed / speed:.2f} s."
    )


def _fastest_matmul():
    matrix = tf.random.normal([2048, 2048])
    tf.matmul(matrix, matrix).numpy()
    seconds = []
    for _ in range(9):
        started = time.perf_counter()
        tf.matmul(matrix, matrix).numpy()
        seconds.append(time.perf_counter() - started)
    return 2 * 2048**3 / min(seconds)


def _convolutions(network):
    """Counts floating-point operations of convolutions, an image forward."""
    total = 0
    for layer in network.layers:
        if isinstance(layer, keras.layers.Conv2D):
            kernel = np.prod(layer.kernel.shape)
            total += 2 * kernel * np.prod(layer.output.shape[1:3])
    return int(total)


def _foolbox(network, x, y):
    import foolbox

    model = foolbox.models.TensorFlowModel(
        network, bounds=(0, 1), device="/device:CPU:0"
    )
    attack = foolbox.attacks.LinfPGD(steps=STEPS, rel_stepsize=0.25)
    return lambda: attack(model, x, y, epsilons=EPSILON)


def _art(network, x, y):
    from art.attacks.evasion import ProjectedGradientDescent
    from art.estimators.classification import TensorFlowV2Classifier

    classifier = TensorFlowV2Classifier(
        model=network,
        nb_classes=10,
        input_shape=x.shape[1:],
        loss_object=keras.losses.SparseCategoricalCrossentropy(
            from_logits=True
        ),
        clip_values=(0, 1),
    )
    attack = ProjectedGradientDescent(
        classifier,
        eps=EPSILON,
        eps_step=EPSILON / 4,
        max_iter=STEPS,
        num_random_init=1,
        batch_size=len(x),
        verbose=False,
    )
    return lambda: attack.generate(x, y)


def _torchattacks(x, y):
    import torch
    import torchattacks

    from experiments.torch_networks import PreActResNet18

    model = PreActResNet18(10, _WIDTH.value).eval()
    attack = torchattacks.PGD(
        model, eps=EPSILON, alpha=EPSILON / 4, steps=STEPS
    )
    images = torch.tensor(x.transpose(0, 3, 1, 2).copy())
    labels = torch.tensor(y)
    return lambda: attack(images, labels)


def sweep():
    """Times early stops, and eight epsilons in one sweep and alone."""
    images = tfsam.data.load(_DATASET.value, limit_test=_IMAGES.value)
    x = tfsam.data.as_float(images.x_test)
    data = (x, images.y_test)
    model = keras.saving.load_model(_MODEL.value, compile=False)

    def evaluate(attack, epsilons):
        tfsam.evaluate(model, data, [attack], "linf", epsilons, strict=True)

    print(f"{len(x)} images, natural accuracy ", end="")
    print(tfsam.evaluate(model, data, [])["natural"]["accuracy"])
    _early_stop(model, x, images.y_test)
    for attack in ("pgd", "apgd_ce"):
        kinds = {"all eight": lambda a=attack: evaluate(a, CURVE)} | {
            f"{255 * e:g}/255 alone": lambda a=attack, e=e: evaluate(a, [e])
            for e in CURVE
        }
        show(attack, kinds, "all eight")


def _early_stop(model, x, y):
    """Times PGD-10 on correctly classified images, in whole batches."""
    right = np.argmax(model.predict(x, verbose=0), axis=1) == y
    size = _BATCH_SIZE.value
    x, y = x[right], y[right]
    x, y = x[: len(x) // size * size], y[: len(x) // size * size]
    logits = tfsam.attacks.Logits(lambda x: model(x, training=False), rows=32)
    logits.count_passes()

    def attack(early_stop):
        made = tfsam.PGD(0.0, steps=STEPS, early_stop=early_stop)
        run = tf.function(
            lambda x, y, epsilon: made.with_epsilon(epsilon)(logits, x, y, 0),
            autograph=False,
        )

        def whole(epsilon):
            logits.passes.assign([0, 0])
            for start in range(0, len(x), size):
                batch = slice(start, start + size)
                run(x[batch], y[batch], tf.constant(epsilon, tf.float32))
            return logits.passes.numpy()[1] / len(x)

        return whole

    kinds = {"last iterate": attack(False), "early stop": attack(True)}
    for epsilon in (1 / 255, 2 / 255, 4 / 255, 8 / 255):
        show(
            f"PGD-10, {255 * epsilon:g}/255, {len(x)} images",
            {k: lambda f=f, e=epsilon: f(e) for k, f in kinds.items()},
            "last iterate",
        )
        passes = kinds["early stop"](epsilon)
        print(f"gradients an example: {STEPS} and {passes:.2f}")


def autoattack():
    """Times standard AutoAttack on the reference's networks."""
    x, y = reference.digits(_IMAGES.value)
    arrays = reference.arrays()
    for name in ("standard", "adversarial"):
        weights = {
            k.partition("/")[2]: array
            for k, array in arrays.items()
            if k.startswith((f"{name}/conv", f"{name}/dense"))
        }
        model = reference.digits_cnn(arrays, name)
        for norm, epsilon in (("linf", 0.1), ("l2", 0.5)):
            found = {}

            def ours(model=model, norm=norm, epsilon=epsilon, found=found):
                result = tfsam.evaluate(
                    model,
                    (x, y),
                    ["autoattack"],
                    norm,
                    [epsilon],
                    batch_size=200,
                    strict=True,
                )
                found["tfsam"] = result["robust"][0]["accuracy"]

            kinds = {
                "tfsam": ours,
                "tfsam, traced before": _traced_autoattack(
                    model, x, y, norm, epsilon, found
                ),
            }
            if installed("pyautoattack"):
                kinds["PyTorch"] = _pyautoattack(
                    weights, x, y, norm, epsilon, found
                )
            show(f"{name}, {norm} {epsilon}", kinds, list(kinds)[-1])
            print(f"robust accuracy: {found}")


def _traced_autoattack(model, x, y, norm, epsilon, found):
    """Returns the traced ensemble on one batch: a chunk after the first."""
    logits = tfsam.attacks.Logits(
        lambda x: model(x, training=False), rows=128, classes=10
    )
    attack = tfsam.attacks.get("autoattack", epsilon=epsilon, norm=norm)
    right = tf.constant(np.argmax(model(x), axis=1) == y)
    run = tf.function(
        lambda x, y: attack(logits.only(right), x, y, 0), autograph=False
    )
    inputs = tf.constant(x), tf.constant(y)

    def ensemble():
        stands = np.argmax(model(run(*inputs)), axis=1) == y
        found["tfsam, traced before"] = float(np.mean(stands))

    return ensemble


def _pyautoattack(weights, x, y, norm, epsilon, found):
    import torch
    from pyautoattack import AutoAttack

    from experiments.torch_networks import digits_cnn

    model = digits_cnn(weights)
    images = torch.tensor(x.transpose(0, 3, 1, 2).copy())
    labels = torch.tensor(y)

    def run():
        attack = AutoAttack(model, norm=norm.capitalize(), eps=epsilon, seed=0)
        attack.verbose = False
        x_adv = attack.run_standard_evaluation(images, labels, batch_size=200)
        if isinstance(x_adv, tuple):
            x_adv = x_adv[0]
        with torch.no_grad():
            stands = model(x_adv).argmax(dim=1) == labels
        found["PyTorch"] = stands.double().mean().item()

    return run


def malt():
    """Compares MALT with standard AutoAttack on a trained model."""
    if _MODEL.value is None:
        raise ValueError("--part=malt needs --model=PATH. Received: none")
    images = tfsam.data.load(_DATASET.value, limit_test=_IMAGES.value)
    found = attacks_in_turn.compare(
        _MODEL.value,
        (tfsam.data.as_float(images.x_test), images.y_test),
        ["autoattack", "malt"],
        _NORM.value,
        flag_types.number(_EPSILON.value),
        _BATCH_SIZE.value,
        _WORKDIR.value,
    )
    print(attacks_in_turn.table(found))


def memory():
    """Prints the peak memory of an evaluation of 10,000 images."""
    network = tfsam.networks.preact_resnet8(10, input_shape=(32, 32, 3))
    random = np.random.default_rng(0)
    x = random.random((10_000, 32, 32, 3), dtype="float32")
    y = np.argmax(network.predict(x, verbose=0), axis=1)

    def most():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20

    print(f"before: {most():.2f} GiB")
    result = tfsam.evaluate(
        network, (x, y), [("pgd", {"steps": 2})], "linf", [EPSILON]
    )
    print(f"after {result['robust'][0]['attacked']} images: {most():.2f} GiB")


def diagnosis():
    """Times attacks with and without the recorder of their paths."""
    network = tfsam.networks.preact_resnet18(10, width=_WIDTH.value)
    random = np.random.default_rng(0)
    x = random.random((_BATCH_SIZE.value, 32, 32, 3), dtype="float32")
    y = np.argmax(network.predict(x, verbose=0), axis=1)
    # No image is broken at these budgets, so all steps are made.
    for name in ("pgd", "apgd_ce"):
        kinds = {
            "without": _recorded(network, name, x, y, recording=False),
            "recorded": _recorded(network, name, x, y, recording=True),
        }
        show(f"{name}, {_BATCH_SIZE.value} images", kinds, "without")

    found = {}

    def evaluate(epsilon, diagnose):
        result = tfsam.evaluate(
            network, (x, y), ["pgd"], epsilons=[epsilon], diagnose=diagnose
        )
        found.update(result["robust"][0])

    # Where no image is broken, the attack is tried without a budget, too.
    for epsilon in (0.3, 1e-5):
        kinds = {
            f"diagnose={diagnose}": lambda e=epsilon, d=diagnose: evaluate(e, d)
            for diagnose in (False, True)
        }
        show(f"evaluate, pgd, epsilon {epsilon:g}", kinds, "diagnose=False")
        print(f"accuracy {found['accuracy']:.3f}: {found['diagnosis']}")


def _recorded(network, name, x, y, recording):
    """Returns an attack on a chunk, as `evaluate` runs it after the first."""
    attack = tfsam.attacks.get(name, epsilon=0.0)
    logits = tfsam.attacks.Logits(
        lambda pixels: network(pixels, training=False), rows=32, classes=10
    )
    recorder = Recorder(x.shape, x.dtype, "linf", (0.0, 1.0))
    if recording:
        logits = logits.recorded(recorder)
    run = tf.function(lambda x, y: attack(logits, x, y, 0), autograph=False)
    inputs = tf.constant(x), tf.constant(y)

    def chunk():
        if recording:
            recorder.start(*inputs)
        run(*inputs).numpy()
        if recording:
            recorder.path()

    return chunk


def main():
    """Prints the tables of one part."""
    parts = {
        "pgd": pgd,
        "sweep": sweep,
        "autoattack": autoattack,
        "malt": malt,
        "memory": memory,
        "diagnosis": diagnosis,
    }
    parts[_PART.value]()


if __name__ == "__main__":
    sys.exit(command.run(main, FLAGS))
