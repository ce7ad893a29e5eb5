"""Parts of a composed model: further databases, and the other networks that embed their queries."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from geoloc.errors import ConfigError
from geoloc.reference.database import ReferenceDatabase

if TYPE_CHECKING:
    from geoloc.checkpoint.folder import Checkpoint, Saved

DATABASES_NAME = "references"
EMBEDDERS_NAME = "embedders"


@dataclass(frozen=True)
class Part:
    """A further database of a composed model, and the network that embeds its queries.

    Attributes:
        database: of references.
        embedder: name and checkpoint of another network; None for the model's own.
    """

    database: ReferenceDatabase
    embedder: EmbedderPart | None


@dataclass(frozen=True)
class EmbedderPart:
    """Another network of a composed model, with its fingerprint."""

    checkpoint: Checkpoint
    saved: Saved


@dataclass(frozen=True)
class PartConfig:
    """Folders of a part in the checkpoint.

    Attributes:
        database: such as "references/street".
        embedder: such as "embedders/0"; None for the model's own network.

    Raises:
        ConfigError: a name that leads elsewhere.
    """

    database: str
    embedder: str | None = None

    def __post_init__(self) -> None:
        for name, kind in ((self.database, DATABASES_NAME), (self.embedder, EMBEDDERS_NAME)):
            if name is not None and not re.fullmatch(rf"{kind}/[A-Za-z0-9_-][A-Za-z0-9._-]*", name):
                raise ConfigError(
                    f"parts: {name!r} is not a folder in {kind}/: fetch or save the checkpoint again"
                )


def part_configs(parts: Sequence[Part]) -> tuple[PartConfig, ...]:
    """Folders for parts: databases by the names of their folders, made distinct; each embedder once."""
    fingerprints: list[str] = []
    names: list[str] = []
    found = []
    for part in parts:
        name = re.sub(r"[^A-Za-z0-9_-]", "-", part.database.folder.resolve().name) or "references"
        while name in names:
            name += "-2"
        names.append(name)
        embedder = None
        if part.embedder is not None:
            fingerprint = part.embedder.saved.embedding_fingerprint
            if fingerprint not in fingerprints:
                fingerprints.append(fingerprint)
            embedder = f"{EMBEDDERS_NAME}/{fingerprints.index(fingerprint)}"
        found.append(PartConfig(f"{DATABASES_NAME}/{name}", embedder))
    return tuple(found)
