"""Registry of training recipes, and the steps that recipes share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import numpy as np

from geoloc.data.sample import SampleTable
from geoloc.data.samplers import InOrder
from geoloc.data.stream import Load, SampleStream
from geoloc.errors import ConfigError
from geoloc.images.preprocess import Preprocess, Resize
from geoloc.models.backbone import Backbone

Run = TypeVar("Run", bound=Callable[..., Any])


@dataclass(frozen=True)
class Recipe:
    """A training recipe.

    Attributes:
        experiment: dataclass of its config.
        run: trains; takes the experiment, a name, the run folder and the machine, and returns the model.
        help: one line of what it trains.
    """

    experiment: type[Any]
    run: Callable[..., Any]
    help: str


RECIPES: dict[str, Recipe] = {}


def register(name: str, experiment: type[Any], help: str) -> Callable[[Run], Run]:
    """Decorator of a recipe's run function that adds the recipe to `RECIPES`."""

    def registered(run: Run) -> Run:
        RECIPES[name] = Recipe(experiment, run, help)
        return run

    return registered


def preprocess_of(backbone: Backbone) -> Preprocess:
    """Preprocessing that a backbone's pretrained weights expect.

    Raises:
        ConfigError: it needs a kind of resizing that `Preprocess` does not have, such as padding.
    """
    known = backbone.preprocess_defaults
    if known.resize_mode not in ("shortest", "squash"):
        raise ConfigError(f"the backbone resizes images by {known.resize_mode!r}: take another backbone")
    return Preprocess(
        image_size_px=known.size_px,
        mean=known.mean,
        std=known.std,
        interpolation=cast(Any, known.interpolation),
        resize=cast(Resize, known.resize_mode),
    )


def in_order(table: SampleTable, load: Load, num_workers: int, batch_size: int = 64) -> SampleStream:
    """Stream over all rows of a table in their order, for validation."""
    order = InOrder(np.arange(len(table)))
    return SampleStream(table, load, order, batch_size=batch_size, num_workers=num_workers)


def metrics_table(metrics: Mapping[str, float]) -> str:
    """Markdown table of validation metrics for a model card."""
    rows = "".join(f"| {key} | {value:.4g} |\n" for key, value in metrics.items())
    return f"| held-out photos | |\n|---|---|\n{rows}" if rows else "Not validated.\n"
