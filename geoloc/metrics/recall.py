"""Recall of place recognition: is a photo of the right place among the k most similar ones of the database?"""

from collections.abc import Sequence
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from geoloc.errors import ConfigError

WithoutPositive = Literal["miss", "left_out"]

_CHUNK: Final = 512  # queries whose similarities are in memory at once


def retrieval_recall(
    queries: NDArray[np.float32],
    database: NDArray[np.float32],
    positives: Sequence[NDArray[np.int64]],
    recall_at: Sequence[int] = (1, 5, 10, 20),
    without_positive: WithoutPositive = "left_out",
) -> dict[str, float]:
    """Share of queries with a positive among their k most similar photos, by exact search.

    Ties count against: a query is right at k if fewer than k wrong photos are as similar as its best positive. So
    vectors that are all the same find nothing.

    Args:
        queries: (n, D) unit vectors.
        database: (m, D) unit vectors.
        positives: of each query, rows of the database.
        recall_at: the k.
        without_positive: a query without any is a "miss" (CosPlace) or "left_out" (Deep VG benchmark).

    Returns:
        "recall_at_1", …; and "num_queries" that are counted, "num_without_positive".

    Raises:
        ConfigError: no query has a positive.
    """
    counts = np.array([len(rows) for rows in positives], np.int64)
    if not counts.any():
        raise ConfigError(
            f"none of {len(queries):,} queries has a positive among {len(database):,} photos of the database: check "
            "that both are of the same area, or raise the radius"
        )
    ranks = np.full(len(queries), len(database), np.int64)
    for start in range(0, len(queries), _CHUNK):
        part = range(start, min(start + _CHUNK, len(queries)))
        similarity = queries[part.start : part.stop] @ database.T
        for row, query in enumerate(part):
            if counts[query]:
                right = positives[query]
                as_similar = similarity[row] >= similarity[row, right].max()
                ranks[query] = as_similar.sum() - as_similar[right].sum()
    if without_positive == "left_out":
        ranks = ranks[counts > 0]
    found = {f"recall_at_{k}": float((ranks < k).mean()) for k in recall_at}
    return found | {
        "num_queries": float(len(ranks)),
        "num_without_positive": float(np.count_nonzero(counts == 0)),
    }
