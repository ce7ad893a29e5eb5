"""Domain adaptation: gradient reversal (GRL) and attention autoencoder (AADA).

Both use a labelled source and an unlabelled target. `check_apart` refuses a target that holds test queries.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from geoloc.errors import ConfigError, NotFoundError


class _Reversal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return -gradients[0]


def reversed_gradient(x: Tensor) -> Tensor:
    """The identity, with a negated gradient (Ganin & Lempitsky, ICML 2015)."""
    return cast(Tensor, _Reversal.apply(x))  # type: ignore[no-untyped-call]


class DomainDiscriminator(nn.Module):
    """Domain classifier behind a gradient reversal, so that the backbone learns domain-invariant features.

    Train it with `class_loss(logits, domain)` times a weight (0.1 in CosPlace's fork); domain 0 is the source.

    Args:
        dim: D of the features, which are means over positions.
        hidden_dims: hidden widths of the perceptron.
        domains: number of domains.
    """

    def __init__(self, dim: int, hidden_dims: tuple[int, ...] = (50, 20), domains: int = 2) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width in hidden_dims:
            layers += [nn.Linear(dim, width), nn.ReLU()]
            dim = width
        self.mlp = nn.Sequential(*layers, nn.Linear(dim, domains))

    def forward(self, features: Tensor) -> Tensor:
        """(B, D) -> (B, domains) logits."""
        logits: Tensor = self.mlp(reversed_gradient(features))
        return logits


@dataclass(frozen=True)
class AutoencoderLosses:
    """Losses of `DomainAutoencoder`, with separate gradients.

    Attributes:
        autoencoder: loss with gradients to the autoencoder only.
        backbone: loss with gradients to the features only.
    """

    autoencoder: Tensor
    backbone: Tensor

    def total(self) -> Tensor:
        """Sum of both."""
        return self.autoencoder + self.backbone


class DomainAutoencoder(nn.Module):
    """Autoencoder of asymmetric adversarial domain adaptation (AADA, Yang et al., AAAI 2020).

    It learns to reconstruct source features well and target features badly; the backbone learns to make target
    features easy to reconstruct.

    Args:
        dim: D of the features, which are means over positions; values in [0, 1] can be reconstructed exactly.
        hidden_dims: widths of the encoder; the decoder mirrors it.
    """

    def __init__(self, dim: int, hidden_dims: tuple[int, int] = (256, 128)) -> None:
        super().__init__()
        wide, narrow = hidden_dims
        self.encoder = nn.Sequential(nn.Linear(dim, wide), nn.ReLU(), nn.Linear(wide, narrow))
        self.decoder = nn.Sequential(nn.Linear(narrow, wide), nn.ReLU(), nn.Linear(wide, dim), nn.Sigmoid())

    def forward(self, features: Tensor) -> Tensor:
        """(B, D) -> (B, D) in [0, 1]."""
        rebuilt: Tensor = self.decoder(self.encoder(features))
        return rebuilt

    def losses(
        self, source: Tensor, target: Tensor, *, margin: float = 0.5, weight: float = 0.01
    ) -> AutoencoderLosses:
        """Losses with mean squared errors e: e_source + max(0, m - e_target) and γ e_target.

        CosPlace's fork sets e_target to 0 before the hinge, so that its hinge is the constant m without gradient.

        Args:
            source: (B, D).
            target: (B', D).
            margin: m, the target error above which the autoencoder has no target loss.
            weight: γ.
        """
        near = functional.mse_loss(self(source.detach()), source.detach())
        far = functional.mse_loss(self(target.detach()), target.detach())
        still = {name: parameter.detach() for name, parameter in self.named_parameters()}
        rebuilt = torch.func.functional_call(self, still, (target,))
        return AutoencoderLosses(
            near + (margin - far).clamp_min(0), weight * functional.mse_loss(rebuilt, target)
        )


@dataclass(frozen=True)
class KeyedPhoto:
    """A photo's key and content.

    Attributes:
        key: its name in the data set.
        content: encoded bytes, or the path of the file.
    """

    key: str
    content: bytes | Path

    def digest(self) -> str:
        """Hexadecimal sha256 of the encoded bytes."""
        content = self.content
        if isinstance(content, Path):
            try:
                content = content.read_bytes()
            except OSError as error:
                raise NotFoundError(
                    f"the photo {self.key!r} cannot be read: {error}; check the path"
                ) from error
        return hashlib.sha256(content).hexdigest()


def check_apart(target: Iterable[KeyedPhoto], queries: Iterable[KeyedPhoto]) -> None:
    """Refuse an adaptation target that shares a key or identical bytes with a test query.

    Adapting to test photos would give results that other photos do not have.

    Raises:
        ConfigError: there are shared photos; the message names up to three.
        NotFoundError: a photo's file cannot be read.
    """
    by_key: dict[str, str] = {}
    by_digest: dict[str, str] = {}
    for photo in queries:
        by_key[photo.key] = photo.key
        by_digest.setdefault(photo.digest(), photo.key)
    found = [
        (photo.key, query)
        for photo in target
        if (query := by_key.get(photo.key) or by_digest.get(photo.digest())) is not None
    ]
    if found:
        named = ", ".join(key if key == query else f"{key} (= {query})" for key, query in found[:3])
        raise ConfigError(
            f"{len(found)} photos of the adaptation target are test queries, too: {named}; take them out of the "
            "target, or test on other photos"
        )
