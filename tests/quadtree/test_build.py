import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from quadtree_references import osv5m_leaves, photo_like_latlon_deg

from quadtree import (
    InvalidCoordinateError,
    QuadtreeError,
    build_quadtree,
    build_quadtree_from_batches,
    haversine_km,
    spherical_mean_latlon_deg,
)

WORLD_DEG = (-90.0, -180.0, 90.0, 180.0)


def assert_same_leaves(tree, leaves):
    assert tree.paths == tuple(leaf.path for leaf in leaves)
    np.testing.assert_array_equal(tree.bounds_deg, [leaf.bounds_deg for leaf in leaves])
    assert tree.num_points.tolist() == [leaf.num_points for leaf in leaves]


@pytest.mark.parametrize("num_points", [100_000, 1_000_000])
def test_data_root_is_osv5ms_tree(num_points):
    latlon_deg = photo_like_latlon_deg(num_points, seed=num_points)
    tree = build_quadtree(latlon_deg, max_points_per_cell=1000, max_depth=10, root="data")
    leaves = osv5m_leaves(latlon_deg, 1000, 10)
    assert tree.num_cells > 100
    assert_same_leaves(tree, leaves)
    # Sums in another order differ in the last bits.
    np.testing.assert_allclose(
        tree.center_latlon_deg, [leaf.mean_latlon_deg for leaf in leaves], rtol=0, atol=1e-11
    )


@pytest.mark.parametrize(
    ("max_points_per_cell", "max_depth"), [(1000, 10), (300, 11), (40, 17), (2, 24), (5, 0)]
)
def test_world_root_splits_by_the_same_rule(max_points_per_cell, max_depth):
    latlon_deg = photo_like_latlon_deg(20_000, seed=2)
    tree = build_quadtree(latlon_deg, max_points_per_cell, max_depth)
    assert_same_leaves(tree, osv5m_leaves(latlon_deg, max_points_per_cell, max_depth, WORLD_DEG))
    assert tree.is_world


@st.composite
def point_sets(draw):
    """Few points with many equal coordinates, some on edges of the world's grid."""
    latitude = st.one_of(st.floats(-90, 90), st.integers(-8, 8).map(lambda k: k * 11.25))
    longitude = st.one_of(st.floats(-180, 180, exclude_max=True), st.integers(-8, 7).map(lambda k: k * 22.5))
    latlon_deg = draw(st.lists(st.tuples(latitude, longitude), min_size=1, max_size=12))
    copies = draw(st.lists(st.integers(1, 4), min_size=len(latlon_deg), max_size=len(latlon_deg)))
    return np.repeat(np.array(latlon_deg), copies, axis=0)


@given(point_sets(), st.integers(1, 5), st.integers(0, 24), st.sampled_from(["world", "data"]))
def test_any_points_follow_the_rule(latlon_deg, max_points_per_cell, max_depth, root):
    tree = build_quadtree(latlon_deg, max_points_per_cell, max_depth, root)
    root_deg = WORLD_DEG if root == "world" else None
    assert_same_leaves(tree, osv5m_leaves(latlon_deg, max_points_per_cell, max_depth, root_deg))
    # Every training point is in its own cell, none in an empty leaf.
    cell_ids, is_empty = tree.assign(latlon_deg, return_is_empty=True)
    assert not is_empty.any()
    assert np.bincount(cell_ids, minlength=tree.num_cells).tolist() == tree.num_points.tolist()


@given(point_sets(), st.integers(1, 5), st.integers(0, 24))
def test_representative_points_of_the_world_are_means_on_the_sphere(
    latlon_deg, max_points_per_cell, max_depth
):
    tree = build_quadtree(latlon_deg, max_points_per_cell, max_depth)
    cell_ids = tree.assign(latlon_deg)
    assert tree.assign(tree.center_latlon_deg).tolist() == list(range(tree.num_cells))
    for cell_id in range(tree.num_cells):
        members = latlon_deg[cell_ids == cell_id]
        try:
            mean = spherical_mean_latlon_deg(members)
        except QuadtreeError:
            continue  # the points cancel out, and any point of the cell is as good
        south, west, north, east = tree.bounds_deg[cell_id]
        if south <= mean[0] < north and west <= mean[1] < east:
            assert haversine_km(mean, tree.center_latlon_deg[cell_id]) < 1e-4
        else:
            assert tree.center_latlon_deg[cell_id, 0] == pytest.approx(np.clip(mean[0], south, north))


def test_a_mean_outside_of_a_wide_cell_is_brought_back():
    # The mean of these two is at 85 N; the cell ends at 45 N.
    tree = build_quadtree(
        [[44.9, -180.0], [44.9, -0.1], [-60, 10], [80, 100]], max_points_per_cell=2, max_depth=2
    )
    cell_id = int(tree.assign([44.9, -180.0]))
    assert tree.paths[cell_id] == "20"
    assert 0 <= tree.center_latlon_deg[cell_id, 0] <= 45


