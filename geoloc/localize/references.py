"""Databases to search, each with the network that embeds queries for it.

A database is searched with vectors of the model that embedded it: the model itself, or another embedder, which is
loaded from what the database's manifest says. Databases of one embedder share its forward.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from geoloc.checkpoint.parts import EmbedderPart, Part
from geoloc.errors import ConfigError, FingerprintMismatchError, GeolocError
from geoloc.localize.embedder import Embedder
from geoloc.reference.database import ReferenceDatabase

Reference = ReferenceDatabase | Sequence[ReferenceDatabase] | Literal["own"] | None


@dataclass(frozen=True)
class References:
    """Databases with their towers.

    Attributes:
        databases: to be searched together.
        towers: for each database 0 for the model's own network, or 1 + the index of one of `embedders`.
        embedders: the other networks, each once.
    """

    databases: tuple[ReferenceDatabase, ...] = ()
    towers: tuple[int, ...] = ()
    embedders: tuple[Embedder, ...] = ()

    @classmethod
    def of_parts(cls, parts: Sequence[Part]) -> References:
        """The references of a checkpoint's parts; a network that several parts share is one embedder."""
        embedders: dict[int, Embedder] = {}
        towers = []
        for part in parts:
            if part.embedder is None:
                towers.append(0)
                continue
            key = id(part.embedder)
            if key not in embedders:
                embedders[key] = Embedder.of_checkpoint(part.embedder.checkpoint, part.embedder.saved)
            towers.append(1 + list(embedders).index(key))
        return cls(tuple(part.database for part in parts), tuple(towers), tuple(embedders.values()))

    def as_parts(self) -> tuple[Part, ...]:
        """The parts of a checkpoint."""
        of_embedders = [EmbedderPart(embedder.as_checkpoint(), embedder.saved) for embedder in self.embedders]
        return tuple(
            Part(database, None if tower == 0 else of_embedders[tower - 1])
            for database, tower in zip(self.databases, self.towers, strict=True)
        )

    def without(self, number: int) -> References:
        """The same without one database of the model's own network."""
        databases, towers = list(self.databases), list(self.towers)
        del databases[number], towers[number]
        return References(tuple(databases), tuple(towers), self.embedders)

    def embedder_of(self, number: int) -> Embedder | None:
        """The embedder of a database by its index; None for the model's own network."""
        tower = self.towers[number]
        return None if tower == 0 else self.embedders[tower - 1]


def with_embedders(
    model: Embedder,
    databases: Sequence[ReferenceDatabase],
    known: Sequence[Embedder] = (),
    *,
    num_threads: int | None = None,
) -> References:
    """Find the embedder of each database: the model, a known embedder, the database's own, or the one of its manifest.

    Args:
        model: whose network embeds queries for its own databases.
        databases: to be searched together.
        known: embedders that are loaded already.
        num_threads: CPU threads of networks that are loaded now.

    Raises:
        FingerprintMismatchError: no embedder fits a database; the message names the models.
        ConfigError: a database is given twice.
    """
    loaded = list(known)
    towers, embedders = [], []
    folders = [database.folder.resolve() for database in databases]
    if len(set(folders)) < len(folders):
        raise ConfigError(f"a database is given twice: {', '.join(map(str, folders))}")
    for database in databases:
        fingerprint = database.model_fingerprint
        if fingerprint == model.embedding_fingerprint:
            towers.append(0)
            continue
        own = [database.model] if isinstance(database.model, Embedder) else []
        found = next((e for e in [*loaded, *own] if e.embedding_fingerprint == fingerprint), None)
        if found is None:
            found = _load_embedder(database, model, num_threads)
        if found not in loaded:
            loaded.append(found)
        if found not in embedders:
            embedders.append(found)
        towers.append(1 + embedders.index(found))
    return References(tuple(databases), tuple(towers), tuple(embedders))


def _load_embedder(database: ReferenceDatabase, model: Embedder, num_threads: int | None) -> Embedder:
    origin = database.model_origin
    if origin is None:  # an old database, or one of vectors from elsewhere: only the model itself could fit
        database.check_fingerprints(model=model.embedding_fingerprint, model_name=model.name)
        raise AssertionError("unreachable")
    name = origin.path_from(database.folder)
    try:
        embedder = Embedder.from_pretrained(
            name,
            revision=origin.revision,
            subfolder=origin.subfolder,
            device=str(model.device),
            num_threads=num_threads,
            **origin.options,
        )
    except GeolocError as error:
        raise type(error)(
            f"{database.folder} was made with the model {origin.name}, which embeds its queries, and it cannot be "
            f"loaded: {error}"
        ) from error
    if embedder.embedding_fingerprint != database.model_fingerprint:
        raise FingerprintMismatchError(
            f"{database.folder} was made with the model {origin.name}, but {name} is another one now: give the "
            "model in the state that made the database, or build the database again"
        )
    return embedder


def opened(references: Sequence[str | Path | ReferenceDatabase]) -> list[ReferenceDatabase]:
    """The databases of folders; open ones are taken as they are.

    Raises:
        NotFoundError: there is no such folder.
        IntegrityError: a folder is damaged.
    """
    return [
        item if isinstance(item, ReferenceDatabase) else ReferenceDatabase.open(item) for item in references
    ]


def chosen_databases(reference: Reference, own: Sequence[ReferenceDatabase]) -> list[ReferenceDatabase]:
    """The databases of a choice of references; `own` are those of the model.

    Raises:
        ConfigError: it is a path, or an unknown word.
    """
    if isinstance(reference, str | Path) and reference != "own":
        raise ConfigError(
            f'reference is {str(reference)!r}; expected a ReferenceDatabase, several, "own" or None: '
            "ReferenceDatabase.open(folder) opens one"
        )
    if reference is None:
        return []
    if isinstance(reference, str):
        return list(own)
    return [reference] if isinstance(reference, ReferenceDatabase) else list(reference)
