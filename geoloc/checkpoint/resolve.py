"""What a model's name stands for: a checkpoint of geoloc, a published model, or one that samples locations.

The only place that decides it. A name is a bundled model, a folder, a file of tensors, or a repository on the Hub.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from geoloc.adapters.options import Options
from geoloc.adapters.registry import FILE_SUFFIXES, SAMPLES, WEIGHTS, PublishedModel, find_published
from geoloc.errors import ConfigError, NotFoundError
from geoloc.hub.foreign import foreign, is_foreign
from geoloc.hub.repository import NotOursError
from geoloc.hub.resolve import resolve
from geoloc.reference.manifest import ModelOrigin


@dataclass(frozen=True)
class ModelSource:
    """A model by its name, not fetched yet.

    Attributes:
        given: name or path, as the user gave it.
        revision: of a repository on the Hub; None is the pinned one, or the main branch.
        subfolder: of a folder or repository.
        options: for a published file that leaves something open.
        samples_locations: it is one that `LocationSampler` loads, and not `Geolocalizer`.
    """

    given: str | Path
    revision: str | None
    subfolder: str
    options: Options
    samples_locations: bool

    @property
    def name(self) -> str:
        """The name as a text."""
        return str(self.given)

    @cached_property
    def path(self) -> Path:
        """Its folder or file, fetched if it is not on this machine.

        Raises:
            NotFoundError: there is no such model, or the Hub cannot be reached.
            ConfigError: a revision of something that has none, or a model that is not fetched by its name.
        """
        return _path_of(self.given, self.revision, self.subfolder)

    @property
    def origin(self) -> ModelOrigin:
        """How the model is loaded again, with the commit of a repository on the Hub as its revision."""
        local = Path(self.given).expanduser().exists()
        commit = None if local else re.search(r"(?<![0-9a-f])[0-9a-f]{40}(?![0-9a-f])", str(self.path))
        values = {key: value for key, value in asdict(self.options).items() if value is not None}
        plain = {
            key: str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
            for key, value in values.items()
        }
        return ModelOrigin(self.name, commit[0] if commit else self.revision, self.subfolder, plain)

    @property
    def is_published(self) -> bool:
        """Whether it is in another system's format. A checkpoint of geoloc without its manifest is a broken one."""
        path = self.path
        if path.is_file():
            return True
        return is_foreign(path) and not (path / "calibration.json").exists() and any(path.iterdir())


def resolve_model(
    name: str | Path,
    revision: str | None = None,
    subfolder: str = "",
    options: Mapping[str, Any] | None = None,
) -> ModelSource:
    """Decide what a name stands for, without fetching it.

    Args:
        name: as `Geolocalizer.from_pretrained` takes it.
        revision: of a repository on the Hub.
        subfolder: of a folder or repository.
        options: fields of `geoloc.adapters.options.Options`.

    Raises:
        ConfigError: an option that does not exist, or that a model which samples locations does not take.
    """
    known = [field.name for field in fields(Options)]
    given: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in (options or {}).items()
    }
    if unknown := [option for option in given if option not in known]:
        raise ConfigError(
            f"from_pretrained has no option {unknown[0]!r}; those of published files are {', '.join(known)}"
        )
    samples = _samples_locations(name)
    if samples and (others := [option for option in given if option != "tower"]):
        raise ConfigError(
            f"{str(name)!r} samples locations, and has no option {others[0]!r}: it takes tower=PATH alone"
        )
    return ModelSource(name, revision, subfolder, Options(**given), samples)


def _samples_locations(name: str | Path) -> bool:
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not is_foreign(folder):
            return False
        # Imported here, since they need torch, which an exported model does without.
        from geoloc.adapters.formats import read_config
        from geoloc.adapters.plonk import is_plonk

        return is_plonk(read_config(folder / "config.json"))
    published = find_published(str(name))
    return published is not None and published.gives == SAMPLES


def _path_of(name: str | Path, revision: str | None, subfolder: str) -> Path:
    path = Path(name).expanduser()
    if path.suffix == ".onnx" and path.is_file():
        raise ConfigError(f"{path} is the graph of an exported model, which has more files: give its folder")
    if path.suffix in FILE_SUFFIXES and not path.exists():
        raise NotFoundError(f"there is no file {path}; `geoloc models` lists the names of published models")
    if path.is_file():
        if revision is not None or subfolder:
            raise ConfigError(f"{path} is a file, which has neither revisions nor folders")
        return path
    published = find_published(str(name))
    if published is not None and not path.is_dir():
        if published.package:
            return _in_package(published)
        if not published.is_fetched:
            raise ConfigError(
                f"{published.name} is not fetched by its name: {published.how}. Weights: {published.weights}"
            )
        pin = published.revision if revision is None else revision
        return foreign(published.name, published.files, revision=pin, subfolder=subfolder)
    try:
        return resolve(name, revision, subfolder)
    except NotOursError:
        return foreign(str(name), ("config.json", *WEIGHTS[:1]), revision=revision, subfolder=subfolder)


def _in_package(published: PublishedModel) -> Path:
    package, _, folder = published.package.partition("/")
    spec = find_spec(package)  # without importing it
    if spec is None or not spec.submodule_search_locations:
        raise NotFoundError(
            f"the package {package} is not installed; or give its folder {folder!r}: {published.how}"
        )
    return Path(next(iter(spec.submodule_search_locations))) / folder
