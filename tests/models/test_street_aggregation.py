"""Aggregations for street photos against explicit loops in float64 NumPy, and against hand-worked numbers."""

import math
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from geoloc.errors import ConfigError
from geoloc.models.aggregation import (
    CRN,
    AggregatingHead,
    ConvAP,
    FeatureMap,
    GeneralizedMean,
    MaxPooling,
    NetVLAD,
    RegionalMaxPooling,
    SumPooling,
    build_aggregation,
    fit_pca,
    local_descriptors,
)
from geoloc.models.aggregation.pooling import squares
from geoloc.models.config import AggregationConfig, EmbeddingHeadConfig
from geoloc.models.plain import from_plain, to_plain

Array = NDArray[np.float64]
B, C, H, W, T = 2, 6, 4, 6, 2


def maps(channels: int = C, size: tuple[int, int] = (H, W)) -> FeatureMap:
    generator = torch.Generator().manual_seed(1)
    grid = torch.randn(B, 1, channels, *size, generator=generator, dtype=torch.float64)
    return FeatureMap(grid, torch.randn(B, 1, T, channels, generator=generator, dtype=torch.float64))


def build(dim: int, **options: Any) -> tuple[AggregatingHead, dict[str, Array]]:
    torch.manual_seed(0)
    config = EmbeddingHeadConfig(dim, aggregation=AggregationConfig(**options))
    head = AggregatingHead(config, C, (H, W), T).double()
    with torch.no_grad():  # norms and biases that do something
        for parameter in head.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return head, {name: tensor.detach().numpy() for name, tensor in head.named_parameters()}


def unit(x: Array, axis: int = -1) -> Array:
    return np.asarray(x / np.linalg.norm(x, axis=axis, keepdims=True))


def layer_norm(x: Array, weight: Array, bias: Array) -> Array:
    return np.asarray((x - x.mean()) / math.sqrt(x.var() + 1e-5) * weight + bias)


# --- Explicit loops, each of one picture: (C, H, W), tokens, parameters -> the vector before the last L2 ---


def gem(grid: Array, tokens: Array, p: dict[str, Array]) -> Array:
    power = p["pool.p"][0]
    sums = [
        sum(max(grid[c, y, x], 1e-6) ** power for y in range(H) for x in range(W)) for c in range(len(grid))
    ]
    return np.array([(s / (H * W)) ** (1 / power) for s in sums])


def spoc(grid: Array, tokens: Array, p: dict[str, Array]) -> Array:
    return np.array([sum(grid[c, y, x] for y in range(H) for x in range(W)) / (H * W) for c in range(C)])


def mac(grid: Array, tokens: Array, p: dict[str, Array]) -> Array:
    return np.array([max(grid[c, y, x] for y in range(H) for x in range(W)) for c in range(C)])


def rmac(grid: Array, tokens: Array, p: dict[str, Array]) -> Array:
    """On 4 x 6: one square more along the width, as 1 - 2 / (1 * 4) = 0.5 is nearest to 0.4."""
    regions = [grid]
    regions += [grid[:, :, x : x + 4] for x in (0, 2)]
    regions += [grid[:, y : y + 2, x : x + 2] for y in (0, 2) for x in (0, 2, 4)]  # side 2 * 4 // 3
    regions += [grid[:, y : y + 2, x : x + 2] for y in (0, 1, 2) for x in (0, 1, 2, 4)]  # side 2 * 4 // 4
    total = np.zeros(C)
    for region in regions:
        largest = region.reshape(C, -1).max(1)
        total += largest / (np.linalg.norm(largest) + 1e-6)
    return total


def rrm(grid: Array, tokens: Array, p: dict[str, Array]) -> Array:
    x = layer_norm(spoc(grid, tokens, p), p["pool.norm.weight"], p["pool.norm.bias"])
    hidden = np.maximum(p["pool.mlp.0.weight"] @ x + p["pool.mlp.0.bias"], 0)
    out = x + p["pool.mlp.2.weight"] @ hidden + p["pool.mlp.2.bias"]
    return layer_norm(out, p["pool.out_norm.weight"], p["pool.out_norm.bias"])


