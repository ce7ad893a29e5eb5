"""Batch norm with frozen statistics is a scale and a shift: fold it into the convolution before it, and back.

Folded, a trunk of depthwise convolutions runs and trains about twice as fast on a CPU, and gives the same numbers.
Folding keeps the module tree, so the unfolded state dict fits the tower's own definition again.
"""

from __future__ import annotations

import torch
from torch import nn


def fold_batch_norm(module: nn.Module) -> None:
    """Move every `Conv2d -> BatchNorm2d` pair's normalisation into the convolution, in place.

    Pairs are found as neighbours in the module tree, in definition order; the norm becomes the identity function
    (a timm norm keeps its activation).
    """
    previous: nn.Module | None = None
    for name, child in list(module.named_children()):
        if isinstance(child, nn.BatchNorm2d) and isinstance(previous, nn.Conv2d):
            weight, bias = _folded(previous, child)
            previous.weight, previous.bias = nn.Parameter(weight), nn.Parameter(bias)
            setattr(module, name, FoldedNorm(child))
        else:
            fold_batch_norm(child)
        previous = child


def unfolded_state_dict(module: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict in the keys of the tower before folding: the norms carry the convolutions' biases."""
    state = {key: value.detach().clone() for key, value in module.state_dict().items()}
    for name, child in module.named_modules():
        children = list(child.named_children())
        for (conv_name, _), (norm_name, norm) in zip(children, children[1:], strict=False):
            if isinstance(norm, FoldedNorm):
                prefix = f"{name}." if name else ""
                bias = state.pop(f"{prefix}{conv_name}.bias")
                for key, value in norm.identity_state(bias).items():
                    state[f"{prefix}{norm_name}.{key}"] = value
    return state


class FoldedNorm(nn.Module):
    """Stands where a batch norm was: only the activation that timm keeps inside its norms is left."""

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.eps = norm.eps
        act = getattr(norm, "act", None)
        self.act = act if isinstance(act, nn.Module) else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply what is left: the activation."""
        return self.act(x)  # type: ignore[no-any-return]

    def identity_state(self, bias: torch.Tensor) -> dict[str, torch.Tensor]:
        """A batch norm's state that adds `bias` and does nothing else: its variance is 1 - eps."""
        ones = torch.ones_like(bias)
        return {
            "weight": ones,
            "bias": bias,
            "running_mean": torch.zeros_like(bias),
            "running_var": ones - self.eps,
            "num_batches_tracked": torch.tensor(0),
        }


def _folded(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[torch.Tensor, torch.Tensor]:
    if norm.running_mean is None or norm.running_var is None:
        raise ValueError("a batch norm without running statistics cannot be folded")
    scale = norm.weight.detach() / torch.sqrt(norm.running_var + norm.eps)
    shift = norm.bias.detach() - norm.running_mean * scale
    bias = shift if conv.bias is None else conv.bias.detach() * scale + shift
    return conv.weight.detach() * scale[:, None, None, None], bias
