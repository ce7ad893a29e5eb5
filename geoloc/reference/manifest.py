"""The `manifest.json` of a reference database: its segments, deleted rows, files and the model that embedded it.

It is the only file of a database that changes.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from geoloc.errors import IntegrityError, NotFoundError
from geoloc.files import MANIFEST_NAME, MANIFEST_SCHEMA_VERSION, manifest_digest, read_manifest, save_manifest
from geoloc.reference.segments import EMBEDDINGS_NAME, ROWS_NAME, Dtype, TensorSpecs, VectorFormat

KIND: Final = "geoloc reference database"
SEGMENTS, TOMBSTONES = "segments", "tombstones"  # folders
REMEDY: Final = "fetch or build the database again"

_NUMBER: Final = re.compile(r"[0-9]{4,9}")


@dataclass(frozen=True)
class ModelOrigin:
    """How the model that embedded the references is loaded.

    Attributes:
        name: as `Embedder.from_pretrained` takes it; a local file or folder relative to the database's folder.
        revision: commit of a repository on the Hub; None elsewhere.
        subfolder: of the folder or repository.
        options: of a published file, see `geoloc.adapters.options.Options`.
    """

    name: str
    revision: str | None = None
    subfolder: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)

    def beside(self, folder: Path) -> "ModelOrigin":
        """The same for a database in `folder`: a local path becomes relative to it."""
        if not Path(self.name).expanduser().exists():
            return self
        path = os.path.realpath(Path(self.name).expanduser())
        return replace(self, name=os.path.relpath(path, os.path.realpath(folder)))

    def path_from(self, folder: Path) -> str:
        """The name for a database in `folder`: an existing path, or the name as it is."""
        path = folder / self.name
        return str(path) if path.exists() else self.name


@dataclass(frozen=True)
class Manifest:
    """Content of the manifest. It keeps the digests of files, so a change does not read old files again.

    Attributes:
        dim: width of an embedding.
        dtype: how vectors are stored.
        model_fingerprint: of the model that embedded the references.
        quadtree_fingerprint: of the partition that the database is bound to, if it is.
        version: how often the database was changed.
        next_row_id: no row has had this id or a larger one.
        next_segment: no segment has had this number or a larger one.
        segments: name -> number of rows.
        tombstones: segment name -> number of deleted rows, if any.
        shards: name of an append -> its first row id and number of rows.
        files: as in `geoloc.files.write_manifest`.
        model: how the model that embedded the references is loaded, if known.
    """

    dim: int
    dtype: Dtype
    model_fingerprint: str
    quadtree_fingerprint: str | None
    version: int = 0
    next_row_id: int = 0
    next_segment: int = 0
    segments: Mapping[str, int] = field(default_factory=dict)
    tombstones: Mapping[str, int] = field(default_factory=dict)
    shards: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    model: ModelOrigin | None = None

    @property
    def vector_format(self) -> VectorFormat:
        """Width and stored type of the vectors."""
        return VectorFormat(self.dim, self.dtype)

    @property
    def tombstones_name(self) -> str | None:
        """Relative name of the tombstone file."""
        return next((name for name in self.files if name.startswith(f"{TOMBSTONES}/")), None)

    def _facts(self) -> dict[str, Any]:
        facts = {"schema_version": MANIFEST_SCHEMA_VERSION, "kind": KIND, **asdict(self)}
        if self.model is None:  # absent in the first databases
            del facts["model"]
        return facts

    @property
    def digest(self) -> str:
        """Digest of the manifest."""
        return manifest_digest(self._facts())

    def write(self, folder: Path) -> None:
        """Make this the state of the database, in one step."""
        save_manifest(folder, self._facts())

    @staticmethod
    def read(folder: Path) -> "Manifest":
        """Read the manifest of a folder.

        Raises:
            NotFoundError: there is no such folder, or nothing of a reference database in it.
            IntegrityError: it is not that of a reference database, or was changed.
        """
        if not folder.is_dir():
            raise NotFoundError(
                f"there is no reference database {folder}: check the path, or create it first"
            )
        if not (folder / MANIFEST_NAME).exists() and not (folder / SEGMENTS).exists():
            raise NotFoundError(
                f"{folder} is not a reference database: check the path, or create one elsewhere"
            )
        return Manifest.of(read_manifest(folder), str(folder))

    @staticmethod
    def of(facts: Mapping[str, Any], origin: str) -> "Manifest":
        """The manifest from values that `geoloc.files` has read; `origin` names its folder in errors.

        Raises:
            IntegrityError: it is not that of a reference database.
        """
        if facts.get("kind") != KIND:
            raise IntegrityError(f"{origin} is not a reference database: its manifest is of another kind")
        try:
            manifest = Manifest(
                **{
                    name: facts[name]
                    for name in Manifest.__dataclass_fields__
                    if name not in ("shards", "model")
                },
                shards={name: (first, num) for name, (first, num) in facts["shards"].items()},
                model=ModelOrigin(**facts["model"]) if "model" in facts else None,
            )
            manifest._check()
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise IntegrityError(
                f"the {MANIFEST_NAME} of {origin} does not describe a reference database ({error}): {REMEDY}"
            ) from None
        return manifest

    def _check(self) -> None:
        """Check the values: the digest detects damage, not malice."""
        self.vector_format  # noqa: B018  (the width and dtype check themselves)
        texts = (self.model_fingerprint, self.quadtree_fingerprint or "none")
        counts = (self.version, self.next_row_id, self.next_segment)
        shards = [number for pair in self.shards.values() for number in pair]
        if not all(isinstance(text, str) for text in texts):
            raise ValueError("a fingerprint is not a string")
        if self.model is not None:
            names = (self.model.name, self.model.subfolder, self.model.revision or "")
            if not all(isinstance(text, str) for text in names) or not isinstance(
                self.model.options, Mapping
            ):
                raise ValueError("the model is not described by texts")
        if not all(type(count) is int and 0 <= count < 2**62 for count in (*counts, *shards)):
            raise ValueError("a counter is not a whole number")
        expected = set()
        for name, num_rows in self.segments.items():
            if not _NUMBER.fullmatch(name) or type(num_rows) is not int or not 0 < num_rows < 2**40:
                raise ValueError(f"segment {name!r} with {num_rows!r} rows")
            expected |= {f"{SEGMENTS}/{name}/{file}" for file in (ROWS_NAME, EMBEDDINGS_NAME)}
        for name, num_deleted in self.tombstones.items():
            if type(num_deleted) is not int or not 0 < num_deleted <= self.segments.get(name, 0):
                raise ValueError(f"{num_deleted!r} deleted rows in segment {name!r}")
        if self.tombstones:
            expected.add(str(self.tombstones_name))
        if difference := self.files.keys() ^ expected:
            raise ValueError(f"{min(difference)!r} is listed and not needed, or needed and not listed")

    def tombstone_tensors(self) -> TensorSpecs:
        """Tensors of the tombstone file: for each segment the positions of its deleted rows, ascending."""
        return {name: (np.dtype(np.int64), (num,)) for name, num in sorted(self.tombstones.items())}
