"""Checkpoints of place recognition: CosPlace, EigenPlaces, the VG benchmark, GSV-Cities with Conv-AP, and MixVPR.

    CosPlace, EigenPlaces   backbone.N (torchvision's parts, counted), aggregation.1.p, aggregation.3 (all MIT)
    VG benchmark            the same backbone, backbone.vit_model or a CCT's backbone.tokenizer and backbone.classifier;
                            aggregation… of GeM, NetVLAD, CRN or RRM, aggregation.1 a last layer
    GSV-Cities, MixVPR      backbone.model.… (torchvision's or timm's names), aggregator.…

Bare state dicts and trainers' checkpoints alike. Which trunk and which aggregation is read off names and shapes. They
become one embedding for photos and street references. Pictures are as published: the VG benchmark's of 480 x 640 px,
CosPlace's and EigenPlaces' of any size, one by one where they differ. Embeddings of ours have length 1; those of the VG
benchmark's GeM without a last layer have not, so that its ranking by distance and ours by cosine differ a little.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import isqrt
from typing import Any

from torch import Tensor

from geoloc.adapters.adapted import Adapted, fill
from geoloc.adapters.options import Options
from geoloc.adapters.tensors import ForeignTensors
from geoloc.adapters.torchvision_names import read_trunk
from geoloc.adapters.transformer_names import read_transformer
from geoloc.errors import CheckpointError, ConfigError
from geoloc.images.preprocess import Interpolation, Preprocess, Resize
from geoloc.models.backbone import Backbone
from geoloc.models.config import AggregationConfig, BackboneConfig, EmbeddingHeadConfig, NetworkConfig
from geoloc.models.network import GeoNetwork

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class _Head:
    """Aggregation of a file.

    Attributes:
        aggregation: fields of an AggregationConfig.
        state: tensors with our names within the head.
        dim: dimension of the vectors; None if the aggregation and the trunk's channels determine it.
        image_size_px: published image size, or the training size if images are not resized.
        resize: published kind of resizing.
    """

    aggregation: dict[str, Any]
    state: dict[str, Tensor]
    dim: int | None
    image_size_px: int | tuple[int, int]
    resize: Resize = "squash"
    interpolation: Interpolation = "bilinear"


def is_place_recognition(file: ForeignTensors) -> bool:
    """Whether the tensor names are those of one of these formats."""
    names = ("backbone.", "module.backbone.")
    return any(file.has(name) for name in names)


def adapt_place_recognition(file: ForeignTensors, options: Options) -> Adapted:
    """The model of a file.

    Args:
        file: tensors of the file.
        options: `image_size_px`, of squares or rectangles, except for transformers and MixVPR; `pooled_size` of a
            Conv-AP (2 x 2 by default); `aggregation` and `l2` of files of the VG benchmark that do not define them.

    Raises:
        CheckpointError: a tensor is missing or left over.
        ConfigError: an unsupported trunk, aggregation or image size.
    """
    file.remove_prefix("module.")  # of DataParallel
    file.drop("discriminator.")  # used in domain adaptation only
    trunk, state, stride_px = read_transformer(file, "backbone.") or read_trunk(file, "backbone.")
    fixed = trunk.get("image_size_px")
    if fixed is not None and options.square_px not in (None, fixed):
        raise ConfigError(
            f"image_size_px is {options.image_size_px}, but {file.origin} has a transformer for images of {fixed} "
            "px: leave it out"
        )
    head = (
        _read_aggregator(file, options, stride_px)
        if file.has("aggregator.")
        else _read_aggregation(file, options, trunk["timm"])
    )
    file.finish()
    if fixed is not None:
        head = replace(head, image_size_px=fixed)
    needs_square = fixed is not None or head.aggregation["kind"] == "mixvpr"
    preprocess = _preprocess(head, options.square_px if needs_square else options.image_size_px)
    tower = BackboneConfig(**trunk | {"features": "map", "image_size_px": min(preprocess.size_hw)})
    backbone = Backbone(tower, load_pretrained=False)
    aggregation = AggregationConfig(**head.aggregation)
    dim = head.dim or backbone.feature_dim * (
        aggregation.clusters if aggregation.kind in ("netvlad", "crn") else 1
    )
    config = NetworkConfig(
        backbone=backbone.config,
        embeddings={"query": EmbeddingHeadConfig(dim, aggregation=aggregation)},
        street_as_query=True,
    )
    of_head = {f"embeddings.query.{name}": tensor for name, tensor in head.state.items()}
    of_trunk = {f"backbone.tower.trunk.{name}": tensor for name, tensor in state.items()}
    network = fill(GeoNetwork(config, backbone), of_trunk | of_head, file.origin)
    return Adapted(network, preprocess)


_WITH_L2 = ("gem", "spoc", "mac", "rmac")


def _preprocess(head: _Head, size: int | tuple[int, int] | None) -> Preprocess:
    """Published preprocessing, or one for another size: a square is cropped unless squashed before."""
    resize = head.resize
    if size is not None and not (resize == "squash" and isinstance(head.image_size_px, int)):
        resize = "shortest" if isinstance(size, int) else "squash"
    return Preprocess(
        image_size_px=size or head.image_size_px,
        resize=resize,
        interpolation=head.interpolation,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    )


def _read_aggregation(file: ForeignTensors, options: Options, trunk: str) -> _Head:
    """Head of CosPlace, EigenPlaces and the VG benchmark."""
    if file.has("aggregation.3."):
        fc = _linear(file, "aggregation.3.")
        state = {"pool.p": file.take("aggregation.1.p")} | {f"fc.{part}": t for part, t in fc.items()}
        return _Head({"kind": "cosplace"}, state, len(fc["bias"]), 512, "native")
    prefix, dim, fc = "aggregation.", None, {}
    if file.has("aggregation.1.weight"):
        fc = _linear(file, "aggregation.1.")
        prefix, dim = "aggregation.0.", len(fc["bias"])
    kind, state = _read_vg_pool(file, prefix, options, trunk)
    if dim is not None:
        kind["fc_dim"] = dim
        is_pooled_raw = (
            kind["kind"] in _WITH_L2 and not {"normalize_positions", "normalize_channels"} & kind.keys()
        )
        if is_pooled_raw and options.l2 not in ("after_pool", "none"):
            raise ConfigError(
                f"{file.origin} does not define whether its GeM is normalised before the last layer: give its "
                "--l2, l2= 'after_pool' or 'none'"
            )
        if is_pooled_raw and options.l2 == "after_pool":
            kind["normalize_pooled"] = True
    return _Head(kind, state | {f"fc.{part}": t for part, t in fc.items()}, dim, (480, 640))


def _read_vg_pool(
    file: ForeignTensors, prefix: str, options: Options, trunk: str
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    score = {}  # every CCT has one
    if trunk == "cct_14_7x2":
        score = {
            f"pool.score.{n}": t for n, t in _linear(file, "backbone.classifier.attention_pool.").items()
        }
    if file.has(f"{prefix}conv.weight"):
        assign = file.take(f"{prefix}conv.weight")
        state = {"pool.assign.weight": assign.flatten(1), "pool.centres": file.take(f"{prefix}centroids")}
        kind: dict[str, Any] = {"kind": "netvlad", "clusters": len(assign)}
        if file.has(f"{prefix}crn."):
            summed = _linear(file, f"{prefix}crn.acc_w.")
            if not (bool((summed["weight"] == 1).all()) and bool((summed["bias"] == 0).all())):
                raise CheckpointError(
                    f"{file.origin} has a trained {prefix}crn.acc_w, which the published CRN does not have"
                )
            for number, size in enumerate((3, 5, 7)):
                for part, tensor in _linear(file, f"{prefix}crn.filter_{size}_{size}.").items():
                    state[f"pool.filters.{number}.{part}"] = tensor
            kind["kind"] = "crn"
        return kind, state
    if file.has(f"{prefix}ln1."):
        names = {"norm": "ln1", "mlp.0": "fc1", "mlp.2": "fc2", "out_norm": "ln2"}
        return {"kind": "rrm"}, {
            f"pool.{ours}.{part}": tensor
            for ours, theirs in names.items()
            for part, tensor in _linear(file, f"{prefix}{theirs}.").items()
        }
    for place, is_normalised in ((1, True), (0, False)):
        if file.has(f"{prefix}{place}.p"):
            # For tokens, the normalised axis is that of the positions.
            is_of_tokens = trunk.startswith(("vit_", "cct_"))
            normalised = "normalize_channels" if is_of_tokens else "normalize_positions"
            kind = {"kind": "gem"} | ({normalised: True} if is_normalised else {})
            return kind, {"pool.p": file.take(f"{prefix}{place}.p")}
    if trunk.startswith("vit_"):
        return {"kind": "cls"}, {}
    open_kinds = ("cls", "seqpool") if score else ("spoc", "mac", "rmac")
    if options.aggregation not in open_kinds:
        raise ConfigError(
            f"{file.origin} has no tensors of an aggregation: name the one of its training, aggregation= "
            + " or ".join(map(repr, open_kinds))
        )
    if score:
        return ({"kind": "seqpool"}, score) if options.aggregation == "seqpool" else ({"kind": "first"}, {})
    if options.l2 not in (None, "before_pool", "after_pool", "none"):
        raise ConfigError(f"l2 is {options.l2!r}; the benchmark has 'before_pool', 'after_pool' and 'none'")
    kind = {"kind": options.aggregation}
    return kind | ({"normalize_positions": True} if options.l2 in (None, "before_pool") else {}), {}


def _read_aggregator(file: ForeignTensors, options: Options, stride_px: int) -> _Head:
    """Head of GSV-Cities and MixVPR."""
    prefix = "aggregator."
    if file.has(f"{prefix}channel_pool."):
        project = _linear(file, f"{prefix}channel_pool.")
        rows, columns = options.pooled_size or (2, 2)
        out = len(project["bias"])
        kind: dict[str, Any] = {"kind": "convap", "pooled_size": (rows, columns), "out_channels": out}
        state = {f"pool.project.{part}": tensor for part, tensor in project.items()}
        # From its README: dim 4096 was trained with bicubic resizing, dim 8192 with bilinear.
        return _Head(
            kind, state, out * rows * columns, 320, interpolation="bicubic" if out == 1024 else "bilinear"
        )
    if file.has(f"{prefix}row_proj."):
        return _read_mixvpr(file, prefix, stride_px)
    if file.has(f"{prefix}gem."):
        fc = _linear(file, f"{prefix}fc.")
        state = {"pool.p": file.take(f"{prefix}gem.p")} | {f"fc.{part}": t for part, t in fc.items()}
        return _Head({"kind": "cosplace"}, state, len(fc["bias"]), 320)
    return _Head({"kind": "gem"}, {"pool.p": file.take(f"{prefix}p")}, None, 320)


def _read_mixvpr(file: ForeignTensors, prefix: str, stride_px: int) -> _Head:
    state, depth = {}, 0
    while file.has(f"{prefix}mix.{depth}."):
        for ours, number in (("norm", 0), ("mlp.0", 1), ("mlp.2", 3)):
            for part, tensor in _linear(file, f"{prefix}mix.{depth}.mix.{number}.").items():
                state[f"pool.mixers.{depth}.{ours}.{part}"] = tensor
        depth += 1
    for ours, theirs in (("channel_projection", "channel_proj"), ("row_projection", "row_proj")):
        for part, tensor in _linear(file, f"{prefix}{theirs}.").items():
            state[f"pool.{ours}.{part}"] = tensor
    rows, positions = state["pool.row_projection.weight"].shape
    side = isqrt(positions)
    if side * side != positions:
        raise CheckpointError(f"{file.origin} mixes {positions} positions, which is not a square map")
    out = len(state["pool.channel_projection.bias"])
    kind: dict[str, Any] = {"kind": "mixvpr", "mix_depth": depth, "out_rows": rows, "out_channels": out}
    if depth:
        kind["mlp_ratio"] = len(state["pool.mixers.0.mlp.0.bias"]) / positions
    return _Head(kind, state, out * rows, side * stride_px)


def _linear(file: ForeignTensors, prefix: str) -> dict[str, Tensor]:
    """Weight and bias of a layer, by name."""
    return {part: file.take(f"{prefix}{part}") for part in ("weight", "bias")}
