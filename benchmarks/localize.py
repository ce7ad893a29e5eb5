"""What localising costs beyond the network: JPEG files in, predictions out, against the bare backbone forward.

    python benchmarks/localize.py

ViT-B/32 with random weights (the time is the same), OSV-5M's hybrid head over the bundled model's cells, 640 px JPEG
files, one thread. Both sides run in turn in one process; the medians' ratio is the figure. Goal: at most 1.10.
"""

import argparse
import io
import statistics
import time
from collections.abc import Callable

import torch
from preprocess import photo_like  # the benchmark beside this one

from geoloc.images.preprocess import Preprocess
from geoloc.localize.geolocalizer import Geolocalizer
from geoloc.models.backbone import Backbone
from geoloc.models.config import BackboneConfig, CellHeadConfig, NetworkConfig, OffsetHeadConfig
from geoloc.models.network import GeoNetwork
from geoloc.posterior.calibration import Calibration

SIDE_PX = (640, 480)
LEVELS = {"geoscore": {"50": 0.5, "90": 0.9}}


def jpeg(seed: int) -> bytes:
    """A photo-like JPEG file."""
    buffer = io.BytesIO()
    photo_like(*SIDE_PX, seed).save(buffer, "jpeg", quality=90)
    return buffer.getvalue()


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--architecture", default="ViT-B-32", help="an open_clip model name")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    quadtree = Geolocalizer.from_pretrained("earthview").quadtree
    assert quadtree is not None
    config = NetworkConfig(
        BackboneConfig(architecture=arguments.architecture, features="cls_before_norm"),
        cells=CellHeadConfig((512,)),
        offsets=OffsetHeadConfig((512,)),
    )
    backbone = Backbone(config.backbone)
    network = GeoNetwork(config, backbone, quadtree.bounds_deg, quadtree.center_latlon_deg)
    known = backbone.preprocess_defaults
    preprocess = Preprocess(image_size_px=known.size_px, mean=known.mean, std=known.std)
    model = Geolocalizer("benchmark", network, preprocess, quadtree, Calibration(mass_levels=LEVELS))

    files = [jpeg(seed) for seed in range(arguments.batch_size)]
    images = torch.stack([model.load(file) for file in files])

    def forward() -> None:
        with torch.inference_mode():
            backbone(images)

    def localize() -> None:
        model.localize(files, batch_size=arguments.batch_size)

    localize()  # warm up: place names, allocator
    forward()
    pairs = [(seconds(localize), seconds(forward)) for _ in range(arguments.rounds)]
    whole, bare = (statistics.median(column) for column in zip(*pairs, strict=True))
    load = statistics.median(seconds(lambda: [model.load(file) for file in files]) for _ in range(5))
    print(
        f"{arguments.architecture}, batch {arguments.batch_size}, one thread, medians of {arguments.rounds} rounds"
    )
    print(f"  bare backbone forward   {1000 * bare / arguments.batch_size:7.1f} ms an image")
    print(f"  localize, all of it     {1000 * whole / arguments.batch_size:7.1f} ms an image")
    print(f"    of it decode and preprocess {1000 * load / arguments.batch_size:.1f} ms")
    print(f"  ratio of the medians    {whole / bare:7.3f}   (goal: at most 1.10)")


if __name__ == "__main__":
    main()
