"""The image tower as open_clip builds it. The only file that knows timm, and open_clip beside `text_tower`.

A tower is named (open_clip's "ViT-B-32" or "hf-hub:org/name", timm's "resnet18") or described (`custom`: open_clip's
own vision_cfg, over timm trunks too). The text tower is not built, or dropped at once where pretrained weights come
with one. Which of a tower's features are wanted, and what of it they need, is the business of the backbone.
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

# The two private names stay with their public callers, create_model and get_model_config: those build the
# text tower as well, and drop the preprocessing that stands beside a Hub model's description.

# The kinds of tower that there are, for whoever takes one apart.
ClipTransformer = open_clip.model.VisionTransformer
ClipResNet = open_clip.modified_resnet.ModifiedResNet
TimmTower = open_clip.model.TimmModel

_HUB_PREFIX = "hf-hub:"


@dataclass(frozen=True)
class PreprocessDefaults:
    """The pictures that a tower's weights expect, as open_clip has it.

    Attributes:
        size_px: side of the square input.
        mean: of red, green and blue, of values in [0, 1].
        std: likewise.
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
    """For timm, which gives options of pretrained weights: there are none."""
    return AlexNet()


def cct_14_7x2(**options: Any) -> nn.Module:
    """As above."""
    return CompactTransformer()


for _trunk in (alexnet, cct_14_7x2):
    timm.models.register_model(_trunk)


# --- Finding and building the tower -------------------------------------------------------------------------


@dataclass(frozen=True)
class TowerSource:
    """Where a tower comes from.

    Attributes:
        config: the self-contained one.
        description: embed_dim, vision_cfg and perhaps quick_gelu, as open_clip takes them.
        open_clip_name: under which open_clip has the pretrained weights that the config asks for, if it does.
        timm_name: likewise of timm, with its tag.
        local_file: the state dict that the config asks for, if it does.
    """

    config: BackboneConfig
    description: Mapping[str, Any]
    preprocess: PreprocessDefaults
    open_clip_name: str | None
    timm_name: str | None
    local_file: Path | None

    def build(self, *, load_pretrained: bool) -> nn.Module:
        """The tower, whole, in the form that the config describes; a local file is not loaded yet.

        Args:
            load_pretrained: with the weights that open_clip or timm has under its name, if the config asks for some.

        Raises:
            ConfigError: open_clip cannot build it.
            NotFoundError: the weights could not be fetched.
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
            tower.output_tokens = False  # CoCa's tower would return its tokens, too
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
        except Exception as error:  # whatever a network, a cache or an archive may raise
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
            if hasattr(tower, "set_input_size"):  # a timm trunk is born in its own default size
                tower.set_input_size(self.preprocess.size_px)
        except Exception as error:  # each architecture has its own way to refuse a value
            raise ConfigError(f"open_clip cannot build {dict(self.description)}: {error}") from error
        return tower


def _approximate_gelu(tower: nn.Module) -> None:
    for parent in list(tower.modules()):
        for name, child in parent.named_children():
            if type(child).__name__ == "GELU":  # torch's, and timm's of the same name
                setattr(parent, name, nn.GELU(approximate="tanh"))


def find_tower(config: BackboneConfig) -> TowerSource:
    """Where the tower of a config comes from; reads no weights.

    Raises:
        ConfigError: an unknown architecture, tag or key.
        NotFoundError: the description of an "hf-hub:" architecture could not be fetched.
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
    # Never timm's own download: what a config names as pretrained is all that is loaded.
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
    """A timm model alone as open_clip would describe it, and its pictures."""
    _check_timm_name(name)
    tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{name}.*")]
    if tag is not None and tag not in tags:
        raise ConfigError(
            f"backbone.pretrained is {tag!r}, which is no file here and no tag of timm's {name!r}; its tags are "
            f"{', '.join(tags) or 'none'}"
        )
    pictures = timm.get_pretrained_cfg(name if tag is None else f"{name}.{tag}")
    if pictures is None:
        pictures = timm.models.PretrainedCfg()
    # The projection goes with the features; asked for, it leaves the trunk its own way to pool.
    size = pictures.input_size[-1]
    vision = {"timm_model_name": name, "timm_pool": "", "timm_proj": "linear", "image_size": size}
    known = {"mean": pictures.mean, "std": pictures.std, "interpolation": pictures.interpolation}
    return {"embed_dim": 1, "vision_cfg": vision}, known


