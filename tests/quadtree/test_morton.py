from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quadtree import QuadtreeError, morton

indices = st.integers(0, 2**24 - 1)


@given(indices, indices)
def test_interleave_puts_the_bits_in_turn(row, column):
    expected = int("".join(r + c for r, c in zip(f"{row:024b}", f"{column:024b}", strict=True)), 2)
    assert morton.interleave(row, column) == expected
    assert [int(part) for part in morton.deinterleave(expected)] == [row, column]


@given(st.integers(0, 24), st.data())
def test_world_edges_are_exact(depth, data):
    row, column = (data.draw(st.integers(0, 2**depth - 1)) for _ in range(2))
    bounds_deg = morton.cell_bounds_deg([morton.interleave(row, column)], depth)[0]
    expected = [
        Fraction(180 * row, 2**depth) - 90,
        Fraction(360 * column, 2**depth) - 180,
        Fraction(180 * (row + 1), 2**depth) - 90,
        Fraction(360 * (column + 1), 2**depth) - 180,
    ]
    assert [Fraction(value) for value in bounds_deg.tolist()] == expected


@st.composite
def axes_and_values(draw):
    """A side, which may be tiny or of no length at all, a depth, and a value that loves the edges."""
    low, high = sorted(draw(st.tuples(st.floats(-180, 180), st.floats(-180, 180))))
    if draw(st.booleans()):
        high = min(180.0, low + draw(st.sampled_from([0.0, 5e-324, 1e-300, 1e-15, 1e-13, 1e-11, 1e-9, 1e-6])))
    depth = draw(st.integers(0, 24))
    index = draw(st.integers(0, 2**depth))
    edge = float(np.clip(low + (high - low) * index / 2**depth, low, high))
    for _ in range(draw(st.integers(0, 3))):
        edge = float(np.nextafter(edge, draw(st.sampled_from([-np.inf, np.inf]))))
    return low, high, depth, draw(st.one_of(st.just(edge), st.floats(low, high)))


@given(axes_and_values())
def test_axis_index_equals_halving_with_python_floats(case):
    low, high, depth, value = case
    start, stop, expected = low, high, 0
    for _ in range(depth):
        middle = (start + stop) / 2
        is_upper = value >= middle
        start, stop = (middle, stop) if is_upper else (start, middle)
        expected = 2 * expected + is_upper
    axis = morton.Axis(low, high, depth)
    assert axis.index(np.array([value])).tolist() == [expected]
    ends = axis.ends_deg(np.array([expected]), np.array([depth]))
    assert [float(end[0]) for end in ends] == [start, stop]


@given(st.floats(-90, 90), st.floats(-180, 180, exclude_max=True), st.integers(0, 24))
def test_a_point_is_in_the_cell_of_its_code(latitude, longitude, depth):
    code = morton.encode([latitude, longitude], depth)
    assert code.shape == ()
    south, west, north, east = morton.cell_bounds_deg(code[None], depth)[0]
    assert south <= latitude < north or latitude == north == 90
    assert west <= longitude < east


def test_coarse_codes_are_prefixes_of_fine_ones():
    latlon_deg = np.random.default_rng(0).uniform([-90, -180], [90, 180], (1000, 2))
    fine = morton.encode(latlon_deg)
    for depth in range(24):
        np.testing.assert_array_equal(morton.encode(latlon_deg, depth), fine >> 2 * (24 - depth))


def test_points_outside_of_the_root_take_the_nearest_row_and_column():
    root_deg = (0.0, 0.0, 8.0, 8.0)
    codes = morton.encode([[-5, -5], [-5, 20], [20, -5], [20, 20], [8, 8]], 3, root_deg)
    assert [np.base_repr(int(code), 4).zfill(3) for code in codes] == ["000", "111", "222", "333", "333"]


@pytest.mark.parametrize("depth", [-1, 25])
def test_depth_is_limited(depth):
    with pytest.raises(QuadtreeError, match=rf"depth must be in \[0, 24\]; found {depth}"):
        morton.encode([0, 0], depth)
