"""Charts: scales and ticks by hand, SVG that is well formed, named, and tells nothing by colour alone."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from akd.report import charts
from akd.report.charts import Curve, Mark, Scale

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = "</title><script>alert(1)</script>\"&'"


def parsed(svg: str) -> ET.Element:
    """The picture as XML; every number in it is finite, every mark within the picture."""
    root = ET.fromstring(svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1))
    assert "nan" not in svg
    assert "inf" not in svg.replace("info", "")
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    for item in root.iter():
        for key, most in (("x", width), ("cx", width), ("x1", width), ("y", height), ("cy", height), ("y1", height)):
            if key in item.attrib and item.tag != f"{SVG}rect":
                assert -1 <= float(item.attrib[key]) <= most + 1, (item.tag, item.attrib)
    return root


def test_linear_scale() -> None:
    scale = Scale(10, 30)
    assert [scale.at(v) for v in (10, 20, 30)] == [0, 0.5, 1]
    assert [label for _, label in scale.ticks()] == ["10", "15", "20", "25", "30"]


def test_whole_numbers() -> None:
    assert [label for _, label in Scale(1, 12, whole=True).ticks()] == ["5", "10"]
    assert [label for _, label in Scale(1, 2, whole=True).ticks()] == ["1", "2"]


def test_log_scale() -> None:
    scale = Scale(0.01, 1.0, log=True)
    assert [scale.at(v) for v in (0.01, 0.1, 1.0)] == pytest.approx([0, 0.5, 1])
    assert [label for _, label in scale.ticks()] == ["0.01", "0.1", "1"]
    assert [label for _, label in Scale(0.5, 8, log=True).ticks()] == ["0.5", "1", "2", "5"]
    assert len(Scale(1.1, 1.4, log=True).ticks()) >= 2


def test_scale_of_names() -> None:
    scale = Scale(0, 1, names=("a", "b"))
    assert [scale.at(k) for k in (0, 1)] == [0.25, 0.75]
    assert scale.ticks() == [(0, "a"), (1, "b")]


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6), st.integers(2, 9))
def test_ticks_are_round_within_and_few(low: float, width: float, most: int) -> None:
    ticks = charts.nice(low, low + width, most)
    assert len(ticks) <= most + 1
    slack = 1e-6 * (abs(low) + width)
    assert all(low - slack <= t <= low + width + slack for t in ticks)
    assert ticks == sorted(set(ticks))


def test_one_value_has_a_scale() -> None:
    assert charts.nice(3.0, 3.0) == [3.0]
    assert Scale(3, 3).at(3) == 0.5
    low, high = charts.around([2.0])
    assert low < 2.0 < high


def test_classes_are_fifths() -> None:
    which = charts.classes([float(v) for v in range(10)])
    assert [which(float(v)) for v in range(10)] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert [words for _, words in charts.class_keys([1.0, 1.0], str)] == ["1.00 %"]
    keys = charts.class_keys([7.0, 10.0, 50.0, 60.0, 70.0, 80.0, 90.0], str)
    assert keys[0] == ("0", "7.00 to 10.00 %")


def test_texts_are_escaped_and_pictures_are_named() -> None:
    marks = [Mark(1, 2, "disc", HOSTILE), Mark(2, 3, "diamond", HOSTILE)]
    curve = Curve(HOSTILE, [(1, 0.5), (2, 0.7)], "s1", tip=HOSTILE)
    row = (HOSTILE, [1.0, 2.0], 1.5, 1.0, 2.0)
    pictures = [
        charts.scatter("a", HOSTILE, HOSTILE, marks, Scale(0, 3, names=(HOSTILE, "b", "c")), HOSTILE, HOSTILE),
        charts.lines("b", HOSTILE, HOSTILE, [curve], HOSTILE, HOSTILE, rungs=[1]),
        charts.bars("c", HOSTILE, HOSTILE, [(HOSTILE, 0.4)]),
        charts.whiskers("d", HOSTILE, HOSTILE, [row], HOSTILE, zero=True),
        charts.plane("e", HOSTILE, HOSTILE, [(1, 1, 90.0, HOSTILE, True)], Scale(0, 2), Scale(0, 2), HOSTILE, HOSTILE),
        charts.parallel("f", HOSTILE, HOSTILE, [(HOSTILE, Scale(0, 2))], [([1.0], 90.0, HOSTILE, True)]),
    ]
    for svg in pictures:
        root = parsed(svg)
        assert not list(root.iter(f"{SVG}script"))
        names = root.attrib["aria-labelledby"].split()
        told = {item.attrib["id"]: item.text for item in root if "id" in item.attrib}
        assert [told[name] for name in names] == [HOSTILE, HOSTILE]
        assert root.attrib["role"] == "img"


def test_places_by_hand() -> None:
    svg = charts.scatter(
        "a", "t", "w", [Mark(0, 0, "disc", "low"), Mark(10, 100, "disc", "high")], Scale(0, 10), "", ""
    )
    low, high = [c.attrib for c in parsed(svg).iter(f"{SVG}circle")]
    assert float(low["cx"]) == charts.LEFT
    assert float(high["cx"]) == charts.WIDTH - charts.RIGHT
    # 6 % of room at both ends of a plot 190 high: 190 / 1.12 between the two.
    assert float(low["cy"]) - float(high["cy"]) == pytest.approx(190 / 1.12, abs=0.2)


def test_marks_have_shapes_of_their_own() -> None:
    marks = [Mark(k, k, kind, kind) for k, kind in enumerate(("disc", "triangle", "cross", "diamond"))]
    root = parsed(charts.scatter("a", "t", "w", marks, Scale(0, 3), "x", "y"))
    drawn = [item for item in root.iter() if item.attrib.get("class") in {m.kind for m in marks}]
    assert len(drawn) == 4
    # The path's commands without its numbers are its shape; the disc is a circle.
    shapes = {"".join(c for c in item.attrib.get("d", item.tag) if c.isalpha()) for item in drawn}
    assert len(shapes) == 4


def test_values_below_the_floor_stay_in_the_picture() -> None:
    svg = charts.scatter("a", "t", "w", [Mark(0, 5, "disc", ""), Mark(1, 95, "disc", "")], Scale(0, 1), "", "", low=80)
    parsed(svg)


def test_a_parameter_a_trial_does_not_have_is_passed_over() -> None:
    axes = [("a", Scale(0, 1)), ("b", Scale(0, 1))]
    root = parsed(
        charts.parallel("p", "t", "w", axes, [([0.5, None], 90.0, "tip", False), ([0.1, 0.2], 91.0, "", True)])
    )
    ways = [p for p in root.iter(f"{SVG}polyline") if p.find(f"{SVG}title") is not None]
    assert [len(p.attrib["points"].split()) for p in ways] == [2]  # axis a, then the accuracy
    every = [len(p.attrib["points"].split()) for p in root.iter(f"{SVG}polyline") if "best" in p.attrib["class"]]
    assert max(every) == 3
