"""Decode untrusted bytes to an RGB array; every failure is a `BadImageError` with its reason.

The format is recognised by the first bytes, and only known formats reach a decoder. JPEG goes through
libjpeg-turbo directly (simplejpeg), which can decode at a fraction of the size; everything else, and the few
kinds of JPEG that simplejpeg does not support, go through Pillow. Colour profiles are ignored, as in the pipelines
that trained the networks.
"""

import re
import stat
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, ImageFile, JpegImagePlugin, UnidentifiedImageError

from geoloc.errors import BadImageError
from geoloc.images.jpeg import ORIENTATION_TAG, survey_jpeg

ImageSource: TypeAlias = bytes | str | Path | Image.Image | NDArray[Any]


@dataclass(frozen=True)
class ImageLimits:
    """Limits on bytes and pixels of an image, checked before any pixel is decoded.

    Pillow has a limit of its own, about 179 million pixels, which stays in force for formats other than JPEG.
    """

    max_bytes: int = 64 * 2**20
    max_pixels: int = 64_000_000


DEFAULT_LIMITS = ImageLimits()

# Suffixes of image files; the format itself is recognised by the first bytes.
IMAGE_SUFFIXES = (
    ".bmp",
    ".gif",
    ".heic",
    ".heif",
    ".jfif",
    ".jpe",
    ".jpeg",
    ".jpg",
    ".png",
    ".tif",
    ".tiff",
    ".webp",
)

_SIGNATURES = {
    "JPEG": re.compile(rb"\xff\xd8\xff"),
    "PNG": re.compile(rb"\x89PNG\r\n\x1a\n"),
    "GIF": re.compile(rb"GIF8[79]a"),
    "WEBP": re.compile(rb"RIFF....WEBP", re.DOTALL),
    "TIFF": re.compile(rb"II[*+]\x00|MM\x00[*+]"),
    "BMP": re.compile(rb"BM"),
    "HEIF": re.compile(rb"....ftyp(?:hei[cmsx]|hev[cmsx]|mif1|msf1)", re.DOTALL),
}

# Pixels are converted in strips, because copies of a large picture in several modes would need too much memory.
_STRIP_ROWS = 256

# libjpeg's warnings about blocks that are missing or cannot be right. Many bytes left over at the end are
# such a sign too: a flipped bit shifts all that follows. Up to 16 are the padding of some cameras, and those
# between header segments or before a restart marker do no harm beyond their place.
_JPEG_DAMAGE = re.compile(
    r"premature end of data|bad huffman|bad arithmetic|found marker"
    r"|(?:1[7-9]|[2-9]\d|\d{3,}) extraneous bytes before marker 0xd9",
    re.IGNORECASE,
)


def decode_image(
    source: ImageSource, *, limits: ImageLimits = DEFAULT_LIMITS, min_side_px: int | None = None
) -> NDArray[np.uint8]:
    """Decode an image as a photo viewer shows it: (height, width, 3) uint8, RGB.

    Formats: JPEG, PNG, WebP, TIFF, GIF, BMP, and HEIF with the extra `heif`. The EXIF orientation is applied.
    Transparency is laid over white; of an animation or a multi-page file the first frame counts. Samples
    deeper than 8 bits are scaled, never clipped: 16-bit ones by 255/65535; floats and 32-bit integers, which
    declare no range, by the least of 1 (floats only), 255 and 65535 that holds them all, and where none does,
    or a sample is negative, their minimum..maximum becomes 0..255; NaN and infinity are black. A truncated or
    damaged JPEG is rejected, never padded with grey.

    Args:
        source: encoded bytes, a path, a Pillow image, or an array (h, w), (h, w, 1), (h, w, 3) or (h, w, 4).
        limits: maximum bytes and pixels.
        min_side_px: a JPEG is decoded at 1/2, 1/4 or 1/8 of its size as long as its shorter side keeps this
            many pixels. For callers who downscale the image afterwards: with twice the final size the mean
            error is 0.25 to 0.4 of 255 grey levels. None decodes in full.

    Raises:
        BadImageError: for every failure, a missing file included.
    """
    try:
        if isinstance(source, np.ndarray):
            return _rgb_from_array(source, limits)
        if isinstance(source, Image.Image):
            return _rgb_from_pillow(source, limits)
        return _rgb_from_bytes(read_image_bytes(source, limits), limits, min_side_px or 0)
    except BadImageError:
        raise
    except MemoryError as error:
        raise BadImageError("not enough memory to decode this image") from error
    except Exception as error:
        raise BadImageError(f"cannot be decoded: {_one_line(error)}") from error


