"""The names that Python code reads and assigns, found in its bytecode."""

import dis
import functools
import inspect
import types


@functools.cache
def read(code):
    """Returns the globals, imports and attributes that code reads."""
    names, imported, attributes = set(), set(), set()
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


def assigned(code):
    """Yields the attributes that code assigns.

    Args:
        code: a code object; code nested in it counts.
    """
    for each in nested(code):
        for instruction in dis.get_instructions(each):
            if instruction.opname == "STORE_ATTR":
                yield instruction.argval


def codes(cls, skip=frozenset()):
    """Yields the code of a class's methods."""
    for name, member in vars(cls).items():
        if name in skip:
            continue
        for part in ("fget", "fset", "func", "__func__", None):
            function = getattr(member, part, None) if part else member
            if callable(function):
                code = getattr(inspect.unwrap(function), "__code__", None)
                if code is not None:
                    yield code


def nested(code):
    """Yields code and all code nested in it.

    Args:
        code: a code object.
    """
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from nested(constant)
