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

import functools
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np

from tfsam.evaluation import accuracies
from tfsam.evaluation import cache_key
from tfsam.evaluation import diagnosis
from tfsam.evaluation import kept_workers
from tfsam.evaluation import records
from tfsam.evaluation import verdicts
from tfsam.evaluation.arguments import EPSILONS
from tfsam.evaluation.arguments import How
from tfsam.evaluation.arguments import What
from tfsam.evaluation.arguments import Where
from tfsam.evaluation.arguments import made_plan
from tfsam.evaluation.budgets import Budget
from tfsam.evaluation.chunk_state import Turn
from tfsam.evaluation.chunks import attack_chunk
from tfsam.evaluation.natural import measure_gradients
from tfsam.evaluation.natural import measure_natural
from tfsam.evaluation.opening import Models
from tfsam.evaluation.opening import draws_of
from tfsam.evaluation.opening import open_models
from tfsam.evaluation.plans import Plan
from tfsam.evaluation.progress import teller
from tfsam.evaluation.workers import Worker
from tfsam.evaluation.workers import known_devices
from tfsam.evaluation.workers import spread
from tfsam.support import files
from tfsam.support.validators import Bounds


def evaluate(
    model: Any,
    data: Any,
    attacks: Any,
    norm: str = "linf",
    epsilons: float | Sequence[float] | np.ndarray = EPSILONS,
    *,
    budgets: Mapping[str, Any] | None = None,
    epsilon_factors: Any = None,
    bounds: Bounds = (0.0, 1.0),
    target: Any = None,
    multi_label: bool = False,
    attacked: str | int | None = None,
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

    The arguments `model` to `epsilons`, `budgets`, `epsilon_factors`, `bounds`,
    `target`, `multi_label`, `attacked`, `seed`, `draws`, `steps`, `pixels`,
    `surrogate`, `transfer_attacks`, `warm_start` and `sweep` define the
    measurement; `batch_size`, `strict`, `jit_compile`, `progress`, `devices`,
    `shard` and `diagnose` control its computation; and `workdir`,
    `save_adversarial`, `name` and `surrogate_name` the record of its verdicts.

    Args:
        model: A Keras model or a callable from pixels (batch, ...) to logits
            (batch, classes), or the path of a model that
            `tfsam.models.load` takes, whose softmax or sigmoid is removed. A
            SavedModel is a program: load only models from people you trust.
        data: Arrays (x, y), or a `tf.data.Dataset`, batched or not, a
            `keras.utils.PyDataset` or a generator of such pairs (see
            `tfsam.data.examples`); or the test part of a `tfsam.data.Images`,
            or of a source of `tfsam.data.load`, such as "folder:PATH". x is
            float (n, ...) with values in `bounds`; y holds class numbers (n,)
            or one-hot labels (n, classes). Sample weights are ignored. Large
            data is read chunk by chunk, from a temporary file if it is a
            dataset.
        attacks: A list. Each item is a name of `tfsam.attacks.names()`, which
            may have options ("pgd:steps=50"), a factory, or either with
            options, (name, options) or (factory, options). To name a factory,
            pass (name, factory) or (name, factory, options).
        norm: "linf", "l2" or "l1".
        epsilons: The budgets, in the units of x, >= 0.
        budgets: Epsilons in several norms, {"linf": [...], "l2": [...]}, in
            place of `norm` and `epsilons`.
        epsilon_factors: None, or an array (n,) of factors >= 0: example i is
            attacked within epsilon times factor i, at each of the epsilons.
            Attacks that take only one epsilon for all examples get a row with
            an `error`.
        bounds: (lowest, highest) value of x, or None for inputs that are not
            images. Each is a number, or an array that broadcasts against an
            image, such as one number for each channel of inputs that are
            standardized outside the model. Epsilon is in the units of x for
            all channels.
        target: None, or the class that the attacks aim at: an integer, or
            integers (n,), none of which may be the example's label. An example
            then counts as broken only if it is classified as its target, and
            each `accuracy` under attack, also in the worst case, is the
            fraction of examples that are not. Examples that are misclassified
            as another class without an attack are attacked as well. `natural`
            is the accuracy for the labels, as always.
        multi_label: Whether the outputs are the logits of independent labels,
            one sigmoid each, and y is 0 or 1 for each of them, (n, labels). An
            example is classified correctly if the logits above 0 are those of
            the labels that it has, and an attack breaks it if any is wrong.
        attacked: Name or number of the input that is attacked, for a model of
            several. x, also that of a dataset, is then a list or dict of
            inputs, in the structure that the model takes, and the attacks
            receive the other inputs, but do not change them. None means the
            only input whose shape and values are those of images in the bounds.
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
        sweep: "full" attacks every survivor at every epsilon. "bisect" takes
            survivors at an epsilon to survive all smaller ones, so that one or
            two attacks on an example decide the whole curve; it costs least
            with a `batch_size` of a few hundred. Its accuracies may be higher
            or lower than those of a full sweep, and its rows have `sweep`,
            "bisect"; see `tfsam.evaluation.bisection`. Minimum-norm attacks
            ignore it. It is refused with `warm_start` and with standard
            AutoAttack.
        name: Name by which `workdir` recognises the model, instead of its
            configuration, code and weights. It is needed if the model cannot be
            described, for example because it holds a lock or a handle of a C
            library. Change the name whenever you change the model.
        surrogate_name: The same for the surrogate.
        steps: Number of elements, usually batches, to read from a dataset or a
            generator. None reads all, and rejects data without an end.
        pixels: The range of pixels that a model from a path was trained on, see
            `tfsam.models.load`. None means the range that its layers imply, or
            the range under which it is the most accurate. Several inputs, and
            inputs that are not in [0, 1] by `bounds`, are not rescaled.
        draws: Number of draws of a random model by which each verdict is made;
            an example is broken if at least half of them are wrong, also
            without an attack. None means 20 for a random model; other models
            are called once. `tfsam.evaluation.draws` explains which results can
            be repeated.
        diagnose: Whether the attacks are examined for signs that they failed to
            attack. No verdict depends on it.

    Returns:
        A dict:

        - `natural`: {`accuracy`, `n`, `interval`}. Accuracies are fractions of
          all n examples, and `interval` is Wilson's 95 % interval.
        - `robust`: a list of rows, attack by attack, norm by norm and epsilon
          by epsilon in the given order: {`attack`, `options`, `norm`,
          `epsilon`, `epsilon_text`, `accuracy`, `n`, `interval`,
          `max_perturbation`, `inherited`, `attacked`, `forward_passes`,
          `gradient_passes`, `nan_gradients`, `seconds`}, and the entries listed
          below.
        - `worst_case`: a list, norm by norm and epsilon by epsilon, of
          {`norm`, `epsilon`, `epsilon_text`, `accuracy`, `n`, `interval`,
          `attacks`, `missing`, `upper_bound`}, where an example counts as
          robust only if all attacks failed, also those that `workdir` holds
          from before; see `tfsam.evaluation.worst_case.rows`.
        - `union`, with several norms: {`accuracy`, `n`, `interval`, `budgets`,
          `missing`, `upper_bound`}, where all attacks failed at the largest
          epsilon of every norm. It and the rows of `worst_case` have
          `meaningless`, true, if the rows of all their attacks do.
        - `warnings`: a list of {`warning`, `message`}, the signs of a
          misleading result; see `tfsam.evaluation.red_flags`.
        - `model`, for a model from a path: its description, as
          `tfsam.models.inspect` returns it; likewise `surrogate`.
        - `epsilon_factors`, if given: {`lowest`, `highest`, `mean`}.
        - `attacked`, for a model of several inputs: the name or the number of
          the attacked input.

        In a row, `inherited` counts the examples that a smaller epsilon broke,
        including epsilons that `workdir` holds from before, and `attacked`
        counts the examples that were attacked when the row was measured: the
        survivors of the smaller epsilons that were measured by then. The passes
        are means over them, None if the attack does not report them.
        `nan_gradients` counts gradients that were NaN or infinite; if there are
        any, the accuracy is not reliable. Some rows have further entries:

        - `error`, where an attack failed: a text. `accuracy` is None, and the
          attack is tried again when the evaluation is resumed.
        - `broken_by`, of an ensemble: the number of examples that each stage
          broke.
        - `version`, of AutoAttack: "standard", "rand", "plus", "targeted" with
          `target` or "multi-label" with `multi_label`. Rows of the standard
          version have `standard`, false for fewer than four classes, with
          `target` or `multi_label`, and with `epsilon_factors`.
        - `median_distance`, of a minimum-norm attack: over all examples, 0 for
          misclassified ones; None if at least half survive.
        - `diagnosis`, with `diagnose`: a list of {`indicator`, `message`,
          `remedy`, `count`}, the indicators of attack failure of Pintor et al.
          (2022) that hold for its survivors (see `tfsam.evaluation.diagnosis`);
          or "not recorded" for an attack whose path is unknown, unless an
          indicator that needs no path holds.
        - `draws` and `spread`, of a random model, also in `natural`: the number
          of draws, and the mean fraction of an example's draws that disagree
          with its verdict; `meaningless`, true, if the attack follows gradients
          of single draws.
        - `surrogate`, true, of an attack on a surrogate.
        - `target`, with `target`, also in `worst_case`: the class, or "one for
          each example".
        - `per_example`, true, with `epsilon_factors`, also in `worst_case`; the
          `epsilon_text` then ends in "per example".
        - `multi_label`, true, and `by_label`, a list, also in `natural`: for
          each label, the fraction of all n examples for which it is right, on
          the image that the attack found at this epsilon or a smaller one. As
          the attack aims at any label, another attack may break more of each.
          An example of which a label is wrong without an attack is not
          attacked.

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
    what = What(
        model=model,
        data=data,
        attacks=attacks,
        transfer_attacks=transfer_attacks,
        norm=norm,
        epsilons=epsilons,
        budgets=budgets,
        epsilon_factors=epsilon_factors,
        bounds=bounds,
        target=target,
        multi_label=multi_label,
        attacked=attacked,
        seed=seed,
        draws=draws,
        steps=steps,
        surrogate=surrogate,
        warm_start=warm_start,
        sweep=sweep,
        pixels=pixels,
    )
    how = How(
        batch_size=batch_size,
        strict=strict,
        jit_compile=jit_compile,
        progress=progress,
        devices=devices,
        shard=shard,
        diagnose=diagnose,
    )
    where = Where(
        workdir=workdir,
        save_adversarial=save_adversarial,
        name=name,
        surrogate_name=surrogate_name,
    )
    plan = made_plan(what, how, where)
    models = open_models(what, how, plan.data)
    plan.goal.check(models.classes)
    plan = plan._replace(draws=draws_of(what.draws, models, plan.data))
    record = _record(plan, models, what, how, where)
    return _measured(plan, models, record, how)


def _record(
    plan: Plan, models: Models, what: What, how: How, where: Where
) -> verdicts.Record:
    """Opens the record of the evaluation, or makes a new one."""
    header = cache_key.undescribed(plan, models)
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
    plan: Plan, models: Models, record: verdicts.Record, how: How
) -> dict[str, Any]:
    """Measures the shard's chunks, and returns the result."""
    first, count = how.shard
    share = range(first, records.chunk_count(record.header), count)
    devices = known_devices(how.devices)
    workers = kept_workers.workers_of(plan, models, devices)
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
    return _told(result, models, how.diagnose)


def _told(
    result: dict[str, Any], models: Models, diagnose: bool
) -> dict[str, Any]:
    """Adds the entries to a result that the record does not hold."""
    if diagnose:
        for row in result["robust"]:
            if "error" not in row:
                # The verdicts were measured without a diagnosis.
                row.setdefault("diagnosis", diagnosis.NOT_RECORDED)
    for role, logits in (
        ("model", models.judge),
        ("surrogate", models.surrogate),
    ):
        if logits is not None and logits.origin is not None:
            result[role] = logits.origin
    return result


def _examine(
    plan: Plan, workers: Mapping[bool, list[Worker]], record: verdicts.Record
) -> None:
    """Examines the gradients of the models that are attacked."""
    sources = {entry.transfer for entry in plan.entries}
    # Without an attack, those of the surrogate if there is one.
    for transfer in sorted(sources or {True in workers}):
        place = record.surrogates[0] if transfer else None
        measure_gradients(plan, workers[transfer][0], record, place)
