"""A model as a folder, the same on disk and on the Hub: written in one step, verified when read.

    config.json        the network, the preprocessing, the quadtree's fingerprint: plain values, strict
    model.safetensors  exactly the network's tensors; an exported model has model.onnx or model.int8.onnx instead
    quadtree.parquet   the cells (absent for a model without a cell head)
    reranker.safetensors  the fitted reranker, if there is one
    reference/         the model's own reference database, if there is one
    references/NAME/   further databases, of its own network or of others
    embedders/N/       these other networks, each a checkpoint
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
from shutil import copyfile, copymode
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from safetensors.numpy import load_file, save_file

from geoloc.checkpoint.parts import EmbedderPart, Part, PartConfig, part_configs
from geoloc.errors import CheckpointError, ConfigError, FingerprintMismatchError, IntegrityError
from geoloc.files import MANIFEST_NAME, atomic_write, replace_folder, verify_manifest, write_manifest
from geoloc.images.preprocess import Preprocess
from geoloc.models.config import SCHEMA_VERSION, BackboneConfig, NetworkConfig
from geoloc.models.onnx.runner import OnnxRunner
from geoloc.models.plain import from_plain, to_plain
from geoloc.models.runner import Runner
from geoloc.posterior.calibration import Calibration
from geoloc.posterior.pipeline import Pipeline
from geoloc.posterior.reranker import Reranker, RerankerConfig
from geoloc.reference.database import ReferenceDatabase
from quadtree import Quadtree
from quadtree.errors import QuadtreeError

if TYPE_CHECKING:
    from geoloc.models.network import GeoNetwork

WEIGHTS_NAME = "model.safetensors"
ONNX_NAMES = {"fp32": "model.onnx", "int8": "model.int8.onnx"}
RERANKER_NAME = "reranker.safetensors"
REFERENCE_NAME = "reference"

_REMEDY = "fetch or save the checkpoint again"


@dataclass(frozen=True)
class Exported:
    """The checkpoint that a model was exported from.

    Attributes:
        precision: of its backbone.
        identity: of that checkpoint.
        embedding_fingerprint: of that checkpoint, and of the export.
    """

    precision: Literal["fp32", "int8"]
    identity: str
    embedding_fingerprint: str


@dataclass(frozen=True)
class Checkpoint:
    """Content of the folder, as `Geolocalizer` takes it; `exported` is set exactly for an OnnxRunner.

    A composed model has `parts`; where `uses_location_heads` is false, its own network only embeds.
    """

    name: str
    network: GeoNetwork | OnnxRunner
    preprocess: Preprocess
    quadtree: Quadtree | None
    calibration: Calibration
    card: str
    reranker: Reranker | None = None
    reference: ReferenceDatabase | None = None
    exported: Exported | None = None
    parts: tuple[Part, ...] = ()
    uses_location_heads: bool = True

    def pipeline(self) -> Pipeline:
        """The stages from images to posteriors."""
        runner = runner_of(self.network, self.preprocess)
        return Pipeline(self.name, runner, self.quadtree, self.reranker, self.uses_location_heads)


@dataclass(frozen=True)
class Saved:
    """Identity of a checkpoint on the disk.

    Attributes:
        identity: digest of all its files; None once the model in memory was fitted again.
        embedding_fingerprint: digest of weights, network and preprocessing.
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
    exported: Exported | None = None
    parts: tuple[PartConfig, ...] = ()
    uses_location_heads: bool = True


