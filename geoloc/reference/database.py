"""A reference database: a segment store with the model that embeds its rows; filling it and sharing it.

    database = ReferenceDatabase.create("refs", model=model, dtype="int8")
    database.add_aerial("tiles/", cell_size_m=30)           # a resumable job, see `geoloc.reference.build`
    database.append(ReferenceRows(latlon_deg, source="aerial", key=names), vectors)
    database.delete(bounds_deg=(42.2, -71.2, 42.4, -70.9))
    database.compact()

`geoloc.reference.store` describes the files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from numpy.typing import ArrayLike

from geoloc.errors import ConfigError
from geoloc.reference import adding
from geoloc.reference.build import BuildReport
from geoloc.reference.embedder import ReferenceEmbedder
from geoloc.reference.manifest import Manifest
from geoloc.reference.opening import load
from geoloc.reference.segments import Dtype, VectorFormat
from geoloc.reference.store import SegmentStore
from geoloc.reference.writing import new_folder

if TYPE_CHECKING:
    from geoloc.geo.regions import RegionLike
    from geoloc.hub.push import Pushed
    from geoloc.photos.positioned import Photos
    from geoloc.reference.aerial.open import SourceLike
    from geoloc.reference.locations import LocationEncoder


class ReferenceDatabase(SegmentStore):
    """A store of references with the model that embeds them. Made by `create` and `open`.

    Attributes:
        model: embeds further references; None if it was opened without one.
    """

    model: ReferenceEmbedder | None = None

    # --- Make and open ----------------------------------------------------------------------------------------

    @staticmethod
    def create(
        folder: str | Path,
        *,
        model: ReferenceEmbedder | None = None,
        dim: int | None = None,
        dtype: Dtype = "float32",
        model_fingerprint: str | None = None,
        quadtree_fingerprint: str | None = None,
    ) -> ReferenceDatabase:
        """Make an empty database; a kill leaves it whole or absent.

        Args:
            folder: new, or an empty folder.
            model: embeds the references, a `Geolocalizer`; None where width and fingerprint are given.
            dim: width of an embedding; None takes the model's.
            dtype: how vectors are stored: "float32", "float16", or "int8" with a scale for each row.
            model_fingerprint: of the embedding model; only its queries may be compared. None takes the model's.
            quadtree_fingerprint: of the partition whose cells a search goes through, if it is bound to one.

        Raises:
            OutputMismatchError: the folder is not empty.
            ConfigError: the width, the dtype or a fingerprint is impossible.
        """
        if model is not None:
            dim = model.embedding_dim if dim is None else dim
            model_fingerprint = model_fingerprint or model.embedding_fingerprint
        if dim is None:
            raise ConfigError(
                "a database needs the width of its embeddings: give model, or dim and model_fingerprint"
            )
        if not isinstance(model_fingerprint, str) or not model_fingerprint or quadtree_fingerprint == "":
            raise ConfigError("a fingerprint is a string of at least one character")
        vector_format = VectorFormat(dim, dtype)
        origin = getattr(model, "origin", None)
        manifest = Manifest(
            vector_format.dim,
            vector_format.dtype,
            model_fingerprint,
            quadtree_fingerprint,
            model=None if origin is None else origin.beside(Path(folder)),
        )
        with new_folder(Path(folder)) as temporary:
            manifest.write(temporary)
        return ReferenceDatabase.open(folder, model=model)

    @staticmethod
    def open(
        folder: str | Path,
        *,
        model: ReferenceEmbedder | None = None,
        model_fingerprint: str | None = None,
        quadtree_fingerprint: str | None = None,
    ) -> ReferenceDatabase:
        """Open a database: maps its files, and checks the manifest, sizes and headers, but not all bytes.

        Use `verify` after a download. Each segment takes two file descriptors.

        Args:
            folder: of the database.
            model: embeds further references; must be the one that the database was made with.
            model_fingerprint: of the model that must have embedded the references; None is not checked.
            quadtree_fingerprint: of the quadtree, if the database is bound to one; None is not checked.

        Raises:
            NotFoundError: there is no such folder.
            IntegrityError: a file is missing or is not what the manifest says.
            FingerprintMismatchError: it was made with another model or quadtree.
        """
        folder = Path(folder)
        database = ReferenceDatabase(folder, *load(folder))
        database.model = model
        database.check_fingerprints(model=model_fingerprint, quadtree=quadtree_fingerprint)
        if model is not None:
            database.check_fingerprints(model=model.embedding_fingerprint)
        return database

    # --- Fill -------------------------------------------------------------------------------------------------

    def add_aerial(
        self,
        source: SourceLike | Sequence[SourceLike],
        *,
        cell_size_m: float = 30.0,
        gsd_m_per_px: Sequence[float] = (0.2, 0.4, 0.8, 1.6),
        region: RegionLike | None = None,
        mercator: bool = False,
        heading_deg: float = 0.0,
        min_coverage: float = 0.5,
        licence: str = "",
        cache: str | Path | None = None,
        zooms: tuple[int, int] | None = None,
        value_range: Sequence[float] | None = None,
        model: ReferenceEmbedder | None = None,
        batch_size: int = 16,
        overwrite: bool = False,
        progress: bool = True,
    ) -> BuildReport:
        """Cover a region with metric cells, each embedded from aerial views at several resolutions.

        Args:
            source: a folder of tiles (with a `layout.yaml` or not), a GeoTIFF or a folder of them, MBTiles, the
                address of a server, or several of these by priority.
            cell_size_m: side of a cell, the same at every latitude.
            gsd_m_per_px: ground resolutions, of one view each; a model that does not see them together gives
                the mean of their vectors.
            region: what `geoloc.geo.regions.parse_region` reads: a box, circle, GeoJSON, or name of a country or of
                a part of one; None is all imagery.
            mercator: cells of a fixed side in Web Mercator instead, whose views shrink with them.
            heading_deg: direction that is up in the views.
            min_coverage: a cell whose finest view has less imagery than this share is left out, and counted.
            licence: of the imagery.
            cache: folder for the tiles of servers.
            zooms: coarsest and finest zoom of servers.
            value_range: of GeoTIFFs, the values of black and white; None takes 8-bit values as they are, and of others
                the 2nd to the 98th percentile of each file.
            model: None takes the one that the database was created or opened with.
            batch_size: cells that go through the network together.
            overwrite: drop the staged work of an unfinished build with other settings.
            progress: show a progress bar on a terminal.

        Raises:
            NotFoundError: there is nothing of that name, or a server does not answer.
            ConfigError: an impossible setting, or imagery that is far too coarse for the views.
            FingerprintMismatchError: the database was made with another model.
            OutputMismatchError: an unfinished build of something else is there, or another process works on it.
        """
        views = adding.AerialViews(
            tuple(map(float, gsd_m_per_px)),
            heading_deg,
            min_coverage,
            batch_size,
            float(cell_size_m),
            mercator,
        )
        reading = {"licence": licence, "cache": cache, "zooms": zooms, "value_range": value_range}
        return adding.add_aerial(
            self, self._embedder(model), source, region, views, reading, overwrite, progress
        )

    def add_street(
        self,
        photos: str | Path | Sequence[str | Path] | Photos,
        *,
        metadata: str | Path | None = None,
        columns: Mapping[str, str] | None = None,
        provenance: str = "",
        licence: str = "",
        model: ReferenceEmbedder | None = None,
        batch_size: int = 16,
        overwrite: bool = False,
        progress: bool = True,
    ) -> BuildReport:
        """Embed street photos.

        A photo that cannot be read, or has no position, is counted and named in the report.

        Args:
            photos: a folder of images, a folder of webdataset tars, a tar, several tars, or the result of
                `geoloc.photos.positioned.open_photos`.
            metadata: CSV or Parquet with `id`, `latitude`, `longitude`, and where known `heading_deg`, `provenance`
                and `licence`; None takes the JSON in tars, and the photos' EXIF.
            columns: name of a field -> its name in the table, where the two differ.
            provenance: of photos that do not state theirs.
            licence: of photos that do not state theirs.
            model: None takes the one that the database was created or opened with.
            batch_size: photos that go through the network together.
            overwrite: drop the staged work of an unfinished build with other settings.
            progress: show a progress bar on a terminal.

        Raises:
            NotFoundError: there is nothing of that name.
            ConfigError: an impossible setting, or a table that cannot be used.
            FingerprintMismatchError: the database was made with another model.
            OutputMismatchError: an unfinished build of something else is there, or another process works on it.
        """
        from geoloc.photos.positioned import open_photos

        opened = open_photos(photos, metadata, columns)
        defaults = {"provenance": provenance, "licence": licence}
        return adding.add_street(
            self, self._embedder(model), opened, batch_size, defaults, overwrite, progress
        )

    def add_locations(
        self,
        latlon_deg: ArrayLike,
        vectors: ArrayLike | LocationEncoder,
        *,
        keys: Sequence[str] | None = None,
        provenance: str = "",
        licence: str = "",
        overwrite: bool = False,
        progress: bool = True,
    ) -> BuildReport:
        """Add coordinates with vectors of a location encoder, normalised to unit length.

        Args:
            latlon_deg: (n, 2).
            vectors: (n, dim), or the encoder: a deterministic callable from (n, 2) degrees to (n, dim), array or
                tensor.
            keys: n names; None numbers them.
            provenance: of all rows.
            licence: of all rows.
            overwrite: drop the staged work of an unfinished build with other settings.
            progress: show a progress bar on a terminal.

        Raises:
            ConfigError: numbers or widths that do not fit.
            InvalidCoordinateError: a coordinate is not on Earth.
            OutputMismatchError: an unfinished build of something else is there, or another process works on it.
        """
        defaults = {"provenance": provenance, "licence": licence}
        return adding.add_locations(self, latlon_deg, vectors, keys, defaults, overwrite, progress)

    def _embedder(self, model: ReferenceEmbedder | None) -> ReferenceEmbedder:
        model = model or self.model
        if model is None:
            raise ConfigError(
                f"no model to embed with: give model, or open {self.folder} with the model that it was made with "
                f"({self.model_fingerprint[:12]}…)"
            )
        self.check_fingerprints(model=model.embedding_fingerprint)
        return model

    # --- Hugging Face Hub -------------------------------------------------------------------------------------

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        commit_message: str | None = None,
        licence: str = "unknown",
    ) -> Pushed:
        """Publish the database as a dataset on the Hugging Face Hub, in one commit; an interrupted upload resumes.

        Log in first: `hf auth login`.

        Args:
            repo_id: "org/name"; the repository is made if it does not exist.
            private: whether a new repository is private; None leaves it to the account.
            revision: branch; it is made if it does not exist.
            create_pr: open a pull request instead of changing the branch.
            commit_message: None states what was pushed.
            licence: of the dataset, by the Hub's names, such as "cc-by-4.0"; the card lists those of the rows, too.

        Returns:
            The commit, which `revision=` pins, and its address.

        Raises:
            ConfigError: a name that no repository can have.
            IntegrityError: a file differs from the manifest.
            NotFoundError: the Hub cannot be reached or denies access.
            JobError: the upload was interrupted; the same call resumes it.
        """
        from geoloc.hub.push import PushOptions
        from geoloc.reference.sharing import push_database

        self.refresh()
        options = PushOptions(private, revision, create_pr, commit_message)
        return push_database(self.folder, self.info(), repo_id, licence, options)

    @staticmethod
    def from_hub(
        repo_id: str,
        folder: str | Path,
        *,
        revision: str | None = None,
        bounds_deg: Sequence[float] | None = None,
        paths: Sequence[str] | None = None,
        model: ReferenceEmbedder | None = None,
    ) -> ReferenceDatabase:
        """Download a database from the Hub into a folder, verify it and open it; an interrupted download resumes.

        Args:
            repo_id: "org/name", a dataset.
            folder: where to; an older version there is replaced, and only new files are received.
            revision: a branch, tag, commit or "refs/pr/N"; None is the main branch.
            bounds_deg: download the rows in this box only, as `slice` takes it.
            paths: download the rows in these cells of the quadtree over the whole Earth only, such as "0312".
            model: embeds further references, as `open` takes it.

        Raises:
            NotFoundError: there is no such dataset, or the Hub cannot be reached.
            IntegrityError: it is not a reference database, or differs from its manifest.
            FingerprintMismatchError: it was made with another model.
            ConfigError: an invalid name or region.
            OutputMismatchError: the folder holds something else.
        """
        from geoloc.reference.sharing import pull_database

        fingerprint = None if model is None else model.embedding_fingerprint
        pull_database(repo_id, Path(folder), revision, bounds_deg, paths, fingerprint)
        return ReferenceDatabase.open(folder, model=model)
