"""Image decoding and preprocessing; importing loads NumPy and Pillow, not torch."""

from geoloc.images.decode import DEFAULT_LIMITS, ImageLimits, ImageSource, decode_image
from geoloc.images.exif import read_exif_heading_deg, read_exif_latlon_deg
from geoloc.images.preprocess import Preprocess, load_and_preprocess

__all__ = [
    "DEFAULT_LIMITS",
    "ImageLimits",
    "ImageSource",
    "Preprocess",
    "decode_image",
    "load_and_preprocess",
    "read_exif_heading_deg",
    "read_exif_latlon_deg",
]
