"""Each benchmark's layout, made in miniature, read back: positions, files, and what is not as it should be."""

import json

import numpy as np
import pytest
from PIL import Image

from geoloc.data.layouts.statewide import statewide_stem
from geoloc.errors import BadTableError, ConfigError, NotFoundError
from geoloc.evaluate.benchmarks import BENCHMARKS, load_benchmark


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8)).save(path)
    return path


def positions(benchmark):
    return dict(zip(benchmark.truth.ids, benchmark.truth.latlon_deg.tolist(), strict=True))


def test_osv5m(tmp_path):
    (tmp_path / "test.csv").write_text("id,latitude,longitude,unique_country\n17,1.5,2.5,SE\n18,3,4,NO\n")
    picture(tmp_path / "images" / "test" / "00" / "17.jpg")
    found = load_benchmark("osv5m", tmp_path)
    assert (found.name, found.protocol) == ("osv5m", "osv5m")
    assert positions(found) == {"17": [1.5, 2.5], "18": [3.0, 4.0]}
    assert found.find_image("17").name == "17.jpg"
    assert found.find_image("18") is None
    assert found.warnings == [
        "The benchmark osv5m has 210,122 images, and " + f"{tmp_path.name} lists 2.",
        f"1 of 2 images of osv5m have no file in {tmp_path.name}.",
    ]
    assert found.truth.text("unique_country").tolist() == ["SE", "NO"]


def test_im2gps_as_osv5m_keeps_it(tmp_path):
    lines = ["title: x", "latitude: 48.5", "longitude: -2.25", "y", "z"]
    (tmp_path / "info.json").write_text(json.dumps({"b.jpg": lines, "a.jpg": [], "c.jpg": lines}))
    picture(tmp_path / "images" / "b.jpg")
    found = load_benchmark("im2gps3k", tmp_path)
    assert positions(found) == {"b.jpg": [48.5, -2.25], "c.jpg": [48.5, -2.25]}
    assert [image.id for image in found.images] == ["b.jpg"]
    (tmp_path / "info.json").write_text('{"a.jpg": ["x"]}')
    with pytest.raises(BadTableError, match=r"is not Im2GPS's info.json"):
        load_benchmark("im2gps", tmp_path)


def test_im2gps_and_yfcc_as_isn_keeps_them(tmp_path):
    (tmp_path / "im2gps3k_places365.csv").write_text("IMG_ID,AUTHOR,LAT,LON\nx.jpg,me,10,20\n")
    picture(tmp_path / "images" / "x.jpg")
    assert positions(load_benchmark("im2gps3k", tmp_path)) == {"x.jpg": [10, 20]}
    (tmp_path / "yfcc25600_places365.csv").write_text("IMG_ID,LAT,LON\nab/cd.jpg,-10,20\n")
    picture(tmp_path / "cd.jpg")
    found = load_benchmark("yfcc26k", tmp_path)
    assert positions(found) == {"ab/cd.jpg": [-10, 20]}
    assert found.images[0].path.name == "cd.jpg"


def test_yfcc4k(tmp_path):
    fields = [str(i) for i in range(20)]
    fields[1], fields[12], fields[13] = "77", "-3.5", "40.25"  # longitude comes first
    (tmp_path / "info.txt").write_text("\t".join(fields) + "\n")
    picture(tmp_path / "images" / "77.jpg")
    found = load_benchmark("yfcc4k", tmp_path)
    assert positions(found) == {"77": [40.25, -3.5]}
    assert found.find_image("77").name == "77.jpg"
    (tmp_path / "info.txt").write_text("a\tb\n")
    with pytest.raises(BadTableError, match=r"info.txt line 1: 2 fields between tabs"):
        load_benchmark("yfcc4k", tmp_path)


@pytest.mark.parametrize("header", ["id,latitude,longitude", "IMG_ID,LAT,LON", "filename,lat,lng"])
def test_any_csv(tmp_path, header):
    (tmp_path / "gws.csv").write_text(f"{header}\na.jpg,1,2\n")
    picture(tmp_path / "a.jpg")
    for path in (tmp_path, tmp_path / "gws.csv"):
        found = load_benchmark("csv", path)
        assert positions(found) == {"a.jpg": [1, 2]}
        assert found.protocol == "geodesic"
        assert len(found.images) == 1
    (tmp_path / "two.csv").write_text("id\n")
    with pytest.raises(NotFoundError, match="has 2 tables; name the one with the truth"):
        load_benchmark("csv", tmp_path)


def test_a_folder_of_photos(tmp_path):
    exif = Image.Exif()
    exif[0x8825] = {1: "N", 2: (55.0, 42.0, 0.0), 3: "E", 4: (13.0, 12.0, 0.0)}
    Image.new("RGB", (8, 8)).save(tmp_path / "here.jpg", exif=exif)
    picture(tmp_path / "nowhere.jpg")
    found = load_benchmark("folder", tmp_path)
    assert positions(found)["here.jpg"] == pytest.approx([55.7, 13.2])
    assert np.isnan(positions(found)["nowhere.jpg"]).all()


