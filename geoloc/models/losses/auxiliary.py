"""Losses of OSV-5M's auxiliary targets (Astruc et al., CVPR 2024)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from torch import Tensor
from torch.nn import functional

from geoloc.errors import ConfigError
from geoloc.models.losses.cells import class_loss
from geoloc.models.losses.masked import mean_where

# Outputs of the head of each target. Climate has 30 classes with codes 0 to 30, without 20.
AUXILIARY_WIDTHS: Final = {
    "land_cover": 12,
    "climate": 31,
    "soil": 14,
    "drive_side": 1,
    "road_index": 1,
    "dist_sea": 1,
}


def auxiliary_losses(predictions: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """One loss for every predicted auxiliary target.

    Cross-entropy for land cover, climate and soil, binary cross-entropy of logits for the side of the road (OSV-5M
    applies softmax twice), squared error for the two numbers.

    Args:
        predictions: by name in AUXILIARY_WIDTHS, (B, width): logits, or the number itself.
        targets: by name, (B,): class ids with -1 for unknown; or float with NaN for unknown, drive_side in [0, 1],
            numbers standardised.

    Returns:
        By name, the mean over the rows with a known target.

    Raises:
        ConfigError: an unknown name, or a prediction without a target.
    """
    if unknown := sorted(predictions.keys() - AUXILIARY_WIDTHS.keys()):
        raise ConfigError(f"unknown auxiliary target {unknown[0]!r}; known are {', '.join(AUXILIARY_WIDTHS)}")
    if missing := sorted(predictions.keys() - targets.keys()):
        raise ConfigError(
            f"{missing[0]!r} is predicted, but the batch has no such target (it has: "
            f"{', '.join(sorted(targets)) or 'none'}); read that column, or do not predict it"
        )
    return {name: _loss(name, predicted, targets[name]) for name, predicted in predictions.items()}


def _loss(name: str, predicted: Tensor, target: Tensor) -> Tensor:
    if AUXILIARY_WIDTHS[name] > 1:
        return class_loss(predicted, target)
    known = ~target.isnan()
    # A NaN would pass into the gradient even where the loss is masked.
    filled = target.to(predicted.dtype).nan_to_num(0.0)
    of_rows = functional.binary_cross_entropy_with_logits if name == "drive_side" else functional.mse_loss
    return mean_where(of_rows(predicted.squeeze(-1), filled, reduction="none"), known)
