"""One attempt at one shard, the same for every engine."""

import traceback
from pathlib import Path
from typing import Any, Final, Protocol

MAX_DEATHS: Final = 3  # workers that may die at one shard before it counts as failed

Task = tuple[Any, Path]  # payload, output


class Work(Protocol):
    """What is done with each shard: a picklable callable. A process receives it once and keeps what it has loaded.

    A work may have a method `prefetch(payload)`, which is called in a single process before the shard ahead of that
    payload's is worked on.
    """

    def __call__(self, payload: Any, output: Path) -> None:
        """Write one file, atomically (`geoloc.files`), with bytes that depend on the payload alone."""
        ...


def attempt(work: Work, task: Task) -> str | None:
    """Do one shard; the error as text, None without one."""
    try:
        work(*task)
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__}: {error} ({Path(where.filename).name} line {where.lineno})"
    return None
