"""Blocks of rows in Morton order, from new rows or other segments, and the writing of a segment."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from geoloc.reference.rows import SCHEMA
from geoloc.reference.segments.layout import (
    BLOCK_ROWS,
    EMBEDDINGS_NAME,
    ROWS_NAME,
    embedding_tensors,
    source_codes,
    to_arrow,
)
from geoloc.reference.segments.reading import Segment
from geoloc.reference.segments.tensors import tensor_header
from geoloc.reference.segments.vectors import VectorFormat
from quadtree.morton import IntArray


@dataclass(frozen=True, eq=False)
class Block:
    """Rows to be written into a segment.

    Attributes:
        rows: a pyarrow Table of `SCHEMA`.
        vectors: (n, dim) in the stored type.
        scales: (n,) float32 for int8, else (0,).
    """

    rows: Any
    vectors: NDArray[Any]
    scales: NDArray[np.float32]


def write_segment(folder: Path, vector_format: VectorFormat, num_rows: int, blocks: Iterable[Block]) -> None:
    """Write sorted blocks, of the sizes of `block_sizes`, as the two files of a segment into a folder.

    The same rows give the same bytes (with one version of pyarrow). Holds one block and 41 bytes a row.
    """
    tensors = embedding_tensors(vector_format, num_rows)
    columns = {name: np.empty(shape, dtype) for name, (dtype, shape) in tensors.items() if name != "vectors"}
    start = 0
    with (
        open(folder / EMBEDDINGS_NAME, "wb") as embeddings_file,
        open(folder / ROWS_NAME, "wb") as rows_file,
        pq.ParquetWriter(
            rows_file,
            SCHEMA,
            compression="zstd",
            use_dictionary=["source", "provenance", "licence"],
        ) as rows_writer,
    ):
        header = tensor_header(tensors)
        before = list(tensors)[: list(tensors).index("vectors")]
        embeddings_file.seek(len(header) + sum(columns[name].nbytes for name in before))
        for block in blocks:
            stop = start + block.rows.num_rows
            columns["morton"][start:stop] = block.rows["morton"].to_numpy()
            columns["row_id"][start:stop] = block.rows["row_id"].to_numpy()
            columns["latlon_deg"][start:stop, 0] = block.rows["latitude"].to_numpy()
            columns["latlon_deg"][start:stop, 1] = block.rows["longitude"].to_numpy()
            columns["source"][start:stop] = source_codes(block.rows["source"])
            if "scales" in columns:
                columns["scales"][start:stop] = block.scales
            embeddings_file.write(np.ascontiguousarray(block.vectors).data)
            rows_writer.write_table(block.rows, row_group_size=BLOCK_ROWS)
            start = stop
        embeddings_file.write(columns["source"].data)
        embeddings_file.seek(0)
        embeddings_file.write(header)
        for name in before:
            embeddings_file.write(columns[name].data)


def sorted_blocks(pending: Block) -> Iterator[Block]:
    """Blocks in Morton order of rows that came in the order of their ids."""
    order = np.argsort(pending.rows["morton"].to_numpy(), kind="stable")
    rows = pending.rows.combine_chunks()
    for start in range(0, len(order), BLOCK_ROWS):
        chosen = order[start : start + BLOCK_ROWS]
        scales = pending.scales[chosen] if len(pending.scales) else pending.scales
        yield Block(rows.take(to_arrow(chosen)), pending.vectors[chosen], scales)


@dataclass(frozen=True, eq=False)
class Part:
    """Rows of an open segment that go into another one.

    Attributes:
        segment: that holds them.
        positions: (m,) int64, ascending.
        row_id_offset: added to their row ids.
    """

    segment: Segment
    positions: IntArray
    row_id_offset: int = 0


def merged_blocks(parts: Sequence[Part]) -> Iterator[Block]:
    """Blocks in Morton order of several parts; holds one block and about 40 bytes a row."""
    codes = np.concatenate([part.segment.morton[part.positions] for part in parts])
    row_ids = np.concatenate([part.segment.row_id[part.positions] + part.row_id_offset for part in parts])
    owners = np.repeat(np.arange(len(parts), dtype=np.int32), [len(part.positions) for part in parts])
    owners = owners[np.lexsort((row_ids, codes))]
    del codes, row_ids
    cursors = [0] * len(parts)
    for start in range(0, len(owners), BLOCK_ROWS):
        owner = owners[start : start + BLOCK_ROWS]
        back = np.empty(len(owner), dtype=np.int64)
        tables, vectors, scales, filled = [], [], [], 0
        for number in np.unique(owner).tolist():
            # A part is sorted, so its rows are read in ascending order.
            part, places = parts[number], np.flatnonzero(owner == number)
            positions = part.positions[cursors[number] : cursors[number] + len(places)]
            cursors[number] += len(places)
            back[places] = np.arange(filled, filled + len(places))
            filled += len(places)
            tables.append(_renumbered(part.segment.rows(positions), part.row_id_offset))
            vectors.append(part.segment.vectors[positions])
            if part.segment.scales is not None:
                scales.append(part.segment.scales[positions])
        yield Block(
            pa.concat_tables(tables).combine_chunks().take(to_arrow(back)),
            np.concatenate(vectors)[back],
            np.concatenate(scales)[back] if scales else np.zeros(0, dtype=np.float32),
        )


def _renumbered(rows: Any, offset: int) -> Any:
    if not offset:
        return rows
    place = SCHEMA.get_field_index("row_id")
    return rows.set_column(place, SCHEMA.field(place), to_arrow(rows["row_id"].to_numpy() + offset))
