import random
import re
import struct
import subprocess
import sys
import threading
import warnings
import zlib
from io import BytesIO

import numpy as np
import pytest
from image_samples import encode, photo_like
from PIL import Image, ImageCms, ImageOps

from geoloc.errors import BadImageError
from geoloc.images import DEFAULT_LIMITS, ImageLimits, decode_image


def rgb_of(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB"))


# Formats


@pytest.mark.parametrize(
    ("format_name", "options"),
    [
        ("PNG", {}),
        ("PNG", {"compress_level": 0}),
        ("BMP", {}),
        ("WEBP", {"lossless": True}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"compression": "tiff_adobe_deflate"}),
        ("TIFF", {"big_tiff": True}),
    ],
)
def test_lossless_formats_give_every_pixel_back(format_name, options):
    image = photo_like(61, 43)
    decoded = decode_image(encode(image, format_name, **options))
    assert (decoded.dtype, decoded.flags.c_contiguous, decoded.flags.writeable) == (np.uint8, True, True)
    np.testing.assert_array_equal(decoded, rgb_of(image))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"progressive": True},
        {"subsampling": 0},
        {"subsampling": 1},
        {"keep_rgb": True},
        {"restart_marker_rows": 1},
        {"optimize": True},
        {"quality": 12},
    ],
    ids=str,
)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_jpeg_decodes_as_pillow_decodes_it(mode, options):
    data = encode(photo_like(101, 67).convert(mode), "JPEG", **options)
    np.testing.assert_array_equal(decode_image(data), rgb_of(Image.open(BytesIO(data))))


def test_multi_picture_jpeg_gives_its_first_picture():
    first, second = photo_like(48, 32, seed=1), photo_like(48, 32, seed=2)
    data = encode(first, "MPO", save_all=True, append_images=[second])
    np.testing.assert_array_equal(decode_image(data), rgb_of(Image.open(BytesIO(data))))


@pytest.mark.parametrize("format_name", ["GIF", "WEBP", "TIFF", "PNG"])
def test_first_frame_of_an_animation(format_name):
    frames = [Image.new("RGB", (20, 10), colour) for colour in ((250, 10, 10), (10, 250, 10), (10, 10, 250))]
    options = {"lossless": True} if format_name == "WEBP" else {}
    decoded = decode_image(encode(frames[0], format_name, save_all=True, append_images=frames[1:], **options))
    assert decoded.shape == (10, 20, 3)
    assert np.abs(decoded.astype(int) - (250, 10, 10)).max() <= 5


def test_heif_turned_as_it_asks():
    pillow_heif = pytest.importorskip("pillow_heif")
    image = photo_like(96, 64)
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = BytesIO()
    pillow_heif.from_pillow(image).save(buffer, quality=95, exif=exif.tobytes())
    upright = decode_image(buffer.getvalue()).astype(int)
    expected = rgb_of(image.transpose(Image.Transpose.ROTATE_270)).astype(int)
    assert upright.shape == expected.shape == (96, 64, 3)
    assert np.abs(upright - expected).mean() < 6


def test_heif_without_its_package_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(BadImageError, match=re.escape("pip install 'geoloc-vision[heif]'")):
        decode_image(b"\x00\x00\x00\x18ftypheic" + bytes(100))


# Modes


def test_cmyk_jpeg_of_adobe_is_not_a_negative():
    image = Image.new("CMYK", (32, 32), (0, 255, 255, 0))  # red ink
    assert decode_image(encode(image, "JPEG", quality=95)).mean(axis=(0, 1)) == pytest.approx(
        (255, 0, 0), abs=3
    )


@pytest.mark.parametrize("options", [{}, {"progressive": True}])
def test_cmyk_jpeg_decodes_as_pillow_decodes_it(options):
    data = encode(photo_like(90, 70).convert("CMYK"), "JPEG", **options)
    np.testing.assert_array_equal(decode_image(data), rgb_of(Image.open(BytesIO(data))))


def test_cmyk_tiff():
    image = photo_like(40, 30).convert("CMYK")
    np.testing.assert_array_equal(decode_image(encode(image, "TIFF")), rgb_of(image))


