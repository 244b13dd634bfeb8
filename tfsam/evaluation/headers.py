"""Headers of records: cache keys that are compared, and that can grow.

A header describes all that verdicts depend on. Most of its entries must be
equal for a record to be resumed. Two of them grow instead: `attacks`, whose
budgets grow as well, and `surrogates`. An attack is recognised by its name, its
options, its surrogate and its description at each budget, wherever it is in the
list.
"""

import json
from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

from tfsam import geometry
from tfsam.evaluation.budgets import Budget
from tfsam.evaluation.budgets import together
from tfsam.models import fingerprints
from tfsam.support import files
from tfsam.support import identity

Header = dict[str, Any]

# Returns the description of an attack at a budget; None if it is unknown.
Identify = Callable[[Budget], Any]

# Version of the header. Records of tfsam 0.1.0 have schema 1; see
# `old_records.py`.
SCHEMA = 3

# Entries of the header that change verdicts through rounding errors only.
OF_ROUNDING = ("devices", "versions", "jit_compile")

# Entries of the header of an evaluation that grow.
GROWING = ("attacks", "surrogates")


class Grown(NamedTuple):
    """A header to which the attacks of another one were added.

    Attributes:
        header: The header.
        numbers: For each attack of the other header, its number in `header`.
        surrogates: For each surrogate of the other header, its number.
    """

    header: Header
    numbers: list[int]
    surrogates: list[int]


def is_header(header: Mapping[str, Any]) -> bool:
    """Returns whether a JSON object has the entries that records need.

    Args:
        header: The content of a record.json.
    """
    counts = [header.get(key) for key in ("n", "batch_size", "classes")]
    lists = [header.get(key) for key in GROWING]
    return (
        all(type(count) is int for count in counts)
        and min(header["n"], header["batch_size"]) > 0
        and all(type(entry) is list for entry in lists)
        and all(type(entry) is dict for entry in header["surrogates"])
        and all(
            _is_attack(attack)
            and attack["surrogate"] in (None, *range(len(header["surrogates"])))
            for attack in header["attacks"]
        )
    )


def _is_attack(attack: Any) -> bool:
    return (
        type(attack) is dict
        and type(attack.get("name")) is str
        and type(attack.get("options")) is dict
        and type(attack.get("surrogate")) in (int, type(None))
        and type(attack.get("budgets")) is dict
        and all(_are_budgets(*item) for item in attack["budgets"].items())
        and type(attack.get("identity", [])) is list
        and all(
            type(group) is dict
            and _are_budgets(group.get("norm"), group.get("epsilons"))
            and type(group.get("parts", 0)) in (dict, type(None))
            for group in attack.get("identity", [])
        )
    )


def _are_budgets(norm: Any, epsilons: Any) -> bool:
    return (
        norm in geometry.NORMS
        and type(epsilons) is list
        and all(type(epsilon) is float for epsilon in epsilons)
    )


def grouped(identities: Mapping[Budget, Any]) -> list[Header]:
    """Converts the descriptions of an attack to JSON types.

    Args:
        identities: The description at each budget.

    Returns:
        A list of {`norm`, `epsilons`, `parts`}; epsilons with equal
        descriptions are together.
    """
    groups: list[Header] = []
    for (norm, epsilon), parts in identities.items():
        for group in groups:
            if group["norm"] == norm and group["parts"] == parts:
                group["epsilons"].append(epsilon)
                break
        else:
            groups.append({"norm": norm, "epsilons": [epsilon], "parts": parts})
    return groups


def identities(attack: Mapping[str, Any]) -> dict[Budget, Any]:
    """Returns the description of a header's attack at each budget.

    Args:
        attack: An entry of the header's `attacks`.
    """
    return {
        Budget(group["norm"], epsilon): group["parts"]
        for group in attack.get("identity", [])
        for epsilon in group["epsilons"]
    }


def grown(
    held: Header, added: Header, identify: Sequence[Identify] | None = None
) -> Grown:
    """Adds the attacks, budgets and surrogates of a header to another one.

    Args:
        held: The header to which they are added. It is not changed.
        added: The header from which they are taken; `check_same` has accepted
            it.
        identify: For each attack of `added`, a function that describes it at
            any budget. By default, the descriptions of `added` are used.

    Raises:
        tfsam.support.files.Unusable: If epsilons would be added to a record
            with a warm start, whose verdicts depend on all smaller epsilons,
            or of a sweep by bisection.
    """
    surrogates, places = list(held["surrogates"]), []
    for surrogate in added["surrogates"]:
        known = (
            number
            for number, other in enumerate(surrogates)
            if _same_surrogate(surrogate, other)
        )
        places.append(next(known, len(surrogates)))
        if places[-1] == len(surrogates):
            surrogates.append(surrogate)
    attacks, numbers = list(held["attacks"]), []
    for index, attack in enumerate(added["attacks"]):
        if attack["surrogate"] is not None:
            attack = attack | {"surrogate": places[attack["surrogate"]]}
        describe = identify[index] if identify else _described_by(attack)
        matches = (
            number
            for number, other in enumerate(attacks)
            # Two equal attacks of an evaluation have a part each.
            if number not in numbers and _same_attack(attack, other, describe)
        )
        numbers.append(next(matches, len(attacks)))
        if numbers[-1] == len(attacks):
            attacks.append(attack)
        else:
            other = attacks[numbers[-1]]
            for reason in ("warm_start", "sweep"):
                if held.get(reason):
                    _check_same_epsilons(attack, other, reason)
            attacks[numbers[-1]] = _extended(other, attack)
    found = held | {"attacks": attacks, "surrogates": surrogates}
    return Grown(found, numbers, places)


