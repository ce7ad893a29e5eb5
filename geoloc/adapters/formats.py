"""Load a published folder or file: detect its format by its tensor names, and convert it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from geoloc.adapters.adapted import Adapted
from geoloc.adapters.geoclip import MODEL_TYPE, adapt_package, adapt_release
from geoloc.adapters.megaloc import adapt_megaloc, is_megaloc
from geoloc.adapters.options import Options
from geoloc.adapters.osv5m import adapt_hub, adapt_training_checkpoint, is_training_checkpoint
from geoloc.adapters.osv5m_heads import Classes
from geoloc.adapters.osv5m_places import read_places
from geoloc.adapters.place_recognition import adapt_place_recognition, is_place_recognition
from geoloc.adapters.plonk import is_plonk
from geoloc.adapters.registry import FILE_SUFFIXES, OSV5M_CELLS_SHA256, OSV5M_CELLS_URL, WEIGHTS
from geoloc.adapters.statewide import adapt_statewide, is_statewide
from geoloc.adapters.streetclip import MODEL_TYPE as CLIP_TYPE
from geoloc.adapters.streetclip import adapt_images
from geoloc.adapters.tensors import ForeignTensors
from geoloc.errors import CheckpointError, ConfigError, NotFoundError
from geoloc.hub.foreign import pinned
from quadtree import Quadtree


def adapt(path: Path, options: Options) -> Adapted:
    """The model of a folder or file.

    Args:
        path: the published folder or file.
        options: facts that it does not contain.

    Raises:
        CheckpointError: its format is unknown, or a tensor is missing or left over.
        ConfigError: an option is missing, or the network is not supported.
        FingerprintMismatchError: the quadtree is not the one of its training.
        NotFoundError: the file, or another one that it needs, was not found.
    """
    config = read_config(path / "config.json")
    if is_plonk(config):
        raise ConfigError(
            f"{path} samples locations, which a Geolocalizer does not: use "
            "geoloc.localize.sampler.LocationSampler.from_pretrained, or geoloc localize"
        )
    if {"model", "transform"} <= config.keys():
        return adapt_hub(path, _osv5m_cells(options))
    if config.get("model_type") == MODEL_TYPE:
        return adapt_release(path, options)
    if config.get("model_type") == CLIP_TYPE:
        return adapt_images(path, options)
    if (path / "gps_gallery").is_dir():
        return adapt_package(path, options)
    weights = weights_of(path)
    file = ForeignTensors.read(weights)
    if is_training_checkpoint(file):
        tree = None if options.quadtree is None else _osv5m_cells(options)
        places = None if options.places is None else read_places(options.places)
        return adapt_training_checkpoint(file, options.tower, Classes(tree, places), options.lora_alpha)
    if is_statewide(file):
        return adapt_statewide(file, options)
    if is_megaloc(file):
        return adapt_megaloc(file, options)
    if is_place_recognition(file):
        return adapt_place_recognition(file, options)
    raise CheckpointError(
        f"{weights} has no format that geoloc reads (its tensors begin with {', '.join(file.names[:3])}): "
        "see `geoloc models` for those"
    )


def weights_of(path: Path) -> Path:
    """Path of the file of tensors: the path itself, or the only such file in the folder.

    Raises:
        NotFoundError: there is none, or there are several.
    """
    if path.is_file():
        return path
    named = [path / name for name in WEIGHTS if (path / name).is_file()]
    inner = [file for part in (path, path / "weights") if part.is_dir() for file in sorted(part.iterdir())]
    found = named[:1] or [file for file in inner if file.suffix in FILE_SUFFIXES]
    if len(found) != 1:
        raise NotFoundError(
            f"{path} holds {len(found)} files of tensors ({', '.join(f.name for f in found[:4]) or 'none'}): "
            "give the path of the one that is meant"
        )
    return found[0]


def read_config(path: Path) -> dict[str, Any]:
    """The JSON object in config.json; empty if there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _osv5m_cells(options: Options) -> Quadtree:
    path = options.quadtree if options.quadtree is not None else pinned(OSV5M_CELLS_URL, OSV5M_CELLS_SHA256)
    if not Path(path).is_file():
        raise NotFoundError(f"there is no table of cells {path}")
    return Quadtree.read_osv5m_csv(path)
