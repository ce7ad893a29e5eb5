"""An exported model against its network of torch: speed of ViT-B/32, answers of earthview, seconds to an answer.

    python benchmarks/exported.py speed                           # ViT-B/32, batch 1 and 16, one thread
    python benchmarks/exported.py answers CALIBRATION VIEWS …     # folders of pictures, other ones for ranges
    python benchmarks/exported.py start EXPORTED                  # process start to earthview's answer

Speed: random weights (the time is the same), cells and offsets as in OSV-5M's hybrid. Eager torch, onnxruntime in fp32
and in 8 bits take turns in one process; the ratio of the medians is the figure. Goals: 8 bits at least 2 times as fast
as eager at batch 1 and 16; the same most probable cell for 99 % of earthview's test views; an answer within 2 s of
process start.
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from geoloc.localize.export import export_onnx
from geoloc.localize.geolocalizer import Geolocalizer
from geoloc.models.backbone import Backbone
from geoloc.models.config import BackboneConfig, CellHeadConfig, NetworkConfig, OffsetHeadConfig
from geoloc.models.network import GeoNetwork
from geoloc.models.onnx import quantise as quantising
from geoloc.models.onnx.export import trace
from geoloc.models.onnx.runner import OnnxRunner
from quadtree.sphere import haversine_km

BATCHES = (1, 16)
ANSWER = """
import sys
from geoloc import Geolocalizer
model = Geolocalizer.from_pretrained(sys.argv[1])
prediction = model.localize(sys.argv[2])
assert "torch" not in sys.modules
print(prediction.lat, prediction.lon, prediction.place.label)
"""


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def speed(architecture: str, rounds: int) -> None:
    """Eager torch, onnxruntime fp32, onnxruntime int8 in turn."""
    torch.set_num_threads(1)
    quadtree = Geolocalizer.from_pretrained("earthview").quadtree
    assert quadtree is not None
    config = NetworkConfig(
        BackboneConfig(architecture=architecture, features="cls_before_norm"),
        cells=CellHeadConfig((512,)),
        offsets=OffsetHeadConfig((512,)),
    )
    torch.manual_seed(0)
    backbone = Backbone(config.backbone)
    network = GeoNetwork(config, backbone, quadtree.bounds_deg, quadtree.center_latlon_deg)
    network = network.eval().requires_grad_(False)
    side = backbone.preprocess_defaults.size_px
    pictures = np.random.default_rng(0).normal(size=(max(BATCHES), 3, side, side)).astype(np.float32)
    traced = trace(network, side)
    quantising.AGREEMENT = 0.0  # of random weights there is nothing to agree on: all in 8 bits
    eight = quantising.quantise(traced, pictures)
    with TemporaryDirectory() as folder:
        runners = {}
        for name, data in (("fp32", traced.joined()), ("int8", eight.data)):
            path = Path(folder, f"{name}.onnx")
            path.write_bytes(data)
            runners[name] = OnnxRunner(path, config, quadtree.num_cells, num_threads=1)
    print(f"{architecture}, {eight.num_quantised} of {eight.num_operators} operators in 8 bits, one thread")
    for batch_size in BATCHES:
        batch = pictures[:batch_size]
        images = torch.from_numpy(batch)

        def eager(images: torch.Tensor = images) -> None:
            with torch.inference_mode():
                network(images)

        sides = {"eager": eager} | {
            name: lambda runner=runner, batch=batch: runner.run(batch) for name, runner in runners.items()
        }
        for work in sides.values():
            work()
        took = {name: [] for name in sides}
        for _ in range(rounds):
            for name, work in sides.items():
                took[name].append(seconds(work))
        median = {name: statistics.median(times) for name, times in took.items()}
        print(f"  batch {batch_size:2}, medians of {rounds} rounds")
        for name, s in median.items():
            ratio = median["eager"] / s
            print(
                f"    {name:5} {1000 * s / batch_size:7.1f} ms an image   {ratio:5.2f} times as fast as eager"
            )


def answers(calibration: Path, folders: list[Path]) -> None:
    """The most probable cells of earthview and its export in 8 bits, on views that set no range."""
    model = Geolocalizer.from_pretrained("earthview")
    with TemporaryDirectory() as scratch:
        out = Path(scratch, "earthview-int8")
        report = export_onnx(model, out, sorted(calibration.glob("*.png")), int8=True)
        print(
            f"earthview, ranges and choice of operators from {report.num_images} views of {calibration}: "
            f"{report.num_quantised} of {report.num_operators} operators in 8 bits"
        )
        exported = Geolocalizer.from_pretrained(out)
        for folder in folders:
            paths = sorted(folder.glob("*.png"))
            cells, places = [], []
            for side in (model, exported):
                found = side.localize(paths, places=False)
                cells.append([p.cell_path for p in found])
                places.append(np.array([(p.lat, p.lon) for p in found]))
            same = np.mean([a == b for a, b in zip(*cells, strict=True)])
            apart_km = haversine_km(*places)
            print(
                f"  {folder}: {len(paths)} views, same top cell {same:.2%}; answers apart, median "
                f"{np.median(apart_km):.2f} km, 90 % within {np.quantile(apart_km, 0.9):.1f} km"
            )


def start(folder: Path, image: Path, rounds: int) -> None:
    """A new process each time."""
    times = [
        seconds(
            lambda: subprocess.run(
                [sys.executable, "-c", ANSWER, folder, image], check=True, capture_output=True
            )
        )
        for _ in range(rounds)
    ]
    print(
        f"process start to the answer of {folder}, without torch: median of {rounds} {statistics.median(times):.2f} s"
    )


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    of_speed = commands.add_parser("speed")
    of_speed.add_argument("--architecture", default="ViT-B-32", help="an open_clip model name")
    of_speed.add_argument("--rounds", type=int, default=9)
    of_answers = commands.add_parser("answers")
    of_answers.add_argument("calibration", type=Path, help="views that set the ranges")
    of_answers.add_argument("views", type=Path, nargs="+", help="views that are compared")
    of_start = commands.add_parser("start")
    of_start.add_argument("exported", type=Path, help="what `geoloc export onnx earthview` wrote")
    of_start.add_argument("--image", type=Path, default=Path("demo/images/01_sirohi_etopo1.jpg"))
    of_start.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    if options.command == "speed":
        speed(options.architecture, options.rounds)
    elif options.command == "answers":
        answers(options.calibration, options.views)
    else:
        start(options.exported, options.image, options.rounds)


if __name__ == "__main__":
    main()
