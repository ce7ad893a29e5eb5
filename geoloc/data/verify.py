"""Decode every picture of a table, to find those that training would stumble over."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from geoloc.data.layouts.findings import Findings
from geoloc.data.sample import SampleTable
from geoloc.errors import BadImageError
from geoloc.images.decode import decode_image

_AT_ONCE = 1024  # rows that wait for a thread


def decode_all(
    table: SampleTable,
    findings: Findings,
    num_threads: int = 1,
    on_done: Callable[[int], None] = lambda num: None,
) -> None:
    """Decode the picture of each sample in full, and note those that cannot be.

    Args:
        table: the samples.
        findings: gets the bad ones, in the order of the rows.
        num_threads: the JPEG decoder lets threads work side by side.
        on_done: called with the number of pictures that were looked at since the last call.
    """

    def reason(row: int) -> str | None:
        try:
            decode_image(table.place(row).read())
        except BadImageError as error:
            return error.reason
        return None

    with ThreadPoolExecutor(num_threads) as pool:
        for start in range(0, len(table), _AT_ONCE):
            rows = range(start, min(start + _AT_ONCE, len(table)))
            for row, found in zip(rows, pool.map(reason, rows), strict=True):
                if found is not None:
                    findings.add("bad image", f"{table.place(row)} of the id {table[row].key!r}: {found}")
                on_done(1)
