"""Encoded images as byte ranges: a file, or a member of a tar.

for sample in tar_samples("000.tar"):
sample.key, sample.picture.read(), sample.about and sample.about.read()
"""

import os
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from geoloc.errors import BadImageError, ConfigError, NotFoundError
from geoloc.images.decode import DEFAULT_LIMITS, IMAGE_SUFFIXES, read_image_bytes


@dataclass(frozen=True, slots=True)
class EncodedImage:
    """Byte range of an encoded image.

    Attributes:
        path: of the file.
        offset: of the first byte.
        num_bytes: length; None is the whole file.
    """

    path: str
    offset: int = 0
    num_bytes: int | None = None

    def read(self, max_bytes: int = DEFAULT_LIMITS.max_bytes) -> bytes:
        """The encoded bytes.

        Raises:
            BadImageError: there is no such file, it is shorter than it was, or it is too large for an image.
        """
        if self.num_bytes is None:
            return read_image_bytes(self.path)
        if self.num_bytes > max_bytes:
            raise BadImageError(f"too many bytes: {self.num_bytes:,} exceed the limit of {max_bytes:,}")
        try:
            with open(self.path, "rb", buffering=0) as file:
                data = os.pread(file.fileno(), self.num_bytes, self.offset)
                # A network file system may return fewer bytes than requested.
                while len(data) < self.num_bytes and (
                    more := os.pread(file.fileno(), self.num_bytes - len(data), self.offset + len(data))
                ):
                    data += more
        except OSError as error:
            raise BadImageError(f"file cannot be read: {error.strerror}") from error
        if len(data) != self.num_bytes:
            raise BadImageError("the tar ends inside of it")
        return data

    def __str__(self) -> str:
        return self.path if self.num_bytes is None else f"{self.path} at byte {self.offset:,}"


@dataclass(frozen=True, slots=True)
class TarSample:
    """An image in a webdataset tar, with its metadata.

    Attributes:
        key: name of the members up to the first dot.
        picture: the image, see `image_kind`.
        about: the member with the suffix json, if there is one.
    """

    key: str
    picture: EncodedImage
    about: EncodedImage | None


def tar_samples(path: str | Path) -> Iterator[TarSample]:
    """Samples of an uncompressed tar that have an image, in its order; only headers are read.

    Members that share a name up to the first dot are a sample. Names are never used as paths.

    Raises:
        NotFoundError: there is no such file.
        ConfigError: it is not an uncompressed tar.
    """
    path = Path(path)
    if not path.is_file():
        raise NotFoundError(f"there is no tar of photos {path}: check the path")
    samples: dict[str, dict[str, EncodedImage]] = {}
    try:
        with tarfile.open(path, "r:") as tar:  # never a compressed one: images are read at their offsets
            for member in tar:
                folder, name = os.path.split(member.name)
                stem, _, kind = name.partition(".")
                if member.isreg() and kind:
                    place = EncodedImage(str(path), member.offset_data, member.size)
                    samples.setdefault(os.path.join(folder, stem), {}).setdefault(kind.lower(), place)
    except tarfile.TarError as error:
        raise ConfigError(f"{path} is not an uncompressed tar ({error}): decompress it") from None
    for key, members in samples.items():
        picture = image_kind(members)
        if picture is not None:
            yield TarSample(key, members[picture], members.get("json"))


def image_kind(kinds: Iterable[str]) -> str | None:
    """The member of a sample that is its image: the first with an image's suffix, such as "jpg".

    One with more dots, such as "seg.png", counts only where there is no plain one.
    """
    known = list(kinds)
    plain = (kind for kind in known if f".{kind}" in IMAGE_SUFFIXES)
    dotted = (kind for kind in known if f".{kind}".endswith(IMAGE_SUFFIXES))
    return next(plain, next(dotted, None))
