"""Decode every image of a table to find broken ones."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from geoloc.data.layouts.findings import Findings
from geoloc.data.sample import SampleTable
from geoloc.errors import BadImageError
from geoloc.images.decode import decode_image

_AT_ONCE = 1024  # rows that are queued at a time


def decode_all(
    table: SampleTable,
    findings: Findings,
    num_threads: int = 1,
    on_done: Callable[[int], None] = lambda num: None,
) -> None:
    """Decode the image of each sample, and record failures.

    Args:
        table: samples.
        findings: receives the broken images, in the order of the rows.
        num_threads: number of decoding threads.
        on_done: called with the number of images decoded since the last call.
    """

    def reason(row: int) -> str | None:
        try:
            decode_image(table.encoded(row).read())
        except BadImageError as error:
            return error.reason
        return None

    with ThreadPoolExecutor(num_threads) as pool:
        for start in range(0, len(table), _AT_ONCE):
            rows = range(start, min(start + _AT_ONCE, len(table)))
            for row, found in zip(rows, pool.map(reason, rows), strict=True):
                if found is not None:
                    findings.add("bad image", f"{table.encoded(row)} of the id {table[row].key!r}: {found}")
                on_done(1)
