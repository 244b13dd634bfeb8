"""Accuracy under attack.

An example that is misclassified without an attack counts as broken, and an
example that is broken at a smaller epsilon stays broken at a larger one. Only
the survivors are attacked (`chunks.py`). Their verdicts are saved
(`verdicts.py`) and summed up (`accuracies.py`); signs of a misleading result
become warnings (`red_flags.py`).

The examples are divided into chunks by their index. The verdicts of a chunk do
not depend on other chunks. Processes, devices and resumed runs can therefore
share the work, and the result is the same to the bit.
"""

import dataclasses
import functools
import numbers
import warnings
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tfsam.attacks.logits import Logits
from tfsam.data import examples
from tfsam.data import rows
from tfsam.evaluation import accuracies
from tfsam.evaluation import budgets as balls
from tfsam.evaluation import cache_key
from tfsam.evaluation import diagnosis
from tfsam.evaluation import headers
from tfsam.evaluation import kept_workers
from tfsam.evaluation import verdicts
from tfsam.evaluation.budgets import Budget
from tfsam.evaluation.budgets import Budgets
from tfsam.evaluation.budgets import flat
from tfsam.evaluation.budgets import together
from tfsam.evaluation.chunks import Turn
from tfsam.evaluation.chunks import attack_chunk
from tfsam.evaluation.draws import Draws
from tfsam.evaluation.draws import planned
from tfsam.evaluation.natural import measure_gradients
from tfsam.evaluation.natural import measure_natural
from tfsam.evaluation.opening import open_logits
from tfsam.evaluation.plans import Data
from tfsam.evaluation.plans import Entry
from tfsam.evaluation.plans import Plan
from tfsam.evaluation.plans import cold_entries
from tfsam.evaluation.plans import entries_of
from tfsam.evaluation.progress import teller
from tfsam.evaluation.red_flags import LOGARITHMS
from tfsam.evaluation.verdicts import NATURAL
from tfsam.evaluation.workers import Worker
from tfsam.evaluation.workers import known_devices
from tfsam.evaluation.workers import make_worker
from tfsam.evaluation.workers import on_surrogate
from tfsam.evaluation.workers import spread
from tfsam.models.functions import count_classes
from tfsam.registries import ATTACKS
from tfsam.support import files
from tfsam.support import validators
from tfsam.support.labels import class_labels
from tfsam.support.logit_checks import check_logits
from tfsam.support.pixels import inside_bounds

Bounds = tuple[float, float] | None

_EPSILONS = (1 / 255, 2 / 255)


@dataclasses.dataclass(frozen=True)
class _What:
    """The arguments of `evaluate` that say what is measured."""

    model: Any
    data: Any
    attacks: Any
    transfer_attacks: Any
    norm: str
    epsilons: Any
    budgets: Any
    bounds: Any
    seed: Any
    draws: Any
    steps: int | None
    surrogate: Any
    warm_start: bool
    sweep: str
    pixels: str | None


@dataclasses.dataclass(frozen=True)
class _How:
    """The arguments of `evaluate` that say how the work is done."""

    batch_size: Any
    strict: bool
    jit_compile: Any
    progress: Callable[[str], Any] | None
    devices: Any
    shard: Any
    diagnose: bool


@dataclasses.dataclass(frozen=True)
class _Where:
    """The arguments of `evaluate` that say where verdicts are kept."""

    workdir: files.Path | None
    save_adversarial: bool
    name: str | None
    surrogate_name: str | None


class _Models(NamedTuple):
    """The loaded models.

    Attributes:
        judge: The model that is evaluated.
        surrogate: The surrogate, or None.
        classes: Number of logits of both.
    """

    judge: Logits
    surrogate: Logits | None
    classes: int


