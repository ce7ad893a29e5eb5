"""A whole model, built in milliseconds: a two-layer ViT of 32 px, a dozen cells, random weights.

    model = tiny_geolocalizer()                     # cells and offsets
    model = tiny_geolocalizer(offsets=None)         # any part of NetworkConfig

Its answers mean nothing, but they differ from image to image, and everything about it is real.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from geoloc.images.preprocess import Preprocess
from geoloc.localize.geolocalizer import Geolocalizer
from geoloc.models.backbone import Backbone
from geoloc.models.config import BackboneConfig, CellHeadConfig, NetworkConfig, OffsetHeadConfig
from geoloc.models.network import GeoNetwork
from geoloc.posterior.calibration import Calibration
from quadtree import Quadtree, build_quadtree

IMAGE_SIZE_PX = 32

VIT = {
    "embed_dim": 16,
    "vision_cfg": {"layers": 2, "width": 32, "head_width": 16, "patch_size": 8, "image_size": IMAGE_SIZE_PX},
}

CALIBRATION = Calibration(
    temperature=0.8,
    cell_kernel=0.3,
    mass_levels={"geoscore": {"50": 0.4, "90": 0.85}, "median": {"50": 0.45, "90": 0.8}},
    num_images=100,
    data="nothing: made up for tests",
)


def tiny_quadtree(num_points: int = 60) -> Quadtree:
    """Cells of very different sizes, all over the Earth, at the poles and the antimeridian, too."""
    rng = np.random.default_rng(0)
    latitude = np.degrees(np.arcsin(rng.uniform(-1, 1, num_points)))
    points = np.stack([latitude, rng.uniform(-180, 180, num_points)], -1)
    return build_quadtree(points, max_points_per_cell=12, max_depth=4)


def tiny_geolocalizer(
    calibration: Calibration | None = CALIBRATION,
    seed: int = 0,
    quadtree: Quadtree | None = None,
    **network: Any,
) -> Geolocalizer:
    """A model in working order.

    Args:
        calibration: None for a model that was never calibrated.
        seed: another seed, other answers.
        quadtree: of its cells; None is `tiny_quadtree()`.
        network: parts of NetworkConfig to replace, such as `offsets=None` or `cells=None`.
    """
    parts = {"cells": CellHeadConfig(), "offsets": OffsetHeadConfig(hidden_dims=(16,))} | network
    config = NetworkConfig(**({"backbone": BackboneConfig(custom=VIT, features="pooled")} | parts))
    tree = (quadtree or tiny_quadtree()) if config.cells is not None else None
    torch.manual_seed(seed)
    backbone = Backbone(config.backbone)
    cells = (None, None) if tree is None else (tree.bounds_deg, tree.center_latlon_deg)
    aerial = [] if config.aerial_backbone is None else [Backbone(config.aerial_backbone)]
    net = GeoNetwork(config, backbone, *cells, *aerial)
    with torch.no_grad():
        # As after training: the classifier has an opinion, and the offsets are not 0.
        if net.cells is not None:
            net.cells[-1].weight.mul_(8)
        if net.offsets is not None:
            torch.nn.init.normal_(net.offsets.mlp[-1].weight, std=0.5)
    defaults = backbone.preprocess_defaults
    preprocess = Preprocess(image_size_px=defaults.size_px, mean=defaults.mean, std=defaults.std)
    return Geolocalizer("tiny", net, preprocess, tree, calibration, card="# tiny\n\nA model for tests.\n")


def tiny_image(seed: int = 0, height: int = 48, width: int = 64) -> NDArray[np.uint8]:
    """A smooth picture, (height, width, 3) uint8; every seed another one."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    waves = [
        rng.uniform(0.2, 1) * np.sin(rng.uniform(-9, 9) * x + rng.uniform(-9, 9) * y + p) for p in (0, 2, 4)
    ]
    return np.asarray(127.5 + 120 * np.stack(waves, -1)).astype(np.uint8)


def tiny_checkpoint(folder: Path, **options: Any) -> Path:
    """Save `tiny_geolocalizer(**options)` as a checkpoint, and return its folder."""
    tiny_geolocalizer(**options).save_pretrained(folder)
    return folder
