import json
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_np
from safetensors.numpy import load_file

from geoloc.errors import ConfigError, IntegrityError
from geoloc.reference.rows import SCHEMA, SOURCES, ReferenceRows
from geoloc.reference.segments import (
    BLOCK_ROWS,
    DTYPES,
    EMBEDDINGS_NAME,
    ROWS_NAME,
    Block,
    Part,
    Segment,
    VectorFormat,
    block_sizes,
    merged_blocks,
    open_segment,
    sorted_blocks,
    tensor_header,
    write_segment,
)
from quadtree import build_quadtree
from quadtree.morton import encode


def random_rows(num_rows: int, seed: int = 0) -> ReferenceRows:
    rng = np.random.default_rng(seed)
    latlon_deg = np.stack([rng.uniform(-90, 90, num_rows), rng.uniform(-180, 180, num_rows)], axis=1)
    latlon_deg[: num_rows // 10] = latlon_deg[0]  # many rows at one place
    return ReferenceRows(
        latlon_deg,
        source=[SOURCES[number] for number in rng.integers(0, 3, num_rows)],
        key=[f"key {number}" for number in range(num_rows)],
        heading_deg=np.where(rng.random(num_rows) < 0.5, np.nan, rng.uniform(0, 360, num_rows)),
    )


def pending(rows: ReferenceRows, vectors: np.ndarray, vector_format: VectorFormat, first: int = 0) -> Block:
    return Block(rows.to_table(0, len(rows), first_row_id=first), *vector_format.encode(vectors))


def make_segment(
    folder: Path, num_rows: int, vector_format: VectorFormat, seed: int = 0, first: int = 0
) -> tuple[Segment, ReferenceRows, np.ndarray]:
    folder.mkdir(parents=True)
    rows = random_rows(num_rows, seed)
    vectors = np.random.default_rng(seed).normal(size=(num_rows, vector_format.dim)).astype(np.float32)
    blocks = sorted_blocks(pending(rows, vectors, vector_format, first))
    write_segment(folder, vector_format, num_rows, blocks)
    return open_segment(folder, folder.name, vector_format, num_rows, None), rows, vectors


# --- Vectors ---


finite_rows = st_np.arrays(
    np.float32, st.tuples(st.integers(0, 5), st.just(7)), elements=st.floats(-(2.0**127), 2.0**127, width=32)
)


@given(finite_rows)
def test_int8_comes_back_within_half_a_scale(vectors: np.ndarray) -> None:
    vector_format = VectorFormat(7, "int8")
    stored, scales = vector_format.encode(vectors)
    assert stored.dtype == np.int8
    assert (np.abs(stored.astype(int)) <= 127).all()
    back = vector_format.decode(stored, scales)
    largest = np.abs(vectors.astype(np.float64)).max(axis=1, initial=0)
    bound = largest / 127 / 2 * (1 + 1e-5)
    bound[largest < 127 * 1.2e-38] = 127 * 1.2e-38  # below the normal numbers everything becomes zero
    assert (np.abs(back.astype(np.float64) - vectors).max(axis=1, initial=0) <= bound).all()


def test_int8_keeps_the_largest_value_and_zero() -> None:
    vector_format = VectorFormat(3, "int8")
    vectors = np.array([[0.5, -0.25, 0.0], [0, 0, 0], [-2, 1e-9, 1]], dtype=np.float32)
    stored, scales = vector_format.encode(vectors)
    assert stored.tolist() == [[127, -64, 0], [0, 0, 0], [-127, 0, 64]]  # 63.5 rounds to the even 64
    assert scales.tolist() == [np.float32(0.5) / np.float32(127), 0, np.float32(2) / np.float32(127)]


@given(finite_rows)
def test_float32_comes_back_as_it_was(vectors: np.ndarray) -> None:
    vector_format = VectorFormat(7, "float32")
    stored, scales = vector_format.encode(vectors.astype(np.float64))
    assert len(scales) == 0
    np.testing.assert_array_equal(vector_format.decode(stored, None), vectors)


def test_float16_rounds_as_numpy_does() -> None:
    vectors = np.random.default_rng(0).normal(size=(50, 8))
    vector_format = VectorFormat(8, "float16")
    stored, _ = vector_format.encode(vectors)
    np.testing.assert_array_equal(stored, vectors.astype(np.float32).astype(np.float16))
    np.testing.assert_array_equal(vector_format.decode(stored, None), stored.astype(np.float32))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e39])
