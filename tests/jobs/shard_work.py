"""Work of which everything is known, and a driver that tests can kill.

shard_work.py FOLDER ENGINE      a job in FOLDER/job; its workers sign in FOLDER/pids
"""

import fcntl
import hashlib
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from geoloc.files import atomic_write
from geoloc.jobs.shards import Shard, ShardJob

NUM_SHARDS = 24

_signatures = []  # open files of this process


def sign_in(folder):
    """Hold a lock on a file that is called as this process, for as long as it lives."""
    if not _signatures:
        _signatures.append(open(Path(folder, str(os.getpid())), "w"))  # noqa: SIM115
        fcntl.flock(_signatures[0], fcntl.LOCK_EX)


def living(folder):
    """The processes that have signed in and live: others may have got the numbers of the dead."""
    found = []
    for path in Path(folder).iterdir():
        with open(path) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                found.append(int(path.name))
    return found


class Digest:
    """Writes bytes that depend on the payload alone, slowly."""

    def __init__(self, pids=None, step_s=0.0):
        self.pids = pids
        self.step_s = step_s

    def __call__(self, payload, output):
        if self.pids:
            sign_in(self.pids)
        with atomic_write(output, "wb") as file:
            for step in range(8):
                file.write(hashlib.sha256(f"{payload['number']} {step}".encode()).digest())
                time.sleep(self.step_s)


class Faulty:
    """Fails at one shard, dies at another, forgets to write a third."""

    def __call__(self, payload, output):
        if payload["number"] == 3:
            raise ValueError("three is too many")
        if payload["number"] == 5:
            os.kill(os.getpid(), 9)
        if payload["number"] != 7:
            Digest()(payload, output)


def job(folder, num_shards=NUM_SHARDS, **identity):
    shards = [Shard(f"{number:05}.bin", {"number": number}) for number in range(num_shards)]
    return ShardJob(folder, shards, {"task": "digest", **identity})


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


if __name__ == "__main__":
    folder, engine = sys.argv[1:]
    running = job(f"{folder}/job")
    running.run(Digest(f"{folder}/pids", 0.004), engine=engine, num_workers=2)
    running.finish()
