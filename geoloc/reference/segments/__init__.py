"""Immutable segments of a reference database: rows and vectors in one Z-order, mapped from the disk.

    NNNN/rows.parquet             the data of each row (`geoloc.reference.rows`)
    NNNN/embeddings.safetensors   morton (n,) uint64, row_id (n,) int64, latlon_deg (n, 2) float64,
                                  vectors (n, dim) float32 | float16 | int8, for int8 scales (n,) float32,
                                  source (n,) uint8

Both are sorted by Morton code, and rows with equal codes by row id, so the rows of a cell at any level are
one slice. The four columns beside the vectors repeat columns of the Parquet file: a search maps them, and reads only
the parts that it needs.

vectors.py  stored types of vectors
tensors.py  arrays in a safetensors file
layout.py   content and order of the two files
reading.py  an open segment
blocks.py   writing a new one
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
