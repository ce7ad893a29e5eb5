"""The field's benchmarks as they lie on the disk: where each image is and where it was taken.

    benchmark = load_benchmark("im2gps3k", "datasets/im2gps3k")
    benchmark.truth                   # a PointTable, as if it had been read from a CSV
    benchmark.images                  # the files, for `geoloc localize`
    benchmark.warnings                # what is not as it should be: a missing file, another number of images

Each loader knows one layout and nothing else. Nothing is downloaded here.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from geoloc.data.tables import Columns, PointTable, read_points
from geoloc.errors import BadTableError, ConfigError, NotFoundError
from geoloc.images.exif import read_exif_latlon_deg
from geoloc.localize.inputs import IMAGE_SUFFIXES, ImageFile, find_images


@dataclass(frozen=True)
class Benchmark:
    """A benchmark that was found on the disk.

    Attributes:
        name: what it is called.
        protocol: the protocol that its literature uses.
        truth: ids and positions, with all columns of the benchmark's own table.
        images: the files that are there, in the order of the truth.
        gallery_latlon_deg: (m, 2) positions of the database where the layout has one; else None.
        warnings: what a report must say.
    """

    name: str
    protocol: str
    truth: PointTable
    images: Sequence[ImageFile]
    gallery_latlon_deg: NDArray[np.float64] | None = None
    warnings: Sequence[str] = field(default_factory=tuple)

    def find_image(self, image_id: str) -> Path | None:
        """The file of an image; None where it is not there."""
        return self._paths.get(image_id)

    @cached_property
    def _paths(self) -> dict[str, Path]:
        return {image.id: image.path for image in self.images}


@dataclass(frozen=True)
class _Kind:
    load: Callable[[Path], "Benchmark"]
    protocol: str
    num_images: int | None
    layout: str


def load_benchmark(name: str, folder: str | Path) -> Benchmark:
    """Find a benchmark in a folder (or, for "csv", a table).

    Raises:
        ConfigError: no benchmark of that name; lists those that there are, with their layouts.
        NotFoundError: the folder or its table is not there; says what it should contain.
        BadTableError: its table is broken.
    """
    if name not in BENCHMARKS:
        known = "; ".join(f"{known} ({kind.layout})" for known, kind in BENCHMARKS.items())
        raise ConfigError(f"there is no benchmark {name!r}; known are {known}")
    kind, folder = BENCHMARKS[name], Path(folder)
    if not folder.exists():
        raise NotFoundError(f"there is no {folder}; for {name} it should contain {kind.layout}")
    found = kind.load(folder)
    warnings = list(found.warnings)
    if kind.num_images is not None and len(found.truth) != kind.num_images:
        warnings.append(
            f"The benchmark {name} has {kind.num_images:,} images, and {folder.name} lists {len(found.truth):,}."
        )
    if absent := len(found.truth) - len(found.images):
        warnings.append(f"{absent:,} of {len(found.truth):,} images of {name} have no file in {folder.name}.")
    return Benchmark(name, kind.protocol, found.truth, found.images, found.gallery_latlon_deg, warnings)


def _benchmark(truth: PointTable, paths: Mapping[str, Path], **rest: Any) -> Benchmark:
    images = [ImageFile(name, paths[name]) for name in truth.ids if name in paths]
    return Benchmark("", "", truth, images, **rest)


def _by_stem_or_name(truth: PointTable, folder: Path) -> dict[str, Path]:
    """Files below a folder by the ids of a table, which may leave out the suffix or the folders."""
    if not folder.is_dir():
        return {}
    by_name: dict[str, Path] = {}
    for path in sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES):
        for name in (path.stem, path.name, path.relative_to(folder).as_posix()):
            by_name.setdefault(name, path)
    found = {}
    for image_id in truth.ids:
        for name in (image_id, Path(image_id).name):
            if name in by_name:
                found[image_id] = by_name[name]
                break
    return found


def _first_table(folder: Path, *names: str) -> Path:
    for name in names:
        for path in (folder / name, *sorted(folder.glob(f"*/{name}"))):
            if path.is_file():
                return path
    raise NotFoundError(
        f"{folder} has none of {', '.join(names)}: check that the benchmark is unpacked there"
    )


# --- One loader for each layout ---------------------------------------------------------------------------


def _osv5m(folder: Path) -> Benchmark:
    """The Hub's layout: test.csv (or test/test.csv), images anywhere below as ID.jpg."""
    path = _first_table(folder, "test.csv", "test/test.csv")
    truth = read_points(path)
    return _benchmark(truth, _by_stem_or_name(truth, folder))


