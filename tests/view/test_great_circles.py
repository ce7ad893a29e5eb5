"""Circles and ways on the sphere: right at poles and antimeridian, and the same in Python and on the page."""

import json
import math
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from matplotlib.path import Path as Outline
from numpy.typing import NDArray
from pyproj import Geod

from geoloc.view.great_circles import great_circle, unroll
from geoloc.view.outline import OUTLINE_PATH, load_world_outline
from quadtree.sphere import EARTH_MEAN_RADIUS_KM, destination_latlon_deg, haversine_km

SPHERE = Geod(a=EARTH_MEAN_RADIUS_KM, b=EARTH_MEAN_RADIUS_KM)
NODE = shutil.which("node")

latitudes = st.floats(-90, 90) | st.sampled_from([-90.0, -89.9, 0.0, 89.9, 90.0])
longitudes = st.floats(-180, 179.999) | st.sampled_from([-180.0, 0.0, 179.999])
points = st.tuples(latitudes, longitudes)
radii_km = st.floats(0.01, 19_900)


def circle_rings(
    center_latlon_deg: tuple[float, float], radius_km: float, num_points: int = 180
) -> list[NDArray[np.float64]]:
    """Rings that bound all points within `radius_km`, to be filled by the even-odd rule; each (n, 2).

    Mostly one ring of `num_points` + 1 points, last = first. A circle that holds a pole reaches to the edge
    of the map, so its ring goes on there, two points more. One that holds both poles is the whole map with a
    hole around the antipode.
    """
    half_turn_km = np.pi * EARTH_MEAN_RADIUS_KM
    radius_km = min(radius_km, half_turn_km)
    bearing_deg = 360.0 * (np.arange(num_points + 1) % num_points) / num_points
    ring = unroll(destination_latlon_deg(center_latlon_deg, bearing_deg, radius_km))
    latitude = float(np.asarray(center_latlon_deg, dtype=np.float64)[0])
    holds_north = radius_km / half_turn_km * 180 > 90 - latitude
    holds_south = radius_km / half_turn_km * 180 > 90 + latitude
    if abs(ring[-1, 1] - ring[0, 1]) > 180:
        pole = 90.0 if holds_north else -90.0
        return [np.concatenate([ring, [[pole, ring[-1, 1]], [pole, ring[0, 1]]]])]
    if holds_north and holds_south:
        west = (ring[:, 1].min() + ring[:, 1].max()) / 2 - 180
        return [np.array([[90, west], [90, west + 360], [-90, west + 360], [-90, west]]), ring]
    return [ring]


@given(points, radii_km)
@settings(max_examples=200, deadline=None)
def test_every_point_of_a_circle_is_at_its_radius(center: tuple[float, float], radius_km: float) -> None:
    ring = circle_rings(center, radius_km)[-1][:181]  # without the edge of the map
    lat, lon = np.full(181, center[0]), np.full(181, center[1])
    distance_km = SPHERE.inv(lon, lat, ring[:, 1], ring[:, 0])[2]
    np.testing.assert_allclose(distance_km, radius_km, rtol=1e-6, atol=1e-4)


@given(points, radii_km, points)
@example((88.0, 20.0), 1500.0, (89.0, -160.0))  # around the north pole
@example((-85.0, 179.0), 900.0, (-90.0, 0.0))  # around the south pole
@example((0.0, 179.9), 500.0, (0.0, -179.0))  # across the antimeridian
@example((10.0, 30.0), 19_000.0, (-10.0, -150.0))  # all but a spot
@settings(max_examples=300, deadline=None)
def test_rings_hold_the_points_within_the_radius(
    center: tuple[float, float], radius_km: float, point: tuple[float, float]
) -> None:
    distance_km = float(haversine_km(center, point))
    assume(abs(distance_km - radius_km) > 0.02 * radius_km)  # the ring has corners
    assume(abs(point[0]) < 90)  # all of a pole is the edge of the map
    assume(
        abs(math.remainder(point[1] - center[1], 180)) > 1e-6
    )  # where a ring around a pole begins and ends
    assume(0.05 * radius_km < 20_015 - radius_km)  # far fewer corners than the last spot needs
    rings = [
        ring + np.array([0, shift])
        for ring in circle_rings(center, radius_km, 720)
        for shift in (-360, 0, 360)
    ]
    num_around = sum(Outline(ring).contains_point(point) for ring in rings)
    assert num_around % 2 == (distance_km < radius_km)


