"""Poolings against explicit loops over places, views and positions in float64 NumPy."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from geoloc.errors import ConfigError
from geoloc.models.aggregation import AggregatingHead, EmbeddingScale, FeatureMap, build_aggregation
from geoloc.models.config import AggregationConfig, EmbeddingHeadConfig

Array = NDArray[np.float64]
B, V, C, H, W, DIM, HEADS = 2, 3, 5, 4, 3, 8, 2


def maps(views: int = V, tokens: int = 2) -> FeatureMap:
    generator = torch.Generator().manual_seed(1)
    grid = torch.randn(B, views, C, H, W, generator=generator, dtype=torch.float64)
    return FeatureMap(grid, torch.randn(B, views, tokens, C, generator=generator, dtype=torch.float64))


def build(kind: Any, dim: int = DIM, views: int = V) -> tuple[nn.Module, dict[str, Array]]:
    torch.manual_seed(0)
    config = AggregationConfig(kind, heads=HEADS, num_views=views)
    module = build_aggregation(config, dim, C, (H, W), num_tokens=2).double()
    with torch.no_grad():  # norms and biases that do something
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return module, {name: tensor.detach().numpy() for name, tensor in module.named_parameters()}


def normed(x: Array, p: dict[str, Array], eps: float = 1e-5) -> Array:
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps)
    return np.asarray(x * p["norm.weight"] + p["norm.bias"])


def positions_of(grid: Array) -> list[Array]:
    """Of one place, view by view and row by row."""
    return [grid[v, :, y, x] for v in range(grid.shape[0]) for y in range(H) for x in range(W)]


def gelu(x: Array) -> Array:
    return np.asarray(x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2)


def spatial_softmax(grid: Array, p: dict[str, Array]) -> list[float]:
    x = [normed(position, p) for position in positions_of(grid)]
    out: list[float] = []
    width = DIM // HEADS
    for head in range(HEADS):
        scores = np.array([p["score.weight"][head] @ position for position in x])
        weights = np.exp(scores - scores.max())
        weights /= weights.sum()
        for channel in range(head * width, (head + 1) * width):
            values = [p["value.weight"][channel] @ position + p["value.bias"][channel] for position in x]
            out.append(sum(w * value for w, value in zip(weights, values, strict=True)))
    return out


def mean(grid: Array, p: dict[str, Array]) -> list[float]:
    x = normed(np.mean(positions_of(grid), axis=0), p)
    return list(p["value.weight"] @ x + p["value.bias"])


def sample4geo(grid: Array, p: dict[str, Array]) -> list[float]:
    return list(normed(np.mean(positions_of(grid), axis=0), p, 1e-6))


def smd(grid: Array, p: dict[str, Array]) -> list[float]:
    value = np.array([p["value.weight"] @ normed(x, p) + p["value.bias"] for x in positions_of(grid)])
    pooled = []
    for channel in value.T:
        hidden = gelu(p["mix.0.weight"] @ channel + p["mix.0.bias"])
        pooled.append(p["pool.weight"] @ (p["mix.2.weight"] @ hidden + p["mix.2.bias"]) + p["pool.bias"])
    return [float(pooled[c][head]) for head in range(HEADS) for c in range(DIM // HEADS)]


def safa(grid: Array, p: dict[str, Array]) -> list[float]:
    value = []
    for view in grid:
        projected = np.array(
            [
                [p["value.weight"] @ normed(view[:, y, x], p) + p["value.bias"] for x in range(W)]
                for y in range(H)
            ]
        )
        value += [projected[y : y + 2, x : x + 2].max((0, 1)) for y in range(0, H, 2) for x in range(0, W, 2)]
    squeezed = p["squeeze.weight"] @ np.array([v.mean() for v in value]) + p["squeeze.bias"]
    hidden = len(squeezed) // HEADS
    out: list[float] = []
    for head in range(HEADS):
        own = squeezed[head * hidden : (head + 1) * hidden]
        weights = own @ p["expand_weight"][head] + p["expand_bias"][head]
        out += list(sum(w * v for w, v in zip(weights, value, strict=True)))
    return out


@pytest.mark.parametrize("views", [1, V])
@pytest.mark.parametrize("pooling", [spatial_softmax, mean, sample4geo, smd, safa])
def test_poolings_are_the_loops(pooling: Any, views: int) -> None:
    dim = C if pooling is sample4geo else DIM
    module, parameters = build(pooling.__name__, dim, views)
    given = maps(views)
    found = module(given)
    assert found.shape == (B, dim)
    expected = [pooling(grid, parameters) for grid in given.grid.numpy()]
    torch.testing.assert_close(found, torch.tensor(np.array(expected)), rtol=1e-9, atol=1e-9)


def test_two_tokens_are_a_mean_of_two_projections() -> None:
    module, p = build("two_tokens", views=1)
    given = maps(views=1, tokens=3)
    found = module(given)
    for b in range(B):
        first, second = (normed(given.tokens[b, 0, t].numpy(), p) for t in (0, 1))
        expected = p["of_class.weight"] @ first + p["of_class.bias"]
        expected = (expected + p["of_distillation.weight"] @ second + p["of_distillation.bias"]) / 2
        assert found[b].tolist() == pytest.approx(list(expected))


def test_a_head_of_a_softmax_can_look_at_one_position_of_one_view() -> None:
    """By hand: one head that scores the first channel steeply, and a projection that copies."""
    module = build_aggregation(AggregationConfig(heads=1, num_views=2), 2, 2, (1, 2), 0)
    with torch.no_grad():
        module.norm.weight.fill_(1)
        module.score.weight.copy_(torch.tensor([[50.0, 0.0]]))
        module.value.weight.copy_(torch.eye(2))
        module.value.bias.zero_()
    # Layer norm of two channels is (1, -1) or (-1, 1): the second view's first position has the larger first.
    grid = torch.tensor([[[[[0.0, 1.0]], [[9.0, 9.0]]], [[[8.0, 0.0]], [[2.0, 9.0]]]]])
    found = module(FeatureMap(grid, torch.zeros(1, 2, 0, 2)))
    assert found[0].tolist() == pytest.approx([1, -1], abs=1e-4)


def test_a_head_groups_the_views_of_a_place_and_normalises() -> None:
    config = EmbeddingHeadConfig(DIM, aggregation=AggregationConfig(heads=HEADS, num_views=V))
    head = AggregatingHead(config, C, (H, W), 0).double()
    given = maps()
    flat = FeatureMap(given.grid.flatten(0, 1), given.tokens.flatten(0, 1))
    found = head(flat)
    torch.testing.assert_close(found, nn.functional.normalize(head.pool(given), dim=-1))
    torch.testing.assert_close(found.norm(dim=-1), torch.ones(B, dtype=torch.float64))


def test_poolings_that_do_not_go_with_a_backbone() -> None:
    with pytest.raises(
        ConfigError, match=r"embedding of dim 8 needs .* this one has 5: use dim 5, or the aggr"
    ):
        build_aggregation(AggregationConfig("sample4geo"), 8, 5, (4, 4), 0)
    with pytest.raises(ConfigError, match="but this backbone has 1 tokens: use a distilled ViT"):
        build_aggregation(AggregationConfig("two_tokens"), 8, 5, (4, 4), 1)


def test_scale_of_six_is_a_temperature_of_one_36th() -> None:
    assert EmbeddingScale().temperature().item() == pytest.approx(1 / 36)
    assert list(EmbeddingScale().parameters()) == []
    learnable = EmbeddingScale(2.0, learnable=True)
    learnable.temperature().backward()
    assert learnable.log_scale.grad is not None
    assert learnable.log_scale.grad.item() == pytest.approx(-2 / 4)
    with pytest.raises(ConfigError, match="scale is -1; it must be positive"):
        EmbeddingScale(-1)
