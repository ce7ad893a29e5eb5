"""GSV-Cities and the @UTM@ naming: read as they are, and what is wrong is named by file and row."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pyproj import Proj
from tiny import tiny_image
from typer.testing import CliRunner

from geoloc.cli import app
from geoloc.data.layouts import check_layout, open_layout
from geoloc.data.layouts.gsv_cities import COLUMNS, gsv_cities_stem
from geoloc.data.layouts.vg import MAX_DISAGREEMENT_M, PATTERN, vg_stem
from geoloc.data.shards import ShardSet
from geoloc.errors import BadTableError, ConfigError, NotFoundError
from quadtree.sphere import haversine_km


def jpeg(path: Path, seed: int = 0) -> None:
    stream = io.BytesIO()
    Image.fromarray(tiny_image(seed)).save(stream, "JPEG")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(stream.getvalue())


def gsv_cities(folder: Path, lines: dict[str, list[str]], suffixes: tuple[str, ...] = (".JPG",)) -> Path:
    (folder / "Dataframes").mkdir(parents=True)
    number = 0
    for city, rows in lines.items():
        (folder / "Dataframes" / f"{city}.csv").write_text("\n".join([",".join(COLUMNS), *rows]) + "\n")
        for row in rows:
            place, year, month, heading, city_id, lat, lon, panorama = row.split(",")
            name = gsv_cities_stem(
                city_id, int(place), int(year), int(month), int(heading), lat, lon, panorama
            )
            jpeg(folder / "Images" / city_id / f"{name}{suffixes[number % len(suffixes)]}", number)
            number += 1
    return folder


LONDON = [
    "7,2015,6,312,London,51.50,-0.1200,a_b",
    "7,2019,12,725,London,51.5000001,-0.12,c",
    "250000,2008,1,0,London,51.6,0.10,d",
]
BOSTON = ["7,2010,13,90,Boston,42.36,-71.06,e"]


def test_gsv_cities(tmp_path):
    folder = gsv_cities(tmp_path / "gsv", {"London": LONDON, "Boston": BOSTON}, (".JPG", ".jpg"))
    table = open_layout("gsv_cities", folder)
    assert [sample.place_id for sample in table] == [
        "Boston/0000007",
        "London/0000007",
        "London/0000007",
        "London/0250000",
    ]
    assert [sample.city for sample in table] == ["Boston", "London", "London", "London"]
    assert [sample.heading_deg for sample in table] == [90.0, 312.0, 5.0, 0.0]  # 725 = two turns and 5
    assert [sample.captured_at for sample in table] == [None, 1433116800.0, 1575158400.0, 1199145600.0]
    assert table[2].key == "London_0000007_2019_12_725_51.5000001_-0.12_c"
    assert table.latlon_deg[1].tolist() == [51.5, -0.12]
    assert open_layout("gsv_cities", folder, "London").codes("place_id")[1] == [
        "London/0000007",
        "London/0250000",
    ]
    assert len(open_layout("gsv_cities", folder, "Boston,London")) == 4
    with pytest.raises(NotFoundError, match=r"has no Rome\.csv; it has Boston, London"):
        open_layout("gsv_cities", folder, "London,Rome")
    with pytest.raises(NotFoundError, match=r"has no Dataframes/\*\.csv: name the folder with"):
        open_layout("gsv_cities", folder / "Images")


def test_gsv_cities_findings_name_the_city_s_table_and_line(tmp_path):
    folder = gsv_cities(tmp_path, {"London": LONDON, "Boston": BOSTON})
    csv = folder / "Dataframes" / "London.csv"
    lines = csv.read_text().splitlines()
    # Written anew by a program that reads numbers: 51.50 became 51.5, and the photo's name did not.
    csv.write_text(
        "\n".join(
            [lines[0], lines[1].replace("51.50", "51.5"), lines[2], lines[2], "8,2015,1,0,London,95,0,z"]
        )
        + "\n"
    )
    table, findings = check_layout("gsv_cities", folder)
    assert len(table) == 2
    key = "London_0000007_2019_12_725_51.5000001_-0.12_c"
    assert [f"{finding.kind}: {finding.text}" for finding in findings.named] == [
        f"bad coordinate: {csv} line 5: (95.0, 0.0) is no place on Earth",
        f"duplicate id: {csv} line 4: the id '{key}' was there before, in {csv} line 3",
        f"missing image: {csv} line 2: there is no image file for the id "
        f"'London_0000007_2015_06_312_51.5_-0.1200_a_b' in {folder}, but there is Images/London/"
        "London_0000007_2015_06_312_51.50_-0.1200_a_b.JPG: its name has other digits of latitude or longitude "
        "than the table; use the original table",
        f"missing image: {csv} line 5: there is no image file for the id "
        f"'London_0000008_2015_01_000_95_0_z' in {folder}: add it, or remove the row from the table",
    ]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (
            "place_id,year,month,northdeg,city_id,lat,lon\n",
            r"A\.csv has no column 'panoid'; .*it should have place_id, year",
        ),
        (
            ",".join(COLUMNS) + "\n1,2015,6,0,A,1,2,p\n1.5,2015,6,0,A,1,2,q\n",
            r"A\.csv line 3: place_id is '1.5', and must be a whole number from 0",
        ),
        (
            ",".join(COLUMNS) + "\n1,2015,6,0,A,north,2,p\n",
            r"A\.csv line 2: lat is 'north', which is no number",
        ),
        (",".join(COLUMNS) + "\n1,2015,6,0,A,1,2\n", r"A\.csv line 2: 7 fields"),
    ],
)
def test_gsv_cities_tables_that_are_broken(tmp_path, text, complaint):
    (tmp_path / "Dataframes").mkdir()
    (tmp_path / "Dataframes" / "A.csv").write_text(text)
    with pytest.raises(BadTableError, match=complaint):
        open_layout("gsv_cities", tmp_path)


def test_own_photos_with_places_and_headings(tmp_path):
    """A plain table of latitudes and longitudes needs no converting: the layout `photos` has the columns."""
    (tmp_path / "t.csv").write_text(
        "id,latitude,longitude,heading,place_id,is_night\na,1,2,90,square,1\nb,1,2,,square,\n"
    )
    for name in "ab":
        jpeg(tmp_path / f"{name}.jpg")
    table = open_layout("photos", tmp_path)
    assert [(s.place_id, s.heading_deg) for s in table] == [("square", 90.0), ("square", None)]
    np.testing.assert_array_equal(table.numbers("is_night"), [1, np.nan])


# --- @UTM@ ------------------------------------------------------------------------------------------------


def test_names_are_written_with_pyproj_s_utm():
    for lat, lon, zone, letter in (
        (37.7, -122.4, 10, "S"),
        (-33.9, 151.2, 56, "H"),
        (-0.00003, 5.9999, 31, "M"),
    ):
        fields = vg_stem((lat, lon), panorama="p", heading_deg=359.7, time="201506", note="night").split("@")
        assert len(fields) == 16
        east, north = Proj(proj="utm", zone=zone, south=lat < 0)(lon, lat)
        assert (float(fields[1]), float(fields[2])) == pytest.approx((east, north), abs=0.0051)
        assert fields[3:5] == [f"{zone:02}", letter]
        assert (float(fields[5]), float(fields[6])) == pytest.approx((lat, lon), abs=5e-6)
        assert (fields[7], fields[9], fields[13], fields[14]) == ("p", "000", "201506", "night")


@pytest.mark.parametrize("images", ["images/", ""])
def test_vg_splits(tmp_path, images):
    places = {
        "train/database": (48.0, 2.0),
        "train/queries/deep": (48.1, 2.0),
        "val/database": (48.2, 2.0),
        "test/queries_v1": (48.3, 2.0),
        "test/queries_night": (48.4, 2.0),
    }
    for split, latlon_deg in places.items():
        jpeg(tmp_path / images / split / f"{vg_stem(latlon_deg, panorama='x')}.jpg")
    assert open_layout("vg", tmp_path, "train/database").latlon_deg[:, 0] == pytest.approx(48.0, abs=1e-6)
    assert open_layout("vg", tmp_path).latlon_deg[:, 0] == pytest.approx(
        [48.0, 48.1], abs=1e-6
    )  # all of train
    assert len(open_layout("vg", tmp_path, "test/queries_night")) == 1
    assert open_layout("vg", tmp_path, "val/database")[0].key.startswith(f"{images}val/database/@")
    assert len(open_layout("vg", tmp_path / images / "val" / "database", "")) == 1
    with pytest.raises(
        NotFoundError,
        match="has no folder 'test/queries'; it has test, test/queries_night, test/queries_v1, train",
    ):
        open_layout("vg", tmp_path, "test/queries")
    (tmp_path / images / "empty").mkdir()
    with pytest.raises(
        NotFoundError, match="has no image of the split 'empty': expected names such as @UTM_east"
    ):
        open_layout("vg", tmp_path, "empty")


def vg(folder: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        jpeg(folder / "train" / name, number)
    return folder


def test_vg_fields(tmp_path):
    folder = vg(
        tmp_path,
        "@0552892.52@4172699.61@10@S@@@p1@@090@@@@20150612_073000@day_forward_sf@.jpg",
        "@@@@@37.70000@-122.40000@p2@@@@@@2015@night_sideways@.JPG",
        "@552892.52@4172699.61@10@s@37.7@-122.4@p3@02@-90@@@@201513@nightingale@.png",
        "@552892.52@4172699.61@10@@37.7@@p4@.jpg",
        "@552892.52@4172699.61@10@S.jpg",
    )
    table = open_layout("vg", folder)
    assert len(table) == 5
    assert haversine_km(table.latlon_deg, [37.7, -122.4]).max() < 2e-5
    samples = {sample.key.split("@")[7] if sample.key.count("@") > 6 else "p5": sample for sample in table}
    assert {name: s.heading_deg for name, s in samples.items()} == {
        "p1": 90,
        "p2": None,
        "p3": 270,
        "p4": None,
        "p5": None,
    }
    assert {name: s.captured_at for name, s in samples.items()} == {
        "p1": 1434094200, "p2": 1420070400, "p3": None, "p4": None, "p5": None,
    }  # fmt: skip
    assert (samples["p1"].targets["is_night"], samples["p1"].targets["is_sideways"]) == (0, 0)
    assert (samples["p2"].targets["is_night"], samples["p2"].targets["is_sideways"]) == (1, 1)
    assert np.isnan(list(samples["p3"].targets.values())).all()


def test_vg_findings_name_the_file(tmp_path):
    good = "@0552892.52@4172699.61@10@S@37.70000@-122.40000@p@.jpg"
    bad = {
        "IMG_1.jpg": f"bad metadata: {{}}: its name is not like {PATTERN}: rename it",
        "@east@4172699.61@10@S@@@x@.jpg": "bad metadata: {}: the east in its name is 'east', which is no number",
        "@552893@4172700@10@S@@@p@@north@@@@@@.jpg": "bad metadata: {}: the heading in its name is 'north'",
        "@552893@4172700@61@S@@@p@.jpg": "bad coordinate: {}: there is no UTM zone 61S: zones are 1 to 60",
        "@552893@4172700@10@I@@@p@.jpg": "bad coordinate: {}: there is no UTM zone 10I: zones are 1 to 60",
        "@552893@4172700@@@@@p@.jpg": "bad coordinate: {}: its name has neither a UTM zone (number and letter) nor",
        "@552893@4172700@10@@@@p@.jpg": "bad coordinate: {}: its name has neither a UTM zone",
        "@48.1@2.3@.jpg": "bad coordinate: {}: its name has neither a UTM zone (number and letter) nor",
        "@334000@6252000@56@S@@@p@.jpg": (
            "bad coordinate: {}: its letter S is the band of latitudes from 32 on, but its metres are at 56.4: "
            "correct the metres, or the letter, which is M or an earlier one in the south"
        ),
        "@@@10@S@@@p@.jpg": "bad coordinate: {}: its name has neither UTM east and north nor latitude and longitude",
        "@552893@14172700@10@S@@@p@.jpg": "bad coordinate: {}: UTM has no east 552893.00, north 14172700.00",
        "@552893@4172700@11@S@37.7@-122.4@p@.jpg": "bad coordinate: {}: its UTM coordinates are 5",
        "@552893@4172700@10@H@37.7@-122.4@p@.jpg": "bad coordinate: {}: its UTM coordinates are ",
        "@@@@@97.7@-122.4@p@.jpg": "bad coordinate: {}: (97.7, -122.4) is no place on Earth",
    }  # fmt: skip
    folder = vg(tmp_path, good, *bad)
    table, findings = check_layout("vg", folder)
    assert table.keys.to_pylist() == [f"train/{good}"]
    assert len(findings) == len(bad)
    assert "if 48.1 and 2.3 are degrees, they belong after the fifth @" in str(findings.named)
    texts = [f"{finding.kind}: {finding.text}" for finding in findings.named]
    for name, complaint in bad.items():
        assert any(text.startswith(complaint.format(folder / "train" / name)) for text in texts), name
    with pytest.raises(BadTableError, match=r"14 rows cannot be used, and 1 can; .*verify vg"):
        open_layout("vg", folder)


def test_vg_letters(tmp_path):
    """N may say north; a town may keep the band of its other half; degrees count more than a letter."""
    folder = vg(
        tmp_path,
        "@552893@4172700@10@N@@@p@.jpg",
        "@552893@4430000@10@S@@@p@.jpg",  # 40.02 N, and S ends at 40
        "@552893@4172700@10@T@37.70000@-122.40000@p@.jpg",
        "@552893@4460000@10@S@@@p@.jpg",  # 40.3 N
        "@552893@4500000@10@S@@@p@.jpg",  # 40.7 N
    )
    table, findings = check_layout("vg", folder)
    assert sorted(table.latlon_deg[:, 0].round(1)) == [37.7, 37.7, 40.0, 40.3]
    assert [finding.text.split(": ")[1][:12] for finding in findings.named] == ["its letter S"]


def test_vg_tolerates_rounded_degrees_and_no_more(tmp_path):
    lat, lon = 37.7, -122.4
    near, far = 37.7 + 4.5 / 111_000, 37.7 + 5.5 / 111_000
    assert MAX_DISAGREEMENT_M == 5
    stem = vg_stem((lat, lon)).split("@")
    names = ["@".join([*stem[:5], f"{value:.7f}", *stem[6:]]) + ".jpg" for value in (near, far)]
    table, findings = check_layout("vg", vg(tmp_path, *names))
    assert len(table) == len(findings) == 1
    assert "are 5 m from" in findings.named[0].text or "are 6 m from" in findings.named[0].text


def test_vg_metres_without_a_zone(tmp_path):
    folder = vg(tmp_path, "@552893@4172700@@@@@p@.jpg", "@552918@4172700@.jpg")
    table = open_layout("vg", folder, utm_epsg=32610)
    assert haversine_km(*table.latlon_deg) * 1000 == pytest.approx(25, rel=0.005)
    assert haversine_km(table.latlon_deg[0], [37.7, -122.4]) < 0.001
    assert (open_layout("vg", folder, utm_epsg=32710).latlon_deg[:, 0] < 0).all()
    with pytest.raises(ConfigError, match="EPSG:4326 is no zone of WGS 84 / UTM"):
        open_layout("vg", folder, utm_epsg=4326)
    with pytest.raises(ConfigError, match="the layout photos does not use UTM: utm_epsg is for vg only"):
        open_layout("photos", folder, utm_epsg=32610)


# --- The command ------------------------------------------------------------------------------------------


def test_verify_and_shard(tmp_path):
    run = lambda *arguments: CliRunner().invoke(app, ["data", *map(str, arguments)])  # noqa: E731
    folder = vg(tmp_path / "vg", "@552893@4172700@@@@@p@@90@.jpg", "@552918@4172700@@@@@q@.jpg", "IMG_1.jpg")
    done = run("verify", "vg", folder, "--decode", "--utm-epsg", 32610)
    assert done.exit_code == 1
    assert "IMG_1.jpg: its name is not like" in done.output
    assert "1 bad metadata" in done.output
    assert "latitudes   37.7000 to 37.7000" in done.output
    done = run("verify", "vg", vg(tmp_path / "none", "IMG_1.jpg"))
    assert done.exit_code == 1
    assert "samples     0" in done.output
    assert "latitudes" not in done.output  # of nothing
    done = run("shard", "vg", folder, tmp_path / "s", "--utm-epsg", 32610, "--drop-bad", "--workers", 0)
    assert "2 samples in 1 shard, 1 sample left out" in done.output
    assert {sample.heading_deg for sample in open_layout("webdataset", tmp_path / "s")} == {90.0, None}
    folder = gsv_cities(tmp_path / "gsv", {"London": LONDON})
    assert run("verify", "gsv_cities", folder, "--decode", "--split", "London").exit_code == 0
    table = open_layout("gsv_cities", folder)
    assert ShardSet(tmp_path / "g", table).write(num_workers=0) == 3
    sharded = {sample.key: sample for sample in open_layout("webdataset", tmp_path / "g")}
    for sample in table:
        assert sharded[sample.key].place_id == sample.place_id
        assert sharded[sample.key].image.read() == sample.image.read()
