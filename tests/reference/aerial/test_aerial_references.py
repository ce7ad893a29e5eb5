"""Databases of aerial references: one row for each cell with imagery, its vector that of its views."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from aerial_samples import CENTER, encoded, tiles_around, write_geotiff, write_tiles
from embedders import SIDE_PX, ColourEmbedder, JointColourEmbedder, contents, rows_of

from geoloc.errors import ConfigError, FingerprintMismatchError, OutputMismatchError
from geoloc.reference.aerial import CellGrid, GeoTiff, XyzFolder, read_patch
from geoloc.reference.aerial.source import finest_gsd_m_per_px
from geoloc.reference.database import ReferenceDatabase

GSD = (0.5, 1.0, 2.0)


@pytest.fixture
def raster(tmp_path: Path) -> Path:
    """256 m x 256 m."""
    return write_geotiff(tmp_path / "boston.tif", "EPSG:32619")


def create(folder: Path, model: Any) -> ReferenceDatabase:
    return ReferenceDatabase.create(folder, model=model)


def test_every_cell_is_a_row_with_the_mean_of_its_views(tmp_path: Path, raster: Path) -> None:
    model = ColourEmbedder()
    database = create(tmp_path / "refs", model)
    report = database.add_aerial(raster, cell_size_m=30, gsd_m_per_px=GSD, licence="CC0-1.0")
    found = rows_of(database)
    assert report.num_rows == len(found) == len(database)
    assert 8 * 8 <= len(found) <= 10 * 10
    assert sum(report.skipped.values()) + report.num_rows >= len(found)
    assert report.num_problems == 0
    grid, source = CellGrid(30), GeoTiff(raster)
    for key, (row, vector) in found.items():
        cell = np.array([[int(part) for part in key.split("/")[1:]]])
        center = grid.center_latlon_deg(cell)[0]
        assert (row["latitude"], row["longitude"]) == pytest.approx(tuple(center), abs=1e-12)
        assert (row["source"], row["gsd_m_per_px"], row["heading_deg"]) == ("aerial", 0.5, None)
        assert (row["provenance"], row["licence"]) == ("boston.tif", "CC0-1.0")
        patches = [read_patch(source, center, gsd_m_per_px=gsd, size_px=SIDE_PX) for gsd in GSD]
        assert patches[0].coverage >= 0.5
        fill = [127.5, 102.0, 76.5]
        images = [model.preprocess(p.filled(fill)) for p in patches if p.coverage >= 0.5]
        mean = model.vectors(torch.stack(images)).sum(0)
        np.testing.assert_allclose(vector, mean / np.linalg.norm(mean), atol=1e-6)


def test_a_model_that_sees_all_views_together_does(tmp_path: Path, raster: Path) -> None:
    model = JointColourEmbedder()
    database = create(tmp_path / "refs", model)
    database.add_aerial(raster, cell_size_m=60, gsd_m_per_px=GSD)
    assert model.gsd == GSD
    assert not model.shown
    for row, vector in rows_of(database).values():
        patch = read_patch(
            GeoTiff(raster), (row["latitude"], row["longitude"]), gsd_m_per_px=0.5, size_px=SIDE_PX
        )
        image = model.preprocess(patch.filled((127.5, 102.0, 76.5)))
        np.testing.assert_allclose(vector, model.vectors(image[None])[0], atol=1e-6)


def test_missing_imagery_is_neither_white_nor_black_to_the_model(tmp_path: Path) -> None:
    def hole(bands: Any) -> None:
        bands[:, :, :256] = 0

    raster = write_geotiff(tmp_path / "half.tif", "EPSG:32619", edit=hole, nodata=0)
    model = ColourEmbedder()
    database = create(tmp_path / "refs", model)
    report = database.add_aerial(raster, cell_size_m=30, gsd_m_per_px=(2.0,), min_coverage=0.3)
    assert report.skipped.keys() == {"too little imagery"}
    assert report.skipped["too little imagery"] > 20
    shown = torch.cat([images for _, images in model.shown])
    part = shown[shown.abs().amax((1, 2, 3)) > 0]
    assert (
        (part.abs() < 0.01).all(1).float().mean((1, 2)) > 0.25
    ).any()  # the mean colour: zero to a network


def test_a_region_cuts_out_its_cells(tmp_path: Path, raster: Path) -> None:
    south, west, north, east = GeoTiff(raster).bounds_deg or (0, 0, 0, 0)
    middle = (west + east) / 2
    half = {
        "type": "Polygon",
        "coordinates": [[[west, south], [middle, south], [middle, north], [west, north], [west, south]]],
    }
    model = ColourEmbedder()
    whole = create(tmp_path / "whole", model)
    whole.add_aerial(raster, gsd_m_per_px=(0.5,))
    for name, region in (("box", (south, west, north, middle)), ("polygon", half)):
        database = create(tmp_path / name, model)
        database.add_aerial(raster, gsd_m_per_px=(0.5,), region=region)
        assert set(rows_of(database)) < set(rows_of(whole))
        assert len(database) == pytest.approx(len(whole) / 2, abs=12)
        longitudes = [row["longitude"] for row, _ in rows_of(database).values()]
        assert max(longitudes) < middle + 0.0003


def test_sources_by_priority_and_their_names_in_the_rows(tmp_path: Path, raster: Path) -> None:
    tiles = write_tiles(tmp_path / "web", [18], reach=3)
    database = create(tmp_path / "refs", ColourEmbedder())
    database.add_aerial([raster, tiles], gsd_m_per_px=(0.5, 1.0))
    by_source = {row["provenance"] for row, _ in rows_of(database).values()}
    assert by_source == {"boston.tif", "web"}
    first = GeoTiff(raster)
    for row, _ in rows_of(database).values():
        inside = first.covers(np.array([[row["latitude"], row["longitude"]]]))[0]
        assert row["provenance"] == ("boston.tif" if inside else "web")


def test_bad_tiles_are_told_and_stop_nothing(tmp_path: Path) -> None:
    folder = write_tiles(tmp_path / "web", [18], reach=1)
    ((x, y),) = tiles_around(CENTER, 18, 0)
    (folder / "18" / str(x) / f"{y}.png").write_bytes(encoded(np.zeros((256, 256, 3), np.uint8))[:200])
    database = create(tmp_path / "refs", ColourEmbedder())
    report = database.add_aerial(folder, gsd_m_per_px=(0.5,))
    assert list(report.problems) == [f"web: 18/{x}/{y}"]
    assert report.num_problems == 1
    assert report.num_rows > 0
    assert report.skipped["too little imagery"] > 0


def test_mercator_cells_and_their_views_shrink(tmp_path: Path) -> None:
    center = (60.0, 25.0)
    raster = write_geotiff(tmp_path / "north.tif", "EPSG:32635", center=center)
    model = ColourEmbedder()
    database = create(tmp_path / "refs", model)
    database.add_aerial(raster, cell_size_m=60, gsd_m_per_px=(1.0,), mercator=True)
    assert len(database) == pytest.approx((256 / 30) ** 2, rel=0.3)  # half as long at 60 degrees
    key, (row, vector) = next(iter(rows_of(database).items()))
    assert key.startswith("60m-mercator/")
    latlon = (row["latitude"], row["longitude"])
    scale = float(np.cos(np.radians(latlon[0])))
    patch = read_patch(GeoTiff(raster), latlon, gsd_m_per_px=scale, size_px=SIDE_PX)
    image = model.preprocess(patch.filled((127.5, 102.0, 76.5)))
    np.testing.assert_allclose(vector, model.vectors(image[None])[0], atol=1e-6)


def test_done_again_it_does_nothing_and_says_so(tmp_path: Path, raster: Path) -> None:
    database = create(tmp_path / "refs", ColourEmbedder())
    first = database.add_aerial(raster, gsd_m_per_px=GSD)
    before = contents(tmp_path / "refs")
    model = ColourEmbedder()
    again = ReferenceDatabase.open(tmp_path / "refs", model=model).add_aerial(raster, gsd_m_per_px=GSD)
    assert not model.shown
    assert again.was_complete
    assert not first.was_complete
    assert (again.num_rows, again.skipped) == (first.num_rows, first.skipped)
    assert contents(tmp_path / "refs") == before
    more = database.add_aerial(raster, gsd_m_per_px=(0.5,))  # other settings are another build
    assert more.num_rows > 0
    assert len(database) == first.num_rows + more.num_rows


def test_built_elsewhere_it_is_the_same_byte_for_byte(tmp_path: Path, raster: Path) -> None:
    for name in ("a", "b"):
        create(tmp_path / name, ColourEmbedder()).add_aerial(raster, gsd_m_per_px=GSD)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"gsd_m_per_px": ()}, "gsd_m_per_px must be positive numbers, at least one"),
        ({"gsd_m_per_px": (1, -1)}, "gsd_m_per_px must be positive numbers"),
        ({"min_coverage": 0}, "min_coverage is 0; it must be above 0, and 1 at most"),
        ({"batch_size": 0}, "batch_size is 0; it must be at least 1"),
        ({"heading_deg": np.nan}, "heading_deg is nan"),
        ({"cell_size_m": 0}, "cell_size_m is 0"),
    ],
)
def test_impossible_settings_are_refused(
    tmp_path: Path, raster: Path, options: dict[str, Any], text: str
) -> None:
    database = create(tmp_path / "refs", ColourEmbedder())
    before = contents(tmp_path / "refs")
    with pytest.raises(ConfigError, match=text):
        database.add_aerial(raster, **options)
    assert contents(tmp_path / "refs") == before


def test_the_model_must_be_known_and_the_right_one(tmp_path: Path, raster: Path) -> None:
    create(tmp_path / "refs", ColourEmbedder())
    database = ReferenceDatabase.open(tmp_path / "refs")
    with pytest.raises(ConfigError, match=r"no model to embed with: give model, or open .*refs with"):
        database.add_aerial(raster)
    with pytest.raises(
        FingerprintMismatchError, match="was made with the model colours, and another was to use"
    ):
        database.add_aerial(raster, model=ColourEmbedder("another"))
    with pytest.raises(FingerprintMismatchError, match="was made with the model colours"):
        ReferenceDatabase.open(tmp_path / "refs", model=ColourEmbedder("another"))
    assert database.add_aerial(raster, model=ColourEmbedder(), gsd_m_per_px=(0.5,)).num_rows > 0


def test_an_interrupted_build_goes_on_and_refuses_other_settings(
    tmp_path: Path, raster: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("geoloc.reference.aerial.references.CELLS_PER_BLOCK", 16)
    options: Any = {"cell_size_m": 10, "gsd_m_per_px": (0.5,), "batch_size": 4}
    unstopped = ColourEmbedder()
    expected = create(tmp_path / "whole", unstopped).add_aerial(raster, **options)

    class Stops(ColourEmbedder):
        def embed_reference(self, images: Any, source: str) -> Any:
            if len(self.shown) == 40:
                raise KeyboardInterrupt
            return super().embed_reference(images, source)

    database = create(tmp_path / "refs", Stops())
    with pytest.raises(KeyboardInterrupt):
        database.add_aerial(raster, **options)
    assert len(database) == 0  # nothing of it is seen before all is there
    with pytest.raises(
        OutputMismatchError,
        match=r"has an unfinished build with other settings: min_coverage is 0.5 there and 0.9 here; repeat the old",
    ):
        database.add_aerial(raster, min_coverage=0.9, model=ColourEmbedder(), **options)
    model = ColourEmbedder()
    report = ReferenceDatabase.open(tmp_path / "refs").add_aerial(raster, model=model, **options)
    assert 0 < len(model.shown) < len(unstopped.shown) - 30
    assert report == expected
    assert contents(tmp_path / "refs") == contents(tmp_path / "whole")


def test_overwrite_drops_an_unfinished_build(tmp_path: Path, raster: Path) -> None:
    class Breaks(ColourEmbedder):
        def embed_reference(self, images: Any, source: str) -> Any:
            raise KeyboardInterrupt

    database = create(tmp_path / "refs", Breaks())
    with pytest.raises(KeyboardInterrupt):
        database.add_aerial(raster, gsd_m_per_px=(0.5,))
    report = database.add_aerial(raster, gsd_m_per_px=(1.0,), model=ColourEmbedder(), overwrite=True)
    assert report.num_rows == len(database)
    assert not (tmp_path / "refs" / ".build").exists()


def test_a_geolocalizer_is_such_a_model(tmp_path: Path, raster: Path) -> None:
    from tiny import tiny_geolocalizer

    from geoloc.models.config import EmbeddingHeadConfig

    heads = {role: EmbeddingHeadConfig(dim=8) for role in ("query", "aerial")}
    model = tiny_geolocalizer(embeddings=heads)
    model.save_pretrained(tmp_path / "model")
    database = create(tmp_path / "refs", model)
    database.add_aerial(XyzFolder(write_tiles(tmp_path / "t", [18], reach=0)), gsd_m_per_px=(0.5, 1.0))
    assert database.dim == 8
    assert database.model_fingerprint == model.embedding_fingerprint
    vectors = np.stack([vector for _, vector in rows_of(database).values()])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    database.verify()


def test_views_that_the_imagery_is_too_coarse_for_are_refused_at_once(tmp_path: Path) -> None:
    raster = write_geotiff(tmp_path / "coarse.tif", "EPSG:32619", pixel=150.0)
    database = create(tmp_path / "refs", ColourEmbedder())
    assert finest_gsd_m_per_px(GeoTiff(raster), CENTER) == pytest.approx(150, rel=0.002)
    with pytest.raises(
        ConfigError,
        match=r"has 150 m a pixel, and views of 0.5, 1, 2 m .* gsd_m_per_px of about 150 or more",
    ):
        database.add_aerial(raster, gsd_m_per_px=GSD)
    assert not (tmp_path / "refs" / ".build").exists()
    report = database.add_aerial(raster, cell_size_m=20_000, gsd_m_per_px=(150.0,))
    assert report.num_rows > 4