def test_sixteen_bits_are_scaled_not_clipped():
    levels = np.linspace(0, 65535, 257 * 4).astype(np.uint16).reshape(4, 257)
    expected = np.rint(levels / 257.0).astype(np.uint8)[..., None].repeat(3, axis=2)
    for data in (encode(Image.fromarray(levels), "PNG"), encode(Image.fromarray(levels), "TIFF")):
        np.testing.assert_array_equal(decode_image(data), expected)
    np.testing.assert_array_equal(decode_image(levels), expected)
    np.testing.assert_array_equal(decode_image(levels.astype(">u2")), expected)
    dark = np.full((3, 3), 514, np.uint16)  # stays dark, whatever the brightest sample is
    assert (decode_image(encode(Image.fromarray(dark), "PNG")) == 2).all()


def test_sixteen_bit_colour_png():
    rows = b"".join(b"\x00" + struct.pack(">6H", 65535, 32768, 0, 257, 514, 65535) for _ in range(2))
    decoded = decode_image(png(2, 2, 16, 2, zlib.compress(rows)))
    np.testing.assert_allclose(decoded[0], [[255, 128, 0], [1, 2, 255]], atol=1)


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        ([0.0, 0.5, 1.0], [0, 128, 255]),
        ([0.0, 100.0, 255.0], [0, 100, 255]),
        ([0.0, 257.0, 65535.0], [0, 1, 255]),
        ([-1.0, 0.0, 1.0], [0, 128, 255]),
        ([0.0, 50_000.0, 100_000.0], [0, 128, 255]),
        ([np.nan, np.inf, 1.0], [0, 0, 255]),
        ([-np.inf, -3.0, 5.0], [0, 0, 255]),
        ([7.0, 7.0, 7.0], [7, 7, 7]),
        ([-7.0, -7.0, -7.0], [0, 0, 0]),
    ],
)
def test_float_samples(samples, expected):
    array = np.array([samples], np.float32)
    assert decode_image(array)[0, :, 0].tolist() == expected
    assert decode_image(array.astype(np.float64))[0, :, 1].tolist() == expected
    assert decode_image(encode(Image.fromarray(array), "TIFF"))[0, :, 2].tolist() == expected


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        ([0, 100, 255], [0, 100, 255]),
        ([0, 257, 65535], [0, 1, 255]),
        ([-(2**31), 0, 2**31 - 1], [0, 128, 255]),
    ],
)
def test_wide_integers(samples, expected):
    array = np.array([samples], np.int32)
    assert decode_image(array)[0, :, 0].tolist() == expected
    assert decode_image(encode(Image.fromarray(array), "TIFF"))[0, :, 0].tolist() == expected


def test_palette_and_bilevel():
    palette = photo_like(40, 30).quantize(16)
    np.testing.assert_array_equal(decode_image(encode(palette, "PNG")), rgb_of(palette))
    np.testing.assert_array_equal(decode_image(encode(palette, "GIF")), rgb_of(palette))
    bilevel = photo_like(40, 30).convert("1")
    np.testing.assert_array_equal(decode_image(encode(bilevel, "PNG")), rgb_of(bilevel))
    np.testing.assert_array_equal(
        decode_image(encode(bilevel, "TIFF", compression="group4")), rgb_of(bilevel)
    )


@pytest.mark.parametrize("format_name", ["PNG", "WEBP", "TIFF"])
def test_transparency_is_laid_over_white(format_name):
    rgba = np.zeros((4, 5, 4), np.uint8)
    rgba[..., :3] = (200, 100, 0)
    rgba[..., 3] = [[0], [85], [170], [255]]
    options = {"lossless": True, "exact": True} if format_name == "WEBP" else {}
    decoded = decode_image(encode(Image.fromarray(rgba), format_name, **options))
    alpha = rgba[..., 3:] / 255
    np.testing.assert_allclose(decoded, rgba[..., :3] * alpha + 255 * (1 - alpha), atol=1)
    np.testing.assert_array_equal(decode_image(rgba), decoded)


