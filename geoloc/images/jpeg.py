"""Survey of a JPEG's segments before decoding: EXIF orientation and number of scans."""

import re
import struct
from collections.abc import Iterator

from geoloc.errors import BadImageError

ORIENTATION_TAG = 0x0112  # EXIF tag: rotation and mirroring of the stored pixels, 1 to 8
_XMP_ORIENTATION = re.compile(rb"tiff:Orientation(?:=\"|>)([1-8])")

_MARKER = re.compile(rb"\xff+([\x01-\xcf\xd8-\xfe])")  # neither stuffing, nor fill, nor restart markers
_APP1, _START_OF_SCAN, _END_OF_IMAGE = 0xE1, 0xDA, 0xD9
_SEQUENTIAL_FRAMES = (0xC0, 0xC1, 0xC9)
# A progressive JPEG has about ten scans. Each is a pass over the image, so a small file with many scans could
# take libjpeg hours.
_MAX_SCANS = 32


def survey_jpeg(data: bytes) -> int:
    """EXIF orientation of a JPEG, after a check of its number of scans.

    Raises:
        BadImageError: too many scans.
    """
    orientation, num_components = 1, 0
    for marker, segment, start in _segments(data):
        if marker == _APP1 and orientation == 1:
            if segment.startswith(b"Exif\x00\x00"):
                orientation = _exif_orientation(segment[6:])
            elif xmp := _XMP_ORIENTATION.search(segment):
                orientation = int(xmp[1])
        elif marker in _SEQUENTIAL_FRAMES:
            num_components = segment[5] if len(segment) > 5 else 0
        elif marker == _START_OF_SCAN:
            # A sequential scan of all components is the only one that libjpeg reads; otherwise they count.
            # The quick count may be too high: the same two bytes occur behind the image and in metadata.
            is_only_scan = segment[:1] == bytes([num_components])
            if not is_only_scan and data.count(b"\xff\xda", start) >= _MAX_SCANS:
                _check_scans(data)
            break
    return orientation


def _check_scans(data: bytes) -> None:
    if sum(marker == _START_OF_SCAN for marker, _, _ in _segments(data)) > _MAX_SCANS:
        raise BadImageError(f"JPEG with more than {_MAX_SCANS} scans")


def _segments(data: bytes) -> Iterator[tuple[int, bytes, int]]:
    """Marker, contents and end of each segment up to the end of the image; compressed pixels are skipped."""
    start = 2
    while match := _MARKER.search(data, start):
        marker, start = data[match.end() - 1], match.end()
        if marker == _END_OF_IMAGE:
            return
        if marker in (0x01, 0xD8):  # these markers have no length field
            continue
        length = int.from_bytes(data[start : start + 2], "big")
        contents, start = data[start + 2 : start + length], start + max(length, 2)
        yield marker, contents, start


def _exif_orientation(exif: bytes) -> int:
    """Orientation in the first directory of an EXIF block; 1 (upright) if missing or malformed."""
    order = {b"II*\x00": "<", b"MM\x00*": ">"}.get(exif[:4])
    if order is None:
        return 1
    try:
        (directory,) = struct.unpack_from(f"{order}I", exif, 4)
        (entries,) = struct.unpack_from(f"{order}H", exif, directory)
        for entry in range(directory + 2, directory + 2 + 12 * entries, 12):
            tag, _, _, value = struct.unpack_from(f"{order}HHIH", exif, entry)
            if tag == ORIENTATION_TAG:
                return int(value) if 1 <= value <= 8 else 1
    except struct.error:  # an offset points outside the block
        pass
    return 1
