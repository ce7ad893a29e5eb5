"""The model: a checkpoint in, predictions out; a checkpoint out.

    model = Geolocalizer.from_pretrained("earthview")
    prediction = model.localize("photo.jpg")
    model.save_pretrained("my-model/")

A checkpoint is a folder, see `geoloc.checkpoint.folder`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, cast, overload

from geoloc.checkpoint.folder import Checkpoint, Exported, Saved, write_checkpoint
from geoloc.checkpoint.publish import push_checkpoint
from geoloc.errors import BadImageError, ConfigError
from geoloc.hub.card import Source
from geoloc.hub.push import Pushed, PushOptions
from geoloc.images.decode import ImageSource
from geoloc.images.preprocess import Preprocess
from geoloc.images.query import MERGES, Merge, QueryMode, check_query_mode
from geoloc.localize.embedder import Embedder
from geoloc.localize.references import Reference, References, chosen_databases, with_embedders
from geoloc.localize.search import Search, load_inputs, located_by_gallery, plan_search, run_networks
from geoloc.models.onnx.runner import OnnxRunner
from geoloc.posterior.calibration import Calibration
from geoloc.posterior.pipeline import Images, Pipeline
from geoloc.posterior.point import PointOptions
from geoloc.posterior.prediction import Prediction
from geoloc.posterior.reranker import Reranker, RerankerConfig
from geoloc.posterior.retrieve import Retriever
from geoloc.posterior.utility import Utility
from geoloc.reference.database import ReferenceDatabase
from quadtree import Quadtree

if TYPE_CHECKING:
    from torch import Tensor
    from typing_extensions import Self, Unpack

    from geoloc.checkpoint.export import ExportReport
    from geoloc.localize.keywords import LocalizeKeywords
    from geoloc.models.network import GeoNetwork
    from geoloc.posterior.fit import LabelledBatch
    from geoloc.search.structures import Structure


class Geolocalizer(Embedder):
    """A model that predicts where on Earth an image was taken.

    Args:
        name: of the model, in predictions and cards.
        network: a network of torch, which is switched to evaluation; or an exported one, which needs no torch.
        preprocess: how the network takes its images.
        quadtree: the cells of the network's cell head; None without one.
        calibration: fitted on held-out images; without it predictions have no radii.
        card: text of the checkpoint's README.md.
        reranker: None takes plain fusion with default scales.
        reference: the model's own database, searched unless another one is given.
        references: further databases with their embedders, searched beside it.
        uses_location_heads: False ignores the network's cell and regression heads.

    Attributes:
        pipeline: the stages from preprocessed images to posteriors.
        structure: of the search of references, see `CellIndex`; at first "exact".
        quadtree, calibration, card, reference, references: as given; the others as of `Embedder`.

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
        reranker: Reranker | None = None,
        reference: ReferenceDatabase | None = None,
        references: References | None = None,
        uses_location_heads: bool = True,
    ) -> None:
        super().__init__(name, network, preprocess)
        self.pipeline = Pipeline(name, self.runner, quadtree, reranker, uses_location_heads)
        self.quadtree = quadtree
        self.calibration = calibration or Calibration()
        self.card = card
        self.reference, self.references = reference, references or References()
        self._exported: Exported | None = None
        self.structure: Structure = "exact"
        self._search: tuple[Any, Search] | None = None

    # --- Checkpoints ------------------------------------------------------------------------------------------
    @classmethod
    def of_checkpoint(cls, checkpoint: Checkpoint, saved: Saved | None = None) -> Self:
        """The model of a checkpoint in memory, with its identity if it is on the disk."""
        model = cls(
            checkpoint.name,
            checkpoint.network,
            checkpoint.preprocess,
            checkpoint.quadtree,
            checkpoint.calibration,
            checkpoint.card,
            checkpoint.reranker,
            checkpoint.reference,
            References.of_parts(checkpoint.parts),
            checkpoint.uses_location_heads,
        )
        model._saved, model._exported = saved, checkpoint.exported
        return model

    @property
    def reranker(self) -> Reranker | None:
        """The fitted reranker; None without one."""
        return self.pipeline.reranker

    @reranker.setter
    def reranker(self, reranker: Reranker | None) -> None:
        self.pipeline.reranker = reranker

    @staticmethod
    def compose(
        classifier: str | Path | Geolocalizer | None,
        references: Sequence[str | Path | ReferenceDatabase],
        *,
        name: str | None = None,
        device: Any = "cpu",
        num_threads: int | None = None,
    ) -> Geolocalizer:
        """Put a classifier and databases of any models together; see `geoloc.localize.compose`."""
        from geoloc.localize.compose import compose

        return compose(classifier, references, name=name, device=device, num_threads=num_threads)

    def as_checkpoint(self) -> Checkpoint:
        """The checkpoint of this model in memory."""
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
            self.references.as_parts(),
            self.pipeline.uses_location_heads,
        )

    def save_pretrained(self, folder: str | Path, *, half: bool = False) -> None:
        """Write the checkpoint; an existing one is replaced in one step, and is whole at every moment.

        Args:
            folder: where to; it is made, or must hold a checkpoint.
            half: store floating-point tensors as float16 (half the size; loaded as float32).

        Raises:
            OutputMismatchError: the folder holds files that no checkpoint of geoloc has.
            CheckpointError: a weight is too large for float16.
        """
        self._saved = write_checkpoint(self.as_checkpoint(), folder, half=half)

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

        Log in first: `hf auth login`. The result is the commit, which `revision=` pins, and its address.

        Args:
            repo_id: "org/name"; the repository is made if it does not exist.
            private: whether a new repository is private; None leaves it to the account.
            revision: branch; it is made if it does not exist.
            create_pr: open a pull request instead of changing the branch.
            commit_message: None states what was pushed.
            metrics: reports of `geoloc evaluate` and `geoloc recall` for the card, or their metrics.json.
            licence: of the weights, by the Hub's names, such as "apache-2.0"; None keeps that of the card.
            ledger: data and weights that the model was made from, for the card.
            half: store floating-point tensors as float16.

        Raises:
            ConfigError: a name that no repository can have, or a file that is not a report.
            NotFoundError: there is no such report, or the Hub cannot be reached or denies access.
        """
        with TemporaryDirectory() as folder:
            saved = Path(folder) / "model"
            write_checkpoint(self.as_checkpoint(), saved, half=half)
            options = PushOptions(private, revision, create_pr, commit_message)
            return push_checkpoint(saved, repo_id, options, metrics=metrics, licence=licence, ledger=ledger)

    def export_onnx(
        self,
        folder: str | Path,
        images: Sequence[ImageSource],
        *,
        int8: bool = False,
        least_agreement: float | None = None,
    ) -> ExportReport:
        """Write the model as a checkpoint whose network is an ONNX graph; see `geoloc.checkpoint.export`."""
        from geoloc.checkpoint.export import export_onnx
        from geoloc.models.onnx.quantise import LEAST_AGREEMENT

        saved = Saved(self.identity, self.embedding_fingerprint)
        least = LEAST_AGREEMENT if least_agreement is None else least_agreement
        return export_onnx(self.as_checkpoint(), saved, folder, images, int8=int8, least_agreement=least)

    # --- Predictions ------------------------------------------------------------------------------------------

    @overload
    def localize(  # type: ignore[overload-overlap]  # a str is a Sequence, too
        self, images: ImageSource, **keywords: Unpack[LocalizeKeywords]
    ) -> Prediction: ...
    @overload
    def localize(
        self, images: Sequence[ImageSource], **keywords: Unpack[LocalizeKeywords]
    ) -> list[Prediction]: ...
    def localize(
        self,
        images: ImageSource | Sequence[ImageSource],
        *,
        query: QueryMode = "central_crop",
        reference: Reference = "own",
        utility: str | Utility | None = None,
        top_k: int = 5,
        abstain_above_km: float | None = None,
        max_precision_km: float | None = None,
        places: bool = True,
        batch_size: int = 16,
    ) -> Prediction | list[Prediction]:
        """Predict where an image was taken; a list of images gives a list.

        Args:
            images: path, bytes, PIL image, or (h, w, 3) uint8 array; or a list of them.
            query: how an image becomes network inputs, see `geoloc.images.query`.
            reference: a database to search, or several; "own" is all of the model's, and None searches none. The
                embedders of databases that other models made are loaded from what their manifests say.
            utility: what the point maximises: "geoscore", "median" or "within:25km"; None is the model's default.
            top_k: number of candidates to report, at least 1; there may be fewer.
            abstain_above_km: set `abstained` where the 90 % radius is larger.
            max_precision_km: answer on a grid no finer than this, see `geoloc.posterior.coarse`.
            places: look up the nearest city's name.
            batch_size: images that go through the network together.

        Raises:
            BadImageError: an image is unusable; of a list, the message says which.
            ConfigError: an impossible option, or abstaining with a model that has no calibrated 90 % radius.
            CheckpointError: the network gives numbers that are not finite.
            FingerprintMismatchError: the database was made with another model or quadtree.
        """
        if batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size}; it must be at least 1")
        check_query_mode(query)
        # A str and bytes are Sequences, too.
        is_single = isinstance(images, str | bytes) or not isinstance(images, Sequence)
        sources = cast("Sequence[ImageSource]", [images] if is_single else images)
        search = self.search_of(reference)
        predictions: list[Prediction] = []
        for start in range(0, len(sources), batch_size):
            inputs = []
            for index, image in enumerate(sources[start : start + batch_size], start):
                try:
                    inputs.append(load_inputs(super().load_query, image, query, search.references))
                except BadImageError as error:
                    if is_single:
                        raise
                    raise BadImageError(f"image {index} of the list: {error.reason}") from error
            predictions += self.localize_batch(
                inputs,
                reference=reference,
                merge=MERGES.get(query, "mean"),
                utility=utility,
                top_k=top_k,
                abstain_above_km=abstain_above_km,
                max_precision_km=max_precision_km,
                places=places,
            )
        return predictions[0] if is_single else predictions

    def localize_batch(
        self,
        images: Tensor | Sequence[Images],
        *,
        reference: Reference = "own",
        merge: Merge = "mean",
        utility: str | Utility | None = None,
        top_k: int = 5,
        abstain_above_km: float | None = None,
        max_precision_km: float | None = None,
        places: bool = True,
    ) -> list[Prediction]:
        """Localise preprocessed images, (B, 3, S, S), or B sets of views, each (V, 3, h, w).

        Args:
            images: as `load` makes them, stacked or in a list; or as `load_query` makes them, in a list.
            merge: of several views: "mean" averages their features; "nearest" and "vote" search with each of them and
                merge the results.
            reference, utility, top_k, abstain_above_km, max_precision_km, places: as for `localize`.

        Raises:
            As `localize`, without BadImageError.
        """
        chosen = self.pipeline.default_utility if utility is None else Utility.parse(utility)
        search = self.search_of(reference)
        retriever = search.retriever
        options = PointOptions(
            chosen,
            self.calibration.levels(chosen.name, None if retriever is None else retriever.identity),
            top_k,
            abstain_above_km,
            max_precision_km,
            places,
            repr(self.name) + ("" if retriever is None else f" with the references in {retriever.folders}"),
            self.pipeline.near_km,
        )
        outputs = run_networks(self.pipeline, images, search, merge)
        located = located_by_gallery(self.pipeline, outputs, self.calibration, search)
        posteriors, candidates = self.pipeline.posteriors(
            outputs, self.calibration, retriever, top_k, located
        )
        best_cells = [self.pipeline.best_cell(outputs, self.calibration, b) for b in range(len(posteriors))]
        return options.predictions(posteriors, candidates, best_cells, self.pipeline.quadtree)

    def search_of(self, reference: Reference) -> Search:
        """What is searched for a choice of references; opened once, and again when a database changes.

        Raises:
            ConfigError: the model cannot search.
            FingerprintMismatchError: no embedder fits a database, or it is bound to another quadtree.
        """
        databases = chosen_databases(reference, self.own_databases)
        versions = [(id(database), database.version) for database in databases]
        state = (reference == "own", self.structure, versions)
        if self._search is None or self._search[0] != state:
            references = with_embedders(self, databases, self.references.embedders)
            # The plan keeps the databases, so that their ids stay theirs.
            plan = plan_search(
                self.pipeline,
                references,
                str(self.device),
                self.reference,
                self.structure,
                is_fitted=reference == "own" or not references.embedders,
            )
            self._search = (state, plan)
        return self._search[1]

    def load_query(
        self, source: ImageSource, query: QueryMode = "central_crop", reference: Reference = None
    ) -> Any:
        """Decode one image for the model's own network, see `Embedder.load_query`, and for other embedders.

        With references that need other embedders the result is `geoloc.localize.search.QueryInputs`.
        """
        references = References() if reference is None else self.search_of(reference).references
        return load_inputs(super().load_query, source, query, references)

    def retriever(self, reference: Reference, structure: Structure | None = None) -> Retriever | None:
        """The search of a choice of references, see `search_of`; from now on in `structure`, if that is given."""
        self.structure = structure or self.structure
        return self.search_of(reference).retriever

    @property
    def own_databases(self) -> list[ReferenceDatabase]:
        """All databases of the model."""
        own = [] if self.reference is None else [self.reference]
        return [*own, *self.references.databases]

    def reference_identity(self, reference: Reference) -> str:
        """Digest of a choice of references; "none" without any."""
        return self.search_of(reference).identity

    def check_answers(self, reference: Reference) -> None:
        """Refuse, before any image is read, a model that cannot answer with these references.

        Raises:
            As `search_of`; ConfigError where a model that only embeds has nothing to search.
        """
        if self.retriever(reference) is None:
            self.pipeline.check_location_head()

    # --- Fitting on held-out images ---------------------------------------------------------------------------

    def calibrate(
        self, batches: Iterable[LabelledBatch], data: str, *, reference: Reference = None
    ) -> Calibration:
        """Fit temperature, kernel width and conformal levels on held-out images, and use them from now on.

        Args:
            batches: preprocessed images (B, 3, S, S) and their coordinates (B, 2); a few thousand images, not trained
                on, like those that the model will meet. Where references need other embedders, images are a list of
                the results of `load_query(image, reference=…)`.
            data: what they are, in words, for the card.
            reference: a database; then levels for predictions with it are fitted as well.

        Raises:
            ConfigError: there are no images, or the network has no location head.
            InvalidCoordinateError: a coordinate is not on Earth.
        """
        from geoloc.localize.fitting import calibration_of

        self.calibration = calibration_of(self, batches, data, reference)
        self._mark_unsaved()
        return self.calibration

    def fit_reranker(
        self,
        batches: Iterable[LabelledBatch],
        *,
        reference: Reference = "own",
        config: RerankerConfig | None = None,
    ) -> Reranker:
        """Fit the reranker on held-out images, and use it from now on.

        Calibrate afterwards, on other images: a reranker is overconfident on the images that it was fitted on.

        Args:
            batches: as for `calibrate`.
            reference: the database; "own" is the model's.
            config: size of the reranker.

        Raises:
            ConfigError: there are no images, no database, or no candidate for any image.
        """
        from geoloc.localize.fitting import fitted_reranker

        self.reranker = fitted = fitted_reranker(self, batches, reference, config or RerankerConfig())
        self._mark_unsaved()
        return fitted

    def _mark_unsaved(self) -> None:
        """The folder no longer holds this model; its embeddings are the same."""
        if self._saved is not None:
            self._saved = replace(self._saved, identity=None)