def evaluate(
    model: Any,
    data: Any,
    attacks: Any,
    norm: str = "linf",
    epsilons: float | Sequence[float] | np.ndarray = _EPSILONS,
    *,
    budgets: Mapping[str, Any] | None = None,
    bounds: tuple[float, float] | None = (0.0, 1.0),
    seed: int = 0,
    batch_size: int = 128,
    strict: bool = False,
    jit_compile: bool | str = "auto",
    progress: Callable[[str], Any] | None = None,
    workdir: files.Path | None = None,
    save_adversarial: bool = False,
    devices: str | Sequence[str] | None = None,
    shard: tuple[int, int] = (0, 1),
    surrogate: Any = None,
    transfer_attacks: Any = (),
    warm_start: bool = False,
    sweep: str = "full",
    name: str | None = None,
    surrogate_name: str | None = None,
    steps: int | None = None,
    pixels: str | None = None,
    draws: int | None = None,
    diagnose: bool = True,
) -> dict[str, Any]:
    """Measures natural accuracy, and accuracy under each and under all attacks.

    The arguments `model` to `epsilons`, `budgets`, `bounds`, `seed`, `draws`,
    `steps`, `pixels`, `surrogate`, `transfer_attacks` and `warm_start` say what
    is measured; `batch_size`, `strict`, `jit_compile`, `progress`, `devices`,
    `shard` and `diagnose` how it is computed; and `workdir`,
    `save_adversarial`, `name` and `surrogate_name` where verdicts are kept.

    Args:
        model: A Keras model or a callable from pixels (batch, ...) to logits
            (batch, classes), or the path of a model that
            `tfsam.models.load` takes, whose softmax or sigmoid is removed. A
            SavedModel is a program: load only models from people you trust.
        data: Arrays (x, y), or a `tf.data.Dataset`, batched or not, a
            `keras.utils.PyDataset` or a generator of such pairs (see
            `tfsam.data.examples`). x is float (n, ...) with values in `bounds`;
            y holds class numbers (n,) or one-hot labels (n, classes). Sample
            weights are ignored. Or the test part of a `tfsam.data.Images`, or
            of a source of `tfsam.data.load`, such as "folder:PATH". Large data
            is read chunk by chunk, from a temporary file if it is a dataset.
        attacks: A list. Each item is a name of `tfsam.attacks.names()`, which
            may have options ("pgd:steps=50"), a factory, or either with
            options, (name, options) or (factory, options). To name a factory,
            pass (name, factory) or (name, factory, options).
        norm: "linf", "l2" or "l1".
        epsilons: The budgets, in the units of x, >= 0.
        budgets: Epsilons in several norms, {"linf": [...], "l2": [...]}, in
            place of `norm` and `epsilons`.
        bounds: (lowest, highest) value of x, or None for inputs that are not
            images.
        seed: Integer >= 0. With the index of an example, it determines the
            random numbers for that example.
        batch_size: Number of examples in a chunk, which are attacked together.
        strict: Whether an exception of an attack is raised. Otherwise, the
            attack's row has an `error`.
        jit_compile: Whether XLA compiles the network's gradients: True, False,
            or "auto" to compile them on GPUs only.
        progress: Function that is called with a line of text from time to time.
        workdir: Folder that keeps every verdict, so that the same evaluation
            can resume. None keeps nothing. An evaluation with other attacks,
            epsilons or norms adds to the folder, at the cost of what is new:
            an attack is recognised by its options, configuration and code. The
            folder is rejected if anything else that verdicts depend on differs:
            the data, an argument, the configuration, code or weights of the
            model, the versions of tfsam, TensorFlow, Keras and Python, or the
            kind of device.
        save_adversarial: Whether `workdir` also keeps the adversarial images.
            If a minimum-norm attack finds none within epsilon, x is kept.
        devices: Names of the devices that share the chunks, such as
            ["GPU:0", "GPU:1"]. None means the device of TensorFlow's choice.
        shard: (i, n) to evaluate only every n-th chunk, beginning with the
            i-th. `merge` combines the results of all shards.
        surrogate: A model, of any kind that `model` may be, that is attacked
            in place of `model`, for a transfer attack; the verdicts are those
            of `model`. tfsam's attacks then make all their steps and spend the
            whole budget instead of stopping at the first image that the
            surrogate misclassifies. Other attacks can do the same when
            `logits_fn.surrogate` is true.
        transfer_attacks: A list as `attacks`, of attacks on the surrogate. Then
            `attacks` are attacks on the model. Without it, `attacks` are
            attacks on the surrogate if there is one.
        warm_start: Whether attacks that can (`pgd`) start from the image of the
            smaller epsilon. A warning names the other attacks. Results of
            attacks with different starts are not comparable.
        sweep: "full" attacks every survivor at every epsilon. "bisect" takes an
            example that stands at an epsilon to stand at all smaller ones, so
            that a few attacks on an example decide the whole curve. It begins
            with the largest epsilon if the attack `stops` at its first success,
            and halves the epsilons otherwise. An attack may fail at a larger
            epsilon and succeed at a smaller one; accuracies are then higher
            than those of a full sweep, and the rows have `sweep`, "bisect".
            Minimum-norm attacks ignore it. It is refused with `warm_start` and
            with standard AutoAttack.
        name: Name by which `workdir` recognises the model, instead of its
            configuration, code and weights. It is needed if the model cannot be
            described, for example because it holds a lock or a handle of a C
            library. Change the name whenever you change the model.
        surrogate_name: The same for the surrogate.
        steps: Number of elements, usually batches, to read from a dataset or a
            generator. None reads all, and rejects data without an end.
        pixels: The range of pixels that a model from a path was trained on, see
            `tfsam.models.load`. None takes the one that its layers tell, or
            under which it is the most accurate. Inputs that are not in [0, 1]
            by `bounds` are given to it as they are.
        draws: Number of draws of a random model by which each verdict is made;
            an example is broken if at least half of them are wrong, also
            without an attack. None means 20 for a model that is random, and a
            single call of another. See `tfsam.evaluation.draws` for what is
            repeatable.
        diagnose: Whether the attacks are examined for signs that they failed to
            attack. No verdict depends on it.

    Returns:
        A dict. `natural` is {`accuracy`, `n`, `interval`}. `warnings` is a
        list of {`warning`, `message`}, the signs of a misleading result.
        `robust` is a list of rows, attack by attack, norm by norm and epsilon
        by epsilon in the given order: {`attack`, `options`, `norm`, `epsilon`,
        `epsilon_text`, `accuracy`, `n`, `interval`, `max_perturbation`,
        `inherited`, `attacked`, `forward_passes`, `gradient_passes`,
        `nan_gradients`, `seconds`}; an attack on a surrogate also has
        `surrogate`, true.

        Accuracies are fractions of all n examples, and `interval` is Wilson's
        95 % interval. `inherited` counts the examples that a smaller epsilon
        broke, including epsilons that `workdir` holds from before. `attacked`
        counts the examples that were attacked when the row was measured: the
        survivors of the smaller epsilons that were known then. The passes
        are means over them, None if the attack does not report them.
        `nan_gradients` counts gradients that were NaN or infinite; if there
        are any, the accuracy is not reliable. An ensemble's row also has
        `broken_by`, the number of examples that each stage broke, and the row
        of AutoAttack has its `version`, "standard", "rand" or "plus". That of
        the standard version has `standard`, which is false for fewer than four
        classes.
        The row of a minimum-norm attack has `median_distance` over all
        examples: 0 for misclassified ones, None if at least half survive. If
        an attack failed, its row has `error`, and `accuracy` is None. It is
        tried again when the evaluation is resumed.

        The rows and `natural` of a random model have `draws`, the number of
        draws, and `spread`, the mean fraction of an example's draws that
        disagree with its verdict. The row of an attack that follows gradients
        of single draws has `meaningless`, true.

        `worst_case` is a list, norm by norm and epsilon by epsilon, of
        {`norm`, `epsilon`, `epsilon_text`, `accuracy`, `n`, `interval`,
        `attacks`, `missing`, `upper_bound`}, where an example counts as robust
        only if all attacks failed; see `tfsam.evaluation.worst_case.rows`.
        What `workdir` holds of these attacks from before counts, too. With
        several norms, `union` is {`accuracy`, `n`, `interval`, `budgets`,
        `missing`, `upper_bound`}, where all attacks failed at the largest
        epsilon of every norm.

        With `diagnose`, a row has `diagnosis`, a list of {`indicator`,
        `message`, `remedy`, `count`}, the indicators of attack failure of
        Pintor et al. (2022) that hold for its survivors; see
        `tfsam.evaluation.diagnosis`. It is "not recorded" for an attack whose
        path is unknown, unless an indicator that needs no path holds.

        For a model from a path, `model` says what it is, as
        `tfsam.models.inspect` does.

    Raises:
        ImportError: If an attack needs a library that is not installed.
        ValueError: If the model, the data or an argument is invalid, if an
            attack or one of its options is unknown, if none of the attacks can
            make use of `warm_start`, or if `workdir` holds another evaluation
            or needs a name for the model or an attack. No attack has run then.

    Example:
        >>> import keras
        >>> import sklearn.datasets
        >>> digits = sklearn.datasets.load_digits()
        >>> x = (digits.images[:16] / 16).astype("float32")
        >>> network = keras.Sequential(
        ...     [
        ...         keras.Input((8, 8)),
        ...         keras.layers.Flatten(),
        ...         keras.layers.Dense(10),
        ...     ]
        ... )
        >>> data = (x, digits.target[:16])
        >>> result = evaluate(network, data, ["fgsm"], epsilons=[0.0, 8 / 255])
        >>> first, last = result["robust"]
        >>> last["epsilon_text"], last["n"]
        ('8/255', 16)
        >>> last["accuracy"] <= first["accuracy"]
        True
    """
    what = _What(
        model=model,
        data=data,
        attacks=attacks,
        transfer_attacks=transfer_attacks,
        norm=norm,
        epsilons=epsilons,
        budgets=budgets,
        bounds=bounds,
        seed=seed,
        draws=draws,
        steps=steps,
        surrogate=surrogate,
        warm_start=warm_start,
        sweep=sweep,
        pixels=pixels,
    )
    how = _How(
        batch_size=batch_size,
        strict=strict,
        jit_compile=jit_compile,
        progress=progress,
        devices=devices,
        shard=shard,
        diagnose=diagnose,
    )
    where = _Where(
        workdir=workdir,
        save_adversarial=save_adversarial,
        name=name,
        surrogate_name=surrogate_name,
    )
    plan = _plan(what, how, where)
    models = _models(what, how, plan.data)
    plan = plan._replace(draws=_draws(what, models, plan.data))
    record = _record(plan, models, what, how, where)
    return _measured(plan, models, record, how)


