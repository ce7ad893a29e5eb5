"""Kill -9 at every call that changes the disk, and at random moments: nothing is lost, doubled or different.

A driver process prepares a database, then forks one child for each kill, so a kill costs milliseconds. After
each the driver opens what is there, verifies it, checks that the change has happened as a whole or not at
all, does the same change again, and compares every byte with a database that nobody has killed.
"""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

DRIVER = """
import builtins, io, os, random, shutil, signal, sys, time
from pathlib import Path

import numpy as np

from geoloc.errors import NotFoundError
from geoloc.files import atomic
from geoloc.reference.database import ReferenceDatabase
from geoloc.reference.rows import ReferenceRows
from geoloc.reference.segments import blocks

change, how, num_kills, root = sys.argv[1], sys.argv[2], int(sys.argv[3]), Path(sys.argv[4])
START, WORK, FINISHED, OTHER = root / "start", root / "work", root / "finished", root / "other"
SMALL = 25 * 256  # about 20 rows a segment
calls, fatal = 0, None


def step():
    global calls
    calls += 1
    if calls == fatal:
        os.kill(os.getpid(), signal.SIGKILL)


def arm(module, name):
    original = getattr(module, name)

    def wrapped(*args, **kwargs):
        step()
        return original(*args, **kwargs)

    setattr(module, name, wrapped)


class TornFile(io.FileIO):
    '''Writes half of what it is given, so that a kill can come between the halves.'''

    is_torn = False

    def write(self, data):
        step()
        self.is_torn = not self.is_torn
        return super().write(memoryview(data).cast("B")[: (len(data) + 1) // 2] if self.is_torn else data)


def torn_open(file, mode):
    assert mode in ("rb", "wb")
    return builtins.open(file, mode) if mode == "rb" else io.BufferedWriter(TornFile(file, mode))


def batches(num_rows, seed):
    for batch in range(2):
        step()
        rng = np.random.default_rng([seed, batch])
        latlon_deg = np.stack([rng.uniform(-90, 90, num_rows), rng.uniform(-180, 180, num_rows)], axis=1)
        keys = [f"{seed}/{batch}/{number}" for number in range(num_rows)]
        rows = ReferenceRows(latlon_deg, source="street", key=keys, heading_deg=90.0, licence="CC0-1.0")
        yield rows, rng.normal(size=(num_rows, 6))


def create(folder):
    return ReferenceDatabase.create(folder, dim=6, dtype="int8", model_fingerprint="model")


def build():
    try:
        database = ReferenceDatabase.open(WORK)
    except NotFoundError:
        database = create(WORK)
    for seed in range(2):
        database.append_batches(batches(6, seed), shard=f"shard {seed}")


def append():
    ReferenceDatabase.open(WORK).append_batches(batches(11, 7), shard="late", sort_bytes=SMALL)


def delete():
    ReferenceDatabase.open(WORK).delete(bounds_deg=(-90, 0, 90, 90))


def compact():
    ReferenceDatabase.open(WORK).compact()


def slice_():
    if not WORK.exists():
        ReferenceDatabase.open(START).slice(WORK, paths=["1", "3"])


def merge():
    if not WORK.exists():
        ReferenceDatabase.open(START).merge(ReferenceDatabase.open(OTHER), WORK)


CHANGES = {
    "build": build, "append": append, "delete": delete, "compact": compact, "slice": slice_, "merge": merge
}
makes_new = change in ("build", "slice", "merge")


def start_anew(folder=WORK):
    shutil.rmtree(folder, ignore_errors=True)
    if not makes_new:
        shutil.copytree(START, folder)


def contents():
    '''What a reader sees: the version, and every row by its id; None where there is no database.'''
    try:
        database = ReferenceDatabase.open(WORK)
    except NotFoundError:
        return None
    database.verify()
    found = {"version": database.version}
    for segment in database.segments:
        for place, row in enumerate(segment.rows(np.arange(segment.num_rows)).to_pylist()):
            if not segment.deleted[place]:
                assert row["row_id"] not in found
                found[row["row_id"]] = (row, segment.vectors[place].tobytes(), segment.scales[place])
    return found


def tree(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


os.fsync = lambda descriptor: None  # a killed process loses no power
database = create(START)
for seed in range(2):
    database.append_batches(batches(12, seed), shard=f"shard {seed}", sort_bytes=SMALL)
database.delete(bounds_deg=(0, -180, 90, 0))
create(OTHER).append_batches(batches(7, 9))

# What may be seen: the states between whole changes.
start_anew()
states = [contents()]
if change == "build":
    partial = create(WORK)
    states.append(contents())
    partial.append_batches(batches(6, 0), shard="shard 0")
    states.append(contents())
    shutil.rmtree(WORK)
start = time.perf_counter()
CHANGES[change]()
seconds = time.perf_counter() - start
states.append(contents())
expected = tree(WORK)
assert all(states[number] not in states[:number] for number in range(len(states)))

seen = [0] * len(states)
num_killed = k = 0
luck = random.Random(change)
while True:
    k += 1
    start_anew()
    child = os.fork()
    if child == 0:
        if how == "every call":
            fatal, calls = k, 0
            for module, name in [
                (os, "fsync"), (os, "replace"), (os, "rename"), (os, "unlink"), (os, "rmdir"), (os, "mkdir"),
                (os, "open"), (os, "ftruncate"), (shutil, "rmtree"),
            ]:
                arm(module, name)
            atomic.open = blocks.open = torn_open
        CHANGES[change]()
        step()
        os._exit(0)
    if how == "any moment":
        time.sleep(luck.uniform(0, 1.2 * seconds))
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    was_killed = os.WIFSIGNALED(status)
    assert status in (0, signal.SIGKILL), (k, status)
    num_killed += was_killed
    found = contents()
    assert found in states, (k, found)
    seen[states.index(found)] += 1
    if not was_killed:
        assert found == states[-1], k
    CHANGES[change]()
    assert tree(WORK) == expected, (k, tree(WORK).keys() ^ expected.keys())
    strangers = {path.name for path in root.iterdir()} - {"start", "work", "other"}
    assert not strangers, (k, strangers)
    if k == num_kills or (how == "every call" and not was_killed):
        break
print(num_killed, *seen)
"""


def kill(change: str, how: str, num_kills: int, folder: Path) -> tuple[int, list[int]]:
    """How many children died, and how often each state from the old to the new one was found."""
    result = subprocess.run(
        [sys.executable, "-c", DRIVER, change, how, str(num_kills), folder],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    num_killed, *seen = map(int, result.stdout.split())
    return num_killed, seen


CHANGES = ["build", "append", "delete", "compact", "slice", "merge"]


@pytest.mark.parametrize("change", CHANGES)
def test_killed_at_any_call_leaves_the_old_or_the_new(tmp_path: Path, change: str) -> None:
    num_killed, seen = kill(change, "every call", 0, tmp_path)
    # The number of calls is no promise, but so few would mean that the failpoints have come loose.
    assert num_killed >= (10 if change == "delete" else 20)
    assert seen[0] >= 5
    assert all(count >= 2 for count in seen[1:])  # one of them is the child that came to its end


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES)
def test_killed_at_random_moments_leaves_the_old_or_the_new(tmp_path: Path, change: str) -> None:
    num_killed, _ = kill(change, "any moment", 200, tmp_path)
    assert num_killed >= 50