def read_image_bytes(source: bytes | str | Path, limits: ImageLimits = DEFAULT_LIMITS) -> bytes:
    """The encoded bytes of a source, at most `limits.max_bytes` of them.

    Raises:
        BadImageError: no such file, not a regular file, unreadable, empty or too large.
    """
    if isinstance(source, bytes):
        data = source
    elif isinstance(source, str | Path):
        data = _read_file(Path(source), limits)
    else:
        raise BadImageError(
            f"an image is given as bytes, a path, a Pillow image or an array, not as {type(source).__name__}"
        )
    if len(data) > limits.max_bytes:
        raise _too_many_bytes(len(data), limits)
    if not data:
        raise BadImageError("no data: the file is empty")
    return data


def _read_file(path: Path, limits: ImageLimits) -> bytes:
    try:
        status = path.stat()
        is_regular = stat.S_ISREG(status.st_mode)
        if is_regular and status.st_size <= limits.max_bytes:
            with path.open("rb") as file:
                return file.read(status.st_size)
    except FileNotFoundError as error:
        raise BadImageError("file not found") from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise BadImageError(f"file cannot be read: {reason}") from error
    if not is_regular:  # a pipe or a device could block forever
        raise BadImageError("not a file but a folder, a pipe or a device")
    raise _too_many_bytes(status.st_size, limits)


def _too_many_bytes(num_bytes: int, limits: ImageLimits) -> BadImageError:
    return BadImageError(f"too many bytes: {num_bytes:,} exceed the limit of {limits.max_bytes:,}")


def open_header(data: bytes) -> Image.Image:
    """A Pillow image over encoded bytes with its header read and its pixels not yet decoded.

    Raises:
        BadImageError: an unknown format, or an invalid header.
    """
    format_name = _recognise(data)
    opener = _heif_opener() if format_name == "HEIF" else partial(Image.open, formats=[format_name])
    try:
        with quiet_pillow:
            return opener(BytesIO(data))
    except (UnidentifiedImageError, SyntaxError, EOFError) as error:
        raise BadImageError(f"cannot decode this {format_name}: its header is invalid") from error
    except Image.DecompressionBombError as error:
        raise BadImageError(f"too many pixels: {_one_line(error)}") from error
    except (OSError, ValueError) as error:
        raise BadImageError(f"cannot decode this {format_name}: {_one_line(error)}") from error


def _recognise(data: bytes) -> str:
    for format_name, signature in _SIGNATURES.items():
        if signature.match(data):
            return format_name
    raise BadImageError("not a JPEG, PNG, WebP, TIFF, GIF, BMP or HEIF image")


def _heif_opener() -> Callable[[BytesIO], Image.Image]:
    try:
        from pillow_heif import HeifImageFile
    except ImportError as error:
        raise BadImageError(
            "reading HEIF needs an optional package: pip install 'geoloc-vision[heif]'"
        ) from error
    opener: Callable[[BytesIO], Image.Image] = HeifImageFile  # turns the pixels and resets the orientation
    return opener


