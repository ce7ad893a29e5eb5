"""Towers are tiny, with random weights; what they should return is read off open_clip's modules by hooks."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from geoloc.errors import CheckpointError, ConfigError, NotFoundError
from geoloc.models.backbone import Backbone
from geoloc.models.config import BackboneConfig
from geoloc.models.fine_tune import FineTune

import open_clip  # isort: skip  torchvision imports since conftest.py

VIT = {
    "embed_dim": 16,
    "vision_cfg": {"layers": 3, "width": 32, "head_width": 16, "patch_size": 8, "image_size": 32},
}


def timm_tower(name: str, proj: str = "", size_px: int = 64) -> dict[str, Any]:
    vision = {"timm_model_name": name, "timm_pool": "avg", "timm_proj": proj, "image_size": size_px}
    return {"embed_dim": 24, "vision_cfg": vision}


TIMM_VIT = timm_tower("test_vit", "linear")
TIMM_VIT["vision_cfg"]["timm_pool"] = "token"
TIMM_CONV = timm_tower("test_efficientnet")


def build(custom: dict[str, Any], features: Any = "pooled", **options: Any) -> Backbone:
    torch.manual_seed(0)
    return Backbone(BackboneConfig(custom=custom, features=features, **options)).eval()


def images(size_px: int, count: int = 2) -> Tensor:
    return torch.randn(count, 3, size_px, size_px, generator=torch.Generator().manual_seed(1))


def whole_tower(custom: dict[str, Any]) -> nn.Module:
    """The same tower as open_clip builds it, with the same seed and nothing removed."""
    torch.manual_seed(0)
    tower: nn.Module = open_clip.model._build_vision_tower(**json.loads(json.dumps(custom)))
    if hasattr(tower, "set_input_size"):
        tower.set_input_size(custom["vision_cfg"]["image_size"])
    return tower.eval()


def seen_at(tower: nn.Module, module: nn.Module, x: Tensor, *, before: bool = False) -> Tensor:
    """What comes out of a module (or goes in, if `before`) while the tower looks at x."""
    seen: list[Tensor] = []
    if before:
        module.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    else:
        module.register_forward_hook(lambda _, __, output: seen.append(output))
    with torch.no_grad():
        tower(x)
    return seen[-1]


# --- Features ---


def test_a_named_architecture_with_random_weights_and_no_text_tower() -> None:
    backbone = Backbone(BackboneConfig(architecture="ViT-B/32", features="projected"))
    assert backbone.feature_dim == 512
    # 87.8 M is ViT-B/32's vision tower alone; the text tower would add 63 M.
    assert sum(parameter.numel() for parameter in backbone.parameters()) == 87_849_216
    defaults = backbone.preprocess_defaults
    assert (defaults.size_px, defaults.interpolation, defaults.resize_mode) == (224, "bicubic", "shortest")
    assert defaults.mean == open_clip.OPENAI_DATASET_MEAN
    assert defaults.std == open_clip.OPENAI_DATASET_STD


REFERENCES: dict[str, tuple[dict[str, Any], str, Callable[[nn.Module, Tensor], Tensor]]] = {
    "ViT projected": (VIT, "projected", lambda tower, x: tower(x)),
    "ViT pooled": (VIT, "pooled", lambda tower, x: seen_at(tower, tower.ln_post, x)[:, 0]),
    "ViT cls": (VIT, "cls_before_norm", lambda tower, x: seen_at(tower, tower.transformer, x)[:, 0]),
    "timm ViT projected": (TIMM_VIT, "projected", lambda tower, x: tower(x)),
    "timm ViT pooled": (TIMM_VIT, "pooled", lambda tower, x: seen_at(tower, tower.trunk.norm, x)[:, 0]),
    "timm ViT cls": (
        TIMM_VIT,
        "cls_before_norm",
        lambda tower, x: seen_at(tower, tower.trunk.blocks, x)[:, 0],
    ),
    "timm CNN projected": (TIMM_CONV, "projected", lambda tower, x: tower(x)),
    "timm CNN pooled": (
        TIMM_CONV,
        "pooled",
        lambda tower, x: seen_at(tower, tower.trunk.classifier, x, before=True),
    ),
    "timm CNN pooled under an mlp": (
        timm_tower("test_resnet", "mlp"),
        "pooled",
        lambda tower, x: seen_at(tower, tower.head, x, before=True),
    ),
}


@pytest.mark.parametrize(("custom", "features", "reference"), REFERENCES.values(), ids=REFERENCES.keys())
def test_features_are_what_passes_through_open_clips_own_modules(
    custom: dict[str, Any], features: str, reference: Callable[[nn.Module, Tensor], Tensor]
) -> None:
    x = images(custom["vision_cfg"]["image_size"])
    backbone = build(custom, features)
    whole = whole_tower(custom)
    whole.load_state_dict(
        backbone.tower.state_dict(), strict=False
    )  # layers are born in another order in timm
    with torch.no_grad():
        found, expected = backbone(x), reference(whole, x)
    assert found.shape == (2, backbone.feature_dim)
    torch.testing.assert_close(found, expected)


def test_every_parameter_is_needed_for_the_features() -> None:
    for custom, features, _ in REFERENCES.values():
        backbone = build(custom, features)
        backbone(images(custom["vision_cfg"]["image_size"])).square().sum().backward()
        unused = [name for name, parameter in backbone.named_parameters() if parameter.grad is None]
        assert not unused, (features, unused)


def test_a_coca_tower_pools_by_attention_and_returns_no_tokens() -> None:
    custom = {**VIT, "vision_cfg": {**VIT["vision_cfg"], "attentional_pool": True, "output_tokens": True}}
    custom["vision_cfg"] |= {"attn_pooler_heads": 2, "attn_pooler_queries": 4}
    assert build(custom, "projected")(images(32)).shape == (2, 16)
    assert build(custom, "cls_before_norm")(images(32)).shape == (2, 32)


@pytest.mark.parametrize(
    ("custom", "features", "message"),
    [
        (TIMM_CONV, "cls_before_norm", "EfficientNet has no class token: use 'pooled'"),
        (
            {
                "embed_dim": 8,
                "vision_cfg": {"layers": [1, 1, 1, 1], "width": 8, "head_width": 8, "image_size": 64},
            },
            "pooled",
            "ModifiedResNet pools and projects in one step: use 'projected'",
        ),
    ],
)
def test_features_that_a_tower_does_not_have(custom: dict[str, Any], features: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(custom, features)


def test_image_size_overrides_the_towers_own() -> None:
    for custom in (VIT, TIMM_VIT, TIMM_CONV):
        backbone = build(custom, image_size_px=96)
        assert backbone.preprocess_defaults.size_px == 96
        assert backbone(images(96)).shape == (2, backbone.feature_dim)


# --- Config ---


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"architecture": "ViT-B-23"}, r"no architecture 'ViT-B-23'; near names are .*ViT-B-32"),
        (
            {"architecture": "ViT-B-32", "pretrained": "nope"},
            r"no file here and no tag of 'ViT-B-32'.*laion2b",
        ),
        ({"architecture": "ViT-B-32", "pretrained": "openai"}, "QuickGELU: use .*'ViT-B-32-quickgelu'"),
        (
            {"architecture": "hf-hub:me/it", "pretrained": "openai"},
            "brings its own weights: leave pretrained out",
        ),
        ({"custom": VIT, "pretrained": "openai"}, "there is no such file; a custom tower has no tags"),
        ({"custom": {"embed_dim": 1}}, r"backbone\.custom lacks the key 'vision_cfg'"),
        ({"custom": {**VIT, "text_cfg": {}}}, r"backbone\.custom has the unknown key 'text_cfg'"),
        ({"custom": {**VIT, "vision_cfg": {"depth": 3}}}, "unknown key 'depth'; open_clip takes layers"),
        ({"custom": timm_tower("hf-hub:me/it")}, "timm has no model 'hf-hub:me/it'"),
        ({"custom": timm_tower("test_vti")}, "timm has no model 'test_vti'; near names are .*test_vit"),
        ({"custom": {**VIT, "vision_cfg": {"layers": "three"}}}, "open_clip cannot build .*three"),
        ({"custom": {**VIT, "vision_cfg": {"image_size": [32, 64]}}}, "32 x 64 px: set image_size_px"),
    ],
)
def test_impossible_configs_say_what_to_change(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Backbone(BackboneConfig(**options), load_pretrained=False)


def test_timm_never_downloads_on_its_own() -> None:
    custom = timm_tower("test_resnet")
    custom["vision_cfg"]["timm_model_pretrained"] = True
    assert build(custom).feature_dim > 0  # offline, a download would fail


# --- Pretrained weights ---


@pytest.fixture
def clip_model() -> nn.Module:
    """A whole CLIP model, text tower and all, around the tiny ViT."""
    torch.manual_seed(5)
    text = open_clip.CLIPTextCfg(context_length=8, vocab_size=16, width=16, heads=2, layers=1)
    return open_clip.model.CLIP(16, open_clip.CLIPVisionCfg(**VIT["vision_cfg"]), text).eval()


def save(path: Path, state: dict[str, Tensor]) -> str:
    if path.suffix == ".safetensors":
        safetensors.torch.save_file({name: value.contiguous() for name, value in state.items()}, path)
    else:
        torch.save(state, path)
    return str(path)


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
@pytest.mark.parametrize("features", ["projected", "pooled", "cls_before_norm"])
def test_a_whole_models_state_dict(tmp_path: Path, clip_model: nn.Module, suffix: str, features: str) -> None:
    path = save(tmp_path / f"clip.{suffix}", clip_model.state_dict())
    found = build(VIT, features, pretrained=path).tower.state_dict()
    for name, value in found.items():
        torch.testing.assert_close(value, clip_model.state_dict()[f"visual.{name}"])


def test_state_dicts_of_the_tower_of_a_backbone_and_of_a_bare_trunk(tmp_path: Path) -> None:
    donor = build(TIMM_CONV)
    with torch.no_grad():
        donor.tower.trunk.conv_stem.weight.fill_(0.25)
    trunk = donor.tower.trunk.state_dict() | {
        "classifier.weight": torch.ones(1000, 256),
        "classifier.bias": torch.ones(1000),
    }
    old = {name: value for name, value in trunk.items() if not name.endswith("num_batches_tracked")}
    states = [donor.state_dict(), donor.tower.state_dict(), trunk, {"state_dict": old}]
    for number, state in enumerate(states):
        backbone = build(TIMM_CONV, pretrained=save(tmp_path / f"{number}.pt", state))
        assert backbone.tower.trunk.conv_stem.weight.eq(0.25).all()


def test_another_image_size_resamples_the_position_embedding(tmp_path: Path, clip_model: nn.Module) -> None:
    path = save(tmp_path / "clip.pt", clip_model.state_dict())
    found = build(VIT, pretrained=path, image_size_px=64).tower.positional_embedding
    assert found.shape == (1 + 8 * 8, 32)
    torch.testing.assert_close(found[0], clip_model.visual.positional_embedding[0])


def test_without_load_pretrained_no_weights_are_read(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    path.write_bytes(b"not looked at")
    Backbone(BackboneConfig(custom=VIT, pretrained=str(path)), load_pretrained=False)
    with pytest.raises(CheckpointError, match="holds no plain state dict"):
        Backbone(BackboneConfig(custom=VIT, pretrained=str(path)))


def test_state_dicts_that_do_not_fit_are_refused(tmp_path: Path, clip_model: nn.Module) -> None:
    state = dict(clip_model.visual.state_dict())
    cases = [
        ({**state, "extra": torch.ones(1)}, r"lacks 0 of .* has 1 unknown ones \(extra\)"),
        ({k: v for k, v in state.items() if k != "conv1.weight"}, r"lacks 1 of .*\(conv1\.weight\)"),
        ({**state, "conv1.weight": torch.ones(1)}, r"size mismatch for conv1\.weight"),
        ({"a": 1}, "holds more than tensors"),
    ]
    for number, (bad, message) in enumerate(cases):
        path = tmp_path / f"{number}.pt"
        torch.save(bad, path)
        with pytest.raises(CheckpointError, match=message):
            build(VIT, pretrained=str(path))


class Payload:
    """Pickled, it would touch a canary file when it is loaded."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.canary,)