def _plan(what: _What, how: _How, where: _Where) -> Plan:
    """Checks the arguments and reads the data."""
    batch_size = validators.check_count("batch_size", how.batch_size, 1)
    seed = validators.check_count("seed", what.seed)
    bounds = validators.check_interval("bounds", what.bounds)
    given = _budgets(what, bounds)
    if where.save_adversarial and where.workdir is None:
        raise ValueError(
            "save_adversarial needs a workdir to save to. Received: none"
        )
    entries = _entries(what)
    _check_sweep(what.sweep, entries, given, bounds, what.warm_start)
    if what.warm_start and any(given.values()):
        norms = [norm for norm, epsilons in given.items() if epsilons]
        cold = _cold(entries, norms, given[norms[0]][0], bounds)
        if cold:
            warnings.warn(
                f"{', '.join(cold)} cannot start from an image: warm_start "
                "applies to the other attacks only.",
                stacklevel=3,
            )
    data = load_data(what.data, bounds, what.steps, what.model)
    size = min(batch_size, len(data.x))
    check_shard(how.shard, len(data.x), size)
    known_devices(how.devices)
    return Plan(
        data=data,
        entries=entries,
        budgets=given,
        bounds=bounds,
        seed=seed,
        size=size,
        warm_start=what.warm_start,
        bisect=what.sweep == "bisect",
        keep_images=where.save_adversarial,
        diagnose=how.diagnose,
    )