def _im2gps(folder: Path) -> Benchmark:
    """OSV-5M's copy (images/ and info.json with Flickr's lines), or the ISN family's CSV (IMG_ID, LAT, LON)."""
    info = folder / "info.json"
    if info.is_file():
        truth = _from_rows(info, _im2gps_rows(info))
    else:
        path = _first_table(folder, "im2gps3k_places365.csv", "im2gps_places365.csv")
        truth = read_points(path, Columns(id="IMG_ID", latitude="LAT", longitude="LON"))
    return _benchmark(truth, _by_stem_or_name(truth, folder))


def _im2gps_rows(path: Path) -> Iterator[tuple[str, str, str]]:
    try:
        entries = json.loads(path.read_bytes())
        for name, lines in sorted(entries.items()):
            if lines:  # an image whose position was lost has an empty list, and no evaluation counts it
                yield name, lines[-4].replace("latitude: ", ""), lines[-3].replace("longitude: ", "")
    except (ValueError, AttributeError, IndexError) as error:
        raise BadTableError(
            f"{path} is not Im2GPS's info.json (image name -> lines, the position in the 4th and 3rd from the end)"
        ) from error


def _yfcc(folder: Path) -> Benchmark:
    """info.txt of YFCC4k (tabs; columns 1 id, 12 longitude, 13 latitude), or the ISN family's CSV."""
    info = folder / "info.txt"
    if info.is_file():
        truth = _from_rows(info, _yfcc_rows(info))
    else:
        path = _first_table(
            folder, "yfcc4k_places365.csv", "yfcc25600_places365.csv", "yfcc26k_places365.csv"
        )
        truth = read_points(path, Columns(id="IMG_ID", latitude="LAT", longitude="LON"))
    return _benchmark(truth, _by_stem_or_name(truth, folder))


def _yfcc_rows(path: Path) -> Iterator[tuple[str, str, str]]:
    for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1):
        fields = line.split("\t")
        if len(fields) < 14:
            raise BadTableError(
                f"{path} line {number}: {len(fields)} fields between tabs, expected 14 or more"
            )
        yield fields[1], fields[13], fields[12]


def _from_rows(path: Path, rows: Iterator[tuple[str, str, str]]) -> PointTable:
    ids, latitudes, longitudes = [], [], []
    for number, (name, latitude, longitude) in enumerate(rows, start=1):
        try:
            latitudes.append(float(latitude))
            longitudes.append(float(longitude))
        except ValueError as error:
            raise BadTableError(f"{path} entry {number} ({name}): {error}") from error
        ids.append(name)
    return PointTable(path, np.array(ids, np.object_), np.array([latitudes, longitudes]).T.reshape(-1, 2))


def _csv(path: Path) -> Benchmark:
    """Any table with id, latitude, longitude; images are named by the ids, beside it or in images/."""
    if path.is_dir():
        tables = sorted(
            entry for entry in path.iterdir() if entry.suffix.lower() in (".csv", ".tsv", ".parquet")
        )
        if len(tables) != 1:
            raise NotFoundError(f"{path} has {len(tables)} tables; name the one with the truth")
        path = tables[0]
    truth = read_points(path, _usual_columns(path))
    return _benchmark(truth, _by_stem_or_name(truth, path.parent))


def _usual_columns(path: Path) -> Columns:
    """GWS-like tables call their columns by one of a few names."""
    if path.suffix.lower() == ".parquet":
        import pyarrow.parquet as pq

        names = pq.read_schema(path).names
    else:
        with open(path, encoding="utf-8") as file:
            names = [name.strip().strip('"') for name in re.split("[,\t]", file.readline())]
    wanted = {
        "id": ("id", "IMG_ID", "image_id", "img_id", "image", "filename", "name", "path"),
        "latitude": ("latitude", "LAT", "lat", "Latitude"),
        "longitude": ("longitude", "LON", "lon", "lng", "Longitude"),
    }
    found = {column: next((n for n in usual if n in names), column) for column, usual in wanted.items()}
    return Columns(**found)


def _folder(folder: Path) -> Benchmark:
    """Photos with a GPS position in their EXIF; those without are not evaluated, and are counted."""
    images = find_images([str(folder)])
    points = [read_exif_latlon_deg(image.path) for image in images]
    latlon_deg = np.array([point or (np.nan, np.nan) for point in points])
    truth = PointTable(folder, np.array([image.id for image in images], np.object_), latlon_deg)
    return _benchmark(truth, {image.id: image.path for image in images})


# --- Place recognition ------------------------------------------------------------------------------------


def _vg(folder: Path) -> Benchmark:
    """images/test/{queries,database}/@E@N@ZONE@BAND@LAT@LON@….jpg, of the deep VG benchmark and its downloader."""
    base = next(
        (
            base
            for base in (folder / "images" / "test", folder / "test", folder)
            if (base / "queries").is_dir()
        ),
        None,
    )
    if base is None:
        raise NotFoundError(f"{folder} has no images/test/queries with files named @easting@northing@…")
    queries = sorted((base / "queries").rglob("@*"))
    database = sorted((base / "database").rglob("@*"))
    truth = PointTable(folder, np.array([path.name for path in queries], np.object_), vg_latlon_deg(queries))
    gallery = vg_latlon_deg(database) if database else None
    return _benchmark(truth, {path.name: path for path in queries}, gallery_latlon_deg=gallery)


