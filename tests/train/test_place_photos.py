"""Photos of training: windows, the share that becomes night, and looks of the target; each a function of its seed."""

import numpy as np
import pytest
import torch
from PIL import Image

from geoloc.data.sample import SampleTable
from geoloc.errors import ConfigError
from geoloc.images.preprocess import Preprocess
from geoloc.train.place_photos import AugmentConfig, LoadPlacePhoto, NightConfig, window

PREPROCESS = Preprocess(image_size_px=32, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25))
PLAIN = AugmentConfig(smallest_area=1, strength=0)


@pytest.fixture
def table(tmp_path):
    """A bright photo with structure, and a dark one."""
    rng = np.random.default_rng(0)
    for name, (low, high) in {"day": (120, 250), "night": (0, 40)}.items():
        Image.fromarray(rng.integers(low, high, (48, 64, 3)).astype(np.uint8)).save(tmp_path / f"{name}.png")
    return SampleTable(
        tmp_path, {"key": ["d", "n"], "image_file": ["day.png", "night.png"]}, np.zeros((2, 2))
    )


def loaded(load, sample, seed=0):
    found = load(sample, np.random.default_rng(seed))
    pixels = found["image"] * torch.tensor(PREPROCESS.std)[:, None, None]
    return pixels + torch.tensor(PREPROCESS.mean)[:, None, None], bool(found["is_night"])


def test_without_anything_it_is_the_photo_itself(table):
    day, is_night = loaded(LoadPlacePhoto(PREPROCESS, PLAIN), table[0])
    image = np.asarray(Image.open(table.encoded(0).path))
    expected = PREPROCESS(image) * torch.tensor(PREPROCESS.std)[:, None, None]
    torch.testing.assert_close(day, expected + torch.tensor(PREPROCESS.mean)[:, None, None])
    assert not is_night


def test_half_of_the_photos_become_night(table):
    load = LoadPlacePhoto(PREPROCESS, PLAIN, NightConfig(share=0.5))
    found = [loaded(load, table[0], seed) for seed in range(60)]
    assert 18 <= sum(is_night for _, is_night in found) <= 42
    dark, bright = (
        np.mean([float(pixels.mean()) for pixels, is_night in found if is_night == night])
        for night in (True, False)
    )
    assert dark < 0.7 * bright
    assert torch.equal(loaded(load, table[0], 7)[0], loaded(load, table[0], 7)[0])


def test_looks_of_the_target(table):
    load = LoadPlacePhoto(
        PREPROCESS, PLAIN, NightConfig(1.0, fourier_beta=0.2, darkroom=False), table.take([1])
    )
    day, target = (loaded(LoadPlacePhoto(PREPROCESS, PLAIN), table[row])[0] for row in (0, 1))
    styled, is_night = loaded(load, table[0])
    assert is_night
    assert abs(float(styled.mean() - target.mean())) < 0.1 < float(day.mean() - styled.mean())


def test_windows_keep_the_shape_and_the_share():
    image = np.arange(40 * 60 * 3, dtype=np.uint32).reshape(40, 60, 3).astype(np.uint8)
    rng = np.random.default_rng(0)
    shapes = np.array([window(image, 0.25, rng).shape for _ in range(300)])
    shares = shapes[:, 0] * shapes[:, 1] / 2400
    assert 0.24 < shares.min() < 0.3
    assert 0.95 < shares.max() <= 1
    np.testing.assert_allclose(shapes[:, 1] / shapes[:, 0], 1.5, atol=0.06)
    assert window(image, 1, rng) is image


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AugmentConfig(smallest_area=0), "must be in"),
        (lambda: AugmentConfig(strength=3), "must be in"),
        (lambda: NightConfig(share=0), "night=null for no night photos"),
        (lambda: NightConfig(darkroom=False), "night changes nothing"),
    ],
)
def test_impossible_settings(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
