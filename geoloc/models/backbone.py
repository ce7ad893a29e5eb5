"""Backbone: an image tower reduced to the wanted features.

Parts of the tower that do not contribute to the features are removed, so its output needs every parameter.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Literal, cast

import torch
from torch import Tensor, nn

from geoloc.errors import ConfigError
from geoloc.models.aggregation import FeatureMap
from geoloc.models.config import BackboneConfig
from geoloc.models.fine_tune import FineTune, block_names, eval_frozen, let_train, path_to, trunk_of
from geoloc.models.image_tower import ClipResNet, ClipTransformer, TimmTower, find_tower, load_local
from geoloc.models.lora import merged


class Backbone(nn.Module):
    """A vision tower that returns one feature vector per image, not normalised.

    Args:
        config: config of the tower.
        load_pretrained: load the weights that `config` names. False before a checkpoint is loaded; then only the
            description of an "hf-hub:" architecture is downloaded.

    Attributes:
        config: the config in self-contained form: an "hf-hub:" name is replaced by its description, so that a
            checkpoint needs no network.
        feature_dim: D, the length of a feature vector.
        map_size: H and W of the feature maps for the tower's image size; None if the features are no map.
        num_tokens: T, number of tokens of the maps without position.
        norms_folded: whether `geoloc.models.batch_norm.fold_batch_norm` was applied.
        preprocess_defaults: preprocessing that the weights expect.

    Raises:
        ConfigError: an unknown architecture, tag or key, or features that this tower lacks.
        CheckpointError: a local state dict does not fit the tower exactly.
        NotFoundError: open_clip could not download what the config names.
    """

    def __init__(self, config: BackboneConfig, *, load_pretrained: bool = True) -> None:
        super().__init__()
        source = find_tower(config)
        tower = source.build(load_pretrained=load_pretrained)
        keys_of_whole = set(tower.state_dict())
        _reduce_to(config.features, tower, final_norm=config.final_norm)
        _crop(tower, config)
        if load_pretrained and source.local_file is not None:
            load_local(tower, source.local_file, keys_of_whole)
        self.tower = tower
        self.norms_folded = False
        self.config = source.config
        self.preprocess_defaults = source.preprocess
        self.map_size: tuple[int, int] | None = None
        self.num_tokens = 0
        try:
            output = _output_shapes(tower, source.preprocess.size_px)
        except Exception as error:  # the errors depend on the architecture
            raise ConfigError(
                f"{type(trunk_of(tower)).__name__} does not run on images of {source.preprocess.size_px} px with this "
                f"cropping and size: {error}"
            ) from error
        if config.features == "map":
            maps = _as_map(tower, output)
            self.feature_dim, *size = maps.grid.shape[1:]
            self.map_size, self.num_tokens = (size[0], size[1]), maps.tokens.shape[1]
        else:
            self.feature_dim = int(output.shape[-1])
        self._freeze_batch_norm = False

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) normalised images -> (B, D) features."""
        return self.feature_map(images).mean() if self.config.features == "map" else self.tower(images)

    def feature_map(self, images: Tensor) -> FeatureMap:
        """(B, 3, S, S) normalised images -> feature maps, (B, D, H, W).

        Raises:
            ConfigError: this backbone's features are no map.
        """
        if self.config.features != "map":
            raise ConfigError(
                f"a feature map is needed, but the backbone's features are {self.config.features!r}: build it with "
                "'map'"
            )
        return _as_map(self.tower, self.tower(images))

    def fine_tune(self, strategy: FineTune) -> None:
        """Set the trainable parameters; frozen parts also run in evaluation mode.

        Raises:
            ConfigError: this tower has no such blocks or attentions, or has LoRA already.
        """
        let_train(self.tower, strategy)
        self._freeze_batch_norm = strategy.freeze_batch_norm
        self.train(self.training)

    def merge_lora(self) -> dict[str, Tensor]:
        """State dict of the backbone without LoRA, with the same outputs."""
        return merged(self)

    def train(self, mode: bool = True) -> Backbone:
        """Set the training mode; frozen parts and, on request, batch norms stay in evaluation mode."""
        super().train(mode)
        if mode:
            eval_frozen(self.tower, freeze_batch_norm=self._freeze_batch_norm)
        return self


# --- Features -----------------------------------------------------------------------------------------------


def _output_shapes(tower: nn.Module, size_px: int) -> Tensor:
    """Run the tower on the meta device, which computes shapes only."""
    state = dict(tower.named_parameters()) | dict(tower.named_buffers())
    shapes = {name: torch.empty_like(tensor, device="meta") for name, tensor in state.items()}
    images = torch.empty(2, 3, size_px, size_px, device="meta")  # batch norm in training mode needs two
    return cast(Tensor, torch.func.functional_call(tower, shapes, images))


