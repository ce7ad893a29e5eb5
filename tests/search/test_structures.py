"""FAISS's structures over a whole database, their cache on the disk, and the way to a GPU."""

import json
import threading
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
from test_cell_index import DIM, DTYPES, TREE, assert_same, brute_force, places, recall, segment_of, unit

import geoloc.search.structures.cache as cache_module
import geoloc.search.structures.everywhere as everywhere_module
from geoloc.errors import ConfigError
from geoloc.posterior.retrieve import Retriever
from geoloc.reference.database import ReferenceDatabase
from geoloc.reference.rows import SOURCES, ReferenceRows
from geoloc.search.candidates import Candidates
from geoloc.search.cell_index import CellIndex
from geoloc.search.structures import check_structure
from quadtree import build_quadtree

EARTH = build_quadtree([[0.0, 0.0]], max_points_per_cell=2)
WHOLE = ("hnsw", "ivfpq")


def clustered(num: int, rng: np.random.Generator, dim: int = DIM) -> np.ndarray:
    """Unit vectors around a hundred centres, as the photos of a hundred places are."""
    centers = unit(rng.standard_normal((100, dim)))
    return unit(centers[rng.integers(0, 100, num)] + 0.4 * rng.standard_normal((num, dim)) / np.sqrt(dim))


@pytest.mark.parametrize(("structure", "least"), [("hnsw", 0.99), ("ivfpq", 0.9)])
def test_recall_against_exact_search(structure: str, least: float) -> None:
    """Of the exact ten best, all were measured to be found; the bounds leave room for other processors."""
    rng = np.random.default_rng(0)
    vectors = clustered(8000, rng, 32)
    segment = segment_of(places(8000, rng), rng, vectors=vectors)
    query = clustered(200, rng, 32)
    exact = CellIndex(EARTH, [segment]).search_everywhere(query, 10)
    found = CellIndex(EARTH, [segment], structure=structure).search_everywhere(query, 10)
    assert recall(found, exact) >= least
    both = (found.row_id[:, :, None] == exact.row_id[:, None]).nonzero()
    np.testing.assert_array_equal(found.similarity[both[0], both[1]], exact.similarity[both[0], both[2]])


@pytest.mark.parametrize("structure", WHOLE)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_small_database_is_searched_as_by_brute_force(structure: str, dtype: str) -> None:
    """Several segments, deleted rows, and each choice of sources."""
    rng = np.random.default_rng(1)
    segments = [
        segment_of(places(200, rng), rng, dtype=dtype, deleted_share=0.3),
        segment_of(places(100, rng), rng, dtype=dtype, first_row_id=200),
    ]
    query = unit(rng.standard_normal((5, DIM)))
    index = CellIndex(TREE, segments, structure=structure)
    for sources in (SOURCES, ("aerial",), ("location", "street")):
        expected = brute_force(TREE, segments, query, None, 300, sources)
        assert_same(index.search_everywhere(query, 300, sources), expected)


@pytest.mark.parametrize("structure", WHOLE)
def test_databases_of_no_row_and_one_row(structure: str) -> None:
    rng = np.random.default_rng(2)
    query = unit(rng.standard_normal((2, DIM)))
    for segments in ([], [segment_of(np.zeros((0, 2)), rng)]):
        index = CellIndex(TREE, segments, structure=structure)
        assert_same(index.search_everywhere(query, 3), Candidates.nothing(2, 3))
    one = segment_of(np.array([[48.9, 2.3]]), rng, sources=(1,))
    index = CellIndex(TREE, [one], structure=structure)
    assert index.search_everywhere(query, 2).row_id.tolist() == [[0, -1], [0, -1]]
    assert_same(index.search_everywhere(query, 2, ["aerial"]), Candidates.nothing(2, 2))
    gone = CellIndex(TREE, [segment_of(np.array([[1.0, 2.0]]), rng, deleted_share=2.0)], structure=structure)
    assert_same(gone.search_everywhere(query, 2), Candidates.nothing(2, 2))


@pytest.mark.parametrize("structure", WHOLE)
def test_cells_are_not_searched(structure: str) -> None:
    rng = np.random.default_rng(3)
    index = CellIndex(TREE, [segment_of(places(50, rng), rng)], structure=structure)
    with pytest.raises(ConfigError, match="inside cells search exact, flat, fp16, sq8, pq"):
        index.search(unit(rng.standard_normal((1, DIM))), [[0]], 1)


