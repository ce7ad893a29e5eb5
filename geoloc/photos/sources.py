"""Input images as shards: folders, webdataset tars and Parquet tables, on this disk or at any URL that fsspec opens.

    shards = plan_shards(["s3://bucket/osv5m/{000..023}.tar"])
    for image in read_images(shards[0].payload):
        image.id, image.read()

A payload is plain JSON and says what its input was (sizes, modification times), so that a job notices a changed input.
Files are cut into shards of a fixed number. A row group of a table is one shard. A tar is one shard, read as a stream;
a tar on this disk can be cut into shards of a fixed number, too, since its members are read at their offsets.
"""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import IO, TYPE_CHECKING, Any, Final

import fsspec

from geoloc.errors import BadImageError, BadTableError, NotFoundError
from geoloc.images.decode import DEFAULT_LIMITS, IMAGE_SUFFIXES
from geoloc.jobs.shards import Shard
from geoloc.photos.encoded import EncodedImage, image_kind, tar_samples
from geoloc.photos.find import find_images

if TYPE_CHECKING:
    import pyarrow.parquet as pq

FILES_PER_SHARD: Final = 512

Payload = dict[str, Any]
Stamp = tuple[int | None, int | None]


@dataclass(frozen=True, slots=True)
class SourceImage:
    """An image of a shard, before it is read.

    Attributes:
        id: its name in the output.
        read: returns the encoded bytes; raises BadImageError where there are none.
        path: of its file, where it has one of its own.
    """

    id: str
    read: Callable[[], bytes]
    path: str | None = None


def plan_shards(
    inputs: Sequence[str],
    images_per_shard: int = FILES_PER_SHARD,
    *,
    listed: Iterable[bytes] = (),
    cut_tars: bool = False,
) -> list[Shard]:
    """The shards of some inputs, in their order, called 00000.parquet, 00001.parquet and so on.

    Args:
        inputs: folders, image files and patterns, as `find_images` takes them; .tar of webdataset; .parquet with
            columns `id` and `image` (bytes, or the struct of Hugging Face's datasets); or URLs of any of these, such as
            "s3://bucket/photos/". Braces count: "{000..023}.tar".
        images_per_shard: single files that go together.
        listed: lines of standard input, for the input "-".
        cut_tars: cut tars of this disk into shards of so many images as well.

    Raises:
        NotFoundError: an input does not exist, or there is no image at all.
        ConfigError: a tar is not an uncompressed one.
        BadTableError: a Parquet file without the columns.
    """
    payloads: list[Payload] = []
    files: list[str] = []
    for argument in chain.from_iterable(map(_expand_braces, inputs)):
        is_url = "://" in argument
        if argument.endswith(".tar"):
            payloads += _tar_payloads(argument, images_per_shard if cut_tars and not is_url else None)
        elif argument.endswith(".parquet"):
            payloads += _row_groups(argument)
        elif is_url:
            payloads += file_payloads(_remote_images(argument), images_per_shard)
        else:
            files.append(argument)
    if files:
        found = ((image.id, os.fspath(image.path)) for image in find_images(files, listed))
        payloads += file_payloads(found, images_per_shard)
    if not payloads:
        raise NotFoundError("no input was named; name folders, .tar or .parquet files, or URLs of them")
    return name_shards(payloads)


def name_shards(payloads: Sequence[Payload], suffix: str = ".parquet") -> list[Shard]:
    """Shards named by their numbers."""
    return [Shard(f"{number:05}{suffix}", payload) for number, payload in enumerate(payloads)]


def file_payloads(
    images: Iterable[tuple[str, str]], images_per_shard: int = FILES_PER_SHARD
) -> list[Payload]:
    """Payloads of single files, given as (id, path or URL), with the size and modification time of each."""
    entries = [[image_id, path, *stamp_of(path)] for image_id, path in images]
    return [
        {"files": entries[start : start + images_per_shard]}
        for start in range(0, len(entries), images_per_shard)
    ]


def num_images_of(payload: Payload) -> int | None:
    """Number of images of a shard; None where only reading tells."""
    entries = payload.get("files", payload.get("members"))
    return payload.get("num_rows") if entries is None else len(entries)


def read_images(payload: Payload) -> Iterator[SourceImage]:
    """The images of a shard, in its order; only a stream is read before it is asked for.

    Raises:
        BadTableError: an input that is not a tar, or ends in the middle.
    """
    if "members" in payload:
        for key, offset, num_bytes in payload["members"]:
            yield SourceImage(key, EncodedImage(payload["tar"], offset, num_bytes).read)
    elif "tar" in payload:
        yield from _read_tar(payload["tar"])
    elif "parquet" in payload:
        yield from _read_row_group(payload["parquet"], payload["row_group"])
    else:
        for image_id, path, *_ in payload["files"]:
            yield SourceImage(image_id, partial(_read_file, path), path)


def stamp_of(path: str) -> Stamp:
    """Size in bytes, and modification time in ns where the file system tells it; None for what is unknown."""
    try:
        if "://" not in path:
            status = os.stat(path)
            return status.st_size, status.st_mtime_ns
        filesystem, inside = fsspec.core.url_to_fs(path)
        return filesystem.info(inside)["size"], None
    except OSError:
        return None, None


