"""Names that authors of attacks import from `base` and `logits` of attacks.

They are defined in files of their own, on each of which verdicts depend.
"""

import inspect
import pathlib

import pytest

from tfsam.attacks import base
from tfsam.attacks import logits
from tfsam.evaluation import cache_key

BASE = (
    *("Attack", "Bounds", "check_one_epsilon", "check_scale"),
    *("example_seeds", "next_seeds", "per_example", "where"),
)
LOGITS = (
    *("TOGETHER", "Counts", "GoalFn", "Logits", "LogitsFn", "LossFn"),
    *("Untraced", "compiled", "crossed", "examples", "in_turn"),
    *("input_gradient", "is_surrogate", "may_stop", "of_any_batch", "predict"),
    *("score", "setting", "traced"),
)
PARTS = {
    "threat_model.py": base.Attack.__base__,
    "base.py": base.Attack,
    "per_example.py": base.where,
    "seeds.py": base.next_seeds,
    "calls.py": logits.Logits.__bases__[0],
    "pass_counter.py": logits.Logits.__bases__[1],
    "network.py": logits.Logits,
    "untraced.py": logits.Untraced,
    "queries.py": logits.predict,
    "settings.py": logits.setting,
    "success.py": logits.may_stop,
    "graphs.py": logits.traced,
}


def test_every_name_is_where_authors_import_it():
    assert all(hasattr(base, name) for name in BASE)
    assert sorted(logits.__all__) == sorted(LOGITS)
    assert all(hasattr(logits, name) for name in LOGITS)


@pytest.mark.parametrize("name", PARTS)
def test_no_record_is_resumed_after_a_change_of_the_code(name, monkeypatch):
    path = pathlib.Path(inspect.getsourcefile(PARTS[name]))
    assert path.name == name
    before = cache_key.versions()
    read = pathlib.Path.read_text

    def changed(self, *arguments, **options):
        return read(self, *arguments, **options) + "\n" * (self == path)

    monkeypatch.setattr(pathlib.Path, "read_text", changed)
    # Not by its cached result.
    monkeypatch.setattr(
        cache_key, "source_digest", cache_key.source_digest.__wrapped__
    )
    after = cache_key.versions()
    assert after.pop("tfsam's attacks") != before.pop("tfsam's attacks")
    assert after == before
