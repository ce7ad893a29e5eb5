import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from quadtree_references import BoxMap, border_latlon_deg, photo_like_latlon_deg

from quadtree import InvalidCoordinateError, box_distance_km, build_quadtree, haversine_km


def assert_equals_bounds(tree, latlon_deg):
    """Every point is in exactly one leaf, and `assign` finds it."""
    all_bounds_deg = np.concatenate([tree.bounds_deg, tree.empty_bounds_deg])
    box_map = BoxMap(all_bounds_deg)
    assert box_map.num_paintings.min() == box_map.num_paintings.max() == 1
    south, west, north, east = tree.root_deg
    assert all_bounds_deg[:, :2].min(axis=0).tolist() == [south, west]
    assert all_bounds_deg[:, 2:].max(axis=0).tolist() == [north, east]
    expected = box_map.box_of(latlon_deg)
    cell_ids, is_empty = tree.assign(latlon_deg, return_is_empty=True)
    np.testing.assert_array_equal(is_empty, expected >= tree.num_cells)
    np.testing.assert_array_equal(cell_ids[~is_empty], expected[~is_empty])
    assert cell_ids.dtype == np.int64
    assert cell_ids.min() >= 0
    assert cell_ids.max() < tree.num_cells


def assert_world_equals_bounds(num_points):
    """Half of the points at random, half on the borders of leaves and beside them."""
    # Points nearly everywhere, so that few of the ten million pay for the search for the nearest cell.
    tree = build_quadtree(photo_like_latlon_deg(200_000, seed=10), max_points_per_cell=50, max_depth=10)
    rng = np.random.default_rng(11)
    uniform = rng.uniform([-90, -180], [90, 180], (num_points // 4, 2))
    like_photos = photo_like_latlon_deg(num_points // 4, seed=12)
    border = border_latlon_deg(
        np.concatenate([tree.bounds_deg, tree.empty_bounds_deg]), num_points // 2, seed=13
    )
    assert np.isin([90.0, -90.0], border[:, 0]).all()
    assert np.isin([-180.0, np.nextafter(180, 0)], border[:, 1]).all()
    assert_equals_bounds(tree, np.concatenate([uniform, like_photos, border]))


def test_half_a_million_points_equal_brute_force_on_bounds():
    assert_world_equals_bounds(500_000)


@pytest.mark.slow
def test_ten_million_points_equal_brute_force_on_bounds():
    assert_world_equals_bounds(10_000_000)


@pytest.mark.parametrize("root", ["world", "data"])
@pytest.mark.parametrize(("max_points_per_cell", "max_depth"), [(500, 10), (30, 11), (2, 24), (10_000, 10)])
def test_borders_equal_brute_force_on_bounds(root, max_points_per_cell, max_depth):
    training = photo_like_latlon_deg(2_000, seed=14)
    tree = build_quadtree(training, max_points_per_cell, max_depth, root)
    border = border_latlon_deg(np.concatenate([tree.bounds_deg, tree.empty_bounds_deg]), 5_000, seed=15)
    south, west, north, east = tree.root_deg
    low, high = np.array([south, west]), np.array([north, east])
    inside = border[(border >= low).all(axis=1) & (border <= high).all(axis=1)]
    assert len(inside) > 1_000
    assert_equals_bounds(tree, inside)


@pytest.mark.parametrize("max_depth", [0, 4, 12, 24])
def test_poles_and_antimeridian(max_depth):
    tree = build_quadtree(photo_like_latlon_deg(5_000, seed=16), 5, max_depth)
    latitudes = [90.0, -90.0, np.nextafter(90, 0), np.nextafter(-90, 0), 0.0, -0.0, 5e-324, -5e-324]
    longitudes = [-180.0, np.nextafter(180, 0), np.nextafter(-180, 0), 0.0, -0.0, 5e-324, -5e-324]
    latlon_deg = np.array([(latitude, longitude) for latitude in latitudes for longitude in longitudes])
    assert_equals_bounds(tree, latlon_deg)


coordinates = st.tuples(st.floats(-90, 90), st.floats(-720, 720))


@given(
    st.lists(coordinates, min_size=1, max_size=20),
    st.lists(coordinates, min_size=1, max_size=20),
    st.integers(1, 3),
    st.integers(0, 24),
    st.sampled_from(["world", "data"]),
)
def test_every_valid_point_is_in_one_leaf_or_outside_of_the_root(training, points, split, depth, root):
    tree = build_quadtree(training, split, depth, root)
    cell_ids, is_empty = tree.assign(points, return_is_empty=True)
    for (latitude, longitude), cell_id, empty in zip(points, cell_ids, is_empty, strict=True):
        wrapped = (longitude + 180) % 360 - 180 if not -180 <= longitude < 180 else longitude
        if longitude != wrapped and abs(wrapped) > 179.999:
            continue  # this wrapping rounds, the package's does not; test_sphere has the exact one
        south, west, north, east = np.concatenate([tree.bounds_deg, tree.empty_bounds_deg]).T
        _, _, last_latitude, last_longitude = tree.root_deg
        holds = (south <= latitude) & ((latitude < north) | (latitude == north) & (north == last_latitude))
        holds &= (west <= wrapped) & ((wrapped < east) | (wrapped == east) & (east == last_longitude))
        # Where all training points share a coordinate, boxes have no extent and the last one owns it.
        holding = np.flatnonzero(holds)
        assert len(holding) == 1 or root == "data"
        if root == "world":
            assert empty == (holding[0] >= tree.num_cells)
        if not empty:
            assert cell_id in holding
        elif len(holding):
            assert (holding >= tree.num_cells).any()


def nearest_by_brute_force(tree, latlon_deg):
    """Nearest box, then nearest representative point, then lowest id, over all pairs."""
    box_km = box_distance_km(latlon_deg[:, None], tree.bounds_deg)
    center_km = haversine_km(latlon_deg[:, None], tree.center_latlon_deg)
    center_km[box_km > box_km.min(axis=1, keepdims=True)] = np.inf
    return center_km.argmin(axis=1)


@pytest.mark.parametrize(("num_training", "num_queries"), [(400, 2_000), (20_000, 2_000), (20_000, 3)])
@pytest.mark.parametrize("root", ["world", "data"])
def test_a_hole_gets_the_nearest_cell_on_the_sphere(root, num_training, num_queries):
    rng = np.random.default_rng(17)
    training = photo_like_latlon_deg(num_training, seed=18)
    training = training[(np.abs(training[:, 0]) < 66) & (training[:, 1] < 150)]
    tree = build_quadtree(training, 4, 9, root)
    queries = rng.uniform([-90, -180], [90, 180], (num_queries, 2))
    queries[:3] = [[90, 12], [-90, 0], [0.5, -180]]
    cell_ids, is_empty = tree.assign(queries, return_is_empty=True)
    assert is_empty[:2].all()
    np.testing.assert_array_equal(cell_ids[is_empty], nearest_by_brute_force(tree, queries[is_empty]))


@given(st.lists(coordinates, min_size=1, max_size=30), st.lists(coordinates, min_size=1, max_size=30))
def test_a_hole_gets_the_nearest_cell_anywhere(training, queries):
    tree = build_quadtree(training, max_points_per_cell=1, max_depth=6)
    queries_deg = np.array(queries)
    queries_deg[:, 1] = (queries_deg[:, 1] + 180) % 360 - 180
    cell_ids, is_empty = tree.assign(queries_deg, return_is_empty=True)
    np.testing.assert_array_equal(cell_ids[is_empty], nearest_by_brute_force(tree, queries_deg[is_empty]))


def test_many_equal_points_in_a_hole():
    tree = build_quadtree(photo_like_latlon_deg(5_000, seed=19) * 0.5, 20, 8)
    queries = np.tile([[89.0, 170.0], [-89.0, -170.0]], (70_000, 1))
    cell_ids, is_empty = tree.assign(queries, return_is_empty=True)
    assert is_empty.all()
    np.testing.assert_array_equal(cell_ids[:2], nearest_by_brute_force(tree, queries[:2]))
    assert (cell_ids[::2] == cell_ids[0]).all()
    assert (cell_ids[1::2] == cell_ids[1]).all()


def test_the_hole_beyond_the_antimeridian_belongs_to_the_other_side():
    # In degrees of longitude the western cell is 355 away from this point, on the sphere it is next door.
    tree = build_quadtree([[10.0, -179.0], [10.0, 100.0]], max_points_per_cell=1, max_depth=6)
    cell_id, is_empty = tree.assign([10.0, 176.0], return_is_empty=True)
    assert is_empty
    assert tree.center_latlon_deg[cell_id, 1] == pytest.approx(-179.0)


def test_shapes():
    tree = build_quadtree(photo_like_latlon_deg(1_000, seed=20), 50, 5)
    assert tree.assign([10.0, 20.0]).shape == ()
    assert tree.assign(np.zeros((0, 2))).shape == (0,)
    batched, is_empty = tree.assign(np.zeros((3, 4, 2)), return_is_empty=True)
    assert batched.shape == is_empty.shape == (3, 4)
    float32 = np.array([[10.1, 20.3]], dtype=np.float32)
    assert tree.assign(float32) == tree.assign(float32.astype(np.float64))


def test_refuses_what_is_no_place():
    tree = build_quadtree([[1.0, 2.0]])
    with pytest.raises(InvalidCoordinateError, match="latitude of point 1"):
        tree.assign([[0.0, 0.0], [91.0, 0.0]])
    with pytest.raises(InvalidCoordinateError, match="longitude of point 0"):
        tree.assign([[0.0, np.nan]])
