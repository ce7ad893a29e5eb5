"""Config of a network as plain typed values, stored in `config.json`; no value is a class path."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from geoloc.errors import ConfigError
from geoloc.models.plain import LATER

SCHEMA_VERSION = 1
GROUPS = 4  # groups of the group norms in the heads' hidden layers (OSV-5M)

# Layers of a head: "group_norm" is OSV-5M's form, a layer norm, then linear - group norm - GELU; "gelu" is that without
# group norms (its multi-task models); "relu" is linear - ReLU without any norm (GeoCLIP); "identity" has no layer: the
# features are the output (CLIP).
Layers = Literal["group_norm", "gelu", "relu", "identity"]


@dataclass(frozen=True)
class BackboneConfig:
    """The image tower: an open_clip or timm model by name, or a custom open_clip vision tower.

    Attributes:
        architecture: an open_clip model name ("ViT-B-32", "ViT-L-14", …) or "hf-hub:org/name".
        custom: instead of a name, `{"embed_dim": …, "vision_cfg": {…}}` as open_clip describes vision towers, also a
            timm trunk under one of open_clip's heads (`vision_cfg.timm_model_name`).
        pretrained: open_clip's or timm's tag of pretrained weights, or a local state dict. Ignored when a
            checkpoint is loaded.
        features: "projected" is the CLIP image embedding before normalisation; "pooled" the pooled output before the
            projection; "cls_before_norm" the class token before the last layer norm (OSV-5M); "map" the last feature
            map before any norm or head, for embeddings that aggregate it (heads read its mean).
        image_size_px: overrides the tower's input size.
        timm: instead of the first two, a timm model without open_clip's head: "resnet18", "vgg16", …; or our "alexnet"
            and "cct_14_7x2".
        crop_after: for "map": name of the last part of the trunk that is kept, such as "layer3" (a ResNet's conv4),
            "features.28" (VGG-16 without its last ReLU and pooling) or "blocks.7".
        crop_blocks: for "map": number of blocks, or stages of a convolutional trunk, that are kept.
        final_norm: for "map": keep a transformer's last layer norm.
        batch_norm_eps: overrides eps of all batch norms: torchvision's EfficientNet-B5 to B7 have 1e-3, timm's 1e-5.
        layer_norm_eps: overrides eps of all layer norms: transformers' ViTs have 1e-12, timm's 1e-6.
        tanh_gelu: use the tanh approximation in all GELUs, as Flax does.
    """

    architecture: str | None = None
    custom: Mapping[str, Any] | None = None
    pretrained: str | None = None
    features: Literal["projected", "pooled", "cls_before_norm", "map"] = "pooled"
    image_size_px: int | None = None
    timm: str | None = field(default=None, metadata=LATER)
    crop_after: str | None = field(default=None, metadata=LATER)
    crop_blocks: int | None = field(default=None, metadata=LATER)
    final_norm: bool = field(default=False, metadata=LATER)
    batch_norm_eps: float | None = field(default=None, metadata=LATER)
    layer_norm_eps: float | None = field(default=None, metadata=LATER)
    tanh_gelu: bool = field(default=False, metadata=LATER)

    def __post_init__(self) -> None:
        given = [name for name in ("architecture", "custom", "timm") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ConfigError(
                "backbone needs exactly one of 'architecture', 'custom' and 'timm'; found "
                f"{' and '.join(given) or 'none'}: name a model of open_clip or timm, or describe a tower"
            )
        if self.image_size_px is not None and self.image_size_px < 1:
            raise ConfigError(f"backbone.image_size_px is {self.image_size_px}; it must be positive")
        if self.timm is not None and self.features == "projected":
            raise ConfigError(
                "backbone.features is 'projected', but a timm model has no projection: use 'pooled'"
            )
        if self.crop_after is not None and self.crop_blocks is not None:
            raise ConfigError(
                "backbone is cropped by name (crop_after) and by depth (crop_blocks): give one of them"
            )
        if self.features != "map" and (
            self.crop_after is not None or self.crop_blocks is not None or self.final_norm
        ):
            raise ConfigError(
                "crop_after, crop_blocks and final_norm are for feature maps, "
                f"but backbone.features is {self.features!r}: use 'map'"
            )
        for name in ("batch_norm_eps", "layer_norm_eps"):
            if (eps := getattr(self, name)) is not None and not eps > 0:
                raise ConfigError(f"backbone.{name} is {eps}; it must be positive")


@dataclass(frozen=True)
class CellHeadConfig:
    """Classifier over the quadtree's cells; `hidden_dims=()` is a linear layer after a layer norm."""

    hidden_dims: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        _check_hidden_dims(self.hidden_dims)


@dataclass(frozen=True)
class OffsetHeadConfig:
    """Offset inside a cell (OSV-5M's hybrid head, Astruc et al., CVPR 2024).

    Attributes:
        origin: location of offset 0: the cell's "representative" point (OSV-5M's default) or its "box" centre.
        shared: one offset for all cells instead of one per cell.
        tanh_scale: largest offset; above 1, predictions can be outside of their cell.
    """

    hidden_dims: tuple[int, ...] = (512,)
    origin: Literal["representative", "box"] = "representative"
    shared: bool = False
    tanh_scale: float = 1.2

    def __post_init__(self) -> None:
        _check_hidden_dims(self.hidden_dims)
        if not 0 < self.tanh_scale < math.inf:
            raise ConfigError(f"offsets.tanh_scale is {self.tanh_scale}; it must be positive")


@dataclass(frozen=True)
class RegressionHeadConfig:
    """Coordinates without cells.

    Attributes:
        kind: "unit_vector" is the direction of three numbers; "tanh" is OSV-5M's latitude / 90, longitude / 180, with a
            jump at the antimeridian; "angles" is cosine and sine of both angles; "squared_angles" squares these four
            numbers, which reaches a quarter turn only, and is for reading OSV-5M's checkpoints.
        layers: see `Layers`; not "identity".
    """

    hidden_dims: tuple[int, ...] = (64,)
    kind: Literal["unit_vector", "tanh", "angles", "squared_angles"] = "unit_vector"
    layers: Layers = field(default="group_norm", metadata=LATER)

    def __post_init__(self) -> None:
        _check_hidden_dims(self.hidden_dims)
        if self.layers == "identity":
            raise ConfigError("regression.layers is 'identity', but features are no coordinates")


@dataclass(frozen=True)
class AggregationConfig:
    """Aggregation of the feature maps of an image, or of several aerial views of a location, into one vector.

    Attributes:
        kind: Statewide's, for views of a location: "spatial_softmax", "mean", "smd", "safa", "sample4geo" and
            "two_tokens". For one street photo: "gem", "spoc", "mac", "rmac", "rrm", "netvlad", "crn", "convap",
            "mixvpr", "cls", "first" (position), "seqpool", "optimal_transport" (SALAD), and "cosplace" (GeM of
            normalised positions and a linear layer). See `geoloc.models.aggregation`.
        heads: for "spatial_softmax", "smd" and "safa"; divides the embedding's dim.
        num_views: images of one location, such as 4 aerial views at growing ground resolution.
        normalize_positions: for "gem", "spoc", "mac" and "rmac": normalise each position before pooling, the VG
            benchmark's default.
        normalize_channels: for "gem": normalise each channel over all positions before pooling, as the VG benchmark
            does with a transformer's tokens.
        clusters: for "netvlad", "crn" and "optimal_transport".
        pooled_size: rows and columns of the output of "convap".
        out_channels: channels of "convap" and "mixvpr", None for those that the embedding's dim needs; width of a
            cluster of "optimal_transport", None for 128.
        out_rows: rows of the output of "mixvpr".
        mix_depth: number of mixers of "mixvpr".
        token_dim: width of the class token's projection in "optimal_transport".
        hidden_dim: hidden width of the perceptrons of "optimal_transport".
        mlp_ratio: hidden width of a mixer relative to the number of positions.
        normalize_pooled: normalise the pooled vector before the linear layer of `fc_dim`.
        fc_dim: width of a linear layer after a kind for street photos; "cosplace" always has one.
        pca: whether a PCA layer follows, see `fit_pca`.
    """

    kind: Literal[
        "spatial_softmax",
        "mean",
        "smd",
        "safa",
        "sample4geo",
        "two_tokens",
        "gem",
        "spoc",
        "mac",
        "rmac",
        "rrm",
        "netvlad",
        "crn",
        "convap",
        "mixvpr",
        "cls",
        "first",
        "seqpool",
        "cosplace",
        "optimal_transport",
    ] = "spatial_softmax"
    heads: int = 64
    num_views: int = 1
    normalize_positions: bool = field(default=False, metadata=LATER)
    normalize_channels: bool = field(default=False, metadata=LATER)
    clusters: int = field(default=64, metadata=LATER)
    pooled_size: tuple[int, int] = field(default=(2, 2), metadata=LATER)
    out_channels: int | None = field(default=None, metadata=LATER)
    out_rows: int = field(default=4, metadata=LATER)
    mix_depth: int = field(default=4, metadata=LATER)
    mlp_ratio: float = field(default=1.0, metadata=LATER)
    token_dim: int = field(default=256, metadata=LATER)
    hidden_dim: int = field(default=512, metadata=LATER)
    normalize_pooled: bool = field(default=False, metadata=LATER)
    fc_dim: int | None = field(default=None, metadata=LATER)
    pca: bool = field(default=False, metadata=LATER)

    def __post_init__(self) -> None:
        if self.heads < 1 or self.num_views < 1:
            raise ConfigError(f"heads is {self.heads} and num_views {self.num_views}; both must be positive")
        if self.num_views != 1 and self.kind not in _OF_VIEWS:
            raise ConfigError(
                f"num_views is {self.num_views}, but {self.kind!r} reads one image: use 'spatial_softmax'"
            )
        if self.normalize_channels and (self.kind != "gem" or self.normalize_positions):
            raise ConfigError("normalize_channels is for 'gem' only, and not with normalize_positions")
        counts = [self.clusters, *self.pooled_size, self.out_rows, self.out_channels or 1, self.fc_dim or 1]
        counts += [self.token_dim, self.hidden_dim]
        if min(counts) < 1 or self.mix_depth < 0 or not self.mlp_ratio > 0:
            raise ConfigError(
                "clusters, pooled_size, out_channels, out_rows, mlp_ratio, fc_dim, "
                "token_dim and hidden_dim must be positive, mix_depth not negative"
            )
        if self.normalize_pooled and self.fc_dim is None:
            raise ConfigError("normalize_pooled is for the linear layer of fc_dim: set fc_dim as well")
        if (self.fc_dim is not None or self.pca) and self.kind in (*_OF_VIEWS, "two_tokens"):
            raise ConfigError(f"{self.kind!r} has its own projection: leave fc_dim and pca out")


_OF_VIEWS = ("spatial_softmax", "mean", "smd", "safa", "sample4geo")


@dataclass(frozen=True)
class EmbeddingHeadConfig:
    """Projection to a unit vector for retrieval.

    Attributes:
        aggregation: if given, the vector is computed from the backbone's feature maps, without hidden layers.
        layers: see `Layers`.
    """

    dim: int = 256
    hidden_dims: tuple[int, ...] = ()
    aggregation: AggregationConfig | None = field(default=None, metadata=LATER)
    layers: Layers = field(default="group_norm", metadata=LATER)

    def __post_init__(self) -> None:
        _check_hidden_dims(self.hidden_dims)
        if self.dim < 1:
            raise ConfigError(f"an embedding's dim is {self.dim}; it must be positive")
        if self.layers == "identity" and self.hidden_dims:
            raise ConfigError(
                f"hidden_dims is {list(self.hidden_dims)}, but layers is 'identity': leave it out"
            )
        if self.aggregation is None:
            return
        if self.hidden_dims:
            raise ConfigError(
                f"hidden_dims is {list(self.hidden_dims)}, but an aggregation has no hidden layers: leave it out"
            )
        self._check_width(self.aggregation)

    @property
    def fc_dim(self) -> int | None:
        """Width of the linear layer after the aggregation, or None."""
        if self.aggregation is None:
            return None
        return self.aggregation.fc_dim or (self.dim if self.aggregation.kind == "cosplace" else None)

    def _check_width(self, aggregation: AggregationConfig) -> None:
        kind, heads = aggregation.kind, aggregation.heads
        if kind in ("spatial_softmax", "smd", "safa") and self.dim % heads:
            raise ConfigError(f"an embedding's dim is {self.dim}; it must be a multiple of its {heads} heads")
        if kind in ("convap", "mixvpr") and aggregation.out_channels is None:
            rows, columns = aggregation.pooled_size
            parts = rows * columns if kind == "convap" else aggregation.out_rows
            if self.fc_dim is not None or aggregation.pca or self.dim % parts:
                raise ConfigError(
                    f"{kind!r} makes {parts} numbers of each of its out_channels: give out_channels, or a dim that is "
                    f"a multiple of {parts} without fc_dim and pca; found dim {self.dim}"
                )


@dataclass(frozen=True)
class NetworkConfig:
    """A backbone and its heads; heads that are None do not exist.

    Attributes:
        embeddings: projections by role: "query" for the photo, "aerial" and "street" for references.
        aerial_backbone: a separate tower for the "aerial" embedding (Statewide); None uses the backbone.
        street_as_query: the embedding "query" is also used for the role "street", as in place recognition.
    """

    backbone: BackboneConfig
    cells: CellHeadConfig | None = None
    offsets: OffsetHeadConfig | None = None
    regression: RegressionHeadConfig | None = None
    embeddings: Mapping[str, EmbeddingHeadConfig] = field(default_factory=dict)
    aerial_backbone: BackboneConfig | None = field(default=None, metadata=LATER)
    street_as_query: bool = field(default=False, metadata=LATER)

    def __post_init__(self) -> None:
        if self.offsets is not None and self.cells is None:
            raise ConfigError("'offsets' needs 'cells', because offsets are inside cells: add a cell head")
        if unknown := sorted(set(self.embeddings) - {"query", "aerial", "street"}):
            raise ConfigError(f"unknown embedding {unknown[0]!r}: known are 'query', 'aerial' and 'street'")
        if self.aerial_backbone is not None and "aerial" not in self.embeddings:
            raise ConfigError("'aerial_backbone' needs an 'aerial' embedding, which reads it")
        if self.street_as_query and ("query" not in self.embeddings or "street" in self.embeddings):
            raise ConfigError(
                "'street_as_query' uses the embedding 'query' for 'street': "
                "give an embedding 'query', and none for 'street'"
            )
        for role, embedding in self.embeddings.items():
            if embedding.aggregation is not None and self.tower_of(role).features != "map":
                raise ConfigError(
                    f"the embedding {role!r} aggregates feature maps, but its backbone's features are "
                    f"{self.tower_of(role).features!r}: use 'map'"
                )
            if role != "aerial" and embedding.aggregation is not None and embedding.aggregation.num_views > 1:
                raise ConfigError(f"num_views is for aerial views of one place; {role!r} is one picture")

    def embedding_of(self, role: str) -> str:
        """The name of the embedding that serves a role."""
        return "query" if role == "street" and self.street_as_query else role

    def tower_of(self, role: str) -> BackboneConfig:
        """The backbone that reads the pictures of a role."""
        return (
            self.aerial_backbone if role == "aerial" and self.aerial_backbone is not None else self.backbone
        )


def _check_hidden_dims(hidden_dims: tuple[int, ...]) -> None:
    # A hidden layer ends in a group norm of GROUPS groups.
    if any(width < 1 or width % GROUPS for width in hidden_dims):
        raise ConfigError(f"hidden_dims is {list(hidden_dims)}; each must be a positive multiple of {GROUPS}")
