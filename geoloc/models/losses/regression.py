"""Losses of coordinates on the sphere, in radians."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from quadtree.sphere import EARTH_MEAN_RADIUS_KM


def great_circle_loss_km(latlon_rad: Tensor, target_latlon_rad: Tensor) -> Tensor:
    """Mean great-circle distance in km, (B, 2), (B, 2) -> (); see `haversine_km`."""
    return haversine_km(latlon_rad, target_latlon_rad).mean()


def latlon_l1_loss(latlon_rad: Tensor, target_latlon_rad: Tensor) -> Tensor:
    """Mean absolute error in radians (OSV-5M's regression), (B, 2), (B, 2) -> ().

    Longitudes are compared the short way around the Earth; OSV-5M does not wrap them.
    """
    latitude, longitude = (latlon_rad - target_latlon_rad).unbind(-1)
    turn = 2 * math.pi
    longitude = longitude - turn * (longitude / turn).round()
    return torch.stack([latitude, longitude]).abs().mean()


def haversine_km(a_latlon_rad: Tensor, b_latlon_rad: Tensor) -> Tensor:
    """Great-circle distance on the mean sphere, (…, 2), (…, 2) -> (…) km, for training.

    Gradients are finite everywhere, and 0 within a metre of the target and within 4 km of its antipode.
    `quadtree.sphere` has the exact distance.
    """
    lat_a, lon_a = a_latlon_rad.unbind(-1)
    lat_b, lon_b = b_latlon_rad.unbind(-1)
    along, across = torch.sin((lat_b - lat_a) / 2), torch.sin((lon_b - lon_a) / 2)
    h = along**2 + torch.cos(lat_a) * torch.cos(lat_b) * across**2
    # Clamped away from 0 and 1, where the square roots have infinite derivatives: 0.6 m, and 4 km to the antipode.
    h = h.clamp(2.5e-15, 1 - 1e-7)
    return 2 * EARTH_MEAN_RADIUS_KM * torch.atan2(h.sqrt(), (1 - h).sqrt())
