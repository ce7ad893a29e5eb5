"""Models for tests: what they say of an image is known without a network."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from geoloc.images import Preprocess

SIDE_PX = 16


class ColourEmbedder:
    """The mean colours of a 4 x 4 grid over the image, at unit length; remembers what it was shown."""

    def __init__(self, fingerprint: str = "colours") -> None:
        self.preprocess = Preprocess(image_size_px=SIDE_PX, mean=(0.5, 0.4, 0.3), std=(0.25, 0.25, 0.25))
        self.embedding_fingerprint = fingerprint
        self.embedding_dim = 48
        self.shown: list[tuple[str, Tensor]] = []

    def embed_reference(self, images: Tensor, source: str) -> NDArray[np.float32]:
        self.shown.append((source, images.clone()))
        return self.vectors(images)

    @staticmethod
    def vectors(images: Tensor) -> NDArray[np.float32]:
        grid = nn.functional.adaptive_avg_pool2d(images, 4).flatten(1) + 1e-3
        return np.asarray(nn.functional.normalize(grid, dim=-1).numpy())


class JointColourEmbedder(ColourEmbedder):
    """Sees all views of a place together: the first one that is there decides."""

    def embed_views(
        self, views: Tensor, present: NDArray[np.bool_], gsd_m_per_px: tuple[float, ...]
    ) -> NDArray[np.float32]:
        self.gsd = gsd_m_per_px
        first = [place[int(np.argmax(there))] for place, there in zip(views, present, strict=True)]
        return np.concatenate([self.vectors(view[None]) for view in first])


def rows_of(database: Any) -> dict[str, Any]:
    """Key -> (row, vector) of every live row."""
    found: dict[str, Any] = {}
    for segment in database.segments:
        for place, row in enumerate(segment.rows(np.arange(segment.num_rows)).to_pylist()):
            if not segment.deleted[place]:
                assert row["key"] not in found
                found[row["key"]] = (row, np.asarray(segment.vectors[place]))
    return found


def contents(folder: Any) -> dict[str, bytes]:
    """Every byte below a folder, by relative name."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
