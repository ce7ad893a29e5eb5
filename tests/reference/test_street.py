"""Street references: folders with tables or EXIF, tars; what cannot be used is told and stops nothing."""

import io
import json
import os
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from embedders import ColourEmbedder, contents, rows_of
from PIL import Image
from tiny import tiny_image

from geoloc.errors import BadImageError, ConfigError, NotFoundError
from geoloc.images import load_and_preprocess
from geoloc.photos.positioned import open_photos
from geoloc.reference.database import ReferenceDatabase

NUM_PHOTOS = 7


def exif_of(latlon_deg: tuple[float, float], heading_deg: float | None = None) -> Any:
    exif = Image.Exif()
    lat, lon = latlon_deg
    gps: dict[int, Any] = {1: "N" if lat >= 0 else "S", 2: (abs(lat), 0.0, 0.0)}
    gps |= {3: "E" if lon >= 0 else "W", 4: (abs(lon), 0.0, 0.0)}
    if heading_deg is not None:
        gps |= {16: "T", 17: heading_deg}
    exif.get_ifd(0x8825).update(gps)
    return exif


def place(number: int) -> tuple[float, float]:
    return (10.0 + number, -20.0 - number)


def jpeg(number: int, **options: Any) -> bytes:
    data = io.BytesIO()
    Image.fromarray(tiny_image(number)).save(data, "JPEG", **options)
    return data.getvalue()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with photos that know nothing of themselves."""
    for number in range(NUM_PHOTOS):
        path = tmp_path / "photos" / ("a" if number % 2 else "b") / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(number))
    return tmp_path / "photos"


def keys_of(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.jpg"))


def write_csv(
    path: Path, folder: Path, header: str = "id,latitude,longitude,heading_deg,license,source"
) -> Path:
    lines = [header]
    for key in keys_of(folder):
        number = int(Path(key).stem)
        lat, lon = place(number)
        heading = "" if number == 2 else 30 * number
        lines.append(f"{key},{lat},{lon},{heading},CC-BY-4.0,survey {number}")
    path.write_text("\n".join(lines) + "\n")
    return path


def create(folder: Path) -> ReferenceDatabase:
    return ReferenceDatabase.create(folder, model=ColourEmbedder())


def test_a_folder_and_its_table(tmp_path: Path, photos: Path) -> None:
    table = write_csv(tmp_path / "photos.csv", photos)
    database = create(tmp_path / "refs")
    report = database.add_street(photos, metadata=table)
    assert (report.num_rows, report.num_problems) == (NUM_PHOTOS, 0)
    found, model = rows_of(database), ColourEmbedder()
    assert sorted(found) == keys_of(photos)
    for key, (row, vector) in found.items():
        number = int(Path(key).stem)
        assert (row["latitude"], row["longitude"]) == place(number)
        assert row["heading_deg"] == (None if number == 2 else 30 * number)
        assert (row["source"], row["gsd_m_per_px"]) == ("street", None)
        assert (row["licence"], row["provenance"]) == ("CC-BY-4.0", f"survey {number}")
        image = load_and_preprocess(photos / key, model.preprocess)
        np.testing.assert_allclose(vector, model.vectors(image[None])[0], atol=1e-6)


def test_csv_parquet_exif_and_tars_give_the_same_rows(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(NUM_PHOTOS):
        (folder / f"{number}.jpg").write_bytes(jpeg(number, exif=exif_of(place(number), 10.0 * number)))
    rows = [
        {"id": f"{n}.jpg", "latitude": place(n)[0], "longitude": place(n)[1], "heading_deg": 10.0 * n}
        for n in range(NUM_PHOTOS)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    renamed = pa.Table.from_pylist(rows).rename_columns(["file", "lat", "lon", "yaw"])
    pq.write_table(renamed, tmp_path / "b.parquet")
    columns = {"id": "file", "latitude": "lat", "longitude": "lon", "heading_deg": "yaw"}
    write_tar(tmp_path / "c.tar", [(f"{n}", jpeg(n), rows[n]) for n in range(NUM_PHOTOS)])
    ways: dict[str, dict[str, Any]] = {
        "exif": {"photos": folder},
        "parquet": {"photos": folder, "metadata": tmp_path / "a.parquet"},
        "other names": {"photos": folder, "metadata": tmp_path / "b.parquet", "columns": columns},
        "tar": {"photos": tmp_path / "c.tar"},
    }
    expected = None
    for name, options in ways.items():
        database = create(tmp_path / name)
        assert database.add_street(**options).num_problems == 0
        found = {
            (row["latitude"], row["longitude"], row["heading_deg"], vector.tobytes())
            for row, vector in rows_of(database).values()
        }
        expected = expected or found
        assert found == expected
        assert len(found) == NUM_PHOTOS


def write_tar(
    path: Path, samples: list[tuple[str, bytes, Any]], extra: dict[str, bytes] | None = None
) -> Path:
    with tarfile.open(path, "w") as tar:
        members: list[tuple[str, bytes]] = []
        for key, picture, about in samples:
            members.append((f"{key}.jpg", picture))
            if about is not None:
                members.append(
                    (f"{key}.json", about if isinstance(about, bytes) else json.dumps(about).encode())
                )
        for name, data in [*members, *(extra or {}).items()]:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def test_what_cannot_be_used_is_told_and_stops_nothing(tmp_path: Path, photos: Path) -> None:
    table = write_csv(tmp_path / "photos.csv", photos)
    (photos / "b" / "0.jpg").write_bytes(b"no picture")
    (photos / "a" / "1.jpg").write_bytes(jpeg(1)[:200])
    lines = [
        *table.read_text().splitlines(),
        "gone.jpg,1,2,,,",
        "../photos.csv,1,2,,,",
        "/etc/hostname,1,2,,,",
        "b/2.jpg,95,2,,,",
        "b/4.jpg,,,,,",
        'a/3.jpg,"1,5",2,,,',
    ]
    table.write_text("\n".join(lines) + "\n")
    database = create(tmp_path / "refs")
    report = database.add_street(photos, metadata=table)
    assert report.num_rows == len(database) == NUM_PHOTOS - 2
    reasons = dict(report.problems)
    assert reasons.pop("a/1.jpg").startswith("cannot decode this JPEG: ")
    assert reasons == {
        "b/0.jpg": "not a JPEG, PNG, WebP, TIFF, GIF, BMP or HEIF image",
        "gone.jpg": "file not found",
        "../photos.csv": "its id leads out of the folder",
        "/etc/hostname": "its id leads out of the folder",
        "b/2.jpg": "its position (95.0, 2.0) is not on Earth",
        "b/4.jpg": "no position: neither in the metadata nor in the photo's EXIF",
        "a/3.jpg": "its latitude is '1,5', which is not a number",
    }
    assert report.num_problems == 8


def test_photos_without_a_position_are_told(tmp_path: Path, photos: Path) -> None:
    (photos / "7.jpg").write_bytes(jpeg(7, exif=exif_of((48.0, 2.0))))
    report = create(tmp_path / "refs").add_street(photos)
    assert report.num_rows == 1
    assert set(report.problems.values()) == {"no position: neither in the metadata nor in the photo's EXIF"}


class Bomb:
    def __reduce__(self) -> Any:
        return os.system, ("touch exploded",)


def test_tars_are_data_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    about = {"latitude": 1.0, "longitude": 2.0, "licence": "CC0-1.0", "__class__": "os.system"}
    path = write_tar(
        tmp_path / "shard-0.tar",
        [
            ("x/good", jpeg(0), about),
            ("bad-json", jpeg(1), b"{"),
            ("list", jpeg(2), [1, 2]),
            ("no-place", jpeg(3), None),
            ("broken", b"\xff\xd8\xff and no more", {"latitude": 1, "longitude": 2}),
        ],
        {
            "x/good.pyd": pickle.dumps(Bomb()),
            "x/good.pickle": pickle.dumps(Bomb()),
            "only.json": b"{}",
            "../../evil.jpg": jpeg(4),
        },
    )
    with tarfile.open(path, "a") as tar:
        link = tarfile.TarInfo("link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    database = create(tmp_path / "refs")
    report = database.add_street(tmp_path)  # the folder of the tars
    assert not (tmp_path / "exploded").exists()
    assert list(rows_of(database)) == ["x/good"]
    assert rows_of(database)["x/good"][0]["licence"] == "CC0-1.0"
    reasons = dict(report.problems)
    assert "JPEG" in reasons["broken"]
    assert reasons["bad-json"] == "its JSON is invalid"
    assert reasons["list"] == "its JSON is not an object"
    assert reasons["no-place"].startswith("no position")
    assert "link" not in reasons


def test_a_table_may_describe_the_samples_of_tars(tmp_path: Path) -> None:
    tars = [
        write_tar(tmp_path / f"{s}.tar", [(f"{s}-{n}", jpeg(n), None) for n in range(3)]) for s in range(2)
    ]
    table = tmp_path / "about.csv"
    lines = [f"{s}-{n},{s},{n}" for s in range(2) for n in range(3) if (s, n) != (1, 1)]
    table.write_text("\n".join(["id,latitude,longitude", *lines]))
    database = create(tmp_path / "refs")
    report = database.add_street(tars, metadata=table)
    assert {k: (r["latitude"], r["longitude"]) for k, (r, _) in rows_of(database).items()} == {
        f"{s}-{n}": (s, n) for s in range(2) for n in range(3) if (s, n) != (1, 1)
    }
    assert list(report.problems) == ["1-1"]


def test_a_tar_that_is_cut_off(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", [("0", jpeg(0), {"latitude": 1, "longitude": 2})])
    photos = open_photos(path)
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(BadImageError, match="the tar ends inside of it"):
        photos[0]


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        (["gone"], NotFoundError, "there is no folder of photos gone: check the path"),
        (["empty"], NotFoundError, r"no image found in empty .*; looked for files that end in \.bmp"),
        (["gone.tar"], NotFoundError, r"there is no tar of photos gone\.tar"),
        (["pipe:touch exploded.tar"], NotFoundError, "there is no tar of photos pipe:touch"),
        (["bad.tar"], ConfigError, r"bad\.tar is not an uncompressed tar"),
        (["packed.tar"], ConfigError, r"packed\.tar is not an uncompressed tar"),
        (["text.tar"], ConfigError, "there is no image in text.tar"),
        (["photos", "gone.csv"], NotFoundError, r"there is no table of metadata gone\.csv"),
        (
            ["photos", "bad.csv"],
            ConfigError,
            r"bad\.csv has no column 'latitude'; its columns are id, lat, lon",
        ),
        (["photos", "empty.csv"], ConfigError, r"empty\.csv has no rows"),
        (["photos", "bad.parquet"], ConfigError, r"bad\.parquet is no Parquet file"),
        (
            ["photos", "bad.csv", {"lattitude": "lat"}],
            ConfigError,
            "no field 'lattitude' of a photo; known are id,",
        ),
    ],
)
def test_mistakes_are_named(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, arguments: Any, error: Any, text: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("bad.tar").write_bytes(b"no tar" * 1000)
    with tarfile.open("packed.tar", "w:gz") as tar:
        tar.add(photos, "photos")
    write_tar(Path("text.tar"), [], {"a.txt": b"hello"})
    Path("bad.csv").write_text("id,lat,lon\na.jpg,1,2\n")
    Path("empty.csv").write_text("id,latitude,longitude\n")
    Path("bad.parquet").write_bytes(b"PAR1")
    with pytest.raises(error, match=text):
        open_photos(*arguments)
    assert not Path("exploded").exists()


def test_an_interrupted_build_goes_on(tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("geoloc.reference.street.PHOTOS_PER_SHARD", 2)
    table = write_csv(tmp_path / "photos.csv", photos)
    (photos / "b" / "4.jpg").write_bytes(b"no picture")
    expected = create(tmp_path / "whole").add_street(photos, metadata=table)

    class Stops(ColourEmbedder):
        def embed_reference(self, images: Any, source: str) -> Any:
            if len(self.shown) == 2:
                raise KeyboardInterrupt
            return super().embed_reference(images, source)

    database = ReferenceDatabase.create(tmp_path / "refs", model=Stops())
    with pytest.raises(KeyboardInterrupt):
        database.add_street(photos, metadata=table)
    model = ColourEmbedder()
    report = database.add_street(photos, metadata=table, model=model)
    assert report == expected
    assert sum(len(images) for _, images in model.shown) == 2  # b/2 and b/6
    assert contents(tmp_path / "refs") == contents(tmp_path / "whole")
