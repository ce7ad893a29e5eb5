"""Index of the images below a folder by name, for joins with many ids."""

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from geoloc.errors import ConfigError
from geoloc.photos.find import walk_images


class ImageTree:
    """The images below a folder, by their suffixes; names that begin with a dot are left out.

    Args:
        root: folder that paths are relative to.
        below: folder below the root that is searched.

    Attributes:
        files: (n,) paths relative to the root, "images/train/00/17.jpg"; sorted.

    Raises:
        ConfigError: a file name is not UTF-8.
    """

    def __init__(self, root: str | Path, below: str = ".") -> None:
        self.root = os.path.abspath(root)
        start = os.path.normpath(os.path.join(self.root, below))
        paths = walk_images(start) if os.path.isdir(start) else []
        names = sorted(os.path.relpath(path, self.root) for path in paths)
        try:
            self.files: pa.Array = pa.array(names, pa.string())
        except UnicodeEncodeError as error:
            raise ConfigError(
                f"an image below {start} has a name that is not UTF-8, near {error.object[-40:]!r}: rename it"
            ) from None

    def find(self, ids: pa.Array) -> pa.Array:
        """The file of each id, (n,) -> (n,), null if there is none.

        An id is the path below the root, the file name, or the name without its suffix; missing folders in an id are
        ignored. Of several files with one name the first is taken.
        """
        names = _last_part(self.files)
        stems = strip_suffix(names)
        found = pc.index_in(ids, value_set=self.files)
        for wanted, offered in (
            (ids, names),
            (ids, stems),
            (_last_part(ids), names),
            (_last_part(ids), stems),
        ):
            if not found.null_count:
                break
            found = pc.if_else(found.is_null(), pc.index_in(wanted, value_set=offered), found)
        return self.files.take(found)


def _last_part(paths: pa.Array) -> pa.Array:
    return pc.replace_substring_regex(paths, r"^.*/", "")


def strip_suffix(names: pa.Array) -> pa.Array:
    """Names without their last suffix."""
    return pc.replace_substring_regex(names, r"\.[^./]*$", "")