def _checked_tag(name: str, tag: str, description: Mapping[str, Any]) -> Mapping[str, Any]:
    """What open_clip knows of a tag: its pictures, among other things."""
    found: Mapping[str, Any] = open_clip.get_pretrained_cfg(name, tag)
    if not found:
        tags = open_clip.list_pretrained_tags_by_model(name)
        raise ConfigError(
            f"backbone.pretrained is {tag!r}, which is no file here and no tag of {name!r}; its tags are "
            f"{', '.join(tags) or 'none'}"
        )
    if found.get("quick_gelu") and not description.get("quick_gelu"):
        # open_clip only warns, and the features are then slightly wrong everywhere.
        raise ConfigError(
            f"the weights {tag!r} of {name!r} were trained with QuickGELU: ask for the architecture "
            f"{name + '-quickgelu'!r}"
        )
    return found


def _fetch_description(name: str) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """A Hub model's description and preprocessing, from the open_clip_config.json there."""
    try:
        found = _get_hf_config(name.removeprefix(_HUB_PREFIX))
        model = found["model_cfg"]
        custom = {key: model[key] for key in _DESCRIPTION_KEYS if key in model}
    except Exception as error:  # whatever a network, a cache or a foreign file may raise
        raise NotFoundError(
            f"could not fetch the description of {name!r}: {error}; check the name and the network"
        ) from error
    return _checked_custom(custom), found.get("preprocess_cfg", {})


def _preprocess_defaults(vision_cfg: Mapping[str, Any], known: Mapping[str, Any]) -> PreprocessDefaults:
    size = vision_cfg.get("image_size", open_clip.CLIPVisionCfg.image_size)
    if not isinstance(size, int):
        if len(set(size)) != 1:
            raise ConfigError(
                f"the tower takes pictures of {' x '.join(map(str, size))} px: give one image_size_px"
            )
        size = int(size[0])
    cfg = PreprocessCfg(**merge_preprocess_dict(PreprocessCfg(), known))
    return PreprocessDefaults(size, tuple(cfg.mean), tuple(cfg.std), cfg.interpolation, cfg.resize_mode)


# --- Local weights ------------------------------------------------------------------------------------------


def load_local(tower: nn.Module, path: Path, keys_of_whole: set[str]) -> None:
    """Load a state dict of the tower, a whole CLIP model, a Backbone or the timm trunk alone; strictly.

    Args:
        tower: already reduced to its features.
        path: a .safetensors file, or one of torch.save that holds tensors only.
        keys_of_whole: of the tower before it was reduced; what the file has beyond these is an error.

    Raises:
        CheckpointError: the file does not fit the tower exactly.
    """
    file = read_tensors(path)
    needed = tower.state_dict().keys()
    # Files older than PyTorch 1.0 do not count batches; the count is not used with a fixed momentum.
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
            f"({', '.join(missing[:3]) or 'none'}) and has {len(strange)} that are not its own "
            f"({', '.join(strange[:3]) or 'none'}); choose the architecture that the file was saved from"
        )
    # Another image size has another grid of position embeddings; open_clip resamples it under its prefix.
    whole = {f"visual.{key}": tensor for key, tensor in state.items()}
    resize_pos_embed(whole, SimpleNamespace(visual=tower))
    state = {key: whole[f"visual.{key}"] for key in state.keys() & needed}
    try:
        tower.load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(
            f"{path} does not fit the tower: {error}; choose the architecture it was saved from"
        ) from None
