"""MegaLoc (Berton & Masone, 2025; MIT): DINOv2 and optimal transport, one vector for all kinds of retrieval."""

from __future__ import annotations

from geoloc.adapters.adapted import Adapted, fill
from geoloc.adapters.dinov2 import read_dinov2
from geoloc.adapters.options import Options
from geoloc.adapters.place_recognition import IMAGENET_MEAN, IMAGENET_STD
from geoloc.adapters.tensors import ForeignTensors
from geoloc.images.preprocess import Preprocess
from geoloc.models.backbone import Backbone
from geoloc.models.config import AggregationConfig, BackboneConfig, EmbeddingHeadConfig, NetworkConfig
from geoloc.models.network import GeoNetwork

_PICTURES_PX = 322
_HEAD = {
    "token.0": "token_features.0",
    "token.2": "token_features.2",
    "feature.0": "cluster_features.0",
    "feature.2": "cluster_features.3",
    "score.0": "score.0",
    "score.2": "score.3",
}


def is_megaloc(file: ForeignTensors) -> bool:
    """Whether the tensor names are MegaLoc's."""
    return file.has("aggregator.agg.dust_bin") and file.has("backbone.patch_embed.")


def adapt_megaloc(file: ForeignTensors, options: Options) -> Adapted:
    """The model of a file of tensors.

    Args:
        file: tensors of the file.
        options: `image_size_px`, a multiple of 14.

    Raises:
        CheckpointError: a tensor is missing or left over.
        ConfigError: it has another trunk, or the size is not a multiple of 14.
    """
    size = options.square_px or _PICTURES_PX
    trunk, of_trunk = read_dinov2(file, "backbone.", size)
    state = {f"backbone.tower.trunk.{n}": tensor for n, tensor in of_trunk.items()}
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
    backbone = BackboneConfig(**trunk, features="map", final_norm=True)
    head = EmbeddingHeadConfig(dim, aggregation=aggregation)
    config = NetworkConfig(backbone=backbone, embeddings={"query": head}, street_as_query=True)
    network = fill(GeoNetwork(config, Backbone(backbone, load_pretrained=False)), state, file.origin)
    preprocess = Preprocess(
        image_size_px=size, resize="squash", interpolation="bilinear", mean=IMAGENET_MEAN, std=IMAGENET_STD
    )
    return Adapted(network, preprocess)
