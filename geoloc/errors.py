"""Every exception that geoloc raises on purpose.

GeolocError
├── BadImageError              bytes that are no usable image; carries the reason
├── ConfigError                a configuration with an unknown key or an impossible value
├── IntegrityError             a file differs from what its manifest promises
├── CheckpointError            a model folder that cannot become a model
├── FingerprintMismatchError   two artefacts were made with different quadtrees or models
├── JobError                   shards of a long job that failed; the others are done
├── OutputMismatchError        an existing output does not belong to the job that wants to continue it
├── BadTableError              a CSV or Parquet file that is no table of points; names the line
├── NotFoundError              a name, file or folder that does not exist where we looked
└── MissingDependencyError     an optional package is needed; the message has the install line

The quadtree package stands alone and has its own small tree in `quadtree.errors`.
"""


class GeolocError(Exception):
    """Base class: `except GeolocError` catches every deliberate failure of this package."""


class BadImageError(GeolocError, ValueError):
    """Bytes that cannot be decoded into an image within the limits.

    Attributes:
        reason: one line for a table cell, without the path.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class ConfigError(GeolocError, ValueError):
    """A configuration with an unknown key, a missing key or an impossible value."""


class IntegrityError(GeolocError):
    """A file is missing, or its size or sha256 differs from the manifest beside it."""


class CheckpointError(GeolocError):
    """A model folder that cannot be loaded: schema, tensors or shapes do not fit."""


class FingerprintMismatchError(GeolocError):
    """Two artefacts that must share a quadtree or a model do not."""


class JobError(GeolocError):
    """Shards of a long job failed, or are not done; what was done is kept."""


class OutputMismatchError(GeolocError):
    """An existing output file or its journal belongs to another job."""


class BadTableError(GeolocError, ValueError):
    """A table that cannot be read as one of points: a broken line, a missing column, text for a number."""


class NotFoundError(GeolocError, LookupError):
    """A name, file or folder does not exist where it was looked for."""


class MissingDependencyError(GeolocError, ImportError):
    """An optional dependency is missing; the message has the line that installs it."""
