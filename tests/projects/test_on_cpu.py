"""A batch in parts gives the gradients of the whole batch."""

import pytest
import torch
from torch import nn

from projects.earthview.on_cpu import ThreadedTower, keep_freed_memory


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_gradients_are_those_of_the_whole_batch(threads):
    torch.manual_seed(0)
    tower = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).double()
    head = nn.Linear(8, 5).double()
    images, labels = torch.randn(7, 3, 9, 9).double(), torch.arange(7) % 5
    nn.functional.cross_entropy(head(tower(images)), labels).backward()
    expected = [p.grad.clone() for p in (*tower.parameters(), *head.parameters())]
    for parameter in (*tower.parameters(), *head.parameters()):
        parameter.grad = None

    threaded = ThreadedTower(tower, threads)
    for _ in range(2):  # gradients add up, as they do everywhere
        features = threaded.forward(images)
        nn.functional.cross_entropy(head(features), labels).backward()
        threaded.backward(features)
    for parameter, grad in zip((*tower.parameters(), *head.parameters()), expected, strict=True):
        assert torch.allclose(parameter.grad, 2 * grad)


def test_frozen_parameters_get_no_gradient():
    tower = nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.Linear(4, 2))
    tower[1].requires_grad_(False)
    threaded = ThreadedTower(tower, 2)
    features = threaded.forward(torch.randn(4, 3, 2, 2))
    features.sum().backward()
    threaded.backward(features)
    assert tower[1].weight.grad is None
    assert tower[2].weight.grad is not None


def test_keeping_memory_is_harmless():
    keep_freed_memory()
    assert torch.ones(1000, 1000).sum() == 1e6
