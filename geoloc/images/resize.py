"""Antialiased resizing of uint8 images, byte for byte as torch's vectorised kernel, with or without torch.

Filters as in Pillow's `Resample.c`; bicubic is Keys' with a = -0.5. Weights are 16-bit fixed-point numbers; rows then
columns are filtered and rounded to uint8, as in ATen's `UpSampleKernelAVXAntialias.h`.
"""

import sys
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

_MAX_BINARY_PLACES = 21


def resize_u8(image: NDArray[np.uint8], height: int, width: int, interpolation: str) -> NDArray[np.uint8]:
    """(h, w, 3) -> (height, width, 3).

    Args:
        image: may be read-only or a view.
        height: of the result.
        width: of the result.
        interpolation: "bicubic" or "bilinear".
    """
    if image.shape[:2] == (height, width):
        return image
    if (torch := sys.modules.get("torch")) is not None:  # already loaded, and several times faster
        return _with_torch(torch, image, height, width, interpolation)
    rows = _along(image, 1, width, interpolation) if width != image.shape[1] else image
    return _along(rows, 0, height, interpolation) if height != image.shape[0] else rows


def _with_torch(
    torch: Any, image: NDArray[np.uint8], height: int, width: int, interpolation: str
) -> NDArray[np.uint8]:
    # Writable and without negative strides, which torch would refuse or warn about.
    pixels = torch.from_numpy(np.require(image, requirements=["C", "W"])).permute(2, 0, 1)[None]
    resized = torch.nn.functional.interpolate(
        pixels, (height, width), mode=interpolation, align_corners=False, antialias=True
    )
    return np.asarray(resized[0].permute(1, 2, 0).numpy())


def _along(image: NDArray[np.uint8], axis: int, size: int, interpolation: str) -> NDArray[np.uint8]:
    index, weight, places = _taps(image.shape[axis], size, interpolation)
    shape = (-1, 1, 1) if axis == 0 else (-1, 1)
    total: NDArray[np.int32] | None = None
    for at, by in zip(index, weight, strict=True):
        part = image.take(at, axis).astype(np.int32)
        part *= by.reshape(shape)
        if total is None:
            part += 1 << (places - 1)  # so that the shift below rounds
            total = part
        else:
            total += part
    assert total is not None
    return np.asarray(np.clip(total >> places, 0, 255), np.uint8)


@lru_cache(maxsize=64)
def _taps(before: int, after: int, interpolation: str) -> tuple[NDArray[np.int64], NDArray[np.int32], int]:
    """Source indices and integer weights of each output pixel, (after, t); and the weights' fractional bits."""
    scale = before / after
    stretch = max(scale, 1.0)
    reach = (2.0 if interpolation == "bicubic" else 1.0) * stretch
    center = scale * (np.arange(after) + 0.5)
    first = np.maximum((center - reach + 0.5).astype(np.int64), 0)
    num = np.minimum((center + reach + 0.5).astype(np.int64), before) - first
    taps = np.arange(num.max())[:, None]
    there = taps < num
    weight = np.where(there, _FILTERS[interpolation]((taps + first - center + 0.5) / stretch), 0.0)
    weight /= weight.sum(0)
    places = 0
    while places < _MAX_BINARY_PLACES + 1 and int(0.5 + weight.max() * (1 << (places + 1))) < 1 << 15:
        places += 1
    fixed = np.trunc(weight * (1 << places) + np.where(weight < 0, -0.5, 0.5)).astype(np.int32)
    return np.minimum(taps + first, before - 1), fixed, places


def _bilinear(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.maximum(1.0 - np.abs(x), 0.0)


def _bicubic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    a, x = -0.5, np.abs(x)
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    far = (((x - 5.0) * x + 8.0) * x - 4.0) * a
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


_FILTERS = {"bilinear": _bilinear, "bicubic": _bicubic}
