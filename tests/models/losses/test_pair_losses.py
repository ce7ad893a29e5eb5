"""Losses and miners over pairs against loops in float64 NumPy."""

import math
import sys
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from geoloc.errors import MissingDependencyError
from geoloc.models.losses import (
    BATCH_LOSSES,
    MINERS,
    TUPLE_LOSSES,
    Pairs,
    circle_loss,
    mined_triplet_loss,
    multi_similarity_loss,
    multi_similarity_pairs,
    sare_independent_loss,
    sare_joint_loss,
)

Array = NDArray[np.float64]
LABELS = [0, 0, 0, 1, 1, 1, 2, 2, 2, 3]  # the last one has no positive


def unit(x: Array) -> Array:
    return np.asarray(x / np.linalg.norm(x, axis=-1, keepdims=True))


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(3)
    places = rng.normal(size=(4, 6))
    x = unit(places[LABELS] + 0.9 * rng.normal(size=(10, 6)))
    return torch.from_numpy(x), torch.tensor(LABELS)


def of(i: int) -> tuple[list[int], list[int]]:
    """Rows of the same and of other places."""
    same = [j for j in range(10) if j != i and LABELS[j] == LABELS[i]]
    return same, [j for j in range(10) if LABELS[j] != LABELS[i]]


def mean_of_nonzero(values: list[float]) -> float:
    kept = [value for value in values if value > 0]
    return float(np.mean(kept)) if kept else 0.0


def lse(values: list[float]) -> float:
    return math.log(sum(math.exp(value) for value in values))


def multi_similarity(s: Array, d: Array) -> float:
    total = 0.0
    for i in range(10):
        same, other = of(i)
        total += math.log(1 + sum(math.exp(-s[i, j]) for j in same))
        total += math.log(1 + sum(math.exp(50 * s[i, j]) for j in other)) / 50
    return total / 10


def contrastive(s: Array, d: Array) -> float:
    positive = [d[i, j] for i in range(10) for j in of(i)[0]]
    negative = [max(1 - d[i, j], 0) for i in range(10) for j in of(i)[1]]
    return mean_of_nonzero(positive) + mean_of_nonzero(negative)


def circle(s: Array, d: Array) -> float:
    losses = []
    for i in range(9):
        same, other = of(i)
        near = lse([-80 * max(1.4 - s[i, j], 0) * (s[i, j] - 0.6) for j in same])
        far = lse([80 * max(s[i, j] + 0.4, 0) * (s[i, j] - 0.4) for j in other])
        x = near + far
        losses.append(max(x, 0) + math.log1p(math.exp(-abs(x))))
    return mean_of_nonzero(losses)


def supcon(s: Array, d: Array) -> float:
    losses = []
    for i in range(9):
        same, other = of(i)
        whole = lse([s[i, j] / 0.07 for j in same + other])
        losses.append(float(np.mean([whole - s[i, j] / 0.07 for j in same])))
    return mean_of_nonzero(losses)


def nt_xent(s: Array, d: Array) -> float:
    losses = []
    for i in range(10):
        same, other = of(i)
        losses += [lse([s[i, k] / 0.07 for k in [j, *other]]) - s[i, j] / 0.07 for j in same]
    return float(np.mean(losses))


def fast_ap(s: Array, d: Array) -> float:
    losses, step = [], 4 / 30
    for i in range(9):
        same, other = of(i)
        precision = before = before_same = 0.0
        for centre in [step * n for n in range(31)]:
            near = sum(max(1 - abs(d[i, j] ** 2 - centre) / step, 0) for j in same)
            far = sum(max(1 - abs(d[i, j] ** 2 - centre) / step, 0) for j in other)
            before, before_same = before + near + far, before_same + near
            precision += near * before_same / before if near > 0 else 0
        losses.append(1 - precision / len(same))
    return float(np.mean(losses))


