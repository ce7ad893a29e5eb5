"""Who is asked where a photo was taken, and how: a model with its query mode and references, or one that draws places.

asking = open_asking("earthview", reference="refs/")
asking.localize_batch([asking.load("photo.jpg")], top_k=5, …)
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from geoloc.errors import ConfigError
from geoloc.images.decode import ImageSource
from geoloc.images.preprocess import Preprocess
from geoloc.images.query import MERGES, QueryMode, check_query_mode
from geoloc.localize.prediction import Prediction
from geoloc.localize.published import draws_places

if TYPE_CHECKING:
    from torch import Tensor

    from geoloc.localize.geolocalizer import Geolocalizer
    from geoloc.localize.posterior_model import Reference


class BatchLocalizer(Protocol):
    """What a job needs: a `Geolocalizer` that is asked in one way, or a model that draws places.

    Attributes:
        name: of the model.
        preprocess: how it wants its pictures.
        database: identity of the references, "none" without.
    """

    name: str
    preprocess: Preprocess
    database: str

    @property
    def model_identity(self) -> str:
        """Digest of the model."""
        ...

    @property
    def identity(self) -> str:
        """Digest of the model and of how it is asked: the same one gives the same predictions."""
        ...

    def load(self, source: ImageSource, /) -> Any:
        """One image, decoded and preprocessed."""
        ...

    def localize_batch(
        self,
        images: "list[Tensor]",
        *,
        utility: str | None,
        top_k: int,
        abstain_above_km: float | None,
        max_precision_km: float | None,
    ) -> list[Prediction]:
        """The predictions of B images as `load` gave them."""
        ...


class Asking:
    """A model, and how it is asked: the query mode and the references. What a job of a `Geolocalizer` runs.

    Attributes: as of `BatchLocalizer`.

    Args:
        model: the model.
        query: see `geoloc.images.query`.
        reference: a database, "own" or None, as for `Geolocalizer.localize_batch`.

    Raises:
        ConfigError: there is no such mode, the model cannot search, or it only embeds and has nothing to search.
        FingerprintMismatchError: the database was made with another model or quadtree.
    """

    def __init__(
        self, model: "Geolocalizer", query: "QueryMode" = "central_crop", reference: "Reference" = "own"
    ) -> None:
        check_query_mode(query)
        retriever = model.retriever(reference)  # now, before any image is read
        if retriever is None:
            model.check_says_where()
        self.name, self.preprocess = model.name, model.preprocess
        self._model, self._query, self._reference = model, query, reference
        self.database = "none" if retriever is None else retriever.database.identity

    @property
    def model_identity(self) -> str:
        """See `BatchLocalizer`."""
        return self._model.identity

    @property
    def identity(self) -> str:
        """Digest of the model, and what differs from its defaults."""
        return " ".join([self._model.identity, self._query, self.database])

    def load(self, source: ImageSource, /) -> Any:
        """The views of one image, (V, 3, h, w)."""
        return self._model.load_query(source, self._query)

    def localize_batch(self, images: "list[Tensor]", **options: Any) -> list[Prediction]:
        """See `Geolocalizer.localize_batch`."""
        merge = MERGES.get(self._query, "mean")
        return self._model.localize_batch(images, reference=self._reference, merge=merge, **options)


def open_reference(name: str) -> "Reference":
    """The references that are searched, by what a command calls them: a database's folder, "own" or "none".

    Raises:
        NotFoundError: there is no such database.
        IntegrityError: it is damaged.
    """
    from geoloc.reference.database import ReferenceDatabase

    if name == "own":
        return "own"
    return None if name == "none" else ReferenceDatabase.open(name)


def open_asking(
    name: str,
    query: QueryMode = "central_crop",
    reference: str = "own",
    *,
    device: str = "cpu",
    num_threads: int | None = None,
    options: Mapping[str, Any] | None = None,
) -> BatchLocalizer:
    """Load a model by its name, with how it is asked.

    Args:
        name: as `Geolocalizer.from_pretrained` or `PlaceSampler.from_pretrained` takes it.
        query: see `geoloc.images.query`.
        reference: as `open_reference` takes it.
        device: where the tensors go, as torch names it.
        num_threads: CPU threads of the network; None leaves it to the library.
        options: of a published file that leaves something open.

    Raises:
        ConfigError: a model that draws was asked for more than it has.
        GeolocError: the model or the references cannot be loaded, or do not belong together.
    """
    said = dict(options or {})
    if not draws_places(name):
        from geoloc.localize.geolocalizer import Geolocalizer

        model = Geolocalizer.from_pretrained(name, device=device, num_threads=num_threads, **said)
        return Asking(model, query, open_reference(reference))
    if query != "central_crop" or reference not in ("own", "none"):
        raise ConfigError(
            f"{name!r} draws places from one picture, and searches no references: leave --query and --reference out"
        )
    if others := [option for option in said if option != "tower"]:
        raise ConfigError(
            f"{name!r} draws places, and has no option {others[0]!r}: it takes tower=PATH alone"
        )
    from geoloc.localize.drawn import PlaceSampler

    return PlaceSampler.from_pretrained(name, device=device, num_threads=num_threads, **said)
