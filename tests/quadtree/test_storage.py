import json
import os
import struct

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from quadtree_references import osv5m_leaves, photo_like_latlon_deg

from quadtree import InvalidTreeError, Quadtree, build_quadtree

OSV5M_HEADER = "cluster_id,min_lat,min_lon,max_lat,max_lon,mean_lat,mean_lon\n"


@pytest.fixture(scope="module", params=["world", "data"])
def tree(request):
    return build_quadtree(photo_like_latlon_deg(2_000, seed=40), 40, 9, request.param)


@pytest.fixture
def path(tree, tmp_path):
    tree.write(tmp_path / "tree.parquet")
    return tmp_path / "tree.parquet"


def test_parquet_there_and_back(tree, path):
    back = Quadtree.read(path)
    assert back == tree
    assert back.root_deg == tree.root_deg
    assert back.paths == tree.paths
    np.testing.assert_array_equal(back.center_latlon_deg, tree.center_latlon_deg)
    np.testing.assert_array_equal(back.num_points, tree.num_points)
    assert os.listdir(path.parent) == ["tree.parquet"]


def test_unknown_counts_stay_unknown(tree, tmp_path):
    without = Quadtree(tree.morton_ranges[:, 0], tree.depths, tree.center_latlon_deg, None, tree.root_deg)
    without.write(tmp_path / "tree.parquet")
    assert Quadtree.read(tmp_path / "tree.parquet").num_points is None


def test_geoparquet_metadata(tree, path):
    """The keys that GeoParquet 1.1 requires, and the bounds of all polygons."""
    file = pq.read_table(path)
    geo = json.loads(file.schema.metadata[b"geo"])
    assert geo["version"] == "1.1.0"
    assert geo["primary_column"] == "geometry"
    column = geo["columns"]["geometry"]
    assert column["encoding"] == "WKB"
    assert column["geometry_types"] == ["Polygon"]
    assert column["orientation"] == "counterclockwise"
    south, west, north, east = tree.bounds_deg.T
    assert column["bbox"] == [west.min(), south.min(), east.max(), north.max()]
    assert file.schema.field("geometry").type == pa.binary()
    for side, values in {"xmin": west, "ymin": south, "xmax": east, "ymax": north}.items():
        assert column["covering"]["bbox"][side] == ["bbox", side]
        assert [box[side] for box in file["bbox"].to_pylist()] == values.tolist()


def test_polygons_are_well_known_binary(tree, path):
    polygons = pq.read_table(path)["geometry"].to_pylist()
    for polygon, (south, west, north, east) in zip(polygons, tree.bounds_deg.tolist(), strict=True):
        byte_order, kind, num_rings, num_points, *ring = struct.unpack("<BIII10d", polygon)
        assert (byte_order, kind, num_rings, num_points) == (1, 3, 1, 5)
        assert ring == [west, south, east, south, east, north, west, north, west, south]


def rewritten(path, change_table=lambda table: table, change_metadata=lambda own: own):
    """Change a written file the way a careless tool would."""
    table = pq.read_table(path)
    metadata = dict(table.schema.metadata)
    own = change_metadata(json.loads(metadata[b"quadtree"]))
    table = change_table(table).replace_schema_metadata({**metadata, b"quadtree": json.dumps(own).encode()})
    pq.write_table(table, path)


def with_value(name, row, value):
    def change(table):
        values = table[name].to_pylist()
        values[row] = value
        index = table.column_names.index(name)
        return table.set_column(index, name, pa.array(values, table.schema.field(name).type))

    return change


