"""Search in cells, against brute force over the rows that `Quadtree.assign` puts into them."""

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import geoloc.search.cell_index as index_module
import geoloc.search.scan.boards as boards_module
from geoloc.errors import ConfigError
from geoloc.reference.database import ReferenceDatabase
from geoloc.reference.rows import SOURCES, ReferenceRows
from geoloc.search.candidates import Candidates
from geoloc.search.cell_index import CellIndex, with_border_neighbours
from geoloc.search.scan import Best, DeviceBoard, DeviceRows, Rows, scan, widen
from quadtree import Quadtree, build_quadtree
from quadtree.errors import InvalidCoordinateError
from quadtree.morton import encode
from quadtree.sphere import box_distance_km, validate_latlon_deg

DIM = 24
STRUCTURES = ("exact", "flat", "fp16", "sq8", "pq")
DTYPES = ("float32", "float16", "int8")

# Both sides of the antimeridian, both poles, the seam of all longitudes at a pole, and a crowded town.
ANCHORS = np.array(
    [
        [0, 180],
        [0, -180],
        [90, 0],
        [-90, 0],
        [89.9, 120],
        [-89.9, -120],
        [48.9, 2.3],
        [10, 179.9],
        [10, -179.9],
    ]
)


@dataclass(frozen=True)
class Arrays:
    """A segment in memory."""

    latlon_deg: NDArray[np.float64]
    source: NDArray[np.uint8]
    row_id: NDArray[np.int64]
    deleted: NDArray[np.bool_]
    vectors: NDArray[Any]
    scales: NDArray[np.float32] | None = None
    morton: NDArray[np.uint64] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "morton", encode(self.latlon_deg).astype(np.uint64))
        assert (self.morton[1:] >= self.morton[:-1]).all()


def unit(vectors: NDArray[np.float64]) -> NDArray[np.float32]:
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def segment_of(
    latlon_deg: NDArray[np.float64],
    rng: np.random.Generator,
    *,
    dtype: str = "float32",
    first_row_id: int = 0,
    deleted_share: float = 0.0,
    sources: tuple[int, ...] = (0, 1, 2),
    vectors: NDArray[np.float32] | None = None,
) -> Arrays:
    num = len(latlon_deg)
    order = np.argsort(encode(latlon_deg), kind="stable")
    values = unit(rng.standard_normal((num, DIM))) if vectors is None else vectors
    scales = None
    if dtype == "int8":
        scales = (np.abs(values).max(axis=1, initial=0) / 127).astype(np.float32)
        values = np.rint(values / scales[:, None])
    stored = values.astype(dtype)
    stored.flags.writeable = False  # as a memory map is
    return Arrays(
        latlon_deg=latlon_deg[order],
        source=rng.choice(sources, num).astype(np.uint8),
        row_id=first_row_id + rng.permutation(num),
        deleted=rng.random(num) < deleted_share,
        vectors=stored,
        scales=scales,
    )


def places(num: int, rng: np.random.Generator, share_anywhere: float = 0.2) -> NDArray[np.float64]:
    """Crowds around the anchors, and points anywhere, many of them in empty leaves of `TREE`."""
    near = ANCHORS[rng.integers(0, len(ANCHORS), num)] + rng.normal(0, 2, (num, 2))
    anywhere = np.stack([rng.uniform(-90, 90, num), rng.uniform(-180, 180, num)], axis=1)
    latlon = np.where(rng.random((num, 1)) < share_anywhere, anywhere, near)
    latlon[: len(ANCHORS)] = ANCHORS[:num]
    latlon[:, 0] = latlon[:, 0].clip(-90, 90)
    return validate_latlon_deg(latlon)


TREE = build_quadtree(places(3000, np.random.default_rng(0), 0.0), max_points_per_cell=100, max_depth=8)


