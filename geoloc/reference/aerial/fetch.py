"""HTTP GET with a rate limit, retries with back-off, and a size limit.

The statuses 204, 404 and 410 give no bytes. 429, 5xx and broken connections are retried with growing pauses. Any other
status, and the end of the retries, is an error.
"""

import email.utils
import threading
import time
import urllib.error
import urllib.request
from http.client import HTTPException
from typing import Final

from geoloc import __version__
from geoloc.errors import ConfigError, NotFoundError

_NOTHING: Final = (204, 404, 410)
_NOT_NOW: Final = (408, 425, 429, 500, 502, 503, 504)
_MAX_BYTES: Final = 2**24
_MAX_PAUSE_S: Final = 60.0


class Fetcher:
    """Client of one server; any number of threads may share it.

    Args:
        max_per_s: requests per second.
        num_tries: attempts for each address.
        timeout_s: of one request.

    Raises:
        ConfigError: a number that is not positive.
    """

    def __init__(self, max_per_s: float = 5.0, num_tries: int = 5, timeout_s: float = 30.0) -> None:
        if not max_per_s > 0 or num_tries < 1 or not timeout_s > 0:
            raise ConfigError(
                "max_per_s, num_tries and timeout_s must be positive; found "
                f"{max_per_s}, {num_tries} and {timeout_s}"
            )
        self.num_tries, self.timeout_s = num_tries, timeout_s
        self._pause_s = 1.0 / max_per_s
        self._next_s = 0.0
        self._lock = threading.Lock()

    def get(self, url: str) -> bytes:
        """The bytes at an http(s) address, at most 16 MiB; None where the server has nothing there.

        Raises:
            NotFoundError: the server refuses, or does not answer.
        """
        request = urllib.request.Request(url, headers={"User-Agent": f"geoloc-vision/{__version__}"})
        for number in range(1, self.num_tries + 1):
            self._wait_for_turn()
            pause_s = min(_MAX_PAUSE_S, self._pause_s * 2.0**number)
            try:
                with urllib.request.urlopen(request, timeout=self.timeout_s) as answer:
                    if answer.status in _NOTHING:
                        return b""
                    data: bytes = answer.read(_MAX_BYTES + 1)
                if len(data) > _MAX_BYTES:
                    raise NotFoundError(f"{url} sends more than {_MAX_BYTES:,} bytes, the limit")
                return data
            except urllib.error.HTTPError as error:
                error.close()
                if error.code in _NOTHING:
                    return b""
                if error.code not in _NOT_NOW:
                    raise NotFoundError(
                        f"{url} answers {error.code} ({error.reason}): check the address, and whether it needs a key"
                    ) from None
                reason = f"it answers {error.code}"
                pause_s = max(pause_s, _retry_after_s(error.headers.get("Retry-After")))
            except (OSError, HTTPException) as error:
                reason = str(error) or type(error).__name__
            if number < self.num_tries:
                time.sleep(min(pause_s, _MAX_PAUSE_S))
        raise NotFoundError(
            f"{url} could not be fetched in {self.num_tries} tries ({reason}): what was fetched stays in the cache, so "
            "start the job again later"
        )

    def _wait_for_turn(self) -> None:
        with self._lock:
            now = time.monotonic()
            wait_s = max(0.0, self._next_s - now)
            self._next_s = max(now, self._next_s) + self._pause_s
        time.sleep(wait_s)


def _retry_after_s(value: str | None) -> float:
    """Seconds of a Retry-After header: a number or a date (RFC 9110, 10.2.3)."""
    if value is None:
        return 0.0
    if value.isdigit():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return 0.0
