"""DINOv2 (Oquab et al., 2023; with registers: Darcet et al., 2024) from its authors' or timm's files.

A file has position embeddings for pictures of 518 px. For other sizes they are resampled as DINOv2 itself does it when
it runs, which differs between towers without and with registers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from geoloc.adapters.tensors import ForeignTensors
from geoloc.errors import ConfigError

PATCH_PX = 14

_SIZES = {384: "small", 768: "base", 1024: "large", 1536: "giant"}
_RENAMED = {"mlp.w12": "mlp.fc1", "mlp.w3": "mlp.fc2", "register_tokens": "reg_token"}


def read_dinov2(
    file: ForeignTensors, prefix: str, image_size_px: int
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Take the tensors of a tower.

    Args:
        file: tensors of the file.
        prefix: prefix of `pos_embed`.
        image_size_px: side of the images, a multiple of 14.

    Returns:
        Fields of a BackboneConfig, and the state with timm's names.

    Raises:
        ConfigError: the size is not a multiple of 14, or the tower is none of the four sizes.
        CheckpointError: a tensor is missing.
    """
    if image_size_px < PATCH_PX or image_size_px % PATCH_PX:
        raise ConfigError(f"image_size_px is {image_size_px}; DINOv2's patches need a multiple of {PATCH_PX}")
    positions = file.take(f"{prefix}pos_embed")
    size = _SIZES.get(positions.shape[-1])
    if size is None or positions.ndim != 3:
        raise ConfigError(
            f"{file.origin} has a trunk of width {positions.shape[-1]}; DINOv2's are {', '.join(map(str, _SIZES))}"
        )
    is_timm = file.has(f"{prefix}reg_token")
    file.drop(f"{prefix}mask_token")  # used in its training only
    state = {_timm_name(name): tensor for name, tensor in file.take_all(prefix).items()}
    with_registers = "reg_token" in state
    if with_registers and is_timm:  # timm adds the class token's position to the token
        positions = torch.cat([torch.zeros_like(positions[:, :1]), positions], 1)
    resampled = resampled_positions(positions, image_size_px // PATCH_PX, with_registers=with_registers)
    if with_registers:
        state["cls_token"] = state["cls_token"] + resampled[:, :1]
        resampled = resampled[:, 1:]
    state["pos_embed"] = resampled
    name = f"vit_{size}_patch{PATCH_PX}_{'reg4_' if with_registers else ''}dinov2"
    return {"timm": name, "image_size_px": image_size_px}, state


def _timm_name(name: str) -> str:
    for theirs, ours in _RENAMED.items():
        name = name.replace(theirs, ours)
    return name


def resampled_positions(positions: Tensor, side: int, *, with_registers: bool = False) -> Tensor:
    """Position embeddings for another grid, (1, 1 + N², D) -> (1, 1 + side², D).

    Bicubic. Without registers by DINOv2's own factor (side + 0.1) / N, which places the samples a little otherwise than
    the two sizes do; with registers by the two sizes, and antialiased.
    """
    before = round((positions.shape[1] - 1) ** 0.5)
    if side == before:
        return positions
    grid = positions[:, 1:].transpose(1, 2).unflatten(-1, (before, before))
    if with_registers:
        grid = functional.interpolate(grid, size=(side, side), mode="bicubic", antialias=True)
    else:
        factor = (side + 0.1) / before
        grid = functional.interpolate(grid, scale_factor=(factor, factor), mode="bicubic")
    return torch.cat([positions[:, :1], grid.flatten(2).transpose(1, 2)], 1)
