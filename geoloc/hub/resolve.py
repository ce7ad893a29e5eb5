"""A model's name becomes a folder on this machine: bundled with the package, a local folder, or on the Hub.

Knows nothing about models.
"""

from __future__ import annotations

import re
from pathlib import Path

from geoloc.errors import ConfigError, NotFoundError
from geoloc.files import recover_folder

BUNDLED = Path(__file__).resolve().parent.parent / "checkpoints"
# A checkpoint is these and nothing else: what a repository holds besides is never downloaded.
CHECKPOINT_FILES = (
    "config.json",
    "model.safetensors",
    "quadtree.parquet",
    "calibration.json",
    "manifest.json",
    "README.md",
)


def bundled_names() -> list[str]:
    """Names of the models that come with the package."""
    return sorted(path.parent.name for path in BUNDLED.glob("*/manifest.json"))


def resolve(name: str | Path, revision: str | None = None) -> Path:
    """The folder of a model.

    Args:
        name: a bundled model ("earthview"), a folder, or a Hub id ("org/name"); a folder comes first.
        revision: of the Hub repository: a branch, tag or commit.

    Raises:
        NotFoundError: the name is none of them, or the Hub does not have it or cannot be reached.
        ConfigError: a revision was asked of a folder or a bundled model, which have none.
    """
    folder = Path(name).expanduser()
    if folder.parent.is_dir():
        recover_folder(folder)  # a save may have been killed between its two renames
    is_bundled = not folder.is_dir() and name in bundled_names()
    if revision is not None and (folder.is_dir() or is_bundled):
        raise ConfigError(
            f"revision {revision!r} was asked of {str(name)!r}, which is on this machine: only models on the "
            "Hub have revisions; leave it out"
        )
    if folder.is_dir():
        return folder
    if isinstance(name, Path):
        raise NotFoundError(f"there is no model folder {folder}; check the path, or save a model there first")
    if is_bundled:
        return BUNDLED / name
    if re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name, re.ASCII):
        return _download(name, revision)
    raise NotFoundError(
        f"no model is called {name!r}: it is not bundled (bundled: {', '.join(bundled_names()) or 'none'}), "
        "not a folder here, and not a Hub id of the form org/name"
    )


def _download(repo_id: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repo_id, revision=revision, allow_patterns=list(CHECKPOINT_FILES)))
    except Exception as error:  # whatever the network, the cache or the Hub may raise
        raise NotFoundError(
            f"could not get the model {repo_id!r} (revision {revision or 'main'}) from the Hugging Face Hub: "
            f"{error}; check the name and the network, or give the path of a folder"
        ) from error
