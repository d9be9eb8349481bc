from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import pytest

from akd.errors import ExperimentError
from akd.settings import Origins, allowed, build, byte_count, check_value, setting


@dataclass(frozen=True, kw_only=True)
class Oven:
    """One field of each kind and each kind of bound."""

    trays: int = setting(1, low=1, high=4)
    heat: float = setting(1.0, above=0, below=10)
    fan: bool = setting(False)
    mode: str = setting("bake", choices=["bake", "grill"])
    stops: tuple[int, ...] = setting((), low=1, when=("mode", "grill"))
    timer: float | None = setting(None, low=0)
    label: str | None = setting(None)
    bell: float = setting(0.5, when=("fan", True))


FIELDS = {f.name: f for f in dataclasses.fields(Oven)}


@pytest.mark.parametrize(
    ("name", "given", "value"),
    [
        ("trays", 1, 1),
        ("trays", 4.0, 4),
        ("heat", 3, 3.0),
        ("heat", 1e-9, 1e-9),
        ("fan", True, True),
        ("mode", "grill", "grill"),
        ("stops", [1, 5], (1, 5)),
        ("stops", (), ()),
        ("timer", None, None),
        ("timer", 0, 0.0),
        ("label", "x", "x"),
    ],
)
def test_accepted(name: str, given: Any, value: Any) -> None:
    got = check_value(FIELDS[name], given)
    assert got == value
    assert type(got) is type(value)


TRAYS, HEAT, MODE = (
    "must be a whole number >= 1 and <= 4",
    "must be a number > 0 and < 10",
    "must be one of bake, grill",
)


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("trays", 0, TRAYS),
        ("trays", 5, TRAYS),
        ("trays", 1.5, TRAYS),
        ("trays", True, TRAYS),
        ("trays", "2", TRAYS),
        ("trays", None, TRAYS),
        ("trays", [2], TRAYS),
        ("trays", math.inf, TRAYS),
        ("heat", 0, HEAT),
        ("heat", 10, HEAT),
        ("heat", math.nan, HEAT),
        ("heat", math.inf, HEAT),
        ("heat", 10**400, HEAT),
        ("heat", "hot", HEAT),
        ("heat", False, HEAT),
        ("fan", 1, "must be true or false"),
        ("fan", "true", "must be true or false"),
        ("mode", "gril", MODE + ", did you mean 'grill'?"),
        ("mode", "zzz", MODE),
        ("mode", 3, MODE),
        ("mode", ["bake"], MODE + ", did you mean 'bake'?"),
        ("stops", [0], "must be a list of whole numbers >= 1"),
        ("stops", [1.5], "must be a list of whole numbers >= 1"),
        ("stops", [True], "must be a list of whole numbers >= 1"),
        ("stops", 3, "must be a list of whole numbers >= 1"),
        ("stops", "3", "must be a list of whole numbers >= 1"),
        ("timer", "x", "must be a number >= 0 or null"),
        ("label", 3, "must be a string or null"),
    ],
)
def test_refused(name: str, given: Any, message: str) -> None:
    with pytest.raises(ValueError, match="must be") as caught:
        check_value(FIELDS[name], given)
    assert str(caught.value) == message


def test_allowed_is_what_the_messages_say() -> None:
    assert [allowed(FIELDS[n]) for n in ("trays", "mode", "fan")] == [
        "a whole number >= 1 and <= 4",
        "one of bake, grill",
        "true or false",
    ]


def test_annotations_that_are_types_are_read_as_well() -> None:
    cls = dataclasses.make_dataclass("Cup", [("size", float | None, setting(None, low=0)), ("n", tuple[int, ...], ())])
    size, count = dataclasses.fields(cls)
    assert check_value(size, 3) == 3.0
    assert check_value(size, None) is None
    assert check_value(count, [1]) == (1,)


