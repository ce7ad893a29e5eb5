"""Image towers built by open_clip and timm; with `text_tower` the only module that imports them.

A tower is named (open_clip's "ViT-B-32" or "hf-hub:org/name", timm's "resnet18") or described (`custom`: open_clip's
vision_cfg, also over timm trunks). Text towers are not built, or dropped when pretrained weights come with one.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from geoloc.errors import CheckpointError, ConfigError, NotFoundError
from geoloc.models.alexnet import AlexNet
from geoloc.models.cct import CompactTransformer
from geoloc.models.config import BackboneConfig
from geoloc.models.state_dict import read_tensors
from geoloc.torchvision_cpu import ensure_importable

ensure_importable()  # open_clip imports torchvision

import open_clip  # noqa: E402
import timm  # noqa: E402
from open_clip.factory import _get_hf_config  # noqa: E402
from open_clip.model import _build_vision_tower, resize_pos_embed  # noqa: E402
from open_clip.transform import PreprocessCfg, merge_preprocess_dict  # noqa: E402

# The private functions are used because the public ones, create_model and get_model_config, build the text tower as
# well and drop the preprocessing of a Hub model.

# The kinds of towers that `geoloc.models.backbone` distinguishes.
ClipTransformer = open_clip.model.VisionTransformer
ClipResNet = open_clip.modified_resnet.ModifiedResNet
TimmTower = open_clip.model.TimmModel

_HUB_PREFIX = "hf-hub:"


@dataclass(frozen=True)
class PreprocessDefaults:
    """Preprocessing that a tower's weights expect, in open_clip's terms.

    Attributes:
        size_px: side of the square input.
        mean: mean of red, green and blue, for values in [0, 1].
        std: standard deviation of red, green and blue.
        interpolation: "bicubic" or "bilinear".
        resize_mode: "shortest" (then a centre crop), "longest" (then padding) or "squash".
    """

    size_px: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str
    resize_mode: str


# --- Trunks that timm lacks, in its registry ----------------------------------------------------------------


def alexnet(**options: Any) -> nn.Module:
    """Entry point for timm, which passes options of pretrained weights; there are none."""
    return AlexNet()


def cct_14_7x2(**options: Any) -> nn.Module:
    """Entry point for timm, as `alexnet`."""
    return CompactTransformer()


for _trunk in (alexnet, cct_14_7x2):
    timm.models.register_model(_trunk)


# --- Finding and building the tower -------------------------------------------------------------------------


@dataclass(frozen=True)
class TowerSource:
    """Description of a tower and source of its weights.

    Attributes:
        config: the self-contained config.
        description: embed_dim, vision_cfg and optionally quick_gelu, for open_clip.
        preprocess: preprocessing that the weights expect.
        open_clip_name: name of pretrained weights in open_clip, or None.
        timm_name: name and tag of pretrained weights in timm, or None.
        local_file: path of a state dict, or None.
    """

    config: BackboneConfig
    description: Mapping[str, Any]
    preprocess: PreprocessDefaults
    open_clip_name: str | None
    timm_name: str | None
    local_file: Path | None

    def build(self, *, load_pretrained: bool) -> nn.Module:
        """The complete tower; a local file is not loaded yet.

        Args:
            load_pretrained: load open_clip's or timm's weights if the config names some.

        Raises:
            ConfigError: open_clip cannot build it.
            NotFoundError: the weights could not be downloaded.
        """
        tower: Any
        if load_pretrained and self.open_clip_name is not None:
            tower = self._from_open_clip(self.open_clip_name)
        elif load_pretrained and self.timm_name is not None:
            tower = self._from_timm(self.timm_name)
        else:
            tower = self._from_description()
        if self.config.batch_norm_eps is not None:
            for norm in tower.modules():
                if isinstance(norm, _BatchNorm):
                    norm.eps = self.config.batch_norm_eps
        if self.config.layer_norm_eps is not None:
            for norm in tower.modules():
                if isinstance(norm, nn.LayerNorm):
                    norm.eps = self.config.layer_norm_eps
        if self.config.tanh_gelu:
            _approximate_gelu(tower)
        if hasattr(tower, "output_tokens"):
            tower.output_tokens = False  # CoCa's tower would also return its tokens
        return cast(nn.Module, tower)

    def _from_open_clip(self, name: str) -> Any:
        try:
            return open_clip.create_model(
                name,
                self.config.pretrained,
                force_image_size=self.preprocess.size_px,
                pretrained_text=False,
                require_pretrained=True,  # else a failed download gives random weights and a log line
            ).visual
        except Exception as error:  # any error of the network, the cache or an archive
            raise NotFoundError(
                f"open_clip could not load the pretrained weights of {name!r}: {error}; check the network, or give "
                "backbone.pretrained the path of a state dict"
            ) from error

    def _from_timm(self, name: str) -> Any:
        described = deepcopy(dict(self.description))
        described["vision_cfg"] |= {"timm_model_name": name, "timm_model_pretrained": True}
        try:
            tower = _build_vision_tower(**described)
            tower.set_input_size(self.preprocess.size_px)
        except Exception as error:  # as above
            raise NotFoundError(
                f"timm could not load the pretrained weights of {name!r}: {error}; check the network, or give "
                "backbone.pretrained the path of a state dict"
            ) from error
        return tower

    def _from_description(self) -> Any:
        try:
            tower = _build_vision_tower(**deepcopy(dict(self.description)))
            if hasattr(tower, "set_input_size"):  # a timm trunk is built in its default size
                tower.set_input_size(self.preprocess.size_px)
        except Exception as error:  # the errors depend on the architecture
            raise ConfigError(f"open_clip cannot build {dict(self.description)}: {error}") from error
        return tower


def _approximate_gelu(tower: nn.Module) -> None:
    for parent in list(tower.modules()):
        for name, child in parent.named_children():
            if type(child).__name__ == "GELU":  # torch's, and timm's of the same name
                setattr(parent, name, nn.GELU(approximate="tanh"))


def find_tower(config: BackboneConfig) -> TowerSource:
    """The source of a config's tower, without reading weights.

    Raises:
        ConfigError: an unknown architecture, tag or key.
        NotFoundError: the description of an "hf-hub:" architecture could not be downloaded.
    """
    name, tag = config.architecture, config.pretrained
    local_file = Path(tag) if tag is not None and Path(tag).is_file() else None
    open_clip_name: str | None = None
    timm_name: str | None = None
    preprocess: Mapping[str, Any] = {}
    if config.timm is not None:
        description, preprocess = _describe_timm(config.timm, None if local_file else tag)
        if tag is not None and local_file is None:
            timm_name = f"{config.timm}.{tag}"
    elif name is None:
        description = _checked_custom(config.custom or {})
        if tag is not None and local_file is None:
            raise ConfigError(
                f"backbone.pretrained is {tag!r}, and there is no such file; a custom tower has no tags: "
                "give the path of a state dict"
            )
    elif name.startswith(_HUB_PREFIX):
        if tag is not None:
            raise ConfigError(
                f"backbone.pretrained is {tag!r}, but {name!r} brings its own weights: leave pretrained out"
            )
        description, preprocess = _fetch_description(name)
        open_clip_name = name
    else:
        name = name.replace("/", "-")  # the papers write ViT-B/32
        if name not in open_clip.list_models():
            near = difflib.get_close_matches(name, open_clip.list_models(), n=3)
            raise ConfigError(
                f"open_clip has no architecture {name!r}; near names are {', '.join(near) or 'none'}, and "
                "open_clip.list_models() has them all"
            )
        description = open_clip.get_model_config(name)
        if tag is not None and local_file is None:
            preprocess = _checked_tag(name, tag, description)
            open_clip_name = name
    kept = {key: deepcopy(description[key]) for key in _DESCRIPTION_KEYS if key in description}
    # timm must not download weights by itself: only the weights that the config names are loaded.
    kept["vision_cfg"] |= {"timm_model_pretrained": False}
    if config.image_size_px is not None:
        kept["vision_cfg"]["image_size"] = config.image_size_px
    if open_clip_name is not None and open_clip_name.startswith(_HUB_PREFIX):
        config = replace(config, architecture=None, custom=kept)
    return TowerSource(
        config,
        kept,
        _preprocess_defaults(kept["vision_cfg"], preprocess),
        open_clip_name,
        timm_name,
        local_file,
    )


_DESCRIPTION_KEYS = ("embed_dim", "vision_cfg", "quick_gelu")


def _checked_custom(custom: Mapping[str, Any]) -> Mapping[str, Any]:
    if unknown := sorted(custom.keys() - set(_DESCRIPTION_KEYS)):
        raise ConfigError(
            f"backbone.custom has the unknown key {unknown[0]!r}; it takes {', '.join(_DESCRIPTION_KEYS)}"
        )
    if missing := sorted({"embed_dim", "vision_cfg"} - custom.keys()):
        raise ConfigError(f"backbone.custom lacks the key {missing[0]!r}")
    vision, known = custom["vision_cfg"], open_clip.CLIPVisionCfg.__dataclass_fields__
    if unknown := sorted(vision.keys() - set(known)):
        raise ConfigError(
            f"backbone.custom.vision_cfg has the unknown key {unknown[0]!r}; open_clip takes "
            f"{', '.join(known)}"
        )
    if (trunk := vision.get("timm_model_name")) is not None:
        _check_timm_name(trunk)
    return custom


def _check_timm_name(name: str) -> None:
    # timm would fetch the description of a name like "hf-hub:…" from elsewhere.
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        raise ConfigError(f"timm has no model {name!r}; near names are {', '.join(near) or 'none'}")


def _describe_timm(name: str, tag: str | None) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Description of a timm model in open_clip's form, and its preprocessing."""
    _check_timm_name(name)
    tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{name}.*")]
    if tag is not None and tag not in tags:
        raise ConfigError(
            f"backbone.pretrained is {tag!r}, which is no file here and no tag of timm's {name!r}; its tags are "
            f"{', '.join(tags) or 'none'}"
        )
    defaults = timm.get_pretrained_cfg(name if tag is None else f"{name}.{tag}")
    if defaults is None:
        defaults = timm.models.PretrainedCfg()
    # The linear projection, which is removed with the features, makes open_clip keep the trunk's own pooling.
    size = defaults.input_size[-1]
    vision = {"timm_model_name": name, "timm_pool": "", "timm_proj": "linear", "image_size": size}
    known = {"mean": defaults.mean, "std": defaults.std, "interpolation": defaults.interpolation}
    return {"embed_dim": 1, "vision_cfg": vision}, known


