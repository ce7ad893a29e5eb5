"""One HTML file with an interactive map (pan, zoom, click) that needs no network.

    write_map("map.html", [MapPoint("photo.jpg", (55.7, 13.2), {50: 12, 90: 80})], title="My photos")

The page is data/page.html with data/page.css, data/geometry.js and data/map.js written into it. What a user
named (files, titles) is data there: it reaches the page inside one JSON block and is shown as text, never as
markup; and the page's content security policy lets no other script run and nothing be loaded.
"""

import base64
import hashlib
import html
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from geoloc import __version__
from geoloc.files import atomic_write
from geoloc.view.outline import OUTLINE_PATH
from quadtree.sphere import validate_latlon_deg

if TYPE_CHECKING:
    from quadtree import Quadtree

MAX_THUMBNAILS = 200  # of about 6 kB each; further images keep their row without a picture
MAX_CANDIDATES = 10
MAX_ATOMS = 40  # of a posterior

_PAGE_PARTS = OUTLINE_PATH.parent
_DIGITS = 6  # of a degree: 0.1 m


@dataclass(frozen=True)
class MapPoint:
    """One image on the map.

    Attributes:
        name: its label in the list, usually the file name.
        latlon_deg: the predicted position; None if localising failed; `error` then holds the reason.
        radius_km: percent -> radius of the circle with that probability of the true position, as {50: 12.0, 90: 80.0}.
        place: name of the place, one line.
        probability: probability of the prediction, in [0, 1].
        candidates: (lat, lon, probability), best first; the first ten are shown.
        posterior: (lat, lon, weight, scale_km) of Gaussians, largest weight first: the heatmap of the image when
            it is selected. The scale is the standard deviation per axis; the first 40 are shown.
        thumbnail_jpeg: a small JPEG file, about 160 px; the first 200 of a map are shown.
        truth_latlon_deg: where the image was taken, if known.
        error: the reason why there is no prediction.
    """

    name: str
    latlon_deg: tuple[float, float] | None
    radius_km: Mapping[int, float] = field(default_factory=dict)
    place: str | None = None
    probability: float | None = None
    candidates: Sequence[tuple[float, float, float]] = ()
    posterior: Sequence[Sequence[float]] = ()
    thumbnail_jpeg: bytes | None = None
    truth_latlon_deg: tuple[float, float] | None = None
    error: str | None = None


def write_map(
    path: str | Path,
    features: Iterable[MapPoint],
    *,
    title: str,
    note: str = "",
    quadtree: "Quadtree | None" = None,
    heatmap: Iterable[tuple[float, float, float]] | None = None,
) -> None:
    """Write a map of images. Browsers stay responsive up to about 20,000 images.

    Args:
        path: of the HTML file; an existing file is replaced atomically.
        features: the images, in the order of the list.
        title: the heading.
        note: one line on how the map was made (model, command, date).
        quadtree: its cells as a layer of thin lines.
        heatmap: (lat, lon, weight) of a further layer; weights are positive and relative to the largest.

    Raises:
        InvalidCoordinateError: a latitude or longitude is out of range.
        ValueError: a point has neither a position nor an error.
    """
    points, num_thumbnails = [], 0
    for feature in features:
        with_thumbnail = feature.thumbnail_jpeg is not None and num_thumbnails < MAX_THUMBNAILS
        num_thumbnails += with_thumbnail
        points.append(_point(feature, with_thumbnail))
    _write_page(
        path,
        title=title,
        note=note,
        points=points,
        quadtree=None if quadtree is None else _cells(quadtree),
        heatmap=None if heatmap is None else [[*_latlon(spot[:2]), _number(spot[2])] for spot in heatmap],
    )


def write_quadtree_map(
    quadtree: "Quadtree", path: str | Path, *, title: str = "Quadtree", note: str = ""
) -> None:
    """Write the map of a quadtree's cells, coloured by their number of points or their depth.

    A tooltip shows a cell's path, depth, number of points and representative point.

    Args:
        quadtree: the tree; without numbers of points, colours show the depth.
        path: of the HTML file; an existing file is replaced atomically.
        title: the heading.
        note: one line on how the tree was made.
    """
    _write_page(path, title=title, note=note, points=[], quadtree=_cells(quadtree), heatmap=None)


