"""Stored types of vectors, and their error."""

from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from geoloc.errors import ConfigError

Dtype = Literal["float32", "float16", "int8"]

DTYPES: Final = ("float32", "float16", "int8")


@dataclass(frozen=True)
class VectorFormat:
    """Stored type of vectors: float32, float16, or int8 with one float32 scale for each row.

    A value v of an int8 row is stored as round(v / scale) with scale = max|v| / 127, so it comes back with an
    error of at most scale / 2.

    Raises:
        ConfigError: the width is not positive, or the dtype is none of the three.
    """

    dim: int
    dtype: Dtype

    def __post_init__(self) -> None:
        if type(self.dim) is not int or self.dim < 1:
            raise ConfigError(
                f"dim must be a positive integer, the width of an embedding; found {self.dim!r}"
            )
        if self.dtype not in DTYPES:
            raise ConfigError(f"dtype must be one of {', '.join(DTYPES)}; found {self.dtype!r}")

    @property
    def bytes_per_row(self) -> int:
        """Size of a stored vector with its scale."""
        return self.dim * np.dtype(self.dtype).itemsize + (4 if self.dtype == "int8" else 0)

    def encode(self, vectors: ArrayLike) -> tuple[NDArray[Any], NDArray[np.float32]]:
        """Vectors (n, dim) in the stored type, and scales: (n,) for int8, else (0,).

        Raises:
            ConfigError: another shape, or a value that is not finite, or too large for float16.
        """
        with np.errstate(over="ignore"):
            values = np.asarray(vectors, dtype=np.float32)
        if values.ndim != 2 or values.shape[1] != self.dim:
            raise ConfigError(
                f"vectors have shape {values.shape}, and this database holds rows of {self.dim} values: "
                "embed with the model that it was made for"
            )
        scales = np.zeros(0, dtype=np.float32)
        if self.dtype == "int8":
            largest = np.maximum(values.max(axis=1), -values.min(axis=1))
            scales = largest / np.float32(127)
            # Below the smallest normal number a scale has lost its digits; such a row is stored as zero.
            scales[scales < np.finfo(np.float32).tiny] = 0.0
            divisors = np.where(scales == 0.0, np.float32(np.inf), scales)
            if np.isfinite(scales).all():  # a NaN or an infinity in a row is in its scale, too
                return np.rint(values / divisors[:, None]).astype(np.int8), scales
        else:
            with np.errstate(over="ignore"):
                stored = values.astype(self.dtype)
            if np.isfinite(stored).all():
                return stored, scales
        raise ConfigError(
            f"a vector has a value that is not finite, or too large for {self.dtype}: drop or repair that row"
        )

    def decode(self, stored: NDArray[Any], scales: NDArray[np.float32] | None) -> NDArray[np.float32]:
        """Stored vectors (n, dim) with their scales (n,), None but for int8, as float32."""
        vectors: NDArray[np.float32] = stored.astype(np.float32)
        if scales is not None:
            vectors *= scales[:, None]
        return vectors
