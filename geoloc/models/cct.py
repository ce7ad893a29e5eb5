"""CCT, the Compact Convolutional Transformer (Hassani et al., 2021, arXiv:2104.05704), which timm lacks.

Convolutions and poolings make overlapping tokens, a transformer processes them, and SeqPool weights them into one
vector; there is no class token. It has the interface of a timm trunk that `geoloc.models.backbone` uses.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class CompactTransformer(nn.Module):
    """A CCT with learned position embeddings; the defaults are CCT-14/7x2.

    Args:
        depth: number of transformer blocks.
        dim: width of a token.
        num_heads: number of attention heads.
        mlp_ratio: hidden width of a block relative to `dim`.
        kernel_px: kernel size of the tokenizer's two convolutions; these and the poolings halve the sides.
        image_size_px: side of the images.

    Attributes:
        head: SeqPool, the softmax of a learned score over the tokens; with an identity the tokens are the output.
    """

    cls_token = None
    num_prefix_tokens = 0

    def __init__(
        self,
        depth: int = 14,
        dim: int = 384,
        num_heads: int = 6,
        mlp_ratio: float = 3,
        kernel_px: int = 7,
        image_size_px: int = 224,
    ) -> None:
        super().__init__()
        self.num_features = dim
        self.default_cfg: dict[str, Any] = {}
        self.tokenizer = nn.Sequential(_halved_twice(3, 64, kernel_px), _halved_twice(64, dim, kernel_px))
        side = self._side(image_size_px)
        self.pos_embed = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, side * side, dim), std=0.2))
        self.blocks = nn.Sequential(*(_Block(dim, num_heads, mlp_ratio) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim)
        self.head: nn.Module = _SequencePooling(dim)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, dim), or the tokens, row by row, (B, N, dim), without head."""
        tokens = self.tokenizer(images).flatten(2).transpose(1, 2)
        x: Tensor = self.head(self.norm(self.blocks(tokens + self.pos_embed)))
        return x

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Do nothing, because there is no classifier (interface of timm)."""

    def set_input_size(self, image_size_px: int) -> None:
        """Interpolate the position embeddings for another image size."""
        side, before = self._side(image_size_px), math.isqrt(self.pos_embed.shape[1])
        if side != before:
            grid = self.pos_embed.detach().transpose(1, 2).unflatten(-1, (before, before))
            grid = functional.interpolate(grid, size=(side, side), mode="bilinear")
            self.pos_embed = nn.Parameter(grid.flatten(2).transpose(1, 2))

    @staticmethod
    def _side(image_size_px: int) -> int:
        side = image_size_px
        for _ in range(4):
            side = (side + 1) // 2
        return side


def _halved_twice(inputs: int, outputs: int, kernel_px: int) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, kernel_px, stride=2, padding=kernel_px // 2, bias=False)
    nn.init.kaiming_normal_(convolution.weight)
    return nn.Sequential(convolution, nn.ReLU(), nn.MaxPool2d(3, stride=2, padding=1))


class _Block(nn.Module):
    """Transformer block; the second norm is on the residual path."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attention = _Attention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim)
        hidden = int(dim * mlp_ratio)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm2(x + self.attention(self.norm1(x)))
        return x + self.mlp(x)  # type: ignore[no-any-return]


class _Attention(nn.Module):
    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        out = functional.scaled_dot_product_attention(query, key, value)
        return self.proj(out.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class _SequencePooling(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.score = nn.Linear(dim, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        weights: Tensor = self.score(tokens).softmax(1)
        return (weights * tokens).sum(1)
