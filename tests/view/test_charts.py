import math
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from geoloc.view.charts import (
    MAP_HEIGHT,
    MAP_WIDTH,
    Curve,
    Scale,
    error_class,
    error_map,
    line_chart,
    matrix_chart,
    small_map,
)


def numbers(svg, tag, *names):
    return [
        tuple(float(e.get(n)) for n in names)
        for e in ET.fromstring(svg).iter(tag)
        if e.get(names[0]) is not None
    ]


def test_a_logarithmic_scale():
    scale = Scale(1, 100, (1, 10, 100), "km", log=True)
    assert [scale.position(v) for v in (0, 1, 10, 100, 1000)] == [0, 0, pytest.approx(0.5), 1, 1]


def test_a_chart_is_xml_whatever_it_is_called():
    svg = line_chart(
        'a "<title>"', Scale(0, 1, (0, 1), "x < 1"), Scale(0, 1, (0, 1), "y & z"),
        [Curve("<b>", (0, 0.5, 1), (0, 1, 0), dots=True)], marks=[0.5],
    )  # fmt: skip
    root = ET.fromstring(svg)
    assert "y & z" in [e.text for e in root.iter("text")]
    (first, middle, last) = next(e for e in root.iter("polyline")).get("points").split()
    assert float(first.split(",")[0]) < float(middle.split(",")[0]) < float(last.split(",")[0])
    assert float(middle.split(",")[1]) < float(first.split(",")[1])
    assert len(list(root.iter("circle"))) == 3


def test_matrix():
    svg = matrix_chart("m", ["SE", "other"], np.array([[3, 1], [0, 0]]))
    titles = [e.text for e in ET.fromstring(svg).iter("title")]
    assert titles == ["SE predicted as SE: 3 (75.0%)", "SE predicted as other: 1 (25.0%)"]


def test_dots_lie_on_the_map():
    points = np.array([[0, 0], [90, 0], [-90, 0], [0, -180], [0, 179.999], [55.7, 13.2]])
    svg = error_map("m", points, np.array([0, 30, 300, 3000, np.nan, 1000.0]), list("abcdef"))
    dots = numbers(svg, "circle", "cx", "cy")
    assert len(dots) == 6
    assert all(0 <= x <= MAP_WIDTH and 0 <= y <= MAP_HEIGHT for x, y in dots)
    assert (MAP_WIDTH / 2, MAP_HEIGHT / 2) in dots


def test_the_way_over_the_antimeridian_is_cut_and_not_drawn_across_the_map():
    svg = small_map("m", (10.0, 175.0), (10.0, -175.0))
    lines = [e.get("points").split() for e in ET.fromstring(svg).iter("polyline")]
    for line in lines:
        x = [float(point.split(",")[0]) for point in line]
        assert max(x) - min(x) < MAP_WIDTH / 10
    assert len(lines) == 2
    assert len(list(ET.fromstring(small_map("m", (0.0, 0.0), None)).iter("polyline"))) == 0


def test_error_classes():
    assert [error_class(d) for d in (0, 25, 25.1, 750, 2500, 9e9, math.nan)] == [
        "e0", "e0", "e1", "e2", "e3", "e4", "none",
    ]  # fmt: skip
