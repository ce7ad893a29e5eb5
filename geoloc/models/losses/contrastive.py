"""Losses that draw embeddings together and apart: pairs of views, bags of one region, photos and texts."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from geoloc.models.losses.masked import mean_where


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


def info_nce_among_images(images: Tensor, positives: Tensor, temperature: float = 0.1) -> Tensor:
    """InfoNCE whose negatives are the batch's own images (OSV-5M's variant).

    Args:
        images: (B, D) of any length; angles count.
        positives: (B, D); row i shows the same place, or region, as row i of `images`.
        temperature: divides the cosines.

    Returns:
        The mean over images of the cross-entropy of their own positive against all other images.
    """
    images, positives = functional.normalize(images, dim=-1), functional.normalize(positives, dim=-1)
    own = torch.eye(len(images), dtype=torch.bool, device=images.device)
    cosines = torch.where(own, (images * positives).sum(-1), images @ images.T)
    return functional.cross_entropy(cosines / temperature, torch.arange(len(images), device=images.device))


def mil_nce(images: Tensor, positives: Tensor, label_ids: Tensor, temperature: float = 0.1) -> Tensor:
    """MIL-NCE: all that shares a label with an anchor is one bag of positives (Miech et al. 2020; OSV-5M).

    Over the 2B rows of images and positives, the sum of log sum_{j != i} exp s_ij - log sum_{j != i, same label}
    exp s_ij, s being cosines over the temperature. It is a sum, as in OSV-5M: see `region_mil_nce`.

    Args:
        images: (B, D) of any length; angles count.
        positives: (B, D) of any length; row i has the label of row i of `images`.
        label_ids: (B,) region, or another kind of place; -1 is unknown: such rows are no anchors and no
            positives, but they are negatives. (OSV-5M pushes them away from everything.)
        temperature: divides the cosines.
    """
    features = functional.normalize(torch.cat([images, positives]), dim=-1)
    labels = torch.cat([label_ids, label_ids])
    own = torch.eye(len(features), dtype=torch.bool, device=features.device)
    logits = (features @ features.T / temperature).masked_fill(own, -torch.inf)
    known = labels >= 0
    # Rows that do not count get all others: the logarithm of an empty sum has no gradient.
    same = (labels[:, None] == labels) | ~known[:, None]
    bag = logits.masked_fill(~same, -torch.inf).logsumexp(-1)
    return (logits.logsumexp(-1) - bag).masked_fill(~known, 0).sum()


def region_mil_nce(images: Tensor, positives: Tensor, label_ids: Tensor, temperature: float = 0.1) -> Tensor:
    """`mil_nce` over B, so that it does not grow with the batch (OSV-5M's `region_mil`, in its best model)."""
    return mil_nce(images, positives, label_ids, temperature) / len(images)


def text_nce(images: Tensor, texts: Tensor, label_ids: Tensor, temperature: float = 0.1) -> Tensor:
    """Photos against the names of their places; all texts of an image's label are right.

    Per image log sum_j exp s_ij - log sum_{j: same label} exp s_ij. (OSV-5M's `text-nce` is the sum instead of
    the mean, and leaves an image's own text out of the first sum only, so that it has no lower bound.)

    Args:
        images: (B, D) of any length; angles count.
        texts: (B, D) of any length; row i names the place of row i of `images`.
        label_ids: (B,) of the places; -1 is unknown: such images are left out, their texts are negatives.
        temperature: divides the cosines.

    Returns:
        The mean over the images whose label is known.
    """
    logits = functional.normalize(images, dim=-1) @ functional.normalize(texts, dim=-1).T / temperature
    known = label_ids >= 0
    same = (label_ids[:, None] == label_ids) | ~known[:, None]
    bag = logits.masked_fill(~same, -torch.inf).logsumexp(-1)
    return mean_where(logits.logsumexp(-1) - bag, known)


def decoupled_contrastive_loss(
    query: Tensor,
    reference: Tensor,
    temperature: Tensor | float = 1 / 36,
    valid: Tensor | None = None,
    label_smoothing: float = 0.1,
) -> Tensor:
    """Symmetric decoupled contrastive loss with smoothed labels (Statewide, Fervers et al., ECCV 2024).

    The log-probability of candidate j is x_ij - log sum_{k != j} exp x_ik, without itself below the line (Yeh et
    al., Decoupled Contrastive Learning, 2022). The target is 1 - s for a row's own partner and s shared among
    its other candidates.

    Args:
        query: (B, D) unit vectors.
        reference: (B, D) unit vectors; row i belongs to row i of `query`.
        temperature: divides the cosines; Statewide's vectors have length 6, so 1/36.
        valid: (B, B) bool, which pairs (query, reference) count as negatives; the diagonal always counts.
            Statewide leaves out references within one cell, 30 m, of the query: there,
            `haversine_km(query_latlon_rad[:, None], reference_latlon_rad) > 0.03` in float64.
        label_smoothing: s.

    Returns:
        The mean of both directions; in each, the mean over the rows that have a negative. (Statewide divides
        by all rows.)
    """
    logits = query @ reference.T / temperature
    if len(query) < 2:
        return logits.sum() * 0
    own = torch.eye(len(query), dtype=torch.bool, device=query.device)
    keep = torch.ones_like(own) if valid is None else valid | own
    rows = _decoupled_cross_entropy(logits, own, keep, label_smoothing)
    return (rows + _decoupled_cross_entropy(logits.T, own, keep.T, label_smoothing)) / 2


def _decoupled_cross_entropy(logits: Tensor, own: Tensor, keep: Tensor, label_smoothing: float) -> Tensor:
    num_negatives = keep.sum(-1) - 1
    counts = num_negatives > 0
    keep = keep | ~counts[:, None]  # rows that do not count must still be finite
    log_probs = _decoupled_log_softmax(logits.masked_fill(~keep, -torch.inf))
    shares = label_smoothing / num_negatives.clamp_min(1).to(logits.dtype)
    targets = torch.where(own, 1 - label_smoothing, shares[:, None])
    return mean_where(-(targets * log_probs.masked_fill(~keep, 0)).sum(-1), counts)


def _decoupled_log_softmax(logits: Tensor) -> Tensor:
    """x_j - log sum_{k != j} exp x_k over the last axis, which needs two finite values: (N, M) -> (N, M)."""
    whole = logits.logsumexp(-1, keepdim=True)
    # Taking exp x_j out of the sum loses all digits where x_j is nearly all of it. That can only be the
    # largest; its rest is summed anew. All others are at most half of the sum.
    is_top = functional.one_hot(logits.argmax(-1), logits.shape[-1]).bool()
    share = (logits - whole).masked_fill(is_top, -torch.inf).exp()
    rest = torch.where(
        is_top, logits.masked_fill(is_top, -torch.inf).logsumexp(-1, keepdim=True), whole + (-share).log1p()
    )
    return logits - rest


def soft_margin_triplet_loss(
    query: Tensor, reference: Tensor, temperature: Tensor | float = 1 / 20, valid: Tensor | None = None
) -> Tensor:
    """Soft-margin triplets over all pairs of the batch: log(1 + exp(x_negative - x_positive)), both ways.

    Args:
        query: (B, D) unit vectors.
        reference: (B, D) unit vectors; row i belongs to row i of `query`.
        temperature: divides the cosines. 1/20 is the weight 10 on squared distances 2 - 2 cos of CVM-Net (Hu et
            al., CVPR 2018) and SAFA; 1/36 is Statewide's alternative loss.
        valid: (B, B) bool, which pairs (query, reference) count as negatives; the diagonal never does.

    Returns:
        The mean over all negatives of queries and of references.
    """
    logits = query @ reference.T / temperature
    negative = ~torch.eye(len(query), dtype=torch.bool, device=query.device)
    if valid is not None:
        negative = negative & valid
    positive = logits.diagonal()
    of_queries = functional.softplus(logits - positive[:, None])
    of_references = functional.softplus(logits - positive)
    return mean_where((of_queries + of_references).flatten() / 2, negative.flatten())
