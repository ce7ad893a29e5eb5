"""What changes of a reference database cost, and what an open one takes.

    python benchmarks/reference_append.py [--rows 1000000] [--added 100000] [--dim 512] [--dtype float32]

A database of random vectors, then: append, delete, compact, open, verify. The yardstick of what writes is the
disk itself: the bytes that the append has added, written to one file with an fsync and hashed, in the same
run. Memory is what the process has resident after opening in a new process, so before any query. Goal: 100 k
rows appended to 1 M x 512 in under 5 s; 10 M x 512 int8 (--rows 10000000 --dtype int8) open in under 1 s.
The default size is a tenth, so that it takes seconds.
"""

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from geoloc.reference.database import ReferenceDatabase
from geoloc.reference.rows import ReferenceRows
from geoloc.reference.segments import Dtype

BATCH_ROWS = 20_000

OPEN = """
import sys, time
from geoloc.reference.database import ReferenceDatabase
def resident_mb():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / 1e6
before, start = resident_mb(), time.perf_counter()
database = ReferenceDatabase.open(sys.argv[1])
seconds, opened = time.perf_counter() - start, resident_mb()
segment = database.segments[0]
start = time.perf_counter()
segment.positions_of([[code, code + 2**28] for code in range(0, 2**48, 2**48 // 20)])
segment.rows([segment.num_rows // 3])
print(seconds, opened - before, time.perf_counter() - start, resident_mb() - before)
"""


def batches(num_rows: int, dim: int, seed: int) -> Iterator[tuple[ReferenceRows, np.ndarray]]:
    rng = np.random.default_rng(seed)
    for start in range(0, num_rows, BATCH_ROWS):
        num = min(BATCH_ROWS, num_rows - start)
        latlon_deg = np.stack(
            [np.degrees(np.arcsin(rng.uniform(-1, 1, num))), rng.uniform(-180, 180, num)], 1
        )
        vectors = rng.standard_normal((num, dim), dtype=np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        keys = [f"tile/{seed}/{number}" for number in range(start, start + num)]
        yield (
            ReferenceRows(latlon_deg, source="aerial", key=keys, gsd_m_per_px=0.2, licence="CC0-1.0"),
            vectors,
        )


def seconds_of(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def write_and_hash(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    hashlib.sha256(data).hexdigest()


def report(what: str, seconds: float, note: str = "") -> None:
    print(f"{what:<40} {seconds:>9.3f} s   {note}")


def measure(folder: Path, num_rows: int, num_added: int, dim: int, dtype: Dtype) -> None:
    database = ReferenceDatabase.create(folder / "refs", dim=dim, dtype=dtype, model_fingerprint="benchmark")
    seconds = seconds_of(lambda: database.append_batches(batches(num_rows, dim, seed=0)))
    report(
        f"build {num_rows:,} x {dim} {dtype}",
        seconds,
        f"{num_rows / seconds:,.0f} rows/s, generating them too",
    )
    report(
        "compact what it wrote", seconds_of(database.compact), f"{database.info()['num_bytes'] / 1e6:,.0f} MB"
    )

    num_bytes = database.info()["num_bytes"]
    added = list(batches(num_added, dim, seed=1))
    appending = seconds_of(lambda: database.append_batches(added))
    num_bytes = database.info()["num_bytes"] - num_bytes
    data = os.urandom(num_bytes)
    floor = seconds_of(lambda: write_and_hash(folder / "floor", data))
    report(f"append {num_added:,}", appending, f"{num_bytes / 1e6:,.0f} MB")
    report("the same bytes: write, fsync, sha256", floor, f"append / this = {appending / floor:.2f}")
    report("delete 1,000 by id", seconds_of(lambda: database.delete(row_ids=range(0, 10_000, 10))))
    report("compact", seconds_of(database.compact))
    report("verify", seconds_of(database.verify))
    told = subprocess.run(
        [sys.executable, "-c", OPEN, folder / "refs"], capture_output=True, check=True
    ).stdout
    opening, resident_mb, touching, touched_mb = map(float, told.split())
    report("open", opening, f"{resident_mb:.1f} MB resident")
    report("find 20 cells, read one key", touching, f"{touched_mb:.1f} MB resident")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--added", type=int, default=10_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--folder", help="where the disk is that matters; a temporary folder is made in it")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        measure(Path(folder), arguments.rows, arguments.added, arguments.dim, arguments.dtype)


if __name__ == "__main__":
    main()
