import random
import struct
from io import BytesIO

import pytest
from hypothesis import given
from hypothesis import strategies as st
from image_samples import encode, photo_like
from PIL import ExifTags, Image, TiffImagePlugin

from geoloc.images import read_exif_heading_deg, read_exif_latlon_deg

GPS = ExifTags.GPS
IMAGE = photo_like(16, 12)
HERE = {
    GPS.GPSLatitudeRef: "N",
    GPS.GPSLatitude: (55.0, 42.0, 14.4),
    GPS.GPSLongitudeRef: "E",
    GPS.GPSLongitude: (13.0, 11.0, 24.0),
}
HERE_LATLON_DEG = (55.704, 13.19)


def jpeg_with(tags: dict) -> bytes:
    exif = Image.Exif()
    exif.get_ifd(ExifTags.IFD.GPSInfo).update(tags)
    return encode(IMAGE, "JPEG", exif=exif)


def rational(numerator: int, denominator: int) -> TiffImagePlugin.IFDRational:
    return TiffImagePlugin.IFDRational(numerator, denominator)


def test_position_and_heading(tmp_path):
    data = jpeg_with(HERE | {GPS.GPSImgDirection: 271.5, GPS.GPSImgDirectionRef: "T"})
    path = tmp_path / "photo.jpg"
    path.write_bytes(data)
    for source in (data, path, str(path), Image.open(BytesIO(data))):
        assert read_exif_latlon_deg(source) == pytest.approx(HERE_LATLON_DEG, abs=1e-9)
        assert read_exif_heading_deg(source) == pytest.approx(271.5)


@pytest.mark.parametrize("format_name", ["PNG", "WEBP", "TIFF"])
def test_other_formats(format_name):
    exif = Image.Exif()
    exif[ExifTags.Base.Make] = "a maker"
    exif[ExifTags.IFD.GPSInfo] = HERE
    data = encode(IMAGE, format_name, exif=exif.tobytes())
    assert read_exif_latlon_deg(data) == pytest.approx(HERE_LATLON_DEG)


def test_heif():
    pillow_heif = pytest.importorskip("pillow_heif")
    exif = Image.Exif()
    exif.get_ifd(ExifTags.IFD.GPSInfo).update(HERE)
    buffer = BytesIO()
    pillow_heif.from_pillow(photo_like(64, 64)).save(buffer, exif=exif.tobytes())
    assert read_exif_latlon_deg(buffer.getvalue()) == pytest.approx(HERE_LATLON_DEG)


@given(
    st.integers(0, 89),
    st.integers(0, 179),
    st.tuples(*[st.integers(0, 59)] * 4),
    st.sampled_from("NS"),
    st.sampled_from("EW"),
)
def test_degrees_minutes_seconds_by_hand(lat, lon, minutes_seconds, north_south, east_west):
    lat_minutes, lat_seconds, lon_minutes, lon_seconds = minutes_seconds
    found = read_exif_latlon_deg(
        jpeg_with(
            {
                GPS.GPSLatitudeRef: north_south,
                GPS.GPSLatitude: (float(lat), float(lat_minutes), float(lat_seconds)),
                GPS.GPSLongitudeRef: east_west,
                GPS.GPSLongitude: (float(lon), float(lon_minutes), float(lon_seconds)),
            }
        )
    )
    latitude = (lat * 3600 + lat_minutes * 60 + lat_seconds) / 3600 * (1 if north_south == "N" else -1)
    longitude = (lon * 3600 + lon_minutes * 60 + lon_seconds) / 3600 * (1 if east_west == "E" else -1)
    if latitude == longitude == 0:
        assert found is None
    else:
        assert found == pytest.approx((latitude, longitude), abs=1e-9)


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ({GPS.GPSLatitude: (90.0, 0.0, 0.0)}, (90.0, 13.19)),
        ({GPS.GPSLongitude: (180.0, 0.0, 0.0)}, (55.704, -180.0)),
        ({GPS.GPSLongitude: (180.0, 0.0, 0.0), GPS.GPSLongitudeRef: "W"}, (55.704, -180.0)),
        ({GPS.GPSLatitude: (55.704, 0.0, 0.0)}, (55.704, 13.19)),
        ({GPS.GPSLatitude: (55.0, 41.0, 60.0)}, (55.7, 13.19)),
        ({GPS.GPSLatitudeRef: "s"}, (-55.704, 13.19)),
    ],
)
def test_edges(tags, expected):
    assert read_exif_latlon_deg(jpeg_with(HERE | tags)) == pytest.approx(expected)


@pytest.mark.parametrize(
    "tags",
    [
        {GPS.GPSLatitude: (90.0, 0.0, 1.0)},
        {GPS.GPSLongitude: (181.0, 0.0, 0.0)},
        {GPS.GPSLatitude: (10.0, 61.0, 0.0)},
        {GPS.GPSLatitude: (rational(1, 0), 0.0, 0.0)},
        {GPS.GPSLatitude: (rational(0, 0), rational(0, 0), rational(0, 0))},
        {GPS.GPSLatitudeRef: "?"},
        {GPS.GPSLongitudeRef: ""},
        {GPS.GPSStatus: "V"},
        {GPS.GPSLatitude: (0.0, 0.0, 0.0), GPS.GPSLongitude: (0.0, 0.0, 0.0)},
    ],
)
def test_no_position_to_rely_on(tags):
    assert read_exif_latlon_deg(jpeg_with(HERE | tags)) is None


@pytest.mark.parametrize("missing", list(HERE))
def test_a_missing_part(missing):
    assert (
        read_exif_latlon_deg(jpeg_with({tag: value for tag, value in HERE.items() if tag != missing})) is None
    )


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ({GPS.GPSImgDirection: 360.0}, 0.0),
        ({GPS.GPSImgDirection: 12.25}, 12.25),
        ({GPS.GPSImgDirection: 90.0, GPS.GPSImgDirectionRef: "M"}, None),
        ({GPS.GPSImgDirection: 361.0, GPS.GPSImgDirectionRef: "T"}, None),
        ({GPS.GPSImgDirection: rational(0, 0)}, None),
        ({}, None),
    ],
)
def test_heading(tags, expected):
    assert read_exif_heading_deg(jpeg_with(HERE | tags)) == expected


@pytest.mark.parametrize(
    "source",
    [b"", b"no image", encode(IMAGE, "PNG"), encode(IMAGE, "JPEG"), IMAGE, "/nowhere/photo.jpg"],
    ids=range(6),
)
def test_no_exif_no_image_no_file(source):
    assert read_exif_latlon_deg(source) is None
    assert read_exif_heading_deg(source) is None


def test_broken_exif_never_raises_nor_warns(recwarn):
    data = jpeg_with(HERE | {GPS.GPSImgDirection: 10.0})
    start = data.index(b"Exif")
    (length,) = struct.unpack_from(">H", data, start - 2)
    rng = random.Random(4)
    found = []
    for _ in range(400):
        broken = bytearray(data)
        for _ in range(rng.choice((1, 2, 8))):
            broken[rng.randrange(start, start + length - 2)] = rng.randrange(256)
        position = read_exif_latlon_deg(bytes(broken))
        heading = read_exif_heading_deg(bytes(broken))
        assert position is None or (abs(position[0]) <= 90 and -180 <= position[1] < 180)
        assert heading is None or 0 <= heading < 360
        found.append(position)
    assert None in found
    assert any(found)
    assert not recwarn.list
