"""PNG world map of a quadtree's cells in the Equal Earth projection, by matplotlib without a display."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from geoloc.files import atomic_write
from geoloc.view.outline import load_world_outline

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from quadtree import Quadtree

DPI = 200  # twice matplotlib's, for screens with two pixels to a point
WIDTH_IN = 11.0

_SEA, _LAND, _TEXT, _QUIET = "#e4edf3", "#fbfaf6", "#1c2430", "#65707e"


def project_equal_earth(latlon_deg: NDArray[np.float64]) -> NDArray[np.float64]:
    """Equal Earth projection, (..., 2) lat, lon in degrees -> (..., 2) x, y; the Earth's radius is the unit.

    Longitudes beyond 180 lie beyond the edge of the map. Savric, Patterson and Jenny (2018),
    doi 10.1080/13658816.2018.1504949.
    """
    latitude, longitude = np.radians(latlon_deg[..., 0]), np.radians(latlon_deg[..., 1])
    a1, a2, a3, a4 = 1.340264, -0.081106, 0.000893, 0.003796
    theta = np.arcsin(np.sqrt(3) / 2 * np.sin(latitude))
    stretch = 9 * a4 * theta**8 + 7 * a3 * theta**6 + 3 * a2 * theta**2 + a1
    x = 2 * np.sqrt(3) / 3 * longitude * np.cos(theta) / stretch
    return np.stack([x, theta * (a4 * theta**8 + a3 * theta**6 + a2 * theta**2 + a1)], axis=-1)


def save_quadtree_png(
    quadtree: "Quadtree",
    path: str | Path,
    *,
    color_by: Literal["depth", "num_points"] = "depth",
    title: str = "Quadtree",
) -> None:
    """Save a world map of a quadtree's cells.

    Args:
        quadtree: the tree.
        path: of the PNG; an existing file is replaced atomically.
        color_by: depth of the cells, or the logarithm of their number of points.
        title: the heading.

    Raises:
        ValueError: `color_by` is "num_points" and the tree has none.
    """
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.collections import PolyCollection
    from matplotlib.colors import BoundaryNorm, LogNorm, Normalize

    depths, num_points = quadtree.depths, quadtree.num_points
    norm: Normalize
    if color_by == "depth":
        values, label = depths, "depth of the cell"
        shades = np.arange(depths.min(), depths.max() + 2) - 0.5
        norm = BoundaryNorm(shades, colormaps["viridis"].N)
    else:
        if num_points is None:
            raise ValueError(
                'this quadtree has no numbers of points (OSV-5M\'s table has none): use color_by="depth"'
            )
        values, label = num_points, "points in the cell"
        norm = LogNorm(1, max(2, int(num_points.max())))
    facts = [_count(quadtree.num_cells, "cell"), f"depth {depths.min()} to {depths.max()}"]
    if num_points is not None:
        facts.append(_count(int(num_points.sum()), "point"))
    figure, axes = _world(title, " · ".join(facts))
    cells = [project_equal_earth(_box_ring(bounds)) for bounds in quadtree.bounds_deg]
    axes.add_artist(
        PolyCollection(
            cells,
            array=values,
            norm=norm,
            cmap="viridis",
            alpha=0.8,
            edgecolors="white",
            linewidths=0.12,
            zorder=2,
        )
    )
    _draw_lines(axes, load_world_outline().borders, color=_TEXT, linewidth=0.25, alpha=0.35, zorder=3)
    _draw_lines(axes, load_world_outline().land, color=_TEXT, linewidth=0.4, alpha=0.7, zorder=3)
    bar = figure.colorbar(
        ScalarMappable(norm, "viridis"),
        cax=figure.add_axes((0.33, 0.075, 0.34, 0.018)),
        orientation="horizontal",
    )
    if color_by == "depth":
        bar.set_ticks(np.unique(np.linspace(depths.min(), depths.max(), 9).round()).tolist())
    else:
        bar.ax.xaxis.set_major_formatter("{x:,.0f}")
    bar.minorticks_off()
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0, labelsize=8, colors=_QUIET)
    bar.set_label(label, fontsize=9, color=_QUIET)
    _save(figure, path)


def _world(title: str, subtitle: str) -> tuple["Figure", "Axes"]:
    """Figure with title, sea and land; artists up to zorder 4 are clipped at the edge of the map."""
    from matplotlib.figure import Figure
    from matplotlib.patches import PathPatch

    width, height = project_equal_earth(np.array([[0.0, 180.0], [90.0, 0.0]])).max(axis=0)
    head_in, foot_in = 0.8, 0.75
    figure = Figure(
        figsize=(WIDTH_IN, WIDTH_IN * 0.96 * height / width + head_in + foot_in), facecolor="white"
    )
    total_in = figure.get_figheight()
    axes = figure.add_axes((0.02, foot_in / total_in, 0.96, 1 - (head_in + foot_in) / total_in))
    axes.set_axis_off()
    axes.set_aspect("equal")
    edge = np.array([width, height]) * 1.005
    axes.set_xlim(-edge[0], edge[0])
    axes.set_ylim(-edge[1], edge[1])
    globe = project_equal_earth(_box_ring(np.array([-90.0, -180.0, 90.0, 180.0])))
    # One white patch with a hole is faster than clipping lines. add_artist does not recompute the limits.
    frame = edge * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1], [-1, -1]])
    axes.add_artist(PathPatch(_outline([globe]), facecolor=_SEA, edgecolor="none", zorder=0))
    axes.add_artist(PathPatch(_outline([frame, globe]), facecolor="white", edgecolor="none", zorder=4.5))
    meridians = [
        np.stack([np.linspace(-90, 90, 91), np.full(91, lon)], axis=1) for lon in range(-150, 180, 30)
    ]
    parallels = [np.array([[lat, -180.0], [lat, 180.0]]) for lat in range(-60, 90, 30)]
    _draw_lines(axes, meridians + parallels, color="#d0dde6", linewidth=0.5, zorder=0.5)
    rings = [piece for ring in load_world_outline().land for piece in _copies(_closed_over_pole(ring))]
    axes.add_artist(PathPatch(_compound(rings), facecolor=_LAND, edgecolor="none", zorder=1))
    # Without this, matplotlib reads a dollar sign in a title as a formula.
    plain: dict[str, Any] = {"ha": "left", "va": "top", "parse_math": False}
    figure.text(0.035, 1 - 0.2 / total_in, title, fontsize=16, fontweight="bold", color=_TEXT, **plain)
    figure.text(0.035, 1 - 0.52 / total_in, subtitle, fontsize=10, color=_QUIET, **plain)
    figure.text(
        0.965, 0.12 / total_in, "Coastlines: Natural Earth", fontsize=7, color=_QUIET, ha="right", va="bottom"
    )
    return figure, axes


def _draw_lines(axes: "Axes", lines: Sequence[NDArray[np.float64]], **style: Any) -> None:
    """Draw (n, 2) lat, lon lines; longitudes may exceed the edge of the map."""
    from matplotlib.collections import LineCollection

    pieces = [project_equal_earth(piece) for line in lines for piece in _copies(line)]
    if pieces:
        axes.add_artist(LineCollection(pieces, capstyle="round", joinstyle="round", **style))


def _copies(line: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """The line and its copies shifted by 360 degrees that overlap the map."""
    west, east = line[:, 1].min(), line[:, 1].max()
    turns = range(int(np.ceil((-180 - east) / 360)), int(np.floor((180 - west) / 360)) + 1)
    return [line + np.array([0.0, 360.0 * turn]) for turn in turns]


def _closed_over_pole(ring: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ring closed along the edge of the map if its coast goes once around the Earth."""
    if abs(ring[-1, 1] - ring[0, 1]) < 180:
        return ring
    pole = 90.0 if ring[0, 0] > 0 else -90.0
    to_pole = np.linspace(ring[-1, 0], pole, 10)
    down = np.stack([to_pole, np.full(10, ring[-1, 1])], axis=1)
    up = np.stack([to_pole[::-1], np.full(10, ring[0, 1])], axis=1)
    return np.concatenate([ring, down, up])


