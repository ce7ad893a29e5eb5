"""Gradients of domain adaptation against those of the losses written out, and what a target set may not hold."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from geoloc.errors import ConfigError, NotFoundError
from geoloc.models.losses import class_loss
from geoloc.train.domains import (
    DomainAutoencoder,
    DomainDiscriminator,
    KeyedPhoto,
    check_apart,
    reversed_gradient,
)


def features(seed: int, count: int = 6) -> Tensor:
    x = torch.rand(count, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x.requires_grad_()


def test_a_reversed_gradient_by_hand() -> None:
    x = torch.tensor([1.0, -2.0], requires_grad=True)
    y = reversed_gradient(x)
    assert y.tolist() == [1, -2]
    (y**2).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [-2, 4]


def test_a_discriminator_learns_and_its_features_unlearn() -> None:
    torch.manual_seed(0)
    discriminator = DomainDiscriminator(8).double()
    assert [layer.out_features for layer in discriminator.mlp if isinstance(layer, nn.Linear)] == [50, 20, 2]
    x, domain = features(0), torch.tensor([0, 0, 0, 1, 1, 1])
    through = torch.autograd.grad(class_loss(discriminator(x), domain), [x, *discriminator.parameters()])
    plain = torch.autograd.grad(class_loss(discriminator.mlp(x), domain), [x, *discriminator.parameters()])
    torch.testing.assert_close(through[0], -plain[0])
    torch.testing.assert_close(through[1:], plain[1:])


@pytest.mark.parametrize(
    "margin", [0.01, 5.0]
)  # the target's error is beyond the first, and below the second
def test_an_autoencoder_pushes_the_target_away_and_the_backbone_pulls_it_back(margin: float) -> None:
    torch.manual_seed(0)
    auto = DomainAutoencoder(8, (6, 4)).double()
    source, target = features(1), features(2, 4)
    parameters = list(auto.parameters())
    losses = auto.losses(source, target, margin=margin, weight=0.1)
    e_source, e_target = (((auto(x) - x) ** 2).mean() for x in (source, target))
    expected = e_source + max(0.0, margin - e_target)
    assert losses.autoencoder.item() == pytest.approx(expected.item(), rel=1e-9)
    assert losses.backbone.item() == pytest.approx(0.1 * e_target.item(), rel=1e-9)
    # Of the sum, the autoencoder gets the first gradient only, the features the second only.
    found = torch.autograd.grad(losses.total(), [*parameters, target], retain_graph=True)
    of_auto = torch.autograd.grad(expected, parameters, retain_graph=True)
    (of_target,) = torch.autograd.grad(0.1 * e_target, target)
    torch.testing.assert_close(found[:-1], of_auto)
    torch.testing.assert_close(found[-1], of_target)
    with pytest.raises(RuntimeError, match="unused"):
        torch.autograd.grad(losses.total(), source)


def test_the_hinge_depends_on_its_margin() -> None:
    """In CosPlace's fork it does not: its margins of 0.5 and 5 give the same gradients."""
    torch.manual_seed(0)
    auto = DomainAutoencoder(8, (6, 4)).double()
    gradients = [
        torch.autograd.grad(
            auto.losses(features(1), features(2), margin=m).autoencoder, auto.decoder[2].weight
        )[0]
        for m in (0.0, 5.0)
    ]
    assert float((gradients[0] - gradients[1]).abs().max()) > 1e-3


def test_a_target_that_holds_a_query_is_refused(tmp_path: Path) -> None:
    (tmp_path / "q.jpg").write_bytes(b"the same picture")
    queries = [KeyedPhoto("night/1", tmp_path / "q.jpg"), KeyedPhoto("night/2", b"another")]
    check_apart([KeyedPhoto("target/1", b"a third")], queries)
    check_apart([], queries)
    copies = [KeyedPhoto("target/7", b"the same picture"), KeyedPhoto("night/2", b"newly encoded")]
    with pytest.raises(ConfigError, match=r"2 photos .* target/7 \(= night/1\), night/2; take them out"):
        check_apart(copies, queries)
    with pytest.raises(NotFoundError, match="'target/9' cannot be read"):
        check_apart([KeyedPhoto("target/9", tmp_path / "gone.jpg")], queries)
