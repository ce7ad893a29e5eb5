"""A real Geolocalizer that is small enough for tests: a two-layer vision transformer with random weights."""

import numpy as np
import torch

from geoloc.images.preprocess import Preprocess
from geoloc.localize.calibrate import Calibration
from geoloc.localize.geolocalizer import Geolocalizer
from geoloc.models.backbone import Backbone
from geoloc.models.config import BackboneConfig, CellHeadConfig, NetworkConfig, OffsetHeadConfig
from geoloc.models.network import GeoNetwork
from quadtree import build_quadtree


def make_tiny_model(name: str = "tiny") -> Geolocalizer:
    rng = np.random.default_rng(0)
    latlon_deg = np.stack([rng.uniform(-60, 70, 2000), rng.uniform(-180, 180, 2000)], axis=1)
    quadtree = build_quadtree(latlon_deg, max_points_per_cell=100, max_depth=5)
    vision = {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8, "head_width": 16}
    config = NetworkConfig(
        backbone=BackboneConfig(custom={"embed_dim": 32, "vision_cfg": vision}, features="projected"),
        cells=CellHeadConfig(),
        offsets=OffsetHeadConfig(hidden_dims=(16,)),
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = GeoNetwork(
            config,
            Backbone(config.backbone, load_pretrained=False),
            quadtree.bounds_deg,
            quadtree.center_latlon_deg,
        )
    preprocess = Preprocess(image_size_px=32, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    levels = {kind: {"50": 0.5, "90": 0.9} for kind in ("geoscore", "median")}
    return Geolocalizer(name, network, preprocess, quadtree, Calibration(mass_levels=levels))
