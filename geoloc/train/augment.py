"""Photometric augmentation of image batches: the same scene under another appearance.

Knows nothing about what the images show.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


def photometric(images: Tensor, generator: torch.Generator, strength: float = 1.0) -> Tensor:
    """A random appearance for every image, (B, 3, S, S) in [0, 1] -> the same, in [0, 1].

    Per image: gamma a channel, brightness, contrast, a random mixing of the colour channels (which turns
    hues), grey with probability 0.1, loss of detail (shrunk by 1.5 to 3 and grown again) with probability 0.25,
    noise.

    Args:
        strength: 0 changes nothing but noise and detail.
    """
    n, size = len(images), images.shape[-1]

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(n, *shape, generator=generator) * (high - low) + low

    out = images.clamp(1e-4, 1) ** torch.exp(strength * uniform(-0.4, 0.4, 3, 1, 1))
    mixing = torch.eye(3) + strength * uniform(-0.15, 0.15, 3, 3)
    mixing = mixing / mixing.sum(-1, keepdim=True)
    out = torch.einsum("bij,bjhw->bihw", mixing, out)
    grey = torch.rand(n, generator=generator) < 0.1 * strength
    luma = (out * torch.tensor(LUMA)[None, :, None, None]).sum(1, keepdim=True)
    saturation = torch.where(grey, 0.0, 1 + strength * uniform(-0.6, 0.6))[:, None, None, None]
    out = luma + saturation * (out - luma)
    mean = out.mean((1, 2, 3), keepdim=True)
    out = mean + (1 + strength * uniform(-0.4, 0.4, 1, 1, 1)) * (out - mean)
    out = out + strength * uniform(-0.15, 0.15, 3, 1, 1)
    for i in torch.nonzero(torch.rand(n, generator=generator) < 0.25).flatten().tolist():
        small = int(size / (1.5 + 1.5 * float(torch.rand((), generator=generator))))
        shrunk = functional.interpolate(out[i : i + 1], size=(small, small), mode="area")
        out[i] = functional.interpolate(shrunk, size=(size, size), mode="bicubic", align_corners=False)[0]
    out = out + 0.02 * torch.randn(out.shape, generator=generator)
    return out.clamp(0, 1)


def in_strange_looks(
    images: Tensor, restyled_share: float, recoloured_share: float, generator: torch.Generator
) -> Tensor:
    """Some images `restyled`, others `recoloured`, never both: what is left of the scene can still be read.

    Args:
        images: (B, 3, S, S) in [0, 1].
        restyled_share: probability that an image is restyled.
        recoloured_share: probability that it is recoloured; the sum of both is at most 1.

    Returns:
        (B, 3, S, S).
    """
    drawn = torch.rand(len(images), generator=generator)
    out = restyled(images, drawn < restyled_share, generator)
    return recoloured(out, (drawn >= restyled_share) & (drawn < restyled_share + recoloured_share), generator)


def recoloured(images: Tensor, chosen: Tensor, generator: torch.Generator) -> Tensor:
    """Chosen images in colours that nobody gave them: a random ramp along a random direction of their own colours.

    What map makers do with heights, land cover or anything else, done with whatever an image's colours say. Fine detail
    of the lightness is laid over it, weaker or stronger, sometimes inverted, as if lit from the other side.

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
    place = (2.5 + 1.25 * value).clamp(0, 4.999).view(n, *picked.shape[2:])
    drawn = _on_ramp(place, uniform(0.05, 0.95, 6, 3))
    luma = (picked * torch.tensor(LUMA)[None, :, None, None]).sum(1, keepdim=True)
    across = functional.avg_pool2d(luma, (1, 9), stride=1, padding=(0, 4), count_include_pad=False)
    fine = luma - functional.avg_pool2d(across, (9, 1), stride=1, padding=(4, 0), count_include_pad=False)
    sign = torch.where(torch.rand(n, generator=generator) < 0.25, -1.0, 1.0)[:, None, None, None]
    share = uniform(0.5, 1.0, 1, 1, 1)
    out = images.clone()
    out[rows] = (share * drawn + (1 - share) * picked + sign * uniform(0.0, 3.0, 1, 1, 1) * fine).clamp(0, 1)
    return out


def _on_ramp(place: Tensor, colours: Tensor) -> Tensor:
    """Colours at places on ramps, (n, S, S) in [0, K - 1), (n, K, 3) -> (n, 3, S, S)."""
    below = place.long()
    image = torch.arange(len(place))[:, None, None]
    share = (place - below)[..., None]
    mixed = (1 - share) * colours[image, below] + share * colours[image, below + 1]
    return mixed.permute(0, 3, 1, 2)


def tinted(relief: Tensor, generator: torch.Generator) -> Tensor:
    """Maps that nobody has drawn: random colours by height, light from a random side; seas flat or coloured by depth.

    Args:
        relief: (B, 3, S, S) in [0, 1]: elevation, land (1) or sea (0), and how shallow the sea is.

    Returns:
        (B, 3, S, S) in [0, 1].
    """
    n, size = len(relief), relief.shape[-1]

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(n, *shape, generator=generator) * (high - low) + low

    angle = uniform(0, 2 * torch.pi, 1, 1, 1)

    def drawn_by(height: Tensor, strongest_shade: float) -> Tensor:
        ramp = _on_ramp((height[:, 0] * 5).clamp(0, 4.999), uniform(0.05, 0.95, 6, 3))
        east = functional.pad(height, (0, 1, 0, 0), mode="replicate").diff(dim=-1)
        south = functional.pad(height, (0, 0, 0, 1), mode="replicate").diff(dim=-2)
        shade = uniform(0.0, strongest_shade, 1, 1, 1)
        return ramp + shade * (torch.cos(angle) * east + torch.sin(angle) * south)

    elevation, land, shallow = relief[:, :1], relief[:, 1:2], relief[:, 2:]
    on_land = drawn_by(elevation.clamp(min=0) ** uniform(0.3, 0.8, 1, 1, 1), 6.0)
    flat = torch.rand(n, 1, 1, 1, generator=generator) < 0.4
    at_sea = drawn_by(shallow.clamp(min=0) ** uniform(0.3, 1.2, 1, 1, 1), 4.0)
    at_sea = torch.where(flat, uniform(0.05, 0.95, 3, 1, 1), at_sea)
    grain = torch.randn(n, 3, 8, 8, generator=generator) * uniform(0.0, 0.12, 1, 1, 1)
    grain = functional.interpolate(grain, size=(size, size), mode="bicubic", align_corners=False)
    return (land * on_land + (1 - land) * at_sea + grain).clamp(0, 1)


def restyled(images: Tensor, chosen: Tensor, generator: torch.Generator) -> Tensor:
    """Chosen images in the style of no picture that exists: random texture, then random colour statistics.

    A random small filter, blended with the image, changes the texture and keeps the shapes (random convolutions, Xu et
    al., ICLR 2021); then every channel gets a random mean and deviation.

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
