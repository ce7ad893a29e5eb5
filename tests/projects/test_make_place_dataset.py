"""projects/earthview/make_place_dataset.py: places where the layouts say that they are, told apart by their ground."""

from collections import defaultdict
from itertools import combinations

import numpy as np
import pytest
from PIL import Image

from geoloc.data.layouts import open_layout
from geoloc.geo.utm import to_utm
from projects.earthview import make_place_dataset
from projects.earthview.mosaics import Mosaic
from projects.earthview.streets import CITIES, JITTER_M, SCALE, SPACING_M, PlacePhotos
from quadtree.sphere import geodesic_km, haversine_km, initial_bearing_deg

AFRICA, SOUTH_AMERICA, NORTH_AMERICA = (
    next(city for city in CITIES if city.name == name) for name in ("Africa", "SouthAmerica", "NorthAmerica")
)


@pytest.fixture(scope="module")
def script():
    return make_place_dataset


@pytest.fixture(scope="module")
def mosaics(script):
    pictures = np.random.default_rng(0).integers(0, 256, (3, 256, 512, 3), np.uint8)
    names = sorted(script.MONTHS)
    return {name: Mosaic(name, Image.fromarray(one)) for name, one in zip(names, pictures, strict=True)}


@pytest.fixture(scope="module")
def written(script, mosaics, tmp_path_factory):
    folder = tmp_path_factory.mktemp("places")
    albums = script.draw({"train": 8, "val": 3, "test": 10}, 4, 1)
    return folder, script.write(folder, albums, mosaics, 16, 1)


# --- The map ----------------------------------------------------------------------------------------------


def test_the_map_is_the_ground_shrunken_about_the_centre():
    xy_m = np.array([[0.0, 0.0], [300.0, 0.0], [0.0, 300.0], [-120.0, 160.0]])
    on_map, on_ground = AFRICA.map_latlon_deg(xy_m), AFRICA.ground_latlon_deg(xy_m)
    np.testing.assert_allclose(on_map[0], AFRICA.center_latlon_deg, atol=1e-9)
    np.testing.assert_allclose(on_ground[0], AFRICA.center_latlon_deg, atol=1e-9)
    metres = geodesic_km(on_map, on_map[0]) * 1000
    np.testing.assert_allclose(metres, [0, 300, 300, 200], atol=0.2)  # UTM's scale is 0.9996
    np.testing.assert_allclose(haversine_km(on_ground, on_ground[0]), [0, 3000, 3000, 2000])
    np.testing.assert_allclose(
        initial_bearing_deg(on_map[0], on_map[1:]), initial_bearing_deg(on_ground[0], on_ground[1:]), atol=0.3
    )
    assert SCALE == 10_000


def test_headings_are_carried_over_with_the_ground():
    """Far from the centre north on the map is not north on Earth; what lies ahead is the same."""
    xy_m, heading = np.array([[250.0, 250.0]]), np.array([40.0])
    ahead = xy_m + 10 * np.stack([np.sin(np.radians(heading)), np.cos(np.radians(heading))], -1)
    bearing = initial_bearing_deg(AFRICA.ground_latlon_deg(xy_m), AFRICA.ground_latlon_deg(ahead))
    found = AFRICA.ground_heading_deg(xy_m, heading)
    assert found == pytest.approx(bearing, abs=0.5)
    assert abs(found[0] - 40) > 2


def test_places_are_on_the_grid_of_cosplace_s_cells_and_on_land():
    for city in CITIES:
        xy_m = city.places_m()
        utm = to_utm(city.map_latlon_deg(xy_m))
        np.testing.assert_allclose(utm.east_m % 10, 5, atol=1e-3)
        np.testing.assert_allclose(utm.north_m % 10, 5, atol=1e-3)
        apart = np.linalg.norm(xy_m[:, None] - xy_m[None], axis=-1)
        assert apart[apart > 0].min() == pytest.approx(SPACING_M)
        assert len(xy_m) > 90
    assert SPACING_M - 2 * JITTER_M > 25


