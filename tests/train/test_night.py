"""Fourier styles against a full two-dimensional transform in NumPy, the darkroom against Pillow and SciPy."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance
from scipy.ndimage import gaussian_filter
from torch import Tensor

from geoloc.train.night import AFTER_FOURIER, NightLook, at_night, developed, fourier_styled, sky, unlit


def pictures(seed: int, height: int = 24, width: int = 30, contrast: float = 0.1) -> Tensor:
    noise = np.random.default_rng(seed).normal(size=(2, 3, height, width))
    level = 0.5 + 0.05 * (seed - 1)
    return torch.from_numpy(level + contrast * np.clip(noise, -2, 2))


@pytest.mark.parametrize(("height", "width"), [(24, 30), (25, 31)])
@pytest.mark.parametrize("beta", [0.1, 0.25, 0.9])
def test_low_amplitudes_are_the_styles_and_phases_stay(height: int, width: int, beta: float) -> None:
    day, night = pictures(1, height, width, 0.05), pictures(2, height, width, 0.02)
    found = fourier_styled(day, night, beta).numpy()
    own, other = np.fft.fft2(day.numpy()), np.fft.fft2(night.numpy())
    b = int(np.floor(beta * min(height, width) / 2))
    y = np.abs(np.fft.fftfreq(height, 1 / height))[:, None]
    x = np.abs(np.fft.fftfreq(width, 1 / width))
    low = (y < b) & (x < b)
    mixed = np.where(low, np.abs(other), np.abs(own)) * np.exp(1j * np.angle(own))
    expected = np.fft.ifft2(mixed)
    assert np.abs(expected.imag).max() < 1e-12
    np.testing.assert_allclose(found, expected.real, atol=1e-10)
    spectrum = np.fft.fft2(found)
    np.testing.assert_allclose(np.abs(spectrum)[..., low], np.abs(other)[..., low], atol=1e-8)
    np.testing.assert_allclose(np.abs(spectrum)[..., ~low], np.abs(own)[..., ~low], atol=1e-8)
    turned = np.angle(spectrum * np.conj(own))[np.abs(own) > 1e-6]
    np.testing.assert_allclose(turned, 0, atol=1e-6)


def test_a_small_share_changes_nothing_and_the_mean_is_the_first_to_change() -> None:
    day, night = pictures(1), pictures(2)
    torch.testing.assert_close(fourier_styled(day, night, 0.05), day)  # 0.6 of a bin
    one_bin = fourier_styled(day, night, 2 / 24)
    torch.testing.assert_close(one_bin - day, (night - day).mean((2, 3), keepdim=True).expand_as(day))


def test_factors_are_pillows() -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (40, 50, 3)).astype(np.uint8)
    image = ImageEnhance.Brightness(Image.fromarray(pixels)).enhance(0.75)
    image = ImageEnhance.Color(image).enhance(0.85)
    tinted = np.asarray(image).copy()
    tinted[..., 2] = np.minimum(tinted[..., 2] * 1.18, 255)
    expected = np.asarray(ImageEnhance.Contrast(Image.fromarray(tinted)).enhance(1.15)) / 255
    given = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255
    factors = [torch.tensor(x).view(1, 1, 1, 1) for x in (0.75, 0.85, 1.18, 1.15)]
    found = developed(given, *factors)[0].permute(1, 2, 0).numpy()
    assert np.abs(found - expected).max() < 5 / 255  # Pillow cuts fractions off after each of four steps


def test_the_sky_is_black_and_lamps_light_what_is_around_them() -> None:
    assert sky(5, 0.8).tolist() == pytest.approx([0.8, 0.6, 0.4, 0.2, 0])
    centres, radius = torch.tensor([[[10.0, 12.0], [25.0, 20.0]]]), torch.tensor([[5.0, 4.0]])
    found = unlit(centres, radius, (30, 40), 2.0)[0, 0].numpy()
    y, x = np.mgrid[0:30, 0:40]
    lit = ((x - 10) ** 2 + (y - 12) ** 2 <= 25) | ((x - 25) ** 2 + (y - 20) ** 2 <= 16)
    expected = gaussian_filter((~lit).astype(np.float64), 2.0, mode="nearest", radius=6)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert unlit(centres, radius, (30, 40), 0.0)[0, 0].numpy().tolist() == (~lit).astype(float).tolist()


def test_night_is_darker_bluer_and_repeatable() -> None:
    day = torch.full((64, 3, 32, 48), 0.6)
    found = at_night(day, torch.Generator().manual_seed(0))
    assert found.shape == day.shape
    assert 0 <= float(found.min()) <= float(found.max()) <= 1
    assert torch.equal(found, at_night(day, torch.Generator().manual_seed(0)))
    assert bool((found.mean((1, 2, 3)) < 0.42).all())
    assert bool((found[:, 2].mean((1, 2)) > 1.1 * found[:, 0].mean((1, 2))).all())
    rows = found.mean((0, 1, 3))
    assert rows[0] < 0.2 * rows[-1]
    lighter = at_night(day, torch.Generator().manual_seed(0), AFTER_FOURIER)
    assert bool((lighter.mean((1, 2, 3)) > found.mean((1, 2, 3))).all())
    still = NightLook((1, 1), (1, 1), (1, 1), (1, 1), dark_sky=0, darkness=0, noise=0)
    torch.testing.assert_close(at_night(day, torch.Generator(), still), day)
