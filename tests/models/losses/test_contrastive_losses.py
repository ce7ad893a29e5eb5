"""Contrastive losses against the formulas in float64 NumPy, with explicit loops."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from geoloc.models.losses import (
    decoupled_contrastive_loss,
    info_nce,
    info_nce_among_images,
    info_nce_on_the_ground,
    mil_nce,
    region_mil_nce,
    soft_margin_triplet_loss,
    text_nce,
)

Array = NDArray[np.float64]


def units(seed: int, count: int, dim: int = 5, copies: int = 2) -> list[Array]:
    x = np.random.default_rng(seed).normal(size=(copies, count, dim))
    return list(x / np.linalg.norm(x, axis=-1, keepdims=True))


def log_sum_exp(values: list[float]) -> float:
    top = max(values)
    return top + math.log(sum(math.exp(value - top) for value in values))


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
    assert found.item() == pytest.approx(info_nce_by_loops(query, reference, 0.1, valid), rel=1e-9, abs=1e-12)
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


# --- Bags of one label ---


def test_info_nce_among_images_is_osv5ms() -> None:
    images, positives = units(2, 7)
    s = images @ images.T / 0.1
    np.fill_diagonal(s, (images * positives).sum(-1) / 0.1)
    expected = np.mean([log_sum_exp(row.tolist()) - row[i] for i, row in enumerate(s)])
    scaled = torch.from_numpy(3 * images), torch.from_numpy(positives)
    assert float(info_nce_among_images(*scaled)) == pytest.approx(expected, abs=1e-9)


def mil_nce_by_loops(images: Array, positives: Array, labels: list[int], temperature: float) -> float:
    features = np.concatenate([images, positives])
    features /= np.linalg.norm(features, axis=-1, keepdims=True)
    twice, total = labels * 2, 0.0
    for i in range(len(features)):
        if twice[i] < 0:
            continue
        others = [j for j in range(len(features)) if j != i]
        s = {j: float(features[i] @ features[j]) / temperature for j in others}
        total += log_sum_exp(list(s.values()))
        total -= log_sum_exp([s[j] for j in others if twice[j] == twice[i]])
    return total


@pytest.mark.parametrize("labels", [[0, 1, 2, 3], [0, 0, 1, 2], [5, 5, 5, 5], [1, -1, 1, -1]])
@pytest.mark.parametrize("temperature", [0.1, 0.01])
def test_mil_nce_is_the_loops(labels: list[int], temperature: float) -> None:
    images, positives = units(3, 4)
    arguments = torch.from_numpy(2 * images), torch.from_numpy(positives), torch.tensor(labels), temperature
    expected = mil_nce_by_loops(images, positives, labels, temperature)
    assert float(mil_nce(*arguments)) == pytest.approx(expected, abs=1e-8)
    assert float(region_mil_nce(*arguments)) == pytest.approx(expected / 4, abs=1e-8)


def test_mil_nce_by_hand() -> None:
    """Two labels on two axes: within a label cosine 1, across 0, so every row is log(e^10 + 2) - 10."""
    images = torch.tensor([[1.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
    found = mil_nce(images, images, torch.tensor([0, 1]))
    assert found.item() == pytest.approx(4 * (math.log(math.exp(10) + 2) - 10))


@pytest.mark.parametrize("labels", [[0, 1, 2], [0, 0, 2], [-1, 4, 4]])
def test_text_nce_is_the_loops(labels: list[int]) -> None:
    images, texts = units(4, 3)
    terms = []
    for i, label in enumerate(labels):
        s = (images[i] @ texts.T / 0.1).tolist()
        if label >= 0:
            terms.append(log_sum_exp(s) - log_sum_exp([s[j] for j in range(3) if labels[j] == label]))
    found = text_nce(torch.from_numpy(images), torch.from_numpy(7 * texts), torch.tensor(labels))
    assert found.item() == pytest.approx(np.mean(terms), abs=1e-9)


# --- Statewide ---


def decoupled_by_loops(q: Array, r: Array, temperature: float, valid: NDArray[np.bool_], s: float) -> float:
    directions = []
    for anchors, others, allowed in ((q, r, valid), (r, q, valid.T)):
        rows = []
        for i in range(len(q)):
            candidates = [j for j in range(len(q)) if j == i or allowed[i, j]]
            if len(candidates) < 2:
                continue
            x = {j: float(anchors[i] @ others[j]) / temperature for j in candidates}
            row = 0.0
            for j in candidates:
                log_prob = x[j] - log_sum_exp([x[k] for k in candidates if k != j])
                row -= (1 - s if j == i else s / (len(candidates) - 1)) * log_prob
            rows.append(row)
        directions.append(float(np.mean(rows)) if rows else 0.0)
    return sum(directions) / 2


@pytest.mark.parametrize("share_valid", [1.0, 0.5, 0.1, 0.0])
@pytest.mark.parametrize("temperature", [1 / 36, 0.5, 0.001])
def test_decoupled_contrast_is_the_loops(share_valid: float, temperature: float) -> None:
    q, r = units(5, 9)
    valid = np.random.default_rng(6).random((9, 9)) < share_valid
    tensors = torch.from_numpy(q), torch.from_numpy(r)
    for smoothing in (0.1, 0.0):
        found = decoupled_contrastive_loss(*tensors, temperature, torch.from_numpy(valid), smoothing)
        expected = decoupled_by_loops(q, r, temperature, valid, smoothing)
        assert found.item() == pytest.approx(expected, rel=1e-9, abs=1e-9)
    if share_valid == 1.0:
        assert torch.equal(decoupled_contrastive_loss(*tensors), decoupled_contrastive_loss(*tensors, 1 / 36))


def test_decoupled_contrast_by_hand() -> None:
    """Two pairs: a candidate's sum without itself is the other one, so log p_own = x_own - x_other."""
    q = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    # 36 (0.9 - 0.1) a row; smoothing turns a tenth of it around.
    assert float(decoupled_contrastive_loss(q, q)) == pytest.approx(-36 * 0.8)


