"""Losses over batches of places with several photos each, and over mined tuples; miners select pairs.

Losses and miners of pytorch-metric-learning (MIT) are used where it has them; only this file imports it. Defaults are
GSV-Cities' (Ali-bey et al., Neurocomputing 2022). Embeddings are (B, D) unit vectors, labels (B,) places; rows of label
-1 are left out, and a batch without pairs has the loss 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from geoloc.errors import MissingDependencyError
from geoloc.models.losses.masked import mean_where


@dataclass(frozen=True)
class Pairs:
    """Selected pairs of a batch, as row indices.

    Attributes:
        anchors: (P,) anchors of positive pairs.
        positives: (P,) positives, of the anchors' places.
        negative_anchors: (N,) anchors of negative pairs.
        negatives: (N,) negatives, of other places.
    """

    anchors: Tensor
    positives: Tensor
    negative_anchors: Tensor
    negatives: Tensor


# --- Miners -------------------------------------------------------------------------------------------------


def multi_similarity_pairs(embeddings: Tensor, labels: Tensor, *, epsilon: float = 0.1) -> Pairs:
    """Negatives more similar than the least similar positive - ε, positives less similar than the best negative + ε.

    Multi-Similarity miner (Wang et al., CVPR 2019), by cosine.
    """
    return _mine(_library().miners.MultiSimilarityMiner(epsilon=epsilon), embeddings, labels)


def semihard_pairs(embeddings: Tensor, labels: Tensor, *, margin: float = 0.1) -> Pairs:
    """Triplets whose negative is farther than the positive, by less than the margin (FaceNet, CVPR 2015)."""
    miner = _library().miners.TripletMarginMiner(margin=margin, type_of_triplets="semihard")
    return _mine(miner, embeddings, labels)


def margin_pairs(
    embeddings: Tensor, labels: Tensor, *, positive_below: float = 0.7, negative_above: float = 0.3
) -> Pairs:
    """Positives with a cosine below one threshold, negatives with a cosine above the other."""
    miner = _library().miners.PairMarginMiner(
        pos_margin=positive_below, neg_margin=negative_above, distance=_library().distances.CosineSimilarity()
    )
    return _mine(miner, embeddings, labels)


# --- Losses over a batch ------------------------------------------------------------------------------------


def multi_similarity_loss(
    embeddings: Tensor,
    labels: Tensor,
    pairs: Pairs | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 50.0,
    base: float = 0.0,
) -> Tensor:
    """Mean over anchors of log(1 + Σ_pos e^(-α (s - λ))) / α + log(1 + Σ_neg e^(β (s - λ))) / β, s dot products.

    Args:
        embeddings: (B, D).
        labels: (B,).
        pairs: pairs of a miner; None takes all of the batch.
        alpha: α, of positives (Wang et al., CVPR 2019).
        beta: β, of negatives.
        base: λ.
    """
    library = _library()
    loss = library.losses.MultiSimilarityLoss(
        alpha=alpha, beta=beta, base=base, distance=library.distances.DotProductSimilarity()
    )
    return _loss(loss, embeddings, labels, pairs)


def pairwise_contrastive_loss(
    embeddings: Tensor,
    labels: Tensor,
    pairs: Pairs | None = None,
    *,
    positive_margin: float = 0.0,
    negative_margin: float = 1.0,
) -> Tensor:
    """Mean of [d - m+]+ over positives plus mean of [m- - d]+ over negatives, where not 0 (Hadsell et al., 2006)."""
    loss = _library().losses.ContrastiveLoss(pos_margin=positive_margin, neg_margin=negative_margin)
    return _loss(loss, embeddings, labels, pairs)


def circle_loss(
    embeddings: Tensor,
    labels: Tensor,
    pairs: Pairs | None = None,
    *,
    margin: float = 0.4,
    scale: float = 80.0,
) -> Tensor:
    """Circle loss: pairs are weighted by the distance to their optimum (Sun et al., CVPR 2020)."""
    return _loss(_library().losses.CircleLoss(m=margin, gamma=scale), embeddings, labels, pairs)


def supervised_contrastive_loss(
    embeddings: Tensor, labels: Tensor, pairs: Pairs | None = None, *, temperature: float = 0.07
) -> Tensor:
    """SupCon: each positive against all others, mean over an anchor's positives (Khosla et al., NeurIPS 2020)."""
    return _loss(_library().losses.SupConLoss(temperature=temperature), embeddings, labels, pairs)


