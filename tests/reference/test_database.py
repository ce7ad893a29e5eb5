"""The database against a plain list in memory, in any order of changes; its readers, locks and refusals."""

import itertools
import json
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geoloc.errors import (
    ConfigError,
    FingerprintMismatchError,
    IntegrityError,
    NotFoundError,
    OutputMismatchError,
)
from geoloc.files import save_manifest, verify_manifest
from geoloc.reference import opening, writing
from geoloc.reference.database import ReferenceDatabase
from geoloc.reference.rows import SOURCES, ReferenceRows
from geoloc.reference.segments import EMBEDDINGS_NAME, ROWS_NAME, Segment, VectorFormat
from quadtree.errors import QuadtreeError
from quadtree.morton import cell_bounds_deg, encode

MODEL, TREE = "a" * 64, "b" * 64
DIM = 4


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here cuts the power, and thousands of small writes need not wait for a disk."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


def create(folder: Path, dtype: str = "float32") -> ReferenceDatabase:
    return ReferenceDatabase.create(
        folder, dim=DIM, dtype=dtype, model_fingerprint=MODEL, quadtree_fingerprint=TREE
    )


def some_rows(num_rows: int, seed: int = 0, source: str = "aerial") -> tuple[ReferenceRows, np.ndarray]:
    rng = np.random.default_rng(seed)
    latlon_deg = np.stack([rng.uniform(-90, 90, num_rows), rng.uniform(-180, 180, num_rows)], axis=1)
    keys = [f"{seed}/{number}" for number in range(num_rows)]
    rows = ReferenceRows(latlon_deg, source=source, key=keys, provenance="survey", licence="CC0-1.0")
    return rows, rng.normal(size=(num_rows, DIM)).astype(np.float32)


