"""OSV-5M's layout: train.csv and test.csv, and images/SPLIT/…/ID.jpg in folders of any depth."""

from pathlib import Path
from typing import Final

import pyarrow as pa

from geoloc.data.layouts.assemble import KNOWN_COLUMNS, assemble
from geoloc.data.layouts.files import find_table
from geoloc.data.layouts.findings import Findings
from geoloc.data.layouts.image_tree import ImageTree
from geoloc.data.sample import SampleTable
from geoloc.files.tables import read_points

SPLITS: Final = ("train", "test")


def truth_file(folder: Path, split: str) -> Path:
    """Path of a split's table.

    Raises:
        NotFoundError: it does not exist.
    """
    return find_table(folder, f"{split}.csv", f"{split}/{split}.csv")


def read(folder: Path, split: str, findings: Findings) -> SampleTable:
    """The samples of a split.

    Raises:
        NotFoundError, BadTableError: the table is missing or broken.
    """
    points = read_points(truth_file(folder, split), others=KNOWN_COLUMNS)
    images = f"images/{split}"
    tree = ImageTree(folder, images if (folder / images).is_dir() else ".")
    return assemble(folder, points, tree.find(pa.array(points.ids, pa.string())), findings)
