"""Place recognition task: a margin classifier per group, a loss over pairs of a batch, or over mined tuples.

Unlabelled photos of a target domain may be used for domain adaptation.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from geoloc.errors import ConfigError
from geoloc.metrics.recall import WithoutPositive, retrieval_recall
from geoloc.models.backbone import Backbone
from geoloc.models.fine_tune import FineTune
from geoloc.models.losses import class_loss
from geoloc.models.losses.margins import MARGIN_LOGITS
from geoloc.models.losses.pairs import BATCH_LOSSES, MINERS, TUPLE_LOSSES
from geoloc.models.network import GeoNetwork
from geoloc.train.domains import DomainAutoencoder, DomainDiscriminator
from geoloc.train.optimise import Role, roles_of
from geoloc.train.ranks import all_gather_rows

PlaceLoss: TypeAlias = Callable[["PlaceTask", Tensor, Mapping[str, Any]], Tensor]


@dataclass(frozen=True)
class LossConfig:
    """A loss or miner by name, with its options where they differ from the published ones.

    Attributes:
        kind: its name.
        options: keyword arguments such as scale, margin or temperature.
    """

    kind: str
    options: Mapping[str, float] = field(default_factory=dict)

    def of(self, known: Mapping[str, Callable[..., Any]], where: str) -> Callable[..., Any]:
        """The function with its options bound.

        Raises:
            ConfigError: unknown name or option.
        """
        if self.kind not in known:
            raise ConfigError(f"{where}.kind is {self.kind!r}; known are {', '.join(known)}")
        has = {
            name: parameter.default
            for name, parameter in inspect.signature(known[self.kind]).parameters.items()
            if parameter.kind is parameter.KEYWORD_ONLY
        }
        if unknown := sorted(self.options.keys() - has.keys()):
            raise ConfigError(
                f"{where} {self.kind!r} has no option {unknown[0]!r}; it has {', '.join(has) or 'none'}"
            )
        options = {name: type(has[name])(value) for name, value in self.options.items()}
        return partial(known[self.kind], **options)


@dataclass(frozen=True)
class DomainsConfig:
    """Domain adaptation to target photos, such as night photos; defaults are those of CosPlace's fork.

    Attributes:
        kind: "grl" (gradient reversal) or "aada" (autoencoder).
        images: target photos in every batch, over all devices.
        weight: weight of the discriminator's loss (default 0.1), or γ of the autoencoder (default 0.01).
        margin: m of the autoencoder, see `DomainAutoencoder.losses`.
    """

    kind: Literal["grl", "aada"]
    images: int = 6
    weight: float | None = None
    margin: float = 0.5

    def __post_init__(self) -> None:
        if self.images < 1 or (self.weight is not None and not self.weight > 0):
            raise ConfigError(f"{self}: domains.images must be at least 1, and domains.weight positive")


@dataclass(frozen=True)
class RecallConfig:
    """How validation recall is counted.

    Attributes:
        radius_m: a database photo within this distance (ellipsoid) of the query is a positive.
        at: values k of recall@k.
        without_positive: a query without positive is "left_out" (Deep VG benchmark) or a "miss" (CosPlace).
    """

    radius_m: float = 25.0
    at: tuple[int, ...] = (1, 5, 10, 20)
    without_positive: WithoutPositive = "left_out"

    def __post_init__(self) -> None:
        if not self.radius_m > 0 or not self.at or min(self.at) < 1:
            raise ConfigError(f"{self}: recall.radius_m must be positive, and each of recall.at at least 1")


@dataclass(frozen=True)
class Truth:
    """Ground truth of a validation set: D database photos, followed by Q queries.

    Attributes:
        num_database: D.
        positives: for each query, its rows of the database.
        recall: how recall is counted.
    """

    num_database: int
    positives: Sequence[NDArray[np.int64]]
    recall: RecallConfig

    def score(self, vectors: Tensor) -> dict[str, float]:
        """Recall from the vectors of database and queries, (D + Q, dim), and the number of queries without positive."""
        of_all, how = vectors.float().numpy(), self.recall
        queries, database = of_all[self.num_database :], of_all[: self.num_database]
        return retrieval_recall(queries, database, self.positives, how.at, how.without_positive)


class PlaceTask(nn.Module):
    """Task that trains a network's "query" embedding for place recognition.

    A batch is a dict: "image" (B, 3, S, S), "row" (B,), and the keys that the loss reads; with domain adaptation
    "target" (T, 3, S, S) and "is_night" (B,).

    Args:
        network: network with the embedding "query".
        fine_tune: trainable parameters of its backbone.
        loss: result of `group_loss`, `batch_loss` or `tuple_loss`.
        class_counts: number of classes of each group's classifier; empty for the other losses.
        domains: see `DomainsConfig`.
        truth: ground truth of the validation set.
    """

    def __init__(
        self,
        network: GeoNetwork,
        fine_tune: FineTune,
        loss: PlaceLoss,
        class_counts: Sequence[int] = (),
        domains: DomainsConfig | None = None,
        truth: Truth | None = None,
    ) -> None:
        super().__init__()
        self.network, self.domains, self.truth = network, domains, truth
        self._fine_tune, self._loss = fine_tune, loss
        if isinstance(network.backbone, Backbone):
            network.backbone.fine_tune(fine_tune)
        dim = network.config.embeddings["query"].dim
        self.classifiers = nn.ParameterList(
            nn.init.xavier_uniform_(torch.empty(count, dim)) for count in class_counts
        )
        # A batch is of one group, so that other groups' classifiers get no gradient.
        self.leaves_out_parameters = len(class_counts) > 1
        width = int(network.backbone.feature_dim)  # type: ignore[arg-type]
        self.discriminator = DomainDiscriminator(width) if domains and domains.kind == "grl" else None
        self.autoencoder = DomainAutoencoder(width) if domains and domains.kind == "aada" else None

    def roles(self) -> Iterator[tuple[str, nn.Parameter, Role]]:
        """See `Task.roles`."""
        return roles_of(self, self._fine_tune)

    def losses(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Losses "places" and, with domain adaptation, "domains"."""
        images = batch["image"]
        if self.domains is None:
            return {"places": self._loss(self, self.network.embed_images(images, "query"), batch)}
        features, embeddings = self.network.with_embeddings(torch.cat([images, batch["target"]]), "query")
        own, target = features.split([len(images), len(batch["target"])])
        places = self._loss(self, embeddings[: len(images)], batch)
        return {"places": places, "domains": self._domain_loss(own, target, batch["is_night"])}

    def _domain_loss(self, own: Tensor, target: Tensor, is_night: Tensor) -> Tensor:
        assert self.domains is not None
        if self.discriminator is not None:
            # Photos with a night look count as target domain.
            domain = torch.cat(
                [is_night.long(), torch.ones(len(target), dtype=torch.long, device=target.device)]
            )
            loss = class_loss(self.discriminator(torch.cat([own, target])), domain)
            return (0.1 if self.domains.weight is None else self.domains.weight) * loss
        assert self.autoencoder is not None
        weight = 0.01 if self.domains.weight is None else self.domains.weight
        return self.autoencoder.losses(own, target, margin=self.domains.margin, weight=weight).total()

    def predict(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Vectors "embedding", and "row" of the batch."""
        return {"embedding": self.network.embed_images(batch["image"], "query"), "row": batch["row"]}

    def score(self, predicted: Mapping[str, Tensor]) -> dict[str, float]:
        """Recall of the whole validation set."""
        assert self.truth is not None
        return self.truth.score(predicted["embedding"][predicted["row"].argsort()])


def group_loss(config: LossConfig) -> PlaceLoss:
    """Cross-entropy over the classes of the batch's "group", with "class_id" (B,)."""
    logits = config.of(MARGIN_LOGITS, "classes.loss")

    def loss(task: PlaceTask, embeddings: Tensor, batch: Mapping[str, Any]) -> Tensor:
        classifier = task.classifiers[batch["group"]]
        return class_loss(logits(embeddings, classifier, batch["class_id"]), batch["class_id"])

    return loss


def batch_loss(config: LossConfig, miner: LossConfig | None) -> PlaceLoss:
    """Loss over the pairs of all ranks' batches, with "place" (B,); a miner selects pairs."""
    of_pairs = config.of(BATCH_LOSSES, "places.loss")
    mine = None if miner is None else miner.of(MINERS, "places.miner")

    def loss(task: PlaceTask, embeddings: Tensor, batch: Mapping[str, Any]) -> Tensor:
        all_embeddings, places = all_gather_rows(embeddings), all_gather_rows(batch["place"])
        pairs = None if mine is None else mine(all_embeddings, places)
        value: Tensor = of_pairs(all_embeddings, places, pairs)
        return value

    return loss


def tuple_loss(config: LossConfig, num_negatives: int) -> PlaceLoss:
    """Loss over tuples: each 2 + N consecutive rows of a batch are a query, its positive and its negatives."""
    of_tuples = config.of(TUPLE_LOSSES, "tuples.loss")

    def loss(task: PlaceTask, embeddings: Tensor, batch: Mapping[str, Any]) -> Tensor:
        tuples = embeddings.unflatten(0, (-1, 2 + num_negatives))
        value: Tensor = of_tuples(tuples[:, 0], tuples[:, 1], tuples[:, 2:])
        return value

    return loss
