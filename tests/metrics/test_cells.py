import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from geoloc.metrics.cells import DepthTally, common_depth, statewide_recall
from quadtree.morton import encode
from quadtree.sphere import destination_latlon_deg

LATITUDES = st.floats(-90, 90)
LONGITUDES = st.floats(-180, 180, exclude_max=True)


@given(LATITUDES, LONGITUDES, st.floats(-1e-3, 1e-3), st.floats(-1e-3, 1e-3))
def test_common_depth_is_the_length_of_the_common_path(lat, lon, dlat, dlon):
    near = (min(max(lat + dlat, -90), 90), lon + dlon)
    paths = [np.base_repr(int(encode(p, 12)), 4).zfill(12) for p in ((lat, lon), near)]
    expected = next((d for d in range(12) if paths[0][d] != paths[1][d]), 12)
    assert common_depth([(lat, lon)], [near], 12).tolist() == [expected]


def test_depths_by_hand():
    tally = DepthTally(2)
    # The same quarter of a quarter; the same quarter only; another hemisphere; no prediction.
    tally.add([[10, 10], [10, 10], [-10, 10], [np.nan, np.nan]], [[20, 20], [80, 170], [10, 10], [0, 0]])
    assert tally.summary() == {"1": 0.5, "2": 0.25}
    assert tally.summary(count_missing=False) == {"1": pytest.approx(2 / 3), "2": pytest.approx(1 / 3)}
    other = DepthTally(2)
    other.merge(tally)
    assert other.summary() == tally.summary()
    assert DepthTally(2).summary() == {}


def test_statewide_by_hand():
    truth = np.array([[42.0, -71.0], [42.1, -71.1], [42.2, -71.2]])
    # First photo: containing cell second, its centre 20 m off. Second: a centre 40 m off third, never the cell.
    # Third: nothing.
    centres = np.full((3, 3, 2), np.nan)
    centres[0, 0] = destination_latlon_deg(truth[0], 90, 1.0)
    centres[0, 1] = destination_latlon_deg(truth[0], 45, 0.020)
    centres[1, 2] = destination_latlon_deg(truth[1], 200, 0.040)
    contains = np.zeros((3, 3), bool)
    contains[0, 1] = True
    found = statewide_recall(truth, centres, contains, cell_size_m=30, at=(1, 2, 3), within_m=(0, 25, 50))
    third = pytest.approx(1 / 3)
    assert found["0"] == {"1": 0, "2": third, "3": third}
    assert found["25"] == {"1": 0, "2": third, "3": third}
    assert found["50"] == {"1": 0, "2": third, "3": pytest.approx(2 / 3)}


def test_statewide_refuses_radii_that_a_right_cell_could_fail():
    with pytest.raises(
        ValueError, match=r"within 21 m is not defined for cells of 30 m: ask for 0 .* more than 21.2 m"
    ):
        statewide_recall([[0, 0]], [[[0, 0]]], [[True]], cell_size_m=30, within_m=(21,))
