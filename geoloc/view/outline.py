"""Coastlines and country borders of the world, from a bundled file.

Natural Earth 1:50m, public domain; `data/README.md` has the source and the format.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

OUTLINE_PATH = Path(__file__).parent / "data" / "world_outline.bin"

STEPS_PER_DEG = 400  # 0.0025 degrees, at most 278 m: finer than the source


@dataclass(frozen=True)
class WorldOutline:
    """Lines of the world map. Each line is (n, 2) lat, lon in degrees, with longitudes that continue past 180.

    Attributes:
        land: closed rings, last point = first point. Holes are rings as well: fill by the even-odd rule.
            One ring, Antarctica's coast, is open: it goes once around, from -180 to 180, and its land is all
            that lies between it and the pole.
        borders: open lines between two countries.
    """

    land: tuple[NDArray[np.float64], ...]
    borders: tuple[NDArray[np.float64], ...]


@cache
def load_world_outline() -> WorldOutline:
    """The bundled outline, read once."""
    values = _decode_varints(np.fromfile(OUTLINE_PATH, dtype=np.uint8))
    land, end = _take_lines(values, 0)
    borders, end = _take_lines(values, end)
    if end != len(values):
        raise ValueError(f"{OUTLINE_PATH} has {len(values) - end} values too many: install the package again")
    return WorldOutline(land=land, borders=borders)


def _decode_varints(raw: NDArray[np.uint8]) -> NDArray[np.int64]:
    """LEB128: seven bits a byte, low bits first, the high bit set on all bytes of a value but its last."""
    last = raw < 128
    starts = np.flatnonzero(np.append(True, last[:-1]))
    position_in_value = np.arange(len(raw)) - np.repeat(starts, np.diff(np.append(starts, len(raw))))
    return np.add.reduceat((raw & 127).astype(np.int64) << (7 * position_in_value), starts)


def _take_lines(values: NDArray[np.int64], start: int) -> tuple[tuple[NDArray[np.float64], ...], int]:
    """A list of lines that begins at `start`, and the index after it."""
    lines: list[NDArray[np.float64]] = []
    position = start + 1
    for _ in range(values[start]):
        num_points = int(values[position])
        zigzag = values[position + 1 : position + 1 + 2 * num_points]
        steps = (zigzag >> 1) ^ -(zigzag & 1)
        lonlat_deg = np.cumsum(steps.reshape(num_points, 2), axis=0) / STEPS_PER_DEG
        lines.append(lonlat_deg[:, ::-1])
        position += 1 + 2 * num_points
    return tuple(lines), position
