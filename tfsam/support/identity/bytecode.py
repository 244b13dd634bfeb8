"""Names that Python code reads and assigns, extracted from its bytecode."""

import dis
import functools
import inspect
import types
from collections.abc import Collection
from collections.abc import Iterator


@functools.cache
def read(code: types.CodeType) -> tuple[list[str], list[str], frozenset[str]]:
    """Returns the globals, imports and attributes that code reads.

    Args:
        code: The code; nested code counts, too.
    """
    names: set[str] = set()
    imported: set[str] = set()
    attributes: set[str] = set()
    for each in nested(code):
        for instruction in dis.get_instructions(each):
            name = instruction.opname
            if name in (
                *("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"),
                "LOAD_CLASSDEREF",
            ):
                names.add(instruction.argval)
            elif name == "IMPORT_NAME":
                imported.add(instruction.argval)
        attributes |= set(each.co_names)
    return sorted(names), sorted(imported), frozenset(attributes)


def assigned(code: types.CodeType) -> Iterator[str]:
    """Yields the attributes that code assigns.

    Args:
        code: The code; nested code counts, too.
    """
    for each in nested(code):
        for instruction in dis.get_instructions(each):
            if instruction.opname == "STORE_ATTR":
                yield instruction.argval


def codes(
    cls: type, skip: Collection[str] = frozenset()
) -> Iterator[types.CodeType]:
    """Yields the code of a class's methods.

    Args:
        cls: The class.
        skip: Names of methods to leave out.
    """
    for name, member in vars(cls).items():
        if name in skip:
            continue
        for part in ("fget", "fset", "func", "__func__", None):
            function = getattr(member, part, None) if part else member
            if callable(function):
                code = getattr(inspect.unwrap(function), "__code__", None)
                if code is not None:
                    yield code


def nested(code: types.CodeType) -> Iterator[types.CodeType]:
    """Yields code and all code nested in it, such as that of lambdas.

    Args:
        code: The code.
    """
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from nested(constant)
