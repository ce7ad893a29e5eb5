"""Images as shards: from folders, webdataset tars and Parquet tables, on this disk or at any URL that fsspec opens.

    shards = plan_shards(["s3://bucket/osv5m/{000..023}.tar"])
    for image_id, data in read_images(shards[0].payload): ...

A payload is plain JSON and says what its input was (sizes, modification times): a job whose input has changed is
another job, and is refused. One tar is one shard, one row group of a table is one, and files are cut into shards of a
fixed number. Knows nothing about models.
"""

import os
import re
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import IO, TYPE_CHECKING, Any, Final

import fsspec

from geoloc.errors import BadImageError, BadTableError, NotFoundError
from geoloc.jobs.shards import Shard
from geoloc.localize.inputs import IMAGE_SUFFIXES, find_images

if TYPE_CHECKING:
    import pyarrow.parquet as pq

FILES_PER_SHARD: Final = 512
SUFFIX: Final = ".parquet"  # of what is made of a shard

Payload = dict[str, Any]


def plan_shards(inputs: Sequence[str], files_per_shard: int = FILES_PER_SHARD) -> list[Shard]:
    """The shards of some inputs, in their order; their outputs are called 00000.parquet, 00001.parquet and so on.

    Args:
        inputs: folders, image files and patterns, as `find_images` takes them; .tar of webdataset; .parquet with
            columns `id` and `image` (bytes, or the struct of Hugging Face's datasets); or URLs of any of these, as
            "s3://bucket/photos/". Braces count: "{000..023}.tar".
        files_per_shard: single files that go together.

    Raises:
        NotFoundError: an input does not exist, or there is no image at all.
        BadTableError: a Parquet file without the columns.
    """
    payloads: list[Payload] = []
    files: list[str] = []
    for argument in chain.from_iterable(map(_expand_braces, inputs)):
        if argument.endswith(".tar"):
            payloads.append({"tar": argument, "size": _size_of(argument)})
        elif argument.endswith(".parquet"):
            payloads += _row_groups(argument)
        elif "://" in argument:
            payloads += file_payloads(_remote_images(argument), files_per_shard)
        else:
            files.append(argument)
    if files:
        found = ((image.id, os.fspath(image.path)) for image in find_images(files))
        payloads += file_payloads(found, files_per_shard)
    if not payloads:
        raise NotFoundError("no input was named; name folders, .tar or .parquet files, or URLs of them")
    return name_shards(payloads)


def name_shards(payloads: Sequence[Payload]) -> list[Shard]:
    """Shards by their numbers."""
    return [Shard(f"{number:05}{SUFFIX}", payload) for number, payload in enumerate(payloads)]


def file_payloads(images: Iterable[tuple[str, str]], files_per_shard: int = FILES_PER_SHARD) -> list[Payload]:
    """Payloads of single files, given as (id, path or URL): of each its size and modification time, too."""
    entries = [[image_id, path, *_stamp(path)] for image_id, path in images]
    return [
        {"files": entries[start : start + files_per_shard]}
        for start in range(0, len(entries), files_per_shard)
    ]


def read_images(payload: Payload) -> Iterator[tuple[str, bytes | BadImageError]]:
    """Id and bytes of each image of a shard, in its order; the error instead of the bytes where there are none.

    Raises:
        BadTableError: a tar that is none, or that ends in the middle.
    """
    if "tar" in payload:
        yield from _read_tar(payload["tar"])
    elif "parquet" in payload:
        yield from _read_row_group(payload["parquet"], payload["row_group"])
    else:
        for image_id, path, *_ in payload["files"]:
            yield image_id, _read_file(path)


def _read_file(path: str) -> bytes | BadImageError:
    try:
        with _open(path) as file:
            return bytes(file.read())
    except OSError as error:
        return BadImageError(f"cannot be read: {error.strerror or error}")


def _read_tar(url: str) -> Iterator[tuple[str, bytes | BadImageError]]:
    """Webdataset: files that share a name up to its first dot are one sample; the first image of it counts."""
    seen: set[str] = set()
    try:
        # As a stream, because a URL cannot always seek.
        with _open(url) as file, tarfile.open(fileobj=file, mode="r|") as tar:
            for member in tar:
                folder, _, name = member.name.rpartition("/")
                key = "/".join(filter(None, [folder, name.partition(".")[0]]))
                if not member.isfile() or not name.lower().endswith(IMAGE_SUFFIXES) or key in seen:
                    continue
                seen.add(key)
                content = tar.extractfile(member)
                assert content is not None
                yield key, content.read()
    except tarfile.TarError as error:
        raise BadTableError(f"{url} is no whole tar: {error}; copy it again") from error


def _row_groups(url: str) -> list[Payload]:
    size = _size_of(url)
    with _open(url) as file:
        parquet = _parquet(url, file)
        if not {"id", "image"} <= set(parquet.schema_arrow.names):
            raise BadTableError(
                f"{url} has the columns {', '.join(parquet.schema_arrow.names)}; expected id and image (bytes)"
            )
        return [{"parquet": url, "row_group": group, "size": size} for group in range(parquet.num_row_groups)]


def _read_row_group(url: str, group: int) -> Iterator[tuple[str, bytes | BadImageError]]:
    with _open(url) as file:
        table = _parquet(url, file).read_row_group(group, columns=["id", "image"])
    for image_id, image in zip(table["id"].to_pylist(), table["image"].to_pylist(), strict=True):
        data = image.get("bytes") if isinstance(image, dict) else image
        yield str(image_id), BadImageError("has no bytes in the table") if data is None else data


def _parquet(url: str, file: IO[bytes]) -> "pq.ParquetFile":
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(file)
    except pa.ArrowException as error:
        raise BadTableError(f"{url} is no Parquet file: {str(error).splitlines()[0]}") from error


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


def _open(path: str) -> IO[bytes]:
    if "://" not in path:
        return open(path, "rb")
    opened: IO[bytes] = fsspec.open(path, "rb").open()
    return opened


def _size_of(path: str) -> int:
    size, _ = _stamp(path)
    if size is None:
        raise NotFoundError(f"there is no {path}; check the path")
    return size


def _stamp(path: str) -> tuple[int | None, int | None]:
    """Size, and modification time in ns where the file system tells it."""
    try:
        if "://" not in path:
            status = os.stat(path)
            return status.st_size, status.st_mtime_ns
        filesystem, inside = fsspec.core.url_to_fs(path)
        return filesystem.info(inside)["size"], None
    except OSError:
        return None, None


def _expand_braces(text: str) -> Iterator[str]:
    """Write out "{000..003}" to four texts, "{a,b}" to two, as shells and webdataset have it."""
    found = re.search(r"\{(\d+)\.\.(\d+)\}|\{([^{}]*,[^{}]*)\}", text)
    if found is None:
        yield text
        return
    first, last, words = found.groups()
    choices = (
        words.split(",")
        if words is not None
        else [f"{n:0{len(first)}}" for n in range(int(first), int(last) + 1)]
    )
    for choice in choices:
        yield from _expand_braces(text[: found.start()] + choice + text[found.end() :])