@given(points, points)
@settings(max_examples=200, deadline=None)
def test_great_circle_goes_the_shortest_way_in_even_steps(
    a: tuple[float, float], b: tuple[float, float]
) -> None:
    distance_km = float(haversine_km(a, b))
    assume(0.1 < distance_km < 20_000)
    line = great_circle(a, b, 17)
    np.testing.assert_allclose(haversine_km(line[0], a), 0, atol=1e-6)
    np.testing.assert_allclose(haversine_km(line[-1], b), 0, atol=1e-6)
    np.testing.assert_allclose(haversine_km(line[:-1], line[1:]), distance_km / 16, rtol=1e-5)
    assert np.abs(np.diff(line[:, 1])).max() <= 180


def test_great_circle_without_one_way_gives_the_ends() -> None:
    np.testing.assert_array_equal(great_circle((10.0, 20.0), (10.0, 20.0)), [[10, 20], [10, 20]])
    assert len(great_circle((10.0, 20.0), (-10.0, -160.0))) == 2


def on_the_page(expression: str) -> Any:
    """The value of an expression where the map page's geometry.js is loaded."""
    if NODE is None:
        pytest.skip("node is not installed")
    script = (OUTLINE_PATH.parent / "geometry.js").read_text(encoding="utf-8")
    script += f"\nprocess.stdout.write(JSON.stringify({expression}));"
    run = subprocess.run([NODE, "-"], input=script, capture_output=True, text=True, check=True)
    return json.loads(run.stdout)


CASES = [
    ((0.0, 0.0), 100.0),
    ((55.7, 13.2), 2500.0),
    ((88.0, 20.0), 1500.0),
    ((-88.0, -170.0), 1500.0),
    ((-17.0, 179.5), 900.0),
    ((10.0, 30.0), 19_000.0),
]


def test_the_page_draws_the_same_circles() -> None:
    found = on_the_page(f"{json.dumps(CASES)}.map(([center, km]) => circleRings(center, km, 60))")
    for (center, radius_km), rings in zip(CASES, found, strict=True):
        expected = circle_rings(center, radius_km, 60)
        assert len(rings) == len(expected)
        for ring, expected_ring in zip(rings, expected, strict=True):
            # Either may begin a turn of the Earth from the other.
            turn = 360 * np.round((ring[0][1] - expected_ring[0, 1]) / 360)
            np.testing.assert_allclose(np.array(ring) - [0, turn], expected_ring, atol=1e-6)


def test_the_page_draws_the_same_ways() -> None:
    pairs = [((55.7, 13.2), (1.3, 103.8)), ((-17.0, 179.0), (-14.0, -171.0)), ((80.0, 10.0), (80.0, -150.0))]
    found = on_the_page(f"{json.dumps(pairs)}.map(([a, b]) => greatCircle(a, b, 9))")
    for (a, b), line in zip(pairs, found, strict=True):
        np.testing.assert_allclose(line, great_circle(a, b, 9), atol=1e-6)


def test_the_page_reads_the_same_outline() -> None:
    path = json.dumps(str(OUTLINE_PATH))
    found = on_the_page(
        f"(() => {{ const {{land, borders}} = decodeOutline(require('fs').readFileSync({path}));"
        "return [land, borders].map((lines) => lines.map((line) =>"
        " Array.from(line.x, (x, i) => [unprojectY(line.y[i]), x]))); })()"
    )
    outline = load_world_outline()
    for lines, expected in zip(found, (outline.land, outline.borders), strict=True):
        assert len(lines) == len(expected)
        for line, expected_line in zip(lines, expected, strict=True):
            np.testing.assert_allclose(line, expected_line, atol=1e-9)


@pytest.mark.parametrize("name", ["geometry.js", "map.js"])
def test_scripts_are_ascii_and_parse(name: str) -> None:
    script = OUTLINE_PATH.parent / name
    script.read_text(encoding="ascii")  # so that a wrong charset cannot change the hash in the page's policy
    if NODE is not None:
        subprocess.run([NODE, "--check", str(Path(script))], check=True, capture_output=True)
