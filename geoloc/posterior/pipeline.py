"""The stages from preprocessed images to posteriors, as one object that holds their parts.

    images --run--> QueryOutputs --evidence--> cells and candidates --reranker--> mixture --> Posterior

Cells and offsets come from the network's heads, candidates from retrieval inside the chosen cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from geoloc.errors import ConfigError
from geoloc.images.query import Merge
from geoloc.models.config import NetworkConfig
from geoloc.models.runner import HeadOutput, Runner, check_finite
from geoloc.posterior.calibration import Calibration, log_softmax
from geoloc.posterior.cells import cell_radius_km, choose_cells, points_in_cells
from geoloc.posterior.distribution import Posterior
from geoloc.posterior.evidence import CellEvidence, Evidence
from geoloc.posterior.mixture import candidates_of, posterior_of
from geoloc.posterior.prediction import Candidate
from geoloc.posterior.reranker import DEFAULT_KERNEL_KM, Reranker
from geoloc.posterior.retrieve import Retriever, Views
from geoloc.posterior.utility import Utility
from geoloc.posterior.working_tree import cells_of_posteriors
from quadtree import Quadtree
from quadtree.sphere import latlon_to_unit, unit_to_latlon

if TYPE_CHECKING:
    from torch import Tensor

Images = Any  # a tensor, or an array for an exported model
FloatArray = NDArray[np.float64]

CELL_MASS = 0.95  # the chosen cells hold this much of the posterior …
MAX_CELLS = 32  # … or are this many
PLACE_RADIUS_KM = 0.025  # within which place recognition counts a query as recognised
CITY_RADIUS_KM = 25.0  # within which geolocation benchmarks count the right city


@dataclass(frozen=True)
class QueryOutputs:
    """Network outputs of B query images.

    Attributes:
        heads: outputs of cell, offset and regression heads.
        queries: of each tower V query embeddings, each (B, D), the model's own tower first; empty for a tower whose
            embeddings were not asked for.
        merge: how the results of several views become one list.
    """

    heads: HeadOutput
    queries: list[Views]
    merge: Merge = "mean"

    @property
    def num_images(self) -> int:
        """B."""
        known = [*self.heads.location_outputs(), *(view for views in self.queries for view in views)]
        return len(known[0])


class Pipeline:
    """Network, cells and reranker, and the stages that they make.

    Args:
        name: of the model, for messages.
        runner: runs the network.
        quadtree: the cells of the network's cell head; None without one.
        reranker: None takes plain fusion with default scales.
        uses_location_heads: False ignores the network's cell and regression heads: it only embeds.

    Raises:
        ConfigError: the quadtree is not that of the network's cell head.
    """

    def __init__(
        self,
        name: str,
        runner: Runner,
        quadtree: Quadtree | None,
        reranker: Reranker | None = None,
        uses_location_heads: bool = True,
    ) -> None:
        num_cells = 0 if quadtree is None else quadtree.num_cells
        self.uses_location_heads = uses_location_heads
        if uses_location_heads and runner.num_cells != num_cells:
            raise ConfigError(
                f"the network classifies {runner.num_cells} cells, but the quadtree has {num_cells}; give the quadtree "
                "that it was built with"
            )
        self.name, self.runner, self.reranker = name, runner, reranker
        self.quadtree = quadtree if uses_location_heads else None

    # --- Properties of the network ----------------------------------------------------------------------------

    @property
    def has_location_head(self) -> bool:
        """Whether the network has a cell or regression head, so that it answers without references."""
        config = self.runner.config
        return self.uses_location_heads and (config.cells is not None or config.regression is not None)

    def check_location_head(self) -> None:
        """Refuse to answer without references with a network that only embeds.

        Raises:
            ConfigError: the network has neither a cell head nor a regression head.
        """
        if not self.has_location_head:
            raise ConfigError(
                f"the model {self.name!r} has neither a cell head nor a regression head: it only embeds. Give it a "
                "reference database to search"
            )

    @property
    def is_place_recognition(self) -> bool:
        """Whether its answers are references alone, seen from the street or from above."""
        return not self.has_location_head and embeds_places(self.runner.config)

    @property
    def default_utility(self) -> Utility:
        """What the point maximises unless asked otherwise.

        The expected GeoScore; for place recognition the probability to be within 25 m: a GeoScore hardly separates the
        best reference from the middle of its town.
        """
        return Utility("within", PLACE_RADIUS_KM) if self.is_place_recognition else Utility("geoscore")

    @property
    def near_km(self) -> float:
        """Radius of `Prediction.probability` for models without cells."""
        return PLACE_RADIUS_KM if self.is_place_recognition else CITY_RADIUS_KM

    def reranker_of(self, retriever: Retriever | None) -> Reranker:
        """The fitted reranker where it was fitted for so many databases, else plain fusion.

        Of databases that the fitted reranker does not know, the scales are default values.
        """
        num_databases = 1 if retriever is None else len(retriever.databases)
        fitted, may_use = self.reranker, retriever is None or retriever.is_fitted
        if fitted is not None and may_use and fitted.config.num_databases == num_databases:
            return fitted
        own_km = PLACE_RADIUS_KM if self.is_place_recognition else DEFAULT_KERNEL_KM
        return Reranker.default(
            [own_km] if retriever is None else retriever.kernel_km or [own_km] * num_databases
        )

    # --- Stages -----------------------------------------------------------------------------------------------

    def run(
        self, images: Tensor | Sequence[Images], *, embed: bool = False, merge: Merge = "mean"
    ) -> QueryOutputs:
        """Run the network.

        Args:
            images: (B, 3, S, S), or B sets of views, each (V, 3, h, w).
            embed: compute query embeddings, too.
            merge: "mean" averages features over views; "nearest" and "vote" keep an embedding for each view.

        Raises:
            ConfigError: the network has no location head and no embedding was asked for, or it has no embedding.
            CheckpointError: the network gives numbers that are not finite.
        """
        heads, queries = read_views(self.runner, images, embed, merge)
        if not embed:
            self.check_location_head()
        if not self.uses_location_heads:
            heads = HeadOutput(None, None, None)
        check_finite(self.name, [*heads.location_outputs(), *queries])
        return QueryOutputs(heads, [queries], merge)

    def evidence(
        self,
        outputs: QueryOutputs,
        calibration: Calibration,
        retriever: Retriever | None,
        k: int | None = None,
        located: Sequence[Posterior] | None = None,
    ) -> tuple[FloatArray, Evidence]:
        """Cell probabilities (B, C), and the chosen cells with the best k candidates of each database and source.

        Cells are those of the cell head; else those of the retriever's tree, with the mass that `located` has in them;
        else there is one column of zeros.

        Args:
            outputs: of the network.
            calibration: temperature and kernel widths.
            retriever: searches references; None searches none.
            k: None is that of the reranker.
            located: posteriors of a classifier without cells.
        """
        k = k or self.reranker_of(retriever).config.candidates_per_source
        if outputs.heads.cell_logits is not None:
            logits = outputs.heads.cell_logits.astype(np.float64)
            probs = np.exp(log_softmax(logits / calibration.temperature))
            chosen = [choose_cells(row, CELL_MASS, MAX_CELLS) for row in probs]
            points = [latlon_to_unit(latlon) for latlon in self.cell_points(outputs.heads.offsets, chosen)]
            cells = CellEvidence.padded(chosen, points, probs, calibration.cell_kernel * self.cell_radius_km)
        elif located is not None and retriever is not None and retriever.quadtree is not None:
            probs, cells = cells_of_posteriors(located, retriever.quadtree, CELL_MASS, MAX_CELLS)
        else:
            probs, cells = np.zeros((outputs.num_images, 1)), CellEvidence.none(outputs.num_images)
        if retriever is None:
            return probs, Evidence.nothing(cells)
        return probs, retriever.evidence(outputs.queries, cells, probs, k, outputs.merge)

    def regressed(self, outputs: QueryOutputs, calibration: Calibration) -> list[Posterior] | None:
        """The posterior of each image by a regression head; None for a model with cells or without such a head."""
        if outputs.heads.latlon_rad is None or outputs.heads.cell_logits is not None:
            return None
        unit = latlon_to_unit(np.degrees(outputs.heads.latlon_rad.astype(np.float64)))
        scale_km = np.array([calibration.regression_kernel_km])
        return [Posterior(row[None], np.ones(1), scale_km) for row in unit]

    def posteriors(
        self,
        outputs: QueryOutputs,
        calibration: Calibration,
        retriever: Retriever | None,
        top_k: int,
        located: Sequence[Posterior] | None = None,
    ) -> tuple[list[Posterior], list[list[Candidate]]]:
        """The posterior of each image, and its `top_k` most probable candidates, best first.

        Args:
            outputs, calibration, retriever, located: as for `evidence`; `located` is by default the regression's.
            top_k: largest number of candidates.

        Raises:
            ConfigError: the model only embeds, and no reference was found.
        """
        located = self.regressed(outputs, calibration) if located is None else located
        if located is not None and retriever is None:
            return list(located), [_point_candidates(posterior) for posterior in located]
        probs, evidence = self.evidence(outputs, calibration, retriever, located=located)
        weights = self.reranker_of(retriever).mixture_weights(evidence)
        if outputs.heads.cell_logits is None and located is None:  # the candidates are all there is
            total = weights.weight.sum(-1, keepdims=True)
            if not total.all():
                raise ConfigError(
                    f"the model {self.name!r} only embeds, and the database has no references to find"
                )
            weights = replace(weights, weight=weights.weight / total)
        keys = None if retriever is None else retriever.keys
        if outputs.heads.cell_logits is None and retriever is not None and retriever.quadtree is not None:
            paths, cell_unit = retriever.quadtree.paths, retriever.cell_unit
        else:
            paths, cell_unit = self._paths, self._cell_unit
        queries = range(len(probs))
        return (
            [posterior_of(evidence, weights, q, probs[q], cell_unit) for q in queries],
            [candidates_of(evidence, weights, q, top_k, paths, keys) for q in queries],
        )

    def best_cell(self, outputs: QueryOutputs, calibration: Calibration, b: int) -> tuple[str, float | None]:
        """Path and probability of an image's most probable cell; ("", None) without cells."""
        logits = outputs.heads.cell_logits
        if logits is None:
            return "", None
        row = log_softmax(logits[b].astype(np.float64) / calibration.temperature)
        best = int(row.argmax())
        return self._paths[best], float(np.exp(row[best]))

    # --- Cells ------------------------------------------------------------------------------------------------

    def cell_points(
        self, offsets: NDArray[np.float32] | None, chosen: list[NDArray[np.int64]]
    ) -> list[FloatArray]:
        """The point inside each chosen cell: by its offset, or its representative point without an offset head.

        Args:
            offsets: (B, C or 1, 2) or None.
            chosen: per image (k,) cell ids.

        Returns:
            Per image (k, 2) degrees.
        """
        return points_in_cells(self._tree, chosen, self.runner.config.offsets, offsets)

    @cached_property
    def cell_radius_km(self) -> FloatArray:
        """(C,) radius of the disc with each cell's area."""
        return cell_radius_km(self._tree.bounds_deg)

    @property
    def _tree(self) -> Quadtree:
        assert self.quadtree is not None  # a network with a cell head has one, checked by the constructor
        return self.quadtree

    @cached_property
    def _cell_unit(self) -> FloatArray:
        return np.zeros((0, 3)) if self.quadtree is None else latlon_to_unit(self._tree.center_latlon_deg)

    @cached_property
    def _paths(self) -> tuple[str, ...]:
        return () if self.quadtree is None else self.quadtree.paths


def embeds_places(config: NetworkConfig) -> bool:
    """Whether a network's embeddings are those of place recognition: of photos and what is seen at their places."""
    return config.street_as_query or bool({"street", "aerial"} & config.embeddings.keys())


def read_views(
    runner: Runner, images: Tensor | Sequence[Images], embed: bool, merge: Merge
) -> tuple[HeadOutput, list[NDArray[np.float32]]]:
    """Head outputs of images or sets of views, and the query embeddings that `merge` needs if `embed`."""
    views = [image if image.ndim == 4 else image[None] for image in images]
    by_view = merge != "mean" and len({len(part) for part in views}) == 1
    return runner.read(views, "none" if not embed else "each" if by_view else "merged")


def _point_candidates(posterior: Posterior) -> list[Candidate]:
    """The heaviest atom of a posterior without cells and references."""
    # By way of unit vectors: a float32 pi is a little more than 180 degrees.
    lat, lon = unit_to_latlon(posterior.unit[posterior.weight.argmax()]).tolist()
    return [Candidate(lat, lon, 1.0, "regression", None, "")]
