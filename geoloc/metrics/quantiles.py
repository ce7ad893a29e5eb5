"""Mergeable quantiles of a stream of distances; the result does not depend on the sharding.

Up to 2^20 values are kept and quantiles are exact. Beyond that, values are counted in bins (float32 with ten bits
of mantissa), and the relative error of a quantile is at most 1/2048.
"""

from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

MAX_EXACT: Final = 1 << 20
RELATIVE_TOLERANCE: Final = 2.0**-11  # of a quantile of more than MAX_EXACT values

_SHIFT: Final = 13  # a float32 has 23 bits of mantissa
_SMALLEST: Final = 2.0**-30  # km, a micrometre; the first bin holds all smaller values
_FIRST_BIN: Final = int(np.float32(_SMALLEST).view(np.int32)) >> _SHIFT
_NUM_BINS: Final = (int(np.float32(2.0**16).view(np.int32)) >> _SHIFT) - _FIRST_BIN + 1  # up to 65,536 km


def bins_of(values: ArrayLike, *, coarser_by: int = 0) -> NDArray[np.int64]:
    """Bin of each non-negative value; the relative width of a bin is 2^(coarser_by - 10)."""
    clipped = np.clip(np.asarray(values, np.float32), np.float32(_SMALLEST), np.float32(2.0**16))
    return (clipped.view(np.int32).astype(np.int64) >> _SHIFT) - _FIRST_BIN >> coarser_by


def centers_of(bins: ArrayLike, *, coarser_by: int = 0) -> NDArray[np.float64]:
    """Middle of each bin; 0 for the first."""
    first = (np.asarray(bins, np.int64) << coarser_by) + _FIRST_BIN
    low, high = ((first + step << _SHIFT).astype(np.int32).view(np.float32) for step in (0, 1 << coarser_by))
    centers = (low.astype(np.float64) + high.astype(np.float64)) / 2
    return np.where(np.asarray(bins) == 0, 0.0, centers)


class Quantiles:
    """Mergeable quantiles of non-negative values.

    Attributes:
        num: number of values.
    """

    def __init__(self) -> None:
        self.num = 0
        self._values: list[NDArray[np.float64]] = []  # as long as `is_exact`
        self._counts: NDArray[np.int64] | None = None  # per bin, otherwise

    def add(self, values: ArrayLike) -> None:
        """Add finite values >= 0, (n,)."""
        new = np.array(values, np.float64).ravel()
        self.num += len(new)
        if self._counts is None:
            self._values.append(new)
            self._spill()
        else:
            self._counts += np.bincount(bins_of(new), minlength=_NUM_BINS)

    def merge(self, other: "Quantiles") -> None:
        """Add another set of values."""
        self.num += other.num
        self._values += other._values
        if other._counts is not None:
            self._counts = other._counts + (0 if self._counts is None else self._counts)
        self._spill()

    def _spill(self) -> None:
        if self._counts is None and self.num <= MAX_EXACT:
            return
        if self._counts is None:
            self._counts = np.zeros(_NUM_BINS, np.int64)
        for values in self._values:
            self._counts = self._counts + np.bincount(bins_of(values), minlength=_NUM_BINS)
        self._values = []

    @property
    def is_exact(self) -> bool:
        """Whether every value is kept."""
        return self._counts is None

    def at(self, shares: ArrayLike, *, num_infinite: int = 0) -> NDArray[np.float64]:
        """Quantiles at shares in [0, 1], interpolated as by `numpy.quantile` if exact.

        Args:
            shares: (q,).
            num_infinite: number of further, infinite values.

        Returns:
            (q,) quantiles; NaN if there is no value.
        """
        wanted = np.asarray(shares, np.float64)
        total = self.num + num_infinite
        if total == 0:
            return np.full(wanted.shape, np.nan)
        position = wanted * (total - 1)
        if self._counts is None:
            ordered = np.sort(np.concatenate([*self._values, np.empty(0)]))
            low = np.floor(position).astype(np.int64)
            values = np.append(ordered, np.inf)
            below, above = (
                values[np.minimum(rank, self.num)] for rank in (low, np.ceil(position).astype(np.int64))
            )
            with np.errstate(invalid="ignore"):  # inf - inf
                between = below + (above - below) * (position - low)
            return np.where(np.isinf(above), np.where(position == low, below, np.inf), between)
        rank = np.searchsorted(np.cumsum(self._counts), np.floor(position), side="right")
        return np.where(rank < _NUM_BINS, centers_of(np.minimum(rank, _NUM_BINS - 1)), np.inf)

    def histogram(self, *, coarser_by: int = 0) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Middles of the non-empty bins, ascending, and their counts."""
        if self._counts is None:
            bins = bins_of(np.concatenate([*self._values, np.empty(0)]), coarser_by=coarser_by)
            counts = np.bincount(bins)
        else:
            counts = np.bincount(np.arange(_NUM_BINS) >> coarser_by, self._counts).astype(np.int64)
        filled = np.flatnonzero(counts)
        return centers_of(filled, coarser_by=coarser_by), counts[filled]

    def state(self) -> dict[str, Any]:
        """JSON values for `from_state`."""
        if self._counts is None:
            # Sorted, so that the state does not depend on the order of the values.
            return {"values": np.sort(np.concatenate([*self._values, np.empty(0)])).tolist()}
        filled = np.flatnonzero(self._counts)
        return {"bins": filled.tolist(), "counts": self._counts[filled].tolist()}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "Quantiles":
        """The inverse of `state`."""
        found = cls()
        if "values" in state:
            found.add(state["values"])
            return found
        found._counts = np.zeros(_NUM_BINS, np.int64)
        found._counts[state["bins"]] = state["counts"]
        found.num = int(found._counts.sum())
        return found
