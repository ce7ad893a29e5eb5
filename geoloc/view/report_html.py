"""The report of an evaluation as one HTML file without scripts or network: text, SVG and small pictures.

    write_report_html("report.html", metrics, sample)

`metrics` is what `metrics.json` holds; parts that were not computed are left out. The page's content
security policy allows its one style sheet and embedded pictures only, so that an image's name cannot run code.
"""

import base64
import html
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geoloc import __version__
from geoloc.files import atomic_write
from geoloc.view.charts import Curve, Scale, error_map, line_chart, matrix_chart, percent, small_map
from geoloc.view.map_html import csp_hash
from geoloc.view.outline import OUTLINE_PATH

MAX_GROUPS = 30  # rows of a breakdown on the page; metrics.json has them all


@dataclass(frozen=True)
class WorstCase:
    """An image with a large error.

    Attributes:
        name: its id.
        distance_km: NaN without a prediction.
        true_latlon_deg: where it was taken.
        predicted_latlon_deg: predicted position; None if there is none.
        true_place: name of the place where it was taken.
        predicted_place: name of the predicted place.
        thumbnail_jpeg: a small JPEG file, if the image is available.
    """

    name: str
    distance_km: float
    true_latlon_deg: tuple[float, float]
    predicted_latlon_deg: tuple[float, float] | None
    true_place: str = ""
    predicted_place: str = ""
    thumbnail_jpeg: bytes | None = None


@dataclass(frozen=True)
class ReportImages:
    """Data of single images for the page.

    Attributes:
        latlon_deg: (m, 2) true places of a sample, for the map.
        distance_km: (m,) their errors, NaN for none.
        tips: (m,) one line for each.
        cdf_km: (k,) distances in km, ascending, and
        cdf_share: (k,) the share of all images within them.
        worst: the largest errors.
        pictures: files beside the page that show predictions, each with a line of text.
        num_images: number of all images; the map shows a sample.
    """

    latlon_deg: NDArray[np.float64]
    distance_km: NDArray[np.float64]
    tips: Sequence[str]
    cdf_km: Sequence[float]
    cdf_share: Sequence[float]
    worst: Sequence[WorstCase] = field(default_factory=tuple)
    num_images: int = 0
    pictures: Sequence[tuple[str, str]] = field(default_factory=tuple)


def write_report_html(
    path: str | Path, metrics: Mapping[str, Any], images: ReportImages, *, title: str
) -> None:
    """Write the page.

    Args:
        path: an existing file is replaced atomically.
        metrics: as `metrics.json`.
        images: the sample, the error curve and the worst cases.
        title: the heading.
    """
    css = (OUTLINE_PATH.parent / "report.css").read_text(encoding="utf-8")
    policy = (
        f"default-src 'none'; base-uri 'none'; form-action 'none'; img-src data:; style-src '{csp_hash(css)}'"
    )
    body = "\n".join(
        part
        for part in (
            _numbers(metrics),
            _problems(metrics),
            _map(images),
            _two(_cdf(metrics, images), _calibration(metrics), _risk_coverage(metrics), _depths(metrics)),
            _confusion(metrics),
            *(_breakdown(name, groups) for name, groups in metrics.get("breakdowns", {}).items()),
            _worst(images),
            _pictures(images),
            _rules(metrics),
        )
        if part
    )
    page = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f'<title>{_escaped(title)}</title>\n<link rel="icon" href="data:,">\n<style>{css}</style>\n</head>\n<body>\n'
        f"<header><h1>{_escaped(title)}</h1><p>{_escaped(_summary(metrics))}</p></header>\n<main>\n{body}\n</main>\n"
        f"<footer>Made with geoloc {__version__}. Coastlines: Natural Earth, public domain. Place names: GeoNames, "
        "CC BY 4.0.</footer>\n</body>\n</html>\n"
    )
    with atomic_write(path, "w") as file:
        file.write(page)


def _summary(metrics: Mapping[str, Any]) -> str:
    protocol = metrics["protocol"]
    missing = metrics["num_missing"]
    without = f", {missing:,} without a prediction" if missing else ""
    return (
        f"{metrics['num_images']:,} images{without}. Protocol {protocol}: {metrics['rules']['description']}"
    )


def _numbers(metrics: Mapping[str, Any]) -> str:
    intervals = metrics.get("intervals", {})
    cards = [
        _number(
            "GeoScore", f"{metrics['geoscore']:,.0f}", _between(intervals.get("geoscore"), "{:,.0f}".format)
        )
    ]
    for key, name in (("median_km", "median error"), ("mean_km", "mean error")):
        cards.append(_number(name, _km(metrics[key]), _between(intervals.get(key), _km)))
    for radius, share in metrics["accuracy_within_km"].items():
        between = intervals.get("accuracy_within_km", {}).get(radius)
        cards.append(_number(f"within {_radius(radius)}", f"{share:.1%}", _between(between, "{:.1%}".format)))
    for level, share in metrics.get("accuracy_by_admin", {}).items():
        cards.append(_number(f"right {level.replace('_', '-')}", f"{share:.1%}", ""))
    for radius, shares in metrics.get("recall_at", {}).items():
        for k, share in shares.items():
            cards.append(_number(f"recall@{k}, {_radius(float(radius) / 1000)}", f"{share:.1%}", ""))
    return f'<div class="numbers">{"".join(cards)}</div>'


