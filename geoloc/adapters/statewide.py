"""Statewide (Fervers et al., ECCV 2024; MIT): Flax's safetensors as two ConvNeXt towers of torch.

Names are paths joined by "//"; kernels have their outputs last, linear layers their inputs first. Flax's GELU is the
tanh approximation. Embeddings there are 6 long, here 1: cosines rank alike. Photos are fitted into 480 x 640 px and
padded with black, as there (but for the filter: a triangle stretched over the pixels, where scikit-image blurs first).
"""

from __future__ import annotations

import re

from torch import Tensor

from geoloc.adapters.adapted import Adapted, fill
from geoloc.adapters.options import Options
from geoloc.adapters.tensors import ForeignTensors
from geoloc.errors import ConfigError
from geoloc.images.preprocess import Preprocess
from geoloc.models.backbone import Backbone
from geoloc.models.config import AggregationConfig, BackboneConfig, EmbeddingHeadConfig, NetworkConfig
from geoloc.models.network import GeoNetwork

_PHOTOS_PX, _AERIAL_PX = (480, 640), 384
_NUM_VIEWS = 4  # at 0.2, 0.4, 0.8 and 1.6 m a pixel
_TRUNKS: dict[tuple[int, tuple[int, ...]], str] = {  # channels of the stem, blocks of each stage
    (96, (3, 3, 9, 3)): "convnext_tiny",
    (128, (3, 3, 27, 3)): "convnext_base",
    (24, (1, 2, 4, 2)): "test_convnext",
}
_OF_BLOCK = {"Conv_0": "conv_dw", "Norm_0": "norm", "Linear_0": "mlp.fc1", "Linear_1": "mlp.fc2"}


def is_statewide(file: ForeignTensors) -> bool:
    """Whether the tensor names are those that Statewide writes with Flax."""
    return any("pv_encoder//" in name for name in file.names)


def adapt_statewide(file: ForeignTensors, options: Options) -> Adapted:
    """The model of a file of weights (`weights/last.safetensors`, or `model_weights.safetensors` of a database).

    Args:
        file: tensors of the file.
        options: `image_size_px`: one side for squares of photos and aerial views, or height and width of photos only.

    Raises:
        CheckpointError: a tensor is missing or left over.
        ConfigError: it has other towers or heads than the published ones.
    """
    file.remove_prefix("params//")
    size = options.image_size_px or _PHOTOS_PX
    side_px, aerial_px = (size, size) if isinstance(size, int) else (min(size), _AERIAL_PX)
    photo, state = _read_tower(file, "pv_encoder//", "backbone.", side_px)
    aerial = None
    if file.has("aerial_encoder//"):
        aerial, of_aerial = _read_tower(file, "aerial_encoder//", "aerial_backbone.", aerial_px)
        state |= of_aerial
    embeddings = {}
    for role, decoder, num_views in (
        ("query", "pv_decoder//", 1),
        ("aerial", "aerial_decoder//", _NUM_VIEWS),
    ):
        if file.has(decoder):
            embeddings[role], of_head = _read_head(file, decoder, num_views)
            state |= {f"embeddings.{role}.pool.{name}": tensor for name, tensor in of_head.items()}
    file.finish()
    config = NetworkConfig(backbone=photo, embeddings=embeddings, aerial_backbone=aerial)
    towers = [Backbone(tower, load_pretrained=False) for tower in (photo, aerial) if tower is not None]
    network = GeoNetwork(config, towers[0], None, None, *towers[1:])
    fill(network, state, file.origin)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    preprocess = Preprocess(
        image_size_px=size,
        resize="shortest" if isinstance(size, int) else "pad",
        interpolation="bilinear",
        mean=mean,
        std=std,
        aerial_size_px=None if isinstance(size, int) else aerial_px,
    )
    return Adapted(network, preprocess)


def _read_tower(
    file: ForeignTensors, prefix: str, ours: str, size_px: int
) -> tuple[BackboneConfig, dict[str, Tensor]]:
    """Config of a tower, and its state with the network's names."""
    theirs = _in_torch(file.take_all(prefix))
    blocks = [len({n.split("//")[1] for n in theirs if n.startswith(f"Stage_{i}//")}) for i in range(4)]
    stem = theirs.get("Stem_0//Conv_0//weight")
    name = None if stem is None else _TRUNKS.get((len(stem), tuple(blocks)))
    if name is None:
        raise ConfigError(
            f"{file.origin} has a tower with {blocks} blocks, which is none of {', '.join(_TRUNKS.values())}"
        )
    state = {f"{ours}tower.trunk.{_timm_name(n)}": tensor for n, tensor in theirs.items()}
    return BackboneConfig(timm=name, features="map", image_size_px=size_px, tanh_gelu=True), state


def _timm_name(name: str) -> str:
    if match := re.fullmatch(r"Stage_(\d)//Block_(\d+)//(.+)", name):
        stage, block, rest = match.groups()
        part, _, last = rest.partition("//")
        layer = f"{_OF_BLOCK.get(part, '?')}.{last}" if last else "gamma"  # the layer scale
        return f"stages.{stage}.blocks.{block}.{layer}"
    if match := re.fullmatch(r"Downsample_(\d)//(Norm|Conv)_0//(\w+)", name):
        return f"stages.{int(match[1]) + 1}.downsample.{('Norm', 'Conv').index(match[2])}.{match[3]}"
    if match := re.fullmatch(r"Stem_0//(Conv|Norm)_0//(\w+)", name):
        return f"stem.{('Conv', 'Norm').index(match[1])}.{match[2]}"
    return f"?.{name}"


def _read_head(
    file: ForeignTensors, prefix: str, num_views: int
) -> tuple[EmbeddingHeadConfig, dict[str, Tensor]]:
    theirs = _in_torch(file.take_all(prefix))
    names = {
        "Norm_0//weight": "norm.weight",
        "Norm_0//bias": "norm.bias",
        "Linear_0//weight": "score.weight",
        "Linear_1//weight": "value.weight",
        "Linear_1//bias": "value.bias",
    }
    if set(names) != set(theirs):
        raise ConfigError(
            f"{file.origin} has another pooling than the spatial softmax of the published weights "
            f"({prefix}{', '.join(sorted(theirs))})"
        )
    heads, dim = len(theirs["Linear_0//weight"]), len(theirs["Linear_1//bias"])
    aggregation = AggregationConfig("spatial_softmax", heads=heads, num_views=num_views)
    return EmbeddingHeadConfig(dim, aggregation=aggregation), {names[n]: t for n, t in theirs.items()}


def _in_torch(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors with torch's names and axes; some versions of Einx put "_" before a layer's name."""
    found = {}
    for name, tensor in tensors.items():
        *path, last = name.split("//")
        if last == "kernel":
            last, tensor = "weight", tensor.permute(3, 2, 0, 1)
        elif last == "weight" and tensor.ndim == 2:
            tensor = tensor.T
        elif last == "scale" and path and "Norm" in path[-1]:
            last = "weight"
        found["//".join([*(part.removeprefix("_") for part in path), last])] = tensor.contiguous()
    return found