def nt_xent_loss(
    embeddings: Tensor, labels: Tensor, pairs: Pairs | None = None, *, temperature: float = 0.07
) -> Tensor:
    """NT-Xent: each positive pair against the anchor's negatives, mean over pairs (Sohn, NIPS 2016)."""
    return _loss(_library().losses.NTXentLoss(temperature=temperature), embeddings, labels, pairs)


def fast_ap_loss(
    embeddings: Tensor, labels: Tensor, pairs: Pairs | None = None, *, num_bins: int = 30
) -> Tensor:
    """1 - average precision by soft histograms of squared distances (FastAP, Cakir et al., CVPR 2019)."""
    return _loss(_library().losses.FastAPLoss(num_bins=num_bins), embeddings, labels, pairs)


def lifted_structure_loss(
    embeddings: Tensor,
    labels: Tensor,
    pairs: Pairs | None = None,
    *,
    positive_margin: float = 1.0,
    negative_margin: float = 0.0,
) -> Tensor:
    """Mean of [log Σ_pos e^(m+ - s) + log Σ_neg e^(s - m-)]+, s dot products (Hermans et al., 2017, generalised)."""
    library = _library()
    loss = library.losses.GeneralizedLiftedStructureLoss(
        pos_margin=positive_margin,
        neg_margin=negative_margin,
        distance=library.distances.DotProductSimilarity(),
    )
    return _loss(loss, embeddings, labels, pairs)


def batch_triplet_loss(
    embeddings: Tensor, labels: Tensor, pairs: Pairs | None = None, *, margin: float = 0.1
) -> Tensor:
    """Mean of [d(a, p) - d(a, n) + m]+ over the triplets of a batch for which it is not 0, d Euclidean."""
    return _loss(_library().losses.TripletMarginLoss(margin=margin), embeddings, labels, pairs)


def centroid_triplet_loss(
    embeddings: Tensor, labels: Tensor, pairs: Pairs | None = None, *, margin: float = 0.05
) -> Tensor:
    """Mean of [d(a, c_own) - d(a, c_other) + m]+ where it is not 0 (centroid triplets, Wieczorek et al., 2021).

    d is Euclidean between unit vectors, c_own the direction of the mean over a place's photos without the anchor, and
    c_other that over all photos of another place.

    Args:
        pairs: ignored, because centroids use whole places.
    """
    known = labels >= 0
    if not known.any():
        return 0 * embeddings.sum()
    x, labels = functional.normalize(embeddings[known], dim=-1), labels[known]
    places, place = labels.unique(return_inverse=True)
    member = functional.one_hot(place, len(places)).to(x.dtype)  # (B, P)
    sums = member.T @ x
    # A place of one photo has no others, and their sum no direction.
    others = torch.where((member.sum(0)[place] > 1)[:, None], sums[place] - x, x.detach())
    own = (x - functional.normalize(others, dim=-1)).square().sum(-1)
    away = (x[:, None] - functional.normalize(sums, dim=-1)).square().sum(-1)
    counts = (member == 0) & (member.sum(0)[place] > 1)[:, None]
    # The square root has no gradient at 0.
    excess = own.clamp_min(1e-12).sqrt()[:, None] - away.clamp_min(1e-12).sqrt() + margin
    active = counts & (excess > 0)
    return mean_where(excess.flatten(), active.flatten())


# --- Losses over mined tuples -------------------------------------------------------------------------------


