"""GeoCLIP (Vivanco Cepeda et al., NeurIPS 2023; MIT): similarity of a photo to the vectors of 100,000 locations.

Two forms: the package `geoclip` (weights/*.pth and gps_gallery/), and its release on the Hub (config.json with
`model_type` "geoclip-geolocation"). Neither holds the image tower, OpenAI's CLIP ViT-L/14, which comes from the Hub or
from a folder.

A place's vector: latitude and longitude in the Equal Earth projection (Šavrič et al., 2018), scaled; random Fourier
features cos(2π B v), sin(2π B v) at three scales; a perceptron for each of them; summed (GeoCLIP, section 3.2).
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from geoloc.adapters.adapted import Adapted, Gallery, digest_of, fill
from geoloc.adapters.clip_vision import clip_pictures, find_clip_vision, read_clip_vision
from geoloc.adapters.options import Options
from geoloc.adapters.registry import CLIP_L14, CLIP_TOWER_FILES
from geoloc.adapters.tensors import ForeignTensors
from geoloc.errors import CheckpointError, ConfigError
from geoloc.hub.foreign import foreign
from geoloc.models.backbone import Backbone
from geoloc.models.config import EmbeddingHeadConfig, NetworkConfig
from geoloc.models.network import GeoNetwork

MODEL_TYPE = "geoclip-geolocation"

_EQUAL_EARTH = (1.340264, -0.081106, 0.000893, 0.003796)
_SCALE = 66.50336  # scale of the projected coordinates, per half turn


def adapt_release(folder: Path, options: Options) -> Adapted:
    """The model of a folder in the Hub's format.

    Raises:
        ConfigError: config.json has another version, or names a gallery elsewhere.
        CheckpointError: a tensor is missing or left over.
        NotFoundError: the image tower cannot be downloaded.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    gallery, backbone = str(config.get("gallery_file")), config.get("backbone")
    if config.get("format_version") != 1 or Path(gallery).name != gallery or not isinstance(backbone, dict):
        raise ConfigError(
            f"{folder / 'config.json'} is no GeoCLIP release of format_version 1 with a gallery_file beside it"
        )
    file = ForeignTensors.read(folder / "model.safetensors")
    tower = options.tower or _fetched(str(backbone.get("repo_id")), backbone.get("revision"))
    return _adapt(file, folder / gallery, Path(tower))


def adapt_package(folder: Path, options: Options) -> Adapted:
    """The model of the folder `model` of the package `geoclip`.

    Raises:
        CheckpointError: a file is missing or broken, or a tensor is missing or left over.
        NotFoundError: the image tower cannot be downloaded.
    """
    parts = folder / "weights"
    mlp = ForeignTensors.read(parts / "image_encoder_mlp_weights.pth").take_all("")
    places = ForeignTensors.read(parts / "location_encoder_weights.pth").take_all("")
    tensors = {f"image_encoder.mlp.{name}": t for name, t in mlp.items()}
    tensors |= {f"location_encoder.{name}": t for name, t in places.items()}
    tensors["logit_scale"] = ForeignTensors.read_one(parts / "logit_scale_weights.pth")
    tower = options.tower or _fetched(CLIP_L14, None)
    file = ForeignTensors(tensors, str(parts))
    return _adapt(file, folder / "gps_gallery" / "coordinates_100K.csv", Path(tower))


def _fetched(repo_id: str, revision: str | None) -> Path:
    return foreign(repo_id, CLIP_TOWER_FILES, revision=revision)