def check_sweep(
    sweep: str,
    attacks: Any,
    budgets: Mapping[str, Sequence[float]],
    bounds: Bounds,
    warm_start: bool = False,
) -> None:
    """Checks that all attacks may be swept over epsilons in a way.

    Args:
        sweep: "full" or "bisect".
        attacks: Attacks as in `evaluate`.
        budgets: The epsilons of each norm.
        bounds: (lowest, highest) value of a pixel, or None.
        warm_start: As in `evaluate`.

    Raises:
        ValueError: If the way is unknown, or an attack or `warm_start` needs a
            full sweep.
    """
    _check_sweep(sweep, entries_of(attacks), budgets, bounds, warm_start)


def _check_sweep(
    sweep: str,
    entries: Iterable[Entry],
    given: Mapping[str, Sequence[float]],
    bounds: Bounds,
    warm_start: bool,
) -> None:
    """Checks sweeps; see `check_sweep`."""
    validators.check_choice("sweep", sweep, ["full", "bisect"])
    if sweep == "full":
        return
    if warm_start:
        raise ValueError(
            "sweep='bisect' does not attack in the order of the epsilons, as "
            "warm_start needs. Received: sweep=bisect, warm_start=True"
        )
    budgets = ((norm, e) for norm, found in given.items() for e in found)
    norm, epsilon = next(budgets, ("linf", 0.0))

    def version(entry: Entry) -> Any:
        try:
            attack = entry.make(epsilon=epsilon, norm=norm, bounds=bounds)
        except Exception:
            # A factory may raise anything; the attack's own row reports it.
            return None
        return ATTACKS.fact(attack, "version")

    standard = [e.name for e in entries if version(e) == "standard"]
    if standard:
        raise ValueError(
            "standard AutoAttack attacks at every epsilon; use sweep='full', "
            f"or other attacks. Received: sweep=bisect, attack={standard[0]}"
        )