@pytest.mark.parametrize(
    ("change_table", "change_metadata", "message"),
    [
        (lambda t: t.slice(1), lambda m: m, "was changed after it was written: its cells have fingerprint"),
        (with_value("depth", 4, 3), lambda m: m, "boxes, depths and ids do not agree with its paths"),
        (with_value("cell_id", 4, 3), lambda m: m, "do not agree with its paths"),
        (with_value("path", 4, "03x"), lambda m: m, "no valid quadtree: a path has at most 24 digits"),
        (with_value("path", 4, None), lambda m: m, "holds no valid quadtree"),
        (with_value("latitude", 4, None), lambda m: m, "was changed after it was written"),
        (with_value("num_points", 4, 0), lambda m: m, "num_points must be at least 1"),
        (lambda t: t.drop_columns(["path"]), lambda m: m, r"no quadtree .*missing columns: \['path'\]"),
        (lambda t: t, lambda m: {**m, "fingerprint": "0" * 64}, "its metadata 00000000"),
        (lambda t: t, lambda m: {**m, "format_version": 2}, "format version 2, this package reads 1"),
        (lambda t: t, lambda m: {**m, "root_deg": [0, 0]}, "holds no valid quadtree"),
        (lambda t: t, lambda m: {"format_version": 1}, "holds no valid quadtree: 'root_deg'"),
        (lambda t: t, lambda m: "1", "format version '1'"),
    ],
)
def test_refuses_a_changed_file(path, change_table, change_metadata, message):
    rewritten(path, change_table, change_metadata)
    with pytest.raises(InvalidTreeError, match=message):
        Quadtree.read(path)


def test_refuses_a_small_change_of_a_representative_point(tree, path):
    latitude = float(np.nextafter(tree.center_latlon_deg[7, 0], tree.bounds_deg[7, 0]))
    rewritten(path, with_value("latitude", 7, latitude))
    with pytest.raises(InvalidTreeError, match="was changed after it was written"):
        Quadtree.read(path)


def test_refuses_what_is_no_quadtree_file(path, tmp_path):
    cut = tmp_path / "cut.parquet"
    cut.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InvalidTreeError, match="cannot be read as Parquet"):
        Quadtree.read(cut)
    pq.write_table(pa.table({"a": [1]}), tmp_path / "other.parquet")
    with pytest.raises(
        InvalidTreeError, match=r"'quadtree' is missing.*use a file written by Quadtree.write"
    ):
        Quadtree.read(tmp_path / "other.parquet")
    with pytest.raises(FileNotFoundError, match=r"no quadtree file at .*geoloc quadtree build"):
        Quadtree.read(tmp_path / "nothing.parquet")


def test_a_failed_write_leaves_the_old_file(tree, path, monkeypatch):
    before = path.read_bytes()

    def fail(table, where, **kwargs):
        where.write_bytes(b"half a file")
        raise OSError("disk full")

    monkeypatch.setattr(pq, "write_table", fail)
    with pytest.raises(OSError, match="disk full"):
        build_quadtree([[1.0, 2.0]]).write(path)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == ["tree.parquet"]


def osv5m_text(leaves):
    """The table as OSV-5M's script prints it: every float64 in the fewest digits that read back the same."""
    rows = [
        f"{cell_id},"
        + ",".join(repr(float(value)) for value in (*leaf.bounds_deg, *leaf.mean_latlon_deg))
        + "\n"
        for cell_id, leaf in enumerate(leaves)
    ]
    return OSV5M_HEADER + "".join(rows)


@pytest.mark.parametrize(("max_points_per_cell", "max_depth"), [(100, 10), (3, 24), (10**6, 10)])
def test_osv5m_csv_there_and_back(tmp_path, max_points_per_cell, max_depth):
    latlon_deg = photo_like_latlon_deg(5_000, seed=41)
    leaves = osv5m_leaves(latlon_deg, max_points_per_cell, max_depth)
    (tmp_path / "theirs.csv").write_text(osv5m_text(leaves))
    tree = Quadtree.read_osv5m_csv(tmp_path / "theirs.csv")
    assert tree.paths == tuple(leaf.path for leaf in leaves)
    np.testing.assert_array_equal(tree.bounds_deg, [leaf.bounds_deg for leaf in leaves])
    np.testing.assert_array_equal(tree.center_latlon_deg, [leaf.mean_latlon_deg for leaf in leaves])
    assert tree.num_points is None
    tree.write_osv5m_csv(tmp_path / "ours.csv")
    assert (tmp_path / "ours.csv").read_bytes() == (tmp_path / "theirs.csv").read_bytes()
    # Our builder makes the same classes, so labels carry over.
    ours = build_quadtree(latlon_deg, max_points_per_cell, max_depth, root="data")
    assert tree.paths == ours.paths
    assert tree.root_deg == ours.root_deg


