"""A model's name becomes a folder on this machine: bundled with the package, a local folder, or on the Hub."""

from __future__ import annotations

import re
from pathlib import Path

from geoloc.errors import NotFoundError

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
        name: a bundled model ("earthview"), a folder, or a Hub id ("org/name"). What exists as a folder is a folder.
        revision: of the Hub repository: a branch, tag or commit.

    Raises:
        NotFoundError: the name is none of them, or the Hub does not have it or cannot be reached.
    """
    folder = Path(name).expanduser()
    if isinstance(name, Path) or folder.is_dir():
        if not folder.is_dir():
            raise NotFoundError(f"there is no model folder {folder}; check the path, or save a model there first")
        return folder
    if name in bundled_names():
        return BUNDLED / name
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not name.startswith((".", "/")):
        return _download(name, revision)
    raise NotFoundError(
        f"no model is called {name!r}: it is not bundled (bundled: {', '.join(bundled_names()) or 'none'}), not a "
        "folder here, and not a Hub id of the form org/name"
    )


def _download(repo_id: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repo_id, revision=revision, allow_patterns=list(CHECKPOINT_FILES)))
    except Exception as error:  # whatever the network, the cache or the Hub may raise
        raise NotFoundError(
            f"could not get the model {repo_id!r} (revision {revision or 'main'}) from the Hugging Face Hub: {error}; "
            "check the name and the network, or give the path of a folder"
        ) from error
