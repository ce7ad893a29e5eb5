"""PCA as a linear layer, which a checkpoint carries like any other."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from geoloc.errors import ConfigError

MAX_DESCRIPTORS = 16_384  # what the VG benchmark fits on, at most


@torch.no_grad()
def fit_pca(layer: nn.Linear, descriptors: Tensor, *, whiten: bool = False) -> None:
    """Make a layer project on the descriptors' first principal axes: x -> (x - mean) · axes.

    Each axis points so that its largest coordinate is positive.

    Args:
        layer: W wide on its input; as many axes as it has outputs.
        descriptors: (N, W), unit vectors of training images; of more than MAX_DESCRIPTORS, that many are taken at even
            steps.
        whiten: each axis has variance 1, too.

    Raises:
        ConfigError: there are too few descriptors for that many axes, or of another width.
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
    # Of covariance and Gram matrix, the smaller one: both have the same eigenvalues.
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
