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
        prefix_ids: (L, C), each cell's group at L coarser levels, groups numbered from 0 in each level.
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
    """Mean great-circle distance in km, (B, 2), (B, 2) -> (). Smooth at zero and at the antipode."""
    return haversine_km(latlon_rad, target_latlon_rad).mean()


def haversine_km(a_latlon_rad: Tensor, b_latlon_rad: Tensor) -> Tensor:
    """Great-circle distance on the mean sphere, (…, 2), (…, 2) -> (…) km."""
    lat_a, lon_a = a_latlon_rad.unbind(-1)
    lat_b, lon_b = b_latlon_rad.unbind(-1)
    h = torch.sin((lat_b - lat_a) / 2) ** 2 + torch.cos(lat_a) * torch.cos(lat_b) * torch.sin((lon_b - lon_a) / 2) ** 2
    # Kept off 0 and 1, where the derivative of the square roots is infinite: 1e-14 is below a metre.
    h = h.clamp(1e-14, 1 - 1e-7)
    return 2 * EARTH_MEAN_RADIUS_KM * torch.atan2(h.sqrt(), (1 - h).sqrt())


def info_nce(query: Tensor, reference: Tensor, temperature: Tensor | float, valid: Tensor | None = None) -> Tensor:
    """Symmetric InfoNCE of paired unit vectors (van den Oord et al. 2018; CLIP's form).

    Args:
        query: (B, D), reference: (B, D): row i of one belongs to row i of the other.
        valid: (B, B) which off-diagonal pairs count as negatives; the diagonal always counts. Statewide masks pairs
            that are near each other on the ground: they are no negatives.
    """
    logits = query @ reference.T / temperature
    if valid is not None:
        keep = valid | torch.eye(len(query), dtype=torch.bool, device=query.device)
        logits = logits.masked_fill(~keep, -torch.inf)
    pairs = torch.arange(len(query), device=query.device)
    return (functional.cross_entropy(logits, pairs) + functional.cross_entropy(logits.T, pairs)) / 2
