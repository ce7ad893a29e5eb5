"""Every exception that this package raises on purpose; it stands alone, apart from geoloc's own tree.

QuadtreeError(ValueError)
├── InvalidCoordinateError   a latitude or longitude that is no place on Earth
├── InvalidTreeError         a leaf table that does not form a quadtree, or a file that was changed
└── InvalidPointTableError   a CSV or Parquet file that is no table of points
"""


class QuadtreeError(ValueError):
    """Base class: `except QuadtreeError` catches every deliberate failure of this package."""


class InvalidCoordinateError(QuadtreeError):
    """A latitude outside [-90, 90], or a coordinate that is not finite."""


class InvalidTreeError(QuadtreeError):
    """Cells that overlap, lie outside of their root box or contradict the file they came in."""


class InvalidPointTableError(QuadtreeError):
    """A file without the asked columns, with empty fields in them, or of an unknown format."""
