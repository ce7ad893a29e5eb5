"""timm models alone, cropped and frozen; torchvision's models of the same weights are the witness."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from geoloc.errors import ConfigError, NotFoundError
from geoloc.models.backbone import Backbone
from geoloc.models.config import BackboneConfig
from geoloc.models.fine_tune import FineTune
from geoloc.models.plain import from_plain, to_plain

import torchvision  # isort: skip  importable since conftest.py


def tower(name: str, size_px: int = 64, **options: Any) -> Backbone:
    torch.manual_seed(0)
    parts: dict[str, Any] = {"timm": name, "features": "map", "image_size_px": size_px}
    return Backbone(BackboneConfig(**(parts | options))).eval()


def trunk_of(backbone: Backbone) -> Any:
    """Untyped: PyTorch says of a submodule that it may be a tensor."""
    return backbone.tower.trunk if hasattr(backbone.tower, "trunk") else backbone.tower


def images(size_px: int = 64) -> Tensor:
    return torch.rand(2, 3, size_px, size_px, generator=torch.Generator().manual_seed(1))


def give_weights(source: nn.Module, target: nn.Module) -> None:
    """Both define the same layers in the same order, under other names."""
    state, names = list(source.state_dict().values()), list(target.state_dict())
    assert len(state) == len(names)
    target.load_state_dict(dict(zip(names, state, strict=True)))


def random_norms(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(2)
    for name, tensor in model.state_dict().items():
        if "running" in name:
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return model.eval()


def resnet(build: Callable[..., nn.Module], dropped: int) -> nn.Module:
    """CosPlace's and the benchmark's way: the children but the last two (conv5) or three (conv4)."""
    return nn.Sequential(*list(build(weights=None).children())[:-dropped])


def efficientnet(build: Callable[..., nn.Module]) -> nn.Module:
    return build(weights=None).features  # type: ignore[return-value]


MODELS = torchvision.models
PUBLISHED: dict[str, tuple[Callable[[], nn.Module], Callable[[], Backbone], int]] = {
    "resnet18 conv5": (lambda: resnet(MODELS.resnet18, 2), lambda: tower("resnet18"), 512),
    "resnet18 conv4": (
        lambda: resnet(MODELS.resnet18, 3),
        lambda: tower("resnet18", crop_after="layer3"),
        256,
    ),
    "resnet50 conv4": (lambda: resnet(MODELS.resnet50, 3), lambda: tower("resnet50", crop_blocks=3), 1024),
    "vgg16": (
        # Its features alone: the whole has 138 M parameters.
        lambda: MODELS.vgg._vgg("D", False, None, False, num_classes=1).features[:-2],
        lambda: tower("vgg16", crop_after="features.28"),
        512,
    ),
    "alexnet": (
        lambda: MODELS.alexnet().features[:-2],
        lambda: tower("alexnet", crop_after="features.10"),
        256,
    ),
    "efficientnet_b0": (
        lambda: efficientnet(MODELS.efficientnet_b0),
        lambda: tower("efficientnet_b0"),
        1280,
    ),
    "efficientnet_b5": (
        lambda: efficientnet(MODELS.efficientnet_b5),
        lambda: tower("efficientnet_b5", batch_norm_eps=1e-3),
        2048,
    ),
}


@pytest.mark.parametrize(("published", "ours", "channels"), PUBLISHED.values(), ids=PUBLISHED)
def test_weights_published_for_torchvision_give_the_same_maps(
    published: Callable[[], nn.Module], ours: Callable[[], Backbone], channels: int
) -> None:
    theirs, backbone = random_norms(published()), ours()
    give_weights(theirs, backbone)
    with torch.no_grad():
        expected, found = theirs(images()), backbone.feature_map(images()).grid
    assert backbone.feature_dim == channels == found.shape[1]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("test_resnet", {}),
        ("test_resnet", {"crop_after": "layer2"}),
        ("test_efficientnet", {"crop_blocks": 2}),
        ("alexnet", {"features": "pooled"}),
        ("cct_14_7x2", {"crop_blocks": 2, "final_norm": True}),
        ("cct_14_7x2", {"features": "pooled"}),
        ("test_vit", {"crop_after": "blocks.2"}),
        ("test_vit", {"crop_blocks": 2, "final_norm": True}),
        ("test_vit", {"features": "pooled"}),
        ("test_vit", {"features": "cls_before_norm"}),
    ],
)
def test_every_parameter_is_needed(name: str, options: dict[str, Any]) -> None:
    backbone = tower(name, **options)
    maps = [backbone(images())]
    if backbone.config.features == "map":
        found = backbone.feature_map(images())
        maps = [found.grid, found.tokens]
    sum(part.square().sum() for part in maps).backward()  # type: ignore[union-attr]
    assert [key for key, parameter in backbone.named_parameters() if parameter.grad is None] == []


def test_gelu_by_its_tanh_approximation() -> None:
    exact, approximate = tower("test_vit"), tower("test_vit", tanh_gelu=True)
    approximate.load_state_dict(exact.state_dict())
    kinds = [str(m) for m in approximate.modules() if "GELU" in type(m).__name__]
    assert kinds
    assert set(kinds) == {"GELU(approximate='tanh')"}
    with torch.no_grad():
        difference = (exact(images()) - approximate(images())).abs().max()
    assert 0 < difference < 1e-2


def test_a_cropped_transformer_is_the_whole_one_stopped() -> None:
    whole, cropped = tower("test_vit"), tower("test_vit", crop_blocks=2, final_norm=True)
    trunk = trunk_of(whole)
    cropped.load_state_dict(whole.state_dict(), strict=False)
    seen: list[Tensor] = []
    trunk.blocks[1].register_forward_hook(lambda _, __, output: seen.append(output))
    with torch.no_grad():
        whole.feature_map(images())
        found = cropped.feature_map(images())
        expected = nn.functional.layer_norm(seen[0], seen[0].shape[-1:], eps=trunk_of(cropped).norm.eps)
    torch.testing.assert_close(found.tokens, expected[:, : found.tokens.shape[1]])
    positions = found.grid.flatten(2).transpose(1, 2)
    torch.testing.assert_close(positions, expected[:, found.tokens.shape[1] :])


def test_open_clips_own_towers_are_cropped_and_frozen_alike() -> None:
    vision = {"layers": 3, "width": 32, "head_width": 16, "patch_size": 8, "image_size": 32}
    config = BackboneConfig(custom={"embed_dim": 16, "vision_cfg": vision}, features="map")
    whole = Backbone(config)
    by_name = Backbone(replace(config, crop_after="transformer.resblocks.1"))
    by_depth = Backbone(replace(config, crop_blocks=2))
    assert by_name.state_dict().keys() == by_depth.state_dict().keys() < whole.state_dict().keys()
    by_depth.load_state_dict(by_name.state_dict())
    torch.testing.assert_close(by_depth.feature_map(images(32)).grid, by_name.feature_map(images(32)).grid)
    by_name.fine_tune(FineTune("full", freeze_blocks=1))
    frozen = {name for name, p in by_name.named_parameters() if not p.requires_grad}
    assert "tower.positional_embedding" in frozen
    assert {name.split(".")[3] for name in frozen if "resblocks" in name} == {"0"}
    assert trunk_of(by_name).transformer.resblocks[1].mlp.c_fc.weight.requires_grad


@pytest.mark.parametrize(
    ("name", "strategy", "trained"),
    [
        ("test_resnet", FineTune("full", freeze_before="layer3"), {"layer3", "layer4"}),
        ("test_resnet", FineTune("full", freeze_blocks=2), {"layer3", "layer4"}),
        ("test_resnet", FineTune("full", freeze_blocks=0), {"layer1", "layer2", "layer3", "layer4"}),
        ("test_efficientnet", FineTune("full", freeze_before="blocks.1"), {"blocks", "conv_head", "bn2"}),
    ],
)
def test_what_comes_before_stays_as_it_is(name: str, strategy: FineTune, trained: set[str]) -> None:
    backbone = tower(name)
    backbone.fine_tune(strategy)
    names = [key.split(".") for key, p in backbone.named_parameters() if p.requires_grad]
    assert {parts[2] for parts in names} == trained
    if name == "test_efficientnet":
        assert "0" not in {parts[3] for parts in names if parts[2] == "blocks"}
    first = next(module for module in trunk_of(backbone).children() if list(module.parameters()))
    backbone.train()
    assert not first.training


def test_pictures_are_timms() -> None:
    defaults = tower("vit_tiny_patch16_224", 32).preprocess_defaults
    assert (defaults.mean, defaults.std) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    defaults = tower("vgg11", 32, crop_after="features.2", pretrained=None).preprocess_defaults
    assert (defaults.mean[0], defaults.interpolation) == (0.485, "bilinear")


def test_timms_tags_of_pretrained_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    asked: list[tuple[str, bool]] = []
    create = timm.create_model

    def spy(name: str, pretrained: bool = False, **options: Any) -> nn.Module:
        asked.append((name, pretrained))
        if pretrained:
            raise OSError("no network here")
        model: nn.Module = create(name, **options)
        return model

    monkeypatch.setattr(timm, "create_model", spy)
    config = BackboneConfig(timm="resnet18", pretrained="tv_in1k", features="map", image_size_px=64)
    with pytest.raises(NotFoundError, match=r"timm could not load .* 'resnet18.tv_in1k': no network here"):
        Backbone(config)
    Backbone(config, load_pretrained=False)
    assert asked == [("resnet18.tv_in1k", True), ("resnet18", False)]


def test_a_local_file_of_the_whole_fits_the_cropped(tmp_path: Any) -> None:
    whole = tower("test_resnet", features="pooled")
    torch.save(trunk_of(whole).state_dict(), tmp_path / "whole.pth")
    cropped = tower("test_resnet", crop_after="layer2", pretrained=str(tmp_path / "whole.pth"))
    state = whole.state_dict()
    assert all(torch.equal(tensor, state[key]) for key, tensor in cropped.state_dict().items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timm": "resnet19"}, "timm has no model 'resnet19'; near names are"),
        ({"pretrained": "imagenet"}, "no tag of timm's 'test_resnet'; its tags are r160_in1k"),
        ({"crop_after": "layer5"}, "ResNet has no part 'layer5'.*it has conv1, bn1"),
        ({"crop_after": "layer2.0.conv1"}, "lies inside a BasicBlock, and is followed there by 'bn1'"),
        ({"crop_blocks": 5}, "crop_blocks is 5, but ResNet has 4 blocks"),
        ({"crop_after": "layer2", "crop_blocks": 2}, "give one of them"),
        ({"crop_after": "layer2", "features": "pooled"}, "are for feature maps"),
        ({"final_norm": True}, "ResNet has no layer norm after its blocks"),
        ({"features": "projected"}, "has no projection"),
        ({"batch_norm_eps": 0.0}, "must be positive"),
        ({"layer_norm_eps": -1.0}, "layer_norm_eps is -1"),
        ({"architecture": "RN50"}, "found architecture and timm"),
    ],
)
def test_what_cannot_be_built(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tower("test_resnet", **options)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: FineTune("frozen", freeze_before="layer3"), "are for fine-tuning in 'full'"),
        (lambda: FineTune("full", freeze_before="layer3", freeze_blocks=2), "not both"),
        (
            lambda: tower("test_resnet").fine_tune(FineTune("full", freeze_blocks=4)),
            "freeze_blocks is 4, but this tower has 4",
        ),
        (
            lambda: tower("test_resnet").fine_tune(FineTune("full", freeze_before="conv7")),
            "has no part 'conv7'",
        ),
    ],
)
def test_what_cannot_be_frozen(build: Callable[[], Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build()


def test_plain_forms() -> None:
    assert to_plain(BackboneConfig("ViT-B-32")).keys() == {
        "architecture",
        "custom",
        "pretrained",
        "features",
        "image_size_px",
    }
    config = BackboneConfig(timm="resnet18", features="map", crop_after="layer3", batch_norm_eps=1e-3)
    assert from_plain(BackboneConfig, to_plain(config)) == config