def _budgets(what: _What, bounds: Bounds) -> Budgets:
    """Returns the epsilons of each norm."""
    if what.budgets is None:
        return balls.parse({what.norm: what.epsilons}, bounds)
    if what.norm != "linf" or what.epsilons is not _EPSILONS:
        raise ValueError(
            "budgets takes the place of norm and epsilons: leave them out. "
            f"Received: norm={what.norm}, epsilons={what.epsilons}, "
            f"budgets={what.budgets}"
        )
    return balls.parse(what.budgets, bounds)


def _entries(what: _What) -> list[Entry]:
    """Returns the attacks on the model, and those on the surrogate."""
    entries = entries_of(what.attacks)
    transfers = entries_of(what.transfer_attacks)
    if what.surrogate is None and transfers:
        raise ValueError(
            "transfer_attacks are attacks on a surrogate: pass one as "
            f"surrogate. Received: transfer_attacks={what.transfer_attacks}, "
            "surrogate=None"
        )
    if what.surrogate is not None and not transfers:
        entries, transfers = [], entries
    return [*entries, *(entry._replace(transfer=True) for entry in transfers)]


def _models(what: _What, how: _How, data: Data) -> _Models:
    """Loads the model and the surrogate."""
    judge = _load(what, what.model, what.pixels, how, data)
    classes = count_classes(judge, data.x[:1])
    surrogate = None
    if what.surrogate is not None:
        surrogate = _load_surrogate(what, how, classes, data)
    return _Models(judge, surrogate, classes)


def _draws(what: _What, models: _Models, data: Data) -> Draws | None:
    """Chooses the draws of a random model, and looks at the surrogate."""
    if models.surrogate is not None:
        planned(None, models.surrogate, data.x)
    return planned(what.draws, models.judge, data.x)


def _load(
    what: _What, model: Any, pixels: str | None, how: _How, data: Data
) -> Logits:
    """Loads a model; one from a file is tried on the data."""
    return open_logits(model, data, what.bounds, pixels, how.jit_compile)


def _load_surrogate(what: _What, how: _How, classes: int, data: Data) -> Logits:
    """Loads a surrogate, and checks that it has the model's outputs.

    Raises:
        ValueError: If the surrogate does not return as many logits as the model
            for the images. The message begins with "surrogate: ".
    """
    try:
        source = _load(what, what.surrogate, None, how, data)
        found = count_classes(source, data.x[:1])
        if found != classes:
            raise ValueError(
                f"it must have the model's {classes} outputs. "
                f"Received: {found} outputs"
            )
        check_logits(
            source(tf.constant(data.x[:32])).numpy(),
            getattr(source.function, "model", None),
        )
    except ValueError as error:
        raise ValueError(f"surrogate: {error}") from error
    return source


def _record(
    plan: Plan, models: _Models, what: _What, how: _How, where: _Where
) -> verdicts.Record:
    """Opens the record of the evaluation, or makes a new one."""
    header: headers.Header = {
        "schema": headers.SCHEMA,
        "n": len(plan.data.x),
        "classes": models.classes,
        "batch_size": plan.size,
        "bounds": None if plan.bounds is None else list(plan.bounds),
        "seed": plan.seed,
        "adversarial": plan.keep_images,
        "warm_start": plan.warm_start,
        # With a workdir, the surrogate's description replaces this.
        "surrogates": [] if models.surrogate is None else [None],
        "attacks": [
            {
                "name": entry.name,
                "options": cache_key.plain_options(entry.options),
                "surrogate": 0 if entry.transfer else None,
                "budgets": together([plan.budgets]),
            }
            for entry in plan.entries
        ],
    }
    origin = models.judge.origin or {}
    if origin.get("logits") == LOGARITHMS:
        header["logits"] = LOGARITHMS
    if plan.bisect:
        header["sweep"] = what.sweep
    if plan.draws is not None:
        header["draws"] = plan.draws.number
    if where.workdir is None:
        return verdicts.Record(header)
    named = {"model": cache_key.Model(what.model, models.judge, where.name)}
    if models.surrogate is not None:
        named["surrogate"] = cache_key.Model(
            what.surrogate, models.surrogate, where.surrogate_name
        )
    devices = known_devices(how.devices)
    header = cache_key.described(header, plan, named, devices)
    identify = [cache_key.identifier(entry, plan) for entry in plan.entries]
    return verdicts.Record(header, where.workdir, identify)


