"""Immutable segments of a reference database: rows and vectors in one Z-order, mapped from the disk.

    NNNN/rows.parquet             all that is known of each row (`geoloc.reference.rows`)
    NNNN/embeddings.safetensors   morton (n,) uint64, row_id (n,) int64, latlon_deg (n, 2) float64,
                                  vectors (n, dim) float32 | float16 | int8, for int8 scales (n,) float32,
                                  source (n,) uint8

Both are sorted by Morton code, and rows with equal codes by row id, so the rows of a cell at any level are
one slice. The four columns beside the vectors repeat what the Parquet file says: a search maps them, and
touches no more of them than of the vectors.

vectors.py  how a vector is stored
tensors.py  arrays in a safetensors file
layout.py   what the two files hold, and in which order
reading.py  an open segment
blocks.py   rows that go into a new one

Knows nothing about manifests: which segments there are is the business of the database.
"""

from geoloc.reference.segments.blocks import Block, Part, merged_blocks, sorted_blocks, write_segment
from geoloc.reference.segments.layout import (
    BLOCK_ROWS,
    EMBEDDINGS_NAME,
    ROWS_NAME,
    block_sizes,
    to_arrow,
)
from geoloc.reference.segments.reading import Segment, open_rows, open_segment
from geoloc.reference.segments.tensors import TensorSpecs, map_tensors, tensor_header
from geoloc.reference.segments.vectors import DTYPES, Dtype, VectorFormat

__all__ = [
    "BLOCK_ROWS",
    "DTYPES",
    "EMBEDDINGS_NAME",
    "ROWS_NAME",
    "Block",
    "Dtype",
    "Part",
    "Segment",
    "TensorSpecs",
    "VectorFormat",
    "block_sizes",
    "map_tensors",
    "merged_blocks",
    "open_rows",
    "open_segment",
    "sorted_blocks",
    "tensor_header",
    "to_arrow",
    "write_segment",
]
