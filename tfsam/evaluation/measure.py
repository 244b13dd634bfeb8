"""Accuracy under attack, measured so that it can be trusted.

An example that is misclassified without an attack counts as broken, one broken
at a smaller epsilon stays broken at a larger one, and only the others are
attacked (`chunks.py`); their verdicts are kept (`verdicts.py`), added up
(`accuracies.py`) and doubted (`red_flags.py`).

The examples are divided into chunks by their index. What a chunk's verdicts
depend on is the chunk, never the other chunks: so processes, devices and runs
that were cut off can share the work, and the answer stays the same to the bit.
"""

import numbers
import warnings

import numpy as np
import tensorflow as tf

from tfsam import geometry
from tfsam.data import examples
from tfsam.evaluation import accuracies
from tfsam.evaluation import verdicts
from tfsam.evaluation.batches import Turn
from tfsam.evaluation.cache_key import plain_options
from tfsam.evaluation.cache_key import recognised
from tfsam.evaluation.chunks import attack_chunk
from tfsam.evaluation.natural import measure_natural
from tfsam.evaluation.plans import Data
from tfsam.evaluation.plans import Plan
from tfsam.evaluation.plans import cold_entries
from tfsam.evaluation.plans import entries_of
from tfsam.evaluation.progress import teller
from tfsam.evaluation.verdicts import NATURAL
from tfsam.evaluation.workers import known_devices
from tfsam.evaluation.workers import make_worker
from tfsam.evaluation.workers import spread
from tfsam.models.functions import count_classes
from tfsam.models.loading import load_logits
from tfsam.support import validators
from tfsam.support.labels import class_labels
from tfsam.support.outputs import check_logits
from tfsam.support.pixels import inside_bounds


