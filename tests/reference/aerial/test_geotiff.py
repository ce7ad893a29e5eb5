"""GeoTIFFs of all kinds: bands, masks, overviews, and how other values than 8 bits become colours."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio

from geoloc.errors import ConfigError, NotFoundError
from geoloc.geo.wgs84 import unproject
from geoloc.reference.aerial import GeoTiff, open_sources, read_patch

CORNER = rasterio.Affine(1, 0, 330000, 0, -1, 4691000)  # of pixels of 1 m in UTM 19 N


def write(path: Path, values: Any, **options: Any) -> Path:
    """A GeoTIFF of values (bands, height, width)."""
    count, height, width = values.shape
    profile = {"driver": "GTiff", "count": count, "height": height, "width": width, "dtype": values.dtype}
    with rasterio.open(path, "w", crs="EPSG:32619", transform=CORNER, **profile, **options) as file:
        file.write(values)
    return path


def test_bands_of_grey_and_those_that_are_not_there(tmp_path: Path) -> None:
    path = write(tmp_path / "grey.tif", np.full((1, 64, 64), 77, np.uint8))
    center = unproject(32619, (330032, 4690968))
    assert (read_patch(GeoTiff(path), center, gsd_m_per_px=1.0, size_px=16).image == 77).all()
    with pytest.raises(ConfigError, match=r"has the bands 1 to 1, and \[3, 2, 1\] were asked for"):
        GeoTiff(path, bands=(3, 2, 1))
    with pytest.raises(NotFoundError, match="there is no GeoTIFF"):
        GeoTiff(tmp_path / "gone.tif")
    path = write(tmp_path / "phase.tif", np.ones((1, 8, 8), np.complex64))
    with pytest.raises(ConfigError, match="has bands of complex64, and real numbers of one type are needed"):
        GeoTiff(path)


def test_overviews_and_alpha(tmp_path: Path) -> None:
    bands = np.full((4, 256, 256), 50, np.uint8)
    bands[3], bands[3, :, :128] = 255, 0
    path = write(tmp_path / "a.tif", bands, photometric="RGB", alpha="yes")
    with rasterio.open(path, "r+") as file:
        file.build_overviews([2, 4, 8], rasterio.enums.Resampling.average)
    source = GeoTiff(path)
    for gsd in (1.0, 2.0, 4.0, 8.0):
        patch = read_patch(source, unproject(32619, (330128, 4690872)), gsd_m_per_px=gsd, size_px=24)
        assert (patch.image[patch.valid] == 50).all()
        assert not patch.valid[:, :10].any()
        assert patch.valid[8:16, 14].all()


def test_a_given_range_by_hand(tmp_path: Path) -> None:
    """(v - 1000) / 2000 of 255: 2000 is 127.5, which rounds to the even 128; what lies outside is cut off."""
    values = np.array([[[0, 1000, 1008], [2000, 2992, 3000], [3001, 65535, 1004]]], np.uint16)
    rgb, valid = GeoTiff(write(tmp_path / "a.tif", values), value_range=(1000, 3000)).read(0, 0, 0, 3, 3)
    assert valid.all()
    assert rgb[..., 0].tolist() == [[0, 0, 1], [128, 254, 255], [255, 255, 1]]
    assert (rgb == rgb[..., :1]).all()


def test_without_a_range_it_is_2_to_98_percent_of_the_whole_file(tmp_path: Path) -> None:
    """0, 40, 80 … 4000 has its 2 % at 80 and its 98 % at 3920; so every window of the file is stretched alike."""
    values = np.zeros((3, 101, 1), np.uint16)
    values[:] = 40 * np.arange(101)[:, None]
    source = GeoTiff(write(tmp_path / "a.tif", values))
    assert source.value_range == (80.0, 3920.0)
    whole, _ = source.read(0, 0, 0, 1, 101)
    assert whole[[0, 2, 50, 98, 100], 0, 0].tolist() == [0, 0, 128, 255, 255]
    for top in range(0, 100, 10):
        part, _ = source.read(0, 0, top, 1, top + 10)
        assert (part == whole[top : top + 10]).all()


def test_one_range_for_all_bands_keeps_the_colour(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 4096, (3, 50, 60)).astype(np.uint16) // [
        [[1]],
        [[2]],
        [[4]],
    ]
    source = GeoTiff(write(tmp_path / "a.tif", values.astype(np.uint16)))
    low, high = np.percentile(values, (2, 98))
    rgb, _ = source.read(0, 0, 0, 60, 50)
    np.testing.assert_allclose(
        rgb.transpose(2, 0, 1), 255 * np.clip((values - low) / (high - low), 0, 1), atol=0.5
    )


def test_what_is_missing_does_not_count(tmp_path: Path) -> None:
    """Neither the nodata value, nor NaN, which is missing whether the file says so or not."""
    values = np.full((3, 40, 40), -9999.0, np.float32)
    values[:, :, 20:] = np.linspace(0.0, 0.3, 20)
    values[1, 7, 33] = np.nan
    source = GeoTiff(write(tmp_path / "a.tif", values, nodata=-9999.0))
    known = values[:, :, 20:].astype(np.float64)
    known = known[:, ~np.isnan(known).any(0)]
    assert source.value_range == pytest.approx(np.percentile(known, (2, 98)))
    rgb, valid = source.read(0, 0, 0, 40, 40)
    assert not valid[:, :20].any()
    assert not valid[7, 33]
    assert valid.sum() == 40 * 20 - 1
    assert rgb[0, 20, 0] == 0
    assert rgb[0, 39, 0] == 255


@pytest.mark.parametrize("value", [0, 700])
def test_a_file_of_one_value_or_of_none_opens(tmp_path: Path, value: int) -> None:
    source = GeoTiff(write(tmp_path / "a.tif", np.full((1, 9, 9), value, np.uint16), nodata=0))
    rgb, valid = source.read(0, 0, 0, 9, 9)
    assert not rgb.any()
    assert valid.all() == (value > 0)


def test_8_bits_stay_as_they_are_unless_a_range_is_given(tmp_path: Path) -> None:
    values = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    path = write(tmp_path / "a.tif", values)
    assert (GeoTiff(path).read(0, 0, 0, 16, 16)[0][..., 1] == values[0]).all()
    (stretched,) = open_sources(path, value_range=[0, 51])
    assert (stretched.read(0, 0, 0, 16, 16)[0][..., 1] == np.minimum(5 * values[0].astype(int), 255)).all()
    assert stretched.facts()["value_range"] == [0.0, 51.0]


@pytest.mark.parametrize("value_range", [(5, 5), (5, 1), (0, np.inf), (np.nan, 1)])
def test_ranges_that_are_none(tmp_path: Path, value_range: tuple[float, float]) -> None:
    path = write(tmp_path / "a.tif", np.ones((1, 8, 8), np.uint16))
    with pytest.raises(
        ConfigError, match="it must be two numbers, of what becomes black and of what becomes"
    ):
        GeoTiff(path, value_range=value_range)
