"""Exact search in slices of rows: every slice is read once for all queries that ask for it.

The similarity of a query and a row is one call of BLAS's sdot, so it is the same bit for bit in whatever
company it is computed. A batch is multiplied with a slice by faster products, which are off in the last bits,
each shape of them differently; whatever may belong to the best k in spite of that gets its similarity before
the best are chosen. So results do not depend on batches, slices or devices.

rows.py    slices of rows, and similarities
best.py    the best k of each query so far
boards.py  scores of many queries on the host
device.py  and on a torch device
search.py  one query, or many

Knows segments as arrays and slices of them; knows nothing about cells, files or FAISS.
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
    "board_width",
    "scan",
    "search_one",
    "widen",
]
