"""The times of functions in turn, and the flags of benchmarks."""

from experiments import benchmark_attacks
from experiments import benchmark_tracing
from experiments import timing


def test_kinds_are_called_in_turn():
    calls = []
    kinds = {name: lambda name=name: calls.append(name) for name in "ab"}
    first, later = timing.in_turn(kinds, repeats=2)
    assert "".join(calls) == "ababab"
    assert len(later) == 2
    assert all(set(found) == set(kinds) for found in [first, *later])
    assert all(wall >= 0 and cpu >= 0 for wall, cpu in first.values())


def test_two_commands_have_flags_of_their_own():
    for module, images in ((benchmark_attacks, 512), (benchmark_tracing, 200)):
        assert module.FLAGS["images"].default == images
        assert module.FLAGS["repeats"].default == 5
