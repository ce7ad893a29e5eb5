import hashlib
import json
import struct
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from quadtree_references import photo_like_latlon_deg

from quadtree import InvalidTreeError, Quadtree, QuadtreeError, box_distance_km, build_quadtree, morton


@pytest.fixture(scope="module", params=["world", "data"])
def tree(request):
    return build_quadtree(photo_like_latlon_deg(4_000, seed=30), 40, 9, request.param)


def test_sizes_and_types(tree):
    assert tree.num_cells == len(tree.paths) == len(set(tree.paths)) > 100
    assert tree.bounds_deg.shape == (tree.num_cells, 4)
    assert tree.center_latlon_deg.shape == (tree.num_cells, 2)
    assert tree.depths.dtype == tree.num_points.dtype == np.int64
    assert tree.depths.tolist() == [len(path) for path in tree.paths]
    assert tree.max_depth == 9
    assert tree.num_points.sum() == 4_000


def test_paths_name_the_quadrants(tree):
    south, west, north, east = tree.root_deg
    for path, bounds in zip(tree.paths, tree.bounds_deg, strict=True):
        box = [south, west, north, east]
        for digit in path:
            middle = [(box[0] + box[2]) / 2, (box[1] + box[3]) / 2]
            box[0 if digit in "23" else 2] = middle[0]
            box[1 if digit in "13" else 3] = middle[1]
        assert box == bounds.tolist()


def test_paths_are_in_depth_first_order(tree):
    assert list(tree.paths) == sorted(tree.paths)


def test_arrays_are_read_only(tree):
    for array in (tree.bounds_deg, tree.center_latlon_deg, tree.depths, tree.num_points, tree.morton_ranges):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


def test_prefix_groups_are_the_distinct_cut_paths(tree):
    for depth in range(12):
        cut = [path[:depth] for path in tree.paths]
        groups = {prefix: group for group, prefix in enumerate(dict.fromkeys(cut))}
        assert tree.prefix_ids(depth).tolist() == [groups[prefix] for prefix in cut]
    assert tree.prefix_ids(0).tolist() == [0] * tree.num_cells
    assert tree.prefix_ids(tree.max_depth).tolist() == list(range(tree.num_cells))
    with pytest.raises(QuadtreeError, match=r"depth must be in \[0, 24\]; found 25"):
        tree.prefix_ids(25)


def test_the_hierarchy_knows_every_box_once(tree):
    """Walk the tree from the root by `children`; what has none is a cell or an empty leaf."""
    pending, leaves = [""], []
    while pending:
        path = pending.pop()
        children = tree.children(path)
        assert children in ((), tuple(path + digit for digit in "0123"))
        expected = [cell_id for cell_id, cell in enumerate(tree.paths) if cell.startswith(path)]
        assert list(tree.cells_below(path)) == expected
        leaves += [] if children else [path]
        pending += children
    assert sorted(leaves) == sorted(tree.paths + tree.empty_paths)
    assert len(tree.empty_paths) > 10


def test_boxes_inside_of_a_leaf_are_no_part_of_the_tree(tree):
    for leaf in (tree.paths[5], tree.empty_paths[5]):
        assert len(tree.cells_below(leaf + "0")) == len(tree.cells_below(leaf + "3")) == 0
        assert tree.children(leaf) == ()
        with pytest.raises(QuadtreeError, match="lies inside a leaf"):
            tree.children(leaf + "0")


@pytest.mark.parametrize("path", ["4", "0a", "-1", "0" * 25, "0_1"])
def test_refuses_what_is_no_path(tree, path):
    with pytest.raises(QuadtreeError, match=f"at most 24 digits 0-3; found '{path}'"):
        tree.morton_range(path)


