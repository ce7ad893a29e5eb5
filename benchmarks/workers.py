"""Throughput of worker processes: what two of them do together, against what one does alone.

    OMP_NUM_THREADS=1 python benchmarks/workers.py
    OMP_NUM_THREADS=1 python benchmarks/workers.py --engine ray

The work is that of `geoloc localize` with the bundled model and its references: 640 x 480 JPEG files,
batches of 16, shards of 32 images, one thread for each worker. Start-up (processes, imports, the model, the first shard
of each worker) is left out, and so is the end, when a worker has run out of shards: what counts is the time in between,
from one finished shard to the next, waiting for work included. Runs with one worker and with two take turns; the figure
is the median of the rounds' ratios.

Two workers need two idle cores: on a busy machine this measures the machine. Goal: at least 1.7.
"""

import argparse
import os
import sys
import time
from collections import defaultdict
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from localize import jpeg  # the benchmark beside this one

from geoloc.jobs.shards import Engine, ShardJob
from geoloc.localize.rows import LocalizeWork
from geoloc.photos.sources import Payload, plan_shards

IMAGES_PER_SHARD = 32


class Timed:
    """Localises a shard, and notes who finished it and when, as the name of a file."""

    def __init__(self, notes: Path) -> None:
        self.notes = notes
        self.localize = LocalizeWork("earthview")

    def __call__(self, payload: Payload, output: Path) -> None:
        """One shard."""
        self.localize(payload, output)
        (self.notes / f"{os.getpid()} {time.time()}").touch()


def images_per_second(photos: Path, engine: Engine, num_workers: int) -> float:
    """The steady rate of a whole job, of all its workers together."""
    with TemporaryDirectory() as name:
        notes = Path(name, "notes")
        notes.mkdir()
        work = Timed(notes)
        job = ShardJob(
            Path(name, "job"), plan_shards([str(photos)], IMAGES_PER_SHARD), work.localize.identity()
        )
        job.run(work, engine=engine, num_workers=num_workers)
        ends_s: dict[str, list[float]] = defaultdict(list)
        for note in notes.iterdir():
            pid, end_s = note.name.split()
            ends_s[pid].append(float(end_s))
    if len(ends_s) != num_workers:
        sys.exit(f"{len(ends_s)} of {num_workers} workers got a shard: ask for more --shards")
    all_at_work_s = max(map(min, ends_s.values()))
    first_at_rest_s = min(map(max, ends_s.values()))
    rate = 0.0
    for ends in ends_s.values():
        steady = sorted(end for end in ends if all_at_work_s <= end <= first_at_rest_s)
        if len(steady) < 2:
            sys.exit("a worker did no shard while all were at work: ask for more --shards")
        rate += IMAGES_PER_SHARD * (len(steady) - 1) / (steady[-1] - steady[0])
    return rate


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--engine", choices=["local", "ray"], default="local")
    parser.add_argument("--shards", type=int, default=40, help=f"of {IMAGES_PER_SHARD} images")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with TemporaryDirectory() as name:
        photos = [jpeg(seed) for seed in range(IMAGES_PER_SHARD)]
        for number in range(options.shards * IMAGES_PER_SHARD):
            Path(name, f"{number:05}.jpg").write_bytes(photos[number % IMAGES_PER_SHARD])
        rates: dict[int, list[float]] = {1: [], 2: []}
        for _ in range(options.rounds):
            for num_workers, measured in rates.items():
                measured.append(images_per_second(Path(name), options.engine, num_workers))
    for num_workers, measured in rates.items():
        print(f"{num_workers} worker{'s' * (num_workers > 1)}: {median(measured):8.1f} images/s")
    ratio = median(two / one for one, two in zip(rates[1], rates[2], strict=True))
    print(f"ratio:     {ratio:8.2f}   (goal: at least 1.7; {os.cpu_count()} cores, engine {options.engine})")


if __name__ == "__main__":
    main()
