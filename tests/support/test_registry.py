"""Parts by name, with options, and unknown parts."""

import sys
import types

import pytest

from tfsam import registries
from tfsam.support.registry import Part
from tfsam.support.registry import Registry


class Wave(Part):
    """Moves everything a little."""

    flag_names = types.MappingProxyType({"steps": "wave_steps"})

    def __init__(self, size, *, steps: int = 3, kind="fine", ends=None):
        self.size, self.steps, self.kind, self.ends = size, steps, kind, ends


class Needy(Wave):
    requires = ("no_such_library", "needy")


def anything(**options):
    return options


WAVES = Registry(
    "wave",
    "tests.waves",
    {"Wave": Wave, "needy": Needy, "anything": anything},
    argument="kind",
)


@pytest.mark.parametrize(
    ("spec", "parsed"),
    [
        ("Wave", {}),
        ("wave:size=8/255", {"size": 8 / 255}),
        ("WAVE:size=1:steps=7", {"size": 1, "steps": 7}),
        ("wave:rough", {"kind": "rough"}),
        ("wave:kind=5", {"kind": "5"}),
        ("wave:size=true:ends=0..0.5", {"size": True, "ends": (0, 0.5)}),
        ("wave:size=none: steps = 2 ", {"size": None, "steps": 2}),
        ("wave:size=1e-3:ends=1/0", {"size": 1e-3, "ends": "1/0"}),
    ],
)
def test_options_follow_the_name(spec, parsed):
    assert WAVES.parse(spec) == ("Wave", parsed)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("wav", "did you mean Wave?.* Received: wave=wav"),
        ("wave:step=7", "did you mean steps?.* Received: step=7"),
        ("wave:steps=", "NAME:OPTION=VALUE.* Received: wave=wave:steps="),
        ("wave:=7", "NAME:OPTION=VALUE.* Received: wave=wave:=7"),
        ("wave:steps=7:steps=8", "given twice. Received: wave=wave:steps=7"),
        ("wave:steps=x", "steps must be a number. Received: Wave:steps=x"),
    ],
)
def test_bad_options_are_rejected(spec, message):
    with pytest.raises(ValueError, match=message):
        WAVES.parse(spec)


def test_arguments_override_options():
    wave = WAVES.make("wave:steps=7:size=2", steps=1)
    assert (wave.size, wave.steps) == (2, 1)
    assert WAVES.make("anything:size=2:steps=x") == {"size": 2, "steps": "x"}


def test_a_missing_library_is_named_with_its_command():
    assert WAVES.options("needy").keys() == {"size", "steps", "kind", "ends"}
    with pytest.raises(ImportError, match=r'pip install "tfsam\[needy\]"'):
        WAVES.factory("needy")


def test_facts_have_one_default():
    assert WAVES.fact(Wave, "flag_names") == {"steps": "wave_steps"}
    assert WAVES.fact(anything, "flag_names") == {}
    assert WAVES.fact(Wave(0.1), "source") == ""
    assert registries.ATTACKS.fact(anything, "in_graph") is None
    assert registries.ATTACKS.fact(Wave(0.1, steps=4), "gradients") == 4
    assert registries.WEIGHTS.fact(anything, "extra_passes") == 1
    assert WAVES.summary("Wave") == "Moves everything a little"
    assert registries.ATTACKS.summary("pgd_cw").endswith("(loss=margin)")


def test_a_part_is_described_with_its_options():
    lines = registries.describe("LookSAM").splitlines()
    assert lines[0] == "looksam: weight perturbation"
    assert any(line.startswith("  every=5: ") for line in lines)
    assert "any other option" in registries.describe("foolbox")
    with pytest.raises(ValueError, match="did you mean looksam"):
        registries.describe("looksan")


@pytest.mark.parametrize(
    "registry",
    [
        value
        for value in vars(registries).values()
        if isinstance(value, Registry)
    ],
    ids=lambda registry: registry.kind,
)
def test_every_native_part_can_be_imported(registry):
    for name in registry.native:
        assert callable(registry.load(name))
        known = registry.options(name)
        without = (registries.AUGMENTATIONS, registries.CORRUPTIONS)
        assert known or registry in without
        assert registry.summary(name)


def test_an_attack_of_a_missing_library_is_refused_by_its_name(monkeypatch):
    monkeypatch.setitem(sys.modules, "foolbox", None)
    with pytest.raises(ImportError, match=r"attack foolbox needs a library"):
        registries.ATTACKS.factory("foolbox:LinfPGD")


