"""Errors of the quadtree package, and the root of geoloc's errors.

GeolocError
└── QuadtreeError(ValueError)
    ├── InvalidCoordinateError   a latitude out of range, or a value that is not finite
    ├── InvalidTreeError         cells that form no quadtree, or a file that was changed
    └── InvalidPointTableError   a CSV or Parquet file without the columns of coordinates
"""


class GeolocError(Exception):
    """Base class of all deliberate errors of quadtree and geoloc (`geoloc.errors` re-exports it)."""


class QuadtreeError(GeolocError, ValueError):
    """Base class of this package's errors."""


class InvalidCoordinateError(QuadtreeError):
    """A latitude is outside [-90, 90], or a coordinate is not finite."""


class InvalidTreeError(QuadtreeError):
    """Cells overlap, lie outside their root box or contradict their file."""


class InvalidPointTableError(QuadtreeError):
    """A table lacks the requested columns, has empty fields in them, or has an unknown format."""
