"""Day photos as if taken at night: another picture's low frequencies, or a photographer's darkroom.

Both are offline augmentations of CosPlace's fork, as functions of image batches. Knows nothing about files.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from geoloc.train.augment import LUMA

Range = tuple[float, float]


def fourier_styled(images: Tensor, styles: Tensor, beta: float = 0.01) -> Tensor:
    """Images with the low-frequency amplitudes of others and their own phases: the scene stays, the light changes.

    Fourier Domain Adaptation (Yang & Soatto, CVPR 2020). Frequencies of less than b = ⌊β min(H, W) / 2⌋ cycles a
    picture on both axes are swapped, so that nothing changes where b is 0; the fork's pictures are 1024 x 512, where
    its β of 0.01 gives b = 2.

    Args:
        images: (B, 3, H, W) in [0, 1].
        styles: (B, 3, H, W) in [0, 1], such as photos taken at night.
        beta: share of the spectrum, in [0, 1].

    Returns:
        (B, 3, H, W) in [0, 1].
    """
    height, width = images.shape[-2:]
    bins = int(beta * min(height, width) / 2)
    own, other = torch.fft.rfft2(images), torch.fft.rfft2(styles)
    rows = torch.fft.fftfreq(height, 1 / height, device=images.device).abs() < bins
    columns = torch.fft.rfftfreq(width, 1 / width, device=images.device) < bins
    amplitude = torch.where(rows[:, None] & columns, other.abs(), own.abs())
    mixed = torch.polar(amplitude, own.angle())
    styled: Tensor = torch.fft.irfft2(mixed, s=(height, width))
    return styled.clamp(0, 1)


@dataclass(frozen=True)
class NightLook:
    """Between what the darkroom's factors are drawn, a photo at a time; defaults are for daylight.

    Attributes:
        brightness: of all values.
        saturation: of the difference to grey.
        blue: of the blue channel.
        contrast: of the difference to the photo's mean grey.
        dark_sky: how black the top edge becomes; it fades to nothing at the bottom.
        num_lamps: discs of light, the rest around them darkened.
        darkness: of what no lamp lights.
        blur: of the lamps' edges, as a share of the height.
        noise: standard deviation.
    """

    brightness: Range = (0.7, 0.8)
    saturation: Range = (0.8, 0.9)
    blue: Range = (1.15, 1.2)
    contrast: Range = (1.1, 1.2)
    dark_sky: float = 1 / 1.2
    num_lamps: int = 8
    darkness: float = 100 / 255
    blur: float = 80 / 512
    noise: float = 5 / 255


AFTER_FOURIER = NightLook((0.8, 0.9), (0.9, 0.95), (1.05, 1.15), (1.05, 1.1))  # what is dark already


def at_night(images: Tensor, generator: torch.Generator, look: NightLook | None = None) -> Tensor:
    """Photos developed as if at night: darker, bluer, harder, a black sky, lamps, noise.

    Args:
        images: (B, 3, H, W) in [0, 1].
        generator: of the CPU.
        look: AFTER_FOURIER for what `fourier_styled` returned.

    Returns:
        (B, 3, H, W) in [0, 1].
    """
    look = look or NightLook()
    count, _, height, width = images.shape

    def drawn(between: Range) -> Tensor:
        low, high = between
        return (low + (high - low) * torch.rand(count, 1, 1, 1, generator=generator)).to(images)

    out = developed(
        images, drawn(look.brightness), drawn(look.saturation), drawn(look.blue), drawn(look.contrast)
    )
    out = out * (1 - sky(height, look.dark_sky).to(images)[:, None])
    centres = torch.rand(count, look.num_lamps, 2, generator=generator)
    radius = torch.rand(count, look.num_lamps, generator=generator) * (1 / 3 - 1 / 5) + 1 / 5
    top = torch.tensor([0.0, 0.25])
    centres = (top + (1 - top) * centres) * torch.tensor([width, height])
    dark = unlit(centres, radius * height, (height, width), look.blur * height).to(images)
    out = out * (1 - look.darkness * dark)
    noise = torch.randn(out.shape, generator=generator).to(images)
    return (out + look.noise * noise).clamp(0, 1)


def developed(
    images: Tensor, brightness: Tensor, saturation: Tensor, blue: Tensor, contrast: Tensor
) -> Tensor:
    """Photos with factors on brightness, saturation, blue and contrast, in this order, each step in [0, 1].

    Args:
        images: (B, 3, H, W) in [0, 1].
        brightness: (B, 1, 1, 1) like the others.
    """
    out = (images * brightness).clamp(0, 1)
    grey = _grey(out)
    out = (grey + saturation * (out - grey)).clamp(0, 1)
    out = torch.cat([out[:, :2], (out[:, 2:] * blue).clamp(0, 1)], 1)
    mean = _grey(out).mean((1, 2, 3), keepdim=True)
    return (mean + contrast * (out - mean)).clamp(0, 1)


def _grey(images: Tensor) -> Tensor:
    return (images * torch.tensor(LUMA).to(images)[:, None, None]).sum(1, keepdim=True)


def sky(height: int, darkest: float) -> Tensor:
    """How black each row becomes, (H,): `darkest` at the top, nothing at the bottom, evenly between."""
    return torch.linspace(darkest, 0, height)


def unlit(centres: Tensor, radius: Tensor, size: tuple[int, int], blur_px: float) -> Tensor:
    """Where no lamp shines, (B, 1, H, W) in [0, 1]: 0 in discs, 1 outside of them, with blurred edges.

    Args:
        centres: (B, n, 2) pixels, x first.
        radius: (B, n) pixels.
        size: H and W.
        blur_px: standard deviation of the blur, which continues the picture's edges beyond it.
    """
    y, x = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
    squared = (x - centres[..., :1, None]) ** 2 + (y - centres[..., 1:, None]) ** 2  # (B, n, H, W)
    dark = (squared > radius[..., None, None] ** 2).all(1, keepdim=True).float()
    reach = int(3 * blur_px)
    if not reach:
        return dark
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / blur_px) ** 2)
    kernel = kernel / kernel.sum()
    padded = functional.pad(dark, (reach,) * 4, mode="replicate")
    across = functional.conv2d(padded, kernel.view(1, 1, 1, -1))
    return functional.conv2d(across, kernel.view(1, 1, -1, 1))
