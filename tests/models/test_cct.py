"""The Compact Convolutional Transformer as a trunk; its numbers are those of the peer, see tests/adapters."""

import torch
from torch.nn import functional

from geoloc.models.backbone import Backbone
from geoloc.models.cct import CompactTransformer
from geoloc.models.config import BackboneConfig
from geoloc.models.fine_tune import FineTune


def test_positions_are_resampled_row_by_row() -> None:
    trunk = CompactTransformer(depth=1, dim=12, num_heads=2, image_size_px=64)  # 4 x 4
    rows = torch.arange(4.0).repeat_interleave(4)[None, :, None].expand(1, 16, 12)
    trunk.pos_embed = torch.nn.Parameter(rows.clone())
    trunk.set_input_size(128)
    assert trunk.pos_embed.shape == (1, 64, 12)
    # Eight rows for four: halfway between the samples' centres, and constant outside of them.
    expected = torch.tensor([0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3]).repeat_interleave(8)
    torch.testing.assert_close(trunk.pos_embed[0, :, 5], expected)
    assert trunk(torch.zeros(1, 3, 128, 128)).shape == (1, 12)


def test_the_head_weighs_tokens_by_their_scores() -> None:
    torch.manual_seed(0)
    trunk = CompactTransformer(depth=1, dim=12, num_heads=2, image_size_px=64).double().eval()
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    pooled = trunk(images)
    score = trunk.head.get_submodule("score")
    assert isinstance(score, torch.nn.Linear)
    trunk.head = torch.nn.Identity()
    tokens = trunk(images)
    assert tokens.shape == (2, 16, 12)
    weights = functional.softmax(tokens @ score.weight[0] + score.bias, -1)
    torch.testing.assert_close(pooled, torch.einsum("bn,bnd->bd", weights, tokens))


def test_it_is_tuned_like_any_other() -> None:
    config = BackboneConfig(
        timm="cct_14_7x2", features="map", image_size_px=64, crop_blocks=3, final_norm=True
    )
    backbone = Backbone(config)
    assert backbone.map_size == (4, 4)
    assert backbone.num_tokens == 0
    backbone.fine_tune(FineTune("last_blocks", num_blocks=1))
    training = {name.split(".")[2] for name, p in backbone.named_parameters() if p.requires_grad}
    assert training == {"blocks", "norm"}
    before = backbone(torch.ones(1, 3, 64, 64))
    backbone.fine_tune(FineTune("lora", lora_rank=2))
    assert sum("lora" in name for name, p in backbone.named_parameters() if p.requires_grad) > 0
    plain = Backbone(config)
    plain.load_state_dict(backbone.merge_lora())
    torch.testing.assert_close(plain(torch.ones(1, 3, 64, 64)), before)