# The place of 55.7047 N, 13.1910 E in zone 33, and of 33.8568 S, 151.2153 E in zone 56 (EPSG registry formulas).
def test_vg_names(tmp_path):
    from geoloc.geo.wgs84 import project

    lund, sydney = (55.7047, 13.1910), (-33.8568, 151.2153)
    names = []
    for (lat, lon), epsg, zone, band in ((lund, 32633, "33", "U"), (sydney, 32756, "56", "H")):
        east, north = project(epsg, [lat, lon]).tolist()
        names.append(f"@{east:.2f}@{north:.2f}@{zone}@{band}@@@@.jpg")
        names.append(f"@{east:.2f}@{north:.2f}@{zone}@{band}@{lat}@{lon}@pano@.jpg")
    for name in names:
        picture(tmp_path / "images" / "test" / "queries" / name)
    picture(tmp_path / "images" / "test" / "database" / names[1])
    found = load_benchmark("vg", tmp_path)
    by_name = positions(found)
    for from_utm, from_degrees in (names[:2], names[2:]):
        assert by_name[from_utm] == pytest.approx(by_name[from_degrees], abs=1e-6)
    assert found.gallery_latlon_deg == pytest.approx(np.array([lund]), abs=1e-6)
    assert (found.protocol, len(found.images)) == ("vpr-25m", 4)
    assert load_benchmark("msls-740", tmp_path).warnings == [
        f"The benchmark msls-740 has 740 images, and {tmp_path.name} lists 4."
    ]


@pytest.mark.parametrize(
    "name", ["@1@2@.jpg", "@1@2@99@U@@.jpg", "@1@2@33@@@.jpg", "@a@b@33@U@@.jpg", "@1@2@33@UU@@.jpg"]
)
def test_a_name_without_a_position(tmp_path, name):
    picture(tmp_path / "images" / "test" / "queries" / name)
    with pytest.raises(BadTableError, match=r"1 rows cannot be used.*@"):
        load_benchmark("vg", tmp_path)


def test_vg_splits_and_a_zone_that_no_name_says(tmp_path):
    picture(tmp_path / "images" / "val" / "queries_night" / "@500000@0@@@@@.jpg")
    picture(tmp_path / "images" / "val" / "database" / "@500000@20@@@@@.jpg")
    with pytest.raises(
        NotFoundError, match=r"no folder 'test/queries'; it has val, val/database, val/queries_night"
    ):
        load_benchmark("vg", tmp_path)
    with pytest.raises(BadTableError, match="--utm-epsg"):
        load_benchmark("vg", tmp_path, "val/queries_night")
    found = load_benchmark("vg", tmp_path, "val/queries_night", utm_epsg=32633)  # central meridian 15 E
    assert positions(found)["@500000@0@@@@@.jpg"] == pytest.approx([0, 15], abs=1e-9)
    assert found.gallery_latlon_deg == pytest.approx(np.array([[20 / 0.9996 / 110574.4, 15]]), abs=1e-8)
    with pytest.raises(ConfigError, match=r"im2gps has one split and its own coordinates.*for vg, msls-740"):
        load_benchmark("im2gps", tmp_path, "val")


def test_statewide(tmp_path):
    (tmp_path / "dataset.json").write_text(json.dumps({"images-num": 2, "images-directory-levels": 2}))
    np.savez(tmp_path / "latlons.npz", latlons=np.array([[42.0, -71.0], [42.5, -71.5]]))
    picture(tmp_path / "images" / "1" / "0" / "0000000000-384.jpg")
    found = load_benchmark("statewide", tmp_path)
    assert statewide_stem(1, 2) == "1/0/0000000000"
    assert positions(found) == {"0": [42, -71], "1": [42.5, -71.5]}
    assert [image.id for image in found.images] == ["1"]
    np.savez(tmp_path / "latlons.npz", latlons=np.zeros((3, 2)))
    with pytest.raises(BadTableError, match=r"has shape \(3, 2\), but dataset.json has 2 images"):
        load_benchmark("statewide", tmp_path)


def test_what_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match=r"no benchmark 'gws'; known are osv5m \(test.csv and the unpacked"):
        load_benchmark("gws", tmp_path)
    with pytest.raises(NotFoundError, match=r"for osv5m it should contain test.csv"):
        load_benchmark("osv5m", tmp_path / "absent")
    for name in set(BENCHMARKS) - {"folder"}:
        with pytest.raises(NotFoundError, match=r"has (none of|no|0 tables)"):
            load_benchmark(name, tmp_path)
