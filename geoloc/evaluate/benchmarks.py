"""Benchmarks on disk: image files and true coordinates.

    benchmark = load_benchmark("im2gps3k", "datasets/im2gps3k")
    benchmark.truth                   # PointTable
    benchmark.images                  # image files
    benchmark.warnings                # missing files, an unexpected number of images

Layouts shared with training are read by `geoloc.data.layouts`. Nothing is downloaded.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from geoloc.data.layouts import im2gps, open_layout, osv5m, statewide, yfcc
from geoloc.data.layouts.files import only_table, usual_columns
from geoloc.data.layouts.image_tree import ImageTree
from geoloc.errors import ConfigError, NotFoundError
from geoloc.files.tables import PointTable, read_points
from geoloc.images.exif import read_exif_latlon_deg
from geoloc.photos.find import ImageFile, find_images


@dataclass(frozen=True)
class Benchmark:
    """Benchmark on disk.

    Attributes:
        name: of the benchmark.
        protocol: name of its usual protocol.
        folder: as given to `load_benchmark`.
        truth: ids, coordinates and the other columns of the benchmark's table.
        images: existing files in the order of the truth.
        gallery_latlon_deg: (m, 2) locations of the database; None if the layout has none.
        warnings: sentences for the report.
    """

    name: str
    protocol: str
    folder: Path
    truth: PointTable
    images: Sequence[ImageFile]
    gallery_latlon_deg: NDArray[np.float64] | None = None
    warnings: Sequence[str] = field(default_factory=tuple)

    def find_image(self, image_id: str) -> Path | None:
        """File of an image; None if it is missing."""
        return self._paths.get(image_id)

    @cached_property
    def _paths(self) -> dict[str, Path]:
        return {image.id: image.path for image in self.images}


@dataclass(frozen=True)
class _Kind:
    load: Callable[..., "Benchmark"]
    protocol: str
    num_images: int | None
    layout: str
    split: str | None = None  # default split of a layout with several


def load_benchmark(
    name: str, folder: str | Path, split: str | None = None, *, utm_epsg: int | None = None
) -> Benchmark:
    """Find a benchmark in a folder (or, for "csv", a table).

    Args:
        name: see `BENCHMARKS`.
        folder: of the benchmark.
        split: folder of the queries (place recognition); None is "test/queries".
        utm_epsg: EPSG code for images whose names have no UTM zone (place recognition).

    Raises:
        ConfigError: no benchmark has that name, or it has no splits.
        NotFoundError: the folder or its table does not exist.
        BadTableError: its table is malformed.
    """
    if name not in BENCHMARKS:
        known = "; ".join(f"{known} ({kind.layout})" for known, kind in BENCHMARKS.items())
        raise ConfigError(f"there is no benchmark {name!r}; known are {known}")
    kind, folder = BENCHMARKS[name], Path(folder)
    if not folder.exists():
        raise NotFoundError(f"there is no {folder}; for {name} it should contain {kind.layout}")
    if kind.split is None:
        if split is not None or utm_epsg is not None:
            having = ", ".join(known for known, kind in BENCHMARKS.items() if kind.split is not None)
            raise ConfigError(
                f"{name} has one split and its own coordinates: --split and --utm-epsg are for {having}"
            )
        found = kind.load(folder)
    else:
        found = kind.load(folder, split or kind.split, utm_epsg)
    warnings = list(found.warnings)
    if kind.num_images is not None and len(found.truth) != kind.num_images:
        warnings.append(
            f"The benchmark {name} has {kind.num_images:,} images, and {folder.name} lists {len(found.truth):,}."
        )
    if absent := len(found.truth) - len(found.images):
        warnings.append(f"{absent:,} of {len(found.truth):,} images of {name} have no file in {folder.name}.")
    return replace(found, name=name, protocol=kind.protocol, folder=folder, warnings=warnings)


def _benchmark(truth: PointTable, paths: Mapping[str, Path], **rest: Any) -> Benchmark:
    images = [ImageFile(name, paths[name]) for name in truth.ids if name in paths]
    return Benchmark("", "", truth.path, truth, images, **rest)


def _found_below(truth: PointTable, folder: Path) -> dict[str, Path]:
    """Files below a folder by id; an id may omit the suffix or the folders."""
    import pyarrow as pa

    files = ImageTree(folder).find(pa.array(truth.ids, pa.string())).to_pylist()
    return {name: folder / file for name, file in zip(truth.ids, files, strict=True) if file is not None}


# --- One loader for each layout ---------------------------------------------------------------------------


def _osv5m(folder: Path) -> Benchmark:
    truth = read_points(osv5m.truth_file(folder, "test"))
    return _benchmark(truth, _found_below(truth, folder))


def _im2gps(folder: Path) -> Benchmark:
    truth = im2gps.read_truth(folder)
    return _benchmark(truth, _found_below(truth, folder))


def _yfcc(folder: Path) -> Benchmark:
    truth = yfcc.read_truth(folder)
    return _benchmark(truth, _found_below(truth, folder))


def _csv(path: Path) -> Benchmark:
    """Table with id, latitude, longitude; images named by id beside it or in images/."""
    if path.is_dir():
        table = only_table(path)
        if table is None:
            raise NotFoundError(f"{path} has no table; name the one with the truth")
        path = table
    truth = read_points(path, usual_columns(path))
    return _benchmark(truth, _found_below(truth, path.parent))


def _folder(folder: Path) -> Benchmark:
    """Photos with GPS coordinates in EXIF; photos without them are counted, not evaluated."""
    images = find_images([str(folder)])
    points = [read_exif_latlon_deg(image.path) for image in images]
    latlon_deg = np.array([point or (np.nan, np.nan) for point in points])
    truth = PointTable(folder, np.array([image.id for image in images], np.object_), latlon_deg)
    return _benchmark(truth, {image.id: image.path for image in images})


# --- Place recognition ------------------------------------------------------------------------------------


def _vg(folder: Path, split: str, utm_epsg: int | None) -> Benchmark:
    """Queries in the Deep VG layout, and the sibling folder `database`; ids are file names."""
    queries = open_layout("vg", folder, split, utm_epsg=utm_epsg)
    paths = [Path(queries.encoded(row).path) for row in range(len(queries))]
    truth = PointTable(folder, np.array([path.name for path in paths], np.object_), queries.latlon_deg)
    beside = "/".join([*split.split("/")[:-1], "database"])
    try:
        database = open_layout("vg", folder, beside, utm_epsg=utm_epsg).latlon_deg
    except NotFoundError:
        database = None
    return _benchmark(truth, {path.name: path for path in paths}, gallery_latlon_deg=database)


def _statewide(folder: Path) -> Benchmark:
    truth, base, levels = statewide.read_truth(folder)
    files = statewide.image_files(base, len(truth), levels).to_pylist()
    paths = {name: base / file for name, file in zip(truth.ids, files, strict=True) if file is not None}
    return _benchmark(truth, paths)


_VG_LAYOUT: Final = "images/test/queries and database with @UTM@ names"

BENCHMARKS: Final[Mapping[str, _Kind]] = MappingProxyType(
    {
        "osv5m": _Kind(_osv5m, "osv5m", 210_122, "test.csv and the unpacked images/test"),
        "im2gps": _Kind(_im2gps, "im2gps", 237, "info.json or im2gps_places365.csv, and images/"),
        "im2gps3k": _Kind(_im2gps, "im2gps", 2_997, "info.json or im2gps3k_places365.csv, and images/"),
        "yfcc4k": _Kind(_yfcc, "yfcc", 4_536, "info.txt or yfcc4k_places365.csv, and images/"),
        "yfcc26k": _Kind(_yfcc, "yfcc", 25_600, "yfcc25600_places365.csv and images"),
        "vg": _Kind(_vg, "vpr-25m", None, _VG_LAYOUT, "test/queries"),
        "msls-740": _Kind(_vg, "msls-740", 740, _VG_LAYOUT, "test/queries"),
        "statewide": _Kind(_statewide, "statewide", None, "dataset.json, latlons.npz and images/"),
        "csv": _Kind(
            _csv, "geodesic", None, "a table with id, latitude, longitude, and the images beside it"
        ),
        "folder": _Kind(_folder, "geodesic", None, "photos with a position in their EXIF"),
    }
)
