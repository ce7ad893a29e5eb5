"""Heads of OSV-5M's checkpoints: coordinates, angles, cells with or without offsets, and locations of a list.

Which one a checkpoint has is read off its tensors and their shapes: `cell_center` among them means offsets from the
middle of a box; 2 outputs are tanh coordinates and 4 are angles, and others count cells or places. One MLP for logits
and offsets becomes two with the same hidden layers.

A classifier of countries, regions, areas or cities answers with the mean place of the photos there. Such places become
the cells of a quadtree that has one place in each: the nearest there is to knowing how far the next one lies. It covers
the places and not the Earth, so no references are searched in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from geoloc.adapters.tensors import ForeignTensors
from geoloc.errors import CheckpointError, ConfigError, FingerprintMismatchError
from geoloc.models.config import CellHeadConfig, OffsetHeadConfig, RegressionHeadConfig
from quadtree import Quadtree, build_quadtree
from quadtree.morton import MAX_DEPTH


@dataclass(frozen=True)
class Heads:
    """Heads of a checkpoint.

    Attributes:
        configs: fields of a NetworkConfig.
        state: tensors with `GeoNetwork`'s names.
        quadtree: quadtree of the cells; None without cells.
    """

    configs: dict[str, Any]
    state: dict[str, Tensor]
    quadtree: Quadtree | None = None


@dataclass(frozen=True)
class Classes:
    """Classes of a classifier.

    Attributes:
        quadtree: OSV-5M's cells.
        places_deg: (n, 2) of its countries, regions, areas or cities, in the order of its classes.
    """

    quadtree: Quadtree | None = None
    places_deg: NDArray[np.float64] | None = None


def read_heads(file: ForeignTensors, classes: Classes, tanh_scale: float) -> Heads:
    """Take the tensors of the heads.

    Args:
        file: tensors without the prefix "model.".
        classes: classes of a classifier.
        tanh_scale: scale of the offsets.

    Raises:
        ConfigError: the model classifies, and not exactly one kind of classes was given.
        CheckpointError: a tensor is missing.
        FingerprintMismatchError: the classes are others.
    """
    if file.has("mid.classif."):
        logits, offsets = _read_mlp(file, "mid.classif."), _read_mlp(file, "mid.reg.")
        return _cells(
            file, _checked(file, classes.quadtree, _num_outputs(logits)), logits, offsets, tanh_scale
        )
    whole = _read_mlp(file, "mid.mlp.")
    num_outputs = _num_outputs(whole)
    if classes.places_deg is not None:
        if classes.quadtree is not None:
            raise ConfigError(
                f"{file.origin} classifies cells or locations: give quadtree= or places=, not both"
            )
        return _places(file, classes.places_deg, whole)
    if num_outputs in (2, 4):
        return _coordinates(whole)
    tree = _checked(file, classes.quadtree, num_outputs)
    logits, offsets = (
        whole | {name: whole[name][rows] for name in _last_layer(whole)}
        for rows in (slice(tree.num_cells), slice(tree.num_cells, None))
    )
    return _cells(file, tree, logits, offsets, tanh_scale)


def _coordinates(mlp: dict[str, Tensor]) -> Heads:
    has_norms = "2.weight" in mlp
    config = RegressionHeadConfig(
        _hidden(mlp),
        "tanh" if _num_outputs(mlp) == 2 else "squared_angles",
        "group_norm" if has_norms else "gelu",
    )
    if not has_norms:  # an Identity replaces the group norm
        mlp = {
            _NUMBERS_WITHOUT_NORMS.get(name.split(".")[0], "?") + name[name.index(".") :]: tensor
            for name, tensor in mlp.items()
        }
    return Heads({"regression": config}, {f"regression.mlp.{name}": t for name, t in mlp.items()})


_NUMBERS_WITHOUT_NORMS = {"0": "0", "1": "1", "4": "3", "7": "5"}


def _cells(
    file: ForeignTensors,
    tree: Quadtree,
    logits: dict[str, Tensor],
    offsets: dict[str, Tensor],
    tanh_scale: float,
) -> Heads:
    is_box = file.has("head.cell_center")
    if is_box:
        _check_boxes(file, tree)
    configs: dict[str, Any] = {"cells": CellHeadConfig(_hidden(logits))}
    state = {f"cells.{name}": tensor for name, tensor in logits.items()}
    if num_offsets := _num_outputs(offsets):
        configs["offsets"] = OffsetHeadConfig(
            _hidden(offsets), "box" if is_box else "representative", num_offsets == 2, tanh_scale
        )
        state |= {f"offsets.mlp.{name}": tensor for name, tensor in offsets.items()}
    return Heads(configs, state, tree)


def _check_boxes(file: ForeignTensors, tree: Quadtree) -> None:
    bounds = tree.bounds_deg / np.array([90.0, 180.0, 90.0, 180.0])
    for name, own in (
        ("center", (bounds[:, :2] + bounds[:, 2:]) / 2),
        ("size", bounds[:, 2:] - bounds[:, :2]),
    ):
        theirs = file.take(f"head.cell_{name}").double()
        if not torch.allclose(theirs, torch.from_numpy(own), rtol=0, atol=1e-9):
            raise FingerprintMismatchError(
                f"the boxes in {file.origin} are not those of the given quadtree: "
                "give the table that it was trained with"
            )


def _checked(file: ForeignTensors, quadtree: Quadtree | None, num_outputs: int) -> Quadtree:
    if quadtree is None:
        raise ConfigError(
            f"{file.origin} classifies, with {num_outputs} outputs, but names no classes: give quadtree= OSV-5M's "
            "table of cells, a .csv; or places= its table of countries, regions, areas or cities, "
            "index_to_gps_unique_….pt or …_center.csv"
        )
    if num_outputs not in (n := quadtree.num_cells, n + 2, 3 * n):
        raise FingerprintMismatchError(
            f"{file.origin} has {num_outputs} outputs, which do not fit the {n} cells of the given quadtree; if "
            "it classifies countries, regions, areas or cities, give places= their table"
        )
    return quadtree


def _places(file: ForeignTensors, places_deg: NDArray[np.float64], mlp: dict[str, Tensor]) -> Heads:
    """A classifier whose classes are reordered as their cells."""
    if len(places_deg) != _num_outputs(mlp):
        raise FingerprintMismatchError(
            f"{file.origin} has {_num_outputs(mlp)} outputs, and the given table has {len(places_deg)} rows: give "
            "the one that it was trained with"
        )
    tree = build_quadtree(places_deg, max_points_per_cell=2, max_depth=MAX_DEPTH, root="data")
    if tree.num_cells != len(places_deg):
        raise ConfigError(
            f"of the {len(places_deg)} locations of the given table only {tree.num_cells} differ by more than "
            f"{360 / 2**MAX_DEPTH:.1g} degrees: it is not OSV-5M's"
        )
    of_cell = torch.from_numpy(np.argsort(tree.assign(places_deg)))
    ordered = mlp | {name: mlp[name][of_cell] for name in _last_layer(mlp)}
    state = {f"cells.{name}": tensor for name, tensor in ordered.items()}
    return Heads({"cells": CellHeadConfig(_hidden(mlp))}, state, tree)


def _read_mlp(file: ForeignTensors, prefix: str) -> dict[str, Tensor]:
    found = {}
    for number in range(32):
        if file.has(f"{prefix}{number}."):
            for part in ("weight", "bias"):
                found[f"{number}.{part}"] = file.take(f"{prefix}{number}.{part}")
    if not found:
        raise CheckpointError(f"{file.origin} has no tensors {prefix}…: it is not a known OSV-5M checkpoint")
    return found


def _last_layer(mlp: Mapping[str, Tensor]) -> tuple[str, str]:
    last = max(int(name.split(".")[0]) for name in mlp)
    return f"{last}.weight", f"{last}.bias"


def _num_outputs(mlp: Mapping[str, Tensor]) -> int:
    return len(mlp[_last_layer(mlp)[1]])


def _hidden(mlp: Mapping[str, Tensor]) -> tuple[int, ...]:
    linear = [len(tensor) for name, tensor in mlp.items() if name.endswith("weight") and tensor.ndim == 2]
    return tuple(linear[:-1])
