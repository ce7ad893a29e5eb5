"""Board on a torch device that holds a copy of the vectors."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from numpy.typing import NDArray

from geoloc.search.scan.boards import rounding_band
from geoloc.search.scan.rows import BoolArray, FloatArray, IntArray, Rows, Slice

if TYPE_CHECKING:
    import torch

_COPIED_ROWS: Final = 1 << 16  # to a device at a time


class DeviceRows:
    """The vectors of all rows, copied to a torch device once.

    Args:
        rows: to copy.
        device: such as "cuda".
    """

    def __init__(self, rows: Rows, device: str) -> None:
        import torch

        self.device = torch.device(device)
        self.vectors = [self._copied(vectors) for vectors in rows.vectors]
        self.scales = [None if scales is None else self._copied(scales) for scales in rows.scales]

    def _copied(self, values: NDArray[Any]) -> "torch.Tensor":
        import torch

        # Block by block, each copied first: torch cannot express that a memory map is read-only.
        dtype = torch.from_numpy(values[:0].copy()).dtype
        copied = torch.empty(values.shape, dtype=dtype, device=self.device)
        for start in range(0, len(values), _COPIED_ROWS):
            block = slice(start, start + _COPIED_ROWS)
            copied[block] = torch.from_numpy(values[block].copy())
        return copied


class DeviceBoard:
    """Scores computed by torch on the device that holds the rows.

    float32 products must be float32 there: `torch.set_float32_matmul_precision("highest")`, the default.

    Args:
        rows: that slices refer to.
        query: (Q, D) float32.
        width: columns.
    """

    def __init__(self, rows: DeviceRows, query: FloatArray, width: int) -> None:
        import torch

        self.width = width
        self._rows = rows
        self._query = torch.from_numpy(query.copy()).to(rows.device)
        self._band = torch.from_numpy(rounding_band(query)).to(rows.device)
        self._scores = torch.full((len(query), width), float("-inf"), device=rows.device)

    def write(self, piece: Slice, columns: Sequence[int], hidden: BoolArray | None) -> None:
        """As `Board.write`."""
        import torch

        segment, start, stop, queries = piece
        vectors, scales = self._rows.vectors[segment][start:stop], self._rows.scales[segment]
        product = self._query[list(queries)] @ vectors.to(torch.float32).T
        if scales is not None:
            product *= scales[start:stop]
        if hidden is not None:
            product[:, torch.from_numpy(hidden.copy()).to(product.device)] = float("-inf")
        for query, column, scores in zip(queries, columns, product, strict=True):
            self._scores[query, column : column + stop - start] = scores

    def contenders(self, k: int, floor: FloatArray, filled: Sequence[int]) -> tuple[IntArray, IntArray]:
        """As `Board.contenders`."""
        import torch

        num_columns = max(filled)
        scores = self._scores[:, :num_columns]
        least = torch.from_numpy(floor.copy()).to(scores.device)
        if num_columns > k:
            least = torch.maximum(least, torch.topk(scores, k, dim=1, sorted=True).values[:, -1])
        least = (least - self._band).clamp(min=torch.finfo(torch.float32).min)
        query_idx, column = (scores >= least[:, None]).nonzero(as_tuple=True)
        scores.fill_(float("-inf"))
        return query_idx.cpu().numpy(), column.cpu().numpy()
