"""AlexNet with one tower (Krizhevsky, 2014, arXiv:1404.5997), which timm lacks; modules are numbered as in torchvision.

It has the interface of a timm trunk that `geoloc.models.backbone` uses.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class AlexNet(nn.Module):
    """The five convolutions, without the classifier.

    Attributes:
        head: mean over positions; with an identity the map is the output.
    """

    num_features = 256

    def __init__(self) -> None:
        super().__init__()
        self.default_cfg: dict[str, Any] = {}
        self.features = nn.Sequential(
            nn.Conv2d(3, 64, 11, stride=4, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2),
            nn.Conv2d(64, 192, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2),
            nn.Conv2d(192, 384, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(384, 256, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(256, 256, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2),
        )
        self.head: nn.Module = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 256), or the map, (B, 256, H', W')."""
        return self.head(self.features(images))  # type: ignore[no-any-return]

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Do nothing, because there is no classifier (interface of timm)."""
