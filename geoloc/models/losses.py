"""Training losses as pure functions of tensors; each states its formula's source.

Knows nothing about networks, optimisers or data.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from quadtree.sphere import EARTH_MEAN_RADIUS_KM


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
        same_group = groups[None, :] == groups[cell_ids][:, None]
        loss = loss - log_probs.masked_fill(~same_group, -torch.inf).logsumexp(-1).mean()
    return loss


def offset_loss(offsets: Tensor, targets: Tensor, beta: float | None = None) -> Tensor:
    """Squared error of the true cells' offsets, mean over both axes (OSV-5M's `l2_hybrid`).

    Args:
        offsets: (B, 2) predicted in the true cell.
        targets: (B, 2) from `OffsetHead.target`.
        beta: if given, errors above beta count linearly (smooth L1), which outliers pull less.
    """
    if beta is None:
        return functional.mse_loss(offsets, targets)
    return functional.smooth_l1_loss(offsets, targets, beta=beta)


def great_circle_loss_km(latlon_rad: Tensor, target_latlon_rad: Tensor) -> Tensor:
    """Mean great-circle distance in km, (B, 2), (B, 2) -> (); see `haversine_km`."""
    return haversine_km(latlon_rad, target_latlon_rad).mean()


def haversine_km(a_latlon_rad: Tensor, b_latlon_rad: Tensor) -> Tensor:
    """Great-circle distance on the mean sphere, (…, 2), (…, 2) -> (…) km.

    Made for training: gradients are finite everywhere, and 0 within a metre of the target and within 4 km of
    its antipode, where the distance itself stands still. `quadtree.sphere` has the exact one.
    """
    lat_a, lon_a = a_latlon_rad.unbind(-1)
    lat_b, lon_b = b_latlon_rad.unbind(-1)
    along, across = torch.sin((lat_b - lat_a) / 2), torch.sin((lon_b - lon_a) / 2)
    h = along**2 + torch.cos(lat_a) * torch.cos(lat_b) * across**2
    # Kept off 0 and 1, where the derivative of the square roots is infinite: 0.6 m, and 4 km to the antipode
    # (float32 has hardly a number between).
    h = h.clamp(2.5e-15, 1 - 1e-7)
    return 2 * EARTH_MEAN_RADIUS_KM * torch.atan2(h.sqrt(), (1 - h).sqrt())


def info_nce(
    query: Tensor, reference: Tensor, temperature: Tensor | float, valid: Tensor | None = None
) -> Tensor:
    """Symmetric InfoNCE of paired unit vectors (van den Oord et al. 2018; CLIP's form).

    Args:
        query: (B, D).
        reference: (B, D); row i belongs to row i of `query`.
        temperature: divides the cosines.
        valid: (B, B) bool, which pairs (query, reference) count as negatives; the diagonal always counts.
            Statewide masks pairs that are near each other on the ground: they are no negatives.

    Returns:
        The mean of both directions' cross-entropies.
    """
    logits = query @ reference.T / temperature
    if valid is not None:
        keep = valid | torch.eye(len(query), dtype=torch.bool, device=query.device)
        logits = logits.masked_fill(~keep, -torch.inf)
    pairs = torch.arange(len(query), device=query.device)
    return (functional.cross_entropy(logits, pairs) + functional.cross_entropy(logits.T, pairs)) / 2


def info_nce_on_the_ground(
    query: Tensor, reference: Tensor, temperature: Tensor | float, distance_km: Tensor, scale_km: float
) -> Tensor:
    """InfoNCE whose targets are shares instead of ones: of two near references, both are right, the nearer more.

    A row's target is proportional to exp(-d^2 / 2 scale^2) over the batch. With a small scale and pairs far apart
    it is `info_nce`.

    Args:
        query: (B, D) unit vectors.
        reference: (B, D) unit vectors; row i belongs to row i of `query`.
        temperature: divides the cosines.
        distance_km: (B, B) on the ground between the places of queries (rows) and references (columns).
        scale_km: how far apart two places are still nearly the same.

    Returns:
        The mean of both directions' cross-entropies.
    """
    logits = query @ reference.T / temperature
    closeness = -0.5 * (distance_km / scale_km) ** 2
    rows = functional.cross_entropy(logits, closeness.softmax(-1))
    return (rows + functional.cross_entropy(logits.T, closeness.T.softmax(-1))) / 2
