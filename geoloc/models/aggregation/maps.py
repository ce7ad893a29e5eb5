"""Feature maps of a backbone."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class FeatureMap:
    """Feature map: (B, C, H, W) activations and the tokens without position.

    Attributes:
        grid: (..., C, H, W) features by position.
        tokens: (..., T, C) class and register tokens; T is 0 for a convolutional trunk.
    """

    grid: Tensor
    tokens: Tensor

    def mean(self) -> Tensor:
        """Mean over positions, (..., C)."""
        return self.grid.mean((-2, -1))

    def by_location(self, num_views: int) -> FeatureMap:
        """B * V images as B locations with V views each."""
        grid, tokens = (part.unflatten(0, (-1, num_views)) for part in (self.grid, self.tokens))
        return FeatureMap(grid, tokens)

    def positions(self) -> Tensor:
        """All positions of all views, view by view and row by row: (B, V, C, H, W) -> (B, V H W, C)."""
        return self.grid.flatten(-2).transpose(-2, -1).flatten(1, 2)
