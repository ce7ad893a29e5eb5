"""Storage of quadtrees: GeoParquet 1.1 (read, write), OSV-5M's CSV (read, write), GeoJSON (write).

Row i of the GeoParquet file is cell i:

    cell_id     int64
    path        string, digits from the root
    depth       int8
    latitude    float64, of the representative point
    longitude   float64
    num_points  int64, null if unknown
    bbox        struct of float64 xmin, ymin, xmax, ymax (GeoParquet's covering)
    geometry    WKB polygon of the same box

The file's metadata has the root box and the fingerprint under "quadtree". The reader uses paths and
representative points, and rejects a file whose other columns or fingerprint disagree with them.
"""

import contextlib
import csv
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from quadtree.errors import InvalidTreeError
from quadtree.morton import (
    MAX_DEPTH,
    WORLD_BOUNDS_DEG,
    IntArray,
    cell_bounds_deg,
    format_paths,
    interleave,
    parse_paths,
)
from quadtree.sphere import FloatArray

if TYPE_CHECKING:
    import pyarrow as pa

_FORMAT_VERSION: Final = 1

_OSV5M_COLUMNS: Final = ("cluster_id", "min_lat", "min_lon", "max_lat", "max_lon", "mean_lat", "mean_lon")

_OSV5M_TOLERANCE_DEG: Final = 1e-9  # 0.1 mm; tolerance for tables with fewer digits


class Leaves(NamedTuple):
    """The arrays that define a quadtree, in the order of the arguments of `Quadtree`."""

    start_codes: IntArray
    depths: IntArray
    center_latlon_deg: FloatArray
    num_points: IntArray | None = None
    root_deg: tuple[float, float, float, float] = WORLD_BOUNDS_DEG

    @property
    def bounds_deg(self) -> FloatArray:
        """(num_cells, 4) south, west, north, east of each cell."""
        return cell_bounds_deg(self.start_codes >> 2 * (MAX_DEPTH - self.depths), self.depths, self.root_deg)

    @property
    def fingerprint(self) -> str:
        """sha256 of root, codes, depths and representative points, little endian."""
        digest = hashlib.sha256(b"quadtree leaf table 1\n")
        digest.update((np.array(self.root_deg) + 0.0).astype("<f8").tobytes())
        digest.update(self.start_codes.astype("<i8").tobytes())
        digest.update(self.depths.astype("<i8").tobytes())
        digest.update((self.center_latlon_deg + 0.0).astype("<f8").tobytes())  # + 0.0 turns -0.0 into 0.0
        return digest.hexdigest()


def write_parquet(leaves: Leaves, path: str | Path) -> None:
    """Write GeoParquet 1.1; an existing file is replaced atomically."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    num_cells, bounds_deg = len(leaves.depths), leaves.bounds_deg
    south, west, north, east = bounds_deg.T
    num_points = pa.nulls(num_cells, pa.int64()) if leaves.num_points is None else pa.array(leaves.num_points)
    table = pa.table(
        {
            "cell_id": pa.array(np.arange(num_cells)),
            "path": pa.array(format_paths(leaves.start_codes, leaves.depths), pa.string()),
            "depth": pa.array(leaves.depths.astype(np.int8)),
            "latitude": pa.array(leaves.center_latlon_deg[:, 0]),
            "longitude": pa.array(leaves.center_latlon_deg[:, 1]),
            "num_points": num_points,
            "bbox": pa.StructArray.from_arrays(
                [pa.array(side) for side in (west, south, east, north)],
                names=["xmin", "ymin", "xmax", "ymax"],
            ),
            "geometry": _wkb_boxes(bounds_deg),
        }
    )
    geo = {
        "version": "1.1.0",
        "primary_column": "geometry",
        "columns": {
            "geometry": {  # no "crs" means OGC:CRS84, longitude and latitude in degrees on WGS84
                "encoding": "WKB",
                "geometry_types": ["Polygon"],
                "edges": "planar",
                "orientation": "counterclockwise",
                "bbox": [float(west.min()), float(south.min()), float(east.max()), float(north.max())],
                "covering": {"bbox": {side: ["bbox", side] for side in ("xmin", "ymin", "xmax", "ymax")}},
            }
        },
    }
    own = {"format_version": _FORMAT_VERSION, "root_deg": leaves.root_deg, "fingerprint": leaves.fingerprint}
    table = table.replace_schema_metadata({"geo": json.dumps(geo), "quadtree": json.dumps(own)})
    with _replacing(Path(path)) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def read_parquet(path: str | Path) -> Leaves:
    """Read a file written by `write_parquet`.

    Raises:
        InvalidTreeError: the file is not Parquet, was not written by this package, has another format version,
            or was changed.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not Path(path).is_file():
        raise FileNotFoundError(
            f"no quadtree file at {path}; write one with Quadtree.write or `geoloc quadtree build`"
        )
    columns = ["cell_id", "path", "depth", "latitude", "longitude", "num_points", "bbox"]
    try:
        # No reader threads and no memory mapping: the file may be replaced during the read.
        with pq.ParquetFile(str(path), memory_map=False) as file:
            metadata = (file.schema_arrow.metadata or {}).get(b"quadtree")
            own = None if metadata is None else json.loads(metadata)
            missing = sorted(set(columns) - set(file.schema_arrow.names))
            table = None if missing else file.read(columns=columns, use_threads=False)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise InvalidTreeError(
            f"{path} cannot be read as Parquet: {error}; copy or build it again"
        ) from error
    if own is None or table is None:
        raise InvalidTreeError(
            f"{path} is Parquet but no quadtree (metadata 'quadtree' "
            f"{'is missing' if own is None else 'is present'}, missing columns: {missing or 'none'}); "
            "use a file written by Quadtree.write"
        )
    return _checked_leaves(path, own, table)


