"""Photos with positions: a folder with a table, a folder with EXIF, webdataset tars, or a data set's samples.

    photos = open_photos("photos/", "photos.csv")
    photos[0]       Photo(key="a.jpg", data=b"…", latlon_deg=(42.36, -71.06), heading_deg=90.0, …)

A table is CSV or Parquet with the columns `id` (the file below the folder), `latitude`, `longitude`, and where they are
known `heading_deg`, `provenance` (or `source`) and `licence` (or `license`). Tars are those of webdataset: members that
share a name up to the first dot are a sample, of an image and a JSON object with the same keys as the table. Where no
position is given, it is read from the photo's EXIF.
"""

import hashlib
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from geoloc.errors import BadImageError, ConfigError, IntegrityError, NotFoundError
from geoloc.files import safe_join
from geoloc.images import read_exif_heading_deg, read_exif_latlon_deg
from geoloc.images.decode import read_image_bytes
from geoloc.photos.encoded import EncodedImage, tar_samples
from geoloc.photos.find import find_images
from geoloc.photos.metadata import field_names, number_or_none, position_of, read_metadata

_MAX_JSON_BYTES: Final = 2**20


@dataclass(frozen=True)
class Photo:
    """A photo that can be a reference.

    Attributes:
        key: name of the photo.
        data: encoded bytes.
        latlon_deg: its position.
        heading_deg: direction of the view, NaN where unknown.
        provenance: where it comes from.
        licence: under which it may be used.
    """

    key: str
    data: bytes
    latlon_deg: tuple[float, float]
    heading_deg: float
    provenance: str
    licence: str


class Photos(ABC):
    """A list of photos, each read on access.

    Attributes:
        keys: names of the photos, in order.
    """

    keys: Sequence[str]

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, number: int) -> Photo:
        """Read a photo.

        Raises:
            BadImageError: it cannot be read, or has no position; the reason says which.
        """
        data, known = self._read(number)
        latlon_deg = position_of(known)
        heading_deg = number_or_none(known.get("heading_deg"))
        if latlon_deg is None:
            latlon_deg = read_exif_latlon_deg(data)
            if latlon_deg is None:
                raise BadImageError("no position: neither in the metadata nor in the photo's EXIF")
        if heading_deg is None:
            heading_deg = read_exif_heading_deg(data)
        return Photo(
            self.keys[number],
            data,
            latlon_deg,
            math.nan if heading_deg is None else heading_deg,
            *(str(known.get(name) or "") for name in ("provenance", "licence")),
        )

    @abstractmethod
    def _read(self, number: int) -> tuple[bytes, Mapping[str, Any]]:
        """Encoded bytes and metadata of a photo, the latter under the names of `FIELDS`."""

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """Plain JSON values that identify the list."""


