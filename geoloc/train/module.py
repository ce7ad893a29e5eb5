"""Geolocation task: a network with heads, and a weighted sum of named losses.

mix: {classes: 1, offsets: 1, regions: 1}          # OSV-5M's best model

classes     cross-entropy of the true cell, or country, region, area or city; `hierarchical` adds coarser levels
offsets     position inside the true cell
haversine   great-circle distance of the regression head, in thousands of km
latlon_l1   absolute error of the regression head, in radians (OSV-5M's)
regions     MIL-NCE: photos of one region are similar
pairs       InfoNCE: a photo and its positive are similar, other photos are not
texts       image-text contrast with the names of the location, by a frozen text tower
land_cover, climate, soil, drive_side, road_index, dist_sea      auxiliary targets
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from geoloc.errors import ConfigError
from geoloc.metrics.scores import summarise
from geoloc.models.backbone import Backbone
from geoloc.models.config import NetworkConfig
from geoloc.models.fine_tune import FineTune
from geoloc.models.heads import mlp
from geoloc.models.losses import (
    AUXILIARY_WIDTHS,
    admin_hierarchical_loss,
    auxiliary_losses,
    class_loss,
    great_circle_loss_km,
    haversine_smoothed_loss,
    hierarchical_cell_loss,
    info_nce_among_images,
    latlon_l1_loss,
    offset_loss,
    region_mil_nce,
    text_nce,
)
from geoloc.models.network import GeoNetwork, NetworkOutput
from geoloc.models.text_tower import TextTower
from geoloc.train.optimise import Role, roles_of
from geoloc.train.ranks import all_gather_rows
from quadtree import Quadtree
from quadtree.sphere import haversine_km

# The head that a loss reads.
_HEAD_OF: Final = {
    "classes": "cells",
    "offsets": "offsets",
    "haversine": "regression",
    "latlon_l1": "regression",
}
CONTRASTS: Final = ("regions", "pairs")
LOSSES: Final = (*_HEAD_OF, *CONTRASTS, "texts", *AUXILIARY_WIDTHS)


@dataclass(frozen=True)
class TaskConfig:
    """A network and its losses.

    Attributes:
        mix: weight of each loss by name; see the module.
        fine_tune: trainable parameters of the backbone.
        hierarchical: whether "classes" has a term for every coarser level.
        smoothing_km: length over which the target share of neighbouring cells in "classes" falls by e (haversine
            smoothing, PIGEON); null does not smooth.
        offset_beta: the offset loss is linear beyond it; null for a squared loss.
        temperature: temperature of the contrastive losses.
    """

    network: NetworkConfig
    mix: Mapping[str, float]
    fine_tune: FineTune = field(default_factory=lambda: FineTune("full"))
    hierarchical: bool = False
    smoothing_km: float | None = None
    offset_beta: float | None = None
    temperature: float = 0.1

    def __post_init__(self) -> None:
        if unknown := sorted(self.mix.keys() - set(LOSSES)):
            raise ConfigError(f"mix has the unknown loss {unknown[0]!r}; known are {', '.join(LOSSES)}")
        if not self.mix or min(self.mix.values()) <= 0:
            raise ConfigError(
                f"mix is {dict(self.mix)}; it needs at least one loss, each of positive weight: remove the others"
            )
        if self.hierarchical and self.smoothing_km is not None:
            raise ConfigError(
                "hierarchical and smoothing_km both spread the target over near cells: choose one"
            )
        for head in ("cells", "offsets", "regression"):
            has_head = getattr(self.network, head) is not None
            readers = [name for name, read in _HEAD_OF.items() if read == head]
            if has_head and not self.mix.keys() & set(readers):
                raise ConfigError(
                    f"the network has a head {head!r}, and no loss in the mix trains it: add {' or '.join(readers)} to "
                    f"the mix, or set network.{head}=null"
                )
            if not has_head and (missing := self.mix.keys() & set(readers)):
                raise ConfigError(
                    f"the loss {min(missing)!r} reads the head {head!r}, which the network does not have: configure it "
                    f"under network.{head}, or remove the loss from the mix"
                )
        if self.network.embeddings:
            raise ConfigError(
                f"the network has embeddings ({', '.join(self.network.embeddings)}), and no loss of this recipe trains "
                "them: leave network.embeddings out"
            )


class GeoTask(nn.Module):
    """Task that trains a network to predict locations.

    A batch is a dict: "image" (B, 3, S, S), "latlon_deg" (B, 2) float64, and the keys that the losses need: "cell_id"
    (B,), -1 unknown; "group_ids" (B, L) with admin levels; "positive" (B, 3, S, S) and "region_id" (B,) for contrasts;
    "text_id" (B,) for texts; auxiliary targets by name.

    Args:
        config: see `TaskConfig`.
        network: network built from its config.
        quadtree: cells that are the classes; None without a cell head.
        groups: (L, C) coarser unit of each class at L levels, -1 for none, for hierarchical administrative classes;
            None takes the quadtree's coarser levels.
        texts: frozen text tower of the loss "texts".
        sentences: sentence of each text id.
    """

    def __init__(
        self,
        config: TaskConfig,
        network: GeoNetwork,
        quadtree: Quadtree | None,
        *,
        groups: NDArray[np.int64] | None = None,
        texts: TextTower | None = None,
        sentences: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.config, self.network = config, network
        if isinstance(network.backbone, Backbone):
            network.backbone.fine_tune(config.fine_tune)
        dim = int(network.backbone.feature_dim)  # type: ignore[arg-type]
        self.auxiliary = nn.ModuleDict(
            {name: mlp(dim, (64,), width) for name, width in AUXILIARY_WIDTHS.items() if name in config.mix}
        )
        self.text_projection: nn.Module | None = None
        self.texts, self.sentences = texts, list(sentences)
        if texts is not None:
            texts.requires_grad_(False).eval()
            self.text_projection = mlp(dim, (), texts.text_dim)
        self.has_groups = groups is not None
        if quadtree is not None:
            levels = quadtree_levels(quadtree) if groups is None else groups
            self.register_buffer("groups", torch.from_numpy(levels), persistent=False)
            self.register_buffer(
                "center_latlon_deg", torch.tensor(quadtree.center_latlon_deg), persistent=False
            )

    groups: Tensor
    center_latlon_deg: Tensor

    def train(self, mode: bool = True) -> GeoTask:
        """Set the training mode; the frozen text tower stays in evaluation mode."""
        super().train(mode)
        if self.texts is not None:
            self.texts.eval()
        return self

    def roles(self) -> Iterator[tuple[str, nn.Parameter, Role]]:
        """See `Task.roles`."""
        return roles_of(self, self.config.fine_tune)

    # --- training -------------------------------------------------------------------------------------------

    def losses(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Each loss of the mix, weighted.

        Raises:
            ConfigError: the batch lacks what a loss needs.
        """
        mix = self.config.mix
        images = batch["image"]
        contrasted = mix.keys() & set(CONTRASTS)
        if contrasted:
            images = torch.cat([images, _needed(batch, "positive", min(contrasted))])
        all_features = self.network.backbone(images)
        features = all_features[: len(batch["image"])]
        output = self.network.read(features)
        values = {name: self._of_head[name](self, batch, output) for name in mix if name in _HEAD_OF}
        if contrasted:
            own, positives = (all_gather_rows(part) for part in all_features.split(len(features)))
            if "regions" in mix:
                labels = all_gather_rows(_needed(batch, "region_id", "regions"))
                values["regions"] = region_mil_nce(own, positives, labels, self.config.temperature)
            if "pairs" in mix:
                values["pairs"] = info_nce_among_images(own, positives, self.config.temperature)
        if "texts" in mix:
            values["texts"] = self._text_loss(batch, features)
        predictions = {name: head(features) for name, head in self.auxiliary.items()}
        values |= auxiliary_losses(predictions, {name: _needed(batch, name, name) for name in predictions})
        return {name: mix[name] * value for name, value in values.items()}

    def _classes(self, batch: Mapping[str, Any], output: NetworkOutput) -> Tensor:
        logits, cell_ids = output.cell_logits, _needed(batch, "cell_id", "classes")
        assert logits is not None
        if self.config.smoothing_km is not None:
            here, centers = torch.deg2rad(batch["latlon_deg"]), torch.deg2rad(self.center_latlon_deg)
            return haversine_smoothed_loss(
                logits, cell_ids, here.float(), centers.float(), self.config.smoothing_km
            )
        if not self.config.hierarchical:
            return class_loss(logits, cell_ids)
        if self.has_groups:
            group_ids = _needed(batch, "group_ids", "classes")
            return admin_hierarchical_loss(logits, cell_ids, self.groups, group_ids.T)
        return hierarchical_cell_loss(logits, cell_ids, self.groups)

    def _offsets(self, batch: Mapping[str, Any], output: NetworkOutput) -> Tensor:
        head, cell_ids = self.network.offsets, _needed(batch, "cell_id", "offsets")
        assert head is not None
        assert output.offsets is not None
        chosen = head.of_cells(output.offsets, cell_ids[:, None])[:, 0]
        # Targets beyond the range of the scaled tanh would only saturate it.
        reach = head.config.tanh_scale
        target = head.target(batch["latlon_deg"], cell_ids).clamp(-reach, reach)
        return offset_loss(chosen, target, self.config.offset_beta)

    def _haversine(self, batch: Mapping[str, Any], output: NetworkOutput) -> Tensor:
        assert output.latlon_rad is not None
        return great_circle_loss_km(output.latlon_rad, torch.deg2rad(batch["latlon_deg"]).float()) / 1000

    def _latlon_l1(self, batch: Mapping[str, Any], output: NetworkOutput) -> Tensor:
        assert output.latlon_rad is not None
        return latlon_l1_loss(output.latlon_rad, torch.deg2rad(batch["latlon_deg"]).float())

    _of_head: Final[dict[str, Callable[..., Tensor]]] = {
        "classes": _classes,
        "offsets": _offsets,
        "haversine": _haversine,
        "latlon_l1": _latlon_l1,
    }

    def _text_loss(self, batch: Mapping[str, Any], features: Tensor) -> Tensor:
        assert self.texts is not None
        assert self.text_projection is not None
        text_ids = _needed(batch, "text_id", "texts")
        with torch.no_grad():
            vectors = self.texts([self.sentences[k] if k >= 0 else "" for k in text_ids.tolist()])
        images = all_gather_rows(self.text_projection(features))
        return text_nce(images, all_gather_rows(vectors), all_gather_rows(text_ids), self.config.temperature)

    # --- validation -----------------------------------------------------------------------------------------

    def predict(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Predicted and true locations, "predicted_deg" and "true_deg", (B, 2): offset or centre of the top cell.

        `Geolocalizer` uses all cells; the top cell is enough to compare weights.
        """
        output = self.network(batch["image"])
        if output.cell_logits is not None:
            cells = output.cell_logits.argmax(-1)
            if self.network.offsets is None:
                predicted = self.center_latlon_deg[cells]
            else:
                chosen = self.network.offsets.of_cells(output.offsets, cells[:, None])[:, 0]
                predicted = self.network.offsets.to_latlon_deg(chosen, cells)
        elif output.latlon_rad is not None:
            predicted = torch.rad2deg(output.latlon_rad.double())
        else:
            raise ConfigError("no head predicts a location: add classes or haversine to the mix")
        return {"predicted_deg": predicted, "true_deg": batch["latlon_deg"]}

    def score(self, predicted: Mapping[str, Tensor]) -> dict[str, float]:
        """GeoScore, mean and median km, and shares within 1 to 2500 km over the validation set."""
        latlon_deg = predicted["predicted_deg"].numpy().clip([-90, -np.inf], [90, np.inf])
        found = summarise(haversine_km(latlon_deg, predicted["true_deg"].numpy()))
        within = {f"within_{radius}_km": share for radius, share in found["accuracy_within_km"].items()}
        return {name: found[name] for name in ("geoscore", "mean_km", "median_km")} | within


def quadtree_levels(quadtree: Quadtree) -> NDArray[np.int64]:
    """(L, C) group of each cell at every coarser level of the tree but the root."""
    levels = [quadtree.prefix_ids(depth) for depth in range(1, quadtree.max_depth)]
    return np.array(levels, np.int64).reshape(len(levels), quadtree.num_cells)


def _needed(batch: Mapping[str, Any], name: str, loss: str) -> Any:
    if name not in batch:
        raise ConfigError(
            f"the loss {loss!r} needs {name!r}, which the data does not have (it has: {', '.join(sorted(batch))}): "
            "add that column, or remove the loss from the mix"
        )
    return batch[name]