def _write_page(path: str | Path, *, title: str, note: str, **layers: Any) -> None:
    made_with = f"Made with geoloc {__version__}. Coastlines and borders: Natural Earth, public domain."
    data = {
        "title": title,
        "note": f"{note} {made_with}" if note else made_with,
        "outline": base64.b64encode(OUTLINE_PATH.read_bytes()).decode(),
        **layers,
    }
    css = _part("page.css")
    script = _part("geometry.js") + _part("map.js")
    policy = (
        "default-src 'none'; base-uri 'none'; form-action 'none'; img-src data:; "
        f"style-src '{csp_hash(css)}'; script-src '{csp_hash(script)}'"
    )
    parts = {
        "CSP": policy,
        # A file name with undecodable bytes holds lone surrogates, which UTF-8 cannot write.
        "TITLE": html.escape(title).encode("ascii", "xmlcharrefreplace").decode(),
        "CSS": css,
        "JS": script,
        "DATA": _script_safe_json(data),
    }
    # One pass, so that a title such as "@JS@" stays a title.
    page = re.sub(f"@({'|'.join(parts)})@", lambda found: parts[found[1]], _part("page.html"))
    with atomic_write(path, "w") as file:
        file.write(page)


def _part(name: str) -> str:
    return (_PAGE_PARTS / name).read_text(encoding="utf-8")


def csp_hash(text: str) -> str:
    """The hash with which a content security policy allows one inline script or style."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _script_safe_json(data: Any) -> str:
    """JSON in ASCII that can neither end the script element around it nor begin a comment in it."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _point(feature: MapPoint, with_thumbnail: bool) -> dict[str, Any]:
    if feature.latlon_deg is None and feature.error is None:
        raise ValueError(
            f"{feature.name!r} has neither a position nor an error: give the map point a latlon_deg, or the "
            "reason for its absence as error="
        )
    point = {
        "name": feature.name,
        "latlon": None if feature.latlon_deg is None else _latlon(feature.latlon_deg),
        "radii": {str(percent): _number(radius) for percent, radius in sorted(feature.radius_km.items())},
        "candidates": [[*_latlon(c[:2]), _number(c[2])] for c in feature.candidates[:MAX_CANDIDATES]],
        "place": feature.place,
        "probability": None if feature.probability is None else _number(feature.probability),
        "truth": None if feature.truth_latlon_deg is None else _latlon(feature.truth_latlon_deg),
        "error": feature.error,
        "posterior": _bells(feature.posterior[:MAX_ATOMS]) if feature.posterior else None,
    }
    if with_thumbnail and feature.thumbnail_jpeg is not None:
        point["thumbnail"] = base64.b64encode(feature.thumbnail_jpeg).decode()
    return {name: value for name, value in point.items() if value is not None}


def _bells(posterior: Sequence[Sequence[float]]) -> list[list[float]]:
    latlon = validate_latlon_deg([bell[:2] for bell in posterior]).round(_DIGITS).tolist()
    return [[*place, *map(_number, bell[2:])] for place, bell in zip(latlon, posterior, strict=True)]


def _cells(quadtree: "Quadtree") -> dict[str, Any]:
    num_points = quadtree.num_points
    return {
        "bounds": quadtree.bounds_deg.round(_DIGITS).tolist(),
        "paths": list(quadtree.paths),
        "counts": None if num_points is None else np.asarray(num_points).tolist(),
        "centers": quadtree.center_latlon_deg.round(_DIGITS).tolist(),
    }


def _latlon(latlon_deg: Sequence[float]) -> list[float]:
    latitude, longitude = validate_latlon_deg(latlon_deg).round(_DIGITS).tolist()
    return [latitude, longitude]


def _number(value: float) -> float:
    """The number rounded to four significant digits, which keeps the page small."""
    return float(f"{value:.4g}")
