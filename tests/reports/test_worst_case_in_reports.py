"""The worst case, random models, transfers: in the table and on the page."""

import json

import pytest
from helpers import PageReader
from helpers import accuracy
from helpers import leave
from helpers import results_of
from helpers import robust

from tfsam import reports
from tfsam.reports import page
from tfsam.reports import plots
from tfsam.reports.page import curves
from tfsam.reports.page import runs
from tfsam.reports.page import table

LINF = "l\N{INFINITY}"


def worst(norm, epsilon, correct, broken, missing=(), n=10):
    return {
        **{"norm": norm, "epsilon": epsilon, "epsilon_text": f"{epsilon:g}"},
        **accuracy(correct, n),
        "attacks": [{"attack": a, "broken": b} for a, b in broken.items()],
        "missing": list(missing),
        "upper_bound": bool(missing),
    }


def two_norms(**others):
    """Two attacks that break different halves of nine images of ten."""
    return results_of(
        "st",
        accuracy(9),
        [
            robust("pgd", "linf", 0.1, 5),
            robust("square", "linf", 0.1, 4),
            robust("pgd", "l2", 0.5, 6),
            robust("square", "l2", 0.5, 6, accuracy=None, error="no memory"),
        ],
        worst_case=[
            worst("linf", 0.1, 1, {"pgd": 5, "square": 6}),
            worst("l2", 0.5, 6, {"pgd": 4, "square": 0}, missing=["square"]),
        ],
        union=accuracy(1) | {"budgets": {"linf": 0.1, "l2": 0.5}},
    ) | dict(others)


def lines(results):
    """The cells of a table's lines, and the lines below it."""
    found = reports.table(results).splitlines()
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in found
        if line.startswith("| ")
    ]
    return cells, [line for line in found if not line.startswith("|")]


def test_the_table_ends_in_the_worst_case():
    cells, below = lines(two_norms())
    assert [line[0] for line in cells[-3:]] == [
        "worst case",
        "worst case (upper bound: square failed)",
        "worst case, any norm",
    ]
    assert cells[-3][1:4] == ["linf", "0.1", "10.00"]
    assert cells[-2][1:4] == ["l2", "0.5", "60.00"]
    assert cells[-1][1:4] == ["linf, l2", "0.1, 0.5", "10.00"]
    assert below == []


def test_results_without_a_worst_case_have_no_line_of_it():
    results = two_norms()
    del results["worst_case"], results["union"]
    cells, _ = lines(results)
    assert cells[-1][0] == "square"


def test_a_random_model_s_draws_are_beside_its_numbers():
    results = two_norms(natural=accuracy(9) | {"draws": 20, "spread": 0.0125})
    results["robust"][0] |= {"draws": 20, "spread": 0.3}
    cells, _ = lines(results)
    assert cells[1][3] == "90.00 (20 draws, spread 1.2 %)"
    assert cells[2][3] == "50.00 (20 draws, spread 30.0 %)"
    assert cells[3][3] == "40.00"


def test_transfers_and_sweeps_are_said_in_the_name():
    row = {"attack": "pgd", "options": {"steps": 5}, "surrogate": True}
    assert reports.attack_name(row) == "pgd (steps=5) (transfer)"
    row = {"attack": "fgsm", "surrogate": False, "sweep": "bisect"}
    assert reports.attack_name(row) == "fgsm (sweep by bisection)"
    assert reports.attack_name({"attack": "fgsm", "sweep": "full"}) == "fgsm"
    row = {"attack": "autoattack", "meaningless": True}
    found = reports.attack_name(row)
    assert found == "autoattack (means nothing: a random model)"
    note = reports.results.bound_in_words({"meaningless": True})
    assert note == "means nothing: a random model"


def drawn(results, tmp_path):
    """The panels of robustness.png: {axis: {label: points in percent}}."""
    figures = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "_save", lambda figure, _: figures.append(figure))
        plots.robustness_plot(results, tmp_path / "robustness.png")
    (figure,) = figures
    return {
        axes.get_xlabel(): {
            container.get_label(): [
                (round(float(x), 6), round(float(y), 6))
                for x, y in container.lines[0].get_xydata()
            ]
            for container in axes.containers
        }
        for axes in figure.axes
    }


def test_the_worst_case_is_a_curve_of_its_own(tmp_path):
    panels = drawn(two_norms(), tmp_path)
    assert list(panels) == ["epsilon (linf)", "epsilon (l2)"]
    linf, l2 = panels.values()
    assert linf["worst case"] == [(0, 90), (0.1, 10)]
    assert linf["pgd"] == [(0, 90), (0.1, 50)]
    assert l2 == {
        "pgd": [(0, 90), (0.5, 60)],
        "worst case": [(0, 90), (0.5, 60)],
    }


