"""Any model that `from_pretrained` is asked for, as a checkpoint of ours: saved by geoloc, or published by others."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geoloc.adapters.options import Options
from geoloc.adapters.registry import FILE_SUFFIXES, WEIGHTS, PublishedModel, find_published
from geoloc.errors import ConfigError, NotFoundError
from geoloc.hub.foreign import foreign, is_foreign
from geoloc.hub.repository import NotOursError
from geoloc.hub.resolve import resolve
from geoloc.localize.calibrate import Calibration
from geoloc.localize.checkpoint import Checkpoint, Saved, read_checkpoint
from geoloc.models.plain import to_plain

if TYPE_CHECKING:
    from geoloc.adapters.adapted import Adapted


def draws_places(name: str | Path) -> bool:
    """Whether a name is that of a model, published or in a folder here, which a `PlaceSampler` loads."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not is_foreign(folder):
            return False
        # Here, since they need torch, which an exported model does without.
        from geoloc.adapters.formats import read_config
        from geoloc.adapters.plonk import is_plonk

        return is_plonk(read_config(folder / "config.json"))
    published = find_published(str(name))
    return published is not None and published.gives == "draws of places"


def read_model(
    name: str | Path,
    revision: str | None = None,
    subfolder: str = "",
    options: Mapping[str, Any] | None = None,
    device: Any = "cpu",
    num_threads: int | None = None,
) -> tuple[Checkpoint, Saved]:
    """The checkpoint behind a name, with its batch norms folded, and what identifies it.

    Args:
        name: as `Geolocalizer.from_pretrained` takes it.
        revision: of a repository on the Hub.
        subfolder: of a folder or repository.
        options: fields of `geoloc.adapters.options.Options`, for a published file that leaves something open.
        device: where its tensors go, as torch names it.
        num_threads: CPU threads of the network; None leaves it to the library.

    Raises:
        As `Geolocalizer.from_pretrained`.
    """
    said = _checked(options or {})
    if (published := find_published(str(name))) is not None and published.gives == "draws of places":
        raise ConfigError(
            f"{published.name} draws places, which a Geolocalizer does not: use "
            "geoloc.localize.drawn.PlaceSampler.from_pretrained, or geoloc localize"
        )
    path = path_of(name, revision, subfolder)
    if path.is_file() or _is_of_others(path):
        return _read_foreign(str(name), path, said, device, num_threads)
    if said != Options():
        raise ConfigError(
            f"{', '.join(options or {})} was given for {str(name)!r}, which geoloc has saved: "
            "its checkpoint leaves nothing open; leave it out"
        )
    return read_checkpoint(path, device, num_threads)


def path_of(name: str | Path, revision: str | None, subfolder: str) -> Path:
    """The folder or file behind a name, fetched if it is not here."""
    path = Path(name).expanduser()
    if path.suffix == ".onnx" and path.is_file():
        raise ConfigError(
            f"{path} is the graph of an exported model, which is more than that: give its folder"
        )
    if path.suffix in FILE_SUFFIXES and not path.exists():
        raise NotFoundError(f"there is no file {path}; `geoloc models` lists what has a name")
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
    package, _, inner = published.package.partition("/")
    spec = find_spec(package)  # without importing it
    if spec is None or not spec.submodule_search_locations:
        raise NotFoundError(
            f"the package {package} is not installed; or give its folder {inner!r}: {published.how}"
        )
    return Path(next(iter(spec.submodule_search_locations))) / inner


def _is_of_others(folder: Path) -> bool:
    """Whether a folder is one that geoloc has not saved; ours without its manifest is ours, and broken."""
    return is_foreign(folder) and not (folder / "calibration.json").exists() and any(folder.iterdir())


def _read_foreign(
    name: str, path: Path, options: Options, device: Any, num_threads: int | None
) -> tuple[Checkpoint, Saved]:
    # Here, since they need torch, which an exported model does without.
    from geoloc.adapters.formats import adapt
    from geoloc.localize.gallery import gallery_database, gallery_weigher
    from geoloc.localize.weights import digest_when_written, ready, self_contained

    adapted = adapt(path, options)
    network = ready(adapted.network, device, num_threads)
    # As of a checkpoint of ours, so that references stay valid when the model is saved as one.
    parts = [digest_when_written(network), to_plain(self_contained(network)), adapted.preprocess.to_dict()]
    embedding_fingerprint = _digest(parts)
    tree = None if adapted.quadtree is None else adapted.quadtree.fingerprint
    reranker = reference = None
    if (gallery := adapted.gallery) is not None:
        reference = gallery_database(gallery, embedding_fingerprint)
        reranker = gallery_weigher(gallery)
    checkpoint = Checkpoint(
        name,
        network,
        adapted.preprocess,
        adapted.quadtree,
        Calibration(),
        _card(name, adapted),
        reranker,
        reference,
    )
    return checkpoint, Saved(_digest([embedding_fingerprint, tree]), embedding_fingerprint)


def _digest(parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _card(name: str, adapted: Adapted) -> str:
    published = find_published(name)
    lines = [f"# {name}", "", "Weights published by others, in geoloc's form: not calibrated here."]
    if published is not None:
        lines += [
            "",
            f"- weights: {published.weights}; licence: {published.weights_licence}",
            f"- its authors' code: {published.code_licence}",
            f"- numbers that its authors publish: {published.numbers}",
        ]
    gives = adapted.network.config
    heads = [part for part in ("cells", "offsets", "regression") if getattr(gives, part) is not None]
    lines += ["", f"It has {', '.join([*heads, *(f'an embedding ({role})' for role in gives.embeddings)])}."]
    return "\n".join(lines) + "\n"


def _checked(options: Mapping[str, Any]) -> Options:
    known = [field.name for field in fields(Options)]
    if unknown := [name for name in options if name not in known]:
        raise ConfigError(
            f"from_pretrained has no option {unknown[0]!r}; those of published files are {', '.join(known)}"
        )
    return Options(**options)