def test_sorted_codes_make_every_box_a_slice(tree):
    latlon_deg = photo_like_latlon_deg(3_000, seed=31)
    latlon_deg = latlon_deg[~tree.assign(latlon_deg, return_is_empty=True)[1]]
    codes = morton.encode(latlon_deg, root_deg=tree.root_deg)
    order = np.argsort(codes)
    cell_ids = tree.assign(latlon_deg[order])
    assert (np.diff(cell_ids) >= 0).all()
    for path in ["", "0", "3", tree.paths[50], tree.paths[50][:3], tree.empty_paths[3]]:
        first, stop = np.searchsorted(codes[order], tree.morton_range(path))
        below = tree.cells_below(path)
        assert set(range(first, stop)) == set(np.flatnonzero(np.isin(cell_ids, list(below))))
    np.testing.assert_array_equal(tree.morton_ranges, [tree.morton_range(path) for path in tree.paths])


def corners(bounds_deg):
    south, west, north, east = bounds_deg.T
    return np.stack([[south, west], [south, east], [north, west], [north, east]]).transpose(2, 0, 1)


@pytest.mark.parametrize("root", ["world", "data"])
def test_neighbours_are_the_boxes_that_touch_on_the_sphere(root):
    """Of two quadtree boxes that touch, one has a corner on the other; on the sphere that is distance 0."""
    rng = np.random.default_rng(32)
    latlon_deg = np.stack(
        [np.degrees(np.arcsin(rng.uniform(-1, 1, 4_000))), rng.uniform(-180, 180, 4_000)], axis=-1
    )
    tree = build_quadtree(latlon_deg[latlon_deg[:, 1] < 175] if root == "data" else latlon_deg, 30, 6, root)
    to_other_km = box_distance_km(corners(tree.bounds_deg)[:, :, None], tree.bounds_deg).min(axis=1)
    touches = np.minimum(to_other_km, to_other_km.T) < 1e-6
    np.fill_diagonal(touches, False)
    for cell_id in range(tree.num_cells):
        neighbours = tree.neighbours(cell_id)
        assert neighbours.dtype == np.int64
        assert neighbours.tolist() == np.flatnonzero(touches[cell_id]).tolist()


def test_neighbours_across_the_antimeridian_and_around_the_pole():
    centers = np.array(
        [(lat, lon) for lat in (-67.5, -22.5, 22.5, 67.5) for lon in (-135.0, -45.0, 45.0, 135.0)]
    )
    tree = build_quadtree(centers, max_points_per_cell=2, max_depth=2)
    assert tree.num_cells == 16
    cells = {tuple(center): int(tree.assign(center)) for center in centers.tolist()}
    north_pole = {cells[67.5, lon] for lon in (-135.0, -45.0, 45.0, 135.0)}
    assert set(tree.neighbours(cells[67.5, -135.0])) >= north_pole - {cells[67.5, -135.0]}
    beyond = {cells[lat, 135.0] for lat in (-22.5, 22.5, 67.5)}
    assert set(tree.neighbours(cells[22.5, -135.0])) >= beyond
    assert len(tree.neighbours(cells[22.5, -135.0])) == 8
    assert build_quadtree([[1.0, 2.0]]).neighbours(0).tolist() == []


@pytest.mark.parametrize("cell_id", [-1, 10_000_000])
def test_refuses_an_unknown_cell(tree, cell_id):
    with pytest.raises(QuadtreeError, match=rf"cell_id must be in \[0, {tree.num_cells}\); found {cell_id}"):
        tree.neighbours(cell_id)


@given(
    st.lists(st.tuples(st.floats(-90, 90), st.floats(-180, 179.9)), min_size=1, max_size=20),
    st.integers(0, 8),
)
def test_leaves_tile_the_earth(latlon_deg, max_depth):
    tree = build_quadtree(latlon_deg, 2, max_depth)
    south, west, north, east = np.concatenate([tree.bounds_deg, tree.empty_bounds_deg]).T
    assert ((north - south) * (east - west)).sum() == 180 * 360  # exact: all edges are dyadic
    assert not set(tree.paths) & set(tree.empty_paths)


