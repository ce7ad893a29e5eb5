"""Photometric augmentation of image batches: the same scene under another appearance."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


def photometric(images: Tensor, generator: torch.Generator, strength: float = 1.0) -> Tensor:
    """Photometrically augmented images, (B, 3, S, S) in [0, 1] -> the same shape and range.

    Per image: gamma per channel, brightness, contrast, random mixing of the colour channels, grey with probability
    0.1, loss of detail (downscaled by 1.5 to 3 and upscaled again) with probability 0.25, noise.

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