def bytes_in(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# --- The model: a list of rows ----------------------------------------------------------------------------


@dataclass
class Row:
    row_id: int
    latitude: float
    longitude: float
    source: str
    key: str
    gsd_m_per_px: float | None
    heading_deg: float | None
    licence: str
    stored: bytes  # the vector and its scale as they must lie on the disk


@dataclass
class Model:
    """What the database should be, in the slowest way that cannot be wrong."""

    next_row_id: int = 0
    rows: list[Row] = field(default_factory=list)
    shards: dict[str, range] = field(default_factory=dict)


def rows_of(database: ReferenceDatabase) -> list[Row]:
    """All live rows by id, everything read back from the disk."""
    found = []
    for segment in database.segments:
        places = np.flatnonzero(~segment.deleted)
        assert segment.num_deleted == segment.num_rows - len(places)
        assert (np.diff(segment.morton.astype(np.int64)) >= 0).all()
        np.testing.assert_array_equal(segment.morton, encode(segment.latlon_deg))
        for place, told in zip(places, segment.rows(places).to_pylist(), strict=True):
            scale = b"" if segment.scales is None else segment.scales[place].tobytes()
            assert told["row_id"] == segment.row_id[place]
            assert [told["latitude"], told["longitude"]] == segment.latlon_deg[place].tolist()
            assert told["source"] == SOURCES[segment.source[place]]
            found.append(
                Row(
                    stored=segment.vectors[place].tobytes() + scale,
                    **{name: told[name] for name in Row.__dataclass_fields__ if name != "stored"},
                )
            )
    return sorted(found, key=lambda row: row.row_id)


special_latitudes = st.sampled_from([-90.0, -45.0, -0.0, 0.0, 22.5, 45.0, float(np.nextafter(90, 0)), 90.0])
special_longitudes = st.sampled_from(
    [-180.0, float(np.nextafter(-180, 0)), -90.0, 0.0, 90.0, float(np.nextafter(180, 0)), 180.0, 359.0]
)
places = st.tuples(
    st.one_of(special_latitudes, st.floats(-90, 90)), st.one_of(special_longitudes, st.floats(-180, 180))
)
maybe = st.one_of(st.none(), st.floats(0.1, 300))
references = st.lists(
    st.tuples(places, st.sampled_from(SOURCES), st.sampled_from("abcdef"), maybe, maybe), max_size=12
)
boxes = st.tuples(
    st.sampled_from([-90.0, -45.0, 0.0]),
    st.sampled_from([-180.0, -90.0, 0.0, 90.0]),
    st.sampled_from([22.5, 45.0, 90.0]),
    st.sampled_from([-135.0, -45.0, 45.0, 180.0]),
)
paths = st.lists(st.text("0123", max_size=4), max_size=3)
changes = st.one_of(
    st.tuples(st.just("append"), references, st.sampled_from([None, None, "s", "t"]), st.integers(1, 8)),
    st.tuples(st.just("delete ids"), st.lists(st.integers(0, 40), max_size=6)),
    st.tuples(st.just("delete keys"), st.lists(st.sampled_from("abcdefg"), max_size=2)),
    st.tuples(st.just("delete box"), boxes),
    st.tuples(st.just("delete paths"), paths),
    st.tuples(st.just("compact")),
    st.tuples(st.just("slice box"), boxes),
    st.tuples(st.just("slice paths"), paths),
    st.tuples(st.just("merge"), references),
    st.tuples(st.just("reopen")),
)


def is_in_box(row: Row, box: tuple[float, float, float, float]) -> bool:
    south, west, north, east = box
    turned = [row.longitude, row.longitude + 360]  # a box that crosses the antimeridian ends beyond 180
    is_between = any(west <= longitude < (east if west < east else east + 360) for longitude in turned)
    return south <= row.latitude and (row.latitude < north or north == 90) and is_between


def is_below(row: Row, cells: list[str]) -> bool:
    code = int(encode([row.latitude, row.longitude]))
    path = "".join(str(code >> 2 * (23 - level) & 3) for level in range(24))
    return any(path.startswith(cell) for cell in cells)


class Both:
    """A database and its model, changed together."""

    def __init__(self, folder: Path, dtype: str) -> None:
        self.folder, self.vector_format = folder, VectorFormat(DIM, dtype)
        self.database, self.model = create(folder / "0", dtype), Model()
        self.num_folders = 1

    def new_folder(self) -> Path:
        self.num_folders += 1
        return self.folder / str(self.num_folders)

    def make(self, given: list, first_row_id: int) -> tuple[ReferenceRows, np.ndarray, list[Row]]:
        vectors = np.random.default_rng(first_row_id).normal(size=(len(given), DIM)).astype(np.float32)
        rows = ReferenceRows(
            np.array([place for place, *_ in given]).reshape(-1, 2),
            source=[source for _, source, *_ in given],
            key=[key for _, _, key, *_ in given],
            gsd_m_per_px=[np.nan if gsd is None else gsd for *_, gsd, _ in given],
            heading_deg=[np.nan if heading is None else heading for *_, heading in given],
            licence=[key.upper() for _, _, key, *_ in given],
        )
        stored, scales = self.vector_format.encode(vectors)
        expected = [
            Row(
                row_id=first_row_id + i,
                latitude=latitude,
                longitude=longitude - 360 if longitude >= 180 else longitude,
                source=source,
                key=key,
                gsd_m_per_px=gsd,
                heading_deg=heading,
                licence=key.upper(),
                stored=stored[i].tobytes() + (scales[i].tobytes() if len(scales) else b""),
            )
            for i, ((latitude, longitude), source, key, gsd, heading) in enumerate(given)
        ]
        return rows, vectors, expected

    def append(self, given: list, shard: str | None, batch_size: int) -> None:
        rows, vectors, expected = self.make(given, self.model.next_row_id)
        if shard is not None and shard in self.model.shards:
            row_ids = self.database.append_batches(iter_must_not_start(), shard=shard)
            assert row_ids == self.model.shards[shard]
            return
        batches = [
            self.make(given[start : start + batch_size], self.model.next_row_id)[0]
            for start in range(0, len(given), batch_size)
        ]
        vectors_of = [vectors[start : start + batch_size] for start in range(0, len(given), batch_size)]
        small = 5 * (self.vector_format.bytes_per_row + 256)  # five rows a segment
        row_ids = self.database.append_batches(
            zip(batches, vectors_of, strict=True), shard=shard, sort_bytes=small
        )
        assert row_ids == range(self.model.next_row_id, self.model.next_row_id + len(given))
        assert len(rows) == len(given)
        self.model.next_row_id += len(given)
        self.model.rows += expected
        if shard is not None:
            self.model.shards[shard] = row_ids

    def delete(self, is_meant, **criterion) -> None:
        kept = [row for row in self.model.rows if not is_meant(row)]
        assert self.database.delete(**criterion) == len(self.model.rows) - len(kept)
        assert self.database.delete(**criterion) == 0
        self.model.rows = kept

    def slice(self, is_meant, **criterion) -> None:
        self.database = self.database.slice(self.new_folder(), **criterion)
        self.model.rows = [row for row in self.model.rows if is_meant(row)]
        self.model.shards = {}

    def merge(self, given: list) -> None:
        rows, vectors, expected = self.make(given, self.model.next_row_id)
        other = create(self.new_folder(), self.vector_format.dtype)
        other.append(rows, vectors)
        other.delete(row_ids=range(0, len(given), 3))
        self.database = self.database.merge(other, self.new_folder())
        self.model.rows += [row for i, row in enumerate(expected) if i % 3]
        self.model.next_row_id += len(given)
        self.model.shards = {}

    def apply(self, change: tuple) -> None:
        match change:
            case "append", given, shard, batch_size:
                self.append(given, shard, batch_size)
            case "delete ids", ids:
                ids = [number for number in ids if number < self.model.next_row_id]
                self.delete(lambda row: row.row_id in ids, row_ids=ids)
            case "delete keys", keys:
                self.delete(lambda row: row.key in keys, keys=keys)
            case "delete box", box:
                self.delete(lambda row: is_in_box(row, box), bounds_deg=box)
            case "delete paths", cells:
                self.delete(lambda row: is_below(row, cells), paths=cells)
            case ("compact",):
                self.database.compact()
                assert len(self.database.segments) <= 1
                assert not any(segment.num_deleted for segment in self.database.segments)
            case "slice box", box:
                self.slice(lambda row: is_in_box(row, box), bounds_deg=box)
            case "slice paths", cells:
                self.slice(lambda row: is_below(row, cells), paths=cells)
            case "merge", given:
                self.merge(given)
            case ("reopen",):
                self.database = ReferenceDatabase.open(self.database.folder)

    def check(self) -> None:
        assert rows_of(self.database) == self.model.rows
        assert len(self.database) == len(self.model.rows)
        assert self.database.shards == self.model.shards
        mixed = sorted(self.model.rows, key=lambda row: (row.row_id * 7 % 11, row.row_id))
        latlon_deg = np.array([[row.latitude, row.longitude] for row in mixed]).reshape(-1, 2)
        found = self.database.rows([row.row_id for row in mixed], latlon_deg, ["key", "row_id"])
        assert found.to_pylist() == [{"key": row.key, "row_id": row.row_id} for row in mixed]


def iter_must_not_start() -> Iterator[tuple[ReferenceRows, np.ndarray]]:
    raise AssertionError("a shard that is there already must not be read")
    yield


@given(st.lists(changes, max_size=8), st.sampled_from(["float32", "float16", "int8"]))
@settings(max_examples=40)
def test_any_order_of_changes_gives_what_a_list_gives(sequence: list, dtype: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        both = Both(Path(folder), dtype)
        for change in sequence:
            both.apply(change)
            both.check()
        both.database.verify()
        reopened = ReferenceDatabase.open(both.database.folder)
        reopened.verify()
        assert rows_of(reopened) == both.model.rows
        verify_manifest(both.database.folder)
        listed = {f"{name}" for name in verify_manifest(both.database.folder)["files"]}
        assert bytes_in(both.database.folder).keys() == listed | {"manifest.json", ".lock"}


# --- Create, open, fingerprints ---


def test_a_new_database_is_empty(tmp_path: Path) -> None:
    database = create(tmp_path / "deep" / "refs")
    database.verify()
    assert len(database) == 0
    assert database.segments == ()
    assert database.info() == {
        "folder": str(tmp_path / "deep" / "refs"),
        "version": 0,
        "dim": DIM,
        "dtype": "float32",
        "model_fingerprint": MODEL,
        "quadtree_fingerprint": TREE,
        "num_rows": 0,
        "num_deleted": 0,
        "num_segments": 0,
        "num_shards": 0,
        "num_bytes": 0,
        "rows_by_source": {},
        "rows_by_licence": {},
    }
    database.compact()
    assert database.delete(bounds_deg=(-90, -180, 90, 180)) == 0
    assert database.version == 0


def test_info_counts_what_is_there(tmp_path: Path) -> None:
    database = create(tmp_path / "refs", "int8")
    database.append(*some_rows(30), shard="tiles")
    database.append(*some_rows(5, seed=1, source="street"))
    database.append(ReferenceRows([[0, 0]], source="location", key=["gulf"]), np.ones((1, DIM)))
    database.delete(row_ids=[0, 1, 31])
    info = database.info()
    json.dumps(info)
    assert info["num_rows"] == len(database) == 33
    assert info["num_deleted"] == 3
    assert info["num_segments"] == 3
    assert info["num_shards"] == 1
    assert info["version"] == 4
    assert info["rows_by_source"] == {"aerial": 28, "street": 4, "location": 1}
    assert info["rows_by_licence"] == {"": 1, "CC0-1.0": 32}
    files = [path for path in (tmp_path / "refs").rglob("*.*") if path.suffix in (".parquet", ".safetensors")]
    assert info["num_bytes"] == sum(path.stat().st_size for path in files)
    assert repr(database).endswith("33 rows of 4 x int8, 3 segments, model aaaaaaaaaaaa…)")


def test_create_and_its_kin_take_no_folder_that_holds_something(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    database = create(tmp_path / "empty")
    with pytest.raises(OutputMismatchError, match="empty exists and is not empty: open the database that is"):
        create(tmp_path / "empty")
    (tmp_path / "file").touch()
    with pytest.raises(OutputMismatchError, match="file exists and is not empty"):
        create(tmp_path / "file")
    with pytest.raises(OutputMismatchError, match="choose another folder"):
        database.slice(tmp_path / "empty", paths=["0"])
    with pytest.raises(OutputMismatchError, match="choose another folder"):
        database.merge(database, tmp_path / "empty")


def test_create_refuses_what_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="dim must be a positive integer"):
        ReferenceDatabase.create(tmp_path / "refs", dim=0, model_fingerprint=MODEL)
    with pytest.raises(ConfigError, match="a fingerprint is a string of at least one character"):
        ReferenceDatabase.create(tmp_path / "refs", dim=1, model_fingerprint="")
    assert not (tmp_path / "refs").exists()


def test_open_needs_a_database(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"there is no reference database .*create it first"):
        ReferenceDatabase.open(tmp_path / "refs")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"x")
    with pytest.raises(NotFoundError, match=r"photos is not a reference database: check the path"):
        ReferenceDatabase.open(tmp_path / "photos")
    (tmp_path / "photos" / "segments").mkdir()
    with pytest.raises(IntegrityError, match=r"manifest\.json is missing"):
        ReferenceDatabase.open(tmp_path / "photos")


def test_fingerprints_are_checked_and_both_are_named(tmp_path: Path) -> None:
    create(tmp_path / "refs")
    ReferenceDatabase.open(tmp_path / "refs", model_fingerprint=MODEL, quadtree_fingerprint=TREE)
    with pytest.raises(
        FingerprintMismatchError, match="the model aaaaaaaaaaaa…, and cccccccccccc… was to use"
    ):
        ReferenceDatabase.open(tmp_path / "refs", model_fingerprint="c" * 64)
    with pytest.raises(FingerprintMismatchError, match="the quadtree bbbbbbbbbbbb…, and mine was to use it"):
        ReferenceDatabase.open(tmp_path / "refs", quadtree_fingerprint="mine")
    unbound = ReferenceDatabase.create(tmp_path / "unbound", dim=DIM, model_fingerprint=MODEL)
    unbound.check_fingerprints(model=MODEL, quadtree="any")
    with pytest.raises(FingerprintMismatchError, match=r"with the quadtree none, and .* with bbbbbbbbbbbb…"):
        unbound.merge(ReferenceDatabase.open(tmp_path / "refs"), tmp_path / "merged")
    other = ReferenceDatabase.create(
        tmp_path / "other", dim=DIM, dtype="int8", model_fingerprint=MODEL, quadtree_fingerprint=TREE
    )
    with pytest.raises(ConfigError, match=r"dtype='float32'.*dtype='int8'.*build one of them anew"):
        ReferenceDatabase.open(tmp_path / "refs").merge(other, tmp_path / "merged")


# --- Append ---


def test_compaction_gives_the_bytes_of_a_fresh_build(tmp_path: Path) -> None:
    grown, fresh = create(tmp_path / "grown", "int8"), create(tmp_path / "fresh", "int8")
    pieces = [some_rows(9000, seed=0), some_rows(10, seed=1), some_rows(2000, seed=2)]
    for rows, vectors in pieces:
        grown.append(rows, vectors)
    grown.compact()
    fresh.append_batches(pieces)
    assert [segment.name for segment in grown.segments] == ["0003"]
    assert [segment.name for segment in fresh.segments] == ["0000"]
    for name in (ROWS_NAME, EMBEDDINGS_NAME):
        one, other = tmp_path / "grown" / "segments" / "0003", tmp_path / "fresh" / "segments" / "0000"
        assert (one / name).read_bytes() == (other / name).read_bytes()


def test_a_stream_that_breaks_has_not_happened(tmp_path: Path) -> None:
    database = create(tmp_path / "refs")
    database.append(*some_rows(10))
    before = bytes_in(tmp_path / "refs")

    def broken() -> Iterator[tuple[ReferenceRows, np.ndarray]]:
        yield some_rows(10, seed=1)
        raise ConnectionError("the tile server is gone")

    with pytest.raises(ConnectionError):
        database.append_batches(broken(), shard="a", sort_bytes=1)  # one row a segment: ten were written
    assert bytes_in(tmp_path / "refs") == before
    assert database.append(*some_rows(3, seed=2)) == range(10, 13)


def test_memory_is_bounded_by_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One batch much larger than the limit is cut into segments, and no piece of it is larger than that."""
    database = create(tmp_path / "refs")
    sizes = []
    joined = writing._joined

    def note_size(pieces: list) -> object:
        sizes.append(sum(piece.rows.num_rows for piece in pieces))
        return joined(pieces)

    monkeypatch.setattr(writing, "_joined", note_size)
    database.append_batches([some_rows(1000), some_rows(7, seed=1)], sort_bytes=300 * (DIM * 4 + 256))
    assert sizes == [300, 300, 300, 107]
    assert [segment.num_rows for segment in database.segments] == sizes
    database.verify()


def test_an_empty_append_is_nothing_but_its_shard(tmp_path: Path) -> None:
    database = create(tmp_path / "refs")
    assert database.append_batches([]) == range(0)
    assert database.append_batches([some_rows(0)]) == range(0)
    assert database.version == 0
    database.append_batches([], shard="no photo there")
    assert database.append(*some_rows(2), shard="no photo there") == range(0)
    assert (database.version, len(database), database.shards) == (1, 0, {"no photo there": range(0)})


def test_append_takes_mapped_vectors_and_refuses_others(tmp_path: Path) -> None:
    database = create(tmp_path / "refs")
    rows, vectors = some_rows(20)
    np.save(tmp_path / "vectors.npy", vectors)
    database.append(rows, np.load(tmp_path / "vectors.npy", mmap_mode="r"))
    with pytest.raises(ConfigError, match=r"shape \(20, 3\), and 20 rows of this database need \(20, 4\)"):
        database.append(rows, vectors[:, :3])
    with pytest.raises(ConfigError, match=r"shape \(19, 4\), and 20 rows .*give one vector for each row"):
        database.append(rows, vectors[:19])
    vectors[3, 1] = np.nan
    with pytest.raises(ConfigError, match="not finite"):
        database.append(rows, vectors)
    assert len(database) == 20


# --- Delete, regions ---


def test_a_row_id_is_never_given_again(tmp_path: Path) -> None:
    database = create(tmp_path / "refs")
    database.append(*some_rows(5))
    database.delete(row_ids=range(5))
    database.compact()
    assert database.segments == ()
    assert database.append(*some_rows(2)) == range(5, 7)
    assert database.delete(row_ids=[0, 5]) == 1
    with pytest.raises(NotFoundError, match="there is no row 7: its ids are 0 to 6"):
        database.delete(row_ids=[6, 7])


@pytest.mark.parametrize(
    ("criterion", "complaint"),
    [
        ({}, "choose rows by exactly one of ids, keys, bounds and paths; found 0"),
        ({"keys": ["a"], "paths": ["0"]}, "found 2"),
        ({"keys": "abc"}, "keys is the single string 'abc'; give a list"),
        ({"paths": "012"}, "paths is the single string '012'; give a list"),
        ({"bounds_deg": (10, 0, 0, 10)}, r"south < north .*found \[10.0, 0.0, 0.0, 10.0\]"),
        ({"bounds_deg": (0, 0, 10, 181)}, r"two longitudes in \[-180, 180\]"),
        ({"bounds_deg": (0, 5, 10, 5)}, "bounds are south, west, north, east"),
        ({"bounds_deg": (0, 5, np.nan, 6)}, "bounds are south, west, north, east"),
    ],
)
def test_what_is_to_go_must_be_said_clearly(tmp_path: Path, criterion: dict, complaint: str) -> None:
    database = create(tmp_path / "refs")
    with pytest.raises(ConfigError, match=complaint):
        database.delete(**criterion)


def test_a_path_has_digits_of_the_quadtree(tmp_path: Path) -> None:
    with pytest.raises(QuadtreeError, match="a path has at most 24 digits 0-3; found '04'"):
        create(tmp_path / "refs").slice(tmp_path / "part", paths=["04"])


def test_boxes_that_tile_the_earth_share_no_row(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    corners = [[lat, lon] for lat in (-90, -45, 0, 45, 90) for lon in (-180, -90, 0, 90, 179.999, 180)]
    anywhere = np.stack([rng.uniform(-90, 90, 100), rng.uniform(-180, 180, 100)], axis=1)
    latlon_deg = np.concatenate([corners, anywhere])
    database = create(tmp_path / "refs")
    keys = [str(number) for number in range(len(latlon_deg))]
    database.append(ReferenceRows(latlon_deg, source="aerial", key=keys), np.ones((len(latlon_deg), DIM)))
    box_of_path = {f"{a}{b}": cell_bounds_deg([4 * a + b], 2)[0] for a in range(4) for b in range(4)}
    ids: list[int] = []
    for path, box in box_of_path.items():
        by_box = database.slice(tmp_path / f"box {path}", bounds_deg=box)
        by_path = database.slice(tmp_path / f"path {path}", paths=[path])
        assert rows_of(by_box) == rows_of(by_path)
        ids += [row.row_id for row in rows_of(by_box)]
    assert sorted(ids) == list(range(len(latlon_deg)))
    across = database.slice(tmp_path / "fiji", bounds_deg=(-90, 179.5, 90, -179.5))
    assert len(across) == sum(abs(longitude) >= 179.5 for _, longitude in latlon_deg)


def test_rows_that_are_not_there_are_not_found(tmp_path: Path) -> None:
    database = create(tmp_path / "refs")
    rows, vectors = some_rows(5)
    database.append(rows, vectors)
    assert database.rows([3, 3], rows.latlon_deg[[3, 3]])["key"].to_pylist() == ["0/3", "0/3"]
    with pytest.raises(
        NotFoundError, match="has no row 3 at that location: it was deleted, or the ids come from"
    ):
        database.rows([2, 3], rows.latlon_deg[[2, 2]])
    database.delete(row_ids=[4])
    with pytest.raises(NotFoundError, match="has no row 4"):
        database.rows([4], rows.latlon_deg[[4]])
    assert create(tmp_path / "empty").rows([], np.zeros((0, 2)), ["key"]).to_pydict() == {"key": []}


# --- Readers and writers ---


def test_a_reader_keeps_its_snapshot_until_it_asks(tmp_path: Path) -> None:
    writer = create(tmp_path / "refs")
    writer.append(*some_rows(100))
    writer.append(*some_rows(100, seed=1))
    writer.delete(row_ids=[7])
    reader = ReferenceDatabase.open(tmp_path / "refs")
    seen = rows_of(reader)
    writer.delete(row_ids=range(50))
    writer.append(*some_rows(10, seed=2))
    writer.compact()
    assert not (tmp_path / "refs" / "segments" / "0000").exists()
    assert rows_of(reader) == seen
    reader.verify()
    assert reader.refresh()
    assert rows_of(reader) == rows_of(writer)
    assert len(reader) == 160
    assert not reader.refresh()


def test_refreshing_maps_only_what_is_new(tmp_path: Path) -> None:
    writer = create(tmp_path / "refs")
    writer.append(*some_rows(10))
    reader = ReferenceDatabase.open(tmp_path / "refs")
    (old,) = reader.segments
    writer.append(*some_rows(10, seed=1))
    writer.delete(row_ids=[0])
    reader.refresh()
    assert reader.segments[0].vectors is old.vectors
    assert (old.num_deleted, reader.segments[0].num_deleted, len(reader)) == (0, 1, 19)


def test_compaction_into_segments_along_the_curve(tmp_path: Path) -> None:
    database = create(tmp_path / "refs")
    database.append(*some_rows(60))
    database.append(*some_rows(60, seed=1))
    twins = ReferenceRows(np.tile([[48.85, 2.35]], (30, 1)), source="street", key=["twin"] * 30)
    database.append(twins, np.ones((30, DIM)))
    database.delete(row_ids=range(20))
    before = {int(row): vector for s in database.segments for row, vector in live_vectors(s)}
    database.compact(segment_rows=20)
    assert {int(row): vector for s in database.segments for row, vector in live_vectors(s)} == before
    edges = [(int(s.morton[0]), int(s.morton[-1])) for s in database.segments]
    assert all(last < first for (_, last), (first, _) in itertools.pairwise(edges))
    assert all(s.num_rows <= 20 or len(np.unique(s.morton)) < s.num_rows for s in database.segments)
    assert len(database.segments) >= 5
    database.verify()
    version = database.version
    database.compact(segment_rows=20)
    assert database.version == version  # nothing was to be done
    database.compact()
    assert len(database.segments) == 1
    with pytest.raises(ConfigError, match="segment_rows is 0; a segment has at least one row"):
        database.compact(segment_rows=0)
    database.delete(row_ids=range(150))
    database.compact(segment_rows=20)
    assert (len(database), database.segments) == (0, ())


def live_vectors(segment: Segment) -> Iterator[tuple[int, bytes]]:
    for place in np.flatnonzero(~segment.deleted):
        yield int(segment.row_id[place]), segment.embeddings(slice(place, place + 1)).tobytes()


def test_opening_while_a_writer_compacts_takes_the_newer_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = create(tmp_path / "refs")
    writer.append(*some_rows(10))
    writer.append(*some_rows(10, seed=1))
    writer.delete(row_ids=[3])
    read_tombstones = opening.read_tombstones
    compactions = []

    def compact_first(*arguments: object) -> object:
        if not compactions:  # once, after the reader has read the manifest
            compactions.append(1)
            ReferenceDatabase.open(tmp_path / "refs").compact()
        return read_tombstones(*arguments)

    monkeypatch.setattr(opening, "read_tombstones", compact_first)
    reader = ReferenceDatabase.open(tmp_path / "refs")
    assert [segment.name for segment in reader.segments] == ["0002"]
    assert len(reader) == 19


def test_readers_see_whole_states_while_a_writer_works(tmp_path: Path) -> None:
    expected: dict[int, list[int]] = {0: []}
    writer = create(tmp_path / "refs")
    failures: list[BaseException] = []

    def write() -> None:
        try:
            alive: list[int] = []
            for step in range(60):
                # What a version holds is known before anyone can see it.
                after = list(alive)
                match step % 3:
                    case 0:
                        after += range(4 * step, 4 * step + 12)
                        expected[writer.version + 1] = after
                        writer.append(*some_rows(12, seed=step))
                    case 1:
                        after = [number for number in alive if number % 5]
                        expected[writer.version + 1] = after
                        writer.delete(row_ids=[number for number in alive if number % 5 == 0])
                    case 2:
                        expected[writer.version + 1] = after
                        writer.compact()
                alive = after
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=write)
    thread.start()
    versions = set()
    while thread.is_alive():
        reader = ReferenceDatabase.open(tmp_path / "refs")
        reader.verify()
        assert [row.row_id for row in rows_of(reader)] == expected[reader.version]
        versions.add(reader.version)
    thread.join()
    assert failures == []
    reader = ReferenceDatabase.open(tmp_path / "refs")
    assert [row.row_id for row in rows_of(reader)] == expected[reader.version]
    assert len(versions) >= 2


def test_a_second_writer_is_told_so_and_sees_the_first_ones_work(tmp_path: Path) -> None:
    first, second = create(tmp_path / "refs"), ReferenceDatabase.open(tmp_path / "refs")

    def batches() -> Iterator[tuple[ReferenceRows, np.ndarray]]:
        for change in (
            lambda: second.append(*some_rows(1)),
            lambda: second.delete(row_ids=[]),
            second.compact,
        ):
            with pytest.raises(
                OutputMismatchError, match=r"another process is writing to .*: wait for it, or"
            ):
                change()
        yield some_rows(5)

    assert first.append_batches(batches()) == range(5)
    assert second.append(*some_rows(5, seed=1)) == range(5, 10)
    assert len(second) == 10


def test_a_dead_writer_holds_no_lock(tmp_path: Path) -> None:
    """A process that is killed in the middle of an append leaves segments, and they are removed."""
    database = create(tmp_path / "refs")
    database.append(*some_rows(5))
    before = bytes_in(tmp_path / "refs")
    program = """
import os, signal, sys
from pathlib import Path
from tests.reference.test_database import ReferenceDatabase, some_rows
def batches():
    yield some_rows(20, seed=1)
    os.kill(os.getpid(), signal.SIGKILL)
ReferenceDatabase.open(Path(sys.argv[1])).append_batches(batches(), sort_bytes=1)
"""
    root = Path(__file__).parents[2]
    killed = subprocess.run([sys.executable, "-c", program, tmp_path / "refs"], cwd=root, check=False)
    assert killed.returncode == -9
    assert len(bytes_in(tmp_path / "refs")) > len(before)
    assert database.delete(row_ids=[]) == 0
    assert bytes_in(tmp_path / "refs") == before


def test_what_others_put_there_stays(tmp_path: Path) -> None:
    database = create(tmp_path / "refs")
    for name in ("notes.txt", "segments/notes.txt", "segments/0000.bak", "tombstones/old.safetensors"):
        (tmp_path / "refs" / name).write_text("mine")
    for name in ("segments/0000", "segments/.0001.0badcafe.new", "segments/12345"):
        (tmp_path / "refs" / name).mkdir()
    for name in (
        "segments/0000/rows.parquet",
        "tombstones/0007.safetensors",
        "tombstones/.0001.safetensors.tmp",
    ):
        (tmp_path / "refs" / name).write_text("half written")
    database.append(*some_rows(3))
    database.verify()
    assert bytes_in(tmp_path / "refs").keys() == {
        ".lock",
        "manifest.json",
        "notes.txt",
        "segments/0000.bak",
        "segments/0000/embeddings.safetensors",
        "segments/0000/rows.parquet",
        "segments/notes.txt",
        "tombstones/old.safetensors",
    }


def test_a_read_only_copy_opens(tmp_path: Path) -> None:
    database = create(tmp_path / "refs")
    database.append(*some_rows(3))
    shutil.copytree(
        tmp_path / "refs", tmp_path / "copy", ignore=shutil.ignore_patterns(".lock", "tombstones")
    )
    for path in sorted((tmp_path / "copy").rglob("*"), reverse=True):
        path.chmod(0o555 if path.is_dir() else 0o444)
    (tmp_path / "copy").chmod(0o555)
    copy = ReferenceDatabase.open(tmp_path / "copy")
    copy.verify()
    assert rows_of(copy) == rows_of(database)
    (tmp_path / "copy").chmod(0o755)  # a copy that lacks the empty folder and the lock takes changes, too
    copy.delete(row_ids=[0])
    assert len(ReferenceDatabase.open(tmp_path / "copy")) == 2


# --- Damage ---


@pytest.fixture
def refs(tmp_path: Path) -> Path:
    database = create(tmp_path / "refs", "int8")
    database.append(*some_rows(6), shard="a")
    database.append(*some_rows(6, seed=1))
    database.delete(row_ids=[1, 2, 8])
    return tmp_path / "refs"


def test_flipped_bits_are_found_by_verify(refs: Path) -> None:
    ReferenceDatabase.open(refs).verify()
    listed = [*verify_manifest(refs)["files"], "manifest.json"]
    assert len(listed) == 6
    for name in listed:
        with open(refs / name, "r+b", buffering=0) as file:
            data = file.read()
            # A third of the bytes; of the Parquet tables, whose footers are long, one in 23.
            for position in range(0, len(data), 23 if name.endswith(ROWS_NAME) else 3):
                file.seek(position)
                file.write(bytes([data[position] ^ 1 << position % 8]))
                with pytest.raises(IntegrityError, match=r"(manifest\.json|parquet|safetensors).*again"):
                    ReferenceDatabase.open(refs).verify()
                file.seek(position)
                file.write(data[position : position + 1])
    ReferenceDatabase.open(refs).verify()


@pytest.mark.parametrize("name", ["tombstones/0003.safetensors", "segments/0001/rows.parquet"])
def test_missing_and_cut_files_are_refused_at_once(refs: Path, name: str) -> None:
    data = (refs / name).read_bytes()
    (refs / name).write_bytes(data[:-1])
    with pytest.raises(IntegrityError, match=f"{name} has {len(data) - 1} bytes, but its manifest promises"):
        ReferenceDatabase.open(refs)
    (refs / name).unlink()
    with pytest.raises(IntegrityError, match=f"{name} is missing, but the manifest lists it"):
        ReferenceDatabase.open(refs)


def rewrite(refs: Path, **facts: object) -> None:
    """A manifest that agrees with its digest, as someone would write it who means harm."""
    manifest = json.loads((refs / "manifest.json").read_bytes()) | facts
    manifest.pop("digest")
    save_manifest(refs, manifest)


@pytest.mark.parametrize(
    ("facts", "complaint"),
    [
        ({"kind": "model"}, "is not a reference database: its manifest is of another kind"),
        ({"dim": "4"}, "dim must be a positive integer"),
        ({"dtype": "pickle"}, "dtype must be one of float32"),
        ({"model_fingerprint": None}, "a fingerprint is not a string"),
        ({"next_row_id": -1}, "a counter is not a whole number"),
        ({"shards": {"a": [0, 1, 2]}}, "too many values"),
        ({"shards": 7}, "'int' object"),
        ({"segments": {"../../etc": 6, "0001": 6}}, "segment '../../etc' with 6 rows"),
        ({"segments": {"0000": 6, "0001": 2**80}}, "segment '0001' with"),
        ({"segments": {"0000": 6}}, "1 deleted rows in segment '0001'"),
        (
            {"segments": {"0000": 6, "0001": 6, "0002": 6}},
            "is listed and not needed, or needed and not listed",
        ),
        ({"tombstones": {"0000": 7, "0001": 1}}, "7 deleted rows in segment '0000'"),
        ({"tombstones": {"0009": 1}}, "1 deleted rows in segment '0009'"),
        ({"tombstones": {}}, "'tombstones/0003.safetensors' is listed and not needed"),
        ({"segments": {"0000": 6, "0001": 5}}, "another size or header than the manifest implies"),
        ({"tombstones": {"0000": 1, "0001": 2}}, "another size or header than the manifest implies"),
        ({"dim": 5}, "another size or header than the manifest implies"),
    ],
)
def test_a_manifest_that_lies_is_refused(refs: Path, facts: dict, complaint: str) -> None:
    rewrite(refs)
    ReferenceDatabase.open(refs).verify()
    rewrite(refs, **facts)
    with pytest.raises(IntegrityError, match=complaint):
        ReferenceDatabase.open(refs)


def test_a_link_out_of_the_folder_is_refused(refs: Path, tmp_path: Path) -> None:
    path = refs / "segments" / "0000" / ROWS_NAME
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(IntegrityError, match="is a link that leads out of"):
        ReferenceDatabase.open(refs)


def test_verify_finds_ids_that_were_given_twice_or_never(refs: Path) -> None:
    rewrite(refs, next_row_id=11)
    with pytest.raises(IntegrityError, match="holds row id 11, which it never gave"):
        ReferenceDatabase.open(refs).verify()
    manifest = json.loads((refs / "manifest.json").read_bytes())
    shutil.rmtree(refs / "segments" / "0001")
    shutil.copytree(refs / "segments" / "0000", refs / "segments" / "0001")
    files = {name: manifest["files"][name.replace("/0001/", "/0000/")] for name in manifest["files"]}
    rewrite(refs, files=files)
    with pytest.raises(IntegrityError, match="holds row id 0 twice"):
        ReferenceDatabase.open(refs).verify()