def mined_triplet_loss(query: Tensor, positive: Tensor, negatives: Tensor, *, margin: float = 0.1) -> Tensor:
    """Σ [|q - p| - |q - n| + m]+ over all negatives / (B N): the VG benchmark's (Berton et al., CVPR 2022).

    Args:
        query: (B, D).
        positive: (B, D), the best positive of each query.
        negatives: (B, N, D), 10 hard negatives in the benchmark.
        margin: m.
    """
    queries, positives = (x[:, None].expand_as(negatives) for x in (query, positive))
    return functional.triplet_margin_loss(queries, positives, negatives, margin=margin)


def sare_independent_loss(query: Tensor, positive: Tensor, negatives: Tensor) -> Tensor:
    """SARE-ind: Σ -log softmax(-|q - p|², -|q - n|²)_p, one negative at a time, / (B N); as `mined_triplet_loss`.

    Liu et al., Stochastic Attraction-Repulsion Embedding, ICCV 2019.
    """
    near, far = _squared_distances(query, positive, negatives)
    return functional.softplus(near - far).mean()


def sare_joint_loss(query: Tensor, positive: Tensor, negatives: Tensor) -> Tensor:
    """SARE-joint: `sare_independent_loss` with all negatives of a query in one softmax, divided by B N as well."""
    near, far = _squared_distances(query, positive, negatives)
    return -torch.cat([-near, -far], 1).log_softmax(1)[:, 0].mean() / negatives.shape[1]


def _squared_distances(query: Tensor, positive: Tensor, negatives: Tensor) -> tuple[Tensor, Tensor]:
    """Squared distances to the positive (B, 1), and to the negatives (B, N)."""
    near = (query - positive).square().sum(-1, keepdim=True)
    return near, (query[:, None] - negatives).square().sum(-1)


BatchLoss = Callable[..., Tensor]

BATCH_LOSSES: dict[str, BatchLoss] = {
    "multi_similarity": multi_similarity_loss,
    "contrastive": pairwise_contrastive_loss,
    "circle": circle_loss,
    "supcon": supervised_contrastive_loss,
    "nt_xent": nt_xent_loss,
    "fast_ap": fast_ap_loss,
    "lifted": lifted_structure_loss,
    "triplet": batch_triplet_loss,
    "centroid_triplet": centroid_triplet_loss,
}

MINERS: dict[str, Callable[..., Pairs]] = {
    "multi_similarity": multi_similarity_pairs,
    "semihard": semihard_pairs,
    "margin": margin_pairs,
}

TUPLE_LOSSES: dict[str, Callable[..., Tensor]] = {
    "triplet": mined_triplet_loss,
    "sare_independent": sare_independent_loss,
    "sare_joint": sare_joint_loss,
}


# --- pytorch-metric-learning --------------------------------------------------------------------------------


def _library() -> Any:
    try:
        import pytorch_metric_learning
        from pytorch_metric_learning import distances, losses, miners  # noqa: F401  submodules of it
    except ImportError as error:
        raise MissingDependencyError(
            "losses over pairs need pytorch-metric-learning: pip install 'geoloc-vision[train]'"
        ) from error
    return pytorch_metric_learning


def _mine(miner: Any, embeddings: Tensor, labels: Tensor) -> Pairs:
    rows = torch.nonzero(labels >= 0).flatten()
    found = miner(embeddings[rows].detach(), labels[rows])
    if len(found) == 3:
        found = (found[0], found[1], found[0], found[2])
    return Pairs(*(rows[index] for index in found))


def _loss(loss: Any, embeddings: Tensor, labels: Tensor, pairs: Pairs | None) -> Tensor:
    rows = torch.nonzero(labels >= 0).flatten()
    chosen: tuple[Tensor, ...] | None = None
    if pairs is not None:
        position = torch.zeros_like(labels).index_copy(0, rows, torch.arange(len(rows), device=rows.device))
        of_batch = (pairs.anchors, pairs.positives, pairs.negative_anchors, pairs.negatives)
        chosen = tuple(position[index] for index in of_batch)
    value: Tensor = loss(embeddings[rows], labels[rows], chosen)
    return value
