"""Errors of geoloc.

GeolocError
├── BadImageError              bytes that are no usable image, with the reason
├── BadTableError              a CSV or Parquet file that is no valid table of points
├── CheckpointError            a model folder that cannot be loaded
├── ConfigError                an unknown option or an invalid value
├── FingerprintMismatchError   two artefacts made with different quadtrees or models
├── IntegrityError             a file that differs from its manifest
├── JobError                   failed shards of a job
├── MissingDependencyError     an optional package is not installed
├── NotFoundError              a name, file or folder does not exist
├── OutputMismatchError        an existing output belongs to another job
└── QuadtreeError              errors of the quadtree package (`quadtree.errors`)

`quadtree` may not import geoloc, so the root class is defined there.
"""

from quadtree.errors import GeolocError, QuadtreeError

__all__ = [
    "BadImageError",
    "BadTableError",
    "CheckpointError",
    "ConfigError",
    "FingerprintMismatchError",
    "GeolocError",
    "IntegrityError",
    "JobError",
    "MissingDependencyError",
    "NotFoundError",
    "OutputMismatchError",
    "QuadtreeError",
]


class BadImageError(GeolocError, ValueError):
    """Bytes that cannot be decoded into an image within the limits.

    Attributes:
        reason: one line, without the path.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class ConfigError(GeolocError, ValueError):
    """An unknown or missing option, or an invalid value."""


class IntegrityError(GeolocError):
    """A file is missing, or its size or sha256 differs from the manifest beside it."""


class CheckpointError(GeolocError):
    """A model folder has an invalid schema, tensor or shape."""


class FingerprintMismatchError(GeolocError):
    """Two artefacts were made with different quadtrees or models."""


class JobError(GeolocError):
    """Shards of a job failed or are not done; the finished shards are kept."""


class OutputMismatchError(GeolocError):
    """An existing output file or its journal belongs to another job."""


class BadTableError(GeolocError, ValueError):
    """A table has a malformed line, a missing column, or text where a number is expected."""


class NotFoundError(GeolocError, LookupError):
    """A name, file or folder does not exist."""


class MissingDependencyError(GeolocError, ImportError):
    """An optional package is not installed; the message has the install command."""