def vlad(grid: Array, p: dict[str, Array], mask: Array) -> Array:
    weight, centres = p["pool.assign.weight"], p["pool.centres"]
    total = np.zeros_like(centres)
    for y, x in product(range(H), range(W)):
        position = unit(grid[:, y, x])
        share = np.exp(weight @ position)
        share *= mask[y, x] / share.sum()
        for k in range(len(centres)):
            total[k] += share[k] * (position - centres[k])
    return unit(unit(total).ravel())


def netvlad(grid: Array, tokens: Array, p: dict[str, Array]) -> Array:
    return vlad(grid, p, np.ones((H, W)))


def crn(grid: Array, tokens: Array, p: dict[str, Array]) -> Array:
    x = unit(grid, 0)
    # 3 x 3 means at every second position; the last window of a side hangs over its end and counts what is there.
    rows, columns = math.ceil((H - 3) / 2) + 1, math.ceil((W - 3) / 2) + 1
    small = np.array(
        [
            [x[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3].mean((1, 2)) for j in range(columns)]
            for i in range(rows)
        ]
    )
    context = np.zeros((rows, columns))
    for number, size in enumerate((3, 5, 7)):
        weight, bias = p[f"pool.filters.{number}.weight"], p[f"pool.filters.{number}.bias"]
        for i, j, out in product(range(rows), range(columns), range(len(weight))):
            response = bias[out]
            for dy, dx in product(range(size), range(size)):
                y, z = i + dy - size // 2, j + dx - size // 2
                if 0 <= y < rows and 0 <= z < columns:
                    response += weight[out, :, dy, dx] @ small[y, z]
            context[i, j] += max(response, 0)

    def at(place: float, length: int) -> list[tuple[int, float]]:
        place = min(max(place, 0), length - 1)
        low = math.floor(place)
        return [(low, 1 - place + low), (min(low + 1, length - 1), place - low)]

    mask = np.zeros((H, W))
    for y, z in product(range(H), range(W)):
        for (i, wi), (j, wj) in product(
            at((y + 0.5) * rows / H - 0.5, rows), at((z + 0.5) * columns / W - 0.5, columns)
        ):
            mask[y, z] += wi * wj * context[i, j]
    return vlad(grid, p, mask)


