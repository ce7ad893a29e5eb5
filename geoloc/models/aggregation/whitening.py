"""PCA as a linear layer that is part of a checkpoint."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from geoloc.errors import ConfigError

MAX_DESCRIPTORS = 16_384  # limit of the VG benchmark


@torch.no_grad()
def fit_pca(layer: nn.Linear, descriptors: Tensor, *, whiten: bool = False) -> None:
    """Set a layer to the projection on the first principal axes: x -> (x - mean) · axes.

    The sign of each axis makes its largest coordinate positive.

    Args:
        layer: layer of input width W, with one output per axis.
        descriptors: (N, W) unit vectors of training images; of more than MAX_DESCRIPTORS, evenly spaced rows are used.
        whiten: scale each axis to variance 1.

    Raises:
        ConfigError: too few descriptors for the number of axes, or another width.
    """
    width, dim = layer.in_features, layer.out_features
    descriptors = descriptors[:: -(-len(descriptors) // MAX_DESCRIPTORS) or 1]
    if descriptors.shape[1] != width or dim > min(len(descriptors) - 1, width):
        raise ConfigError(
            f"PCA from {width} to {dim} numbers cannot be fitted on {len(descriptors)} descriptors of "
            f"{descriptors.shape[1]} numbers: it needs more than {dim} of them, of {width} numbers"
        )
    x = descriptors.double()
    mean = x.mean(0)
    x = x - mean
    # The smaller of covariance and Gram matrix; both have the same eigenvalues.
    if width <= len(x):
        variance, axes = torch.linalg.eigh(x.T @ x)
        axes = axes[:, -dim:].flip(1)
    else:
        variance, coordinates = torch.linalg.eigh(x @ x.T)
        axes = nn.functional.normalize(x.T @ coordinates[:, -dim:].flip(1), dim=0)
    largest = axes.abs().argmax(0)
    axes = (axes * axes.gather(0, largest[None]).sign()).T  # (dim, W)
    if whiten:
        deviation = (variance[-dim:].flip(0) / (len(x) - 1)).clamp_min(1e-12).sqrt()
        axes = axes / deviation[:, None]
    layer.weight.copy_(axes)
    layer.bias.copy_(-(axes @ mean))
