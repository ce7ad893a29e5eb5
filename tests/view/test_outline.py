"""The shipped outline is the Earth: known places on land and at sea, a known border, a small file."""

import numpy as np
import pytest
from numpy.typing import NDArray

from geoloc.view.outline import OUTLINE_PATH, load_world_outline

LAND = {
    "Lund": (55.71, 13.19),
    "Moscow": (55.75, 37.62),
    "Anadyr, beyond the antimeridian": (65.5, -173.0),
    "Alice Springs": (-23.7, 133.9),
    "Manaus": (-3.1, -60.0),
    "Lhasa": (29.65, 91.1),
    "South Pole": (-90.0, 0.0),
    "Antarctica": (-86.0, -179.9),
    "Viti Levu": (-17.8, 178.0),
}
SEA = {
    "North Pole": (90.0, 0.0),
    "Null Island": (0.0, 0.0),
    "Pacific": (0.0, -179.99),
    "Southern Ocean": (-60.0, 179.99),
    "Caspian Sea": (42.0, 50.5),
    "Baltic Sea": (55.3, 17.0),
    "Ross Sea": (-75.0, -170.0),
}


def is_inside(point: tuple[float, float], rings: list[NDArray[np.float64]]) -> bool:
    """Even-odd rule: how many edges does the way north from the point cross?"""
    latitude, longitude = point
    crossings = 0
    for ring in rings:
        (a_lat, a_lon), (b_lat, b_lon) = ring.T, np.roll(ring, -1, axis=0).T
        spans = (a_lon <= longitude) != (b_lon <= longitude)
        at = (
            a_lat[spans] + (longitude - a_lon[spans]) / (b_lon[spans] - a_lon[spans]) * (b_lat - a_lat)[spans]
        )
        crossings += int((at > latitude).sum())
    return crossings % 2 == 1


def is_land(point: tuple[float, float]) -> bool:
    rings = []
    for ring in load_world_outline().land:
        if abs(ring[-1, 1] - ring[0, 1]) > 180:
            ring = np.concatenate([ring, [[-91.0, ring[-1, 1]], [-91.0, ring[0, 1]]]])
        rings += [ring + np.array([0, shift]) for shift in (-360, 0, 360)]
    return is_inside(point, rings)


@pytest.mark.parametrize("place", LAND)
def test_land(place: str) -> None:
    assert is_land(LAND[place])


@pytest.mark.parametrize("place", SEA)
def test_sea(place: str) -> None:
    assert not is_land(SEA[place])


def test_rings_are_closed_but_for_antarctica() -> None:
    open_rings = [ring for ring in load_world_outline().land if not np.array_equal(ring[0], ring[-1])]
    assert len(open_rings) == 1
    np.testing.assert_array_equal(open_rings[0][[0, -1], 1], [-180, 180])
    assert open_rings[0][:, 0].max() < -60


def test_lines_never_jump() -> None:
    outline = load_world_outline()
    for line in outline.land + outline.borders:
        assert line.shape[1] == 2
        assert np.abs(np.diff(line[:, 1])).max(initial=0) < 180
        assert np.abs(line[:, 0]).max() <= 90


@pytest.mark.parametrize(
    "point",
    [(48.58, 7.80), (49.0, -110.0), (31.75, -106.49)],
    ids=["Rhine at Strasbourg", "49th parallel", "Rio Grande at El Paso"],
)
def test_known_borders_are_there(point: tuple[float, float]) -> None:
    nearest_deg = np.inf
    for border in load_world_outline().borders:
        steps = np.diff(border, axis=0)
        share = ((point - border[:-1]) * steps).sum(axis=1) / (steps**2).sum(axis=1)
        foot = border[:-1] + steps * np.clip(share, 0, 1)[:, None]
        nearest_deg = min(nearest_deg, float(np.linalg.norm(foot - point, axis=1).min()))
    assert nearest_deg < 0.15


def test_file_is_small() -> None:
    assert OUTLINE_PATH.stat().st_size < 400_000
