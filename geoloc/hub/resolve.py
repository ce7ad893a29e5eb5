"""Model names to local folders: bundled with the package, a local folder, or on the Hub."""

from __future__ import annotations

from pathlib import Path

from geoloc.errors import ConfigError, NotFoundError
from geoloc.files import recover_folder, safe_join
from geoloc.hub.pull import cached
from geoloc.hub.repository import REPO_ID

BUNDLED = Path(__file__).resolve().parent.parent / "checkpoints"


def bundled_names() -> list[str]:
    """Names of the bundled models."""
    return sorted(path.parent.name for path in BUNDLED.glob("*/manifest.json"))


def resolve(name: str | Path, revision: str | None = None, subfolder: str = "") -> Path:
    """Local folder of a model.

    Args:
        name: a bundled model ("earthview"), a folder, or a Hub id ("org/name"); a folder comes first.
        revision: of the Hub repository: a branch, tag or commit.
        subfolder: the folder in it that holds the model, a relative POSIX name.

    Raises:
        NotFoundError: the name is none of these, or the Hub does not have it or cannot be reached.
        ConfigError: a revision was given for a folder or a bundled model, which have none.
        IntegrityError: the repository's files differ from its manifest, or geoloc did not write it.
    """
    folder = Path(name).expanduser()
    if folder.parent.is_dir():
        recover_folder(folder)  # a save may have been interrupted between its two renames
    is_bundled = not folder.is_dir() and name in bundled_names()
    if revision is not None and (folder.is_dir() or is_bundled):
        raise ConfigError(
            f"revision {revision!r} was asked of {str(name)!r}, which is on this machine: only models on the "
            "Hub have revisions; leave it out"
        )
    if is_bundled:
        folder = BUNDLED / name
    if folder.is_dir():
        return safe_join(folder, subfolder) if subfolder else folder
    if isinstance(name, Path):
        raise NotFoundError(f"there is no model folder {folder}; check the path, or save a model there first")
    if REPO_ID.fullmatch(name):
        return cached(name, "model", revision=revision, subfolder=subfolder)
    raise NotFoundError(
        f"no model is called {name!r}: it is not bundled (bundled: {', '.join(bundled_names()) or 'none'}), "
        "not a folder here, and not a Hub id of the form org/name; `geoloc models` lists the known names"
    )
