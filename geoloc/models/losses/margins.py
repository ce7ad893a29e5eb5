"""Margin classifiers: logits of normalised embeddings and class weights, with a margin on the true class.

The logits are for `class_loss`, which leaves out rows of class -1. pytorch-metric-learning's margin losses are not
used: its modules own one weight matrix, while CosPlace has a classifier per group, and its ArcFace and SphereFace
propagate gradients through the margin. Its CosFace equals ours (tested).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

_NEARLY_ONE = 1 - 1e-7  # arccos has an infinite slope at 1


def cosface_logits(
    embeddings: Tensor, weights: Tensor, class_ids: Tensor, *, scale: float = 30.0, margin: float = 0.4
) -> Tensor:
    """Logits s cos θ, and s (cos θ - m) of the true class (CosFace, Wang et al., CVPR 2018; CosPlace's s and m).

    Args:
        embeddings: (B, D).
        weights: (C, D).
        class_ids: (B,) true classes, -1 is unknown.
        scale: s.
        margin: m.

    Returns:
        (B, C).
    """
    return scale * (_cosines(embeddings, weights) - margin * _is_true(class_ids, len(weights)))


def arcface_logits(
    embeddings: Tensor, weights: Tensor, class_ids: Tensor, *, scale: float = 64.0, margin: float = 0.5
) -> Tensor:
    """Logits s cos θ, and s cos(min(θ + m, π)) of the true class (ArcFace, CVPR 2019); as `cosface_logits`.

    The margin has no gradient, as in the CosPlace fork that compared these losses.
    """
    cosines = _cosines(embeddings, weights)
    moved = torch.cos((_angles(cosines) + margin).clamp(max=math.pi))
    return scale * _where_true(cosines, moved, class_ids)


def sphereface_logits(
    embeddings: Tensor, weights: Tensor, class_ids: Tensor, *, scale: float = 30.0, margin: float = 1.5
) -> Tensor:
    """Logits s cos θ, and s ((-1)^k cos(m θ) - 2k), k = ⌊m θ / π⌋, of the true class; as `arcface_logits`.

    SphereFace (Liu et al., CVPR 2017) with a fixed scale and without the margin's gradient (SphereFace revived, Liu et
    al., TPAMI 2022).
    """
    cosines = _cosines(embeddings, weights)
    turned = margin * _angles(cosines)
    k = (turned / math.pi).floor()
    moved = (1 - 2 * k.remainder(2)) * torch.cos(turned) - 2 * k
    return scale * _where_true(cosines, moved, class_ids)


def emms_logits(
    embeddings: Tensor,
    weights: Tensor,
    class_ids: Tensor,
    *,
    scale: float = 30.0,
    margin: float = 0.4,
    plain_share: float = 1.0,
) -> Tensor:
    """`cosface_logits` plus l times the inner products of the same weights (EMMS, of CosPlace's fork).

    Here lengths count: of the weights, and of the embeddings where they are no unit vectors.

    Args:
        plain_share: l.
    """
    logits = cosface_logits(embeddings, weights, class_ids, scale=scale, margin=margin)
    return logits + plain_share * embeddings @ weights.T


MARGIN_LOGITS: dict[str, Callable[..., Tensor]] = {
    "cosface": cosface_logits,
    "arcface": arcface_logits,
    "sphereface": sphereface_logits,
    "emms": emms_logits,
}


def _cosines(embeddings: Tensor, weights: Tensor) -> Tensor:
    """Cosines of embeddings and class weights, (B, D), (C, D) -> (B, C)."""
    return functional.normalize(embeddings, dim=-1) @ functional.normalize(weights, dim=-1).T


def _angles(cosines: Tensor) -> Tensor:
    return cosines.detach().clamp(-_NEARLY_ONE, _NEARLY_ONE).acos()


def _is_true(class_ids: Tensor, num_classes: int) -> Tensor:
    return class_ids[:, None] == torch.arange(num_classes, device=class_ids.device)


def _where_true(cosines: Tensor, moved: Tensor, class_ids: Tensor) -> Tensor:
    """Moved cosines for the true classes, with the gradients of the plain cosines."""
    step = (moved - cosines.detach()).masked_fill(~_is_true(class_ids, cosines.shape[1]), 0)
    return cosines + step