class FolderPhotos(Photos):
    """The images in a folder and below it; positions come from their EXIF.

    Raises:
        NotFoundError: there is no such folder, or no image in it.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise NotFoundError(f"there is no folder of photos {self.folder}: check the path")
        self._images = find_images([str(self.folder)])
        self.keys = [image.id for image in self._images]

    def _read(self, number: int) -> tuple[bytes, Mapping[str, Any]]:
        return read_image_bytes(self._images[number].path), {}

    def facts(self) -> dict[str, Any]:  # noqa: D102  as in the base class
        return {"keys_sha256": _digest(self.keys)}


class TablePhotos(Photos):
    """Photos in a folder that a table lists with their positions.

    Args:
        folder: that the table's ids are relative to.
        table: .csv or .parquet.
        columns: name of a field -> its name in the table, where the two differ.

    Raises:
        NotFoundError: there is no such folder or file.
        ConfigError: the table cannot be read, lacks a column or has no rows.
    """

    def __init__(
        self, folder: str | Path, table: str | Path, columns: Mapping[str, str] | None = None
    ) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise NotFoundError(f"there is no folder of photos {self.folder}: check the path")
        self._known = read_metadata(table, columns)
        self.keys = self._known["id"]

    def _read(self, number: int) -> tuple[bytes, Mapping[str, Any]]:
        try:
            path = safe_join(self.folder, self.keys[number])
        except (IntegrityError, ValueError):
            raise BadImageError("its id leads out of the folder") from None
        return read_image_bytes(path), {name: column[number] for name, column in self._known.items()}

    def facts(self) -> dict[str, Any]:  # noqa: D102
        return {"metadata_sha256": _digest(json.dumps(self._known, sort_keys=True).splitlines())}


class TarPhotos(Photos):
    """Samples in uncompressed tars, as webdataset writes them.

    Args:
        paths: of the tars, in order.
        table: metadata of the samples by their keys; None takes the JSON of each sample.
        columns: name of a field -> its name in the table or JSON, where the two differ.

    Raises:
        NotFoundError: there is no such file.
        ConfigError: one is not an uncompressed tar, or there is no image in them.
    """

    def __init__(
        self,
        paths: Sequence[str | Path],
        table: str | Path | None = None,
        columns: Mapping[str, str] | None = None,
    ) -> None:
        self._names = field_names(columns)
        self._samples = [sample for path in paths for sample in tar_samples(path)]
        self.keys = [sample.key for sample in self._samples]
        if not self.keys:
            raise ConfigError(f"there is no image in {', '.join(map(str, paths))}")
        self._table: dict[str, dict[str, Any]] | None = None
        if table is not None:
            known = read_metadata(table, columns)
            rows = zip(*known.values(), strict=True)
            self._table = {str(row[0]): dict(zip(known, row, strict=True)) for row in rows}

    def _read(self, number: int) -> tuple[bytes, Mapping[str, Any]]:
        sample = self._samples[number]
        known: Mapping[str, Any] = {}
        if self._table is not None:
            known = self._table.get(self.keys[number], {})
        elif sample.about is not None:
            known = self._fields(sample.about.read(_MAX_JSON_BYTES))
        return sample.picture.read(), known

    def _fields(self, data: bytes) -> Mapping[str, Any]:
        try:
            values = json.loads(data)
        except (ValueError, RecursionError):
            raise BadImageError("its JSON is invalid") from None
        if not isinstance(values, dict):
            raise BadImageError("its JSON is not an object")
        return {
            ours: next((values[name] for name in names if name in values), None)
            for ours, names in self._names.items()
        }

    def facts(self) -> dict[str, Any]:  # noqa: D102
        sized = [f"{sample.key} {sample.picture.num_bytes}" for sample in self._samples]
        return {"samples_sha256": _digest(sized), "table_sha256": _digest([json.dumps(self._table)])}


class Sample(Protocol):
    """Fields of a sample that `SamplePhotos` reads, see `geoloc.data.sample`."""

    @property
    def image(self) -> EncodedImage: ...  # noqa: D102
    @property
    def latlon_deg(self) -> tuple[float, float]: ...  # noqa: D102
    @property
    def heading_deg(self) -> float | None: ...  # noqa: D102


class Samples(Protocol):
    """Interface of a table of samples, see `geoloc.data.sample`."""

    latlon_deg: NDArray[np.float64]

    @property
    def keys(self) -> pa.Array: ...  # noqa: D102
    def __getitem__(self, row: int) -> Sample: ...


class SamplePhotos(Photos):
    """The samples of a data set in one of the layouts of training, under their own keys.

    Raises:
        NotFoundError: there are no samples.
    """

    def __init__(self, samples: Samples) -> None:
        self._samples = samples
        self.keys = samples.keys.to_pylist()
        if not self.keys:
            raise NotFoundError("the data set has no photo: check its path and split")

    def _read(self, number: int) -> tuple[bytes, Mapping[str, Any]]:
        sample = self._samples[number]
        latitude, longitude = sample.latlon_deg
        known = {"latitude": latitude, "longitude": longitude, "heading_deg": sample.heading_deg}
        return sample.image.read(), known

    def facts(self) -> dict[str, Any]:  # noqa: D102
        positions = hashlib.sha256(np.ascontiguousarray(self._samples.latlon_deg).tobytes())
        return {"keys_sha256": _digest(self.keys), "latlon_sha256": positions.hexdigest()}


def open_photos(
    photos: str | Path | Sequence[str | Path] | Photos,
    metadata: str | Path | None = None,
    columns: Mapping[str, str] | None = None,
) -> Photos:
    """Open photos with positions.

    Args:
        photos: a folder of images, a folder of tars, a tar, or several tars; photos that are open are returned.
        metadata: a table; None takes the JSON in tars, and EXIF.
        columns: name of a field -> its name in the table, where the two differ.

    Raises:
        NotFoundError: there is nothing of that name.
        ConfigError: a table or a tar cannot be used.
    """
    if isinstance(photos, Photos):
        return photos
    if not isinstance(photos, str | Path):
        return TarPhotos(photos, metadata, columns)
    path = Path(photos)
    if path.suffix.lower() == ".tar":
        return TarPhotos([path], metadata, columns)
    if path.is_dir() and (tars := sorted(path.glob("*.tar"))):
        return TarPhotos(tars, metadata, columns)
    return FolderPhotos(path) if metadata is None else TablePhotos(path, metadata, columns)


def _digest(texts: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode("utf-8", "surrogateescape") + b"\n")
    return digest.hexdigest()
