"""The product: a checkpoint in, predictions out; a checkpoint out.

    model = Geolocalizer.from_pretrained("earthview")
    prediction = model.localize("photo.jpg")
    model.save_pretrained("my-model/")

A checkpoint is a folder, see `geoloc.localize.checkpoint`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal, cast, overload

import numpy as np
from numpy.typing import NDArray

from geoloc.errors import BadImageError, CheckpointError, ConfigError
from geoloc.hub.card import Source
from geoloc.hub.push import Pushed, PushOptions
from geoloc.images.decode import ImageSource
from geoloc.images.preprocess import Preprocess
from geoloc.images.query import MERGES, Merge, QueryMode, check_query_mode, load_query_views
from geoloc.localize.calibrate import Calibration, log_softmax
from geoloc.localize.cells import cell_radius_km, points_in_cells
from geoloc.localize.checkpoint import Checkpoint, Exported, Saved, write_checkpoint
from geoloc.localize.coarse import CoarseGrid, coarsened
from geoloc.localize.evidence import CellEvidence, Evidence
from geoloc.localize.mixture import atoms_of, candidates_of, posterior_of
from geoloc.localize.posterior import Posterior, Utility, choose_cells
from geoloc.localize.prediction import Candidate, Prediction
from geoloc.localize.publish import push_checkpoint
from geoloc.localize.published import read_model
from geoloc.localize.retrieve import Retriever
from geoloc.localize.weigh import RerankerConfig, Weigher
from geoloc.models.onnx.runner import OnnxRunner
from geoloc.models.runner import HeadOutput, Runner
from geoloc.reference.database import ReferenceDatabase
from geoloc.reference.embedder import mean_of_views
from quadtree import Quadtree
from quadtree.sphere import latlon_to_unit, unit_to_latlon

if TYPE_CHECKING:
    from torch import Tensor

    from geoloc.geo.places import Place
    from geoloc.localize.rerank import Reranker
    from geoloc.models.network import GeoNetwork

Images = Any  # a tensor, or an array for an exported model
LabelledBatch = tuple[Images, NDArray[np.float64]]
Reference = ReferenceDatabase | Literal["own"] | None

CELL_MASS = 0.95  # the chosen cells hold this much of the posterior …
MAX_CELLS = 32  # … or are this many


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


class Geolocalizer:
    """A model that says where on Earth an image was taken.

    Args:
        name: what predictions and cards call it.
        network: in evaluation mode or not, it is switched to it; or an exported one, which needs no torch.
        preprocess: how the network wants its images.
        quadtree: the cells that the network's cell head classifies; None without such a head.
        calibration: fitted on held-out images; without it predictions have no radii.
        card: text of the README.md that the checkpoint carries.
        reranker: how candidates of a database are weighed; plain fusion with a guess at its scales without one.
        reference: the model's own database, searched unless another one is asked for.

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
        self.runner: Runner = _runner_of(network, preprocess.image_size_px)
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

    # --- checkpoints ----------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        revision: str | None = None,
        subfolder: str = "",
        device: Any = "cpu",
        num_threads: int | None = None,
        **options: Any,
    ) -> Geolocalizer:
        """Load a model: a bundled name ("earthview"), a folder, a Hub id, or what others have published.

        `geoloc models` lists systems of others whose files are read ("osv5m/baseline", …): by a name there, or by the
        path of a folder or file in their format, which is told by what is in it.

        Nothing but the checkpoint is read or downloaded, and nothing in it is unpickled or imported. What came from the
        Hub stays in a cache, so that a second time needs no network; HF_HUB_OFFLINE=1 forbids asking it.

        Args:
            name: a folder comes before a bundled model, and that before the Hub.
            revision: of the Hub's repository: a branch, tag, commit (which pins it for ever) or "refs/pr/N".
            subfolder: of the folder or repository, where the model is not at its top.
            device: where its tensors go, as torch names it; an exported model stays on the CPU.
            num_threads: CPU threads of the network (of all of torch, where it is a torch network); None leaves it to
                the library.
            options: of a published file that leaves something open, see `geoloc.adapters.options.Options`: `quadtree`,
                `tower`, `image_size_px`, ….

        Raises:
            NotFoundError: there is no such model, or it is not here and the Hub cannot be reached.
            IntegrityError: a file is missing or differs from the manifest.
            ConfigError: config.json or calibration.json has an unknown key or an impossible value.
            CheckpointError: the tensors do not fit the network that config.json describes, or the quadtree is
                none.
            FingerprintMismatchError: the quadtree is not the one that the cell head was trained on.
        """
        return cls.of_checkpoint(*read_model(name, revision, subfolder, options, device, num_threads))

    @classmethod
    def of_checkpoint(cls, checkpoint: Checkpoint, saved: Saved | None = None) -> Geolocalizer:
        """The model of a checkpoint in memory, and what identifies it, if it is on the disk."""
        model = cls(
            checkpoint.name,
            checkpoint.network,
            checkpoint.preprocess,
            checkpoint.quadtree,
            checkpoint.calibration,
            checkpoint.card,
            checkpoint.reranker,
            checkpoint.reference,
        )
        model._saved, model._exported = saved, checkpoint.exported
        return model

    def save_pretrained(self, folder: str | Path, *, half: bool = False) -> None:
        """Write the checkpoint; an existing one is replaced in one step, and is whole at every moment.

        Args:
            folder: where to; it is made, or must hold a checkpoint.
            half: store floating-point tensors as float16 (half the size; loaded as float32).

        Raises:
            OutputMismatchError: the folder holds files that no checkpoint of ours has.
            CheckpointError: a weight is too large for float16.
        """
        self._saved = write_checkpoint(self._as_checkpoint(), folder, half=half)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        commit_message: str | None = None,
        metrics: Sequence[str | Path] = (),
        licence: str | None = None,
        ledger: Sequence[Source] = (),
        half: bool = False,
    ) -> Pushed:
        """Publish the model on the Hugging Face Hub, in one commit; `from_pretrained(repo_id)` loads it again.

        Log in first: `hf auth login`.

        Args:
            repo_id: "org/name"; the repository is made if there is none.
            private: whether a repository that is made now is private; None leaves it to the account.
            revision: branch; it is made if there is none.
            create_pr: open a pull request instead of changing the branch.
            commit_message: None says what was pushed.
            metrics: reports of `geoloc evaluate`, folders or their metrics.json; the card shows them.
            licence: of the weights, by the Hub's names, such as "apache-2.0"; None keeps what the card says.
            ledger: what the model was made from, for the card.
            half: store floating-point tensors as float16.

        Returns:
            The commit, which `revision=` pins, and its address.

        Raises:
            ConfigError: a name that no repository can have, or a file that is no report.
            NotFoundError: there is no such report, or the Hub cannot be reached or does not let us.
        """
        with TemporaryDirectory() as folder:
            saved = Path(folder) / "model"
            write_checkpoint(self._as_checkpoint(), saved, half=half)
            options = PushOptions(private, revision, create_pr, commit_message)
            return push_checkpoint(saved, repo_id, options, metrics=metrics, licence=licence, ledger=ledger)

    def _as_checkpoint(self) -> Checkpoint:
        return Checkpoint(
            self.name,
            self.runner if isinstance(self.runner, OnnxRunner) else self.network,
            self.preprocess,
            self.quadtree,
            self.calibration,
            self.card,
            self.reranker,
            self.reference,
            self._exported,
        )

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

    # --- localising -----------------------------------------------------------------------------------------

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

    def load(self, source: ImageSource) -> Any:
        """Decode and preprocess one image: path, bytes, PIL image or array -> (3, S, S).

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

    @overload
    def localize(self, images: ImageSource, **options: Any) -> Prediction: ...
    @overload
    def localize(self, images: Sequence[ImageSource], **options: Any) -> list[Prediction]: ...
    def localize(
        self,
        images: ImageSource | Sequence[ImageSource],
        *,
        batch_size: int = 16,
        query: QueryMode = "central_crop",
        **options: Any,
    ) -> Prediction | list[Prediction]:
        """Say where an image was taken; a list of images gives a list.

        Args:
            images: path, bytes, PIL image, or (h, w, 3) uint8 array; or a list of them.
            batch_size: images that go through the network together.
            query: how a picture becomes network inputs, see `geoloc.images.query`.
            options: as `localize_batch` takes them: `reference`, `utility`, `top_k`, `abstain_above_km`,
                `max_precision_km`, `places`.

        Raises:
            BadImageError: an image is unusable; of a list, the message says which.
            ConfigError: an option that is impossible.
        """
        if batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size}; it must be at least 1")
        check_query_mode(query)
        options["merge"] = MERGES.get(query, "mean")
        # A str and bytes are Sequences, too.
        if isinstance(images, str | bytes) or not isinstance(images, Sequence):
            return self.localize_batch([self.load_query(images, query)], **options)[0]
        images = cast("Sequence[ImageSource]", images)
        predictions: list[Prediction] = []
        for start in range(0, len(images), batch_size):
            tensors = []
            for index, image in enumerate(images[start : start + batch_size], start):
                try:
                    tensors.append(self.load_query(image, query))
                except BadImageError as error:
                    raise BadImageError(f"image {index} of the list: {error.reason}") from error
            predictions += self.localize_batch(tensors, **options)
        return predictions

    def localize_batch(
        self,
        images: Tensor | Sequence[Images],
        *,
        reference: Reference = "own",
        merge: Merge = "mean",
        utility: str | Utility = "geoscore",
        top_k: int = 5,
        abstain_above_km: float | None = None,
        max_precision_km: float | None = None,
        places: bool = True,
    ) -> list[Prediction]:
        """Localise preprocessed images, (B, 3, S, S), or B sets of views, each (V, 3, h, w).

        Args:
            images: as `load` makes them, stacked or in a list; or as `load_query` makes them, in a list.
            reference: a database to search; "own" takes the one that came with the model, if there is one, and
                None does without.
            merge: of several views: "mean" averages their features; "nearest" and "vote" search with each of
                them and merge what they find.
            utility: what the point should be good at: "geoscore", "median" or "within:25km".
            top_k: number of candidates to report, at least 1; there may be fewer.
            abstain_above_km: set `abstained` where the 90 % radius is larger.
            max_precision_km: answer on a grid no finer than this, in all parts of a prediction, see
                `geoloc.localize.coarse`; then `place` is a region.
            places: look up the nearest city's name.

        Raises:
            ConfigError: an option that is impossible, or abstaining asked of a model without calibration.
            CheckpointError: the network gives numbers that are not finite.
            FingerprintMismatchError: the database was made with another model or quadtree.
        """
        utility = Utility.parse(utility)
        retriever = self.retriever(reference)
        levels = self.calibration.levels(
            utility.kind, None if retriever is None else retriever.database.identity
        )
        if top_k < 1:
            raise ConfigError(f"top_k is {top_k}; it must be at least 1")
        if abstain_above_km is not None and not abstain_above_km >= 0:
            raise ConfigError(f"abstain_above_km is {abstain_above_km}; it must be a distance")
        if abstain_above_km is not None and 90 not in levels:
            with_it = "" if retriever is None else f" with the references in {retriever.database.folder}"
            raise ConfigError(
                f"asked to abstain above {abstain_above_km} km, but the model {self.name!r}{with_it} has no "
                "calibrated 90 % radius; calibrate it, or leave abstain_above_km out"
            )
        grid = None if max_precision_km is None else CoarseGrid(max_precision_km)
        reading = self.read(images, embed=retriever is not None, merge=merge)
        posteriors, candidates = self.posteriors_of(reading, self.calibration, retriever, top_k)
        predictions = []
        for b, (posterior, ranked) in enumerate(zip(posteriors, candidates, strict=True)):
            unit = posterior.point(utility)
            lat, lon = unit_to_latlon(unit).tolist()
            radii = dict(zip(levels, posterior.radii_km(unit, list(levels.values())), strict=True))
            cell_path, probability = self._best_cell(reading, b)
            prediction = Prediction(
                lat=lat,
                lon=lon,
                cell_path=cell_path,
                probability=probability,
                candidates=tuple(ranked),
                radius_km=radii,
                posterior=atoms_of(posterior),
            )
            if grid is not None:
                prediction = coarsened(prediction, grid, self.quadtree)
            if abstain_above_km is not None:
                prediction = replace(prediction, abstained=prediction.radius_km[90] > abstain_above_km)
            predictions.append(prediction)
        if places:
            names: Sequence[Place] = _nearest_places([(p.lat, p.lon) for p in predictions])
            if grid is not None:  # the city nearest to a grid's point is no answer; its region may be
                names = [replace(name, name="", admin2="") for name in names]
            predictions = [replace(p, place=name) for p, name in zip(predictions, names, strict=True)]
        return predictions

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

    # --- from network to posterior --------------------------------------------------------------------------

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
        assert not isinstance(database, str)
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
        if not output.says_where() and not embed:
            raise ConfigError(
                f"the model {self.name!r} has neither a cell head nor a regression head: it only embeds. Give it a "
                "reference database to search"
            )
        if not all(bool(np.isfinite(values).all()) for values in [*output.says_where(), *queries]):
            raise CheckpointError(
                f"the network of the model {self.name!r} gives numbers that are not finite: its weights are "
                "damaged, or too large for their precision; fetch or train it again"
            )
        return Reading(output, queries, merge)

    @property
    def _fusion(self) -> Reranker | Weigher:
        return self.reranker or Weigher(RerankerConfig())

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

    def _best_cell(self, reading: Reading, b: int) -> tuple[str, float]:
        """Path and probability of an image's most probable cell."""
        logits = reading.output.cell_logits
        if logits is None:
            return "", 1.0
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

    # --- fitting on held-out images -------------------------------------------------------------------------

    def calibrate(
        self, batches: Iterable[LabelledBatch], data: str, *, reference: Reference = None
    ) -> Calibration:
        """Fit temperature, kernel width and conformal levels on held-out images, and use them from now on.

        Args:
            batches: preprocessed images (B, 3, S, S) and their coordinates (B, 2); a few thousand images, not
                trained on, like those that the model will meet.
            data: what they are, in words, for the card.
            reference: a database; then levels for predictions with it are fitted as well.

        Raises:
            ConfigError: there are no images, or the network has no head that says where.
            InvalidCoordinateError: a coordinate is no place on Earth.
        """
        from geoloc.localize.fit import calibrate

        self.calibration = calibrate(self, batches, data, self.retriever(reference))
        self._unsave()
        return self.calibration

    def fit_reranker(
        self,
        batches: Iterable[LabelledBatch],
        *,
        reference: Reference = "own",
        config: RerankerConfig | None = None,
    ) -> Reranker:
        """Fit how candidates of a database are weighed, on held-out images, and use it from now on.

        Calibrate afterwards, on other images: weights that were fitted on images are too sure of them.

        Args:
            batches: as for `calibrate`.
            reference: the database; "own" is the model's.
            config: size of the reranker.

        Raises:
            ConfigError: there are no images, no database, or no candidate for any image.
        """
        from geoloc.localize.fit import fit_reranker_of

        retriever = self.retriever(reference)
        if retriever is None:
            raise ConfigError(f"the model {self.name!r} has no references of its own; give a database")
        self.reranker = fitted = fit_reranker_of(self, batches, retriever, config or RerankerConfig())
        self._unsave()
        return fitted

    def _unsave(self) -> None:
        """The folder no longer holds what the model is; its embeddings are the same."""
        if self._saved is not None:
            self._saved = replace(self._saved, identity=None)

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


def _runner_of(network: GeoNetwork | OnnxRunner, size_px: int) -> Runner:
    if isinstance(network, OnnxRunner):
        return network
    from geoloc.models.torch_runner import TorchRunner

    return TorchRunner(network, size_px)


def _tree(quadtree: Quadtree | None) -> Quadtree:
    assert quadtree is not None  # a network with a cell head has one, checked when it was built
    return quadtree


def _nearest_places(latlon_deg: list[tuple[float, float]]) -> Sequence[Place]:
    from geoloc.geo.places import load_places

    return load_places().nearest(latlon_deg)
