"""The diagnoses of attacks: below the table, and on the page."""

import pytest
from helpers import PageReader
from helpers import accuracy
from helpers import leave
from helpers import results_of
from helpers import robust

from tfsam import reports
from tfsam.reports import diagnoses
from tfsam.reports import page

EVIL = "</script><b>"


def finding(count, indicator="incomplete_optimisation", message="It rose."):
    remedy = "Take more steps: --attacks=pgd:steps=100"
    return {
        **{"indicator": indicator, "message": message},
        **{"remedy": remedy, "count": count},
    }


ROWS = [
    robust("pgd", "linf", 0.1, 5, diagnosis=[finding(2)]),
    robust("pgd", "linf", 0.2, 4, diagnosis=[finding(6, message="It rises!")]),
    robust("pgd", "linf", 0.3, 3, diagnosis=[]),
    robust("fmn", "l2", 0.5, 3, diagnosis=[]),
    robust("art", "l2", 0.5, 3, diagnosis="not recorded"),
    robust("noise", "l2", 0.5, 3),
]


def test_an_attack_s_sign_is_one_finding_at_all_its_epsilons():
    (found,) = diagnoses.findings(ROWS)
    assert (found.attack, found.norm) == ("pgd", "linf")
    assert found.indicator == "incomplete optimisation"
    assert found.where == "0.1 (2), 0.2 (6)"
    # The text is that of the epsilon at which it is clearest.
    assert found.message == "It rises!"
    assert diagnoses.without_findings(ROWS) == ["fmn"]
    assert diagnoses.not_recorded(ROWS) == ["art"]


def test_a_diagnosis_without_the_path_is_no_sign_of_failure():
    rows = [
        robust("spsa", "l2", 0.5, 3, diagnosis=[finding(7, "not_recorded")])
    ]
    assert diagnoses.findings(rows) == []
    assert diagnoses.without_findings(rows) == []
    assert diagnoses.not_recorded(rows) == ["spsa"]


def test_a_sign_without_a_count_has_none():
    rows = [robust("pgd", "linf", 0.1, 5, diagnosis=[finding(None)])]
    assert diagnoses.findings(rows)[0].where == "0.1"


def test_the_table_is_followed_by_the_diagnoses():
    results = {"natural": accuracy(9), "robust": ROWS}
    assert reports.table(results).splitlines()[-2:] == [
        "diagnosis, pgd, linf 0.1 (2), 0.2 (6): incomplete optimisation: "
        "It rises! Take more steps: --attacks=pgd:steps=100",
        "diagnosis not recorded: art",
    ]


def test_the_page_says_whether_the_attack_is_to_be_trusted(tmp_path):
    rows = [robust("pgd", "linf", 0.1, 5, diagnosis=[finding(1, EVIL, EVIL)])]
    leave(tmp_path / "a", results_of("st", accuracy(9), ROWS))
    leave(tmp_path / "b", results_of("sam", accuracy(9), rows))
    reader = PageReader(page.render([tmp_path]))
    (section,) = reader.all("section", id="trust")
    assert "apgdl\N{INFINITY}0.1 (2), 0.2 (6)incomplete" in section["text"]
    assert f"bpgdl\N{INFINITY}0.1 (1){EVIL}: {EVIL}" in section["text"]
    commands = [code["text"] for code in reader.all("code")]
    assert commands == ["--attacks=pgd:steps=100"] * 2
    assert "No sign of failure: fmn (a)." in section["text"]
    assert "Not recorded: art (a)." in section["text"]
    assert len(reader.all("script")) == 2


def test_runs_without_a_diagnosis_have_no_such_section(tmp_path):
    run = leave(tmp_path / "a", results_of("st", accuracy(9), ROWS[-1:]))
    assert not PageReader(page.render([run])).all("section", id="trust")


@pytest.mark.parametrize(
    ("diagnosis", "why"),
    [
        ([{"indicator": 1, "message": "", "remedy": ""}], "must be a string"),
        ([{"indicator": "", "message": ""}], "KeyError"),
        (3, "TypeError"),
    ],
)
def test_a_damaged_diagnosis_is_refused(tmp_path, diagnosis, why):
    rows = [robust("pgd", "linf", 0.1, 5, diagnosis=diagnosis)]
    run = leave(tmp_path / "a", results_of("st", accuracy(9), rows))
    with pytest.raises(ValueError, match=why):
        page.render([run])
