"""Rows of a reference database: the data of each reference besides its embedding.

On disk they are a Parquet table with the columns of `SCHEMA`:

    row_id        int64, given by the database, unique in it and never reused
    latitude      float64, degrees in [-90, 90]
    longitude     float64, degrees in [-180, 180)
    morton        uint64, Z-order code of depth 24 with the whole Earth as the root (`quadtree.morton`)
    source        aerial | street | location
    key           name of the reference for its builder: a tile, a path, a frame
    gsd_m_per_px  float64, ground resolution of an aerial image; the finest if several were embedded jointly
    heading_deg   float64, clockwise from true north in [0, 360), of a street photo
    provenance    where the image comes from
    licence       under which it may be used

The two physical columns are null where they are unknown, the strings are empty.
"""

from collections.abc import Sequence
from typing import Any, Final, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from geoloc.errors import ConfigError
from quadtree import validate_latlon_deg
from quadtree.morton import encode

Source = Literal["aerial", "street", "location"]

SOURCES: Final = ("aerial", "street", "location")  # their numbers are the indices here

SCHEMA: Final = pa.schema(
    [
        pa.field("row_id", pa.int64(), nullable=False),
        pa.field("latitude", pa.float64(), nullable=False),
        pa.field("longitude", pa.float64(), nullable=False),
        pa.field("morton", pa.uint64(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("key", pa.string(), nullable=False),
        pa.field("gsd_m_per_px", pa.float64()),
        pa.field("heading_deg", pa.float64()),
        pa.field("provenance", pa.string(), nullable=False),
        pa.field("licence", pa.string(), nullable=False),
    ]
)


class ReferenceRows:
    """n references without their vectors; a string or number that all of them share is given once.

    Args:
        latlon_deg: (n, 2); longitudes are wrapped to [-180, 180).
        source: "aerial", "street" or "location", one for all or n.
        key: n strings, not necessarily unique: twelve views of one panorama may share its name.
        gsd_m_per_px: (n,) or () positive, NaN where unknown; None if all are.
        heading_deg: (n,) or () degrees, any turn, NaN where unknown; None if all are.
        provenance: one for all or n.
        licence: one for all or n; an SPDX identifier where there is one.

    Raises:
        InvalidCoordinateError: a latitude is outside [-90, 90] or a coordinate is not finite.
        ConfigError: a column has another length than n, or a value that it cannot have.

    >>> rows = ReferenceRows([[42.36, -71.06], [42.37, 288.95]], source="street", key=["a.jpg", "b.jpg"])
    >>> len(rows), rows.latlon_deg[1].round(2).tolist()
    (2, [42.37, -71.05])
    """

    def __init__(
        self,
        latlon_deg: ArrayLike,
        *,
        source: Source | Sequence[Source],
        key: Sequence[str],
        gsd_m_per_px: ArrayLike | None = None,
        heading_deg: ArrayLike | None = None,
        provenance: str | Sequence[str] = "",
        licence: str | Sequence[str] = "",
    ) -> None:
        self.latlon_deg: NDArray[np.float64] = validate_latlon_deg(latlon_deg)
        if self.latlon_deg.ndim != 2:
            raise ConfigError(f"latlon_deg of rows must have shape (n, 2); found {self.latlon_deg.shape}")
        num_rows = len(self.latlon_deg)
        sources = _texts("source", source, num_rows)
        if strange := sorted(set(sources) - set(SOURCES)):
            raise ConfigError(f"source is {strange[0]!r}; it must be one of {', '.join(SOURCES)}")
        if isinstance(key, str):
            raise ConfigError(f"key is the single string {key!r}; give a list with one key for each row")
        gsd = _numbers("gsd_m_per_px", gsd_m_per_px, num_rows)
        if (gsd <= 0).any():
            raise ConfigError(f"gsd_m_per_px must be positive, or NaN where unknown; found {np.nanmin(gsd)}")
        heading = _numbers("heading_deg", heading_deg, num_rows) % 360.0
        heading[heading == 360.0] = 0.0  # a tiny negative angle rounds up to a whole turn
        self._columns: Any = pa.table(
            {
                "source": pa.array(sources, pa.string()),
                "key": pa.array(_texts("key", key, num_rows), pa.string()),
                "gsd_m_per_px": pa.array(gsd, from_pandas=True),
                "heading_deg": pa.array(heading, from_pandas=True),
                "provenance": pa.array(_texts("provenance", provenance, num_rows), pa.string()),
                "licence": pa.array(_texts("licence", licence, num_rows), pa.string()),
            }
        )

    def __len__(self) -> int:
        return len(self.latlon_deg)

    def to_table(self, start: int, stop: int, *, first_row_id: int) -> Any:
        """Rows `start` to `stop` as a pyarrow Table of `SCHEMA`; row `start` gets the id `first_row_id`."""
        latlon_deg = self.latlon_deg[start:stop]
        columns = self._columns.slice(start, len(latlon_deg))
        named = {
            "row_id": np.arange(first_row_id, first_row_id + len(latlon_deg)),
            "latitude": np.ascontiguousarray(latlon_deg[:, 0]),
            "longitude": np.ascontiguousarray(latlon_deg[:, 1]),
            "morton": encode(latlon_deg).astype(np.uint64),
            **{name: columns[name] for name in columns.column_names},
        }
        return pa.table([named[name] for name in SCHEMA.names], schema=SCHEMA)


def _texts(name: str, value: str | Sequence[str], num_rows: int) -> list[str]:
    texts = [value] * num_rows if isinstance(value, str) else list(value)
    if len(texts) != num_rows:
        raise ConfigError(f"{name} has {len(texts)} values, and latlon_deg {num_rows} rows")
    for text in texts:
        if not isinstance(text, str):
            raise ConfigError(f"{name} must be strings; found {text!r}")
    return texts


def _numbers(name: str, value: ArrayLike | None, num_rows: int) -> NDArray[np.float64]:
    numbers = np.asarray(np.nan if value is None else value, dtype=np.float64)
    if numbers.shape not in ((), (num_rows,)):
        raise ConfigError(f"{name} has shape {numbers.shape}, and latlon_deg {num_rows} rows")
    if np.isinf(numbers).any():
        raise ConfigError(f"{name} must be finite, or NaN where unknown")
    return np.array(np.broadcast_to(numbers, num_rows))
