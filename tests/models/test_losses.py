"""Losses against the formulas in float64 NumPy, with explicit matrices and explicit loops."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch.nn import functional

from geoloc.models.losses import (
    great_circle_loss_km,
    haversine_km,
    hierarchical_cell_loss,
    info_nce,
    info_nce_on_the_ground,
    offset_loss,
)
from quadtree import build_quadtree, sphere

Array = NDArray[np.float64]


def softmax(z: Array) -> Array:
    e = np.exp(z - z.max(-1, keepdims=True))
    return np.asarray(e / e.sum(-1, keepdims=True))


# --- Cells ---


def hier_quad(logits: Array, cell_ids: list[int], paths: tuple[str, ...], max_depth: int) -> float:
    """OSV-5M: CE, and for every coarser level NLL of log(softmax(z) M + 1e-10), M one 0/1 matrix a level."""
    probs = softmax(logits)
    rows = np.arange(len(cell_ids))
    total = -np.log(probs[rows, cell_ids]).mean()
    for length in range(1, max_depth):
        prefixes = [path[:length] for path in paths]
        groups = sorted(set(prefixes))
        matrix = np.array([[float(prefix == group) for group in groups] for prefix in prefixes])
        right = [groups.index(prefixes[cell]) for cell in cell_ids]
        total -= np.log(probs @ matrix + 1e-10)[rows, right].mean()
    return float(total)


def test_hierarchical_loss_is_osv5ms() -> None:
    rng = np.random.default_rng(0)
    tree = build_quadtree(
        np.stack([rng.normal(30, 25, 400).clip(-89, 89), rng.normal(0, 60, 400)], -1),
        max_points_per_cell=15,
        max_depth=6,
    )
    assert tree.depths.min() < tree.max_depth  # shorter paths are kept whole at the levels beyond them
    logits = rng.normal(0, 3, (32, tree.num_cells))
    cell_ids = rng.integers(0, tree.num_cells, 32)
    prefix_ids = np.stack([tree.prefix_ids(depth) for depth in range(1, tree.max_depth)])
    found = hierarchical_cell_loss(
        torch.from_numpy(logits), torch.from_numpy(cell_ids), torch.from_numpy(prefix_ids)
    )
    assert float(found) == pytest.approx(
        hier_quad(logits, cell_ids.tolist(), tree.paths, tree.max_depth), abs=1e-5
    )


def test_hierarchical_loss_without_levels_is_cross_entropy() -> None:
    logits, cell_ids = torch.randn(5, 7), torch.tensor([0, 6, 2, 2, 1])
    found = hierarchical_cell_loss(logits, cell_ids, torch.zeros(0, 7, dtype=torch.int64))
    assert torch.allclose(found, torch.nn.functional.cross_entropy(logits, cell_ids))


def test_hierarchical_loss_of_a_hopeless_logit_has_a_gradient() -> None:
    """The probability of the right group underflows; its logarithm must not be lost."""
    logits = torch.tensor([[-400.0, -500.0, 0.0, 300.0]], requires_grad=True)
    loss = hierarchical_cell_loss(logits, torch.tensor([0]), torch.tensor([[0, 0, 1, 1]]))
    loss.backward()
    assert loss.item() == pytest.approx(700 + 700)
    assert logits.grad is not None
    assert logits.grad[0].tolist() == pytest.approx([-2, 0, 0, 2], abs=1e-6)


# --- Offsets ---


def test_offset_loss_by_hand() -> None:
    offsets, targets = torch.tensor([[0.5, -0.5], [0.0, 1.2]]), torch.tensor([[0.25, 0.5], [0.0, 1.0]])
    # errors 0.25, -1, 0, 0.2
    assert float(offset_loss(offsets, targets)) == pytest.approx((0.0625 + 1 + 0 + 0.04) / 4)
    # smooth L1 with beta 0.5: e² / (2 beta) below it, e - beta / 2 above it
    assert float(offset_loss(offsets, targets, beta=0.5)) == pytest.approx((0.0625 + 0.75 + 0 + 0.04) / 4)


# --- Distance ---

RADIANS = st.tuples(st.floats(-math.pi / 2, math.pi / 2), st.floats(-math.pi, math.pi))


@given(RADIANS, RADIANS)
def test_haversine_is_the_spheres(a: tuple[float, float], b: tuple[float, float]) -> None:
    found = haversine_km(torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64))
    expected = sphere.haversine_km(np.degrees(a), np.degrees(b))
    half_turn_km = math.pi * sphere.EARTH_MEAN_RADIUS_KM
    near_antipode = expected > half_turn_km - 5
    assert float(found) == pytest.approx(float(expected), abs=4.1 if near_antipode else 0.0007)


def test_great_circle_loss_is_the_mean() -> None:
    degrees = (
        torch.tensor([[48.8566, 2.3522], [10.0, 179.5]]),
        torch.tensor([[51.5074, -0.1278], [10.0, -179.5]]),
    )
    a, b = (torch.deg2rad(pair.double()) for pair in degrees)
    expected = sphere.haversine_km(*(pair.double().numpy() for pair in degrees)).mean()
    assert float(great_circle_loss_km(a, b)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "other_deg",
    [[40.0, 30.0], [-40.0, -150.0], [40.0, 30.000001], [-40.00001, -150.0], [90.0, 0.0], [-90.0, 77.0]],
    ids=["itself", "antipode", "near itself", "near the antipode", "a pole", "the other"],
)
def test_gradients_are_finite_where_the_formula_has_roots_of_zero(
    other_deg: list[float], dtype: torch.dtype
) -> None:
    a = torch.deg2rad(torch.tensor([[40.0, 30.0]], dtype=dtype)).requires_grad_()
    loss = great_circle_loss_km(a, torch.deg2rad(torch.tensor([other_deg], dtype=dtype)))
    loss.backward()
    assert math.isfinite(loss.item())
    assert a.grad is not None
    assert a.grad.isfinite().all()
    # A step of one radian is at most one Earth radius.
    assert a.grad.abs().max() <= 1.01 * sphere.EARTH_MEAN_RADIUS_KM


def test_the_gradient_points_away_from_the_target() -> None:
    a = torch.deg2rad(torch.tensor([[0.0, 170.0]], dtype=torch.float64)).requires_grad_()
    great_circle_loss_km(a, torch.deg2rad(torch.tensor([[0.0, -170.0]], dtype=torch.float64))).backward()
    assert a.grad is not None
    # The target is 20 degrees to the east, over the antimeridian.
    assert a.grad[0].tolist() == pytest.approx([0, -sphere.EARTH_MEAN_RADIUS_KM], abs=1e-6)


# --- Contrast ---


def info_nce_by_loops(query: Array, reference: Array, temperature: float, valid: NDArray[np.bool_]) -> float:
    n, total = len(query), 0.0
    for anchors, others, allowed in ((query, reference, valid), (reference, query, valid.T)):
        for i in range(n):
            against = [j for j in range(n) if j == i or allowed[i, j]]
            scores = {j: float(anchors[i] @ others[j]) / temperature for j in against}
            total -= scores[i] - math.log(sum(math.exp(score) for score in scores.values()))
    return total / (2 * n)


@pytest.mark.parametrize("share_valid", [1.0, 0.6, 0.0])
def test_info_nce_is_the_loops(share_valid: float) -> None:
    rng = np.random.default_rng(1)
    query, reference = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in rng.normal(size=(2, 9, 5)))
    valid = rng.random((9, 9)) < share_valid  # not symmetric, and the diagonal may say no
    tensors = torch.from_numpy(query), torch.from_numpy(reference)
    found = info_nce(*tensors, 0.1, torch.from_numpy(valid))
    assert float(found) == pytest.approx(info_nce_by_loops(query, reference, 0.1, valid), rel=1e-9, abs=1e-12)
    if share_valid == 1.0:
        assert torch.allclose(info_nce(*tensors, torch.tensor(0.1)), found)


def test_info_nce_trains_its_temperature_and_ignores_masked_pairs() -> None:
    query = torch.nn.functional.normalize(torch.randn(4, 3), dim=-1).requires_grad_()
    reference = torch.nn.functional.normalize(torch.randn(4, 3), dim=-1)
    temperature = torch.tensor(0.2, requires_grad=True)
    valid = torch.ones(4, 4, dtype=torch.bool)
    valid[0, 1:] = False
    valid[1:, 0] = False
    info_nce(query, reference, temperature, valid).backward()
    assert query.grad is not None
    assert temperature.grad is not None
    assert temperature.grad.isfinite()
    assert query.grad[0].abs().max() == 0  # alone with its partner: nothing to learn
    assert query.grad[1:].abs().max() > 0


def test_ground_targets_worked_by_hand_and_in_the_limit():
    query = functional.normalize(
        torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).double(), dim=-1
    )
    reference = functional.normalize(
        torch.randn(3, 4, generator=torch.Generator().manual_seed(1)).double(), dim=-1
    )
    apart = torch.tensor([[0.0, 60.0, 5000.0], [60.0, 0.0, 5000.0], [5000.0, 5000.0, 30.0]]).double()
    target = torch.exp(-((apart / 60.0) ** 2) / 2)
    rows, columns = target / target.sum(1, keepdim=True), target / target.sum(0, keepdim=True)
    logits = query @ reference.T / 0.1
    expected = -(rows * logits.log_softmax(1)).sum(1).mean() - (columns * logits.log_softmax(0)).sum(0).mean()
    assert torch.allclose(info_nce_on_the_ground(query, reference, 0.1, apart, 60.0), expected / 2)
    far = torch.full((3, 3), 5000.0).double().fill_diagonal_(0.0)
    assert torch.allclose(
        info_nce_on_the_ground(query, reference, 0.1, far, 60.0), info_nce(query, reference, 0.1)
    )
