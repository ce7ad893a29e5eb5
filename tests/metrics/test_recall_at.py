"""Recall by hand and by brute force; ties and queries without a positive."""

import numpy as np
import pytest

from geoloc.errors import ConfigError
from geoloc.metrics.recall import positive_ranks, retrieval_recall


def test_by_hand():
    database = np.eye(3, dtype=np.float32)
    queries = np.array([[1, 0, 0], [0.6, 0.8, 0], [0, 0, 1]], np.float32)
    positives = [np.array([0]), np.array([0]), np.array([], np.int64)]
    found = retrieval_recall(queries, database, positives, (1, 2))
    assert found == {"recall_at_1": 0.5, "recall_at_2": 1.0, "num_queries": 2.0, "num_without_positive": 1.0}
    counted = retrieval_recall(queries, database, positives, (1, 2), "miss")
    assert counted["recall_at_1"] == pytest.approx(1 / 3)
    assert counted["num_queries"] == 3


def test_as_brute_force_over_chunks(monkeypatch):
    monkeypatch.setattr("geoloc.metrics.recall._SIMILARITIES", 60 * 256)
    rng = np.random.default_rng(0)
    queries, database = (rng.normal(size=(n, 4)).astype(np.float32) for n in (1100, 60))
    positives = [rng.choice(60, rng.integers(0, 4), replace=False) for _ in queries]
    found = retrieval_recall(queries, database, positives, (1, 5))
    hits = {1: [], 5: []}
    for query, right in zip(queries, positives, strict=True):
        best = np.argsort(-(database @ query))
        for k in hits:
            if len(right):
                hits[k].append(bool(set(best[:k]) & set(right)))
    assert found["recall_at_1"] == pytest.approx(np.mean(hits[1]))
    assert found["recall_at_5"] == pytest.approx(np.mean(hits[5]))
    _, best = positive_ranks(queries, database, positives)
    np.testing.assert_array_equal(best, (queries @ database.T).argmax(1))


def test_equal_vectors_find_nothing():
    same = np.ones((4, 2), np.float32)
    assert retrieval_recall(same, same, [np.array([0])] * 4, (1, 4))["recall_at_1"] == 0
    with pytest.raises(ConfigError, match="none of 4 queries has a positive in the database"):
        retrieval_recall(same, same, [np.array([], np.int64)] * 4)
