"""OSV-5M's own towers gave the features and coordinates in fixtures/osv5m_training.json; see HOW.md there."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from named_numbers import digest, pictures, state_of
from precision import double_precision, doubled
from torch import Tensor

from geoloc.adapters.adapted import Adapted
from geoloc.adapters.osv5m import adapt_training_checkpoint, is_training_checkpoint
from geoloc.adapters.tensors import ForeignTensors
from geoloc.errors import CheckpointError, ConfigError

FIXTURES = Path(__file__).parent / "fixtures"
MADE: dict[str, Any] = json.loads((FIXTURES / "osv5m_training.json").read_text())
TOWER = FIXTURES / "osv5m_tiny" / "baseline" / "tower_gelu"


def state(name: str) -> dict[str, Tensor]:
    made = MADE[name]
    numbers = state_of(made["tensors"], made["gain"])
    larger = made["pos_gain"] or 1.0  # so that where positions are taken from is seen in what comes out
    return {n: t * larger if n.endswith("pos_embed") else t for n, t in numbers.items()}


def adapted(name: str, **change: Tensor) -> Adapted:
    file = ForeignTensors(doubled(state(name) | change), "last.ckpt")
    assert is_training_checkpoint(file)
    return adapt_training_checkpoint(file, TOWER if name == "text" else None)


@pytest.mark.parametrize("name", ["resnet50", "dinov2_vits14", "text"])
def test_the_same_numbers_as_the_peer(name: str) -> None:
    made = MADE[name]
    assert digest(state(name)) == made["sha256"]
    with double_precision():
        network = adapted(name).network.double()
    with torch.inference_mode():
        output = network(pictures(made["image_size_px"], made["number"]).double())
    theirs = torch.tensor(made["features"], dtype=torch.float64)
    torch.testing.assert_close(output.features[:, :64], theirs, rtol=0, atol=1e-6)
    assert output.latlon_rad is not None
    # The peer takes pi in single precision, which alone is up to 5e-6 degrees.
    np.testing.assert_allclose(
        np.degrees(output.latlon_rad.numpy()), np.degrees(made["gps_rad"]), rtol=0, atol=1e-5
    )


def test_what_the_pictures_are() -> None:
    """OSV-5M normalises as CLIP does for all towers but ResNet-50."""
    resnet, dino = adapted("resnet50").preprocess, adapted("dinov2_vits14").preprocess
    assert (resnet.image_size_px, resnet.resize, resnet.interpolation) == (224, "shortest", "bicubic")
    assert (resnet.mean, resnet.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert (dino.image_size_px, dino.mean) == (224, (0.48145466, 0.4578275, 0.40821073))
    assert adapted("text").preprocess.image_size_px == 28


def test_a_tensor_that_no_resnet_has_is_named() -> None:
    with pytest.raises(CheckpointError, match=r"backbone\.resnet\.strange"):
        adapted("resnet50", **{"model.backbone.resnet.strange": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"layer1\.0\.conv9\.weight"):
        layer = "model.backbone.resnet.encoder.stages.0.layers.0.layer.8.convolution.weight"
        adapted("resnet50", **{layer: torch.zeros(1)})


def test_a_clip_needs_its_name() -> None:
    with pytest.raises(ConfigError, match="give tower= one of"):
        adapt_training_checkpoint(ForeignTensors(state("text"), "last.ckpt"))