def _compound(rings: Sequence[NDArray[np.float64]]) -> Any:
    """One matplotlib path of closed lat, lon rings, projected."""
    return _outline([project_equal_earth(ring) for ring in rings])


def _outline(rings: Sequence[NDArray[np.float64]]) -> Any:
    """One matplotlib path of closed x, y rings; a ring inside another of opposite direction is a hole."""
    from matplotlib.path import Path as Outline

    return Outline.make_compound_path(*(Outline(ring, closed=True) for ring in rings))


def _box_ring(bounds_deg: NDArray[np.float64]) -> NDArray[np.float64]:
    """Closed ring around a box, with points along the curved sides."""
    south, west, north, east = bounds_deg.tolist()
    num = 2 + int((north - south) / 2)
    up, down = np.linspace(south, north, num), np.linspace(north, south, num)
    return np.concatenate(
        [
            np.stack([up, np.full(num, west)], axis=1),
            np.stack([down, np.full(num, east)], axis=1),
            [[south, west]],
        ]
    )


def _count(number: int, word: str) -> str:
    return f"{number:,} {word}{'' if number == 1 else 's'}"


def _save(figure: "Figure", path: str | Path) -> None:
    with atomic_write(path, "wb") as file:
        figure.savefig(file, format="png", dpi=DPI)