@pytest.fixture
def strangers(tmp_path, monkeypatch):
    """A registry of waves of two packages, which do not fit together."""
    (tmp_path / "stranger.py").write_text(
        "def ripple(size, *, deep=False, gain=1.0, mode='a'):\n"
        "    return (size + 0, deep, gain, mode)\n"
        "thing = object()\n"
    )
    (tmp_path / "stranger_torn.py").write_text("1 / 0\n")
    points = {
        "my-x": ["Wave=stranger:ripple", "Ripple=stranger:ripple"],
        "my-y": [
            *("ripple=stranger:ripple", "Ripple=stranger:thing"),
            *("thing=stranger:thing", "torn=stranger_torn:wave"),
        ],
    }
    for package, lines in points.items():
        folder = tmp_path / f"{package.replace('-', '_')}-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Name: {package}\nVersion: 1.0\n")
        (folder / "entry_points.txt").write_text(
            "\n".join(["[tests.waves]", *lines])
        )
    monkeypatch.syspath_prepend(tmp_path)
    yield Registry("wave", "tests.waves", {"Wave": Wave})
    sys.modules.pop("stranger", None)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("thing", "thing of the package my-y must be a class or a function"),
        (
            "Wave",
            r"'Wave' is registered by tfsam and by the package my-x "
            r"\(stranger:ripple\); uninstall my-x\. Received: name=Wave",
        ),
        ("Ripple", r"by the packages my-[xy] \(.* and my-[xy] \(.* one of"),
        ("RIPPLE", "RIPPLE is ambiguous: Ripple, ripple. Received: wave="),
    ],
)
def test_packages_that_do_not_fit_together_are_named(strangers, name, message):
    with pytest.raises(ValueError, match=message):
        strangers.factory(name)


def test_any_error_of_an_import_names_the_package(strangers):
    message = r"'torn' \(stranger_torn:wave of my-y\).*: ZeroDivisionError: "
    with pytest.raises(ImportError, match=message):
        strangers.factory("torn")
    assert strangers.factory("ripple")(1) == (1, False, 1.0, "a")


def test_the_flag_is_named_where_it_is_known():
    assert WAVES.canonical("WAVE:size=1", "waves") == "Wave:size=1"
    with pytest.raises(ValueError, match=r"waves must .* Received: waves=wav$"):
        WAVES.canonical("wav", "waves")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("gain=abc", "gain must be a number. Received: ripple:gain=abc"),
        ("gain=0..1", "gain must be a number"),
        ("deep=x", "deep must be true or false. Received: ripple:deep=x"),
    ],
)
def test_a_default_tells_the_type_of_an_option(strangers, spec, message):
    with pytest.raises(ValueError, match=message):
        strangers.parse(f"ripple:{spec}")
    options = {"gain": None, "deep": 1, "mode": "abc", "size": "abc"}
    assert strangers.parse("ripple:gain=none:deep=1:mode=abc:size=abc") == (
        *("ripple", options),
    )


def noted(
    a: "float | None" = 1.0,
    b: "bool | str" = True,
    c: "Optional[bool]" = True,  # noqa: F821 - Never evaluated.
    d: tuple[float, float] = (0.0, 1.0),
    e: bool | str = False,
):
    return a, b, c, d, e


def test_an_annotation_tells_the_type_of_an_option(monkeypatch):
    monkeypatch.setitem(WAVES.native, "noted", noted)
    for spec in ("a=none", "b=x", "c=x", "d=0..1", "e=x", "e=true"):
        WAVES.parse(f"noted:{spec}")
    with pytest.raises(ValueError, match="a must be a number"):
        WAVES.parse("noted:a=x")
    assert WAVES.parse("noted:a=1") == ("noted", {"a": 1.0})
    pgd = registries.ATTACKS.parse("pgd:random_start=normal:step_size=none")
    assert pgd[1] == {"random_start": "normal", "step_size": None}


def test_a_constructor_s_type_error_names_the_part(strangers):
    with pytest.raises(
        ValueError, match=r"ripple needs size\. Received: gain="
    ):
        strangers.make("ripple", gain=2)
    with pytest.raises(ValueError, match=r"ripple cannot be made: .* Received"):
        strangers.make("ripple:size=abc")
    with pytest.raises(ValueError, match="pgd needs epsilon"):
        registries.ATTACKS.make("pgd", norm="l2")
