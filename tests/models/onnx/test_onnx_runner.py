"""An exported graph says what the network of torch says, through the same door."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import VIT, tiny_geolocalizer, tiny_image

from geoloc.errors import CheckpointError, ConfigError
from geoloc.localize.geolocalizer import Geolocalizer
from geoloc.models.config import (
    AggregationConfig,
    BackboneConfig,
    EmbeddingHeadConfig,
    OffsetHeadConfig,
    RegressionHeadConfig,
)
from geoloc.models.onnx.export import trace
from geoloc.models.onnx.runner import OnnxRunner

MAPS = BackboneConfig(custom=VIT, features="map")
PLAIN = EmbeddingHeadConfig(8)
POOLED = EmbeddingHeadConfig(8, aggregation=AggregationConfig(heads=2))
MODELS = {
    "cells and offsets": {"embeddings": {"query": PLAIN, "aerial": PLAIN}},
    "one offset, hidden layers": {
        "offsets": OffsetHeadConfig((16,), shared=True),
        "embeddings": {"query": PLAIN},
    },
    "regression": {
        "cells": None,
        "offsets": None,
        "regression": RegressionHeadConfig((16,)),
        "embeddings": {"query": PLAIN},
    },
    "maps": {"backbone": MAPS, "embeddings": {"query": POOLED, "street": POOLED}},
    "only embeds": {"cells": None, "offsets": None, "backbone": MAPS, "embeddings": {"query": POOLED}},
    "street as query": {"embeddings": {"query": PLAIN}, "street_as_query": True},
}


def exported(model: Geolocalizer, folder: Path) -> OnnxRunner:
    path = folder / "model.onnx"
    path.write_bytes(trace(model.network, model.preprocess.size_hw).joined())
    return OnnxRunner(path, model.network.config, model.runner.num_cells, num_threads=1)


@pytest.fixture(scope="module", params=MODELS)
def pair(request, tmp_path_factory) -> tuple[Geolocalizer, OnnxRunner]:
    model = tiny_geolocalizer(**MODELS[request.param])
    return model, exported(model, tmp_path_factory.mktemp("graph"))


@pytest.mark.parametrize("num_views", [[1], [1, 1, 1], [3, 3], [2, 1]])
@pytest.mark.parametrize("queries", ["none", "merged", "each"])
def test_reading(pair, num_views, queries):
    model, runner = pair
    if queries == "each" and len(set(num_views)) > 1:
        return
    images = [
        torch.stack([model.load(tiny_image(10 * i + v)) for v in range(n)]) for i, n in enumerate(num_views)
    ]
    expected, expected_queries = model.runner.read(images, queries)
    found, found_queries = runner.read([image.numpy() for image in images], queries)
    assert len(found.location_outputs()) == len(expected.location_outputs())
    for mine, theirs in zip(found.location_outputs(), expected.location_outputs(), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-4)
    assert len(found_queries) == len(expected_queries)
    for mine, theirs in zip(found_queries, expected_queries, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-5)


def test_embedding(pair):
    model, runner = pair
    images = torch.stack([model.load(tiny_image(seed)) for seed in range(3)])
    for role in ("query", "aerial", "street"):
        if model.network.config.embedding_of(role) in model.network.config.embeddings:
            expected = model.runner.embed_images(images, role)
            np.testing.assert_allclose(runner.embed_images(images.numpy(), role), expected, atol=1e-5)
            np.testing.assert_allclose(
                runner.embed_images(images.numpy()[:, None], role), expected, atol=1e-5
            )
            assert runner.aggregates(role) == model.runner.aggregates(role)
        else:
            with pytest.raises(
                ConfigError, match=f"no embedding for '{role}'.*checkpoint that it was exported"
            ):
                runner.embed_images(images.numpy(), role)
    assert runner.num_parameters > 1000


def test_a_trunk_whose_maps_have_channels_last(tmp_path):
    swin = BackboneConfig(timm="swinv2_tiny_window8_256", features="map", crop_blocks=1, image_size_px=32)
    head = EmbeddingHeadConfig(96, aggregation=AggregationConfig("gem"))
    model = tiny_geolocalizer(cells=None, offsets=None, backbone=swin, embeddings={"query": head})
    images = model.load(tiny_image(0))[None]
    found = exported(model, tmp_path).embed_images(images.numpy(), "query")
    np.testing.assert_allclose(found, model.runner.embed_images(images, "query"), atol=1e-5)


def test_a_rectangle(tmp_path):
    tower = BackboneConfig(timm="test_resnet", features="map", image_size_px=32, crop_after="layer2")
    head = EmbeddingHeadConfig(48, aggregation=AggregationConfig("gem"))
    model = tiny_geolocalizer(cells=None, offsets=None, backbone=tower, embeddings={"query": head})
    model.preprocess = replace(model.preprocess, image_size_px=(32, 48), resize="pad")
    runner, images = exported(model, tmp_path), model.load(tiny_image(0))[None]
    assert images.shape == (1, 3, 32, 48)
    found = runner.embed_images(images.numpy(), "query")
    np.testing.assert_allclose(found, model.runner.embed_images(images, "query"), atol=1e-5)
    with pytest.raises(ConfigError, match="takes 32 x 48 pictures only, not 32 x 32"):
        runner.embed_images(np.zeros((1, 3, 32, 32), np.float32), "query")


def test_what_it_does_not_take(tmp_path):
    runner = exported(tiny_geolocalizer(embeddings={"query": PLAIN}), tmp_path)
    with pytest.raises(ConfigError, match=r"32 x 32 pictures only, not 32 x 64 .* query mode single"):
        runner.read([np.zeros((1, 3, 32, 64), np.float32)], "none")
    with pytest.raises(ConfigError, match=r"embeds single pictures; found 2 views"):
        runner.embed_images(np.zeros((1, 2, 3, 32, 32), np.float32), "query")


def test_towers_of_their_own_and_views_together_are_left_out():
    views = EmbeddingHeadConfig(8, aggregation=AggregationConfig(heads=2, num_views=2))
    model = tiny_geolocalizer(backbone=MAPS, embeddings={"query": PLAIN, "aerial": views})
    assert trace(model.network, (32, 32)).left_out == ("aerial",)
    tower = BackboneConfig(custom=VIT, features="pooled")
    model = tiny_geolocalizer(aerial_backbone=tower, embeddings={"query": PLAIN, "aerial": PLAIN})
    assert trace(model.network, (32, 32)).left_out == ("aerial",)


def test_a_graph_of_another_model(tmp_path):
    model = tiny_geolocalizer(embeddings={"query": PLAIN})
    exported(model, tmp_path)
    config, path = model.network.config, tmp_path / "model.onnx"
    with pytest.raises(
        CheckpointError, match=r"gives 12 values as 'cell_logits', .* need 7".replace("12", r"\d+")
    ):
        OnnxRunner(path, config, 7)
    other = tiny_geolocalizer(embeddings={"query": EmbeddingHeadConfig(12)}).network.config
    with pytest.raises(CheckpointError, match=r"'query' embeddings of 8 values, but config\.json needs 12"):
        OnnxRunner(path, other, model.runner.num_cells)
    without = tiny_geolocalizer(cells=None, offsets=None, regression=RegressionHeadConfig()).network.config
    with pytest.raises(
        CheckpointError, match=r"as 'cell_logits', but config\.json and the quadtree need None"
    ):
        OnnxRunner(path, without, 0)