def test_values_that_are_no_numbers_are_refused(dtype: str, bad: float) -> None:
    vectors = np.ones((3, 4))
    vectors[1, 2] = bad
    with pytest.raises(ConfigError, match=f"not finite, or too large for {dtype}: drop or repair"):
        VectorFormat(4, dtype).encode(vectors)


def test_float16_refuses_what_it_cannot_hold() -> None:
    with pytest.raises(ConfigError, match="too large for float16"):
        VectorFormat(1, "float16").encode([[70_000.0]])


def test_other_shapes_and_formats_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"shape \(2, 3\), and this database holds rows of 4 values"):
        VectorFormat(4, "int8").encode(np.zeros((2, 3)))
    with pytest.raises(ConfigError, match=r"dim must be a positive integer.*; found 0"):
        VectorFormat(0, "int8")
    with pytest.raises(ConfigError, match="dtype must be one of float32, float16, int8; found 'int4'"):
        VectorFormat(4, "int4")


# --- Files ---


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [1, 5, 64])
def test_a_segment_is_sorted_and_holds_what_went_in(tmp_path: Path, dtype: str, dim: int) -> None:
    vector_format = VectorFormat(dim, dtype)
    segment, rows, vectors = make_segment(tmp_path / "0000", 1000, vector_format, first=500)
    codes = encode(rows.latlon_deg)
    order = sorted(range(1000), key=lambda i: (codes[i], i))
    assert segment.num_rows == 1000
    np.testing.assert_array_equal(segment.row_id, 500 + np.array(order))
    np.testing.assert_array_equal(segment.morton, codes[order])
    np.testing.assert_array_equal(segment.latlon_deg, rows.latlon_deg[order])
    stored, scales = vector_format.encode(vectors[order])
    np.testing.assert_array_equal(segment.vectors, stored)
    assert (segment.scales is None) == (dtype != "int8")
    if segment.scales is not None:
        np.testing.assert_array_equal(segment.scales, scales)
    np.testing.assert_array_equal(
        segment.embeddings(slice(10, 20)), vector_format.decode(stored, segment.scales)[10:20]
    )
    table = segment.rows(np.arange(1000))
    assert table["key"].to_pylist() == [f"key {number}" for number in order]
    assert [SOURCES[number] for number in segment.source] == table["source"].to_pylist()
    for array in (segment.morton, segment.row_id, segment.latlon_deg, segment.vectors):
        assert array.flags.aligned
        assert not array.flags.writeable
    segment.check_contents()


@pytest.mark.parametrize("dtype", DTYPES)
def test_other_libraries_read_both_files(tmp_path: Path, dtype: str) -> None:
    segment, _, _ = make_segment(tmp_path / "0000", 137, VectorFormat(3, dtype))
    tensors = load_file(tmp_path / "0000" / EMBEDDINGS_NAME)
    expected = {"morton", "row_id", "latlon_deg", "vectors", "source"} | (
        {"scales"} if dtype == "int8" else set()
    )
    assert tensors.keys() == expected
    for name, tensor in tensors.items():
        ours = getattr(segment, name)
        assert tensor.dtype == ours.dtype
        np.testing.assert_array_equal(tensor, ours)
    table = pq.read_table(tmp_path / "0000" / ROWS_NAME)
    assert table.schema.equals(SCHEMA)
    np.testing.assert_array_equal(table["row_id"].to_numpy(), segment.row_id)


def test_the_header_is_padded_json_of_the_format() -> None:
    header = tensor_header({"a": (np.dtype(np.int8), (3,)), "b": (np.dtype(np.float16), (2, 5))})
    (length,) = struct.unpack("<Q", header[:8])
    assert len(header) == 8 + length
    assert len(header) % 64 == 0
    assert json.loads(header[8:]) == {
        "a": {"dtype": "I8", "shape": [3], "data_offsets": [0, 3]},
        "b": {"dtype": "F16", "shape": [2, 5], "data_offsets": [3, 23]},
    }


def test_rows_come_in_any_order_from_many_groups(tmp_path: Path) -> None:
    num_rows = 40 * BLOCK_ROWS + 17  # more groups than a segment remembers
    segment, _, _ = make_segment(tmp_path / "0000", num_rows, VectorFormat(1, "int8"))
    whole = pq.read_table(tmp_path / "0000" / ROWS_NAME)
    assert [whole.num_rows, sum(block_sizes(num_rows))] == [num_rows, num_rows]
    positions = np.random.default_rng(0).integers(0, num_rows, 200)
    assert segment.rows(positions).to_pylist() == whole.take(positions).to_pylist()
    columns = ["latitude", "key"]
    assert segment.rows(positions, columns).to_pylist() == whole.take(positions).select(columns).to_pylist()
    assert segment.rows([], columns).schema.names == columns
    assert segment.rows([]).schema.equals(SCHEMA)
    assert segment.rows([]).num_rows == 0
    found = pa.chunked_array([chunk for column in segment.column("key") for chunk in column.chunks])
    assert found.equals(pa.chunked_array(whole["key"].chunks))
    segment.check_contents()


