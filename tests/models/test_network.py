import numpy as np
import pytest
import torch
from torch import Tensor, nn

from geoloc.errors import ConfigError
from geoloc.models.backbone import Backbone
from geoloc.models.config import (
    AggregationConfig,
    BackboneConfig,
    CellHeadConfig,
    EmbeddingHeadConfig,
    NetworkConfig,
    OffsetHeadConfig,
    RegressionHeadConfig,
)
from geoloc.models.network import GeoNetwork

BOUNDS = np.array([[-90.0, -180, 90, 0], [-90.0, 0, 0, 180], [0.0, 0, 90, 180]])
CENTERS = np.array([[10.0, -90], [-20.0, 20], [30.0, 30]])


class MeanColour(nn.Module):
    feature_dim = 3

    def forward(self, images: Tensor) -> Tensor:
        return images.mean((2, 3))


def network(**parts: object) -> GeoNetwork:
    config = NetworkConfig(backbone=BackboneConfig(architecture="any"), **parts)  # type: ignore[arg-type]
    return GeoNetwork(config, MeanColour(), BOUNDS, CENTERS).eval()


def test_every_head_reads_the_same_features() -> None:
    net = network(
        cells=CellHeadConfig(hidden_dims=(8,)),
        offsets=OffsetHeadConfig(hidden_dims=(8,)),
        regression=RegressionHeadConfig(hidden_dims=()),
        embeddings={"query": EmbeddingHeadConfig(dim=5), "street": EmbeddingHeadConfig(dim=6)},
    )
    images = torch.rand(4, 3, 8, 8)
    output = net(images)
    assert torch.equal(output.features, images.mean((2, 3)))
    assert output.cell_logits.shape == (4, 3)
    assert output.offsets.shape == (4, 3, 2)
    assert output.latlon_rad.shape == (4, 2)
    assert net.embed(output.features, "query").shape == (4, 5)
    assert net.embed(output.features, "street").shape == (4, 6)
    again = net.read(output.features)
    assert torch.equal(again.cell_logits, output.cell_logits)
    assert torch.equal(again.latlon_rad, output.latlon_rad)


def test_heads_that_were_not_asked_for_do_not_exist() -> None:
    net = network()
    output = net(torch.rand(2, 3, 8, 8))
    assert (output.cell_logits, output.offsets, output.latlon_rad) == (None, None, None)
    assert net.state_dict() == {}


def test_the_cells_geometry_is_not_in_the_state_dict() -> None:
    """It is the quadtree's; a second copy could disagree with it."""
    keys = network(cells=CellHeadConfig(), offsets=OffsetHeadConfig(hidden_dims=())).state_dict().keys()
    assert {key.split(".")[0] for key in keys} == {"cells", "offsets"}
    assert all(key.rsplit(".", 1)[1] in ("weight", "bias") for key in keys)


def test_an_embedding_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match=r"no embedding for 'aerial' \(it has: query, street\); train one"):
        network(embeddings={"street": EmbeddingHeadConfig(), "query": EmbeddingHeadConfig()}).embed(
            torch.zeros(1, 3), "aerial"
        )
    with pytest.raises(ConfigError, match=r"\(it has: none\)"):
        network().embed(torch.zeros(1, 3), "query")


def test_a_cell_head_needs_the_cells() -> None:
    config = NetworkConfig(backbone=BackboneConfig(architecture="any"), cells=CellHeadConfig())
    with pytest.raises(ConfigError, match=r"needs the cells' bounds and centres: give a quadtree"):
        GeoNetwork(config, MeanColour())


# --- Embeddings from feature maps ---


def statewide(shared: bool = False) -> GeoNetwork:
    """Photos by one tower, four aerial views of a place by another one, both pooled over positions."""
    tower = BackboneConfig(
        custom={
            "embed_dim": 8,
            "vision_cfg": {"layers": 1, "width": 16, "head_width": 8, "patch_size": 8, "image_size": 16},
        },
        features="map",
    )
    config = NetworkConfig(
        tower,
        embeddings={
            "query": EmbeddingHeadConfig(8, aggregation=AggregationConfig(heads=2)),
            "aerial": EmbeddingHeadConfig(8, aggregation=AggregationConfig(heads=2, num_views=4)),
        },
        aerial_backbone=None if shared else tower,
    )
    return GeoNetwork(config, Backbone(tower), aerial_backbone=None if shared else Backbone(tower)).eval()


@pytest.mark.parametrize("shared", [True, False])
def test_several_aerial_views_are_one_vector(shared: bool) -> None:
    net = statewide(shared)
    photos, views = torch.randn(3, 3, 16, 16), torch.randn(3, 4, 3, 16, 16)
    query, aerial = net.embed_images(photos, "query"), net.embed_images(views, "aerial")
    assert query.shape == aerial.shape == (3, 8)
    assert torch.allclose(aerial.norm(dim=-1), torch.ones(3))
    # No view is special, and every one counts.
    assert torch.allclose(net.embed_images(views.flip(1), "aerial"), aerial, atol=1e-5)
    changed = views.clone()
    changed[0, 3] += torch.randn(3, 16, 16)
    difference = (net.embed_images(changed, "aerial") - aerial).abs().amax(-1)
    assert difference[0] > 1e-4
    assert difference[1:].max() < 1e-5
    (query * aerial).sum().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None] == []


def test_pictures_and_features_give_the_same_embedding() -> None:
    net = network(embeddings={"street": EmbeddingHeadConfig(dim=5)})
    images = torch.rand(4, 3, 8, 8)
    assert torch.equal(net.embed_images(images, "street"), net.embed(images.mean((2, 3)), "street"))
    assert not net.aggregates("street")


def test_what_a_map_embedding_cannot_be_made_from() -> None:
    net = statewide()
    assert net.aggregates("aerial")
    with pytest.raises(ConfigError, match=r"'aerial' needs 4 view\(s\) of a location; found 1"):
        net.embed_images(torch.zeros(1, 3, 16, 16), "aerial")
    with pytest.raises(
        ConfigError, match="'query' is made from feature maps, not from features: use embed_im"
    ):
        net.embed(torch.zeros(1, 16), "query")
    with pytest.raises(ConfigError, match="must agree on an aerial backbone; found one in the config only"):
        GeoNetwork(net.config, net.backbone)


def test_one_head_serves_photos_and_street_references() -> None:
    tower = statewide().config.backbone
    embedding = EmbeddingHeadConfig(4, aggregation=AggregationConfig("cosplace"))
    config = NetworkConfig(tower, embeddings={"query": embedding}, street_as_query=True)
    net = GeoNetwork(config, Backbone(tower)).eval()
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(net.embed_images(images, "street"), net.embed_images(images, "query"))
    features, vectors = net.with_embeddings(images, "street")
    torch.testing.assert_close(features, net.backbone(images))
    torch.testing.assert_close(vectors, net.embed_images(images, "query"))
    assert not [key for key in net.state_dict() if "street" in key]
    with pytest.raises(ConfigError, match="give an embedding 'query', and none for 'street'"):
        NetworkConfig(tower, embeddings={"street": embedding}, street_as_query=True)


def test_features_and_embeddings_in_one_pass() -> None:
    net = network(embeddings={"query": EmbeddingHeadConfig(dim=5)})
    images = torch.rand(4, 3, 8, 8)
    features, vectors = net.with_embeddings(images, "query")
    assert torch.equal(features, images.mean((2, 3)))
    assert torch.equal(vectors, net.embed(features, "query"))
    with pytest.raises(ConfigError, match="a tower of their own: use embed_images"):
        statewide().with_embeddings(torch.zeros(1, 3, 16, 16), "aerial")
