"""OSV-5M's tables of countries, regions, areas and cities with the mean location of the training photos of each.

Its preprocessing writes two of each unit: `…_center.csv` with names and degrees, and `index_to_gps_unique_….pt` with
radians alone, in the order of the names, which is that of the classes. Photos without a name ("NaN") are no class.
"""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from geoloc.adapters.tensors import ForeignTensors
from geoloc.errors import ConfigError, NotFoundError


def read_places(path: str | Path) -> NDArray[np.float64]:
    """Locations in the order of the classes, (n, 2) degrees.

    Raises:
        NotFoundError: there is no such file.
        CheckpointError: a .pt file contains something else than one tensor.
        ConfigError: it is not such a table.
    """
    path = Path(path)
    if not path.is_file():
        raise NotFoundError(f"there is no table of locations {path}")
    latlon_deg = _of_csv(path) if path.suffix == ".csv" else _of_tensor(path)
    limits = (90 + 1e-4, 180 + 1e-4)  # float32 pi is slightly more than 180 degrees
    if not len(latlon_deg) or not bool((np.abs(latlon_deg) <= limits).all()):
        raise ConfigError(
            f"{path} has {len(latlon_deg)} rows, or an invalid coordinate; OSV-5M's tables of units have "
            "degrees in a .csv and radians in a .pt (its index_to_gps_quadtree_….pt is of cells: give quadtree=)"
        )
    return np.stack([np.clip(latlon_deg[:, 0], -90.0, 90.0), latlon_deg[:, 1]], -1)


def _of_csv(path: Path) -> NDArray[np.float64]:
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = csv.DictReader(file)
            unit = (rows.fieldnames or [""])[0]
            places = {row[unit]: (float(row["latitude"]), float(row["longitude"])) for row in rows}
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise ConfigError(
            f"{path} is no table with a name, latitude and longitude in each row: {error!r}"
        ) from error
    places.pop("NaN", None)
    return np.array([places[name] for name in sorted(places)], np.float64).reshape(-1, 2)


def _of_tensor(path: Path) -> NDArray[np.float64]:
    radians = ForeignTensors.read_one(path)
    if radians.ndim != 2 or radians.shape[1] != 2 or not radians.is_floating_point():
        raise ConfigError(
            f"{path} holds a tensor of shape {tuple(radians.shape)}; a table of locations is (n, 2), in radians"
        )
    return np.asarray(radians.double().numpy() * (180 / math.pi))
