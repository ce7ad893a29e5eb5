"""Training losses as pure functions of tensors; each names the source of its formula.

cells.py        classes: cells, administrative units and coarser groups
offsets.py      offsets inside cells
regression.py   coordinates
contrastive.py  paired embeddings
margins.py      margin classifiers: CosFace, ArcFace, SphereFace, EMMS
pairs.py        places with several photos, mined tuples, and miners
auxiliary.py    land cover, climate, side of the road, …

Every loss is a scalar. Rows with an unknown target (class -1, NaN) are left out; without any row, loss and gradients
are 0. Losses over pairs use the rows they get: with several ranks, gather embeddings and labels first.
"""

from geoloc.models.losses.auxiliary import AUXILIARY_WIDTHS, auxiliary_losses
from geoloc.models.losses.cells import (
    admin_hierarchical_loss,
    class_loss,
    haversine_smoothed_loss,
    hierarchical_cell_loss,
)
from geoloc.models.losses.contrastive import (
    decoupled_contrastive_loss,
    info_nce,
    info_nce_among_images,
    info_nce_on_the_ground,
    mil_nce,
    region_mil_nce,
    soft_margin_triplet_loss,
    text_nce,
)
from geoloc.models.losses.margins import (
    MARGIN_LOGITS,
    arcface_logits,
    cosface_logits,
    emms_logits,
    sphereface_logits,
)
from geoloc.models.losses.offsets import offset_loss
from geoloc.models.losses.pairs import (
    BATCH_LOSSES,
    MINERS,
    TUPLE_LOSSES,
    Pairs,
    batch_triplet_loss,
    centroid_triplet_loss,
    circle_loss,
    fast_ap_loss,
    lifted_structure_loss,
    margin_pairs,
    mined_triplet_loss,
    multi_similarity_loss,
    multi_similarity_pairs,
    nt_xent_loss,
    pairwise_contrastive_loss,
    sare_independent_loss,
    sare_joint_loss,
    semihard_pairs,
    supervised_contrastive_loss,
)
from geoloc.models.losses.regression import great_circle_loss_km, haversine_km, latlon_l1_loss

__all__ = [
    "AUXILIARY_WIDTHS",
    "BATCH_LOSSES",
    "MARGIN_LOGITS",
    "MINERS",
    "TUPLE_LOSSES",
    "Pairs",
    "admin_hierarchical_loss",
    "arcface_logits",
    "auxiliary_losses",
    "batch_triplet_loss",
    "centroid_triplet_loss",
    "circle_loss",
    "class_loss",
    "cosface_logits",
    "decoupled_contrastive_loss",
    "emms_logits",
    "fast_ap_loss",
    "great_circle_loss_km",
    "haversine_km",
    "haversine_smoothed_loss",
    "hierarchical_cell_loss",
    "info_nce",
    "info_nce_among_images",
    "info_nce_on_the_ground",
    "latlon_l1_loss",
    "lifted_structure_loss",
    "margin_pairs",
    "mil_nce",
    "mined_triplet_loss",
    "multi_similarity_loss",
    "multi_similarity_pairs",
    "nt_xent_loss",
    "offset_loss",
    "pairwise_contrastive_loss",
    "region_mil_nce",
    "sare_independent_loss",
    "sare_joint_loss",
    "semihard_pairs",
    "soft_margin_triplet_loss",
    "sphereface_logits",
    "supervised_contrastive_loss",
    "text_nce",
]
