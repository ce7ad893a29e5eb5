"""Statewide's layout of street photos: dataset.json, columns as .npz, images by the reversed digits of their index.

    dataset.json        images-num, images-directory-levels, …
    latlons.npz         latlons (n, 2) degrees
    timestamps.npz      timestamps (n,), optional
    sequence-idxs.npz   sequence_idxs (n,), optional
    images/4/3/2100000000-480.jpg
    boston100.npz       image_ids: differences of the ascending ids of the split "boston100"

`geoloc.reference.aerial` reads its tiles.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from geoloc.data.layouts.assemble import assemble
from geoloc.data.layouts.files import find_table
from geoloc.data.layouts.findings import Findings
from geoloc.data.layouts.image_tree import ImageTree
from geoloc.data.sample import SampleTable
from geoloc.errors import BadTableError
from geoloc.files.tables import PointTable

SPLITS: Final = ("", "*")  # all images, or the images of a list of ids

_OPTIONAL = {
    "captured_at": ("timestamps.npz", "timestamps"),
    "sequence": ("sequence-idxs.npz", "sequence_idxs"),
}


def statewide_stem(index: int, levels: int) -> str:
    """Path of an image without suffix: twelve digits, reversed, the first `levels` of them as folders.

    >>> statewide_stem(1234, 2)
    '4/3/2100000000'
    """
    digits = f"{index:012}"[::-1]
    return "/".join([*digits[:levels], digits[levels:]])


def directory_levels(num_images: int) -> int:
    """Number of folder levels for a number of images: at most 100 names in each folder."""
    return max(len(str(num_images)) - 2, 0)


def read_truth(folder: Path) -> tuple[PointTable, Path, int]:
    """Ids (the indices), locations, times and sequences; the folder of dataset.json; the number of folder levels.

    Raises:
        NotFoundError, BadTableError: a file is missing, or does not fit the others.
    """
    facts_path, points_path = find_table(folder, "dataset.json"), find_table(folder, "latlons.npz")
    try:
        facts = json.loads(facts_path.read_bytes())
        num, levels = int(facts["images-num"]), int(facts["images-directory-levels"])
        latlon_deg = np.asarray(_read_npz(points_path, "latlons"), np.float64)
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise BadTableError(f"{folder} is not a Statewide data set: {error!r}") from error
    if latlon_deg.shape != (num, 2):
        raise BadTableError(f"{points_path} has shape {latlon_deg.shape}, but dataset.json has {num} images")
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
    """The file of each index, (num,) paths below the folder, null if there is none.

    Of files for several resolutions, "…-480.jpg", the first by name is taken.
    """
    tree = ImageTree(folder, "images")
    stems = pc.replace_substring_regex(tree.files, r"-\d+\.jpg$", "")
    wanted = pa.array([f"images/{statewide_stem(index, levels)}" for index in range(num)], pa.string())
    return tree.files.take(pc.index_in(wanted, value_set=stems))


def read(folder: Path, split: str, findings: Findings) -> SampleTable:
    """The samples of a split: all images, or those of the list of ids SPLIT.npz in the folder.

    Raises:
        NotFoundError, BadTableError: as `read_truth`, and for the list of ids.
    """
    points, base, levels = read_truth(folder)
    files = image_files(base, len(points), levels)
    ids = np.arange(len(points))
    if split:
        ids = read_image_ids(find_table(base, f"{split}.npz"))
        if len(ids) and not 0 <= ids[0] <= ids[-1] < len(points):
            raise BadTableError(f"the ids of {split}.npz are {ids[0]} to {ids[-1]} of {len(points)} images")
        others = {name: column.take(pa.array(ids)) for name, column in points.others.items()}
        points = PointTable(points.path, points.ids[ids], points.latlon_deg[ids], others)

    def where(rows: Sequence[int]) -> list[str]:
        return [f"{points.path} row {ids[row]}" for row in rows]

    return assemble(base, points, files.take(pa.array(ids)), findings, where=where)


def read_image_ids(path: str | Path) -> NDArray[np.int64]:
    """Ascending image ids, (n,), of a list such as boston100.npz, which stores their differences.

    Raises:
        BadTableError: it is not such a list.
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