def _checked_leaves(path: str | Path, own: Any, table: "pa.Table") -> Leaves:
    if not isinstance(own, dict) or own.get("format_version") != _FORMAT_VERSION:
        version = own.get("format_version") if isinstance(own, dict) else own
        raise InvalidTreeError(
            f"{path} has quadtree format version {version!r}, this package reads {_FORMAT_VERSION}; "
            "update geoloc or build the tree again"
        )
    try:
        start_codes, depths = parse_paths(table["path"].to_pylist())
        centers = np.stack([table[name].to_numpy() for name in ("latitude", "longitude")], axis=-1)
        has_counts = table["num_points"].null_count == 0
        num_points = table["num_points"].to_numpy() if has_counts else None
        leaves = Leaves(start_codes, depths, centers, num_points, tuple(own["root_deg"]))
        boxes = table["bbox"].combine_chunks()
        bounds_deg = np.stack(
            [boxes.field(side).to_numpy() for side in ("ymin", "xmin", "ymax", "xmax")], axis=-1
        )
        is_consistent = (
            np.array_equal(bounds_deg, leaves.bounds_deg)
            and np.array_equal(table["depth"].to_numpy(), depths)
            and np.array_equal(table["cell_id"].to_numpy(), np.arange(len(depths)))
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidTreeError(f"{path} holds no valid quadtree: {error}") from error
    if leaves.fingerprint != own.get("fingerprint") or not is_consistent:
        raise InvalidTreeError(
            f"{path} was changed after it was written: its cells have fingerprint {leaves.fingerprint[:8]}…, "
            f"its metadata {str(own.get('fingerprint'))[:8]}…, and its boxes, depths and ids "
            f"{'agree' if is_consistent else 'do not agree'} with its paths; copy or build it again"
        )
    return leaves


def read_osv5m_csv(path: str | Path) -> Leaves:
    """Read OSV-5M's cell table (`quadtree_10_1000.csv`).

    The table has no root and no paths. OSV-5M's root is the box of the training points, so it is the box
    around all cells; depths and paths follow from halving it.

    Raises:
        InvalidTreeError: a column is missing, a value is no number, the ids are not 0, 1, 2, …, or a box does
            not result from halving the root.
    """
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        missing = [name for name in _OSV5M_COLUMNS if name not in (reader.fieldnames or ())]
        if missing:
            raise InvalidTreeError(
                f"{path} is not an OSV-5M cell table: missing columns {missing}, found {reader.fieldnames}"
            )
        rows = []
        for row in reader:
            try:
                rows.append((int(row["cluster_id"]), *(float(row[name]) for name in _OSV5M_COLUMNS[1:])))
            except (TypeError, ValueError) as error:
                raise InvalidTreeError(
                    f"{path}, line {reader.line_num}: {error}; every field must be a number"
                ) from error
    if [row[0] for row in rows] != list(range(len(rows))) or not rows:
        raise InvalidTreeError(
            f"{path}: cluster_id must count up from 0; found {[row[0] for row in rows[:5]]} …"
        )
    values = np.array([row[1:] for row in rows])
    if not np.isfinite(values).all():
        cell = int(np.flatnonzero(~np.isfinite(values).all(axis=1))[0])
        raise InvalidTreeError(f"{path}: cell {cell} has a value that is not finite: {list(rows[cell])}")
    bounds_deg, centers = values[:, :4], values[:, 4:]
    low, high = bounds_deg[:, :2].min(axis=0), bounds_deg[:, 2:].max(axis=0)
    root_deg = (float(low[0]), float(low[1]), float(high[0]), float(high[1]))
    codes, depths = _locate_boxes(bounds_deg, root_deg)
    difference_deg = np.abs(cell_bounds_deg(codes, depths, root_deg) - bounds_deg).max(axis=1)
    if not np.all(difference_deg <= _OSV5M_TOLERANCE_DEG):
        cell = int(np.flatnonzero(~(difference_deg <= _OSV5M_TOLERANCE_DEG))[0])
        raise InvalidTreeError(
            f"{path}: the box of cell {cell}, {bounds_deg[cell].tolist()} (south, west, north, east), does "
            f"not result from halving the root {list(root_deg)}; the table must hold all leaves"
        )
    return Leaves(codes << 2 * (MAX_DEPTH - depths), depths, centers, None, root_deg)


def _locate_boxes(
    bounds_deg: FloatArray, root_deg: tuple[float, float, float, float]
) -> tuple[IntArray, IntArray]:
    """Code and depth of the grid cell nearest to each box."""
    low = np.array(root_deg[:2])
    extent = np.array(root_deg[2:]) - low
    sizes = bounds_deg[:, 2:] - bounds_deg[:, :2]
    wide = int(extent.argmax())
    with np.errstate(divide="ignore", invalid="ignore"):
        halvings = np.log2(extent[wide] / sizes[:, wide])
    depths = np.clip(np.nan_to_num(halvings.round(), nan=0.0), 0, MAX_DEPTH).astype(np.int64)
    last = (1 << depths) - 1
    indices = []
    for axis in (0, 1):
        # If all points share a latitude (or longitude), it equals every midpoint and belongs to the upper half.
        with np.errstate(divide="ignore", invalid="ignore"):
            position = (bounds_deg[:, axis] - low[axis]) / extent[axis] * (last + 1)
        indices.append(last if extent[axis] == 0 else np.clip(position.round().astype(np.int64), 0, last))
    return interleave(indices[0], indices[1]), depths


def write_osv5m_csv(leaves: Leaves, path: str | Path) -> None:
    """Write OSV-5M's table: numbers are the shortest that read back as the same float64.

    Only a tree with `root="data"` can be read back, because the table does not store the root.
    """
    with _replacing(Path(path)) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        file.write(",".join(_OSV5M_COLUMNS) + "\n")
        rows = np.concatenate([leaves.bounds_deg, leaves.center_latlon_deg], axis=1).tolist()
        file.writelines(f"{cell_id},{','.join(map(repr, row))}\n" for cell_id, row in enumerate(rows))


def to_geojson(leaves: Leaves) -> dict[str, Any]:
    """A GeoJSON FeatureCollection (RFC 7946): one polygon per cell, longitude first, counterclockwise."""
    num_points = [None] * len(leaves.depths) if leaves.num_points is None else leaves.num_points.tolist()
    features = [
        {
            "type": "Feature",
            "id": cell_id,
            "bbox": [west, south, east, north],
            "geometry": {
                "type": "Polygon",
                "coordinates": [[[west, south], [east, south], [east, north], [west, north], [west, south]]],
            },
            "properties": {
                "cell_id": cell_id,
                "path": path,
                "depth": len(path),
                "num_points": count,
                "latitude": latitude,
                "longitude": longitude,
            },
        }
        for cell_id, ((south, west, north, east), path, count, (latitude, longitude)) in enumerate(
            zip(
                leaves.bounds_deg.tolist(),
                format_paths(leaves.start_codes, leaves.depths),
                num_points,
                leaves.center_latlon_deg.tolist(),
                strict=True,
            )
        )
    ]
    return {"type": "FeatureCollection", "features": features}


def _wkb_boxes(bounds_deg: FloatArray) -> "pa.Array":
    """Boxes as well-known binary polygons (OGC 06-103r4, 8.2): little endian, one ring of five points."""
    import pyarrow as pa

    south, west, north, east = bounds_deg.T
    layout = np.dtype(
        [
            ("order", "u1"),
            ("type", "<u4"),
            ("num_rings", "<u4"),
            ("num_points", "<u4"),
            ("ring", "<f8", (5, 2)),
        ]
    )
    polygons: NDArray[np.void] = np.empty(len(bounds_deg), dtype=layout)
    polygons["order"], polygons["type"], polygons["num_rings"], polygons["num_points"] = 1, 3, 1, 5
    polygons["ring"][:, :, 0] = np.stack([west, east, east, west, west], axis=-1)
    polygons["ring"][:, :, 1] = np.stack([south, south, north, north, south], axis=-1)
    offsets = np.arange(len(bounds_deg) + 1, dtype=np.int32) * layout.itemsize
    return pa.Array.from_buffers(
        pa.binary(), len(bounds_deg), [None, pa.py_buffer(offsets), pa.py_buffer(polygons.tobytes())]
    )


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, renamed to `path` when the block succeeds."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
