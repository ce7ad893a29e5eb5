"""OSV-5M (Astruc et al., CVPR 2024; MIT): `osv5m/baseline` on the Hub, and checkpoints of its training.

Which head a checkpoint has is read off its tensors and their shapes, never off a class path: `cell_center` among them
means offsets from the middle of a box; 2 outputs are tanh coordinates and 4 are angles. A checkpoint with one MLP for
logits and offsets becomes two with the same hidden layers.

Where an offset leads over the antimeridian, ours goes on from -180; OSV-5M stops at 180.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from geoloc.adapters.adapted import Adapted, fill
from geoloc.adapters.clip_vision import (
    CLIP_MEAN,
    CLIP_STD,
    KNOWN,
    ClipVision,
    find_clip_vision,
    read_clip_vision,
)
from geoloc.adapters.tensors import ForeignTensors
from geoloc.errors import CheckpointError, ConfigError, FingerprintMismatchError
from geoloc.images.preprocess import Preprocess
from geoloc.models.backbone import Backbone
from geoloc.models.config import CellHeadConfig, NetworkConfig, OffsetHeadConfig, RegressionHeadConfig
from geoloc.models.network import GeoNetwork
from quadtree import Quadtree

LORA_ALPHA = 256.0  # of its only experiment with LoRA, whose rank is 32


def adapt_hub(folder: Path, quadtree: Quadtree) -> Adapted:
    """The model in a folder of the Hub's format: config.json with `model` and `transform`, and model.safetensors.

    Args:
        folder: as it was fetched.
        quadtree: read from OSV-5M's cell table, `Quadtree.read_osv5m_csv`.

    Raises:
        ConfigError: config.json is of another format.
        CheckpointError: a tensor is missing or left over.
        FingerprintMismatchError: the quadtree has another number of cells.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        model, steps = config["model"], config["transform"]["transforms"]
        tower, head = str(model["backbone"]["instance"]["path"]), model["head"]["instance"]
        by_keys = {key: step for step in steps for key in ("interpolation", "mean") if key in step}
        preprocess = Preprocess(
            image_size_px=by_keys["interpolation"]["size"],
            interpolation=_INTERPOLATIONS[by_keys["interpolation"]["interpolation"]],
            mean=by_keys["mean"]["mean"],
            std=by_keys["mean"]["std"],
        )
        scale = float(head.get("scale_tanh", 1.2))
        if not head.get("use_tanh", True):
            raise ConfigError(f"{path} has a head without tanh, which OSV-5M has published none with")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(
            f"{path} is no config.json of OSV-5M's format (keys 'model' and 'transform'): {error!r}"
        ) from error
    file = ForeignTensors.read(folder / "model.safetensors")
    return _adapt(file, find_clip_vision(tower, folder), quadtree, scale, preprocess)


def is_training_checkpoint(file: ForeignTensors) -> bool:
    """Whether the names are those that OSV-5M's trainer writes."""
    return file.has("model.backbone.") and file.has("model.mid.")


def adapt_training_checkpoint(
    file: ForeignTensors,
    tower: str | Path | None,
    quadtree: Quadtree | None = None,
    lora_alpha: float | None = None,
) -> Adapted:
    """The model in a checkpoint that OSV-5M's trainer wrote (`last.ckpt`).

    Args:
        file: its tensors.
        tower: the image tower's name on the Hub, or a folder with transformers' config.json of it.
        quadtree: for a model with cells.
        lora_alpha: that LoRA was trained with, which a checkpoint does not hold; None is its experiment's.

    Raises:
        ConfigError: the tower is unknown or not given, or the model has cells and no quadtree was given.
        CheckpointError: a tensor is missing or left over.
        FingerprintMismatchError: the quadtree is another one.
    """
    if tower is None:
        raise ConfigError(
            f"{file.origin} does not tell which image tower it was trained with, and QuickGELU or GELU is not in its "
            f"tensors: give tower= one of {', '.join(KNOWN)}, or a folder with transformers' config.json of it"
        )
    return _adapt(
        file,
        find_clip_vision(str(tower)),
        quadtree,
        1.2,
        None,
        LORA_ALPHA if lora_alpha is None else lora_alpha,
    )


_INTERPOLATIONS: Mapping[Any, Any] = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers


def _adapt(
    file: ForeignTensors,
    known: ClipVision,
    quadtree: Quadtree | None,
    scale: float,
    preprocess: Preprocess | None,
    lora_alpha: float = LORA_ALPHA,
) -> Adapted:
    file.remove_prefix("model.")
    _merge_lora(file, lora_alpha)
    for other, what in (("backbone.resnet.", "transformers' ResNet-50"), ("backbone.dino.", "DINOv2")):
        if file.has(other):
            raise ConfigError(
                f"{file.origin} has {what} as its image tower, which geoloc does not read from OSV-5M yet"
            )
    prefix = "backbone.clip."
    if file.has(f"{prefix}text_model."):  # StreetCLIP's image embedding
        file.drop(f"{prefix}text_model.", f"{prefix}text_projection.", f"{prefix}logit_scale")
        backbone, state = read_clip_vision(file, f"{prefix}vision_model.", known, "projected")
    else:
        file.remove_prefix("backbone.clip.vision_model.")
        if not file.has("embeddings."):
            file.remove_prefix(prefix)
        backbone, state = read_clip_vision(file, "", known, "cls_before_norm")
    state = {f"backbone.{name}": tensor for name, tensor in state.items()}
    file.drop("mid.mlp_aux.")  # land cover, climate, …: not where
    heads, of_heads = _read_heads(file, quadtree, scale)
    config = NetworkConfig(backbone=backbone, **heads)
    file.finish()
    cells = (None, None)
    if config.cells is not None and quadtree is not None:
        cells = (quadtree.bounds_deg, quadtree.center_latlon_deg)  # type: ignore[assignment]
    tower = Backbone(backbone, load_pretrained=False)
    network = GeoNetwork(config, tower, *cells)
    fill(network, state | of_heads, file.origin)
    size = tower.preprocess_defaults.size_px
    default = Preprocess(image_size_px=size, mean=CLIP_MEAN, std=CLIP_STD)
    return Adapted(network, preprocess or default, quadtree if config.cells is not None else None)


