"""The table of methods as a Markdown document, which `--methods` prints."""

from typing import Any

from tfsam.runs.methods import Method
from tfsam.runs.methods import method
from tfsam.runs.methods import methods
from tfsam.runs.parts import PARTS
from tfsam.runs.parts import defaults
from tfsam.runs.parts import flags_of
from tfsam.runs.parts import passes

# Settings of every method, which the table leaves out.
_OF_ALL = (
    *("sub_batches", "attack_mode", "epsilon_warmup"),
    *("momentum", "weight_decay", "nesterov", "decay_exclude", "clip_norm"),
)


def table() -> str:
    """Returns the methods as a Markdown table."""
    lines = [
        "| method | what it is | perturbs inputs | perturbs weights | flags, "
        "with defaults | cost, standard = 1 | source |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in methods():
        try:
            lines.append(_line(name))
        except Exception as error:
            if not _has_part_of_others(name):
                raise
            # A broken package must not hide the methods of the others.
            reason = " ".join(str(error).split()) or type(error).__name__
            reason = reason.replace("|", "\\|")
            lines.append(f"| `{name}` | {reason} | - | - |  |  |  |")
    return "\n".join(lines)


def _line(name: str) -> str:
    """Returns a method's line of the table."""
    row = method(name)
    settings = defaults(_parts_of(row), row.settings)
    shown = " ".join(
        f"`--{flag}={_text(flag, value)}`"
        if value is not None
        else f"`--{flag}`"
        for flag, value in settings.items()
        if flag not in _OF_ALL
    )
    inputs, moved = (
        f"`{text}`" if text else "-"
        for text in (row.perturb_inputs, _with_defaults(row.perturb_weights))
    )
    return (
        f"| `{name}` | {row.help} | {inputs} | {moved} | {shown} "
        f"| {row.cost or _cost(row)} | {row.source} |"
    )


def _with_defaults(spec: str | None) -> str | None:
    """Adds to a weight perturbation's name the numbers that no flag sets."""
    if spec is None:
        return None
    registry = PARTS["perturb_weights"]
    known = {*flags_of("perturb_weights", spec).values()}
    known |= {*registry.parse(spec)[1]}
    for option, parameter in registry.options(spec).items():
        value = parameter.default
        number = isinstance(value, (int, float)) and type(value) is not bool
        if number and option not in known:
            spec += f":{option}={value:g}"
    return spec


def _has_part_of_others(name: str) -> bool:
    """Returns whether another package registers a part of a method."""
    row = methods()[name]
    names = {part: (getattr(row, part) or "").split(":")[0] for part in PARTS}
    return any(
        registry.packages().get(names[part], "tfsam") != "tfsam"
        for part, registry in PARTS.items()
    )


def _parts_of(row: Method) -> dict[str, str | None]:
    return {part: getattr(row, part) for part in PARTS}


def _cost(row: Method) -> str:
    chosen = _parts_of(row)
    return f"{passes(chosen | defaults(chosen, row.settings)):.3g}"


def _text(flag: str, value: Any) -> str:
    if flag in ("epsilon", "step_size") and abs(value * 255 % 1) < 1e-9:
        return f"{value * 255:.0f}/255"
    return f"{value:g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    print(table())
