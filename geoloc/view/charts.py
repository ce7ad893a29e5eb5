"""Charts as SVG text for a page without scripts: curves, a matrix, points on a map of the world.

Colours and fonts come from the page's style sheet by class names, so that a chart follows light and dark. Every text
is escaped here.
"""

import html
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from geoloc.view.figures import project_equal_earth
from geoloc.view.great_circles import great_circle
from geoloc.view.outline import load_world_outline

WIDTH, HEIGHT = 520, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 68, 16, 14, 44

MAP_WIDTH, MAP_HEIGHT = 1080, 526
_MAP_SCALE: Final = MAP_WIDTH / 2 / 2.7066  # Equal Earth is 5.4133 radii wide
_COARSE_DEG: Final = 0.4  # coastline detail that such a small map can show

# Error in km -> shade class of a dot; each is the upper end of its class.
ERROR_CLASSES_KM: Final = (25.0, 200.0, 750.0, 2500.0, math.inf)


@dataclass(frozen=True)
class Curve:
    """One line of a chart.

    Attributes:
        name: in the legend; "" for none.
        x: (n,) ascending.
        y: (n,).
        style: class of the style sheet: "a", "b" or "ideal".
        dots: mark every point.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    style: str = "a"
    dots: bool = False


@dataclass(frozen=True)
class Scale:
    """One axis.

    Attributes:
        low: value at its beginning.
        high: value at its end.
        ticks: values with a label.
        label: what it measures, with the unit.
        text: a tick's label.
        log: logarithmic.
    """

    low: float
    high: float
    ticks: Sequence[float]
    label: str
    text: Callable[[float], str] = "{:g}".format
    log: bool = False

    def position(self, value: float) -> float:
        """Share of the axis's length, clipped to it."""
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        at = math.log(max(value, self.low)) if self.log else value
        return min(max((at - low) / (high - low), 0.0), 1.0)


def percent(share: float) -> str:
    """A share as a tick's label."""
    return f"{100 * share:.0f} %"


def line_chart(title: str, x: Scale, y: Scale, curves: Sequence[Curve], marks: Sequence[float] = ()) -> str:
    """Curves over two axes.

    Args:
        title: for screen readers.
        x: the horizontal axis.
        y: the vertical axis.
        curves: drawn in this order.
        marks: values of x with a dashed line.
    """
    across, up = WIDTH - _LEFT - _RIGHT, HEIGHT - _TOP - _BOTTOM

    def at(px: float, py: float) -> tuple[float, float]:
        return _LEFT + across * x.position(px), _TOP + up * (1 - y.position(py))

    parts = []
    for tick in y.ticks:
        _, top = at(x.low, tick)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{top:.1f}" y2="{top:.1f}"/>')
        parts.append(_text(_LEFT - 7, top + 4, y.text(tick), "end"))
    for tick in x.ticks:
        left, _ = at(tick, y.low)
        parts.append(
            f'<line class="grid" x1="{left:.1f}" x2="{left:.1f}" y1="{_TOP}" y2="{HEIGHT - _BOTTOM}"/>'
        )
        parts.append(_text(left, HEIGHT - _BOTTOM + 17, x.text(tick), "middle"))
    for mark in marks:
        left, _ = at(mark, y.low)
        parts.append(
            f'<line class="mark" x1="{left:.1f}" x2="{left:.1f}" y1="{_TOP}" y2="{HEIGHT - _BOTTOM}"/>'
        )
    for curve in curves:
        points = [at(px, py) for px, py in zip(curve.x, curve.y, strict=True)]
        line = " ".join(f"{left:.1f},{top:.1f}" for left, top in points)
        parts.append(f'<polyline class="curve {curve.style}" points="{line}"/>')
        if curve.dots:
            parts += [
                f'<circle class="dot {curve.style}" cx="{left:.1f}" cy="{top:.1f}" r="4"/>'
                for left, top in points
            ]
    for row, curve in enumerate(named for named in curves if named.name):
        top = HEIGHT - _BOTTOM - 14 - 18 * row
        parts.append(
            f'<line class="curve {curve.style}" x1="{WIDTH - _RIGHT - 26}" x2="{WIDTH - _RIGHT - 6}" '
            f'y1="{top}" y2="{top}"/>'
        )
        parts.append(_text(WIDTH - _RIGHT - 32, top + 4, curve.name, "end"))
    parts.append(_text(_LEFT + across / 2, HEIGHT - 6, x.label, "middle", "label"))
    parts.append(
        f'<text class="label" transform="translate(15 {_TOP + up / 2:.0f}) rotate(-90)" text-anchor="middle">'
        f"{html.escape(y.label)}</text>"
    )
    return _svg(title, WIDTH, HEIGHT, parts)


