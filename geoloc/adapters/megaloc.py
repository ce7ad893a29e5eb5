"""MegaLoc (Berton & Masone, 2025; MIT): DINOv2 and optimal transport, one vector for all kinds of retrieval."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from geoloc.adapters.adapted import Adapted, fill
from geoloc.adapters.options import Options
from geoloc.adapters.place_recognition import IMAGENET_MEAN, IMAGENET_STD
from geoloc.adapters.tensors import ForeignTensors
from geoloc.errors import ConfigError
from geoloc.images.preprocess import Preprocess
from geoloc.models.backbone import Backbone
from geoloc.models.config import AggregationConfig, BackboneConfig, EmbeddingHeadConfig, NetworkConfig
from geoloc.models.network import GeoNetwork

_PICTURES_PX, _PATCH_PX = 322, 14
_TRUNKS = {384: "vit_small_patch14_dinov2", 768: "vit_base_patch14_dinov2", 1024: "vit_large_patch14_dinov2"}
_HEAD = {
    "token.0": "token_features.0",
    "token.2": "token_features.2",
    "feature.0": "cluster_features.0",
    "feature.2": "cluster_features.3",
    "score.0": "score.0",
    "score.2": "score.3",
}


def is_megaloc(file: ForeignTensors) -> bool:
    """Whether the names are MegaLoc's."""
    return file.has("aggregator.agg.dust_bin") and file.has("backbone.patch_embed.")


def adapt_megaloc(file: ForeignTensors, options: Options) -> Adapted:
    """The model in its file of tensors.

    Args:
        file: its tensors.
        options: `image_size_px`, a multiple of 14.

    Raises:
        CheckpointError: a tensor is missing or left over.
        ConfigError: it has another trunk, or the size is no multiple of 14.
    """
    size = options.image_size_px or _PICTURES_PX
    if size % _PATCH_PX:
        raise ConfigError(f"image_size_px is {size}; DINOv2's patches need a multiple of {_PATCH_PX}")
    trunk = file.take_all("backbone.")
    positions = trunk.get("pos_embed", torch.zeros(1, 0, 0))
    name = _TRUNKS.get(positions.shape[-1])
    if name is None:
        raise ConfigError(
            f"{file.origin} has a trunk {positions.shape[-1]} wide, which is none of {list(_TRUNKS)}"
        )
    trunk["pos_embed"] = resampled_positions(positions, size // _PATCH_PX)
    state = {f"backbone.tower.trunk.{n}": tensor for n, tensor in trunk.items()}
    pool = "embeddings.query.pool."
    for ours, theirs in _HEAD.items():
        for part in ("weight", "bias"):
            state[f"{pool}{ours}.{part}"] = file.take(f"aggregator.agg.{theirs}.{part}")
    state[f"{pool}dustbin"] = file.take("aggregator.agg.dust_bin")
    for part in ("weight", "bias"):
        state[f"embeddings.query.fc.{part}"] = file.take(f"aggregator.linear.{part}")
    file.finish()
    dim = len(state["embeddings.query.fc.bias"])
    aggregation = AggregationConfig(
        "optimal_transport",
        clusters=len(state[f"{pool}score.2.bias"]),
        out_channels=len(state[f"{pool}feature.2.bias"]),
        token_dim=len(state[f"{pool}token.2.bias"]),
        hidden_dim=len(state[f"{pool}token.0.bias"]),
        fc_dim=dim,
    )
    backbone = BackboneConfig(timm=name, features="map", image_size_px=size, final_norm=True)
    head = EmbeddingHeadConfig(dim, aggregation=aggregation)
    config = NetworkConfig(backbone=backbone, embeddings={"query": head}, street_as_query=True)
    network = fill(GeoNetwork(config, Backbone(backbone, load_pretrained=False)), state, file.origin)
    preprocess = Preprocess(
        image_size_px=size, resize="squash", interpolation="bilinear", mean=IMAGENET_MEAN, std=IMAGENET_STD
    )
    return Adapted(network, preprocess)


def resampled_positions(positions: Tensor, side: int) -> Tensor:
    """DINOv2's position embeddings for another grid, (1, 1 + N², D) -> (1, 1 + side², D).

    Bicubic, by DINOv2's own factor (side + 0.1) / N, which places the samples a little otherwise than the two sizes do.
    """
    before = round((positions.shape[1] - 1) ** 0.5)
    if side == before:
        return positions
    grid = positions[:, 1:].transpose(1, 2).unflatten(-1, (before, before))
    factor = (side + 0.1) / before
    grid = functional.interpolate(grid, scale_factor=(factor, factor), mode="bicubic")
    return torch.cat([positions[:, :1], grid.flatten(2).transpose(1, 2)], 1)
