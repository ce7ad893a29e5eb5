"""Recall@k of place recognition by exact search."""

from collections.abc import Sequence
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from geoloc.errors import ConfigError

WithoutPositive = Literal["miss", "left_out"]

_NEVER: Final = np.iinfo(np.int64).max
_SIMILARITIES: Final = 2**26  # in memory at once, 256 MB


def positive_ranks(
    queries: NDArray[np.float32],
    database: NDArray[np.float32],
    positives: Sequence[NDArray[np.int64]],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Number of wrong photos before the first positive, and the most similar photo, by exact search.

    Ties count against the positive: wrong photos with its similarity rank before it.

    Args:
        queries: (n, D) unit vectors.
        database: (m, D) unit vectors, m >= 1.
        positives: per query, rows of the database.

    Returns:
        (n,) ranks from 0, the largest int64 for a query without a positive; and (n,) rows of the database.
    """
    ranks = np.full(len(queries), _NEVER, np.int64)
    best = np.zeros(len(queries), np.int64)
    chunk = max(1, _SIMILARITIES // len(database))
    for start in range(0, len(queries), chunk):
        similarity = queries[start : start + chunk] @ database.T
        best[start : start + chunk] = similarity.argmax(axis=1)
        for row, query in enumerate(range(start, start + len(similarity))):
            if len(right := positives[query]):
                as_similar = similarity[row] >= similarity[row, right].max()
                ranks[query] = as_similar.sum() - as_similar[right].sum()
    return ranks, best


def recall_at_k(
    ranks: NDArray[np.int64],
    has_positive: NDArray[np.bool_],
    recall_at: Sequence[int] = (1, 5, 10, 20),
    without_positive: WithoutPositive = "left_out",
) -> dict[str, float]:
    """Share of queries with fewer than k wrong photos before the first right one.

    Args:
        ranks: (n,) of `positive_ranks`.
        has_positive: (n,) whether the query has a positive.
        recall_at: values of k.
        without_positive: a query without a positive is a "miss" (CosPlace) or "left_out" (Deep VG benchmark).

    Returns:
        "recall_at_1", …; the number of counted queries "num_queries"; and "num_without_positive".

    Raises:
        ConfigError: no query has a positive.
    """
    if not has_positive.any():
        raise ConfigError(
            f"none of {len(ranks):,} queries has a positive in the database: check that both are of the same area, or "
            "raise the radius"
        )
    counted = ranks if without_positive == "miss" else ranks[has_positive]
    return {f"recall_at_{k}": float((counted < k).mean()) for k in recall_at} | {
        "num_queries": float(len(counted)),
        "num_without_positive": float(np.count_nonzero(~has_positive)),
    }


def retrieval_recall(
    queries: NDArray[np.float32],
    database: NDArray[np.float32],
    positives: Sequence[NDArray[np.int64]],
    recall_at: Sequence[int] = (1, 5, 10, 20),
    without_positive: WithoutPositive = "left_out",
) -> dict[str, float]:
    """`recall_at_k` of `positive_ranks`.

    Raises:
        ConfigError: no query has a positive.
    """
    has_positive = np.array([len(rows) > 0 for rows in positives], bool)
    if not has_positive.any():  # before the search
        return recall_at_k(np.zeros(len(queries), np.int64), has_positive)
    ranks, _ = positive_ranks(queries, database, positives)
    return recall_at_k(ranks, has_positive, recall_at, without_positive)