def lifted(s: Array, d: Array) -> float:
    losses = [
        max((lse([1 - s[i, j] for j in of(i)[0]]) if of(i)[0] else 0) + lse([s[i, j] for j in of(i)[1]]), 0)
        for i in range(10)
    ]
    return float(np.mean(losses))


def triplet(s: Array, d: Array) -> float:
    return mean_of_nonzero(
        [max(d[i, j] - d[i, k] + 0.1, 0) for i in range(10) for j in of(i)[0] for k in of(i)[1]]
    )


def centroid_triplet(s: Array, d: Array) -> float:
    x = batch()[0].numpy()
    losses = []
    for i in range(9):
        own = np.linalg.norm(x[i] - unit(x[of(i)[0]].sum(0)))
        for place in set(LABELS) - {LABELS[i]}:
            other = unit(x[np.array(LABELS) == place].sum(0))
            losses.append(max(own - np.linalg.norm(x[i] - other) + 0.05, 0))
    return mean_of_nonzero(losses)


LOOPS = [
    multi_similarity,
    contrastive,
    circle,
    supcon,
    nt_xent,
    fast_ap,
    lifted,
    triplet,
    centroid_triplet,
]


@pytest.mark.parametrize("loop", LOOPS, ids=lambda loop: loop.__name__)
def test_every_loss_is_its_loop(loop: Any) -> None:
    x, labels = batch()
    s = (x @ x.T).numpy()
    d = np.sqrt(np.maximum(((x[:, None] - x) ** 2).sum(-1).numpy(), 0))
    x.requires_grad_()
    found = BATCH_LOSSES[loop.__name__](x, labels)
    expected = loop(s, d)
    assert expected > 0.01
    assert found.item() == pytest.approx(expected, abs=1e-5, rel=1e-5)
    found.backward()
    assert x.grad is not None
    assert bool(x.grad.isfinite().all())
    assert float(x.grad.norm()) > 0


def test_a_loop_is_there_for_every_loss() -> None:
    assert {loop.__name__ for loop in LOOPS} == set(BATCH_LOSSES)


@pytest.mark.parametrize("kind", BATCH_LOSSES)
def test_rows_of_no_place_and_batches_of_no_pairs(kind: str) -> None:
    x, labels = batch()
    strange = torch.from_numpy(unit(np.random.default_rng(9).normal(size=(2, 6))))
    more = torch.cat([x[:4], strange, x[4:]])
    both = torch.cat([labels[:4], torch.tensor([-1, -1]), labels[4:]])
    loss = BATCH_LOSSES[kind]
    assert loss(more, both).item() == pytest.approx(loss(x, labels).item(), rel=1e-9)
    if kind == "multi_similarity":
        mined = multi_similarity_pairs(more, both)
        expected = loss(x, labels, multi_similarity_pairs(x, labels))
        assert loss(more, both, mined).item() == pytest.approx(expected.item(), rel=1e-9)
    lonely = x.clone().requires_grad_()
    nothing = loss(lonely, torch.full((10,), -1))
    nothing.backward()
    assert nothing.item() == 0
    assert lonely.grad is None or not lonely.grad.any()


def mined_by_loops(kind: str, s: Array, d: Array) -> tuple[set[Any], set[Any]]:
    positive, negative = set(), set()
    for i in range(10):
        same, other = of(i)
        for j in same:
            for k in other:
                if kind == "semihard" and 0 < d[i, k] - d[i, j] <= 0.1:
                    positive.add((i, j))
                    negative.add((i, k))
        if kind == "margin":
            positive |= {(i, j) for j in same if s[i, j] < 0.7}
            negative |= {(i, k) for k in other if s[i, k] > 0.3}
        if kind == "multi_similarity" and same:
            positive |= {(i, j) for j in same if s[i, j] < max(s[i, k] for k in other) + 0.1}
            negative |= {(i, k) for k in other if s[i, k] > min(s[i, j] for j in same) - 0.1}
    return positive, negative


