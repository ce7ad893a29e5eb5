"""Bytes from a server, politely: not too fast, again when it says "not now", never more than asked for.

An answer that means "there is no such thing" (204, 404, 410) is empty; one that means "not now" (429, 5xx, a broken
connection) is repeated with growing pauses; any other, and patience that has run out, is an error.
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
    """What fetches from one server; any number of threads may share it.

    Args:
        max_per_s: requests in a second.
        num_tries: how often a thing is asked for before giving up.
        timeout_s: of one request.

    Raises:
        ConfigError: a number that is impossible.
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
        """What is at an http(s) address, at most 16 MiB; nothing where the server says that there is nothing.

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
                    raise NotFoundError(
                        f"{url} sends more than {_MAX_BYTES:,} bytes: that is not what was asked"
                    )
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
            f"{url} could not be fetched in {self.num_tries} tries ({reason}): what is fetched stays in the cache, so "
            "start the job again later"
        )

    def _wait_for_turn(self) -> None:
        with self._lock:
            now = time.monotonic()
            wait_s = max(0.0, self._next_s - now)
            self._next_s = max(now, self._next_s) + self._pause_s
        time.sleep(wait_s)


def _retry_after_s(value: str | None) -> float:
    """Seconds that a server asks to wait: a number or a date (RFC 9110, 10.2.3)."""
    if value is None:
        return 0.0
    if value.isdigit():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return 0.0
