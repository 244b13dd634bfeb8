"""Data that is not split: stratified, by the seed, copies on one side."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from helpers import assert_one_line_error

from tfsam.data import sources
from tfsam.data import splitting


@hypothesis.given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 40)),
        min_size=1,
        max_size=90,
    ),
    st.floats(0.01, 0.99),
    st.integers(0, 3),
)
def test_groups_stay_together_and_classes_are_on_both_sides(
    examples, fraction, seed
):
    labels, groups = np.array(examples).T
    is_test = splitting.stratified(labels, groups, fraction, seed)
    assert is_test.shape == labels.shape
    for group in np.unique(groups):
        assert len(np.unique(is_test[groups == group])) == 1
    again = splitting.stratified(labels, groups, fraction, seed)
    np.testing.assert_array_equal(again, is_test)
    first = {group: label for label, group in reversed(examples)}
    for label in np.unique(labels):
        own = [group for group, of in first.items() if of == label]
        sides = {bool(is_test[groups == group][0]) for group in own}
        assert len(sides) == min(len(own), 2)


@hypothesis.given(
    st.lists(st.integers(5, 60), min_size=1, max_size=6), st.floats(0.1, 0.9)
)
def test_single_examples_keep_the_proportions(counts, fraction):
    labels = np.repeat(np.arange(len(counts)), counts)
    is_test = splitting.stratified(labels, np.arange(len(labels)), fraction, 0)
    found = np.bincount(labels[is_test], minlength=len(counts))
    assert np.abs(found - fraction * np.array(counts)).max() <= 0.5 + 1e-9 or (
        min(counts) * min(fraction, 1 - fraction) < 1
    )


def test_another_seed_is_another_split():
    labels = np.repeat([0, 1], 50)
    one, other = (
        splitting.stratified(labels, np.arange(100), 0.2, seed)
        for seed in (0, 1)
    )
    assert not np.array_equal(one, other)


def test_identical_files_are_a_group(tmp_path):
    contents = ["a", "b", "a", "cc", "b", "dd"]
    paths = [str(tmp_path / str(n)) for n in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        with open(path, "w") as file:
            file.write(content)
    groups = splitting.of_files([*paths, "missing", "gone"])
    assert groups.tolist() == [0, 1, 0, 2, 1, 3, 4, 5]


def test_identical_arrays_are_a_group():
    images = np.zeros((4, 2, 2, 1), np.uint8)
    images[1] = 1
    assert splitting.of_arrays(images).tolist() == [0, 1, 0, 0]


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5, "0.2", np.nan])
def test_fractions_that_are_none(fraction):
    with pytest.raises(ValueError) as error:
        sources.load("digits", test_fraction=fraction)
    assert_one_line_error(error, "test_fraction")