def _number(name: str, value: str, interval: str) -> str:
    small = f"<small>{_escaped(interval)}</small>" if interval else ""
    return f'<div class="number"><span>{_escaped(name)}</span><b>{_escaped(value)}</b>{small}</div>'


def _between(interval: Sequence[float | None] | None, written: Callable[[float], str]) -> str:
    if interval is None:
        return ""
    low, high = ("∞" if end is None else written(end) for end in interval)
    return f"{low} to {high}"


def _problems(metrics: Mapping[str, Any]) -> str:
    lines = [
        f"<tr><td>{_escaped(name.replace('_', ' '))}</td><td>{problem['count']:,}</td>"
        f"<td>{_escaped(problem['meaning'])}</td><td>{_escaped(', '.join(problem['examples'][:3]))}</td></tr>"
        for name, problem in metrics.get("problems", {}).items()
    ]
    warnings = [f"<p>{_escaped(warning)}</p>" for warning in metrics.get("warnings", [])]
    if not lines and not warnings:
        return ""
    table = ""
    if lines:
        head = "<tr><th>rows</th><th>count</th><th>meaning</th><th>for example</th></tr>"
        table = f'<div class="scroll"><table class="rules">{head}{"".join(lines)}</table></div>'
    return f'<section class="warn"><h2>Look at this first</h2>{"".join(warnings)}{table}</section>'


def _map(images: ReportImages) -> str:
    if not len(images.latlon_deg):
        return ""
    names = ("up to 25 km", "200 km", "750 km", "2,500 km", "more", "no prediction")
    keys = "".join(
        f'<li><i class="{style}"></i>{name}</li>'
        for style, name in zip(("e0", "e1", "e2", "e3", "e4", "none"), names, strict=True)
        if style != "none" or np.isnan(images.distance_km).any()
    )
    shown = len(images.latlon_deg)
    note = ""
    if shown < images.num_images:
        note = _note(f"{shown:,} of {images.num_images:,} images, evenly taken.")
    drawn = error_map("Errors on a map of the world", images.latlon_deg, images.distance_km, images.tips)
    return _section("Where it errs: true places by the error", f'{drawn}<ul class="legend">{keys}</ul>{note}')


def _section(heading: str, inside: str) -> str:
    return f"<section><h2>{heading}</h2>{inside}</section>"


def _note(text: str) -> str:
    return f'<p class="note">{_escaped(text)}</p>'


def _two(*sections: str) -> str:
    return f'<div class="two">{"".join(sections)}</div>' if any(sections) else ""


def _cdf(metrics: Mapping[str, Any], images: ReportImages) -> str:
    radii = [float(radius) for radius in metrics["accuracy_within_km"]]
    low = 10.0 ** math.floor(math.log10(min([*radii, 1.0])))
    ticks = [10.0**power for power in range(round(math.log10(low)), 5)]
    chart = line_chart(
        "Cumulative distribution of the error",
        Scale(low, 20038.0, ticks, "error, km (dashed: the protocol's radii)", "{:,g}".format, log=True),
        _shares("images within that error"),
        [Curve("", images.cdf_km, images.cdf_share)],
        marks=radii,
    )
    return _section("How far off: share of images within a distance", chart)


def _shares(label: str) -> Scale:
    return Scale(0.0, 1.0, (0, 0.2, 0.4, 0.6, 0.8, 1.0), label, percent)


def _calibration(metrics: Mapping[str, Any]) -> str:
    regions = list(metrics.get("regions", {}).values())
    if not regions:
        return ""
    chart = line_chart(
        "Coverage of the confidence regions",
        _shares("confidence of the region"),
        _shares("regions that hold the truth"),
        [
            Curve("as promised", (0, 1), (0, 1), "ideal"),
            Curve(
                "measured", [r["nominal"] for r in regions], [r["coverage"] for r in regions], "b", dots=True
            ),
        ],
    )
    widths = "; ".join(
        f"{r['nominal']:.0%} regions hold {r['coverage']:.1%}, median radius {_km(r['median_radius_km'])}"
        for r in regions
    )
    return _section("Is the confidence honest: calibration", chart + _note(f"{widths}."))


def _risk_coverage(metrics: Mapping[str, Any]) -> str:
    curve = metrics.get("risk_coverage", {})
    if not curve.get("coverage"):
        return ""
    low = math.floor(min(curve["geoscore"]) / 500) * 500
    chart = line_chart(
        "GeoScore of the surest images",
        _shares("share of images kept, the surest first"),
        Scale(
            low, 5000, range(low, 5001, 500 if low > 2000 else 1000), "GeoScore of those kept", "{:,g}".format
        ),
        [Curve("", curve["coverage"], curve["geoscore"], "b", dots=True)],
    )
    note = f"Ranked by the 90 % radius. Area under 1 - GeoScore/5000: {curve['aurc']:.4f}; smaller is better."
    return _section("Does it know when it is wrong: risk and coverage", chart + _note(note))


