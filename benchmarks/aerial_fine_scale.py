"""Fine scale: where in one georeferenced image was a turned, shifted, rescaled piece of it taken?

    pip download --no-deps deepforest && unzip deepforest-*.whl 'deepforest/data/*.tif'
    python benchmarks/aerial_fine_scale.py deepforest/data/OSBS_029.tif --cell-size-m 2 --gsd-m-per-px 0.1,0.2

An aerial database of metric cells is built from the image; queries are pieces of it around random places, with
random colours and a random scale. The tower is EfficientNet-Lite0 as ImageNet left it: nothing was trained on
views from above, so the table says what the geometry and the pipeline do, not what a trained model would reach.
Three tables: pieces with north up; pieces at any heading; the same, with each piece turned to eight headings and
the best one taken. "<0 m" asks for the one cell that holds the place (Statewide's recall@k<r).
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from references.imagenet_tower import ImagenetTower, all_rows

from geoloc.metrics.cells import statewide_recall
from geoloc.reference.aerial import CellGrid, GeoTiff, read_patch
from geoloc.reference.database import ReferenceDatabase

K = (1, 5, 10)
TURNS_DEG = np.arange(0, 360, 45)


def colour_jitter(image, rng, strength=0.15):
    """Brightness, contrast and saturation within ±15 %, as Statewide's training has it."""
    pixels = image.astype(np.float64) * rng.uniform(1 - strength, 1 + strength)
    pixels = pixels.mean() + (pixels - pixels.mean()) * rng.uniform(1 - strength, 1 + strength)
    grey = pixels.mean(-1, keepdims=True)
    return np.clip(grey + (pixels - grey) * rng.uniform(1 - strength, 1 + strength), 0, 255).astype(np.uint8)


def draw_queries(source, gsd, size_px, num_queries, seed):
    """Places whose pieces are whole at any heading and scale, with their headings and scales."""
    rng = np.random.default_rng(seed)
    south, west, north, east = source.bounds_deg
    queries = []
    for _ in range(200 * num_queries):
        latlon = (rng.uniform(south, north), rng.uniform(west, east))
        scale = np.exp(rng.uniform(-np.log(1.25), np.log(1.25)))
        # The circle around the largest piece must lie in the image.
        reach = read_patch(source, latlon, gsd_m_per_px=gsd * 1.25 * np.sqrt(2) * size_px / 16, size_px=16)
        if reach.coverage == 1.0:
            queries.append((latlon, rng.uniform(0, 360), scale, int(rng.integers(2**31))))
        if len(queries) == num_queries:
            return queries
    raise SystemExit(f"only {len(queries)} pieces fit into {source.name}: give a smaller --size-px")


def scores_of(tower, source, queries, headings, vectors, gsd, size_px):
    """Similarity of each query to each row, at the given headings: (n, rows)."""
    images = []
    for (latlon, _, scale, seed), heading in zip(queries, headings, strict=True):
        patch = read_patch(source, latlon, heading_deg=heading, gsd_m_per_px=gsd * scale, size_px=size_px)
        images.append(colour_jitter(patch.image, np.random.default_rng(seed)))
    return tower.embed(images) @ vectors.T


def report(title, scores, queries, latlon_deg, keys, grid, radii_m):
    """Print one table."""
    truth = np.array([query[0] for query in queries])
    holds = grid.keys(grid.cell_of(truth))
    best = np.argsort(-scores, axis=1, kind="stable")[:, : max(K)]
    table = statewide_recall(
        truth,
        latlon_deg[best],
        [[keys[i] == key for i in row] for key, row in zip(holds, best, strict=True)],
        cell_size_m=grid.cell_size_m,
        at=K,
        within_m=radii_m,
    )
    print(f"\n{title}")
    print("  recall at " + "".join(f"{f'< {radius:g} m':>10}" for radius in radii_m))
    for k in K:
        print(f"  {k:>9} " + "".join(f"{table[f'{radius:g}'][str(k)]:>10.3f}" for radius in radii_m))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("raster", nargs="?", help="a georeferenced image")
    parser.add_argument("--cell-size-m", type=float, default=2.0)
    parser.add_argument("--gsd-m-per-px", default="0.1,0.2")
    parser.add_argument("--size-px", type=int, default=96)
    parser.add_argument("--num-queries", type=int, default=300)
    options = parser.parse_args()
    if options.raster is None:
        print("left out: needs a georeferenced image, see the head of this file")
        return
    gsd = tuple(float(value) for value in options.gsd_m_per_px.split(","))
    source, grid = GeoTiff(options.raster), CellGrid(options.cell_size_m)
    tower = ImagenetTower(options.size_px)
    queries = draw_queries(source, min(gsd), options.size_px, options.num_queries, seed=0)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        database = ReferenceDatabase.create(Path(folder) / "refs", model=tower)
        built = database.add_aerial(source, cell_size_m=options.cell_size_m, gsd_m_per_px=gsd)
        took_s = time.perf_counter() - start
        vectors, latlon_deg, keys = all_rows(database)
    size = options.cell_size_m
    print(
        f"{source.name}: {built.num_rows:,} cells of {size:g} m seen at {', '.join(f'{g:g}' for g in gsd)} m/px and "
        f"{options.size_px} px, {sum(built.skipped.values())} without imagery; built in {took_s:.1f} s "
        f"({built.num_rows / took_s:.0f} cells/s); {len(queries)} queries, scale 0.8 to 1.25, colours ±15 %; "
        f"by chance recall@1<0 m is {1 / built.num_rows:.4f}"
    )
    radii_m = (0, *(factor * size for factor in (1, 2, 4)))
    arguments = (vectors, min(gsd), options.size_px)
    north = scores_of(tower, source, queries, [0.0] * len(queries), *arguments)
    report("north up", north, queries, latlon_deg, keys, grid, radii_m)
    headings = [query[1] for query in queries]
    turned = scores_of(tower, source, queries, headings, *arguments)
    report("any heading", turned, queries, latlon_deg, keys, grid, radii_m)
    best = np.maximum.reduce(
        [
            scores_of(tower, source, queries, [heading + turn for heading in headings], *arguments)
            for turn in TURNS_DEG
        ]
    )
    report("any heading, the best of eight turns", best, queries, latlon_deg, keys, grid, radii_m)


if __name__ == "__main__":
    main()
