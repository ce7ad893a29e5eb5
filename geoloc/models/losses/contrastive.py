"""Contrastive losses: paired views, bags of a region, photos and texts."""

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
        valid: (B, B) bool, pairs (query, reference) that count as negatives; Statewide masks pairs that are near each
            other on the ground. The diagonal always counts.

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
    """InfoNCE with soft targets: near references share the target.

    A row's target is proportional to exp(-d^2 / 2 scale^2) over the batch. With a small scale and pairs far apart
    it equals `info_nce`.

    Args:
        query: (B, D) unit vectors.
        reference: (B, D) unit vectors; row i belongs to row i of `query`.
        temperature: divides the cosines.
        distance_km: (B, B) distances on the ground of queries (rows) and references (columns).
        scale_km: standard deviation of the target.

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
        images: (B, D) of any length.
        positives: (B, D); row i shows the same place or region as row i of `images`.
        temperature: divides the cosines.

    Returns:
        The mean over images of the cross-entropy of their own positive against all other images.
    """
    images, positives = functional.normalize(images, dim=-1), functional.normalize(positives, dim=-1)
    own = torch.eye(len(images), dtype=torch.bool, device=images.device)
    cosines = torch.where(own, (images * positives).sum(-1), images @ images.T)
    return functional.cross_entropy(cosines / temperature, torch.arange(len(images), device=images.device))


def mil_nce(images: Tensor, positives: Tensor, label_ids: Tensor, temperature: float = 0.1) -> Tensor:
    """MIL-NCE: all rows that share an anchor's label are one bag of positives (Miech et al. 2020; OSV-5M).

    Over the 2B rows of images and positives, the sum of log sum_{j != i} exp s_ij - log sum_{j != i, same label}
    exp s_ij, s being cosines over the temperature. It is a sum, as in OSV-5M: see `region_mil_nce`.

    Args:
        images: (B, D) of any length.
        positives: (B, D) of any length; row i has the label of row i of `images`.
        label_ids: (B,) label, such as the region; rows of -1 (unknown) are negatives only, unlike in OSV-5M.
        temperature: divides the cosines.
    """
    features = functional.normalize(torch.cat([images, positives]), dim=-1)
    labels = torch.cat([label_ids, label_ids])
    own = torch.eye(len(features), dtype=torch.bool, device=features.device)
    logits = (features @ features.T / temperature).masked_fill(own, -torch.inf)
    known = labels >= 0
    # Unknown rows get all others as positives: the logarithm of an empty sum has no gradient.
    same = (labels[:, None] == labels) | ~known[:, None]
    bag = logits.masked_fill(~same, -torch.inf).logsumexp(-1)
    return (logits.logsumexp(-1) - bag).masked_fill(~known, 0).sum()


def region_mil_nce(images: Tensor, positives: Tensor, label_ids: Tensor, temperature: float = 0.1) -> Tensor:
    """`mil_nce` over B, so that it does not grow with the batch (OSV-5M's `region_mil`, in its best model)."""
    return mil_nce(images, positives, label_ids, temperature) / len(images)


def text_nce(images: Tensor, texts: Tensor, label_ids: Tensor, temperature: float = 0.1) -> Tensor:
    """Image-text contrast: all texts of an image's label are positives.

    Per image log sum_j exp s_ij - log sum_{j: same label} exp s_ij. (OSV-5M's `text-nce` is the sum instead of
    the mean, and leaves an image's own text out of the first sum only, so that it has no lower bound.)

    Args:
        images: (B, D) of any length.
        texts: (B, D) of any length; row i describes the location of row i of `images`.
        label_ids: (B,) labels; images of -1 (unknown) are left out, and their texts are negatives.
        temperature: divides the cosines.

    Returns:
        The mean over the images with a known label.
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

    The log-probability of candidate j is x_ij - log sum_{k != j} exp x_ik, without j in the denominator (Yeh et al.,
    Decoupled Contrastive Learning, 2022). The target is 1 - s for a row's own partner, and s is shared equally by its
    other candidates.

    Args:
        query: (B, D) unit vectors.
        reference: (B, D) unit vectors; row i belongs to row i of `query`.
        temperature: divides the cosines; Statewide's vectors have length 6, so 1/36.
        valid: (B, B) bool, pairs (query, reference) that count as negatives; the diagonal always counts. Statewide
            masks references within one cell, 30 m, of the query.
        label_smoothing: s.

    Returns:
        The mean of both directions; in each, the mean over the rows that have a negative. (Statewide divides by all
        rows.)
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
    keep = keep | ~counts[:, None]  # rows without negative must stay finite
    log_probs = _decoupled_log_softmax(logits.masked_fill(~keep, -torch.inf))
    shares = label_smoothing / num_negatives.clamp_min(1).to(logits.dtype)
    targets = torch.where(own, 1 - label_smoothing, shares[:, None])
    return mean_where(-(targets * log_probs.masked_fill(~keep, 0)).sum(-1), counts)


def _decoupled_log_softmax(logits: Tensor) -> Tensor:
    """x_j - log sum_{k != j} exp x_k over the last axis, which needs two finite values: (N, M) -> (N, M)."""
    total = logits.logsumexp(-1, keepdim=True)
    # Subtracting exp x_j from the sum loses all digits if x_j is nearly all of it. Only the largest can be; for it the
    # other terms are summed directly.
    is_top = functional.one_hot(logits.argmax(-1), logits.shape[-1]).bool()
    share = (logits - total).masked_fill(is_top, -torch.inf).exp()
    rest = torch.where(
        is_top, logits.masked_fill(is_top, -torch.inf).logsumexp(-1, keepdim=True), total + (-share).log1p()
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
        valid: (B, B) bool, pairs (query, reference) that count as negatives; the diagonal never counts.

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
