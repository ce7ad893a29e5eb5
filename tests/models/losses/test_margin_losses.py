"""Margins against hand-worked logits and loops in float64, with pytorch-metric-learning as a second witness."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_metric_learning import losses as witnesses
from torch import nn

from geoloc.models.losses import (
    MARGIN_LOGITS,
    arcface_logits,
    class_loss,
    cosface_logits,
    emms_logits,
    sphereface_logits,
)


def batch(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(9, 5, generator=generator, dtype=dtype)
    return x, torch.randn(4, 5, generator=generator, dtype=dtype), torch.arange(9) % 4


def at(angle_deg: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One embedding of length 2 at an angle from the true class, and at a right angle to the other one."""
    x = torch.tensor([[2.0, 0.0, 0.0]], dtype=torch.float64)
    a = math.radians(angle_deg)
    weights = [[3 * math.cos(a), 3 * math.sin(a), 0], [0, 0, 1]]
    return x, torch.tensor(weights, dtype=torch.float64), torch.tensor([0])


@pytest.mark.parametrize(
    ("logits", "angle_deg", "expected"),
    [
        (cosface_logits, 60, 30 * (0.5 - 0.4)),
        (arcface_logits, 60, 64 * math.cos(math.pi / 3 + 0.5)),
        (arcface_logits, 170, -64.0),  # beyond a half turn it stays there
        (sphereface_logits, 60, 0.0),  # 90 degrees, k = 0
        (sphereface_logits, 120, 30 * (1 - 2)),  # 180 degrees, k = 1: -cos 180° - 2
        (sphereface_logits, 140, 30 * (-math.cos(math.radians(210)) - 2)),
        (emms_logits, 60, 30 * (0.5 - 0.4) + 2 * 3 * 0.5),
    ],
)
def test_true_logits_by_hand(logits: Any, angle_deg: float, expected: float) -> None:
    found = logits(*at(angle_deg))
    assert found.shape == (1, 2)
    assert found[0].tolist() == pytest.approx([expected, 0], abs=1e-5)


def by_loop(kind: str, x: Any, w: Any, y: int, c: int) -> float:
    cosine = float(x @ w / np.linalg.norm(x) / np.linalg.norm(w))
    theta = math.acos(cosine)
    if kind == "arcface":
        return 64 * (math.cos(min(theta + 0.5, math.pi)) if y == c else cosine)
    if kind == "sphereface":
        k = math.floor(1.5 * theta / math.pi)
        return 30 * ((-1) ** k * math.cos(1.5 * theta) - 2 * k if y == c else cosine)
    plain = 1.5 * float(x @ w) if kind == "emms" else 0.0
    return 30 * (cosine - 0.4 * (y == c)) + plain


@pytest.mark.parametrize("kind", MARGIN_LOGITS)
def test_logits_are_the_loops(kind: str) -> None:
    x, w, y = batch()
    options = {"plain_share": 1.5} if kind == "emms" else {}
    found = MARGIN_LOGITS[kind](x, w, y, **options)
    expected = [[by_loop(kind, x[i].numpy(), w[c].numpy(), int(y[i]), c) for c in range(4)] for i in range(9)]
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)
    loss = [math.log(sum(math.exp(z - row[y[i]]) for z in row)) for i, row in enumerate(np.array(expected))]
    assert class_loss(found, y).item() == pytest.approx(np.mean(loss), abs=1e-5)


@pytest.mark.parametrize(
    ("kind", "witness"),
    [
        ("cosface", witnesses.CosFaceLoss(4, 5, margin=0.4, scale=30)),
        ("arcface", witnesses.ArcFaceLoss(4, 5, margin=math.degrees(0.5), scale=64)),
    ],
)
def test_the_library_agrees(kind: str, witness: Any) -> None:
    x, w, y = batch(torch.float32)
    x = w[y] + 0.5 * x  # its ArcFace has another rule for what the margin turns beyond half a turn
    witness.W = nn.Parameter(w.T.contiguous())
    found = class_loss(MARGIN_LOGITS[kind](x, w, y), y)
    assert found.item() == pytest.approx(witness(x, y).item(), rel=1e-5)


@pytest.mark.parametrize("kind", MARGIN_LOGITS)
def test_a_margin_makes_the_true_class_harder_and_has_no_gradient_of_its_own(kind: str) -> None:
    x, w, y = batch()
    w.requires_grad_()
    scale = 64 if kind == "arcface" else 30
    plain = x @ w.T if kind == "emms" else 0
    cosines = nn.functional.normalize(x, dim=-1) @ nn.functional.normalize(w, dim=-1).T
    true = torch.arange(9), y
    found, without = MARGIN_LOGITS[kind](x, w, y), scale * cosines + plain
    assert bool((found[true] < without[true]).all())
    (got,) = torch.autograd.grad(found[true].sum(), w)
    (expected,) = torch.autograd.grad(without[true].sum(), w)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("kind", MARGIN_LOGITS)
def test_rows_of_no_class_and_perfect_rows(kind: str) -> None:
    x, w, y = batch()
    y[3] = -1
    keep = y >= 0
    found = class_loss(MARGIN_LOGITS[kind](x, w, y), y)
    torch.testing.assert_close(found, class_loss(MARGIN_LOGITS[kind](x[keep], w, y[keep]), y[keep]))
    x = w.clone().requires_grad_()
    class_loss(MARGIN_LOGITS[kind](x, w, torch.arange(4)), torch.arange(4)).backward()
    assert x.grad is not None
    assert bool(x.grad.isfinite().all())


def test_cosface_is_that_of_pytorch_metric_learning():
    from pytorch_metric_learning.losses import CosFaceLoss

    torch.manual_seed(0)
    embeddings, class_ids = torch.randn(12, 8), torch.arange(12) % 5
    theirs = CosFaceLoss(5, 8, margin=0.4, scale=30.0)
    logits = cosface_logits(embeddings, theirs.W.T, class_ids, scale=30.0, margin=0.4)
    expected = theirs(embeddings, class_ids)
    torch.testing.assert_close(class_loss(logits, class_ids), expected, rtol=1e-5, atol=1e-5)
