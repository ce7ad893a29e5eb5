"""What an exported network gains: onnxruntime in float32 and in 8 bits against eager torch; the start without torch.

    python benchmarks/onnx_speed.py
    python benchmarks/onnx_speed.py --calibration-images CALIBRATION --views VIEWS

ViT-B/32 with random weights (the time is the same) and a regression head, one thread, photo-like pictures; the sides
run in turn in one process, and the ratios are of medians. Without a cell head, whose answers could change, all
convolutions and products with weights of the backbone are in 8 bits. Goal: at least 2 in 8 bits. Then `earthview`,
exported in float32, answers one photo in a fresh process, from its start to its end: within 2 s.

The second form exports `earthview` in 8 bits, with ranges from one folder of pictures, and compares answers on another,
such as `projects/earthview/make_views.py` writes. Goal: the same most probable cell for 99 %.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from preprocess import photo_like  # the benchmark beside this one

from geoloc.images.preprocess import Preprocess
from geoloc.localize.geolocalizer import Geolocalizer
from geoloc.models.backbone import Backbone
from geoloc.models.config import BackboneConfig, NetworkConfig, RegressionHeadConfig
from geoloc.models.network import GeoNetwork
from geoloc.models.onnx.export import trace
from geoloc.models.onnx.quantise import quantise
from geoloc.models.onnx.runner import OnnxRunner
from quadtree.sphere import haversine_km

DEMO = Path(__file__).parents[1] / "demo" / "images"
ANSWER = """
import sys
from geoloc import Geolocalizer
prediction = Geolocalizer.from_pretrained(sys.argv[1]).localize(sys.argv[2])
print(prediction.lat, prediction.lon, "torch" in sys.modules)
"""


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def compare(architecture: str, rounds: int) -> None:
    """Eager and exported forwards in turn, at batch 1 and 16."""
    config = NetworkConfig(
        BackboneConfig(architecture=architecture, features="cls_before_norm"),
        regression=RegressionHeadConfig(),
    )
    torch.manual_seed(0)
    backbone = Backbone(config.backbone)
    network = GeoNetwork(config, backbone).eval()
    known = backbone.preprocess_defaults
    preprocess = Preprocess(image_size_px=known.size_px, mean=known.mean, std=known.std)
    pictures = np.stack([preprocess.array(np.asarray(photo_like(640, 480, seed))) for seed in range(32)])
    traced = trace(network, (known.size_px, known.size_px))
    quantised = quantise(traced, pictures)
    print(f"in 8 bits: {quantised.num_quantised} of {quantised.num_operators} operators with weights")
    graphs = {"fp32": traced.joined(), "int8": quantised.data}
    with tempfile.TemporaryDirectory() as folder:
        runners = {}
        for name, graph in graphs.items():
            path = Path(folder) / f"{name}.onnx"
            path.write_bytes(graph)
            print(f"{name}: {path.stat().st_size / 1e6:.0f} MB")
            runners[name] = OnnxRunner(path, config, 0, num_threads=1)
        for batch_size in (1, 16):
            batch = pictures[:batch_size]
            tensor = torch.from_numpy(batch).contiguous(memory_format=torch.channels_last)

            def eager(tensor: torch.Tensor = tensor) -> None:
                with torch.inference_mode():
                    network(tensor)

            works: dict[str, Callable[[], object]] = {"eager": eager}
            works |= {
                name: lambda runner=runner, batch=batch: runner.run(batch) for name, runner in runners.items()
            }
            took: dict[str, list[float]] = {name: [] for name in works}
            for turn in range(rounds + 1):
                for name, work in works.items():
                    duration = seconds(work)
                    if turn:  # the first is for warming up
                        took[name].append(duration)
            medians = {name: statistics.median(times) for name, times in took.items()}
            print(
                f"batch {batch_size:2}: eager {medians['eager'] * 1e3:.1f} ms; "
                + "; ".join(
                    f"{name} {medians[name] * 1e3:.1f} ms, {medians['eager'] / medians[name]:.2f}x"
                    for name in graphs
                )
            )


def start(rounds: int) -> None:
    """A photo's answer from the start of a process to its end, from the checkpoint and from its export."""
    photos = sorted(DEMO.glob("*.jpg"))
    with tempfile.TemporaryDirectory() as folder:
        exported = Path(folder) / "exported"
        report = Geolocalizer.from_pretrained("earthview").export_onnx(exported, photos)
        print(f"earthview exported: largest difference of any output {report.fp32.worst:.1e}")
        for name in ("earthview", str(exported)):
            command = [sys.executable, "-c", ANSWER, name, str(photos[0])]
            said = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
            took = [
                seconds(lambda command=command: subprocess.run(command, check=True, capture_output=True))  # type: ignore[misc]
                for _ in range(rounds)
            ]
            kind = f"{Path(name).name}, {'with' if said[-1] == 'True' else 'without'} torch"
            print(f"{kind}: {statistics.median(took):.2f} s ({said[0]}, {said[1]})")


def agree(calibration: Path, views: Path) -> None:
    """Answers of `earthview` in 8 bits against its own."""
    model = Geolocalizer.from_pretrained("earthview")
    pictures = sorted(path for path in views.iterdir() if path.suffix in (".png", ".jpg"))
    with tempfile.TemporaryDirectory() as folder:
        exported = Path(folder) / "exported"
        report = model.export_onnx(exported, [*sorted(calibration.iterdir())], int8=True)
        twin = Geolocalizer.from_pretrained(exported)
        told, again = (side.localize(pictures, places=False) for side in (model, twin))
    same = np.mean([a.cell_path == b.cell_path for a, b in zip(told, again, strict=True)])
    points = [[(answer.lat, answer.lon) for answer in side] for side in (told, again)]
    apart_km = haversine_km(*points)
    print(f"in 8 bits: {report.num_quantised} of {report.num_operators} operators with weights")
    print(
        f"{len(pictures)} views: same most probable cell {same:.1%}; answers apart {np.median(apart_km):.2f} km in the "
        f"median, {np.quantile(apart_km, 0.9):.0f} km at 90 %"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--architecture", default="ViT-B-32", help="an open_clip model name")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--calibration-images", type=Path, help="for the second form")
    parser.add_argument("--views", type=Path, help="for the second form")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.calibration_images and arguments.views:
        agree(arguments.calibration_images, arguments.views)
        return
    compare(arguments.architecture, arguments.rounds)
    start(arguments.rounds)


if __name__ == "__main__":
    main()
