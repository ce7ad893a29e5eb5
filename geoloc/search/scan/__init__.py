"""Exact search in slices of rows: every slice is read once for all queries that ask for it.

The similarity of a query and a row is one call of BLAS's sdot, so it is always the same bit for bit. A batch is
multiplied with a slice by faster products, whose last bits depend on the shape; every row that may belong to the best k
in spite of that gets its exact similarity before the best are chosen. So results do not depend on batches, slices or
devices.

rows.py    slices of rows, and similarities
best.py    the best k of each query so far
boards.py  scores of many queries on the host
device.py  and on a torch device
search.py  one query, or many
"""

from geoloc.search.scan.best import Best
from geoloc.search.scan.boards import Board, HostBoard, board_width
from geoloc.search.scan.device import DeviceBoard, DeviceRows
from geoloc.search.scan.rows import (
    BoolArray,
    FloatArray,
    IntArray,
    Rows,
    SegmentRows,
    Slice,
    blocks_of,
    widen,
)
from geoloc.search.scan.search import scan, search_one

__all__ = [
    "Best",
    "Board",
    "BoolArray",
    "DeviceBoard",
    "DeviceRows",
    "FloatArray",
    "HostBoard",
    "IntArray",
    "Rows",
    "SegmentRows",
    "Slice",
    "blocks_of",
    "board_width",
    "scan",
    "search_one",
    "widen",
]
