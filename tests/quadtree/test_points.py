import gzip

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from quadtree_references import photo_like_latlon_deg

from quadtree import (
    InvalidCoordinateError,
    InvalidPointTableError,
    build_quadtree,
    build_quadtree_from_batches,
)
from quadtree import points as points_module
from quadtree.points import PointTable


@pytest.fixture(scope="module")
def latlon_deg():
    return photo_like_latlon_deg(3_000, seed=50)


def write_csv(path, latlon_deg, header="id,longitude,note,latitude"):
    rows = [f'{row},{lon!r},"a, ""b""\nc",{lat!r}\n' for row, (lat, lon) in enumerate(latlon_deg.tolist())]
    text = (header + "\n" + "".join(rows)).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def write_parquet(path, latlon_deg, dtype=np.float64):
    columns = {"id": np.arange(len(latlon_deg)), "longitude": latlon_deg[:, 1].astype(dtype)}
    pq.write_table(
        pa.table({**columns, "latitude": latlon_deg[:, 0].astype(dtype)}), path, row_group_size=700
    )
    return path


@pytest.mark.parametrize("name", ["p.csv", "P.CSV", "p.csv.gz", "p.parquet"])
def test_reads_every_format_in_batches(tmp_path, monkeypatch, latlon_deg, name):
    monkeypatch.setattr(points_module, "_CSV_BLOCK_BYTES", 1 << 14)
    monkeypatch.setattr(points_module, "_PARQUET_BATCH_ROWS", 1_000)
    write = write_parquet if name.endswith("parquet") else write_csv
    table = PointTable(write(tmp_path / name, latlon_deg))
    batches = list(table)
    assert len(batches) > 1
    assert all(batch.dtype == np.float64 and batch.shape[1] == 2 for batch in batches)
    np.testing.assert_array_equal(np.concatenate(batches), latlon_deg)
    np.testing.assert_array_equal(np.concatenate(list(table)), latlon_deg)  # it starts afresh


@pytest.mark.parametrize("dtype", [np.float32, np.int64])
def test_numbers_of_other_types(tmp_path, latlon_deg, dtype):
    batches = list(PointTable(write_parquet(tmp_path / "p.parquet", latlon_deg, dtype)))
    np.testing.assert_array_equal(np.concatenate(batches), latlon_deg.astype(dtype).astype(np.float64))


def test_several_files_with_columns_of_other_names(tmp_path, latlon_deg):
    paths = [
        write_csv(tmp_path / f"{part}.csv", rows, "id,lng,note,lat")
        for part, rows in enumerate(np.split(latlon_deg, 3))
    ]
    table = PointTable(paths, latitude_column="lat", longitude_column="lng")
    np.testing.assert_array_equal(np.concatenate(list(table)), latlon_deg)


@pytest.mark.parametrize("root", ["world", "data"])
def test_builds_a_tree_from_files(tmp_path, latlon_deg, root):
    paths = [
        write_csv(tmp_path / "a.csv", latlon_deg[:1000]),
        write_parquet(tmp_path / "b.parquet", latlon_deg[1000:]),
    ]
    tree = build_quadtree_from_batches(PointTable(paths), 20, 13, root)
    whole = build_quadtree(latlon_deg, 20, 13, root)
    assert tree.paths == whole.paths
    assert tree.num_points.tolist() == whole.num_points.tolist()


def test_an_empty_field_is_an_invalid_coordinate_with_its_row(tmp_path):
    (tmp_path / "p.csv").write_text("latitude,longitude\n1,2\n3,4\n,6\n")
    with pytest.raises(InvalidCoordinateError, match=r"latitude of point 2 .*\(nan, 6.0\)"):
        build_quadtree_from_batches(PointTable(tmp_path / "p.csv"))
    pq.write_table(pa.table({"latitude": [1.0, 2.0], "longitude": [None, 2.0]}), tmp_path / "p.parquet")
    with pytest.raises(InvalidCoordinateError, match="longitude of point 0 "):
        build_quadtree_from_batches(PointTable(tmp_path / "p.parquet"))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "p.csv",
            "lat,longitude\n1,2\n",
            r"no column 'latitude'; its columns are \['lat', 'longitude'\]; set",
        ),
        ("p.csv", "a,b\n1,2\n", "no column 'latitude' and 'longitude'"),
        (
            "p.csv",
            "latitude,longitude\n1,east\n",
            "cannot be read as a table of points: .*east.* columns of numbers",
        ),
        ("p.csv", "", "cannot be read as a table of points: Empty CSV file"),
        (
            "p.parquet",
            "latitude,longitude\n1,2\n",
            "cannot be read as a table of points: Parquet magic bytes",
        ),
        ("p.xlsx", "latitude,longitude\n1,2\n", r"must end in \.parquet, \.csv or a compressed \.csv\.gz"),
    ],
)
def test_refuses(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(InvalidPointTableError, match=message):
        list(PointTable(tmp_path / name))


def test_refuses_text_in_parquet(tmp_path):
    pq.write_table(pa.table({"latitude": ["north"], "longitude": [2.0]}), tmp_path / "p.parquet")
    with pytest.raises(InvalidPointTableError, match="'latitude' and 'longitude' must be columns of numbers"):
        list(PointTable(tmp_path / "p.parquet"))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no table of points at .*nothing\.csv"):
        list(PointTable(tmp_path / "nothing.csv"))
