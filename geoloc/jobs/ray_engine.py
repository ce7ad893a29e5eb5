"""Shards on the actors of a Ray cluster: the same contract as the processes of one machine.

The only module that imports Ray.

RAY_ADDRESS names the cluster ("auto", "ray://host:10001", "host:6379"); without it a cluster of this machine alone is
started, and stopped at the end. A dead actor is replaced; its shard is assigned again.
"""

import os
import pickle
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from geoloc.errors import MissingDependencyError
from geoloc.jobs.work import MAX_DEATHS, Task, Work, attempt


class _Actor:
    """One worker with its copy of the work."""

    def __init__(self, pickled_work: bytes, paths: list[str], folder: str) -> None:
        # As in a spawned process: the worker can import what the driver can, and relative paths mean the same.
        sys.path += [path for path in paths if path not in sys.path]
        if os.path.isdir(folder):
            os.chdir(folder)
        self._work: Work = pickle.loads(pickled_work)

    def do(self, payload: Any, output: str) -> str | None:
        """Do one shard; returns the error as text, None without one."""
        return attempt(self._work, (payload, Path(output)))


def run_on_ray(
    work: Work, tasks: list[Task], num_workers: int, num_gpus: float = 0.0
) -> Iterator[tuple[int, str | None]]:
    """The tasks on actors; yields each one's index and error (None without one) as it ends.

    Raises:
        MissingDependencyError: Ray is not installed.
    """
    ray = _import_ray()
    with _cluster(ray, num_workers):
        # One core each for Ray's scheduling; the number of threads is an option of the work.
        # No restarts by Ray: a restarting actor refuses every call, and each of these would count as a death. A call
        # to a new actor waits for it.
        remote = ray.remote(num_cpus=1, num_gpus=num_gpus, max_restarts=0)(_Actor)
        pickled = ray.put(
            ray.cloudpickle.dumps(work)
        )  # by value, so that the main program may define the work
        new_actor = partial(remote.remote, pickled, sys.path, os.getcwd())
        waiting = list(range(len(tasks)))[::-1]
        deaths = [0] * len(tasks)
        idle = [new_actor() for _ in range(min(num_workers, len(tasks)))]
        running: dict[Any, tuple[int, Any]] = {}
        while waiting or running:
            while waiting and idle:
                index, actor = waiting.pop(), idle.pop()
                payload, output = tasks[index]
                running[actor.do.remote(payload, str(output.absolute()))] = (index, actor)
            (reference, *_), _ = ray.wait(list(running))
            index, actor = running.pop(reference)
            try:
                error = ray.get(reference)
                idle.append(actor)
            except ray.exceptions.RayActorError as died:
                idle.append(new_actor())
                deaths[index] += 1
                if deaths[index] < MAX_DEATHS:
                    waiting.append(index)
                    continue
                error = f"{MAX_DEATHS} workers died at it: {str(died).splitlines()[-1]}"
            yield index, error


def _import_ray() -> Any:
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise MissingDependencyError(
            "engine 'ray' needs Ray, which is not installed; pip install 'geoloc-vision[ray]'"
        ) from error
    return ray


@contextmanager
def _cluster(ray: Any, num_workers: int) -> Iterator[None]:
    if ray.is_initialized():  # by the caller, who keeps it
        yield
        return
    address = os.environ.get("RAY_ADDRESS")
    options = (
        {"address": address} if address else {"num_cpus": max(num_workers, 1), "include_dashboard": False}
    )
    ray.init(log_to_driver=False, logging_level="error", **options)
    try:
        yield
    finally:
        ray.shutdown()