def vg_latlon_deg(paths: Sequence[Path]) -> NDArray[np.float64]:
    """Positions that file names state, (n, 2): the degrees where they are in the name, else UTM with its zone.

    Raises:
        BadTableError: a name holds neither degrees nor a zone; names it.
    """
    from geoloc.geo.wgs84 import unproject

    latlon_deg = np.full((len(paths), 2), np.nan)
    by_zone: dict[int, list[tuple[int, float, float]]] = {}
    for row, path in enumerate(paths):
        fields = path.name.split("@")[1:]
        try:
            if len(fields) > 5 and fields[4] and fields[5]:
                latlon_deg[row] = float(fields[4]), float(fields[5])
                continue
            easting, northing, zone, band = (
                float(fields[0]),
                float(fields[1]),
                int(fields[2]),
                fields[3].upper(),
            )
            if not (1 <= zone <= 60 and band in "CDEFGHJKLMNPQRSTUVWX" and band):
                raise ValueError
        except (ValueError, IndexError):
            raise BadTableError(
                f"{path.name!r} states no position: expected @easting@northing@zone@band@latitude@longitude@…, "
                "with the degrees or the zone filled in"
            ) from None
        # Bands from N on lie north of the equator.
        by_zone.setdefault((32600 if band >= "N" else 32700) + zone, []).append((row, easting, northing))
    for epsg, entries in by_zone.items():
        rows = [entry[0] for entry in entries]
        latlon_deg[rows] = unproject(epsg, np.array([entry[1:] for entry in entries]))
    return latlon_deg


def _statewide(folder: Path) -> Benchmark:
    """Statewide's folder data set: dataset.json, latlons.npz, images/ by the reversed digits of the index."""
    facts_path, points_path = _first_table(folder, "dataset.json"), _first_table(folder, "latlons.npz")
    try:
        facts = json.loads(facts_path.read_bytes())
        num, levels = int(facts["images-num"]), int(facts["images-directory-levels"])
        with np.load(points_path, allow_pickle=False) as arrays:
            latlon_deg = np.asarray(arrays["latlons"], np.float64)
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise BadTableError(f"{folder} is no data set of Statewide's: {error!r}") from error
    if latlon_deg.shape != (num, 2):
        raise BadTableError(
            f"{points_path} has shape {latlon_deg.shape}, and dataset.json promises {num} images"
        )
    ids = [str(index) for index in range(num)]
    base = facts_path.parent / "images"
    paths = {}
    for index, name in enumerate(ids):
        stem = base / statewide_stem(index, levels)
        for path in sorted(stem.parent.glob(f"{stem.name}-*.jpg")):  # one file for each stored resolution
            paths[name] = path
    return _benchmark(PointTable(folder, np.array(ids, np.object_), latlon_deg), paths)


def statewide_stem(index: int, levels: int) -> str:
    """Where Statewide keeps an image: twelve digits, reversed, the first `levels` of them as folders.

    >>> statewide_stem(1234, 2)
    '4/3/2100000000'
    """
    digits = f"{index:012}"[::-1]
    return "/".join([*digits[:levels], digits[levels:]])


BENCHMARKS: Final[Mapping[str, _Kind]] = MappingProxyType(
    {
        "osv5m": _Kind(_osv5m, "osv5m", 210_122, "test.csv and the unpacked images/test"),
        "im2gps": _Kind(_im2gps, "im2gps", 237, "info.json or im2gps_places365.csv, and images/"),
        "im2gps3k": _Kind(_im2gps, "im2gps", 2_997, "info.json or im2gps3k_places365.csv, and images/"),
        "yfcc4k": _Kind(_yfcc, "yfcc", 4_536, "info.txt or yfcc4k_places365.csv, and images/"),
        "yfcc26k": _Kind(_yfcc, "yfcc", 25_600, "yfcc25600_places365.csv and images"),
        "vg": _Kind(_vg, "vpr-25m", None, "images/test/queries and database with @UTM@ names"),
        "msls-740": _Kind(_vg, "msls-740", 740, "images/test/queries and database with @UTM@ names"),
        "statewide": _Kind(_statewide, "statewide", None, "dataset.json, latlons.npz and images/"),
        "csv": _Kind(
            _csv, "geodesic", None, "a table with id, latitude, longitude, and the images beside it"
        ),
        "folder": _Kind(_folder, "geodesic", None, "photos with a position in their EXIF"),
    }
)
