"""OSV-5M (Astruc et al., CVPR 2024; MIT): `osv5m/baseline` on the Hub, and checkpoints of its training.

What tower and which head a checkpoint has is read off its tensors, never off a class path.

Where an offset leads over the antimeridian, ours goes on from -180; OSV-5M stops at 180.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from geoloc.adapters.adapted import Adapted, fill
from geoloc.adapters.osv5m_heads import Classes, read_heads
from geoloc.adapters.osv5m_towers import read_tower
from geoloc.adapters.tensors import ForeignTensors
from geoloc.errors import ConfigError
from geoloc.images.preprocess import Preprocess
from geoloc.models.backbone import Backbone
from geoloc.models.config import NetworkConfig
from geoloc.models.network import GeoNetwork
from quadtree import Quadtree

LORA_ALPHA = 256.0  # of its only experiment with LoRA, with rank 32
TANH_SCALE = 1.2  # in all of its experiments with offsets


def adapt_hub(folder: Path, quadtree: Quadtree) -> Adapted:
    """The model of a folder in the Hub's format: config.json with `model` and `transform`, and model.safetensors.

    Args:
        folder: the downloaded folder.
        quadtree: OSV-5M's table of cells, read by `Quadtree.read_osv5m_csv`.

    Raises:
        ConfigError: config.json has another format.
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
        scale = float(head.get("scale_tanh", TANH_SCALE))
        if not head.get("use_tanh", True):
            raise ConfigError(f"{path} has a head without tanh, which is not supported")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(
            f"{path} is not a config.json in OSV-5M's format (keys 'model' and 'transform'): {error!r}"
        ) from error
    file = ForeignTensors.read(folder / "model.safetensors")
    return _adapt(file, tower, folder, Classes(quadtree), scale, preprocess)


def is_training_checkpoint(file: ForeignTensors) -> bool:
    """Whether the tensor names are those of OSV-5M's trainer."""
    return file.has("model.backbone.") and file.has("model.mid.")


def adapt_training_checkpoint(
    file: ForeignTensors,
    tower: str | Path | None = None,
    classes: Classes | None = None,
    lora_alpha: float | None = None,
) -> Adapted:
    """The model of a checkpoint of OSV-5M's trainer (`last.ckpt`).

    Args:
        file: tensors of the file.
        tower: for CLIP, its name on the Hub, or a folder with transformers' config.json of it.
        classes: classes of a classifier.
        lora_alpha: alpha of LoRA, which a checkpoint does not contain; None is that of its experiment.

    Raises:
        ConfigError: the tower is unknown or not given, or the classes of a classifier were not given.
        CheckpointError: a tensor is missing or left over.
        FingerprintMismatchError: the classes are others.
    """
    file.drop("text_model.")  # used in training with sentences only
    alpha = LORA_ALPHA if lora_alpha is None else lora_alpha
    return _adapt(file, tower, None, classes or Classes(), TANH_SCALE, None, alpha)


_INTERPOLATIONS: Mapping[Any, Any] = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers


def _adapt(
    file: ForeignTensors,
    tower_name: str | Path | None,
    folder: Path | None,
    classes: Classes,
    tanh_scale: float,
    preprocess: Preprocess | None,
    lora_alpha: float = LORA_ALPHA,
) -> Adapted:
    file.remove_prefix("model.")
    _merge_lora(file, lora_alpha)
    tower = read_tower(file, tower_name, folder)
    file.drop("mid.mlp_aux.")  # auxiliary targets: land cover, climate, …
    heads = read_heads(file, classes, tanh_scale)
    file.finish()
    backbone = Backbone(tower.config, load_pretrained=False)
    tree = heads.quadtree
    cells = (None, None) if tree is None else (tree.bounds_deg, tree.center_latlon_deg)
    network = GeoNetwork(NetworkConfig(backbone=tower.config, **heads.configs), backbone, *cells)
    fill(network, tower.state | heads.state, file.origin)
    return Adapted(network, preprocess or tower.preprocess, tree)


def _merge_lora(file: ForeignTensors, alpha: float) -> None:
    """Merge LoRA updates, which PEFT keeps beside the attentions' projections: W + alpha / r B A (Hu et al., 2022)."""
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
