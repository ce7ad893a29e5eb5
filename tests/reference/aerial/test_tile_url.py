"""Tiles from a server on the loopback, whatever it answers."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aerial_samples import CENTER, encoded, tile_picture, tiles_around, write_tiles
from tile_server import Server

from geoloc.errors import ConfigError, NotFoundError
from geoloc.reference.aerial import TileUrl, XyzFolder, open_sources, read_patch


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    running = Server()
    yield running
    running.close()


def quick(server: Server, cache: Path, **options: Any) -> TileUrl:
    return TileUrl(server.url, cache, (16, 17), **({"max_per_s": 1000.0} | options))


def test_the_server_shows_what_a_folder_shows(server: Server, tmp_path: Path) -> None:
    folder = XyzFolder(write_tiles(tmp_path / "tiles", [16, 17]))
    source = quick(server, tmp_path / "cache")
    for gsd in (0.9, 2.0):
        a, b = (read_patch(one, CENTER, gsd_m_per_px=gsd, size_px=96) for one in (source, folder))
        assert (a.image == b.image).all()
        assert a.valid.all()


def test_each_tile_is_fetched_once_and_kept_on_the_disk(server: Server, tmp_path: Path) -> None:
    first = read_patch(quick(server, tmp_path), CENTER, gsd_m_per_px=1.0, size_px=128)
    asked = Counter(path for _, path in server.requests)
    assert asked
    assert set(asked.values()) == {1}
    again = read_patch(quick(server, tmp_path), CENTER, gsd_m_per_px=1.0, size_px=128)  # another process, say
    assert len(server.requests) == len(asked)
    assert (first.image == again.image).all()


def test_a_tile_that_is_not_there_is_a_hole_and_remembered(server: Server, tmp_path: Path) -> None:
    ((x, y),) = tiles_around(CENTER, 17, 0)
    server.missing = {f"/17/{x}/{y}.png"}
    for _ in range(2):
        patch = read_patch(quick(server, tmp_path), CENTER, gsd_m_per_px=1.0, size_px=64)
        assert not patch.valid.all()
    assert [path for _, path in server.requests].count(f"/17/{x}/{y}.png") == 1


@pytest.mark.parametrize("answers", [[503], [429, 500], ["close"], [502, "close", 504]])
def test_not_now_is_asked_again(server: Server, tmp_path: Path, answers: list[Any]) -> None:
    server.answers = list(answers)
    source = quick(server, tmp_path)
    ((x, y),) = tiles_around(CENTER, 17, 0)
    assert source.tile_bytes(17, x, y) == encoded(tile_picture(17, x, y))
    assert len(server.requests) == len(answers) + 1


def test_a_server_may_say_how_long_to_wait(server: Server, tmp_path: Path) -> None:
    server.answers, server.headers = [429], {"Retry-After": "1"}
    ((x, y),) = tiles_around(CENTER, 17, 0)
    quick(server, tmp_path).tile_bytes(17, x, y)
    (first, _), (second, _) = server.requests
    assert second - first >= 0.99


def test_a_refusal_and_lost_patience_are_errors_and_leave_no_holes(server: Server, tmp_path: Path) -> None:
    server.answers = [403]
    with pytest.raises(
        NotFoundError, match=r"answers 403 \(Forbidden\): check the address, and whether it needs"
    ):
        quick(server, tmp_path).tile_bytes(17, 1, 1)
    server.answers = [503] * 3
    with pytest.raises(
        NotFoundError, match=r"could not be fetched in 3 tries \(it answers 503\): what was fetched"
    ):
        quick(server, tmp_path, num_tries=3).tile_bytes(17, 1, 1)
    assert not list(tmp_path.rglob("1"))
    assert quick(server, tmp_path).tile_bytes(17, 1, 1) == encoded(tile_picture(17, 1, 1))


def test_no_faster_than_allowed(server: Server, tmp_path: Path) -> None:
    source = quick(server, tmp_path, max_per_s=20.0)
    for x in range(5):
        source.tile_bytes(16, x, 0)
    times = [at for at, _ in server.requests]
    assert np.diff(times).min() >= 0.04
    assert times[-1] - times[0] >= 4 * 0.05 - 0.01


def test_rows_from_the_south_and_wmts(server: Server, tmp_path: Path) -> None:
    base = server.url.partition("{")[0]
    TileUrl(base + "{z}/{x}/{-y}.png", tmp_path, (3, 3), max_per_s=1000).tile_bytes(3, 5, 1)
    TileUrl(base + "{TileMatrix}/{TileCol}/{TileRow}.png", tmp_path, (3, 3), max_per_s=1000).tile_bytes(
        3, 5, 1
    )
    assert [path for _, path in server.requests] == ["/3/5/6.png", "/3/5/1.png"]


def test_beyond_the_rows_nothing_is_asked(server: Server, tmp_path: Path) -> None:
    source = quick(server, tmp_path)
    assert source.tile_bytes(3, 0, -1) is None
    assert source.tile_bytes(3, 0, 8) is None
    assert not server.requests


@pytest.mark.parametrize(
    "url",
    [
        "ftp://a/{z}/{x}/{y}",
        "file:///{z}/{x}/{y}",
        "http://a/{z}/{x}",
        "http://a/{z}/{x}/{y}/{-y}",
        "http://a/{z}/{x}/{y}?{k}",
    ],
)
def test_addresses_that_are_none(tmp_path: Path, url: str) -> None:
    with pytest.raises(ConfigError, match=r"must be http or https with \{z\}, \{x\} and \{y\}"):
        TileUrl(url, tmp_path, (0, 1))


def test_numbers_that_make_no_sense(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="must be positive; found 0, 5 and"):
        TileUrl("http://a.invalid/{z}/{x}/{y}", tmp_path, (0, 1), max_per_s=0)
    with pytest.raises(ConfigError, match="the zooms go from 3 to 1; give the coarser one first"):
        TileUrl("http://a.invalid/{z}/{x}/{y}", tmp_path, (3, 1))


def test_a_server_opens_by_its_address(server: Server, tmp_path: Path) -> None:
    (source,) = open_sources(server.url, cache=tmp_path, zooms=(16, 17), licence="CC-BY-4.0")
    assert (source.name, source.licence, source.num_levels) == ("127.0.0.1", "CC-BY-4.0", 2)
    assert source.facts()["url"] == server.url
