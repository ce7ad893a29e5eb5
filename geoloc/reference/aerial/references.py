"""Aerial references: metric cells, each embedded from views at several ground resolutions, one row a cell."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from geoloc.errors import ConfigError
from geoloc.reference.aerial.cells import Block, CellGrid
from geoloc.reference.aerial.region import wrapped
from geoloc.reference.aerial.source import (
    AerialSource,
    FloatArray,
    Mask,
    Patch,
    finest_gsd_m_per_px,
    read_patch,
)
from geoloc.reference.build import Embedded, Progress
from geoloc.reference.embedder import ReferenceEmbedder, embed_views
from geoloc.reference.rows import ReferenceRows

if TYPE_CHECKING:
    from torch import Tensor

STATEWIDE_GSD_M_PER_PX: Final = (0.2, 0.4, 0.8, 1.6)
CELLS_PER_BLOCK: Final = 4096  # at most this much work is lost by a kill
FEWEST_PIXELS: Final = 8.0  # of the imagery, that the widest view must span at least
NO_IMAGERY: Final = "too little imagery"


@dataclass(frozen=True)
class AerialSettings:
    """Views of a cell.

    Attributes:
        gsd_m_per_px: ground resolutions, of one view each; the finest decides whether a cell has imagery.
        heading_deg: direction that is up in every view.
        min_coverage: share of a view that must have imagery. A cell whose finest view has less is left out, and a
            coarser view that has less is not used.
        batch_size: cells that go through the network together.

    Raises:
        ConfigError: an impossible value.
    """

    gsd_m_per_px: tuple[float, ...] = STATEWIDE_GSD_M_PER_PX
    heading_deg: float = 0.0
    min_coverage: float = 0.5
    batch_size: int = 16

    def __post_init__(self) -> None:
        gsd = self.gsd_m_per_px
        if not gsd or not all(value > 0 and np.isfinite(value) for value in gsd):
            raise ConfigError(f"gsd_m_per_px must be positive numbers, at least one; found {gsd}")
        if not 0 < self.min_coverage <= 1:
            raise ConfigError(f"min_coverage is {self.min_coverage}; it must be above 0, and 1 at most")
        if self.batch_size < 1:
            raise ConfigError(f"batch_size is {self.batch_size}; it must be at least 1")
        if not np.isfinite(self.heading_deg):
            raise ConfigError(f"heading_deg is {self.heading_deg}; it must be a finite number of degrees")


class AerialReferences:
    """Embeds blocks of cells.

    Args:
        sources: by priority.
        grid: the cells.
        settings: of the views.
        embedder: the model.
    """

    def __init__(
        self,
        sources: Sequence[AerialSource],
        grid: CellGrid,
        settings: AerialSettings,
        embedder: ReferenceEmbedder,
    ) -> None:
        self.sources, self.grid, self.settings, self.embedder = sources, grid, settings, embedder
        self._colour = [255.0 * mean for mean in embedder.preprocess.mean]  # zero after normalisation

    def check_resolution(self, latlon_deg: ArrayLike) -> None:
        """Refuse views that span only a few pixels of the imagery: they would be millions, and show nothing.

        Args:
            latlon_deg: (2,), a location with imagery.

        Raises:
            ConfigError: the widest view spans only a few pixels of the finest imagery.
        """
        finest = [finest_gsd_m_per_px(source, latlon_deg) for source in self.sources]
        finest_gsd, widest_gsd = np.nanmin([*finest, np.inf]), max(self.settings.gsd_m_per_px)
        spans_px = widest_gsd * self.embedder.preprocess.of_aerial.size_hw[0] / finest_gsd
        if np.isfinite(finest_gsd) and spans_px < FEWEST_PIXELS:
            about = float(f"{finest_gsd:.2g}")
            asked = ", ".join(f"{gsd:g}" for gsd in self.settings.gsd_m_per_px)
            raise ConfigError(
                f"the imagery has {about:g} m a pixel, and views of {asked} m a pixel were asked for: the "
                f"widest would show {spans_px:.2g} of its pixels. Ask for gsd_m_per_px of about {about:g} or "
                "more, and for a cell_size_m that goes with it"
            )

    def facts(self) -> dict[str, Any]:
        """Plain JSON values that decide the rows."""
        settings = self.settings
        return {
            "sources": [{**source.facts(), "licence": source.licence} for source in self.sources],
            "grid": self.grid.facts(),
            "gsd_m_per_px": list(settings.gsd_m_per_px),
            "heading_deg": settings.heading_deg,
            "min_coverage": settings.min_coverage,
            "batch_size": settings.batch_size,
            "preprocess": self.embedder.preprocess.to_dict(),
        }

    def embed(self, block: Block, progress: Progress) -> Embedded:
        """The rows of a block: one for each cell with imagery, in the order of the cells.

        Args:
            block: of the grid.
            progress: called with the number of cells done, batch by batch.
        """
        before = [set(source.bad_tiles) for source in self.sources]
        latlon_deg, keys, provenance, licences, vectors = [], [], [], [], []
        for batch in self._batches(block):
            vectors.append(self._vectors(batch))
            latlon_deg.append(wrapped(self.grid.center_latlon_deg(batch.cells)))
            keys += self.grid.keys(batch.cells)
            provenance += [self.sources[first].name for first in batch.source]
            licences += [self.sources[first].licence for first in batch.source]
            progress(batch.num_seen)
        rows = ReferenceRows(
            np.concatenate([np.zeros((0, 2)), *latlon_deg]),
            source="aerial",
            key=keys,
            gsd_m_per_px=min(self.settings.gsd_m_per_px),
            provenance=provenance,
            licence=licences,
        )
        problems = {
            f"{source.name}: {tile}": reason
            for source, known in zip(self.sources, before, strict=True)
            for tile, reason in source.bad_tiles.items()
            if tile not in known
        }
        skipped = len(block.cells) - len(rows)
        return Embedded(
            rows,
            np.concatenate([np.zeros((0, self.embedder.embedding_dim), np.float32), *vectors]),
            len(block.cells),
            {NO_IMAGERY: skipped} if skipped else {},
            problems,
        )

    def _batches(self, block: Block) -> Iterator["_Batch"]:
        """Batches of cells with imagery; each is read while the network works on the one before."""
        size = self.settings.batch_size
        parts = [block.cells[start : start + size] for start in range(0, len(block.cells), size)]
        with ThreadPoolExecutor(1, "geoloc-aerial") as reader:
            waiting = reader.submit(self._read, parts[0])
            for part in [*parts[1:], None]:
                batch = waiting.result()
                if part is not None:
                    waiting = reader.submit(self._read, part)
                yield batch

    def _read(self, cells: NDArray[np.int64]) -> "_Batch":
        import torch

        preprocess = self.embedder.preprocess.of_aerial
        num_views = len(self.settings.gsd_m_per_px)
        kept, views, present, source = [], [], [], []
        centers = wrapped(self.grid.center_latlon_deg(cells))
        for number, (center, scale) in enumerate(zip(centers, self.grid.metres_in_cell(cells), strict=True)):
            seen = self._views_of(center, float(scale))
            if seen is None:
                continue
            patches, shown = seen
            kept.append(number)
            views.append(torch.stack([preprocess(patch.filled(self._colour)) for patch in patches]))
            present.append(shown)
            source.append(self._first_source(center))
        empty = torch.zeros((0, num_views, 3, *preprocess.size_hw))
        return _Batch(
            len(cells),
            cells[kept],
            torch.stack(views) if views else empty,
            np.array(present, np.bool_).reshape(-1, num_views),
            source,
        )

    def _views_of(self, center: FloatArray, scale: float) -> tuple[list[Patch], list[bool]] | None:
        """The views of a cell, and which of them have enough imagery; None for a cell without imagery."""
        settings = self.settings
        finest = int(np.argmin(settings.gsd_m_per_px))
        patches: dict[int, Patch] = {}
        for number in sorted(range(len(settings.gsd_m_per_px)), key=lambda view: view != finest):
            patches[number] = read_patch(
                self.sources,
                center,
                heading_deg=settings.heading_deg,
                gsd_m_per_px=settings.gsd_m_per_px[number] * scale,
                size_px=self.embedder.preprocess.of_aerial.size_hw[0],
            )
            if number == finest and patches[number].coverage < settings.min_coverage:
                return None
        ordered = [patches[number] for number in range(len(settings.gsd_m_per_px))]
        return ordered, [patch.coverage >= settings.min_coverage for patch in ordered]

    def _first_source(self, center: FloatArray) -> int:
        """The source of highest priority that covers a cell's centre; the first one if none does."""
        return next((i for i, source in enumerate(self.sources) if source.covers(center[None])[0]), 0)

    def _vectors(self, batch: "_Batch") -> NDArray[np.float32]:
        if not len(batch.cells):
            return np.zeros((0, self.embedder.embedding_dim), np.float32)
        return embed_views(self.embedder, batch.views, batch.present, self.settings.gsd_m_per_px)


@dataclass(frozen=True)
class _Batch:
    """Cells with imagery among `num_seen` ones.

    cells    (n, 2)
    views    (n, V, 3, S, S)
    present  (n, V) which views have enough imagery
    source   n indices of sources
    """

    num_seen: int
    cells: NDArray[np.int64]
    views: "Tensor"
    present: Mask
    source: list[int]