class TestBuild:
    def test_defaults_and_values(self) -> None:
        assert build(Oven, {}) == Oven()
        assert build(Oven, {"trays": 2, "mode": "grill", "stops": [3]}) == Oven(trays=2, mode="grill", stops=(3,))

    def message(self, values: dict[str, Any], **kw: Any) -> str:
        with pytest.raises(ExperimentError) as caught:
            build(Oven, values, **kw)
        return str(caught.value)

    def test_unknown_key(self) -> None:
        assert self.message({"haet": 3}, prefix="oven") == "oven.haet: unknown key, did you mean 'heat'?"
        assert self.message({"zzz": 3}) == (
            "zzz: unknown key, allowed are bell, fan, heat, label, mode, stops, timer, trays"
        )

    def test_nothing_can_be_set(self) -> None:
        with pytest.raises(ExperimentError, match=r"^x: unknown key, nothing can be set here$"):
            build(dataclasses.make_dataclass("Empty", []), {"x": 1})

    def test_message_names_place_key_value_and_range(self) -> None:
        origins = Origins({"oven": "f.yaml:1", "oven.heat": "f.yaml:7"})
        kw = {"prefix": "oven", "origins": origins}
        assert self.message({"heat": -1}, **kw) == f"f.yaml:7: oven.heat = -1: {HEAT}"
        assert self.message({"trays": 9}, **kw) == f"f.yaml:1: oven.trays = 9: {TRAYS}"

    def test_setting_without_effect(self) -> None:
        want = "stops = [3]: has no effect while mode is 'bake'; it needs mode: grill"
        assert self.message({"stops": [3]}) == want
        assert self.message({"bell": 0.7, "fan": False}).startswith("bell = 0.7: has no effect while fan is False")
        assert build(Oven, {"bell": 0.7, "fan": True}).bell == 0.7

    def test_setting_with_several_ways_to_an_effect(self) -> None:
        @dataclasses.dataclass(frozen=True)
        class Stove:
            fuel: str = setting("gas", choices=["gas", "wood", "oil"])
            flame: int = setting(1, when=("fuel", ("gas", "oil")))

        assert build(Stove, {"fuel": "oil", "flame": 3}).flame == 3
        with pytest.raises(ExperimentError, match=r"while fuel is 'wood'; it needs fuel: gas or oil$"):
            build(Stove, {"fuel": "wood", "flame": 3})

    def test_default_spelled_out_is_no_mistake(self) -> None:
        """A resolved experiment spells out every key and must be readable again."""
        assert build(Oven, {"stops": [], "bell": 0.5, "timer": None}) == Oven()

    def test_not_strict_lets_settings_without_effect_pass(self) -> None:
        assert build(Oven, {"stops": [3]}, strict=False).stops == (3,)

    def test_ready_fields_are_taken_as_they_are(self) -> None:
        marker = object()
        assert build(Oven, {"label": 3}, ready={"label": marker}).label is marker


class TestOrigins:
    def test_nearest_place(self) -> None:
        origins = Origins({"train": "f:1", "train.lr": "f:2", "trian.lr.x": "--trian.lr.x"})
        assert origins.of("train.lr") == "f:2"
        assert origins.of("train.epochs") == "f:1"
        assert origins.of("trian") == "--trian.lr.x"
        assert origins.of("tr") is None
        assert origins.of("") is None


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("0", 0),
        ("7", 7),
        ("20 GB", 20 * 10**9),
        ("500MB", 5 * 10**8),
        ("1.5 TB", 1_500_000_000_000),
        ("2 kb", 2000),
        (" 3 GiB ", 3 << 30),
        ("1 B", 1),
    ],
)
def test_sizes(text: str, count: int) -> None:
    assert byte_count(text) == count


@pytest.mark.parametrize("text", ["", "GB", "lots", "-1 GB", "1 GBit", "1e9", "5 G", "1,5 GB", "20 GB 3 MB", "inf"])
def test_no_sizes(text: str) -> None:
    with pytest.raises(ValueError, match="must be a size like 500 MB"):
        byte_count(text)