def test_transparency_of_grey_and_palette_images():
    grey = Image.merge("LA", (Image.new("L", (3, 3), 60), Image.new("L", (3, 3), 0)))
    assert (decode_image(encode(grey, "PNG")) == 255).all()
    palette = Image.new("P", (4, 2))
    palette.putpalette([255, 0, 0, 0, 255, 0])
    palette.putpixel((1, 0), 1)
    for format_name in ("PNG", "GIF"):
        decoded = decode_image(encode(palette, format_name, transparency=0))
        assert decoded[0, 1].tolist() == [0, 255, 0]
        assert decoded[1, 1].tolist() == [255, 255, 255]
    keyed = encode(Image.new("RGB", (2, 2), (9, 8, 7)), "PNG", transparency=(9, 8, 7))
    assert (decode_image(keyed) == 255).all()


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "HSV"])
def test_every_colour_mode_of_pillow(mode):
    rgb = photo_like(33, 21)
    image = (rgb.convert("RGBA") if mode == "RGBa" else rgb).convert(mode)
    tolerance = {"YCbCr": 4, "HSV": 6}.get(mode, 0)  # what the conversion itself loses
    np.testing.assert_allclose(decode_image(image).astype(int), np.asarray(rgb).astype(int), atol=tolerance)


@pytest.mark.parametrize("mode", ["L", "LA", "La", "I", "F", "I;16"])
def test_every_grey_mode_of_pillow(mode):
    grey = photo_like(33, 21).convert("L")
    if mode == "I;16":
        image = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    else:
        image = (grey.convert("LA") if mode == "La" else grey).convert(mode)
    assert image.mode == mode
    np.testing.assert_array_equal(decode_image(image), rgb_of(grey))


@pytest.mark.parametrize("mode", ["1", "P", "PA"])
def test_every_indexed_mode_of_pillow(mode):
    image = photo_like(33, 21).convert("P" if mode == "PA" else mode).convert(mode)
    np.testing.assert_array_equal(decode_image(image), rgb_of(image))


def test_lab():
    image = photo_like(8, 8)
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    lab = ImageCms.profileToProfile(image, *profiles, outputMode="LAB")
    decoded = decode_image(encode(lab, "TIFF")).astype(int)
    assert np.abs(decoded - rgb_of(image)).mean() < 10


def test_tall_images_are_converted_in_strips_without_seams():
    image = photo_like(11, 700).convert("RGBA")
    np.testing.assert_array_equal(decode_image(encode(image, "PNG")), rgb_of(image))
    ramp = np.linspace(0, 1, 700, dtype=np.float32)[:, None].repeat(3, axis=1)
    np.testing.assert_array_equal(decode_image(ramp)[..., 0], np.rint(ramp * 255))


# Orientation


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("format_name", "options"),
    [("JPEG", {"quality": 95, "subsampling": 0}), ("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {})],
)
def test_exif_orientation(format_name, options, orientation):
    exif = Image.Exif()
    exif[0x010F] = "a maker"
    exif[0x0112] = orientation
    data = encode(photo_like(60, 40), format_name, exif=exif, **options)
    upright = rgb_of(ImageOps.exif_transpose(Image.open(BytesIO(data))))
    np.testing.assert_array_equal(decode_image(data), upright)
    np.testing.assert_array_equal(decode_image(Image.open(BytesIO(data))), upright)


def test_orientation_from_big_endian_exif_and_from_xmp():
    image = photo_like(60, 40)
    jpeg = encode(image, "JPEG")
    turned = np.rot90(decode_image(jpeg), 3)
    exif = b"Exif\x00\x00MM\x00*" + struct.pack(">IHHHIHHI", 8, 1, 0x0112, 3, 1, 6, 0, 0)
    xmp = b'http://ns.adobe.com/xap/1.0/\x00<rdf:Description tiff:Orientation="6"/>'
    for segment in (exif, xmp):
        with_segment = jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + jpeg[2:]
        np.testing.assert_array_equal(decode_image(with_segment), turned)


@pytest.mark.parametrize(
    "block",
    [
        b"",
        b"II*\x00",
        b"II*\x00\xff\xff\xff\xff",
        b"II*\x00\x08\x00\x00\x00\xff\xff\x12\x01",
        b"XX*\x00" + bytes(40),
        b"II*\x00" + struct.pack("<IHHHIHHI", 8, 1, 0x0112, 3, 1, 77, 0, 0),
    ],
)
def test_broken_exif_leaves_the_pixels_as_they_are(block):
    jpeg = encode(photo_like(60, 40), "JPEG")
    segment = b"Exif\x00\x00" + block
    broken = jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + jpeg[2:]
    np.testing.assert_array_equal(decode_image(broken), decode_image(jpeg))


# Sources


def test_all_sources_agree(tmp_path):
    image = photo_like(50, 30)
    data = encode(image, "PNG")
    path = tmp_path / "photo.jpg"  # the name lies: only the bytes count
    path.write_bytes(data)
    for source in (data, path, str(path), image, np.asarray(image)):
        np.testing.assert_array_equal(decode_image(source), rgb_of(image))


def test_the_callers_image_is_left_alone():
    array = np.asarray(photo_like(20, 10)).copy()
    decoded = decode_image(array)
    decoded[:] = 0
    assert array.any()


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.zeros((3, 224, 224), np.uint8), r"shape \(3, 224, 224\)"),
        (np.zeros((2, 2, 2, 3), np.uint8), "shape"),
        (np.zeros(7, np.uint8), "shape"),
        (np.zeros((0, 5, 3), np.uint8), "no pixels: 5 x 0"),
        (np.zeros((2, 2), np.complex64), "complex64"),
        (np.full((2, 2), "x"), "<U1"),
        (np.full((2, 2), np.nan), "no sample is a finite number"),
    ],
)
def test_arrays_that_are_no_image(array, reason):
    with pytest.raises(BadImageError, match=reason):
        decode_image(array)


