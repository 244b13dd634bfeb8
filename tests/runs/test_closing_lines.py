"""The lines after the table at the end of a run."""

from helpers import accuracy
from helpers import settings_of

from tfsam.runs import log_lines


def closing(*rows):
    results = {"natural": accuracy(9), "artifacts": [], "worst_case": rows}
    return log_lines.closing(settings_of("--workdir=runs/x"), results)


def worst(*attacks, upper_bound=False):
    broken = [{"attack": attack, "broken": 1} for attack in attacks]
    return {"attacks": broken, "upper_bound": upper_bound}


def test_the_worst_case_of_several_attacks_is_explained():
    lines = closing(worst("pgd", "square"))
    assert [line for line in lines if "worst case" in line]
    assert not [line for line in lines if "upper bound" in line]
    lines = closing(worst("pgd", "square", upper_bound=True))
    assert [line for line in lines if "upper bound" in line]


def test_a_single_attack_is_its_own_worst_case():
    assert not [line for line in closing(worst("pgd")) if "worst" in line]
    assert len(closing()) == len(closing(worst("pgd")))
