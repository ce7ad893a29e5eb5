"""What is held out stays apart: compared with brute force, poles and antimeridian included."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from geoloc.data.samplers import density_weights
from geoloc.data.splits import split_by_cells, split_by_sequence, split_osv5m, within_km
from geoloc.errors import ConfigError
from quadtree import haversine_km

# Near the poles and the antimeridian as often as anywhere.
LATITUDES = st.one_of(st.floats(-90, 90), st.sampled_from([-90.0, 90.0, 89.999, -89.99, 0.0]))
LONGITUDES = st.one_of(st.floats(-180, 180), st.sampled_from([-180.0, 179.999, 180.0, 0.0]))
POINTS = st.lists(st.tuples(LATITUDES, LONGITUDES), min_size=2, max_size=40).map(np.array)


def points(n: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.stack([np.degrees(np.arcsin(rng.uniform(-1, 1, n))), rng.uniform(-180, 180, n)], -1)


def assert_partition(split, n):
    rows = np.concatenate([split.train, split.held_out, split.buffer])
    assert sorted(rows.tolist()) == list(range(n))


def test_osv5m_split_is_that_of_pandas():
    latlon_deg = points(2000)
    frame = pd.DataFrame({"w": density_weights(latlon_deg)})
    expected = frame.sample(frac=0.1, weights="w", random_state=42).index
    split = split_osv5m(latlon_deg)
    assert split.held_out.tolist() == sorted(expected)
    assert_partition(split, 2000)
    assert not len(split.buffer)


@given(points=POINTS, buffer_km=st.sampled_from([0.0, 1.0, 500.0, 25_000.0]), data=st.data())
def test_no_training_sample_lies_within_the_buffer(points, buffer_km, data):
    cells = data.draw(arrays(np.int64, len(points), elements=st.integers(0, 5)))
    if len(np.unique(cells)) < 2:
        cells[0] = 6 if cells[1] != 6 else 7
    split = split_by_cells(points, cells, share=0.3, buffer_km=buffer_km, seed=1)
    assert_partition(split, len(points))
    assert not set(cells[split.held_out]) & set(cells[split.train])
    assert not set(cells[split.held_out]) & set(cells[split.buffer])
    distance_km = haversine_km(points[:, None], points[None, split.held_out]).min(1)
    tolerance_km = 1e-3  # a straight line of unit vectors tells antipodes no better
    assert (distance_km[split.train] >= buffer_km - tolerance_km).all()
    assert (distance_km[split.buffer] <= buffer_km + tolerance_km).all()


def test_a_buffer_of_the_whole_earth_reaches_the_antipode():
    split = split_by_cells([(90.0, 0.0), (-90.0, 0.0)], [0, 1], share=0.3, buffer_km=25_000.0, seed=1)
    assert (len(split.train), len(split.held_out), len(split.buffer)) == (0, 1, 1)


def test_the_buffer_crosses_the_antimeridian_and_the_pole():
    held = [[0.0, 179.9999], [89.9999, 0.0]]
    near = [[0.0, -179.9999], [89.9999, 180.0], [0.0, 179.0], [88.0, 0.0]]
    assert within_km(near, held, 1.0).tolist() == [True, True, False, False]
    assert within_km(near, np.empty((0, 2)), 1.0).tolist() == [False] * 4


def test_the_share_is_reached_with_whole_cells():
    cells = np.repeat(np.arange(100), 10)
    split = split_by_cells(points(1000), cells, share=0.095, buffer_km=0.0)
    assert len(split.held_out) == 100
    assert len(np.unique(cells[split.held_out])) == 10
    other = split_by_cells(points(1000), cells, share=0.095, buffer_km=0.0, seed=43)
    assert not np.array_equal(split.held_out, other.held_out)


@given(codes=arrays(np.int64, st.integers(2, 50), elements=st.integers(-1, 8)), share=st.floats(0.01, 0.9))
def test_sequences_are_never_torn(codes, share):
    if len(np.unique(codes)) < 2 and codes[0] >= 0:
        codes[0] = 99
    split = split_by_sequence(codes, share)
    assert_partition(split, len(codes))
    assert len(split.train)
    assert len(split.held_out)
    assert not set(codes[split.train]) & set(codes[split.held_out]) - {-1}


def test_what_cannot_be_split_is_refused():
    with pytest.raises(ConfigError, match=r"is 1.0; it must be between 0 and 1"):
        split_osv5m(points(10), 1.0)
    with pytest.raises(ConfigError, match="buffer is -1 km"):
        split_by_cells(points(10), np.arange(10), buffer_km=-1)
    with pytest.raises(ConfigError, match="nothing can be held out of 1 group"):
        split_by_sequence([3, 3, 3])
