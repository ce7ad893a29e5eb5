"""Neighbours within metres agree with brute force everywhere, and where arithmetic inside one UTM zone does not."""

import numpy as np
import pytest

from geoloc.geo.near import rows_within_m
from geoloc.geo.utm import to_utm
from geoloc.geo.wgs84 import offset_latlon_deg
from quadtree.sphere import geodesic_km


@pytest.mark.parametrize(
    "center", [(55.7, 13.2), (0.0, 30.0), (-16.5, 180.0), (83.9, 5.0), (90.0, 0.0), (0.0, 6.0)]
)
@pytest.mark.parametrize("radius_m", [10, 25, 300])
def test_as_brute_force(center, radius_m):
    rng = np.random.default_rng(0)
    points, others = (
        np.array([offset_latlon_deg(np.array(center), *xy) for xy in rng.uniform(-150, 150, (n, 2))])
        for n in (40, 60)
    )
    apart_m = 1000 * geodesic_km(points[:, None], others[None])
    found = rows_within_m(points, others, radius_m)
    for rows, row_m in zip(found, apart_m, strict=True):
        assert rows.tolist() == np.flatnonzero(row_m <= radius_m).tolist()


def test_across_a_border_of_zones_and_the_equator():
    # 12 degrees east is the border of zones 32 and 33.
    pairs = np.array([[[48.0, 11.99995], [48.0, 12.00005]], [[0.00005, 100.0], [-0.00005, 100.0]]])
    for west, east in pairs:
        assert [rows.tolist() for rows in rows_within_m(west[None], east[None], 25)] == [[0]]
        a, b = to_utm(west[None]), to_utm(east[None])
        naive_m = np.hypot(a.east_m - b.east_m, a.north_m - b.north_m)
        assert naive_m > 100_000  # as if both were in one zone


def test_nothing_near():
    assert rows_within_m(np.zeros((0, 2)), [[0, 0]], 5) == []
    assert [len(rows) for rows in rows_within_m([[0, 0]], np.zeros((0, 2)), 5)] == [0]
    assert [len(rows) for rows in rows_within_m([[0, 0], [1, 1]], [[2, 2]], 5)] == [0, 0]