def test_cells_of_every_level_are_slices(tmp_path: Path) -> None:
    segment, rows, _ = make_segment(tmp_path / "0000", 3000, VectorFormat(1, "int8"))
    tree = build_quadtree(rows.latlon_deg, max_points_per_cell=100, max_depth=6)
    cells = tree.assign(segment.latlon_deg)
    slices = segment.positions_of(tree.morton_ranges)
    assert slices.shape == (tree.num_cells, 2)
    for cell, (start, stop) in enumerate(slices):
        np.testing.assert_array_equal(np.flatnonzero(cells == cell), np.arange(start, stop))
    south, west, north, east = (-90.0, 0.0, 0.0, 180.0)  # the quadrant "1"
    ((start, stop),) = segment.positions_of([tree.morton_range("1")])
    latitude, longitude = segment.latlon_deg.T
    inside = (latitude >= south) & (latitude < north) & (longitude >= west) & (longitude < east)
    np.testing.assert_array_equal(np.flatnonzero(inside), np.arange(start, stop))


def test_opening_and_reading_a_few_rows_imports_no_pandas(tmp_path: Path) -> None:
    make_segment(tmp_path / "0000", 5000, VectorFormat(1, "int8"))
    program = """
import sys
from pathlib import Path
from geoloc.reference.segments import VectorFormat, open_segment
segment = open_segment(Path(sys.argv[1]), "0000", VectorFormat(1, "int8"), 5000, None)
assert segment.rows([4999, 0, 7], ["key"]).num_rows == 3
assert "torch" not in sys.modules
assert "pandas" not in sys.modules
"""
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", program, tmp_path / "0000"], cwd=root, check=True)


def test_merged_parts_are_what_one_sort_gives(tmp_path: Path) -> None:
    """The same bytes as if all rows had come at once, though the parts have other blocks."""
    vector_format = VectorFormat(4, "int8")
    sizes = [BLOCK_ROWS + 5, 300, 1]
    made, first = [], 0
    for number, size in enumerate(sizes):
        made.append(make_segment(tmp_path / f"{number:04d}", size, vector_format, seed=number, first=first))
        first += size
    parts = [Part(segment, np.arange(segment.num_rows)) for segment, _, _ in made]
    (tmp_path / "merged").mkdir()
    write_segment(tmp_path / "merged", vector_format, sum(sizes), merged_blocks(parts))

    tables = [rows.to_table(0, len(rows), first_row_id=0) for _, rows, _ in made]
    table = pa.concat_tables(tables).set_column(0, SCHEMA.field(0), pa.array(np.arange(sum(sizes))))
    vectors = np.concatenate([vectors for _, _, vectors in made])
    (tmp_path / "direct").mkdir()
    direct = Block(table, *vector_format.encode(vectors))
    write_segment(tmp_path / "direct", vector_format, sum(sizes), sorted_blocks(direct))
    for name in (ROWS_NAME, EMBEDDINGS_NAME):
        assert (tmp_path / "merged" / name).read_bytes() == (tmp_path / "direct" / name).read_bytes()


# --- Damage ---