def _merge_lora(file: ForeignTensors, alpha: float) -> None:
    """Add what PEFT keeps beside the attentions' projections: W + alpha / r B A (Hu et al., 2022)."""
    prefix = "backbone.base_model.model."
    if not file.has(prefix):
        return
    for name in file.names:
        if name.endswith(".lora_A.default.weight"):
            layer = name.removesuffix(".lora_A.default.weight")
            down, up = file.take(name), file.take(f"{layer}.lora_B.default.weight")
            weight = file.take(f"{layer}.base_layer.weight")
            merged = weight.double() + alpha / len(down) * up.double() @ down.double()
            file.put(f"{layer}.weight", merged.to(weight.dtype))
            if file.has(f"{layer}.base_layer.bias"):
                file.put(f"{layer}.bias", file.take(f"{layer}.base_layer.bias"))
    rest = {f"backbone.{name}": tensor for name, tensor in file.take_all(prefix).items()}
    for name, tensor in rest.items():
        file.put(name, tensor)


def _read_heads(
    file: ForeignTensors, quadtree: Quadtree | None, scale: float
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Fields of a NetworkConfig, and the heads' state."""
    if file.has("mid.classif."):
        logits, offsets = _read_mlp(file, "mid.classif."), _read_mlp(file, "mid.reg.")
    else:
        whole = _read_mlp(file, "mid.mlp.")
        last = max(int(name.split(".")[0]) for name in whole)
        num_outputs = len(whole[f"{last}.bias"])
        if num_outputs in (2, 4):
            has_norms = "2.weight" in whole
            config = RegressionHeadConfig(
                _hidden(whole),
                "tanh" if num_outputs == 2 else "squared_angles",
                "group_norm" if has_norms else "gelu",
            )
            if not has_norms:  # an Identity stands where a group norm would
                whole = {
                    _NUMBERS_WITHOUT_NORMS.get(n.split(".")[0], "?") + n[n.index(".") :]: t
                    for n, t in whole.items()
                }
            return {"regression": config}, {f"regression.mlp.{name}": t for name, t in whole.items()}
        num_cells = _checked(file, quadtree, num_outputs).num_cells
        logits, offsets = (
            whole | {f"{last}.{part}": whole[f"{last}.{part}"][rows] for part in ("weight", "bias")}
            for rows in (slice(num_cells), slice(num_cells, None))
        )
    last = max(int(name.split(".")[0]) for name in logits)
    tree = _checked(file, quadtree, len(logits[f"{last}.bias"]))
    is_box = file.has("head.cell_center")
    if is_box:
        bounds = tree.bounds_deg / np.array([90.0, 180.0, 90.0, 180.0])
        for name, own in (
            ("center", (bounds[:, :2] + bounds[:, 2:]) / 2),
            ("size", bounds[:, 2:] - bounds[:, :2]),
        ):
            if not torch.allclose(
                file.take(f"head.cell_{name}").double(), torch.from_numpy(own), rtol=0, atol=1e-9
            ):
                raise FingerprintMismatchError(
                    f"the boxes in {file.origin} are not those of the given quadtree: give the table that it was "
                    "trained with"
                )
    num_offsets = len(offsets[f"{last}.bias"])
    shared = num_offsets == 2
    heads: dict[str, Any] = {"cells": CellHeadConfig(_hidden(logits))}
    state = {f"cells.{name}": t for name, t in logits.items()}
    if num_offsets:
        heads["offsets"] = OffsetHeadConfig(
            _hidden(offsets), "box" if is_box else "representative", shared, scale
        )
        state |= {f"offsets.mlp.{name}": t for name, t in offsets.items()}
    return heads, state


_NUMBERS_WITHOUT_NORMS = {"0": "0", "1": "1", "4": "3", "7": "5"}


def _checked(file: ForeignTensors, quadtree: Quadtree | None, num_outputs: int) -> Quadtree:
    if quadtree is None:
        raise ConfigError(f"{file.origin} classifies cells: give quadtree= OSV-5M's table of them, a .csv")
    if num_outputs not in (n := quadtree.num_cells, n + 2, 3 * n):
        raise FingerprintMismatchError(
            f"{file.origin} has {num_outputs} outputs, which do not go with the {n} cells of the given quadtree"
        )
    return quadtree


def _read_mlp(file: ForeignTensors, prefix: str) -> dict[str, Tensor]:
    found = {}
    for number in range(32):
        if file.has(f"{prefix}{number}."):
            for part in ("weight", "bias"):
                found[f"{number}.{part}"] = file.take(f"{prefix}{number}.{part}")
    if not found:
        raise CheckpointError(
            f"{file.origin} has no tensors {prefix}…: it is no OSV-5M checkpoint that we know"
        )
    return found


def _hidden(mlp: Mapping[str, Tensor]) -> tuple[int, ...]:
    linear = [len(tensor) for name, tensor in mlp.items() if name.endswith("weight") and tensor.ndim == 2]
    return tuple(linear[:-1])
