"""Run a composed experiment with its recipe; importing this module registers all recipes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from geoloc.errors import ConfigError
from geoloc.localize.geolocalizer import Geolocalizer
from geoloc.models.plain import from_plain
from geoloc.train import osv5m, place_soup, places, statewide  # noqa: F401  (each registers its recipe)
from geoloc.train.recipes import RECIPES
from geoloc.train.settings import MachineConfig


def run_experiment(values: Mapping[str, Any]) -> Geolocalizer:
    """Train the experiment of a composed config, and return its model.

    Args:
        values: "recipe", "name", "experiment", "run_folder" and "machine" as plain values.

    Raises:
        ConfigError: an unknown recipe, or values that its config does not have.
        GeolocError: as the recipe.
    """
    if (name := values.get("recipe")) not in RECIPES:
        known = "; ".join(f"{key!r} ({recipe.help})" for key, recipe in sorted(RECIPES.items()))
        raise ConfigError(f"recipe is {name!r}; known are {known}")
    recipe = RECIPES[name]
    machine = from_plain(MachineConfig, values["machine"], "machine")
    experiment = from_plain(recipe.experiment, values["experiment"], "experiment")
    model: Geolocalizer = recipe.run(experiment, values["name"], values["run_folder"], machine)
    return model
