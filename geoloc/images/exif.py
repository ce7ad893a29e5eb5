"""GPS coordinates and heading from EXIF, as truth for evaluation; predictions may not use this module."""

import math
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image

from geoloc.errors import BadImageError
from geoloc.images.decode import open_header, quiet_pillow, read_image_bytes


def read_exif_latlon_deg(source: bytes | str | Path | Image.Image) -> tuple[float, float] | None:
    """GPS coordinates of a photo, latitude in [-90, 90] and longitude in [-180, 180) on WGS84, or None.

    None if the source is not an image, the EXIF is missing or malformed, a value is out of range, a hemisphere is
    missing, the receiver's status is void, or the coordinates are exactly (0, 0), which cameras write without a fix.
    """
    gps = _read_gps(source)
    latitude = _degrees(gps.get(ExifTags.GPS.GPSLatitude), 90.0)
    longitude = _degrees(gps.get(ExifTags.GPS.GPSLongitude), 180.0)
    south = {"N": False, "S": True}.get(_letter(gps.get(ExifTags.GPS.GPSLatitudeRef)))
    west = {"E": False, "W": True}.get(_letter(gps.get(ExifTags.GPS.GPSLongitudeRef)))
    if latitude is None or longitude is None or south is None or west is None:
        return None
    if _letter(gps.get(ExifTags.GPS.GPSStatus)) == "V" or latitude == longitude == 0:
        return None
    longitude = -longitude if west else longitude
    return (-latitude if south else latitude, -180.0 if longitude == 180.0 else longitude)


def read_exif_heading_deg(source: bytes | str | Path | Image.Image) -> float | None:
    """Heading of the camera, clockwise from true north in [0, 360), or None (also for magnetic north)."""
    gps = _read_gps(source)
    heading = _number(gps.get(ExifTags.GPS.GPSImgDirection))
    reference = _letter(gps.get(ExifTags.GPS.GPSImgDirectionRef, "T"))
    if heading is None or not 0 <= heading <= 360 or reference != "T":
        return None
    return heading % 360.0


def _read_gps(source: bytes | str | Path | Image.Image) -> dict[int, Any]:
    try:
        image = source if isinstance(source, Image.Image) else open_header(read_image_bytes(source))
        with quiet_pillow:
            return dict(image.getexif().get_ifd(ExifTags.IFD.GPSInfo))
    except BadImageError:
        return {}
    except Exception:  # Pillow parses EXIF without checks, and invalid EXIF may raise any exception
        return {}


def _degrees(value: Any, limit_deg: float) -> float | None:
    """Degrees, minutes and seconds (trailing ones may be missing) as degrees in [0, limit]."""
    parts = [_number(part) for part in value] if isinstance(value, tuple | list) else [_number(value)]
    if not 1 <= len(parts) <= 3 or any(part is None or part < 0 for part in parts):
        return None
    if any(part is not None and part > 60 for part in parts[1:]):  # exactly 60 results from rounding
        return None
    degrees = sum(part / 60**power for power, part in enumerate(parts) if part is not None)
    return degrees if degrees <= limit_deg else None


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError, ArithmeticError):
        return None
    return number if math.isfinite(number) else None


def _letter(value: Any) -> str:
    text = value.decode("ascii", "replace") if isinstance(value, bytes) else str(value or "")
    return text.strip("\x00 ")[:1].upper()
