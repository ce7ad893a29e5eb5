"""Image towers of OSV-5M's checkpoints: CLIP, StreetCLIP's image embedding, transformers' ResNet-50, DINOv2.

Which one it is, its tensors' names tell; only which GELU a CLIP was trained with they do not.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from geoloc.adapters.clip_vision import (
    CLIP_MEAN,
    CLIP_STD,
    KNOWN,
    ClipVision,
    clip_pictures,
    find_clip_vision,
    read_clip_vision,
)
from geoloc.adapters.dinov2 import read_dinov2
from geoloc.adapters.place_recognition import IMAGENET_MEAN, IMAGENET_STD
from geoloc.adapters.tensors import ForeignTensors
from geoloc.adapters.torchvision_names import read_trunk
from geoloc.errors import CheckpointError, ConfigError
from geoloc.images.preprocess import Preprocess
from geoloc.models.config import BackboneConfig

_PICTURES_PX = 224  # in all of its experiments
_RESNET, _DINO, _CLIP = "backbone.resnet.", "backbone.dino.", "backbone.clip."


@dataclass(frozen=True)
class Tower:
    """An image tower.

    Attributes:
        config: config of the tower.
        state: tensors with `GeoNetwork`'s names.
        preprocess: preprocessing of its training.
    """

    config: BackboneConfig
    state: dict[str, Tensor]
    preprocess: Preprocess


def read_tower(file: ForeignTensors, tower: str | Path | None, folder: Path | None = None) -> Tower:
    """Take the tensors of the image tower, with LoRA merged before.

    Args:
        file: tensors without the prefix "model.".
        tower: for CLIP, its name on the Hub, or a folder with transformers' config.json of it; others need none.
        folder: folder that `tower` may be relative to.

    Raises:
        ConfigError: the tower is unknown or not given.
        CheckpointError: a tensor is missing.
    """
    if file.has(_RESNET):
        return _resnet(file)
    if file.has(_DINO):
        file.drop(f"{_DINO}norm.")  # not used by the features
        trunk, state = read_dinov2(file, _DINO, _PICTURES_PX)
        config = BackboneConfig(**trunk, features="cls_before_norm")
        named = {f"backbone.tower.trunk.{name}": tensor for name, tensor in state.items()}
        # CLIP's mean and std also here: only OSV-5M's ResNet-50 has another preprocessing.
        return Tower(config, named, Preprocess(image_size_px=_PICTURES_PX, mean=CLIP_MEAN, std=CLIP_STD))
    if tower is None:
        raise ConfigError(
            f"{file.origin} does not define its image tower, because QuickGELU or GELU is not in its tensors: give "
            f"tower= one of {', '.join(KNOWN)}, or a folder with transformers' config.json of it"
        )
    return _clip(file, find_clip_vision(str(tower), folder))


def _clip(file: ForeignTensors, known: ClipVision) -> Tower:
    is_street = file.has(f"{_CLIP}text_model.")
    if is_street:  # StreetCLIP's image embedding, with the preprocessing of its processor
        file.drop(f"{_CLIP}text_model.", f"{_CLIP}text_projection.", f"{_CLIP}logit_scale")
        config, state = read_clip_vision(file, f"{_CLIP}vision_model.", known, "projected")
    else:
        file.drop(f"{_CLIP}visual_projection.")  # used in training with sentences only
        file.remove_prefix(f"{_CLIP}vision_model.")
        if not file.has("embeddings."):
            file.remove_prefix(_CLIP)
        config, state = read_clip_vision(file, "", known, "cls_before_norm")
    assert config.custom is not None
    pictures = clip_pictures(int(config.custom["vision_cfg"]["image_size"]))
    named = {f"backbone.{name}": tensor for name, tensor in state.items()}
    return Tower(config, named, pictures if is_street else replace(pictures, floors_centre=False))


def _resnet(file: ForeignTensors) -> Tower:
    """The ResNet-50, whose features are the mean of the last map."""
    for name, tensor in file.take_all(_RESNET).items():
        file.put(f"{_RESNET}model.{_torchvision_name(name, file.origin)}", tensor)
    trunk, state, _ = read_trunk(file, _RESNET)
    config = BackboneConfig(**trunk, features="pooled", image_size_px=_PICTURES_PX)
    named = {f"backbone.tower.trunk.{name}": tensor for name, tensor in state.items()}
    pictures = Preprocess(image_size_px=_PICTURES_PX, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    return Tower(config, named, pictures)


def _torchvision_name(name: str, origin: str) -> str:
    """Of a tensor that transformers' ResNetModel calls `name`."""
    stem = re.fullmatch(r"embedder\.embedder\.(convolution|normalization)\.(\w+)", name)
    if stem is not None:
        return f"{'conv1' if stem[1] == 'convolution' else 'bn1'}.{stem[2]}"
    match = re.fullmatch(
        r"encoder\.stages\.(\d+)\.layers\.(\d+)\.(shortcut|layer\.(\d+))\.(convolution|normalization)\.(\w+)",
        name,
    )
    if match is None:
        raise CheckpointError(f"{origin} has the tensor {_RESNET}{name}, which no ResNet of transformers has")
    stage, block, _, number, kind, last = match.groups()
    if number is None:
        part = f"downsample.{int(kind == 'normalization')}"
    else:
        part = f"{'conv' if kind == 'convolution' else 'bn'}{int(number) + 1}"
    return f"layer{int(stage) + 1}.{block}.{part}.{last}"
