"""Statewide's folder of street photos: dataset.json, columns as .npz, images by the reversed digits of their index.

    dataset.json        images-num, images-directory-levels, …
    latlons.npz         latlons (n, 2) degrees
    timestamps.npz      timestamps (n,), optional
    sequence-idxs.npz   sequence_idxs (n,), optional
    images/4/3/2100000000-480.jpg

Its tiles are a folder that `geoloc.reference.aerial` opens.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import ArrayLike, NDArray

from geoloc.data.layouts.assemble import assemble
from geoloc.data.layouts.files import find_table
from geoloc.data.layouts.findings import Findings
from geoloc.data.layouts.image_tree import ImageTree
from geoloc.data.sample import SampleTable
from geoloc.errors import BadTableError
from geoloc.files import atomic_write
from geoloc.files.tables import PointTable

_OPTIONAL = {
    "captured_at": ("timestamps.npz", "timestamps"),
    "sequence": ("sequence-idxs.npz", "sequence_idxs"),
}


def statewide_stem(index: int, levels: int) -> str:
    """Where Statewide keeps an image: twelve digits, reversed, the first `levels` of them as folders.

    >>> statewide_stem(1234, 2)
    '4/3/2100000000'
    """
    digits = f"{index:012}"[::-1]
    return "/".join([*digits[:levels], digits[levels:]])


def directory_levels(num_images: int) -> int:
    """How many levels of folders Statewide makes for so many images: never more than 100 names in one."""
    return max(len(str(num_images)) - 2, 0)


def read_truth(folder: Path) -> tuple[PointTable, Path, int]:
    """Ids (the indices) and positions with times and sequences; the folder that it really is; its levels.

    Raises:
        NotFoundError, BadTableError: a file is not there, or does not fit the others.
    """
    facts_path, points_path = find_table(folder, "dataset.json"), find_table(folder, "latlons.npz")
    try:
        facts = json.loads(facts_path.read_bytes())
        num, levels = int(facts["images-num"]), int(facts["images-directory-levels"])
        latlon_deg = np.asarray(_read_npz(points_path, "latlons"), np.float64)
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise BadTableError(f"{folder} is no data set of Statewide's: {error!r}") from error
    if latlon_deg.shape != (num, 2):
        raise BadTableError(
            f"{points_path} has shape {latlon_deg.shape}, and dataset.json promises {num} images"
        )
    others = {
        ours: pa.chunked_array([pa.array(values)])
        for ours, values in _optional_columns(facts_path.parent, num).items()
    }
    ids = np.array([str(index) for index in range(num)], np.object_)
    return PointTable(points_path, ids, latlon_deg, others), facts_path.parent, levels


def _optional_columns(folder: Path, num: int) -> Mapping[str, NDArray[np.generic]]:
    found = {}
    for ours, (name, key) in _OPTIONAL.items():
        if (folder / name).is_file():
            try:
                values = _read_npz(folder / name, key)
            except (ValueError, KeyError, OSError) as error:
                raise BadTableError(f"{folder / name} has no {key!r} that can be read: {error!r}") from error
            if values.shape != (num,):
                raise BadTableError(f"{folder / name} has shape {values.shape}, and there are {num} images")
            found[ours] = values
    return found


def _read_npz(path: Path, key: str) -> NDArray[np.generic]:
    with np.load(path, allow_pickle=False) as arrays:
        values: NDArray[np.generic] = arrays[key]
        return values


def image_files(folder: Path, num: int, levels: int) -> pa.Array:
    """The file of each index, (num,) paths below the folder, null where there is none.

    There may be one for each stored resolution, "…-480.jpg": then the first by name counts.
    """
    tree = ImageTree(folder, "images")
    stems = pc.replace_substring_regex(tree.files, r"-\d+\.jpg$", "")
    wanted = pa.array([f"images/{statewide_stem(index, levels)}" for index in range(num)], pa.string())
    return tree.files.take(pc.index_in(wanted, value_set=stems))


def read(folder: Path, split: str, findings: Findings) -> SampleTable:
    """The samples; there is one split.

    Raises:
        NotFoundError, BadTableError: as `read_truth`.
    """
    points, base, levels = read_truth(folder)
    files = image_files(base, len(points), levels)
    where = lambda rows: [f"{points.path} row {row}" for row in rows]  # noqa: E731  the index is the row
    return assemble(base, points, files, findings, where=where)


# --- Lists of image ids -----------------------------------------------------------------------------------


def read_image_ids(path: str | Path) -> NDArray[np.int64]:
    """The ids of a list such as boston100.npz, (n,) ascending; it stores their differences.

    Raises:
        BadTableError: it is no such list.
    """
    try:
        deltas = _read_npz(Path(path), "image_ids")
        if deltas.ndim != 1 or deltas.dtype.kind not in "iu":
            raise ValueError(f"shape {deltas.shape}, type {deltas.dtype}")
        return np.cumsum(deltas.astype(np.int64))
    except (ValueError, KeyError, OSError) as error:
        raise BadTableError(
            f"{path} is no list of image ids: {error!r}; expected 'image_ids' in an .npz"
        ) from error


def write_image_ids(path: str | Path, ids: ArrayLike) -> None:
    """Write a list of ids, (n,) integers, in ascending order, as `read_image_ids` wants it."""
    deltas = np.diff(np.sort(np.asarray(ids, np.int64)), prepend=np.int64(0))
    with atomic_write(path, "wb") as file:
        np.savez_compressed(file, image_ids=deltas)