def _adapt(file: ForeignTensors, gallery: Path, tower: Path) -> Adapted:
    clip = ForeignTensors.read(tower / "model.safetensors")
    clip.drop("text_model.", "text_projection.", "logit_scale")
    backbone, state = read_clip_vision(clip, "vision_model.", find_clip_vision(str(tower)), "projected")
    clip.finish()
    of_network = {f"backbone.{name}": tensor for name, tensor in state.items()}
    for layer in (0, 2):
        for part in ("weight", "bias"):
            name = f"{layer}.{part}"
            of_network[f"embeddings.query.mlp.{name}"] = file.take(f"image_encoder.mlp.{name}")
    hidden, dim = (len(of_network[f"embeddings.query.mlp.{layer}.bias"]) for layer in (0, 2))
    logit_scale = float(file.take("logit_scale").exp())
    encoder = file.take_all("location_encoder.")
    file.finish()
    head = EmbeddingHeadConfig(dim, (hidden,), layers="relu")
    config = NetworkConfig(backbone=backbone, embeddings={"query": head})
    network = GeoNetwork(config, Backbone(backbone, load_pretrained=False))
    fill(network, of_network, file.origin)
    size = backbone.custom["vision_cfg"]["image_size"] if backbone.custom else 224
    places = Gallery(
        _read_gallery(gallery),
        location_encoder(encoder, file.origin),
        logit_scale,
        digest_of(encoder),
        provenance="GeoCLIP's gallery, of MP-16 (Flickr)",
        licence="MIT",
    )
    return Adapted(network, clip_pictures(size), gallery=places)


def _read_gallery(path: Path) -> NDArray[np.float64]:
    """Columns LAT and LON, rounded to float32 as GeoCLIP does."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = [(float(row["LAT"]), float(row["LON"])) for row in csv.DictReader(file)]
    except (OSError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path} is no gallery with the columns LAT and LON: {error!r}") from error
    return np.array(rows, np.float32).astype(np.float64)


def location_encoder(tensors: dict[str, Tensor], origin: str) -> Callable[[NDArray[np.float64]], Tensor]:
    """The location encoder, (n, 2) degrees -> (n, dim), from its tensors (`LocEnc0.capsule.0.b`, …).

    Raises:
        CheckpointError: a tensor is missing or left over.
    """
    file = ForeignTensors(tensors, origin)
    scales: list[tuple[Tensor, list[tuple[Tensor, Tensor]]]] = []
    while file.has(f"LocEnc{len(scales)}."):
        of = f"LocEnc{len(scales)}."
        layers = [
            (file.take(f"{of}{layer}.weight"), file.take(f"{of}{layer}.bias"))
            for layer in ("capsule.1", "capsule.3", "capsule.5", "head.0")
        ]
        scales.append((file.take(f"{of}capsule.0.b"), layers))
    file.finish()
    if not scales:
        raise CheckpointError(f"{origin} has no tensors of a location encoder (LocEnc0.…)")

    @torch.inference_mode()
    def encode(latlon_deg: NDArray[np.float64]) -> Tensor:
        projected = equal_earth(torch.from_numpy(np.asarray(latlon_deg, np.float32)))
        total: Tensor | float = 0.0
        for directions, layers in scales:
            angles = 2 * math.pi * projected @ directions.T
            x = torch.cat([angles.cos(), angles.sin()], -1)
            for weight, bias in layers[:-1]:
                x = functional.linear(x, weight, bias).relu()
            total = total + functional.linear(x, *layers[-1])
        assert isinstance(total, Tensor)
        return total

    return encode


def equal_earth(latlon_deg: Tensor) -> Tensor:
    """The Equal Earth projection of (n, 2) degrees as x and y, scaled as GeoCLIP does (Šavrič et al., eq. 6 to 8)."""
    a1, a2, a3, a4 = _EQUAL_EARTH
    latitude, longitude = latlon_deg.deg2rad().unbind(-1)
    theta = torch.asin(math.sqrt(3) / 2 * latitude.sin())
    slope = 9 * a4 * theta**8 + 7 * a3 * theta**6 + 3 * a2 * theta**2 + a1
    x = 2 * math.sqrt(3) * longitude * theta.cos() / (3 * slope)
    y = a4 * theta**9 + a3 * theta**7 + a2 * theta**3 + a1 * theta
    return torch.stack([x, y], -1) * _SCALE / 180
