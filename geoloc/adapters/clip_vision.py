"""CLIP's image tower with transformers' tensor names, as open_clip's tower.

transformers keeps query, key and value apart, and applies the last layer norm to the class token only for the pooled
output; open_clip packs the three. OpenAI's weights (and MetaCLIP's) were trained with QuickGELU, LAION's with GELU:
the tensors do not tell, transformers' config.json does (`hidden_act`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from geoloc.adapters.tensors import ForeignTensors
from geoloc.errors import ConfigError
from geoloc.images.preprocess import Preprocess
from geoloc.models.config import BackboneConfig

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def clip_pictures(image_size_px: int) -> Preprocess:
    """Preprocessing of transformers' CLIPProcessor: bicubic shorter side, centre crop, CLIP's mean and std."""
    return Preprocess(image_size_px=image_size_px, mean=CLIP_MEAN, std=CLIP_STD, floors_centre=True)


@dataclass(frozen=True)
class ClipVision:
    """Facts about a tower that its tensor shapes do not show."""

    num_heads: int
    quick_gelu: bool


# From transformers' config.json in these repositories of the Hub.
KNOWN = {
    "openai/clip-vit-base-patch32": ClipVision(12, True),
    "openai/clip-vit-large-patch14": ClipVision(16, True),
    "laion/CLIP-ViT-B-32-laion2B-s34B-b79K": ClipVision(12, False),
    "laion/CLIP-ViT-L-14-laion2B-s32B-b82K": ClipVision(16, False),
    "laion/CLIP-ViT-L-14-DataComp.XL-s13B-b90K": ClipVision(16, False),
    "laion/CLIP-ViT-H-14-laion2B-s32B-b79K": ClipVision(16, False),
    "laion/CLIP-ViT-g-14-laion2B-s12B-b42K": ClipVision(16, False),
    "laion/CLIP-ViT-bigG-14-laion2B-39B-b160k": ClipVision(16, False),
    "facebook/metaclip-l14-fullcc2.5b": ClipVision(16, True),
    "geolocal/StreetCLIP": ClipVision(16, True),
}


def find_clip_vision(name: str, folder: Path | None = None) -> ClipVision:
    """Facts about a tower, by its name on the Hub or from a folder with transformers' config.json.

    Raises:
        ConfigError: the name is unknown and there is no such folder, or its config.json describes no CLIP model.
    """
    if name in KNOWN:
        return KNOWN[name]
    path = (Path(name) if folder is None else folder / name) / "config.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"the tower {name!r} is none of {', '.join(KNOWN)}, and {path} is no JSON file ({error}): give tower= a "
            "folder with transformers' config.json of it"
        ) from error
    config: Mapping[str, Any] = found.get("vision_config", found)
    activation, heads = config.get("hidden_act", "quick_gelu"), config.get("num_attention_heads", 12)
    if activation not in ("gelu", "quick_gelu") or not isinstance(heads, int) or heads < 1:
        raise ConfigError(
            f"{path} has hidden_act {activation!r} and {heads!r} heads; CLIP has gelu or quick_gelu"
        )
    return ClipVision(heads, activation == "quick_gelu")


def read_clip_vision(
    file: ForeignTensors, prefix: str, known: ClipVision, features: Literal["projected", "cls_before_norm"]
) -> tuple[BackboneConfig, dict[str, Tensor]]:
    """Take a tower's tensors: its config, and its state with `Backbone`'s names (`tower.…`).

    Args:
        file: tensors with transformers' names.
        prefix: prefix of `embeddings.…`, such as "backbone.clip.vision_model.".
        known: facts that the shapes do not show.
        features: "projected" needs `visual_projection` one level above the prefix's last part.

    Raises:
        CheckpointError: a tensor is missing.
        ConfigError: the shapes fit no such tower.
    """
    width, _, patch_px, _ = file.shape(f"{prefix}embeddings.patch_embedding.weight")
    side = round((file.shape(f"{prefix}embeddings.position_embedding.weight")[0] - 1) ** 0.5)
    layers = 0
    while file.has(f"{prefix}encoder.layers.{layers}."):
        layers += 1
    if width % known.num_heads or not layers:
        raise ConfigError(
            f"{file.origin} has a tower {width} wide with {layers} layers, which is none of {known.num_heads} heads"
        )
    hidden = file.shape(f"{prefix}encoder.layers.0.mlp.fc1.weight")[0]
    names = {
        "conv1.weight": "embeddings.patch_embedding.weight",
        "class_embedding": "embeddings.class_embedding",
        "positional_embedding": "embeddings.position_embedding.weight",
        "ln_pre.weight": "pre_layrnorm.weight",
        "ln_pre.bias": "pre_layrnorm.bias",
    }
    if features == "projected":
        names |= {f"ln_post.{part}": f"post_layernorm.{part}" for part in ("weight", "bias")}
    else:
        file.drop(f"{prefix}post_layernorm.")  # not used by the features
    file.drop(f"{prefix}embeddings.position_ids")  # in older versions of transformers: the numbers from 0
    state = {new: file.take(prefix + old) for new, old in names.items()}
    for layer in range(layers):
        block, old = f"transformer.resblocks.{layer}.", f"{prefix}encoder.layers.{layer}."
        for part in ("weight", "bias"):
            qkv = [file.take(f"{old}self_attn.{of}_proj.{part}") for of in "qkv"]
            state[f"{block}attn.in_proj_{part}"] = torch.cat(qkv)
            for new_name, old_name in BLOCK.items():
                state[f"{block}{new_name}.{part}"] = file.take(f"{old}{old_name}.{part}")
    embed_dim = width
    if features == "projected":
        above = prefix.removesuffix("vision_model.")
        projection = file.take(f"{above}visual_projection.weight")
        embed_dim, state["proj"] = len(projection), projection.T.contiguous()
    vision = {
        "image_size": side * patch_px,
        "layers": layers,
        "width": width,
        "head_width": width // known.num_heads,
        "patch_size": patch_px,
        "mlp_ratio": hidden / width,
    }
    custom = {"embed_dim": embed_dim, "vision_cfg": vision, "quick_gelu": known.quick_gelu}
    return BackboneConfig(custom=custom, features=features), {f"tower.{k}": t for k, t in state.items()}


BLOCK = {
    "attn.out_proj": "self_attn.out_proj",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
