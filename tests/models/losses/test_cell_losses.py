"""Losses over cells and places against the formulas in float64 NumPy, with explicit matrices."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from geoloc.models.losses import (
    admin_hierarchical_loss,
    class_loss,
    haversine_smoothed_loss,
    hierarchical_cell_loss,
)
from quadtree import build_quadtree, sphere

Array = NDArray[np.float64]


def softmax(z: Array) -> Array:
    e = np.exp(z - z.max(-1, keepdims=True))
    return np.asarray(e / e.sum(-1, keepdims=True))


def gradient_of(loss: torch.Tensor, of: torch.Tensor) -> torch.Tensor:
    (gradient,) = torch.autograd.grad(loss, of)
    assert gradient.isfinite().all()
    return gradient


# --- One level ---


def test_class_loss_by_hand_leaves_out_what_is_unknown() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8], [0.2, 0.2, 0.6]])).requires_grad_()
    loss = class_loss(logits, torch.tensor([0, -1, 2]))
    assert loss.item() == pytest.approx((math.log(2) - math.log(0.6)) / 2)
    assert gradient_of(loss, logits)[1].abs().max() == 0
    unknown = class_loss(logits, torch.tensor([-1, -1, -1]))
    assert unknown.item() == 0
    assert gradient_of(unknown, logits).abs().max() == 0


def test_smoothed_labels_are_pigeons() -> None:
    rng = np.random.default_rng(2)
    centers = np.stack([rng.uniform(-80, 80, 30), rng.uniform(-180, 180, 30)], -1)
    photos = np.stack([rng.uniform(-80, 80, 8), rng.uniform(-180, 180, 8)], -1)
    cell_ids, logits = rng.integers(0, 30, 8), rng.normal(0, 3, (8, 30))
    for tau_km in (65.0, 2000.0):
        expected, expected_normalized = 0.0, 0.0
        for i in range(8):
            d = sphere.haversine_km(centers, photos[i])
            weights = np.exp(np.minimum(-(d - d[cell_ids[i]]) / tau_km, 60))
            row = -weights * np.log(softmax(logits[i]))
            expected += row.sum() / 8
            stable = softmax(-d / tau_km)
            expected_normalized += -(stable * np.log(softmax(logits[i]))).sum() / 8
        tensors = (
            torch.from_numpy(logits),
            torch.from_numpy(cell_ids),
            torch.deg2rad(torch.from_numpy(photos)),
            torch.deg2rad(torch.from_numpy(centers)),
        )
        paper = haversine_smoothed_loss(*tensors, tau_km, normalized=False)
        assert float(paper) == pytest.approx(expected, rel=1e-5)
        assert float(haversine_smoothed_loss(*tensors, tau_km)) == pytest.approx(
            expected_normalized, abs=1e-5
        )


def test_smoothed_labels_by_hand() -> None:
    """On the equator, centres at 0, 1 and 3 degrees, and a photo at 0.25 in the cell of the first."""
    km = math.radians(1) * sphere.EARTH_MEAN_RADIUS_KM
    centers = torch.deg2rad(torch.tensor([[0.0, 0.0], [0.0, 1.0], [0.0, 3.0]], dtype=torch.float64))
    photo = torch.deg2rad(torch.tensor([[0.0, 0.25]], dtype=torch.float64))
    probs = torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64)
    arguments = probs.log(), torch.tensor([0]), photo, centers
    weights = [1.0, math.exp(-0.5), math.exp(-2.5)]  # 0.25, 0.75 and 2.75 degrees away, with tau one degree
    expected = -sum(w * math.log(p) for w, p in zip(weights, [0.5, 0.3, 0.2], strict=True))
    assert float(haversine_smoothed_loss(*arguments, km, normalized=False)) == pytest.approx(expected)
    assert float(haversine_smoothed_loss(*arguments, km)) == pytest.approx(expected / sum(weights))
    # With a tau far below the distances it is the cross-entropy of the nearest cell.
    assert float(haversine_smoothed_loss(*arguments, 1.0)) == pytest.approx(math.log(2))


@pytest.mark.parametrize("normalized", [True, False])
def test_smoothed_labels_at_the_ends_of_the_earth_are_finite(normalized: bool) -> None:
    """The true cell's centre is the antipode of the photo: the paper's weight of the other cell is exp(267)."""
    logits = torch.tensor([[200.0, -200.0]], requires_grad=True)
    centers = torch.deg2rad(torch.tensor([[0.0, -180.0], [0.0, 0.0]]))
    loss = haversine_smoothed_loss(
        logits, torch.tensor([0]), torch.zeros(1, 2), centers, normalized=normalized
    )
    assert math.isfinite(loss.item())
    gradient_of(loss, logits)


# --- Levels of the tree ---


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
    assert found.item() == pytest.approx(
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


# --- Levels of administration ---


def test_admin_loss_is_osv5ms_with_names_missing() -> None:
    rng = np.random.default_rng(3)
    num_cities, batch = 40, 24
    area_of_city = rng.integers(-1, 12, num_cities)
    region_of_city = np.where(rng.random(num_cities) < 0.1, -1, rng.integers(0, 6, num_cities))
    country_of_city = rng.integers(0, 3, num_cities)
    groups = np.stack([country_of_city, region_of_city, area_of_city])
    logits, city_ids = rng.normal(0, 3, (batch, num_cities)), rng.integers(-1, num_cities, batch)
    truth = np.where(rng.random((3, batch)) < 0.8, groups[:, city_ids], -1)
    truth[:, city_ids < 0] = rng.integers(-1, 3, (3, int((city_ids < 0).sum())))
    truth[2, 5] = 99  # an area without a city among the classes

    probs = softmax(logits)
    expected = -np.log(probs[np.arange(batch), city_ids])[city_ids >= 0].mean()
    for level in range(3):
        terms = []
        for i in range(batch):
            members = [c for c in range(num_cities) if groups[level, c] == truth[level, i]]
            if truth[level, i] >= 0 and members:
                terms.append(-math.log(sum(probs[i, c] for c in members)))
        expected += sum(terms) / len(terms)
    tensor = torch.from_numpy(logits).requires_grad_()
    found = admin_hierarchical_loss(
        tensor, torch.from_numpy(city_ids), torch.from_numpy(groups), torch.from_numpy(truth)
    )
    assert found.item() == pytest.approx(expected, abs=1e-5)
    gradient_of(found, tensor)


def test_admin_loss_where_nothing_has_a_name() -> None:
    logits = torch.randn(2, 3, requires_grad=True)
    nameless = torch.tensor([-1, -1])
    loss = admin_hierarchical_loss(logits, nameless, torch.tensor([[0, 0, -1]]), nameless[None])
    assert loss.item() == 0
    assert gradient_of(loss, logits).abs().max() == 0


def test_admin_loss_of_a_photo_of_a_country_alone() -> None:
    """The city is unknown; two of the four cities are in the country, with probability 0.3 together."""
    logits = torch.tensor([[0.1, 0.2, 0.3, 0.4]]).log()
    found = admin_hierarchical_loss(
        logits, torch.tensor([-1]), torch.tensor([[0, 0, 1, 1]]), torch.tensor([[0]])
    )
    assert found.item() == pytest.approx(-math.log(0.3))
