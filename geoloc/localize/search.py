"""What a model searches and how its queries are made: the databases, the networks that embed for them, the cells.

The model's own network runs once for each image, other networks once each, however many databases they serve.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from geoloc.checkpoint.folder import REFERENCE_NAME
from geoloc.errors import ConfigError
from geoloc.images.decode import ImageSource, read_image_bytes
from geoloc.images.query import Merge, QueryMode
from geoloc.models.runner import check_finite
from geoloc.posterior.calibration import Calibration
from geoloc.posterior.distribution import Posterior
from geoloc.posterior.pipeline import (
    PLACE_RADIUS_KM,
    Images,
    Pipeline,
    QueryOutputs,
    embeds_places,
    read_views,
)
from geoloc.posterior.reranker import DEFAULT_KERNEL_KM
from geoloc.posterior.retrieve import Retriever
from geoloc.posterior.working_tree import working_tree
from geoloc.reference.database import ReferenceDatabase
from geoloc.reference.rows import SOURCES
from geoloc.search.structures import Structure

if TYPE_CHECKING:
    from torch import Tensor

    from geoloc.localize.references import References


class QueryInputs(NamedTuple):
    """Inputs of one image for the model's own network and for other embedders, each (V, 3, h, w)."""

    own: Images
    others: tuple[Images, ...]


@dataclass(frozen=True)
class Search:
    """What a model searches.

    Attributes:
        references: the databases and their embedders.
        retriever: searches them; None without databases.
        gallery: searches the model's gallery, whose posterior stands for a classifier; None without one.
    """

    references: References
    retriever: Retriever | None = None
    gallery: Retriever | None = None

    @property
    def identity(self) -> str:
        """Digest of all that is searched; "none" for nothing."""
        parts = [part.identity for part in (self.gallery, self.retriever) if part is not None]
        return "+".join(parts) or "none"

    @property
    def embeds(self) -> bool:
        """Whether the model's own network embeds queries."""
        return self.gallery is not None or 0 in self.references.towers


def plan_search(
    pipeline: Pipeline,
    references: References,
    device: str,
    own: ReferenceDatabase | None = None,
    structure: Structure = "exact",
    *,
    is_fitted: bool = True,
) -> Search:
    """Decide what is searched, and in which cells.

    Cells are those of the classifier. For a regression or a gallery of locations beside other databases they are those
    of a tree over the references. A model that only embeds searches everywhere.

    Args:
        pipeline: of the model.
        references: all databases.
        device: of the rows that are searched.
        own: the model's own database, which is called "reference" in candidates, as in its checkpoint.
        structure: of the search of references, see `CellIndex`; a gallery beside them is searched exactly.
        is_fitted: whether the model's reranker was fitted with such references.

    Raises:
        FingerprintMismatchError: a database is bound to another quadtree.
        ConfigError: there is no reference at all, and cells are needed; or the structure does not search cells.
    """
    if not references.databases:
        return Search(references)
    gallery = None
    if not pipeline.has_location_head and len(references.databases) > 1:
        numbers = [n for n, database in enumerate(references.databases) if is_gallery(database)]
        if len(numbers) == 1 and references.towers[numbers[0]] == 0:
            gallery = Retriever([references.databases[numbers[0]]], None, device=device)
            references = references.without(numbers[0])
    tree = pipeline.quadtree
    if tree is None and (gallery is not None or pipeline.has_location_head):
        tree = working_tree(references.databases)
    kernels_km, names = [], []
    for number, database in enumerate(references.databases):
        names.append(REFERENCE_NAME if database is own else database.folder.resolve().name)
        embedder = references.embedder_of(number)
        config = pipeline.runner.config if embedder is None else embedder.runner.config
        is_near = embeds_places(config) and not is_gallery(database)
        kernels_km.append(PLACE_RADIUS_KM if is_near else DEFAULT_KERNEL_KM)
    retriever = Retriever(
        references.databases,
        tree,
        references.towers,
        kernels_km,
        names,
        is_fitted=is_fitted and gallery is None,  # beside a gallery, the reranker is the gallery's softmax
        structure=structure,
        device=device,
    )
    return Search(references, retriever, gallery)


def is_gallery(database: ReferenceDatabase) -> bool:
    """Whether all rows are locations, without images."""
    location = SOURCES.index("location")
    return all((np.asarray(segment.source) == location).all() for segment in database.segments)


def load_inputs(
    load_own: Callable[[ImageSource, QueryMode], Images],
    source: ImageSource,
    query: QueryMode,
    references: References,
) -> Any:
    """Decode an image for the model's own network, by `load_own`, and for the other embedders.

    Returns:
        (V, 3, h, w) where no other embedder is needed, else `QueryInputs`.

    Raises:
        BadImageError: the image is unusable.
    """
    if not references.embedders:
        return load_own(source, query)
    if isinstance(source, str | Path):
        source = read_image_bytes(source)  # once for all networks
    others = tuple(embedder.load_query(source, query) for embedder in references.embedders)
    return QueryInputs(load_own(source, query), others)


def run_networks(
    pipeline: Pipeline, images: Tensor | Sequence[Any], search: Search, merge: Merge = "mean"
) -> QueryOutputs:
    """Run the model's own network once and every other embedder once.

    Raises:
        ConfigError: images were loaded for the model alone, and other embedders need them.
        CheckpointError: a network gives numbers that are not finite.
    """
    embedders = search.references.embedders
    own: Any = images
    if len(images) and isinstance(images[0], QueryInputs):
        own = [image.own for image in images]
    elif embedders:
        raise ConfigError(
            f"the references need the inputs of {', '.join(repr(embedder.name) for embedder in embedders)}, too: load "
            "images by load_query(image, reference=…) with the same references"
        )
    outputs = pipeline.run(own, embed=search.embeds, merge=merge)
    others = []
    for number, embedder in enumerate(embedders):
        _, vectors = read_views(embedder.runner, [image.others[number] for image in images], True, merge)
        check_finite(embedder.name, vectors)
        others.append(vectors)
    return replace(outputs, queries=[*outputs.queries, *others])


def located_by_gallery(
    pipeline: Pipeline, outputs: QueryOutputs, calibration: Calibration, search: Search
) -> list[Posterior] | None:
    """The posterior of each image by the model's gallery; None without one."""
    if search.gallery is None:
        return None
    alone = replace(outputs, queries=outputs.queries[:1])
    return pipeline.posteriors(alone, calibration, search.gallery, top_k=1)[0]
