"""Patches against geodesics pixel by pixel, and against rasterio's own warp."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from aerial_samples import CENTER, colour_at, expected_patch, write_geotiff, write_mbtiles, write_tiles
from rasterio.warp import Resampling, reproject

from geoloc.errors import ConfigError
from geoloc.reference.aerial import AerialSource, GeoTiff, MBTiles, XyzFolder, read_patch
from quadtree import InvalidCoordinateError


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, AerialSource]:
    folder = tmp_path_factory.mktemp("imagery")
    web_pixel = 0.5 / np.cos(np.radians(CENTER[0]))
    return {
        "utm": GeoTiff(write_geotiff(folder / "utm.tif", "EPSG:32619")),
        "lambert": GeoTiff(write_geotiff(folder / "lambert.tif", "EPSG:2249", pixel=1.64)),  # in feet
        "web": GeoTiff(write_geotiff(folder / "web.tif", "EPSG:3857", pixel=web_pixel)),
        "degrees": GeoTiff(write_geotiff(folder / "degrees.tif", "EPSG:4326", pixel=5e-6)),
        "tiles": XyzFolder(write_tiles(folder / "tiles", [17, 18])),
        "mbtiles": MBTiles(write_mbtiles(folder / "a.mbtiles", [17, 18])),
    }


@pytest.mark.parametrize("heading_deg", [0.0, 37.0, -200.0])
@pytest.mark.parametrize("gsd", [0.3, 0.5, 1.1, 2.5])
@pytest.mark.parametrize("kind", ["utm", "lambert", "web", "degrees", "tiles", "mbtiles"])
def test_a_patch_shows_what_is_there(
    sources: dict[str, AerialSource], kind: str, gsd: float, heading_deg: float
) -> None:
    center = (CENTER[0] + 1e-4, CENTER[1] - 2e-4)
    patch = read_patch(sources[kind], center, heading_deg=heading_deg, gsd_m_per_px=gsd, size_px=40)
    expected = expected_patch(center, heading_deg, gsd, 40)
    assert patch.image.shape == (40, 40, 3)
    assert patch.valid.all()
    off = np.abs(patch.image - expected)
    # Rounding to 8 bits twice, and bilinear interpolation of waves of 61 m and more.
    assert off.mean() < 0.8
    assert off.max() < 3.0


@pytest.mark.parametrize("heading_deg", [0.0, 30.0, 225.0])
def test_a_patch_agrees_with_a_direct_warp(tmp_path: Path, heading_deg: float) -> None:
    def noise(bands: Any) -> None:
        bands[:] = np.random.default_rng(5).integers(0, 256, bands.shape)

    path = write_geotiff(tmp_path / "noise.tif", "EPSG:25832", center=(51.0, 9.5), edit=noise)
    latlon, gsd, size = (51.0002, 9.5003), 0.5, 128
    patch = read_patch(GeoTiff(path), latlon, heading_deg=heading_deg, gsd_m_per_px=gsd * 0.999, size_px=size)
    plane = f"+proj=aeqd +lat_0={latlon[0]} +lon_0={latlon[1]} +ellps=WGS84 +units=m"
    to_plane = (
        rasterio.Affine.rotation(-heading_deg)
        @ rasterio.Affine.scale(gsd * 0.999, -gsd * 0.999)
        @ rasterio.Affine.translation(-size / 2, -size / 2)
    )
    expected = np.zeros((3, size, size), np.uint8)
    with rasterio.open(path) as file:
        reproject(
            rasterio.band(file, [1, 2, 3]),
            expected,
            dst_transform=to_plane,
            dst_crs=plane,
            resampling=Resampling.bilinear,
            tolerance=0,
            XSCALE=1,  # else it takes the box around a turned patch for a smaller scale, and blurs
            YSCALE=1,
        )
    assert patch.valid.all()
    off = np.abs(patch.image.astype(int) - expected.transpose(1, 2, 0))
    # Noise is the hardest picture there is: a hundredth of a pixel would show as a grey level.
    assert off.mean() < 0.5
    assert np.quantile(off, 0.999) <= 3


def test_coarse_views_are_averages(sources: dict[str, AerialSource], tmp_path: Path) -> None:
    def checkerboard(bands: Any) -> None:
        bands[:] = 255 * (np.indices(bands.shape).sum(0) % 2)

    path = write_geotiff(tmp_path / "board.tif", "EPSG:32619", edit=checkerboard)
    for gsd in (1.0, 1.5, 2.0, 3.3):
        patch = read_patch(GeoTiff(path), CENTER, gsd_m_per_px=gsd, size_px=32)
        assert patch.image.min() > 96
        assert patch.image.max() < 160
    # Of tiles with one zoom there is no coarser level to read: halved here, and the same picture.
    one_zoom = XyzFolder(write_tiles(tmp_path / "tiles", [19], reach=4))
    for gsd in (0.25, 0.9, 1.9):
        patch = read_patch(one_zoom, CENTER, gsd_m_per_px=gsd, size_px=64)
        both = read_patch(sources["tiles"], CENTER, gsd_m_per_px=gsd, size_px=64)
        known = patch.valid & both.valid
        assert known.mean() > 0.4
        assert np.abs(patch.image[known].astype(int) - both.image[known]).mean() < 1.5


def test_what_is_missing_is_known_as_missing(tmp_path: Path) -> None:
    def hole(bands: Any) -> None:
        bands[:, :, :256] = 0

    path = write_geotiff(tmp_path / "half.tif", "EPSG:32619", edit=hole, nodata=0)
    patch = read_patch(GeoTiff(path), CENTER, gsd_m_per_px=0.5, size_px=100)
    assert patch.coverage == pytest.approx(0.5, abs=0.03)
    assert not patch.valid[:, :45].any()
    assert patch.valid[:, 55:].all()
    assert (patch.image[~patch.valid] == 0).all()
    right = patch.image[:, 52:].astype(int)
    assert np.abs(right - expected_patch(CENTER, 0.0, 0.5, 100)[:, 52:]).max() < 4  # no dark seam
    filled = patch.filled((123.4, 117, 104))
    assert filled[0, 0].tolist() == [123, 117, 104]
    assert (filled[patch.valid] == patch.image[patch.valid]).all()


def test_beyond_the_imagery_there_is_nothing(sources: dict[str, AerialSource]) -> None:
    for source in sources.values():
        for latlon in ((0.0, 0.0), (42.36, -70.0), (-89.0, 10.0), (90.0, 0.0)):
            patch = read_patch(source, latlon, gsd_m_per_px=0.5, size_px=16)
            assert patch.coverage == 0.0
            assert not patch.image.any()


def test_each_source_fills_what_those_before_it_leave_open(tmp_path: Path) -> None:
    def west(bands: Any) -> None:
        bands[:, :, 256:] = 0
        bands[:, :, :256] = 100

    def all_red(bands: Any) -> None:
        bands[0], bands[1:] = 200, 1

    first = GeoTiff(write_geotiff(tmp_path / "1.tif", "EPSG:32619", edit=west, nodata=0))
    second = GeoTiff(write_geotiff(tmp_path / "2.tif", "EPSG:32618", edit=all_red))  # the neighbouring zone
    patch = read_patch([first, second], CENTER, gsd_m_per_px=0.5, size_px=100)
    assert patch.valid.all()
    assert (patch.image[:, :45] == 100).all()
    assert (patch.image[:, 55:] == (200, 1, 1)).all()
    other_way = read_patch([second, first], CENTER, gsd_m_per_px=0.5, size_px=100)
    assert (other_way.image == (200, 1, 1)).all()


def test_at_the_antimeridian_a_patch_is_in_one_piece(tmp_path: Path) -> None:
    center = (-17.0, 180.0)
    source = XyzFolder(tmp_path_tiles(tmp_path, center))
    patch = read_patch(source, center, gsd_m_per_px=1.0, size_px=64)
    assert patch.valid.all()
    south, west, north, east = source.bounds_deg or (0, 0, 0, 0)
    assert south < -17 < north
    assert 179 < west < 180
    assert -180 < east < -179


def tmp_path_tiles(folder: Path, center: tuple[float, float]) -> Path:
    """Tiles around a point of the antimeridian, with columns that wrap."""
    from aerial_samples import encoded, tile_picture, tiles_around

    for x, y in tiles_around(center, 17, 2):
        path = folder / "17" / str(x % 2**17) / f"{y}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(tile_picture(17, x, y)))
    return folder


def test_a_patch_of_half_a_continent(tmp_path: Path) -> None:
    """At a thousand kilometres nothing is affine any more: every pixel is placed by its own geodesic."""

    def longitude(bands: Any) -> None:
        bands[0] = np.arange(360)[None] * 255 / 360
        bands[1] = np.arange(360)[:, None] * 255 / 360

    path = write_geotiff(
        tmp_path / "w.tif", "EPSG:4326", center=(0, 0), side_px=360, pixel=1.0, edit=longitude
    )
    source, center = GeoTiff(path), (50.0, 10.0)
    patch = read_patch(source, center, gsd_m_per_px=60_000, size_px=32, heading_deg=20)
    from geoloc.geo.wgs84 import offset_latlon_deg

    along = (np.arange(32) - 15.5) * 60_000
    right, down = np.meshgrid(along, along)
    turn = np.radians(20)
    latlon = offset_latlon_deg(
        center, right * np.cos(turn) - down * np.sin(turn), -right * np.sin(turn) - down * np.cos(turn)
    )
    np.testing.assert_allclose(patch.image[..., 0], (latlon[..., 1] + 179.5) * 255 / 360, atol=1.6)
    np.testing.assert_allclose(patch.image[..., 1], (179.5 - latlon[..., 0]) * 255 / 360, atol=1.6)


@pytest.mark.parametrize(
    "options", [{"gsd_m_per_px": 0}, {"gsd_m_per_px": np.nan}, {"size_px": 0}, {"heading_deg": np.inf}]
)
def test_impossible_patches_are_refused(sources: dict[str, AerialSource], options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="positive gsd_m_per_px, a size_px of at least 1 and a finite"):
        read_patch(sources["utm"], CENTER, **({"gsd_m_per_px": 1.0, "size_px": 8} | options))


def test_a_place_that_is_none_is_refused(sources: dict[str, AerialSource]) -> None:
    with pytest.raises(InvalidCoordinateError):
        read_patch(sources["utm"], (95.0, 0.0), gsd_m_per_px=1.0, size_px=8)


def test_a_view_far_too_coarse_says_what_to_do(tmp_path: Path) -> None:
    source = XyzFolder(write_tiles(tmp_path, [19], reach=0))
    with pytest.raises(
        ConfigError, match=r"times as fine as the asked 1000 m per pixel, .*: give coarser levels"
    ):
        read_patch(source, CENTER, gsd_m_per_px=1000.0, size_px=64)


def test_the_sample_imagery_is_not_flat() -> None:
    assert np.ptp(colour_at(np.stack(np.meshgrid([42.36, 42.361], [-71.06, -71.061]), -1))) > 50
