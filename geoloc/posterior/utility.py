"""Utilities of a point estimate as functions of its distance to the truth."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import i1e, ndtr

from geoloc.errors import ConfigError
from geoloc.metrics.scores import GEOSCORE_SCALE_KM

FloatArray = NDArray[np.float64]

NEAR_KM = 10.0  # below it the pull per km would grow without bound, and no step would ever leave the point


@dataclass(frozen=True)
class Utility:
    """Utility that a point estimate maximises.

    Attributes:
        kind: "geoscore" maximises the expected GeoScore, "median" minimises the expected distance, "within"
            maximises the probability to be within `radius_km`.
        radius_km: for "within".
    """

    kind: Literal["geoscore", "median", "within"]
    radius_km: float = 0.0

    @staticmethod
    def parse(text: str | Utility) -> Utility:
        """Read "geoscore", "median" or "within:25km".

        Raises:
            ConfigError: it is none of them.
        """
        if isinstance(text, Utility):
            return text
        if text == "geoscore":
            return Utility("geoscore")
        if text == "median":
            return Utility("median")
        if (match := re.fullmatch(r"within:(\d+(?:\.\d+)?)(?:km)?", text)) and float(match[1]) > 0:
            return Utility("within", float(match[1]))
        raise ConfigError(
            f"utility is {text!r}; expected geoscore, median or within:<radius in km>, as in within:25km"
        )

    @property
    def name(self) -> str:
        """The text that `parse` reads."""
        return f"within:{self.radius_km:.12g}km" if self.kind == "within" else self.kind

    def expected(self, distance_km: FloatArray, scale_km: FloatArray) -> FloatArray:
        """Expected utility if the truth is Gaussian around a location at that distance; larger is better.

        Only "within" uses the width: its step is too sharp for a cloud of points.
        """
        if self.kind == "geoscore":
            return np.exp(distance_km / -GEOSCORE_SCALE_KM)
        if self.kind == "median":
            return -distance_km
        return mass_in_disc(distance_km, scale_km, self.radius_km)

    def pull(self, distance_km: FloatArray, scale_km: FloatArray) -> FloatArray:
        """Gain in utility of a small step towards that location, per km of distance to it."""
        if self.kind == "geoscore":
            return np.exp(distance_km / -GEOSCORE_SCALE_KM) / np.maximum(distance_km, NEAR_KM)
        if self.kind == "median":
            return 1.0 / np.maximum(distance_km, NEAR_KM)
        # The derivative of the Rice law, with r and d in kernel widths.
        scale_km = sharp(scale_km)
        r, d = self.radius_km / scale_km, np.maximum(distance_km / scale_km, 1e-3)
        return np.asarray(r * np.exp(-((r - d) ** 2) / 2) * i1e(r * d) / d / scale_km**2)


def sharp(scale_km: FloatArray) -> FloatArray:
    """Kernel widths of at least a metre: a point, but not a division by zero."""
    return np.maximum(scale_km, 1e-3)


@lru_cache(maxsize=1)
def _quadrature() -> tuple[FloatArray, FloatArray]:
    """Nodes sin(t) and weights cos(t) dt for t in [0, pi/2]: flattens the square root at the disc's edge."""
    nodes, weights = np.polynomial.legendre.leggauss(10)
    t = (nodes + 1) * np.pi / 4
    return np.sin(t), np.cos(t) * weights * np.pi / 4


def mass_in_disc(distance_km: FloatArray, scale_km: FloatArray, radius_km: float) -> FloatArray:
    """Mass that an isotropic Gaussian has in a disc whose centre is that far from its own (a Rice law).

    Integrated over strips of the disc along the line of centres; good to 1e-4.
    """
    r, d = radius_km / sharp(scale_km), (distance_km / sharp(scale_km))[..., None]
    half_width = np.minimum(r, 5.0)
    node, weight = _quadrature()
    across = half_width[..., None] * node
    along = np.sqrt(np.maximum(np.square(r)[..., None] - across**2, 0.0))
    strips = (ndtr(along - d) - ndtr(-along - d)) * np.exp(-(across**2) / 2)
    return np.asarray(strips @ weight * half_width * np.sqrt(2 / np.pi))