def similarities(segment: Any, query: NDArray[np.float32]) -> NDArray[np.float32]:
    """The definition, (n, Q): each pair alone; and it is right."""
    wide = segment.vectors.astype(np.float32)
    scales = np.float32(1) if segment.scales is None else segment.scales[:, None]
    found = np.stack([np.vecdot(wide, one) for one in query] or [np.zeros(len(wide))], axis=1) * scales
    exact = wide.astype(np.float64) @ query.T.astype(np.float64) * scales
    np.testing.assert_allclose(found[:, : len(query)], exact, rtol=0, atol=5e-7)
    return found.astype(np.float32)


def brute_force(
    tree: Quadtree,
    segments: Sequence[Any],
    query: NDArray[np.float32],
    cells: list[Any] | None,
    k: int,
    sources: tuple[str, ...] = SOURCES,
) -> Candidates:
    """The definition: every row, its cell by `assign`, its similarity, a sort."""
    found = Candidates.nothing(len(query), k)
    rows = [
        (similarity, row_id, latlon, source, cell)
        for segment in segments
        for similarity, row_id, latlon, source, cell, deleted in zip(
            similarities(segment, query),
            segment.row_id.tolist(),
            segment.latlon_deg,
            segment.source.tolist(),
            tree.assign(segment.latlon_deg).tolist(),
            segment.deleted.tolist(),
            strict=True,
        )
        if not deleted and SOURCES[source] in sources
    ]
    for i in range(len(query)):
        wanted = None if cells is None else {int(cell) for cell in cells[i]}
        mine = [row for row in rows if wanted is None or row[4] in wanted]
        mine.sort(key=lambda row: (-row[0][i], row[1]))
        for rank, (similarity, row_id, latlon, source, _) in enumerate(mine[:k]):
            found.similarity[i, rank], found.row_id[i, rank] = similarity[i], row_id
            found.latlon_deg[i, rank], found.source[i, rank] = latlon, source
    return found


