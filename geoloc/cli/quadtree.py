"""`geoloc quadtree`: build, inspect and draw quadtrees."""

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from geoloc.cli.console import check_file, count, new_app, say
from geoloc.errors import ConfigError, NotFoundError, OutputMismatchError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from quadtree import Quadtree

quadtree_app = new_app(help="Build, inspect and draw quadtrees.")


class _Root(str, Enum):
    WORLD = "world"
    DATA = "data"


@quadtree_app.command("build")
def build_quadtree_command(
    points: Annotated[
        Path, typer.Argument(metavar="POINTS", help="Table of points: .csv, .csv.gz or .parquet.")
    ],
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="Where the tree goes: a .parquet file.")],
    max_points_per_cell: Annotated[
        int, typer.Option(min=1, help="A cell with so many points is split.")
    ] = 1000,
    max_depth: Annotated[int, typer.Option(min=0, max=24, help="No cell is deeper; the root is 0.")] = 10,
    root: Annotated[
        _Root, typer.Option(help="world covers the Earth; data is OSV-5M's box around the points.")
    ] = _Root.WORLD,
    latitude_column: Annotated[str, typer.Option(help="Column of latitudes, degrees.")] = "latitude",
    longitude_column: Annotated[str, typer.Option(help="Column of longitudes, degrees.")] = "longitude",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that exists.")] = False,
) -> None:
    """Build a quadtree whose cells hold about the same number of points.

    The table is read in batches and may be larger than memory.
    """
    from quadtree import build_quadtree_from_batches
    from quadtree.points import PointTable

    check_file(output, [".parquet"])
    if output.exists() and not overwrite:
        raise OutputMismatchError(
            f"{output} exists already: choose another name, or replace it with --overwrite"
        )
    tree = build_quadtree_from_batches(
        PointTable(points, latitude_column, longitude_column),
        max_points_per_cell=max_points_per_cell,
        max_depth=max_depth,
        root=root.value,
    )
    tree.write(output)
    say(
        f"{count(tree.num_cells, 'cell')}, depth {tree.depths.min()} to {tree.max_depth}, "
        f"fingerprint {tree.fingerprint[:12]} -> {output}"
    )


_TREE_ARGUMENT = typer.Argument(
    metavar="TREE", help="A .parquet that was built here, or OSV-5M's cell table .csv."
)


@quadtree_app.command("info")
def quadtree_info(tree: Annotated[Path, _TREE_ARGUMENT]) -> None:
    """Print the properties of a quadtree."""
    import numpy as np

    found = _read_tree(tree)
    areas_km2, empty_km2 = _areas_km2(found.bounds_deg), _areas_km2(found.empty_bounds_deg).sum()
    south, west, north, east = found.root_deg
    facts = {
        "root": "the whole Earth"
        if found.is_world
        else f"{south:.4f} to {north:.4f} N, {west:.4f} to {east:.4f} E",
        "cells": f"{found.num_cells:,}",
        "points": "unknown" if found.num_points is None else f"{found.num_points.sum():,}",
    }
    if found.num_points is not None:
        facts["points in a cell"] = _spread(found.num_points)
    facts |= {
        "area of a cell": f"{_spread(areas_km2)} km²",
        "side of the median cell": f"{np.sqrt(np.median(areas_km2)):,.1f} km",
        "empty leaves": f"{len(found.empty_paths):,}",
        "empty share of the area": f"{empty_km2 / (empty_km2 + areas_km2.sum()):.1%}",
        "fingerprint": found.fingerprint,
    }
    for name, value in facts.items():
        say(f"{name:<25}{value}")
    say("cells by depth")
    num_by_depth = np.bincount(found.depths)
    for depth in range(found.depths.min(), found.max_depth + 1):
        share = num_by_depth[depth] / num_by_depth.max()
        say(f"  {depth:>2} {num_by_depth[depth]:>9,}  {'#' * round(40 * share)}".rstrip())


@quadtree_app.command("map")
def quadtree_map(
    tree: Annotated[Path, _TREE_ARGUMENT],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The map: .html to pan and zoom, .png to print.")
    ],
) -> None:
    """Draw a quadtree's cells on a world map; an existing map is replaced."""
    check_file(output, [".html", ".png"])
    found = _read_tree(tree)
    title = f"Quadtree {tree.name}"
    if output.suffix.lower() == ".html":
        from geoloc.view.map_html import write_quadtree_map

        write_quadtree_map(found, output, title=title, note=f"Fingerprint {found.fingerprint[:12]}.")
    else:
        from geoloc.view.figures import save_quadtree_png

        save_quadtree_png(found, output, title=title)
    say(f"{count(found.num_cells, 'cell')} -> {output}")


def _read_tree(path: Path) -> "Quadtree":
    from quadtree import Quadtree

    suffix = path.suffix.lower()
    if suffix not in (".parquet", ".csv"):
        raise ConfigError(
            f"{path} is not a quadtree: it must end in .parquet, or in .csv for OSV-5M's cell table"
        )
    if not path.is_file():
        raise NotFoundError(f"there is no quadtree at {path}: build one with `geoloc quadtree build`")
    return Quadtree.read(path) if suffix == ".parquet" else Quadtree.read_osv5m_csv(path)


def _areas_km2(bounds_deg: "NDArray[np.float64]") -> "NDArray[np.float64]":
    """Areas of boxes on the sphere, (n, 4) south, west, north, east -> (n,)."""
    import numpy as np

    from quadtree import EARTH_MEAN_RADIUS_KM

    south, west, north, east = np.radians(bounds_deg).T
    area: NDArray[np.float64] = EARTH_MEAN_RADIUS_KM**2 * (east - west) * (np.sin(north) - np.sin(south))
    return area


def _spread(values: "NDArray[Any]") -> str:
    import numpy as np

    low, middle, high = np.quantile(values, [0, 0.5, 1]).tolist()
    return f"{low:,.0f} to {high:,.0f}, median {middle:,.0f}"