def convap(grid: Array, tokens: Array, p: dict[str, Array]) -> Array:
    weight, bias = p["pool.project.weight"][:, :, 0, 0], p["pool.project.bias"]
    projected = np.einsum("dc,chw->dhw", weight, grid) + bias[:, None, None]
    return np.array(
        [
            projected[d, y : y + H // 2, x : x + W // 3].mean()
            for d in range(len(projected))
            for y in range(0, H, H // 2)
            for x in range(0, W, W // 3)
        ]
    )


def mixvpr(grid: Array, tokens: Array, p: dict[str, Array]) -> Array:
    x = grid.reshape(C, H * W).copy()
    for block, c in product(range(2), range(C)):
        name = f"pool.mixers.{block}"
        inner = layer_norm(x[c], p[f"{name}.norm.weight"], p[f"{name}.norm.bias"])
        inner = np.maximum(p[f"{name}.mlp.0.weight"] @ inner + p[f"{name}.mlp.0.bias"], 0)
        x[c] = x[c] + p[f"{name}.mlp.2.weight"] @ inner + p[f"{name}.mlp.2.bias"]
    x = (p["pool.channel_projection.weight"] @ x) + p["pool.channel_projection.bias"][:, None]
    x = x @ p["pool.row_projection.weight"].T + p["pool.row_projection.bias"]
    return np.asarray(x.ravel())


def cls(grid: Array, tokens: Array, p: dict[str, Array]) -> Array:
    return np.asarray(tokens[0])


def first(grid: Array, tokens: Array, p: dict[str, Array]) -> Array:
    return np.array([grid[c, 0, 0] for c in range(C)])


def seqpool(grid: Array, tokens: Array, p: dict[str, Array]) -> Array:
    positions = grid.reshape(C, -1).T
    scores = np.exp([p["pool.score.weight"][0] @ x + p["pool.score.bias"][0] for x in positions])
    return np.asarray(sum(s * x for s, x in zip(scores / scores.sum(), positions, strict=True)))


def cosplace(grid: Array, tokens: Array, p: dict[str, Array]) -> Array:
    return np.asarray(p["fc.weight"] @ gem(unit(grid, 0), tokens, p) + p["fc.bias"])


CASES: dict[Any, tuple[int, dict[str, Any]]] = {
    gem: (C, {}),
    spoc: (C, {}),
    mac: (C, {}),
    rmac: (C, {}),
    rrm: (C, {}),
    netvlad: (3 * C, {"clusters": 3}),
    crn: (3 * C, {"clusters": 3}),
    convap: (24, {"pooled_size": (2, 3)}),
    mixvpr: (12, {"out_rows": 4, "mix_depth": 2, "mlp_ratio": 1.5}),
    cls: (C, {}),
    first: (C, {}),
    seqpool: (C, {}),
    cosplace: (5, {}),
}


@pytest.mark.parametrize("loop", CASES, ids=lambda loop: loop.__name__)
def test_every_aggregation_is_its_loop(loop: Any) -> None:
    dim, options = CASES[loop]
    head, parameters = build(dim, kind=loop.__name__, **options)
    given = maps()
    found = head(FeatureMap(given.grid[:, 0], given.tokens[:, 0]))
    assert found.shape == (B, dim)
    pictures = zip(given.grid[:, 0].numpy(), given.tokens[:, 0].numpy(), strict=True)
    expected = [unit(loop(grid, tokens, parameters)) for grid, tokens in pictures]
    torch.testing.assert_close(found, torch.tensor(np.array(expected)), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("loop", [gem, spoc, mac, rmac], ids=lambda loop: loop.__name__)
def test_positions_at_length_one_before_pooling(loop: Any) -> None:
    head, parameters = build(C, kind=loop.__name__, normalize_positions=True)
    given = maps()
    found = head(FeatureMap(given.grid[:, 0], given.tokens[:, 0]))
    expected = unit(loop(unit(given.grid[0, 0].numpy(), 0), given.tokens[0, 0].numpy(), parameters))
    torch.testing.assert_close(found[0], torch.tensor(expected), rtol=1e-9, atol=1e-9)


def test_channels_at_length_one_before_pooling() -> None:
    head, parameters = build(C, kind="gem", normalize_channels=True)
    given = maps()
    found = head(FeatureMap(given.grid[:, 0], given.tokens[:, 0]))
    grid = given.grid[0, 0].numpy()
    channels = unit(grid.reshape(C, -1)).reshape(grid.shape)
    expected = unit(gem(channels, given.tokens[0, 0].numpy(), parameters))
    torch.testing.assert_close(found[0], torch.tensor(expected), rtol=1e-9, atol=1e-9)
    with pytest.raises(ConfigError, match="normalize_channels is for 'gem' only"):
        AggregationConfig("spoc", normalize_channels=True)


def test_the_pooled_vector_at_length_one_before_the_linear_layer() -> None:
    head, parameters = build(5, kind="gem", fc_dim=5, normalize_pooled=True)
    given = maps()
    found = head(FeatureMap(given.grid[:, 0], given.tokens[:, 0]))
    pooled = unit(gem(given.grid[0, 0].numpy(), given.tokens[0, 0].numpy(), parameters))
    expected = unit(parameters["fc.weight"] @ pooled + parameters["fc.bias"])
    torch.testing.assert_close(found[0], torch.tensor(expected), rtol=1e-9, atol=1e-9)
    with pytest.raises(ConfigError, match=r"for the linear layer of fc_dim"):
        AggregationConfig("gem", normalize_pooled=True)


def test_poolings_by_hand() -> None:
    grid = torch.tensor([[[[[1.0, 2.0], [2.0, 1.0]], [[0.0, 0.0], [0.0, 3.0]]]]])  # two channels of 2 x 2
    given = FeatureMap(grid, torch.zeros(1, 1, 0, 2))
    # ((1 + 8 + 8 + 1) / 4)^(1/3) and (27 / 4)^(1/3)
    assert GeneralizedMean(2)(given)[0].tolist() == pytest.approx([4.5 ** (1 / 3), 6.75 ** (1 / 3)])
    assert SumPooling(2)(given)[0].tolist() == [1.5, 0.75]
    assert MaxPooling(2)(given)[0].tolist() == [2, 3]
    # The map and the one square of the first level are the same: (2, 3) / √13 twice. Level 2 has the four positions
    # (1, 0), (2, 0), (2, 0) and (1, 3), level 3 sides of one, too, at 0, 0 and 1: 3 x 3 of them.
    first = np.array([2, 3]) / math.sqrt(13)
    corner = np.array([1, 3]) / math.sqrt(10)
    expected = 2 * first + (np.array([3, 0]) + corner) + (np.array([8, 0]) + corner)
    assert RegionalMaxPooling(2)(given)[0].tolist() == pytest.approx(expected.tolist(), abs=1e-5)


def test_a_generalised_mean_of_a_large_power_is_the_maximum_and_the_power_trains() -> None:
    given = FeatureMap(maps().grid.abs(), maps().tokens)
    pool = GeneralizedMean(C, p=400.0).double()
    found = pool(given)
    torch.testing.assert_close(found, given.grid[:, 0].amax((-2, -1)), rtol=2e-2, atol=0)
    found.sum().backward()
    assert pool.p.grad is not None
    assert float(pool.p.grad) != 0


def test_squares_stay_on_the_map() -> None:
    for height, width in product(range(1, 14), range(1, 14)):
        for row, column, side in squares(height, width, 3, 0.4):
            assert 0 <= row <= row + side <= height
            assert 0 <= column <= column + side <= width
    # 6 x 6: 1, 4 and 9 squares of 6, 4 and 3.
    assert sorted({s for _, _, s in squares(6, 6, 3, 0.4)}) == [3, 4, 6]
    assert len(list(squares(6, 6, 3, 0.4))) == 14


def test_a_contextual_mask_goes_with_odd_sides() -> None:
    given = maps(size=(5, 7))
    module = CRN(C, 2).double()
    assert module.mask(given.grid[:, 0]).shape == (B, 1, 5, 7)
    assert module(given).shape == (B, 2 * C)


def test_a_netvlad_starts_at_its_clusters() -> None:
    """Four tight bunches of unit vectors: centres are their means, and alpha is by its formula."""
    generator = torch.Generator().manual_seed(2)
    axes = torch.eye(C)[:4]
    points = axes.repeat_interleave(50, 0) + 0.01 * torch.randn(200, C, generator=generator)
    points = nn.functional.normalize(points, dim=-1)
    module = NetVLAD(C, 4)
    alpha = module.initialize(points)
    order = (module.centres.detach() @ axes.T).argmax(0)
    assert sorted(order.tolist()) == [0, 1, 2, 3]
    means = points.unflatten(0, (4, 50)).mean(1).numpy()
    np.testing.assert_allclose(module.centres.detach().numpy()[order], means, atol=1e-5)
    cosines = points.double().numpy() @ unit(means.astype(np.float64)).T
    best = np.sort(cosines, -1)[:, ::-1]
    expected = -math.log(0.01) / np.mean(best[:, 0] - best[:, 1])
    assert alpha == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(
        module.assign.weight.detach().numpy()[order], expected * unit(means), rtol=1e-4, atol=1e-4
    )
    # A point whose gap is the mean gap gives the second-best cluster a hundredth of the best one's share.
    assert math.exp(-alpha * np.mean(best[:, 0] - best[:, 1])) == pytest.approx(0.01, rel=1e-5)
    with pytest.raises(ConfigError, match="4 clusters cannot start from 3 descriptors"):
        module.initialize(points[:3])


def test_local_descriptors_are_unit_positions_drawn_once_each() -> None:
    given = FeatureMap(maps().grid[:, 0], maps().tokens[:, 0])
    found = local_descriptors(given, 5, torch.Generator().manual_seed(0))
    assert found.shape == (B * 5, C)
    positions = nn.functional.normalize(given.grid, dim=1).flatten(2).transpose(1, 2)
    for b in range(B):
        same = (found[b * 5 : b * 5 + 5, None] - positions[b]).abs().amax(-1) == 0
        assert same.sum(1).tolist() == [1] * 5
        assert same.any(0).sum() == 5
    assert len(local_descriptors(given, 1000, torch.Generator())) == B * H * W


@pytest.mark.parametrize(("count", "width"), [(60, 9), (9, 60)])
@pytest.mark.parametrize("whiten", [False, True])
def test_pca_is_scikit_learns(count: int, width: int, whiten: bool) -> None:
    from sklearn.decomposition import PCA

    rng = np.random.default_rng(0)
    x = unit(rng.normal(size=(count, width)) * np.linspace(1, 5, width))
    layer = nn.Linear(width, 4).double()
    fit_pca(layer, torch.from_numpy(x), whiten=whiten)
    expected = PCA(4, svd_solver="full", whiten=whiten).fit_transform(x)
    found = layer(torch.from_numpy(x)).detach().numpy()
    signs = np.sign((found * expected).sum(0))
    np.testing.assert_allclose(found, expected * signs, atol=1e-8)


def test_pca_needs_enough_descriptors_of_the_right_width() -> None:
    with pytest.raises(ConfigError, match="cannot be fitted on 4 descriptors"):
        fit_pca(nn.Linear(8, 4), torch.randn(4, 8))
    with pytest.raises(ConfigError, match="of 7 numbers"):
        fit_pca(nn.Linear(8, 4), torch.randn(40, 7))


def test_a_linear_layer_and_pca_follow_any_aggregation() -> None:
    head, p = build(3, kind="convap", out_channels=2, pooled_size=(2, 3), fc_dim=5, pca=True)
    given = maps()
    flat = FeatureMap(given.grid[:, 0], given.tokens[:, 0])
    x = convap(given.grid[0, 0].numpy(), given.tokens[0, 0].numpy(), p)
    x = unit(p["fc.weight"] @ x + p["fc.bias"])
    np.testing.assert_allclose(head.before_pca(flat)[0].detach().numpy(), x, atol=1e-9)
    x = unit(p["pca.weight"] @ x + p["pca.bias"])
    np.testing.assert_allclose(head(flat)[0].detach().numpy(), x, atol=1e-9)


def test_sizes_that_the_papers_name() -> None:
    conv = build_aggregation(AggregationConfig("convap"), 4096, 2048, (10, 10), 0)
    assert isinstance(conv, ConvAP)
    assert (conv.width, conv.project.out_channels) == (4096, 1024)
    mix = build_aggregation(AggregationConfig("mixvpr"), 4096, 1024, (20, 20), 0)
    # 4 mixers of 2 (400² + 400) + 800, a projection 1024 -> 1024 and one 400 -> 4: 10.9 M in MixVPR's table.
    expected = 4 * (2 * (400 * 400 + 400) + 800) + 1024 * 1025 + 4 * 401
    assert sum(parameter.numel() for parameter in mix.parameters()) == expected
    assert build_aggregation(AggregationConfig("netvlad"), 0, 256, (30, 40), 0).width == 16_384


@pytest.mark.parametrize(
    ("dim", "options", "message"),
    [
        (7, {"kind": "gem"}, "'gem' makes 6 numbers of this backbone's maps, but the embedding's dim is 7"),
        (7, {"kind": "convap"}, "a multiple of 4"),
        (8, {"kind": "mixvpr", "pca": True}, "give out_channels"),
        (8, {"kind": "mean", "fc_dim": 8}, "has its own projection"),
        (8, {"kind": "gem", "num_views": 2}, "reads one image"),
        (8, {"kind": "netvlad", "clusters": 0}, "must be positive"),
    ],
)
def test_what_does_not_go_together(dim: int, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(dim, **options)


def test_a_class_token_must_be_there() -> None:
    with pytest.raises(ConfigError, match="this backbone has none"):
        build_aggregation(AggregationConfig("cls"), C, C, (H, W), 0)


def test_older_configs_keep_their_plain_form() -> None:
    assert to_plain(AggregationConfig()) == {"kind": "spatial_softmax", "heads": 64, "num_views": 1}
    config = AggregationConfig("convap", pooled_size=(1, 2), out_channels=8)
    assert to_plain(config) == {
        "kind": "convap",
        "heads": 64,
        "num_views": 1,
        "pooled_size": [1, 2],
        "out_channels": 8,
    }
    assert from_plain(AggregationConfig, to_plain(config)) == config
