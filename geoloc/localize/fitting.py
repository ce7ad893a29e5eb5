"""Fit a model's calibration and reranker with the references that it searches; see `Geolocalizer`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from geoloc.errors import ConfigError
from geoloc.localize.search import located_by_gallery, run_networks
from geoloc.posterior.calibration import Calibration
from geoloc.posterior.fit import LabelledBatch, calibrate, fit_reranker_of
from geoloc.posterior.reranker import Reranker, RerankerConfig

if TYPE_CHECKING:
    from geoloc.localize.geolocalizer import Geolocalizer
    from geoloc.localize.references import Reference


def calibration_of(
    model: Geolocalizer, batches: Iterable[LabelledBatch], data: str, reference: Reference
) -> Calibration:
    """See `Geolocalizer.calibrate`."""
    search = model.search_of(reference)
    run = partial(run_networks, model.pipeline, search=search)
    locate = partial(located_by_gallery, model.pipeline, search=search)
    return calibrate(model.pipeline, batches, data, search.retriever, run, locate)


def fitted_reranker(
    model: Geolocalizer, batches: Iterable[LabelledBatch], reference: Reference, config: RerankerConfig
) -> Reranker:
    """See `Geolocalizer.fit_reranker`."""
    search = model.search_of(reference)
    if search.retriever is None:
        raise ConfigError(f"the model {model.name!r} has no references of its own; give a database")
    if search.gallery is not None:
        raise ConfigError(
            f"the reranker of {model.name!r} is the softmax over its gallery, and is not fitted for other references"
        )
    run = partial(run_networks, model.pipeline, search=search)
    sized = replace(config, num_databases=len(search.retriever.databases))
    return fit_reranker_of(model.pipeline, model.calibration, batches, search.retriever, sized, run)