def test_a_pickle_is_not_unpickled(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    torch.save({"conv1.weight": Payload(canary)}, tmp_path / "a.pt")
    (tmp_path / "b.pt").write_bytes(pickle.dumps(Payload(canary)))
    for name in ("a.pt", "b.pt"):
        with pytest.raises(CheckpointError, match="if you trust the file"):
            build(VIT, pretrained=str(tmp_path / name))
    assert not canary.exists()


@pytest.fixture
def tiny_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, clip_model: nn.Module) -> Path:
    """open_clip's registry with a tiny architecture and a tag; the download is a file already here."""
    config = {
        **VIT,
        "text_cfg": {"context_length": 8, "vocab_size": 16, "width": 16, "heads": 2, "layers": 1},
    }
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny", config)
    tags = {"tiny": {"here": {"url": "", "mean": (0.1, 0.2, 0.3), "interpolation": "bilinear"}}}
    monkeypatch.setattr("open_clip.pretrained._PRETRAINED", tags)
    path = Path(save(tmp_path / "open_clip_model.safetensors", clip_model.state_dict()))
    monkeypatch.setattr("open_clip.factory.download_pretrained", lambda cfg, **_: str(path))
    return path


def test_a_tag_brings_weights_and_preprocessing(tiny_named: Path, clip_model: nn.Module) -> None:
    config = BackboneConfig(architecture="tiny", pretrained="here")
    backbone = Backbone(config).eval()
    torch.testing.assert_close(backbone.tower.conv1.weight, clip_model.visual.conv1.weight)
    assert backbone.preprocess_defaults.mean == (0.1, 0.2, 0.3)
    assert backbone.preprocess_defaults.interpolation == "bilinear"
    assert backbone.config == config
    tiny_named.unlink()
    assert Backbone(config, load_pretrained=False).preprocess_defaults == backbone.preprocess_defaults
    with pytest.raises(NotFoundError, match="could not load the pretrained weights of 'tiny'"):
        Backbone(config)


