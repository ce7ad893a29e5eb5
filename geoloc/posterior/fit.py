"""Fit temperature, kernel widths, reranker and conformal levels on held-out photos."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import fields, replace
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geoloc.errors import ConfigError
from geoloc.posterior.calibration import PERCENTS, Calibration, conformal_level, fit_kernel, fit_temperature
from geoloc.posterior.distribution import Posterior, distance_km
from geoloc.posterior.evidence import CellEvidence, Evidence
from geoloc.posterior.pipeline import Images, Pipeline, QueryOutputs
from geoloc.posterior.reranker import Reranker, RerankerConfig
from geoloc.posterior.reranker_network import fit_reranker
from geoloc.posterior.retrieve import Retriever
from geoloc.posterior.utility import Utility
from quadtree.sphere import haversine_km, latlon_to_unit, validate_latlon_deg

LabelledBatch = tuple[Images, NDArray[np.float64]]  # preprocessed images (B, 3, S, S), and (B, 2) degrees

UTILITIES = ("geoscore", "median")


Run = Callable[[Images], QueryOutputs]  # runs the networks that the search needs
Locate = Callable[
    [QueryOutputs, Calibration], list[Posterior] | None
]  # posteriors of a classifier without cells


def calibrate(
    pipeline: Pipeline,
    batches: Iterable[LabelledBatch],
    data: str,
    retriever: Retriever | None,
    run: Run,
    locate: Locate,
) -> Calibration:
    """See `Geolocalizer.calibrate`. One pass over the images, two over the networks' outputs."""
    outputs, truths = _read_all(batches, run)
    if not truths:
        raise ConfigError("there are no images to calibrate with; give a few thousand, not trained on")
    only_embeds = outputs[0].heads.cell_logits is None and outputs[0].heads.latlon_rad is None
    widths = Calibration() if only_embeds else _fit_widths(pipeline, outputs, truths)
    fitted = replace(widths, num_images=sum(map(len, truths)), data=data)
    levels = {} if only_embeds else _levels(pipeline, outputs, truths, fitted, None, locate)
    of_references = {}
    if retriever is not None:
        of_references[retriever.identity] = _levels(pipeline, outputs, truths, fitted, retriever, locate)
    return replace(fitted, mass_levels=levels, reference_levels=of_references)


def fit_reranker_of(
    pipeline: Pipeline,
    calibration: Calibration,
    batches: Iterable[LabelledBatch],
    retriever: Retriever,
    config: RerankerConfig,
    run: Run,
) -> Reranker:
    """See `Geolocalizer.fit_reranker`. Uses the model's present calibration of cells."""
    outputs, truths = _read_all(batches, run)
    if not truths:
        raise ConfigError("there are no images to fit a reranker with; give a few thousand, not trained on")
    k = config.candidates_per_source
    parts = [
        pipeline.evidence(batch, calibration, retriever, k, pipeline.regressed(batch, calibration))[1]
        for batch in outputs
    ]
    return fit_reranker(joined(parts), latlon_to_unit(np.concatenate(truths)), config)


def joined(parts: list[Evidence]) -> Evidence:
    """Evidence of several batches as one, padded to the widest."""
    cells = CellEvidence(**_joined([part.cells for part in parts], {"cell_id": -1, "scale_km": 1.0}))
    rest = _joined(parts, {"row_id": -1, "column": -1}, leave_out="cells")
    return Evidence(cells=cells, **rest)


def _joined(parts: list[Any], padding: dict[str, Any], leave_out: str = "") -> dict[str, Any]:
    result = {}
    for name in [field.name for field in fields(parts[0]) if field.name != leave_out]:
        arrays = [getattr(part, name) for part in parts]
        width = max(array.shape[1] for array in arrays)
        fill = padding.get(name, 0)
        padded = [
            np.pad(
                array,
                [(0, 0), (0, width - array.shape[1]), *[(0, 0)] * (array.ndim - 2)],
                constant_values=fill,
            )
            for array in arrays
        ]
        result[name] = np.concatenate(padded)
        if name == "unit":  # a padded position is the pole, not the centre of the Earth
            nowhere = ~result[name].any(-1)
            result[name][nowhere, 2] = 1.0
    return result


def _read_all(
    batches: Iterable[LabelledBatch], run: Run
) -> tuple[list[QueryOutputs], list[NDArray[np.float64]]]:
    outputs, truths = [], []
    for images, latlon_deg in batches:
        outputs.append(run(images))
        truths.append(validate_latlon_deg(latlon_deg))
    return outputs, truths


def _levels(
    pipeline: Pipeline,
    outputs: list[QueryOutputs],
    truths: list[NDArray[np.float64]],
    fitted: Calibration,
    retriever: Retriever | None,
    locate: Locate,
) -> dict[str, dict[str, float]]:
    of_each = (
        pipeline.posteriors(
            batch, fitted, retriever, 1, None if retriever is None else locate(batch, fitted)
        )[0]
        for batch in outputs
    )
    utilities = dict.fromkeys((*UTILITIES, pipeline.default_utility.name))
    return mass_levels(chain.from_iterable(of_each), np.concatenate(truths), utilities)


def mass_levels(
    posteriors: Iterable[Posterior], latlon_deg: NDArray[np.float64], utilities: Iterable[str] = UTILITIES
) -> dict[str, dict[str, float]]:
    """Conformal quantiles, by utility, of the posterior mass of the circle around the point that reaches the truth.

    Args:
        posteriors: of n images.
        latlon_deg: (n, 2) true locations.
        utilities: names, as `Utility.parse` reads them.
    """
    masses: dict[str, list[float]] = {name: [] for name in utilities}
    for posterior, truth in zip(posteriors, latlon_to_unit(latlon_deg), strict=True):
        for name, found in masses.items():
            point = posterior.point(Utility.parse(name))
            off_km = float(distance_km(point[None], truth[None])[0, 0])
            found.append(posterior.mass_within(point, off_km))
    return {
        name: {str(percent): conformal_level(np.array(found), percent) for percent in PERCENTS}
        for name, found in masses.items()
    }


def _fit_widths(
    pipeline: Pipeline, outputs: list[QueryOutputs], truths: list[NDArray[np.float64]]
) -> Calibration:
    """Temperature and kernel width of a classifier, or kernel width of a regression."""
    truth = np.concatenate(truths)
    heads = [batch.heads for batch in outputs]
    if pipeline.quadtree is None:  # so there is no cell head
        regressed = [output.latlon_rad for output in heads if output.latlon_rad is not None]
        off_km = haversine_km(np.degrees(np.float64(np.concatenate(regressed))), truth)
        return Calibration(regression_kernel_km=fit_kernel(off_km))
    cell_ids = pipeline.quadtree.assign(truth)
    logits = [output.cell_logits for output in heads if output.cell_logits is not None]
    ends = np.cumsum([len(rows) for rows in truths])[:-1]
    right_points = [
        point
        for output, right_cells in zip(heads, np.split(cell_ids, ends), strict=True)
        for point in pipeline.cell_points(output.offsets, list(right_cells[:, None]))
    ]
    off_km = haversine_km(np.concatenate(right_points), truth)
    return Calibration(
        temperature=fit_temperature(np.concatenate(logits), cell_ids),
        cell_kernel=fit_kernel(off_km / pipeline.cell_radius_km[cell_ids]),
    )
