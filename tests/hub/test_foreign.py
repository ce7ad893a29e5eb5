"""Repositories that geoloc did not write, from the stand-in; and one file at a pinned address."""

import hashlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import HubServer, Repository

from geoloc.errors import IntegrityError, NotFoundError
from geoloc.hub.foreign import foreign, is_foreign, pinned

FILES = {
    "config.json": b'{"model": {}}',
    "model.safetensors": bytes(range(256)) * 40,
    "pytorch_model.bin": b"a pickle",
    "weights/last.safetensors": b"x" * 100,
    "empty.json": b"",
    "README.md": b"# theirs",
}


@pytest.fixture
def published(hub: HubServer) -> HubServer:
    hub.repositories["model", "they/model"] = Repository()
    hub.repositories["model", "they/model"].commit(FILES, "theirs")
    return hub


def test_only_what_is_wanted_is_received(published: HubServer) -> None:
    folder = foreign("they/model", ["*.json", "model.safetensors"])
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["config.json", "empty.json", "manifest.json", "model.safetensors"]
    assert (folder / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    assert is_foreign(folder)
    count = len(published.requests)
    assert foreign("they/model", ["*.json", "model.safetensors"]) == folder
    assert not any("/resolve/" in path for _, path, _ in published.requests[count:])


def test_a_pattern_without_a_folder_reaches_into_none(published: HubServer) -> None:
    folder = foreign("they/model", ["weights/*.safetensors"])
    assert [p.name for p in folder.rglob("*.safetensors")] == ["last.safetensors"]
    with pytest.raises(NotFoundError, match=r"holds none of \*\.pth.*config\.json"):
        foreign("they/model", ["*.pth"])


def test_an_older_commit_can_be_asked_for(published: HubServer) -> None:
    repository = published.repositories["model", "they/model"]
    old = repository.branches["main"]
    repository.commit(FILES | {"config.json": b"{}"}, "newer")
    assert (foreign("they/model", ["config.json"]) / "config.json").read_bytes() == b"{}"
    folder = foreign("they/model", ["config.json"], revision=old)
    assert (folder / "config.json").read_bytes() == FILES["config.json"]


def test_a_broken_connection_goes_on(published: HubServer) -> None:
    published.cut["model.safetensors"] = [1000, 3000]
    folder = foreign("they/model", ["model.safetensors"])
    assert (folder / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    assert published.received("model.safetensors")[:1] == [""]


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_other_bytes_than_the_hub_promised_are_refused(
    published: HubServer, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import hub_server

    honest = hub_server._blob

    def lying(file: str, data: bytes) -> dict[str, object]:
        found = honest(file, data)
        flipped = hashlib.sha256(b"other").hexdigest()
        return found | (
            {"lfs": found["lfs"] | {"sha256": flipped}} if "lfs" in found else {"blobId": flipped[:40]}
        )

    monkeypatch.setattr(hub_server, "_blob", lying)
    with pytest.raises(IntegrityError, match=name):
        foreign("they/model", [name])


def test_a_damaged_cache_is_received_anew(published: HubServer) -> None:
    folder = foreign("they/model", ["model.safetensors"])
    (folder / "model.safetensors").write_bytes(b"damaged")
    assert foreign("they/model", ["model.safetensors"]) == folder
    assert (folder / "model.safetensors").read_bytes() == FILES["model.safetensors"]


def test_offline_the_cache_answers(published: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    folder = foreign("they/model", ["config.json"])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert foreign("they/model", ["config.json"]) == folder
    with pytest.raises(NotFoundError, match="HF_HUB_OFFLINE"):
        foreign("they/model", ["model.safetensors"])


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """Of a plain server with one file."""
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "cells.csv").write_bytes(b"a,b\n1,2\n")

    seen: list[str | None] = []

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: object) -> None:
            super().__init__(*args, directory=str(tmp_path / "served"))  # type: ignore[arg-type]

        def log_message(self, *_: object) -> None:
            seen.append(self.headers.get("Authorization"))

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/cells.csv"
    assert not any(seen)  # the Hub's token is nobody else's business
    server.shutdown()
    server.server_close()


def test_a_pinned_file(hub: HubServer, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    digest = hashlib.sha256(b"a,b\n1,2\n").hexdigest()
    path = pinned(address, digest)
    assert path.name == "cells.csv"
    assert path.read_bytes() == b"a,b\n1,2\n"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert pinned(address, digest) == path
    path.write_bytes(b"damaged")
    with pytest.raises(NotFoundError, match="offline mode"):
        pinned(address, digest)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert pinned(address, digest).read_bytes() == b"a,b\n1,2\n"
    with pytest.raises(IntegrityError, match="do not trust it"):
        pinned(address, hashlib.sha256(b"other").hexdigest())
    with pytest.raises(NotFoundError, match="could not get"):
        pinned(address + ".gone", digest)
