"""Evaluation sets in GSV-Cities' format: file names, and the positives of each query.

    pitts30k_test_dbImages.npy    (m,) paths below the folder of photos
    pitts30k_test_qImages.npy     (n,) paths of the queries
    pitts30k_test_gt.npy          (n,) database rows for each query, in arrays of different lengths, or (n, k)
    msls_val_pIdx.npy             MSLS's name of gt
    msls_val_qIdx.npy             optional: the rows of qImages that are queries

    test = read_retrieval_set("datasets/Pittsburgh", "pitts30k_test", images="photos/Pittsburgh")
    test.database[row].read(), test.queries[row].read(), test.positives[row]

There are no coordinates. Arrays of different lengths are pickles; only arrays of numbers are unpickled.
"""

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
from numpy.typing import NDArray

from geoloc.errors import BadTableError, NotFoundError
from geoloc.photos.encoded import EncodedImage

IntArray = NDArray[np.int64]

_ARRAYS_ALONE: Final[dict[tuple[str, str], Any]] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
    ("numpy._core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
}


@dataclass(frozen=True)
class RetrievalSet:
    """Database, queries and positives.

    Attributes:
        database: m photos.
        queries: n photos.
        positives: n ascending arrays of database rows; may be empty.
    """

    database: tuple[EncodedImage, ...]
    queries: tuple[EncodedImage, ...]
    positives: tuple[IntArray, ...]


def read_retrieval_set(folder: str | Path, name: str, images: str | Path | None = None) -> RetrievalSet:
    """A set by its name, such as "pitts30k_val", "msls_val" or "SPED".

    Args:
        folder: folder of the .npy files.
        name: prefix of their names.
        images: folder of the photos; None is the same folder.

    Raises:
        NotFoundError: a file or photo is missing; names the first, and counts the photos.
        BadTableError: the files do not fit each other, or contain something else than names and numbers.
    """
    folder = Path(folder)
    images = folder if images is None else Path(images)
    database, queries = (_read_names(_one_of(folder, name, part)) for part in ("dbImages", "qImages"))
    if (chosen := folder / f"{name}_qIdx.npy").is_file():
        queries = queries[_rows(chosen, _read(chosen), len(queries), "qImages")]
    truth = _one_of(folder, name, "gt", "pIdx")
    lists = _read(truth)
    if len(lists) != len(queries):
        raise BadTableError(
            f"{truth} has positives of {len(lists):,} queries, and there are {len(queries):,}: use the files of one "
            "release, including qIdx for MSLS"
        )
    positives = tuple(np.unique(_rows(truth, rows, len(database), "dbImages")) for rows in lists)
    missing = [file for file in (*database, *queries) if not (images / file).is_file()]
    if missing:
        raise NotFoundError(
            f"{len(missing):,} of {len(database) + len(queries):,} photos of {name} are not in {images}, the first is "
            f"{missing[0]}: name the folder that these paths begin in"
        )
    encoded = [tuple(EncodedImage(str(images / file)) for file in files) for files in (database, queries)]
    return RetrievalSet(encoded[0], encoded[1], positives)


def _one_of(folder: Path, name: str, *parts: str) -> Path:
    paths = [folder / f"{name}_{part}.npy" for part in parts]
    for path in paths:
        if path.is_file():
            return path
    there = sorted({path.name.rsplit("_", 1)[0] for path in folder.glob("*_dbImages.npy")})
    raise NotFoundError(
        f"there is no {' or '.join(map(str, paths))}; "
        + (f"the folder has the sets {', '.join(there)}" if there else "the folder has no *_dbImages.npy")
    )


def _read_names(path: Path) -> NDArray[np.str_]:
    names = _read(path)
    if names.ndim != 1 or names.dtype.kind != "U":
        raise BadTableError(
            f"{path} has shape {names.shape} and type {names.dtype}: expected the (n,) names of photos"
        )
    for name in names:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise BadTableError(
                f"{path} names {str(name)!r}, which leads out of the photos' folder: do not trust it"
            )
    return names


def _rows(path: Path, values: Any, num: int, of: str) -> IntArray:
    rows = np.asarray(values)
    if not rows.size:
        return np.zeros(0, np.int64)
    if rows.ndim != 1 or rows.dtype.kind not in "iu":
        raise BadTableError(f"{path} holds {values!r}, where rows of {of} are expected")
    if rows.min() < 0 or rows.max() >= num:
        raise BadTableError(
            f"{path} has row {rows.min() if rows.min() < 0 else rows.max()} of {of}, which has {num:,} rows: use the "
            "files of one release"
        )
    return rows.astype(np.int64)


def _read(path: Path) -> NDArray[Any]:
    """The array of a .npy file; an object array may contain arrays of numbers only."""
    try:
        with path.open("rb") as file:
            return _read_open(file)
    except (ValueError, EOFError, pickle.UnpicklingError, AttributeError, IndexError, TypeError) as error:
        raise BadTableError(
            f"{path} is no .npy of names or numbers: {error}; it may be cut off, or must not be trusted"
        ) from error


def _read_open(file: IO[bytes]) -> NDArray[Any]:
    headers: dict[tuple[int, int], Callable[..., Any]] = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    version = np.lib.format.read_magic(file)
    if version not in headers:
        raise ValueError(f"version {version} of the format is not known")
    dtype = headers[version](file)[2]
    if dtype.hasobject:
        array = _ArraysAlone(file).load()
    else:
        file.seek(0)
        array = np.load(file, allow_pickle=False)
    if not isinstance(array, np.ndarray) or array.ndim == 0:
        raise ValueError(f"it holds {type(array).__name__} and no list")
    return array


class _ArraysAlone(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """The class or function of that name, if it is part of an array."""
        if (module, name) not in _ARRAYS_ALONE:
            raise pickle.UnpicklingError(f"it contains {module}.{name}, which is no array")
        return _ARRAYS_ALONE[module, name]
