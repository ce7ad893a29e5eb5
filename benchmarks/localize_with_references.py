"""What a query with references costs beyond the network: from preprocessed images to predictions.

    python benchmarks/localize_with_references.py

ViT-B/32 with random weights, the bundled model's cells, a database of a million random rows spread like the places of
earthview, one thread. Everything after the backbone is counted: heads, choice of cells, search, reranker, posterior,
point, radii and place name. Both sides run in turn in one process. Goal: at most 1.05.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from geoloc.images.preprocess import Preprocess
from geoloc.localize.geolocalizer import Geolocalizer
from geoloc.models.backbone import Backbone
from geoloc.models.config import (
    BackboneConfig,
    CellHeadConfig,
    EmbeddingHeadConfig,
    NetworkConfig,
    OffsetHeadConfig,
)
from geoloc.models.network import GeoNetwork
from geoloc.posterior.calibration import Calibration
from geoloc.posterior.reranker import RerankerConfig
from geoloc.posterior.reranker_network import RerankerNetwork
from geoloc.reference.database import ReferenceDatabase
from geoloc.reference.rows import ReferenceRows
from projects.earthview.mosaics import load_cities_latlon_deg, random_places_latlon_deg

DIM = 512
LEVELS = {"geoscore": {"50": 0.5, "90": 0.9}}


def random_database(folder: Path, model: Geolocalizer, num_rows: int) -> ReferenceDatabase:
    """Random unit vectors at places on land and in cities."""
    rng = np.random.default_rng(0)
    places = random_places_latlon_deg(num_rows, load_cities_latlon_deg(), rng)
    database = ReferenceDatabase.create(
        folder, dim=DIM, dtype="int8", model_fingerprint=model.embedding_fingerprint
    )
    for start in range(0, num_rows, 100_000):
        part = places[start : start + 100_000]
        vectors = rng.normal(size=(len(part), DIM)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        keys = [str(start + i) for i in range(len(part))]
        database.append(ReferenceRows(part, source="aerial", key=keys), vectors)
    database.compact()
    return database


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
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)

    quadtree = Geolocalizer.from_pretrained("earthview").quadtree
    assert quadtree is not None
    config = NetworkConfig(
        BackboneConfig(architecture="ViT-B-32", features="cls_before_norm"),
        cells=CellHeadConfig(),
        offsets=OffsetHeadConfig((512,)),
        embeddings={"query": EmbeddingHeadConfig(DIM), "aerial": EmbeddingHeadConfig(DIM)},
    )
    backbone = Backbone(config.backbone)
    network = GeoNetwork(config, backbone, quadtree.bounds_deg, quadtree.center_latlon_deg)
    with torch.no_grad():
        assert network.cells is not None
        network.cells[-1].weight.mul_(8)  # an opinion, as a trained classifier has one
    known = backbone.preprocess_defaults
    preprocess = Preprocess(image_size_px=known.size_px, mean=known.mean, std=known.std)
    model = Geolocalizer(
        "benchmark", network, preprocess, quadtree, reranker=RerankerNetwork(RerankerConfig()).reranker()
    )
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(Path(folder, "model"))
        database = random_database(Path(folder, "refs"), model, arguments.rows)
        model.reference = database
        model.calibration = Calibration(mass_levels=LEVELS, reference_levels={database.identity: LEVELS})
        print(f"{len(database):,} rows of {DIM} x int8, one thread, medians of {arguments.rounds} rounds")
        for batch_size in (1, 16):
            images = torch.randn(batch_size, 3, known.size_px, known.size_px)

            def forward(images: torch.Tensor = images) -> None:
                with torch.inference_mode():
                    backbone(images)

            def localize(images: torch.Tensor = images) -> None:
                model.localize_batch(images)

            localize()
            forward()
            pairs = [(seconds(localize), seconds(forward)) for _ in range(arguments.rounds)]
            whole, bare = (statistics.median(column) for column in zip(*pairs, strict=True))
            probs, evidence = model.pipeline.evidence(
                model.pipeline.run(images, embed=True), model.calibration, model.retriever("own")
            )
            cells = float((evidence.cells.cell_id >= 0).sum(-1).mean())
            print(f"batch {batch_size}: {cells:.1f} cells a query of {probs.shape[1]}")
            print(f"  bare backbone forward   {1000 * bare / batch_size:7.2f} ms an image")
            print(f"  with all that follows   {1000 * whole / batch_size:7.2f} ms an image")
            print(f"  ratio of the medians    {whole / bare:7.3f}   (goal: at most 1.05)")


if __name__ == "__main__":
    main()