def evaluate(
    model,
    data,
    attacks,
    norm="linf",
    epsilons=(1 / 255, 2 / 255),
    *,
    bounds=(0.0, 1.0),
    seed=0,
    batch_size=128,
    strict=False,
    jit_compile="auto",
    progress=None,
    workdir=None,
    save_adversarial=False,
    devices=None,
    shard=(0, 1),
    surrogate=None,
    warm_start=False,
    name=None,
    surrogate_name=None,
    steps=None,
):
    """Measures natural accuracy and accuracy under each attack.

    Args:
        model: a Keras model, the path of a `.keras` file or of a SavedModel, or
            a callable from pixels to logits. A SavedModel is a program: load
            those of people you trust.
        data: arrays (x, y), a `tf.data.Dataset`, batched or not, a
            `keras.utils.PyDataset` or a generator of them (see
            `tfsam.data.examples`); x float (n, ...) inside `bounds`, y class
            numbers (n,) or one-hot (n, classes). A sample_weight is left out.
        attacks: a list; an entry is a name of `tfsam.attacks.names()`, with or
            without options ("pgd:steps=50"), a pair (name, options), a
            factory, a pair (factory, options), or a factory with a name of
            yours: (name, factory) or (name, factory, options).
        norm: "linf" or "l2".
        epsilons: the budgets, in the units of x.
        bounds: (lowest, highest) value of x, or None for inputs that are not
            images.
        seed: with an example's index, the key of its randomness; an integer
            >= 0.
        batch_size: examples attacked at once, a chunk.
        strict: raise what an attack raises, instead of giving a row with
            `error`.
        jit_compile: whether XLA compiles the network's gradients: True, False
            or "auto", which does on GPUs.
        progress: a function of a line of text, called now and then.
        workdir: a folder that keeps every verdict, chunk by chunk; the same
            evaluation goes on from there. None keeps nothing. The folder is
            refused where anything that a verdict depends on is another: the
            data, an argument, the model's or an attack's configuration, code
            or weights, the versions of tfsam, TensorFlow, Keras and Python, or
            the kind of device. A model or a factory that cannot be described,
            because it holds a lock or a handle of a C library, for instance,
            needs a name; the name then stands for it, so change the name when
            you change the code.
        save_adversarial: keep the adversarial images there, too; where a
            minimum-norm attack found none within epsilon, x.
        devices: names of devices that share the chunks, such as
            ["GPU:0", "GPU:1"], all of this machine; None is one, TensorFlow's
            own choice.
        shard: (i, n): evaluate every n-th chunk only, from the i-th; `merge`
            puts the shards together.
        surrogate: a model, as of `model`, that is attacked in its place: a
            transfer attack. The verdicts are those of `model`. Native attacks
            then make all of their steps and spend the whole budget, and do not
            stop at the first point that the surrogate misclassifies. Other
            people's attacks can do the same where `logits_fn.surrogate` is
            true.
        warm_start: at each epsilon start from the image of the smaller one, for
            attacks that can (`pgd`); a warning names the others. Weaker starts
            make stronger attacks incomparable, so it is off.
        name: of the model, by which `workdir` knows it in place of its
            configuration, code and weights; any text.
        surrogate_name: the same for the surrogate.
        steps: how many elements of a dataset or a generator to read, batches
            as a rule; None reads all, and refuses data that does not end.

    Returns:
        A dict: `natural` {`accuracy`, `n`, `interval`}; `robust`, a list,
        attack by attack and epsilon by epsilon in the order given: {`attack`,
        `options`, `norm`, `epsilon`, `epsilon_text`, `accuracy`, `n`,
        `interval`, `max_perturbation`, `inherited`, `attacked`,
        `forward_passes`, `gradient_passes`, `nan_gradients`, `seconds`}; and
        `warnings`, a list of {`warning`, `message`}. Accuracies are fractions
        of all n examples, `interval` is Wilson's 95 % interval; `inherited`
        counts examples known broken from a smaller epsilon, `attacked` those
        attacked at this one, and the passes are what they cost on average,
        None where the attack does not tell; `nan_gradients` counts the
        attack's input gradients that were NaN or infinite: where it is not 0,
        the accuracy means nothing. An ensemble's row has `broken_by`, how many
        examples fell to each stage, and `standard`; that of a minimum-norm
        attack has `median_distance` (of all examples, 0 where misclassified;
        None where half stand). A row has `error`, and accuracy None, where the
        attack
        failed.

    Raises:
        ImportError: if an attack needs a library that is not installed.
        ValueError: if the model, the data or an argument is bad, an attack or
            one of its options is unknown, `warm_start`
            is given to attacks none of which can start from an image, or
            `workdir` holds another evaluation or is given with a model or an
            attack that needs a name: nothing is attacked then.
    """
    geometry.check_norm(norm)
    given = [
        validators.check_number("epsilon", epsilon)
        for epsilon in np.ravel(epsilons).tolist()
    ]
    batch_size = validators.check_count("batch_size", batch_size, 1)
    seed = validators.check_count("seed", seed)
    bounds = validators.check_interval("bounds", bounds)
    for epsilon in given:
        validators.check_budget(epsilon, norm, bounds)
    if save_adversarial and workdir is None:
        raise ValueError(
            "save_adversarial needs a workdir to save to. Received: none"
        )
    entries = entries_of(attacks)
    if warm_start and given:
        cold = _cold(entries, [norm], given[0], bounds)
        if cold:
            warnings.warn(
                f"{', '.join(cold)} cannot start from an image: warm_start is "
                "for the other attacks.",
                stacklevel=2,
            )
    data = load_data(data, bounds, steps, model)
    size = min(batch_size, len(data.x))
    check_shard(shard, len(data.x), size)
    devices = known_devices(devices)
    logits = load_logits(model, jit_compile)
    classes = count_classes(logits, data.x[:1])
    source = logits
    if surrogate is not None:
        source = _load_surrogate(surrogate, jit_compile, classes, data.x)
    plan = Plan(
        data=data,
        entries=entries,
        norm=norm,
        epsilons=sorted(set(given)),
        bounds=bounds,
        seed=seed,
        size=size,
        warm_start=warm_start,
        keep_images=save_adversarial,
        transfer=surrogate is not None,
    )
    header = {
        "schema": verdicts.SCHEMA,
        "n": len(data.x),
        "classes": classes,
        "batch_size": size,
        "norm": norm,
        "epsilons": given,
        "bounds": None if bounds is None else list(bounds),
        "seed": seed,
        "adversarial": save_adversarial,
        "warm_start": warm_start,
        # With `workdir` it is described; that there is one counts without, too.
        "surrogate": None if surrogate is None else "not described",
        "attacks": [
            {"name": e.name, "options": plain_options(e.options)}
            for e in entries
        ],
    }
    if workdir is not None:
        models = {"model": (model, logits, name)}
        if surrogate is not None:
            models["surrogate"] = surrogate, source, surrogate_name
        header = recognised(header, plan, models, devices)
    record = verdicts.Record(header, workdir)
    share = range(shard[0], verdicts.chunk_count(record.header), shard[1])
    workers = [
        make_worker(*(device, logits, source, classes, data.x[:1], plan.size))
        for device in devices
    ]
    measure_natural(plan, workers, record, share)
    errors: dict = {}
    for number, entry in enumerate(entries):
        tell = teller(plan, entry, len(share), progress)
        part = verdicts.part_of(number, entry.name)

        def work(worker, chunk, entry=entry, part=part, tell=tell):
            turn = Turn(plan, entry, part, worker)
            attack_chunk(turn, record, chunk, errors, strict, tell)

        spread(workers, work, share)
    return accuracies.result(record, share, errors)


