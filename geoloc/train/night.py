"""Day-to-night augmentation: Fourier style transfer, and a synthetic night look (both of CosPlace's fork)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from geoloc.train.augment import LUMA

Range = tuple[float, float]


def fourier_styled(images: Tensor, styles: Tensor, beta: float = 0.01) -> Tensor:
    """Images with the low-frequency amplitudes of the styles and their own phases.

    Fourier Domain Adaptation (Yang & Soatto, CVPR 2020). Amplitudes of less than b = ⌊β min(H, W) / 2⌋ cycles per
    image on both axes are swapped; b = 0 changes nothing. The fork's images are 1024 x 512, where β = 0.01 gives b = 2.

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
    """Parameter ranges of `at_night`, sampled per photo; defaults are for photos taken by day.

    Attributes:
        brightness: factor of all values.
        saturation: factor of the difference to grey.
        blue: factor of the blue channel.
        contrast: factor of the difference to the mean grey.
        dark_sky: darkening of the top edge, which fades linearly to nothing at the bottom.
        num_lamps: number of light discs; the rest is darkened.
        darkness: darkening outside of the discs.
        blur: blur of the discs' edges, as a share of the height.
        noise: standard deviation of the noise.
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


AFTER_FOURIER = NightLook(
    (0.8, 0.9), (0.9, 0.95), (1.05, 1.15), (1.05, 1.1)
)  # for photos that are dark already


def at_night(images: Tensor, generator: torch.Generator, look: NightLook | None = None) -> Tensor:
    """Photos with a synthetic night look: darker, bluer, more contrast, black sky, lamps, noise.

    Args:
        images: (B, 3, H, W) in [0, 1].
        generator: generator on the CPU.
        look: parameter ranges; AFTER_FOURIER for results of `fourier_styled`.

    Returns:
        (B, 3, H, W) in [0, 1].
    """
    look = look or NightLook()
    count, _, height, width = images.shape

    def sampled(between: Range) -> Tensor:
        low, high = between
        return (low + (high - low) * torch.rand(count, 1, 1, 1, generator=generator)).to(images)

    out = developed(
        images, sampled(look.brightness), sampled(look.saturation), sampled(look.blue), sampled(look.contrast)
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
    """Photos with factors on brightness, saturation, blue and contrast, applied in this order, each clipped to [0, 1].

    Args:
        images: (B, 3, H, W) in [0, 1].
        brightness: (B, 1, 1, 1), as the other factors.
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
    """Darkening of each row, (H,): `darkest` at the top, 0 at the bottom, linear between."""
    return torch.linspace(darkest, 0, height)


def unlit(centres: Tensor, radius: Tensor, size: tuple[int, int], blur_px: float) -> Tensor:
    """Mask of unlit pixels, (B, 1, H, W) in [0, 1]: 0 in the discs, 1 outside of them, with blurred edges.

    Args:
        centres: (B, n, 2) pixels, x first.
        radius: (B, n) pixels.
        size: H and W.
        blur_px: standard deviation of the blur; edge pixels are replicated beyond the image.
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
