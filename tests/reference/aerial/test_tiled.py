"""Tile folders, layouts, MBTiles: which tiles are where, and what a bad one does."""

import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aerial_samples import CENTER, colour_at, encoded, tile_picture, tiles_around, write_mbtiles, write_tiles
from PIL import Image
from pyproj import Transformer

from geoloc.errors import BadImageError, ConfigError, NotFoundError
from geoloc.geo.wgs84 import unproject
from geoloc.reference.aerial import MBTiles, TileGrid, TilePath, XyzFolder, open_sources, read_patch
from geoloc.reference.aerial.tiled import decode_tile

UTM = "EPSG:25832"
SAXONY = (51.05, 13.74)


def write_layout(folder: Path, rows_go: str, zooms: tuple[int, ...] = (0, -1)) -> Path:
    """Tiles of 100 px in UTM, as Statewide's scripts write them: zoom 0 has 20 m a tile, zoom -1 has 40."""
    x0, y0 = Transformer.from_crs(4326, UTM, always_xy=True).transform(SAXONY[1], SAXONY[0])
    size = 1e7
    folder.mkdir()
    lines = [
        "crs: epsg:25832",
        f"max_zoom: {max(zooms)}",
        f"min_zoom: {min(zooms)}",
        "origin_crs: [0.0, 0.0]",
        "path: '{zoom}/{x}/{y}.png'",
        f"tile_axes: [east, {rows_go}]",
        "tile_shape_crs: [20.0, 20.0]",
        "tile_shape_px: [100, 100]",
    ]
    lines += [f"size_crs: [{size}, {size}]"] if rows_go == "south" else []
    (folder / "layout.yaml").write_text("\n".join(lines))
    for zoom in zooms:
        side = 20.0 / 2**zoom
        for dx in range(-3, 4):
            for dy in range(-3, 4):
                x, up = int(x0 // side) + dx, int(y0 // side) + dy
                along = (np.arange(100) + 0.5) * side / 100
                xs, ys = np.meshgrid(x * side + along, (up + 1) * side - along)
                picture = colour_at(unproject(UTM, np.stack([xs, ys], -1))).round().astype(np.uint8)
                y = up if rows_go == "north" else int(size // side) - 1 - up
                path = folder / str(zoom) / str(x) / f"{y}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(encoded(picture))
    return folder


@pytest.mark.parametrize("rows_go", ["north", "south"])
def test_statewides_layout(tmp_path: Path, rows_go: str) -> None:
    (source,) = open_sources(write_layout(tmp_path / "saxony", rows_go))
    assert source.num_levels == 2
    for gsd in (0.2, 0.4, 0.5):
        patch = read_patch(source, SAXONY, gsd_m_per_px=gsd, size_px=60)
        from aerial_samples import expected_patch

        assert patch.valid.all()
        assert np.abs(patch.image - expected_patch(SAXONY, 0.0, gsd, 60)).max() < 3
    south, west, north, east = source.bounds_deg or (0, 0, 0, 0)
    assert south < SAXONY[0] < north < south + 0.01
    assert west < SAXONY[1] < east < west + 0.01
    assert source.covers(np.array([SAXONY, (51.06, 13.74)])).tolist() == [True, False]


def test_a_layout_may_be_the_webs(tmp_path: Path) -> None:
    write_tiles(tmp_path, [17])
    (tmp_path / "layout.yaml").write_text(
        "preset: XYZ\npath: '{zoom}/{x}/{y}.png'\nmin_zoom: 17\nmax_zoom: 17\n"
    )
    (with_layout,), without = open_sources(tmp_path), XyzFolder(tmp_path)
    a, b = (read_patch(one, CENTER, gsd_m_per_px=1.0, size_px=32) for one in (with_layout, without))
    assert (a.image == b.image).all()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("crs: [", "is not YAML"),
        ("- 1", "must hold keys and values; found list"),
        ("crs: epsg:25832\ntile_size: 3", "unknown key 'tile_size'; known are crs, tile_shape_px"),
        ("url: http://a/{z}\npreset: XYZ", "names a server: give its address itself, 'http://a/{z}'"),
        ("min_zoom: 0", "needs `crs`, such as epsg:25832, or `preset: XYZ`"),
        ("preset: TMS", r"says `preset: XYZ` and nothing of .*; found 'TMS'"),
        ("crs: epsg:99999999", "is no coordinate reference system that pyproj knows"),
        ("crs: epsg:25832\ntile_axes: [north, east]", r"is \[east, south\] or \[east, north\]; found"),
        ("crs: epsg:25832", r"tile_axes are \[east, south\] needs size_crs"),
        ("crs: epsg:25832\ntile_shape_px: [2, 3]", r"must be square and positive; found \[2.0, 3.0\]"),
        ("crs: epsg:25832\norigin_crs: 5", r"origin_crs of a layout.yaml must be two numbers, .*; found 5"),
        ("preset: XYZ\npath: '../{zoom}/{x}/{y}.jpg'", "must stay in its folder and name"),
    ],
)
def test_a_layout_that_makes_no_sense(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "layout.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        open_sources(tmp_path)


@pytest.mark.parametrize(
    ("pattern", "name", "place"),
    [
        ("{zoom}/{x}/{y}.jpg", "3/4/5.jpg", (3, 4, 5)),
        ("{zoom}/{x}/{y}.jpg", "3/4/5.png", None),
        ("{z}/{x}/{y}", "-3/4/-5.webp", (-3, 4, -5)),
        ("{zoom}/{x}/{y}.*", "3/4/5.JPEG", (3, 4, 5)),
        ("{zoom}/{x}/{y}.*", "3/4/5.txt", None),
        ("{zoom}/{x}/{y}.*", "a/3/4/5.jpg", None),
        ("z{zoom}/tile_{x}_{y}.png", "z3/tile_4_5.png", (3, 4, 5)),
    ],
)
def test_names_of_tiles(pattern: str, name: str, place: Any) -> None:
    assert TilePath(pattern).parse(name) == place


@pytest.mark.parametrize("pattern", ["{zoom}/{x}.jpg", "/{zoom}/{x}/{y}.jpg", "{x}/{x}/{y}/{zoom}.jpg"])
def test_a_pattern_must_name_each_number_once(pattern: str) -> None:
    with pytest.raises(ConfigError, match="once each, as"):
        TilePath(pattern)


def test_a_bad_tile_is_a_hole_that_is_told(tmp_path: Path) -> None:
    write_tiles(tmp_path, [17], reach=0)
    ((x, y),) = tiles_around(CENTER, 17, 0)
    (tmp_path / "17" / str(x) / f"{y}.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    (tmp_path / "17" / str(x) / f"{y + 1}.png").write_bytes(encoded(tile_picture(17, x, y + 1)))
    source = XyzFolder(tmp_path)
    patch = read_patch(source, CENTER, gsd_m_per_px=1.0, size_px=64)
    assert not patch.valid.all()
    assert list(source.bad_tiles) == [f"17/{x}/{y}"]


def test_transparent_pixels_are_missing_and_not_white() -> None:
    pixels = np.full((256, 256, 4), 90, np.uint8)
    pixels[:, :100, 3], pixels[:, 100:, 3] = 0, 255
    rgb, valid = decode_tile(encoded(pixels), 256)
    assert not valid[:, :100].any()
    assert valid[:, 100:].all()
    assert (rgb[valid] == 90).all()
    with pytest.raises(BadImageError, match="a tile of 256 x 256 px, where 512 x 512 was expected"):
        decode_tile(encoded(pixels), 512)


def test_tiles_of_512_px_are_seen_from_the_files(tmp_path: Path) -> None:
    for x, y in tiles_around(CENTER, 16, 1):
        path = tmp_path / "16" / str(x) / f"{y}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(tile_picture(16, x, y, 512), "JPEG"))
    source = XyzFolder(tmp_path)
    assert source.grid == TileGrid(tile_px=512)
    patch = read_patch(source, CENTER, gsd_m_per_px=1.0, size_px=32)
    assert patch.valid.all()


def test_mbtiles_and_folders_show_the_same(tmp_path: Path) -> None:
    folder = XyzFolder(write_tiles(tmp_path / "tiles", [16, 17]))
    (file,) = open_sources(write_mbtiles(tmp_path / "a.mbtiles", [16, 17]))
    assert isinstance(file, MBTiles)
    np.testing.assert_allclose(file.bounds_deg, folder.bounds_deg, atol=1e-9)
    points = np.random.default_rng(0).normal(CENTER, 0.01, (200, 2))
    assert (file.covers(points) == folder.covers(points)).all()
    assert 0 < file.covers(points).sum() < 200
    a, b = (read_patch(one, CENTER, gsd_m_per_px=0.9, size_px=64, heading_deg=9) for one in (file, folder))
    assert (a.image == b.image).all()


def test_files_that_are_no_imagery(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.mbtiles").write_bytes(b"nothing of the kind" * 100)
    (tmp_path / "a.tif").write_bytes(b"II*\0 and no more")
    (tmp_path / "a.txt").write_text("")
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "plain.tif")
    for name, error, message in (
        ("gone", NotFoundError, "there is no aerial imagery at .*gone: check the path"),
        (
            "empty",
            NotFoundError,
            r"holds no tile called .*: give the folder above the zooms, or a layout\.yaml",
        ),
        ("a.mbtiles", ConfigError, "is not an MBTiles file"),
        ("a.tif", ConfigError, "is not a readable GeoTIFF"),
        ("plain.tif", ConfigError, "has no projection: give it one"),
        ("a.txt", ConfigError, r"is not aerial imagery: give a folder of tiles, a \.tif, an \.mbtiles"),
    ):
        with pytest.raises(error, match=message):
            open_sources(tmp_path / name)
    with pytest.raises(ConfigError, match="the list of aerial sources is empty"):
        open_sources([])
    with pytest.raises(ConfigError, match="needs a folder for its tiles and its coarsest and finest zoom"):
        open_sources("https://tiles.invalid/{z}/{x}/{y}.jpg")


def test_mbtiles_of_vectors_or_nothing(tmp_path: Path) -> None:
    for name, rows in (("empty", []), ("vectors", [(1, 0, 0, b"x")])):
        file = sqlite3.connect(tmp_path / f"{name}.mbtiles")
        file.execute("CREATE TABLE metadata (name text, value text)")
        file.execute("INSERT INTO metadata VALUES ('format', 'pbf')")
        file.execute("CREATE TABLE tiles (zoom_level, tile_column, tile_row, tile_data)")
        file.executemany("INSERT INTO tiles VALUES (?, ?, ?, ?)", rows)
        file.commit()
        file.close()
    with pytest.raises(ConfigError, match="holds no tiles"):
        MBTiles(tmp_path / "empty.mbtiles")
    with pytest.raises(ConfigError, match="holds pbf, no pictures"):
        MBTiles(tmp_path / "vectors.mbtiles")


def test_a_folder_of_rasters_is_read_by_name(tmp_path: Path) -> None:
    from aerial_samples import write_geotiff

    write_geotiff(tmp_path / "b.tif", "EPSG:32618")
    write_geotiff(tmp_path / "a.TIFF", "EPSG:32619")
    assert [source.name for source in open_sources(tmp_path)] == ["a.TIFF", "b.tif"]


def test_facts_tell_sources_apart_and_not_places(tmp_path: Path) -> None:
    import json
    import shutil

    for name, write in (("tiles", write_tiles), ("x.mbtiles", write_mbtiles)):
        write(tmp_path / name, [17])
        (here,) = open_sources(tmp_path / name)
        other = tmp_path / "elsewhere"
        other.mkdir(exist_ok=True)
        copy = shutil.copytree if (tmp_path / name).is_dir() else shutil.copy
        copy(tmp_path / name, other / name)
        (there,) = open_sources(other / name)
        assert here.facts() == there.facts()
        json.dumps(here.facts(), allow_nan=False)
        assert str(tmp_path) not in json.dumps(here.facts())
