"""Names of a segment's two files, and the order of rows and tensors in them."""

from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from geoloc.reference.rows import SOURCES
from geoloc.reference.segments.tensors import TensorSpecs
from geoloc.reference.segments.vectors import VectorFormat
from quadtree.morton import IntArray

ROWS_NAME: Final = "rows.parquet"
EMBEDDINGS_NAME: Final = "embeddings.safetensors"
BLOCK_ROWS: Final = 2048  # rows of a block and of a row group: reading one key reads so many


def embedding_tensors(vector_format: VectorFormat, num_rows: int) -> TensorSpecs:
    """Tensors of `embeddings.safetensors`; wide types first, so that every array is aligned."""
    tensors: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {
        "morton": (np.dtype(np.uint64), (num_rows,)),
        "row_id": (np.dtype(np.int64), (num_rows,)),
        "latlon_deg": (np.dtype(np.float64), (num_rows, 2)),
    }
    if vector_format.dtype == "int8":
        tensors["scales"] = (np.dtype(np.float32), (num_rows,))
    tensors["vectors"] = (np.dtype(vector_format.dtype), (num_rows, vector_format.dim))
    tensors["source"] = (np.dtype(np.uint8), (num_rows,))
    return tensors


def block_sizes(num_rows: int) -> list[int]:
    """Number of rows of each block: BLOCK_ROWS, and the rest in the last."""
    return [min(BLOCK_ROWS, num_rows - start) for start in range(0, num_rows, BLOCK_ROWS)]


def source_codes(sources: Any) -> NDArray[np.uint8]:
    """Indices in SOURCES of a pyarrow column of their names; 255 for other strings."""
    codes: NDArray[np.uint8] = (
        pc.index_in(sources, pa.array(SOURCES)).fill_null(255).to_numpy().astype(np.uint8)
    )
    return codes


def to_arrow(numbers: IntArray) -> Any:
    """A NumPy array as a pyarrow array; pyarrow's own conversion imports pandas, which takes a second."""
    return pa.Array.from_buffers(
        pa.int64(), len(numbers), [None, pa.py_buffer(np.ascontiguousarray(numbers))]
    )
