"""Scale of embeddings in a loss."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from geoloc.errors import ConfigError


class EmbeddingScale(nn.Module):
    """Scale of both embeddings in a loss; Statewide's is 6, so logits are 36 times a cosine.

    Embeddings stay unit vectors, as the index stores them: give losses the `temperature`.

    Args:
        scale: length of both vectors.
        learnable: whether its logarithm is trained.

    Raises:
        ConfigError: the scale is not positive.
    """

    log_scale: Tensor

    def __init__(self, scale: float = 6.0, *, learnable: bool = False) -> None:
        super().__init__()
        if not 0 < scale < math.inf:
            raise ConfigError(f"an embedding's scale is {scale}; it must be positive")
        value = torch.tensor(math.log(scale))
        if learnable:
            self.log_scale = nn.Parameter(value)
        else:
            self.register_buffer("log_scale", value)

    def temperature(self) -> Tensor:
        """1 / scale², the divisor of cosines."""
        return torch.exp(-2 * self.log_scale)