def test_cities_are_apart_on_the_ground():
    for a, b in combinations(CITIES, 2):
        ground = [city.ground_latlon_deg(city.places_m()) for city in (a, b)]
        assert haversine_km(ground[0][:, None], ground[1][None]).min() > 600


def test_photos_stay_in_their_cell_and_heading_class():
    places = AFRICA.places_m()[:50]
    photos = PlacePhotos.draw(AFRICA, places, np.arange(50) % 12, 20, np.random.default_rng(0))
    assert len(photos) == 1000
    utm = to_utm(photos.latlon_deg())
    middle = to_utm(AFRICA.map_latlon_deg(places))
    for metres, middles in ((utm.east_m, middle.east_m), (utm.north_m, middle.north_m)):
        np.testing.assert_array_equal(metres // 10, (middles // 10)[photos.place])
    np.testing.assert_array_equal(photos.heading_deg // 30, photos.place % 12)


# --- The files --------------------------------------------------------------------------------------------


def test_both_layouts_hold_the_same_training_photos(written):
    folder, num = written
    city_table, vg_table = (
        open_layout("gsv_cities", folder / "gsv_cities"),
        open_layout("vg", folder / "vg", "train"),
    )
    assert len(city_table) == len(vg_table) == num["train/queries"] + num["train/database"] == 2 * 8 * 4
    of_panorama = {sample.key.split("@")[7]: sample for sample in vg_table}
    by_place = defaultdict(list)
    for sample in city_table:
        same = of_panorama[sample.key.split("_")[-1]]
        assert sample.image.read() == same.image.read()
        assert (sample.heading_deg, sample.captured_at) == (same.heading_deg, same.captured_at)
        assert haversine_km(sample.latlon_deg, same.latlon_deg) * 1000 < 0.02
        by_place[sample.place_id].append(sample)
    assert {len(samples) for samples in by_place.values()} == {4}
    for samples in by_place.values():
        points = np.array([sample.latlon_deg for sample in samples])
        assert haversine_km(points[:, None], points[None]).max() * 1000 < 2 * JITTER_M * 1.01
        assert len({sample.image.read() for sample in samples}) == 4
        assert len({int(sample.heading_deg + 0.5) // 30 for sample in samples}) <= 2


def test_queries_have_positives_and_the_target_has_none(written):
    folder, num = written
    tables = {split: open_layout("vg", folder / "vg", split) for split in num}
    assert {split: len(table) for split, table in tables.items()} == num
    assert num["test/queries"] == num["test/queries_night"] == 16

    def nearest_m(split, database):
        points = tables[split].latlon_deg[:, None], tables[database].latlon_deg[None]
        return haversine_km(*points).min(1) * 1000

    assert nearest_m("train/queries", "train/database").max() <= 10
    for split, database in (("val/queries", "val"), ("test/queries", "test"), ("test/queries_night", "test")):
        assert nearest_m(split, f"{database}/database").max() <= 25
    for other in set(num) - {"target"}:
        assert nearest_m("target", other).min() > 25
    for split in num:
        is_night = split in ("test/queries_night", "target")
        assert (tables[split].numbers("is_night") == is_night).all()


def test_splits_are_on_continents_of_their_own(written):
    folder, num = written
    for split in num:
        cities = {sample.key.split("@")[7].split("-")[0].rstrip("0123456789") for sample in
                  open_layout("vg", folder / "vg", split)}  # fmt: skip
        assert {city.split for city in CITIES if city.name in cities} == (
            {"test"} if split == "target" else {split.split("/")[0]}
        )


def test_the_same_seed_writes_the_same_bytes(script, mosaics, tmp_path):
    def files(name, seed):
        albums = script.draw({"train": 4, "val": 1, "test": 5}, 2, seed)
        script.write(tmp_path / name, albums, mosaics, 16, seed)
        paths = (path for path in (tmp_path / name).rglob("*") if path.is_file())
        return {path.relative_to(tmp_path / name): path.read_bytes() for path in paths}

    first = files("a", 7)
    assert first == files("b", 7)
    assert first.keys() != files("c", 8).keys()
