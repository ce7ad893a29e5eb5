"""Own photos: a folder with one table (CSV, TSV or Parquet), the table itself, or EXIF locations."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from geoloc.data.layouts.assemble import KNOWN_COLUMNS, assemble
from geoloc.data.layouts.files import only_table, usual_columns
from geoloc.data.layouts.findings import Findings
from geoloc.data.layouts.image_tree import ImageTree
from geoloc.data.sample import SampleTable
from geoloc.errors import NotFoundError
from geoloc.files.tables import PointTable, read_points
from geoloc.images.exif import read_exif_heading_deg, read_exif_latlon_deg


def read(path: Path, split: str, findings: Findings) -> SampleTable:
    """The samples; there is one split.

    Raises:
        NotFoundError, BadTableError: there are several tables, no image, or a broken table.
    """
    table = only_table(path) if path.is_dir() else path
    folder = path if path.is_dir() else path.parent
    tree = ImageTree(folder)
    if table is not None:
        points = read_points(table, usual_columns(table), KNOWN_COLUMNS)
        return assemble(folder, points, tree.find(pa.array(points.ids, pa.string())), findings)
    if not len(tree.files):
        raise NotFoundError(f"{folder} has no table and no photo; name the folder that has them")
    files = [folder / name for name in tree.files.to_pylist()]
    latlon_deg = np.array([read_exif_latlon_deg(file) or (np.nan, np.nan) for file in files])
    headings = pa.chunked_array([pa.array([read_exif_heading_deg(file) for file in files], pa.float64())])
    ids = np.asarray(tree.files.to_numpy(zero_copy_only=False), np.object_)
    points = PointTable(folder, ids, latlon_deg, {"heading_deg": headings})
    where = lambda rows: [f"the EXIF of {files[row]}" for row in rows]  # noqa: E731
    return assemble(folder, points, tree.files, findings, where=where)
