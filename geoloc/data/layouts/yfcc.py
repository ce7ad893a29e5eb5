"""YFCC4k (info.txt, with tabs) and YFCC26k: OSV-5M's copy, or the ISN family's CSV."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from geoloc.data.layouts.assemble import assemble
from geoloc.data.layouts.files import find_table, points_of
from geoloc.data.layouts.findings import Findings
from geoloc.data.layouts.im2gps import ISN_COLUMNS
from geoloc.data.layouts.image_tree import ImageTree
from geoloc.data.sample import SampleTable
from geoloc.errors import BadTableError
from geoloc.files.tables import PointTable, read_points


def read_truth(folder: Path) -> PointTable:
    """Ids and locations.

    Raises:
        NotFoundError, BadTableError: the table is missing or broken.
    """
    info = folder / "info.txt"
    if info.is_file():
        return points_of(info, _rows(info))
    names = ("yfcc4k_places365.csv", "yfcc25600_places365.csv", "yfcc26k_places365.csv")
    return read_points(find_table(folder, *names), ISN_COLUMNS)


def _rows(path: Path) -> Iterator[tuple[str, str, str]]:
    """Columns 1, 13 and 12: id, latitude, longitude."""
    for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1):
        fields = line.split("\t")
        if len(fields) < 14:
            raise BadTableError(
                f"{path} line {number}: {len(fields)} fields between tabs, expected 14 or more"
            )
        yield fields[1], fields[13], fields[12]


def read(folder: Path, split: str, findings: Findings) -> SampleTable:
    """The samples; there is one split.

    Raises:
        NotFoundError, BadTableError: as `read_truth`.
    """
    points = read_truth(folder)
    return assemble(folder, points, ImageTree(folder).find(pa.array(points.ids, pa.string())), findings)
