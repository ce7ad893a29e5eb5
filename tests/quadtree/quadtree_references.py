"""Slow and obvious answers to compare the package with. Nothing here uses codes, grids or the package's own
geometry."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Leaf:
    path: str
    bounds_deg: tuple[float, float, float, float]
    mean_latlon_deg: tuple[float, float]
    num_points: int


def osv5m_leaves(latlon_deg, max_points_per_cell, max_depth, root_deg=None):
    """OSV-5M's rule as a recursion over the points of each box; the root is their box unless one is given."""
    leaves = []

    def visit(points, path, south, west, north, east):
        if len(points) == 0:
            return
        if len(path) == max_depth or len(points) < max_points_per_cell:
            mean = points.mean(axis=0)
            leaves.append(Leaf(path, (south, west, north, east), (mean[0], mean[1]), len(points)))
            return
        middle_latitude, middle_longitude = (south + north) / 2, (west + east) / 2
        is_north, is_east = points[:, 0] >= middle_latitude, points[:, 1] >= middle_longitude
        visit(points[~is_north & ~is_east], path + "0", south, west, middle_latitude, middle_longitude)
        visit(points[~is_north & is_east], path + "1", south, middle_longitude, middle_latitude, east)
        visit(points[is_north & ~is_east], path + "2", middle_latitude, west, north, middle_longitude)
        visit(points[is_north & is_east], path + "3", middle_latitude, middle_longitude, north, east)

    if root_deg is None:
        (south, west), (north, east) = latlon_deg.min(axis=0), latlon_deg.max(axis=0)
        root_deg = float(south), float(west), float(north), float(east)
    visit(latlon_deg, "", *root_deg)
    return leaves


class BoxMap:
    """Which box contains a point, from bounds alone.

    The edges of all boxes cut the root into rectangles; every box is painted on its rectangles. A rectangle
    that is painted twice or never proves that the boxes do not tile the root.
    """

    def __init__(self, bounds_deg):
        self._latitudes = np.unique(bounds_deg[:, [0, 2]])
        self._longitudes = np.unique(bounds_deg[:, [1, 3]])
        shape = (len(self._latitudes) - 1, len(self._longitudes) - 1)
        self._box = np.full(shape, -1)
        self.num_paintings = np.zeros(shape, dtype=int)
        for box, (south, west, north, east) in enumerate(bounds_deg):
            rows = slice(*np.searchsorted(self._latitudes, [south, north]))
            columns = slice(*np.searchsorted(self._longitudes, [west, east]))
            self._box[rows, columns] = box
            self.num_paintings[rows, columns] += 1

    def box_of(self, latlon_deg):
        """Index of the half-open box around each point; the last row and column own the end of the root."""
        row = np.searchsorted(self._latitudes, latlon_deg[:, 0], side="right") - 1
        column = np.searchsorted(self._longitudes, latlon_deg[:, 1], side="right") - 1
        return self._box[np.minimum(row, len(self._box) - 1), np.minimum(column, self._box.shape[1] - 1)]


def photo_like_latlon_deg(num_points, seed):
    """Points in clusters of very different size and spread, as photos are, with a tenth anywhere on Earth."""
    rng = np.random.default_rng(seed)
    num_clusters = 300
    centers = np.stack(
        [np.degrees(np.arcsin(rng.uniform(-0.9, 0.97, num_clusters))), rng.uniform(-180, 180, num_clusters)],
        axis=-1,
    )
    weights = rng.pareto(1.1, num_clusters) + 0.1
    cluster = rng.choice(num_clusters, num_points, p=weights / weights.sum())
    spread_deg = rng.gamma(1.0, 0.7, num_clusters)
    latlon_deg = centers[cluster] + rng.standard_normal((num_points, 2)) * spread_deg[cluster, None]
    anywhere = rng.random(num_points) < 0.1
    latlon_deg[anywhere, 0] = np.degrees(np.arcsin(rng.uniform(-1, 1, anywhere.sum())))
    latlon_deg[anywhere, 1] = rng.uniform(-180, 180, anywhere.sum())
    latlon_deg[:, 0] = np.clip(latlon_deg[:, 0], -90, 90)
    latlon_deg[:, 1] = (latlon_deg[:, 1] + 180) % 360 - 180
    return latlon_deg


def border_latlon_deg(bounds_deg, num_points, seed):
    """Points whose latitude and longitude are each an edge of some box or a floating-point neighbour of
    one."""
    rng = np.random.default_rng(seed)

    def values(edges, low, high):
        edges = np.unique(edges)
        near = np.concatenate([edges, np.nextafter(edges, -np.inf), np.nextafter(edges, np.inf)])
        return rng.choice(near[(near >= low) & (near <= high)], num_points)

    return np.stack(
        [values(bounds_deg[:, [0, 2]], -90, 90), values(bounds_deg[:, [1, 3]], -180, np.nextafter(180, 0))],
        axis=-1,
    )
