"""Calibration: temperature, kernel widths and split-conformal mass levels.

Fitted on held-out images and kept in the checkpoint's `calibration.json`. Whatever the posterior is, a circle that
holds the fitted mass contains the truth as often as stated on images exchangeable with the calibration set (Vovk et
al. 2005; Angelopoulos & Bates 2021, section 1). There is no such guarantee on other images.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from geoloc.errors import ConfigError

FloatArray = NDArray[np.float64]
PERCENTS = (50, 90)


@dataclass(frozen=True)
class Calibration:
    """Fitted values.

    Attributes:
        temperature: divides the cell logits.
        cell_kernel: kernel width of a cell's atom, as a share of the radius of a disc with the cell's area.
        regression_kernel_km: kernel width of a plain regression's single atom (models without cells).
        mass_levels: utility -> percent -> posterior mass of the circle around the point that holds the truth in that
            percent of cases. Predictions for another utility have no radii.
        num_images: size of the calibration set.
        data: description of the calibration images.
        reference_levels: identity of a database -> the same for predictions with its references. Predictions with
            another database have no radii.

    Raises:
        ConfigError: an impossible value.
    """

    temperature: float = 1.0
    cell_kernel: float = 0.5
    regression_kernel_km: float = 500.0
    mass_levels: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    num_images: int = 0
    data: str = ""
    reference_levels: Mapping[str, Mapping[str, Mapping[str, float]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("temperature", "cell_kernel", "regression_kernel_km"):
            if not 0 < getattr(self, name) < np.inf:
                raise ConfigError(f"calibration.{name} is {getattr(self, name)}; it must be positive")
        tables = {"mass_levels": self.mass_levels}
        tables |= {f"reference_levels.{of}": table for of, table in self.reference_levels.items()}
        for where, utility, levels in (
            (where, utility, levels) for where, table in tables.items() for utility, levels in table.items()
        ):
            for percent, level in levels.items():
                if not (percent.isdigit() and 0 < int(percent) < 100 and 0 <= level <= 1):
                    raise ConfigError(
                        f"calibration.{where}.{utility} has {percent!r}: {level}; expected a percent in "
                        "1..99 and a mass in [0, 1]"
                    )

    def levels(self, utility: str, reference: str | None = None) -> dict[int, float]:
        """Percent -> mass, fitted for this utility; empty where none was: radii of another utility do not apply.

        Args:
            utility: name, see `Utility.name`.
            reference: identity of the database that is searched; None without one.
        """
        table = self.mass_levels if reference is None else self.reference_levels.get(reference, {})
        return {int(percent): level for percent, level in table.get(utility, {}).items()}


def log_softmax(logits: FloatArray) -> FloatArray:
    """Logarithm of the softmax along the last axis, float64."""
    shifted = logits - logits.max(-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)))


def fit_temperature(cell_logits: NDArray[np.floating[Any]], cell_ids: NDArray[np.int64]) -> float:
    """The temperature with the least negative log-likelihood (Guo et al. 2017), in [0.05, 20].

    Args:
        cell_logits: (n, C) of the network.
        cell_ids: (n,) the true cells.
    """
    # In blocks of rows, so that float64 copies of thousands of logits a row need little memory.
    blocks = [slice(start, start + 256) for start in range(0, len(cell_ids), 256)]

    def loss(log_temperature: float) -> float:
        total = 0.0
        for rows in blocks:
            log_probs = log_softmax(np.float64(cell_logits[rows]) / np.exp(log_temperature))
            total -= float(np.take_along_axis(log_probs, cell_ids[rows, None], -1).sum())
        return total

    found = minimize_scalar(loss, bounds=(np.log(0.05), np.log(20.0)), method="bounded")
    return float(np.exp(found.x))


def fit_kernel(distance: FloatArray) -> float:
    """Width of the 2-D Gaussian with these distances from its centre, (n,) -> (): the deviation per axis.

    The median of such distances is sqrt(2 ln 2) widths, and is robust to outliers. At least 0.001.
    """
    return max(1e-3, float(np.median(distance) / np.sqrt(2 * np.log(2))))


def conformal_level(scores: FloatArray, percent: int) -> float:
    """Split-conformal quantile, (n,) -> (): the ceil((n + 1) p)-th smallest score, 1 if there are too few."""
    n = len(scores)
    rank = -(
        -(n + 1) * percent // 100
    )  # the ceiling in integers: 0.9 * 10 is not 9 in floating point everywhere
    return 1.0 if rank > n else float(np.sort(scores)[rank - 1])
