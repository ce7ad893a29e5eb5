"""Classification losses over cells and administrative units, and their coarser groups."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from geoloc.models.losses.masked import mean_where
from geoloc.models.losses.regression import haversine_km

_MAX_EXPONENT = 60.0  # exp of more than 88 is infinite in float32


def class_loss(logits: Tensor, class_ids: Tensor) -> Tensor:
    """Cross-entropy: of cells, of countries, regions, areas or cities, of land cover.

    Args:
        logits: (B, C).
        class_ids: (B,) true classes; -1 is unknown.

    Returns:
        The mean over the rows whose class is known.
    """
    losses = functional.cross_entropy(logits, class_ids, ignore_index=-1, reduction="none")
    return mean_where(losses, class_ids >= 0)


def haversine_smoothed_loss(
    cell_logits: Tensor,
    cell_ids: Tensor,
    latlon_rad: Tensor,
    center_latlon_rad: Tensor,
    tau_km: float = 75.0,
    *,
    normalized: bool = True,
) -> Tensor:
    """Cross-entropy in which a cell counts the more, the nearer its centre is to the photo.

    The weight of cell n for a photo at x whose true cell is t is exp(-(d(n, x) - d(t, x)) / tau), d being the
    haversine distance to a cell's centre (PIGEON, Haas et al., CVPR 2024, its haversine smoothing loss; 75 km for
    street views, 65 km for other photos).

    The paper does not normalise: a weight exceeds 1 where another centre is nearer than the true cell's, and
    a photo counts as much as the weights around it add up to. Among large cells, as a quadtree has them
    where photos are few, that is thousands of times more than another photo.

    Args:
        cell_logits: (B, C).
        cell_ids: (B,) true cells.
        latlon_rad: (B, 2) where the photos were taken.
        center_latlon_rad: (C, 2) the cells' centres.
        tau_km: distance over which a weight falls by e.
        normalized: make the weights of a photo sum to 1, so that every photo counts the same. False is the
            paper's form.

    Returns:
        The mean over the batch.
    """
    distance_km = haversine_km(latlon_rad[:, None], center_latlon_rad)
    if normalized:  # the distance of the true cell's centre cancels out
        weights = (-distance_km / tau_km).softmax(-1)
    else:
        to_true_km = distance_km.gather(1, cell_ids[:, None])
        weights = ((to_true_km - distance_km) / tau_km).clamp_max(_MAX_EXPONENT).exp()
    return -(weights * cell_logits.log_softmax(-1)).sum(-1).mean()


def hierarchical_cell_loss(cell_logits: Tensor, cell_ids: Tensor, prefix_ids: Tensor) -> Tensor:
    """Cross-entropy over the cells plus one term for every coarser level of the tree (OSV-5M's `hier_quad`).

    A group's probability is the sum of its cells'. Computed in log space, where OSV-5M adds 1e-10 to the sum.

    Args:
        cell_logits: (B, C).
        cell_ids: (B,) true cells.
        prefix_ids: (L, C) group of each cell at L coarser levels, as `Quadtree.prefix_ids` gives them.

    Returns:
        The sum over the 1 + L terms, each a mean over the batch.
    """
    log_probs = functional.log_softmax(cell_logits, -1)
    loss = functional.nll_loss(log_probs, cell_ids)
    for groups in prefix_ids:
        loss = loss + _group_loss(log_probs, groups, groups[cell_ids])
    return loss


def admin_hierarchical_loss(
    city_logits: Tensor, city_ids: Tensor, group_of_city: Tensor, group_ids: Tensor
) -> Tensor:
    """Cross-entropy over cities plus one term for every wider unit (OSV-5M's `hierarchical`).

    A unit's probability is the sum of its cities'. The levels are masked one by one: a photo of a named country
    and no named city still says which country.

    Args:
        city_logits: (B, C).
        city_ids: (B,) true cities; -1 is unknown.
        group_of_city: (L, C) unit of each city at L levels, such as country, region and area; -1 where a city
            has none.
        group_ids: (L, B) true units; -1 is unknown, and so is a unit without any city among the classes.

    Returns:
        The sum over the 1 + L terms, each a mean over the rows whose truth is known.
    """
    log_probs = functional.log_softmax(city_logits, -1)
    loss = class_loss(city_logits, city_ids)
    for groups, true_groups in zip(group_of_city, group_ids, strict=True):
        loss = loss + _group_loss(log_probs, groups, true_groups)
    return loss


def _group_loss(log_probs: Tensor, group_of_class: Tensor, true_groups: Tensor) -> Tensor:
    """Mean of -log of a group's probability: (B, C), (C,), (B,), where -1 is unknown."""
    inside = group_of_class == true_groups[:, None]
    known = (true_groups >= 0) & inside.any(-1)
    # Rows that do not count get all classes: the logarithm of an empty sum has no gradient.
    outside = ~inside & known[:, None]
    return mean_where(-log_probs.masked_fill(outside, -torch.inf).logsumexp(-1), known)
