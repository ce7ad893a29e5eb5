"""Make geoloc/view/data/world_outline.bin from Natural Earth's 1:50m countries.

The source is `countries-50m.json` of the npm package world-atlas (Natural Earth 4.1, public domain):

    npm pack world-atlas@2.0.2 && tar xzf world-atlas-2.0.2.tgz
    python scripts/make_world_outline.py package/countries-50m.json

The format is described in geoloc/view/data/README.md; geoloc/view/outline.py and geometry.js read it.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geoloc.view.outline import OUTLINE_PATH, STEPS_PER_DEG

SOUTH_POLE_RING_BELOW_DEG = -89.9  # the source closes Antarctica by a second ring along the pole


def main(source: Path) -> None:
    """Read the topology at `source` and write the package's outline file."""
    topology = json.loads(source.read_text(encoding="utf-8"))
    arcs_lonlat_deg = decode_arcs(topology)
    land = [
        unroll(join(arcs_lonlat_deg, ring))
        for polygon in polygons(topology["objects"]["land"])
        for ring in polygon
    ]
    land = [cut_at_antimeridian(ring) for ring in land if ring[:, 1].min() > SOUTH_POLE_RING_BELOW_DEG]
    borders = [unroll(arcs_lonlat_deg[arc]) for arc in shared_arcs(topology["objects"]["countries"])]
    encoded = encode_lines(land) + encode_lines(borders)
    OUTLINE_PATH.write_bytes(encoded)
    print(f"{OUTLINE_PATH.name}: {len(land)} rings of land, {len(borders)} borders, {len(encoded):,} bytes")


def decode_arcs(topology: dict[str, Any]) -> list[NDArray[np.float64]]:
    """Arcs of a quantised topology, each (n, 2) lon, lat; see the TopoJSON specification, section 2.1.3."""
    scale, translate = topology["transform"]["scale"], topology["transform"]["translate"]
    return [np.cumsum(np.array(arc), axis=0) * scale + translate for arc in topology["arcs"]]


def polygons(geometry: dict[str, Any]) -> list[list[list[int]]]:
    """Polygons of a geometry or a collection, as lists of rings, as lists of arc numbers."""
    if geometry["type"] == "GeometryCollection":
        return [polygon for member in geometry["geometries"] for polygon in polygons(member)]
    return geometry["arcs"] if geometry["type"] == "MultiPolygon" else [geometry["arcs"]]


def join(arcs: list[NDArray[np.float64]], ring: list[int]) -> NDArray[np.float64]:
    """The closed ring of these arcs; ~i is arc i backwards, and neighbours share their end point."""
    parts = [arcs[i] if i >= 0 else arcs[~i][::-1] for i in ring]
    return np.concatenate([parts[0], *(part[1:] for part in parts[1:])])


def unroll(lonlat_deg: NDArray[np.float64]) -> NDArray[np.float64]:
    """The same line with longitudes that run on past 180 instead of jumping to -180."""
    steps_deg = np.diff(lonlat_deg[:, 0], prepend=lonlat_deg[0, 0])
    return lonlat_deg - np.stack(
        [360 * np.cumsum(np.round(steps_deg / 360)), np.zeros(len(steps_deg))], axis=1
    )


def cut_at_antimeridian(ring: NDArray[np.float64]) -> NDArray[np.float64]:
    """A ring around a pole starts and ends at +-180, where a flat map ends too; others stay as they are."""
    if abs(ring[-1, 0] - ring[0, 0]) < 180:
        return ring
    if ring[-1, 0] < ring[0, 0]:
        ring = ring[::-1]
    ring = ring[:-1]
    ring = np.roll(ring, -int(np.argmin((ring[:, 0] + 180) % 360)), axis=0)
    ring = unroll(ring)
    ring = ring - [360 * np.round((ring[0, 0] + 180) / 360), 0]
    return np.concatenate([ring, ring[:1] + np.array([360, 0])])


def shared_arcs(countries: dict[str, Any]) -> list[int]:
    """Numbers of the arcs that lie between two countries; an arc of one country alone is coast."""
    uses: dict[int, int] = {}
    for polygon in polygons(countries):
        for ring in polygon:
            for i in ring:
                arc = i if i >= 0 else ~i
                uses[arc] = uses.get(arc, 0) + 1
    return [arc for arc, count in uses.items() if count > 1]


def encode_lines(lines_lonlat_deg: list[NDArray[np.float64]]) -> bytes:
    """Number of lines, then per line its number of points and the steps between them."""
    values: list[int] = [len(lines_lonlat_deg)]
    for line in lines_lonlat_deg:
        grid = np.round(line * STEPS_PER_DEG).astype(np.int64)
        grid = grid[np.append(True, (np.diff(grid, axis=0) != 0).any(axis=1))]
        steps = np.diff(grid, axis=0, prepend=np.zeros((1, 2), np.int64)).ravel()
        values += [len(grid), *((steps << 1) ^ (steps >> 63)).tolist()]
    encoded = bytearray()
    for value in values:
        while value > 127:
            encoded.append(value & 127 | 128)
            value >>= 7
        encoded.append(value)
    return bytes(encoded)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
