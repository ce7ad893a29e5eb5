"""From pictures to posteriors: what the network says, what retrieval finds in its cells, and both together.

pictures --load--> views --read--> Reading --evidence--> cells and candidates --posteriors_of--> Posterior
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from geoloc.errors import CheckpointError, ConfigError
from geoloc.images.decode import ImageSource
from geoloc.images.preprocess import Preprocess
from geoloc.images.query import Merge, QueryMode, load_query_views
from geoloc.localize.calibrate import Calibration, log_softmax
from geoloc.localize.cells import cell_radius_km, points_in_cells
from geoloc.localize.checkpoint import Exported, Saved
from geoloc.localize.evidence import CellEvidence, Evidence
from geoloc.localize.mixture import candidates_of, posterior_of
from geoloc.localize.posterior import Posterior, Utility, choose_cells
from geoloc.localize.prediction import Candidate
from geoloc.localize.retrieve import Retriever
from geoloc.localize.weigh import Weigher
from geoloc.models.onnx.runner import OnnxRunner
from geoloc.models.runner import HeadOutput, Runner
from geoloc.reference.database import ReferenceDatabase
from geoloc.reference.embedder import mean_of_views
from quadtree import Quadtree
from quadtree.sphere import latlon_to_unit, unit_to_latlon

if TYPE_CHECKING:
    from torch import Tensor

    from geoloc.localize.rerank import Reranker
    from geoloc.models.network import GeoNetwork

Images = Any  # a tensor, or an array for an exported model
LabelledBatch = tuple[Images, NDArray[np.float64]]  # preprocessed pictures (B, 3, S, S), and (B, 2) degrees
Reference = ReferenceDatabase | Literal["own"] | None

CELL_MASS = 0.95  # the chosen cells hold this much of the posterior …
MAX_CELLS = 32  # … or are this many
RECOGNISED_KM = 0.025  # of a place, as the field counts it


@dataclass(frozen=True)
class Reading:
    """What the network says of B images.

    Attributes:
        output: of the heads.
        queries: V embeddings of the views, each (B, D); none if they were not asked for.
        merge: how what the views find becomes one list.
    """

    output: HeadOutput
    queries: list[NDArray[np.float32]]
    merge: Merge = "mean"


class PosteriorModel:
    """Network, cells, calibration and reranker: what a picture says about where on Earth it was taken.

    Args:
        name: as all others, see `Geolocalizer`, which is this with checkpoints and predictions.

    Raises:
        ConfigError: the quadtree is not that of the network's cell head.
    """

    def __init__(
        self,
        name: str,
        network: GeoNetwork | OnnxRunner,
        preprocess: Preprocess,
        quadtree: Quadtree | None,
        calibration: Calibration | None = None,
        card: str = "",
        reranker: Reranker | Weigher | None = None,
        reference: ReferenceDatabase | None = None,
    ) -> None:
        self.runner: Runner = _runner_of(network, preprocess.size_hw)
        if self.runner.num_cells != (0 if quadtree is None else quadtree.num_cells):
            raise ConfigError(
                f"the network classifies {self.runner.num_cells} cells, but the quadtree has "
                f"{0 if quadtree is None else quadtree.num_cells}; give the quadtree that it was built with"
            )
        self.name = name
        self.preprocess = preprocess
        self.quadtree = quadtree
        self.calibration = calibration or Calibration()
        self.card = card
        self.reranker = reranker
        self.reference = reference
        self._saved: Saved | None = None
        self._exported: Exported | None = None
        self._retriever: Retriever | None = None
        self._retriever_version = -1

    # --- what it is -----------------------------------------------------------------------------------------

    @property
    def network(self) -> GeoNetwork:
        """The network of torch.

        Raises:
            ConfigError: the model was exported, and has none.
        """
        network: GeoNetwork | None = getattr(self.runner, "network", None)
        if network is None:
            raise ConfigError(
                f"{self.name!r} is an exported model, which runs and cannot be changed or taken apart: load the "
                "checkpoint that it was exported from"
            )
        return network

    @property
    def device(self) -> Any:
        """Where the network's tensors are: a torch.device, or "cpu" for an exported model."""
        return self.runner.device

    @property
    def identity(self) -> str:
        """Digest of the checkpoint's manifest: two models with the same one give the same predictions.

        Raises:
            CheckpointError: the model was neither loaded nor saved, so nothing has identified it yet.
        """
        identity = self._as_saved().identity
        if identity is None:
            raise CheckpointError(
                "the model was fitted since it was saved, and has an identity once it is saved again: call "
                "save_pretrained first"
            )
        return identity

    @property
    def embedding_fingerprint(self) -> str:
        """Digest of network and preprocessing: vectors of models with the same one may be compared.

        Calibration and card are not in it, so fitting a model anew keeps its reference databases.

        Raises:
            CheckpointError: the model was neither loaded nor saved.
        """
        return self._as_saved().embedding_fingerprint

    def _as_saved(self) -> Saved:
        if self._saved is None:
            raise CheckpointError("a model has an identity once it is saved: call save_pretrained first")
        return self._saved

    @property
    def embedding_dim(self) -> int:
        """Width of the embeddings for retrieval, the same for queries and references.

        Raises:
            ConfigError: the network has no embedding.
        """
        dims = {config.dim for config in self.runner.config.embeddings.values()}
        if len(dims) != 1:
            raise ConfigError(
                f"the model {self.name!r} has embeddings of {len(dims)} widths, and references need one: take a "
                "model that was trained for retrieval"
            )
        return dims.pop()

    # --- from pictures to tensors and vectors ---------------------------------------------------------------

    def load(self, source: ImageSource) -> Any:
        """Decode and preprocess one image: path, bytes, PIL image or array -> (3, S, S), or (3, height, width).

        A tensor, or an array for an exported model.

        Raises:
            BadImageError: it is no usable image.
        """
        return self.load_query(source)[0]

    def load_query(self, source: ImageSource, query: QueryMode = "central_crop") -> Any:
        """Decode one image into the views of a query mode, (V, 3, h, w); see `geoloc.images.query`.

        Raises:
            BadImageError: it is no usable image.
            ConfigError: there is no such mode.
        """
        return self.runner.as_input(load_query_views(source, self.preprocess, query))

    def embed_reference(self, images: Images, source: str) -> NDArray[np.float32]:
        """Unit vectors of preprocessed reference images for a database, (B, 3, S, S) -> (B, D).

        Args:
            images: as `load` makes them, stacked; or (B, V, 3, S, S) for a network that sees V views together.
            source: "aerial" or "street"; the network must have an embedding of that name.

        Raises:
            ConfigError: it has none.
        """
        return self.runner.embed_images(images, source)

    def embed_views(
        self, views: Images, present: NDArray[np.bool_], gsd_m_per_px: tuple[float, ...]
    ) -> NDArray[np.float32]:
        """Unit vectors of places for a database from their aerial views, (B, V, 3, S, S) -> (B, D).

        A network whose aerial embedding aggregates sees the views together, in the order that it was trained with,
        and a missing one as nothing; of any other network it is the mean over the views.

        Args:
            views: as `load` makes them.
            present: (B, V), which views there are.
            gsd_m_per_px: (V,) of the views.

        Raises:
            ConfigError: the network has no aerial embedding, or one of another number of views.
        """
        if self.runner.aggregates("aerial"):
            joint = views if views.shape[1] > 1 else views[:, 0]
            return self.embed_reference(joint, "aerial")
        return mean_of_views(self, views, present)

    # --- from tensors to posteriors -------------------------------------------------------------------------

    def posteriors(
        self, images: Tensor | Sequence[Images], top_k: int = 5, *, reference: Reference = "own"
    ) -> tuple[list[Posterior], list[list[Candidate]]]:
        """The posterior over the Earth of each image, and its `top_k` most probable places, best first.

        Args:
            images: as for `localize_batch`.
            top_k: there may be fewer.
            reference: as for `localize_batch`.

        Raises:
            ConfigError: the network has no head that says where.
            CheckpointError: the network gives numbers that are not finite.
        """
        retriever = self.retriever(reference)
        reading = self.read(images, embed=retriever is not None)
        return self.posteriors_of(reading, self.calibration, retriever, top_k)

    def retriever(self, reference: Reference) -> Retriever | None:
        """The search of a database with this model's cells; opened once, and again when the database changes.

        A model that only embeds searches the whole planet: its answers are the references alone.

        Raises:
            ConfigError: the model cannot search.
            FingerprintMismatchError: the database was made with another model or quadtree.
        """
        database = self.reference if reference == "own" else reference
        if database is None:
            return None
        if isinstance(database, str | Path):
            raise ConfigError(
                f'reference is {str(database)!r}; expected a ReferenceDatabase, "own" or None: '
                "ReferenceDatabase.open(folder) opens one"
            )
        if (
            self._retriever is not None
            and self._retriever.database is database
            and self._retriever_version == database.version
        ):
            return self._retriever
        if self.quadtree is None and self.runner.config.regression is not None:
            raise ConfigError(
                f"the model {self.name!r} says where by regression and has no cells, inside which references are "
                "searched: give reference=None, or take a model with cells or one that only embeds"
            )
        database.check_fingerprints(model=self.embedding_fingerprint)
        self._retriever = Retriever(database, self.quadtree, device=str(self.device))
        self._retriever_version = database.version
        return self._retriever

    def read(
        self, images: Tensor | Sequence[Images], *, embed: bool = False, merge: Merge = "mean"
    ) -> Reading:
        """What the network says of images; arguments as for `localize_batch`.

        Raises:
            ConfigError: the network has no head that says where, or no embedding if `embed` is asked for.
            CheckpointError: the network gives numbers that are not finite.
        """
        views = [image if image.ndim == 4 else image[None] for image in images]
        by_view = merge != "mean" and len({len(part) for part in views}) == 1
        output, queries = self.runner.read(views, "none" if not embed else "each" if by_view else "merged")
        if not embed:
            self.check_says_where()
        if not all(bool(np.isfinite(values).all()) for values in [*output.says_where(), *queries]):
            raise CheckpointError(
                f"the network of the model {self.name!r} gives numbers that are not finite: its weights are "
                "damaged, or too large for their precision; fetch or train it again"
            )
        return Reading(output, queries, merge)

    def check_says_where(self) -> None:
        """Refuse to be asked without references where they are all that a model has.

        Raises:
            ConfigError: the network has no head that says where.
        """
        if self.runner.config.cells is None and self.runner.config.regression is None:
            raise ConfigError(
                f"the model {self.name!r} has neither a cell head nor a regression head: it only embeds. Give it a "
                "reference database to search"
            )

    @property
    def recognises_places(self) -> bool:
        """Whether its answers are places of references alone, seen from the street or from above."""
        config = self.runner.config
        if config.cells is not None or config.regression is not None:
            return False
        return config.street_as_query or bool({"street", "aerial"} & config.embeddings.keys())

    @property
    def default_utility(self) -> Utility:
        """What a point is good at unless something else is asked for.

        The expected GeoScore; of a model that recognises places, being within the 25 m in which the field counts one
        as recognised: a GeoScore hardly tells the best reference from the middle of its town.
        """
        return Utility("within", RECOGNISED_KM) if self.recognises_places else Utility("geoscore")

    @cached_property
    def _guessed_fusion(self) -> Weigher:
        return Weigher.guessed(RECOGNISED_KM) if self.recognises_places else Weigher.guessed()

    @property
    def _fusion(self) -> Reranker | Weigher:
        return self.reranker or self._guessed_fusion

    def evidence(
        self, reading: Reading, calibration: Calibration, retriever: Retriever | None, k: int | None = None
    ) -> tuple[NDArray[np.float64], Evidence]:
        """All cells' probabilities (B, C), and the chosen cells with the best k candidates of each source.

        Of a model that only embeds, there are no cells: one column of nothing stands for them.
        """
        output = reading.output
        k = k or self._fusion.config.candidates_per_source
        if output.cell_logits is None:
            assert retriever is not None
            nothing = np.zeros((len(reading.queries[0]), 1))
            none_chosen = [np.zeros(0, np.int64) for _ in nothing]
            cells = CellEvidence.padded(none_chosen, [np.zeros((0, 3)) for _ in nothing], nothing, np.ones(1))
            return nothing, retriever.evidence(reading.queries, cells, nothing, k, reading.merge)
        logits = output.cell_logits.astype(np.float64)
        probs = np.exp(log_softmax(logits / calibration.temperature))
        chosen = [choose_cells(row, CELL_MASS, MAX_CELLS) for row in probs]
        points = [latlon_to_unit(latlon) for latlon in self.cell_points(output.offsets, chosen)]
        cells = CellEvidence.padded(chosen, points, probs, calibration.cell_kernel * self.cell_radius_km)
        if retriever is None:
            return probs, Evidence.nothing(cells)
        return probs, retriever.evidence(reading.queries, cells, probs, k, reading.merge)

    def posteriors_of(
        self, reading: Reading, calibration: Calibration, retriever: Retriever | None, top_k: int
    ) -> tuple[list[Posterior], list[list[Candidate]]]:
        """As `posteriors`, from what the network said; with a calibration that is not the model's, perhaps."""
        if reading.output.latlon_rad is not None and reading.output.cell_logits is None:
            return self._regression_posteriors(reading.output, calibration)
        probs, evidence = self.evidence(reading, calibration, retriever)
        weighed = self._fusion.weigh(evidence)
        if reading.output.cell_logits is None:  # then references are all there is
            total = weighed.weight.sum(-1, keepdims=True)
            if not total.all():
                raise ConfigError(
                    f"the model {self.name!r} only embeds, and the database has no references to find"
                )
            weighed = replace(weighed, weight=weighed.weight / total)
        keys = None if retriever is None else retriever.keys
        queries = range(len(probs))
        return (
            [posterior_of(evidence, weighed, q, probs[q], self._cell_unit) for q in queries],
            [candidates_of(evidence, weighed, q, top_k, self._paths, keys) for q in queries],
        )

    def _best_cell(self, reading: Reading, b: int) -> tuple[str, float | None]:
        """Path and probability of an image's most probable cell; nothing without cells."""
        logits = reading.output.cell_logits
        if logits is None:
            return "", None
        row = log_softmax(logits[b].astype(np.float64) / self.calibration.temperature)
        best = int(row.argmax())
        return self._paths[best], float(np.exp(row[best]))

    def _regression_posteriors(
        self, output: HeadOutput, calibration: Calibration
    ) -> tuple[list[Posterior], list[list[Candidate]]]:
        assert output.latlon_rad is not None
        unit = latlon_to_unit(np.degrees(output.latlon_rad.astype(np.float64)))
        scale_km = np.array([calibration.regression_kernel_km])
        return (
            [Posterior(row[None], np.ones(1), scale_km) for row in unit],
            # By way of unit vectors: a float32 pi is a little more than 180 degrees.
            [
                [Candidate(float(lat), float(lon), 1.0, "regression", None, "")]
                for lat, lon in unit_to_latlon(unit)
            ],
        )

    def cell_points(
        self, offsets: NDArray[np.float32] | None, chosen: list[NDArray[np.int64]]
    ) -> list[NDArray[np.float64]]:
        """The point inside each chosen cell: by its offset, or its representative point without such a head.

        Args:
            offsets: (B, C or 1, 2) or None.
            chosen: per image (k,) cell ids.

        Returns:
            Per image (k, 2) degrees.
        """
        return points_in_cells(_tree(self.quadtree), chosen, self.runner.config.offsets, offsets)

    @cached_property
    def cell_radius_km(self) -> NDArray[np.float64]:
        """(C,) see `geoloc.localize.cells`."""
        return cell_radius_km(_tree(self.quadtree).bounds_deg)

    @cached_property
    def _cell_unit(self) -> NDArray[np.float64]:
        if self.quadtree is None:
            return np.zeros((0, 3))
        return latlon_to_unit(_tree(self.quadtree).center_latlon_deg)

    @cached_property
    def _paths(self) -> tuple[str, ...]:
        return () if self.quadtree is None else self.quadtree.paths


def _runner_of(network: GeoNetwork | OnnxRunner, size_hw: tuple[int, int]) -> Runner:
    if isinstance(network, OnnxRunner):
        return network
    from geoloc.models.torch_runner import TorchRunner

    return TorchRunner(network, size_hw)


def _tree(quadtree: Quadtree | None) -> Quadtree:
    assert quadtree is not None  # a network with a cell head has one, checked when it was built
    return quadtree
