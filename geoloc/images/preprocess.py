"""Image preprocessing: an RGB array becomes a network input; each checkpoint has its own `Preprocess`.

As in torchvision, the shorter side is resized to S with antialiasing, the long side is truncated to an integer,
and the central S x S pixels are cropped and normalised. Results are the same with and without torch.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from geoloc.errors import ConfigError
from geoloc.images.decode import DEFAULT_LIMITS, ImageLimits, ImageSource, decode_image
from geoloc.images.resize import resize_u8

if TYPE_CHECKING:
    import torch

Resize = Literal["shortest", "squash", "crop", "pad", "native"]
Interpolation = Literal["bicubic", "bilinear"]

# Beyond this aspect ratio the ends are cropped before the resize, which would otherwise need gigabytes.
_MAX_ASPECT = 16
# Larger images are downscaled for networks with native size.
MAX_NATIVE_SIDE_PX: Final = 4096


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """Preprocessing of a network's images.

    Attributes:
        image_size_px: side S of the square input, or height and width of a rectangle.
        resize: "shortest" scales the image to cover the input and crops the centre; "squash" scales both sides;
            "crop" crops the largest centre of the input's shape and scales it; "pad" scales the image to fit and
            centres it on black; "native" keeps the image (up to `MAX_NATIVE_SIDE_PX`), and `image_size_px` is used
            for aerial views.
        interpolation: of the resize; always with antialiasing.
        mean: subtracted per channel, in RGB order, after scaling to [0, 1].
        std: divided by per channel, afterwards.
        aerial_size_px: side of aerial views; None is that of photos.
        floors_centre: round a centre between two pixels down, as transformers' processors do, instead of to even
            numbers, as torchvision does.

    Raises:
        ConfigError: a value is invalid.
    """

    image_size_px: int | tuple[int, int]
    resize: Resize = "shortest"
    interpolation: Interpolation = "bicubic"
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    aerial_size_px: int | None = None
    floors_centre: bool = False

    def __post_init__(self) -> None:
        size: Any = self.image_size_px
        sides = tuple(size) if isinstance(size, list | tuple) and len(size) == 2 else (size, size)
        if not all(map(_is_size, sides)):
            raise ConfigError(
                f"preprocess.image_size_px must be a positive integer, or height and width, not {size!r}"
            )
        object.__setattr__(self, "image_size_px", sides[0] if sides[0] == sides[1] else sides)
        if self.aerial_size_px is not None and not _is_size(self.aerial_size_px):
            raise ConfigError(
                f"preprocess.aerial_size_px must be a positive integer, not {self.aerial_size_px!r}"
            )
        for name, allowed in (("resize", get_args(Resize)), ("interpolation", get_args(Interpolation))):
            if getattr(self, name) not in allowed:
                raise ConfigError(
                    f"preprocess.{name} must be one of {', '.join(allowed)}, not {getattr(self, name)!r}"
                )
        for name in ("mean", "std"):
            object.__setattr__(self, name, _three_numbers(name, getattr(self, name)))
        if min(self.std) <= 0:
            raise ConfigError(f"preprocess.std must be positive, not {list(self.std)}")
        if not isinstance(self.floors_centre, bool):
            raise ConfigError(f"preprocess.floors_centre must be true or false, not {self.floors_centre!r}")

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width of the input."""
        size = self.image_size_px
        return (size, size) if isinstance(size, int) else size

    @property
    def size_text(self) -> str:
        """Size as text: "224 px", "480 x 640 px" or "native size"."""
        if self.resize == "native":
            return "native size"
        height, width = self.size_hw
        return f"{height} px" if height == width else f"{height} x {width} px"

    @property
    def decode_min_side_px(self) -> int | None:
        """Minimum shorter side of a scaled JPEG decode, 2 S; None decodes in full."""
        return None if self.resize == "native" else 2 * max(self.size_hw)

    @property
    def of_aerial(self) -> "Preprocess":
        """Preprocessing of square aerial views."""
        side = self.aerial_size_px or min(self.size_hw)
        return replace(self, image_size_px=side, resize="squash", aerial_size_px=None)

    @property
    def of_square(self) -> "Preprocess":
        """Preprocessing of square images: with the shorter side of a rectangle."""
        if isinstance(self.image_size_px, int):
            return self
        return replace(self, image_size_px=min(self.size_hw), resize="squash")

    def to_dict(self) -> dict[str, Any]:
        """JSON values of a checkpoint's config, for `from_dict`."""
        values = asdict(self) | {"mean": list(self.mean), "std": list(self.std)}
        if not isinstance(self.image_size_px, int):
            values["image_size_px"] = list(self.image_size_px)
        if self.aerial_size_px is None:  # keeps the digests of older configs
            del values["aerial_size_px"]
        if not self.floors_centre:  # keeps the digests of older configs
            del values["floors_centre"]
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Preprocess":
        """The inverse of `to_dict`.

        Raises:
            ConfigError: a key is unknown or missing, or a value is invalid.
        """
        known = [field.name for field in fields(cls)]
        if unknown := [key for key in values if key not in known]:
            raise ConfigError(f"preprocess.{unknown[0]} is unknown; the keys are {', '.join(known)}")
        if missing := [key for key in ("image_size_px", "mean", "std") if key not in values]:
            raise ConfigError(f"preprocess.{missing[0]} is missing")
        return cls(**values)

    def __call__(self, image_u8_hwc: NDArray[np.uint8]) -> "torch.Tensor":
        """An RGB image (h, w, 3) uint8 as the network's input, (3, S, S) or (3, height, width) float32.

        Raises:
            ValueError: the shape or type is wrong.
        """
        import torch

        return torch.from_numpy(self.array(image_u8_hwc))

    def array(self, image_u8_hwc: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The network's input as a NumPy array."""
        image = _checked(image_u8_hwc)
        height, width = self.size_hw
        if self.resize == "native":
            return self._normalise(_bounded(image, self.interpolation))
        if self.resize == "shortest":
            tallest, widest = (
                _MAX_ASPECT * image.shape[1] * height // width,
                _MAX_ASPECT * image.shape[0] * width // height,
            )
            image = _cut_centre(
                image, min(image.shape[0], max(1, tallest)), min(image.shape[1], max(1, widest))
            )
        elif self.resize == "crop":
            image = _cut_centre(image, *_fitting(height, width, image.shape[0], image.shape[1]))
        resized = resize_u8(image, *self._resized_hw(image.shape[0], image.shape[1]), self.interpolation)
        if self.resize == "pad":
            return self._normalise(_on_black(resized, height, width))
        return self._normalise(_cut_centre(resized, height, width, floors=self.floors_centre))

    def whole(self, image_u8_hwc: NDArray[np.uint8], max_aspect: float) -> NDArray[np.float32]:
        """The uncropped image, (3, h, w) float32; its shorter side is that of the input unless `resize` is "native".

        Args:
            image_u8_hwc: (h, w, 3) uint8.
            max_aspect: the ends of an image with a larger aspect ratio are cropped.

        Raises:
            ValueError: the shape or type is wrong.
        """
        image = _checked(image_u8_hwc)
        longest = int(max_aspect * min(image.shape[:2]))
        image = _cut_centre(image, min(image.shape[0], longest), min(image.shape[1], longest))
        if self.resize == "native":
            return self._normalise(_bounded(image, self.interpolation))
        side = min(self.size_hw)
        height, width = _covering(image.shape[0], image.shape[1], side, side)
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
        if self.resize in ("squash", "crop"):
            return self.size_hw
        return (_fitting if self.resize == "pad" else _covering)(height, width, *self.size_hw)


def load_and_preprocess(
    source: ImageSource, preprocess: Preprocess, *, limits: ImageLimits = DEFAULT_LIMITS
) -> "torch.Tensor":
    """Decoded network input of an image, (3, S, S) float32.

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


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _covering(height: int, width: int, least_height: int, least_width: int) -> tuple[int, int]:
    """Smallest size with the image's aspect ratio that covers a box; the longer side is truncated as in torchvision."""
    if height * least_width <= width * least_height:
        return least_height, least_height * width // height
    return least_width * height // width, least_width


def _fitting(height: int, width: int, most_height: int, most_width: int) -> tuple[int, int]:
    """Largest size with the image's aspect ratio that fits into a box."""
    if height * most_width >= width * most_height:
        return most_height, max(1, most_height * width // height)
    return max(1, most_width * height // width), most_width


def _bounded(image: NDArray[np.uint8], interpolation: Interpolation) -> NDArray[np.uint8]:
    if max(image.shape[:2]) <= MAX_NATIVE_SIDE_PX:
        return image
    height, width = _fitting(image.shape[0], image.shape[1], MAX_NATIVE_SIDE_PX, MAX_NATIVE_SIDE_PX)
    return resize_u8(image, height, width, interpolation)


def _on_black(image_hwc: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """In the middle of a black picture; an odd pixel of it goes below and to the right, as Statewide has it."""
    found = np.zeros((height, width, 3), np.uint8)
    top, left = (height - image_hwc.shape[0]) // 2, (width - image_hwc.shape[1]) // 2
    found[top : top + image_hwc.shape[0], left : left + image_hwc.shape[1]] = image_hwc
    return found


def _cut_centre(
    image_hwc: NDArray[np.uint8], height: int, width: int, *, floors: bool = False
) -> NDArray[np.uint8]:
    """The central window of an image; an odd pixel goes where torchvision puts it, or to the right and below."""
    top, left = (image_hwc.shape[0] - height) / 2, (image_hwc.shape[1] - width) / 2
    top, left = (math.floor(top), math.floor(left)) if floors else (round(top), round(left))
    return image_hwc[top : top + height, left : left + width]


def _three_numbers(name: str, values: Any) -> tuple[float, float, float]:
    numbers = values if isinstance(values, list | tuple) else ()
    if len(numbers) != 3 or not all(
        isinstance(number, int | float) and not isinstance(number, bool) and math.isfinite(number)
        for number in numbers
    ):
        raise ConfigError(f"preprocess.{name} must be three finite numbers, not {values!r}")
    return float(numbers[0]), float(numbers[1]), float(numbers[2])
