"""Training losses as pure functions of tensors; each states its formula's source.

cells.py        which class: a cell, an administrative unit, and the coarser groups above it
offsets.py      where inside a cell
regression.py   coordinates without cells
contrastive.py  embeddings of things that belong together
auxiliary.py    what else a photo shows: land cover, climate, side of the road

Every loss is a scalar. A row whose truth is unknown (class -1, number NaN) counts for nothing; where no row
counts, the loss is 0 and so are its gradients. Losses over pairs see the rows they are given: with several
ranks, gather embeddings (with gradient) and labels first. Knows nothing about networks, optimisers or data.
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
from geoloc.models.losses.offsets import offset_loss
from geoloc.models.losses.regression import great_circle_loss_km, haversine_km, latlon_l1_loss

__all__ = [
    "AUXILIARY_WIDTHS",
    "admin_hierarchical_loss",
    "auxiliary_losses",
    "class_loss",
    "decoupled_contrastive_loss",
    "great_circle_loss_km",
    "haversine_km",
    "haversine_smoothed_loss",
    "hierarchical_cell_loss",
    "info_nce",
    "info_nce_among_images",
    "info_nce_on_the_ground",
    "latlon_l1_loss",
    "mil_nce",
    "offset_loss",
    "region_mil_nce",
    "soft_margin_triplet_loss",
    "text_nce",
]
