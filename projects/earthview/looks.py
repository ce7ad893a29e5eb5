"""Random looks of map views that no training mosaic has: other textures, other colours, other relief shading."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from geoloc.train.augment import LUMA


def random_looks(
    images: Tensor, restyled_share: float, recoloured_share: float, generator: torch.Generator
) -> Tensor:
    """Restyle some images and recolour others, never both, so that the scene stays recognisable.

    Args:
        images: (B, 3, S, S) in [0, 1].
        restyled_share: probability that an image is restyled.
        recoloured_share: probability that it is recoloured; the sum of both is at most 1.

    Returns:
        (B, 3, S, S).
    """
    u = torch.rand(len(images), generator=generator)
    out = restyled(images, u < restyled_share, generator)
    return recoloured(out, (u >= restyled_share) & (u < restyled_share + recoloured_share), generator)


def recoloured(images: Tensor, chosen: Tensor, generator: torch.Generator) -> Tensor:
    """Recolour the chosen images by a random colour ramp along a random direction of their own colours.

    Fine detail of the lightness is added with a random strength and, one time in four, inverted.

    Args:
        images: (B, 3, S, S) in [0, 1].
        chosen: (B,) bool.

    Returns:
        (B, 3, S, S) in [0, 1].
    """
    rows = torch.nonzero(chosen).flatten()
    if not len(rows):
        return images
    picked = images[rows]
    n = len(rows)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(n, *shape, generator=generator) * (high - low) + low

    colours = picked.flatten(2) - picked.mean((2, 3))[..., None]  # (n, 3, S * S)
    covariance = colours @ colours.transpose(1, 2) / colours.shape[-1] + 1e-4 * torch.eye(3)
    variance, axes = torch.linalg.eigh(covariance)  # ascending
    mix = torch.randn(n, 3, generator=generator) * torch.tensor([0.3, 0.6, 1.0])
    direction = torch.einsum("nij,nj->ni", axes, mix / variance.sqrt())
    value = torch.einsum("ni,nip->np", direction, colours)
    value = value / (value.std(-1, keepdim=True) + 1e-6)
    position = (2.5 + 1.25 * value).clamp(0, 4.999).view(n, *picked.shape[2:])
    coloured = _on_ramp(position, uniform(0.05, 0.95, 6, 3))
    luma = (picked * torch.tensor(LUMA)[None, :, None, None]).sum(1, keepdim=True)
    across = functional.avg_pool2d(luma, (1, 9), stride=1, padding=(0, 4), count_include_pad=False)
    fine = luma - functional.avg_pool2d(across, (9, 1), stride=1, padding=(4, 0), count_include_pad=False)
    sign = torch.where(torch.rand(n, generator=generator) < 0.25, -1.0, 1.0)[:, None, None, None]
    share = uniform(0.5, 1.0, 1, 1, 1)
    out = images.clone()
    out[rows] = (share * coloured + (1 - share) * picked + sign * uniform(0.0, 3.0, 1, 1, 1) * fine).clamp(
        0, 1
    )
    return out


def _on_ramp(position: Tensor, colours: Tensor) -> Tensor:
    """Interpolated colours of ramp positions: (n, S, S) in [0, K - 1), (n, K, 3) -> (n, 3, S, S)."""
    below = position.long()
    image = torch.arange(len(position))[:, None, None]
    share = (position - below)[..., None]
    mixed = (1 - share) * colours[image, below] + share * colours[image, below + 1]
    return mixed.permute(0, 3, 1, 2)


def tinted(relief: Tensor, generator: torch.Generator) -> Tensor:
    """Relief rendered in random colours by height, lit from a random side; the sea is flat or coloured by depth.

    Args:
        relief: (B, 3, S, S) in [0, 1]: elevation, land (1) or sea (0), and how shallow the sea is.

    Returns:
        (B, 3, S, S) in [0, 1].
    """
    n, size = len(relief), relief.shape[-1]

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(n, *shape, generator=generator) * (high - low) + low

    angle = uniform(0, 2 * torch.pi, 1, 1, 1)

    def shaded(height: Tensor, strongest_shade: float) -> Tensor:
        ramp = _on_ramp((height[:, 0] * 5).clamp(0, 4.999), uniform(0.05, 0.95, 6, 3))
        east = functional.pad(height, (0, 1, 0, 0), mode="replicate").diff(dim=-1)
        south = functional.pad(height, (0, 0, 0, 1), mode="replicate").diff(dim=-2)
        shade = uniform(0.0, strongest_shade, 1, 1, 1)
        return ramp + shade * (torch.cos(angle) * east + torch.sin(angle) * south)

    elevation, land, shallow = relief[:, :1], relief[:, 1:2], relief[:, 2:]
    on_land = shaded(elevation.clamp(min=0) ** uniform(0.3, 0.8, 1, 1, 1), 6.0)
    flat = torch.rand(n, 1, 1, 1, generator=generator) < 0.4
    at_sea = shaded(shallow.clamp(min=0) ** uniform(0.3, 1.2, 1, 1, 1), 4.0)
    at_sea = torch.where(flat, uniform(0.05, 0.95, 3, 1, 1), at_sea)
    grain = torch.randn(n, 3, 8, 8, generator=generator) * uniform(0.0, 0.12, 1, 1, 1)
    grain = functional.interpolate(grain, size=(size, size), mode="bicubic", align_corners=False)
    return (land * on_land + (1 - land) * at_sea + grain).clamp(0, 1)


def restyled(images: Tensor, chosen: Tensor, generator: torch.Generator) -> Tensor:
    """Restyle the chosen images: random texture, then random colour statistics.

    A random small convolution, blended with the image, changes the texture and keeps the shapes (Xu et al., ICLR
    2021). Then every channel gets a random mean and standard deviation.

    Args:
        images: (B, 3, S, S) in [0, 1].
        chosen: (B,) bool.

    Returns:
        (B, 3, S, S), a little beyond [0, 1] where the deviation is large.
    """
    rows = torch.nonzero(chosen).flatten()
    if not len(rows):
        return images
    picked = images[rows]
    n, size = len(rows), int(torch.randint(0, 3, (), generator=generator)) * 2 + 1
    kernels = torch.randn(n * 3, 3, size, size, generator=generator) / (3 * size * size) ** 0.5
    padded = functional.pad(picked, (size // 2,) * 4, mode="replicate")
    filtered = functional.conv2d(padded.reshape(1, n * 3, *padded.shape[2:]), kernels, groups=n).view_as(
        picked
    )
    share = torch.rand(n, 1, 1, 1, generator=generator)
    mixed = share * _standardised(filtered) + (1 - share) * _standardised(picked)
    mean = torch.rand(n, 3, 1, 1, generator=generator) * 0.6 + 0.2
    deviation = torch.rand(n, 3, 1, 1, generator=generator) * 0.2 + 0.04
    out = images.clone()
    out[rows] = mean + deviation * _standardised(mixed)
    return out


def _standardised(images: Tensor) -> Tensor:
    """Each channel of each image with mean 0 and deviation 1."""
    mean, deviation = images.mean((2, 3), keepdim=True), images.std((2, 3), keepdim=True)
    return (images - mean) / (deviation + 1e-3)