def write_checkpoint(
    checkpoint: Checkpoint,
    folder: str | Path,
    *,
    half: bool = False,
    reports: Mapping[str, Mapping[str, Any]] | None = None,
) -> Saved:
    """Write a checkpoint and return its identity; an existing one is replaced in one step.

    Batch norms are unfolded and LoRA is merged, so that the tensors fit the tower's own definition.

    Args:
        checkpoint: to write.
        folder: where to; it is made, or must hold a checkpoint.
        half: store floating-point tensors as float16 (half the size; loaded as float32); ignored for an exported model.
        reports: further JSON files by their names.

    Raises:
        OutputMismatchError: the folder holds files that no checkpoint of geoloc has.
        CheckpointError: a weight is too large for float16.
    """
    network, quadtree, exported = checkpoint.network, checkpoint.quadtree, checkpoint.exported
    config = _Config(
        schema_version=SCHEMA_VERSION,
        name=checkpoint.name,
        network=_network_config(network),
        preprocess=checkpoint.preprocess.to_dict(),
        quadtree_fingerprint=None if quadtree is None else quadtree.fingerprint,
        reranker=None if checkpoint.reranker is None else checkpoint.reranker.config,
        exported=exported,
        parts=part_configs(checkpoint.parts),
        uses_location_heads=checkpoint.uses_location_heads,
    )
    with replace_folder(folder) as fresh:
        plain = to_plain(config)
        for name, usual in (("exported", None), ("parts", []), ("uses_location_heads", True)):
            if plain[name] == usual:  # absent in the first checkpoints
                del plain[name]
        _write_json(fresh / "config.json", plain)
        _write_json(fresh / "calibration.json", to_plain(checkpoint.calibration))
        with atomic_write(fresh / "README.md", "w") as file:
            file.write(checkpoint.card)
        for name, values in (reports or {}).items():
            _write_json(fresh / name, values)
        if isinstance(network, OnnxRunner):
            assert exported is not None
            copyfile(network.path, fresh / ONNX_NAMES[exported.precision])
        else:
            from geoloc.checkpoint.tensors import write_network

            write_network(network, fresh / WEIGHTS_NAME, half=half)
            # safetensors makes its file readable for the owner only.
            copymode(fresh / "config.json", fresh / WEIGHTS_NAME)
        if quadtree is not None:
            quadtree.write(fresh / "quadtree.parquet")
        if (reranker := checkpoint.reranker) is not None:
            arrays = {name: values.astype(np.float32) for name, values in reranker.parameters.items()}
            save_file(arrays, fresh / RERANKER_NAME)
            copymode(fresh / "config.json", fresh / RERANKER_NAME)
        if checkpoint.reference is not None:
            checkpoint.reference.copy_to(fresh / REFERENCE_NAME)
        for part, names in zip(checkpoint.parts, config.parts, strict=True):
            part.database.copy_to(fresh / names.database)
            if (
                part.embedder is not None
                and names.embedder is not None
                and not (fresh / names.embedder).exists()
            ):
                write_checkpoint(
                    replace(part.embedder.checkpoint, reference=None, parts=()), fresh / names.embedder
                )
        return _saved(write_manifest(fresh), config, network)


def runner_of(network: GeoNetwork | OnnxRunner, preprocess: Preprocess) -> Runner:
    """The backend of a network: ONNX Runtime for an exported one, else PyTorch."""
    if isinstance(network, OnnxRunner):
        return network
    from geoloc.models.torch_runner import TorchRunner

    return TorchRunner(network, preprocess.size_hw)


def _network_config(network: GeoNetwork | OnnxRunner) -> NetworkConfig:
    if isinstance(network, OnnxRunner):
        return network.config
    from geoloc.checkpoint.tensors import self_contained

    return self_contained(network)


