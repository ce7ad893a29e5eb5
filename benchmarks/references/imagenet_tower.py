"""An EfficientNet-Lite0 as ImageNet left it, in the role of a model that embeds references and queries."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from geoloc.images import Preprocess, load_and_preprocess
from geoloc.models.backbone import Backbone
from geoloc.models.config import BackboneConfig
from projects.earthview.training import load_imagenet_trunk


class ImagenetTower:
    """Pooled features at unit length; knows nothing about places."""

    def __init__(self, size_px: int) -> None:
        vision = {
            "timm_model_name": "tf_efficientnet_lite0",
            "timm_pool": "avg",
            "timm_proj": "",
            "image_size": size_px,
        }
        config = BackboneConfig(custom={"embed_dim": 1280, "vision_cfg": vision}, features="pooled")
        self.backbone = Backbone(config, load_pretrained=False).eval()
        load_imagenet_trunk(self.backbone)
        self.preprocess = Preprocess(image_size_px=size_px, mean=(0.5,) * 3, std=(0.5,) * 3)
        self.embedding_fingerprint = f"efficientnet-lite0-imagenet-{size_px}"
        self.embedding_dim = 1280

    def embed_reference(self, images: torch.Tensor, source: str) -> NDArray[np.float32]:
        """Unit vectors (B, 1280) of images (B, 3, S, S), whatever the source."""
        with torch.inference_mode():
            features = self.backbone(images.contiguous(memory_format=torch.channels_last))
            return np.asarray(torch.nn.functional.normalize(features, dim=-1).numpy())

    def embed(self, images: list[Any], batch_size: int = 32) -> NDArray[np.float32]:
        """Unit vectors of images in any form."""
        parts = []
        for start in range(0, len(images), batch_size):
            batch = [
                load_and_preprocess(image, self.preprocess) for image in images[start : start + batch_size]
            ]
            parts.append(self.embed_reference(torch.stack(batch), "query"))
        return np.concatenate(parts)


def all_rows(database: Any) -> tuple[NDArray[np.float32], NDArray[np.float64], list[str]]:
    """Vectors (n, dim), coordinates (n, 2) and keys of a small database."""
    vectors = np.concatenate([np.asarray(s.vectors, np.float32) for s in database.segments])
    latlon_deg = np.concatenate([np.asarray(s.latlon_deg) for s in database.segments])
    keys = [key for s in database.segments for part in s.column("key") for key in part.to_pylist()]
    return vectors, latlon_deg, keys
