"""Low-rank adaptation (LoRA, Hu et al. 2021, arXiv:2106.09685) of the query, key and value projections.

The modules replace the layer that they adapt and keep its parameter names, so a state dict with LoRA is the plain one
plus `lora_down` and `lora_up`; `merged` returns the plain one. `geoloc.models.fine_tune` finds the layers.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class _QkvLora(nn.Module):
    """Update of a packed projection W (3 D, D): W + scale * up @ down, for each of q, k, v.

    `lora_up` starts at zero, so the adapted layer starts equal to the original.
    """

    def _add_lora(self, dim: int, rank: int, alpha: float, dropout: float, like: Tensor) -> None:
        self.lora_scale = alpha / rank
        self.lora_dropout = nn.Dropout(dropout)
        self.lora_down = nn.Parameter(torch.empty(3, rank, dim, device=like.device, dtype=like.dtype))
        self.lora_up = nn.Parameter(torch.zeros(3, dim, rank, device=like.device, dtype=like.dtype))
        for down in self.lora_down:
            nn.init.kaiming_uniform_(down, a=5**0.5)  # as nn.Linear starts its weights

    def _update(self, x: Tensor) -> Tensor:
        """The update of the projection, (B, L, D) -> (B, L, 3 D)."""
        hidden = torch.einsum("bld,grd->blgr", self.lora_dropout(x), self.lora_down)
        return torch.einsum("blgr,gdr->blgd", hidden, self.lora_up).flatten(2) * self.lora_scale


class LoraQkvLinear(nn.Linear, _QkvLora):
    """A packed qkv linear layer (timm's attention) with LoRA; `weight` and `bias` are the original ones."""

    def __init__(self, layer: nn.Linear, rank: int, alpha: float, dropout: float) -> None:
        super().__init__(layer.in_features, layer.out_features, bias=False, device="meta")
        self.weight, self.bias = layer.weight, layer.bias
        self._add_lora(layer.in_features, rank, alpha, dropout, layer.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, 3 D)."""
        return functional.linear(x, self.weight, self.bias) + self._update(x)


class LoraSelfAttention(_QkvLora):
    """Replacement of an `nn.MultiheadAttention` used as self-attention, with LoRA on its input projection.

    PyTorch's own forward cannot apply dropout to the input of the update only.
    """

    def __init__(self, layer: nn.MultiheadAttention, rank: int, alpha: float, dropout: float) -> None:
        super().__init__()
        if not layer.batch_first or layer.in_proj_weight is None or layer.bias_k is not None or layer.dropout:
            raise ValueError(
                "LoRA adapts a batch-first self-attention without dropout and without added keys only"
            )
        self.num_heads = layer.num_heads
        self.in_proj_weight, self.in_proj_bias = layer.in_proj_weight, layer.in_proj_bias
        self.out_proj = layer.out_proj
        self._add_lora(layer.embed_dim, rank, alpha, dropout, layer.in_proj_weight)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
    ) -> tuple[Tensor, None]:
        """Self-attention, (B, L, D) three times the same -> (B, L, D), and None instead of attention weights."""
        qkv = functional.linear(query, self.in_proj_weight, self.in_proj_bias) + self._update(query)
        batch, length, _ = query.shape
        q, k, v = qkv.view(batch, length, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask)
        return self.out_proj(mixed.transpose(1, 2).reshape(batch, length, -1)), None


def merged(module: nn.Module) -> dict[str, Tensor]:
    """State dict of the module without LoRA, with the same outputs."""
    state: dict[str, Tensor] = dict(module.state_dict())
    for prefix, layer in module.named_modules():
        if isinstance(layer, _QkvLora):
            down, up = (state.pop(f"{prefix}.{name}") for name in ("lora_down", "lora_up"))
            name = f"{prefix}.weight" if isinstance(layer, LoraQkvLinear) else f"{prefix}.in_proj_weight"
            state[name] = state[name] + layer.lora_scale * (up @ down).flatten(0, 1)
    return state