def test_a_mean_at_the_antimeridian_stays_on_its_side():
    just_west = np.nextafter(180, 0)
    tree = build_quadtree([[10.0, just_west], [10.0, -180.0]], max_points_per_cell=1, max_depth=5)
    assert tree.num_cells == 2
    np.testing.assert_array_equal(sorted(tree.center_latlon_deg[:, 1]), [-180.0, just_west])


def test_points_that_cancel_out_are_represented_by_the_middle_of_the_cell():
    tree = build_quadtree([[0.0, -90.0], [0.0, 90.0]], max_points_per_cell=3)
    assert tree.paths == ("",)
    assert tree.center_latlon_deg.tolist() == [[0.0, 0.0]]


def test_a_later_pass_looks_only_into_full_boxes():
    # All full boxes of the first pass are the very first box of the grid.
    rng = np.random.default_rng(3)
    corner = np.stack([rng.uniform(-90, -89.99, 3000), rng.uniform(-180, -179.99, 3000)], axis=-1)
    latlon_deg = np.concatenate([corner, photo_like_latlon_deg(500, seed=4)])
    tree = build_quadtree(latlon_deg, max_points_per_cell=600, max_depth=20)
    assert tree.max_depth > 11
    assert_same_leaves(tree, osv5m_leaves(latlon_deg, 600, 20, WORLD_DEG))


@pytest.mark.parametrize("root", ["world", "data"])
@pytest.mark.parametrize("max_depth", [8, 16])
def test_batches_give_the_same_tree(root, max_depth):
    latlon_deg = photo_like_latlon_deg(30_000, seed=5)
    batches = np.split(latlon_deg, [0, 7, 9_000, 9_000, 25_000])
    tree = build_quadtree_from_batches(batches, 50, max_depth, root)
    whole = build_quadtree(latlon_deg, 50, max_depth, root)
    assert tree.paths == whole.paths
    assert tree.num_points.tolist() == whole.num_points.tolist()
    np.testing.assert_allclose(tree.center_latlon_deg, whole.center_latlon_deg, rtol=0, atol=1e-11)


def test_a_generator_is_enough_for_one_pass():
    latlon_deg = photo_like_latlon_deg(3_000, seed=6)
    tree = build_quadtree_from_batches((part for part in np.split(latlon_deg, 3)), 50, 11)
    assert tree.num_points.sum() == 3_000
    with pytest.raises(QuadtreeError, match="can be read only once; pass a list of arrays or a PointTable"):
        build_quadtree_from_batches((part for part in np.split(latlon_deg, 3)), 50, 11, root="data")


def test_memory_does_not_grow_with_the_number_of_points():
    batch = photo_like_latlon_deg(20_000, seed=7)

    def peak_bytes(num_batches):
        tracemalloc.start()
        build_quadtree_from_batches((batch for _ in range(num_batches)), 1000, 6)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    assert peak_bytes(20) <= 1.1 * peak_bytes(2)


def test_longitudes_are_wrapped():
    latlon_deg = photo_like_latlon_deg(2_000, seed=8)
    turned = latlon_deg + np.array([0, 360])
    # Adding 360 rounds, so compare with what it can be wrapped back to.
    back = turned - np.array([0, 360])
    for root in ("world", "data"):
        assert build_quadtree(turned, 50, 8, root) == build_quadtree(back, 50, 8, root)


@pytest.mark.parametrize(
    ("latlon_deg", "kwargs", "message"),
    [
        (np.zeros((0, 2)), {}, "needs at least one point; found none"),
        (np.zeros((0, 2)), {"root": "data"}, "needs at least one point; found none"),
        ([1.0, 2.0], {}, r"shape \(n, 2\); found \(2,\)"),
        ([[1.0, 2.0]], {"max_points_per_cell": 0}, "max_points_per_cell must be at least 1; found 0"),
        ([[1.0, 2.0]], {"max_depth": 25}, r"depth must be in \[0, 24\]; found 25"),
        ([[1.0, 2.0]], {"root": "europe"}, 'root must be "world" or "data"; found \'europe\''),
    ],
)
def test_refuses(latlon_deg, kwargs, message):
    with pytest.raises(QuadtreeError, match=message):
        build_quadtree(latlon_deg, **kwargs)


def test_an_invalid_point_is_named_by_its_row():
    latlon_deg = photo_like_latlon_deg(10_000, seed=9)
    latlon_deg[7_777] = [12.5, np.nan]
    with pytest.raises(InvalidCoordinateError, match=r"longitude of point 7777 .*\(12.5, nan\)"):
        build_quadtree(latlon_deg)
    with pytest.raises(InvalidCoordinateError, match="longitude of point 7777 "):
        build_quadtree_from_batches(np.split(latlon_deg, 10))
