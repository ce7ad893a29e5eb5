"""How a database is filled from imagery, photos and coordinates; a part of `ReferenceDatabase`.

Every method is a resumable job (`geoloc.reference.build`): killed at any moment, the same call continues it.
"""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import ArrayLike

from geoloc.errors import ConfigError
from geoloc.reference.build import BuildReport, run_build

if TYPE_CHECKING:
    from geoloc.reference.aerial.open import SourceLike
    from geoloc.reference.aerial.region import RegionLike
    from geoloc.reference.database import ReferenceDatabase
    from geoloc.reference.embedder import ReferenceEmbedder
    from geoloc.reference.locations import LocationEncoder
    from geoloc.reference.photos import Photos


class Adding:
    """The methods that embed references.

    Attributes:
        model: what embeds them, if the database was created or opened with it.
    """

    model: "ReferenceEmbedder | None" = None

    def add_aerial(
        self,
        source: "SourceLike | Sequence[SourceLike]",
        *,
        cell_size_m: float = 30.0,
        gsd_m_per_px: Sequence[float] = (0.2, 0.4, 0.8, 1.6),
        region: "RegionLike | None" = None,
        mercator: bool = False,
        heading_deg: float = 0.0,
        min_coverage: float = 0.5,
        licence: str = "",
        cache: str | Path | None = None,
        zooms: tuple[int, int] | None = None,
        value_range: Sequence[float] | None = None,
        model: "ReferenceEmbedder | None" = None,
        batch_size: int = 16,
        overwrite: bool = False,
        progress: bool = True,
    ) -> BuildReport:
        """Cover a region with metric cells, each embedded from views from above at several resolutions.

        Args:
            source: a folder of tiles (with a `layout.yaml` or not), a GeoTIFF or a folder of them, MBTiles, the
                address of a server, or several of these by priority.
            cell_size_m: side of a cell, the same at every latitude.
            gsd_m_per_px: ground resolutions, of one view each; a model that does not see them together gives
                the mean of their vectors.
            region: south, west, north, east; a GeoJSON or its path; None is wherever there is imagery.
            mercator: cells of a fixed side in Web Mercator instead, whose views shrink with them.
            heading_deg: what is up in the views.
            min_coverage: a cell whose finest view has less imagery than this share is left out, and counted.
            licence: of the imagery.
            cache: folder for the tiles of servers.
            zooms: coarsest and finest zoom of servers.
            value_range: of GeoTIFFs, what becomes black and white; None takes 8-bit values as they are, and of
                others the 2 to 98 % percentile of each file.
            model: None takes the one that the database was created or opened with.
            batch_size: cells that go through the network together.
            overwrite: drop the staged work of an unfinished build with other settings.
            progress: show a progress bar on a terminal.

        Raises:
            NotFoundError: there is nothing of that name, or a server does not answer.
            ConfigError: an impossible setting, or views in which the imagery is a handful of pixels.
            FingerprintMismatchError: the database was made with another model.
            OutputMismatchError: an unfinished build of something else is there, or another process is at work.
        """
        from geoloc.reference.aerial.cells import CellGrid, blocks
        from geoloc.reference.aerial.open import open_sources
        from geoloc.reference.aerial.references import CELLS_PER_BLOCK, AerialReferences, AerialSettings
        from geoloc.reference.aerial.region import open_region

        settings = AerialSettings(tuple(map(float, gsd_m_per_px)), heading_deg, min_coverage, batch_size)
        grid = CellGrid(float(cell_size_m), mercator)
        sources = open_sources(source, licence=licence, cache=cache, zooms=zooms, value_range=value_range)
        where = open_region(region, sources)
        references = AerialReferences(sources, grid, settings, self._embedder(model))
        south, west, north, east = where.boxes[0]
        references.check_resolution(((south + north) / 2, (west + east) / 2))
        identity = {**references.facts(), "region": where.facts(), "cells_per_block": CELLS_PER_BLOCK}
        cells = partial(blocks, grid, where, CELLS_PER_BLOCK)
        with _progress_bar("cells", lambda: sum(len(block.cells) for block in cells()), progress) as told:
            return run_build(
                self._database(), "aerial", identity, cells(), references.embed, told, overwrite=overwrite
            )

    def add_street(
        self,
        photos: "str | Path | Sequence[str | Path] | Photos",
        *,
        metadata: str | Path | None = None,
        columns: Mapping[str, str] | None = None,
        provenance: str = "",
        licence: str = "",
        model: "ReferenceEmbedder | None" = None,
        batch_size: int = 16,
        overwrite: bool = False,
        progress: bool = True,
    ) -> BuildReport:
        """Embed street photos.

        A photo that cannot be read, or has no position, stops nothing: the report counts and names it.

        Args:
            photos: a folder of images, a folder of webdataset tars, a tar, several tars, or what
                `geoloc.reference.photos.open_photos` has opened.
            metadata: CSV or Parquet with `id`, `latitude`, `longitude`, and where known `heading_deg`, `provenance`
                and `licence`; None takes the JSON in tars, and the photos' EXIF.
            columns: our name of a field -> the table's, where the two differ.
            provenance: of photos that do not say it themselves.
            licence: of photos that do not say it themselves.
            model: None takes the one that the database was created or opened with.
            batch_size: photos that go through the network together.
            overwrite: drop the staged work of an unfinished build with other settings.
            progress: show a progress bar on a terminal.

        Raises:
            NotFoundError: there is nothing of that name.
            ConfigError: an impossible setting, or a table that cannot be used.
            FingerprintMismatchError: the database was made with another model.
            OutputMismatchError: an unfinished build of something else is there, or another process is at work.
        """
        from geoloc.reference.photos import open_photos
        from geoloc.reference.street import PHOTOS_PER_SHARD, StreetReferences

        opened = open_photos(photos, metadata, columns)
        references = StreetReferences(opened, self._embedder(model), batch_size, provenance, licence)
        identity = {**references.facts(), "photos_per_shard": PHOTOS_PER_SHARD}
        with _progress_bar("photos", lambda: len(opened), progress) as told:
            return run_build(
                self._database(),
                "street",
                identity,
                references.shards(),
                references.embed,
                told,
                overwrite=overwrite,
            )

    def add_locations(
        self,
        latlon_deg: ArrayLike,
        vectors: "ArrayLike | LocationEncoder",
        *,
        keys: Sequence[str] | None = None,
        provenance: str = "",
        licence: str = "",
        overwrite: bool = False,
        progress: bool = True,
    ) -> BuildReport:
        """Add coordinates with the vectors that a location encoder gives them, at unit length.

        Args:
            latlon_deg: (n, 2).
            vectors: (n, dim), or the encoder: a callable from (n, 2) degrees to (n, dim), array or tensor, that
                always gives the same.
            keys: n names; None numbers them.
            provenance: of all.
            licence: of all.
            overwrite: drop the staged work of an unfinished build with other settings.
            progress: show a progress bar on a terminal.

        Raises:
            ConfigError: numbers or widths that do not fit.
            InvalidCoordinateError: a coordinate is no place on Earth.
            OutputMismatchError: an unfinished build of something else is there, or another process is at work.
        """
        from geoloc.reference.locations import LocationReferences

        given = vectors if callable(vectors) else np.asarray(vectors)
        references = LocationReferences(np.asarray(latlon_deg, np.float64), given, keys, provenance, licence)
        facts, shards = references.facts(), references.shards()
        with _progress_bar("locations", lambda: len(references.latlon_deg), progress) as told:
            return run_build(
                self._database(), "location", facts, shards, references.embed, told, overwrite=overwrite
            )

    def _database(self) -> "ReferenceDatabase":
        return cast("ReferenceDatabase", self)

    def _embedder(self, model: "ReferenceEmbedder | None") -> "ReferenceEmbedder":
        model = model or self.model
        database = self._database()
        if model is None:
            raise ConfigError(
                f"nothing is known to embed with: give model, or open {database.folder} with the model that it was "
                f"made with ({database.model_fingerprint[:12]}…)"
            )
        database.check_fingerprints(model=model.embedding_fingerprint)
        return model


@contextmanager
def _progress_bar(noun: str, total: Callable[[], int], wanted: bool) -> Iterator[Callable[[int], object]]:
    """What is to be told of progress; a bar on a terminal only, for in a log file it is thousands of lines."""
    if not wanted or not sys.stderr.isatty():
        yield lambda number: None
        return
    from tqdm import tqdm

    with tqdm(total=total(), unit=f" {noun}", smoothing=0.1, leave=False) as bar:
        yield bar.update