# --- Files ------------------------------------------------------------------------------------------------


def _read_file(path: str) -> bytes:
    if "://" not in path:
        return EncodedImage(path).read()
    try:
        with _open(path) as file:
            data = bytes(file.read(DEFAULT_LIMITS.max_bytes + 1))
    except OSError as error:
        raise BadImageError(f"cannot be read: {error.strerror or error}") from error
    if len(data) > DEFAULT_LIMITS.max_bytes:
        raise BadImageError(f"too many bytes: more than the limit of {DEFAULT_LIMITS.max_bytes:,}")
    return data


def _remote_images(url: str) -> list[tuple[str, str]]:
    """Images below a folder at a URL, or those that a pattern there matches; the ids are the paths below it."""
    filesystem, root = fsspec.core.url_to_fs(url)
    protocol = url.split("://", 1)[0]
    found = filesystem.glob(root) if re.search(r"[*?\[]", root) else filesystem.find(root)
    paths = sorted(path for path in found if path.lower().endswith(IMAGE_SUFFIXES))
    if not paths:
        raise NotFoundError(f"no image at {url}; looked for files that end in {' '.join(IMAGE_SUFFIXES)}")
    prefix = re.sub(r"[^/]*[*?\[].*$", "", root).rstrip("/") + "/"
    return [(path.removeprefix(prefix), f"{protocol}://{path}") for path in paths]


# --- Tars -------------------------------------------------------------------------------------------------


def _tar_payloads(url: str, images_per_shard: int | None) -> list[Payload]:
    whole = {"tar": url, "size": _size_of(url)}
    if images_per_shard is None:
        return [whole]
    members = [[s.key, s.picture.offset, s.picture.num_bytes] for s in tar_samples(url)]
    return [
        {**whole, "members": members[start : start + images_per_shard]}
        for start in range(0, len(members), images_per_shard)
    ]


def _read_tar(url: str) -> Iterator[SourceImage]:
    """Samples of a webdataset tar as a stream, by webdataset's rule for keys; the first image of a sample counts."""
    import tarfile

    from webdataset.tariterators import group_by_keys, tar_file_iterator

    try:
        with _open(url) as file:
            members = ({**member, "__url__": url} for member in tar_file_iterator(file, skip_meta=None))
            for sample in group_by_keys(members):
                kind = image_kind(name for name in sample if not name.startswith("__"))
                if kind is not None:
                    yield SourceImage(sample["__key__"], partial(bytes, sample[kind]))
    except (tarfile.TarError, ValueError) as error:
        raise BadTableError(f"{url} is not a whole tar of samples: {error.args[0]}; copy it again") from error


# --- Tables -----------------------------------------------------------------------------------------------


def _row_groups(url: str) -> list[Payload]:
    size = _size_of(url)
    with _open(url) as file:
        parquet = _parquet(url, file)
        if not {"id", "image"} <= set(parquet.schema_arrow.names):
            raise BadTableError(
                f"{url} has the columns {', '.join(parquet.schema_arrow.names)}; expected id and image (bytes)"
            )
        return [
            {
                "parquet": url,
                "row_group": group,
                "size": size,
                "num_rows": parquet.metadata.row_group(group).num_rows,
            }
            for group in range(parquet.num_row_groups)
        ]


def _read_row_group(url: str, group: int) -> Iterator[SourceImage]:
    with _open(url) as file:
        table = _parquet(url, file).read_row_group(group, columns=["id", "image"])
    for image_id, image in zip(table["id"].to_pylist(), table["image"].to_pylist(), strict=True):
        data = image.get("bytes") if isinstance(image, dict) else image
        yield SourceImage(str(image_id), partial(_bytes_of_cell, data))


def _bytes_of_cell(data: bytes | None) -> bytes:
    if data is None:
        raise BadImageError("has no bytes in the table")
    return data


def _parquet(url: str, file: IO[bytes]) -> "pq.ParquetFile":
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(file)
    except pa.ArrowException as error:
        raise BadTableError(f"{url} is not a Parquet file: {str(error).splitlines()[0]}") from error


# --- What all share ---------------------------------------------------------------------------------------


def _open(path: str) -> IO[bytes]:
    if "://" not in path:
        return open(path, "rb")
    opened: IO[bytes] = fsspec.open(path, "rb").open()
    return opened


def _size_of(path: str) -> int:
    size, _ = stamp_of(path)
    if size is None:
        raise NotFoundError(f"there is no {path}; check the path")
    return size


def _expand_braces(text: str) -> Iterator[str]:
    """The texts that braces stand for: "{000..003}" for four, "{a,b}" for two. Braces in a name that exists stay."""
    if "{" not in text or os.path.lexists(text):
        return iter([text])
    from braceexpand import braceexpand

    try:
        return iter(list(braceexpand(text)))
    except ValueError:  # braces that do not close are part of a name
        return iter([text])
