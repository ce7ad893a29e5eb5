"""Query modes: views of a query image as network inputs.

    central_crop      the model's own preprocessing
    resized           the full image, squashed to the network's input
    single            the full image in its own shape (backbones that take any shape)
    five_crops        the corners and the centre; their features are averaged
    nearest_crop      the same five, searched separately; a reference has the distance of its nearest crop
    majority_voting   the same five, searched separately; references found by several crops rank higher
    four_turns        the central crop rotated four times, features averaged: for nadir images

The first six are those of Berton et al., "Deep Visual Geo-localization Benchmark" (CVPR 2022), section 4.5; crops
are squares with the image's shorter side.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from geoloc.errors import ConfigError
from geoloc.images.decode import ImageSource, decode_image
from geoloc.images.preprocess import Preprocess

QueryMode = Literal[
    "central_crop", "resized", "single", "five_crops", "nearest_crop", "majority_voting", "four_turns"
]
Merge = Literal["mean", "nearest", "vote"]  # merge of the views' features or search results
MERGES: dict[QueryMode, Merge] = {"nearest_crop": "nearest", "majority_voting": "vote"}  # others: "mean"
MAX_ASPECT = 4  # for "single": longer images are cropped


def check_query_mode(mode: str) -> None:
    """Check the name of a query mode.

    Raises:
        ConfigError: the mode does not exist.
    """
    if mode not in get_args(QueryMode):
        raise ConfigError(f"query mode is {mode!r}; expected one of {', '.join(get_args(QueryMode))}")


def load_query_views(source: ImageSource, preprocess: Preprocess, mode: QueryMode) -> NDArray[np.float32]:
    """Views of an image source, (V, 3, h, w) float32; V is 1, 4 or 5.

    Raises:
        BadImageError: the source cannot be decoded.
        ConfigError: the mode does not exist.
    """
    image = decode_image(source, min_side_px=preprocess.decode_min_side_px)
    return query_views(image, preprocess, mode)


def query_views(image: NDArray[np.uint8], preprocess: Preprocess, mode: QueryMode) -> NDArray[np.float32]:
    """Views of a decoded image, (h, w, 3) uint8 -> (V, 3, h', w').

    Raises:
        ConfigError: the mode does not exist, or the rotations of a native-size image differ in shape.
    """
    check_query_mode(mode)
    if mode == "central_crop":
        return preprocess.array(image)[None]
    if mode == "resized":
        return replace(preprocess, resize="squash").array(image)[None]
    if mode == "single":
        return preprocess.whole(image, MAX_ASPECT)[None]
    if mode == "four_turns":
        return _four_turns(image, preprocess)
    return np.stack([preprocess.of_square.array(crop) for crop in _five_squares(image)])


def _four_turns(image: NDArray[np.uint8], preprocess: Preprocess) -> NDArray[np.float32]:
    if isinstance(preprocess.image_size_px, int) and preprocess.resize != "native":
        return np.stack([np.rot90(preprocess.array(image), turns, (1, 2)) for turns in range(4)])
    turned = [preprocess.array(np.rot90(image, turns).copy()) for turns in range(4)]
    if len({view.shape for view in turned}) > 1:
        raise ConfigError(
            "query mode four_turns needs square inputs, and this model keeps the shape of its inputs "
            f"({image.shape[0]} x {image.shape[1]}): give square images, or load the model with image_size_px="
        )
    return np.stack(turned)


def _five_squares(image: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    """Centre and corner squares; 4/5 of the side for nearly square images."""
    height, width = image.shape[:2]
    side = min(height, width)
    if max(height, width) < 1.25 * side:
        side = max(1, side * 4 // 5)
    bottom, right = height - side, width - side
    corners = ((bottom // 2, right // 2), (0, 0), (0, right), (bottom, 0), (bottom, right))
    return [np.ascontiguousarray(image[top : top + side, left : left + side]) for top, left in corners]