def test_the_fingerprint_is_the_classes(tree):
    same = Quadtree(tree.morton_ranges[:, 0], tree.depths, tree.center_latlon_deg, None, tree.root_deg)
    assert same == tree
    assert hash(same) == hash(tree)
    centers = tree.center_latlon_deg.copy()
    centers[3, 0] = np.nextafter(centers[3, 0], tree.bounds_deg[3, 0])
    assert Quadtree(tree.morton_ranges[:, 0], tree.depths, centers, None, tree.root_deg) != tree
    assert tree != "a tree"


def test_the_fingerprint_never_changes():
    starts, depths = [1 * 4**23, 0b1100 * 4**22, 0b111000 * 4**21], [1, 2, 3]
    centers = [-34.0, 151.0, -0.0, 0.5, 48.0, 2.0]
    tree = Quadtree(np.array(starts), np.array(depths), np.reshape(centers, (3, 2)))
    assert tree.paths == ("1", "30", "320")
    table = struct.pack(
        "<4d3q3q6d", -90, -180, 90, 180, *starts, *depths, *[center + 0.0 for center in centers]
    )
    assert tree.fingerprint == hashlib.sha256(b"quadtree leaf table 1\n" + table).hexdigest()


def test_repr_is_one_informative_line(tree):
    assert f"{tree.num_cells} cells" in repr(tree)
    assert tree.fingerprint[:8] in repr(tree)
    assert "\n" not in repr(tree)


CODE = 4**23  # codes of a quarter of the root


@pytest.mark.parametrize(
    ("start_codes", "depths", "centers", "message"),
    [
        ([], [], np.zeros((0, 2)), "a tree of 0 cells needs at least one"),
        ([0], [1], [[1.0, 2.0, 3.0]], r"centers of shape \(1, 2\); found \(1,\) and \(1, 3\)"),
        ([0, CODE], [1], [[-45, -90]] * 2, r"depths of shape \(2,\)"),
        ([0], [25], [[-45, -90]], r"depths must be in \[0, 24\]; found up to 25"),
        ([1], [1], [[-45, -90]], "multiple of the number of codes"),
        ([4 * CODE], [1], [[-45, -90]], "multiple of the number of codes"),
        ([-CODE], [1], [[-45, -90]], "multiple of the number of codes"),
        ([0, 0], [0, 1], [[-45, -90]] * 2, "cells 0 and 1 overlap or are out of order"),
        ([CODE, 0], [1, 1], [[-45, 90], [-45, -90]], "cells 0 and 1 overlap or are out of order"),
        ([0], [1], [[45.0, -90.0]], r"point of cell 0, \[45.0, -90.0\], is outside its box \[-90.0"),
        ([0], [1], [[np.nan, -90.0]], "representative point of cell 0"),
    ],
)
def test_refuses_cells_that_form_no_tree(start_codes, depths, centers, message):
    with pytest.raises(InvalidTreeError, match=message):
        Quadtree(np.array(start_codes, dtype=np.int64), np.array(depths, dtype=np.int64), np.array(centers))


@pytest.mark.parametrize("root_deg", [(10, 0, -10, 5), (-91, 0, 0, 5), (0, 0, 5, 181), (0, np.nan, 5, 5)])
def test_refuses_a_root_that_is_no_box(root_deg):
    with pytest.raises(InvalidTreeError, match="the root box must be south <= north"):
        Quadtree(np.array([0]), np.array([0]), np.array([[1.0, 2.0]]), None, root_deg)


def test_refuses_cells_without_points():
    with pytest.raises(InvalidTreeError, match="num_points must be at least 1"):
        Quadtree(np.array([0]), np.array([0]), np.array([[1.0, 2.0]]), np.array([0]))


def test_importing_the_package_loads_numpy_alone():
    code = (
        "import json, sys, quadtree;"
        "heavy = {'pyarrow', 'pyproj', 'torch', 'pandas', 'geoloc'};"
        "print(json.dumps(sorted(heavy & set(sys.modules))))"
    )
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert json.loads(output) == []