def test_boolean_and_single_channel_arrays():
    mask = np.array([[True, False]])
    assert decode_image(mask)[..., 0].tolist() == [[255, 0]]
    assert decode_image(mask[..., None]).shape == (1, 2, 3)


def test_failures_of_the_source_itself(tmp_path):
    (tmp_path / "empty.jpg").touch()
    with pytest.raises(BadImageError, match="file not found"):
        decode_image(tmp_path / "nowhere.jpg")
    with pytest.raises(BadImageError, match="a folder"):
        decode_image(tmp_path)
    with pytest.raises(BadImageError, match="a device"):
        decode_image("/dev/null")
    with pytest.raises(BadImageError, match="the file is empty"):
        decode_image(tmp_path / "empty.jpg")
    with pytest.raises(BadImageError, match=r"file cannot be read: .*null"):
        decode_image("a\x00b.jpg")
    with pytest.raises(BadImageError, match="file cannot be read: File name too long"):
        decode_image("x" * 5000)
    with pytest.raises(BadImageError, match="not as list"):
        decode_image(["photo.jpg"])
    with pytest.raises(BadImageError, match="not as NoneType"):
        decode_image(None)


def test_a_reason_is_one_line_without_the_path(tmp_path):
    path = tmp_path / "text.jpg"
    path.write_text("no image at all")
    with pytest.raises(BadImageError) as caught:
        decode_image(path)
    assert caught.value.reason == "not a JPEG, PNG, WebP, TIFF, GIF, BMP or HEIF image"


@pytest.mark.parametrize(
    "data",
    [
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"\x00\x00\x01\x00\x01\x00",
        b"P6 1 1 255\n\x00\x00\x00",
        b"%PDF-1.7",
    ],
)
def test_formats_off_the_list_never_reach_a_decoder(data):
    with pytest.raises(BadImageError, match=r"^not a JPEG"):
        decode_image(data)


# Limits


def png(width: int, height: int, bits: int, colour_type: int, compressed: bytes) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", compressed) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("width", "height"), [(9000, 9000), (12_000, 12_000), (50_000, 50_000), (2**31 - 1,) * 2]
)
def test_decompression_bombs_are_refused_from_their_header(width, height):
    with pytest.raises(BadImageError, match=r"^too many pixels"):
        decode_image(png(width, height, 8, 2, zlib.compress(bytes(10_000_000), 9)))


def test_limits_hold_at_their_exact_value(tmp_path):
    image = photo_like(50, 40)
    for format_name in ("JPEG", "PNG"):
        data = encode(image, format_name)
        path = tmp_path / "image"
        path.write_bytes(data)
        for source in (data, path):
            exact = ImageLimits(max_bytes=len(data), max_pixels=2000)
            assert decode_image(source, limits=exact).shape == (40, 50, 3)
            with pytest.raises(BadImageError, match=f"too many bytes: {len(data):,} exceed the limit"):
                decode_image(source, limits=ImageLimits(max_bytes=len(data) - 1))
            with pytest.raises(BadImageError, match="too many pixels: 50 x 40 exceed the limit of 1,999"):
                decode_image(source, limits=ImageLimits(max_pixels=1999))
    for source in (image, np.asarray(image)):
        with pytest.raises(BadImageError, match="too many pixels"):
            decode_image(source, limits=ImageLimits(max_pixels=1999))


