"""Result of a search: the best references of each query."""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

NO_ROW: Final = -1  # the row id of padding
NO_SOURCE: Final = 255  # the source of padding


@dataclass(frozen=True, eq=False)
class Candidates:
    """References of Q queries, best first, padded to K columns where a query has fewer.

    Attributes:
        row_id: (Q, K) int64, the row in the reference database; -1 is padding.
        similarity: (Q, K) float32 inner product of query and stored vector, the cosine where both have unit
            length; descending along a row, ties by ascending row id; -inf in padding.
        latlon_deg: (Q, K, 2) float64 position of the reference; NaN in padding.
        source: (Q, K) uint8, 0 aerial, 1 street, 2 location; 255 in padding.
    """

    row_id: NDArray[np.int64]
    similarity: NDArray[np.float32]
    latlon_deg: NDArray[np.float64]
    source: NDArray[np.uint8]

    @classmethod
    def nothing(cls, num_queries: int, k: int) -> "Candidates":
        """Candidates of padding alone, (num_queries, k)."""
        return cls(
            np.full((num_queries, k), NO_ROW, dtype=np.int64),
            np.full((num_queries, k), -np.inf, dtype=np.float32),
            np.full((num_queries, k, 2), np.nan),
            np.full((num_queries, k), NO_SOURCE, dtype=np.uint8),
        )

    def padded(self, k: int) -> "Candidates":
        """The same with padding up to k columns."""
        padding = Candidates.nothing(len(self), k - self.row_id.shape[1])
        return Candidates(
            np.concatenate((self.row_id, padding.row_id), axis=1),
            np.concatenate((self.similarity, padding.similarity), axis=1),
            np.concatenate((self.latlon_deg, padding.latlon_deg), axis=1),
            np.concatenate((self.source, padding.source), axis=1),
        )

    @property
    def is_present(self) -> NDArray[np.bool_]:
        """(Q, K) False in padding."""
        is_present: NDArray[np.bool_] = self.row_id != NO_ROW
        return is_present

    def __len__(self) -> int:
        """Number of queries."""
        return len(self.row_id)