def _same_surrogate(one: Header | None, other: Header | None) -> bool:
    if one is None or other is None:  # Records of 0.1.0 do not describe them.
        return one is other
    return (
        _text(one | {"sketch": None}) == _text(other | {"sketch": None})
    ) and fingerprints.alike(one.get("sketch"), other.get("sketch"))


def _same_attack(attack: Header, other: Header, describe: Identify) -> bool:
    """Returns whether an attack is the one that another header describes."""
    for key in ("name", "options", "surrogate"):
        if _text(attack[key]) != _text(other[key]):
            return False
    for budget, parts in identities(other).items():
        found = None if parts is None else describe(budget)
        if found is not None and _text(found) != _text(parts):
            return False
    return True


def _described_by(attack: Header) -> Identify:
    """Returns a function that looks up an attack's own descriptions.

    The description at another epsilon of the norm replaces one that is absent.
    """
    own = identities(attack)

    def describe(budget: Budget) -> Any:
        near = [own[other] for other in own if other.norm == budget.norm]
        return own.get(budget, next(filter(None, near), None))

    return describe


def _extended(held: Header, attack: Header) -> Header:
    """Adds the budgets of an attack to those of the same attack."""
    known = {b: p for b, p in identities(held).items() if p is not None}
    described = identities(attack) | known
    # An attack that could not be made before has no description there.
    unknown = {b: None for b in identities(held) if b not in described}
    extended = held | {
        "budgets": together([held["budgets"], attack["budgets"]])
    }
    if "identity" in held or "identity" in attack:
        extended["identity"] = grouped(described | unknown)
    return extended


def _check_same_epsilons(attack: Header, held: Header, reason: str) -> None:
    which = "smaller" if reason == "warm_start" else "other"
    for norm, epsilons in attack["budgets"].items():
        old = held["budgets"].get(norm)
        if old is not None and set(old) != set(epsilons):
            raise files.Unusable(
                f"with {reason}, verdicts depend on the {which} epsilons, so "
                "that a folder takes no others; choose another folder. "
                f"Received: {norm} epsilons={epsilons} (it has {old})"
            )


def check_same(
    held: Header,
    header: Header,
    folder: files.Path,
    allowed: Collection[str] = (),
    growing: Collection[str] = GROWING,
) -> set[str]:
    """Checks that two headers agree, except for the entries that grow.

    Args:
        held: Header of the record in the folder.
        header: Header of the evaluation.
        folder: Folder of the record.
        allowed: Entries that may differ, except for tfsam's version.
        growing: Entries that grow, which are not compared.

    Returns:
        The allowed entries that differ.

    Raises:
        tfsam.support.files.Unusable: If other entries differ. The message lists
            them.
    """
    if held.get("schema") != header.get("schema"):
        raise files.Unusable(
            f"{folder} holds a record of another version of tfsam, which "
            "cannot be resumed: choose another folder. "
            f"Received: schema={header.get('schema')} "
            f"(it has {held.get('schema')})"
        )
    changes, accepted = [], set()
    for key in {**held, **header}:
        new, old = header.get(key), held.get(key)
        if key in growing or _same(key, new, old):
            continue
        if _not_comparable(key, held, header):
            continue
        new, old = _differing(new, old)
        if key in allowed and not any("tfsam" in part for part in new):
            accepted.add(key)
        elif key.endswith("_sketch"):
            changes.append(f"{key}=other logits or gradients")
        else:
            changes.append(f"{key}={_shown(new)} (it has {_shown(old)})")
    if changes:
        raise files.Unusable(
            f"{folder} holds the record of another evaluation; choose another "
            f"folder. Received: {', '.join(changes)}"
        )
    return accepted


def _not_comparable(key: str, held: Header, header: Header) -> bool:
    """Returns whether a difference follows from that of the examples."""
    return key.endswith("_sketch") and held.get("data") != header.get("data")


def _same(key: str, new: Any, old: Any) -> bool:
    if key.endswith("_sketch"):
        return fingerprints.alike(new, old)
    return _text(new) == _text(old)


def _differing(new: Any, old: Any) -> tuple[Header, Header]:
    """Returns the parts of two values that differ, by name."""
    new, old = _by_name(new), _by_name(old)
    if not isinstance(new, dict) or not isinstance(old, dict):
        return {"": new}, {"": old}
    found: tuple[Header, Header] = {}, {}
    for key in {**new, **old}:
        if _text(new.get(key)) != _text(old.get(key)):
            for parts, part in zip(
                found, _differing(new.get(key), old.get(key)), strict=True
            ):
                for inner, value in part.items():
                    parts[f"{key} {inner}".strip()] = value
    return found


def _by_name(values: Any) -> Any:
    """Converts a list of dicts to a dict, by their names or numbers."""
    if not isinstance(values, list) or not values:
        return values
    if not all(isinstance(part, dict) for part in values):
        return values
    names = [str(part.get("name", n)) for n, part in enumerate(values)]
    if len(set(names)) < len(names):
        names = [f"{n} {name}" for n, name in enumerate(names)]
    return dict(zip(names, values, strict=True))


def _shown(parts: Header) -> str:
    return ", ".join(
        f"{name} {identity.digest(value)}".strip()
        if isinstance(value, dict)
        else f"{name} {value}".strip()
        for name, value in parts.items()
    )


def _text(value: Any) -> str:
    # As JSON, 1, 1.0 and True differ, although they are equal in Python.
    return json.dumps(value, sort_keys=True)
