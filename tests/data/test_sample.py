"""A table is checked as it is made, keeps its labels' quadtree, and survives a file."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from tiny import tiny_quadtree

from geoloc.data.sample import SampleTable
from geoloc.errors import BadImageError, BadTableError, ConfigError, FingerprintMismatchError, NotFoundError
from quadtree import InvalidCoordinateError


@pytest.fixture
def table(tmp_path: Path) -> SampleTable:
    (tmp_path / "a.bin").write_bytes(b"abcdef")
    columns = {
        "key": ["x", "y", "z"],
        "image_file": ["a.bin"] * 3,
        "image_offset": [0, 1, 4],
        "image_num_bytes": [1, 2, 3],
        "country": ["FR", None, "DE"],
        "heading_deg": [1.0, None, 3.0],
        "climate": [1, None, 3],
    }
    return SampleTable(tmp_path, columns, [[0, 190], [90, 0], [1, 2]])


def test_a_row_is_a_sample(table):
    x, y = table[0], table[-2]
    assert (x.key, x.latlon_deg, x.country, x.heading_deg) == ("x", (0.0, -170.0), "FR", 1.0)
    assert x.image.read() == b"a"
    assert (y.country, y.heading_deg, y.cell_id, y.city) == (None, None, None, None)
    assert y.image.read() == b"bc"
    assert np.isnan(y.targets["climate"])
    assert table.targets == ("climate",)
    with pytest.raises(IndexError):
        table[3]
    with pytest.raises(BadImageError, match="the tar ends inside of it"):
        table[2].image.read()


def test_columns(table):
    codes, names = table.codes("country")
    assert (codes.tolist(), names) == ([1, -1, 0], ["DE", "FR"])
    assert table.take([2, 2]).codes("country")[1] == ["DE"]
    np.testing.assert_array_equal(table.numbers("climate"), [1, np.nan, 3])
    with pytest.raises(ConfigError, match="no column 'region'; found country"):
        table.codes("region")
    with pytest.raises(ConfigError, match="no column 'soil'; found heading_deg, climate"):
        table.numbers("soil")


def test_labels_of_another_quadtree_are_refused(table):
    tree, other = tiny_quadtree(), tiny_quadtree(80)
    labelled = table.with_cells(tree)
    np.testing.assert_array_equal(labelled.cells_of(tree), tree.assign(table.latlon_deg))
    assert labelled[2].cell_id == tree.assign([1, 2])
    with pytest.raises(
        FingerprintMismatchError, match=f"{tree.fingerprint[:12]}.*{other.fingerprint[:12]}.*again"
    ):
        labelled.cells_of(other)
    assert labelled.with_cells(other).cells_of(other).tolist() == other.assign(table.latlon_deg).tolist()
    with pytest.raises(ConfigError, match="have no cells"):
        table.cells_of(tree)


def test_a_table_survives_a_file_and_a_process(table, tmp_path):
    labelled = table.with_cells(tiny_quadtree()).take([2, 0])
    labelled.write(tmp_path / "t.parquet")
    moved = tmp_path.with_name(tmp_path.name + "-moved")
    tmp_path.rename(moved)
    for copy in (SampleTable.read(moved / "t.parquet"), pickle.loads(pickle.dumps(labelled))):
        assert copy.fingerprint == labelled.fingerprint
        assert (copy[0].key, copy[1].country, copy[0].cell_id) == ("z", "FR", labelled[0].cell_id)
        np.testing.assert_array_equal(copy.latlon_deg, labelled.latlon_deg)
    assert SampleTable.read(moved / "t.parquet")[1].image.read() == b"a"


def test_an_empty_table(table):
    empty = table.take([])
    assert len(empty) == 0
    assert empty.codes("country")[1] == []


@pytest.mark.parametrize(
    ("columns", "complaint"),
    [
        ({"key": ["a"]}, "need the column 'image_file'"),
        ({"key": ["a"], "image_file": ["../b.jpg"]}, "'../b.jpg' leads out"),
        ({"key": ["a"], "image_file": ["/etc/b.jpg"]}, "'/etc/b.jpg' leads out"),
        ({"key": ["a"], "image_file": [None]}, "'image_file' of the samples is empty in 1 rows"),
        ({"key": ["a"], "image_file": ["b"], "image_offset": [1]}, "together, or neither"),
        ({"key": ["a"], "image_file": ["b"], "climate": ["wet"]}, "'climate' of the samples must be double"),
        ({"key": ["a"], "image_file": ["b"], "cell_id": [1]}, "fingerprint of its quadtree go together"),
        ({"key": ["a", "b"], "image_file": ["b", "b"]}, r"2 samples need locations of shape \(2, 2\)"),
    ],
)
def test_impossible_columns_are_refused(columns, complaint):
    with pytest.raises(ConfigError, match=complaint):
        SampleTable("root", columns, [[0, 0]])


def test_impossible_places_and_files_are_refused(tmp_path):
    with pytest.raises(InvalidCoordinateError, match="latitude of point 0"):
        SampleTable("root", {"key": ["a"], "image_file": ["b"]}, [[91, 0]])
    with pytest.raises(NotFoundError, match="no table of samples"):
        SampleTable.read(tmp_path / "x.parquet")
    (tmp_path / "x.parquet").write_bytes(b"nothing")
    with pytest.raises(BadTableError, match="is no Parquet file"):
        SampleTable.read(tmp_path / "x.parquet")


def test_tables_one_after_another(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.jpg").write_bytes(name.encode())
    first = SampleTable(
        tmp_path / "a", {"key": ["1"], "image_file": ["x.jpg"], "city": ["Lund"], "is_night": [1.0]}, [[1, 2]]
    )
    second = SampleTable(
        tmp_path / "b", {"key": ["2"], "image_file": ["x.jpg"], "heading_deg": [7.0]}, [[3, 4]]
    )
    both = SampleTable.joined([first.with_cells(tiny_quadtree()), second])
    assert [both[row].image.read() for row in (0, 1)] == [b"a", b"b"]
    assert both.latlon_deg.tolist() == [[1, 2], [3, 4]]
    assert [both[row].city for row in (0, 1)] == ["Lund", None]
    assert [both[row].heading_deg for row in (0, 1)] == [None, 7.0]
    assert np.isnan(both.numbers("is_night")[1])
    assert both.fingerprint is None
    assert len(SampleTable.joined([both, both])) == 4
