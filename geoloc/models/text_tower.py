"""Text tower (open_clip): sentences about locations as vectors, for image-text training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from geoloc.errors import ConfigError, NotFoundError
from geoloc.torchvision_cpu import ensure_importable

ensure_importable()  # open_clip imports torchvision

import open_clip  # noqa: E402
from open_clip.model import _build_text_tower  # noqa: E402


@dataclass(frozen=True)
class TextTowerConfig:
    """Config of a text tower: an open_clip model by name, or a custom one.

    Attributes:
        architecture: an open_clip model name.
        pretrained: tag of its weights.
        custom: instead of a name, `{"embed_dim": …, "text_cfg": {…}}` as open_clip describes text towers, and
            optionally `quick_gelu`.
    """

    architecture: str | None = None
    pretrained: str | None = None
    custom: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if (self.architecture is None) == (self.custom is None):
            raise ConfigError("texts needs exactly one of 'architecture' and 'custom'")


class TextTower(nn.Module):
    """Text tower from sentences to vectors, not normalised.

    Attributes:
        text_dim: D of a vector.

    Raises:
        ConfigError: open_clip cannot build it.
        NotFoundError: its weights could not be downloaded.
    """

    def __init__(self, config: TextTowerConfig) -> None:
        super().__init__()
        if config.custom is not None:
            try:
                text_cfg = dict(config.custom["text_cfg"])
                self.tower: nn.Module = _build_text_tower(
                    config.custom["embed_dim"],
                    text_cfg,
                    quick_gelu=bool(config.custom.get("quick_gelu")),
                )
            except (KeyError, TypeError, ValueError) as error:
                raise ConfigError(
                    f"open_clip cannot build the text tower {dict(config.custom)}: {error}"
                ) from error
            self.text_dim, length = int(config.custom["embed_dim"]), int(text_cfg.get("context_length", 77))
        else:
            assert config.architecture is not None
            if config.architecture not in open_clip.list_models():
                raise ConfigError(
                    f"open_clip has no architecture {config.architecture!r}; open_clip.list_models() has all"
                )
            try:
                model = open_clip.create_model(
                    config.architecture, config.pretrained, force_custom_text=True, require_pretrained=True
                )
            except Exception as error:  # any error of the network or the cache
                raise NotFoundError(
                    f"open_clip could not load the weights {config.pretrained!r} of {config.architecture!r}: {error}; "
                    "check the tag and the network"
                ) from error
            self.tower, length = model.text, int(model.text.context_length)
            self.text_dim = int(open_clip.get_model_config(config.architecture)["embed_dim"])
        self._tokenize = open_clip.SimpleTokenizer(context_length=length)

    def forward(self, sentences: Sequence[str]) -> Tensor:
        """B sentences -> (B, D)."""
        tokens = self._tokenize(list(sentences)).to(next(self.parameters()).device)
        vectors: Tensor = self.tower(tokens)
        return vectors.float() if vectors.dtype == torch.bfloat16 else vectors