def _checked_tag(name: str, tag: str, description: Mapping[str, Any]) -> Mapping[str, Any]:
    """open_clip's entry of a tag, including its preprocessing."""
    found: Mapping[str, Any] = open_clip.get_pretrained_cfg(name, tag)
    if not found:
        tags = open_clip.list_pretrained_tags_by_model(name)
        raise ConfigError(
            f"backbone.pretrained is {tag!r}, which is no file here and no tag of {name!r}; its tags are "
            f"{', '.join(tags) or 'none'}"
        )
    if found.get("quick_gelu") and not description.get("quick_gelu"):
        # open_clip only warns, and all features would be slightly wrong.
        raise ConfigError(
            f"the weights {tag!r} of {name!r} were trained with QuickGELU: use the architecture "
            f"{name + '-quickgelu'!r}"
        )
    return found


def _fetch_description(name: str) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Description and preprocessing of a Hub model, from its open_clip_config.json."""
    try:
        found = _get_hf_config(name.removeprefix(_HUB_PREFIX))
        model = found["model_cfg"]
        custom = {key: model[key] for key in _DESCRIPTION_KEYS if key in model}
    except Exception as error:  # any error of the network, the cache or the file
        raise NotFoundError(
            f"could not fetch the description of {name!r}: {error}; check the name and the network"
        ) from error
    return _checked_custom(custom), found.get("preprocess_cfg", {})


def _preprocess_defaults(vision_cfg: Mapping[str, Any], known: Mapping[str, Any]) -> PreprocessDefaults:
    size = vision_cfg.get("image_size", open_clip.CLIPVisionCfg.image_size)
    if not isinstance(size, int):
        if len(set(size)) != 1:
            raise ConfigError(f"the tower has images of {' x '.join(map(str, size))} px: set image_size_px")
        size = int(size[0])
    cfg = PreprocessCfg(**merge_preprocess_dict(PreprocessCfg(), known))
    return PreprocessDefaults(size, tuple(cfg.mean), tuple(cfg.std), cfg.interpolation, cfg.resize_mode)


# --- Local weights ------------------------------------------------------------------------------------------


def load_local(tower: nn.Module, path: Path, keys_of_whole: set[str]) -> None:
    """Load a state dict of the tower, a whole CLIP model, a Backbone or a timm trunk, strictly.

    Args:
        tower: the tower, reduced to its features.
        path: a .safetensors file, or a file of torch.save with tensors only.
        keys_of_whole: keys of the tower before it was reduced; other keys in the file are an error.

    Raises:
        CheckpointError: the file does not fit the tower exactly.
    """
    file = read_tensors(path)
    needed = tower.state_dict().keys()
    # Files older than PyTorch 1.0 lack num_batches_tracked, which a fixed momentum does not use.
    required = {key for key in needed if not key.endswith("num_batches_tracked")}
    namings = [
        {new + key.removeprefix(old): tensor for key, tensor in file.items() if key.startswith(old)}
        for old, new in (("", ""), ("visual.", ""), ("tower.", ""), ("module.visual.", ""), ("", "trunk."))
    ]
    state = max(namings, key=lambda naming: len(naming.keys() & required))
    missing, strange = sorted(required - state.keys()), sorted(state.keys() - keys_of_whole)
    if missing or strange:
        raise CheckpointError(
            f"{path} does not fit the tower: it lacks {len(missing)} of its {len(required)} tensors "
            f"({', '.join(missing[:3]) or 'none'}) and has {len(strange)} unknown ones "
            f"({', '.join(strange[:3]) or 'none'}); choose the architecture that the file was saved from"
        )
    # Position embeddings for another image size are resampled by open_clip, which expects its prefix.
    prefixed = {f"visual.{key}": tensor for key, tensor in state.items()}
    resize_pos_embed(prefixed, SimpleNamespace(visual=tower))
    state = {key: prefixed[f"visual.{key}"] for key in state.keys() & needed}
    try:
        tower.load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(
            f"{path} does not fit the tower: {error}; choose the architecture it was saved from"
        ) from None
