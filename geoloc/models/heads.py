"""Heads: from a backbone's features to cell logits, offsets inside cells, coordinates and embeddings.

A head is an MLP, by default of OSV-5M's form (Astruc et al. 2024, section 4): layer norm, then per hidden layer
linear - group norm - GELU, then linear.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from geoloc.errors import ConfigError
from geoloc.models.config import GROUPS, EmbeddingHeadConfig, Layers, OffsetHeadConfig, RegressionHeadConfig


def mlp(
    in_dim: int, hidden_dims: tuple[int, ...], out_dim: int, layers: Layers = "group_norm"
) -> nn.Sequential:
    """A norm, hidden layers, linear: (B, in_dim) -> (B, out_dim), in the form that `Layers` describes.

    Raises:
        ConfigError: layers is "identity" and the dims differ.
    """
    if layers == "identity":
        if in_dim != out_dim:
            raise ConfigError(f"layers is 'identity', but {in_dim} features are to become {out_dim} numbers")
        return nn.Sequential()
    parts: list[nn.Module] = [] if layers == "relu" else [nn.LayerNorm(in_dim)]
    for width in hidden_dims:
        parts.append(nn.Linear(in_dim, width))
        if layers == "group_norm":
            parts.append(nn.GroupNorm(GROUPS, width))
        parts.append(nn.ReLU() if layers == "relu" else nn.GELU())
        in_dim = width
    return nn.Sequential(*parts, nn.Linear(in_dim, out_dim))


class OffsetHead(nn.Module):
    """Offsets inside cells and their geometry.

    An offset `r` in [-s, s]² (s = `tanh_scale`) moves from the cell's origin towards the edge on the side of
    its sign: r = ±1 is the edge, r = 0 the origin. Latitude first.

    Args:
        feature_dim: D of the features.
        config: which of OSV-5M's variants.
        bounds_deg: (C, 4) south, west, north, east of the cells.
        center_latlon_deg: (C, 2) representative points of the cells, inside their boxes.
    """

    cell_origin: Tensor  # (C, 2) degrees
    cell_reach: Tensor  # (C, 2, 2) degrees: per axis, the way to the edge on the (negative, positive) side

    def __init__(
        self,
        feature_dim: int,
        config: OffsetHeadConfig,
        bounds_deg: NDArray[np.float64],
        center_latlon_deg: NDArray[np.float64],
    ) -> None:
        super().__init__()
        self.config = config
        self.mlp = mlp(feature_dim, config.hidden_dims, 2 if config.shared else 2 * len(bounds_deg))
        final = self.mlp[-1]
        assert isinstance(final, nn.Linear)
        # Start at r = 0, the cell's origin: the classifier's answer, which offsets can only improve from.
        nn.init.zeros_(final.weight)
        nn.init.zeros_(final.bias)
        south_west, north_east = bounds_deg[:, :2], bounds_deg[:, 2:]
        origin = center_latlon_deg if config.origin == "representative" else (south_west + north_east) / 2
        reach = np.stack([origin - south_west, north_east - origin], -1)
        # float64: a float32 longitude moves in steps of up to 1.7 m. Not weights: the quadtree has them.
        self.register_buffer("cell_origin", torch.from_numpy(np.array(origin, np.float64)), persistent=False)
        self.register_buffer("cell_reach", torch.from_numpy(np.array(reach, np.float64)), persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        """(B, D) -> (B, C, 2), or (B, 1, 2) if shared, in [-tanh_scale, tanh_scale]."""
        bounded: Tensor = self.config.tanh_scale * torch.tanh(self.mlp(features))
        in_pairs: Tensor = bounded.unflatten(-1, (-1, 2))
        return in_pairs

    def of_cells(self, offsets: Tensor, cell_ids: Tensor) -> Tensor:
        """Offsets of the given cells: (B, C or 1, 2), (B, K) -> (B, K, 2)."""
        if self.config.shared:
            return offsets.expand(-1, cell_ids.shape[1], -1)
        return offsets.gather(1, cell_ids[..., None].expand(-1, -1, 2))

    def to_latlon_deg(self, offsets: Tensor, cell_ids: Tensor) -> Tensor:
        """Coordinates of offsets in cells, (…, 2), (…) -> (…, 2) float64.

        Latitudes are clamped at the poles, and longitudes wrapped.
        """
        r = offsets.double()
        reach = self.cell_reach[cell_ids]
        latlon = self.cell_origin[cell_ids] + r * torch.where(r > 0, reach[..., 1], reach[..., 0])
        latitude, longitude = latlon.unbind(-1)
        return torch.stack([latitude.clamp(-90.0, 90.0), _wrap_deg(longitude)], -1)

    def target(self, latlon_deg: Tensor, cell_ids: Tensor) -> Tensor:
        """Offset of given coordinates in their cells: (…, 2), (…) -> (…, 2) float32.

        The side is chosen by the target's sign, so that the target does not change with the prediction (OSV-5M chooses
        by the prediction's sign). Longitudes go the short way around the Earth. A point outside of its cell (assigned
        from an empty leaf) has a target beyond ±1. On an axis on which the cell has no extent the target is 0.
        """
        latitude, longitude = (latlon_deg.double() - self.cell_origin[cell_ids]).unbind(-1)
        reach = self.cell_reach[cell_ids]
        longitude = _wrap_deg(longitude)
        # Half a turn can go either way: it goes to the side on which the cell extends farther.
        goes_east = (longitude == -180.0) & (reach[..., 1, 1] > reach[..., 1, 0])
        step = torch.stack([latitude, torch.where(goes_east, 180.0, longitude)], -1)
        side = torch.where(step > 0, reach[..., 1], reach[..., 0])
        return torch.where(side > 0, step / side.clamp_min(1e-12), 0.0).float()


def _wrap_deg(longitude: Tensor) -> Tensor:
    """Longitudes in [-180, 180), equal to `quadtree.sphere.wrap_longitude_deg`."""
    turn = torch.fmod(longitude, 360.0)
    return turn - 360.0 * (turn >= 180.0) + 360.0 * (turn < -180.0)


class RegressionHead(nn.Module):
    """Coordinates from the features, without cells."""

    def __init__(self, feature_dim: int, config: RegressionHeadConfig) -> None:
        super().__init__()
        self.config = config
        width = _REGRESSION_WIDTHS[config.kind]
        self.mlp = mlp(feature_dim, config.hidden_dims, width, config.layers)

    def forward(self, features: Tensor) -> Tensor:
        """(B, D) -> (B, 2) latitude and longitude in radians; float32 pi may exceed pi."""
        raw = self.mlp(features)
        if self.config.kind == "tanh":
            scaled = torch.tanh(raw)
            return torch.stack([scaled[:, 0] * (math.pi / 2), scaled[:, 1] * math.pi], -1)
        if self.config.kind == "angles":
            return angles_to_latlon_rad(raw)
        if self.config.kind == "squared_angles":
            return angles_to_latlon_rad(raw.square())
        x, y, z = raw.unbind(-1)
        return torch.stack(
            [torch.atan2(z, torch.linalg.vector_norm(raw[..., :2], dim=-1)), torch.atan2(y, x)], -1
        )


_REGRESSION_WIDTHS = {"unit_vector": 3, "tanh": 2, "angles": 4, "squared_angles": 4}


def angles_to_latlon_rad(raw: Tensor) -> Tensor:
    """Coordinates from two angles, each as cosine and sine of any common length: (..., 4) -> (..., 2) radians.

    Args:
        raw: cosine and sine of the latitude, then of the longitude. A latitude beyond a pole continues on the other
            side, half a turn of longitude away, so that neighbouring angles are neighbours on the sphere.
    """
    cos_lat, sin_lat, cos_lon, sin_lon = raw.unbind(-1)
    side = torch.where(cos_lat < 0, -1.0, 1.0)
    return torch.stack([torch.atan2(sin_lat, cos_lat.abs()), torch.atan2(side * sin_lon, side * cos_lon)], -1)


class EmbeddingHead(nn.Module):
    """Unit vectors for retrieval: (B, D) -> (B, dim)."""

    def __init__(self, feature_dim: int, config: EmbeddingHeadConfig) -> None:
        super().__init__()
        self.mlp = mlp(feature_dim, config.hidden_dims, config.dim, config.layers)

    def forward(self, features: Tensor) -> Tensor:
        """(B, D) -> (B, dim) of length 1."""
        return nn.functional.normalize(self.mlp(features), dim=-1)