def test_the_pixel_limit_counts_before_a_scaled_decode():
    with pytest.raises(BadImageError, match="too many pixels"):
        decode_image(encode(photo_like(64, 64), "JPEG"), limits=ImageLimits(max_pixels=4095), min_side_px=8)


def test_default_limits():
    assert (DEFAULT_LIMITS.max_bytes, DEFAULT_LIMITS.max_pixels) == (64 * 1024 * 1024, 64_000_000)


def test_jpeg_with_thousands_of_scans_is_refused_at_once():
    data = encode(photo_like(64, 64), "JPEG", progressive=True)
    last_scan = data[data.rindex(b"\xff\xda") : -2]
    with pytest.raises(BadImageError, match="more than 32 scans"):
        decode_image(data[:-2] + 1000 * last_scan + data[-2:])


def test_scan_markers_behind_the_end_of_the_image_do_not_count():
    data = encode(photo_like(64, 64), "JPEG", progressive=True)
    np.testing.assert_array_equal(decode_image(data + 1000 * b"\xff\xda\x00\x02"), decode_image(data))


# The fast JPEG route


@pytest.mark.parametrize(
    ("width", "height", "min_side_px", "expected_shorter_px"),
    [
        (640, 480, 448, 480),
        (1024, 768, 448, 768),  # 5/8 would do, but costs more than all of it
        (2048, 1536, 448, 768),  # 1/2: 1/4 would be 384
        (1792, 2200, 448, 448),  # exactly 1/4
        (1789, 2200, 448, 448),  # 1/4 is rounded up
        (1788, 2200, 448, 894),
        (300, 200, 448, 200),  # never enlarged
        (800, 600, 1, 75),  # 1/8 is the least
    ],
)
def test_scaled_decode_takes_the_smallest_scale_that_suffices(
    width, height, min_side_px, expected_shorter_px
):
    decoded = decode_image(encode(photo_like(width, height), "JPEG"), min_side_px=min_side_px)
    assert min(decoded.shape[:2]) == expected_shorter_px
    assert decoded.shape[1] / decoded.shape[0] == pytest.approx(width / height, rel=0.02)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_scaled_decode_shows_the_same_picture_turned_the_same_way(mode):
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(photo_like(800, 600).convert(mode), "JPEG", exif=exif, quality=90)
    scaled = decode_image(data, min_side_px=300)
    assert scaled.shape == (400, 300, 3)
    reduced = Image.fromarray(decode_image(data)).resize((300, 400), Image.Resampling.BOX)
    assert np.abs(scaled.astype(int) - np.asarray(reduced)).mean() < 2


def test_other_formats_ignore_the_minimum():
    assert decode_image(encode(photo_like(80, 60), "PNG"), min_side_px=10).shape == (60, 80, 3)