@contextmanager
def flipped(path: Path, bit: int) -> Iterator[None]:
    """Flip one bit of a file in place for a while."""
    with open(path, "r+b", buffering=0) as file:
        file.seek(bit // 8)
        (byte,) = file.read(1)
        file.seek(bit // 8)
        file.write(bytes([byte ^ 1 << bit % 8]))
        yield
        file.seek(bit // 8)
        file.write(bytes([byte]))


def test_each_flipped_bit_of_a_header_is_noticed_at_once(tmp_path: Path) -> None:
    vector_format = VectorFormat(2, "int8")
    make_segment(tmp_path / "0000", 3, vector_format)
    path = tmp_path / "0000" / EMBEDDINGS_NAME
    (length,) = struct.unpack("<Q", path.read_bytes()[:8])
    for bit in range(8 * (8 + length)):
        with (
            flipped(path, bit),
            pytest.raises(IntegrityError, match="another size or header than the manifest implies"),
        ):
            open_segment(tmp_path / "0000", "0000", vector_format, 3, None)


def test_a_damaged_table_is_an_integrity_error_or_the_table_itself(tmp_path: Path) -> None:
    """Without checksums: whatever a flipped bit does to the Parquet reader, it is told in one way."""
    vector_format = VectorFormat(1, "int8")
    make_segment(tmp_path / "0000", 20, vector_format)
    path = tmp_path / "0000" / ROWS_NAME
    num_noticed = 0
    for bit in range(0, 8 * path.stat().st_size, 77):
        with flipped(path, bit):
            try:
                segment = open_segment(tmp_path / "0000", "0000", vector_format, 20, None)
                assert segment.rows([0, 19]).num_rows == 2
            except IntegrityError:
                num_noticed += 1
    assert num_noticed > 100


@pytest.mark.parametrize("name", [ROWS_NAME, EMBEDDINGS_NAME])
@pytest.mark.parametrize("damage", ["cut", "empty", "missing", "other"])
def test_damaged_files_are_refused(tmp_path: Path, name: str, damage: str) -> None:
    vector_format = VectorFormat(2, "float16")
    make_segment(tmp_path / "0000", 5, vector_format)
    make_segment(tmp_path / "0001", 6, vector_format)
    path = tmp_path / "0000" / name
    data = path.read_bytes()
    path.unlink()
    if damage != "missing":
        other = (tmp_path / "0001" / name).read_bytes()
        path.write_bytes({"cut": data[:-1], "empty": b"", "other": other}[damage])
    with pytest.raises(IntegrityError, match=f"{name} .*fetch or build the database again"):
        open_segment(tmp_path / "0000", "0000", vector_format, 5, None)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda block: block.rows.take([1, 0, 2]), "row 0 .* is not before the next one in Morton order"),
        (lambda block: block.rows.take([0, 0, 2]), "row 0 .* is not before the next one in Morton order"),
        (lambda block: with_column(block.rows, "morton", [1, 2, 3]), "row 0 .* Morton code of another place"),
        (lambda block: with_column(block.rows, "source", ["aerial", "drone", "street"]), "row 1 .* source"),
        (
            lambda block: with_column(block.rows, "latitude", [0.0, 0.0, 99.0]),
            "row 2 .* is no place on Earth",
        ),
        (lambda block: with_column(block.rows, "longitude", [0.0, 0.0, np.nan]), "row 2 .* differs between"),
    ],
)
def test_rows_that_checksums_cannot_question_are_checked(tmp_path: Path, change, complaint: str) -> None:
    vector_format = VectorFormat(2, "float32")
    rows = ReferenceRows([[-10.0, 5.0], [20.0, 5.0], [80.0, 5.0]], source="street", key=["a", "b", "c"])
    (good,) = sorted_blocks(pending(rows, np.eye(3)[:, :2], vector_format))
    write_segment(tmp_path, vector_format, 3, [Block(change(good), good.vectors, good.scales)])
    segment = open_segment(tmp_path, "0007", vector_format, 3, None)
    with pytest.raises(IntegrityError, match=f"{complaint}.*though its checksum is right"):
        segment.check_contents()


def with_column(rows: pa.Table, name: str, values: list) -> pa.Table:
    place = SCHEMA.get_field_index(name)
    return rows.set_column(place, SCHEMA.field(place), pa.array(values, SCHEMA.field(place).type))


@pytest.mark.parametrize("name", ["row_id", "morton", "latlon_deg", "source", "vectors"])
def test_columns_that_differ_between_the_files_are_found(tmp_path: Path, name: str) -> None:
    vector_format = VectorFormat(2, "float32")
    segment, _, _ = make_segment(tmp_path / "0000", 9, vector_format)
    path = tmp_path / "0000" / EMBEDDINGS_NAME
    wanted = getattr(segment, name)[4].tobytes()
    data = path.read_bytes()
    place = data.index(wanted if name != "source" else segment.source.tobytes()) + (
        4 if name == "source" else 0
    )
    changed = np.float32(np.nan).tobytes() if name == "vectors" else bytes([data[place] ^ 1])
    path.write_bytes(data[:place] + changed + data[place + len(changed) :])
    complaint = "a vector that is not finite" if name == "vectors" else "differs between its two files"
    with pytest.raises(IntegrityError, match=f"row 4 of segment 0000 .*{complaint}"):
        open_segment(tmp_path / "0000", "0000", vector_format, 9, None).check_contents()
