"""Query modes on pictures whose pixels say where they are."""

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch

from geoloc.errors import ConfigError
from geoloc.images.preprocess import Preprocess
from geoloc.images.query import MAX_ASPECT, QueryMode, query_views

PREPROCESS = Preprocess(image_size_px=32, mean=(0.5,) * 3, std=(0.5,) * 3)


def views_of(image: np.ndarray, preprocess: Preprocess, mode: QueryMode) -> torch.Tensor:
    return torch.from_numpy(query_views(image, preprocess, mode))


def ramp(height: int, width: int) -> np.ndarray:
    """Red grows downwards, green to the right."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([255 * y / height, 255 * x / width, 0 * x], -1).astype(np.uint8)


@pytest.mark.parametrize("mode", get_args(QueryMode))
@pytest.mark.parametrize("shape", [(96, 160), (160, 96), (100, 100), (1, 1)])
def test_every_mode_makes_views_of_every_shape(mode, shape):
    views = views_of(ramp(*shape), PREPROCESS, mode)
    assert len(views) == {"five_crops": 5, "nearest_crop": 5, "majority_voting": 5, "four_turns": 4}.get(
        mode, 1
    )
    assert views.shape[1] == 3
    assert views.isfinite().all()
    if mode != "single":
        assert views.shape[2:] == (32, 32)


RECTANGLE = Preprocess(image_size_px=(24, 32), resize="squash", mean=(0.5,) * 3, std=(0.5,) * 3)


@pytest.mark.parametrize("mode", get_args(QueryMode))
@pytest.mark.parametrize("shape", [(96, 160), (160, 96), (100, 100), (1, 1)])
def test_every_mode_makes_views_for_a_rectangle(mode, shape):
    """Crops are squares with its shorter side, as in the VG benchmark; turns are made before it is filled."""
    shape_hw = views_of(ramp(*shape), RECTANGLE, mode).shape[2:]
    if mode in ("five_crops", "nearest_crop", "majority_voting"):
        assert shape_hw == (24, 24)
    elif mode == "single":
        assert min(shape_hw) == 24
    else:
        assert shape_hw == (24, 32)


def test_turns_for_a_rectangle():
    views = views_of(ramp(96, 96), RECTANGLE, "four_turns")
    assert views[0, 0, -1].mean() > 0.9  # red grows downwards, and after half a turn upwards
    assert views[2, 0, 0].mean() > 0.9
    assert views[1, 0, :, -1].mean() > 0.9  # turned by a quarter against the clock, to the right


def test_modes_of_pictures_that_keep_their_shape():
    native = replace(PREPROCESS, resize="native")
    image = ramp(96, 160)
    assert views_of(image, native, "central_crop").shape == (1, 3, 96, 160)
    assert views_of(image, native, "single").shape == (1, 3, 96, 160)
    assert views_of(image, native, "resized").shape == (1, 3, 32, 32)
    assert views_of(image, native, "five_crops").shape == (5, 3, 96, 96)
    assert views_of(ramp(50, 50), native, "four_turns").shape == (4, 3, 50, 50)
    with pytest.raises(ConfigError, match=r"four_turns needs square inputs.*96 x 160"):
        views_of(image, native, "four_turns")


def test_central_crop_is_the_models_own_preprocessing():
    image = ramp(96, 160)
    assert torch.equal(views_of(image, PREPROCESS, "central_crop")[0], PREPROCESS(image))


def test_resized_shows_all_of_the_picture_and_single_keeps_its_shape():
    image = ramp(96, 160)
    green = views_of(image, PREPROCESS, "resized")[0, 1]
    assert green[:, 0].mean() < -0.95
    assert green[:, -1].mean() > 0.9
    single = views_of(image, PREPROCESS, "single")
    assert single.shape == (1, 3, 32, 53)  # torchvision truncates 32 * 160 / 96
    assert single[0, 1, :, 0].mean() < -0.95
    assert views_of(ramp(10, 1000), PREPROCESS, "single").shape == (1, 3, 32, 32 * MAX_ASPECT)


def test_five_crops_are_the_centre_and_the_corners():
    red_green = views_of(ramp(96, 160), PREPROCESS, "five_crops")[:, :2].mean((2, 3))
    middle, north_west, north_east, south_west, south_east = red_green
    # The height is the side of the square, so crops differ to the right alone.
    assert torch.allclose(red_green[:, 0], middle[0].expand(5), atol=0.01)
    assert north_west[1] == south_west[1] < middle[1] < north_east[1] == south_east[1]
    of_square = views_of(ramp(100, 100), PREPROCESS, "five_crops")
    assert of_square[1, 0].mean() < of_square[0, 0].mean() < of_square[4, 0].mean()


def test_four_turns_are_turned_back_by_turning():
    views = views_of(ramp(96, 160), PREPROCESS, "four_turns")
    for turns, view in enumerate(views):
        assert torch.equal(torch.rot90(view, -turns, (1, 2)), views[0])


def test_an_unknown_mode_names_the_known_ones():
    with pytest.raises(ConfigError, match=r"'twice'; expected one of central_crop, resized"):
        views_of(ramp(4, 4), PREPROCESS, "twice")
