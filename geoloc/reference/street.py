"""Street references: photos with positions, one row and one vector a photo."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from geoloc.errors import BadImageError, ConfigError
from geoloc.images import load_and_preprocess
from geoloc.photos.positioned import Photo, Photos
from geoloc.reference.build import Embedded, Progress
from geoloc.reference.embedder import ReferenceEmbedder, embed_images
from geoloc.reference.rows import ReferenceRows

if TYPE_CHECKING:
    from torch import Tensor

PHOTOS_PER_SHARD: Final = 1024  # at most this much work is lost by a kill
_MAX_DECODING_THREADS: Final = 8


@dataclass(frozen=True)
class StreetReferences:
    """Embeds shards of photos; an unusable photo is a problem of its shard.

    Attributes:
        photos: all of them.
        embedder: the model.
        batch_size: photos that go through the network together.
        provenance: of photos that do not state theirs.
        licence: of photos that do not state theirs.
    """

    photos: Photos
    embedder: ReferenceEmbedder
    batch_size: int = 16
    provenance: str = ""
    licence: str = ""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ConfigError(f"batch_size is {self.batch_size}; it must be at least 1")

    def facts(self) -> dict[str, Any]:
        """Plain JSON values that decide the rows."""
        return {
            **self.photos.facts(),
            "batch_size": self.batch_size,
            "provenance": self.provenance,
            "licence": self.licence,
            "preprocess": self.embedder.preprocess.to_dict(),
        }

    def shards(self) -> Iterator[range]:
        """Indices of the photos of each shard."""
        for start in range(0, len(self.photos), PHOTOS_PER_SHARD):
            yield range(start, min(start + PHOTOS_PER_SHARD, len(self.photos)))

    def embed(self, shard: range, progress: Progress) -> Embedded:
        """The rows of a shard, in the order of the photos.

        Args:
            shard: indices of photos.
            progress: called with the number of photos done, batch by batch.
        """
        kept: list[Photo] = []
        vectors = [np.zeros((0, self.embedder.embedding_dim), np.float32)]
        problems: dict[str, str] = {}
        num_threads = min(_MAX_DECODING_THREADS, os.cpu_count() or 1)
        with ThreadPoolExecutor(num_threads, "geoloc-street") as pool:
            starts = range(shard.start, shard.stop, self.batch_size)
            batches = [range(start, min(start + self.batch_size, shard.stop)) for start in starts]
            waiting = [pool.submit(self._load, number) for number in batches[0]]
            for batch, following in zip(batches, [*batches[1:], range(0)], strict=True):
                loaded = [future.result() for future in waiting]
                waiting = [pool.submit(self._load, number) for number in following]  # while the network works
                images = []
                for number, found in zip(batch, loaded, strict=True):
                    if isinstance(found, str):
                        problems[self.photos.keys[number]] = found
                    else:
                        kept.append(found[0])
                        images.append(found[1])
                vectors.append(embed_images(self.embedder, images, "street"))
                progress(len(batch))
        rows = ReferenceRows(
            np.array([photo.latlon_deg for photo in kept], np.float64).reshape(-1, 2),
            source="street",
            key=[photo.key for photo in kept],
            heading_deg=np.array([photo.heading_deg for photo in kept], np.float64),
            provenance=[photo.provenance or self.provenance for photo in kept],
            licence=[photo.licence or self.licence for photo in kept],
        )
        return Embedded(rows, np.concatenate(vectors), len(shard), {}, problems)

    def _load(self, number: int) -> "tuple[Photo, Tensor] | str":
        """A photo without its bytes, and its network input; or the reason why it is unusable."""
        try:
            photo = self.photos[number]
            image = load_and_preprocess(photo.data, self.embedder.preprocess)
        except BadImageError as error:
            return error.reason
        return replace(photo, data=b""), image