@pytest.mark.parametrize("kind", MINERS)
def test_every_miner_is_its_loop(kind: str) -> None:
    x, labels = batch()
    d = np.linalg.norm(x[:, None] - x, axis=-1)
    s = (x @ x.T).numpy()
    found = MINERS[kind](x, labels)
    positive, negative = mined_by_loops(kind, s, d)
    assert positive
    assert negative
    rows = zip(found.anchors.tolist(), found.positives.tolist(), strict=True)
    # The row without a positive has no least similar one, so all that it could be told from counts.
    pairs = set(zip(found.negative_anchors.tolist(), found.negatives.tolist(), strict=True))
    assert set(rows) == positive
    assert {p for p in pairs if p[0] != 9 or kind != "multi_similarity"} == {
        p for p in negative if p[0] != 9 or kind != "multi_similarity"
    }


def test_a_loss_counts_the_mined_pairs_only() -> None:
    x, labels = batch()
    pairs = Pairs(*(torch.tensor(rows) for rows in ([0, 1], [1, 2], [3, 3], [7, 8])))
    s = (x @ x.T).numpy()
    expected = math.log1p(math.exp(-s[0, 1])) + math.log1p(math.exp(-s[1, 2]))
    expected += math.log1p(math.exp(50 * s[3, 7]) + math.exp(50 * s[3, 8])) / 50
    assert multi_similarity_loss(x, labels, pairs).item() == pytest.approx(expected / 10, abs=1e-9)


def tuples() -> tuple[Array, Array, Array]:
    rng = np.random.default_rng(1)
    query = unit(rng.normal(size=(3, 5)))
    positive = unit(query + 0.5 * rng.normal(size=(3, 5)))
    return query, positive, unit(query[:, None] + 0.6 * rng.normal(size=(3, 4, 5)))


def test_losses_over_tuples_are_their_loops() -> None:
    q, p, n = tuples()
    tensors = [torch.from_numpy(x) for x in (q, p, n)]
    near = [float(np.linalg.norm(q[b] - p[b])) for b in range(3)]
    far = [[float(np.linalg.norm(q[b] - n[b, i])) for i in range(4)] for b in range(3)]
    triplets = sum(max(near[b] - far[b][i] + 0.1, 0) for b in range(3) for i in range(4)) / 12
    assert triplets > 0
    assert mined_triplet_loss(*tensors).item() == pytest.approx(triplets, abs=1e-5)
    single = sum(
        -math.log(math.exp(-(near[b] ** 2)) / (math.exp(-(near[b] ** 2)) + math.exp(-(far[b][i] ** 2))))
        for b in range(3)
        for i in range(4)
    )
    assert sare_independent_loss(*tensors).item() == pytest.approx(single / 12, abs=1e-9)
    joint = sum(
        near[b] ** 2 + math.log(math.exp(-(near[b] ** 2)) + sum(math.exp(-(f**2)) for f in far[b]))
        for b in range(3)
    )
    assert sare_joint_loss(*tensors).item() == pytest.approx(joint / 12, abs=1e-9)


def test_a_triplet_by_hand() -> None:
    q, p, n = (torch.tensor(x) for x in ([[0.0, 0.0]], [[3.0, 4.0]], [[[0.0, 5.05], [0.0, 9.0]]]))
    assert mined_triplet_loss(q, p, n).item() == pytest.approx(0.05 / 2, abs=1e-5)  # 5 - 5.05 + 0.1, and 0


@pytest.mark.parametrize("kind", TUPLE_LOSSES)
def test_losses_over_tuples_draw_the_positive_near(kind: str) -> None:
    query, positive, negatives = (torch.from_numpy(x) for x in tuples())
    positive.requires_grad_()
    loss = TUPLE_LOSSES[kind](query, positive, negatives)
    loss.backward()
    assert positive.grad is not None
    nearer = positive.detach() - 0.01 * positive.grad
    assert TUPLE_LOSSES[kind](query, nearer, negatives) < loss.detach()


def test_without_the_library_the_install_line_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pytorch_metric_learning", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'geoloc-vision\[train\]'"):
        circle_loss(*batch())
