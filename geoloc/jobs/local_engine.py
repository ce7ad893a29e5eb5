"""Shards on the processes of one machine. A process that dies is replaced, and its shard is assigned again.

Processes are spawned, not forked: forked children of a program with threads (torch, Arrow) can hang.
"""

import multiprocessing
import os
import threading
from collections.abc import Iterator
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess

from geoloc.jobs.work import MAX_DEATHS, Task, Work, attempt


def run_local(work: Work, tasks: list[Task], num_workers: int) -> Iterator[tuple[int, str | None]]:
    """The tasks on processes; yields each one's index and error (None without one) as it ends."""
    waiting = list(range(len(tasks)))[::-1]
    deaths = [0] * len(tasks)
    workers: dict[Connection, _Worker] = {}
    try:
        while waiting or workers:
            while waiting and len(workers) < num_workers:
                worker = _Worker(work)
                worker.give(waiting.pop(), tasks)
                workers[worker.connection] = worker
            for connection in wait(list(workers)):
                assert isinstance(connection, Connection)
                worker = workers.pop(connection)
                index = worker.index
                try:
                    error = connection.recv()
                except (EOFError, OSError):
                    worker.stop()
                    deaths[index] += 1
                    if deaths[index] < MAX_DEATHS:
                        waiting.append(index)
                    else:
                        yield index, f"{MAX_DEATHS} workers died at it (killed, out of memory, or a crash)"
                    continue
                if waiting and worker.give(waiting[-1], tasks):
                    waiting.pop()
                    workers[connection] = worker
                else:
                    worker.stop()
                yield index, error
    finally:
        for worker in workers.values():
            worker.stop()


class _Worker:
    """A process that works on one task at a time."""

    def __init__(self, work: Work) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.index = -1
        self._process: SpawnProcess = context.Process(target=_serve, args=(work, theirs), daemon=True)
        self._process.start()
        theirs.close()  # so that the pipe ends when the process dies

    def give(self, index: int, tasks: list[Task]) -> bool:
        """Send it a task; false if it is dead."""
        self.index = index
        try:
            self.connection.send(tasks[index])
        except OSError:
            return False
        return True

    def stop(self) -> None:
        """End the process."""
        self.connection.close()
        self._process.kill()
        self._process.join()


def _serve(work: Work, connection: Connection) -> None:
    threading.Thread(target=_die_with_parent, daemon=True).start()
    while True:
        try:
            task = connection.recv()
        except EOFError:
            return
        connection.send(attempt(work, task))


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