def _reduce_to(
    features: Literal["projected", "pooled", "cls_before_norm", "map"],
    tower: nn.Module,
    *,
    final_norm: bool = False,
) -> None:
    """Remove from a tower, in place, what comes after the features."""
    if features == "projected":
        return
    if final_norm and not any(
        isinstance(getattr(trunk_of(tower), name, None), nn.LayerNorm) for name in _LAST_NORMS
    ):
        raise ConfigError(
            f"backbone.final_norm is true, but {type(trunk_of(tower)).__name__} has no layer norm after its blocks: "
            "leave it out"
        )
    if isinstance(tower, ClipTransformer):
        tower.proj = None
        if features != "pooled":
            tower.attn_pool = None
            if not final_norm:
                tower.ln_post = nn.Identity()
            tower.pool_type = "tok" if features == "cls_before_norm" else "none"
    elif isinstance(tower, TimmTower):
        if features == "map":
            _reduce_trunk_to_map(tower.trunk, final_norm=final_norm)
            tower.head = nn.Sequential()
            return
        if features == "cls_before_norm":
            _reduce_trunk_to_cls(tower.trunk)
        else:
            tower.trunk.reset_classifier(0)  # the projection, where the head has none
        children = tower.head.named_children()
        kept = [(name, part) for name, part in children if name not in ("drop", "proj", "mlp")]
        tower.head = nn.Sequential(OrderedDict(kept))
    elif isinstance(tower, ClipResNet) and features == "map":
        tower.attnpool = nn.Identity()
    else:
        raise ConfigError(
            f"backbone.features is {features!r}, but open_clip's {type(tower).__name__} pools and projects "
            "in one step: use 'projected'"
        )


_LAST_NORMS = ("ln_post", "norm")  # open_clip's and timm's transformers


def _crop(tower: nn.Module, config: BackboneConfig) -> None:
    """Remove the parts after the last one to keep, in place."""
    after, trunk = config.crop_after, trunk_of(tower)
    if config.crop_blocks is not None:
        names = block_names(tower)
        if not 1 <= config.crop_blocks <= len(names):
            raise ConfigError(
                f"backbone.crop_blocks is {config.crop_blocks}, but {type(trunk).__name__} has {len(names)} blocks"
            )
        after = names[config.crop_blocks - 1]
    if after is None:
        return
    for parent, children, position in path_to(trunk, after):
        for child in children[position + 1 :]:
            if isinstance(parent, nn.Sequential | nn.ModuleList):
                delattr(parent, child)
            elif parent is not trunk:
                raise ConfigError(
                    f"{after!r} lies inside a {type(parent).__name__}, "
                    f"and is followed there by {child!r}: crop after a whole block"
                )
            elif not (config.final_norm and child in _LAST_NORMS):
                setattr(parent, child, nn.Identity())


def _reduce_trunk_to_map(trunk: nn.Module, *, final_norm: bool) -> None:
    trunk.reset_classifier(0, "")  # type: ignore[operator]
    # A transformer's last norm is removed, as in open_clip's towers; a trunk's head may contain one as well.
    unwanted = ["head", "pre_logits"]
    if hasattr(trunk, "cls_token"):
        unwanted += ["fc_norm"] if final_norm else ["norm", "fc_norm"]
    for name in unwanted:
        if isinstance(getattr(trunk, name, None), nn.Module):
            setattr(trunk, name, nn.Identity())
    if getattr(trunk, "attn_pool", None) is not None:
        setattr(trunk, "attn_pool", None)  # noqa: B010  mypy takes it for a module
    # Without a pool some heads would still select tokens.
    trunk.forward_head = _unchanged  # type: ignore[assignment]


def _unchanged(x: Tensor, pre_logits: bool = False) -> Tensor:
    return x


def _as_map(tower: nn.Module, output: Tensor) -> FeatureMap:
    """Feature map from the output of a tower that was reduced to its map: a map, or tokens."""
    trunk = getattr(tower, "trunk", tower)
    if output.ndim == 4:
        grid = output.permute(0, 3, 1, 2) if getattr(trunk, "output_fmt", "NCHW") == "NHWC" else output
        return FeatureMap(grid, output.new_zeros(len(output), 0, grid.shape[1]))
    prefix = int(getattr(trunk, "num_prefix_tokens", 1))  # open_clip's towers have a class token
    positions = output[:, prefix:]
    side = math.isqrt(positions.shape[1])
    if side * side != positions.shape[1]:
        raise ConfigError(
            f"{type(trunk).__name__} returned {positions.shape[1]} positions, which is no square: feature maps "
            "need square pictures, and no patch dropout"
        )
    return FeatureMap(positions.transpose(1, 2).unflatten(-1, (side, side)), output[:, :prefix])


def _reduce_trunk_to_cls(trunk: nn.Module) -> None:
    if getattr(trunk, "cls_token", None) is None or not hasattr(trunk, "norm"):
        raise ConfigError(
            f"backbone.features is 'cls_before_norm', but {type(trunk).__name__} has no class token: use 'pooled'"
        )
    trunk.reset_classifier(0, "token")  # type: ignore[operator]
    for name in ("norm", "fc_norm", "attn_pool"):
        if getattr(trunk, name, None) is not None:
            setattr(trunk, name, None if name == "attn_pool" else nn.Identity())
