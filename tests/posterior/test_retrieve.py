"""Search as a model does it, against brute force over everything."""

import numpy as np
import pytest
from tiny import tiny_quadtree

from geoloc.errors import FingerprintMismatchError
from geoloc.posterior.evidence import CellEvidence
from geoloc.posterior.retrieve import Retriever, merge_views
from geoloc.reference.database import ReferenceDatabase
from geoloc.reference.rows import SOURCES, ReferenceRows
from geoloc.search.candidates import Candidates
from geoloc.search.cell_index import with_border_neighbours
from quadtree.sphere import latlon_to_unit, unit_to_latlon

TREE = tiny_quadtree()
DIM = 8


def unit_rows(rng, n, dim=DIM):
    vectors = rng.normal(size=(n, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A database of two sources all over the Earth, with what it was made of."""
    rng = np.random.default_rng(5)
    lat = np.degrees(np.arcsin(rng.uniform(-1, 1, 600)))
    latlon = np.stack([lat, rng.uniform(-180, 180, 600)], -1)
    latlon[:6] = [[90, 0], [-90, 17], [10, -180], [10, 179.999], [-45, -180], [0, 0]]
    source = np.where(rng.random(600) < 0.7, "aerial", "street")
    vectors = unit_rows(rng, 600)
    database = ReferenceDatabase.create(
        tmp_path_factory.mktemp("db") / "refs",
        dim=DIM,
        model_fingerprint="m",
        quadtree_fingerprint=TREE.fingerprint,
    )
    rows = ReferenceRows(latlon, source=list(source), key=[f"r{i}" for i in range(600)])
    database.append(rows, vectors)
    return database, latlon, source, vectors


def cells_of(rng, num_queries, most=4):
    probs = rng.dirichlet(np.full(TREE.num_cells, 0.5), num_queries)
    chosen = [np.argsort(-row)[: rng.integers(1, most + 1)] for row in probs]
    units = [latlon_to_unit(TREE.center_latlon_deg[ids]) for ids in chosen]
    return CellEvidence.padded(chosen, units, probs, np.full(TREE.num_cells, 50.0)), probs


def test_candidates_are_those_of_brute_force_over_the_chosen_cells_and_near_neighbours(world):
    database, latlon, source, vectors = world
    retriever = Retriever([database], TREE)
    assert retriever.sources == ((0, "aerial"), (0, "street"))
    rng = np.random.default_rng(1)
    queries, k = unit_rows(rng, 12), 7
    cells, probs = cells_of(rng, 12)
    evidence = retriever.evidence([[queries]], cells, probs, k)
    owner = TREE.assign(latlon)
    similarity = queries @ vectors.T
    for q in range(12):
        ids = cells.cell_id[q][cells.cell_id[q] >= 0]
        asked = with_border_neighbours(TREE, ids, unit_to_latlon(cells.unit[q, 0]), 50.0)
        expected = []
        for name in ("aerial", "street"):
            rows = np.flatnonzero(np.isin(owner, asked) & (source == name))
            expected += rows[np.argsort(-similarity[q, rows], kind="stable")][:k].tolist()
        found = evidence.row_id[q][evidence.present[q]]
        assert sorted(found.tolist()) == sorted(expected)
        assert evidence.similarity[q][evidence.present[q]] == pytest.approx(similarity[q, found], abs=1e-6)
        assert evidence.cell_log_prob[q][evidence.present[q]] == pytest.approx(
            np.log(probs[q, owner[found]] + 1e-9)
        )
        assert unit_to_latlon(evidence.unit[q][evidence.present[q]]) == pytest.approx(
            unit_to_latlon(latlon_to_unit(latlon[found])), abs=1e-9
        )
        names = [SOURCES[code] for code in evidence.source[q][evidence.present[q]]]
        assert names == source[found].tolist()


def test_everywhere_is_brute_force_over_the_planet(world):
    database, _, source, vectors = world
    queries = unit_rows(np.random.default_rng(2), 5)
    found, owner = Retriever([database], TREE).everywhere([[queries]], 9)
    assert not owner.any()
    similarity = queries @ vectors.T
    for q in range(5):
        expected = []
        for name in ("aerial", "street"):
            rows = np.flatnonzero(source == name)
            expected += rows[np.argsort(-similarity[q, rows])][:9].tolist()
        assert found.row_id[q].tolist() == expected


def test_keys_are_looked_up_by_row_and_place(world):
    database, latlon, _, _ = world
    keys = Retriever([database], TREE).keys(np.array([5, 0, 77]), latlon[[5, 0, 77]], np.zeros(3, np.int64))
    assert keys == [("r5", "refs"), ("r0", "refs"), ("r77", "refs")]


def test_a_database_of_another_quadtree_is_refused(world):
    with pytest.raises(FingerprintMismatchError, match="quadtree"):
        Retriever([world[0]], tiny_quadtree(num_points=90))


def one(rows, similarity, k=4):
    """Candidates of one query, padded."""
    found = Candidates.nothing(1, k)
    found.row_id[0, : len(rows)] = rows
    found.similarity[0, : len(rows)] = similarity
    found.latlon_deg[0, : len(rows)] = [[row, row] for row in rows]
    found.source[0, : len(rows)] = 0
    return found


def test_nearest_keeps_each_reference_once_with_its_best_similarity():
    merged = merge_views([one([3, 1], [0.9, 0.5]), one([1, 3, 8], [0.95, 0.2, 0.1])], 3, "nearest")
    assert merged.row_id[0].tolist() == [1, 3, 8]
    assert merged.similarity[0] == pytest.approx([0.95, 0.9, 0.1])
    assert merged.latlon_deg[0].tolist() == [[1, 1], [3, 3], [8, 8]]


def test_votes_worked_by_hand():
    # Row 1 is in the best 1 of one view, the best 5 and 10 of both: 0.01 (1 / 1 + 2 / 5 + 2 / 10).
    # Row 3: best 1 once, best 5 and 10 twice: the same. Row 8: best 5 and 10 once: 0.01 (1 / 5 + 1 / 10).
    merged = merge_views([one([3, 1], [0.5, 0.5]), one([1, 3, 8], [0.51, 0.2, 0.1])], 4, "vote")
    assert merged.row_id[0].tolist() == [1, 3, 8, -1]
    assert merged.similarity[0, :3] == pytest.approx([0.51 + 0.016, 0.5 + 0.016, 0.1 + 0.003])
