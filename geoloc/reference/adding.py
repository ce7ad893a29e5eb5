"""Fill a database from imagery, photos and coordinates: each is a resumable job, see `geoloc.reference.build`."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from geoloc.reference.build import BuildReport, BuildTarget, run_build
from geoloc.reference.embedder import ReferenceEmbedder

if TYPE_CHECKING:
    from geoloc.geo.regions import RegionLike
    from geoloc.photos.positioned import Photos
    from geoloc.reference.aerial.open import SourceLike
    from geoloc.reference.locations import LocationEncoder


@dataclass(frozen=True)
class AerialViews:
    """Cells and their views, see `ReferenceDatabase.add_aerial`."""

    gsd_m_per_px: tuple[float, ...]
    heading_deg: float
    min_coverage: float
    batch_size: int
    cell_size_m: float
    mercator: bool


def add_aerial(
    target: BuildTarget,
    embedder: ReferenceEmbedder,
    source: "SourceLike | Sequence[SourceLike]",
    region: "RegionLike | None",
    views: AerialViews,
    reading: Mapping[str, Any],
    overwrite: bool,
    progress: bool,
) -> BuildReport:
    """See `ReferenceDatabase.add_aerial`; `reading` are the options of `open_sources`."""
    from geoloc.reference.aerial.cells import CellGrid, blocks
    from geoloc.reference.aerial.open import open_sources
    from geoloc.reference.aerial.references import CELLS_PER_BLOCK, AerialReferences, AerialSettings
    from geoloc.reference.aerial.region import open_region

    settings = AerialSettings(views.gsd_m_per_px, views.heading_deg, views.min_coverage, views.batch_size)
    grid = CellGrid(views.cell_size_m, views.mercator)
    sources = open_sources(source, **reading)
    area = open_region(region, sources)
    references = AerialReferences(sources, grid, settings, embedder)
    south, west, north, east = area.boxes[0]
    references.check_resolution(((south + north) / 2, (west + east) / 2))
    identity = {**references.facts(), "region": area.facts(), "cells_per_block": CELLS_PER_BLOCK}
    cells = partial(blocks, grid, area, CELLS_PER_BLOCK)
    with _progress_bar("cells", lambda: sum(len(block.cells) for block in cells()), progress) as update:
        return run_build(target, "aerial", identity, cells, references.embed, update, overwrite=overwrite)


def add_street(
    target: BuildTarget,
    embedder: ReferenceEmbedder,
    photos: "Photos",
    batch_size: int,
    defaults: Mapping[str, str],
    overwrite: bool,
    progress: bool,
) -> BuildReport:
    """See `ReferenceDatabase.add_street`; `defaults` are provenance and licence of photos that do not state theirs."""
    from geoloc.reference.street import PHOTOS_PER_SHARD, StreetReferences

    references = StreetReferences(photos, embedder, batch_size, **defaults)
    identity = {**references.facts(), "photos_per_shard": PHOTOS_PER_SHARD}
    with _progress_bar("photos", lambda: len(photos), progress) as update:
        return run_build(
            target, "street", identity, references.shards, references.embed, update, overwrite=overwrite
        )


def add_locations(
    target: BuildTarget,
    latlon_deg: ArrayLike,
    vectors: "ArrayLike | LocationEncoder",
    keys: Sequence[str] | None,
    defaults: Mapping[str, str],
    overwrite: bool,
    progress: bool,
) -> BuildReport:
    """See `ReferenceDatabase.add_locations`; `defaults` are provenance and licence of all."""
    from geoloc.reference.locations import LocationReferences

    given = vectors if callable(vectors) else np.asarray(vectors)
    references = LocationReferences(np.asarray(latlon_deg, np.float64), given, keys, **defaults)
    with _progress_bar("locations", lambda: len(references.latlon_deg), progress) as update:
        return run_build(
            target,
            "location",
            references.facts(),
            references.shards,
            references.embed,
            update,
            overwrite=overwrite,
        )


@contextmanager
def _progress_bar(noun: str, total: Callable[[], int], wanted: bool) -> Iterator[Callable[[int], object]]:
    """A function to call with the number of inputs done; on a terminal it moves a progress bar."""
    if not wanted or not sys.stderr.isatty():
        yield lambda number: None
        return
    from tqdm import tqdm

    with tqdm(total=total(), unit=f" {noun}", smoothing=0.1, leave=False) as bar:
        yield bar.update
