"""The documents: their links, their numbers and their lengths."""

import ast
import importlib
import pathlib
import re

import pytest

from experiments import command
from experiments import costs
from experiments import paper_figures
from experiments import scaling
from experiments import sweep_presets
from experiments import sweep_results
from experiments import tables
from experiments import why_robust

ROOT = pathlib.Path(__file__).parents[1]
DOCUMENTS = ("README.md", "BUILD_NOTES.md", "experiments/RESULTS.md")
DATA = (".md", ".csv", ".tex", ".json")

_LINK = re.compile(r"\]\(([^)\s#]+)(?:#[^)]*)?\)")
_NUMBER = re.compile(r"\d+\.\d+|\d+e-\d+")


def links(text):
    """The local targets of a text's links and figures."""
    return [link for link in _LINK.findall(text) if "://" not in link]


def quoted_numbers(text):
    """Numbers with decimals in prose: outside of code and link targets."""
    return _NUMBER.findall(re.sub(r"`[^`]*`|\]\([^)]*\)", "", text))


def occurs(number, data):
    return re.search(rf"(?<![\d.]){re.escape(number)}(?!\d)", data)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_link_leads_to_a_file(document):
    path = ROOT / document
    found = links(path.read_text())
    assert found
    missing = [f for f in found if not (path.parent / f).exists()]
    assert not missing


@pytest.mark.parametrize(
    "document, most", [("README.md", 220), ("BUILD_NOTES.md", 400)]
)
def test_a_document_is_short(document, most):
    assert len((ROOT / document).read_text().splitlines()) <= most


def documented_layers():
    """Returns the packages as the notes draw them, layer by layer."""
    notes = (ROOT / "BUILD_NOTES.md").read_text()
    drawing = re.search(r"```\n(run .*?)```", notes, re.S)[1]
    drawn = {p.stem for p in (ROOT / "tfsam").iterdir()}
    layers = []
    for line in drawing.splitlines():
        names = re.split(r"\s{2,}", line)
        layers.append([name for name in names if name in drawn])
    return layers


def imports(path):
    """The packages and top-level modules of tfsam that a module imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.startswith("tfsam."):
                yield name.split(".")[1]


def test_packages_import_only_from_the_layers_below():
    layers = documented_layers()
    package = ROOT / "tfsam"
    places = {name: i for i, layer in enumerate(layers) for name in layer}
    folders = {p.name for p in package.iterdir() if p.is_dir()}
    assert set(places) >= folders - {"__pycache__"}
    for name, place in places.items():
        paths = [package / f"{name}.py", *(package / name).rglob("*.py")]
        for path in filter(pathlib.Path.exists, paths):
            for other in set(imports(path)) & set(places) - {name}:
                assert places[other] > place, f"{path} imports {other}"


def test_the_notes_name_modules_that_exist():
    notes = (ROOT / "BUILD_NOTES.md").read_text()
    rows = re.findall(r"^\| `([\w/]+/)` \| (.*) \|$", notes, re.M)
    assert len(rows) > 5
    for package, text in rows:
        folder = ROOT / "tfsam" / package
        for name in re.findall(r"`(\w+)/?`", text):
            module = folder / f"{name}.py"
            assert module.exists() or (folder / name).is_dir(), module


def test_the_notes_name_every_module():
    notes = (ROOT / "BUILD_NOTES.md").read_text()
    rows = dict(re.findall(r"^\| `([\w/]+/)` \| (.*) \|$", notes, re.M))
    del rows["weights/"]  # It has "a module for each kind".
    for package, text in rows.items():
        modules = {
            path.stem for path in (ROOT / "tfsam" / package).glob("*.py")
        }
        missing = modules - {"__init__", *re.findall(r"`(\w+)/?`", text)}
        assert not missing, package


def sections(text):
    """A document's second-level sections, by title."""
    parts = re.split(r"^## ", text, flags=re.M)[1:]
    return {part.partition("\n")[0]: part for part in parts}


RESULTS = ROOT / "experiments/RESULTS.md"
FOUND = sections(RESULTS.read_text())


@pytest.mark.parametrize("title", FOUND)
def test_the_results_quote_numbers_of_the_files_that_they_link(title):
    files = [RESULTS.parent / link for link in links(FOUND[title])]
    data = "\n".join(f.read_text() for f in files if f.suffix in DATA)
    for paragraph in re.split(r"\n\n|\n(?=- )", FOUND[title]):
        text, mark, not_kept = paragraph.partition("*Not kept*")
        wrong = [n for n in quoted_numbers(text) if not occurs(n, data)]
        assert not wrong, text
        assert not mark or "python -m experiments." in not_kept, paragraph


def test_no_result_is_left_out_of_the_page():
    found = {(RESULTS.parent / link).resolve() for link in links(_text(FOUND))}
    tables = set((ROOT / "experiments/results").rglob("*.md"))
    figures = set((ROOT / "experiments/results").rglob("*.svg"))
    assert tables and figures
    assert tables | figures <= found


def _text(parts):
    return "\n".join(parts.values())


def test_the_commands_of_the_results_have_their_flags():
    found = re.findall(r"`python -m (experiments\.\w+)([^`]*)`", _text(FOUND))
    assert len(found) > 10
    for name, flags in found:
        known = importlib.import_module(name).FLAGS
        for flag in re.findall(r"--(\w+)", flags):
            assert flag in known, f"{name} has no --{flag}"


def test_the_numbers_of_a_document_are_found_by_this_test():
    text = "`rho=0.25` gives +12.5 points ([a](1.5.md)), 3e-06 at rho 0.4."
    assert quoted_numbers(text) == ["12.5", "3e-06", "0.4"]
    assert occurs("12.5", "| +12.5 |") and not occurs("12.5", "112.5 12.51")


SMALL = ROOT / "experiments/results/table1/small"
FITTED = [
    row
    for row in sweep_presets.PRESETS["small"].rows
    if row not in ("looksam:rho=0.2", "esam:rho=0.2")
]


@pytest.mark.parametrize("name", ["small", "augmented"])
def test_the_tables_of_a_sweep_are_made_again(name):
    preset, folder = sweep_presets.PRESETS[name], SMALL.parent / name
    cells, missing = sweep_results.collect(
        preset, preset.rows, preset.seeds, folder
    )
    assert not missing
    paper = paper_figures.beside(preset, folder)
    caption = paper_figures.caption(preset) if paper else None
    found = tables.by_suffix(cells, paper, caption=caption)
    for suffix, text in found.items():
        assert (folder / f"table.{suffix}").read_text() == f"{text}\n"


@pytest.mark.parametrize(
    "module, arguments, file",
    [
        (scaling, ["--rounds=0"], "scaling.md"),
        (costs, [f"--workdir={SMALL}"], "table1/small/costs.md"),
        (why_robust, [f"--workdir={SMALL}"], "table1/small/why_robust.md"),
        (
            why_robust,
            [f"--workdir={SMALL}", f"--rows={','.join(FITTED)}"],
            "table1/small/why_robust_fitted.md",
        ),
    ],
)
def test_a_command_prints_its_table_again(module, arguments, file, capsys):
    assert command.run(module.main, module.FLAGS, arguments) == 0
    printed = capsys.readouterr().out
    kept = (ROOT / "experiments/results" / file).read_text()
    assert len(printed.splitlines()) > 10
    assert kept.endswith(printed)  # The text before it is measured each time.
