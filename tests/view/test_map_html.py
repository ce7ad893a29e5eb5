"""The map page: whole in one file, nothing loaded, nothing that a user named is markup."""

import base64
import hashlib
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from geoloc.view.map_html import (
    MAX_ATOMS,
    MAX_CANDIDATES,
    MAX_THUMBNAILS,
    MapPoint,
    write_map,
    write_quadtree_map,
)
from geoloc.view.outline import OUTLINE_PATH
from quadtree import InvalidCoordinateError, Quadtree, build_quadtree

HOSTILE = [
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<!--<script>",
    "]]>&lt;b&gt;",
    "a\"b'c`${alert(1)}",
    "\u2028line\u2029",
    "bytes\udcff.jpg",
    "@JS@ @DATA@ @CSS@",
    "https://example.org/x.js",
]


class Page(HTMLParser):
    """Elements with their attributes, and the text of scripts, styles and the title."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self._inside = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside = tag

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside in ("script", "style", "title"):
            self.texts.append((self._inside, data))

    def joined(self, tag: str, which: int = 0) -> str:
        """The text of one element; html.parser hands it over in pieces."""
        starts = [i for i, (name, _) in enumerate(self.elements) if name == tag]
        assert len(starts) > which
        pieces = "".join(text for name, text in self.texts if name == tag)
        if tag != "script":
            return pieces
        data, _, script = pieces.partition('"use strict";')
        return data if which == 0 else '"use strict";' + script


def data_of(path: Path) -> Any:
    return json.loads(Page(path.read_text(encoding="utf-8")).joined("script", 0))


def some_points() -> list[MapPoint]:
    return [
        MapPoint(
            "lund.jpg",
            (55.70467, 13.191),
            radius_km={90: 80.12345, 50: 12.0},
            place="Lund, Skane, SE",
            probability=0.734567,
            candidates=[(55.7, 13.2, 0.7), (48.1, 11.5, 0.1)],
            thumbnail_jpeg=b"\xff\xd8\xff\xe0 not much of a picture",
            truth_latlon_deg=(55.71, 13.2),
            posterior=[(55.7, 373.2, 0.71239, 40.0), (48.123456789, 11.5, 0.1, 0.0)],
        ),
        MapPoint("fiji.jpg", (-17.5, 180.0), radius_km={90: 900.0}),
        MapPoint("broken.jpg", None, error="truncated JPEG"),
    ]


def some_tree() -> Quadtree:
    points = np.random.default_rng(0).uniform([-60, -180], [70, 180], (500, 2))
    return build_quadtree(points, max_points_per_cell=20, max_depth=6)


def test_data_of_the_page(tmp_path: Path) -> None:
    path = tmp_path / "map.html"
    write_map(path, some_points(), title="Three", note="by hand.", heatmap=[(1.0, 2.0, 0.5)])
    data = data_of(path)
    lund, fiji, broken = data["points"]
    assert lund["latlon"] == [55.70467, 13.191]
    assert lund["radii"] == {"50": 12.0, "90": 80.12}
    assert lund["probability"] == 0.7346
    assert lund["candidates"] == [[55.7, 13.2, 0.7], [48.1, 11.5, 0.1]]
    assert base64.b64decode(lund["thumbnail"]).startswith(b"\xff\xd8\xff")
    assert lund["truth"] == [55.71, 13.2]
    assert lund["posterior"] == [[55.7, 13.2, 0.7124, 40.0], [48.123457, 11.5, 0.1, 0.0]]
    assert fiji["latlon"] == [-17.5, -180.0]
    assert "truth" not in fiji
    assert "posterior" not in fiji
    assert broken["error"] == "truncated JPEG"
    assert "latlon" not in broken
    assert data["title"] == "Three"
    assert data["note"].startswith("by hand. Made with geoloc ")
    assert data["heatmap"] == [[1.0, 2.0, 0.5]]
    assert data["quadtree"] is None
    assert base64.b64decode(data["outline"]) == OUTLINE_PATH.read_bytes()


def test_quadtree_of_the_page(tmp_path: Path) -> None:
    tree = some_tree()
    write_quadtree_map(tree, tmp_path / "tree.html", title="A tree")
    write_map(tmp_path / "map.html", some_points(), title="With a tree", quadtree=tree)
    for path in (tmp_path / "tree.html", tmp_path / "map.html"):
        cells = data_of(path)["quadtree"]
        np.testing.assert_allclose(cells["bounds"], tree.bounds_deg, atol=1e-6)
        np.testing.assert_allclose(cells["centers"], tree.center_latlon_deg, atol=1e-6)
        assert cells["paths"] == list(tree.paths)
        assert sum(cells["counts"]) == 500


def test_nothing_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "map.html"
    write_map(path, some_points(), title="Offline", quadtree=some_tree())
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert not {"link", "iframe", "object", "embed", "base", "form", "img"} & {
        tag for tag, _ in page.elements
    }
    for tag, attributes in page.elements:
        assert not {"src", "href", "srcset", "action", "data"} & attributes.keys(), tag
    assert not re.search(r"https?:|//\w+\.\w+/|url\(|@import|fetch\(|XMLHttpRequest|WebSocket|import\(", text)


def test_policy_admits_this_script_and_this_style_alone(tmp_path: Path) -> None:
    path = tmp_path / "map.html"
    write_map(path, some_points(), title="Policy")
    page = Page(path.read_text(encoding="utf-8"))
    metas = [attributes for tag, attributes in page.elements if tag == "meta" and "http-equiv" in attributes]
    policy = metas[0]["content"] or ""

    def hash_of(text: str) -> str:
        return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()

    assert "default-src 'none'" in policy
    assert f"script-src 'sha256-{hash_of(page.joined('script', 1))}'" in policy
    assert f"style-src 'sha256-{hash_of(page.joined('style'))}'" in policy
    assert "unsafe" not in policy
    # Such a policy refuses attributes that hold script or style.
    assert not any(name.startswith("on") or name == "style" for _, given in page.elements for name in given)


@pytest.mark.parametrize("text", HOSTILE)
def test_what_users_name_is_no_markup(tmp_path: Path, text: str) -> None:
    plain, hostile = tmp_path / "plain.html", tmp_path / "hostile.html"
    write_map(plain, [MapPoint("x", (0, 0), place="x"), MapPoint("x", None, error="x")], title="x", note="x")
    points = [MapPoint(text, (0, 0), place=text), MapPoint(text, None, error=text)]
    write_map(hostile, points, title=text, note=text)
    plain_page, hostile_page = (Page(path.read_text(encoding="utf-8")) for path in (plain, hostile))
    assert hostile_page.elements == plain_page.elements
    assert hostile_page.joined("script", 1) == plain_page.joined("script", 1)
    data = data_of(hostile)
    assert data["title"] == text
    assert data["note"].startswith(text)
    assert [point["name"] for point in data["points"]] == [text, text]
    assert data["points"][0]["place"] == data["points"][1]["error"] == text
    assert not re.search("[<>&]", hostile_page.joined("script", 0))


def test_script_never_makes_markup_of_text() -> None:
    script = (OUTLINE_PATH.parent / "map.js").read_text(encoding="utf-8")
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", script
    )


def test_pictures_and_candidates_are_capped(tmp_path: Path) -> None:
    path = tmp_path / "map.html"
    candidates = [(0.0, float(i), 0.01) for i in range(50)]
    bells = [(0.0, float(i), 0.01, 5.0) for i in range(50)]
    points = [
        MapPoint(str(i), (0, 0), candidates=candidates, posterior=bells, thumbnail_jpeg=b"\xff\xd8\xff")
        for i in range(250)
    ]
    write_map(path, points, title="Many")
    found = data_of(path)["points"]
    assert len(found) == 250
    assert sum("thumbnail" in point for point in found) == MAX_THUMBNAILS
    assert {len(point["candidates"]) for point in found} == {MAX_CANDIDATES}
    assert {len(point["posterior"]) for point in found} == {MAX_ATOMS}


def test_no_images_is_a_map_too(tmp_path: Path) -> None:
    write_map(tmp_path / "map.html", [], title="Nothing")
    assert data_of(tmp_path / "map.html")["points"] == []


def test_impossible_points_are_refused_and_leave_the_old_map(tmp_path: Path) -> None:
    path = tmp_path / "map.html"
    write_map(path, [], title="Old")
    old = path.read_bytes()
    with pytest.raises(InvalidCoordinateError, match="latitude"):
        write_map(path, [MapPoint("x", (91, 0))], title="New")
    with pytest.raises(InvalidCoordinateError, match="latitude"):
        write_map(path, [MapPoint("x", (0, 0), posterior=[(91, 0, 1, 1)])], title="New")
    with pytest.raises(ValueError, match="'x' has neither a position nor an error"):
        write_map(path, [MapPoint("x", None)], title="New")
    with pytest.raises(ValueError, match="JSON compliant"):
        write_map(path, [MapPoint("x", (0, 0), probability=float("nan"))], title="New")
    assert path.read_bytes() == old


@pytest.mark.slow
def test_a_browser_shows_hostile_names_as_text(tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium is installed")
    path = tmp_path / "map.html"
    names = [name for name in HOSTILE if "\udcff" not in name]
    write_map(path, [MapPoint(name, (0, 10 * i), {90: 500}) for i, name in enumerate(names)], title=names[0])
    run = subprocess.run(
        [
            browser,
            *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"),
            *("--disable-background-networking", "--disable-component-update", "--window-size=1200,1200"),
            f"--user-data-dir={tmp_path / 'profile'}",
            *("--dump-dom", path.as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    shown = Page(run.stdout)
    assert sum(tag == "script" for tag, _ in shown.elements) == 2
    assert not any(tag == "img" for tag, _ in shown.elements)
    rows = re.findall(r'<div class="name">(.*?)</div>', run.stdout, re.DOTALL)
    assert rows[:2] == [
        "&lt;/script&gt;&lt;script&gt;alert(1)&lt;/script&gt;",
        "&lt;img src=x onerror=alert(1)&gt;",
    ]
    assert len(rows) == len(names)
