"""Each layout gives the same table, and names what is wrong by file and row."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from tiny import tiny_image

from geoloc.data.layouts import LAYOUTS, check_layout, open_layout
from geoloc.data.layouts.image_tree import ImageTree
from geoloc.data.layouts.statewide import directory_levels, read_image_ids, statewide_stem
from geoloc.data.sample import SampleTable
from geoloc.errors import BadTableError, ConfigError, NotFoundError
from geoloc.images.decode import decode_image

OSV5M_HEADER = (
    "id,latitude,longitude,sequence,captured_at,land_cover,climate,unique_country,unique_region,unique_city"
)


def jpeg(seed: int = 0) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(tiny_image(seed)).save(stream, "JPEG")
    return stream.getvalue()


def put(path: Path, data: bytes | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(jpeg() if data is None else data)
    return path


def osv5m(folder: Path, lines: list[str], split: str = "train") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / f"{split}.csv").write_text("\n".join([OSV5M_HEADER, *lines]) + "\n")
    return folder


def texts(name: str, path: Path, split: str | None = None) -> list[str]:
    return [f"{finding.kind}: {finding.text}" for finding in check_layout(name, path, split)[1].named]


def test_osv5m(tmp_path):
    folder = osv5m(
        tmp_path / "osv",
        [
            "11,48.5,2.25,s1,1447933430000,3.0,,FR,Ile_FR,NaN",
            "12,-33.5,190.5,s1,2015-11-19T11:43:50Z,,14.0,FR,,Waitangi_NaN_Chatham Islands_NZ",
        ],
    )
    folder = osv5m(folder, ["13,1,2,s3,,,,,,"], "test")
    put(folder / "images" / "train" / "00" / "11.jpg", jpeg(3))
    put(folder / "images" / "train" / "07" / "deep" / "12.jpg")
    put(folder / "images" / "test" / "00" / "13.jpg")
    with pytest.raises(BadTableError, match="no times"):  # two kinds of times in one column
        open_layout("osv5m", folder)
    text = (folder / "train.csv").read_text().replace("2015-11-19T11:43:50Z", "1447933430")
    (folder / "train.csv").write_text(text)
    table = open_layout("osv5m", folder)
    assert table.latlon_deg.tolist() == [[48.5, 2.25], [-33.5, -169.5]]
    first, second = table[0], table[1]
    assert np.array_equal(decode_image(first.image.read()), decode_image(jpeg(3)))
    assert (first.key, first.country, first.region, first.city) == ("11", "FR", "Ile_FR", None)
    assert second.city == "Waitangi_NaN_Chatham Islands_NZ"
    assert second.sub_region is None
    assert first.captured_at == second.captured_at == 1447933430
    assert first.targets["land_cover"] == 3
    assert np.isnan(first.targets["climate"])
    assert table.codes("sequence")[0].tolist() == [0, 0]
    assert open_layout("osv5m", folder, "test")[0].key == "13"


def test_every_bad_row_is_named_and_left_out(tmp_path):
    lines = [
        "1,95,3,,,,,,,",
        "2,1,,,,,,,,",
        "3,1,2,,,,,,,",
        "",
        "3,1,3,,,,,,,",
        "4,1,2,,,,,,,",
        "5,2,3,,,,,,,",
    ]
    folder = osv5m(tmp_path, lines)
    for name in "1235":
        put(folder / "images" / "train" / f"{name}.jpg")
    csv = folder / "train.csv"
    table, findings = check_layout("osv5m", folder)
    assert table.keys.to_pylist() == ["3", "5"]
    assert [f"{finding.kind}: {finding.text}" for finding in findings.named] == [
        f"bad coordinate: {csv} line 2: (95.0, 3.0) is no place on Earth",
        f"bad coordinate: {csv} line 3: (1.0, nan) is no place on Earth",
        f"duplicate id: {csv} line 6: the id '3' was there before, in {csv} line 4",
        f"missing image: {csv} line 7: there is no image file for the id '4' in {folder}",
    ]
    assert dict(findings.counts) == {"bad coordinate": 2, "duplicate id": 1, "missing image": 1}
    with pytest.raises(BadTableError, match=r"4 rows cannot be used, and 2 can; the first: .*verify osv5m"):
        open_layout("osv5m", folder)


def test_findings_are_counted_beyond_those_that_are_named(tmp_path):
    folder = osv5m(tmp_path, [f"{i},1,2,,,,,,," for i in range(50)])
    _, findings = check_layout("osv5m", folder)
    assert (len(findings), len(findings.named)) == (50, 20)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("id,latitude\n1,2\n", r"train\.csv has no column 'longitude' of longitudes"),
        ("id,latitude,longitude\n1,2,x\n", r"train\.csv line 2: longitude is 'x'"),
        ("id,latitude,longitude,climate\n1,2,3,\n2,2,3,wet\n", r"train\.csv line 3: climate is 'wet'"),
        ("id,latitude,longitude\n1,2\n", r"train\.csv line 2: 2 fields"),
    ],
)
def test_a_table_that_is_broken_is_refused_with_the_line(tmp_path, text, complaint):
    (tmp_path / "train.csv").write_text(text)
    with pytest.raises(BadTableError, match=complaint):
        open_layout("osv5m", tmp_path)


def statewide(folder: Path, num: int, **arrays: np.ndarray) -> Path:
    levels = directory_levels(num)
    facts = {"images-num": num, "images-directory-levels": levels, "sequences-num": 2}
    folder.mkdir(exist_ok=True)
    (folder / "dataset.json").write_text(json.dumps(facts))
    latlons = arrays.pop("latlons", np.stack([np.linspace(42, 43, num), np.linspace(-71, -70, num)], -1))
    np.savez(folder / "latlons.npz", latlons=latlons)
    for index in range(num):
        put(folder / "images" / f"{statewide_stem(index, levels)}-480.jpg", jpeg(index % 5))
    return folder


def test_statewide(tmp_path):
    folder = statewide(tmp_path / "street", 123)
    np.savez(folder / "timestamps.npz", timestamps=np.arange(123) * 1000 + 1_600_000_000_000)
    np.savez(folder / "sequence-idxs.npz", sequence_idxs=np.arange(123) // 50)
    table = open_layout("statewide", folder)
    assert len(table) == 123
    assert Path(table[104].image.path).relative_to(folder).as_posix() == "images/4/01000000000-480.jpg"
    assert np.array_equal(decode_image(table[104].image.read()), decode_image(jpeg(104 % 5)))
    assert table[104].captured_at == 1_600_000_104
    assert table.codes("sequence")[1] == ["0", "1", "2"]
    np.savez(folder / "boston.npz", image_ids=[3, 101])  # differences: the images 3 and 104
    part = open_layout("statewide", folder, "boston")
    assert [sample.key for sample in (part[0], part[1])] == ["3", "104"]
    assert part[1] == table[104]
    np.savez(folder / "far.npz", image_ids=[3, 200])
    with pytest.raises(BadTableError, match=r"ids of far.npz are 3 to 203 of 123 images"):
        open_layout("statewide", folder, "far")
    (folder / "images" / "4" / "01000000000-480.jpg").unlink()
    assert texts("statewide", folder) == [
        f"missing image: {folder / 'latlons.npz'} row 104: there is no image file for the id '104' in {folder}"
    ]
    np.savez(folder / "timestamps.npz", timestamps=np.arange(3))
    with pytest.raises(BadTableError, match=r"timestamps.npz has shape \(3,\), and there are 123 images"):
        open_layout("statewide", folder)


def test_lists_of_image_ids(tmp_path):
    ids = [5, 1_000_000_000_007, 5_000_000_000, 6]
    np.savez(tmp_path / "ids.npz", image_ids=np.diff(sorted(ids), prepend=0))
    assert read_image_ids(tmp_path / "ids.npz").tolist() == sorted(ids)
    np.savez(tmp_path / "other.npz", ids=ids)
    with pytest.raises(BadTableError, match="is no list of image ids"):
        read_image_ids(tmp_path / "other.npz")


def test_im2gps_and_yfcc(tmp_path):
    lines = [*["x"] * 5, "latitude: 48.5", "longitude: -2.25", "a", "b"]
    (tmp_path / "i").mkdir()
    (tmp_path / "i" / "info.json").write_text(json.dumps({"b.jpg": lines, "c.jpg": lines, "lost.jpg": []}))
    put(tmp_path / "i" / "images" / "b.jpg")
    table, findings = check_layout("im2gps3k", tmp_path / "i")
    assert table[0].latlon_deg == (48.5, -2.25)
    assert dict(findings.counts) == {"missing image": 1}
    fields = [str(i) for i in range(20)]
    fields[1], fields[12], fields[13] = "77", "-3.5", "40.25"
    (tmp_path / "y").mkdir()
    (tmp_path / "y" / "info.txt").write_text("\t".join(fields) + "\n")
    put(tmp_path / "y" / "images" / "77.jpg")
    assert open_layout("yfcc4k", tmp_path / "y")[0].latlon_deg == (40.25, -3.5)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_own_photos_with_a_table(tmp_path, suffix):
    columns = {"filename": ["a/x.jpg", "y"], "lat": [1.5, 2.5], "lon": [3.5, 4.5], "heading": [90.0, None]}
    if suffix == ".csv":
        (tmp_path / "t.csv").write_text("filename,lat,lon,heading\na/x.jpg,1.5,3.5,90\ny,2.5,4.5,\n")
    else:
        import pyarrow.parquet as pq

        pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    put(tmp_path / "a" / "x.jpg")
    put(tmp_path / "b" / "y.png")
    for path in (tmp_path, tmp_path / f"t{suffix}"):
        table = open_layout("photos", path)
        assert [(s.key, s.latlon_deg, s.heading_deg) for s in (table[0], table[1])] == [
            ("a/x.jpg", (1.5, 3.5), 90.0),
            ("y", (2.5, 4.5), None),
        ]


def test_own_photos_with_exif(tmp_path):
    exif = Image.Exif()
    exif[0x8825] = {1: "N", 2: (55.0, 42.0, 0.0), 3: "E", 4: (13.0, 12.0, 0.0), 16: "T", 17: 45.0}
    Image.new("RGB", (8, 8)).save(tmp_path / "here.jpg", exif=exif)
    put(tmp_path / "nowhere.jpg")
    table, findings = check_layout("photos", tmp_path)
    assert table[0].latlon_deg == pytest.approx((55.7, 13.2))
    assert table[0].heading_deg == 45
    assert findings.named[0].text.startswith(f"the EXIF of {tmp_path / 'nowhere.jpg'}: (nan, nan)")


def tar(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as file:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


def test_webdataset_shards_of_others(tmp_path):
    about = {"id": "x", "latitude": 10, "longitude": "20.5", "unique_country": "FR", "climate": 4}
    tar(tmp_path / "train" / "0.tar", {"a.jpg": jpeg(1), "a.json": json.dumps(about).encode()})
    tar(tmp_path / "train" / "1.tar", {"b.jpg": jpeg(2), "b.json": b'{"lat": 1, "lng": 2}', "b.pyd": b"boom"})
    tar(tmp_path / "val" / "0.tar", {"c.jpg": jpeg(3), "d.jpg": jpeg(4), "d.json": b"{"})
    table = open_layout("webdataset", tmp_path, "train")
    assert [(s.key, s.latlon_deg, s.country) for s in (table[0], table[1])] == [
        ("x", (10.0, 20.5), "FR"),
        ("b", (1.0, 2.0), None),
    ]
    assert table[0].targets["climate"] == 4
    assert table[1].image.read() == jpeg(2)
    val = tmp_path / "val" / "0.tar"
    assert texts("webdataset", tmp_path, "val") == [
        f"bad metadata: {val} sample d: its JSON cannot be read: Expecting property name enclosed in double quotes: "
        "line 1 column 2 (char 1)",
        f"bad coordinate: {val} sample c: (nan, nan) is no place on Earth",
        f"bad coordinate: {val} sample d: (nan, nan) is no place on Earth",
    ]
    (tmp_path / "train" / "2.tar").write_bytes(b"no tar" * 200)
    assert "not an uncompressed tar" in texts("webdataset", tmp_path, "train")[0]
    with pytest.raises(NotFoundError, match=r"has no \.tar of the split 'test'"):
        open_layout("webdataset", tmp_path, "test")


def test_unknown_layouts_and_splits(tmp_path):
    with pytest.raises(ConfigError, match=r"no layout 'osv'; known are osv5m \(train.csv"):
        open_layout("osv", tmp_path)
    with pytest.raises(ConfigError, match="osv5m has no split 'val'; it has train, test"):
        open_layout("osv5m", tmp_path, "val")
    with pytest.raises(ConfigError, match="im2gps has no split 'train'; it has one only"):
        open_layout("im2gps", tmp_path, "train")
    for name in LAYOUTS:
        with pytest.raises(NotFoundError, match="should contain"):
            open_layout(name, tmp_path / "nowhere")


def test_a_tree_is_found_through_links_once(tmp_path):
    put(tmp_path / "a" / "1.jpg")
    put(tmp_path / "b" / "1.jpg")
    put(tmp_path / ".hidden" / "2.jpg")
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    tree = ImageTree(tmp_path)
    assert tree.files.to_pylist() == ["a/1.jpg", "b/1.jpg"]
    ids = pa.array(["1", "b/1.jpg", "1.jpg", "far/away/1.jpg", "2", "1.png"])
    assert tree.find(ids).to_pylist() == ["a/1.jpg", "b/1.jpg", "a/1.jpg", "a/1.jpg", None, None]
    assert ImageTree(tmp_path, "nowhere").find(ids).null_count == 6


def test_tables_of_layouts_can_be_kept(tmp_path):
    folder = statewide(tmp_path / "street", 3)
    open_layout("statewide", folder).write(tmp_path / "kept.parquet")
    assert SampleTable.read(tmp_path / "kept.parquet")[2] == open_layout("statewide", folder)[2]