def _measured(
    plan: Plan, models: _Models, record: verdicts.Record, how: _How
) -> dict[str, Any]:
    """Measures the shard's chunks, and returns the result."""
    first, count = how.shard
    share = range(first, verdicts.chunk_count(record.header), count)
    workers = _workers(plan, models, how)
    measure_natural(plan, workers[False], record, share)
    if 0 in share:
        _examine(plan, workers, record)
    errors: dict[tuple[int, Budget], str] = {}
    for number, entry in zip(record.numbers, plan.entries, strict=True):
        for norm, epsilons in plan.budgets.items():
            if not epsilons:
                continue
            turn = Turn(
                plan=plan,
                entry=entry,
                number=number,
                norm=norm,
                record=record,
                errors=errors,
                strict=how.strict,
                tell=teller(plan, entry, norm, len(share), how.progress),
            )
            work = functools.partial(attack_chunk, turn)
            spread(workers[entry.transfer], work, share)
    kept_workers.keep(workers[False])
    asked = accuracies.Asked(record.numbers, plan.budgets)
    result = accuracies.result(record, share, errors, asked)
    if how.diagnose:
        for row in result["robust"]:
            if "error" not in row:
                # The verdicts were measured without a diagnosis.
                row.setdefault("diagnosis", diagnosis.NOT_RECORDED)
    if models.judge.origin is not None:
        result["model"] = models.judge.origin
    return result


def _workers(
    plan: Plan, models: _Models, how: _How
) -> dict[bool, list[Worker]]:
    """Returns the workers that attack the model, and those of the surrogate.

    Those of the model may be those of an earlier evaluation; a worker that
    attacks a surrogate is made anew.

    Returns:
        A dict from `Entry.transfer` to workers, one for each device.
    """
    example, classes = plan.data.x[:1], models.classes
    facts = classes, example.shape, example.dtype, plan.size

    def worker(device: str | None) -> Worker:
        def make(logits: Logits) -> Worker:
            return make_worker(device, logits, classes, example, plan.size)

        return kept_workers.take(make, models.judge, (device, *facts))

    found = {False: [worker(d) for d in known_devices(how.devices)]}
    if models.surrogate is not None:
        found[True] = [
            on_surrogate(one, models.surrogate, classes, example, plan.size)
            for one in found[False]
        ]
    return found


def _examine(
    plan: Plan, workers: Mapping[bool, list[Worker]], record: verdicts.Record
) -> None:
    """Examines the gradients of the models that are attacked."""
    sources = {entry.transfer for entry in plan.entries}
    # Without an attack, those of the surrogate if there is one.
    for transfer in sorted(sources or {True in workers}):
        place = record.surrogates[0] if transfer else None
        measure_gradients(plan, workers[transfer][0], record, place)


def check_warm_start(
    attacks: Any, norms: Iterable[str], epsilon: float, bounds: Bounds
) -> None:
    """Checks that at least one attack can start from a given image.

    Args:
        attacks: Attacks as in `evaluate`.
        norms: "linf", "l2" or both.
        epsilon: Budget to make the attacks with.
        bounds: (lowest, highest) value of a pixel, or None.

    Raises:
        ValueError: If none of the attacks can.
    """
    _cold(entries_of(attacks), norms, epsilon, bounds)


def _cold(
    entries: Sequence[Entry],
    norms: Iterable[str],
    epsilon: float,
    bounds: Bounds,
) -> list[str]:
    """Returns the names of the attacks to which a warm start does not apply."""
    cold = cold_entries(entries, norms, epsilon, bounds)
    if cold and len(cold) == len({entry.name for entry in entries}):
        raise ValueError(
            "warm_start needs an attack that can start from an image, such as "
            f"pgd. Received: warm_start=True, attacks={', '.join(cold)}"
        )
    return cold


