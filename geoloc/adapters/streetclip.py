"""StreetCLIP (Haas et al., 2023; CC-BY-NC 4.0) and other CLIP models in transformers' format.

config.json has `model_type` "clip" and the heads and activations of both towers, model.safetensors the tensors.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from geoloc.adapters.adapted import Adapted, fill
from geoloc.adapters.clip_vision import BLOCK, clip_pictures, find_clip_vision, read_clip_vision
from geoloc.adapters.options import Options
from geoloc.adapters.tensors import ForeignTensors
from geoloc.errors import CheckpointError, ConfigError
from geoloc.models.backbone import Backbone
from geoloc.models.config import EmbeddingHeadConfig, NetworkConfig
from geoloc.models.network import GeoNetwork
from geoloc.models.text_tower import TextTower, TextTowerConfig

MODEL_TYPE = "clip"


@dataclass(frozen=True)
class Texts:
    """Text side of a CLIP model.

    Attributes:
        tower: sentences to vectors, not normalised.
        logit_scale: factor from a cosine to a logit.
    """

    tower: TextTower
    logit_scale: float


def adapt_images(folder: Path, options: Options) -> Adapted:
    """The image side as an embedding, without the text side.

    Raises:
        CheckpointError: a tensor is missing or left over.
        ConfigError: config.json describes no CLIP model.
    """
    return adapt_both(folder, options)[0]


def adapt_both(folder: Path, options: Options) -> tuple[Adapted, Texts]:
    """Image and text side; raises as `adapt_images`."""
    file = ForeignTensors.read(folder / "model.safetensors")
    backbone, state = read_clip_vision(file, "vision_model.", find_clip_vision(str(folder)), "projected")
    assert backbone.custom is not None
    texts = _read_texts(file, json.loads((folder / "config.json").read_text(encoding="utf-8")))
    file.finish()
    head = EmbeddingHeadConfig(int(backbone.custom["embed_dim"]), layers="identity")
    config = NetworkConfig(backbone=backbone, embeddings={"query": head}, street_as_query=True)
    network = GeoNetwork(config, Backbone(backbone, load_pretrained=False))
    fill(network, {f"backbone.{name}": tensor for name, tensor in state.items()}, file.origin)
    size = int(backbone.custom["vision_cfg"]["image_size"])
    return Adapted(network, clip_pictures(size)), texts


def _read_texts(file: ForeignTensors, config: dict[str, Any]) -> Texts:
    described = config.get("text_config") or {}
    heads, activation = described.get("num_attention_heads", 8), described.get("hidden_act", "quick_gelu")
    prefix = "text_model."
    vocabulary, width = file.shape(f"{prefix}embeddings.token_embedding.weight")
    hidden = file.shape(f"{prefix}encoder.layers.0.mlp.fc1.weight")[0]
    if activation not in ("gelu", "quick_gelu") or width % heads:
        raise ConfigError(f"{file.origin} has an unsupported text tower ({activation}, {heads} heads)")
    state = {
        "token_embedding.weight": file.take(f"{prefix}embeddings.token_embedding.weight"),
        "positional_embedding": file.take(f"{prefix}embeddings.position_embedding.weight"),
        "ln_final.weight": file.take(f"{prefix}final_layer_norm.weight"),
        "ln_final.bias": file.take(f"{prefix}final_layer_norm.bias"),
        "text_projection": file.take("text_projection.weight").T.contiguous(),
    }
    file.drop(f"{prefix}embeddings.position_ids")
    layers = 0
    while file.has(f"{prefix}encoder.layers.{layers}."):
        old, new = f"{prefix}encoder.layers.{layers}.", f"transformer.resblocks.{layers}."
        for part in ("weight", "bias"):
            qkv = [file.take(f"{old}self_attn.{of}_proj.{part}") for of in "qkv"]
            state[f"{new}attn.in_proj_{part}"] = torch.cat(qkv)
            state |= {
                f"{new}{ours}.{part}": file.take(f"{old}{theirs}.{part}") for ours, theirs in BLOCK.items()
            }
        layers += 1
    text_cfg = {
        "context_length": len(state["positional_embedding"]),
        "vocab_size": vocabulary,
        "width": width,
        "heads": heads,
        "layers": layers,
        "mlp_ratio": hidden / width,
    }
    custom = {
        "embed_dim": state["text_projection"].shape[1],
        "text_cfg": text_cfg,
        "quick_gelu": activation == "quick_gelu",
    }
    tower = TextTower(TextTowerConfig(custom=custom))
    try:
        tower.load_state_dict({f"tower.{name}": tensor for name, tensor in state.items()})
    except RuntimeError as error:
        raise CheckpointError(f"{file.origin} does not fit its described text tower: {error}") from error
    return Texts(tower.eval().requires_grad_(False), float(file.take("logit_scale").exp()))
