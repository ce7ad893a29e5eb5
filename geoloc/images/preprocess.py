"""An RGB array becomes the tensor that a network expects; each checkpoint describes its own `Preprocess`.

The numbers are torchvision's: the shorter side is resized to S with antialiasing, the long side is truncated
to an integer, the central S x S pixels are cut out and normalised. Arrays are the same with torch and without it.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from geoloc.errors import ConfigError
from geoloc.images.decode import DEFAULT_LIMITS, ImageLimits, ImageSource, decode_image
from geoloc.images.resize import resize_u8

if TYPE_CHECKING:
    import torch

Resize = Literal["shortest", "squash"]
Interpolation = Literal["bicubic", "bilinear"]

# A picture one pixel high and millions wide would be resized to gigabytes of which only the centre is kept.
# Beyond this ratio of the sides the ends are cut off first; panoramas are far below it.
_MAX_ASPECT = 16


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """How a network wants its images.

    Attributes:
        image_size_px: side S of the square input.
        resize: "shortest" brings the shorter side to S and cuts out the centre, "squash" brings both to S.
        interpolation: of the resize; always with antialiasing.
        mean: subtracted per channel, in RGB order, after scaling to [0, 1].
        std: divided by per channel, afterwards.

    Raises:
        ConfigError: a value that is impossible.
    """

    image_size_px: int
    resize: Resize = "shortest"
    interpolation: Interpolation = "bicubic"
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __post_init__(self) -> None:
        size = self.image_size_px
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise ConfigError(f"preprocess.image_size_px must be a positive integer, not {size!r}")
        for name, allowed in (("resize", get_args(Resize)), ("interpolation", get_args(Interpolation))):
            if getattr(self, name) not in allowed:
                raise ConfigError(
                    f"preprocess.{name} must be one of {', '.join(allowed)}, not {getattr(self, name)!r}"
                )
        for name in ("mean", "std"):
            object.__setattr__(self, name, _three_numbers(name, getattr(self, name)))
        if min(self.std) <= 0:
            raise ConfigError(f"preprocess.std must be positive, not {list(self.std)}")

    @property
    def decode_min_side_px(self) -> int:
        """The shorter side that a scaled JPEG decode has to keep: 2 S leaves the resize its part."""
        return 2 * self.image_size_px

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a checkpoint's config; `from_dict` takes them back."""
        return asdict(self) | {"mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Preprocess":
        """The inverse of `to_dict`, and as strict: every key is known and the required ones are there.

        Raises:
            ConfigError: names the key that is unknown, missing or impossible.
        """
        known = [field.name for field in fields(cls)]
        if unknown := [key for key in values if key not in known]:
            raise ConfigError(f"preprocess.{unknown[0]} is unknown; the keys are {', '.join(known)}")
        if missing := [key for key in ("image_size_px", "mean", "std") if key not in values]:
            raise ConfigError(f"preprocess.{missing[0]} is missing")
        return cls(**values)

    @classmethod
    def from_openclip_cfg(cls, preprocess_cfg: Mapping[str, Any]) -> "Preprocess":
        """What open_clip's `preprocess_cfg` of a model means in our terms.

        Raises:
            ConfigError: for what we do not offer: sides that differ, letterboxing ("longest"), random
                interpolation, a mode other than RGB, or a key that open_clip 3.3 does not have.
        """
        known = {"size", "mode", "mean", "std", "interpolation", "resize_mode", "fill_color"}
        if unknown := sorted(set(preprocess_cfg) - known):
            raise ConfigError(f"open_clip's preprocess_cfg.{unknown[0]} is unknown; we know {sorted(known)}")
        if missing := [key for key in ("size", "mean", "std") if key not in preprocess_cfg]:
            raise ConfigError(f"open_clip's preprocess_cfg.{missing[0]} is missing")
        if (mode := preprocess_cfg.get("mode", "RGB")) != "RGB":
            raise ConfigError(f"open_clip's preprocess_cfg.mode must be RGB, not {mode!r}")
        size = preprocess_cfg["size"]
        if isinstance(size, list | tuple):
            if len(set(size)) != 1:
                raise ConfigError(f"open_clip's preprocess_cfg.size must be square, not {size!r}")
            size = size[0]
        return cls(
            image_size_px=size,
            resize=preprocess_cfg.get("resize_mode", "shortest"),
            interpolation=preprocess_cfg.get("interpolation", "bicubic"),
            mean=preprocess_cfg["mean"],
            std=preprocess_cfg["std"],
        )

    def __call__(self, image_u8_hwc: NDArray[np.uint8]) -> "torch.Tensor":
        """An RGB image (h, w, 3) uint8 as the network's input (3, S, S) float32.

        Raises:
            ValueError: another shape or another type of samples.
        """
        import torch

        return torch.from_numpy(self.array(image_u8_hwc))

    def array(self, image_u8_hwc: NDArray[np.uint8]) -> NDArray[np.float32]:
        """As a call, without torch."""
        image = _checked(image_u8_hwc)
        size = self.image_size_px
        if self.resize == "shortest":
            longest = _MAX_ASPECT * min(image.shape[:2])
            image = _cut_centre(image, min(image.shape[0], longest), min(image.shape[1], longest))
        resized = resize_u8(image, *self._resized_hw(image.shape[0], image.shape[1]), self.interpolation)
        return self._normalise(_cut_centre(resized, size, size))

    def whole(self, image_u8_hwc: NDArray[np.uint8], max_aspect: float) -> NDArray[np.float32]:
        """The whole image with its shorter side S, (3, h, w) float32, for networks that take any shape.

        Args:
            max_aspect: of a longer image, the ends are cut off.

        Raises:
            ValueError: another shape or another type of samples.
        """
        image = _checked(image_u8_hwc)
        longest = int(max_aspect * min(image.shape[:2]))
        image = _cut_centre(image, min(image.shape[0], longest), min(image.shape[1], longest))
        height, width = replace(self, resize="shortest")._resized_hw(image.shape[0], image.shape[1])
        return self._normalise(resize_u8(image, height, width, self.interpolation))

    def _normalise(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(h, w, 3) uint8 -> (3, h, w) float32."""
        # (x / 255 - mean) / std, with the divisions done once per channel.
        mean, std = (np.array(values, np.float32).reshape(3, 1, 1) for values in (self.mean, self.std))
        out = np.empty((3, *pixels.shape[:2]), np.float32)
        out[...] = pixels.transpose(2, 0, 1)
        out *= 1 / (255 * std)
        out -= mean / std
        return out

    def _resized_hw(self, height: int, width: int) -> tuple[int, int]:
        size = self.image_size_px
        if self.resize == "squash":
            return size, size
        # torchvision truncates the long side; rounding would shift the crop by half a pixel.
        if height <= width:
            return size, int(size * width / height)
        return int(size * height / width), size


def load_and_preprocess(
    source: ImageSource, preprocess: Preprocess, *, limits: ImageLimits = DEFAULT_LIMITS
) -> "torch.Tensor":
    """From an image in any form to a network's input (3, S, S) float32, decoding no larger than useful.

    Raises:
        BadImageError: the source cannot be decoded; see `decode_image`.
    """
    return preprocess(decode_image(source, limits=limits, min_side_px=preprocess.decode_min_side_px))


def _checked(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
        raise ValueError(
            f"expected (h, w, 3) uint8, found {image.shape} {image.dtype}; use decode_image first"
        )
    return image


def _cut_centre(image_hwc: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """The central window of an image; an odd pixel goes where torchvision puts it."""
    top = round((image_hwc.shape[0] - height) / 2)
    left = round((image_hwc.shape[1] - width) / 2)
    return image_hwc[top : top + height, left : left + width]


def _three_numbers(name: str, values: Any) -> tuple[float, float, float]:
    numbers = values if isinstance(values, list | tuple) else ()
    if len(numbers) != 3 or not all(
        isinstance(number, int | float) and not isinstance(number, bool) and math.isfinite(number)
        for number in numbers
    ):
        raise ConfigError(f"preprocess.{name} must be three finite numbers, not {values!r}")
    return float(numbers[0]), float(numbers[1]), float(numbers[2])