@pytest.mark.parametrize("min_side_px", [None, 64])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 1}], ids=str)
@pytest.mark.parametrize("mode", ["RGB", "CMYK"])
def test_truncated_jpeg_is_refused_wherever_it_ends(mode, options, min_side_px):
    data = encode(photo_like(320, 240).convert(mode), "JPEG", **options)
    for num_bytes in [*range(3, len(data) - 2, len(data) // 40), len(data) - 3, len(data) - 2]:
        with pytest.raises(BadImageError):
            decode_image(data[:num_bytes], min_side_px=min_side_px)


def test_truncation_says_how_much_is_there():
    data = encode(photo_like(320, 240), "JPEG")
    with pytest.raises(BadImageError, match=r"^truncated JPEG") as caught:
        decode_image(data[: len(data) // 2])
    found = re.fullmatch(
        r"truncated JPEG: it ends at byte ([\d,]+), after (\d+) of 240 rows", caught.value.reason
    )
    assert found is not None
    assert int(found[1].replace(",", "")) == len(data) // 2
    assert 60 < int(found[2]) < 180
    progressive = encode(photo_like(320, 240), "JPEG", progressive=True)
    with pytest.raises(BadImageError, match="before any row is complete"):
        decode_image(progressive[: len(progressive) // 2])


@pytest.mark.parametrize("min_side_px", [None, 64])
def test_damaged_jpeg_is_refused_not_filled_with_grey(min_side_px):
    data = encode(photo_like(320, 240), "JPEG")
    hole = len(data) // 2
    for damage in (b"\xff\xd9", b"\xff\xd0", b"\xff\xe0\x00\x04ab"):
        broken = data[:hole] + damage + data[hole + len(damage) :]
        with pytest.raises(BadImageError, match=r"^(damaged|truncated) JPEG"):
            decode_image(broken, min_side_px=min_side_px)


def test_padding_before_the_end_marker_is_no_damage():
    data = encode(photo_like(64, 48), "JPEG")
    np.testing.assert_array_equal(decode_image(data[:-2] + bytes(5) + data[-2:]), decode_image(data))
    with pytest.raises(BadImageError, match=r"19\d extraneous bytes"):
        decode_image(data[:-2] + bytes(200) + data[-2:])  # the last block eats a few


def test_rubbish_between_header_segments_is_no_damage():
    data = encode(photo_like(64, 48), "JPEG")
    table = data.index(b"\xff\xdb")
    np.testing.assert_array_equal(decode_image(data[:table] + bytes(30) + data[table:]), decode_image(data))


# Untrusted bytes


def sample_files() -> list[bytes]:
    image = photo_like(40, 28)
    exif = Image.Exif()
    exif[0x0112] = 3
    grey16 = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    return [
        encode(image, "JPEG", exif=exif),
        encode(image, "JPEG", progressive=True),
        encode(image.convert("CMYK"), "JPEG"),
        encode(image, "PNG"),
        encode(image.convert("RGBA"), "PNG"),
        encode(grey16, "PNG"),
        encode(image, "TIFF", compression="tiff_lzw"),
        encode(image, "TIFF", compression="jpeg"),
        encode(image.convert("F"), "TIFF"),
        encode(image.quantize(8), "GIF"),
        encode(image, "GIF", save_all=True, append_images=[photo_like(40, 28, seed=1)]),
        encode(image, "WEBP"),
        encode(image, "WEBP", save_all=True, append_images=[photo_like(40, 28, seed=1)]),
        encode(image, "BMP"),
    ]


def test_mutated_files_are_images_or_refused(corpus_check, recwarn):
    files = sample_files()
    rng = random.Random(20)
    shapes, reasons = [], []
    for data in files:
        for _ in range(30):
            try:
                decoded = decode_image(corpus_check.mutate(data, rng.choice(files), rng), min_side_px=20)
            except BadImageError as error:
                reasons.append(error.reason)
            else:
                shapes.append((decoded.ndim, decoded.shape[2], decoded.dtype))
    assert set(shapes) == {(3, 3, np.dtype(np.uint8))}
    assert all(re.fullmatch(r"[^\n]{8,240}", reason) for reason in reasons)
    assert len(shapes) > 30  # both happen
    assert len(reasons) > 200
    assert not recwarn.list


def test_an_unforeseen_exception_of_a_decoder_is_a_bad_image(monkeypatch):
    def explode(*_: object) -> None:
        raise KeyError(-2)

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", explode)
    with pytest.raises(BadImageError, match="cannot decode this PNG: KeyError -2"):
        decode_image(encode(photo_like(8, 8), "PNG"))


def test_running_out_of_memory_is_a_bad_image(monkeypatch):
    def exhaust(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", exhaust)
    with pytest.raises(BadImageError, match="not enough memory"):
        decode_image(encode(photo_like(8, 8), "PNG"))


def test_warning_filters_survive_decoding_in_threads():
    before = list(warnings.filters)
    files = sample_files()
    results: list[int] = []

    def work() -> None:
        for data in files:
            results.append(decode_image(data).shape[1])

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [40] * 8 * len(files)
    assert list(warnings.filters) == before


def test_importing_the_package_does_not_import_torch():
    code = "import geoloc.images, sys; sys.exit('torch' in sys.modules or 'pillow_heif' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
