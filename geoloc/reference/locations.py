"""Location references: embeddings of coordinates alone, by a location encoder such as GeoCLIP's.

GeoCLIP (Vivanco Cepeda et al., 2023) compares a photo with a gallery of coordinates, each turned into a vector by
its location encoder. Such a gallery is rows of the source "location".
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray

from geoloc.errors import ConfigError
from geoloc.photos.metadata import read_metadata
from geoloc.reference.build import Embedded, Progress
from geoloc.reference.rows import ReferenceRows
from quadtree.sphere import validate_latlon_deg

LocationEncoder = Callable[[NDArray[np.float64]], Any]  # (n, 2) degrees -> (n, dim), an array or a tensor

LOCATIONS_PER_SHARD: Final = 2**16
_ENCODED_AT_ONCE: Final = 4096


@dataclass(frozen=True)
class LocationReferences:
    """Coordinates with their vectors or an encoder; vectors are normalised to unit length.

    Attributes:
        latlon_deg: (n, 2).
        vectors: (n, dim), or an encoder of coordinates.
        keys: n names; None numbers them.
        provenance: of all rows.
        licence: of all rows.

    Raises:
        ConfigError: the numbers of coordinates, vectors and keys differ, or there are none.
        InvalidCoordinateError: a coordinate is not on Earth.
    """

    latlon_deg: NDArray[np.float64]
    vectors: NDArray[Any] | LocationEncoder
    keys: Sequence[str] | None = None
    provenance: str = ""
    licence: str = ""

    def __post_init__(self) -> None:
        latlon = validate_latlon_deg(self.latlon_deg)
        if latlon.ndim != 2 or not len(latlon):
            raise ConfigError(f"locations are (n, 2) coordinates, at least one; found {latlon.shape}")
        object.__setattr__(self, "latlon_deg", latlon)
        given = {"vectors": None if callable(self.vectors) else len(self.vectors)}
        given["keys"] = None if self.keys is None else len(self.keys)
        for name, number in given.items():
            if number not in (None, len(latlon)):
                raise ConfigError(f"there are {len(latlon)} locations and {number} {name}: give one for each")

    def facts(self) -> dict[str, Any]:
        """Plain JSON values that decide the rows."""
        digest = hashlib.sha256(np.ascontiguousarray(self.latlon_deg).tobytes())
        for key in self.keys or ():
            digest.update(key.encode() + b"\n")
        if not callable(self.vectors):
            digest.update(np.ascontiguousarray(self.vectors).tobytes())
        return {
            "locations_sha256": digest.hexdigest(),
            "provenance": self.provenance,
            "licence": self.licence,
        }

    def shards(self) -> Iterator[range]:
        """Indices of the locations of each shard."""
        for start in range(0, len(self.latlon_deg), LOCATIONS_PER_SHARD):
            yield range(start, min(start + LOCATIONS_PER_SHARD, len(self.latlon_deg)))

    def embed(self, shard: range, progress: Progress) -> Embedded:
        """The rows of a shard."""
        latlon_deg = self.latlon_deg[shard.start : shard.stop]
        if callable(self.vectors):
            starts = range(0, len(latlon_deg), _ENCODED_AT_ONCE)
            parts = [_array(self.vectors(latlon_deg[s : s + _ENCODED_AT_ONCE])) for s in starts]
            vectors = np.concatenate(parts)
        else:
            vectors = _array(self.vectors[shard.start : shard.stop])
        lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
        if vectors.ndim != 2 or len(vectors) != len(latlon_deg) or not (lengths > 0).all():
            raise ConfigError(
                f"locations need vectors ({len(latlon_deg)}, dim), none of them zero; found {vectors.shape}"
            )
        keys = self.keys[shard.start : shard.stop] if self.keys is not None else list(map(str, shard))
        rows = ReferenceRows(
            latlon_deg, source="location", key=list(keys), provenance=self.provenance, licence=self.licence
        )
        progress(len(shard))
        return Embedded(rows, (vectors / lengths).astype(np.float32), len(shard))


def read_locations(
    path: str | Path,
) -> tuple[NDArray[np.float64], NDArray[np.float32] | None, list[str] | None]:
    """Coordinates, vectors and keys in a table with the columns latitude, longitude and optionally embedding, id.

    Args:
        path: .parquet, with lists of numbers in `embedding`; or .csv, without.

    Raises:
        NotFoundError: there is no such file.
        ConfigError: it cannot be read, or lacks a column.
    """
    known = read_metadata(path, with_id=False)
    latlon_deg = np.stack([_column(known[name], path) for name in ("latitude", "longitude")], -1)
    vectors = None
    if Path(path).suffix.lower() == ".parquet" and "embedding" in pq.read_schema(path).names:
        lists = pq.read_table(path, columns=["embedding"])["embedding"].to_pylist()
        try:
            vectors = np.array(lists, np.float32)
        except (TypeError, ValueError):
            raise ConfigError(f"{path} has embeddings of different lengths, or none in some rows") from None
    keys = known.get("id")
    return latlon_deg, vectors, None if keys is None else [str(key) for key in keys]


def _column(values: list[Any], path: str | Path) -> NDArray[np.float64]:
    try:
        return np.array(values, np.float64)
    except (TypeError, ValueError):
        raise ConfigError(f"{path} has coordinates that are not numbers") from None


def _array(values: Any) -> NDArray[np.float32]:
    detached = values.detach().cpu() if hasattr(values, "detach") else values
    array: ArrayLike = np.asarray(detached, np.float32)
    return np.asarray(array)