@pytest.mark.parametrize("axis", [0, 1])
def test_osv5m_csv_of_points_on_one_line(tmp_path, axis):
    latlon_deg = photo_like_latlon_deg(300, seed=42)
    latlon_deg[:, axis] = 12.25
    (tmp_path / "line.csv").write_text(osv5m_text(osv5m_leaves(latlon_deg, 30, 8)))
    tree = Quadtree.read_osv5m_csv(tmp_path / "line.csv")
    assert tree.paths == build_quadtree(latlon_deg, 30, 8, root="data").paths


def test_osv5m_csv_with_fewer_digits(tmp_path):
    leaves = osv5m_leaves(photo_like_latlon_deg(2_000, seed=43), 50, 8)
    rows = [
        [str(cell_id)] + [f"{value:.10f}" for value in leaf.bounds_deg + leaf.mean_latlon_deg]
        for cell_id, leaf in enumerate(leaves)
    ]
    (tmp_path / "short.csv").write_text(OSV5M_HEADER + "".join(",".join(row) + "\n" for row in rows))
    assert Quadtree.read_osv5m_csv(tmp_path / "short.csv").paths == tuple(leaf.path for leaf in leaves)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,lat\n1,2\n", r"missing columns \['cluster_id', .*found \['id', 'lat'\]"),
        ("", "missing columns"),
        (OSV5M_HEADER, "cluster_id must count up from 0"),
        (OSV5M_HEADER + "1,0,0,1,1,0.5,0.5\n", r"cluster_id must count up from 0; found \[1\]"),
        (OSV5M_HEADER + "0,0,0,1,1,0.5\n", "line 2: .*every field must be a number"),
        (OSV5M_HEADER + "0,0,0,1,one,0.5,0.5\n", "line 2: .*'one'"),
        (
            OSV5M_HEADER + "0,0,0,1,1,0.5,0.5\n1,1,0,3,3,2,2\n",
            "box of cell 0.*not result from halving the root",
        ),
        (OSV5M_HEADER + "0,0,0,2,2,0.5,0.5\n1,0,0,1,1,0.5,0.5\n", "cells 0 and 1 overlap"),
        (OSV5M_HEADER + "0,0,0,1,1,nan,0.5\n", "cell 0 has a value that is not finite"),
        (OSV5M_HEADER + "0,0,0,inf,1,0.5,0.5\n", "cell 0 has a value that is not finite"),
    ],
)
def test_refuses_what_is_no_osv5m_table(tmp_path, text, message):
    (tmp_path / "table.csv").write_text(text)
    with pytest.raises(InvalidTreeError, match=message):
        Quadtree.read_osv5m_csv(tmp_path / "table.csv")


@pytest.mark.skipif("GEOLOC_OSV5M_QUADTREE" not in os.environ, reason="GEOLOC_OSV5M_QUADTREE names no file")
def test_the_published_osv5m_table(tmp_path):
    published = os.environ["GEOLOC_OSV5M_QUADTREE"]
    tree = Quadtree.read_osv5m_csv(published)
    assert tree.num_cells == 11_399
    assert np.bincount(tree.depths).tolist() == [0, 0, 2, 7, 37, 84, 291, 667, 1887, 4124, 4300]
    tree.write_osv5m_csv(tmp_path / "again.csv")
    with open(published, "rb") as theirs:
        assert (tmp_path / "again.csv").read_bytes() == theirs.read()
    tree.write(tmp_path / "tree.parquet")
    assert Quadtree.read(tmp_path / "tree.parquet") == tree


def test_geojson(tree):
    collection = json.loads(json.dumps(tree.to_geojson()))
    assert collection["type"] == "FeatureCollection"
    assert len(collection["features"]) == tree.num_cells
    feature = collection["features"][3]
    south, west, north, east = tree.bounds_deg[3].tolist()
    assert feature["bbox"] == [west, south, east, north]
    (ring,) = feature["geometry"]["coordinates"]
    assert ring == [[west, south], [east, south], [east, north], [west, north], [west, south]]
    assert feature["properties"] == {
        "cell_id": 3,
        "path": tree.paths[3],
        "depth": int(tree.depths[3]),
        "num_points": int(tree.num_points[3]),
        "latitude": tree.center_latlon_deg[3, 0],
        "longitude": tree.center_latlon_deg[3, 1],
    }
