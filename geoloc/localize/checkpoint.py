"""A model as a folder: written whole, read with distrust. The same folder on disk and on the Hub.

    config.json        the network, the preprocessing, the quadtree's fingerprint: plain values, strict
    model.safetensors  exactly the network's tensors
    quadtree.parquet   the cells (absent for a model without a cell head)
    reranker.safetensors  how references are weighed (absent for a model that was never fitted with some)
    reference/         its own reference database, if it has one
    calibration.json   temperature, kernel width, conformal levels
    README.md          the card
    manifest.json      sha256 of every file; verified before anything else is read

Nothing in it is unpickled, imported by name or downloaded from elsewhere.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from shutil import copymode
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from geoloc.errors import CheckpointError, ConfigError, FingerprintMismatchError, IntegrityError
from geoloc.files import MANIFEST_NAME, atomic_write, replace_folder, verify_manifest, write_manifest
from geoloc.images.preprocess import Preprocess
from geoloc.localize.calibrate import Calibration
from geoloc.localize.rerank import Reranker, RerankerConfig
from geoloc.models.backbone import Backbone
from geoloc.models.batch_norm import fold_batch_norm, unfolded_state_dict
from geoloc.models.config import SCHEMA_VERSION, BackboneConfig, NetworkConfig, from_plain, to_plain
from geoloc.models.lora import merged
from geoloc.models.network import GeoNetwork
from geoloc.reference.database import ReferenceDatabase
from quadtree import Quadtree
from quadtree.errors import QuadtreeError

RERANKER_NAME = "reranker.safetensors"
REFERENCE_NAME = "reference"

_REMEDY = "fetch or save the checkpoint again"


@dataclass(frozen=True)
class Checkpoint:
    """What the folder holds, as `Geolocalizer` takes it."""

    name: str
    network: GeoNetwork
    preprocess: Preprocess
    quadtree: Quadtree | None
    calibration: Calibration
    card: str
    reranker: Reranker | None = None
    reference: ReferenceDatabase | None = None


@dataclass(frozen=True)
class Saved:
    """What identifies a checkpoint that is on the disk.

    Attributes:
        identity: digest of all its files: the same predictions; None once the model in memory was fitted anew.
        embedding_fingerprint: digest of weights, network and preprocessing: the same embeddings.
    """

    identity: str | None
    embedding_fingerprint: str


@dataclass(frozen=True)
class _Config:
    """config.json."""

    schema_version: int
    name: str
    network: NetworkConfig
    preprocess: Mapping[str, Any]
    quadtree_fingerprint: str | None
    reranker: RerankerConfig | None = None


def write_checkpoint(checkpoint: Checkpoint, folder: str | Path, *, half: bool = False) -> Saved:
    """Write a checkpoint and return what identifies it; an existing one is replaced in one step.

    Batch norms are unfolded and LoRA is merged, so that the tensors fit the tower's own definition.

    Args:
        checkpoint: what to write.
        folder: where to; it is made, or must hold a checkpoint.
        half: store floating-point tensors as float16 (half the size; loaded as float32).

    Raises:
        OutputMismatchError: the folder holds files that no checkpoint of ours has.
        CheckpointError: a weight is too large for float16.
    """
    network, quadtree = checkpoint.network, checkpoint.quadtree
    state = {key: t.detach().cpu() for key, t in unfolded_state_dict(network, merged(network)).items()}
    if half:
        state = {key: _halved(key, tensor) for key, tensor in state.items()}
    # Copies, since safetensors refuses tensors that share memory or are not contiguous.
    state = {key: t.clone(memory_format=torch.contiguous_format) for key, t in state.items()}
    config = _Config(
        schema_version=SCHEMA_VERSION,
        name=checkpoint.name,
        network=replace(
            network.config,
            backbone=_self_contained(network.backbone, network.config.backbone),
            aerial_backbone=network.config.aerial_backbone
            and _self_contained(network.aerial_backbone, network.config.aerial_backbone),
        ),
        preprocess=checkpoint.preprocess.to_dict(),
        quadtree_fingerprint=None if quadtree is None else quadtree.fingerprint,
        reranker=None if checkpoint.reranker is None else checkpoint.reranker.config,
    )
    with replace_folder(folder) as fresh:
        _write_json(fresh / "config.json", to_plain(config))
        _write_json(fresh / "calibration.json", to_plain(checkpoint.calibration))
        with atomic_write(fresh / "README.md", "w") as file:
            file.write(checkpoint.card)
        safetensors.torch.save_file(state, fresh / "model.safetensors")
        # safetensors makes its file readable for the owner only.
        copymode(fresh / "config.json", fresh / "model.safetensors")
        if quadtree is not None:
            quadtree.write(fresh / "quadtree.parquet")
        if checkpoint.reranker is not None:
            tensors = {key: tensor.contiguous() for key, tensor in checkpoint.reranker.state_dict().items()}
            safetensors.torch.save_file(tensors, fresh / RERANKER_NAME)
            copymode(fresh / "config.json", fresh / RERANKER_NAME)
        if checkpoint.reference is not None:
            checkpoint.reference.copy_to(fresh / REFERENCE_NAME)
        return _saved(write_manifest(fresh), config)


def _self_contained(tower: nn.Module | None, config: BackboneConfig) -> BackboneConfig:
    """A backbone knows its own self-contained form; its pretrained weights are in the checkpoint."""
    return replace(tower.config if isinstance(tower, Backbone) else config, pretrained=None)


def read_checkpoint(folder: Path) -> tuple[Checkpoint, Saved]:
    """The checkpoint in a folder, on the CPU with its batch norms folded, and what identifies it.

    Raises:
        IntegrityError: a file is missing or differs from the manifest.
        ConfigError: config.json or calibration.json has an unknown key or an impossible value.
        CheckpointError: the tensors do not fit the network that config.json describes, or there is no valid
            quadtree.
        FingerprintMismatchError: the quadtree is not the one that the cell head was trained on.
    """
    manifest = verify_manifest(folder)
    listed = manifest["files"].keys()
    _check_listed(folder, listed, ["config.json", "model.safetensors", "calibration.json", "README.md"])
    config = _read_config(folder / "config.json")
    calibration_path = folder / "calibration.json"
    calibration = from_plain(Calibration, _read_json(calibration_path), str(calibration_path))
    quadtree = None
    if config.quadtree_fingerprint is not None:
        _check_listed(folder, listed, ["quadtree.parquet"])
        quadtree = _read_quadtree(folder, config.quadtree_fingerprint)
    try:
        preprocess = Preprocess.from_dict(config.preprocess)
        backbones = [
            Backbone(tower, load_pretrained=False)
            for tower in (config.network.backbone, config.network.aerial_backbone)
            if tower is not None
        ]
    except ConfigError as error:
        raise ConfigError(f"{folder / 'config.json'}: {error}") from error
    cells = (None, None) if quadtree is None else (quadtree.bounds_deg, quadtree.center_latlon_deg)
    network = GeoNetwork(config.network, backbones[0], *cells, *backbones[1:])
    _load_tensors(network, folder / "model.safetensors")
    for backbone in backbones:
        fold_batch_norm(backbone)
    reranker = reference = None
    if config.reranker is not None:
        _check_listed(folder, listed, [RERANKER_NAME])
        reranker = Reranker(config.reranker)
        _load_tensors(reranker, folder / RERANKER_NAME)
    saved = _saved(manifest, config)
    if f"{REFERENCE_NAME}/{MANIFEST_NAME}" in listed:
        reference = ReferenceDatabase.open(
            folder / REFERENCE_NAME, model_fingerprint=saved.embedding_fingerprint
        )
    card = (folder / "README.md").read_text(encoding="utf-8", errors="replace")
    checkpoint = Checkpoint(
        config.name, network, preprocess, quadtree, calibration, card, reranker, reference
    )
    return checkpoint, saved


def _saved(manifest: Mapping[str, Any], config: _Config) -> Saved:
    parts = [
        manifest["files"]["model.safetensors"]["sha256"],
        to_plain(config.network),
        dict(config.preprocess),
    ]
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    return Saved(str(manifest["digest"]), digest)


def _halved(key: str, tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    half = tensor.half()
    if not half.isfinite().all():
        raise CheckpointError(f"the tensor {key!r} is too large for float16; save without half=True")
    return half


def _check_listed(folder: Path, listed: Iterable[str], needed: Iterable[str]) -> None:
    if missing := sorted(set(needed) - set(listed)):
        raise IntegrityError(
            f"{folder / 'manifest.json'} does not list {missing[0]!r}, so nothing vouches for that file; "
            f"{_REMEDY}"
        )


def _read_config(path: Path) -> _Config:
    values = _read_json(path)
    version = values.get("schema_version")
    if version != SCHEMA_VERSION:
        raise ConfigError(
            f"{path} has schema_version {version!r}, and this geoloc reads {SCHEMA_VERSION}: upgrade "
            "geoloc-vision, or save the model again"
        )
    config = from_plain(_Config, values, str(path))
    if (config.network.cells is None) != (config.quadtree_fingerprint is None):
        there = "cells" if config.network.cells is not None else "a quadtree_fingerprint"
        raise ConfigError(f"{path} has {there}: it must have both cells and a quadtree, or none; {_REMEDY}")
    for backbone in (config.network.backbone, config.network.aerial_backbone):
        if backbone is not None:
            _check_self_contained(backbone, path)
    return config


def _check_self_contained(backbone: BackboneConfig, path: Path) -> None:
    if (backbone.architecture or "").startswith("hf-hub:"):
        raise ConfigError(
            f"{path} names the backbone {backbone.architecture!r}, whose description is elsewhere; save the "
            "model again with save_pretrained, which writes the description itself"
        )


def _read_quadtree(folder: Path, fingerprint: str) -> Quadtree:
    path = folder / "quadtree.parquet"
    try:
        quadtree = Quadtree.read(path)
    except QuadtreeError as error:
        raise CheckpointError(f"{error}; {_REMEDY}") from error
    if quadtree.fingerprint != fingerprint:
        raise FingerprintMismatchError(
            f"{folder / 'config.json'} was written for the quadtree {fingerprint[:12]}…, but {path} is "
            f"{quadtree.fingerprint[:12]}… ({quadtree.num_cells} cells); use the quadtree saved beside the "
            "checkpoint, or fetch the checkpoint again"
        )
    return quadtree


def _load_tensors(network: nn.Module, path: Path) -> None:
    try:
        state = safetensors.torch.load_file(path)
    except Exception as error:  # safetensors has its own exception type, and OSError
        raise CheckpointError(f"{path} is not a readable safetensors file: {error}; {_REMEDY}") from error
    expected = network.state_dict()
    missing, extra = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    wrong = []
    if missing or extra:
        wrong = [
            f"{len(missing)} tensors are missing ({', '.join(missing[:3]) or 'none'})",
            f"{len(extra)} are extra ({', '.join(extra[:3]) or 'none'})",
        ]
    else:
        wrong = [
            f"{key!r} is {_kind(tensor)}, not {_kind(expected[key])}"
            for key, tensor in state.items()
            if _kind(tensor) != _kind(expected[key])
        ][:3]
    if wrong:
        raise CheckpointError(
            f"{path} does not fit the network of config.json: {', '.join(wrong)}; take config.json and "
            "model.safetensors from the same checkpoint"
        )
    network.load_state_dict(state)


def _kind(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {'floating-point' if tensor.is_floating_point() else 'whole'} numbers"


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not a readable JSON file: {error}; {_REMEDY}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} does not hold a JSON object; {_REMEDY}")
    return values


def _write_json(path: Path, value: Any) -> None:
    with atomic_write(path, "w") as file:
        file.write(json.dumps(value, indent=2, sort_keys=True) + "\n")
