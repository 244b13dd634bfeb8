"""Validators of arguments, and their errors."""

import numpy as np
import pytest

from tfsam.support import validators


def test_what_is_in_range_comes_back():
    assert validators.check_number("rho", 0) == 0.0
    assert isinstance(validators.check_number("rho", 2), float)
    assert validators.check_number("beta", 1, 0, 1) == 1.0
    assert validators.check_number("eta", 1, 1) == 1.0
    assert validators.check_fraction("weight_fraction", 1) == 1.0
    assert validators.check_count("steps", 0) == 0
    assert validators.check_count("steps", 3, 3) == 3
    assert validators.check_choice("norm", "l2", ("linf", "l2")) == "l2"


@pytest.mark.parametrize("value", [-1, float("nan"), float("inf"), "1", True])
def test_numbers(value):
    with pytest.raises(ValueError) as error:
        validators.check_number("rho", value)
    assert str(error.value) == (
        f"rho must be a finite number >= 0. Received: rho={value}"
    )


@pytest.mark.parametrize("value", [0.99, 2.01, float("nan"), None])
def test_numbers_between_two(value):
    with pytest.raises(ValueError) as error:
        validators.check_number("eta", value, 1, 2)
    assert str(error.value) == (
        f"eta must be a number in [1, 2]. Received: eta={value}"
    )


@pytest.mark.parametrize("value", [0, 1.01])
def test_fractions(value):
    with pytest.raises(ValueError, match=r"\(0, 1\]\. Received: share="):
        validators.check_fraction("share", value)


@pytest.mark.parametrize("value", [1, 2.5, "3", True, None])
def test_counts(value):
    with pytest.raises(ValueError) as error:
        validators.check_count("steps", value, 2)
    assert str(error.value) == (
        f"steps must be an integer >= 2. Received: steps={value}"
    )


@pytest.mark.parametrize("value", ["l1", "Linf", 2, None, ["l2"]])
def test_choices(value):
    with pytest.raises(ValueError) as error:
        validators.check_choice("norm", value, {"linf": 1, "l2": 2})
    assert str(error.value) == (
        f"norm must be one of linf, l2. Received: norm={value}"
    )


def test_bounds_are_two_numbers_or_two_arrays():
    found = validators.check_interval("bounds", (0, np.float32(255)))
    assert found == (0.0, 255.0) and all(type(end) is float for end in found)
    channels = np.array([[-1.0, -2.0], [1.0, 2.0]])
    expected = ((-1.0, -2.0), (1.0, 2.0))
    assert validators.check_interval("bounds", channels) == expected
    assert validators.check_interval("bounds", expected) == expected
    # One of them may be a number, and equal numbers are one.
    mixed = validators.check_interval("bounds", ([0, 0], [[1], [2]]))
    assert mixed == (0.0, ((1.0,), (2.0,)))
    assert validators.check_interval("bounds", None) is None


@pytest.mark.parametrize(
    "value",
    [(1, 0), (0, 0), 3, "ab", (0, 1, 2), ([0, 2], [1, 2]), ([0, 1], [2] * 3)],
)
def test_bounds_that_are_none_of_these(value):
    with pytest.raises(ValueError, match=r"^bounds must be \(lowest, highest"):
        validators.check_interval("bounds", value)


def test_long_bounds_are_shown_by_their_shape():
    text = validators.bounds_text((0.0, np.ones((8, 8, 3))))
    assert text == "(0.0, numbers of shape (8, 8, 3))"
    assert validators.bounds_text(((0.0, 1.0), 2)) == "((0.0, 1.0), 2)"
    assert validators.bounds_text(7) == "7"