def merge(folders: Iterable[files.Path]) -> dict[str, Any]:
    """Combines the shards of an evaluation into its result.

    Folders of the same model and data may also hold different attacks, epsilons
    or norms.

    Args:
        folders: The `workdir` of each shard.

    Returns:
        The result that `evaluate` returns for the whole evaluation, with all
        attacks and budgets that the folders hold. It has the
        warning `mixed_shards` if shards were measured on other kinds of
        devices, with other versions of TensorFlow, Keras or Python, or with
        another `jit_compile`. If an attack failed in a shard, its rows have
        `error`.

    Raises:
        ValueError: If a folder holds the record of another evaluation or of
            another version of tfsam, or if no shard measured some chunk.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> x = np.random.default_rng(0).random((6, 4), dtype="float32")
        >>> data, weights = (x, np.arange(6) % 3), 9 * np.eye(4, 3)
        >>> folders = [tempfile.mkdtemp() for _ in range(2)]
        >>> for i, folder in enumerate(folders):
        ...     shard = evaluate(
        ...         lambda x: x @ weights.astype("float32"),
        ...         data,
        ...         ["fgsm"],
        ...         batch_size=2,
        ...         shard=(i, 2),
        ...         workdir=folder,
        ...     )
        >>> merge(folders)["natural"]["n"]
        6
    """
    record, mixed = verdicts.merged(folders)
    header = record.header
    whole = range(verdicts.chunk_count(header))
    missing = [c for c in whole if not record.load(NATURAL, c)]
    if missing:
        raise ValueError(
            "the shards together must have measured every chunk of "
            f"{header['batch_size']} examples; run the missing shard. "
            f"Received: no shard with chunk {missing[0]}"
        )
    result = accuracies.result(record, whole, _unmeasured(record, whole))
    if mixed:
        message = (
            f"The shards were measured with different {', '.join(mixed)}. An "
            "example near the decision boundary may get another verdict than "
            "in a single evaluation. To avoid this, measure all shards with "
            "the same software on the same kind of device."
        )
        result["warnings"].append(
            {"warning": "mixed_shards", "message": message}
        )
    return result


def _unmeasured(
    record: verdicts.Record, chunks: Sequence[int]
) -> dict[tuple[int, Budget], str]:
    """Returns a message for each attack and budget without all verdicts."""
    errors = {}
    for number, attack in enumerate(record.header["attacks"]):
        for budget in flat(attack["budgets"]):
            part = verdicts.part_at(record.part(number), budget)
            loaded = {c: record.load(part, c) for c in chunks}
            failed = [c for c in chunks if "verdict" not in loaded[c]]
            if failed:
                message = f"failed or not run in chunk {failed[0]}"
                errors[number, budget] = message
    return errors


def load_data(
    data: Any, bounds: Bounds, steps: int | None = None, network: Any = None
) -> Data:
    """Reads images and their labels, and checks them.

    Args:
        data: Images and labels; see `tfsam.data.examples`.
        bounds: (lowest, highest) value of x, or None.
        steps: Number of elements to read; see `examples.load`.
        network: The model that will process the images; see `examples.load`.

    Raises:
        ValueError: If the data are not images with labels, or a value of x is
            outside the bounds, NaN or infinite.
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
    ends = rows.extremes(x)
    if not np.isfinite(ends).all():
        raise ValueError("x must be finite. Received: x with NaN or infinity")
    clipped = inside_bounds(ends, bounds)
    if (clipped != ends).any():
        x = rows.changed(x, functools.partial(inside_bounds, bounds=bounds))
    if x.dtype.itemsize < 4:
        # Rounded to float16, an adversarial image could leave its ball.
        x = rows.changed(x, lambda part: part.astype(np.float32), np.float32)
    return Data(x, *class_labels(y), clipped.astype(x.dtype))


def check_shard(shard: Any, examples: int, batch_size: int) -> None:
    """Checks that a shard is valid and has at least one chunk.

    Args:
        shard: (i, n), the number of the shard and the number of shards.
        examples: Number of examples.
        batch_size: Number of examples in a chunk.

    Raises:
        ValueError: If the shard is invalid or empty.
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
