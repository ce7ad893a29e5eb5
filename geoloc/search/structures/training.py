"""What FAISS's structures are trained on."""

from typing import Final

import numpy as np

from geoloc.search.scan import FloatArray, Rows

_PQ_DIMENSIONS: Final = 8  # to a byte


def pq_bytes(dim: int) -> int:
    """Bytes of a product-quantised vector: the largest divisor of the width up to an eighth of it."""
    return max(size for size in range(1, max(1, dim // _PQ_DIMENSIONS) + 1) if dim % size == 0)


def sample_of(rows: Rows, num: int) -> FloatArray:
    """Up to `num` rows of the whole database as float32, always the same ones."""
    chosen = np.sort(np.random.default_rng(0).permutation(rows.num_rows)[:num])
    parts = []
    for segment, first in enumerate(rows.first[:-1]):
        mine = chosen[(chosen >= first) & (chosen < rows.first[segment + 1])] - first
        parts.append(rows.widened(segment, mine))
    return np.concatenate(parts)