def test_the_page_has_the_worst_case_by_norm_and_epsilon(tmp_path):
    leave(tmp_path / "both", two_norms())
    rows = [robust("pgd", "linf", 0.1, 7)]
    single = results_of(
        "sam", accuracy(8), rows, worst_case=[worst("linf", 0.1, 7, {"pgd": 1})]
    )
    leave(tmp_path / "one", single)
    leave(tmp_path / "without", results_of("at", accuracy(8), rows))
    found = runs.read([tmp_path])
    columns = {c.name: c for c in table.worst_columns(found)}
    assert list(columns) == [
        "natural",
        f"worst case, any norm, {LINF} 0.1, l2 0.5",
        f"worst case {LINF}, n = 10, 0.1",
        "worst case l2, n = 10, 0.5",
    ]
    shown = [[cell.text for cell in c.cells] for c in columns.values()]
    assert shown[1] == ["10.0", "\N{EN DASH}", "\N{EN DASH}"]
    assert shown[2] == ["10.0", "70.0", "\N{EN DASH}"]
    assert shown[3][0] == "\N{LESS-THAN OR EQUAL TO} 60.0"
    last = list(columns.values())[-1].cells[0]
    assert "upper bound: square failed" in last.title
    reader = PageReader(page.render([tmp_path]))
    (section,) = reader.all("section", id="worst-case")
    assert "withoutaccuracy" not in section["text"]
    captions = [c["text"] for c in reader.all("caption")]
    counted = "Images that each attack broke, of 10, by ball"
    assert captions.count(counted) == 2
    bars = [float(rect["width"]) for rect in reader.all("rect")]
    assert bars == [50.0, 40.0, 60.0, 0.0, 10.0]
    assert f"attack{LINF} 0.1l2 0.5pgd54square60" in section["text"]
    assert "(missing)upper bound: square failed" in section["text"]
    curves = json.loads(reader.all("script", id="data")[0]["text"])["curves"]
    assert curves[0]["name"] == f"worst case {LINF}, n = 10"
    assert [len(points) for points in curves[0]["points"]] == [2, 2, 0]


def test_of_a_run_and_its_evaluations_the_lowest_worst_case_counts(tmp_path):
    """The other accuracy is an upper bound."""
    run = leave(tmp_path / "run", two_norms())
    config = {"evaluate": str(run / "model.keras"), "method": None}
    rows = [robust("autoattack", "linf", 0.1, 0), robust("fab_t", "l2", 0.5, 8)]
    cases = [
        worst("linf", 0.1, 0, {"autoattack": 10}),
        worst("l2", 0.5, 8, {"fab_t": 2}),
    ]
    results = results_of(
        None, accuracy(9), rows, config=config, worst_case=cases, train=None
    )
    nested = leave(run / "nested", results)
    (found,) = runs.read([run])
    chosen = [
        (part.path, row["norm"], row["accuracy"])
        for part, row in curves.worst_rows(found)
    ]
    assert chosen == [(nested, "linf", 0.0), (run, "l2", 0.6)]


def test_attacks_of_one_name_are_told_apart(tmp_path):
    """Rows differ in their options, or in the surrogate."""
    rows = [
        robust("pgd", "linf", 0.1, 8, options={"steps": 1}),
        robust("pgd", "linf", 0.1, 6, options={"steps": 9}),
        robust("pgd", "linf", 0.1, 7, options={"steps": 9}, surrogate=True),
    ]
    attacks = [{"attack": "pgd", "broken": broken} for broken in (1, 3, 2)]
    case = worst("linf", 0.1, 6, {}) | {"attacks": attacks}
    config = {"surrogate": "other.keras", "transfer_attacks": ["pgd"]}
    results = results_of(
        "st", accuracy(9), rows, worst_case=[case], config=config
    )
    run = leave(tmp_path / "run", results)
    (section,) = PageReader(page.render([run])).all("section", id="worst-case")
    found = "pgd (steps=1)1pgd (steps=9)3pgd (steps=9) (transfer)2"
    assert found in section["text"]


def test_an_older_run_with_a_surrogate_has_transfers_alone(tmp_path):
    config = {"surrogate": "other.keras"}
    rows = [robust("pgd", "linf", 0.1, 8)]
    results = results_of("st", accuracy(9), rows, config=config)
    (run,) = runs.read([leave(tmp_path / "run", results)])
    assert runs.attack_name(run, rows[0]) == "pgd (transfer)"


def spoiled(**changes):
    return two_norms(worst_case=[worst("linf", 0.1, 1, {"pgd": 5}) | changes])


@pytest.mark.parametrize(
    ("results", "why"),
    [
        (spoiled(accuracy=2), "a fraction in its interval"),
        (spoiled(epsilon=float("inf")), "epsilon must be finite"),
        (spoiled(norm=2), "norm must be a string"),
        (spoiled(attacks=[{"attack": 1}]), "attack must be a string"),
        (spoiled(attacks=[{"attack": "a", "broken": ""}]), "must be a number"),
        (
            two_norms(union=accuracy(1) | {"budgets": {"linf": float("nan")}}),
            "budgets must be finite",
        ),
        (two_norms(union=accuracy(1)), "KeyError"),
    ],
)
def test_a_damaged_worst_case_is_refused(tmp_path, results, why):
    run = leave(tmp_path / "run", results)
    with pytest.raises(ValueError, match=why):
        page.render([run])
