"""OSV-5M's quadtree rule as a plain recursion over pandas frames, to measure `build_quadtree` against.

Written from the published description of the rule (Astruc et al., CVPR 2024, and its cell table), not from
its code: the root is the box of the points; a box is split at the midpoints of both sides while it may go
deeper and holds at least `max_points_per_cell` points; quadrants without points are dropped; leaves count
depth first in the order south-west, south-east, north-west, north-east; a leaf is represented by the mean of
its points' degrees.
"""

import pandas as pd

LEAF_COLUMNS = ["path", "south", "west", "north", "east", "latitude", "longitude", "num_points"]


def build_leaves(points: pd.DataFrame, max_points_per_cell: int = 1000, max_depth: int = 10) -> pd.DataFrame:
    """One row per leaf in the order of the ids, from a frame with the columns latitude and longitude."""
    south, north = points["latitude"].min(), points["latitude"].max()
    west, east = points["longitude"].min(), points["longitude"].max()
    leaves: list[tuple[object, ...]] = []

    def visit(inside: pd.DataFrame, path: str, south: float, west: float, north: float, east: float) -> None:
        if len(inside) == 0:
            return
        if len(path) == max_depth or len(inside) < max_points_per_cell:
            means = inside[["latitude", "longitude"]].mean()
            leaves.append(
                (path, south, west, north, east, means["latitude"], means["longitude"], len(inside))
            )
            return
        middle_latitude, middle_longitude = (south + north) / 2, (west + east) / 2
        is_north = inside["latitude"] >= middle_latitude
        is_east = inside["longitude"] >= middle_longitude
        visit(inside[~is_north & ~is_east], path + "0", south, west, middle_latitude, middle_longitude)
        visit(inside[~is_north & is_east], path + "1", south, middle_longitude, middle_latitude, east)
        visit(inside[is_north & ~is_east], path + "2", middle_latitude, west, north, middle_longitude)
        visit(inside[is_north & is_east], path + "3", middle_latitude, middle_longitude, north, east)

    visit(points, "", south, west, north, east)
    return pd.DataFrame(leaves, columns=LEAF_COLUMNS)