def test_a_hub_architecture_becomes_self_contained(
    tiny_named: Path, clip_model: nn.Module, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    text = {"context_length": 8, "vocab_size": 16, "width": 16, "heads": 2, "layers": 1}
    description = {"model_cfg": {**VIT, "text_cfg": text}, "preprocess_cfg": {"std": [0.5, 0.5, 0.5]}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(description))
    asked: list[str] = []

    def download(model_id: str, filename: str = "weights", **_: Any) -> str:
        asked.append(filename)
        return str(tmp_path / filename if filename.endswith("json") else tiny_named)

    monkeypatch.setattr("open_clip.factory.download_pretrained_from_hf", download)
    backbone = Backbone(BackboneConfig(architecture="hf-hub:me/tiny"))
    torch.testing.assert_close(backbone.tower.conv1.weight, clip_model.visual.conv1.weight)
    assert backbone.preprocess_defaults.std == (0.5, 0.5, 0.5)
    asked.clear()
    Backbone(BackboneConfig(architecture="hf-hub:me/tiny"), load_pretrained=False)
    assert asked == ["open_clip_config.json"]
    asked.clear()
    again = Backbone(backbone.config, load_pretrained=False)
    again.load_state_dict(backbone.state_dict())
    assert asked == []


def test_a_hub_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> str:
        raise FileNotFoundError("no route to host")

    monkeypatch.setattr("open_clip.factory.download_pretrained_from_hf", refuse)
    with pytest.raises(NotFoundError, match=r"'hf-hub:me/tiny': no route to host; check the name"):
        Backbone(BackboneConfig(architecture="hf-hub:me/tiny"))


# --- Fine-tuning ---


def training(backbone: Backbone) -> set[str]:
    return {name.removeprefix("tower.") for name, p in backbone.named_parameters() if p.requires_grad}


def test_frozen_and_full() -> None:
    backbone = build(VIT)
    backbone.fine_tune(FineTune("frozen"))
    assert training(backbone) == set()
    assert not any(module.training for module in backbone.train().tower.modules())
    backbone.fine_tune(FineTune("full"))
    assert training(backbone) == set(backbone.tower.state_dict())
    assert all(module.training for module in backbone.train().tower.modules())


@pytest.mark.parametrize("num_blocks", [1, 2])
def test_last_blocks_of_a_vit_of_any_depth(num_blocks: int) -> None:
    for depth in (2, 13):
        custom = {**VIT, "vision_cfg": {**VIT["vision_cfg"], "layers": depth}}
        backbone = build(custom, "projected")
        backbone.fine_tune(FineTune("last_blocks", num_blocks=num_blocks))
        blocks = tuple(f"transformer.resblocks.{depth - 1 - i}." for i in range(num_blocks))
        expected = {
            name for name in backbone.tower.state_dict() if name.startswith((*blocks, "ln_post.", "proj"))
        }
        assert training(backbone) == expected


@pytest.mark.parametrize(
    ("name", "prefixes"),
    [
        ("test_vit", ("blocks.5.", "norm.")),
        ("test_efficientnet", ("blocks.4.", "conv_head.", "bn2.")),
        ("test_convnext", ("stages.3.", "head.")),
        ("test_resnet", ("layer4.",)),
        ("swin_tiny_patch4_window7_224", ("layers.3.", "norm.")),
    ],
)
def test_last_blocks_of_timm_trunks(name: str, prefixes: tuple[str, ...]) -> None:
    backbone = build(timm_tower(name, "linear", size_px=224), "projected")
    backbone.fine_tune(FineTune("last_blocks"))
    known = {name for name, _ in backbone.tower.named_parameters()}
    expected = {
        name for name in known if name.startswith((*(f"trunk.{prefix}" for prefix in prefixes), "head."))
    }
    assert training(backbone) == expected
    assert all(any(name.startswith(f"trunk.{prefix}") for name in expected) for prefix in prefixes)


def test_last_blocks_of_open_clips_resnet() -> None:
    vision = {"layers": [1, 1, 1, 1], "width": 8, "head_width": 8, "image_size": 64}
    backbone = build({"embed_dim": 8, "vision_cfg": vision}, "projected")
    backbone.fine_tune(FineTune("last_blocks"))
    assert {name.split(".")[0] for name in training(backbone)} == {"layer4", "attnpool"}


def test_gradients_reach_what_trains_and_nothing_else() -> None:
    for strategy in (FineTune("full"), FineTune("last_blocks"), FineTune("lora", lora_rank=2)):
        backbone = build(VIT)
        backbone.fine_tune(strategy)
        backbone(images(32)).square().sum().backward()
        with_gradient = {name for name, p in backbone.tower.named_parameters() if p.grad is not None}
        assert with_gradient == training(backbone)


@pytest.mark.parametrize(("custom", "num_blocks"), [(VIT, 4), (VIT, 0), (TIMM_CONV, 6)])
def test_more_blocks_than_there_are(custom: dict[str, Any], num_blocks: int) -> None:
    with pytest.raises(ConfigError, match=rf"num_blocks is {num_blocks}, but this tower has [35]"):
        build(custom).fine_tune(FineTune("last_blocks", num_blocks=num_blocks))


def test_a_trunk_without_visible_blocks() -> None:
    with pytest.raises(ConfigError, match="has no known blocks: fine-tune it 'full' or leave it 'frozen'"):
        build(timm_tower("regnetx_002")).fine_tune(FineTune("last_blocks"))


@pytest.mark.parametrize("freeze", [True, False])
def test_batch_norm_statistics_move_only_where_they_may(freeze: bool) -> None:
    backbone = build(TIMM_CONV)
    backbone.fine_tune(FineTune("full", freeze_batch_norm=freeze))
    before = {name: value.clone() for name, value in backbone.named_buffers()}
    backbone.train()(images(64) + 1)
    moved = {name for name, value in backbone.named_buffers() if not torch.equal(value, before[name])}
    assert moved == (set() if freeze else set(before))
    assert all(p.requires_grad for p in backbone.parameters())


def test_frozen_blocks_keep_their_statistics_whatever_is_asked_of_the_others() -> None:
    backbone = build(TIMM_CONV)
    backbone.fine_tune(FineTune("last_blocks", freeze_batch_norm=False))
    before = {name: value.clone() for name, value in backbone.tower.named_buffers()}
    backbone.train()(images(64) + 1)
    moved = {name for name, value in backbone.tower.named_buffers() if not torch.equal(value, before[name])}
    last = ("trunk.blocks.4.", "trunk.bn2.")
    assert moved == {name for name in before if name.startswith(last)}


# --- LoRA ---

LORA_TOWERS = [VIT, TIMM_VIT]


@pytest.mark.parametrize("custom", LORA_TOWERS)
def test_lora_starts_as_the_tower_that_it_adapts(custom: dict[str, Any]) -> None:
    x = images(custom["vision_cfg"]["image_size"])
    backbone = build(custom)
    with torch.no_grad():
        before = backbone(x)
        backbone.fine_tune(FineTune("lora", lora_rank=4))
        torch.testing.assert_close(backbone(x), before)
        torch.testing.assert_close(backbone.train()(x), before)  # its dropout is on the update, which is zero


@pytest.mark.parametrize("custom", LORA_TOWERS)
def test_lora_trains_its_own_parameters_alone(custom: dict[str, Any]) -> None:
    backbone = build(custom)
    plain = set(backbone.tower.state_dict())
    backbone.fine_tune(FineTune("lora", lora_rank=4))
    assert training(backbone) == set(backbone.tower.state_dict()) - plain
    blocks = len(backbone.tower.trunk.blocks) if custom is TIMM_VIT else 3
    assert len(training(backbone)) == 2 * blocks


@pytest.mark.parametrize("custom", LORA_TOWERS)
def test_merged_lora_is_a_plain_tower_with_the_same_outputs(custom: dict[str, Any]) -> None:
    x = images(custom["vision_cfg"]["image_size"])
    backbone = build(custom)
    before = backbone(x).detach()
    backbone.fine_tune(FineTune("lora", lora_rank=4, lora_alpha=8))
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in backbone.named_parameters():
            if name.endswith("lora_up"):
                parameter.normal_(std=0.1)
        adapted = backbone(x)
        assert (adapted - before).abs().max() > 1e-2
        plain = build(custom)
        plain.load_state_dict(backbone.merge_lora())  # strict: the very keys of a tower without LoRA
        torch.testing.assert_close(plain(x), adapted, rtol=0, atol=1e-5)
    unchanged = backbone.state_dict()
    assert any(name.endswith("lora_up") for name in unchanged)
    assert set(plain.merge_lora()) == set(plain.state_dict())


def test_lora_learns() -> None:
    backbone = build(VIT, "projected")
    backbone.fine_tune(FineTune("lora", lora_rank=4, lora_dropout=0.0))
    optimizer = torch.optim.Adam([p for p in backbone.parameters() if p.requires_grad], lr=1e-2)
    x, target = images(32, 4), torch.zeros(4, backbone.feature_dim)
    losses = []
    for _ in range(20):
        loss = nn.functional.mse_loss(backbone(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]


def test_lora_dropout_acts_while_training_only() -> None:
    backbone = build(VIT)
    backbone.fine_tune(FineTune("lora", lora_rank=4, lora_dropout=0.5))
    with torch.no_grad():
        for name, parameter in backbone.named_parameters():
            if name.endswith("lora_up"):
                parameter.fill_(0.1)
        x = images(32)
        backbone.train()
        assert not torch.equal(backbone(x), backbone(x))
        backbone.eval()
        assert torch.equal(backbone(x), backbone(x))


def test_lora_where_there_is_nothing_to_adapt_or_it_is_there_already() -> None:
    with pytest.raises(ConfigError, match="TimmModel has none in its blocks: use 'last_blocks' or 'full'"):
        build(TIMM_CONV).fine_tune(FineTune("lora"))
    backbone = build(VIT)
    backbone.fine_tune(FineTune("lora"))
    with pytest.raises(ConfigError, match="has LoRA already: build it anew"):
        backbone.fine_tune(FineTune("full"))


# --- Feature maps ---

DISTILLED = timm_tower("deit_tiny_distilled_patch16_224")
DISTILLED["vision_cfg"]["timm_pool"] = "token"
TIMM_ATTENTION = timm_tower("test_vit")
TIMM_ATTENTION["vision_cfg"]["timm_pool"] = "map"
RESNET = {"embed_dim": 16, "vision_cfg": {"layers": [1, 1, 1, 1], "width": 16, "image_size": 64}}

MAPS: dict[str, tuple[dict[str, Any], tuple[int, int], int]] = {
    "ViT": (VIT, (4, 4), 1),
    "ViT with an attentional pool": (
        {"embed_dim": 16, "vision_cfg": VIT["vision_cfg"] | {"attentional_pool": True}},  # type: ignore[operator]
        (4, 4),
        1,
    ),
    "ResNet": (RESNET, (2, 2), 0),
    "timm ViT": (TIMM_VIT, (4, 4), 1),
    "timm ViT with an attention pool": (TIMM_ATTENTION, (4, 4), 1),
    "timm distilled ViT": (DISTILLED, (4, 4), 2),
    "timm EfficientNet": (TIMM_CONV, (2, 2), 0),
    "timm ConvNeXt": (timm_tower("test_convnext"), (2, 2), 0),
    "timm ResNet under an mlp": (timm_tower("test_resnet", "mlp"), (2, 2), 0),
    "timm channels last": (timm_tower("test_mambaout"), (2, 2), 0),
}


@pytest.mark.parametrize(("custom", "size", "num_tokens"), MAPS.values(), ids=MAPS.keys())
def test_feature_maps_need_every_parameter_and_features_are_their_mean(
    custom: dict[str, Any], size: tuple[int, int], num_tokens: int
) -> None:
    backbone = build(custom, "map")
    x = images(custom["vision_cfg"]["image_size"])
    found = backbone.feature_map(x)
    assert found.grid.shape == (2, backbone.feature_dim, *size)
    assert found.tokens.shape == (2, num_tokens, backbone.feature_dim)
    assert (backbone.map_size, backbone.num_tokens) == (size, num_tokens)
    torch.testing.assert_close(backbone(x), found.grid.mean((2, 3)))
    (found.grid.square().sum() + found.tokens.square().sum()).backward()
    assert [name for name, p in backbone.named_parameters() if p.grad is None] == []
    pickle.dumps(backbone)


@pytest.mark.parametrize("custom", [VIT, TIMM_CONV], ids=["ViT", "timm CNN"])
def test_maps_are_what_passes_through_open_clips_own_modules(custom: dict[str, Any]) -> None:
    backbone, whole = build(custom, "map"), whole_tower(custom)
    whole.load_state_dict(backbone.tower.state_dict(), strict=False)
    x = images(custom["vision_cfg"]["image_size"])
    with torch.no_grad():
        found = backbone.feature_map(x)
    if custom is VIT:
        tokens = seen_at(whole, whole.transformer, x)
        torch.testing.assert_close(found.tokens, tokens[:, :1])
        torch.testing.assert_close(
            found.grid[:, :, 1, 2], tokens[:, 1 + 1 * 4 + 2]
        )  # row by row from the north
    else:
        torch.testing.assert_close(found.grid, seen_at(whole, whole.trunk.global_pool, x, before=True))


def test_other_features_are_no_map() -> None:
    with pytest.raises(ConfigError, match="features are 'pooled': build it with 'map'"):
        build(VIT).feature_map(images(32))
