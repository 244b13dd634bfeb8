"""The choice of an output, and the error where the user must choose."""

import pytest

from tfsam.models.logits import outputs


def output(name, *shape, dtype="float32"):
    return outputs.Output(names=(name,), shape=(None, *shape), dtype=dtype)


@pytest.mark.parametrize(
    ("offered", "example"),
    [
        ([output("even", 1), output("digit", 10)], "digit"),
        (
            [
                output("classes", 10, dtype="int64"),
                output("p", 3),
                output("q", 3),
            ],
            "p",
        ),
        ([output("features", 8, 8, 64), output("a", 2), output("b", 2)], "a"),
        ([output("mask", 8, 8), output("box", 4, 4)], "mask"),
    ],
)
def test_the_error_names_an_output_that_may_hold_the_classes(offered, example):
    with pytest.raises(ValueError, match=f"as --output={example} or"):
        outputs.choose(offered, None)
