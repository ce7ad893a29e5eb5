"""Resizing without torch gives torch's bytes."""

import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from geoloc.images import resize
from geoloc.images.resize import resize_u8

SIDE = st.integers(1, 160)


@given(SIDE, SIDE, SIDE, SIDE, st.sampled_from(["bicubic", "bilinear"]), st.integers(0, 2**32 - 1))
def test_the_bytes_are_those_of_torch(height, width, to_height, to_width, interpolation, seed):
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None]
    expected = torch.nn.functional.interpolate(
        pixels, (to_height, to_width), mode=interpolation, align_corners=False, antialias=True
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.delitem(sys.modules, "torch")
        found = resize_u8(image, to_height, to_width, interpolation)
    assert np.array_equal(found, expected[0].permute(1, 2, 0).numpy())


def test_torch_is_taken_where_it_is_loaded(monkeypatch):
    image = np.arange(300, dtype=np.uint8).reshape(10, 10, 3)
    monkeypatch.setattr(resize, "_along", lambda *_: pytest.fail("torch was there"))
    assert resize_u8(image, 5, 7, "bicubic").shape == (5, 7, 3)
    assert resize_u8(image[::-1], 5, 7, "bicubic").shape == (5, 7, 3)  # of negative strides
    assert resize_u8(image, 10, 10, "bicubic") is image
