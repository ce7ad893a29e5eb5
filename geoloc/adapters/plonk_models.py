"""PLONK's nine published models: sampler, image tower and preprocessing of each, which their files do not contain.

The towers are frozen in PLONK's training, and no part of its files: DINOv2 ViT-L/14 with registers gives its class
token after the last norm, StreetCLIP its own before it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor

from geoloc.adapters.adapted import fill
from geoloc.adapters.clip_vision import clip_pictures, find_clip_vision, read_clip_vision
from geoloc.adapters.dinov2 import read_dinov2
from geoloc.adapters.formats import weights_of
from geoloc.adapters.place_recognition import IMAGENET_MEAN, IMAGENET_STD
from geoloc.adapters.plonk import Kind, PlonkField
from geoloc.adapters.registry import CLIP_TOWER_FILES, DINOV2_L14_REGISTERS, STREETCLIP, WEIGHTS
from geoloc.adapters.tensors import ForeignTensors
from geoloc.errors import ConfigError
from geoloc.hub.foreign import foreign
from geoloc.images.preprocess import Preprocess
from geoloc.models.backbone import Backbone
from geoloc.models.config import BackboneConfig

_DINOV2_PX = 336


@dataclass(frozen=True)
class Variant:
    """Variant of a published model.

    Attributes:
        kind: sampler.
        tower: image tower.
    """

    kind: Kind
    tower: Literal["dinov2", "streetclip"]


_TOWERS: dict[str, Literal["dinov2", "streetclip"]] = {
    "yfcc": "dinov2",
    "osv_5m": "streetclip",
    "inaturalist": "dinov2",
}
_KINDS: dict[str, Kind] = {"": "sphere", "_flow": "space", "_diffusion": "diffusion"}
VARIANTS = {
    f"plonk_{data}{suffix}": Variant(kind, tower)
    for data, tower in _TOWERS.items()
    for suffix, kind in _KINDS.items()
}


@dataclass(frozen=True)
class SamplingModel:
    """A model that samples locations.

    Attributes:
        field: velocity field from noise to locations, given features.
        kind: sampler.
        backbone: images to features.
        preprocess: preprocessing of the backbone.
    """

    field: PlonkField
    kind: Kind
    backbone: Backbone
    preprocess: Preprocess


def variant_of(name: str) -> Variant:
    """The variant of a published name, with or without "nicolas-dufour/", ignoring case.

    Raises:
        ConfigError: there is no such name.
    """
    variant = VARIANTS.get(name.rstrip("/").rpartition("/")[2].lower())
    if variant is None:
        raise ConfigError(
            f"{name!r} is none of PLONK's published names ({', '.join(VARIANTS)}), and its files do not tell its "
            "sampler and image tower: give published_as= one of them"
        )
    return variant


def adapt_plonk(folder: Path, variant: Variant, tower: str | Path | None = None) -> SamplingModel:
    """The model of a folder in PLONK's format.

    Args:
        folder: folder with model.safetensors.
        variant: variant of the published model.
        tower: files of the image tower: DINOv2's, as its authors or timm publish it, or a folder with transformers'
            config.json and model.safetensors of StreetCLIP; None downloads it from the Hub.

    Raises:
        CheckpointError: a tensor is missing or left over.
        ConfigError: the tower is another one.
        NotFoundError: the tower was not found, or cannot be downloaded.
    """
    field = PlonkField(ForeignTensors.read(folder / "model.safetensors"))
    config, state, preprocess = (_dinov2 if variant.tower == "dinov2" else _streetclip)(tower)
    backbone = fill(Backbone(config, load_pretrained=False), state, str(tower or variant.tower))
    if backbone.feature_dim != field.feature_dim:
        raise ConfigError(
            f"the image tower gives {backbone.feature_dim} features, and the sampler in {folder} takes "
            f"{field.feature_dim}: give tower= the one of its training"
        )
    return SamplingModel(field, variant.kind, backbone.requires_grad_(False), preprocess)


def _dinov2(tower: str | Path | None) -> tuple[BackboneConfig, dict[str, Tensor], Preprocess]:
    path = foreign(DINOV2_L14_REGISTERS, WEIGHTS[:1]) if tower is None else Path(tower)
    file = ForeignTensors.read(weights_of(path))
    trunk, state = read_dinov2(file, "", _DINOV2_PX)
    file.finish()
    config = BackboneConfig(**trunk, features="pooled")
    preprocess = Preprocess(image_size_px=_DINOV2_PX, resize="crop", mean=IMAGENET_MEAN, std=IMAGENET_STD)
    return config, {f"tower.trunk.{name}": tensor for name, tensor in state.items()}, preprocess


def _streetclip(tower: str | Path | None) -> tuple[BackboneConfig, dict[str, Tensor], Preprocess]:
    path = foreign(STREETCLIP, CLIP_TOWER_FILES) if tower is None else Path(tower)
    file = ForeignTensors.read(weights_of(path))
    file.drop("text_model.", "text_projection.", "visual_projection.", "logit_scale")
    known = find_clip_vision(STREETCLIP if tower is None else str(tower))
    config, state = read_clip_vision(file, "vision_model.", known, "cls_before_norm")
    file.finish()
    assert config.custom is not None
    size = int(config.custom["vision_cfg"]["image_size"])
    return config, state, clip_pictures(size)
