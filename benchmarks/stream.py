"""Batches from webdataset shards on one core: read, decode, preprocess to 224 px, stack.

    python benchmarks/stream.py [--images 2000] [--batch-size 32] [--seconds 20]

The shards are made on the spot by `ShardSet`, of 640 x 480 JPEGs (quality 90) with the spectrum of photos. The peer
takes the same pictures from memory and does nothing but decode and preprocess: what the stream costs beside that is its
own. Both run on one thread and take turns. Rates are given by the clock, and by the time of the processor, which a busy
machine disturbs less. A batch of more than 55 pictures is over 32 MB, which glibc gives back to the kernel and gets
anew, page by page, each time: 0.4 ms a picture. Goal: 400 images/s a core.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from preprocess import PREPROCESS, photo_like

from geoloc.data.layouts import open_layout
from geoloc.data.sample import SampleTable
from geoloc.data.samplers import Shuffled
from geoloc.data.shards import ShardSet
from geoloc.data.stream import LoadImage, SampleStream
from geoloc.images import load_and_preprocess

GOAL_PER_S = 400
NUM_PICTURES = 32  # different ones


def make_shards(folder: Path, num_images: int) -> SampleTable:
    """Shards of `num_images` samples, opened."""
    photos = folder / "photos"
    photos.mkdir()
    for number in range(NUM_PICTURES):
        photo_like(640, 480, seed=number).save(photos / f"{number}.jpg", quality=90)
    columns = {
        "key": [str(i) for i in range(num_images)],
        "image_file": [f"{i % NUM_PICTURES}.jpg" for i in range(num_images)],
    }
    ShardSet(folder / "shards", SampleTable(photos, columns, np.zeros((num_images, 2)))).write(num_workers=0)
    return open_layout("webdataset", folder / "shards")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=20.0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        table = make_shards(Path(folder), options.images)
        order = Shuffled(len(table), seed=1)
        stream = SampleStream(table, LoadImage(PREPROCESS), order, batch_size=options.batch_size)
        in_memory = [table[row].image.read() for row in range(options.batch_size)]
        ours, bare = [], []
        index, end = 0, time.perf_counter() + options.seconds
        while time.perf_counter() < end or index < 3:
            ours.append(rates(lambda index=index: len(stream.batch(index)["row"])))
            bare.append(
                rates(lambda: len(torch.stack([load_and_preprocess(d, PREPROCESS) for d in in_memory])))
            )
            index += 1
    (clock, rate), (bare_clock, peer) = np.median(ours, 0), np.median(bare, 0)
    print(
        f"stream from shards     {clock:6.0f} images/s by the clock, {rate:6.0f} a core (goal {GOAL_PER_S})"
    )
    print(f"decode and preprocess  {bare_clock:6.0f} images/s by the clock, {peer:6.0f} a core, from memory")
    print(
        f"cost of the stream     {peer / rate - 1:6.1%} of a core; median of {index} batches of {options.batch_size}"
    )


def rates(work: Callable[[], int]) -> tuple[float, float]:
    """Images by second of the clock, and of the processor."""
    clock, processor = time.perf_counter(), time.process_time()
    num = work()
    return num / (time.perf_counter() - clock), num / (time.process_time() - processor)


if __name__ == "__main__":
    main()