def test_decoupled_contrast_keeps_its_digits_in_float32_where_the_partner_is_certain() -> None:
    """exp(-36) beside 1 is lost in float32; so would be the sum without the partner."""
    q, r = (torch.from_numpy(x) for x in units(7, 6, dim=64))
    r = functional.normalize(q + 0.01 * r, dim=-1)
    exact = decoupled_contrastive_loss(q, r)
    single = q.float().requires_grad_()
    found = decoupled_contrastive_loss(single, r.float())
    assert found.item() == pytest.approx(exact.item(), rel=1e-5)
    found.backward()
    double = q.clone().requires_grad_()
    decoupled_contrastive_loss(double, r).backward()
    assert single.grad is not None
    assert double.grad is not None
    torch.testing.assert_close(single.grad.double(), double.grad, rtol=1e-4, atol=1e-5)


def triplets_by_loops(q: Array, r: Array, temperature: float, valid: NDArray[np.bool_]) -> float:
    terms = []
    for i in range(len(q)):
        for j in range(len(q)):
            if i != j and valid[i, j]:
                x = float(q[i] @ r[j]) / temperature
                terms.append(math.log1p(math.exp(x - float(q[i] @ r[i]) / temperature)))
                terms.append(math.log1p(math.exp(x - float(q[j] @ r[j]) / temperature)))
    return float(np.mean(terms)) if terms else 0.0


@pytest.mark.parametrize("share_valid", [1.0, 0.4, 0.0])
def test_triplets_are_the_loops(share_valid: float) -> None:
    q, r = units(8, 6)
    valid = np.random.default_rng(9).random((6, 6)) < share_valid
    found = soft_margin_triplet_loss(torch.from_numpy(q), torch.from_numpy(r), 0.05, torch.from_numpy(valid))
    assert found.item() == pytest.approx(triplets_by_loops(q, r, 0.05, valid), abs=1e-9)


def test_triplets_are_safas_on_squared_distances() -> None:
    q, r = units(10, 5)
    d = ((q[:, None] - r) ** 2).sum(-1)
    terms = []
    for i in range(5):
        for j in range(5):
            if i != j:
                terms.append(math.log1p(math.exp(10 * (d[i, i] - d[i, j]))))
                terms.append(math.log1p(math.exp(10 * (d[j, j] - d[i, j]))))
    found = soft_margin_triplet_loss(torch.from_numpy(q), torch.from_numpy(r))
    assert found.item() == pytest.approx(np.mean(terms), abs=1e-9)


# --- Nothing to learn from ---

LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "MIL-NCE without labels": lambda a, b: mil_nce(a, b, torch.full((len(a),), -1)),
    "text-NCE without labels": lambda a, b: text_nce(a, b, torch.full((len(a),), -1)),
    "decoupled, all too near": lambda a, b: decoupled_contrastive_loss(
        a, b, valid=torch.zeros(len(a), len(a), dtype=torch.bool)
    ),
    "decoupled, one pair": lambda a, b: decoupled_contrastive_loss(a[:1], b[:1]),
    "triplets, all too near": lambda a, b: soft_margin_triplet_loss(
        a, b, valid=torch.zeros(len(a), len(a), dtype=torch.bool)
    ),
    "triplets, one pair": lambda a, b: soft_margin_triplet_loss(a[:1], b[:1]),
    "InfoNCE, one pair": lambda a, b: info_nce(a[:1], b[:1], 0.1),
    "InfoNCE among images, one pair": lambda a, b: info_nce_among_images(a[:1], b[:1]),
}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
def test_where_nothing_counts_the_loss_and_its_gradient_are_zero(
    loss: Callable[[Tensor, Tensor], Tensor],
) -> None:
    a, b = (torch.from_numpy(x).float().requires_grad_() for x in units(11, 4))
    value = loss(a, b)
    assert value.item() == pytest.approx(0, abs=1e-6)
    for gradient in torch.autograd.grad(value, (a, b)):
        assert gradient.isfinite().all()
        assert gradient.abs().max() < 1e-6
