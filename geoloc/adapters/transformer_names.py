"""Transformer trunks with the names of transformers' ViT, the published CCT and timm's old Swin V2, for timm.

All three are for images of one size, which their position embeddings or window masks show.
"""

from __future__ import annotations

import re
from math import isqrt
from typing import Any

import torch
from torch import Tensor

from geoloc.adapters.tensors import ForeignTensors
from geoloc.errors import ConfigError

_VIT_B_DEPTH, _CCT_DEPTH = 12, 14
_VIT_PATCH_PX = _CCT_STRIDE_PX = 16
_SWIN_STRIDE_PX, _SWIN_PX = 32, 256

_VIT_BLOCK = {
    "layernorm_before": "norm1",
    "attention.output.dense": "attn.proj",
    "layernorm_after": "norm2",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
}
_CCT_BLOCK = {
    "pre_norm": "norm1",
    "self_attn.qkv": "attention.qkv",
    "self_attn.proj": "attention.proj",
    "norm1": "norm2",
    "linear1": "mlp.0",
    "linear2": "mlp.2",
}
# Channels of the first stage, blocks of the third, side of a window. GSV-Cities offers the one that was pretrained
# with smaller windows, which its tensors do not show: of that size, the other one is not read.
_SWINS = {
    (96, 6, 8): "swinv2_tiny_window8_256",
    (96, 6, 16): "swinv2_tiny_window16_256",
    (96, 18, 8): "swinv2_small_window8_256",
    (96, 18, 16): "swinv2_small_window16_256",
    (128, 18, 8): "swinv2_base_window8_256",
    (128, 18, 16): "swinv2_base_window12to16_192to256",
    (192, 18, 16): "swinv2_large_window12to16_192to256",
}


def read_transformer(
    file: ForeignTensors, prefix: str
) -> tuple[dict[str, Any], dict[str, Tensor], int] | None:
    """Take a transformer's tensors; None if the file has none.

    Args:
        file: tensors of the file.
        prefix: prefix of the trunk's names.

    Returns:
        Fields of a BackboneConfig with the pictures' side, the state as timm names it, and how many pixels of a picture
        become one position.

    Raises:
        CheckpointError: a tensor is missing.
        ConfigError: the transformer is unknown.
    """
    if file.has(f"{prefix}vit_model."):
        return _read_vit(file, f"{prefix}vit_model.")
    if file.has(f"{prefix}tokenizer."):
        return _read_cct(file, prefix)
    if file.has(f"{prefix}model.patch_embed."):
        return _read_swin(file, f"{prefix}model.")
    return None


def _read_vit(file: ForeignTensors, prefix: str) -> tuple[dict[str, Any], dict[str, Tensor], int]:
    file.drop(f"{prefix}pooler.")  # not used by the benchmark
    positions = file.take(f"{prefix}embeddings.position_embeddings")
    state = {"cls_token": file.take(f"{prefix}embeddings.cls_token"), "pos_embed": positions}
    for part in ("weight", "bias"):
        state[f"patch_embed.proj.{part}"] = file.take(
            f"{prefix}embeddings.patch_embeddings.projection.{part}"
        )
        state[f"norm.{part}"] = file.take(f"{prefix}layernorm.{part}")
    depth = 0
    while file.has(layer := f"{prefix}encoder.layer.{depth}."):
        for part in ("weight", "bias"):
            packed = [file.take(f"{layer}attention.attention.{name}.{part}") for name in _QKV]
            state[f"blocks.{depth}.attn.qkv.{part}"] = torch.cat(packed)
            for theirs, ours in _VIT_BLOCK.items():
                state[f"blocks.{depth}.{ours}.{part}"] = file.take(f"{layer}{theirs}.{part}")
        depth += 1
    if positions.shape[-1] != 768 or not 1 <= depth <= _VIT_B_DEPTH:
        raise ConfigError(
            f"{file.origin} has a ViT of {depth} blocks {positions.shape[-1]} wide; known is ViT-B/16, of up to "
            f"{_VIT_B_DEPTH} blocks 768 wide"
        )
    tower = {"timm": "vit_base_patch16_224", "final_norm": True, "layer_norm_eps": 1e-12}
    return tower | _sized(file, positions.shape[1] - 1, depth, _VIT_B_DEPTH), state, _VIT_PATCH_PX


_QKV = ("query", "key", "value")


def _read_cct(file: ForeignTensors, prefix: str) -> tuple[dict[str, Any], dict[str, Tensor], int]:
    positions = file.take(f"{prefix}classifier.positional_emb")
    state = {"pos_embed": positions}
    for number in range(2):
        state[f"tokenizer.{number}.0.weight"] = file.take(f"{prefix}tokenizer.conv_layers.{number}.0.weight")
    for part in ("weight", "bias"):
        state[f"norm.{part}"] = file.take(f"{prefix}classifier.norm.{part}")
    depth = 0
    while file.has(block := f"{prefix}classifier.blocks.{depth}."):
        for theirs, ours in _CCT_BLOCK.items():
            for name, tensor in file.take_all(f"{block}{theirs}.").items():
                state[f"blocks.{depth}.{ours}.{name}"] = tensor
        depth += 1
    if positions.shape[-1] != 384 or not 1 <= depth <= _CCT_DEPTH:
        raise ConfigError(
            f"{file.origin} has a CCT of {depth} blocks {positions.shape[-1]} wide; known is CCT-14/7x2, of up to "
            f"{_CCT_DEPTH} blocks 384 wide"
        )
    tower = {"timm": "cct_14_7x2", "final_norm": True}
    return tower | _sized(file, positions.shape[1], depth, _CCT_DEPTH), state, _CCT_STRIDE_PX


def _sized(file: ForeignTensors, positions: int, depth: int, whole: int) -> dict[str, Any]:
    """Side of the images, and where the trunk was cropped."""
    side = isqrt(positions)
    if side * side != positions:
        raise ConfigError(f"{file.origin} has {positions} positions, which is no square map")
    return {"image_size_px": side * 16} | ({} if depth == whole else {"crop_blocks": depth})


def _read_swin(file: ForeignTensors, prefix: str) -> tuple[dict[str, Any], dict[str, Tensor], int]:
    file.drop(f"{prefix}head.")
    theirs = file.take_all(prefix)
    masks = [tensor for name, tensor in theirs.items() if name.endswith("attn_mask")]
    window = isqrt(masks[0].shape[-1]) if masks else 16  # newer files have none
    state = {}
    for name, tensor in theirs.items():
        if name.endswith(_COMPUTED):
            continue
        # timm now merges patches before a stage, and merged them after one in older versions.
        if match := re.fullmatch(r"layers\.(\d)\.downsample\.(.+)", name):
            name = f"layers.{int(match[1]) + (bool(masks))}.downsample.{match[2]}"
        state[name] = tensor
    stem = state.get("patch_embed.proj.weight")
    blocks = len({name.split(".")[3] for name in state if name.startswith("layers.2.blocks.")})
    known = None if stem is None else _SWINS.get((len(stem), blocks, window))
    if known is None:
        raise ConfigError(
            f"{file.origin} has a Swin V2 with {blocks} blocks in its third stage and windows of {window}, which is "
            f"none of {', '.join(_SWINS.values())}"
        )
    return {"timm": known, "image_size_px": _SWIN_PX}, state, _SWIN_STRIDE_PX


_COMPUTED = ("attn_mask", "relative_coords_table", "relative_position_index")
