"""Folding changes no number that matters; unfolding gives back a state dict of the tower's own definition."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from geoloc.models.backbone import Backbone
from geoloc.models.batch_norm import FoldedNorm, fold_batch_norm, unfolded_state_dict
from geoloc.models.config import BackboneConfig

SIZE_PX = 64


def timm_config(name: str) -> BackboneConfig:
    vision = {"timm_model_name": name, "timm_pool": "avg", "timm_proj": "", "image_size": SIZE_PX}
    return BackboneConfig(custom={"embed_dim": 8, "vision_cfg": vision})


VIT = BackboneConfig(
    custom={
        "embed_dim": 16,
        "vision_cfg": {"layers": 2, "width": 32, "head_width": 16, "patch_size": 8, "image_size": 32},
    }
)


def trained(config: BackboneConfig) -> Backbone:
    """A tower whose batch norms do something, as after training."""
    torch.manual_seed(0)
    backbone = Backbone(config).eval()
    for norm in backbone.modules():
        if isinstance(norm, nn.BatchNorm2d) and norm.weight is not None:
            nn.init.normal_(norm.running_mean, std=0.2)  # type: ignore[arg-type]
            nn.init.uniform_(norm.running_var, 0.4, 2.5)  # type: ignore[arg-type]
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, std=0.2)
    return backbone


def images(count: int = 2, size_px: int = SIZE_PX) -> Tensor:
    return torch.randn(count, 3, size_px, size_px, generator=torch.Generator().manual_seed(1))


def count(backbone: nn.Module, kind: type[nn.Module]) -> int:
    return sum(isinstance(module, kind) for module in backbone.modules())


@torch.no_grad()
def relative_difference(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / a.abs().max())


# How many norms are folded, and how many have no convolution right before them.
TRUNKS = {
    "tf_efficientnet_lite0": (49, 0),  # Conv2dSame, depthwise convolutions, activations inside the norms
    "test_resnet": (14, 1),
}


@pytest.mark.parametrize("name", TRUNKS)
def test_folding_keeps_the_features_and_unfolding_the_state_dict(name: str) -> None:
    config, (folded, left) = timm_config(name), TRUNKS[name]
    backbone = trained(config)
    keys = list(backbone.state_dict())
    with torch.no_grad():
        before = backbone(images())
        fold_batch_norm(backbone)
        after = backbone(images())
    assert count(backbone, FoldedNorm) == folded
    assert count(backbone, nn.BatchNorm2d) == left
    assert relative_difference(before, after) < 2e-5

    state = unfolded_state_dict(backbone)
    assert sorted(state) == sorted(keys)
    plain = Backbone(config).eval()
    plain.load_state_dict(state)  # strict: every key, every shape
    with torch.no_grad():
        assert relative_difference(before, plain(images())) < 2e-5

    # A checkpoint that is loaded and saved again stays the same, bit for bit.
    fold_batch_norm(plain)
    for key, tensor in unfolded_state_dict(plain).items():
        assert torch.equal(tensor, state[key]), key


def test_a_vision_transformer_stays_as_it_is() -> None:
    backbone = Backbone(VIT).eval()
    before, modules = {k: v.clone() for k, v in backbone.state_dict().items()}, list(backbone.modules())
    fold_batch_norm(backbone)
    assert list(backbone.modules()) == modules
    state = unfolded_state_dict(backbone)
    assert list(state) == list(before)
    assert all(torch.equal(state[key], before[key]) for key in before)


def test_a_trunk_that_runs_in_another_order_than_it_is_defined_is_left_alone() -> None:
    """RepViT defines conv, conv1, bn and computes bn(conv(x) + conv1(x) + x)."""
    backbone = trained(timm_config("repvit_m0_9"))
    with torch.no_grad():
        before, state = backbone(images()), {k: v.clone() for k, v in backbone.state_dict().items()}
        fold_batch_norm(backbone)
        assert torch.equal(backbone(images()), before)
    assert count(backbone, FoldedNorm) == 0
    found = unfolded_state_dict(backbone)
    assert list(found) == list(state)
    assert all(torch.equal(found[key], state[key]) for key in state)


class Standardised(nn.Conv2d):
    """Weight standardisation: the scale that folding would give the weights is divided out again."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight / self.weight.std((1, 2, 3), keepdim=True)
        return nn.functional.conv2d(x, weight, self.bias)


class Toy(nn.Module):
    """What folding asks of a backbone."""

    class preprocess_defaults:
        size_px = 8

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).mean((2, 3))  # type: ignore[no-any-return]


def shifted(norm: nn.BatchNorm2d) -> nn.BatchNorm2d:
    if norm.running_mean is not None:
        nn.init.constant_(norm.running_mean, 0.5)
    if norm.weight is not None:
        nn.init.constant_(norm.weight, 3.0)
    return norm


@pytest.mark.parametrize(
    "layers",
    [
        lambda: (Standardised(3, 4, 1), shifted(nn.BatchNorm2d(4))),
        lambda: (nn.Conv2d(3, 4, 1), shifted(nn.BatchNorm2d(4, affine=False))),
        lambda: (nn.Conv2d(3, 4, 1), shifted(nn.BatchNorm2d(4, track_running_stats=False))),
        lambda: (nn.Conv2d(3, 4, 1), nn.ReLU(), shifted(nn.BatchNorm2d(4))),
    ],
    ids=["weight standardisation", "no weights", "no statistics", "no neighbours"],
)
def test_what_cannot_be_folded_stays(layers: Any) -> None:
    toy = Toy(*layers()).eval()
    before = list(toy.modules())
    fold_batch_norm(toy)  # type: ignore[arg-type]
    assert list(toy.modules()) == before


def test_a_bias_of_the_convolutions_own_is_kept_apart() -> None:
    toy = Toy(nn.Conv2d(3, 4, 3), shifted(nn.BatchNorm2d(4))).eval()
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        before, keys = toy(x), list(toy.state_dict())
        fold_batch_norm(toy)  # type: ignore[arg-type]
        assert torch.allclose(toy(x), before, atol=1e-6)
        plain = Toy(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
        state = unfolded_state_dict(toy)
        assert sorted(state) == sorted(keys)
        plain.load_state_dict(state)
        assert torch.allclose(plain(x), before, atol=1e-6)


def test_another_state_can_be_unfolded() -> None:
    """As when LoRA was merged first."""
    toy = Toy(nn.Conv2d(3, 4, 3, bias=False), shifted(nn.BatchNorm2d(4))).eval()
    fold_batch_norm(toy)  # type: ignore[arg-type]
    given = {key: torch.full_like(tensor, 7.0) for key, tensor in toy.state_dict().items()}
    state = unfolded_state_dict(toy, given)
    assert state["layers.0.weight"].unique().tolist() == [7.0]
    assert state["layers.1.bias"].tolist() == [7.0] * 4
    assert "layers.0.bias" not in state
    assert set(given) == set(toy.state_dict())  # not changed in place


def test_folding_keeps_modes_and_what_trains() -> None:
    toy = Toy(nn.Conv2d(3, 4, 1, bias=False), shifted(nn.BatchNorm2d(4)), nn.Dropout()).train()
    toy.layers[0].requires_grad_(False)
    toy.layers[2].eval()
    fold_batch_norm(toy)  # type: ignore[arg-type]
    assert isinstance(toy.layers[1], FoldedNorm)
    assert [layer.training for layer in toy.layers] == [True, True, False]
    conv = toy.layers[0]
    assert isinstance(conv, nn.Conv2d)
    assert conv.bias is not None
    assert (conv.weight.requires_grad, conv.bias.requires_grad) == (False, True)
