"""Interface of the models that embed references; `geoloc.localize.embedder.Embedder` implements it."""

from typing import TYPE_CHECKING, Protocol, cast, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from geoloc.models.runner import ALONE_PX
from geoloc.reference.rows import Source

if TYPE_CHECKING:
    from torch import Tensor

    from geoloc.images.preprocess import Preprocess


@runtime_checkable
class ReferenceEmbedder(Protocol):
    """A model that embeds images.

    Attributes:
        preprocess: of its images.
    """

    preprocess: "Preprocess"

    @property
    def embedding_fingerprint(self) -> str:
        """Digest of the model: vectors of models with the same one may be compared."""
        ...

    @property
    def embedding_dim(self) -> int:
        """Width of a vector."""
        ...

    def embed_reference(self, images: "Tensor", source: str, /) -> NDArray[np.float32]:
        """Unit vectors of preprocessed images, (B, 3, S, S) -> (B, dim), for source "aerial" or "street"."""
        ...


@runtime_checkable
class JointEmbedder(Protocol):
    """A model that embeds several views of one cell jointly, as Statewide's does."""

    def embed_views(
        self, views: "Tensor", present: NDArray[np.bool_], gsd_m_per_px: tuple[float, ...], /
    ) -> NDArray[np.float32]:
        """Unit vectors of cells, (B, V, 3, S, S) with (B, V) which views there are -> (B, dim)."""
        ...


def embed_images(embedder: ReferenceEmbedder, images: "list[Tensor]", source: Source) -> NDArray[np.float32]:
    """Vectors of single images, (B, dim). Images of one shape go through the network together, large ones alone."""
    found = np.zeros((len(images), embedder.embedding_dim), np.float32)
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for number, image in enumerate(images):
        alone = number if image.shape[-2] * image.shape[-1] > ALONE_PX else -1
        by_shape.setdefault((alone, *image.shape), []).append(number)
    for numbers in by_shape.values():
        found[numbers] = embedder.embed_reference(_stacked([images[number] for number in numbers]), source)
    return found


def _stacked(images: "list[Tensor]") -> "Tensor":
    """Images of one size as one batch: of tensors, or of the arrays of an exported model."""
    if all(isinstance(image, np.ndarray) for image in images):
        return cast("Tensor", np.stack(cast("list[NDArray[np.float32]]", images)))
    import torch

    return torch.stack(images)


def embed_views(
    embedder: ReferenceEmbedder,
    views: "Tensor",
    present: NDArray[np.bool_],
    gsd_m_per_px: tuple[float, ...],
) -> NDArray[np.float32]:
    """One vector for each cell from its views: embedded jointly, or as `mean_of_views`.

    Args:
        embedder: a `JointEmbedder` embeds jointly.
        views: (B, V, 3, S, S).
        present: (B, V); each cell has at least one view.
        gsd_m_per_px: (V,) of the views.
    """
    if isinstance(embedder, JointEmbedder):
        return np.asarray(embedder.embed_views(views, present, gsd_m_per_px), np.float32)
    return mean_of_views(embedder, views, present)


def mean_of_views(
    embedder: ReferenceEmbedder, views: "Tensor", present: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """One vector for each cell: the normalised mean of the vectors of its views; arguments as for `embed_views`."""
    # Missing views go through the network, too: the last digits of an output depend on the size of its batch.
    single = embedder.embed_reference(views.flatten(0, 1), "aerial")
    vectors = np.asarray(single, np.float32).reshape(*present.shape, -1) * present[..., None]
    mean = vectors.sum(1)
    return np.asarray(mean / np.maximum(np.linalg.norm(mean, axis=-1, keepdims=True), 1e-12))
