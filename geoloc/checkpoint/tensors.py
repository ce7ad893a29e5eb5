"""Tensors of a checkpoint: written from a network of torch, and read strictly into one."""

from __future__ import annotations

import copy
import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from geoloc.errors import CheckpointError, ConfigError
from geoloc.models.backbone import Backbone
from geoloc.models.batch_norm import fold_batch_norm, unfolded_state_dict
from geoloc.models.config import BackboneConfig, NetworkConfig
from geoloc.models.lora import merged
from geoloc.models.network import GeoNetwork
from quadtree import Quadtree

_REMEDY = "fetch or save the checkpoint again"


def write_network(network: GeoNetwork, path: Path, *, half: bool) -> None:
    """Write a network's tensors under the names of its own definition, with LoRA merged.

    Args:
        half: as float16, with batch norms folded into the convolutions first: rounded, folding would no longer give the
            same numbers. A network that is to be trained further with its norms unfrozen is stored in full.

    Raises:
        CheckpointError: a weight is too large for float16.
    """
    state = _plain_state(_folded(network) if half else network)
    if half:
        state = {key: _halved(key, tensor) for key, tensor in state.items()}
    safetensors.torch.save_file(state, path)


def tensors_digest(network: GeoNetwork) -> str:
    """Digest of what a network computes: of its tensors by name, rounded to float16.

    Rounded, because a checkpoint may be stored in full or half precision, and its references belong to both. A value
    that float16 cannot hold counts in float32; such a network is never stored in half precision.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(_plain_state(_folded(network)).items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.is_floating_point()}\n".encode())
        half = tensor.half() if tensor.is_floating_point() else tensor
        if tensor.is_floating_point() and not bool(half.isfinite().all()):
            half = tensor.float()
        digest.update(half.numpy().tobytes())
    return digest.hexdigest()


def _plain_state(network: GeoNetwork) -> dict[str, Tensor]:
    state = unfolded_state_dict(network, merged(network))
    # Copies: safetensors refuses tensors that share memory or are not contiguous.
    return {key: t.detach().cpu().clone(memory_format=torch.contiguous_format) for key, t in state.items()}


def _folded(network: GeoNetwork) -> GeoNetwork:
    """The network as it runs after loading: a copy with folded batch norms, or itself where they are folded."""
    towers = [tower for tower in (network.backbone, network.aerial_backbone) if isinstance(tower, Backbone)]
    if all(tower.norms_folded for tower in towers):
        return network
    copied = copy.deepcopy(network).eval()
    for tower in (copied.backbone, copied.aerial_backbone):
        if isinstance(tower, Backbone):
            fold_batch_norm(tower)
    return copied


def _halved(key: str, tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    half = tensor.half()
    if not half.isfinite().all():
        raise CheckpointError(f"the tensor {key!r} is too large for float16; save without half=True")
    return half


def self_contained(network: GeoNetwork) -> NetworkConfig:
    """The config of a network with self-contained backbones and without pretrained weights."""
    config = network.config
    return replace(
        config,
        backbone=_self_contained(network.backbone, config.backbone),
        aerial_backbone=config.aerial_backbone
        and _self_contained(network.aerial_backbone, config.aerial_backbone),
    )


def _self_contained(tower: nn.Module | None, config: BackboneConfig) -> BackboneConfig:
    return replace(tower.config if isinstance(tower, Backbone) else config, pretrained=None)


def read_network(
    config: NetworkConfig, folder: Path, quadtree: Quadtree | None, device: Any, num_threads: int | None
) -> GeoNetwork:
    """The network of a checkpoint's folder on a device, batch norms folded.

    Raises:
        ConfigError: the network of the config cannot be built.
        CheckpointError: the tensors do not fit it.
    """
    try:
        backbones = [
            Backbone(tower, load_pretrained=False)
            for tower in (config.backbone, config.aerial_backbone)
            if tower is not None
        ]
    except ConfigError as error:
        raise ConfigError(f"{folder / 'config.json'}: {error}") from error
    cells = (None, None) if quadtree is None else (quadtree.bounds_deg, quadtree.center_latlon_deg)
    network = GeoNetwork(config, backbones[0], *cells, *backbones[1:])
    _load_tensors(network, folder / "model.safetensors")
    return ready(network, device, num_threads)


def ready(network: GeoNetwork, device: Any, num_threads: int | None) -> GeoNetwork:
    """The network prepared for inference: batch norms folded, on its device."""
    if num_threads is not None:
        torch.set_num_threads(num_threads)
    for tower in (network.backbone, network.aerial_backbone):
        if isinstance(tower, Backbone):
            fold_batch_norm(tower)
    on_device = network.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return on_device  # type: ignore[no-any-return]


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
