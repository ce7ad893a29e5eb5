"""Strictness is the point: what a file says beyond, below or beside the schema is an error that names the key."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import pytest

from geoloc.errors import ConfigError
from geoloc.models.config import (
    AggregationConfig,
    BackboneConfig,
    CellHeadConfig,
    EmbeddingHeadConfig,
    NetworkConfig,
    OffsetHeadConfig,
    RegressionHeadConfig,
)
from geoloc.models.plain import from_plain, to_plain

FULL = NetworkConfig(
    backbone=BackboneConfig(
        custom={"embed_dim": 16, "vision_cfg": {"layers": 2, "mlp_ratio": 4.0}}, image_size_px=64
    ),
    cells=CellHeadConfig(hidden_dims=(64, 32)),
    offsets=OffsetHeadConfig(origin="box", shared=True, tanh_scale=1.0),
    regression=RegressionHeadConfig(kind="tanh"),
    embeddings={
        "query": EmbeddingHeadConfig(dim=8),
        "street": EmbeddingHeadConfig(hidden_dims=(4,)),
        "aerial": EmbeddingHeadConfig(dim=8, aggregation=AggregationConfig("safa", heads=4, num_views=3)),
    },
    aerial_backbone=BackboneConfig(architecture="ViT-B-16", features="map"),
)
SMALL = NetworkConfig(backbone=BackboneConfig(architecture="ViT-B-32"))


@pytest.mark.parametrize("config", [FULL, SMALL], ids=["every head", "no head"])
def test_round_trip_through_json(config: NetworkConfig) -> None:
    plain = json.loads(json.dumps(to_plain(config)))
    assert from_plain(NetworkConfig, plain) == config


def test_what_is_left_out_is_the_default() -> None:
    plain = {"backbone": {"architecture": "ViT-B-32"}, "offsets": {}, "cells": {}}
    assert from_plain(NetworkConfig, plain) == replace(
        SMALL, cells=CellHeadConfig(), offsets=OffsetHeadConfig()
    )


def changed(*path: str, value: Any) -> dict[str, Any]:
    plain: dict[str, Any] = to_plain(FULL)
    place = plain
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return plain


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("head",), {}, r"^net has the unknown key 'head'; known keys are aerial_backbone, backbone, cel"),
        (
            ("cells", "hiden_dims"),
            [4],
            r"^net\.cells has the unknown key 'hiden_dims'; known keys are hidden_dims\. .*check the spelling",
        ),
        (("backbone", "_target_"), "os.system", r"^net\.backbone has the unknown key '_target_'"),
        (("embeddings", "query", "width"), 1, r"^net\.embeddings\.query has the unknown key 'width'"),
        (("offsets", "shared"), 1, r"^net\.offsets\.shared is 1; expected true or false$"),
        (("offsets", "shared"), "false", r"^net\.offsets\.shared is 'false'; expected true or false$"),
        (("offsets", "tanh_scale"), "1.2", r"^net\.offsets\.tanh_scale is '1\.2'; expected a number$"),
        (("offsets", "tanh_scale"), True, r"^net\.offsets\.tanh_scale is True; expected a number$"),
        (("offsets", "tanh_scale"), float("nan"), r"tanh_scale is nan; expected a finite number$"),
        (("offsets", "tanh_scale"), -1, r"^net\.offsets: offsets\.tanh_scale is -1\.0; it must be positive$"),
        (("offsets", "origin"), "centre", r"^net\.offsets\.origin is 'centre'; expected one of 'repr"),
        (
            ("cells", "hidden_dims"),
            [True],
            r"^net\.cells\.hidden_dims\[0\] is True; expected a whole number$",
        ),
        (("cells", "hidden_dims"), [8, 4.0], r"^net\.cells\.hidden_dims\[1\] is 4\.0; expected a whole num"),
        (("cells", "hidden_dims"), 8, r"^net\.cells\.hidden_dims is 8; expected a list$"),
        (
            ("cells", "hidden_dims"),
            [6],
            r"^net\.cells: hidden_dims is \[6\]; each must be a positive multiple",
        ),
        (("cells", "hidden_dims"), [0], r"each must be a positive multiple of 4"),
        (("cells",), [], r"^net\.cells is \[\]; expected a mapping$"),
        (("embeddings",), [], r"^net\.embeddings is \[\]; expected a mapping$"),
        (("embeddings", "query", "dim"), 0, r"^net\.embeddings\.query: an embedding's dim is 0"),
        (
            ("embeddings", "satellite"),
            {},
            r"^net: unknown embedding 'satellite': known are 'query', 'aerial'",
        ),
        (("backbone",), None, r"^net\.backbone is None; expected a mapping$"),
        (("backbone", "architecture"), 5, r"^net\.backbone\.architecture is 5; expected a text$"),
        (("backbone", "architecture"), "RN50", r"exactly one of .*; found architecture and custom: name"),
        (
            ("backbone", "custom"),
            None,
            r"exactly one of 'architecture', 'custom' and 'timm'; found none: name",
        ),
        (("backbone", "image_size_px"), False, r"image_size_px is False; expected a whole number$"),
        (("backbone", "image_size_px"), 0, r"^net\.backbone: backbone\.image_size_px is 0"),
        (("cells",), None, r"^net: 'offsets' needs 'cells'.*: add a cell head$"),
    ],
)
def test_what_is_wrong_is_named(path: tuple[str, ...], value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_plain(NetworkConfig, changed(*path, value=value), "net")


def test_a_missing_key_is_named() -> None:
    with pytest.raises(ConfigError, match=r"^net lacks the key 'backbone'; add it$"):
        from_plain(NetworkConfig, {"cells": {}}, "net")


def test_null_is_the_absence_of_a_head() -> None:
    plain = changed("regression", value=None)
    assert from_plain(NetworkConfig, plain).regression is None


@dataclass(frozen=True)
class Shapes:
    pair: tuple[int, float]
    level: Literal[1, 2] = 1


def test_a_tuple_of_fixed_length() -> None:
    assert from_plain(Shapes, {"pair": [1, 2]}) == Shapes((1, 2.0))
    with pytest.raises(ConfigError, match=r"config\.pair has 3 values; expected 2"):
        from_plain(Shapes, {"pair": [1, 2, 3]})
    with pytest.raises(ConfigError, match=r"config\.level is 3; expected one of 1, 2"):
        from_plain(Shapes, {"pair": [1, 2], "level": 3})


def test_fields_of_later_versions_leave_the_digests_of_older_checkpoints_alone() -> None:
    """What a reference database remembers of its model is a digest of this form."""
    plain = to_plain(NetworkConfig(BackboneConfig("ViT-B-32"), embeddings={"query": EmbeddingHeadConfig()}))
    assert sorted(plain) == ["backbone", "cells", "embeddings", "offsets", "regression"]
    assert plain["embeddings"] == {"query": {"dim": 256, "hidden_dims": []}}


MAP = BackboneConfig(architecture="ViT-B-32", features="map")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AggregationConfig(heads=0), "heads is 0 and num_views 1; both must be positive"),
        (
            lambda: AggregationConfig("two_tokens", num_views=4),
            "'two_tokens' reads one image: use 'spatial_",
        ),
        (
            lambda: EmbeddingHeadConfig(8, (4,), AggregationConfig(heads=2)),
            r"hidden_dims is \[4\], but an aggregation has no hidden layers: leave it out",
        ),
        (
            lambda: EmbeddingHeadConfig(100, aggregation=AggregationConfig()),
            "dim is 100; it must be a multiple of its 64 heads",
        ),
        (
            lambda: NetworkConfig(MAP, aerial_backbone=MAP),
            "'aerial_backbone' needs an 'aerial' embedding",
        ),
        (
            lambda: NetworkConfig(
                BackboneConfig("ViT-B-32"),
                embeddings={"query": EmbeddingHeadConfig(64, aggregation=AggregationConfig())},
            ),
            "'query' aggregates feature maps, but its backbone's features are 'pooled': use 'map'",
        ),
        (
            lambda: NetworkConfig(
                MAP, embeddings={"query": EmbeddingHeadConfig(64, aggregation=AggregationConfig(num_views=4))}
            ),
            "num_views is for aerial views of one place; 'query' is one picture",
        ),
    ],
)
def test_aggregations_that_do_not_fit(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()
