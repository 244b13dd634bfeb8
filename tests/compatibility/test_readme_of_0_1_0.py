"""The names in the README of tfsam 0.1.0 exist, wherever modules lie."""

import ast
import contextlib
import functools
import importlib
import importlib.util
import inspect
import io
import pathlib
import re
import runpy

import pytest

import tfsam
from tfsam import run

README = (pathlib.Path(__file__).parent / "README_of_0_1_0.md").read_text()

# Values of flags that the README names without a value, or with a placeholder.
VALUES = {
    "attack_mode": "training",
    "checkpoint_steps": "1",
    "attacks": "pgd",
    "average": "ema",
    "dataset": "digits",
    "devices": "cpu",
    "network": "preact_resnet8",
    "norm": "l2",
    "perturb_inputs": "pgd",
    "perturb_weights": "awp",
    "precision": "float32",
    "preset": "digits",
    "select": "robust",
    "sharpness": "global",
    "shard": "0/2",
    "strategy": "mirrored",
    "jit_compile": "true",
}


def mentioned_flags():
    """Returns the flags of each module's command: {module: {flag: value}}."""
    text = re.sub(r"sbatch [^']*'", "", README.replace("\\\n", " "))
    command_line = r"python3? -m ([\w.]+)([^`|&\n]*)"
    found = {}
    for section in re.split(r"^## ", text, flags=re.M):
        paper = section.startswith("The paper's questions")
        alone = re.sub(command_line, "", section)
        for module, arguments in [
            *re.findall(command_line, section),
            ("experiments.table1" if paper else "tfsam.run", alone),
        ]:
            flags = found.setdefault(module, {})
            for name, value in re.findall(
                r"--([a-z]\w*)(?:=([\w./,:+-]+))?", arguments
            ):
                flags[name] = value or flags.get(name) or ""
    return found


def test_every_name_is_there():
    names = set(re.findall(r"\btfsam(?:\.[a-zA-Z_]\w*)+", README))
    assert len(names) > 20
    for name in sorted(names):
        found = tfsam
        for part in name.split(".")[1:]:
            if not hasattr(found, part):  # A module that is not imported yet.
                importlib.import_module(f"{found.__name__}.{part}")
            found = getattr(found, part)


def test_every_call_takes_its_arguments():
    code = "\n".join(re.findall(r"^```python\n(.*?)^```", README, re.M | re.S))
    calls = 0
    for node in ast.walk(ast.parse(code)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        if not name.startswith("tfsam."):
            continue
        found = functools.reduce(getattr, name.split(".")[1:], tfsam)
        inspect.signature(found).bind_partial(
            *node.args, **{k.arg: k.value for k in node.keywords}
        )
        calls += 1
    assert calls > 10


def test_every_flag_is_defined(capsys):
    flags = mentioned_flags()["tfsam.run"]
    assert len(flags) > 60
    given = [
        f"--{name}={VALUES.get(name) or value or 1}"
        for name, value in flags.items()
        if name != "help"
    ]
    errors = []
    for known in ([], given):
        assert run.main([*known, "--no_such_flag=1"]) == 2
        errors.append(capsys.readouterr().err)
    # Of all these flags, one is unknown.
    assert "no_such_flag" in errors[0]
    assert errors[0] == errors[1]


def test_every_method_and_attack_is_there(capsys):
    assert run.main(["--method=no_such_method"]) == 2
    output = capsys.readouterr().err
    methods = re.findall(r"^\| `(\w+)` \|.*\d{4} \||^\| `(st)`", README, re.M)
    assert len(methods) == 17
    for name, plain in methods:
        assert re.search(rf"\b{name or plain}\b", output), name
    table = README.partition("| name | attack |")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| ([^|]*) \|", table, re.M)
    names = {n for row in rows for n in re.findall(r"`(\w+)", row)}
    assert len(names) > 20
    assert names <= set(tfsam.attacks.names())


@pytest.mark.parametrize("module", sorted({*mentioned_flags()} - {"tfsam.run"}))
def test_every_command_is_there(module, monkeypatch):
    assert importlib.util.find_spec(module)
    if not module.startswith("experiments."):
        return
    monkeypatch.setattr("sys.argv", [module, "--help"])
    output = io.StringIO()
    with contextlib.redirect_stdout(output), pytest.raises(SystemExit) as end:
        runpy.run_module(module, run_name="__main__")
    assert not end.value.code
    for flag in mentioned_flags()[module]:
        assert re.search(rf"--(\[no\])?{flag}\b", output.getvalue()), flag


def test_every_entry_point_group_is_read(tmp_path, monkeypatch):
    groups = {
        *re.findall(r"^(tfsam\.\w+) =$", README, re.M),
        *re.findall(r"group\s+`(tfsam\.\w+)`", README),
    }
    assert groups == {"tfsam.attacks", "tfsam.weights"}
    package = tmp_path / "somebody_s-1.0.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Name: somebody_s\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text(
        "\n".join(f"[{group}]\nmine = json:loads" for group in groups)
    )
    monkeypatch.syspath_prepend(tmp_path)
    for group in groups:
        assert "mine" in getattr(tfsam, group.partition(".")[2]).names()
