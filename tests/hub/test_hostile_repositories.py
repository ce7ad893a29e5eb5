"""Repositories that mean harm: each is refused, with the name of the file, and nothing lands outside the cache."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
from hub_server import HubServer, Repository, with_manifest

from geoloc.errors import IntegrityError
from geoloc.hub import repository as module
from geoloc.hub.pull import cached

GOOD = {"config.json": b"{}", "model.safetensors": b"weights" * 1000}
DIGEST = hashlib.sha256(b"").hexdigest()


def everything(folder: Path) -> set[str]:
    return {str(path) for path in folder.rglob("*") if path.is_file()}


def refused(hub: HubServer, files: dict[str, bytes], match: str, tmp_path: Path) -> None:
    hub.repositories["model", "me/evil"] = Repository()
    hub.repositories["model", "me/evil"].commit(files, "evil")
    cache = tmp_path / "cache"
    outside = everything(tmp_path) - everything(cache)
    with pytest.raises(IntegrityError, match=match):
        cached("me/evil", "model")
    assert everything(tmp_path) - everything(cache) == outside
    assert not list(cache.rglob("snapshots/[0-9a-f]*"))  # no folder took the name of a commit


@pytest.mark.parametrize(
    "name",
    [
        "../outside.json",
        "a/../../outside.json",
        "/tmp/outside.json",
        "//outside.json",
        "./config.json",
        "a//b.json",
        "a\\..\\b.json",
        "C:\\b.json",
        ".hidden.json",
        ".ssh/config.json",
        "a/.git/config.json",
        "a b.json",
        "a\n.json",
        "a\0.json",
        "~/b.json",
        "%2e%2e/b.json",
        "",
        "a/" * 9 + "b.json",
        "ö.json",
    ],
)
def test_names_that_lead_elsewhere(hub: HubServer, tmp_path: Path, name: str) -> None:
    refused(
        hub,
        with_manifest(GOOD | {name: b"{}"}),
        "which is not a plain name inside the folder: geoloc does not publ",
        tmp_path,
    )
    assert not any("outside" in path for _, path, _ in hub.requests)


@pytest.mark.parametrize(
    "name",
    [
        "model.bin", "pytorch_model.pt", "weights.pkl", "code.py", "index.faiss", "weights.npy", "a.tar.gz", "b.zip",
        "modeling.so", "config.yaml", "model.h5", "run.sh", "model.safetensors.index", "no_suffix",
    ],
)  # fmt: skip
def test_files_that_we_do_not_write(hub: HubServer, tmp_path: Path, name: str) -> None:
    refused(
        hub,
        with_manifest(GOOD | {name: b"\x80"}),
        rf"lists '{name}', which is no .json, .md, .onnx, .parquet",
        tmp_path,
    )
    assert hub.received(name) == []


@pytest.mark.parametrize(
    ("listed", "match"),
    [
        ({"config.json": {"bytes": 2**40, "sha256": DIGEST}}, "'config.json', a text of 1099511627776 bytes"),
        (
            {"a.safetensors": {"bytes": 2**45, "sha256": DIGEST}},
            "promises 32,768 GiB, and a model has at most 64",
        ),
        (
            {"a.safetensors": {"bytes": -1, "sha256": DIGEST}},
            "'a.safetensors', whose size or checksum is none",
        ),
        ({"a.safetensors": {"bytes": 1, "sha256": "../../x"}}, "whose size or checksum is none"),
        ({"a.safetensors": {"bytes": 1.5, "sha256": DIGEST}}, "does not agree with its own digest"),
        ({"a.safetensors": {"bytes": 1}}, "does not agree with its own digest"),
        ({"a.safetensors": 7}, "does not agree with its own digest"),
        ({"manifest.json": {"bytes": 1, "sha256": DIGEST}}, "which is the manifest itself"),
        (
            {n: {"bytes": 0, "sha256": DIGEST} for n in ("a.json", "a.json/b.json")},
            "or a folder of other files",
        ),
    ],
)
def test_manifests_that_promise_nonsense(hub: HubServer, tmp_path: Path, listed: Any, match: str) -> None:
    refused(hub, with_manifest({}, files=listed), match, tmp_path)


@pytest.mark.parametrize(
    ("manifest", "match"),
    [
        (b"", "manifest.json of the model me/evil at .* is not JSON"),
        (b"\x80\x04K\x01.", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"{}", "names no schema version"),
        (b'{"schema_version": 99}', "reads up to 1: upgrade geoloc-vision"),
        (b'{"schema_version": 1, "files": {}, "digest": "00"}', "does not agree with its own digest"),
    ],
)
def test_manifests_that_are_none(hub: HubServer, tmp_path: Path, manifest: bytes, match: str) -> None:
    refused(hub, GOOD | {"manifest.json": manifest}, match, tmp_path)


def test_a_manifest_without_end(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_MANIFEST_BYTES", 1000)
    refused(hub, {"manifest.json": b" " * 5000}, "sends more than 1000 bytes for 'manifest.json'", tmp_path)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (
            GOOD["model.safetensors"][:-1],
            "sent 'model.safetensors' with 6999 bytes and sha256 .*lists 7000",
        ),
        (GOOD["model.safetensors"] + b"!", "sends more than 7000 bytes for 'model.safetensors'"),
        (
            b"W" + GOOD["model.safetensors"][1:],
            "sent 'model.safetensors' with 7000 bytes and sha256 .* use an older",
        ),
        (
            b"../../../etc/passwd",
            "sent 'model.safetensors' with 19 bytes",
        ),  # how the Hub answers for a symbolic link
        (b"", "sent 'model.safetensors' with 0 bytes"),
        (None, "does not hold 'model.safetensors', which its manifest lists: the push was incomplete"),
    ],
)
def test_files_that_are_not_what_was_promised(
    hub: HubServer, tmp_path: Path, content: bytes | None, match: str
) -> None:
    files = with_manifest(GOOD)
    del files["model.safetensors"]
    refused(hub, files if content is None else files | {"model.safetensors": content}, match, tmp_path)
    assert len(hub.received("model.safetensors")) == 1


def test_a_hub_whose_commit_is_a_path(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repositories["model", "me/evil"] = Repository()
    hub.repositories["model", "me/evil"].commit(with_manifest(GOOD), "push")
    monkeypatch.setattr(Repository, "find", lambda *_: "../../../outside")
    hub.repositories["model", "me/evil"].commits["../../../outside"] = {}
    with pytest.raises(
        IntegrityError, match=r"is at '\.\./\.\./\.\./outside', which is not a commit: check HF_ENDPOINT"
    ):
        cached("me/evil", "model")


def test_a_disk_without_room(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repositories["model", "me/x"] = Repository()
    hub.repositories["model", "me/x"].commit(with_manifest(GOOD), "push")
    usage = type("Usage", (), {"free": 100})
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(
        OSError, match=r"needs 0.0 GB more and 0.0 GB are free: free some space, or pull to another disk"
    ):
        cached("me/x", "model")
    assert hub.received("model.safetensors") == []


def test_links_in_the_cache_are_not_followed(hub: HubServer, tmp_path: Path) -> None:
    """Whoever can write there could do worse; but a link is no file of ours, and what it leads to stays as it is."""
    hub.repositories["model", "me/x"] = Repository()
    hub.repositories["model", "me/x"].commit(with_manifest(GOOD), "push")
    folder = cached("me/x", "model")
    secret = tmp_path / "secret"
    secret.write_bytes(GOOD["config.json"])
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to(secret)
    assert not (cached("me/x", "model") / "config.json").is_symlink()
    assert secret.read_bytes() == GOOD["config.json"]
