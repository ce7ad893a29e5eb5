"""Inference session: a loaded model with its reference database and the options of its answers.

    session = open_session("earthview", SessionOptions(reference=("refs/",), top_k=10))
    session.localize([session.load("photo.jpg")])

A session is what jobs, commands and services run. Whether a name is a checkpoint, a published model or a model that
samples locations is decided once, in `geoloc.checkpoint.resolve`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from geoloc.checkpoint.published import read_model
from geoloc.checkpoint.resolve import resolve_model
from geoloc.errors import ConfigError
from geoloc.images.decode import ImageSource
from geoloc.images.preprocess import Preprocess
from geoloc.images.query import MERGES, QueryMode, check_query_mode
from geoloc.posterior.coarse import CoarseGrid
from geoloc.posterior.prediction import Prediction
from geoloc.posterior.utility import Utility
from geoloc.search.structures import Structure, check_structure

if TYPE_CHECKING:
    from geoloc.localize.geolocalizer import Geolocalizer
    from geoloc.localize.references import Reference
    from geoloc.localize.sampler import LocationSampler

MAX_TOP_K = 1000


@dataclass(frozen=True, kw_only=True)
class SessionOptions:
    """Options that decide a session's predictions, besides the model and the images.

    Attributes:
        query: how an image becomes network inputs, see `geoloc.images.query`.
        reference: folders of reference databases, among them "own" (those of the model); () searches none.
        structure: how they are searched: "exact", "flat", "fp16", "sq8", "pq", and for models without cells "hnsw" and
            "ivfpq", see `geoloc.search.cell_index.CellIndex`.
        top_k: number of candidates, 1 to 1000; there may be fewer.
        utility: what the point maximises: "geoscore", "median" or "within:25km"; None is the model's default.
        abstain_above_km: a larger 90 % radius makes the prediction abstain.
        max_precision_km: no location in the answer is finer than this, see `geoloc.posterior.coarse`.

    Raises:
        ConfigError: an impossible value.
    """

    query: QueryMode = "central_crop"
    reference: tuple[str, ...] = ("own",)
    structure: Structure = "exact"
    top_k: int = 5
    utility: str | None = None
    abstain_above_km: float | None = None
    max_precision_km: float | None = None

    def __post_init__(self) -> None:
        check_query_mode(self.query)
        check_structure(self.structure)
        if not 1 <= self.top_k <= MAX_TOP_K:
            raise ConfigError(f"top_k is {self.top_k}; expected 1 to {MAX_TOP_K}")
        if self.abstain_above_km is not None and not self.abstain_above_km > 0:
            raise ConfigError(f"abstain_above_km is {self.abstain_above_km}; expected a positive number")
        if self.utility is not None:
            Utility.parse(self.utility)
        if self.max_precision_km is not None:
            CoarseGrid(self.max_precision_km)


class Session:
    """A loaded model that answers images with fixed options.

    Args:
        model: that answers; a `Geolocalizer` searches in the structure of the options from now on.
        options: of the answers; their `reference` is only a name here.
        reference: what is searched, see `Geolocalizer.localize`.

    Attributes:
        name: of the model.
        preprocess: of the model's images.
        options: of the answers.
        database_identity: digest of the reference database, "none" without one.

    Raises:
        ConfigError: the model cannot answer with this database.
        FingerprintMismatchError: the database was made with another model or quadtree.
    """

    def __init__(
        self,
        model: Geolocalizer | LocationSampler,
        options: SessionOptions,
        reference: Reference = None,
    ) -> None:
        self.name: str = model.name
        self.preprocess: Preprocess = model.preprocess
        self.options = options
        self._model, self._reference = model, reference
        if hasattr(model, "structure"):  # a model that searches
            model.structure = options.structure
        model.check_answers(reference)  # now, before any image is read
        self.database_identity = model.reference_identity(reference)
        if options.structure != "exact" and self.database_identity == "none":
            raise ConfigError(
                f"structure is {options.structure!r}, but {model.name!r} has no references to search: give a "
                "database, or leave the structure out"
            )

    @property
    def model_identity(self) -> str:
        """Digest of the model."""
        return self._model.identity

    @property
    def identity(self) -> dict[str, Any]:
        """Plain JSON values: sessions with the same ones give the same predictions."""
        return {
            "model": self._model.identity,
            **asdict(self.options),
            "reference": self.database_identity,
        }

    @property
    def fingerprint(self) -> str:
        """Digest of `identity`."""
        return hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()

    def load(self, source: ImageSource) -> Any:
        """Decode and preprocess one image: the input that `localize` takes.

        Raises:
            BadImageError: the image is unusable.
        """
        return self._model.load_query(source, self.options.query, self._reference)

    def localize(self, inputs: Sequence[Any]) -> list[Prediction]:
        """One prediction for each input.

        Raises:
            ConfigError: asked to abstain with a model that has no calibrated 90 % radius.
            CheckpointError: the network gives numbers that are not finite.
        """
        options = self.options
        found = self._model.localize_batch(
            list(inputs),
            reference=self._reference,
            merge=MERGES.get(options.query, "mean"),
            utility=options.utility,
            top_k=options.top_k,
            abstain_above_km=options.abstain_above_km,
            max_precision_km=options.max_precision_km,
        )
        if len(found) != len(inputs):
            raise RuntimeError(f"the model gave {len(found)} predictions for {len(inputs)} images")
        return found


def open_session(
    name: str,
    options: SessionOptions | None = None,
    *,
    device: str = "cpu",
    num_threads: int | None = None,
    model_options: Mapping[str, Any] | None = None,
) -> Session:
    """Load a model and its references.

    Args:
        name: a bundled model, a folder, a file or a Hub id, see `Geolocalizer.from_pretrained`.
        options: of the answers.
        device: where the tensors go, as torch names it.
        num_threads: CPU threads of the network; None leaves it to the library.
        model_options: of a published file that leaves something open, see `geoloc.adapters.options.Options`.

    Raises:
        ConfigError: a model that samples locations was asked for retrieval or for a query mode.
        GeolocError: the model or the references cannot be loaded, or do not belong together.
    """
    options = options or SessionOptions()
    resolved = resolve_model(name, options=model_options)
    if resolved.samples_locations:
        from geoloc.localize.sampler import LocationSampler

        if options.query != "central_crop" or options.reference not in (("own",), ()):
            raise ConfigError(
                f"{name!r} samples locations from one image and searches no references: leave --query and "
                "--reference out"
            )
        return Session(LocationSampler.of(resolved, device=device, num_threads=num_threads), options)
    from geoloc.localize.geolocalizer import Geolocalizer
    from geoloc.localize.references import opened

    model = Geolocalizer.of_checkpoint(*read_model(resolved, device, num_threads))
    if options.reference == ("own",):
        return Session(model, options, "own")
    own = model.own_databases
    databases = [
        database for name in options.reference for database in (own if name == "own" else opened([name]))
    ]
    return Session(model, options, databases or None)