def _load_surrogate(surrogate, jit_compile, classes, x):
    """Returns the `Logits` of a surrogate, checked to have the model's outputs.

    Args:
        surrogate: see `evaluate`.
        jit_compile: see `evaluate`.
        classes: the model's number of logits.
        x: float array (n, ...), the images.

    Raises:
        ValueError: if it is no model for the images that returns as many
            logits; the message begins with its role.
    """
    try:
        source = load_logits(surrogate, jit_compile)
        found = count_classes(source, x[:1])
        if found != classes:
            raise ValueError(
                f"it must have the model's {classes} outputs. "
                f"Received: {found} outputs"
            )
        check_logits(
            source(tf.constant(x[:32])).numpy(),
            getattr(source.function, "model", None),
        )
    except ValueError as error:
        raise ValueError(f"surrogate: {error}") from error
    return source


def check_warm_start(attacks, norms, epsilon, bounds):
    """Checks that one attack at least can start from a given image.

    Args:
        attacks: as of `evaluate`.
        norms: a list of "linf" and "l2".
        epsilon: the budget to make the attacks with.
        bounds: (lowest, highest) pixel value, or None.

    Raises:
        ValueError: if none can.
    """
    _cold(entries_of(attacks), norms, epsilon, bounds)


def _cold(entries, norms, epsilon, bounds):
    """Returns the names of the attacks that take no warm start."""
    cold = cold_entries(entries, norms, epsilon, bounds)
    if cold and len(cold) == len({entry.name for entry in entries}):
        raise ValueError(
            "warm_start needs an attack that can start from an image, such as "
            f"pgd. Received: warm_start=True, attacks={', '.join(cold)}"
        )
    return cold


def merge(folders):
    """The result of an evaluation whose shards were measured separately.

    Args:
        folders: the `workdir`s of the shards.

    Returns:
        What `evaluate` returns; with the warning `mixed_shards` where shards
        ran on other kinds of devices, with other versions of TensorFlow, Keras
        or Python, or with another `jit_compile`.

    Raises:
        ValueError: if a folder holds another evaluation, one of another version
            of tfsam included, or a chunk was not measured by any. An attack
            that failed in one gives rows with `error`.
    """
    record, mixed = verdicts.merged(folders)
    header = record.header
    whole = range(verdicts.chunk_count(header))
    missing = [c for c in whole if not record.load(NATURAL, c)]
    if missing:
        raise ValueError(
            "the shards together must have measured every chunk of "
            f"{header['batch_size']} examples; run the missing shard. "
            f"Received: none with chunk {missing[0]}"
        )
    errors = {}
    for number, attack in enumerate(header["attacks"]):
        part = verdicts.part_of(number, attack["name"])
        for index in range(len(set(header["epsilons"]))):
            failed = [
                c
                for c in whole
                if f"{index}/verdict" not in record.load(part, c)
            ]
            if failed:
                errors[part, index] = f"failed or not run in chunk {failed[0]}"
    result = accuracies.result(record, whole, errors)
    if mixed:
        message = (
            f"the shards were measured with different {', '.join(mixed)}: an "
            "example at the boundary may have another verdict than in one "
            "evaluation."
        )
        result["warnings"].append(
            {"warning": "mixed_shards", "message": message}
        )
    return result


def load_data(data, bounds, steps=None, network=None):
    """Reads images and their labels, and checks them.

    Args:
        data: see `tfsam.data.examples`.
        bounds: (lowest, highest) value of x, or None.
        steps: see `examples.load`.
        network: see `examples.load`.

    Returns:
        An `attacking.Data`.

    Raises:
        ValueError: if they are no examples and labels, or x is out of bounds.
    """
    x, y = examples.load(data, steps=steps, network=network)
    if not tf.as_dtype(x.dtype).is_floating:
        advice = "convert it to floats on that scale"
        if bounds == (0, 1):
            advice = "divide images of 0 to 255 by 255"
        raise ValueError(
            f"x must be float with values in {bounds}; {advice}. Received: "
            f"x.dtype={x.dtype}"
        )
    if not np.isfinite(x).all():
        raise ValueError("x must be finite. Received: x with NaN or infinity")
    x = inside_bounds(x, bounds)
    # An attack's result, rounded to float16, would leave its ball.
    x = x.astype(np.float32) if x.dtype.itemsize < 4 else x
    return Data(x, *class_labels(y))


def check_shard(shard, examples, batch_size):
    """Refuses a shard that is none, or that would be empty.

    Args:
        shard: (i, n).
        examples: how many there are.
        batch_size: the size of a chunk.

    Raises:
        ValueError: if it is bad.
    """
    count = -(-examples // batch_size)
    pair = isinstance(shard, (tuple, list)) and len(shard) == 2
    numbered = pair and all(isinstance(n, numbers.Integral) for n in shard)
    if not numbered or not 0 <= shard[0] < min(shard[1], count):
        given = "/".join(map(str, shard)) if pair else shard
        raise ValueError(
            f"shard must be (i, n) with 0 <= i < n, and i below {count}, the "
            f"number of chunks. Received: shard={given}"
        )
