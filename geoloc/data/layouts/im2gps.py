"""Im2GPS and Im2GPS3k: OSV-5M's copy (images/ and info.json with Flickr's lines), or the ISN family's CSV."""

import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from geoloc.data.layouts.assemble import assemble
from geoloc.data.layouts.files import find_table, points_of
from geoloc.data.layouts.findings import Findings
from geoloc.data.layouts.image_tree import ImageTree
from geoloc.data.sample import SampleTable
from geoloc.errors import BadTableError
from geoloc.files.tables import Columns, PointTable, read_points

ISN_COLUMNS = Columns(id="IMG_ID", latitude="LAT", longitude="LON")


def read_truth(folder: Path) -> PointTable:
    """Ids and locations.

    Raises:
        NotFoundError, BadTableError: the table is missing or broken.
    """
    info = folder / "info.json"
    if info.is_file():
        return points_of(info, _rows(info))
    return read_points(find_table(folder, "im2gps3k_places365.csv", "im2gps_places365.csv"), ISN_COLUMNS)


def _rows(path: Path) -> Iterator[tuple[str, str, str]]:
    try:
        entries = json.loads(path.read_bytes())
        for name, lines in sorted(entries.items()):
            if lines:  # an image whose location was lost has an empty list, and is not evaluated
                yield name, lines[-4].replace("latitude: ", ""), lines[-3].replace("longitude: ", "")
    except (ValueError, AttributeError, IndexError) as error:
        raise BadTableError(
            f"{path} is not Im2GPS's info.json (image name -> lines, the location in the 4th and 3rd from the end)"
        ) from error


def read(folder: Path, split: str, findings: Findings) -> SampleTable:
    """The samples; there is one split.

    Raises:
        NotFoundError, BadTableError: as `read_truth`.
    """
    points = read_truth(folder)
    return assemble(folder, points, ImageTree(folder).find(pa.array(points.ids, pa.string())), findings)
