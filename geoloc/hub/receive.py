"""Resumable download of one file from the Hub, and translation of the client's errors.

A plain HTTP GET with byte ranges, also for files stored as chunks (Xet), so that a download can resume in another
process and stop at the expected size.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from geoloc import __version__
from geoloc.errors import IntegrityError, NotFoundError

if TYPE_CHECKING:
    import httpx2

ELSEWHERE: Final = "or run `geoloc pull` where there is a network and give the path of that folder"

_MAX_FAILURES: Final = 5  # consecutive attempts without a received byte
_WAIT_S: Final = 0.5  # before the second attempt; doubled before each further one


def receive(
    url: str,
    path: Path,
    max_bytes: int,
    origin: str,
    name: str,
    progress: Callable[[int], object] = lambda num_bytes: None,
) -> None:
    """Append the missing bytes of a URL to a file, at most up to `max_bytes`; broken connections are resumed.

    Args:
        url: of the file.
        path: local file, perhaps with the first bytes.
        max_bytes: expected size.
        origin: name of the repository in errors.
        name: name of the file in errors.
        progress: called with the number of received bytes, or the negative number of discarded bytes.

    Raises:
        IntegrityError: the URL has more bytes.
        Exception: an error of the client, see `explaining`.
    """
    import httpx2
    from huggingface_hub import constants, hf_raise_for_status
    from huggingface_hub.utils import build_hf_headers, http_stream_backoff

    headers = build_hf_headers(library_name="geoloc", library_version=__version__)
    headers["Accept-Encoding"] = "identity"  # with compression, byte ranges would count compressed bytes
    failures = 0
    while (start := size_of(path)) < max_bytes or start == 0:
        try:
            with http_stream_backoff(
                "GET",
                url,
                headers=headers | ({"Range": f"bytes={start}-"} if start else {}),
                timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
                retry_on_exceptions=(),  # we retry, from the byte where it broke
            ) as response:
                if start and response.status_code in (
                    200,
                    416,
                ):  # the server sent the whole file, or rejected the range: start again
                    path.unlink()
                    progress(-start)
                    if response.status_code == 416:
                        continue
                hf_raise_for_status(response)
                _append(response, path, max_bytes, origin, name, progress)
            return
        except httpx2.TransportError:
            failures = 1 if size_of(path) > start else failures + 1
            if failures > _MAX_FAILURES:
                raise
            time.sleep(_WAIT_S * 2**failures)


def _append(
    response: httpx2.Response,
    path: Path,
    max_bytes: int,
    origin: str,
    name: str,
    progress: Callable[[int], object],
) -> None:
    with open(path, "ab") as file:
        size = file.tell()
        for block in response.iter_bytes():
            size += len(block)
            if size > max_bytes:
                raise IntegrityError(
                    f"{origin} sends more than {max_bytes} bytes for {name!r}, the size in its manifest: it was "
                    "changed without geoloc, so ask its owner to push it again, or use an older revision"
                )
            file.write(block)
            progress(len(block))


def size_of(path: Path) -> int:
    """Size of a file in bytes; 0 if it does not exist."""
    return path.stat().st_size if path.exists() else 0


@contextmanager
def explaining(what: str, otherwise: str = ELSEWHERE) -> Iterator[None]:
    """Translate errors of the client.

    Args:
        what: the operation, as in "could not …".
        otherwise: advice if the Hub is unreachable.

    Raises:
        NotFoundError: the resource does not exist, access is denied, or the Hub is unreachable.
    """
    import httpx2
    from huggingface_hub import is_offline_mode
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
        RevisionResolutionError,
    )

    try:
        yield
    except EntryNotFoundError:
        raise  # handled by the caller
    except GatedRepoError as error:
        advice = "accept its terms on its page on the Hub, and log in with `hf auth login`"
        raise NotFoundError(f"could not {what}: access to it is granted by its owner; {advice}") from error
    except RevisionNotFoundError as error:
        raise NotFoundError(
            f"could not {what}: there is no such revision; see its page on the Hub"
        ) from error
    except RepositoryNotFoundError as error:
        raise NotFoundError(
            f"could not {what}: there is no such repository, or it is private; check the name, or log in with "
            "`hf auth login`"
        ) from error
    except (OfflineModeIsEnabled, RevisionResolutionError, httpx2.TransportError) as error:
        why, advice = f"the Hub does not answer ({one_line(error)})", "check the network"
        if is_offline_mode():
            why, advice = "it is not in the cache, and offline mode is on (HF_HUB_OFFLINE)", "unset that"
        raise NotFoundError(f"could not {what}: {why}; {advice}, {otherwise}") from error
    except (HfHubHTTPError, HFValidationError) as error:
        raise NotFoundError(f"could not {what}: {one_line(error)}; check the name and your access") from error


def one_line(error: BaseException | None) -> str:
    """First line of an error message."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
