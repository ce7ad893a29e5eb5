"""Built structures on the disk, so that a database is opened quickly the second time.

They lie in the user's own cache folder, never in a database: a database may come from somebody else, and FAISS's
files are not safe to read from others. A file that is truncated, changed, or of another state of the database is not
read; the structure is then built again.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from geoloc.errors import GeolocError
from geoloc.files import atomic_write, sha256_of

_SCHEMA: Final = 1
_MAX_FACTS_BYTES: Final = 1 << 16


def default_cache_folder() -> Path:
    """`$XDG_CACHE_HOME/geoloc/search`, by default `~/.cache/geoloc/search`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "geoloc" / "search"


class IndexCache:
    """The structures of one database.

    Args:
        database: its folder; structures of earlier states of it are removed when new ones are kept.
        identity: digest of the database's state.
        folder: of the caches of all databases; None is `default_cache_folder`.
    """

    def __init__(self, database: Path, identity: str, folder: Path | None = None) -> None:
        where = hashlib.sha256(str(database.resolve()).encode("utf-8", "surrogateescape")).hexdigest()[:16]
        self._folder = (folder or default_cache_folder()) / where
        self._identity = identity

    def load(self, facts: Mapping[str, Any], num_rows: int, dim: int) -> Any | None:
        """A kept FAISS index; None if there is none that was made from just this.

        Args:
            facts: plain JSON values: what was built, and how.
            num_rows: that it must have.
            dim: width that it must have.
        """
        import faiss

        expected = self._facts(facts)
        path = self._path(expected)
        try:
            with open(path.with_suffix(".json"), "rb") as file:
                noted = json.loads(file.read(_MAX_FACTS_BYTES))
            if not isinstance(noted, dict) or {name: noted.get(name) for name in expected} != expected:
                return None
            if path.stat().st_size != noted.get("size") or sha256_of(path) != noted.get("sha256"):
                return None
            index: Any = faiss.read_index(str(path))
        except (OSError, ValueError, RecursionError, RuntimeError, GeolocError):
            return None
        return index if (index.ntotal, index.d) == (num_rows, dim) else None

    def save(self, index: Any, facts: Mapping[str, Any]) -> None:
        """Keep a FAISS index; without effect where the folder cannot be written."""
        import faiss

        binding: Any = faiss  # its type hints lack the writer
        expected = self._facts(facts)
        path = self._path(expected)
        with suppress(OSError, RuntimeError):  # FAISS makes one of the other
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._remove_others()
            path.with_suffix(".json").unlink(missing_ok=True)
            with atomic_write(path, "wb") as file:
                digest, size = hashlib.sha256(), 0

                def write(block: bytes) -> None:
                    nonlocal size
                    size += len(block)
                    digest.update(block)
                    file.write(block)

                binding.write_index(index, binding.PyCallbackIOWriter(write))
            noted = {**expected, "size": size, "sha256": digest.hexdigest()}
            with atomic_write(path.with_suffix(".json"), "w") as text:
                json.dump(noted, text, sort_keys=True)

    def _facts(self, facts: Mapping[str, Any]) -> dict[str, Any]:
        import faiss

        return {**facts, "schema": _SCHEMA, "identity": self._identity, "faiss": str(faiss.__version__)}

    def _path(self, facts: Mapping[str, Any]) -> Path:
        key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
        return self._folder / f"{self._identity[:16]}-{facts['structure']}-{facts['source']}-{key}.faiss"

    def _remove_others(self) -> None:
        """Remove the structures of earlier states of the database."""
        for path in self._folder.iterdir():
            if not path.name.startswith((self._identity[:16], f".{self._identity[:16]}")):
                path.unlink(missing_ok=True)
