"""The time of attacks, and of other libraries' where they are installed.

  python -m experiments.benchmark_attacks --part=pgd
  python -m experiments.benchmark_attacks --part=sweep --model=model.keras
      --dataset=folder:DIR
  python -m experiments.benchmark_attacks --part=autoattack
  python -m experiments.benchmark_attacks --part=memory

Each prints Markdown. The kinds are timed in turn, so that a slow spell of the
machine hits all, and the medians are of --repeats runs in one process.

- pgd: PGD-10 on a PreAct ResNet-18 of random weights: cleverhans as shipped,
  tfsam, foolbox, ART, torchattacks.
- sweep: on a trained model, PGD-10 with and without early stop; and eight
  epsilons in one sweep against each of them alone.
- autoattack: standard AutoAttack on the digits of the tests, tfsam and PyTorch.
- memory: the most memory that 10,000 images take.

The other libraries: pip install -e ".[bench]".
"""

import importlib.util
import pathlib
import resource
import statistics
import time

import keras
import numpy as np
import tensorflow as tf
from absl import app
from absl import flags
from cleverhans.tf2.attacks.projected_gradient_descent import (
    projected_gradient_descent,
)

import tfsam

_PART = flags.DEFINE_enum(
    "part", "pgd", ["pgd", "sweep", "autoattack", "memory"], "What to time."
)
_WIDTH = flags.DEFINE_integer("width", 16, "Channels of the first stage.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 128, "Images attacked.")
_REPEATS = flags.DEFINE_integer("repeats", 5, "Attacks timed of each kind.")
_MODEL = flags.DEFINE_string("model", None, "A trained model, for sweep.")
_DATASET = flags.DEFINE_string("dataset", "digits", "Its images.")
_IMAGES = flags.DEFINE_integer("images", 512, "So many of them.")

EPSILON = 8 / 255
STEPS = 10
CURVE = [e / 255 for e in (0.5, 1, 1.5, 2, 3, 4, 6, 8)]


def installed(package):
    """Whether a package can be imported."""
    return importlib.util.find_spec(package) is not None


def in_turn(kinds):
    """Seconds of each kind: the first call, and the later ones.

    Args:
        kinds: a dict of functions without arguments.
    """

    def seconds(function):
        started = time.perf_counter()
        function()
        return time.perf_counter() - started

    first = {kind: seconds(function) for kind, function in kinds.items()}
    later = [
        {kind: seconds(function) for kind, function in kinds.items()}
        for _ in range(_REPEATS.value)
    ]
    return first, later


def show(title, kinds, base):
    """Times functions and prints them, with ratios to one of them."""
    first, later = in_turn(kinds)
    print(f"| {title} | seconds | {base} / it | first call |")
    print("|---|---|---|---|")
    for kind in kinds:
        median = statistics.median(row[kind] for row in later)
        ratio = statistics.median(row[base] / row[kind] for row in later)
        print(f"| {kind} | {median:.2f} | {ratio:.2f} | {first[kind]:.1f} |")


def pgd():
    """PGD-10 by every library that is here."""
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
        """An attack of tfsam as `evaluate` runs it."""
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
    """Early stop, and a curve of eight epsilons against each alone."""
    images = tfsam.data.load(_DATASET.value, limit_test=_IMAGES.value)
    x = tfsam.data.as_float(images.x_test)
    data = (x, images.y_test)
    model = keras.saving.load_model(_MODEL.value, compile=False)
    row = {}

    def evaluate(attack, epsilons, **options):
        result = tfsam.evaluate(
            model, data, [(attack, options)], "linf", epsilons, strict=True
        )
        row[str(options)] = result["robust"][0]

    print(f"{len(x)} images, natural accuracy ", end="")
    print(tfsam.evaluate(model, data, [])["natural"]["accuracy"])
    kinds = {
        "PGD-10, last iterate": lambda: evaluate("pgd", [2 / 255]),
        "PGD-10, early stop": lambda: evaluate(
            "pgd", [2 / 255], early_stop=True
        ),
    }
    show("2/255", kinds, "PGD-10, last iterate")
    for options, found in row.items():
        passes = f"{found['gradient_passes']:.2f} gradients an example"
        print(f"{options}: accuracy {found['accuracy']:.4f}, {passes}")
    for attack, options in (("pgd", {}), ("apgd_ce", {})):
        kinds = {"all eight": lambda a=attack: evaluate(a, CURVE)} | {
            f"{255 * e:g}/255 alone": lambda a=attack, e=e: evaluate(a, [e])
            for e in CURVE
        }
        show(f"{attack} {options or ''}", kinds, "all eight")


def autoattack():
    """Standard AutoAttack on the reference's network, tfsam and PyTorch."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    x = (digits.images / 16).astype("float32")[..., None][1200:1400]
    y = digits.target[1200:1400]
    folder = pathlib.Path(__file__).parents[1] / "tests"
    arrays = np.load(folder / "digits_reference.npz")
    for name in ("standard", "adversarial"):
        weights = {
            k.partition("/")[2]: arrays[k]
            for k in arrays.files
            if k.startswith((f"{name}/conv", f"{name}/dense"))
        }
        model = _digits_cnn(weights)
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

            kinds = {"tfsam": ours}
            if installed("pyautoattack"):
                kinds["PyTorch"] = _pyautoattack(
                    weights, x, y, norm, epsilon, found
                )
            show(f"{name}, {norm} {epsilon}", kinds, list(kinds)[-1])
            print(f"robust accuracy: {found}")


def _digits_cnn(weights):
    layers = [
        keras.layers.Conv2D(16, 3, padding="same", activation="relu"),
        keras.layers.ZeroPadding2D(1),
        keras.layers.Conv2D(32, 3, strides=2, activation="relu"),
        keras.layers.Flatten(),
        keras.layers.Dense(10),
    ]
    model = keras.Sequential([keras.Input((8, 8, 1)), *layers])
    model.set_weights(
        [
            weights[f"{layer}/{part}"]
            for layer in ("conv1", "conv2", "dense")
            for part in ("kernel", "bias")
        ]
    )
    return model


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


def memory():
    """10,000 images: the most memory that the process held."""
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


def main(_):
    """Prints the tables of one part."""
    {"pgd": pgd, "sweep": sweep, "autoattack": autoattack, "memory": memory}[
        _PART.value
    ]()


if __name__ == "__main__":
    app.run(main)
