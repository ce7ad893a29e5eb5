"""OSV-5M's hybrid offsets, worked by hand in degrees, and their inverse; then the other heads."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from geoloc.models.config import EmbeddingHeadConfig, OffsetHeadConfig, RegressionHeadConfig
from geoloc.models.heads import EmbeddingHead, OffsetHead, RegressionHead, angles_to_latlon_rad, mlp
from quadtree.sphere import haversine_km

# south, west, north, east, and a representative point off the middle
BOUNDS = np.array(
    [
        [40.0, 0.0, 50.0, 20.0],
        [0.0, 157.5, 22.5, 180.0],  # ends at the antimeridian
        [67.5, -180.0, 90.0, -135.0],  # starts there, and ends at the pole
        [-10.0, 5.0, 0.0, 15.0],  # its point is on its southern edge and its western edge
    ]
)
CENTERS = np.array([[43.0, 15.0], [2.25, 175.5], [72.0, -180.0], [-10.0, 5.0]])


def head(**options: object) -> OffsetHead:
    config = OffsetHeadConfig(**({"hidden_dims": (8,)} | options))  # type: ignore[arg-type]
    return OffsetHead(6, config, BOUNDS, CENTERS)


def decode(offset_head: OffsetHead, r: tuple[float, float], cell: int) -> list[float]:
    return offset_head.to_latlon_deg(torch.tensor(r), torch.tensor(cell)).tolist()


# --- Decoding ---


@pytest.mark.parametrize(
    ("r", "cell", "expected"),
    [
        ((0, 0), 0, [43, 15]),  # the representative point itself
        ((1, 1), 0, [50, 20]),  # the edges
        ((-1, -1), 0, [40, 0]),
        ((0.5, -0.5), 0, [46.5, 7.5]),  # 43 + 7 / 2, 15 - 15 / 2
        ((-0.25, 0.2), 0, [42.25, 16]),
        ((1.2, -1.2), 0, [51.4, -3]),  # a fifth beyond the edges, of the way from the point to them
        ((0, 0), 1, [2.25, 175.5]),
        ((0, 1), 1, [2.25, -180]),  # the eastern edge is the antimeridian, and that is -180
        ((0, 1.2), 1, [2.25, -179.1]),  # 175.5 + 1.2 * 4.5 = 180.9
        ((-1.2, 0), 1, [-0.45, 175.5]),
        ((1, 0), 2, [90, -180]),
        ((1.2, 0.5), 2, [90, -157.5]),  # not over the pole
        ((0, -1.2), 2, [72, -180]),  # no way to the west
        ((-1, -1), 3, [-10, 5]),
        ((1, 1), 3, [0, 15]),
    ],
)
def test_decoding_from_the_representative_point(
    r: tuple[float, float], cell: int, expected: list[float]
) -> None:
    assert decode(head(), r, cell) == pytest.approx(expected, abs=1e-5)  # r comes as float32


@pytest.mark.parametrize(
    ("r", "cell", "expected"),
    [
        ((0, 0), 0, [45, 10]),
        ((1, 1), 0, [50, 20]),
        ((-1, -1), 0, [40, 0]),
        ((1.2, -1.2), 0, [51, -2]),
        ((0.5, 0.5), 1, [16.875, 174.375]),
        ((0, 1.2), 1, [11.25, -177.75]),  # 168.75 + 1.2 * 11.25 = 182.25, beyond the antimeridian
        ((0, -1.2), 2, [78.75, 175.5]),  # -157.5 - 1.2 * 22.5 = -184.5
    ],
)
def test_decoding_from_the_middle_of_the_box(
    r: tuple[float, float], cell: int, expected: list[float]
) -> None:
    assert decode(head(origin="box"), r, cell) == pytest.approx(expected, abs=1e-5)


def test_offset_zero_is_the_representative_point_to_the_last_bit() -> None:
    tables = np.array([[48.8566, 2.3522], [-89.999999999, 179.99999999999997]])
    exact = OffsetHead(4, OffsetHeadConfig(), np.array([[-90.0, -180, 90, 180]] * 2), tables)
    assert exact.to_latlon_deg(torch.zeros(2, 2), torch.arange(2)).tolist() == tables.tolist()


def test_offsets_saturate_at_the_scale_and_start_at_zero() -> None:
    offsets = head()
    features = torch.randn(5, 6)
    assert offsets(features).shape == (5, 4, 2)
    assert torch.equal(offsets(features), torch.zeros(5, 4, 2))
    final = offsets.mlp[-1]
    assert isinstance(final, nn.Linear)
    for raw, expected in [(0.5, 1.2 * math.tanh(0.5)), (50.0, 1.2), (-50.0, -1.2)]:
        nn.init.constant_(final.bias, raw)
        assert offsets(features).flatten().tolist() == pytest.approx([expected] * 40, rel=1e-6)


def test_latitude_comes_first_and_cells_have_offsets_of_their_own() -> None:
    offsets = head()
    final = offsets.mlp[-1]
    assert isinstance(final, nn.Linear)
    with torch.no_grad():
        final.bias.copy_(torch.atanh(torch.arange(8) / 10 / 1.2))
    found = offsets(torch.randn(2, 6))
    assert torch.allclose(found[1], torch.tensor([[0.0, 0.1], [0.2, 0.3], [0.4, 0.5], [0.6, 0.7]]))
    chosen = offsets.of_cells(found, torch.tensor([[3, 1], [0, 3]]))
    expected = [[[0.6, 0.7], [0.2, 0.3]], [[0.0, 0.1], [0.6, 0.7]]]
    assert torch.allclose(chosen, torch.tensor(expected))


def test_a_shared_offset_is_every_cells() -> None:
    offsets = head(shared=True)
    final = offsets.mlp[-1]
    assert isinstance(final, nn.Linear)
    assert final.out_features == 2
    with torch.no_grad():
        final.bias.copy_(torch.atanh(torch.tensor([0.5, -1.0]) / 1.2))
    found = offsets(torch.randn(2, 6))
    assert found.shape == (2, 1, 2)
    cells = torch.tensor([[0, 1, 3], [3, 3, 0]])
    latlon = offsets.to_latlon_deg(offsets.of_cells(found, cells), cells)
    assert latlon.dtype == torch.float64
    expected = [[[46.5, 0], [12.375, 157.5], [-5, 5]], [[-5, 5], [-5, 5], [46.5, 0]]]
    assert torch.allclose(latlon, torch.tensor(expected, dtype=torch.float64), atol=1e-5)


# --- The target, which is the inverse ---


@pytest.mark.parametrize(
    ("latlon", "cell", "expected"),
    [
        ([43, 15], 0, [0, 0]),
        ([50, 20], 0, [1, 1]),
        ([46.5, 7.5], 0, [0.5, -0.5]),
        ([2.25, -179.1], 1, [0, 1.2]),  # the short way over the antimeridian
        ([2.25, 179.5], 2, [-15.5, 0]),  # no extent to the west: 0
        ([-12, 20], 3, [0, 1.5]),  # outside: beyond 1; and south of a point on the southern edge: 0
    ],
)
def test_targets_by_hand(latlon: list[float], cell: int, expected: list[float]) -> None:
    found = head().target(torch.tensor(latlon, dtype=torch.float64), torch.tensor(cell))
    assert found.dtype == torch.float32
    assert found.tolist() == pytest.approx(expected, abs=1e-6)


def test_the_target_chooses_its_side_by_its_own_sign() -> None:
    """OSV-5M divides by the extent on the side of the prediction; ours does not know the prediction."""
    point = torch.tensor([[46.5, 7.5]], dtype=torch.float64)  # north-west of the representative point
    r = head().target(point, torch.tensor([0]))
    assert torch.allclose(r, torch.tensor([[3.5 / 7, -7.5 / 15]]))


@st.composite
def cells(draw: st.DrawFn) -> tuple[list[float], list[float]]:
    """A box of a quadtree over the Earth, at any depth from 1, and a point in it."""
    depth = draw(st.integers(1, 16))
    row, column = draw(st.integers(0, 2**depth - 1)), draw(st.integers(0, 2**depth - 1))
    south, west = -90 + 180 * row / 2**depth, -180 + 360 * column / 2**depth
    north, east = south + 180 / 2**depth, west + 360 / 2**depth
    share = st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0, 1))
    latitude, longitude = south + draw(share) * (north - south), west + draw(share) * (east - west)
    return [south, west, north, east], [min(latitude, north), min(longitude, east)]


def test_half_a_turn_goes_to_the_side_where_the_cell_is() -> None:
    config = OffsetHeadConfig(hidden_dims=())
    offsets = OffsetHead(4, config, np.array([[-90.0, -180.0, 0.0, 0.0]]), np.array([[-90.0, -180.0]]))
    r = offsets.target(torch.tensor([0.0, 0.0]), torch.tensor(0))
    assert r.tolist() == [1.0, 1.0]
    assert offsets.to_latlon_deg(r, torch.tensor(0)).tolist() == [0.0, 0.0]


@given(cells(), st.sampled_from(["representative", "box"]), st.data())
def test_decoding_undoes_the_target(
    cell: tuple[list[float], list[float]], origin: str, data: st.DataObject
) -> None:
    (south, west, north, east), center = cell
    config = OffsetHeadConfig(hidden_dims=(), origin=origin)  # type: ignore[arg-type]
    offsets = OffsetHead(4, config, np.array([[south, west, north, east]]), np.array([center]))
    share = st.floats(0, 1)
    point = np.array([south + data.draw(share) * (north - south), west + data.draw(share) * (east - west)])
    point = np.minimum(point, [north, east])
    r = offsets.target(torch.from_numpy(point), torch.tensor(0))
    assert (r.abs() <= 1 + 1e-6).all()
    back = offsets.to_latlon_deg(r, torch.tensor(0)).numpy()
    assert -90 <= back[0] <= 90
    assert -180 <= back[1] < 180
    # float32 rounds r by 6e-8 of the cell; a side shorter than 1e-12 degrees is none.
    cell_km = float(haversine_km([south, west], [north, west]) + haversine_km([0, west], [0, east]))
    assert haversine_km(back, point) < 1e-6 + 3e-7 * cell_km


@given(cells(), st.tuples(*[st.floats(-1.2, 1.2)] * 2))
def test_the_target_undoes_decoding(cell: tuple[list[float], list[float]], r: tuple[float, float]) -> None:
    (south, west, north, east), center = cell
    offsets = OffsetHead(
        4, OffsetHeadConfig(hidden_dims=()), np.array([[south, west, north, east]]), np.array([center])
    )
    reach = offsets.cell_reach[0].numpy()
    side = reach[[0, 1], [int(x > 0) for x in r]]
    latlon = offsets.to_latlon_deg(torch.tensor(r, dtype=torch.float64), torch.tensor(0))
    found = offsets.target(latlon, torch.tensor(0)).tolist()
    unclamped = center[0] + r[0] * side[0]
    for axis in (0, 1):
        # The pole stops a latitude, and a step of half the Earth may as well be one the other way.
        if side[axis] > 1e-6 and abs(r[axis] * side[1]) < 179.9 and -90 <= unclamped <= 90:
            assert found[axis] == pytest.approx(r[axis], abs=1e-5 + 1e-12 / side[axis])


# --- The other heads ---


def test_an_mlp_is_norm_then_hidden_layers_then_linear() -> None:
    kinds = [type(layer).__name__ for layer in mlp(6, (8, 4), 3)]
    hidden = ["Linear", "GroupNorm", "GELU"]
    assert kinds == ["LayerNorm", *hidden, *hidden, "Linear"]
    assert mlp(6, (8, 4), 3)(torch.randn(5, 6)).shape == (5, 3)
    assert [type(layer).__name__ for layer in mlp(6, (), 3)] == ["LayerNorm", "Linear"]


def test_regression_by_tanh_is_osv5ms() -> None:
    regression = RegressionHead(6, RegressionHeadConfig(hidden_dims=(), kind="tanh"))
    final = regression.mlp[-1]
    assert isinstance(final, nn.Linear)
    nn.init.zeros_(final.weight)
    with torch.no_grad():
        final.bias.copy_(torch.tensor([0.5, -0.25]))
    expected = [math.tanh(0.5) * math.pi / 2, math.tanh(-0.25) * math.pi]
    assert regression(torch.randn(2, 6))[1].tolist() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("xyz", "latlon_deg"),
    [([2, 0, 0], [0, 0]), ([0, -3, 0], [0, -90]), ([0, 0, 5], [90, 0]), ([-1, -1e-6, -1], [-45, -180])],
)
def test_regression_by_unit_vector(xyz: list[float], latlon_deg: list[float]) -> None:
    regression = RegressionHead(6, RegressionHeadConfig(hidden_dims=()))
    final = regression.mlp[-1]
    assert isinstance(final, nn.Linear)
    nn.init.zeros_(final.weight)
    with torch.no_grad():
        final.bias.copy_(torch.tensor(xyz, dtype=torch.float32))
    found = torch.rad2deg(regression(torch.randn(2, 6))[0]).tolist()
    assert found == pytest.approx(latlon_deg, abs=1e-4)


def gradient_norms(module: nn.Module, features: Tensor) -> list[float]:
    module(features).square().sum().backward()
    return [float(p.grad.norm()) for p in module.parameters() if p.grad is not None]


def test_heads_train() -> None:
    features = torch.randn(3, 6)
    for module in (
        head(),
        RegressionHead(6, RegressionHeadConfig(hidden_dims=(8,))),
        EmbeddingHead(6, EmbeddingHeadConfig(dim=8, hidden_dims=(8,))),
    ):
        norms = gradient_norms(module, features)
        assert len(norms) == len(list(module.parameters()))
        assert all(math.isfinite(norm) for norm in norms)


def test_embeddings_have_length_one() -> None:
    embedding = EmbeddingHead(6, EmbeddingHeadConfig(dim=8))
    found = embedding(100 * torch.randn(3, 6))
    assert found.shape == (3, 8)
    assert found.norm(dim=-1).tolist() == pytest.approx([1, 1, 1], abs=1e-6)


@given(st.floats(-math.pi, math.pi), st.floats(-math.pi, math.pi), st.floats(0.1, 10))
def test_two_angles_reach_every_place_and_go_over_the_pole(lat: float, lon: float, length: float) -> None:
    raw = torch.tensor(
        [math.cos(lat), math.sin(lat), math.cos(lon), math.sin(lon)], dtype=torch.float64
    ) * torch.tensor([length, length, 1 / length, 1 / length], dtype=torch.float64)
    found_lat, found_lon = angles_to_latlon_rad(raw).tolist()
    assert abs(found_lat) <= math.pi / 2
    # The place on the unit sphere that the two angles mean, also beyond a pole.
    expected = [math.cos(lat) * math.cos(lon), math.cos(lat) * math.sin(lon), math.sin(lat)]
    found = [
        math.cos(found_lat) * math.cos(found_lon),
        math.cos(found_lat) * math.sin(found_lon),
        math.sin(found_lat),
    ]
    assert found == pytest.approx(expected, abs=1e-9)


def test_the_angle_head_has_gradients_where_its_output_is_zero() -> None:
    regression = RegressionHead(5, RegressionHeadConfig(kind="angles", hidden_dims=()))
    raw = torch.zeros(1, 4, requires_grad=True)
    angles_to_latlon_rad(raw).sum().backward()
    assert raw.grad is not None
    assert raw.grad.isfinite().all()
    latlon = regression(torch.randn(64, 5))
    assert latlon.shape == (64, 2)
    assert (latlon < 0).any(0).all()  # squares would reach the north-eastern quarter only