def assert_same(found: Candidates, expected: Candidates) -> None:
    for name in ("row_id", "similarity", "latlon_deg", "source"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
        assert getattr(found, name).dtype == getattr(expected, name).dtype


@st.composite
def searches(
    draw: st.DrawFn,
) -> tuple[list[Arrays], NDArray[np.float32], list[list[int]], int, tuple[str, ...]]:
    """Several segments of any type, some rows deleted, cells with and without rows, doubled ones too."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    dtype = draw(st.sampled_from(DTYPES))
    segments, first_row_id = [], 0
    for size in draw(st.lists(st.sampled_from([0, 1, 30, 400]), min_size=1, max_size=3)):
        deleted_share = draw(st.sampled_from([0.0, 0.3, 1.0]))
        kinds = draw(st.sampled_from([(0,), (1,), (0, 1), (0, 1, 2)]))
        latlon_deg = places(size, rng)
        segments.append(
            segment_of(
                latlon_deg,
                rng,
                dtype=dtype,
                first_row_id=first_row_id,
                deleted_share=deleted_share,
                sources=kinds,
            )
        )
        first_row_id += size
    num_queries = draw(st.sampled_from([0, 1, 2, 9, 20]))
    few = draw(st.integers(1, 40))  # cells that the queries share
    cells = [
        rng.choice(rng.permutation(TREE.num_cells)[:few], draw(st.integers(0, 12))).tolist()
        for _ in range(num_queries)
    ]
    sources = draw(st.sampled_from([SOURCES, ("aerial",), ("street",), ("street", "location")]))
    return (
        segments,
        unit(rng.standard_normal((num_queries, DIM))),
        cells,
        draw(st.sampled_from([1, 3, 500])),
        sources,
    )


@given(search=searches())
@settings(max_examples=60)
def test_exact_search_is_brute_force_over_those_cells(search) -> None:
    segments, query, cells, k, sources = search
    found = CellIndex(TREE, segments).search(query, cells, k, sources)
    assert_same(found, brute_force(TREE, segments, query, cells, k, sources))


@given(search=searches())
@settings(max_examples=25)
def test_flat_faiss_lists_are_brute_force_over_those_cells(search) -> None:
    segments, query, cells, k, sources = search
    found = CellIndex(TREE, segments, structure="flat").search(query, cells, k, sources)
    assert_same(found, brute_force(TREE, segments, query, cells, k, sources))


# A tree such as OSV-5M's: its root is the box of its points, and its leaves leave holes.
DATA_TREE = build_quadtree(
    np.random.default_rng(1).normal((20, 60), (15, 40), (3000, 2)).clip((-70, -170), (80, 175)),
    max_points_per_cell=60,
    max_depth=8,
    root="data",
)


@given(search=searches())
@settings(max_examples=40)
def test_cells_of_a_tree_with_holes_are_brute_force_over_those_cells(search) -> None:
    segments, query, cells, k, sources = search
    cells = [[cell % DATA_TREE.num_cells for cell in ids] for ids in cells]
    found = CellIndex(DATA_TREE, segments).search(query, cells, k, sources)
    assert_same(found, brute_force(DATA_TREE, segments, query, cells, k, sources))
    flat = CellIndex(DATA_TREE, segments, structure="flat").search(query, cells, k, sources)
    assert_same(flat, found)


def test_2000_choices_of_cells_of_a_tree_with_holes_are_brute_force() -> None:
    """Rows at the poles, at the antimeridian, outside the root and in holes of the tree included."""
    rng = np.random.default_rng(2)
    edges = [[90.0, 0.0], [-90.0, 10.0], [89.999, -180.0], [0.0, -180.0], [5.0, 179.9999], [-40.0, -179.9999]]
    latlon_deg = np.concatenate([places(1500, rng), edges])
    segment = segment_of(latlon_deg, rng)
    cell_of_row, is_outside = DATA_TREE.assign(segment.latlon_deg, return_is_empty=True)
    assert is_outside.sum() > 100
    cells = [rng.choice(cell_of_row, size).tolist() for size in rng.integers(1, 9, 2000)]
    query = unit(rng.standard_normal((2000, DIM)))
    found = CellIndex(DATA_TREE, [segment]).search(query, cells, 5)
    similarity = similarities(segment, query)
    for q, ids in enumerate(cells):
        rows = np.flatnonzero(np.isin(cell_of_row, ids) & ~segment.deleted)
        best = rows[np.lexsort((segment.row_id[rows], -similarity[rows, q]))][:5]
        assert found.row_id[q, : len(best)].tolist() == segment.row_id[best].tolist()
        assert (found.row_id[q, len(best) :] == -1).all()


def test_every_row_is_found_in_some_cell_of_any_tree() -> None:
    rng = np.random.default_rng(3)
    segment = segment_of(places(700, rng), rng)
    for tree in (TREE, DATA_TREE, build_quadtree([[10.0, 20.0]], root="data")):
        index = CellIndex(tree, [segment])
        assert index.num_rows_in(np.arange(tree.num_cells)).sum() == 700
        found = index.search(unit(rng.standard_normal((1, DIM))), [np.arange(tree.num_cells)], 700)
        assert set(found.row_id[0].tolist()) == set(segment.row_id.tolist())


@given(search=searches(), width=st.sampled_from([1, 7, 64]))
@settings(max_examples=25)
def test_batches_boards_and_single_queries_agree_to_the_last_bit(search, width: int) -> None:
    segments, query, cells, k, sources = search
    index = CellIndex(TREE, segments)
    together = index.search(query, cells, k, sources)
    for i in range(len(query)):
        alone = index.search(query[i : i + 1], cells[i : i + 1], k, sources)
        np.testing.assert_array_equal(alone.row_id[0], together.row_id[i])
        np.testing.assert_array_equal(alone.similarity[0], together.similarity[i])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(boards_module, "_BOARD_SCORES", width * max(1, len(query)))
        assert_same(index.search(query, cells, k, sources), together)
        patch.setattr(index_module, "_QUERIES_AT_ONCE", 3)
        assert_same(index.search(query, cells, k, sources), together)


@given(search=searches())
@settings(max_examples=25)
def test_the_whole_planet(search) -> None:
    segments, query, _, k, sources = search
    expected = brute_force(TREE, segments, query, None, k, sources)
    index = CellIndex(TREE, segments)
    assert_same(index.search_everywhere(query, k, sources), expected)
    everything = [range(TREE.num_cells)] * len(query)
    assert_same(index.search(query, everything, k, sources), expected)


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_structure_finds_all_when_k_exceeds_the_cells(structure: str, dtype: str) -> None:
    rng = np.random.default_rng(1)
    segments = [
        segment_of(places(900, rng), rng, dtype=dtype, deleted_share=0.2),
        segment_of(places(300, rng), rng, dtype=dtype, first_row_id=900),
    ]
    query = unit(rng.standard_normal((5, DIM)))
    cells = [rng.integers(0, TREE.num_cells, 6) for _ in query]
    index = CellIndex(TREE, segments, structure=structure)
    for sources in (SOURCES, ("aerial",), ("location", "street")):
        expected = brute_force(TREE, segments, query, cells, 1000, sources)
        assert_same(index.search(query, cells, 1000, sources), expected)
    assert_same(index.search_everywhere(query, 1200), brute_force(TREE, segments, query, None, 1200))


@pytest.mark.parametrize(("structure", "least"), [("fp16", 0.99), ("sq8", 0.99), ("pq", 0.9)])
def test_compressed_lists_with_rescoring_find_the_best(structure: str, least: float) -> None:
    rng = np.random.default_rng(2)
    segments = [segment_of(places(20_000, rng), rng)]
    query = unit(rng.standard_normal((50, DIM)))
    cells = [rng.integers(0, TREE.num_cells, 8) for _ in query]
    exact = CellIndex(TREE, segments).search(query, cells, 10)
    found = CellIndex(TREE, segments, structure=structure).search(query, cells, 10)
    assert recall(found, exact) >= least
    # What was found has its exact similarity.
    both = (found.row_id[:, :, None] == exact.row_id[:, None]).nonzero()
    np.testing.assert_array_equal(found.similarity[both[0], both[1]], exact.similarity[both[0], both[2]])


def recall(found: Candidates, exact: Candidates) -> float:
    hits = (exact.row_id[:, :, None] == found.row_id[:, None]).any(axis=2)
    return float(hits[exact.is_present].mean())


def test_int8_rows_find_what_float32_rows_find() -> None:
    # Rounding to 8 bits moves a similarity of random unit vectors by 0.7 % of its spread; among n rows it
    # then swaps one in 150 across the tenth place. Real embeddings spread wider.
    rng = np.random.default_rng(3)
    latlon_deg, vectors = places(5000, rng), unit(rng.standard_normal((5000, 512)))
    full, small = (
        segment_of(latlon_deg, np.random.default_rng(4), dtype=dtype, vectors=vectors)
        for dtype in ("float32", "int8")
    )
    query = unit(rng.standard_normal((1000, 512)))
    cells = [rng.integers(0, TREE.num_cells, 5) for _ in query]
    exact = CellIndex(TREE, [full]).search(query, cells, 10)
    found = CellIndex(TREE, [small]).search(query, cells, 10)
    assert exact.is_present.all()
    assert recall(found, exact) >= 0.99


def test_rows_in_empty_leaves_are_found_in_the_nearest_cell() -> None:
    rng = np.random.default_rng(5)
    latlon_deg = np.stack([rng.uniform(-90, 90, 2000), rng.uniform(-180, 180, 2000)], axis=1)
    segments = [segment_of(latlon_deg, rng)]
    cell, is_empty = TREE.assign(segments[0].latlon_deg, return_is_empty=True)
    assert is_empty.mean() > 0.2
    index = CellIndex(TREE, segments)
    np.testing.assert_array_equal(
        index.num_rows_in(range(TREE.num_cells)), np.bincount(cell, minlength=TREE.num_cells)
    )
    for row in np.flatnonzero(is_empty)[:50].tolist():
        found = index.search(segments[0].vectors[row : row + 1], [[cell[row]]], 1)
        assert found.row_id[0, 0] == segments[0].row_id[row]


@pytest.mark.parametrize("latlon_deg", ANCHORS.tolist())
def test_a_row_at_the_antimeridian_or_a_pole_is_found_in_its_cell(latlon_deg: list[float]) -> None:
    rng = np.random.default_rng(6)
    segments = [segment_of(places(2000, rng), rng)]
    here = np.flatnonzero((segments[0].latlon_deg == validate_latlon_deg(latlon_deg)).all(axis=1))
    assert len(here) == (2 if abs(latlon_deg[1]) == 180 else 1)
    index = CellIndex(TREE, segments)
    for row in here.tolist():
        found = index.search(segments[0].vectors[row : row + 1], [[TREE.assign(latlon_deg)]], 3)
        assert found.row_id[0, 0] == segments[0].row_id[row]


@pytest.mark.parametrize("structure", STRUCTURES)
def test_tombstones_hide_rows_even_where_they_would_fill_the_top(structure: str) -> None:
    rng = np.random.default_rng(7)
    segment = segment_of(places(600, rng), rng, sources=(0,))
    query = segment.vectors[100:101].copy()
    everything = [range(TREE.num_cells)]
    best = CellIndex(TREE, [segment]).search(query, everything, 300)
    segment = replace(segment, deleted=np.isin(segment.row_id, best.row_id[0, :290]))
    found = CellIndex(TREE, [segment], structure=structure).search(query, everything, 10)
    assert not np.isin(found.row_id, best.row_id[0, :290]).any()
    if structure in ("exact", "flat"):
        np.testing.assert_array_equal(found.row_id[0], best.row_id[0, 290:])


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_database_on_disk_is_searched_where_it_lies(dtype: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(14)
    database = ReferenceDatabase.create(tmp_path / "refs", dim=DIM, dtype=dtype, model_fingerprint="m")
    for source in ("aerial", "street"):
        rows = ReferenceRows(places(500, rng), source=source, key=[f"{source} {i}" for i in range(500)])
        database.append(rows, unit(rng.standard_normal((500, DIM))))
    query = unit(rng.standard_normal((8, DIM)))
    cells = [rng.integers(0, TREE.num_cells, 20) for _ in query]
    before = CellIndex(TREE, database.segments).search(query, cells, 10)
    assert_same(before, brute_force(TREE, database.segments, query, cells, 10))
    database.delete(row_ids=before.row_id[:, 0])
    for _ in range(2):
        after = CellIndex(TREE, database.segments).search(query, cells, 10)
        assert not np.isin(after.row_id, before.row_id[:, 0]).any()
        assert_same(after, brute_force(TREE, database.segments, query, cells, 10))
        database.compact()


@pytest.mark.parametrize("structure", ["exact", "flat"])
def test_equal_rows_come_by_row_id(structure: str) -> None:
    rng = np.random.default_rng(8)
    vectors = np.repeat(unit(rng.standard_normal((3, DIM))), 100, axis=0)
    segments = [
        segment_of(places(300, rng), rng, vectors=vectors),
        segment_of(places(300, rng), rng, vectors=vectors, first_row_id=300),
    ]
    query = np.concatenate([vectors[:1], unit(rng.standard_normal((8, DIM)))])
    cells = [range(TREE.num_cells)] * len(query)
    k = 200 if structure == "flat" else 37  # FAISS breaks ties at its own end of the list as it likes
    index = CellIndex(TREE, segments, structure=structure)
    assert_same(index.search(query, cells, k), brute_force(TREE, segments, query, cells, k))
    assert_same(index.search(query[:1], cells[:1], k), brute_force(TREE, segments, query[:1], cells[:1], k))


@pytest.mark.parametrize("structure", STRUCTURES)
def test_the_same_search_gives_the_same_result_in_any_thread(structure: str) -> None:
    rng = np.random.default_rng(9)
    segments = [segment_of(places(3000, rng), rng, deleted_share=0.1)]
    index = CellIndex(TREE, segments, structure=structure)
    batches = []
    for size in (1, 2, 5, 20):
        query = unit(rng.standard_normal((size, DIM)))
        batches.append((query, [rng.integers(0, TREE.num_cells, size) for _ in query], size))
    expected = [CellIndex(TREE, segments, structure=structure).search(*batch) for batch in batches]
    barrier = threading.Barrier(4)

    def work(worker: int) -> list[Candidates]:
        barrier.wait()
        return [index.search(*batches[(worker + turn) % 4]) for turn in range(20)]

    with ThreadPoolExecutor(4) as pool:
        for worker, results in enumerate(pool.map(work, range(4))):
            for turn, found in enumerate(results):
                assert_same(found, expected[(worker + turn) % 4])


@given(search=searches(), width=st.sampled_from([40, 1000]))
@settings(max_examples=25)
def test_a_torch_device_finds_the_same(search, width: int) -> None:
    segments, query, cells, k, sources = search
    segments = [segment for segment in segments if len(segment.row_id)]
    if not segments or len(query) == 0:
        return
    index = CellIndex(TREE, segments)
    rows = Rows(segments)
    view = index._view(frozenset(SOURCES.index(source) for source in sources))
    slices = [piece for piece in index._lists.grouped(cells)[0] if view.offered[piece.segment]]
    best = Best(rows, query, k)
    board = DeviceBoard(DeviceRows(rows, "cpu"), query, width)
    scan(board, best, slices, view.hidden, rows.first, len(query), k)
    assert_same(best.candidates(), index.search(query, cells, k, sources))


@pytest.mark.gpu
def test_a_cuda_device_finds_the_same() -> None:
    rng = np.random.default_rng(10)
    segments = [segment_of(places(3000, rng), rng, dtype=dtype, deleted_share=0.1) for dtype in DTYPES]
    query = unit(rng.standard_normal((30, DIM)))
    cells = [rng.integers(0, TREE.num_cells, 9) for _ in query]
    host, device = CellIndex(TREE, segments), CellIndex(TREE, segments, device="cuda")
    assert_same(device.search(query, cells, 20), host.search(query, cells, 20))
    assert_same(device.search(query[:1], cells[:1], 20), host.search(query[:1], cells[:1], 20))
    assert_same(device.search_everywhere(query, 20), host.search_everywhere(query, 20))


def test_every_float16_becomes_the_same_float32() -> None:
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    halves = halves[np.isfinite(halves)]
    wide = widen(halves, np.empty(1 << 16, dtype=np.float32))
    np.testing.assert_array_equal(wide.view(np.uint32), halves.astype(np.float32).view(np.uint32))


@pytest.mark.parametrize("structure", STRUCTURES)
def test_a_database_without_rows(structure: str) -> None:
    rng = np.random.default_rng(11)
    for segments in ([], [segment_of(np.zeros((0, 2)), rng)]):
        index = CellIndex(TREE, segments, structure=structure)
        query = unit(rng.standard_normal((2, DIM)))
        assert_same(index.search(query, [[0, 1], []], 3), Candidates.nothing(2, 3))
        assert_same(index.search_everywhere(query, 3), Candidates.nothing(2, 3))
        assert len(index.search(query[:0], [], 3)) == 0


@pytest.mark.parametrize("structure", STRUCTURES)
def test_a_database_of_one_row(structure: str) -> None:
    rng = np.random.default_rng(12)
    segments = [segment_of(np.array([[48.9, 2.3]]), rng)]
    cell = int(TREE.assign([48.9, 2.3]))
    found = CellIndex(TREE, segments, structure=structure).search(segments[0].vectors, [[cell, cell]], 2)
    assert found.row_id.tolist() == [[0, -1]]
    assert found.is_present.tolist() == [[True, False]]
    assert found.similarity[0, 0] == pytest.approx(1.0, abs=1e-6)
    assert found.similarity[0, 1] == -np.inf
    assert found.source[0, 1] == 255
    assert np.isnan(found.latlon_deg[0, 1]).all()


def test_what_cannot_be_searched_is_refused() -> None:
    rng = np.random.default_rng(13)
    segments = [segment_of(places(50, rng), rng)]
    index = CellIndex(TREE, segments)
    query = unit(rng.standard_normal((2, DIM)))
    with pytest.raises(ConfigError, match=r"shape \(Q, 24\).*found \(2, 23\)"):
        index.search(query[:, 1:], [[0], [1]], 1)
    with pytest.raises(ConfigError, match="2 queries but 1 sets of cells"):
        index.search(query, [[0]], 1)
    with pytest.raises(ConfigError, match=rf"must be in \[0, {TREE.num_cells}\); found -1 to 3"):
        index.search(query, [[3, -1], [1]], 1)
    with pytest.raises(ConfigError, match=f"found 0 to {TREE.num_cells}; are they of another quadtree"):
        index.search(query, [[0, TREE.num_cells], [1]], 1)
    with pytest.raises(ConfigError, match="k must be at least 1; found 0"):
        index.search(query, [[0], [1]], 0)
    with pytest.raises(ConfigError, match="not finite"):
        index.search(np.full((1, DIM), np.nan), [[0]], 1)
    with pytest.raises(ConfigError, match="aerial, street, location"):
        index.search(query, [[0], [1]], 1, ["satellite"])
    with pytest.raises(ConfigError, match="aerial, street, location"):
        index.search(query, [[0], [1]], 1, [])
    with pytest.raises(ConfigError, match="structure must be one of exact, flat"):
        CellIndex(TREE, segments, structure="lsh")
    with pytest.raises(ConfigError, match=r"vectors of one width; found \[8, 24\]"):
        CellIndex(TREE, [*segments, replace(segments[0], vectors=segments[0].vectors[:, :8])])


# Neighbours at a border


@given(
    latitude=st.floats(-90, 90),
    longitude=st.floats(-180, 180, exclude_max=True),
    reach_km=st.sampled_from([0.0, 10.0, 300.0, 3000.0]),
    seed=st.integers(0, 1000),
)
def test_border_neighbours_are_those_in_reach(
    latitude: float, longitude: float, reach_km: float, seed: int
) -> None:
    point = np.array([latitude, longitude])
    chosen = np.array([int(TREE.assign(point)), *np.random.default_rng(seed).integers(0, TREE.num_cells, 2)])
    found = with_border_neighbours(TREE, chosen, point, reach_km)
    assert found[:3].tolist() == chosen.tolist()
    touching = {cell for leaf in chosen.tolist() for cell in TREE.neighbours(leaf).tolist()} - set(
        chosen.tolist()
    )
    expected = {cell for cell in touching if box_distance_km(point, TREE.bounds_deg[cell]) <= reach_km}
    assert set(found[3:].tolist()) == expected
    assert len(found) == 3 + len(expected)
    distance_km = box_distance_km(point, TREE.bounds_deg[found[3:]])
    assert (np.diff(distance_km) >= 0).all()


def test_border_neighbours_across_the_antimeridian_and_a_pole() -> None:
    for here, there in (([10.0, 179.99], [10.0, -179.99]), ([89.99, 60.0], [89.99, -120.0])):
        cell, other = int(TREE.assign(here)), int(TREE.assign(there))
        assert cell != other
        assert other not in with_border_neighbours(TREE, [cell], here, 0.5)
        assert other in with_border_neighbours(TREE, [cell], here, 3.0)


def test_no_neighbours_without_cells_and_no_point_off_the_earth() -> None:
    assert with_border_neighbours(TREE, [], [0.0, 0.0], 1000.0).tolist() == []
    with pytest.raises(InvalidCoordinateError):
        with_border_neighbours(TREE, [0], [91.0, 0.0], 1.0)
