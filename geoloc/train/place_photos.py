"""Augmented training photos for place recognition: random crop, night look, photometric changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from geoloc.data.sample import Sample, SampleTable
from geoloc.errors import ConfigError
from geoloc.images.decode import decode_image
from geoloc.images.preprocess import Preprocess
from geoloc.train.augment import photometric
from geoloc.train.night import AFTER_FOURIER, at_night, fourier_styled


@dataclass(frozen=True)
class AugmentConfig:
    """Augmentation of every training photo.

    Attributes:
        smallest_area: a window of the photo's aspect ratio is cut out, with an area uniform in [smallest_area, 1].
        strength: strength of `photometric`; 0 changes nothing.
    """

    smallest_area: float = 0.5
    strength: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.smallest_area <= 1:
            raise ConfigError(f"augment.smallest_area is {self.smallest_area}; it must be in (0, 1]")
        if not 0 <= self.strength <= 2:
            raise ConfigError(f"augment.strength is {self.strength}; it must be in [0, 2]")


@dataclass(frozen=True)
class NightConfig:
    """Turn some training photos into night photos, before the photometric augmentation.

    Attributes:
        share: share of the photos, chosen at random.
        fourier_beta: replace their low frequencies by those of a target photo (`fourier_styled`); null does not.
        darkroom: darken them with `at_night`.
    """

    share: float = 0.5
    fourier_beta: float | None = None
    darkroom: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ConfigError(
                f"night.share is {self.share}; it must be in (0, 1]; set night=null for no night photos"
            )
        if self.fourier_beta is None and not self.darkroom:
            raise ConfigError("night changes nothing: set fourier_beta, or darkroom=true")


@dataclass(frozen=True)
class LoadPlacePhoto:
    """Loader from a sample to {"image": (3, S, S), "is_night": ()}.

    Attributes:
        preprocess: preprocessing of the network.
        augment: augmentation of every photo.
        night: night look of some photos; None for none.
        styles: source photos of `night.fourier_beta`.
    """

    preprocess: Preprocess
    augment: AugmentConfig
    night: NightConfig | None = None
    styles: SampleTable | None = None

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Mapping[str, Tensor]:
        """Read, crop, preprocess and augment a photo.

        Raises:
            BadImageError: the image is missing or broken.
        """
        image = self._normalised(sample, rng)
        is_night = self.night is not None and rng.random() < self.night.share
        if is_night or self.augment.strength:
            mean, std = (torch.tensor(x)[:, None, None] for x in (self.preprocess.mean, self.preprocess.std))
            generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
            pixels = (image * std + mean).clamp(0, 1)[None]
            if is_night:
                pixels = self._at_night(pixels, generator, rng)
            if self.augment.strength:
                pixels = photometric(pixels, generator, self.augment.strength)
            image = (pixels[0] - mean) / std
        return {"image": image, "is_night": torch.tensor(is_night)}

    def _normalised(self, sample: Sample, rng: np.random.Generator) -> Tensor:
        image = decode_image(sample.image.read(), min_side_px=self.preprocess.decode_min_side_px)
        return self.preprocess(window(image, self.augment.smallest_area, rng))

    def _at_night(self, pixels: Tensor, generator: torch.Generator, rng: np.random.Generator) -> Tensor:
        assert self.night is not None
        look = None
        if self.night.fourier_beta is not None:
            assert self.styles is not None
            mean, std = (torch.tensor(x)[:, None, None] for x in (self.preprocess.mean, self.preprocess.std))
            style = self._normalised(self.styles[int(rng.integers(len(self.styles)))], rng) * std + mean
            pixels = fourier_styled(pixels, style.clamp(0, 1)[None], self.night.fourier_beta)
            look = AFTER_FOURIER
        return at_night(pixels, generator, look) if self.night.darkroom else pixels


def window(image: NDArray[np.uint8], smallest_area: float, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A random crop of an image (h, w, 3) with its aspect ratio; its share of the area is uniform up to 1."""
    if smallest_area == 1:
        return image
    side = np.sqrt(rng.uniform(smallest_area, 1))
    height, width = (max(1, round(side * length)) for length in image.shape[:2])
    top, left = (
        int(rng.integers(0, length - part + 1))
        for length, part in zip(image.shape, (height, width), strict=False)
    )
    return np.ascontiguousarray(image[top : top + height, left : left + width])
