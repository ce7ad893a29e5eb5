"""The product: a checkpoint in, predictions out; a checkpoint out.

    model = Geolocalizer.from_pretrained("earthview")
    prediction = model.localize("photo.jpg")
    model.save_pretrained("my-model/")

A checkpoint is a folder, see `geoloc.localize.checkpoint`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, cast, overload

from geoloc.errors import BadImageError, ConfigError
from geoloc.hub.card import Source
from geoloc.hub.push import Pushed, PushOptions
from geoloc.images.decode import ImageSource
from geoloc.images.query import MERGES, Merge, QueryMode, check_query_mode
from geoloc.localize.answer import CITY_KM, Asked
from geoloc.localize.calibrate import Calibration
from geoloc.localize.checkpoint import Checkpoint, Saved, write_checkpoint
from geoloc.localize.posterior import Utility
from geoloc.localize.posterior_model import RECOGNISED_KM, Images, LabelledBatch, PosteriorModel, Reference
from geoloc.localize.prediction import Prediction
from geoloc.localize.publish import push_checkpoint
from geoloc.localize.published import read_model
from geoloc.localize.weigh import RerankerConfig
from geoloc.models.onnx.runner import OnnxRunner

if TYPE_CHECKING:
    from torch import Tensor

    from geoloc.localize.rerank import Reranker


class Geolocalizer(PosteriorModel):
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
            metrics: reports of `geoloc evaluate` and `geoloc recall` for the card, or their metrics.json.
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

    # --- localising -----------------------------------------------------------------------------------------

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
        utility: str | Utility | None = None,
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
            utility: what the point should be good at: "geoscore", "median" or "within:25km"; None is the model's
                `default_utility`.
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
        utility = self.default_utility if utility is None else Utility.parse(utility)
        retriever = self.retriever(reference)
        database = None if retriever is None else retriever.database
        asked = Asked(
            utility,
            self.calibration.levels(utility.name, None if database is None else database.identity),
            top_k,
            abstain_above_km,
            max_precision_km,
            places,
            repr(self.name) + ("" if database is None else f" with the references in {database.folder}"),
            near_km=RECOGNISED_KM if self.recognises_places else CITY_KM,
        )
        reading = self.read(images, embed=retriever is not None, merge=merge)
        posteriors, candidates = self.posteriors_of(reading, self.calibration, retriever, top_k)
        best_cells = [self._best_cell(reading, b) for b in range(len(posteriors))]
        return asked.predictions(posteriors, candidates, best_cells, self.quadtree)

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
