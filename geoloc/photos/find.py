"""Find images by files, folders, patterns and a list on standard input. Opens no image.

Order and names are fixed by the arguments and the file system alone, so that a job that is started again sees
the same list: the arguments' order, and inside a folder or a pattern the order of the paths' characters.
"""

import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

from geoloc.errors import NotFoundError
from geoloc.images.decode import IMAGE_SUFFIXES


@dataclass(frozen=True, slots=True)
class ImageFile:
    """An image file, not opened yet.

    Attributes:
        id: of its row; unique in a list.
        path: of the file.
    """

    id: str
    path: Path


class ImageList(Sequence[ImageFile]):
    """Image files in a fixed order; takes the memory of their paths only.

    Args:
        paths: no two of them name one file.
        folder: every path is this joined with the id; None makes the ids the paths themselves.
    """

    def __init__(self, paths: Sequence[str], folder: str | None = None) -> None:
        self._paths = paths
        self._folder = folder

    def __len__(self) -> int:
        return len(self._paths)

    @overload
    def __getitem__(self, index: int) -> ImageFile: ...
    @overload
    def __getitem__(self, index: slice) -> "ImageList": ...
    def __getitem__(self, index: "int | slice") -> "ImageFile | ImageList":
        if isinstance(index, slice):
            return ImageList(self._paths[index], self._folder)
        path = self._paths[index]
        name = path[len(os.path.join(self._folder, "")) :] if self._folder else os.path.normpath(path)
        # A name may not be UTF-8 on the disk, but must be in the output.
        return ImageFile(os.fsencode(name).decode("utf-8", "backslashreplace"), Path(path))


def find_images(arguments: Sequence[str], listed: Iterable[bytes] = ()) -> ImageList:
    """The images that command-line arguments name.

    - A file is taken whatever its suffix.
    - A folder is searched, with all folders below it, for files with an image's suffix; names that begin with
      a dot are left out.
    - A pattern (`'photos/**/*.jpg'`, quoted against the shell) gives the files with an image's suffix, and
      the contents of the folders, that it matches.
    - `-` stands for `listed`, one path a line. A missing file is not an error here: it gets a
      row.

    A file that is named twice counts once, at its first place. The id of an image is its path inside the
    folder if a folder is the only argument, and else the path as it was given.

    Args:
        arguments: files, folders, patterns and `-`.
        listed: lines of standard input.

    Raises:
        NotFoundError: an argument does not exist, or there is no image at all.
    """
    found: dict[str, str] = {}  # absolute path -> path as given
    for argument in arguments:
        for path in _named_by(argument, listed):
            found.setdefault(os.path.abspath(path), path)
    if not found:
        raise NotFoundError(_nothing_found(arguments))
    only_folder = arguments[0] if len(arguments) == 1 and os.path.isdir(arguments[0]) else None
    return ImageList(list(found.values()), only_folder)


def _named_by(argument: str, listed: Iterable[bytes]) -> Iterable[str]:
    if argument == "-":
        return (os.fsdecode(path) for line in listed if (path := line.rstrip(b"\r\n")))
    if os.path.isdir(argument):
        return sorted(walk_images(argument))
    if os.path.lexists(argument):
        return [argument]
    if glob.has_magic(argument):
        return sorted(_matches(argument))
    raise NotFoundError(f"there is no file or folder {argument!r}; check the path")


def _matches(pattern: str) -> Iterator[str]:
    for path in glob.iglob(pattern, recursive=True):
        if os.path.isdir(path):
            yield from walk_images(path)
        elif _has_image_suffix(path):
            yield path


def walk_images(folder: str, above: frozenset[tuple[int, int]] = frozenset()) -> Iterator[str]:
    """Paths of the images in a folder and below it; links to folders are followed unless they lead back up.

    Names that begin with a dot are left out.

    Args:
        folder: that is walked.
        above: device and inode of the folders above it.
    """
    status = os.stat(folder)
    identity = (status.st_dev, status.st_ino)
    if identity in above:
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):  # macOS and cameras leave files such as `._photo.jpg`
                continue
            if entry.is_dir():
                yield from walk_images(entry.path, above | {identity})
            elif _has_image_suffix(entry.name):
                yield entry.path


def _has_image_suffix(name: str) -> bool:
    return name.lower().endswith(IMAGE_SUFFIXES)


def _nothing_found(arguments: Sequence[str]) -> str:
    looked = []
    for argument in arguments:
        if argument == "-":
            looked.append("standard input (no line names a file)")
        elif os.path.isdir(argument):
            looked.append(f"{argument} (a folder, with all below it)")
        else:
            looked.append(f"{argument} (a pattern)")
    where = ", ".join(looked) or "no argument"
    return f"no image found in {where}; looked for files that end in {' '.join(IMAGE_SUFFIXES)}"