class _QuietPillow:
    """A context that silences Pillow's warnings: relevant ones become a `BadImageError` elsewhere.

    Python's warning filters are global to the process, so concurrent threads share one change of them: the first
    thread to enter makes it, and the last one to leave reverts it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._num_inside = 0
        self._filters = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            if self._num_inside == 0:
                self._filters = warnings.catch_warnings()
                self._filters.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL\.|pillow_heif")
            self._num_inside += 1

    def __exit__(self, *exception: object) -> None:
        with self._lock:
            self._num_inside -= 1
            if self._num_inside == 0:
                self._filters.__exit__(None, None, None)


quiet_pillow = _QuietPillow()


def _rgb_from_bytes(data: bytes, limits: ImageLimits, min_side_px: int) -> NDArray[np.uint8]:
    format_name = _recognise(data)
    if format_name == "JPEG":
        rgb = _rgb_from_jpeg(data, limits, min_side_px)
        if rgb is not None:
            return rgb
    with open_header(data) as image:
        try:
            return _rgb_from_pillow(image, limits)
        except (BadImageError, MemoryError):
            raise
        except Exception as error:  # decoders of untrusted bytes may raise any exception
            if isinstance(image, JpegImagePlugin.JpegImageFile) and "truncated" in str(error):
                raise BadImageError(_describe_truncated_jpeg(image, len(data))) from error
            raise BadImageError(f"cannot decode this {format_name}: {_one_line(error)}") from error


def _rgb_from_jpeg(data: bytes, limits: ImageLimits, min_side_px: int) -> NDArray[np.uint8] | None:
    """Decode with libjpeg-turbo; None if Pillow has to decode it."""
    orientation = survey_jpeg(data)
    try:
        header = simplejpeg.decode_jpeg_header(data, strict=False)
    except (ValueError, KeyError):  # KeyError: a colour space that simplejpeg does not know
        return None
    height, width, colours = int(header[0]), int(header[1]), header[2]
    _check_pixels(width, height, limits)
    eighths = _eighths_to_decode(min(height, width), min_side_px)
    is_cmyk = colours in ("CMYK", "YCCK")
    try:
        samples = simplejpeg.decode_jpeg(
            data,
            "CMYK" if is_cmyk else "RGB",
            min_height=-(-height * eighths // 8),
            min_width=-(-width * eighths // 8),
        )
    except ValueError as error:
        if _JPEG_DAMAGE.search(str(error)):
            raise BadImageError(f"damaged JPEG: {_one_line(error)}") from error
        return None  # truncated (Pillow reports where), or a kind of JPEG that simplejpeg does not support
    if is_cmyk:  # four-colour JPEGs are stored inverted, as Adobe's software writes them
        samples = _rgb_from_loaded(Image.fromarray(np.invert(samples, out=samples), "CMYK"))
    return _turn(samples, orientation)


def _eighths_to_decode(shorter_px: int, min_side_px: int) -> int:
    """The scale of a decode, in eighths: the least power of two that keeps `min_side_px`.

    libjpeg-turbo has vector code only for these: 5/8 is slower than full size, and 3/8 slower than 1/2.
    """
    return next((eighths for eighths in (1, 2, 4) if -(-shorter_px * eighths // 8) >= min_side_px > 0), 8)


def _describe_truncated_jpeg(image: ImageFile.ImageFile, num_bytes: int) -> str:
    """Which part of a truncated JPEG was decoded, after Pillow failed to load it."""
    # After the failure the decoded rows are accessible; the remaining rows are black.
    image.tile = []
    rows = np.flatnonzero(np.asarray(image).reshape(image.height, -1).any(axis=1))
    where = f"after {rows[-1] + 1} of {image.height} rows" if len(rows) else "before any row is complete"
    return f"truncated JPEG: it ends at byte {num_bytes:,}, {where}"


def _rgb_from_pillow(image: Image.Image, limits: ImageLimits) -> NDArray[np.uint8]:
    _check_pixels(*image.size, limits)
    with quiet_pillow:
        image.load()  # before the EXIF is read: Pillow rotates a TIFF while loading
        try:
            orientation = image.getexif().get(ORIENTATION_TAG, 1)
        except Exception:  # invalid EXIF does not make the pixels invalid
            orientation = 1
        return _turn(_rgb_from_loaded(image), orientation)


def _rgb_from_loaded(image: Image.Image) -> NDArray[np.uint8]:
    if image.mode == "F" or image.mode.startswith("I"):
        image = Image.fromarray(_as_uint8(np.asarray(image)))
    rgb = np.empty((image.height, image.width, 3), np.uint8)
    for top in range(0, image.height, _STRIP_ROWS):
        bottom = min(top + _STRIP_ROWS, image.height)
        rgb[top:bottom] = np.asarray(_flatten(image.crop((0, top, image.width, bottom))))
    return rgb


def _flatten(image: Image.Image) -> Image.Image:
    """An 8-bit image of any mode as RGB, over white where it is transparent."""
    if not image.has_transparency_data:
        return image.convert("RGB")
    if image.mode == "La":  # Pillow has no direct conversion
        image = image.convert("LA")
    rgba = image.convert("RGBA")
    flat = Image.new("RGB", rgba.size, "white")
    flat.paste(rgba, mask=rgba.getchannel("A"))
    return flat


def _rgb_from_array(array: NDArray[Any], limits: ImageLimits) -> NDArray[np.uint8]:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim != 2 and not (array.ndim == 3 and array.shape[2] in (3, 4)):
        raise BadImageError(
            f"an array of shape {array.shape} is not (h, w), (h, w, 1), (h, w, 3) or (h, w, 4)"
        )
    _check_pixels(array.shape[1], array.shape[0], limits)
    return _rgb_from_loaded(Image.fromarray(np.ascontiguousarray(_as_uint8(array))))


def _as_uint8(samples: NDArray[Any]) -> NDArray[np.uint8]:
    """Samples of any depth on the scale 0..255; `decode_image` states the rule."""
    kind = samples.dtype.kind
    if samples.dtype == np.uint8:
        return samples
    if kind == "b":
        return samples * np.uint8(255)
    if kind not in "iuf":
        raise BadImageError(f"samples of type {samples.dtype} are not grey levels")
    is_finite = np.isfinite(samples)
    if not is_finite.any():
        raise BadImageError("no sample is a finite number")
    any_finite = samples.flat[is_finite.argmax()]
    low = float(samples.min(where=is_finite, initial=any_finite))
    high = float(samples.max(where=is_finite, initial=any_finite))
    if kind == "u" and samples.dtype.itemsize == 2:
        low, high = 0.0, 65535.0
    elif low >= 0 and high <= 65535:
        scales = (1.0, 255.0, 65535.0) if kind == "f" else (255.0, 65535.0)
        low, high = 0.0, next(scale for scale in scales if high <= scale)
    levels = np.empty(samples.shape, np.uint8)
    for top in range(0, len(samples), _STRIP_ROWS):
        strip = samples[top : top + _STRIP_ROWS].astype(np.float64)
        with np.errstate(over="ignore", invalid="ignore"):
            strip = np.rint((strip - low) * (255.0 / ((high - low) or 1.0)))
        strip[~np.isfinite(strip)] = 0.0
        levels[top : top + _STRIP_ROWS] = strip
    return levels


def _check_pixels(width: int, height: int, limits: ImageLimits) -> None:
    if width < 1 or height < 1:
        raise BadImageError(f"no pixels: {width} x {height}")
    if width * height > limits.max_pixels:
        raise BadImageError(f"too many pixels: {width} x {height} exceed the limit of {limits.max_pixels:,}")


def _turn(stored: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Pixels rotated according to the EXIF orientation; unknown values leave them unchanged."""
    if orientation in (5, 6, 7, 8):
        stored = stored.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        stored = stored[::-1]
    if orientation in (2, 3, 6, 7):
        stored = stored[:, ::-1]
    return np.ascontiguousarray(stored)


def _one_line(error: BaseException) -> str:
    """An exception's message on one line, with its type if the message alone is unclear."""
    message = " ".join(str(error).split())[:160]
    if message and isinstance(error, OSError | ValueError | SyntaxError | Image.DecompressionBombError):
        return message
    return f"{type(error).__name__} {message}".rstrip()