def _depths(metrics: Mapping[str, Any]) -> str:
    shares = metrics.get("accuracy_by_cell_depth", {})
    if not shares:
        return ""
    depths = [int(depth) for depth in shares]
    chart = line_chart(
        "Accuracy in cells by depth",
        Scale(depths[0], depths[-1], depths, "depth of the quadtree's cell"),
        _shares("images in the right cell"),
        [Curve("", depths, list(shares.values()), dots=True)],
    )
    return _section("How deep it is right: cells of the quadtree", chart)


def _confusion(metrics: Mapping[str, Any]) -> str:
    table = metrics.get("country_confusion", {"names": []})
    names = [name or "none" for name in table["names"]]
    if len(names) < 2:
        return ""
    chart = matrix_chart("Countries predicted for countries", names, np.array(table["counts"]))
    return (
        '<section class="matrix"><h2>Which countries it confuses</h2>'
        f'{chart}<p class="note">Of each true country, the share that is predicted as each other; numbers under the '
        "mouse.</p></section>"
    )


def _breakdown(name: str, groups: Mapping[str, Any]) -> str:
    if len(groups) < 2:
        return ""
    radii = list(next(iter(groups.values()))["accuracy_within_km"])
    head = "".join(f"<th>{_escaped(text)}</th>" for text in (name, "images", "GeoScore", "median", "mean"))
    head += "".join(f"<th>{_escaped(_radius(radius))}</th>" for radius in radii)
    rows = []
    for group, scores in list(groups.items())[:MAX_GROUPS]:
        cells = [group, f"{scores['num_images']:,}", f"{scores['geoscore']:,.0f}"]
        cells += [_km(scores["median_km"]), _km(scores["mean_km"])]
        cells += [f"{scores['accuracy_within_km'][radius]:.1%}" for radius in radii]
        rows.append(f"<tr>{''.join(f'<td>{_escaped(cell)}</td>' for cell in cells)}</tr>")
    more = len(groups) - MAX_GROUPS
    note = f'<p class="note">{more} smaller groups are in metrics.json.</p>' if more > 0 else ""
    table = f'<div class="scroll"><table><tr>{head}</tr>{"".join(rows)}</table></div>{note}'
    return f"<section><h2>By {_escaped(name)}</h2>{table}</section>"


def _worst(images: ReportImages) -> str:
    if not images.worst:
        return ""
    return f'<section><h2>Worst cases</h2><div class="worst">{"".join(map(_figure, images.worst))}</div></section>'


def _pictures(images: ReportImages) -> str:
    if not images.pictures:
        return ""
    lines = [f'<li><a href="{_escaped(file)}">{_escaped(line)}</a></li>' for file, line in images.pictures]
    return _section("Predictions in pictures", f"<ol>{''.join(lines)}</ol>")


def _figure(case: WorstCase) -> str:
    if case.thumbnail_jpeg is not None:
        data = base64.b64encode(case.thumbnail_jpeg).decode()
        picture = f'<img src="data:image/jpeg;base64,{data}" alt="{_escaped(case.name)}">'
    else:
        picture = small_map(case.name, case.true_latlon_deg, case.predicted_latlon_deg)
    off = "no prediction" if math.isnan(case.distance_km) else f"{_km(case.distance_km)} off"
    said = (
        f"said {_where(case.predicted_place, case.predicted_latlon_deg)}<br>"
        if case.predicted_latlon_deg
        else ""
    )
    was = _where(case.true_place, case.true_latlon_deg)
    return f"<figure>{picture}<figcaption><b>{off}</b>{said}was {was}<br>{_escaped(case.name)}</figcaption></figure>"


def _where(place: str, latlon_deg: Sequence[float]) -> str:
    return f"{_escaped(place)} ({latlon_deg[0]:.3f}, {latlon_deg[1]:.3f})"


def _rules(metrics: Mapping[str, Any]) -> str:
    facts = {name: value for name, value in metrics["rules"].items() if value is not None}
    facts |= metrics.get("made_with", {})
    rows = "".join(
        f"<tr><th>{_escaped(str(name).replace('_', ' '))}</th><td>{_escaped(_plain(value))}</td></tr>"
        for name, value in facts.items()
    )
    return f'<section><h2>How this was measured</h2><table class="rules">{rows}</table></section>'


def _plain(value: Any) -> str:
    return (
        ", ".join(f"{item:g}" if isinstance(item, float) else str(item) for item in value)
        if isinstance(value, list)
        else str(value)
    )


def _radius(radius: str | float) -> str:
    return f"{float(radius):,g} km" if float(radius) >= 1 else f"{1000 * float(radius):g} m"


def _km(distance_km: float | None) -> str:
    if distance_km is None:
        return "none"
    if distance_km < 1:
        return f"{1000 * distance_km:.0f} m"
    return f"{distance_km:,.1f} km" if distance_km < 100 else f"{distance_km:,.0f} km"


def _escaped(text: str) -> str:
    # A file name with undecodable bytes holds lone surrogates, which UTF-8 cannot write.
    return html.escape(text).encode("utf-8", "xmlcharrefreplace").decode()