def read_checkpoint(
    folder: Path, device: Any = "cpu", num_threads: int | None = None
) -> tuple[Checkpoint, Saved]:
    """Read the checkpoint of a folder, with batch norms folded, and its identity.

    Args:
        folder: that holds it.
        device: where its tensors go, as torch names it.
        num_threads: CPU threads of the network; None leaves it to the library.

    Raises:
        IntegrityError: a file is missing or differs from the manifest.
        ConfigError: config.json or calibration.json has an unknown key or an impossible value; or an exported model
            was asked to run on another device than the CPU, or onnxruntime is not installed.
        CheckpointError: the tensors do not fit the network that config.json describes, or there is no valid
            quadtree.
        FingerprintMismatchError: the quadtree is not the one that the cell head was trained on.
    """
    manifest = verify_manifest(folder)
    listed = manifest["files"].keys()
    _check_listed(folder, listed, ["config.json", "calibration.json", "README.md"])
    config = _read_config(folder / "config.json")
    exported = config.exported
    weights = WEIGHTS_NAME if exported is None else ONNX_NAMES[exported.precision]
    _check_listed(folder, listed, [weights])
    calibration_path = folder / "calibration.json"
    calibration = from_plain(Calibration, _read_json(calibration_path), str(calibration_path))
    quadtree = None
    if config.quadtree_fingerprint is not None:
        _check_listed(folder, listed, ["quadtree.parquet"])
        quadtree = _read_quadtree(folder, config.quadtree_fingerprint)
    reranker = None
    if config.reranker is not None:
        _check_listed(folder, listed, [RERANKER_NAME])
        reranker = _read_reranker(config.reranker, folder / RERANKER_NAME)
    network: GeoNetwork | OnnxRunner
    reference = None
    try:
        preprocess = Preprocess.from_dict(config.preprocess)
    except ConfigError as error:
        raise ConfigError(f"{folder / 'config.json'}: {error}") from error
    if exported is None:
        from geoloc.checkpoint.tensors import read_network

        network = read_network(config.network, folder, quadtree, device, num_threads)
    else:
        if str(device) != "cpu":
            raise ConfigError(f"{folder} is an exported model, which runs on the CPU, not on {str(device)!r}")
        num_cells = 0 if quadtree is None else quadtree.num_cells
        network = OnnxRunner(folder / weights, config.network, num_cells, num_threads)
    saved = _saved(manifest, config, network)
    if f"{REFERENCE_NAME}/{MANIFEST_NAME}" in listed:
        reference = ReferenceDatabase.open(
            folder / REFERENCE_NAME, model_fingerprint=saved.embedding_fingerprint
        )
    parts = []
    embedders: dict[str, EmbedderPart] = {}
    for names in config.parts:
        embedder = None
        if names.embedder is not None:
            _check_listed(folder, listed, [f"{names.embedder}/{MANIFEST_NAME}"])
            if names.embedder not in embedders:
                embedders[names.embedder] = EmbedderPart(
                    *read_checkpoint(folder / names.embedder, device, num_threads)
                )
            embedder = embedders[names.embedder]
        _check_listed(folder, listed, [f"{names.database}/{MANIFEST_NAME}"])
        fingerprint = (saved if embedder is None else embedder.saved).embedding_fingerprint
        database = ReferenceDatabase.open(folder / names.database, model_fingerprint=fingerprint)
        parts.append(Part(database, embedder))
    card = (folder / "README.md").read_text(encoding="utf-8", errors="replace")
    checkpoint = Checkpoint(
        config.name,
        network,
        preprocess,
        quadtree,
        calibration,
        card,
        reranker,
        reference,
        exported,
        tuple(parts),
        config.uses_location_heads,
    )
    return checkpoint, saved


def _read_reranker(config: RerankerConfig, path: Path) -> Reranker:
    try:
        arrays = load_file(path)
    except Exception as error:  # safetensors has its own exception type, and OSError
        raise CheckpointError(f"{path} is not a readable safetensors file: {error}; {_REMEDY}") from error
    if {name: values.shape for name, values in arrays.items()} != config.shapes():
        raise CheckpointError(f"{path} does not fit the reranker of config.json; {_REMEDY}")
    return Reranker(config, arrays)


def _saved(manifest: Mapping[str, Any], config: _Config, network: GeoNetwork | OnnxRunner) -> Saved:
    if config.exported is not None or isinstance(network, OnnxRunner):
        assert config.exported is not None
        return Saved(str(manifest["digest"]), config.exported.embedding_fingerprint)
    fingerprint = embedding_fingerprint_of(network, config.network, dict(config.preprocess))
    return Saved(str(manifest["digest"]), fingerprint)


def embedding_fingerprint_of(
    network: GeoNetwork, config: NetworkConfig, preprocess: Mapping[str, Any]
) -> str:
    """Digest of tensors, network config and preprocessing, independent of how the tensors are stored."""
    from geoloc.checkpoint.tensors import tensors_digest

    parts = [tensors_digest(network), to_plain(config), dict(preprocess)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _check_listed(folder: Path, listed: Iterable[str], needed: Iterable[str]) -> None:
    if missing := sorted(set(needed) - set(listed)):
        raise IntegrityError(
            f"{folder / 'manifest.json'} does not list {missing[0]!r}, so that file cannot be verified; {_REMEDY}"
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
