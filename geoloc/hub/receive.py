"""One file from the Hub, from the byte where it was cut; and what its client raises, in words of ours.

The only place that speaks HTTP itself. A plain GET, also for what the Hub stores as chunks (Xet): only so can a file
go on from any byte, in another process, too, and be stopped at its promised size. Knows nothing about manifests.
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

_MAX_FAILURES: Final = 5  # one after the other, without a byte between them
_WAIT_S: Final = 0.5  # before the second attempt; doubled before each further one


def receive(
    url: str,
    path: Path,
    max_bytes: int,
    origin: str,
    name: str,
    progress: Callable[[int], object] = lambda num_bytes: None,
) -> None:
    """Append to a file what it lacks of what is at an address, and never more than `max_bytes`.

    A broken connection is taken up again where it broke, as long as bytes come.

    Args:
        url: the address.
        path: of the file; its first bytes may be there.
        max_bytes: the size at which it is whole, or too large.
        origin: what an error calls the repository.
        name: what an error calls the file.
        progress: is told of bytes that came; of those that were thrown away as a negative number.

    Raises:
        IntegrityError: there are more bytes.
        Exception: whatever the client raises, see `explaining`.
    """
    import httpx2
    from huggingface_hub import constants, hf_raise_for_status
    from huggingface_hub.utils import build_hf_headers, http_stream_backoff

    headers = build_hf_headers(library_name="geoloc", library_version=__version__)
    headers["Accept-Encoding"] = "identity"  # else byte ranges would count compressed bytes
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
                if start and response.status_code in (200, 416):  # all of it, or no such range: begin anew
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
                    f"{origin} sends more than {max_bytes} bytes for {name!r}, which is all that it may have: it was "
                    "changed without geoloc, so ask its owner to push it again, or take an older revision"
                )
            file.write(block)
            progress(len(block))


def size_of(path: Path) -> int:
    """Size of a file in bytes; 0 if there is none."""
    return path.stat().st_size if path.exists() else 0


@contextmanager
def explaining(what: str, otherwise: str = ELSEWHERE) -> Iterator[None]:
    """Turn what the client raises into an error that says what was asked and what to do.

    Args:
        what: was asked, as in "could not …".
        otherwise: what to do if nobody answers, beside looking at the network.

    Raises:
        NotFoundError: there is no such thing, or it is not shown to us, or nobody answers.
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
        raise  # only the caller knows what that means
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
    """The first line of what a client says, without its request id and advice for its own users."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
