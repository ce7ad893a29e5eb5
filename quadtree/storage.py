"""Quadtrees on disk: GeoParquet 1.1 in and out, OSV-5M's CSV in and out, GeoJSON out.

The GeoParquet file has one row per cell in the order of the cell ids, so row i is class i:

    cell_id     int64
    path        string, digits from the root
    depth       int8
    latitude    float64, of the representative point
    longitude   float64
    num_points  int64, null where unknown
    bbox        struct of float64 xmin, ymin, xmax, ymax: the box, and the covering that readers filter by
    geometry    WKB polygon, the same box

The root box and the fingerprint are in the file's metadata under "quadtree". Reading rebuilds the tree from
paths and representative points and checks all else against it, so a file that was changed or cut is refused.
"""

import contextlib
import csv
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from quadtree.errors import InvalidTreeError
from quadtree.morton import MAX_DEPTH, IntArray, cell_bounds_deg, interleave
from quadtree.sphere import FloatArray
from quadtree.tree import Quadtree, parse_paths

if TYPE_CHECKING:
    import pyarrow as pa

_FORMAT_VERSION: Final = 1

_OSV5M_COLUMNS: Final = ("cluster_id", "min_lat", "min_lon", "max_lat", "max_lon", "mean_lat", "mean_lon")

_OSV5M_TOLERANCE_DEG: Final = 1e-9  # 0.1 mm; forgives a table that was written with fewer digits


def write_parquet(tree: Quadtree, path: str | Path) -> None:
    """Write a tree as GeoParquet 1.1; an existing file is replaced at once or not at all."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    south, west, north, east = tree.bounds_deg.T
    num_points = (
        pa.nulls(tree.num_cells, pa.int64()) if tree.num_points is None else pa.array(tree.num_points)
    )
    table = pa.table(
        {
            "cell_id": pa.array(np.arange(tree.num_cells)),
            "path": pa.array(tree.paths, pa.string()),
            "depth": pa.array(tree.depths.astype(np.int8)),
            "latitude": pa.array(tree.center_latlon_deg[:, 0]),
            "longitude": pa.array(tree.center_latlon_deg[:, 1]),
            "num_points": num_points,
            "bbox": pa.StructArray.from_arrays(
                [pa.array(side) for side in (west, south, east, north)],
                names=["xmin", "ymin", "xmax", "ymax"],
            ),
            "geometry": _wkb_boxes(tree.bounds_deg),
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
    own = {"format_version": _FORMAT_VERSION, "root_deg": tree.root_deg, "fingerprint": tree.fingerprint}
    table = table.replace_schema_metadata({"geo": json.dumps(geo), "quadtree": json.dumps(own)})
    with _replacing(Path(path)) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def read_parquet(path: str | Path) -> Quadtree:
    """Read what `write_parquet` wrote.

    Raises:
        InvalidTreeError: the file is no Parquet file, was not written by this package, is of another version,
            or its
            content contradicts its fingerprint.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not Path(path).is_file():
        raise FileNotFoundError(
            f"no quadtree file at {path}; write one with Quadtree.write or `geoloc quadtree build`"
        )
    columns = ["cell_id", "path", "depth", "latitude", "longitude", "num_points", "bbox"]
    try:
        # Without the threads of Arrow's readers and without memory mapping: the file may be replaced while we
        # read.
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
            "it must be a file that Quadtree.write made"
        )
    return _tree_of_table(path, own, table)


def _tree_of_table(path: str | Path, own: Any, table: "pa.Table") -> Quadtree:
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
        tree = Quadtree(start_codes, depths, centers, num_points, tuple(own["root_deg"]))
        boxes = table["bbox"].combine_chunks()
        bounds_deg = np.stack(
            [boxes.field(side).to_numpy() for side in ("ymin", "xmin", "ymax", "xmax")], axis=-1
        )
        redundant = (
            np.array_equal(bounds_deg, tree.bounds_deg)
            and np.array_equal(table["depth"].to_numpy(), tree.depths)
            and np.array_equal(table["cell_id"].to_numpy(), np.arange(tree.num_cells))
        )
    except (InvalidTreeError, KeyError, TypeError, ValueError) as error:
        raise InvalidTreeError(f"{path} holds no valid quadtree: {error}") from error
    if tree.fingerprint != own.get("fingerprint") or not redundant:
        raise InvalidTreeError(
            f"{path} was changed after it was written: its cells have fingerprint {tree.fingerprint[:8]}…, "
            f"its metadata says {str(own.get('fingerprint'))[:8]}…, and its boxes, depths and ids "
            f"{'agree' if redundant else 'do not agree'} with its paths; copy or build it again"
        )
    return tree


def read_osv5m_csv(path: str | Path) -> Quadtree:
    """Read OSV-5M's cell table (`quadtree_10_1000.csv`).

    The table stores neither the root nor the paths. The root is the box around all cells, because OSV-5M's
    root is the box of the training points; depths and paths follow from halving it.

    Raises:
        InvalidTreeError: a column is missing, a value is no number, the ids do not count up from 0, or a box
            does not
            result from halving the root.
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
    return Quadtree(codes << 2 * (MAX_DEPTH - depths), depths, centers, None, root_deg)


def _locate_boxes(
    bounds_deg: FloatArray, root_deg: tuple[float, float, float, float]
) -> tuple[IntArray, IntArray]:
    """Code and depth of the grid cells that are nearest to boxes; the caller compares."""
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
        # Where all points share a latitude (or longitude) it is every midpoint, and the upper half owns it.
        with np.errstate(divide="ignore", invalid="ignore"):
            position = (bounds_deg[:, axis] - low[axis]) / extent[axis] * (last + 1)
        indices.append(last if extent[axis] == 0 else np.clip(position.round().astype(np.int64), 0, last))
    return interleave(indices[0], indices[1]), depths


def write_osv5m_csv(tree: Quadtree, path: str | Path) -> None:
    """Write a tree in the columns, order and number format of OSV-5M's table.

    Numbers are the shortest that read back as the same float64. Only a tree with `root="data"` can be read
    back: the table has no place for a root that is larger than its cells.
    """
    with _replacing(Path(path)) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        file.write(",".join(_OSV5M_COLUMNS) + "\n")
        rows = np.concatenate([tree.bounds_deg, tree.center_latlon_deg], axis=1).tolist()
        file.writelines(f"{cell_id},{','.join(map(repr, row))}\n" for cell_id, row in enumerate(rows))


def to_geojson(tree: Quadtree) -> dict[str, Any]:
    """A GeoJSON FeatureCollection (RFC 7946): one polygon per cell, longitude first, counterclockwise."""
    num_points = [None] * tree.num_cells if tree.num_points is None else tree.num_points.tolist()
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
                tree.bounds_deg.tolist(), tree.paths, num_points, tree.center_latlon_deg.tolist(), strict=True
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
    """A temporary path beside `path` that takes its place when the block succeeds.

    The package stands alone, below geoloc.files, so it brings these few lines of its own.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