def matrix_chart(title: str, names: Sequence[str], counts: NDArray[np.int64]) -> str:
    """Counts of pairs as shaded squares, (n, n), row = truth; a shade is the share of its row."""
    side = min(26, 520 // max(len(names), 1))
    left, top = 64, 58
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    parts = [_text(left, 14, "predicted", "start", "label"), _text(0, top - 8, "true", "start", "label")]
    for index, name in enumerate(names):
        middle = side * index + side / 2
        parts.append(_text(left - 6, top + middle + 4, name, "end"))
        parts.append(
            f'<text class="tick" transform="translate({left + middle + 4:.1f} {top - 6}) rotate(-60)">'
            f"{html.escape(name)}</text>"
        )
    for row, true in enumerate(names):
        for column, predicted in enumerate(names):
            x, y, size = left + side * column, top + side * row, side - 1
            if not counts[row, column]:
                parts.append(f'<rect class="empty" x="{x}" y="{y}" width="{size}" height="{size}"/>')
                continue
            shade = "right" if row == column else "wrong"
            tip = f"{true} predicted as {predicted}: {counts[row, column]:,} ({shares[row, column]:.1%})"
            parts.append(
                f'<rect class="{shade}" x="{x}" y="{y}" width="{size}" height="{size}" '
                f'fill-opacity="{0.05 + 0.95 * shares[row, column]:.2f}"><title>{html.escape(tip)}</title></rect>'
            )
    extent = side * len(names)
    return _svg(title, left + extent + 40, top + extent + 6, parts)


def error_map(
    title: str, latlon_deg: NDArray[np.float64], distance_km: NDArray[np.float64], tips: Sequence[str]
) -> str:
    """A dot at each true place, shaded by its error; the largest errors lie on top, grey has no prediction.

    Args:
        title: for screen readers.
        latlon_deg: (n, 2).
        distance_km: (n,), NaN for none.
        tips: tooltips, (n,).
    """
    parts = [_world()]
    xy = _on_map(latlon_deg)
    radius = 3.4 if len(xy) <= 1500 else 2.4
    for row in np.argsort(np.nan_to_num(distance_km, nan=-1.0), kind="stable").tolist():
        parts.append(
            f'<circle class="{error_class(distance_km[row])}" cx="{xy[row, 0]:.1f}" cy="{xy[row, 1]:.1f}" '
            f'r="{radius}"><title>{html.escape(tips[row])}</title></circle>'
        )
    return _svg(title, MAP_WIDTH, MAP_HEIGHT, parts)


def small_map(
    title: str, true_latlon_deg: Sequence[float], predicted_latlon_deg: Sequence[float] | None
) -> str:
    """The world with one true place, one predicted place and the great circle between them."""
    parts = [f'<use href="#world" width="{MAP_WIDTH}" height="{MAP_HEIGHT}"/>']
    if predicted_latlon_deg is not None:
        line = great_circle(tuple(true_latlon_deg), tuple(predicted_latlon_deg))
        for piece in _unwrapped_pieces(np.asarray(line)):
            xy = _on_map(piece)
            parts.append(
                f'<polyline class="miss-line" points="{" ".join(f"{x:.0f},{y:.0f}" for x, y in xy)}"/>'
            )
        ((x, y),) = _on_map(np.array([predicted_latlon_deg]))
        parts.append(f'<circle class="predicted" cx="{x:.0f}" cy="{y:.0f}" r="14"/>')
    ((x, y),) = _on_map(np.array([true_latlon_deg]))
    parts.append(f'<path class="truth" d="M{x:.0f} {y - 18:.0f}l18 18l-18 18l-18 -18z"/>')
    return _svg(title, MAP_WIDTH, MAP_HEIGHT, parts)


def error_class(distance_km: float) -> str:
    """Class of the style sheet for an error."""
    if math.isnan(distance_km):
        return "none"
    return f"e{sum(distance_km > upper for upper in ERROR_CLASSES_KM)}"


def _unwrapped_pieces(latlon_deg: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """A line cut where it leaves the map at the antimeridian."""
    longitude = (latlon_deg[:, 1] + 180) % 360 - 180
    wrapped = np.stack([latlon_deg[:, 0], longitude], axis=1)
    return np.split(wrapped, np.flatnonzero(np.abs(np.diff(longitude)) > 180) + 1)


def _on_map(latlon_deg: NDArray[np.float64]) -> NDArray[np.float64]:
    xy = project_equal_earth(np.asarray(latlon_deg, np.float64)) * _MAP_SCALE
    return np.stack([MAP_WIDTH / 2 + xy[:, 0], MAP_HEIGHT / 2 - xy[:, 1]], axis=1)


@cache
def _world() -> str:
    """Sea and land as a symbol that other maps of the page use."""
    edge = [(lat, -180.0) for lat in range(-90, 91, 3)] + [(lat, 180.0) for lat in range(90, -91, -3)]
    land = []
    for ring in load_world_outline().land:
        line = ring
        if not np.array_equal(
            ring[0], ring[-1]
        ):  # Antarctica's coast is an open line: close it along the bottom of the map
            line = np.concatenate([ring, [(-90.0, ring[-1, 1]), (-90.0, ring[0, 1])]])
        # A ring may continue beyond the antimeridian. The map's edge clips it; a shifted copy shows the rest.
        west, east = line[:, 1].min(), line[:, 1].max()
        for turn in (0, *([-360] if east > 180 else []), *([360] if west < -180 else [])):
            land.append(_path(_coarse(line + np.array([0, turn]))))
    return (
        f'<symbol id="world" viewBox="0 0 {MAP_WIDTH} {MAP_HEIGHT}"><path class="sea" d="{_path(np.array(edge))}"/>'
        f'<path class="land" fill-rule="evenodd" d="{"".join(land)}"/></symbol>'
        f'<use href="#world" width="{MAP_WIDTH}" height="{MAP_HEIGHT}"/>'
    )


def _coarse(line: NDArray[np.float64]) -> NDArray[np.float64]:
    """Only the points that leave a small square around the last one kept."""
    keep, last = [0], line[0]
    for index in range(1, len(line)):
        if np.abs(line[index] - last).max() >= _COARSE_DEG:
            keep.append(index)
            last = line[index]
    return line[keep]


def _path(latlon_deg: NDArray[np.float64]) -> str:
    if len(latlon_deg) < 3:
        return ""
    clipped = np.stack([latlon_deg[:, 0], np.clip(latlon_deg[:, 1], -180, 180)], axis=1)
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in _on_map(clipped)) + "Z"


def _text(x: float, y: float, text: str, anchor: str, style: str = "tick") -> str:
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(text)}</text>'


def _svg(title: str, width: float, height: float, parts: Sequence[str]) -> str:
    name = html.escape(title, quote=True)
    return f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{name}">{"".join(parts)}</svg>'