def test_unknown_structures() -> None:
    with pytest.raises(
        ConfigError, match="must be one of exact, flat, fp16, sq8, pq, hnsw, ivfpq; found 'lsh'"
    ):
        check_structure("lsh")


# --- The cache --------------------------------------------------------------------------------------------


@pytest.fixture
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ReferenceDatabase:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    rng = np.random.default_rng(4)
    made = ReferenceDatabase.create(tmp_path / "refs", dim=DIM, model_fingerprint="m")
    for source in ("aerial", "street"):
        rows = ReferenceRows(places(300, rng), source=source, key=[f"{source} {i}" for i in range(300)])
        made.append(rows, unit(rng.standard_normal((300, DIM))))
    return made


def kept(tmp_path: Path, suffix: str = ".faiss") -> list[Path]:
    return sorted((tmp_path / "cache").rglob(f"*{suffix}"))


class Counter:
    """Counts the structures that are built."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.num = 0
        build = everywhere_module._built

        def counted(*args: Any) -> Any:
            self.num += 1
            return build(*args)

        monkeypatch.setattr(everywhere_module, "_built", counted)


@pytest.mark.parametrize("structure", WHOLE)
def test_a_second_opening_reads_what_the_first_has_built(
    structure: str, database: ReferenceDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = Counter(monkeypatch)
    query = unit(np.random.default_rng(5).standard_normal((4, DIM)))
    first = Retriever([database], None, structure=structure).everywhere([[query]], 10)[0]
    assert built.num == 2  # one a source
    assert len(kept(tmp_path)) == len(kept(tmp_path, ".json")) == 2
    assert not list(database.folder.rglob("*.faiss"))
    assert_same(Retriever([database], None, structure=structure).everywhere([[query]], 10)[0], first)
    assert built.num == 2
    database.delete(row_ids=[0])
    after = Retriever([database], None, structure=structure).everywhere([[query]], 600)[0]
    assert built.num == 4
    assert not (after.row_id == 0).any()
    assert len(kept(tmp_path)) == 2  # those of the earlier state are gone


@pytest.mark.parametrize(
    "damage", ["truncate", "flip", "no note", "bad note", "other faiss", "other state", "fewer rows"]
)
def test_what_cannot_be_trusted_is_built_again(
    damage: str, database: ReferenceDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = Counter(monkeypatch)
    query = unit(np.random.default_rng(6).standard_normal((4, DIM)))
    expected = Retriever([database], None, structure="hnsw").everywhere([[query]], 10)[0]
    assert built.num == 2
    for path in kept(tmp_path):
        note = path.with_suffix(".json")
        content = path.read_bytes()
        if damage == "truncate":
            path.write_bytes(content[:-100])
        elif damage == "flip":
            path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        elif damage == "no note":
            note.unlink()
        elif damage == "bad note":
            note.write_text("[" * 8000)
        elif damage == "other faiss":
            note.write_text(json.dumps(json.loads(note.read_text()) | {"faiss": "0.0"}))
        elif damage == "other state":
            note.write_text(json.dumps(json.loads(note.read_text()) | {"identity": "0" * 64}))
        else:  # a whole file of another database, with the digest that belongs to it
            other = faiss.IndexHNSWFlat(DIM, 8, faiss.METRIC_INNER_PRODUCT)
            other.add(query)
            faiss.write_index(other, str(path))
            facts = {"size": path.stat().st_size, "sha256": cache_module.sha256_of(path)}
            note.write_text(json.dumps(json.loads(note.read_text()) | facts))
    assert_same(Retriever([database], None, structure="hnsw").everywhere([[query]], 10)[0], expected)
    assert built.num == 4
    assert_same(Retriever([database], None, structure="hnsw").everywhere([[query]], 10)[0], expected)
    assert built.num == 4  # what was built again is whole


def test_bytes_whose_digest_is_wrong_never_reach_faiss(
    database: ReferenceDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Retriever([database], None, structure="hnsw")
    for path in kept(tmp_path):
        path.write_bytes(b"x" * path.stat().st_size)

    def never(*args: object) -> None:
        raise AssertionError("FAISS was given bytes of unknown origin")

    monkeypatch.setattr(faiss, "read_index", never)
    Retriever([database], None, structure="hnsw")


def test_a_folder_that_cannot_be_written(database: ReferenceDatabase, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file in the way")
    query = unit(np.random.default_rng(7).standard_normal((4, DIM)))
    found = Retriever([database], None, structure="hnsw").everywhere([[query]], 5)[0]
    assert found.row_id.shape == (4, 10)


def test_structures_of_other_databases_stay(database: ReferenceDatabase, tmp_path: Path) -> None:
    Retriever([database], None, structure="hnsw")
    Retriever([database], None, structure="ivfpq")
    assert len(kept(tmp_path)) == 4
    copy = ReferenceDatabase.create(tmp_path / "other", dim=DIM, model_fingerprint="m")
    rng = np.random.default_rng(8)
    copy.append(
        ReferenceRows(places(50, rng), source="street", key=[str(i) for i in range(50)]), clustered(50, rng)
    )
    Retriever([copy], None, structure="hnsw")
    assert len(kept(tmp_path)) == 5


def test_a_model_with_cells_refuses_them(database: ReferenceDatabase) -> None:
    with pytest.raises(
        ConfigError, match="structure='hnsw' searches the whole database, for models without cells"
    ):
        Retriever([database], TREE, structure="hnsw")


# --- GPUs -------------------------------------------------------------------------------------------------


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, str]]:
    """A FAISS that has a GPU, whose indexes are those of the CPU."""
    moved: list[tuple[int, str]] = []

    def to_gpu(resources: object, number: int, index: Any) -> Any:
        moved.append((number, type(index).__name__))
        return index

    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 2)
    monkeypatch.setattr(faiss, "StandardGpuResources", object, raising=False)
    monkeypatch.setattr(faiss, "index_cpu_to_gpu", to_gpu, raising=False)
    return moved


@pytest.mark.parametrize("structure", ["flat", "fp16", "sq8", "pq", "ivfpq", "hnsw"])
def test_structures_go_to_the_gpu(
    structure: str, stand_in: list[tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("geoloc.search.structures.lists.MAX_GPU_LISTS", 7)
    rng = np.random.default_rng(9)
    segments = [segment_of(places(500, rng), rng, sources=(0,))]
    query = unit(rng.standard_normal((6, DIM)))
    index = CellIndex(TREE, segments, structure=structure, device="cuda:1")
    assert [number for number, _ in stand_in] == ([] if structure == "hnsw" else [1])
    assert_same(index.search_everywhere(query, 500), brute_force(TREE, segments, query, None, 500))
    if structure not in WHOLE:
        cells = [rng.integers(0, TREE.num_cells, 30) for _ in query]
        assert_same(index.search(query, cells, 500), brute_force(TREE, segments, query, cells, 500))


def test_threads_take_turns_on_a_gpu(stand_in: list[tuple[int, str]]) -> None:
    rng = np.random.default_rng(10)
    segments = [segment_of(places(500, rng), rng)]
    index = CellIndex(TREE, segments, structure="flat", device="cuda")
    query = unit(rng.standard_normal((6, DIM)))
    expected = brute_force(TREE, segments, query, None, 20)
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(5):
                assert_same(index.search_everywhere(query, 20), expected)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_what_faiss_cannot_move_is_named(
    stand_in: list[tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*args: object) -> None:
        raise RuntimeError("Error in somewhere:\nthis code is not implemented")

    monkeypatch.setattr(faiss, "index_cpu_to_gpu", refuses)
    rng = np.random.default_rng(11)
    with pytest.raises(
        ConfigError, match=r"cannot put its IndexIVFFlat on cuda \(this code is not implemented\)"
    ):
        CellIndex(TREE, [segment_of(places(50, rng), rng)], structure="flat", device="cuda")


def test_without_a_gpu_they_stay_on_the_cpu() -> None:
    if faiss.get_num_gpus():
        pytest.skip("FAISS has a GPU")
    rng = np.random.default_rng(12)
    segments = [segment_of(places(300, rng), rng)]
    query = unit(rng.standard_normal((3, DIM)))
    index = CellIndex(TREE, segments, structure="flat", device="cuda")
    assert_same(index.search_everywhere(query, 300), brute_force(TREE, segments, query, None, 300))


@pytest.mark.gpu
@pytest.mark.parametrize("structure", ["flat", "fp16", "sq8", "ivfpq"])
def test_a_real_gpu_finds_the_same(structure: str) -> None:
    if not faiss.get_num_gpus():
        pytest.skip("FAISS is not built for GPUs")
    rng = np.random.default_rng(13)
    segments = [segment_of(places(3000, rng), rng, sources=(0,))]
    query = unit(rng.standard_normal((6, DIM)))
    index = CellIndex(TREE, segments, structure=structure, device="cuda")
    found, exact = index.search_everywhere(query, 10), CellIndex(TREE, segments).search_everywhere(query, 10)
    assert recall(found, exact) >= 0.9
